//! Where the time of a start goes.

use std::time::Instant;

use berth_types::sandbox::StartPhases;

/// Takes the time of one phase after the other.
pub(crate) struct Clock {
    last: Instant,
    /// What was taken so far.
    pub(crate) phases: StartPhases,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { last: Instant::now(), phases: StartPhases::default() }
    }

    /// Milliseconds since the start or the last lap, to the microsecond.
    pub(crate) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let lap = now - std::mem::replace(&mut self.last, now);
        lap.as_micros() as f64 / 1e3
    }
}
