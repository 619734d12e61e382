//! Typed client of the Berth daemon, over a unix socket or TCP.
//!
//! Everything that is not the daemon itself (CLI, Harbor runner) reaches a machine through this crate, also on
//! the daemon's own machine. It speaks `berth-types` and nothing else; what the daemon refuses comes back
//! as [`Error::Api`] with the daemon's own words.
//!
//! ```text
//! Host ──► Client ──► one connection a call ──► daemon
//!            │            └─ dropped with the answer: an exec that nobody reads is killed
//!            ├─ start    finds the daemon, or starts one (embedded)
//!            └─ archive  directories ⇄ tar streams on this side
//! ```
//!
//! What it refuses: to repeat a request that may have reached the daemon, to take the end of a stream for
//! its completion (an exec without a status is [`Error::ExecLost`], a tar cut short is an I/O error), and to talk
//! to a daemon of another version when it was to start one itself.
//!
//! How it fails: [`Error`], whose [`Error::kind`] tells failures of the infrastructure from wrong requests.
//!
//! Start reading at [`Client`], then `transport.rs`; [`ExecStream`] is the most involved call.

pub mod archive;
mod error;
mod exec;
mod files;
mod host;
mod images;
mod lease;
pub mod limits;
mod progress;
mod sandboxes;
pub mod start;
mod system;
mod transport;

pub use berth_types as types;
pub use error::Error;
pub use exec::{ExecOutcome, ExecOutput, ExecStream};
pub use files::ArchiveStream;
pub use host::{BadHost, DEFAULT_SOCKET, Host};
pub use lease::LeaseGuard;
pub use sandboxes::ListSandboxes;
pub use start::StartOptions;

/// Version of this client, which a daemon that it starts must share.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A daemon's address, ready for calls. Cheap to clone; holds no connection between calls.
#[derive(Clone, Debug)]
pub struct Client {
    host: Host,
}

impl Client {
    /// A client of the daemon at `host`. Nothing is contacted before the first call.
    pub fn new(host: Host) -> Self {
        Self { host }
    }

    /// Where the daemon is.
    pub fn host(&self) -> &Host {
        &self.host
    }
}
