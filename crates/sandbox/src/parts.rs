//! What sandboxes hold on this machine.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use berth_disk::{Engine, Writable};
use berth_jail::{Process, cgroup};
use berth_net::Slot;

use crate::sockets::Socket;

/// What one sandbox holds. Given back in the order of the fields.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) process: Option<Process>,
    pub(crate) cgroup: Option<cgroup::Cgroup>,
    pub(crate) slot: Option<Slot>,
    /// By which another daemon reaches its guest; none where no other is to have it.
    pub(crate) socket: Option<Socket>,
    pub(crate) disk: Option<SandboxDisk>,
}

/// A sandbox's directories and the engine that made them.
pub(crate) struct SandboxDisk {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) id: String,
    pub(crate) writable: Writable,
}

/// What living containers hold, so that a shutdown ends those too whose owners have not let go.
#[derive(Default)]
pub(crate) struct Alive {
    parts: Mutex<Vec<Weak<Mutex<Option<Parts>>>>>,
    closed: AtomicBool,
}

impl Alive {
    pub(crate) fn add(&self, parts: &Arc<Mutex<Option<Parts>>>) {
        let mut all = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|parts| parts.strong_count() > 0);
        all.push(Arc::downgrade(parts));
    }

    /// Takes everything from its owners; no container starts afterwards.
    pub(crate) fn close(&self) -> Vec<Parts> {
        self.closed.store(true, Ordering::SeqCst);
        let all = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().filter_map(|parts| lock(&*parts.upgrade()?).take()).collect()
    }

    /// Whether nothing is to start any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

/// Parts of sandboxes that live on without this daemon. What it holds of them here is closed, and nothing ended.
pub(crate) struct Left(Vec<Parts>);

impl Left {
    pub(crate) fn new(parts: Vec<Parts>) -> Left {
        Left(parts)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        for parts in self.0.drain(..) {
            // Groups, sockets and directories are names only; slots are the network's, which leaves them too.
            if let Some(process) = parts.process {
                process.leave();
            }
        }
    }
}

pub(crate) fn lock(parts: &Mutex<Option<Parts>>) -> MutexGuard<'_, Option<Parts>> {
    // Nothing panics while it holds the lock.
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}
