//! A container's first process, seen from the daemon.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// How long a dropped process is waited for.
const DROP_PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The first process of a container, a child of this process. With it dies all that runs in the container.
///
/// Dropping it kills it, so a creation that is given up half-way leaves nothing.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    stubs: Vec<PathBuf>,
    reaped: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Process {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd, stubs: Vec::new(), reaped: None }
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
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits until it has ended; blocks the thread. `ECHILD` when somebody else has reaped it.
    pub fn wait(&mut self) -> io::Result<Exit> {
        loop {
            if let Some(exit) = self.reap(WaitIdOptions::EXITED)? {
                return Ok(exit);
            }
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
        if self.reaped.is_some() {
            return;
        }
        let ended = self.kill().and_then(|()| {
            // Not without end: a process of the container can hang in a driver, and PID 1 waits for all of them.
            poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&DROP_PATIENCE))?;
            self.try_wait()
        });
        match ended {
            Ok(Some(_)) => {}
            Ok(None) => tracing::warn!(pid = self.pid, "a killed sandbox has not ended yet"),
            Err(error) => tracing::warn!(pid = self.pid, %error, "cannot end a sandbox"),
        }
    }
}
