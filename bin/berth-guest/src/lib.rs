//! What runs as the first process of a sandbox: it starts commands, carries files in and out, and reaps.
//!
//! It is told what to do over one stream (`berth_wire`), inherited as a descriptor, and needs nothing of the image it
//! runs in: no shell, no tar, no C library. When the stream ends it ends, and as PID 1 takes every process of the
//! sandbox along.
//!
//! ```text
//!            control stream          pipes of execs        SIGCHLD        timers
//!                  │                       │                  │             │
//!                  ▼                       ▼                  ▼             ▼
//!   link ◄──── engine: one thread, one epoll, never blocks ─────────────────────
//!                  │                       │
//!                  │ channels + eventfd    │ fork, cgroup per exec
//!                  ▼                       ▼
//!   work: a thread per transfer       exec, launch, tree
//!   unpack, pack, fs, glob
//! ```
//!
//! It refuses to serve a stream that breaks the protocol (it ends instead), and whatever a request asks for that cannot
//! be done is answered with a typed failure, never with a made-up exit code. It has no handler for any signal, so that
//! the kernel keeps every signal from inside the sandbox away from PID 1.
//!
//! Where to start reading: `engine`.

use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;

mod archive;
mod engine;
mod exec;
mod failure;
mod fsops;
mod glob;
mod launch;
mod link;
mod pack;
mod pattern;
mod places;
mod surroundings;
mod tree;
mod unpack;
mod users;
mod work;

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// The control stream.
    pub control: OwnedFd,
    /// Directories of this sandbox's cgroup, one per hierarchy; none where cgroups cannot be used.
    pub cgroups: Vec<OwnedFd>,
    /// Whether `cgroups` is one directory of the unified hierarchy.
    pub cgroup_v2: bool,
    /// What commands can have at most, as a mask of capability numbers; all of the guest's own when `None`.
    pub capabilities: Option<u64>,
    /// The sandbox's limits, to be shown inside.
    pub limits: Limits,
}

/// What the guest is told of the sandbox's limits. It shows them; others keep them.
#[derive(Debug, Default)]
pub struct Limits {
    /// Processors, possibly a fraction.
    pub cpus: Option<f64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Size of the disk, in bytes.
    pub storage_bytes: Option<u64>,
    /// A file that tells how much of the disk is used.
    pub storage_used: Option<OwnedFd>,
}

impl Limits {
    /// Takes one argument; `false` when it is none of these.
    fn take(&mut self, arg: &str) -> Result<bool, Error> {
        if let Some(cpus) = value(arg, "--cpus=") {
            self.cpus = Some(cpus);
        } else if let Some(bytes) = value(arg, "--memory-bytes=") {
            self.memory_bytes = Some(bytes);
        } else if let Some(pids) = value(arg, "--pids=") {
            self.pids = Some(pids);
        } else if let Some(bytes) = value(arg, "--storage-bytes=") {
            self.storage_bytes = Some(bytes);
        } else if let Some(number) = value(arg, "--storage-used-fd=") {
            self.storage_used = Some(take(number)?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

/// Why the guest could not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument that it does not know.
    #[error("unknown argument {0:?}")]
    Argument(String),
    /// No `--control-fd`.
    #[error("--control-fd is missing")]
    NoControl,
    /// A descriptor that was announced is not there.
    #[error("take over descriptor {number}")]
    Descriptor {
        /// Its number.
        number: RawFd,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A system call that the loop cannot do without failed.
    #[error("{operation}")]
    System {
        /// What it was for.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The host broke the protocol.
    #[error("decode the control stream")]
    Decode(#[from] berth_wire::DecodeError),
    /// The host sent something that only a guest sends, or opened a channel twice.
    #[error("unexpected frame on channel {channel}")]
    Unexpected {
        /// The channel.
        channel: u32,
    },
    /// The host did not keep to a window.
    #[error("flow control on channel {channel}")]
    Window {
        /// The channel.
        channel: u32,
        /// How.
        #[source]
        source: berth_wire::WindowError,
    },
}

impl Options {
    /// Reads `--control-fd=N`, any number of `--cgroup-fd=N`, `--cgroup-v2`, `--capabilities=HEX` and what [`Limits`]
    /// has (`--cpus=`, `--memory-bytes=`, `--pids=`, `--storage-bytes=`, `--storage-used-fd=`), and takes over the
    /// descriptors.
    pub fn from_args(args: impl Iterator<Item = String>) -> Result<Self, Error> {
        let (mut control, mut cgroups, mut cgroup_v2) = (None, Vec::new(), false);
        let (mut capabilities, mut limits) = (None, Limits::default());
        for arg in args {
            if arg == "--cgroup-v2" {
                cgroup_v2 = true;
            } else if let Some(number) = value(&arg, "--control-fd=") {
                control = Some(take(number)?);
            } else if let Some(number) = value(&arg, "--cgroup-fd=") {
                cgroups.push(take(number)?);
            } else if let Some(mask) = arg.strip_prefix("--capabilities=") {
                let mask = u64::from_str_radix(mask, 16);
                capabilities = Some(mask.map_err(|_| Error::Argument(arg.clone()))?);
            } else if !limits.take(&arg)? {
                return Err(Error::Argument(arg));
            }
        }
        let control = control.ok_or(Error::NoControl)?;
        Ok(Self { control, cgroups, cgroup_v2, capabilities, limits })
    }
}

fn value<T: FromStr>(arg: &str, name: &str) -> Option<T> {
    arg.strip_prefix(name)?.parse().ok()
}

fn take(number: RawFd) -> Result<OwnedFd, Error> {
    berth_sys::spawn::inherited(number).map_err(|source| Error::Descriptor { number, source })
}

/// Serves the control stream until it ends.
pub fn run(options: Options) -> Result<(), Error> {
    let surroundings = surroundings::prepare();
    engine::Engine::new(options, surroundings)?.serve()
}
