//! How many starts run at once: as many as do not make each other slow.
//!
//! A start that is not disturbed takes some time `u`. When starts take more than [`TOLERATED`] times that, they stand
//! in each other's way (processors, locks of the kernel, the disk) and fewer run at once; while they do not, more do.
//! It needs no constant of the machine, and follows it when it becomes busy.

use std::time::Duration;

/// How many times as long as an undisturbed one a start may take before there are too many at once.
const TOLERATED: f64 = 2.0;

/// How much of each new duration goes into the smoothed one.
const SMOOTHING: f64 = 0.2;

/// How fast a machine that has become slower is no longer held to what it was. Only starts with no more than a
/// processor each tell that: the others may have disturbed each other.
const FADING: f64 = 0.05;

/// More than this at once was never measured to help.
const MOST: f64 = 256.0;

/// The number of starts at once, and what it follows from.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    cpus: u64,
    limit: f64,
    /// Milliseconds, as all below.
    undisturbed: Option<f64>,
    latency: Option<f64>,
}

impl Pace {
    /// Begins with two starts a processor.
    pub(crate) fn new(cpus: u64) -> Pace {
        Pace { cpus, limit: (cpus as f64 * 2.0).clamp(1.0, MOST), undisturbed: None, latency: None }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit as u64
    }

    pub(crate) fn undisturbed(&self) -> Option<f64> {
        self.undisturbed
    }

    pub(crate) fn latency(&self) -> Option<f64> {
        self.latency
    }

    /// A start took so long while so many were under way, itself included.
    pub(crate) fn observe(&mut self, took: Duration, under_way: u64) {
        let ms = (took.as_secs_f64() * 1e3).max(0.001);
        let undisturbed = match self.undisturbed {
            Some(least) if ms > least && under_way <= self.cpus => least + (ms - least) * FADING,
            Some(least) => least.min(ms),
            None => ms,
        };
        let latency = self.latency.map_or(ms, |latency| latency + (ms - latency) * SMOOTHING);
        (self.undisturbed, self.latency) = (Some(undisturbed), Some(latency));
        let gradient = (TOLERATED * undisturbed / latency).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt();
        // Few at once say nothing about whether more would do.
        if wanted < self.limit || under_way as f64 >= self.limit / 2.0 {
            self.limit = (self.limit + (wanted - self.limit) * SMOOTHING).clamp(1.0, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that does `cores` starts at once in 5 ms, and more in as much longer.
    fn settle(cores: f64) -> u64 {
        let mut pace = Pace::new(1);
        for _ in 0..2000 {
            let at_once = pace.limit() as f64;
            let ms = 5.0 * (at_once / cores).max(1.0);
            pace.observe(Duration::from_secs_f64(ms / 1e3), pace.limit());
        }
        pace.limit()
    }

    #[test]
    fn it_settles_where_starts_begin_to_disturb_each_other() {
        let (small, large) = (settle(2.0), settle(32.0));
        assert!((3..=16).contains(&small), "{small}");
        assert!((50..=256).contains(&large), "{large}");
    }

    #[test]
    fn single_starts_do_not_raise_it_and_slow_ones_lower_it() {
        let mut pace = Pace::new(4);
        for _ in 0..100 {
            pace.observe(Duration::from_millis(5), 1);
        }
        assert_eq!(pace.limit(), 8);
        for _ in 0..20 {
            pace.observe(Duration::from_millis(500), 1);
        }
        assert!(pace.limit() < 8);
        assert!(pace.limit() >= 1);
    }
}
