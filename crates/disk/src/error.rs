//! What can go wrong with writable layers.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Kind;

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Bytes on disk.
    Bytes,
    /// Files and directories.
    Inodes,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes on disk",
            Self::Inodes => "inodes",
        })
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The id cannot be the name of a directory.
    #[error("sandbox id {id:?} is not 1 to 64 of [A-Za-z0-9_-]")]
    BadId {
        /// As it was given.
        id: String,
    },
    /// The sandbox has directories already.
    #[error("sandbox {id} has a writable layer already: {path}")]
    Exists {
        /// The sandbox.
        id: String,
        /// Its directory.
        path: PathBuf,
    },
    /// The sandbox has no directories.
    #[error("sandbox {id} has no writable layer: {path} does not exist")]
    Missing {
        /// The sandbox.
        id: String,
        /// Where they would be.
        path: PathBuf,
    },
    /// The engine does not hold limits of this kind.
    #[error("the disk engine {engine} cannot limit {what}: {why}")]
    NotEnforced {
        /// The engine's name.
        engine: &'static str,
        /// What was to be limited.
        what: Resource,
        /// Why it cannot.
        why: &'static str,
    },
    /// Not even an empty sandbox fits into the limit.
    #[error("a limit of {limit} {what} is too small, the least is {least}")]
    LimitTooSmall {
        /// What was to be limited.
        what: Resource,
        /// As it was given.
        limit: u64,
        /// The least that works.
        least: u64,
    },
    /// The engine counts in larger units and will not round.
    #[error(
        "a limit of {limit} bytes on disk is not a multiple of {unit}, which the disk engine {engine} counts in"
    )]
    LimitUnit {
        /// The engine's name.
        engine: &'static str,
        /// As it was given.
        limit: u64,
        /// The unit.
        unit: u64,
    },
    /// The file of the pool was removed or replaced while it was in use.
    #[error("the pool file {path} is gone: it was removed or replaced")]
    PoolGone {
        /// Where it was.
        path: PathBuf,
    },
    /// The file of the pool was cut off while it was in use.
    #[error("the pool file {path} was cut off: it has {found} bytes, and the file system in it {size}")]
    PoolCut {
        /// The file.
        path: PathBuf,
        /// Bytes that it has.
        found: u64,
        /// Bytes that it should have.
        size: u64,
    },
    /// The disk failed while it was in use.
    #[error("the disk below {path} failed: btrfs counts {errors} new errors of reading or writing")]
    DeviceErrors {
        /// The engine's root.
        path: PathBuf,
        /// How many came since the start, or since the oldest sandbox was made that was there at the start.
        errors: u64,
    },
    /// Nothing can be written.
    #[error("the file system at {path} is read-only, by command or after an error")]
    ReadOnly {
        /// The engine's root.
        path: PathBuf,
    },
    /// Making a directory failed.
    #[error("could not make the directory {path}")]
    MakeDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Making a sandbox's subvolume failed.
    #[error("could not make the subvolume {path}")]
    MakeSubvolume {
        /// The subvolume.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Giving a sandbox its account failed.
    #[error("could not set the quota of {path}")]
    SetQuota {
        /// The sandbox's directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Reading a sandbox's account failed.
    #[error("could not read the quota of {path}")]
    ReadQuota {
        /// The sandbox's directory, or the file that the kernel tells it in.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel's number is none.
    #[error("{path} says {text:?}, which is not a number")]
    OddQuota {
        /// The kernel's file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// Making a directory of its own out of what a sandbox wrote failed.
    #[error("could not {what} while making a tree of its own of {path}")]
    Release {
        /// What was being done.
        what: &'static str,
        /// The sandbox's directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Moving a sandbox's directory to the trash failed.
    #[error("could not move {from} to {to}")]
    MoveToTrash {
        /// The sandbox's directory.
        from: PathBuf,
        /// Where it was to go.
        to: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Opening a directory of Berth's own failed.
    #[error("could not open {path}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Reading a directory failed.
    #[error("could not read the directory {path}")]
    ReadDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Deleting failed; what is left stays in the trash.
    #[error("could not delete {path}")]
    Delete {
        /// What was being deleted; below the trash, as far as it is known by a path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Directories are nested too deep to be counted.
    #[error("directories below {path} are nested more than {limit} deep")]
    TooDeep {
        /// Where counting began.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// Asking the file system for its free space failed.
    #[error("could not ask for the free space of {path}")]
    FreeSpace {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another daemon has the data directory.
    #[error("{path} is locked: another daemon uses this data directory")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// Taking the lock failed.
    #[error("could not lock {path}")]
    Lock {
        /// The lock.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// What is in the data directory was made by another engine.
    #[error(
        "the disk engine {asked} was asked for, but {path} holds data of another: use that one, or move it away"
    )]
    OtherEngine {
        /// The engine asked for.
        asked: Kind,
        /// What is there.
        path: PathBuf,
    },
    /// An engine that was asked for, or whose data is there, cannot be had.
    #[error("the disk engine {engine} cannot be had")]
    Unavailable {
        /// The engine.
        engine: Kind,
        /// Why.
        #[source]
        source: Box<Unavailable>,
    },
}

/// Why an engine cannot be had here.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The data directory is on something else.
    #[error("{path} is on {found}, not on {wanted}")]
    FileSystem {
        /// The data directory.
        path: PathBuf,
        /// What it is on.
        found: String,
        /// What the engine needs.
        wanted: &'static str,
    },
    /// btrfs without quotas, which are the owner's to turn on.
    #[error(
        "quotas are off on the btrfs of {path}: turn them on (btrfs quota enable --simple {path}), or allow berth to"
    )]
    QuotaOff {
        /// The data directory.
        path: PathBuf,
    },
    /// btrfs whose counters are not to be trusted.
    #[error("the quota counters of the btrfs of {path} are inconsistent: run btrfs quota rescan {path}")]
    QuotaInconsistent {
        /// The data directory.
        path: PathBuf,
    },
    /// XFS without project quotas.
    #[error("the XFS of {path} is mounted without project quotas (mount option prjquota)")]
    NoProjectQuota {
        /// The data directory.
        path: PathBuf,
    },
    /// XFS refuses renames between projects, and everything in the data directory is in one.
    #[error(
        "{path} is in a project of its owner's, {project}, which no sandbox could leave (see xfs_quota(8), project)"
    )]
    InProject {
        /// The data directory.
        path: PathBuf,
        /// The project's number.
        project: u32,
    },
    /// No tool to make a pool with.
    #[error("there is no mkfs.btrfs (btrfs-progs) in PATH, /usr/sbin or /sbin")]
    NoMkfs,
    /// The tool failed.
    #[error("mkfs.btrfs failed ({status}): {said}")]
    Mkfs {
        /// How it ended.
        status: String,
        /// What it wrote to its standard error.
        said: String,
    },
    /// No room for a pool.
    #[error(
        "a pool of {wanted} bytes does not fit: {free} bytes are free at {path}, {reserve} of which are reserved"
    )]
    NoRoom {
        /// The data directory.
        path: PathBuf,
        /// The pool's first size.
        wanted: u64,
        /// Free on the file system below.
        free: u64,
        /// To be left free.
        reserve: u64,
    },
    /// The pool's first size is too small for btrfs.
    #[error("a pool of {wanted} bytes is too small, the least is {least}")]
    PoolTooSmall {
        /// As it was given.
        wanted: u64,
        /// The least that works.
        least: u64,
    },
    /// The pool file is something else.
    #[error("{path} is not a pool of berth's: {why}")]
    NotAPool {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The pool file is shorter than the file system in it.
    #[error(
        "the pool {path} has been cut off: {found} bytes are left of the {size} that its file system has"
    )]
    PoolShort {
        /// The file.
        path: PathBuf,
        /// How long it is, in bytes.
        found: u64,
        /// How long it should be at least, in bytes.
        size: u64,
    },
    /// The pool's file system is in use, but not from the pool file: of two copies one would be corrupted.
    #[error("the file system of the pool {path} is mounted from {device}, which has another file behind it")]
    PoolElsewhere {
        /// The file.
        path: PathBuf,
        /// What is mounted.
        device: String,
    },
    /// Somebody else has a loop device on the pool file, and not as Berth would; a second one would corrupt it.
    #[error(
        "the pool {path} is behind {device} already, read-only or in part: detach it (losetup --detach {device})"
    )]
    PoolHeld {
        /// The file.
        path: PathBuf,
        /// The device.
        device: String,
    },
    /// The pool was made by another Berth.
    #[error("the pool {path} has the format {found:?}, this berth knows {known:?}")]
    PoolFormat {
        /// The file.
        path: PathBuf,
        /// As it says.
        found: String,
        /// As it should say.
        known: &'static str,
    },
    /// Nothing but a system call's refusal.
    #[error("could not {what} {path}")]
    System {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directories cannot be made.
    #[error(transparent)]
    Layout(#[from] Box<Error>),
}

impl Unavailable {
    /// For `map_err`.
    pub(crate) fn system(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Unavailable {
        let path = path.into();
        move |source| Unavailable::System { what, path, source }
    }
}
