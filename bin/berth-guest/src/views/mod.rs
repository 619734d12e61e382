//! What the sandbox is shown of its own limits: files made when they are read, and answers to system calls.
//!
//! ```text
//!   /proc/meminfo ─┐                                       ┌─ memory group of the sandbox
//!   /proc/stat ────┤ FUSE, one connection a file           ├─ the machine's /proc/meminfo, /proc/stat
//!                  ▼                                       ▼
//!              one thread, blocked until somebody asks ──► text or answer
//!                  ▲
//!   sched_getaffinity, sysinfo, statfs ─ seccomp user notification (`notify`)
//! ```
//!
//! A thread of its own, for three reasons. It is started before the filter is installed, so the filter does not concern
//! it: it makes these calls itself. The loop of the guest may open whatever a sandbox put in place of /etc/passwd; a
//! link to /proc/meminfo there makes it wait for this thread, not for itself. And whoever asks a million times takes
//! time from this thread alone, which takes no more than `TIME` in `WINDOW`.
//!
//! It keeps `CAP_SYS_PTRACE` to reach the memory of whoever asks, when that is another user; no other thread of the
//! guest and no command has it.
//!
//! What cannot be answered is left to the kernel, whose answer is the machine's, never invented.

mod fuse;
mod memory;
mod processors;
mod server;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::link::system;
use crate::notify::{self, Calls};
use crate::{Error, Limits};

pub(crate) use memory::{Counts, MemoryGroup, whole};
pub(crate) use processors::lowest;
use server::{Connection, Server};

/// Processor time that answers may take in a [`WINDOW`]; whoever asks for more waits. It is some thousand answers: a
/// build that starts thousands of processes a second stays below it.
const TIME: Duration = Duration::from_millis(20);
const WINDOW: Duration = Duration::from_millis(100);
/// Requests are small, texts are on the heap.
const STACK: usize = 128 * 1024;
/// Tokens of the loop.
const CALLS: u64 = 0;
const MEMINFO: u64 = 1;
const STAT: u64 = 2;

/// What to show. Nothing, and no thread is started.
#[derive(Debug, Default)]
pub struct Options {
    /// FUSE connection of /proc/meminfo.
    pub meminfo: Option<OwnedFd>,
    /// The machine's own /proc/meminfo.
    pub machine_meminfo: Option<OwnedFd>,
    /// FUSE connection of /proc/stat.
    pub stat: Option<OwnedFd>,
    /// The machine's own /proc/stat.
    pub machine_stat: Option<OwnedFd>,
    /// The processors that the sandbox is shown, where that is not all.
    pub processors: Vec<u32>,
    /// Directory of the control group that the limit of memory is of.
    pub memory_group: Option<OwnedFd>,
}

/// A limit of the root file system that does not show by itself.
#[derive(Debug)]
pub(crate) struct Storage {
    /// In bytes.
    pub(crate) limit: u64,
    /// Files that hold how many bytes are taken, all to be added up.
    pub(crate) used: Vec<OwnedFd>,
}

/// What there is to know for the answers.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) processors: Vec<u32>,
    pub(crate) memory: Option<MemoryGroup>,
    pub(crate) storage: Option<Storage>,
}

impl Options {
    /// Takes an argument (`--meminfo-fd=`, `--machine-meminfo-fd=`, `--stat-fd=`, `--machine-stat-fd=`,
    /// `--processors=` with a list such as `0-3,8`, `--memory-group-fd=`); `false` when it is none of these.
    pub(crate) fn take(&mut self, argument: &str) -> Result<bool, Error> {
        let bad = || Error::Argument(argument.to_owned());
        let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
        let file = || value.parse().map_err(|_| bad()).and_then(crate::take).map(Some);
        match name {
            "--meminfo-fd" => self.meminfo = file()?,
            "--machine-meminfo-fd" => self.machine_meminfo = file()?,
            "--stat-fd" => self.stat = file()?,
            "--machine-stat-fd" => self.machine_stat = file()?,
            "--processors" => self.processors = processors::parse_list(value).ok_or_else(bad)?,
            "--memory-group-fd" => self.memory_group = file()?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl Sources {
    fn watches_calls(&self) -> bool {
        !self.processors.is_empty() || self.memory.is_some() || self.storage.is_some()
    }

    /// Of the limits, those that there is something to read for.
    pub(crate) fn new(options: &mut Options, limits: &Limits, v2: bool) -> Result<Self, Error> {
        let memory = options.memory_group.take().zip(limits.memory_bytes);
        let storage = match limits.storage_bytes {
            Some(limit) if !limits.storage_used.is_empty() => {
                let copies = limits.storage_used.iter().map(|file| fcntl_dupfd_cloexec(file, 3));
                let used = copies.collect::<Result<_, _>>();
                Some(Storage { limit, used: used.map_err(|errno| system("copy a descriptor", errno))? })
            }
            _ => None,
        };
        Ok(Self {
            processors: std::mem::take(&mut options.processors),
            memory: memory.map(|(dir, limit)| MemoryGroup { dir, v2, limit }),
            storage,
        })
    }
}

/// Starts showing. Comes back when the thread is made, and this one and whatever it starts are under the filter.
///
/// To be called with `SIGCHLD` blocked, and before anything of the sandbox runs: until then this process may have
/// `CAP_SYS_ADMIN`, which the filter takes; afterwards it has not.
pub(crate) fn start(options: Options, sources: Sources) -> Result<(), Error> {
    inherit_nothing()?;
    let watches = sources.watches_calls();
    if !watches && options.meminfo.is_none() && options.stat.is_none() {
        return Ok(());
    }
    let program = notify::filter(&sources);
    let show = Show::new(options, sources)?;
    // Made before the filter is installed, the thread is not under it, whatever its C library asks on its behalf.
    let (sender, receiver) = sync_channel(1);
    let thread = std::thread::Builder::new().name("berth-views".to_owned()).stack_size(STACK);
    thread
        .spawn(move || run(show, &receiver))
        .map_err(|source| Error::System { operation: "start the thread of the views", source })?;
    let listener = if watches {
        let install = berth_sys::notify::listen(&program);
        Some(install.map_err(|source| Error::System { operation: "watch system calls", source })?)
    } else {
        None
    };
    give_up(CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE)?;
    let gone = |_| Error::System { operation: "reach the thread of the views", source: Errno::PIPE.into() };
    sender.send(listener).map_err(gone)
}

/// Commands get from the bounding set what they may have; what this process was to have beyond that came another way.
fn inherit_nothing() -> Result<(), Error> {
    change_capabilities(|sets| sets.inheritable = CapabilitySet::empty())
}

/// Of this thread, and unless commands may have it: then it is no more than they get.
fn give_up(given: CapabilitySet) -> Result<(), Error> {
    let own =
        given.iter().filter(|one| !rustix::thread::capability_is_in_bounding_set(*one).unwrap_or(false));
    let own: CapabilitySet = own.collect();
    change_capabilities(|sets| {
        sets.effective.remove(own);
        sets.permitted.remove(own);
    })
}

fn change_capabilities(change: impl FnOnce(&mut CapabilitySets)) -> Result<(), Error> {
    let failed = |errno| system("give up capabilities", errno);
    let mut sets = rustix::thread::capabilities(None).map_err(failed)?;
    let before = (sets.effective, sets.permitted, sets.inheritable);
    change(&mut sets);
    if before == (sets.effective, sets.permitted, sets.inheritable) {
        return Ok(());
    }
    rustix::thread::set_capabilities(None, sets).map_err(failed)
}

/// The thread. Its end ends the connections and the listener: whoever asks then gets the kernel's errors, and does not
/// wait for ever.
fn run(mut show: Show, listener: &Receiver<Option<OwnedFd>>) {
    if give_up(CapabilitySet::SYS_ADMIN).is_err() {
        return;
    }
    let Ok(listener) = listener.recv() else { return };
    show.listener = listener;
    let _ = show.run();
}

struct Show {
    epoll: OwnedFd,
    listener: Option<OwnedFd>,
    meminfo: Option<Server>,
    stat: Option<Server>,
    machine_meminfo: Option<OwnedFd>,
    machine_stat: Option<OwnedFd>,
    calls: Calls,
    budget: Budget,
}

impl Show {
    fn new(options: Options, sources: Sources) -> Result<Self, Error> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(|errno| system("make an epoll", errno))?;
        let owner = owner();
        let server = |connection: Option<OwnedFd>| {
            let Some(connection) = connection else { return Ok::<_, Error>(None) };
            let nonblocking =
                fcntl_getfl(&connection).and_then(|flags| fcntl_setfl(&connection, flags | OFlags::NONBLOCK));
            nonblocking.map_err(|errno| system("make a connection non-blocking", errno))?;
            Ok(Some(Server::new(connection, owner)))
        };
        Ok(Self {
            epoll,
            listener: None,
            meminfo: server(options.meminfo)?,
            stat: server(options.stat)?,
            machine_meminfo: options.machine_meminfo,
            machine_stat: options.machine_stat,
            calls: Calls::new(sources)?,
            budget: Budget::new(),
        })
    }

    fn run(&mut self) -> Result<(), Errno> {
        let connections = [(self.meminfo.as_ref(), MEMINFO), (self.stat.as_ref(), STAT)];
        for (server, token) in connections {
            server.map_or(Ok(()), |server| watch(&self.epoll, server.fd(), token))?;
        }
        self.listener.as_ref().map_or(Ok(()), |listener| watch(&self.epoll, listener.as_fd(), CALLS))?;
        let mut events = Vec::with_capacity(4);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            for event in &events {
                // The fields are packed.
                let (data, flags) = (event.data, event.flags);
                self.handle(data.u64(), flags);
            }
        }
    }

    /// One request of each, so that none waits for all of another's.
    fn handle(&mut self, token: u64, flags: EventFlags) {
        self.budget.take();
        match token {
            CALLS => self.answer(flags),
            MEMINFO => {
                let Some(server) = &mut self.meminfo else { return };
                let made = || Ok(self.calls.memory(self.machine_meminfo.as_ref())?.meminfo().into_bytes());
                if server.serve(made) == Connection::Over {
                    self.meminfo = None;
                }
            }
            _ => {
                let Some(server) = &mut self.stat else { return };
                let made = || {
                    let machine = whole(self.machine_stat.as_ref().ok_or(Errno::NOENT)?)?;
                    Ok(processors::stat(&machine, self.calls.processors()).into_bytes())
                };
                if server.serve(made) == Connection::Over {
                    self.stat = None;
                }
            }
        }
    }

    fn answer(&mut self, flags: EventFlags) {
        let Some(listener) = &self.listener else { return };
        if flags.contains(EventFlags::IN) {
            self.calls.answer(listener.as_fd(), self.machine_meminfo.as_ref());
        } else {
            // Nobody is left who could ask.
            self.listener = None;
        }
    }
}

/// Who root of the sandbox is outside, which is how a file system mounted from there numbers users.
fn owner() -> (u32, u32) {
    let first = |path: &str| -> Option<u32> {
        let text = std::fs::read_to_string(path).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    // Without a /proc there is no file to own.
    (first("/proc/self/uid_map").unwrap_or(0), first("/proc/self/gid_map").unwrap_or(0))
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, token: u64) -> Result<(), Errno> {
    epoll::add(epoll, fd, EventData::new_u64(token), EventFlags::IN)
}

/// A directory of the kernel's, to open what is below.
pub(crate) fn directory(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Keeps the processor time that a sandbox can have this thread spend for it within bounds: the thread is outside its
/// limit.
struct Budget {
    since: Instant,
    /// Of this thread, when the window began.
    spent_before: Duration,
}

impl Budget {
    fn new() -> Self {
        Self { since: Instant::now(), spent_before: own_time() }
    }

    /// Waits for the next window when this one's time is spent.
    fn take(&mut self) {
        let elapsed = self.since.elapsed();
        if elapsed < WINDOW && own_time().saturating_sub(self.spent_before) < TIME {
            return;
        }
        std::thread::sleep(WINDOW.saturating_sub(elapsed));
        *self = Self::new();
    }
}

/// Processor time of this thread.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_taken_or_left() {
        let mut options = Options::default();
        assert!(options.take("--processors=0-1,4").unwrap());
        assert!(!options.take("--cgroup-v2").unwrap());
        for bad in ["--processors=x", "--processors", "--stat-fd=1000000", "--stat-fd=x"] {
            assert!(options.take(bad).is_err(), "{bad}");
        }
        assert_eq!(options.processors, [0, 1, 4]);
    }

    #[test]
    fn a_limit_that_nothing_can_be_read_of_is_not_answered() {
        let limits = Limits { memory_bytes: Some(1), storage_bytes: Some(1), ..Limits::default() };
        let sources = Sources::new(&mut Options::default(), &limits, true).unwrap();
        assert!(!sources.watches_calls());
    }

    #[test]
    fn a_window_has_so_much_time_and_no_more() {
        let mut budget = Budget::new();
        let began = budget.since;
        let before = own_time();
        while own_time() - before < TIME {}
        budget.take();
        assert!(began.elapsed() >= WINDOW);
        assert!(own_time().saturating_sub(budget.spent_before) < TIME);
    }
}
