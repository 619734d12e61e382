//! Gives back what sandboxes held, behind the back of whoever is done with them.
//!
//! Removing control groups and files takes longer than a caller should wait, and must happen even when the
//! caller's future is dropped. So it is done here, on blocking threads, and [`Reaper::settled`] says when it is over.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::container::Parts;

/// Takes [`Parts`] and gives back what they hold. Clones are the same reaper.
#[derive(Clone)]
pub(crate) struct Reaper {
    runtime: Handle,
    /// How many parts are not given back yet.
    pending: Arc<watch::Sender<usize>>,
}

/// Parts that are given back when dropped.
pub(crate) struct Guard {
    parts: Option<Parts>,
    reaper: Reaper,
}

impl Reaper {
    /// A reaper that works on the current runtime.
    pub(crate) fn start() -> Reaper {
        Reaper { runtime: Handle::current(), pending: Arc::new(watch::Sender::new(0)) }
    }

    /// Empty parts, to be filled while a sandbox is made.
    pub(crate) fn guard(&self) -> Guard {
        self.guard_of(Parts::default())
    }

    /// These parts, to be given back.
    pub(crate) fn guard_of(&self, parts: Parts) -> Guard {
        self.pending.send_modify(|pending| *pending += 1);
        Guard { parts: Some(parts), reaper: self.clone() }
    }

    /// Resolves when nothing that was handed over before is left.
    pub(crate) async fn settled(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = pending.wait_for(|pending| *pending == 0).await;
    }

    fn done(&self) {
        self.pending.send_modify(|pending| *pending -= 1);
    }
}

impl Guard {
    /// The parts, to be added to.
    pub(crate) fn parts(&mut self) -> &mut Parts {
        self.parts.get_or_insert_default()
    }

    /// The parts, to be kept.
    pub(crate) fn release(mut self) -> Parts {
        self.parts.take().unwrap_or_default()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let reaper = self.reaper.clone();
        match self.parts.take() {
            None => reaper.done(),
            Some(parts) => {
                // Not `tokio::spawn`: a future that is dropped at the runtime's end may run this outside of it.
                drop(self.reaper.runtime.spawn_blocking(move || {
                    give_back(parts);
                    reaper.done();
                }));
            }
        }
    }
}

/// In the order of dependence: processes, their groups, their network, their files.
fn give_back(parts: Parts) {
    let Parts { process, cgroup, slot, disk } = parts;
    drop(process);
    if let Some(cgroup) = cgroup
        && let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove())
    {
        tracing::warn!(%error, "control groups of a sandbox stay behind until the next start");
    }
    drop(slot);
    if let Some(disk) = disk
        && let Err(error) = disk.engine.remove(&disk.id).and_then(|()| disk.engine.reap_trash().map(drop))
    {
        tracing::warn!(id = disk.id, %error, "files of a sandbox stay behind until the next start");
    }
}
