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

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Its name, unique in the sandbox for as long as that lives: the same id is never started twice.
    pub id: String,
    /// What the host knows the rest of the request by; a request with a known id and another fingerprint is refused.
    #[serde(default)]
    pub fingerprint: Option<String>,
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
    /// What its standard input is.
    #[serde(default)]
    pub stdin: Stdin,
    /// Gives it a terminal of this size for input, output and errors: all of its output is then stdout.
    #[serde(default)]
    pub terminal: Option<TerminalSize>,
    /// What is kept of its output.
    #[serde(default)]
    pub keep: Keep,
    /// What becomes of it when nobody is attached any more: the channel was cancelled or the connection has ended.
    #[serde(default)]
    pub on_detach: OnDetach,
    /// From where on output is sent on this channel; see [`Attach`].
    #[serde(default)]
    pub from: Offsets,
}

/// What to be attached to, and from where on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// [`Exec::id`].
    pub id: String,
    /// From where on output is sent. What is no longer kept there is told by [`Reply::Gap`].
    #[serde(default)]
    pub from: Offsets,
    /// Whether the channel gives the exec its input from now on, in place of the one that did so far. The first byte of
    /// its data is at [`Reply::Started`]'s `stdin_offset`.
    #[serde(default)]
    pub stdin: bool,
    /// Whether the channel stays until the exec is over. Without, it ends with `Detached` once what there is was sent.
    #[serde(default = "yes")]
    pub follow: bool,
}

fn yes() -> bool {
    true
}

/// Places in the two outputs of an exec, in bytes from their beginnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Offsets {
    /// In stdout.
    pub stdout: u64,
    /// In stderr.
    pub stderr: u64,
}

/// Standard input of an exec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// Empty: `/dev/null`. With a terminal as [`Stdin::Stream`].
    #[default]
    Null,
    /// What comes as data on the channel that has the input, until `End`.
    Stream,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub cols: u16,
}

/// How much of an exec's output is kept for those who attach (again) later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// So many of the last bytes of both outputs together. With 0 only what is under way to a reader, which never
    /// touches the disk: for execs to which nobody attaches a second time.
    pub bytes: u64,
    /// What happens to more than that which nobody has read yet.
    pub when_full: WhenFull,
}

impl Default for Keep {
    fn default() -> Self {
        Self { bytes: crate::DEFAULT_KEEP, when_full: WhenFull::Wait }
    }
}

/// What happens to output when as much as may be kept waits for a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The command waits until somebody has read.
    #[default]
    Wait,
    /// The oldest bytes go; readers are told by [`Reply::Gap`], and [`Exited`] counts them.
    DropOldest,
}

/// What becomes of an exec to which nobody is attached any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDetach {
    /// It runs on.
    #[default]
    Keep,
    /// Everything that it started is killed.
    Kill,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Absolute path of a regular file; links are followed.
    pub path: String,
    /// Where it begins, in bytes; beyond the end there is nothing.
    #[serde(default)]
    pub offset: u64,
    /// Its length in bytes; to the end of the file when absent.
    #[serde(default)]
    pub length: Option<u64>,
    /// As in [`Exec::user`]: whose permissions count; root's when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// A file to be written as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteFile {
    /// Absolute path. A link there is replaced, not followed; links in its directory are. Parents are made.
    pub path: String,
    /// Permission bits; those of the file that it replaces, or 0644, when absent.
    #[serde(default)]
    pub mode: Option<u32>,
    /// As in [`Exec::user`]; that of the file that it replaces, or root, when absent.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether it is refused with [`FailureCode::Exists`] when something is there already.
    #[serde(default)]
    pub create_only: bool,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Absolute path of a file or directory; links are followed.
    pub path: String,
    /// Whether all directories below are watched too, also those made later.
    #[serde(default)]
    pub recursive: bool,
}

/// Something that happened to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// The absolute path. Bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Where it was before, of [`ChangeKind::Moved`] within what is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a directory.
    #[serde(default)]
    pub is_dir: bool,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// From here on changes are told.
    Ready,
    /// It is new.
    Created,
    /// Its contents changed.
    Modified,
    /// A writer has closed it.
    Closed,
    /// Its mode, owner, times or links changed.
    Attributes,
    /// It has this name now.
    Moved,
    /// It is gone.
    Removed,
    /// Changes were lost since there were too many: look for yourself.
    Overflow,
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

/// What an exec runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A program, looked up in the exec's `PATH`, and its arguments.
    Argv(Vec<String>),
    /// A line for `bash -c`, or `sh -c` where there is no bash.
    Shell(String),
    /// The user's login shell by his account (`/bin/sh` where that is not there), as a login shell.
    LoginShell,
    /// A program of the guest itself, which needs nothing of the image.
    Builtin(Builtin),
}

/// Programs of the guest's own, run as any other command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Builtin {
    /// An SFTP server, version 3, on stdin and stdout.
    Sftp,
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
    /// Globs as of Python's `fnmatch` on the path relative to `path`. Where there are any of these or of `exclude_files`,
    /// regular files alone come along, without the directories that hold them, and here: those that match one.
    #[serde(default)]
    pub include: Vec<String>,
    /// Globs as of `include`: files that match one stay out, also where `include` matches.
    #[serde(default)]
    pub exclude_files: Vec<String>,
    /// Paths (no globs) relative to `path` of files that come along whatever `include`, `exclude` and `exclude_files` say.
    #[serde(default)]
    pub protect: Vec<String>,
    /// Whether holes of sparse files are told rather than sent as zeros (GNU sparse 1.0 in pax).
    #[serde(default)]
    pub sparse: bool,
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
    /// What is in a directory, sorted by name.
    List {
        /// The directory; links are followed.
        path: String,
        /// Whose permissions count; root's when absent.
        #[serde(default)]
        user: Option<String>,
    },
}

/// An entry of a directory. Links are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name. Bytes that are not UTF-8 are shown as U+FFFD.
    pub name: String,
    /// What is there; kind [`FileKind::Other`] for a link.
    pub stat: FileStat,
    /// Where a link points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
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
    /// How much it wrote.
    #[serde(default)]
    pub written: Offsets,
    /// How much of that was dropped before anybody had read it; see [`WhenFull::DropOldest`].
    #[serde(default)]
    pub dropped: Offsets,
}

/// One of the outputs of an exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Standard output, or all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What there is to tell of an exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// [`Exec::id`].
    pub id: String,
    /// What it runs; shortened to some hundred bytes.
    pub command: String,
    /// [`Exec::user`].
    #[serde(default)]
    pub user: Option<String>,
    /// [`Exec::cwd`].
    pub cwd: String,
    /// When it was started, in microseconds since the epoch.
    pub started_at_us: u64,
    /// Pid of its first process, in the sandbox, while that lives.
    #[serde(default)]
    pub pid: Option<i32>,
    /// How it ended, once it has.
    #[serde(default)]
    pub exited: Option<Exited>,
    /// Processor time so far of it and all that it started, in microseconds, where that is counted.
    #[serde(default)]
    pub cpu_usec: Option<u64>,
    /// Memory now of it and all that it started, in bytes, where that is counted.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processes of it that live, also of one that is over.
    #[serde(default)]
    pub processes: Option<u64>,
    /// How much it wrote so far.
    pub written: Offsets,
    /// From where on output is kept.
    pub kept_from: Offsets,
    /// Whether it waits for a reader: as much as may be kept is unread.
    pub blocked: bool,
    /// Channels that are attached to it.
    pub attached: u32,
    /// Whether it has a terminal.
    pub terminal: bool,
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
    /// When its contents last changed, in microseconds since the epoch.
    #[serde(default)]
    pub modified_us: i64,
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
    /// An exec of that id is there, with another request.
    Conflict,
    /// Something is there already.
    Exists,
    /// Nobody listens at the socket.
    NotConnected,
    /// The host cancelled the request.
    Cancelled,
}
