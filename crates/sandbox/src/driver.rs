//! What can run a sandbox: the seam between the node and containers, microVMs, or a fake.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_jail::doctor::Finding;
use berth_types::sandbox::{Capabilities, StartPhases, Usage};
use berth_types::system::TaskStatus;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::guest::Guest;

/// What a driver needs to know to start one sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StartSpec {
    /// The sandbox's id; names its directories and cgroups.
    pub id: String,
    /// Host name inside.
    pub hostname: String,
    /// Layers of the root file system by name, the topmost first. Empty for an empty root.
    pub layers: Vec<String>,
    /// Whether it reaches the internet; loopback only otherwise.
    pub public_network: bool,
    /// Limits.
    pub limits: Limits,
    /// Paths of this machine to mount into it.
    pub binds: Vec<Bind>,
    /// Without the files of `/etc` that are the machine's (`hosts`, `hostname`, `resolv.conf`): only files are put into it or
    /// taken from it, and they are to be the layers' own.
    pub bare: bool,
    /// What else is mounted into it, after `binds` and in this order. Each [`Machine::stubs`] that was made for one is
    /// told as those of binds are.
    pub mounts: Vec<Mount>,
    /// Whether set-uid bits and file capabilities are without effect inside.
    pub no_new_privileges: bool,
    /// Whether it is to have a user namespace of its own. Asked for only of a driver with that [`Features`].
    pub user_namespace: bool,
    /// Capabilities that root keeps inside. Other than the default asked for only of a driver with that [`Features`].
    pub capabilities: Capabilities,
    /// How long it lives on without a daemon, for the next one to take it over ([`Machine::resume`]). It ends with its
    /// connection when absent, as what nobody would look for again should.
    pub orphan: Option<Duration>,
}

/// Limits on what a sandbox may use; absent means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Processor time, in cores.
    pub cpus: Option<f64>,
    /// Processor time that is set aside, in cores: its weight against others. No limit.
    pub cpu_request: Option<f64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that is set aside, in bytes: what the kernel is to leave it. No limit.
    pub memory_request_bytes: Option<u64>,
    /// Writable disk, in bytes; only where the driver enforces it.
    pub storage_bytes: Option<u64>,
    /// Files and directories written; only where the driver enforces it.
    pub storage_inodes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// What a driver can do beyond the least. What is asked for beyond it is refused, never left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// It heeds [`StartSpec::user_namespace`].
    pub user_namespace: bool,
    /// It heeds [`StartSpec::capabilities`].
    pub capabilities: bool,
}

/// A path of this machine that a sandbox sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on this machine.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether it can only be read inside.
    pub read_only: bool,
}

/// A mount of a build step's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether it can only be read inside.
    pub read_only: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What a [`Mount`] shows.
#[derive(Clone, PartialEq, Eq)]
pub enum MountSource {
    /// What stands at `path` in layers by name, the topmost first. What is written goes to the sandbox's own disk, and with it.
    Layers {
        /// The layers.
        names: Vec<String>,
        /// Absolute path of a file or directory in them. Symbolic links are followed within the layers.
        path: PathBuf,
    },
    /// A directory of this machine, on the file system of the layers. Its owners on disk are neutral ids, as those of layers are.
    Directory(PathBuf),
    /// An empty file system in memory, at most so many bytes.
    Tmpfs {
        /// Its size; the kernel's default when absent or 0.
        size: Option<u64>,
    },
    /// A file with these bytes, in memory only.
    Bytes {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its owner inside.
        uid: u32,
        /// Its group inside.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
}

impl std::fmt::Debug for MountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layers { names, path } => {
                f.debug_struct("Layers").field("names", names).field("path", path).finish()
            }
            Self::Directory(path) => f.debug_tuple("Directory").field(path).finish(),
            Self::Tmpfs { size } => f.debug_struct("Tmpfs").field("size", size).finish(),
            // It may be a secret.
            Self::Bytes { .. } => f.debug_struct("Bytes").finish_non_exhaustive(),
        }
    }
}

/// Starts sandboxes of one kind.
pub trait Driver: Send + Sync + 'static {
    /// Starts a sandbox and returns when its guest answers. Dropping the future gives back what was made.
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, Error>>;

    /// Whether writable disk can be limited.
    fn enforces_storage(&self) -> bool;

    /// Whether the number of files and directories can be limited.
    fn enforces_inodes(&self) -> bool {
        false
    }

    /// Whether the disk that its sandboxes are on is still there, whole, and can be written to. Cheap, but it blocks.
    ///
    /// # Errors
    /// [`Error::DiskLost`].
    fn health(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What it can do beyond the least.
    fn features(&self) -> Features {
        Features::default()
    }

    /// What it finds of the machine besides what [`berth_jail::doctor()`] does. Tries things, so it blocks for milliseconds.
    fn doctor(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// What it does in the background, and how that went.
    fn tasks(&self) -> Vec<TaskStatus> {
        Vec::new()
    }

    /// Ends what still runs and gives back what the driver holds on this machine; nothing starts afterwards.
    fn shutdown(&self) -> BoxFuture<'_, ()>;

    /// Lets go of what still runs without ending it, for another daemon to take over by what [`Machine::resume`] said;
    /// what could not be taken over is ended as by [`Driver::shutdown`]. Nothing starts afterwards, and dropping a machine
    /// that was let go of ends nothing.
    fn leave(&self) -> BoxFuture<'_, ()> {
        self.shutdown()
    }
}

/// One sandbox that was started.
pub trait Machine: Send + Sync + 'static {
    /// The connection to its first process, as it is now. One that breaks while that lives is followed by another, and
    /// where that cannot be, the machine is ended.
    fn guest(&self) -> Guest;

    /// As [`Machine::guest`], and waits some seconds for a connection that is being made again.
    fn reached(&self) -> BoxFuture<'_, Guest> {
        futures_util::future::ready(self.guest()).boxed()
    }

    /// Resolves when its first process is gone, whatever the cause, with what is known of it.
    fn died(&self) -> BoxFuture<'_, Death>;

    /// Ends it: when this returns no process of it is left; disk and network are freed soon after.
    fn stop(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// What it uses; fields that cannot be told are absent.
    fn usage(&self) -> BoxFuture<'_, Usage> {
        futures_util::future::ready(Usage::default()).boxed()
    }

    /// Whether it has no room on its disk now, and by whose fault. `None` also where that cannot be told.
    fn disk_full(&self) -> BoxFuture<'_, Option<DiskFull>> {
        futures_util::future::ready(None).boxed()
    }

    /// Where the time of its start went.
    fn phases(&self) -> StartPhases {
        StartPhases::default()
    }

    /// Mount points that were made for it because its layers lack them, as absolute paths, parents first: no part of
    /// what was built.
    fn stubs(&self) -> Vec<PathBuf>;

    /// By which this daemon reaches what the sandbox reaches, and nothing else. `None` when it has ended, or where there
    /// is no such thing.
    fn network(&self) -> Option<NetworkDoor> {
        None
    }

    /// All that another daemon needs to take it over while it runs, as text to be stored. It does not change as long as it
    /// lives. `None` where it would not outlive this one: it was started without [`StartSpec::orphan`], or has ended.
    fn resume(&self) -> Option<String> {
        None
    }

    /// Ends it and hands over its writable layer, for a build to keep.
    fn take_disk(&self) -> BoxFuture<'_, Result<Disk, Error>>;
}

/// A sandbox's network, as this machine can enter it.
#[derive(Debug)]
pub struct NetworkDoor {
    /// The namespace; it lives on as long as this, but leads nowhere when the sandbox has ended.
    pub netns: OwnedFd,
    /// What its `/etc/resolv.conf` holds; empty without a network.
    pub resolv_conf: String,
}

/// Why a sandbox has no room on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFull {
    /// It is at its own limit.
    Limit,
    /// The disk below all sandboxes is full: no fault of this one.
    Machine,
}

/// Why a sandbox's first process is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// How many processes the kernel has killed in it for want of memory.
    pub oom_kills: u64,
    /// How the first process ended, in words.
    pub how: String,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.how)?;
        if self.oom_kills > 0 {
            write!(f, "; the kernel had killed {} of its processes for want of memory", self.oom_kills)?;
        }
        Ok(())
    }
}

/// The writable layer of a sandbox that has ended. Dropping it frees what is left of it.
pub struct Disk {
    upper: PathBuf,
    _rest: Box<dyn Send + Sync>,
}

impl Disk {
    /// A layer at `upper`; `rest` is dropped with it.
    pub fn new(upper: PathBuf, rest: Box<dyn Send + Sync>) -> Disk {
        Disk { upper, _rest: rest }
    }

    /// The layer, an overlayfs upper directory; it may be renamed away.
    pub fn upper(&self) -> &std::path::Path {
        &self.upper
    }
}
