//! The writable layer of each sandbox, how much it may hold, and what becomes of it afterwards.
//!
//! ```text
//!   <root>/sandboxes/<id>/upper   overlayfs upper: what the sandbox wrote
//!                        /work    overlayfs work directory
//!                        /spool   what commands said and nobody has read yet
//!         /trash/<id>-<n>         removed sandboxes on their way out
//!         /layers, ...            the image store, which must be on the same file system
//! ```
//!
//! One trait, [`Engine`], and four engines, chosen by [`open`], which tells why ([`Choice`]):
//!
//! | name | `<root>` | a sandbox is | limits |
//! |---|---|---|---|
//! | `btrfs` | the data directory | a subvolume | bytes, data and metadata together |
//! | `btrfs-loop` | a btrfs in the file `<data>/pool.btrfs`, mounted at `<data>/pool` | a subvolume | the same |
//! | `xfs` | the data directory | a directory with a project id | bytes and inodes |
//! | `plain` | the data directory | a directory | none |
//!
//! A limit that an engine cannot hold is refused ([`Error::NotEnforced`]), never dropped. An engine asked for by name
//! that cannot be had is an error ([`Error::Unavailable`]), never replaced by another.
//!
//! Removing is a rename, so that it takes no time and cannot half happen (on a full btrfs, which has no room for a
//! rename, it is the end of the subvolume: the same holds); [`Engine::reap_trash`] deletes later, at the caller's
//! leisure, and at the next start what a crash left. Deletion works on descriptors and never follows a path made of
//! names from inside a sandbox; it needs two descriptors at a time and constant stack, however deep a sandbox nested
//! its directories.
//!
//! It refuses ids that are not plain names ([`Error::BadId`]). It fails with an [`Error`] that names operation and
//! path. All calls block.
//!
//! Start reading at [`Engine`] and [`open`], then the engine in `plain.rs`, then `btrfs.rs` and `pool.rs`.

mod btrfs;
mod choose;
mod error;
mod health;
mod hoist;
mod layout;
mod plain;
mod pool;
mod superblock;
mod tree;
mod xfs;

use std::path::{Path, PathBuf};

pub use choose::{Choice, Kind, Opened, Options, PoolOptions, Rejected, open};
pub use error::{Error, Resource, Unavailable};
pub use plain::Plain;

/// How much a sandbox may hold. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; what they count is the engine's ([`Counted`]).
    pub bytes: Option<u64>,
    /// Files and directories, each counted once however many names it has.
    pub inodes: Option<u64>,
}

/// A sandbox's writable directories, all on one file system, as overlayfs wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writable {
    /// Holds the others and nothing else.
    pub dir: PathBuf,
    /// What the sandbox writes; empty at first. Its owner and mode are those of the sandbox's `/`.
    pub upper: PathBuf,
    /// overlayfs's own.
    pub work: PathBuf,
    /// For the output of commands; empty at first, counted like the rest, never part of what the sandbox wrote. Of root,
    /// mode 0700: whoever is to write there as root of a user namespace needs a mount with its ids mapped.
    pub spool: PathBuf,
    /// For what is written to overlays beside the root's; counted like the rest, never part of what the sandbox wrote.
    /// Not there until whoever needs it makes it.
    pub mounts: PathBuf,
    /// Files of the host whose decimal texts sum up to the bytes that the sandbox uses now and its limit counts. Empty
    /// where statfs(2) inside the sandbox is right by itself, or where nothing is counted.
    pub used_files: Vec<PathBuf>,
}

/// What the bytes of a [`Usage`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Blocks of the files in the upper directory, the spool and the mounts', counted by walking them: takes as long as
    /// there are files.
    Walked,
    /// The subvolume's quota group: blocks of data and metadata of all three directories, and what is written but
    /// not yet on disk, as reserved. With simple quotas data that is shared with a layer (copied up by reflink) is on
    /// the layer's account until it is written to; with full ones it counts. A block of a large extent that was
    /// overwritten is in use until all of the extent was, so this may be more than the sum of the files.
    QuotaGroup,
    /// The project's account: data of all three directories, and inodes; what is not yet on disk is in it.
    Project,
}

/// What a sandbox holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories; `None` where the engine does not count them. With [`Counted::Walked`] each name counts.
    pub inodes: Option<u64>,
    /// What the bytes are.
    pub counted: Counted,
}

/// Why a sandbox cannot write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It is at its own limit of bytes.
    Bytes {
        /// In use now.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// It is at its own limit of files.
    Inodes {
        /// In use now.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// The file system below all sandboxes has no room: the machine's fault, not the sandbox's.
    Pool {
        /// Bytes that are free.
        free: u64,
    },
}

/// Room for sandboxes and images together, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// All there is for Berth, used or not, without `reserve`; with a pool in a file, as large as that can grow now.
    pub total: u64,
    /// What can be written now, growing the pool on the way. Room of removed sandboxes comes back after
    /// [`Engine::reap_trash`]; on btrfs some time after, when the kernel has cleaned up.
    pub free: u64,
    /// What Berth leaves to others on the file system of the data directory; part of neither `total` nor `free`.
    pub reserve: u64,
}

impl Capacity {
    /// That of a file system of so many bytes, of which others are left `reserve`.
    pub(crate) fn beside(reserve: u64, total: u64, free: u64) -> Self {
        Self { total: total.saturating_sub(reserve), free: free.saturating_sub(reserve), reserve }
    }
}

/// What [`Engine::reap_trash`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Removed sandboxes that are wholly gone now.
    pub sandboxes: u64,
    /// Files and directories deleted; a subvolume, which goes as a whole, counts as one.
    pub entries: u64,
}

/// Deletes a directory that nobody writes to any more, whatever was made below the directories in it: names and depth of
/// those may be a sandbox's, names directly in it are the caller's own. Returns the number of entries deleted; one that
/// is not there is no error. Blocks for as long as there are files.
///
/// # Errors
///
/// [`Error::Delete`], [`Error::ReadDir`].
pub fn delete_tree(path: &Path) -> Result<u64, Error> {
    tree::delete(path)
}

/// Counts what is in a directory, as [`Counted::Walked`] has it. Sandboxes may be at work in it.
///
/// # Errors
///
/// [`Error::TooDeep`]; and what the file system refuses.
pub fn walk_usage(path: &Path) -> Result<Usage, Error> {
    tree::usage(&[path])
}

/// A way to keep writable layers.
pub trait Engine: Send + Sync {
    /// Short name: `btrfs`, `btrfs-loop`, `xfs` or `plain`.
    fn name(&self) -> &'static str;

    /// The directory that the image store must live in, so that layers and writable directories are on one file
    /// system. Names in it that are the engine's: `sandboxes`, `trash`, `device-errors`.
    fn root(&self) -> &Path;

    /// Makes the writable directories of sandbox `id` (1 to 64 of `[A-Za-z0-9_-]`).
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when there are some already; [`Error::NotEnforced`], [`Error::LimitTooSmall`] and
    /// [`Error::LimitUnit`] for limits that the engine cannot hold; and what the file system refuses.
    fn create(&self, id: &str, limits: &Limits) -> Result<Writable, Error>;

    /// The writable directories of sandbox `id`, which an earlier call of [`Engine::create`] made, be it in another
    /// process.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; [`Error::Open`] where the sandbox lacks one of them; and what the file system refuses.
    fn writable(&self, id: &str) -> Result<Writable, Error>;

    /// Changes the limits of sandbox `id` while it runs. A limit below what is used already is taken: the sandbox can
    /// then write nothing until it has deleted enough.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], and those of [`Engine::create`].
    fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), Error>;

    /// Makes what sandbox `id` wrote (the spool is no part of it) a directory of its own, without limit, that rename(2) can move to anywhere in
    /// [`Engine::root`] and that rmdir(2) removes once it is empty; returns where it is now. Nothing may be mounted on
    /// the sandbox's directories any more, and nothing but renaming and [`Engine::remove`] comes afterwards.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; and what the file system refuses: the sandbox can only be removed then.
    fn release_tree(&self, id: &str) -> Result<PathBuf, Error>;

    /// Takes the directories of sandbox `id` away, in constant time: they no longer count, nor show in
    /// [`Engine::list`]. Their space is free after [`Engine::reap_trash`]. One that is not there is no error.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn remove(&self, id: &str) -> Result<(), Error>;

    /// Ids of all sandboxes that have directories, sorted.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn list(&self) -> Result<Vec<String>, Error>;

    /// Deletes everything that was removed so far. Takes as long as there are files (btrfs: sandboxes); calls wait for
    /// each other.
    ///
    /// # Errors
    ///
    /// The first failure, after everything else was tried.
    fn reap_trash(&self) -> Result<Reaped, Error>;

    /// Whether a limit of this kind is held.
    fn enforces(&self, what: Resource) -> bool;

    /// Whether a size given for a sandbox is a limit.
    fn enforces_storage(&self) -> bool {
        self.enforces(Resource::Bytes)
    }

    /// What sandbox `id` holds. [`Usage::counted`] says what that is and whether asking is cheap.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; [`Error::TooDeep`]; and what the file system refuses.
    fn usage(&self, id: &str) -> Result<Usage, Error>;

    /// Whether sandbox `id` is out of room now: `None` when it is not, as far as can be known. A single request larger
    /// than what is left (fallocate(2) of gigabytes) fails in a sandbox that this does not call full.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; and what the file system refuses.
    fn limit_hit(&self, id: &str) -> Result<Option<Full>, Error>;

    /// Room for sandboxes and images.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn capacity(&self) -> Result<Capacity, Error>;

    /// Bytes that can be written now: [`Capacity::free`].
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn free_bytes(&self) -> Result<u64, Error> {
        self.capacity().map(|capacity| capacity.free)
    }

    /// Whether what the sandboxes are on is still there, whole, and can be written to; cheap. With a pool: its file is
    /// the one that was opened and not shorter. On btrfs the devices have no errors that they had not before the
    /// oldest sandbox that was there at the start, or at the start (not told by kernels before 5.14).
    ///
    /// # Errors
    ///
    /// [`Error::PoolGone`], [`Error::PoolCut`], [`Error::DeviceErrors`], [`Error::ReadOnly`], [`Error::Open`]: what is on
    /// it may be lost.
    fn health(&self) -> Result<(), Error>;

    /// One line for people: which engine and where.
    fn describe(&self) -> String;
}
