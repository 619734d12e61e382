//! How many slots of one kind are kept ready. Pure: the clock comes in.
//!
//! ```text
//!   nothing ──two for each take──▶ size ──empty: as many as were taken since it was last full──▶ at most `most`
//!                                   ▲                                                                │
//!                                   └────── half, each time that half or more lay unused for SETTLE ─┘
//! ```
//!
//! Nothing is kept before the first take and little after it, so that a daemon that makes no sandbox of this kind, or
//! one only, wastes little on it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long slots must have lain unused before there are fewer of them.
pub(crate) const SETTLE: Duration = Duration::from_secs(30);

/// Slots that are ready, the oldest first.
#[derive(Debug)]
pub(crate) struct Shelf<S> {
    size: usize,
    most: usize,
    target: usize,
    ready: VecDeque<S>,
    /// Takes since the shelf was last full.
    drawn: usize,
    /// The least that were ready since `since`.
    fewest: usize,
    since: Instant,
    hits: u64,
    misses: u64,
}

/// What a shelf has, and what it was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Slots that are ready.
    pub ready: usize,
    /// Slots that are to be ready; nothing before the first was asked for.
    pub target: usize,
    /// Slots that were ready when they were asked for.
    pub hits: u64,
    /// Slots that had to be made first.
    pub misses: u64,
}

impl<S> Shelf<S> {
    /// An empty shelf for `size` slots and up to `most` in times of demand; none at all where `size` is 0.
    pub(crate) fn new(size: usize, most: usize, now: Instant) -> Self {
        let (ready, most) = (VecDeque::new(), most.max(size));
        Self { size, most, target: 0, ready, drawn: 0, fewest: 0, since: now, hits: 0, misses: 0 }
    }

    /// Takes the oldest slot, if there is one.
    pub(crate) fn take(&mut self) -> Option<S> {
        let taken = self.ready.pop_front();
        self.drawn = self.drawn.saturating_add(1);
        self.fewest = self.fewest.min(self.ready.len());
        match taken {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        if self.size > 0 {
            let asked = usize::try_from(self.hits + self.misses).unwrap_or(usize::MAX);
            let usual = self.size.min(asked.saturating_mul(2));
            let wanted = if taken.is_some() { usual } else { self.drawn.min(self.most).max(usual) };
            self.target = self.target.max(wanted);
        }
        taken
    }

    /// Puts a new slot on the shelf.
    pub(crate) fn put(&mut self, slot: S) {
        self.ready.push_back(slot);
        if !self.lacks() {
            self.drawn = 0;
        }
    }

    /// Whether slots are to be made.
    pub(crate) fn lacks(&self) -> bool {
        self.ready.len() < self.target
    }

    /// Whether more than half of what is to be ready is not.
    pub(crate) fn is_low(&self) -> bool {
        self.ready.len() * 2 < self.target
    }

    /// When to call [`Shelf::settle`] next; never, where there is nothing to make smaller.
    pub(crate) fn settles_at(&self) -> Option<Instant> {
        (self.target > self.size).then(|| self.since + SETTLE)
    }

    /// Makes the shelf smaller where that is due, and gives what does not belong on it any more.
    pub(crate) fn settle(&mut self, now: Instant) -> Vec<S> {
        if self.settles_at().is_none_or(|due| now < due) {
            return Vec::new();
        }
        if self.fewest * 2 >= self.target {
            self.target = (self.target / 2).max(self.size);
        }
        let kept = self.ready.len().min(self.target);
        let surplus = self.ready.split_off(kept);
        (self.since, self.fewest) = (now, kept);
        surplus.into()
    }

    /// Everything on the shelf; nothing more is wanted after that.
    pub(crate) fn clear(&mut self) -> Vec<S> {
        (self.size, self.target) = (0, 0);
        std::mem::take(&mut self.ready).into()
    }

    /// The figures.
    pub(crate) fn counts(&self) -> PoolCounts {
        PoolCounts { ready: self.ready.len(), target: self.target, hits: self.hits, misses: self.misses }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(shelf: &mut Shelf<()>) {
        while shelf.lacks() {
            shelf.put(());
        }
    }

    #[test]
    fn nothing_is_wanted_before_the_first_take_and_nothing_ever_of_size_zero() {
        let mut shelf = Shelf::<()>::new(8, 64, Instant::now());
        assert!(!shelf.lacks());
        assert!(shelf.take().is_none());
        assert_eq!(shelf.counts(), PoolCounts { ready: 0, target: 2, hits: 0, misses: 1 });
        let mut off = Shelf::<()>::new(0, 64, Instant::now());
        for _ in 0..100 {
            assert!(off.take().is_none());
        }
        assert!(!off.lacks());
    }

    #[test]
    fn it_grows_with_a_burst_and_not_by_a_few_at_a_cold_start() {
        let mut shelf = Shelf::new(8, 64, Instant::now());
        for _ in 0..4 {
            shelf.take();
        }
        assert_eq!(shelf.counts().target, 8);
        fill(&mut shelf);
        for _ in 0..20 {
            shelf.take();
        }
        assert_eq!(shelf.counts().target, 20);
        for _ in 0..80 {
            shelf.take();
        }
        assert_eq!(shelf.counts().target, 64);
        fill(&mut shelf);
        assert_eq!((0..64).filter_map(|_| shelf.take()).count(), 64);
        assert_eq!(shelf.counts().target, 64);
    }

    #[test]
    fn it_shrinks_by_half_while_half_of_it_is_unused() {
        let mut now = Instant::now();
        let mut shelf = Shelf::new(8, 64, now);
        for _ in 0..64 {
            shelf.take();
        }
        fill(&mut shelf);
        assert!(shelf.settle(now).is_empty());
        // In the first half-minute it was empty for a while.
        for (target, surplus) in [(64, 0), (32, 32), (16, 16), (8, 8), (8, 0)] {
            now += SETTLE;
            assert_eq!((shelf.settle(now).len(), shelf.counts().target), (surplus, target));
        }
        assert_eq!((shelf.settles_at(), shelf.counts().ready), (None, 8));
    }

    #[test]
    fn it_does_not_shrink_while_most_of_it_is_used_now_and_then() {
        let mut now = Instant::now();
        let mut shelf = Shelf::new(8, 64, now);
        for _ in 0..40 {
            shelf.take();
        }
        for _ in 0..5 {
            fill(&mut shelf);
            for _ in 0..30 {
                assert!(shelf.take().is_some());
            }
            fill(&mut shelf);
            now += SETTLE;
            assert!(shelf.settle(now).is_empty());
        }
    }
}
