//! Typed client of the Berth daemon, over a unix socket or TCP.
//!
//! Everything that is not the daemon itself (CLI, Harbor runner) reaches a machine through this crate, also on
//! the daemon's own machine. It speaks `berth-types` and nothing else; what the daemon refuses comes back
//! as [`Error::Api`] with the daemon's own words.
//!
//! ```text
//! Host ──► Client ──► one connection a call ──► daemon
//!            ├─ exec     picked up again where its connection was cut
//!            ├─ start    finds the daemon, or starts one (embedded)
//!            └─ archive  directories ⇄ tar streams on this side
//! ```
//!
//! What it refuses: to repeat a request that may have reached the daemon (but for execs, whose id makes that harmless), to take the end of a stream for
//! its completion (an exec without a status is [`Error::ExecLost`], a tar cut short is an I/O error), and to talk
//! to a daemon of another version when it was to start one itself.
//!
//! How it fails: [`Error`], whose [`Error::kind`] tells failures of the infrastructure from wrong requests.
//!
//! Start reading at [`Client`], then `transport.rs`; [`ExecStream`] is the most involved call.

pub mod archive;
mod builds;
mod error;
mod exec;
mod files;
mod host;
mod images;
mod lease;
pub mod limits;
mod progress;
mod sandboxes;
mod ssh;
pub mod start;
mod system;
mod transport;
mod websocket;

use std::time::Duration;

pub use berth_types as types;
pub use builds::secret;
pub use error::Error;
pub use exec::{ExecOutcome, ExecOutput, ExecStream};
pub use files::{ArchiveStream, Changes};
pub use host::{BadHost, DEFAULT_SOCKET, Host};
pub use lease::LeaseGuard;
pub use sandboxes::ListSandboxes;
pub use start::StartOptions;
pub use websocket::{Attached, PortStream};

/// Version of this client, which a daemon that it starts must share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A daemon that is started anew takes a few seconds; one that is gone for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon's address, ready for calls. Cheap to clone; holds no connection between calls.
#[derive(Clone, Debug)]
pub struct Client {
    host: Host,
    patience: Duration,
}

impl Client {
    /// A client of the daemon at `host`. Nothing is contacted before the first call.
    pub fn new(host: Host) -> Self {
        Self { host, patience: PATIENCE }
    }

    /// The same client, which tries for so long to pick up an exec again whose connection was cut.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Where the daemon is.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
