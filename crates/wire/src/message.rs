//! The JSON bodies: what the host asks and what the guest answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    /// Run a command. Replies: `Started`, data, `Exited`; or `Exited` alone with [`ExitReason::NotStarted`]; or
    /// `Failed` when it is not the command's fault.
    Exec(Exec),
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

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Name by which it can be killed; unique among the running ones.
    pub id: String,
    /// What to run.
    pub command: Command,
    /// The whole environment. `PATH`, and `HOME`, `USER`, `LOGNAME` and `SHELL` of the user, are added where it does
    /// not name them.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `name`, `uid`, `name:group` or `uid:gid`, each by name or number; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Wall-clock limit; none when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How long SIGTERM may work before SIGKILL at the limit and when the exec is cancelled;
    /// [`crate::DEFAULT_GRACE_MS`] when absent.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// Whether set-id bits and file capabilities are without effect.
    #[serde(default)]
    pub no_new_privs: bool,
    /// Whether `USER`, `LOGNAME` and `SHELL` are left as they are given: builders of images do not set them, and what
    /// installs itself looks at them.
    #[serde(default)]
    pub plain_env: bool,
}

/// What an exec runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A program, looked up in the exec's `PATH`, and its arguments.
    Argv(Vec<String>),
    /// A line for `bash -c`, or `sh -c` where there is no bash.
    Shell(String),
}

/// Where a tar goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// Absolute directory; made with its parents when it is not there, followed when it is a symlink to one.
    pub path: String,
    /// Who owns what is unpacked.
    pub owner: Owner,
    /// Permission bits for every file and directory of the archive, in place of the archive's own.
    #[serde(default)]
    pub mode: Option<u32>,
}

/// Who owns unpacked files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// 0:0.
    Root,
    /// The numeric ids in the archive.
    Keep,
    /// A user as in [`Exec::user`], looked up in the sandbox; directories made on the way get it as well.
    User(String),
}

/// What goes into a tar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Absolute path. A directory's entries are named relative to it; anything else is one entry of its base name.
    pub path: String,
    /// Patterns of GNU tar's `--exclude`, matched as if the archive were made of `.` in the directory.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether a symlink at `path` is followed.
    #[serde(default)]
    pub follow: bool,
    /// Whether a directory's own mode, owner and time come first, as an entry named `./`.
    #[serde(default)]
    pub include_top: bool,
    /// Whether extended attributes come along (as `SCHILY.xattr`).
    #[serde(default)]
    pub xattrs: bool,
    /// Whether what is mounted below `path` stays out: an empty directory stands for a tree, nothing for anything else.
    #[serde(default)]
    pub one_mount: bool,
    /// Whether what cannot be read is listed as unread, rather than failing the whole.
    #[serde(default)]
    pub ignore_failed_read: bool,
}

/// Small file-system operations. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Fs {
    /// What `path` is, following symlinks, as `user` sees it.
    Stat {
        /// The path.
        path: String,
        /// Whose permissions count; root's when absent.
        #[serde(default)]
        user: Option<String>,
    },
    /// Make directories and their parents; `mode` and `owner` are set on each named one, also where it exists.
    Mkdir {
        /// The directories.
        paths: Vec<String>,
        /// Permission bits; 0755, and only for new ones, when absent.
        #[serde(default)]
        mode: Option<u32>,
        /// As in [`Exec::user`]; root, and only for new ones, when absent. Parents are always root's.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Remove what is in each directory but keep the directory; anything else there is replaced by a directory.
    Empty {
        /// The directories.
        paths: Vec<String>,
        /// Permission bits to set on each.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Remove each path and what is below it; one that is not there is no error.
    Remove {
        /// The paths.
        paths: Vec<String>,
    },
}

/// Which paths to find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Glob {
    /// An absolute path whose components are patterns of Go's `filepath.Match`.
    pub pattern: String,
}

/// News of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The command runs.
    Started {
        /// Its program's path, as executed.
        program: String,
    },
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
        !matches!(self, Self::Started { .. })
    }
}

/// How an exec ended. What is absent of the last ones was not counted; nothing is estimated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// 0–255; 128+n after signal n; 127 and 126 when not started; 124 at the timeout.
    pub code: i32,
    /// Why it ended.
    pub reason: ExitReason,
    /// The signal that ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// A line for a person.
    #[serde(default)]
    pub message: Option<String>,
    /// From request to end.
    pub duration_ms: u64,
    /// What it met and what it used, up to the end of its first process.
    #[serde(default)]
    pub usage: ExecUsage,
}

/// What an exec met and used. The kernel counts by group: [`Exited::usage`] says of which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecUsage {
    /// Processes that the kernel killed for want of memory: those of the exec where each exec's memory is counted
    /// (version 2), else those of the whole sandbox meanwhile.
    pub oom_kills: Option<u64>,
    /// Limits that were met.
    pub limits_hit: Vec<Limit>,
    /// The most memory that its processes had together, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Processor time of all of its processes, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Whether it ran beside the sandbox's memory limit, in a small group of its own, since there was no memory left
    /// within.
    pub rescued: bool,
}

/// A limit of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Memory was wanted, none was left and none could be freed.
    Memory,
    /// A process or thread could not be made.
    Pids,
    /// A file could not grow, or not be made.
    Disk,
}

/// Why an exec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It returned a code.
    Exited,
    /// A signal ended it.
    Signaled,
    /// The kernel killed its first process, since the sandbox was out of memory.
    OutOfMemory,
    /// It reached its time limit.
    TimedOut,
    /// It was killed by request.
    Killed,
    /// It could not be started.
    NotStarted,
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
    /// Of [`Request::Unpack`].
    Unpacked(UnpackReport),
    /// Of [`Request::Pack`]; all data was sent before.
    Packed(PackReport),
    /// Of [`Request::Fs`].
    Fs {
        /// For a stat: what is there, if anything is and the user may see it.
        #[serde(default)]
        stat: Option<FileStat>,
    },
    /// Of [`Request::Glob`]; all paths were sent before.
    Globbed {
        /// How many paths.
        found: u64,
    },
}

/// What became of an archive. Lists end at [`crate::MAX_LISTED`] names; the counts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnpackReport {
    /// Entries that were unpacked.
    pub entries: u64,
    /// Bytes of file contents that were written.
    pub bytes: u64,
    /// How many entries were refused since they would have left the target or are not understood.
    pub refused_count: u64,
    /// Those, each `name: why`. Bytes that are not UTF-8 are shown as U+FFFD.
    pub refused: Vec<Notice>,
    /// How many entries were of kinds that are never unpacked: devices, FIFOs.
    pub skipped_count: u64,
    /// Those.
    pub skipped: Vec<Notice>,
    /// How many extended attributes the file system did not take.
    pub xattrs_lost: u64,
}

/// What went into an archive. Lists end at [`crate::MAX_LISTED`] names; the counts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackReport {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of file contents in the archive.
    pub bytes: u64,
    /// How many sockets, FIFOs and devices, and trees that the kernel makes up, were left out.
    pub skipped_count: u64,
    /// Those.
    pub skipped: Vec<Notice>,
    /// How many files and directories could not be read, where that does not fail the whole: left out, or filled up
    /// with zeros.
    pub unread_count: u64,
    /// Those.
    pub unread: Vec<Notice>,
    /// How many files changed while they were read: cut at, or padded with zeros to, the size they had at first; or
    /// gone before they could be opened.
    pub changed_count: u64,
    /// Those.
    pub changed: Vec<Notice>,
}

/// A path and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The path, as in the archive. Bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Why it is listed.
    pub why: String,
}

/// One file's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Its kind.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of files that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else.
    Other,
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
    /// An exec of that id is running.
    Conflict,
    /// The host cancelled the request.
    Cancelled,
}
