//! A command under way.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_types::exec::{
    Command, ExecInfo, ExecOffsets, ExecStatus, ExitReason, KeepOutput, Limit, OnDisconnect, OutputStream,
    TerminalSize, WhenFull,
};
use berth_wire::{Attach, Builtin, Offsets, Output, Reply, Stdin};
use bytes::Bytes;

use super::connection::{Channel, Incoming};
use super::cut::Piece;
use super::{Error, ExecInput};

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecSpec {
    /// Its name, unique in the sandbox for as long as that lives.
    pub id: String,
    /// What the rest of the request is known by: a request with a known id and the same fingerprint is attached to what
    /// runs already, one with another fingerprint is refused with [`super::FailureCode::Conflict`].
    pub fingerprint: Option<String>,
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
    /// Its standard input.
    pub stdin: Stdin,
    /// Gives it a terminal of this size; all output is then stdout.
    pub terminal: Option<TerminalSize>,
    /// What is kept of its output for those who attach later; the protocol's default when absent.
    pub keep: Option<KeepOutput>,
    /// What becomes of it when no [`Exec`] is attached to it any more.
    pub on_detach: OnDisconnect,
    /// From where on its output is wanted.
    pub from: ExecOffsets,
}

impl ExecSpec {
    /// A command as root in `/`, with an empty environment, no input, no limit of time, that is killed when its
    /// [`Exec`] is dropped.
    pub fn new(id: impl Into<String>, command: Command) -> Self {
        Self {
            id: id.into(),
            fingerprint: None,
            command,
            env: BTreeMap::new(),
            cwd: "/".to_owned(),
            user: None,
            timeout: None,
            no_new_privileges: false,
            plain_env: false,
            stdin: Stdin::Null,
            terminal: None,
            keep: None,
            on_detach: OnDisconnect::Kill,
            from: ExecOffsets::default(),
        }
    }

    pub(super) fn takes_input(&self) -> bool {
        self.stdin == Stdin::Stream || self.terminal.is_some()
    }
}

impl From<ExecSpec> for berth_wire::Exec {
    fn from(spec: ExecSpec) -> Self {
        let millis = |limit: Duration| u64::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        Self {
            id: spec.id,
            fingerprint: spec.fingerprint,
            command: match spec.command {
                Command::Argv(argv) => berth_wire::Command::Argv(argv),
                Command::Shell(line) => berth_wire::Command::Shell(line),
                Command::LoginShell => berth_wire::Command::LoginShell,
                Command::Sftp => berth_wire::Command::Builtin(Builtin::Sftp),
            },
            env: spec.env,
            cwd: spec.cwd,
            user: spec.user,
            timeout_ms: spec.timeout.map(|limit| millis(limit).max(1)),
            grace_ms: None,
            no_new_privs: spec.no_new_privileges,
            plain_env: spec.plain_env,
            stdin: spec.stdin,
            terminal: spec.terminal.map(size),
            keep: spec.keep.map(keep).unwrap_or_default(),
            on_detach: match spec.on_detach {
                OnDisconnect::Keep => berth_wire::OnDetach::Keep,
                OnDisconnect::Kill => berth_wire::OnDetach::Kill,
            },
            from: places(spec.from),
        }
    }
}

pub(super) fn size(TerminalSize { rows, cols }: TerminalSize) -> berth_wire::TerminalSize {
    berth_wire::TerminalSize { rows, cols }
}

fn keep(KeepOutput { bytes, when_full }: KeepOutput) -> berth_wire::Keep {
    let when_full = match when_full {
        WhenFull::Wait => berth_wire::WhenFull::Wait,
        WhenFull::DropOldest => berth_wire::WhenFull::DropOldest,
    };
    berth_wire::Keep { bytes, when_full }
}

fn places(ExecOffsets { stdout, stderr }: ExecOffsets) -> Offsets {
    Offsets { stdout, stderr }
}

/// What to be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// [`ExecSpec::id`].
    pub id: String,
    /// From where on output is wanted. What is no longer kept is told by [`ExecOutput::Gap`].
    pub from: ExecOffsets,
    /// Whether this [`Exec`] gives the command its input from now on, in place of the one that did so far.
    pub stdin: bool,
    /// Whether it stays until the command is over; without, it ends with [`ExecOutput::Detached`] once what there is was
    /// delivered.
    pub follow: bool,
}

impl From<AttachSpec> for Attach {
    fn from(AttachSpec { id, from, stdin, follow }: AttachSpec) -> Self {
        Self { id, from: places(from), stdin, follow }
    }
}

/// Something that a command did.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// It runs, or has run; first of all, unless it could not be started.
    Started {
        /// Path of its program.
        program: String,
        /// Whether it was there before it was asked for.
        attached: bool,
        /// How many bytes of standard input it has been given; the first one written to [`Exec::input`] is at this place.
        stdin_offset: u64,
    },
    /// Bytes that it wrote.
    Output {
        /// Which output.
        stream: OutputStream,
        /// Where in that they begin, in bytes.
        offset: u64,
        /// When they were read from the command, in microseconds since the epoch.
        time_us: u64,
        /// They.
        data: Bytes,
    },
    /// Output that was asked for is no longer kept.
    Gap {
        /// Of which.
        stream: OutputStream,
        /// Where the missing bytes begin.
        from: u64,
        /// Where output goes on.
        to: u64,
    },
    /// It ended, and all of its output was delivered; nothing follows.
    Exited(ExecStatus),
    /// It goes on, but no more was asked for than what it had written; nothing follows.
    Detached,
}

impl ExecOutput {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Detached)
    }
}

/// A command to which one is attached. Dropping it before its end detaches; what then becomes of a command that runs is
/// said by [`ExecSpec::on_detach`].
pub struct Exec {
    channel: Channel,
    input: Option<ExecInput>,
    /// What was read to learn how the start went.
    first: Option<Incoming>,
    /// Bytes given to the caller, who is done with them when he asks for more.
    given: usize,
    is_over: bool,
}

impl Exec {
    pub(super) async fn start(mut channel: Channel, takes_input: bool) -> Result<Self, Error> {
        match channel.receive().await {
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(first) => {
                let input = takes_input.then(|| ExecInput::new(channel.sender().clone()));
                Ok(Self { channel, input, first: Some(first), given: 0, is_over: false })
            }
            None => Err(Error::Gone),
        }
    }

    /// What writes to its standard input; `None` when that is not this handle's to give.
    pub fn input(&self) -> Option<ExecInput> {
        self.input.clone()
    }

    /// What happened next; `None` after what [`ExecOutput::is_last`], and after an error. While nobody asks, at most a
    /// window's worth of output is held here.
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
            Some(Incoming::Output(piece)) => Ok(self.give(piece)),
            Some(Incoming::Reply(reply)) => told(reply),
            Some(Incoming::Data(_) | Incoming::End) => Err(Error::Answer { request: "exec" }),
            None => Err(Error::Gone),
        };
        self.is_over = output.as_ref().map_or(true, ExecOutput::is_last);
        Some(output)
    }

    fn give(&mut self, Piece { stream, offset, time_us, data }: Piece) -> ExecOutput {
        self.given = data.len();
        ExecOutput::Output { stream: output(stream), offset, time_us, data }
    }
}

fn told(reply: Reply) -> Result<ExecOutput, Error> {
    match reply {
        Reply::Started { program, attached, stdin_offset } => {
            Ok(ExecOutput::Started { program, attached, stdin_offset })
        }
        Reply::Gap { stream, from, to } => Ok(ExecOutput::Gap { stream: output(stream), from, to }),
        Reply::Exited(exited) => Ok(ExecOutput::Exited(status(exited))),
        Reply::Detached => Ok(ExecOutput::Detached),
        Reply::Failed(failure) => Err(Error::Refused(failure)),
        Reply::Connected | Reply::Done(_) => Err(Error::Answer { request: "exec" }),
    }
}

fn output(stream: Output) -> OutputStream {
    match stream {
        Output::Stdout => OutputStream::Stdout,
        Output::Stderr => OutputStream::Stderr,
    }
}

/// What the guest tells of an exec, in the words of the API.
///
/// # Errors
/// [`Error::Answer`] when its time is none.
pub(super) fn info(info: berth_wire::ExecInfo) -> Result<ExecInfo, Error> {
    let started_at =
        i64::try_from(info.started_at_us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    Ok(ExecInfo {
        id: info.id,
        command: info.command,
        user: info.user,
        cwd: info.cwd,
        started_at: started_at.ok_or(Error::Answer { request: "execs" })?.to_string(),
        pid: info.pid,
        status: info.exited.map(status),
        cpu_usec: info.cpu_usec,
        memory_bytes: info.memory_bytes,
        processes: info.processes,
        written: offsets(info.written),
        kept_from: offsets(info.kept_from),
        blocked: info.blocked,
        attached: info.attached,
        terminal: info.terminal,
    })
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
        written: offsets(exited.written),
        dropped: offsets(exited.dropped),
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

fn offsets(wire: berth_wire::Offsets) -> berth_types::exec::ExecOffsets {
    berth_types::exec::ExecOffsets { stdout: wire.stdout, stderr: wire.stderr }
}
