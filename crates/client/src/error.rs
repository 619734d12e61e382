//! How a call fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use berth_types::error::{ApiError, Kind};
use berth_types::exec::OutputStream;

use crate::host::BadHost;
use crate::{archive, start};

/// A call that did not succeed. `operation` is what the caller asked for, in words: `create a sandbox of debian:12`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `BERTH_HOST` holds no address.
    #[error("BERTH_HOST is not usable")]
    Host {
        /// What is wrong with it.
        #[source]
        source: BadHost,
    },
    /// No connection: the request certainly never reached a daemon.
    #[error("cannot {operation}: no daemon reachable at {host}")]
    Connect {
        /// What was asked for.
        operation: String,
        /// The daemon's address.
        host: String,
        /// Why there is no connection.
        #[source]
        source: io::Error,
    },
    /// The connection broke before the answer began; the daemon may have acted on the request.
    #[error("cannot {operation}: the connection to {host} broke before an answer came")]
    Send {
        /// What was asked for.
        operation: String,
        /// The daemon's address.
        host: String,
        /// How it broke.
        #[source]
        source: hyper::Error,
    },
    /// The bytes to upload could not be read on this side.
    #[error("cannot {operation}: the data to send could not be read")]
    Upload {
        /// What was asked for.
        operation: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke in the middle of the answer.
    #[error("cannot {operation}: the answer broke off")]
    Read {
        /// What was asked for.
        operation: String,
        /// How it broke.
        #[source]
        source: hyper::Error,
    },
    /// The daemon refused or failed, and said so.
    #[error("cannot {operation}")]
    Api {
        /// What was asked for.
        operation: String,
        /// The daemon's words.
        #[source]
        source: Box<ApiError>,
    },
    /// An HTTP status that is no success, with a body that is not the daemon's.
    #[error("cannot {operation}: HTTP status {status} with an unknown body {body:?}")]
    Status {
        /// What was asked for.
        operation: String,
        /// HTTP status.
        status: u16,
        /// First bytes of the body.
        body: String,
    },
    /// A success whose body is not what this version of the API says.
    #[error("cannot {operation}: the daemon's answer is not of this API")]
    Decode {
        /// What was asked for.
        operation: String,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
    /// A request of this side that cannot be written as JSON, for example a number that is not finite.
    #[error("cannot {operation}: the request cannot be written as JSON")]
    Encode {
        /// What was asked for.
        operation: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A file stream without chunks or length, whose end could not be told from a broken connection.
    #[error("cannot {operation}: the answer has no framing, so that its end could not be told")]
    Unframed {
        /// What was asked for.
        operation: String,
    },
    /// A progress stream ended with neither a result nor an error.
    #[error("cannot {operation}: the daemon went away before it said how this ended")]
    ProgressEnded {
        /// What was asked for.
        operation: String,
    },
    /// An exec's stream ended before its status: how the command ended is unknown.
    #[error("the exec in sandbox {sandbox} was lost: its stream ended before its exit status came")]
    ExecLost {
        /// Sandbox, as the caller named it.
        sandbox: String,
        /// How the stream broke; absent when it ended in order.
        #[source]
        source: Option<hyper::Error>,
    },
    /// A frame in an exec's stream that this protocol does not have.
    #[error(
        "the exec stream of sandbox {sandbox} holds a frame of kind {kind} and length {len}, unknown here"
    )]
    ExecFrame {
        /// Sandbox, as the caller named it.
        sandbox: String,
        /// Kind byte.
        kind: u8,
        /// Announced length.
        len: u32,
    },
    /// An event frame in an exec's stream that cannot be read.
    #[error("the exec stream of sandbox {sandbox} holds an event that cannot be read")]
    ExecEvent {
        /// Sandbox, as the caller named it.
        sandbox: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Output of an exec that is not kept any more: what is there is not all.
    #[error(
        "output of the exec in sandbox {sandbox} is not kept any more: {stream:?} from byte {from} to {to}"
    )]
    ExecGap {
        /// Sandbox, as the caller named it.
        sandbox: String,
        /// Of which stream.
        stream: OutputStream,
        /// First byte that is missing.
        from: u64,
        /// First byte that is there again.
        to: u64,
    },
    /// Output of an exec that does not follow what came before it.
    #[error("the exec stream of sandbox {sandbox} goes on at byte {found} of {stream:?}, not at {expected}")]
    ExecOffset {
        /// Sandbox, as the caller named it.
        sandbox: String,
        /// In which stream.
        stream: OutputStream,
        /// Where it was.
        expected: u64,
        /// Where it went on.
        found: u64,
    },
    /// A WebSocket to the daemon could not be made, or broke.
    #[error("cannot {operation}: the WebSocket to {host} failed")]
    WebSocket {
        /// What was asked for.
        operation: String,
        /// The daemon's address.
        host: String,
        /// How.
        #[source]
        source: Box<tokio_tungstenite::tungstenite::Error>,
    },
    /// A lease's time to live that the API has no number for.
    #[error("a lease of {ttl:?} is not possible: it lasts whole seconds, from 1 to 86400")]
    LeaseTtl {
        /// What was asked for.
        ttl: Duration,
    },
    /// The daemon is another version than this client.
    #[error("the daemon at {host} is version {daemon}, this is {client}")]
    VersionMismatch {
        /// The daemon's address.
        host: String,
        /// Its version.
        daemon: String,
        /// This client's version.
        client: String,
    },
    /// `BERTH_DATA_DIR` names another directory than the running daemon uses.
    #[error("the daemon at {host} keeps its data in {daemon}, not in {}", asked.display())]
    DataDirMismatch {
        /// The daemon's address.
        host: String,
        /// Its data directory.
        daemon: String,
        /// The one asked for.
        asked: PathBuf,
    },
    /// No daemon could be started.
    #[error("cannot start the daemon")]
    Start {
        /// Why not.
        #[source]
        source: start::Error,
    },
    /// Files on this side could not be packed or unpacked.
    #[error("cannot {operation}")]
    Archive {
        /// What was asked for.
        operation: String,
        /// Why not.
        #[source]
        source: archive::Error,
    },
}

impl Error {
    /// The daemon's own error, where it gave one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Error::Api { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whose fault it is; decides the CLI's exit code.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Api { source, .. } => source.kind,
            Error::Start { source } => source.kind(),
            Error::Host { .. } | Error::LeaseTtl { .. } | Error::Upload { .. } | Error::Encode { .. } => {
                Kind::User
            }
            Error::Archive { source, .. } => source.kind(),
            Error::VersionMismatch { .. } | Error::DataDirMismatch { .. } => Kind::Config,
            Error::Connect { .. }
            | Error::Send { .. }
            | Error::Read { .. }
            | Error::ProgressEnded { .. }
            | Error::ExecLost { .. }
            | Error::WebSocket { .. } => Kind::Unavailable,
            Error::Status { .. }
            | Error::Decode { .. }
            | Error::Unframed { .. }
            | Error::ExecFrame { .. }
            | Error::ExecEvent { .. }
            | Error::ExecGap { .. }
            | Error::ExecOffset { .. } => Kind::Internal,
        }
    }

    /// Whether the infrastructure failed, so that nothing is known about a task.
    pub fn is_infrastructure(&self) -> bool {
        self.kind().is_infrastructure()
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Api { source, .. } => source.hint.clone(),
            Error::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the daemon's socket belongs to root: run as root".to_owned())
            }
            Error::Connect { .. } => Some(
                "start a daemon with `berth daemon start`, or set BERTH_HOST to where one listens".to_owned(),
            ),
            Error::VersionMismatch { .. } => {
                Some("stop it with `berth daemon stop`; the next command starts the right one".to_owned())
            }
            Error::DataDirMismatch { .. } => Some(
                "set BERTH_HOST to a socket of its own for each data directory, or stop that daemon with \
                 `berth daemon stop`"
                    .to_owned(),
            ),
            Error::Start { source } => source.hint(),
            _ => None,
        }
    }
}
