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
    /// Reads `--control-fd=N`, any number of `--cgroup-fd=N`, and `--cgroup-v2`, and takes over the descriptors.
    pub fn from_args(args: impl Iterator<Item = String>) -> Result<Self, Error> {
        let (mut control, mut cgroups, mut cgroup_v2) = (None, Vec::new(), false);
        for arg in args {
            if arg == "--cgroup-v2" {
                cgroup_v2 = true;
            } else if let Some(number) = descriptor(&arg, "--control-fd=") {
                control = Some(take(number)?);
            } else if let Some(number) = descriptor(&arg, "--cgroup-fd=") {
                cgroups.push(take(number)?);
            } else {
                return Err(Error::Argument(arg));
            }
        }
        Ok(Self { control: control.ok_or(Error::NoControl)?, cgroups, cgroup_v2 })
    }
}

fn descriptor(arg: &str, name: &str) -> Option<RawFd> {
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
