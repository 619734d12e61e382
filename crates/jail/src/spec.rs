//! What a container is to be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::ids::IdRange;
use crate::seccomp::Profile;
use crate::views::Views;

/// Size of `/dev/shm` unless told otherwise, as Docker has it.
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// One container. All paths are absolute; those called *host* paths are of the daemon's machine, all others of the
/// container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Identity; shown as the source of the root mount.
    pub id: String,
    /// Host name, at most 64 bytes.
    pub hostname: String,
    /// Where its files come from and go to.
    pub root: Root,
    /// Host paths to mount, in this order.
    #[serde(default)]
    pub binds: Vec<Bind>,
    /// What else is mounted, after `binds` and everything that every container has, in this order. Nothing of it goes
    /// below `/proc` or `/sys`.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Files of the container's own to mount over those of the image.
    #[serde(default)]
    pub etc: EtcFiles,
    /// Control groups, as [`crate::cgroup::Plan::membership`] gives them.
    #[serde(default)]
    pub cgroups: CgroupMembership,
    /// Ids of the host that are 0, 1, … inside: the container then lives in a user namespace that has them mapped so,
    /// which the launch must bring. None: ids inside are the host's own, root included.
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// What the guest is told of the container's limits, to show them inside.
    #[serde(default)]
    pub guest: GuestSettings,
    /// What is shown of the limits in place of the machine, as [`crate::views::views`] finds it out.
    #[serde(default)]
    pub views: Views,
    /// Whether set-uid bits and file capabilities are without effect.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// What root keeps: the guest, and commands run as root but for [`Spec::command_capabilities`]. Few guests can do
    /// without [`Capability::defaults`]: it starts commands as other users and writes their files.
    pub capabilities: Vec<Capability>,
    /// What commands can have at most, root's and set-uid programs included; some of `capabilities`, or none. Absent:
    /// all of them.
    #[serde(default)]
    pub command_capabilities: Option<Vec<Capability>>,
    /// Which system calls its processes may make.
    #[serde(default)]
    pub seccomp: Profile,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: u64,
    /// Host directory in which the guest keeps what commands write until it is read. The guest alone has it, as a
    /// descriptor: it is no part of the container's files. On disk it must be root's.
    #[serde(default)]
    pub spool: Option<PathBuf>,
}

/// What the guest is told of the container's limits. It shows them; others keep them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestSettings {
    /// Processors, possibly a fraction.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Memory, in bytes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
    /// Size of the disk, in bytes.
    #[serde(default)]
    pub storage_bytes: Option<u64>,
    /// Host files whose numbers, taken together, tell the guest how many bytes of the disk are used; opened before the
    /// host's files are gone.
    #[serde(default)]
    pub storage_used: Vec<PathBuf>,
    /// How long it lives on when its stream has ended, in milliseconds, for another one to come by the socket of
    /// [`crate::LaunchRequest::listen`]. It ends at once when absent.
    #[serde(default)]
    pub orphan_ms: Option<u64>,
}

/// Layers and the writable directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Host directory that holds the layers.
    pub layers_dir: PathBuf,
    /// Names of layers in it, the uppermost first; none for an image without files.
    pub lowers: Vec<String>,
    /// Host directory that takes the changes.
    pub upper: PathBuf,
    /// Empty host directory on the same file system as `upper`, for the kernel's use, and of use for one container.
    pub work: PathBuf,
}

/// A host path to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Host path of a directory, file or socket. Device nodes below it are without effect (`nodev`).
    pub source: PathBuf,
    /// Where it appears. Symbolic links on the way are followed inside the container's root; what is missing is made.
    pub target: PathBuf,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// Something to mount that is no path of the host as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where it appears. Symbolic links on the way are followed inside the container's root; what is missing is made.
    pub target: PathBuf,
    /// Whether the container may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What it shows.
    pub source: MountSource,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSource {
    /// A file or directory in an overlay of its own.
    Layers {
        /// Names of layers in [`Root::layers_dir`], the uppermost first; maybe none.
        lowers: Vec<String>,
        /// Host directory that takes the changes; beside or below [`Root::upper`] for a container with ids of its own.
        upper: PathBuf,
        /// Empty host directory beside `upper`, of use for one container.
        work: PathBuf,
        /// Absolute path of what is shown; links are followed within the overlay alone.
        path: PathBuf,
    },
    /// A host directory, whose owners on disk are ids as inside.
    Directory(PathBuf),
    /// An empty file system in memory.
    Tmpfs {
        /// Its size, in bytes; the kernel's default when absent or 0.
        size: Option<u64>,
    },
    /// A file in memory that is never swapped out.
    Bytes {
        /// What it holds.
        contents: Contents,
        /// Its owner inside.
        uid: u32,
        /// Its group inside.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// Bytes that are nobody's business: not shown when printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Contents(pub Vec<u8>);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contents(..)")
    }
}

/// Host files that appear in `/etc`. The container may write to them, so each needs copies of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcFiles {
    /// `/etc/resolv.conf`.
    #[serde(default)]
    pub resolv_conf: Option<PathBuf>,
    /// `/etc/hosts`.
    #[serde(default)]
    pub hosts: Option<PathBuf>,
    /// `/etc/hostname`.
    #[serde(default)]
    pub hostname: Option<PathBuf>,
}

/// Control groups of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupMembership {
    /// Host paths of the files by which groups are joined, one a hierarchy: `tasks` with version 1, `cgroup.procs` with
    /// version 2.
    #[serde(default)]
    pub join: Vec<PathBuf>,
    /// What to write once those are seen as roots, in this order. A group of version 2 can hand on controllers only
    /// when nothing is left in it, and be a root only to a process that was in it.
    #[serde(default)]
    pub settle: Vec<CgroupWrite>,
    /// Those that the guest works with.
    #[serde(default)]
    pub guest: Option<GuestCgroup>,
}

/// Something to write to a file of a control group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupWrite {
    /// Host path of the file.
    pub path: PathBuf,
    /// What.
    pub value: String,
    /// Whether it is left out on kernels that lack the file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_there: bool,
}

/// The control groups that are handed to the guest, all as host paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestCgroup {
    /// Those in which it makes a group an exec; by the first it finds the exec's processes.
    pub execs: Vec<PathBuf>,
    /// Those that every exec enters as they are.
    pub enter: Vec<PathBuf>,
    /// The sandbox's own group that counts memory, with `commands` below.
    pub memory: Option<PathBuf>,
    /// Whether they are of version 2.
    pub v2: bool,
}
