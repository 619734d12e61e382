//! The operations that a plan is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::seccomp::Profile;
use crate::spec::{CgroupWrite, Contents};
use crate::views::Text;

/// One operation of the container's first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Leave the launcher's session, so that no terminal's signals come.
    NewSession,
    /// Let go of the daemon's keys.
    NewKeyring,
    /// Join a control group by this file of it (host path).
    JoinCgroup(PathBuf),
    /// Write to a file of a control group.
    WriteCgroup(CgroupWrite),
    /// Give the guest these arguments.
    TellGuest(Vec<String>),
    /// Open a host file or directory for reading and give it to the guest, which finds its number in the argument `name=number`.
    PassFile {
        /// Host path.
        path: PathBuf,
        /// Name of the argument.
        argument: String,
    },
    /// Open a host directory as a detached tree of its own, with nothing above it, and give it to the guest, to write in,
    /// as [`Op::PassFile`] does.
    PassDirectory {
        /// Host path.
        path: PathBuf,
        /// Name of the argument.
        argument: String,
        /// Whether its owners are seen through the user namespace.
        mapped: bool,
    },
    /// Open a FUSE connection for the guest, which finds its number in the argument of this name.
    OpenView(String),
    /// See the groups just joined as the roots of their hierarchies.
    UnshareCgroups,
    /// Enter the network namespace that came with the request; without one, take loopback up in the own, empty one.
    EnterNetwork,
    /// Stop mounts from spreading to the host.
    PrivateMounts,
    /// Open a host path as a detached mount tree; trees are numbered from 0 in order.
    OpenTree(Tree),
    /// Open a host directory, with all that is mounted below it, as a detached tree whose owners are seen through the
    /// user namespace; numbered on from the others.
    OpenMapped(PathBuf),
    /// Put a detached tree over its own place on the host, as this process sees it.
    Cover {
        /// Number of the tree.
        tree: usize,
        /// Its place.
        dir: PathBuf,
    },
    /// Have files, and what mounts do by themselves, belong to this user and group of the host from here on, in place
    /// of root: root's have no name behind a mapping.
    MakeFilesAs(u32),
    /// Mount the layers at the upper directory.
    MountOverlay(Overlay),
    /// Mount the upper directory at itself: the root of an image without layers.
    MountUpper(PathBuf),
    /// Open a file or directory in what was mounted at a host path, as a detached tree without anything below it, and
    /// without leaving what is mounted there; numbered on from the others.
    OpenInside(Inside),
    /// Make what is mounted at this host path the root, and detach the old one.
    PivotRoot(PathBuf),
    /// Mount a file system; missing directories are made, links refused.
    Mount(Mount),
    /// Make a symbolic link; `target` is its text.
    Link {
        /// Where.
        path: PathBuf,
        /// To what.
        target: String,
    },
    /// Put a detached tree at a path; what is missing is made.
    Attach {
        /// Number of the tree.
        tree: usize,
        /// Where.
        target: PathBuf,
    },
    /// As [`Op::Attach`], but not below `/proc` or `/sys`.
    AttachMount {
        /// Number of the tree.
        tree: usize,
        /// Where.
        target: PathBuf,
    },
    /// Mount a new file system in memory, for the container's use, where [`Op::AttachMount`] would attach.
    MountMemory(Mount),
    /// Make a file in memory and mount it where [`Op::AttachMount`] would attach.
    MountBytes(Bytes),
    /// Mount a file that the guest serves.
    MountView {
        /// Where; it is there.
        target: PathBuf,
        /// The argument of the connection.
        connection: String,
    },
    /// Mount a file that says always the same.
    MountText(Text),
    /// Hide this path if it is there.
    Mask(PathBuf),
    /// Make this path read-only if it is there.
    ReadOnly(PathBuf),
    /// Set the host name.
    Hostname(String),
    /// Raise the soft limit of open files to the hard one.
    RaiseOpenFiles,
    /// Raise the limit of processes of one user as far as this process may: the control group counts them.
    RaiseProcesses,
    /// Enter the user namespace that came with the request, as its root. What was made and mounted so far belongs to
    /// the host's namespace all the same.
    EnterUserNamespace,
    /// Have all system calls from here on judged by the filter of this profile.
    FilterSystemCalls(Profile),
    /// Keep no capability but these, of all up to `last`.
    Capabilities {
        /// Kept.
        keep: Vec<Capability>,
        /// Those that the guest has beside them, but nothing that it starts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        guest: Vec<Capability>,
        /// Highest number of the kernel.
        last: u8,
    },
    /// Make set-uid bits and file capabilities ineffective, for good.
    NoNewPrivileges,
    /// Default signals, file mode mask 022.
    ResetSignalsAndUmask,
}

/// A host path to open as a detached tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Host path.
    pub source: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
    /// Whether it is one of the device nodes that a container has.
    pub device: bool,
    /// Whether its owners are seen through the user namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mapped: bool,
}

/// An overlay to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Shown as the mount's source.
    pub name: String,
    /// Host directory that the lower names are relative to.
    pub layers_dir: PathBuf,
    /// Uppermost first.
    pub lowers: Vec<String>,
    /// Host path.
    pub upper: PathBuf,
    /// Host path.
    pub work: PathBuf,
    /// Whether the layers are given to the kernel one at a time, because their names do not fit one string.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_by_one: bool,
}

/// Something within a mounted tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Host path at which the tree is mounted.
    pub root: PathBuf,
    /// Absolute path in it.
    pub path: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
}

/// A file in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
    /// What it holds.
    pub contents: Contents,
    /// Its owner, as the host counts.
    pub uid: u32,
    /// Its group, as the host counts.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

/// A file system to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Type, and shown as the source.
    pub file_system: String,
    /// Where.
    pub target: PathBuf,
    /// Flags beside `nosuid`, which all have.
    pub flags: Vec<Flag>,
    /// Options.
    pub options: String,
}

/// Flags of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// `MS_NODEV`.
    NoDev,
    /// `MS_NOEXEC`.
    NoExec,
    /// `MS_RDONLY`.
    ReadOnly,
}

impl Overlay {
    /// Said because the upper directory may become a layer: redirects and metadata-only copies would make it one that
    /// means nothing without the mount that it came from, and an index would tie it to these lowers. What a kernel's
    /// configuration has as default differs.
    pub const SWITCHES: [(&str, &str); 3] = [("index", "off"), ("redirect_dir", "off"), ("metacopy", "off")];

    /// Takes no value. Without it the kernel writes out the whole file system that the upper directory is on whenever an
    /// overlay goes, and whoever asks for a sandbox's end waits for that; nor could any of them then ask, by sync(2), for
    /// the same at the cost of all. So nothing in a container is safe from a crash of the machine, which no container
    /// outlives: whoever wants to keep the upper directory has it written out first.
    pub const VOLATILE: &str = "volatile";

    /// The options as one string, given the two directories, which are known by descriptor when it comes to it.
    pub fn options(&self, upper: &str, work: &str) -> String {
        let switches = Self::SWITCHES.map(|(name, value)| format!("{name}={value}")).join(",");
        format!(
            "lowerdir={},upperdir={upper},workdir={work},{switches},{}",
            self.lowers.join(":"),
            Self::VOLATILE
        )
    }
}
