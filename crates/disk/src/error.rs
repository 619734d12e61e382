//! What can go wrong with writable layers.

use std::io;
use std::path::PathBuf;

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
    /// Making a directory failed.
    #[error("could not make the directory {path}")]
    MakeDir {
        /// The directory.
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
        /// The data directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
