//! Whether the disk that sandboxes are on is still there. Where it is not, they are lost, and none is made.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use berth_types::sandbox::{ReasonCode, SandboxState};
use tokio_util::task::AbortOnDropHandle;

use crate::registry::Entry;
use crate::{Error, Node};

/// Name of the task.
pub(crate) const TASK: &str = "disk health";

/// How often the disk is looked at.
const TICK: Duration = Duration::from_secs(5);

/// How long a look may take. It takes less than a millisecond, on a machine that does not swap.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks at the disk for as long as the node lives.
pub(crate) async fn keep(node: Node) {
    loop {
        tokio::time::sleep(TICK).await;
        let began = Instant::now();
        let result = match tokio::time::timeout(LIMIT, node.check_disk()).await {
            Ok(Ok(())) => Ok("the disk is there".to_owned()),
            Ok(Err(error)) => Err(crate::error::chain(&error)),
            // A disk that only is slow has lost nothing yet.
            Err(_) => Err(format!("the disk did not answer within {} s", LIMIT.as_secs())),
        };
        node.0.tasks.ran(TASK, began, result);
    }
}

impl Node {
    /// Begins [`Node::check_disk`], for who has other things to do until the answer is there.
    pub(crate) fn look_at_disk(&self) -> AbortOnDropHandle<Result<(), Error>> {
        let node = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { node.check_disk().await }))
    }

    /// Looks at the disk; when it is lost, so are the sandboxes on it.
    ///
    /// # Errors
    /// [`Error::DiskLost`].
    pub(crate) async fn check_disk(&self) -> Result<(), Error> {
        let driver = self.0.driver.clone();
        let looked = tokio::task::spawn_blocking(move || driver.health()).await.map_err(|_| Error::Ending)?;
        let found = match looked {
            Ok(()) => {
                *self.0.disk_lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Ok(());
            }
            Err(error) => {
                std::error::Error::source(&error).map_or_else(|| error.to_string(), crate::error::chain)
            }
        };
        let known = self.0.disk_lost.lock().unwrap_or_else(PoisonError::into_inner).replace(found.clone());
        if known.as_ref() != Some(&found) {
            tracing::error!(found, "the disk of sandboxes is lost, and they with it");
        }
        self.lose_all(&found).await;
        Err(Error::DiskLost { found })
    }

    /// Their processes are ended in the background: a disk that does not answer may hold that up.
    async fn lose_all(&self, found: &str) {
        let runs = |entry: &Entry| entry.sandbox().state == SandboxState::Running;
        for entry in self.0.sandboxes.select(runs) {
            let id = entry.sandbox().id.clone();
            let Some(live) = entry.live else { continue };
            let usage = live.met.known();
            let reason = format!("the disk of sandboxes is lost: {found}");
            if let Some(lost) = self.mark_lost(&id, reason, ReasonCode::DiskLost, usage) {
                tokio::spawn(self.clone().clear_up(lost, Arc::clone(&live.machine)));
            }
        }
    }
}
