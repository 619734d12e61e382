//! Gives back what sandboxes held, behind the back of whoever is done with them.
//!
//! Removing control groups and files takes longer than a caller should wait, and must happen even when the
//! caller's future is dropped. So it is done here, on blocking threads, and [`Reaper::settled`] says when it is over.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_types::system::TaskStatus;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::parts::{Parts, SandboxDisk};

/// What the node lists this under.
const NAME: &str = "reaper";

/// Waits in milliseconds before another try where a disk could not be taken away: a pool that is full has room again when the kernel has
/// cleaned up what was removed before.
const TRY_AGAIN_MS: [u64; 6] = [50, 100, 200, 500, 1000, 3000];

/// Takes [`Parts`] and gives back what they hold. Clones are the same reaper.
#[derive(Clone)]
pub(crate) struct Reaper {
    runtime: Handle,
    /// How many parts are not given back yet.
    pending: Arc<watch::Sender<usize>>,
    /// How the last of it went.
    status: Arc<Mutex<TaskStatus>>,
}

/// Parts that are given back when dropped.
pub(crate) struct Guard {
    parts: Option<Parts>,
    reaper: Reaper,
}

impl Reaper {
    /// A reaper that works on the current runtime.
    pub(crate) fn start() -> Reaper {
        let status = TaskStatus { name: NAME.to_owned(), ..TaskStatus::default() };
        Reaper {
            runtime: Handle::current(),
            pending: Arc::new(watch::Sender::new(0)),
            status: Arc::new(Mutex::new(status)),
        }
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

    /// What it did last, for people.
    pub(crate) fn status(&self) -> TaskStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ran(&self, began: Instant, failures: &[String]) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.runs += 1;
        status.last_run_at = Some(Timestamp::now().to_string());
        status.last_duration_ms = Some((began.elapsed().as_secs_f64() * 1e6).round() / 1e3);
        status.failed = !failures.is_empty();
        status.last_result = Some(match failures {
            [] => "gave back what a sandbox held".to_owned(),
            failures => failures.join("; "),
        });
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
                    let began = Instant::now();
                    let failures = give_back(parts);
                    reaper.ran(began, &failures);
                    reaper.done();
                }));
            }
        }
    }
}

/// In the order of dependence: processes, their groups, their network, their files. Tells what stays behind.
fn give_back(parts: Parts) -> Vec<String> {
    let mut failures = Vec::new();
    let Parts { process, cgroup, slot, socket, disk } = parts;
    drop(process);
    if let Some(cgroup) = cgroup
        && let Err(error) = cgroup.kill_all().and_then(|()| cgroup.remove())
    {
        let error = chain(&error);
        tracing::warn!(error, "control groups of a sandbox stay behind until the next start");
        failures.push(format!("control groups stay behind: {error}"));
    }
    drop(slot);
    if let Some(socket) = socket
        && let Err(error) = socket.remove()
    {
        tracing::warn!(socket = socket.name(), %error, "a sandbox's socket stays behind until the next start");
        failures.push(format!("socket {} stays behind: {error}", socket.name()));
    }
    if let Some(disk) = disk
        && let Err(error) = remove(&disk)
    {
        let error = chain(&error);
        tracing::warn!(id = disk.id, error, "files of a sandbox stay behind until the next start");
        failures.push(format!("files of {} stay behind: {error}", disk.id));
    }
    failures
}

fn remove(disk: &SandboxDisk) -> Result<(), berth_disk::Error> {
    let SandboxDisk { engine, id, .. } = disk;
    for wait in TRY_AGAIN_MS {
        match engine.remove(id).and_then(|()| engine.reap_trash()) {
            Ok(_) => return Ok(()),
            Err(error) => tracing::debug!(id, error = chain(&error), "a disk is not gone yet; trying again"),
        }
        std::thread::sleep(Duration::from_millis(wait));
    }
    engine.remove(id).and_then(|()| engine.reap_trash()).map(drop)
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_given_back_last_is_told() {
        let reaper = Reaper::start();
        assert_eq!(reaper.status(), TaskStatus { name: NAME.to_owned(), ..TaskStatus::default() });
        drop(reaper.guard());
        reaper.settled().await;
        let status = reaper.status();
        assert_eq!((status.runs, status.failed), (1, false));
        assert!(status.last_run_at.is_some() && status.last_duration_ms.is_some());
        reaper.ran(Instant::now(), &["files of a stay behind: no".to_owned()]);
        assert!(reaper.status().failed);
        assert_eq!(reaper.status().last_result.as_deref(), Some("files of a stay behind: no"));
    }
}
