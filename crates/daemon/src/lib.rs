//! The daemon's rim: listeners, routes, and the translation between HTTP and [`berth_node`].
//!
//! ```text
//!  unix socket / loopback TCP ── axum router ── one file per resource ── berth_node::Node
//! ```
//!
//! Nothing is decided here that the node could decide. A handler parses, calls the node, and shows what came back;
//! every failure leaves as an [`berth_types::error::ErrorBody`] with the status of its kind. Bodies stream both
//! ways, so memory does not grow with what passes through.
//!
//! It refuses to listen on anything but a unix socket or a loopback address: there is no authentication yet, and
//! whoever reaches the API is root on this machine.
//!
//! Start reading at [`Options`] and [`serve`]; the routes are in `router.rs`.

mod activity;
mod archive;
mod attach;
mod browser;
mod builds;
mod coding;
mod exec;
mod extract;
mod file;
mod frames;
mod fs;
mod images;
mod leases;
mod listen;
mod openapi;
mod progress;
mod proxy;
mod reply;
mod router;
mod sandboxes;
mod socket;
mod ssh;
mod stream;
mod system;
mod tcp;
mod transfer;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_node::Node;
use tokio_util::sync::CancellationToken;

pub use listen::Address;
pub use openapi::document as openapi_document;

use crate::activity::Activity;

/// How the daemon is to be run.
#[derive(Debug)]
pub struct Options {
    /// Where to listen.
    pub address: Address,
    /// End by itself after this long without a sandbox or a request; never when absent.
    pub idle_exit: Option<Duration>,
    /// The daemon's data directory, for `GET /v1/version` and the keys of the SSH door.
    pub data_dir: PathBuf,
    /// The SSH door.
    pub ssh: SshOptions,
}

/// How the SSH door is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshOptions {
    /// Whether there is one.
    pub enabled: bool,
    /// Where to listen from the start on; when absent, on a free port of loopback once somebody asks for it.
    pub listen: Option<SocketAddr>,
}

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one the daemon listens on.
    #[error("{address} is not a loopback address, and there is no authentication yet")]
    NotLoopback {
        /// What was asked for.
        address: String,
    },
    /// The address is not `unix:///path`, `tcp://host:port` or `http://host:port`.
    #[error("{address:?} is no address; expected unix:///path or tcp://127.0.0.1:port")]
    BadAddress {
        /// What was asked for.
        address: String,
    },
    /// Binding failed.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The SSH door cannot be opened where it is to be.
    #[error("cannot open the SSH door")]
    Ssh(#[source] berth_ssh::Error),
    /// Another daemon answers there.
    #[error("another daemon listens on {address}")]
    InUse {
        /// The address.
        address: String,
    },
}

/// What every handler gets.
#[derive(Clone)]
pub(crate) struct App {
    node: Node,
    activity: Arc<Activity>,
    stop: CancellationToken,
    data_dir: Arc<PathBuf>,
    ssh: Arc<ssh::Ssh>,
}

/// Serves until `stop` is cancelled, a client asks for the end, or the daemon has been idle for too long.
///
/// Calls `ready` once it listens. The caller then shuts `node` down.
///
/// # Errors
/// When it cannot listen; once it serves, faults are answered to the client that met them.
pub async fn serve(
    node: Node,
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let listener = listen::bind(&options.address).await?;
    let activity = Arc::new(Activity::default());
    let data_dir = options.data_dir;
    let ssh = ssh::Ssh::new(options.ssh, data_dir.clone(), node.clone(), activity.clone(), stop.clone());
    let ssh = Arc::new(ssh);
    if let Err(error) = ssh.start().await {
        // Leaves no socket behind on which nobody answers.
        stop.cancel();
        listen::run(listener, axum::Router::new(), stop).await;
        return Err(Error::Ssh(error));
    }
    let app = App {
        node: node.clone(),
        activity: activity.clone(),
        stop: stop.clone(),
        data_dir: Arc::new(data_dir),
        ssh: ssh.clone(),
    };
    if let Some(limit) = options.idle_exit {
        tokio::spawn(activity::stop_when_idle(activity, node, limit, stop.clone()));
    }
    ready();
    listen::run(listener, router::router(app), stop).await;
    ssh.ended().await;
    Ok(())
}
