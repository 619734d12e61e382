//! A command under way.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_types::exec::{Command, ExecStatus, ExitReason, Limit};
use berth_wire::Reply;
use bytes::Bytes;

use super::Error;
use super::connection::{Channel, Incoming};

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecSpec {
    /// Name by which it can be killed; unique among those running in the sandbox.
    pub id: String,
    /// What to run.
    pub command: Command,
    /// The whole environment, but for what the user's account and the default `PATH` add where it is silent.
    pub env: BTreeMap<String, String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when absent.
    pub user: Option<String>,
    /// Limit of wall-clock time; under a millisecond it counts as one.
    pub timeout: Option<Duration>,
    /// Whether set-id bits and file capabilities are without effect.
    pub no_new_privileges: bool,
    /// Whether `USER`, `LOGNAME` and `SHELL` are only set where `env` says so.
    pub plain_env: bool,
}

impl From<ExecSpec> for berth_wire::Exec {
    fn from(spec: ExecSpec) -> Self {
        let millis = |limit: Duration| u64::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        Self {
            id: spec.id,
            command: match spec.command {
                Command::Argv(argv) => berth_wire::Command::Argv(argv),
                Command::Shell(line) => berth_wire::Command::Shell(line),
            },
            env: spec.env,
            cwd: spec.cwd,
            user: spec.user,
            timeout_ms: spec.timeout.map(|limit| millis(limit).max(1)),
            grace_ms: None,
            no_new_privs: spec.no_new_privileges,
            plain_env: spec.plain_env,
            fingerprint: None,
            stdin: berth_wire::Stdin::Null,
            terminal: None,
            keep: berth_wire::Keep::default(),
            on_detach: berth_wire::OnDetach::Kill,
            from: berth_wire::Offsets::default(),
        }
    }
}

/// Something that a command did.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// It runs.
    Started {
        /// Path of its program.
        program: String,
    },
    /// Bytes of its stdout.
    Stdout(Bytes),
    /// Bytes of its stderr.
    Stderr(Bytes),
    /// It ended, and all of its output was delivered; nothing follows.
    Exited(ExecStatus),
}

/// A command under way. Dropping it before its end kills everything that it started.
pub struct Exec {
    channel: Channel,
    /// What was read to learn how the start went.
    first: Option<Incoming>,
    /// Bytes given to the caller, who is done with them when he asks for more.
    given: usize,
    is_over: bool,
}

impl Exec {
    pub(super) async fn start(mut channel: Channel) -> Result<Self, Error> {
        match channel.receive().await {
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(first) => Ok(Self { channel, first: Some(first), given: 0, is_over: false }),
            None => Err(Error::Gone),
        }
    }

    /// What happened next; `None` after [`ExecOutput::Exited`] and after an error. While nobody asks, at most a
    /// window's worth of output is held, and the command waits once its pipes are full.
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<ExecOutput, Error>> {
        if self.is_over {
            return None;
        }
        match std::mem::take(&mut self.given) {
            0 => {}
            given => self.channel.consumed(given),
        }
        let incoming = match self.first.take() {
            Some(first) => Some(first),
            None => self.channel.receive().await,
        };
        let output = match incoming {
            Some(Incoming::Output(chunk)) => Ok(match chunk.stream {
                berth_wire::Output::Stdout => ExecOutput::Stdout(self.give(chunk.data.into())),
                berth_wire::Output::Stderr => ExecOutput::Stderr(self.give(chunk.data.into())),
            }),
            Some(Incoming::Data(_)) => Err(Error::Answer { request: "exec" }),
            Some(Incoming::Reply(Reply::Started { program, .. })) => Ok(ExecOutput::Started { program }),
            Some(Incoming::Reply(Reply::Exited(exited))) => Ok(ExecOutput::Exited(status(exited))),
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(Incoming::Reply(_)) => Err(Error::Answer { request: "exec" }),
            None => Err(Error::Gone),
        };
        self.is_over = matches!(output, Ok(ExecOutput::Exited(_)) | Err(_));
        Some(output)
    }

    fn give(&mut self, data: Bytes) -> Bytes {
        self.given = data.len();
        data
    }
}

fn status(exited: berth_wire::Exited) -> ExecStatus {
    let usage = exited.usage;
    ExecStatus {
        exit_code: exited.code,
        reason: match exited.reason {
            berth_wire::ExitReason::Exited => ExitReason::Exited,
            berth_wire::ExitReason::Signaled => ExitReason::Signaled,
            berth_wire::ExitReason::OutOfMemory => ExitReason::OutOfMemory,
            berth_wire::ExitReason::TimedOut => ExitReason::TimedOut,
            berth_wire::ExitReason::Killed => ExitReason::Killed,
            berth_wire::ExitReason::NotStarted => ExitReason::NotStarted,
        },
        signal: exited.signal,
        message: exited.message,
        duration_ms: exited.duration_ms,
        oom_kills: usage.oom_kills,
        limits_hit: usage.limits_hit.into_iter().map(limit).collect(),
        peak_memory_bytes: usage.peak_memory_bytes,
        cpu_usec: usage.cpu_usec,
        rescued: usage.rescued,
        // Only the machine knows.
        machine_disk_full: false,
    }
}

fn limit(limit: berth_wire::Limit) -> Limit {
    match limit {
        berth_wire::Limit::Memory => Limit::Memory,
        berth_wire::Limit::Pids => Limit::Pids,
        berth_wire::Limit::Disk => Limit::Disk,
    }
}
