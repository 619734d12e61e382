//! One command in a sandbox: how it is asked for and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::sandbox::Limit;
use crate::unique;

/// Media type of the response to an exec: a run of frames, each one kind byte ([`frame`]), four bytes of
/// big-endian length, and that many bytes. The last frame is always an [`frame::EVENT`] that holds
/// [`ExecEvent::Exited`]; a stream that ends without it means that the command's end is unknown.
pub const EXEC_STREAM_TYPE: &str = "application/vnd.berth.exec-stream.v1";

/// Kinds of frames in an exec stream.
pub mod frame {
    /// Bytes of the command's stdout.
    pub const STDOUT: u8 = 1;
    /// Bytes of the command's stderr.
    pub const STDERR: u8 = 2;
    /// A JSON [`super::ExecEvent`].
    pub const EVENT: u8 = 3;
    /// A JSON [`crate::error::ApiError`]; nothing follows it.
    pub const ERROR: u8 = 4;
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
}

/// Body of `POST /v1/sandboxes/{id}/exec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Name for this exec, chosen by the client (1 to 64 of `[A-Za-z0-9_-]`), by which it can be killed;
    /// made by the daemon when absent. Two execs of one sandbox never share one.
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
    },
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
