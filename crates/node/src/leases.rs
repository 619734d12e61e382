//! Leases: a dead man's switch for sandboxes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use berth_store::LeaseRow;
use berth_types::sandbox::{Lease, LeaseRequest, Sandbox};
use jiff::Timestamp;
use uuid::Uuid;

use crate::registry::Entry;
use crate::sandboxes::{Cause, is_time_up};
use crate::{Error, Node};

/// Longest lease: a day. A client that needs more renews it.
const MAX_TTL_SECONDS: u32 = 86_400;

/// Name of the task.
pub(crate) const TASK: &str = "leases and times to live";

/// How often leases are looked at.
const TICK: Duration = Duration::from_secs(1);

/// How long a sandbox that ended by itself is remembered, so that whoever used it learns why.
const REMEMBER_ENDED_SECONDS: i64 = 3600;

impl Node {
    /// Makes a lease.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a length out of range.
    pub async fn create_lease(&self, request: &LeaseRequest) -> Result<Lease, Error> {
        let row = LeaseRow { id: Uuid::now_v7().simple().to_string(), expires_at: end(request)? };
        let lease = show(&row);
        self.with_store(move |store| store.put_lease(&row)).await?;
        Ok(lease)
    }

    /// Makes a lease last for the given time from now.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`] when it has run out: its sandboxes are gone or going.
    pub async fn renew_lease(&self, id: &str, request: &LeaseRequest) -> Result<Lease, Error> {
        let row = LeaseRow { id: id.to_owned(), expires_at: end(request)? };
        let lease = show(&row);
        let now = Timestamp::now().as_millisecond();
        if self.with_store(move |store| store.renew_lease(&row, now)).await? {
            return Ok(lease);
        }
        Err(Error::LeaseNotFound { id: id.to_owned() })
    }

    /// Ends a lease and deletes what it kept alive.
    ///
    /// # Errors
    /// [`Error::LeaseNotFound`].
    pub async fn delete_lease(&self, id: &str) -> Result<(), Error> {
        let owned = id.to_owned();
        if !self.with_store(move |store| store.delete_lease(&owned)).await? {
            return Err(Error::LeaseNotFound { id: id.to_owned() });
        }
        self.delete_leased(id).await;
        Ok(())
    }

    pub(crate) async fn check_lease(&self, id: &str) -> Result<(), Error> {
        if self.valid_leases().await?.contains(id) {
            return Ok(());
        }
        Err(Error::LeaseNotFound { id: id.to_owned() })
    }

    /// Those that have not run out. One that has is over at once, whenever its row goes.
    async fn valid_leases(&self) -> Result<BTreeSet<String>, Error> {
        let leases = self.with_store(|store| store.leases()).await?;
        let now = Timestamp::now().as_millisecond();
        Ok(leases.into_iter().filter(|lease| lease.expires_at > now).map(|lease| lease.id).collect())
    }

    /// Deletes every sandbox of a lease that is gone; those still being made are met on a later tick.
    async fn delete_leased(&self, lease: &str) {
        let leased = self.0.sandboxes.select(|entry| entry.sandbox().lease.as_deref() == Some(lease));
        self.delete_orphans(&leased).await;
    }

    /// All at once: one that takes long to die does not keep the others alive.
    async fn delete_orphans(&self, orphans: &[Entry]) {
        futures_util::future::join_all(orphans.iter().map(|entry| async move {
            let Sandbox { id, lease, .. } = entry.sandbox();
            match self.delete_if(id, Cause::LeaseEnded(lease.clone())).await {
                Ok(()) | Err(Error::SandboxNotFound { .. }) => tracing::info!(id, lease, "its lease ended"),
                Err(error) => tracing::warn!(id, lease, %error, "its lease ended, deleting failed for now"),
            }
        }))
        .await;
    }

    /// Ends those whose time is up.
    async fn end_expired(&self) -> usize {
        let expired = self.0.sandboxes.select(|entry| entry.live.is_some() && is_time_up(entry.expires_at));
        futures_util::future::join_all(expired.iter().map(|entry| async {
            let id = &entry.sandbox().id;
            match self.delete_if(id, Cause::TimeUp).await {
                Ok(()) | Err(Error::SandboxNotFound { .. }) => {
                    tracing::info!(id, "its time to live was over")
                }
                Err(error) => {
                    tracing::warn!(id, %error, "its time to live was over, ending it failed for now")
                }
            }
        }))
        .await;
        expired.len()
    }

    /// Ends what has outlived its lease or its time; tells how many.
    async fn tick(&self) -> Result<usize, Error> {
        let expired = self.end_expired().await;
        // Sandboxes before leases: whatever lease a sandbox names here was there before, so that one which is not
        // found now has ended, and is not merely younger than the list.
        let leased = self.0.sandboxes.select(|entry| entry.sandbox().lease.is_some());
        let valid = self.valid_leases().await?;
        let is_orphan =
            |entry: &Entry| entry.sandbox().lease.as_ref().is_some_and(|lease| !valid.contains(lease));
        let orphans: Vec<_> = leased.into_iter().filter(is_orphan).collect();
        self.delete_orphans(&orphans).await;
        self.delete_half_deleted().await;
        // Only now: a database that cannot be written, its disk being full, must not keep alive what fills the disk.
        let now = Timestamp::now();
        self.with_store(move |store| store.purge_leases(now.as_millisecond())).await?;
        let before = now.as_second() - REMEMBER_ENDED_SECONDS;
        for id in self.with_store(move |store| store.purge_ended(before)).await? {
            self.0.sandboxes.remove(&id);
        }
        Ok(expired + orphans.len())
    }

    /// Forgets those that were taken down while the database could not be written.
    async fn delete_half_deleted(&self) {
        for entry in self.0.sandboxes.select(|entry| entry.is_down()) {
            let id = &entry.sandbox().id;
            if let Err(error) = self.delete_sandbox(id).await {
                tracing::warn!(id, %error, "a sandbox that is gone cannot be forgotten for now");
            }
        }
    }
}

/// Ends what has outlived its lease, for as long as the node lives.
pub(crate) async fn keep(node: Node) {
    loop {
        tokio::time::sleep(TICK).await;
        let began = Instant::now();
        let ticked = node.tick().await.map_err(|error| crate::error::chain(&error));
        if let Err(error) = &ticked {
            tracing::error!(error, "leases could not be looked at");
        }
        node.0.tasks.ran(TASK, began, ticked.map(|ended| format!("{ended} sandboxes ended")));
    }
}

fn end(request: &LeaseRequest) -> Result<i64, Error> {
    if !(1..=MAX_TTL_SECONDS).contains(&request.ttl_seconds) {
        let problem = format!("{} is not 1 to {MAX_TTL_SECONDS}", request.ttl_seconds);
        return Err(Error::BadRequest { field: "ttl_seconds", problem });
    }
    Ok(Timestamp::now().as_millisecond() + i64::from(request.ttl_seconds) * 1000)
}

fn show(row: &LeaseRow) -> Lease {
    let expires_at = Timestamp::from_millisecond(row.expires_at).unwrap_or(Timestamp::MAX);
    Lease { id: row.id.clone(), expires_at: expires_at.to_string() }
}
