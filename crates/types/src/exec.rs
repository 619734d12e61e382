//! One command in a sandbox: how it is asked for and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::sandbox::Limit;
use crate::unique;

/// Media type of the response to an exec: a run of frames, each one kind byte ([`frame`]), four bytes of
/// big-endian length, and that many bytes. The last frame is an [`frame::EVENT`] that holds [`ExecEvent::Exited`] or
/// [`ExecEvent::Detached`], or a [`frame::ERROR`]; a stream that ends without was cut off: the command may run on, and
/// whoever wants the rest attaches again where he is.
pub const EXEC_STREAM_TYPE: &str = "application/vnd.berth.exec-stream.v2";

/// Kinds of frames in an exec stream.
pub mod frame {
    /// A piece of the command's stdout: [`OUTPUT_HEADER_LEN`] bytes, then its bytes.
    pub const STDOUT: u8 = 1;
    /// The same of the command's stderr.
    pub const STDERR: u8 = 2;
    /// A JSON [`super::ExecEvent`].
    pub const EVENT: u8 = 3;
    /// A JSON [`crate::error::ApiError`]; nothing follows it.
    pub const ERROR: u8 = 4;
    /// From a client that is attached by a WebSocket: bytes of the command's stdin.
    pub const STDIN: u8 = 16;
    /// From a client: stdin is at its end. Empty.
    pub const STDIN_END: u8 = 17;
    /// From a client: the terminal's size, a JSON [`super::TerminalSize`].
    pub const RESIZE: u8 = 18;
    /// From a client: a JSON [`super::SignalRequest`].
    pub const SIGNAL: u8 = 19;
    /// What precedes the bytes of output: where in its stream they begin, and when the command wrote them in
    /// microseconds since the epoch; eight bytes each, big-endian.
    pub const OUTPUT_HEADER_LEN: usize = 16;
    /// Longest payload of a frame, in bytes. A peer that announces more is not speaking this protocol.
    pub const MAX_LEN: u32 = 1 << 20;
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A program and its arguments, run as they are; the program is looked up in the exec's `PATH`.
    Argv(Vec<String>),
    /// A line for a shell: `bash -c` where the image has bash, else `sh -c`; never a login shell.
    Shell(String),
    /// The user's own shell, as a login shell: `"login_shell"`.
    LoginShell,
    /// The sandbox's own SFTP server on stdin and stdout, which needs nothing of the image: `"sftp"`.
    Sftp,
}

/// Body of `POST /v1/sandboxes/{id}/exec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Name for this exec, chosen by the client (1 to 64 of `[A-Za-z0-9_-]`); made by the daemon when absent. It is the
    /// key that makes a repeated request harmless: with the same id the same request attaches to what it has started
    /// before, and another request is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What to run.
    pub command: Command,
    /// Added to, and winning over, the sandbox's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique::map")]
    pub env: BTreeMap<String, String>,
    /// Working directory; the sandbox's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; the sandbox's user when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Wall-clock limit in seconds; absent or 0 means none. At the limit everything the command
    /// started is killed and the exit code is 124.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// Standard input; `/dev/null` when absent. With a terminal it is the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Stdin>,
    /// Gives it a terminal of this size. All of its output is stdout then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSize>,
    /// What is kept of its output for whoever attaches (again) later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<KeepOutput>,
    /// What becomes of it when the last client that is attached goes away.
    #[serde(default, skip_serializing_if = "OnDisconnect::is_default")]
    pub on_disconnect: OnDisconnect,
    /// Whether the answer is an [`ExecInfo`] as soon as it runs, rather than its stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// From where on output is sent: what a client that repeats a request has already.
    #[serde(default, skip_serializing_if = "ExecOffsets::is_zero")]
    pub from: ExecOffsets,
}

impl ExecRequest {
    /// A request for `command` with everything else as the sandbox has it.
    pub fn new(command: Command) -> Self {
        Self {
            id: None,
            command,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            timeout_seconds: None,
            stdin: None,
            terminal: None,
            keep: None,
            on_disconnect: OnDisconnect::default(),
            detach: false,
            from: ExecOffsets::default(),
        }
    }
}

/// Standard input of an exec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// These bytes, in base64, and then the end. At most 1 MiB; more is streamed.
    Data(String),
    /// What clients send later, by `POST …/stdin` or attached by a WebSocket.
    Stream,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How much of an exec's output is kept. What was not read by anybody is never dropped unless `when_full` says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepOutput {
    /// So many of the last bytes of stdout and stderr together; 64 MiB where the request says nothing.
    pub bytes: u64,
    /// What happens when so much waits for a reader.
    #[serde(default)]
    pub when_full: WhenFull,
}

/// What happens to output when as much as may be kept waits for a reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The command waits until somebody reads.
    #[default]
    Wait,
    /// The oldest bytes are dropped; [`ExecEvent::Gap`] and [`ExecStatus::dropped`] tell of it.
    DropOldest,
}

/// What becomes of an exec when the last client that is attached goes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// It runs on, up to its time limit or the sandbox's end.
    #[default]
    Keep,
    /// It is killed with everything that it started.
    Kill,
}

impl OnDisconnect {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Places in an exec's outputs, in bytes from their beginnings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExecOffsets {
    /// In stdout.
    pub stdout: u64,
    /// In stderr.
    pub stderr: u64,
}

impl ExecOffsets {
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// One of an exec's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputStream {
    /// Standard output; all output where there is a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What there is to tell of an exec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecInfo {
    /// Its id.
    pub id: String,
    /// What it runs, as a line for people; shortened.
    pub command: String,
    /// Whom it was asked to run as; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Its working directory.
    pub cwd: String,
    /// When it was started, RFC 3339.
    pub started_at: String,
    /// Pid of its first process inside the sandbox, while that lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How it ended; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ExecStatus>,
    /// Processor time so far of it and all that it started, in microseconds, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_usec: Option<u64>,
    /// Memory now of it and all that it started, in bytes, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes of it that live, also those that a command which is over has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Bytes that it has written.
    pub written: ExecOffsets,
    /// From where on its output is kept.
    pub kept_from: ExecOffsets,
    /// Whether it waits until somebody reads its output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blocked: bool,
    /// How many clients are attached.
    pub attached: u32,
    /// Whether it has a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// Answer to `GET …/execs`: those that run and those that have ended, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecList {
    /// They.
    pub items: Vec<ExecInfo>,
}

/// Query of `GET …/execs/{exec}/output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputQuery {
    /// From where on stdout is sent.
    pub stdout: u64,
    /// From where on stderr is sent.
    pub stderr: u64,
    /// Whether the stream goes on until the command has ended, or ends where its output ends now.
    pub follow: bool,
}

impl Default for OutputQuery {
    fn default() -> Self {
        Self { stdout: 0, stderr: 0, follow: true }
    }
}

/// Query of `GET …/execs/{exec}/attach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AttachQuery {
    /// From where on stdout is sent.
    pub stdout: u64,
    /// From where on stderr is sent.
    pub stderr: u64,
    /// Whether this client gives it its input from now on.
    pub stdin: bool,
}

/// Query of `POST …/execs/{exec}/stdin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StdinQuery {
    /// Where in its input the body begins; where it is now when absent. What it has already is skipped.
    pub offset: Option<u64>,
    /// Whether the input ends with the body.
    pub end: bool,
}

/// Answer to `POST …/execs/{exec}/stdin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StdinReport {
    /// How many bytes of input it has been given in all.
    pub offset: u64,
}

/// Body of `POST …/execs/{exec}/signal`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// Name (`TERM` or `SIGTERM`) or number of the signal.
    pub signal: Signal,
    /// Whether all that it started gets it, or its first process alone (with a terminal: the group in its foreground).
    #[serde(default)]
    pub tree: bool,
}

/// A signal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Signal {
    /// By number.
    Number(i32),
    /// By name, with or without `SIG`.
    Name(String),
}

/// Answer to `POST …/quiesce`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuiesceReport {
    /// How many processes were killed.
    pub killed: u64,
}

/// Something that happened to an exec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ExecEvent {
    /// The command runs.
    Started {
        /// The exec's id.
        id: String,
        /// The program that was started: the shell's path for [`Command::Shell`].
        program: String,
        /// Whether it had been started before this request.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        attached: bool,
        /// How many bytes of input it has been given.
        #[serde(default)]
        stdin_offset: u64,
    },
    /// Output that was asked for is not kept any more.
    Gap {
        /// Of which stream.
        stream: OutputStream,
        /// Where the missing bytes begin.
        from: u64,
        /// Where output goes on.
        to: u64,
    },
    /// What there is was sent and the command runs on; nothing follows. Only where the client did not want to follow.
    Detached,
    /// The command ended; nothing follows.
    Exited(ExecStatus),
}

/// How an exec ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExecStatus {
    /// 0–255 as the program gave it; 128+n after signal n; 127 not found; 126 not executable; 124 at the
    /// timeout.
    pub exit_code: i32,
    /// Why it ended.
    pub reason: ExitReason,
    /// The signal that ended it, for [`ExitReason::Signaled`] and [`ExitReason::OutOfMemory`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// A line for a person where the code alone would leave them guessing, for example which
    /// directory or user was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// From start to end, in milliseconds.
    pub duration_ms: u64,
    /// Processes that the kernel killed for want of memory while it ran: its own where the machine counts memory by
    /// exec (control groups of version 2), else those of the whole sandbox. Absent where nothing counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Limits of the sandbox that were met while it ran. Empty: none that is counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<Limit>,
    /// Whether the machine's disk was full when it failed, so that no sandbox could write, whatever its own limit. The
    /// failure may be the machine's then, not the command's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub machine_disk_full: bool,
    /// The most memory that it and all that it started had at once, in bytes, page cache included. Absent where the
    /// machine does not count memory by exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Processor time of it and all that it started, in microseconds. Absent where the machine does not count it by
    /// exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_usec: Option<u64>,
    /// Whether it ran beside the sandbox's memory limit, with 32 MiB of its own, because the sandbox's memory was
    /// full of what cannot be freed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rescued: bool,
    /// Bytes that it wrote.
    #[serde(default)]
    pub written: ExecOffsets,
    /// How many of them were dropped, since nobody had read them: see [`WhenFull::DropOldest`].
    #[serde(default, skip_serializing_if = "ExecOffsets::is_zero")]
    pub dropped: ExecOffsets,
}

impl ExecStatus {
    /// Adds a limit that was met, once.
    pub fn met(&mut self, limit: Limit) {
        if !self.limits_hit.contains(&limit) {
            self.limits_hit.push(limit);
        }
    }

    /// An end of which no more is known than its code and its reason.
    pub fn new(exit_code: i32, reason: ExitReason) -> Self {
        Self {
            exit_code,
            reason,
            signal: None,
            message: None,
            duration_ms: 0,
            oom_kills: None,
            limits_hit: Vec::new(),
            machine_disk_full: false,
            peak_memory_bytes: None,
            cpu_usec: None,
            rescued: false,
            written: ExecOffsets::default(),
            dropped: ExecOffsets::default(),
        }
    }
}

/// Why an exec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// It returned an exit code.
    Exited,
    /// A signal from inside ended it.
    Signaled,
    /// The kernel killed its own process because the sandbox was out of memory: signal 9, exit code 137. (A command
    /// that only started what was killed ends as it chooses; `oom_kills` tells.)
    OutOfMemory,
    /// It reached `timeout_seconds`.
    TimedOut,
    /// A client asked for its end.
    Killed,
    /// It could not be started: no such program, directory or user. `message` says which.
    NotStarted,
}
