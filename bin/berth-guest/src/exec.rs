//! One running command: its process, its pipes, its time limit, its end.
//!
//! ```text
//!  Exec::start ──► process ends by itself ─────────────────────► drain ──► Exited
//!       │                                                          ▲
//!       └──► killed: TERM ── grace ──► KILL … until none is left ──┘
//! ```
//!
//! The end waits for output, not for everybody who could still write some: what was in the pipes when the process
//! ended is kept whatever room there is; what a process left behind writes later is waited for [`DRAIN`] long.
//!
//! What is kept of its output, and who reads it, is [`crate::execs::Entry`]'s.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_sys::spawn::{Progress, SpawnSpec, Spawned};
use berth_wire::{ExecUsage, ExitReason, Exited, Failure, FailureCode, Offsets, Stdin, TerminalSize};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, Signal, WaitStatus, kill_process};

use crate::accounts::Accounts;
use crate::failure;
use crate::input::Input;
use crate::launch::{self, Launch, NotStarted};
use crate::surroundings::Surroundings;
use crate::tree::{Tree, Trees};
use crate::tty::{self, Terminal, Terminals};

/// How long output of processes that outlive the command is waited for.
const DRAIN: Duration = Duration::from_millis(100);
/// How often a tree that is being killed is looked at.
const RECHECK: Duration = Duration::from_millis(5);
/// More than a terminal holds of what was written to it and not yet read, in bytes.
const TERMINAL_HOLDS: u64 = 64 * 1024;
/// Length of the pipes of commands that write much, in bytes.
const LONG_PIPE: usize = 512 * 1024;

/// What a person is told of a command that the kernel killed.
const OUT_OF_MEMORY: &str = "killed by the kernel: the sandbox was out of memory";
/// Exit code at the time limit, as timeout(1) has it.
const TIMED_OUT: i32 = 124;

pub(crate) struct Exec {
    pub(crate) request: berth_wire::Exec,
    pub(crate) spawned: Spawned,
    /// Standard output and standard error.
    pub(crate) pipes: [Pipe; 2],
    /// Channels of [`berth_wire::Request::Kill`]s to be answered when the tree is dead.
    pub(crate) kill_waiters: Vec<u32>,
    pub(crate) progress: Progress,
    tree: Tree,
    v2: bool,
    programs: Vec<CString>,
    began: Instant,
    status: Option<WaitStatus>,
    killing: Option<Killing>,
    /// When the process had ended and, where the tree was to be killed, the tree.
    ended: Option<Instant>,
}

/// The reading end of one of the command's outputs.
pub(crate) struct Pipe {
    /// Absent once everybody has closed the other end.
    pub(crate) fd: Option<OwnedFd>,
    /// Whether the loop is told when there is something to read.
    pub(crate) armed: bool,
    /// Bytes that were in the pipe when the process ended and are still to be delivered. A terminal does not tell how
    /// many it holds: at most so many, then, until there are none.
    owed: u64,
}

struct Killing {
    reason: ExitReason,
    kill_at: Instant,
    next: Instant,
}

/// What became of a request for an exec.
pub(crate) enum Begin {
    Running(Box<Exec>, Input),
    /// It could not be started, by its own fault.
    Over(Exited),
    Failed(Failure),
}

/// How an exec ended.
pub(crate) enum Verdict {
    Exited(Exited),
    /// It did not come to run, and not by its own fault.
    Failed(Failure),
}

impl Exec {
    /// Starts what `request` asks for.
    pub(crate) fn start(request: berth_wire::Exec, trees: &mut Trees, means: &Means) -> Begin {
        let began = Instant::now();
        let launch = match launch::plan(&request) {
            Ok(launch) => launch,
            Err(cause) => return Begin::Over(not_started(cause, began)),
        };
        match spawn(launch, &request, trees, means) {
            Ok(Parts { spawned, pipes, input, tree, programs }) => {
                let exec = Self {
                    request,
                    spawned,
                    pipes,
                    kill_waiters: Vec::new(),
                    progress: Progress::Pending,
                    tree,
                    v2: trees.is_v2(),
                    programs,
                    began,
                    status: None,
                    killing: None,
                    ended: None,
                };
                Begin::Running(Box::new(exec), input)
            }
            Err(failure) => Begin::Failed(failure),
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.spawned.pid
    }

    /// Whether the process has not been reaped, so that the exec can still be killed.
    pub(crate) fn is_running(&self) -> bool {
        self.status.is_none()
    }

    /// Looks at how far the start has come; gives the program's path once, when it runs.
    pub(crate) fn poll_start(&mut self) -> Option<String> {
        if self.progress != Progress::Pending {
            return None;
        }
        self.progress = self.spawned.poll().unwrap_or(Progress::Pending);
        match self.progress {
            Progress::Running { program } => Some(self.program(program)),
            Progress::Pending | Progress::Failed { .. } => None,
        }
    }

    fn program(&self, index: usize) -> String {
        self.programs.get(index).map_or_else(String::new, |path| path.to_string_lossy().into_owned())
    }

    /// Whether a kill has, or would have, something to do: not when only output is still waited for.
    pub(crate) fn is_alive(&self) -> bool {
        self.ended.is_none() && (self.is_running() || self.killing.is_some())
    }

    /// Books the end of the process.
    pub(crate) fn reaped(&mut self, status: WaitStatus) {
        self.status = Some(status);
    }

    /// Begins to kill the tree, unless the process has ended. What has begun can only be hurried.
    pub(crate) fn kill(&mut self, reason: ExitReason, grace: Option<u64>) {
        let grace = Duration::from_millis(grace.unwrap_or(berth_wire::DEFAULT_GRACE_MS));
        let now = Instant::now();
        let kill_at = now.checked_add(grace).unwrap_or(now);
        if let Some(killing) = &mut self.killing {
            killing.kill_at = killing.kill_at.min(kill_at);
            return;
        }
        if !self.is_running() {
            return;
        }
        self.tree.terminate();
        // The process may not have entered its cgroup yet.
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = kill_process(self.pid(), Signal::CONT);
        self.killing = Some(Killing { reason, kill_at, next: now + RECHECK });
    }

    /// Kills without grace; for the end of the guest.
    pub(crate) fn kill_now(&self) {
        if self.is_running() {
            let _ = kill_process(self.pid(), Signal::KILL);
        }
        self.tree.kill(self.v2);
    }

    /// Does what is due. True when the tree that was to be killed has just died.
    pub(crate) fn advance(&mut self, now: Instant) -> bool {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.kill(ExitReason::TimedOut, self.request.grace_ms);
        }
        if self.ended.is_some() || !self.press(now) {
            return false;
        }
        self.ended = Some(now);
        let is_terminal = self.request.terminal.is_some();
        for pipe in &mut self.pipes {
            let held =
                |fd| if is_terminal { TERMINAL_HOLDS } else { rustix::io::ioctl_fionread(fd).unwrap_or(0) };
            pipe.owed = pipe.fd.as_ref().map_or(0, held);
        }
        self.killing.is_some()
    }

    /// Presses on with a killing; true when the process has ended, and with it all that had to.
    fn press(&mut self, now: Instant) -> bool {
        let Some(killing) = &mut self.killing else { return self.status.is_some() };
        if now < killing.next && self.status.is_none() {
            return false;
        }
        killing.next = now + RECHECK;
        if self.status.is_some() && self.tree.is_empty() {
            return true;
        }
        if now >= killing.kill_at {
            self.kill_now();
        }
        false
    }

    fn deadline(&self) -> Option<Instant> {
        if self.status.is_some() || self.killing.is_some() {
            return None;
        }
        self.began.checked_add(Duration::from_millis(self.request.timeout_ms?))
    }

    /// When [`Exec::advance`] or [`Exec::is_over`] may have news without anything else happening.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        match (self.ended, &self.killing) {
            (Some(ended), _) => (!self.is_paid()).then(|| ended + DRAIN).filter(|_| self.owes_nothing()),
            (None, Some(killing)) => Some(killing.next),
            (None, None) => self.deadline(),
        }
    }

    fn is_paid(&self) -> bool {
        self.pipes.iter().all(|pipe| pipe.fd.is_none())
    }

    fn owes_nothing(&self) -> bool {
        let is_terminal = self.request.terminal.is_some();
        self.pipes.iter().all(|pipe| pipe.owed == 0 || (is_terminal && !pipe.has_news()))
    }

    /// Whether nothing more is to be waited for.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let Some(ended) = self.ended else { return false };
        let started = self.progress != Progress::Pending;
        let drained = self.is_paid() || (now >= ended + DRAIN && self.owes_nothing());
        started && drained
    }

    /// How many bytes of pipe `which` are to be taken even if there is no room for them: those that were in it at the
    /// end.
    pub(crate) fn owed(&self, which: usize) -> usize {
        usize::try_from(self.pipes[which].owed).unwrap_or(usize::MAX)
    }

    /// Whether nothing is watched of a pipe, since there was no room.
    pub(crate) fn is_held_up(&self) -> bool {
        self.pipes.iter().any(|pipe| pipe.fd.is_some() && !pipe.armed)
    }

    /// Makes pipe `which` long, of a command that writes much. Best effort.
    pub(crate) fn widen(&mut self, which: usize) {
        if self.request.terminal.is_none()
            && let Some(fd) = &self.pipes[which].fd
        {
            let _ = fcntl_setpipe_size(fd, LONG_PIPE);
        }
    }

    /// Sends a signal to the first process, or to everything; false when there is none.
    pub(crate) fn signal(&self, signal: i32, tree: bool) -> bool {
        if !self.is_running() {
            return false;
        }
        let first = self.pid().as_raw_nonzero().get();
        if tree {
            let members = self.tree.members();
            for pid in &members {
                let _ = berth_sys::signal::send(pid.as_raw_nonzero().get(), signal);
            }
            // It may not have entered its cgroup yet.
            if members.contains(&self.pid()) {
                return true;
            }
        }
        let group = self.terminal().filter(|_| !tree).and_then(tty::foreground);
        let to = group.map_or(first, |group| -group.as_raw_nonzero().get());
        let _ = berth_sys::signal::send(to, signal);
        true
    }

    /// Tells the terminal its size; false when there is none, or nobody at it.
    pub(crate) fn resize(&self, size: TerminalSize) -> failure::Result<bool> {
        let Some(terminal) = self.terminal().filter(|_| self.is_running()) else { return Ok(false) };
        tty::resize(terminal, size).map_err(|errno| spawn_failure("set the size of a terminal", errno))?;
        Ok(true)
    }

    fn terminal(&self) -> Option<&OwnedFd> {
        self.pipes[0].fd.as_ref().filter(|_| self.request.terminal.is_some())
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Books `len` bytes as read from pipe `which`.
    pub(crate) fn delivered(&mut self, which: usize, len: usize) {
        let owed = &mut self.pipes[which].owed;
        *owed = owed.saturating_sub(len as u64);
    }

    /// Books pipe `which` as closed by everybody.
    pub(crate) fn closed(&mut self, which: usize) {
        self.pipes[which] = Pipe::none();
    }

    /// How it ended, the tree, and the pipes that somebody still writes to.
    pub(crate) fn conclude(self, written: [u64; 2], dropped: [u64; 2]) -> (Verdict, Tree, Vec<OwnedFd>) {
        let verdict = self.verdict(written, dropped);
        let pipes = self.pipes.into_iter().filter_map(|pipe| pipe.fd).collect();
        (verdict, self.tree, pipes)
    }

    fn verdict(&self, written: [u64; 2], dropped: [u64; 2]) -> Verdict {
        if let (Progress::Failed { step, errno, program }, None) = (self.progress, &self.killing) {
            let program = self.program(program);
            return match launch::explain(&self.request, &program, step, errno) {
                Some(cause) => Verdict::Exited(not_started(cause, self.began)),
                None => {
                    Verdict::Failed(spawn_failure("prepare the process", Errno::from_raw_os_error(errno)))
                }
            };
        }
        let usage = self.tree.accounts().map(Accounts::usage).unwrap_or_default();
        let signal = self.status.and_then(WaitStatus::terminating_signal);
        let code = self.status.and_then(WaitStatus::exit_status).or(signal.map(|signal| 128 + signal));
        let Some(code) = code else {
            return Verdict::Failed(spawn_failure("learn how the process ended", Errno::CHILD));
        };
        let (code, reason, message) = match self.killing.as_ref().map(|killing| killing.reason) {
            Some(ExitReason::TimedOut) => (TIMED_OUT, ExitReason::TimedOut, self.limit_message()),
            Some(reason) => (code, reason, None),
            None if self.ran_out_of_memory(signal, &usage) => {
                (code, ExitReason::OutOfMemory, Some(OUT_OF_MEMORY.to_owned()))
            }
            None if signal.is_some() => (code, ExitReason::Signaled, None),
            None => (code, ExitReason::Exited, None),
        };
        let offsets = |[stdout, stderr]: [u64; 2]| Offsets { stdout, stderr };
        Verdict::Exited(Exited {
            code,
            reason,
            signal,
            message,
            duration_ms: millis_since(self.began),
            usage,
            written: offsets(written),
            dropped: offsets(dropped),
        })
    }

    fn ran_out_of_memory(&self, signal: Option<i32>, usage: &ExecUsage) -> bool {
        signal == Some(Signal::KILL.as_raw())
            && self.tree.accounts().is_some_and(|accounts| accounts.claim_kill(usage))
    }

    fn limit_message(&self) -> Option<String> {
        let limit = Duration::from_millis(self.request.timeout_ms?);
        Some(format!("killed at its time limit of {} s, with everything it had started", limit.as_secs_f64()))
    }
}

fn millis_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn not_started(cause: NotStarted, began: Instant) -> Exited {
    Exited {
        code: cause.code,
        reason: ExitReason::NotStarted,
        signal: None,
        message: Some(cause.message),
        duration_ms: millis_since(began),
        usage: ExecUsage::default(),
        written: Offsets::default(),
        dropped: Offsets::default(),
    }
}

fn spawn_failure(operation: &str, errno: Errno) -> Failure {
    Failure { path: None, ..failure::at(operation, b"", errno) }
}

struct Parts {
    spawned: Spawned,
    pipes: [Pipe; 2],
    input: Input,
    tree: Tree,
    programs: Vec<CString>,
}

/// What every command is started with.
pub(crate) struct Means {
    /// An empty standard input.
    pub(crate) null: OwnedFd,
    pub(crate) surroundings: Surroundings,
}

/// The guest's ends of a command's standard streams, and the command's own.
struct Streams {
    pipes: [Pipe; 2],
    input: Input,
    /// The command's; the empty input is not among them.
    theirs: [Option<OwnedFd>; 3],
}

impl Streams {
    fn open(request: &berth_wire::Exec, uid: u32, terminals: &Terminals) -> failure::Result<Self> {
        let broken = |errno| spawn_failure("make a pipe", errno);
        if let Some(size) = request.terminal {
            let Terminal { master, slave } = terminals.open(size, uid)?;
            let input = fcntl_dupfd_cloexec(&master, 3).map_err(broken)?;
            let pipes = [Pipe::new(master), Pipe::none()];
            return Ok(Self { pipes, input: Input::terminal(input), theirs: [Some(slave), None, None] });
        }
        let (stdout, child_stdout) = pipe().map_err(broken)?;
        let (stderr, child_stderr) = pipe().map_err(broken)?;
        let (input, child_stdin) = match request.stdin {
            Stdin::Null => (Input::default(), None),
            Stdin::Stream => {
                let (read, write) = input_pipe().map_err(broken)?;
                (Input::pipe(write), Some(read))
            }
        };
        let theirs = [child_stdin, Some(child_stdout), Some(child_stderr)];
        Ok(Self { pipes: [stdout, stderr].map(Pipe::new), input, theirs })
    }

    /// With a terminal all three are that.
    fn stdio<'a>(&'a self, null: &'a OwnedFd) -> [BorrowedFd<'a>; 3] {
        let [stdin, stdout, stderr] = &self.theirs;
        let stdin = stdin.as_ref().unwrap_or(null);
        [stdin, stdout.as_ref().unwrap_or(stdin), stderr.as_ref().unwrap_or(stdin)].map(AsFd::as_fd)
    }
}

fn spawn(
    launch: Launch,
    request: &berth_wire::Exec,
    trees: &mut Trees,
    means: &Means,
) -> failure::Result<Parts> {
    let streams = Streams::open(request, launch.user.ids.uid, means.surroundings.terminals)?;
    let mut tree = trees.make().map_err(|errno| spawn_failure("make a cgroup", errno))?;
    let spawned = berth_sys::spawn::spawn(&SpawnSpec {
        programs: &launch.programs,
        image: means.surroundings.image.filter(|_| launch.builtin).map(AsFd::as_fd),
        argv: &launch.argv,
        env: &launch.env,
        cwd: &launch.cwd,
        ids: &launch.user.ids,
        stdio: streams.stdio(&means.null),
        controlling_terminal: request.terminal.is_some(),
        cgroups: &tree.doors(),
        oom_score_adj: means.surroundings.oom_score_adj,
        open_files: means.surroundings.open_files,
        no_new_privs: request.no_new_privs,
        capabilities: means.surroundings.capabilities,
    });
    match spawned {
        Ok(spawned) => {
            tree.led_by(spawned.pid);
            let Streams { pipes, input, .. } = streams;
            Ok(Parts { spawned, pipes, input, tree, programs: launch.programs })
        }
        Err(error) => {
            trees.give_back(tree, None);
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Err(Failure { code: FailureCode::Limit, ..spawn_failure("fork", errno) })
        }
    }
}

impl Pipe {
    fn new(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), armed: false, owed: 0 }
    }

    /// Whether reading it would give something, if only its end.
    fn has_news(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(fd) = &self.fd else { return false };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&at_once)).is_ok_and(|count| count > 0)
    }

    fn none() -> Self {
        Self { fd: None, armed: false, owed: 0 }
    }
}

/// A pipe whose reading end does not block, with numbers that do not collide with the standard ones.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&read, OFlags::NONBLOCK)?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// A pipe whose writing end does not block, likewise.
fn input_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&write, OFlags::NONBLOCK)?;
    Ok((above_stdio(read)?, above_stdio(write)?))
}

/// Moves a descriptor out of the way of the standard ones.
pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fcntl_dupfd_cloexec(&fd, 3) }
}
