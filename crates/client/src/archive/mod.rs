//! Directories of this machine as tar streams, and back.
//!
//! Packing and unpacking run on a blocking thread each, joined to the async side by a bounded pipe: memory use
//! does not grow with the tree, and whichever side goes away stops the other.
//!
//! What comes out of a sandbox is not trusted. An entry whose name is absolute or climbs out of the target, one
//! that would be written through a symlink, and a symlink that points out of the target are left out, each by itself,
//! and returned to the caller; the rest is unpacked. Set-id bits are dropped, since the files would carry
//! this user's rights.
//!
//! Start reading at [`pack_dir`] and [`unpack_into`].

use std::io;
use std::path::PathBuf;

use berth_types::error::Kind;

mod manifest;
mod pack;
mod pipe;
mod unpack;

pub use manifest::manifest_of;
pub use pack::{pack_dir, pack_file};
pub use pipe::PackedTar;
pub use unpack::{unpack_file, unpack_into};

/// Why files could not be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive ended early or is no tar.
    #[error("the archive cannot be read")]
    Read {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A build context could not be read.
    #[error("the build context cannot be read")]
    ReadContext {
        /// Why not, with the file.
        source: io::Error,
    },
    /// The target directory could not be made or opened.
    #[error("cannot open the directory {}", path.display())]
    OpenTarget {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An entry could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// One file was expected, and the archive holds something else.
    #[error("one file was to become {}, but the archive holds {found}", path.display())]
    NotOneFile {
        /// Where the file was to go.
        path: PathBuf,
        /// What the archive holds.
        found: String,
    },
    /// Something other than a regular file stands where a file was to be written.
    #[error("{} is there and is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The blocking thread went away with the runtime.
    #[error("the work on files was cut off")]
    CutOff {
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Read { source } => {
                let told = source.get_ref().and_then(|error| error.downcast_ref::<crate::Error>());
                told.map_or(Kind::Unavailable, crate::Error::kind)
            }
            Error::ReadContext { .. }
            | Error::OpenTarget { .. }
            | Error::NotOneFile { .. }
            | Error::NotAFile { .. } => Kind::User,
            Error::Write { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::Capacity,
                _ => Kind::User,
            },
            Error::CutOff { .. } => Kind::Internal,
        }
    }
}

#[cfg(test)]
mod tests;
