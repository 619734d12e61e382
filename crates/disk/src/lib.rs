//! The writable layer of each sandbox, and what becomes of it afterwards.
//!
//! ```text
//!   <data>/sandboxes/<id>/upper   overlayfs upper: what the sandbox wrote
//!                        /work    overlayfs work directory
//!   <data>/trash/<id>-<n>         removed sandboxes on their way out
//! ```
//!
//! One trait, [`Engine`], and for now one engine, [`Plain`]: directories of the file system that the data directory is
//! on. It runs everywhere and limits nothing. Engines that enforce a size (btrfs subvolumes with quotas, XFS projects)
//! come behind the same trait; [`open`] is the place that will choose among them.
//!
//! Removing is a rename, so that it takes no time and cannot half happen; [`Engine::reap_trash`] deletes later, at the
//! caller's leisure, and at the next start what a crash left. Deletion works on descriptors and never follows a path
//! made of names from inside a sandbox; it needs two descriptors at a time and constant stack, however deep a sandbox
//! nested its directories.
//!
//! It refuses ids that are not plain names ([`Error::BadId`]) and says that storage limits are not enforced
//! ([`Engine::enforces_storage`]) instead of pretending. It fails with an [`Error`] that names operation and path. All
//! calls block.
//!
//! Start reading at [`Engine`], then [`Plain`].

mod error;
mod plain;
mod tree;

use std::path::{Path, PathBuf};

pub use error::Error;
pub use plain::Plain;
pub use tree::Usage;

/// A sandbox's writable directories, both on one file system, as overlayfs wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writable {
    /// What the sandbox writes; empty at first. Its owner and mode are those of the sandbox's `/`.
    pub upper: PathBuf,
    /// overlayfs's own.
    pub work: PathBuf,
}

/// What [`Engine::reap_trash`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Removed sandboxes that are wholly gone now.
    pub sandboxes: u64,
    /// Files and directories deleted.
    pub entries: u64,
}

/// A way to keep writable layers.
pub trait Engine: Send + Sync {
    /// Short name: `plain`.
    fn name(&self) -> &'static str;

    /// Makes the writable directories of sandbox `id` (1 to 64 of `[A-Za-z0-9_-]`).
    ///
    /// # Errors
    ///
    /// [`Error::Exists`] when there are some already; and what the file system refuses.
    fn create(&self, id: &str) -> Result<Writable, Error>;

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

    /// Deletes everything that was removed so far. Takes as long as there are files; calls wait for each other.
    ///
    /// # Errors
    ///
    /// The first failure, after everything else was tried.
    fn reap_trash(&self) -> Result<Reaped, Error>;

    /// Whether a size given for a sandbox is a limit.
    fn enforces_storage(&self) -> bool;

    /// What sandbox `id` wrote so far. A count, not a record: takes as long as there are files.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`]; [`Error::TooDeep`]; and what the file system refuses.
    fn usage(&self, id: &str) -> Result<Usage, Error>;

    /// Bytes that are free for sandboxes.
    ///
    /// # Errors
    ///
    /// What the file system refuses.
    fn free_bytes(&self) -> Result<u64, Error>;

    /// One line for people: which engine, where, and why this one.
    fn describe(&self) -> String;
}

/// Opens the best engine that `data_dir` can have.
///
/// # Errors
///
/// The directories cannot be made.
pub fn open(data_dir: &Path) -> Result<Box<dyn Engine>, Error> {
    Ok(Box::new(Plain::open(data_dir)?))
}
