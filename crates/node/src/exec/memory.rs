//! What the node knows of execs beside what their guest does. It is gone with the daemon, and has a bound.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_types::exec::{ExecStatus, Limit};
use tokio::sync::watch;
use tokio::time::Instant;

/// Most execs of a sandbox of which something is known; the oldest are forgotten first.
const MOST: usize = 4096;

/// What the machine knew of an exec's end at that moment: it cannot be asked for it later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) limits: Vec<Limit>,
    pub(super) machine_disk_full: bool,
}

impl Facts {
    /// What is in a status.
    pub(super) fn of(status: &ExecStatus) -> Facts {
        Facts { limits: status.limits_hit.clone(), machine_disk_full: status.machine_disk_full }
    }

    /// Adds them to what the guest says.
    pub(super) fn add_to(&self, status: &mut ExecStatus) {
        for limit in &self.limits {
            status.met(*limit);
        }
        status.machine_disk_full |= self.machine_disk_full;
    }
}

#[derive(Default)]
struct Known {
    /// What its request is known by.
    fingerprint: Option<String>,
    /// When it must have ended, where it has a limit of time.
    deadline: Option<Instant>,
    facts: Option<Facts>,
    /// One writes to its input at a time.
    input: Arc<tokio::sync::Mutex<()>>,
    /// Changes when its input is taken from whoever writes to it.
    taken: watch::Sender<()>,
}

/// Of the execs of one sandbox.
#[derive(Clone, Default)]
pub(crate) struct Execs(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    known: BTreeMap<String, Known>,
    /// The oldest first.
    order: VecDeque<String>,
}

impl Memory {
    fn of(&mut self, exec: &str) -> &mut Known {
        if !self.known.contains_key(exec) {
            self.order.push_back(exec.to_owned());
            while self.order.len() > MOST {
                self.order.pop_front().map(|oldest| self.known.remove(&oldest));
            }
        }
        self.known.entry(exec.to_owned()).or_default()
    }
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        // No code panics with the lock held half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an exec was started that has to be over by then.
    pub(super) fn started(&self, exec: &str, deadline: Option<Instant>) {
        self.lock().of(exec).deadline = deadline;
    }

    /// Notes that an exec is that of the request with this fingerprint.
    pub(super) fn is_of(&self, exec: &str, fingerprint: Option<String>) {
        self.lock().of(exec).fingerprint = fingerprint;
    }

    /// Whether an exec is known to be that of the request with this fingerprint.
    pub(super) fn is_known(&self, exec: &str, fingerprint: Option<&str>) -> bool {
        let memory = self.lock();
        let known = memory.known.get(exec).and_then(|known| known.fingerprint.as_deref());
        known.is_some() && known == fingerprint
    }

    pub(super) fn deadline(&self, exec: &str) -> Option<Instant> {
        self.lock().known.get(exec)?.deadline
    }

    /// Remembers what was known at its end; what was known first stays.
    pub(super) fn ended(&self, exec: &str, facts: Facts) -> Facts {
        self.lock().of(exec).facts.get_or_insert(facts).clone()
    }

    pub(super) fn facts(&self, exec: &str) -> Option<Facts> {
        self.lock().known.get(exec)?.facts.clone()
    }

    /// The turn to write to an exec's input.
    pub(super) fn input(&self, exec: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.lock().of(exec).input.clone()
    }

    /// Notes that the input of an exec comes from somewhere else from now on.
    pub(super) fn take_input(&self, exec: &str) {
        self.lock().of(exec).taken.send_replace(());
    }

    /// Tells who writes to an exec's input when it is taken from him.
    pub(super) fn input_taken(&self, exec: &str) -> watch::Receiver<()> {
        self.lock().of(exec).taken.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_the_first_word_counts() {
        let execs = Execs::default();
        let full = Facts { limits: vec![Limit::Disk], machine_disk_full: true };
        assert_eq!(execs.ended("first", full.clone()), full);
        assert_eq!(execs.ended("first", Facts::default()), full);
        assert_eq!(execs.facts("other"), None);
        for number in 1..MOST {
            execs.started(&number.to_string(), None);
        }
        assert_eq!(execs.facts("first"), Some(full));
        execs.started("one more", None);
        assert_eq!(execs.facts("first"), None);
        assert_eq!(execs.lock().known.len(), MOST);
    }
}
