//! Commands: what is asked of one, what is told of it, and how it ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
    /// From where on output is sent. What is no longer kept there is told by [`crate::Reply::Gap`].
    #[serde(default)]
    pub from: Offsets,
    /// Whether the channel gives the exec its input from now on, in place of the one that did so far. The first byte of
    /// its data is at [`crate::Reply::Started`]'s `stdin_offset`.
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
    /// The oldest bytes go; readers are told by [`crate::Reply::Gap`], and [`Exited`] counts them.
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
