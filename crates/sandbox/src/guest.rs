//! The host's end of a sandbox: everything that is done inside goes through its guest.
//!
//! ```text
//!   Guest (cheap to clone) ──► connection ── one task reads, one writes ── stream ──► berth-guest
//!      ├─ Exec    a command under way
//!      ├─ Pack    a tar coming out
//!      └─ unpack, fs, glob, make_dir, kill
//! ```
//!
//! When the stream ends every call under way fails with [`Error::Gone`]: what came of it is then not known, and
//! nothing is made up. A future or a handle that is dropped tells the guest to stop; a dropped [`Exec`] kills its
//! command with everything that it started. When the last [`Guest`], [`Exec`] and [`Pack`] of a connection are
//! dropped the stream is closed, and that is the end of the sandbox.

mod connection;
mod exec;
mod transfer;

use std::sync::Arc;

use berth_types::files::{FileKind, FileStat, FsRequest, FsResponse};
use berth_wire::{EncodeError, Fs, Glob, Outcome, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite};

pub use berth_wire::{
    Failure, FailureCode, Notice, Owner, Pack as PackSpec, PackReport, TreeKill, Unpack as UnpackSpec,
    UnpackReport,
};
pub use exec::{Exec, ExecOutput, ExecSpec};
pub use transfer::Pack;

use connection::{Channel, Connection, Incoming};

/// A connection to a guest.
#[derive(Clone)]
pub struct Guest {
    connection: Arc<Connection>,
    info: Arc<GuestInfo>,
}

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestInfo {
    /// Generation of its protocol; the same as ours.
    pub generation: u32,
    /// The shell that shell lines run in; absent when the image has none.
    pub shell: Option<String>,
    /// How far the killing of a command reaches.
    pub tree_kill: TreeKill,
    /// Whether it is PID 1, so that its end is the end of all processes in the sandbox.
    pub is_init: bool,
}

/// Why a call of the guest failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream ended before the call did; what came of it is not known.
    #[error("the connection to the sandbox is gone")]
    Gone,
    /// The guest could not be greeted.
    #[error("read the guest's greeting")]
    Greeting(#[source] std::io::Error),
    /// What came first was not a greeting.
    #[error("the guest does not speak this protocol")]
    Protocol(#[source] Option<berth_wire::DecodeError>),
    /// The guest is of another build.
    #[error("the guest speaks generation {theirs} of the protocol, this is {}", berth_wire::GENERATION)]
    Generation {
        /// What it speaks.
        theirs: u32,
    },
    /// The guest says why it did not do what was asked.
    #[error("{0}")]
    Refused(Failure),
    /// The guest answered something else than was asked.
    #[error("the guest's answer does not go with the request {request}")]
    Answer {
        /// What was asked.
        request: &'static str,
    },
    /// The archive to unpack could not be read on this side.
    #[error("read the archive for {path}")]
    Archive {
        /// Where it was to go.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A path in the sandbox cannot be told in an API of text.
    #[error("a path that matches is not UTF-8: {path}")]
    Name {
        /// It, with what is not UTF-8 replaced.
        path: String,
    },
}

impl Error {
    /// What the guest refused and why; `None` when the guest itself failed or is gone.
    pub fn refusal(&self) -> Option<&Failure> {
        match self {
            Self::Refused(failure) => Some(failure),
            _ => None,
        }
    }

    fn too_long(error: &EncodeError) -> Self {
        Self::Refused(Failure { code: FailureCode::Invalid, message: error.to_string(), path: None })
    }
}

impl Guest {
    /// Waits for the greeting of the guest at the other end of `stream`. There is no limit of time in here.
    ///
    /// # Errors
    /// [`Error::Greeting`], [`Error::Protocol`], [`Error::Generation`].
    pub async fn connect(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Result<Self, Error> {
        let (connection, hello) = connection::greet(stream).await?;
        let info = GuestInfo {
            generation: hello.generation,
            shell: hello.shell,
            tree_kill: hello.tree_kill,
            is_init: hello.is_init,
        };
        Ok(Self { connection: Arc::new(connection), info: Arc::new(info) })
    }

    /// What the guest says of itself.
    pub fn info(&self) -> &GuestInfo {
        &self.info
    }

    /// Completes when the stream has ended.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Starts a command; returns when it runs, or when it is known why it does not.
    ///
    /// # Errors
    /// [`Error::Refused`] when it was not the command's fault, [`Error::Gone`]. A command that cannot be started is no
    /// error: it has an [`ExecOutput::Exited`] that says so.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec, Error> {
        Exec::start(self.open(Request::Exec(spec.into()))?).await
    }

    /// Kills a running command with everything that it started, and returns when all of that is dead. False when no
    /// command of that id is running.
    ///
    /// # Errors
    /// [`Error::Gone`].
    pub async fn kill(&self, id: &str) -> Result<bool, Error> {
        match self.ask(Request::Kill { id: id.to_owned(), grace_ms: None }).await? {
            Outcome::Killed { was_running } => Ok(was_running),
            _ => Err(Error::Answer { request: "kill" }),
        }
    }

    /// Unpacks a tar. Nothing is undone when it fails or is dropped half-way.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Archive`], [`Error::Gone`].
    pub async fn unpack(
        &self,
        spec: UnpackSpec,
        tar: impl AsyncRead + Unpin + Send,
    ) -> Result<UnpackReport, Error> {
        let path = spec.path.clone();
        transfer::unpack(self.open(Request::Unpack(spec))?, path, tar).await
    }

    /// Packs a path into a tar; returns when the first of it is there.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn pack(&self, spec: PackSpec) -> Result<Pack, Error> {
        Pack::start(self.open(Request::Pack(spec))?).await
    }

    /// A small file-system operation.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn fs(&self, request: FsRequest) -> Result<FsResponse, Error> {
        let request = match request {
            FsRequest::Stat { path, user } => Fs::Stat { path, user },
            FsRequest::Mkdir { paths, mode } => Fs::Mkdir { paths, mode, owner: None },
            FsRequest::Empty { paths, mode } => Fs::Empty { paths, mode },
            FsRequest::Remove { paths } => Fs::Remove { paths },
        };
        match self.ask(Request::Fs(request)).await? {
            Outcome::Fs { stat, .. } => Ok(FsResponse { stat: stat.map(stat_of) }),
            _ => Err(Error::Answer { request: "fs" }),
        }
    }

    /// Makes a directory and its parents, and gives it (not the parents) to `owner`, also when it exists already.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn make_dir(&self, path: &str, owner: Option<&str>) -> Result<(), Error> {
        let request = Fs::Mkdir { paths: vec![path.to_owned()], mode: None, owner: owner.map(str::to_owned) };
        match self.ask(Request::Fs(request)).await? {
            Outcome::Fs { .. } => Ok(()),
            _ => Err(Error::Answer { request: "mkdir" }),
        }
    }

    /// Paths that match an absolute pattern, component by component as Go's `filepath.Match`; sorted.
    ///
    /// # Errors
    /// [`Error::Refused`] for a malformed pattern, [`Error::Name`], [`Error::Gone`].
    pub async fn glob(&self, pattern: &str) -> Result<Vec<String>, Error> {
        let channel = self.open(Request::Glob(Glob { pattern: pattern.to_owned() }))?;
        transfer::names(channel).await
    }

    /// Ends the guest, and with it everything in the sandbox; returns when the stream has ended.
    pub async fn shutdown(&self) {
        // Without a connection it has ended already.
        if let Ok(mut channel) = self.open(Request::Shutdown) {
            while channel.receive().await.is_some() {}
        }
        self.closed().await;
    }

    fn open(&self, request: Request) -> Result<Channel, Error> {
        Channel::open(&self.connection, &request)
    }

    async fn ask(&self, request: Request) -> Result<Outcome, Error> {
        let mut channel = self.open(request)?;
        match channel.receive().await {
            Some(Incoming::Reply(Reply::Done(outcome))) => Ok(outcome),
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(_) => Err(Error::Answer { request: "without data" }),
            None => Err(Error::Gone),
        }
    }
}

fn stat_of(stat: berth_wire::FileStat) -> FileStat {
    FileStat {
        kind: match stat.kind {
            berth_wire::FileKind::File => FileKind::File,
            berth_wire::FileKind::Dir => FileKind::Dir,
            berth_wire::FileKind::Other => FileKind::Other,
        },
        size: stat.size,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
    }
}
