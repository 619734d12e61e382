//! What a container is to be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::seccomp::Profile;

/// Size of `/dev/shm` unless told otherwise, as Docker has it.
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// One container. All paths are absolute; those called *host* paths are of the daemon's machine, all others of the
/// container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Files of the container's own to mount over those of the image.
    #[serde(default)]
    pub etc: EtcFiles,
    /// Control groups, as [`crate::cgroup::Plan::membership`] gives them.
    #[serde(default)]
    pub cgroups: CgroupMembership,
    /// Whether set-uid bits and file capabilities are without effect.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// What root keeps.
    pub capabilities: Vec<Capability>,
    /// Which system calls its processes may make.
    #[serde(default)]
    pub seccomp: Profile,
    /// Size of `/dev/shm`, in bytes.
    pub shm_bytes: u64,
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
    /// Empty host directory on the same file system as `upper`, for the kernel's use.
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
    /// Host paths of the groups to join, one a hierarchy.
    #[serde(default)]
    pub join: Vec<PathBuf>,
    /// The one in which the guest may make a group an exec.
    #[serde(default)]
    pub guest: Option<GuestCgroup>,
}

/// The control group that is handed to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestCgroup {
    /// Host path.
    pub dir: PathBuf,
    /// Whether it is of version 2.
    pub v2: bool,
}
