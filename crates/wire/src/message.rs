//! The JSON bodies: what the host asks and what the guest answers.

mod exec;
mod files;

use serde::{Deserialize, Serialize};

pub use exec::{
    Attach, Builtin, Command, Exec, ExecInfo, ExecUsage, ExitReason, Exited, Keep, Limit, Offsets, OnDetach,
    Output, Stdin, TerminalSize, WhenFull,
};
pub use files::{
    Change, ChangeKind, DirEntry, FileKind, FileStat, Fs, Glob, Manner, Notice, Owner, Pack, PackReport,
    ReadFile, Unpack, UnpackReport, Watch, WriteFile,
};

/// The guest's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::GENERATION`] of the guest. Fields that the host does not know are ignored in this message alone, so
    /// that the number can be read whatever else changed.
    pub generation: u32,
    /// The shell that shell lines run in, as found when the guest started; absent when the image has none.
    #[serde(default)]
    pub shell: Option<String>,
    /// How the end of an exec reaches what the exec started.
    pub tree_kill: TreeKill,
    /// Whether the guest is PID 1 of its namespace, so that its end is the end of every process in it.
    pub is_init: bool,
    /// How many connections it has had before this one.
    #[serde(default)]
    pub earlier_connections: u64,
    /// Why the connection before this one was given up, where that was not just its end: the host broke the protocol,
    /// or a system call failed. A line for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How killing an exec reaches the processes that it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeKill {
    /// Every exec has a cgroup of its own; nothing leaves it.
    Cgroup,
    /// No cgroup was given: the exec's process group and session are killed, and a process that made a session of
    /// its own gets away.
    ProcessGroup,
}

/// What the host asks; opens a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command, once: where an exec of that id is known the channel is attached to it. Replies: `Started`,
    /// output, `Exited`; or `Exited` alone with [`ExitReason::NotStarted`]; or `Failed` when it is not the command's
    /// fault, with [`FailureCode::Conflict`] when the id is that of an exec with another fingerprint.
    Exec(Exec),
    /// Attach the channel to an exec that is known, running or over. Replies as to `Exec`; `Failed` with
    /// [`FailureCode::NotFound`] when it is not known.
    Attach(Attach),
    /// Send a signal to a running exec.
    Signal {
        /// [`Exec::id`].
        id: String,
        /// Number of the signal, 1 to 64.
        signal: i32,
        /// Whether everything that the exec started gets it, or its first process alone (with a terminal: the
        /// foreground process group of that).
        #[serde(default)]
        tree: bool,
    },
    /// Tell a running exec the size of its terminal.
    Resize {
        /// [`Exec::id`].
        id: String,
        /// The size.
        size: TerminalSize,
    },
    /// Kill every process of every exec, also of those that are over. Answered when all of them are dead.
    Quiesce {
        /// As in [`Request::Kill`].
        #[serde(default)]
        grace_ms: Option<u64>,
    },
    /// Tell of execs: of one, or of all in the order in which they were started, a part at a time.
    Execs {
        /// [`Exec::id`] of the one.
        #[serde(default)]
        id: Option<String>,
        /// [`Outcome::Execs`]'s `next` of the part before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// Send a part of a file as data.
    ReadFile(ReadFile),
    /// Write the data that follows to a file, which is there as a whole or not at all.
    WriteFile(WriteFile),
    /// Tell of changes below a path: data, one JSON [`Change`] a line, until it is cancelled.
    Watch(Watch),
    /// Connect to a socket of the sandbox: data both ways. `Connected` first; `End` from the host closes its half,
    /// and the guest's [`Outcome::Disconnected`] comes when both halves are closed.
    Connect(Connect),
    /// Kill everything that a running exec started. Answered when all of it is dead.
    Kill {
        /// [`Exec::id`].
        id: String,
        /// How long SIGTERM may work before SIGKILL, in milliseconds; [`crate::DEFAULT_GRACE_MS`] when absent.
        #[serde(default)]
        grace_ms: Option<u64>,
    },
    /// Unpack the tar that follows as data.
    Unpack(Unpack),
    /// Send a tar as data.
    Pack(Pack),
    /// A small file-system operation.
    Fs(Fs),
    /// Find paths; they come as data, each followed by a NUL byte, sorted.
    Glob(Glob),
    /// Kill everything and end. Answered by the end of the stream.
    Shutdown,
}

impl Request {
    /// Bytes of data that each direction of its channel may have under way.
    pub fn window(&self) -> u32 {
        match self {
            Self::Pack(_) | Self::Unpack(_) | Self::ReadFile(_) | Self::WriteFile(_) => crate::BULK_WINDOW,
            _ => crate::WINDOW,
        }
    }
}

/// A socket inside the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connect {
    /// TCP, by address or by a name that the sandbox's own /etc/hosts has; other names are refused.
    Tcp {
        /// Host, `localhost` usually: 127.0.0.1 is tried, then ::1.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket.
    Unix {
        /// Absolute path.
        path: String,
    },
}

/// News of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command runs, or has run.
    Started {
        /// Its program's path, as executed.
        program: String,
        /// Whether the exec was there before this request.
        #[serde(default)]
        attached: bool,
        /// How many bytes of standard input it has been given.
        #[serde(default)]
        stdin_offset: u64,
    },
    /// Output that was asked for is no longer kept.
    Gap {
        /// Of which.
        stream: Output,
        /// Where the missing bytes begin.
        from: u64,
        /// Where output goes on.
        to: u64,
    },
    /// The sandbox's socket is connected.
    Connected,
    /// The channel is over, the exec is not: of [`Attach`] without `follow`.
    Detached,
    /// The exec is over, all of its output sent.
    Exited(Exited),
    /// The request is carried out.
    Done(Outcome),
    /// The request is not carried out, or not to its end.
    Failed(Failure),
}

impl Reply {
    /// Whether the channel is over with this reply.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Started { .. } | Self::Gap { .. } | Self::Connected)
    }
}

/// What a request led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of [`Request::Kill`].
    Killed {
        /// Whether an exec of that id was running.
        was_running: bool,
    },
    /// Of [`Request::Quiesce`].
    Quiesced {
        /// How many processes were killed.
        killed: u64,
    },
    /// Of [`Request::Signal`] and [`Request::Resize`].
    Told {
        /// Whether an exec of that id was running.
        was_running: bool,
    },
    /// Of [`Request::Execs`].
    Execs {
        /// The oldest first.
        infos: Vec<ExecInfo>,
        /// Where there are more than one message tells of: what to ask after for the next part.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<u64>,
    },
    /// Of [`Request::ReadFile`]; all data was sent before.
    Read {
        /// Size of the file when it was opened, in bytes.
        size: u64,
    },
    /// Of [`Request::WriteFile`].
    Written {
        /// Bytes.
        bytes: u64,
    },
    /// Of [`Request::Connect`].
    Disconnected,
    /// Of [`Request::Unpack`].
    Unpacked(UnpackReport),
    /// Of [`Request::Pack`]; all data was sent before.
    Packed(PackReport),
    /// Of [`Request::Fs`].
    Fs {
        /// For a stat: what is there, if anything is and the user may see it.
        #[serde(default)]
        stat: Option<FileStat>,
        /// For a list.
        #[serde(default)]
        entries: Vec<DirEntry>,
    },
    /// Of [`Request::Glob`]; all paths were sent before.
    Globbed {
        /// How many paths.
        found: u64,
    },
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of failure.
    pub code: FailureCode,
    /// A line for a person; names the operation, not the path.
    pub message: String,
    /// The path that it failed on, where there is one.
    #[serde(default)]
    pub path: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{path}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Nothing is at the path.
    NotFound,
    /// Something else than a directory is at the path.
    NotADirectory,
    /// A directory that is not empty stands where a file should go.
    IsADirectory,
    /// The kernel refused it.
    Permission,
    /// The file system is full or the quota reached.
    NoSpace,
    /// A limit of the sandbox was reached: processes, memory, descriptors.
    Limit,
    /// Any other failure of a system call.
    Io,
    /// The bytes are not a tar.
    BadArchive,
    /// The request is one that the guest does not carry out.
    Refused,
    /// The request is malformed: a relative path, a bad pattern, an unknown user.
    Invalid,
    /// An exec of that id is there, with another request.
    Conflict,
    /// Something is there already.
    Exists,
    /// Nobody listens at the socket.
    NotConnected,
    /// The host cancelled the request.
    Cancelled,
}
