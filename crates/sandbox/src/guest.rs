//! The host's end of a sandbox: everything that is done inside goes through its guest.
//!
//! ```text
//!   Guest (cheap to clone) ──► connection ── one task reads, one writes ── stream ──► berth-guest
//!      ├─ Exec        a command that one is attached to; ExecInput is what it reads
//!      ├─ Pack        a tar coming out
//!      ├─ FileStream  a file coming out
//!      ├─ Changes     what happens to files
//!      ├─ Socket      a connection to a socket inside
//!      └─ unpack, write_file, fs, glob, make_dir, kill, signal, …
//! ```
//!
//! When the stream ends every call under way fails with [`Error::Gone`]: what came of it is then not known, and
//! nothing is made up. A future or a handle that is dropped tells the guest to stop; of a dropped [`Exec`] the guest
//! keeps or kills the command as [`ExecSpec::on_detach`] said. A connection that has ended stays ended. When the last
//! handle of a connection is dropped the stream is closed: that is the end of the sandbox, unless its guest was told to
//! wait for another connection, over which a new [`Guest`] then finds every exec by its id.

mod connection;
mod cut;
mod exec;
mod files;
mod input;
mod socket;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use berth_types::exec::{ExecInfo, TerminalSize};
use berth_types::files::{DirEntry, FileKind, FileStat, FsRequest, FsResponse};
use berth_wire::{EncodeError, Fs, Glob, Outcome, Request};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};

pub use berth_wire::{
    Connect, Failure, FailureCode, Manner, Notice, Owner, Pack as PackSpec, PackReport, ReadFile, Stdin,
    TreeKill, Unpack as UnpackSpec, UnpackReport, Watch, WriteFile,
};
pub use exec::{AttachSpec, Exec, ExecOutput, ExecSpec};
pub use files::{Changes, FileStream};
pub use input::ExecInput;
pub use socket::Socket;
pub use transfer::Pack;

use connection::{Channel, Connection};

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
    /// How many connections it has had before this one.
    pub earlier_connections: u64,
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
    /// What is to be written to a file, or the archive to unpack, could not be read on this side.
    #[error("read what is to go to {path}")]
    Archive {
        /// Where it was to go.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing can be written any more: the other side is done, or its input was ended.
    #[error("nothing is read at the other side any more")]
    Over,
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
        if let Some(error) = &hello.last_error {
            tracing::warn!(error, "the guest had given up the connection before");
        }
        let info = GuestInfo {
            generation: hello.generation,
            shell: hello.shell,
            tree_kill: hello.tree_kill,
            is_init: hello.is_init,
            earlier_connections: hello.earlier_connections,
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

    /// Whether the stream has ended: every further call fails with [`Error::Gone`].
    pub fn is_closed(&self) -> bool {
        self.closed().now_or_never().is_some()
    }

    /// Starts a command, or attaches to the one that was started by this id before; returns when it runs, or when it is
    /// known why it does not.
    ///
    /// # Errors
    /// [`Error::Refused`] when it was not the command's fault, with [`FailureCode::Conflict`] when the id is that of
    /// another request; [`Error::Gone`]. A command that cannot be started is no error: it has an
    /// [`ExecOutput::Exited`] that says so.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec, Error> {
        let takes_input = spec.takes_input();
        Exec::start(self.open(Request::Exec(spec.into()))?, takes_input).await
    }

    /// Attaches to a command that was started before, whether it is over or not.
    ///
    /// # Errors
    /// [`Error::Refused`], with [`FailureCode::NotFound`] when none of that id was started; [`Error::Gone`].
    pub async fn attach(&self, spec: AttachSpec) -> Result<Exec, Error> {
        let takes_input = spec.stdin;
        Exec::start(self.open(Request::Attach(spec.into()))?, takes_input).await
    }

    /// Sends a signal to a running command: to its first process alone (with a terminal: to the foreground process
    /// group of that), or with `tree` to all that it started. False when no command of that id is running.
    ///
    /// # Errors
    /// [`Error::Refused`] for a number that is no signal, [`Error::Gone`].
    pub async fn signal(&self, id: &str, signal: i32, tree: bool) -> Result<bool, Error> {
        self.tell(Request::Signal { id: id.to_owned(), signal, tree }, "signal").await
    }

    /// Tells a running command the size of its terminal. False when no command of that id is running.
    ///
    /// # Errors
    /// [`Error::Refused`] when it has no terminal, [`Error::Gone`].
    pub async fn resize(&self, id: &str, size: TerminalSize) -> Result<bool, Error> {
        self.tell(Request::Resize { id: id.to_owned(), size: exec::size(size) }, "resize").await
    }

    async fn tell(&self, request: Request, name: &'static str) -> Result<bool, Error> {
        match self.ask(request).await? {
            Outcome::Told { was_running } => Ok(was_running),
            _ => Err(Error::Answer { request: name }),
        }
    }

    /// Kills every process of every command, also what those left behind that are over; returns when all of them are
    /// dead, with their number.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn quiesce(&self) -> Result<u64, Error> {
        match self.ask(Request::Quiesce { grace_ms: None }).await? {
            Outcome::Quiesced { killed } => Ok(killed),
            _ => Err(Error::Answer { request: "quiesce" }),
        }
    }

    /// What there is to tell of one command, or of all that were ever started here, the oldest first.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn execs(&self, id: Option<&str>) -> Result<Vec<ExecInfo>, Error> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            match self.ask(Request::Execs { id: id.map(str::to_owned), after }).await? {
                Outcome::Execs { infos, next } => {
                    for info in infos {
                        all.push(exec::info(info)?);
                    }
                    after = next;
                }
                _ => return Err(Error::Answer { request: "execs" }),
            }
            if after.is_none() {
                return Ok(all);
            }
        }
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
        match transfer::send_all(&mut self.open(Request::Unpack(spec))?, &path, tar).await? {
            Outcome::Unpacked(report) => Ok(report),
            _ => Err(Error::Answer { request: "unpack" }),
        }
    }

    /// Reads a part of a file; returns when the first of it is there.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn read_file(&self, spec: ReadFile) -> Result<FileStream, Error> {
        FileStream::start(self.open(Request::ReadFile(spec))?).await
    }

    /// Writes a file, which is there as a whole or, when this fails or is dropped, as it was before. Returns how many
    /// bytes it has.
    ///
    /// # Errors
    /// [`Error::Refused`], with [`FailureCode::Exists`] where something is that was not to be replaced;
    /// [`Error::Archive`], [`Error::Gone`].
    pub async fn write_file(
        &self,
        spec: WriteFile,
        contents: impl AsyncRead + Unpin + Send,
    ) -> Result<u64, Error> {
        let path = spec.path.clone();
        match transfer::send_all(&mut self.open(Request::WriteFile(spec))?, &path, contents).await? {
            Outcome::Written { bytes } => Ok(bytes),
            _ => Err(Error::Answer { request: "write_file" }),
        }
    }

    /// Watches what happens to files; returns when the watch is set up.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn watch(&self, spec: Watch) -> Result<Changes, Error> {
        Changes::start(self.open(Request::Watch(spec))?).await
    }

    /// Connects to a socket inside the sandbox.
    ///
    /// # Errors
    /// [`Error::Refused`], with [`FailureCode::NotConnected`] when nobody listens there; [`Error::Gone`].
    pub async fn connect_to(&self, socket: Connect) -> Result<Socket, Error> {
        Socket::start(self.open(Request::Connect(socket))?).await
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
        let lists = matches!(request, FsRequest::List { .. });
        let request = match request {
            FsRequest::Stat { path, user } => Fs::Stat { path, user },
            FsRequest::Mkdir { paths, mode, owner } => Fs::Mkdir { paths, mode, owner },
            FsRequest::Empty { paths, mode } => Fs::Empty { paths, mode },
            FsRequest::Remove { paths } => Fs::Remove { paths },
            FsRequest::List { path, user } => Fs::List { path, user },
        };
        match self.ask(Request::Fs(request)).await? {
            Outcome::Fs { stat, entries } => Ok(FsResponse {
                stat: stat.map(stat_of),
                entries: lists.then(|| entries.into_iter().map(entry_of).collect()),
            }),
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
        transfer::last_word(&mut self.open(request)?).await
    }
}

fn entry_of(berth_wire::DirEntry { name, stat, link }: berth_wire::DirEntry) -> DirEntry {
    DirEntry { name, stat: stat_of(stat), link }
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
        modified_us: stat.modified_us,
    }
}
