//! A container's first process, seen from the daemon.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Cgroup};

/// How long a dropped process is waited for.
const DROP_PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Where the kernel tells one boot of the machine from the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The first process of a container. With it dies all that runs in the container.
///
/// It is a child of this process, or was one of another that is gone ([`Process::adopt`]). It does not end with the one
/// that started it: nothing of it depends on that but the stream of its guest, which says itself what it does when that
/// ends. Dropping it kills it, so a creation that is given up half-way leaves nothing.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    stubs: Vec<PathBuf>,
    reaped: Option<Exit>,
    /// Whether this process is its parent, and will be told how it ended.
    is_child: bool,
    /// Whether it is to live on when this is dropped.
    is_left: bool,
}

/// Which process it is, beyond the time in which its pid is its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The boot of the machine that it runs in, as the kernel names it.
    pub boot: String,
    /// Its pid in the daemon's namespace.
    pub pid: i32,
    /// When it was started, in clock ticks since the boot. proc_pid_stat(5), field 22.
    pub started: u64,
}

/// Why a process could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The machine was started anew since.
    #[error("the machine was started anew since the sandbox was")]
    OtherBoot,
    /// It has ended.
    #[error("the sandbox's first process, {pid}, has ended")]
    Ended {
        /// Its pid.
        pid: i32,
    },
    /// Its pid is another process's now.
    #[error("process {pid} is another one than the sandbox's first")]
    OtherProcess {
        /// The pid.
        pid: i32,
    },
    /// It is in none of the sandbox's control groups.
    #[error("process {pid} is in none of the sandbox's control groups")]
    OutsideGroup {
        /// Its pid.
        pid: i32,
    },
    /// The control groups cannot be read.
    #[error("cannot look at the sandbox's control groups")]
    Cgroup(#[source] cgroup::Error),
    /// The kernel does not tell.
    #[error("cannot look at the sandbox's first process, {pid}")]
    Look {
        /// Its pid.
        pid: i32,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Only its parent is told, and that is gone.
    Unknown,
}

impl Process {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, stubs: Vec::new(), reaped: None, is_child: true, is_left: false }
    }

    /// Takes over a process that another daemon, gone by now, has started, if it is still the same: that is looked at
    /// before and after it is opened, so that no process is taken that has its pid after it.
    ///
    /// # Errors
    ///
    /// [`AdoptError`]; the process, whichever it is, is left as it is.
    pub fn adopt(identity: &Identity, cgroup: &Cgroup, stubs: Vec<PathBuf>) -> Result<Self, AdoptError> {
        let pid = identity.pid;
        let look = |source: io::Error| AdoptError::Look { pid, source };
        if boot().map_err(look)? != identity.boot {
            return Err(AdoptError::OtherBoot);
        }
        let ended = AdoptError::Ended { pid };
        let Some(number) = Pid::from_raw(pid) else { return Err(ended) };
        check(identity, cgroup)?;
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Err(ended),
            opened => opened.map_err(|error| look(error.into()))?,
        };
        check(identity, cgroup)?;
        Ok(Self { pid, pidfd, stubs, reaped: None, is_child: false, is_left: false })
    }

    /// By what another daemon finds it again.
    ///
    /// # Errors
    ///
    /// What the kernel says where its files about processes cannot be read; `ESRCH` where it has ended and is not ours.
    pub fn identity(&self) -> io::Result<Identity> {
        let started = stat(self.pid)?.ok_or(Errno::SRCH)?.started;
        Ok(Identity { boot: boot()?, pid: self.pid, started })
    }

    /// Lets go of it, and it lives on.
    pub fn leave(mut self) {
        self.is_left = true;
    }

    pub(crate) fn with_stubs(self, stubs: Vec<PathBuf>) -> Self {
        let mut process = self;
        process.stubs = stubs;
        process
    }

    /// Its pid in the daemon's namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A descriptor of it: readable when it has ended.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Mount points that had to be made in the upper directory because the image lacks them; relative to the root,
    /// parents first. A layer made of that directory should not contain those that are still empty.
    pub fn stubs(&self) -> &[PathBuf] {
        &self.stubs
    }

    /// Kills it. All right when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        if !self.is_child {
            return Ok(self.has_ended(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?.then_some(Exit::Unknown));
        }
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits until it has ended; blocks the thread. `ECHILD` when somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<Exit> {
        loop {
            let ended = if self.is_child {
                self.reap(WaitIdOptions::EXITED)?
            } else {
                self.has_ended(None)?.then_some(Exit::Unknown)
            };
            if let Some(exit) = ended {
                return Ok(exit);
            }
        }
    }

    fn has_ended(&self, patience: Option<&Timespec>) -> io::Result<bool> {
        match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], patience) {
            Err(Errno::INTR) => Ok(false),
            answer => Ok(answer? > 0),
        }
    }

    fn reap(&mut self, options: WaitIdOptions) -> io::Result<Option<Exit>> {
        if self.reaped.is_some() {
            return Ok(self.reaped);
        }
        let status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Err(Errno::INTR) => return Ok(None),
            answer => answer?,
        };
        self.reaped = status.and_then(|status| {
            let code = status.exit_status().map(Exit::Code);
            code.or_else(|| status.terminating_signal().map(Exit::Signal))
        });
        Ok(self.reaped)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.reaped.is_some() || self.is_left {
            return;
        }
        let ended = self.kill().and_then(|()| {
            // Not without end: a process of the container can hang in a driver, and PID 1 waits for all of them.
            self.has_ended(Some(&DROP_PATIENCE))?;
            self.try_wait()
        });
        match ended {
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!(pid = self.pid, "a killed sandbox has not ended yet"),
            Err(error) => tracing::warn!(pid = self.pid, %error, "cannot end a sandbox"),
        }
    }
}

/// What the kernel tells of a process.
struct Stat {
    is_dead: bool,
    started: u64,
}

fn check(identity: &Identity, cgroup: &Cgroup) -> Result<(), AdoptError> {
    let pid = identity.pid;
    match stat(pid).map_err(|source| AdoptError::Look { pid, source })? {
        None => return Err(AdoptError::Ended { pid }),
        Some(stat) if stat.started != identity.started => return Err(AdoptError::OtherProcess { pid }),
        // One of the dead whom nobody has reaped.
        Some(stat) if stat.is_dead => return Err(AdoptError::Ended { pid }),
        Some(_) => {}
    }
    match cgroup.holds_guest(pid).map_err(AdoptError::Cgroup)? {
        true => Ok(()),
        false => Err(AdoptError::OutsideGroup { pid }),
    }
}

fn boot() -> io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// None for a pid that nobody has.
fn stat(pid: i32) -> io::Result<Option<Stat>> {
    match std::fs::read(Path::new("/proc").join(pid.to_string()).join("stat")) {
        // `ESRCH` between opening and reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
        Ok(text) => parse_stat(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
    }
}

/// The name, in parentheses, may hold anything, parentheses too; after the last one there are only letters and numbers.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let name_ends = text.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&text[name_ends + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    // The state is field 3, the start field 22.
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { is_dead: matches!(state, "Z" | "X" | "x"), started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_found_whatever_a_process_calls_itself() {
        let line = |name: &str, state: &str| {
            let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
            format!("77 ({name}) {state} {}\n", fields.join(" "))
        };
        for name in ["sh", "a) S 1 (b", ")", " 9 9"] {
            let stat = parse_stat(line(name, "S").as_bytes()).unwrap();
            assert_eq!((stat.is_dead, stat.started), (false, 22), "{name}");
        }
        assert!(parse_stat(line("x", "Z").as_bytes()).unwrap().is_dead);
        assert!(parse_stat(b"77 (sh) S 1 2 3").is_none());
        assert!(parse_stat(b"77").is_none());
    }

    #[test]
    fn the_own_process_is_found_and_a_pid_of_nobody_is_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!stat(own).unwrap().unwrap().is_dead);
        assert!(stat(0).unwrap().is_none());
    }
}
