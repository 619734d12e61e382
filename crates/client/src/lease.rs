//! Leases: a dead man's switch for sandboxes, held for as long as this process lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_types::error::Kind;
use berth_types::sandbox::{Lease, LeaseRequest};
use http::Method;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::transport::{Call, encode};
use crate::{Client, Error};

/// The longest lease that the API has, in seconds.
const LONGEST: u32 = 86_400;

/// A lease is renewed so many times within its life: three renewals may fail before it runs out.
const RENEWALS: u32 = 4;

/// A lease that is renewed in the background until this is released or dropped.
///
/// Dropping only tries to delete it: a process that ends with the drop leaves that to the lease's own end.
#[derive(Debug)]
pub struct LeaseGuard {
    client: Client,
    id: String,
    lost: Arc<AtomicBool>,
    renewal: JoinHandle<()>,
    released: bool,
}

impl Client {
    /// Makes a lease that runs out `ttl_seconds` from now unless renewed.
    pub async fn create_lease(&self, ttl_seconds: u32) -> Result<Lease, Error> {
        let call = Call::new(Method::POST, "/v1/leases", "make a lease");
        self.call(call.json(&LeaseRequest { ttl_seconds })?).await
    }

    /// Makes a lease last `ttl_seconds` from now.
    pub async fn renew_lease(&self, id: &str, ttl_seconds: u32) -> Result<Lease, Error> {
        let call = Call::new(Method::PUT, lease_path(id), format!("renew lease {id}"));
        self.call(call.json(&LeaseRequest { ttl_seconds })?).await
    }

    /// Ends a lease and deletes its sandboxes.
    pub async fn delete_lease(&self, id: &str) -> Result<(), Error> {
        self.call_empty(Call::new(Method::DELETE, lease_path(id), format!("release lease {id}"))).await
    }

    /// Makes a lease and keeps it alive in the background. `ttl` is in whole seconds: how long the
    /// lease's sandboxes outlive this process.
    pub async fn hold_lease(&self, ttl: Duration) -> Result<LeaseGuard, Error> {
        let seconds = whole_seconds(ttl).ok_or(Error::LeaseTtl { ttl })?;
        let lease = self.create_lease(seconds).await?;
        let lost = Arc::new(AtomicBool::new(false));
        let renewal = tokio::spawn(renew(self.clone(), lease.id.clone(), seconds, Arc::clone(&lost)));
        Ok(LeaseGuard { client: self.clone(), id: lease.id, lost, renewal, released: false })
    }
}

impl LeaseGuard {
    /// The lease's id, for [`berth_types::sandbox::CreateSandbox::lease`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether the daemon no longer knows the lease, so that its sandboxes are gone.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Ends the lease; returns when its sandboxes are deleted. A lease that is gone already is no error.
    pub async fn release(mut self) -> Result<(), Error> {
        self.released = true;
        self.renewal.abort();
        match self.client.delete_lease(&self.id).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.released {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let (client, id) = (self.client.clone(), self.id.clone());
            runtime.spawn(async move {
                if let Err(error) = client.delete_lease(&id).await {
                    tracing::debug!(lease = id, %error, "lease not released, left to run out");
                }
            });
        }
    }
}

fn whole_seconds(ttl: Duration) -> Option<u32> {
    let seconds = u32::try_from(ttl.as_secs()).ok()?;
    (ttl.subsec_nanos() == 0 && (1..=LONGEST).contains(&seconds)).then_some(seconds)
}

async fn renew(client: Client, id: String, ttl_seconds: u32, lost: Arc<AtomicBool>) {
    let interval = Duration::from_secs(u64::from(ttl_seconds)) / RENEWALS;
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(interval, client.renew_lease(&id, ttl_seconds)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == Kind::NotFound => {
                tracing::warn!(lease = id, "the daemon no longer knows this lease: its sandboxes are gone");
                lost.store(true, Ordering::Relaxed);
                return;
            }
            Ok(Err(error)) => tracing::warn!(lease = id, %error, "lease not renewed, trying again"),
            Err(_) => tracing::warn!(lease = id, "lease not renewed in time, trying again"),
        }
    }
}

fn lease_path(id: &str) -> String {
    format!("/v1/leases/{}", encode(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_seconds_of_the_apis_range_are_a_lease() {
        assert_eq!(whole_seconds(Duration::from_secs(1)), Some(1));
        assert_eq!(whole_seconds(Duration::from_secs(86_400)), Some(86_400));
        assert_eq!(whole_seconds(Duration::from_secs(86_401)), None);
        assert_eq!(whole_seconds(Duration::ZERO), None);
        assert_eq!(whole_seconds(Duration::from_millis(1500)), None);
    }
}
