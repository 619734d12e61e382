//! The daemon itself.

use berth_types::system::{DoctorReport, NodeStatus, Version};
use http::Method;

use crate::transport::Call;
use crate::{Client, Error};

impl Client {
    /// What the daemon is.
    pub async fn version(&self) -> Result<Version, Error> {
        self.call(Call::new(Method::GET, "/v1/version", "ask the daemon for its version")).await
    }

    /// Whether the daemon's machine is fit.
    pub async fn doctor(&self) -> Result<DoctorReport, Error> {
        self.call(Call::new(Method::GET, "/v1/doctor", "ask the daemon about its machine")).await
    }

    /// What the daemon's machine has, and what of that is set aside.
    pub async fn node(&self) -> Result<NodeStatus, Error> {
        self.call(Call::new(Method::GET, "/v1/node", "ask the daemon about its room")).await
    }

    /// Asks the daemon to end; its sandboxes end with it. Returns once it has agreed, not once it has gone.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.call_empty(Call::new(Method::POST, "/v1/shutdown", "stop the daemon")).await
    }

    /// Fails unless the daemon is of this client's version.
    pub async fn require_same_version(&self) -> Result<Version, Error> {
        let version = self.version().await?;
        if version.version == crate::VERSION {
            return Ok(version);
        }
        Err(Error::VersionMismatch {
            host: self.host.to_string(),
            daemon: version.version,
            client: crate::VERSION.to_owned(),
        })
    }
}
