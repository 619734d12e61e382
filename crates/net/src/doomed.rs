//! Links on their way out. Pure: the clock and what was seen come in.
//!
//! A link goes with its namespace, and the kernel takes all namespaces that were closed meanwhile in one go: the waits
//! for readers (RCU), which are most of the work, are then theirs together. Removing links by name has them one by
//! one, and under the lock that making needs. So a link is left alone as long as the kernel may still be on its way to it:
//!
//! ```text
//!   closed ──▶ looked at every LOOK ──gone──▶ the address rests, the ids go back
//!                    └── a younger one has gone, or none for PATIENCE: something holds the namespace ──▶ removed by name
//! ```

use std::time::{Duration, Instant};

/// How often links that are to go are looked for.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// How much younger a link must be to say something of an older one: their namespaces may have been closed in the
/// other order, and the kernel may have begun between the two.
const MARGIN: Duration = Duration::from_millis(50);
/// How long nothing must have gone until the kernel is not on its way any more.
const PATIENCE: Duration = Duration::from_millis(500);

/// Links that are to go, the oldest first.
#[derive(Debug)]
pub(crate) struct Doomed {
    links: Vec<(u32, Instant)>,
    looked_at: Instant,
    /// When one was last found to have gone, or when the first was put here.
    moved_at: Instant,
}

/// What is to be done about links, by slot number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// They are not there any more.
    pub(crate) gone: Vec<u32>,
    /// They do not go by themselves.
    pub(crate) held: Vec<u32>,
}

impl Doomed {
    /// None.
    pub(crate) fn new(now: Instant) -> Self {
        Self { links: Vec::new(), looked_at: now, moved_at: now }
    }

    /// Adds the link of slot `number`, whose namespace was just closed.
    pub(crate) fn add(&mut self, number: u32, now: Instant) {
        if self.links.is_empty() {
            (self.looked_at, self.moved_at) = (now, now);
        }
        self.links.push((number, now));
    }

    /// When to look for them next; never, where there are none.
    pub(crate) fn look_at(&self) -> Option<Instant> {
        (!self.links.is_empty()).then(|| self.looked_at + LOOK)
    }

    /// All of them.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.links.iter().map(|(number, _)| *number).collect()
    }

    /// Forgets those that are gone or held, as they were seen at the time `looked`.
    pub(crate) fn seen(&mut self, looked: Instant, is_gone: impl Fn(u32) -> bool) -> Seen {
        self.looked_at = looked;
        let (gone, there): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.links).into_iter().partition(|(number, _)| is_gone(*number));
        let youngest = gone.iter().map(|(_, since)| *since).max();
        if youngest.is_some() {
            self.moved_at = looked;
        }
        let is_held = |since: Instant| {
            let passed_over = youngest.is_some_and(|youngest| since + MARGIN < youngest);
            passed_over || looked.saturating_duration_since(since.max(self.moved_at)) > PATIENCE
        };
        let (held, waiting): (Vec<_>, Vec<_>) = there.into_iter().partition(|(_, since)| is_held(*since));
        self.links = waiting;
        let numbers = |links: Vec<(u32, Instant)>| links.into_iter().map(|(number, _)| number).collect();
        Seen { gone: numbers(gone), held: numbers(held) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn nothing_is_looked_for_where_nothing_is_to_go() {
        let start = Instant::now();
        let mut doomed = Doomed::new(start);
        assert_eq!(doomed.look_at(), None);
        doomed.add(1, start + millis(900));
        assert_eq!(doomed.look_at(), Some(start + millis(900) + LOOK));
        let seen = doomed.seen(start + millis(930), |_| true);
        assert_eq!((seen.gone, seen.held, doomed.look_at()), (vec![1], vec![], None));
    }

    #[test]
    fn a_link_that_a_younger_one_overtook_is_held() {
        let start = Instant::now();
        let mut doomed = Doomed::new(start);
        for (number, at) in [(1, 0), (2, 80), (3, 100), (4, 110)] {
            doomed.add(number, start + millis(at));
        }
        let seen = doomed.seen(start + millis(120), |number| number == 3);
        assert_eq!(seen, Seen { gone: vec![3], held: vec![1] });
        assert_eq!(doomed.numbers(), [2, 4]);
    }

    #[test]
    fn a_busy_kernel_is_waited_for_while_it_goes_on() {
        let start = Instant::now();
        let mut doomed = Doomed::new(start);
        for number in 0..20 {
            doomed.add(number, start);
        }
        for step in 0..19 {
            let seen = doomed.seen(start + millis(400) * (step + 1), |number| number == step);
            assert_eq!(seen, Seen { gone: vec![step], held: vec![] });
        }
        assert_eq!(doomed.seen(start + millis(400 * 19 + 500), |_| false), Seen::default());
        assert_eq!(doomed.seen(start + millis(400 * 19 + 501), |_| false).held, [19]);
    }
}
