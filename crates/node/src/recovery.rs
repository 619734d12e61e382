//! Sandboxes that outlive a daemon: what is written down of each while it runs, and how the next daemon takes it over.
//!
//! ```text
//!   running ──► row with a Resume ──► the daemon is gone ──► the next one's driver ──┬─ taken over ──► running again
//!                                                                                    └─ could not be ──► lost, and why
//! ```
//!
//! A sandbox that is taken over is what it was: its image stays pinned, what was set aside for it is again (even where
//! that is more than the machine has by now: it is in use already), its time to live and its lease have gone on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_image::Digest;
use berth_sandbox::Machine;
use berth_sandbox::container::Adopted;
use berth_store::SandboxRow;
use berth_types::sandbox::{ReasonCode, SandboxState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::registry::{Entry, Hits, Live, Met};
use crate::sandboxes::{Cause, watch};
use crate::{Error, Node};

/// What is written down of a running sandbox beside what the API shows of it. Fields are only ever added, with a default.
#[derive(Serialize, Deserialize)]
struct Resume {
    /// What the driver needs: [`Machine::resume`].
    driver: String,
    /// Environment that every exec starts from.
    env: BTreeMap<String, String>,
    no_new_privileges: bool,
    /// Limits that its execs have met.
    #[serde(default)]
    met: Hits,
}

/// The text to be stored with a running sandbox; `None` where it would not outlive this daemon.
pub(crate) fn resume_of(live: &Live) -> Option<String> {
    let resume = Resume {
        driver: live.machine.resume()?,
        env: (*live.env).clone(),
        no_new_privileges: live.no_new_privileges,
        met: live.met.hits(),
    };
    // Text and numbers always have a JSON form.
    serde_json::to_string(&resume).ok()
}

/// Those that may still run, each with what the driver needs to take it over.
pub(crate) fn candidates(rows: &[SandboxRow]) -> Vec<(String, String)> {
    let ran = |row: &&SandboxRow| row.ended_at.is_none() && row.sandbox.state == SandboxState::Running;
    rows.iter()
        .filter(ran)
        .filter_map(|row| Some((row.sandbox.id.clone(), read(row)?.ok()?.driver)))
        .collect()
}

fn read(row: &SandboxRow) -> Option<Result<Resume, serde_json::Error>> {
    Some(serde_json::from_str(row.resume.as_deref()?))
}

impl Node {
    /// Takes in the sandboxes of an earlier daemon. Whoever used one that is not there any more is to learn that, not to
    /// find a blank.
    pub(crate) async fn recover(&self, adopted: Adopted) -> Result<(), Error> {
        let mut adopted: BTreeMap<_, _> = adopted.into_iter().collect();
        let (mut taken, mut lost) = (0, 0);
        for row in self.with_store(|store| store.sandboxes()).await? {
            if row.ended_at.is_some() {
                self.0.sandboxes.insert(row)?;
                continue;
            }
            let outcome = match adopted.remove(&row.sandbox.id) {
                Some(Ok(machine)) => self.take_over(&row, machine).await,
                Some(Err(error)) => Err(crate::error::chain(&error)),
                None => Err(unwritten(&row)),
            };
            match outcome {
                Ok(live) => {
                    taken += 1;
                    self.run_again(row, live)?;
                }
                Err(reason) => {
                    lost += 1;
                    self.lose(row, reason).await?;
                }
            }
        }
        self.0.adopted.store(taken, Ordering::Relaxed);
        if taken + lost > 0 {
            tracing::info!(adopted = taken, lost, "took in the sandboxes of an earlier daemon");
        }
        Ok(())
    }

    /// Everything that a sandbox has while it runs; or why it cannot be had again, and then it is ended.
    async fn take_over(&self, row: &SandboxRow, machine: Arc<dyn Machine>) -> Result<Live, String> {
        let rebuilt = self.rebuild(row, machine.clone());
        if rebuilt.is_err()
            && let Err(error) = machine.stop().await
        {
            tracing::warn!(id = row.sandbox.id, %error, "a sandbox that was not taken over could not be ended");
        }
        rebuilt
    }

    fn rebuild(&self, row: &SandboxRow, machine: Arc<dyn Machine>) -> Result<Live, String> {
        let resume = read(row).ok_or_else(|| unwritten(row))?;
        let resume =
            resume.map_err(|error| format!("what was written down of it cannot be read: {error}"))?;
        let image: Digest = row.sandbox.image.parse().map_err(|_| "its image has no digest".to_owned())?;
        let pin = self.0.images.pin(&image).map_err(|error| crate::error::chain(&error))?;
        let committed = row.sandbox.committed.unwrap_or_default();
        Ok(Live {
            machine,
            env: Arc::new(resume.env),
            _image: Arc::new(pin),
            grant: Arc::new(self.0.admission.commit(committed)),
            no_new_privileges: resume.no_new_privileges,
            met: Met::of(resume.met),
            execs: Default::default(),
        })
    }

    fn run_again(&self, row: SandboxRow, live: Live) -> Result<(), Error> {
        let id = row.sandbox.id.clone();
        let expires_at = row.sandbox.expires_at.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
        let (machine, met) = (live.machine.clone(), live.met.clone());
        self.0.sandboxes.insert(row)?;
        self.0.sandboxes.update(&id, |entry| {
            entry.live = Some(live);
            entry.expires_at = expires_at;
        });
        tracing::info!(id, "a sandbox of an earlier daemon runs on");
        tokio::spawn(watch(self.clone(), id, machine, met));
        Ok(())
    }

    async fn lose(&self, mut row: SandboxRow, reason: String) -> Result<(), Error> {
        tracing::warn!(id = row.sandbox.id, reason, "a sandbox was lost with an earlier daemon");
        row.sandbox.state = SandboxState::Lost;
        row.sandbox.reason = Some(reason);
        row.sandbox.reason_code = Some(ReasonCode::DaemonRestart);
        row.ended_at = Some(Timestamp::now().as_second());
        row.resume = None;
        let lost = row.clone();
        self.with_store(move |store| store.put_sandbox(&lost)).await?;
        self.0.sandboxes.insert(row)
    }

    /// Writes down what a sandbox has come to, for a daemon that may take it over.
    pub(crate) async fn write_down(&self, id: &str, live: &Live) {
        let resume = resume_of(live);
        let mut runs = false;
        let changed = self.0.sandboxes.update(id, |entry| {
            runs = entry.sandbox().state == SandboxState::Running;
            if runs {
                entry.row.resume = resume;
            }
        });
        let Some(Entry { row, .. }) = changed.filter(|_| runs) else { return };
        if let Err(error) = self.persist(row).await {
            tracing::warn!(id, %error, "what a sandbox has come to could not be written down");
        }
    }

    /// Says what [`Node::stop`] does with sandboxes that can outlive this daemon.
    pub fn keep_sandboxes(&self, keep: bool) {
        self.0.keep_sandboxes.store(keep, Ordering::Relaxed);
    }

    /// What [`Node::keep_sandboxes`] said last.
    pub fn keeps_sandboxes(&self) -> bool {
        self.0.keep_sandboxes.load(Ordering::Relaxed)
    }

    /// Ends the node: as [`Node::leave`] where [`Node::keep_sandboxes`] said so last, else as [`Node::shutdown`].
    pub async fn stop(&self) {
        if self.keeps_sandboxes() { self.leave().await } else { self.shutdown().await }
    }

    /// Lets go of every sandbox that another daemon can take over, and ends the others as [`Node::shutdown`] does.
    pub async fn leave(&self) {
        self.0.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        let alive = self.0.sandboxes.select(|entry| entry.live.is_some());
        let left = futures_util::future::join_all(alive.iter().map(|entry| async {
            let id = &entry.sandbox().id;
            match &entry.live {
                Some(live) if live.machine.resume().is_some() => {
                    self.write_down(id, live).await;
                    return 1;
                }
                _ => {}
            }
            if let Err(error) = self.delete_if(id, Cause::Shutdown).await {
                tracing::warn!(id, %error, "a sandbox could not be ended");
            }
            0
        }))
        .await;
        self.0.driver.leave().await;
        let left: usize = left.iter().sum();
        let seconds = self.0.orphan.map_or(0, |orphan| orphan.as_secs());
        tracing::info!(
            left,
            ended = alive.len() - left,
            seconds,
            "left sandboxes running for the next daemon"
        );
    }
}

/// Why a sandbox is lost of which nothing was written down.
fn unwritten(row: &SandboxRow) -> String {
    match row.sandbox.state {
        SandboxState::Running => "the daemon ended while it ran",
        SandboxState::Stopping => "the daemon ended while it was taken down",
        _ => "the daemon ended while it was being made",
    }
    .to_owned()
}
