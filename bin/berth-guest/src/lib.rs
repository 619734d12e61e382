//! What runs as the first process of a sandbox: it starts commands, carries files in and out, and reaps.
//!
//! It is told what to do over one stream (`berth_wire`), inherited as a descriptor, and needs nothing of the image it
//! runs in: no shell, no tar, no C library. When the stream ends it waits for another connection as long as it was told
//! to, with everything that runs running on; then it ends, and as PID 1 takes every process of the sandbox along.
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
//!   unpack, pack, fs, glob          execs: entry ── spool ── attachments
//! ```
//!
//! It refuses to serve a stream that breaks the protocol (it ends instead), and whatever a request asks for that cannot
//! be done is answered with a typed failure, never with a made-up exit code. It has no handler for any signal, so that
//! the kernel keeps every signal from inside the sandbox away from PID 1.
//!
//! Where to start reading: `engine`.

use std::os::fd::{OwnedFd, RawFd};
use std::str::FromStr;
use std::time::Duration;

mod accounts;
mod archive;
mod attachment;
mod connect;
mod connections;
mod engine;
mod exec;
mod execs;
mod failure;
pub mod files;
mod fsops;
mod glob;
mod input;
mod launch;
mod link;
mod notify;
mod pack;
mod pattern;
mod places;
mod quiesce;
mod readfile;
mod record;
mod requests;
mod selection;
pub mod sftp;
mod sparse;
mod spool;
mod spooldir;
mod surroundings;
mod tarwrite;
mod tree;
mod tty;
mod unpack;
mod users;
pub mod views;
mod watch;
mod work;
mod writefile;

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// The control stream.
    pub control: OwnedFd,
    /// The sandbox's control groups; none where they cannot be used.
    pub groups: Groups,
    /// What commands can have at most, as a mask of capability numbers; all of the guest's own when `None`.
    pub capabilities: Option<u64>,
    /// The sandbox's limits, to be shown inside.
    pub limits: Limits,
    /// By what they are shown.
    pub views: views::Options,
    /// What execs that outlive a connection need.
    pub durable: Durable,
}

/// What makes execs outlive the connection that started them.
#[derive(Debug, Default)]
pub struct Durable {
    /// A directory on the sandbox's disk for output that is kept; without, little is kept.
    pub spool: Option<OwnedFd>,
    /// A listening unix socket, at which a host connects anew.
    pub listen: Option<OwnedFd>,
    /// How long the guest goes on without a connection; not at all when zero.
    pub orphan: Duration,
}

impl Durable {
    /// Takes one argument; `false` when it is none of these.
    fn take(&mut self, arg: &str) -> Result<bool, Error> {
        if let Some(number) = value(arg, "--spool-fd=") {
            self.spool = Some(take(number)?);
        } else if let Some(number) = value(arg, "--listen-fd=") {
            self.listen = Some(take(number)?);
        } else if let Some(milliseconds) = value(arg, "--orphan-ms=") {
            self.orphan = Duration::from_millis(milliseconds);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
}

/// The control groups that the guest was handed, as directories.
#[derive(Debug, Default)]
pub struct Groups {
    /// In which every exec gets a group of its own; by the first its processes are found. None where control groups
    /// cannot be used.
    pub execs: Vec<OwnedFd>,
    /// Which every exec enters as they are.
    pub enter: Vec<OwnedFd>,
    /// The sandbox's own that counts memory, with `commands` below.
    pub memory: Option<OwnedFd>,
    /// Whether they are of the unified hierarchy.
    pub v2: bool,
}

impl Groups {
    /// Takes one argument; `false` when it is none of these.
    fn take(&mut self, arg: &str) -> Result<bool, Error> {
        if arg == "--cgroup-v2" {
            self.v2 = true;
        } else if let Some(number) = value(arg, "--cgroup-fd=") {
            self.execs.push(take(number)?);
        } else if let Some(number) = value(arg, "--enter-fd=") {
            self.enter.push(take(number)?);
        } else if let Some(number) = value(arg, "--memory-fd=") {
            self.memory = Some(take(number)?);
        } else {
            return Ok(false);
        }
        Ok(true)
    }
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
    /// Files whose numbers, taken together, tell how many bytes of the disk are used.
    pub storage_used: Vec<OwnedFd>,
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
            self.storage_used.push(take(number)?);
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
    /// Reads `--control-fd=N`, `--capabilities=HEX` and what [`Groups`] (any number of `--cgroup-fd=N` and
    /// `--enter-fd=N`, `--memory-fd=N`, `--cgroup-v2`), [`Limits`] (`--cpus=`, `--memory-bytes=`, `--pids=`,
    /// `--storage-bytes=`, `--storage-used-fd=`), [`Durable`] (`--spool-fd=N`, `--listen-fd=N`, `--orphan-ms=`) and
    /// [`views::Options`] have, and takes over the descriptors.
    pub fn from_args(args: impl Iterator<Item = String>) -> Result<Self, Error> {
        let (mut control, mut groups) = (None, Groups::default());
        let mut views = views::Options::default();
        let (mut capabilities, mut limits) = (None, Limits::default());
        let mut durable = Durable::default();
        for arg in args {
            if let Some(number) = value(&arg, "--control-fd=") {
                control = Some(take(number)?);
            } else if let Some(mask) = arg.strip_prefix("--capabilities=") {
                let mask = u64::from_str_radix(mask, 16);
                capabilities = Some(mask.map_err(|_| Error::Argument(arg.clone()))?);
            } else if !groups.take(&arg)?
                && !limits.take(&arg)?
                && !views.take(&arg)?
                && !durable.take(&arg)?
            {
                return Err(Error::Argument(arg));
            }
        }
        let control = control.ok_or(Error::NoControl)?;
        Ok(Self { control, groups, capabilities, limits, views, durable })
    }
}

fn value<T: FromStr>(arg: &str, name: &str) -> Option<T> {
    arg.strip_prefix(name)?.parse().ok()
}

fn take(number: RawFd) -> Result<OwnedFd, Error> {
    berth_sys::spawn::inherited(number).map_err(|source| Error::Descriptor { number, source })
}

/// An error as one line, with what caused it.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Runs the program of the guest's own that the process's first argument names; `None` when it names none.
pub fn builtin(argument: &str) -> Option<Result<(), sftp::Error>> {
    let name = argument.strip_prefix(launch::BUILTIN)?;
    (name == launch::SFTP).then(|| {
        // Those of the standard library would cut what is sent at its last line.
        let input = rustix::io::dup(rustix::stdio::stdin()).map_err(std::io::Error::from)?;
        let output = rustix::io::dup(rustix::stdio::stdout()).map_err(std::io::Error::from)?;
        sftp::serve(std::fs::File::from(input), std::fs::File::from(output))
    })
}

/// Serves the control stream until it ends.
pub fn run(options: Options) -> Result<(), Error> {
    let surroundings = surroundings::prepare(options.capabilities);
    let mut options = options;
    let mut views = std::mem::take(&mut options.views);
    let sources = views::Sources::new(&mut views, &options.limits, options.groups.v2)?;
    // The loop blocks the signals of children, which must be before there is another thread to take them.
    let engine = engine::Engine::new(options, surroundings)?;
    views::start(views, sources)?;
    engine.serve()
}
