//! Leases: a dead man's switch for sandboxes.

use std::time::Duration;

use berth_store::LeaseRow;
use berth_types::sandbox::{Lease, LeaseRequest};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{Error, Node};

/// Longest lease: a day. A client that needs more renews it.
const MAX_TTL_SECONDS: u32 = 86_400;

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
        if self.with_store(move |store| store.renew_lease(&row)).await? {
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
        let leases = self.with_store(|store| store.leases()).await?;
        if leases.iter().any(|lease| lease.id == id) {
            return Ok(());
        }
        Err(Error::LeaseNotFound { id: id.to_owned() })
    }

    /// Deletes every sandbox of a lease that is gone; those still being made are met on a later tick.
    async fn delete_leased(&self, lease: &str) {
        for entry in self.0.sandboxes.select(|entry| entry.sandbox().lease.as_deref() == Some(lease)) {
            let id = &entry.sandbox().id;
            match self.delete_sandbox(id).await {
                Ok(()) | Err(Error::SandboxNotFound { .. }) => tracing::info!(id, lease, "its lease ended"),
                Err(error) => tracing::warn!(id, lease, %error, "its lease ended, deleting failed for now"),
            }
        }
    }

    async fn tick(&self) -> Result<(), Error> {
        let now = Timestamp::now();
        let leases = self.with_store(|store| store.leases()).await?;
        let (over, valid): (Vec<_>, Vec<_>) =
            leases.into_iter().partition(|lease| lease.expires_at <= now.as_millisecond());
        for lease in over {
            self.with_store(move |store| store.delete_lease(&lease.id)).await?;
        }
        let orphaned = self.0.sandboxes.select(|entry| {
            entry.sandbox().lease.as_ref().is_some_and(|id| !valid.iter().any(|lease| lease.id == *id))
        });
        for entry in orphaned {
            if let Some(lease) = &entry.sandbox().lease {
                self.delete_leased(lease).await;
            }
        }
        let before = now.as_second() - REMEMBER_ENDED_SECONDS;
        for id in self.with_store(move |store| store.purge_ended(before)).await? {
            self.0.sandboxes.remove(&id);
        }
        Ok(())
    }
}

/// Ends what has outlived its lease, for as long as the node lives.
pub(crate) async fn keep(node: Node) {
    loop {
        tokio::time::sleep(TICK).await;
        if let Err(error) = node.tick().await {
            tracing::error!(%error, "leases could not be looked at");
        }
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
