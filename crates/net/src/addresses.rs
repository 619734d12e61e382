//! Which addresses of a range are in use, and which rest.
//!
//! A freed address rests: its late packets, and connections that a peer still believes in, must not reach the next
//! sandbox. For a minute while there are others; where sandboxes come and go so fast that there are not, the one that
//! has rested longest is taken, after ten seconds at the least. Pure: the clock comes in.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::names::MAX_SLOTS;

/// How long a freed address is not handed out again while there are others.
pub(crate) const REST: Duration = Duration::from_secs(60);
/// How long it is not handed out again, come what may. A /20 then numbers 400 new sandboxes a second.
pub(crate) const LEAST_REST: Duration = Duration::from_secs(10);

/// The addresses of one range.
#[derive(Debug)]
pub(crate) struct Addresses {
    range: Ipv4Net,
    /// Where to look next: round the range, so that the longest unused come first.
    next: u32,
    in_use: BTreeSet<u32>,
    resting: VecDeque<(Instant, u32)>,
    resting_set: BTreeSet<u32>,
}

impl Addresses {
    /// All addresses of `range` but its first and last, which some programs take for a network's and a broadcast's.
    pub(crate) fn new(range: Ipv4Net) -> Self {
        let (in_use, resting, resting_set) = Default::default();
        Self { range, next: 1, in_use, resting, resting_set }
    }

    /// The range.
    pub(crate) fn range(&self) -> Ipv4Net {
        self.range
    }

    /// How many are in use and how many rest.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.in_use.len(), self.resting.len())
    }

    /// Takes a free address: its number in the range and itself.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(u32, Ipv4Addr)> {
        self.wake(now);
        let last = last(self.range);
        let free = |n: &u32| !self.in_use.contains(n) && !self.resting_set.contains(n);
        let is_one_free =
            self.in_use.len() + self.resting.len() < usize::try_from(last).unwrap_or(usize::MAX);
        let number = match is_one_free {
            true => (self.next..=last).chain(1..self.next).find(free)?,
            false => self.wake_early(now)?,
        };
        self.in_use.insert(number);
        self.next = if number >= last { 1 } else { number + 1 };
        Some((number, address(self.range, number)))
    }

    /// Gives address `number` back; it rests from `now` on.
    pub(crate) fn give_back(&mut self, number: u32, now: Instant) {
        if self.in_use.remove(&number) {
            self.resting.push_back((now, number));
            self.resting_set.insert(number);
        }
    }

    fn wake(&mut self, now: Instant) {
        while let Some(&(since, number)) = self.resting.front() {
            if now.saturating_duration_since(since) < REST {
                break;
            }
            self.resting.pop_front();
            self.resting_set.remove(&number);
        }
    }

    /// The address that has rested longest, if that was long enough.
    fn wake_early(&mut self, now: Instant) -> Option<u32> {
        let &(since, number) = self.resting.front()?;
        if now.saturating_duration_since(since) < LEAST_REST {
            return None;
        }
        self.resting.pop_front();
        self.resting_set.remove(&number);
        Some(number)
    }

    /// Marks number `number` as used, as it has been since before. Free ones are looked for behind it: those in front of
    /// it may have been freed a moment ago.
    pub(crate) fn occupy(&mut self, number: u32) {
        self.in_use.insert(number);
        self.next = if number >= last(self.range) { 1 } else { self.next.max(number + 1) };
    }
}

/// The largest number in `range`, which has /30 or more addresses; 1 is the smallest.
pub(crate) fn last(range: Ipv4Net) -> u32 {
    let hosts = 1u32 << (32 - u32::from(range.prefix_len()));
    (hosts - 2).min(MAX_SLOTS - 1)
}

/// Address `number` of `range`.
pub(crate) fn address(range: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()) + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_address_rests_ten_seconds_at_the_least() {
        let start = Instant::now();
        let mut addresses = Addresses::new("10.0.0.4/30".parse().unwrap());
        assert_eq!(addresses.take(start), Some((1, Ipv4Addr::new(10, 0, 0, 5))));
        assert_eq!(addresses.take(start), Some((2, Ipv4Addr::new(10, 0, 0, 6))));
        assert_eq!(addresses.take(start), None);
        addresses.give_back(1, start);
        assert_eq!(addresses.counts(), (1, 1));
        assert_eq!(addresses.take(start + LEAST_REST - Duration::from_millis(1)), None);
        assert_eq!(addresses.take(start + LEAST_REST), Some((1, Ipv4Addr::new(10, 0, 0, 5))));
    }

    #[test]
    fn it_rests_a_minute_while_there_are_others() {
        let start = Instant::now();
        let mut addresses = Addresses::new("10.0.0.0/29".parse().unwrap());
        for number in 1..=4 {
            assert_eq!(addresses.take(start).unwrap().0, number);
        }
        (1..=3).for_each(|number| addresses.give_back(number, start));
        let soon = start + REST - Duration::from_millis(1);
        let numbers = [5, 6, 1, 2, 3].map(|_| addresses.take(soon).unwrap().0);
        assert_eq!(numbers, [5, 6, 1, 2, 3]);
        assert_eq!(addresses.take(soon), None);
    }

    #[test]
    fn an_address_that_was_in_use_before_is_not_handed_out_and_those_behind_it_are_first() {
        let start = Instant::now();
        let mut addresses = Addresses::new("10.0.0.0/29".parse().unwrap());
        [4, 2].into_iter().for_each(|number| addresses.occupy(number));
        let numbers: Vec<_> = std::iter::from_fn(|| addresses.take(start)).map(|taken| taken.0).collect();
        assert_eq!(numbers, [5, 6, 1, 3]);
        addresses.give_back(4, start);
        assert_eq!(addresses.counts(), (5, 1));
        // The last number of all: it goes on with the first.
        let mut addresses = Addresses::new("10.0.0.0/29".parse().unwrap());
        addresses.occupy(6);
        assert_eq!(addresses.take(start).unwrap().0, 1);
    }

    #[test]
    fn the_longest_unused_address_comes_first() {
        let start = Instant::now();
        let mut addresses = Addresses::new("10.0.0.0/29".parse().unwrap());
        for _ in 0..3 {
            let (number, _) = addresses.take(start).unwrap();
            addresses.give_back(number, start);
        }
        assert_eq!(addresses.take(start + 2 * REST).unwrap().0, 4);
    }

    proptest::proptest! {
        #[test]
        fn no_address_is_handed_out_twice(steps in proptest::collection::vec((0u8..3, 0u64..50), 1..200)) {
            let mut now = Instant::now();
            let mut addresses = Addresses::new("10.0.0.0/28".parse().unwrap());
            let mut held: Vec<u32> = Vec::new();
            for (what, seconds) in steps {
                now += Duration::from_secs(seconds);
                match what {
                    0 if !held.is_empty() => addresses.give_back(held.remove(0), now),
                    _ => if let Some((number, address)) = addresses.take(now) {
                        proptest::prop_assert!(!held.contains(&number));
                        proptest::prop_assert!(addresses.range().contains(&address));
                        held.push(number);
                    },
                }
                proptest::prop_assert_eq!(addresses.counts().0, held.len());
            }
        }
    }
}
