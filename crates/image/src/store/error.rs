//! What the store can fail with.

use std::io;
use std::path::PathBuf;

use super::FORMAT;
use crate::digest::Digest;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory of the store cannot be made.
    #[error("cannot make directory {path}")]
    MakeDir {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another process has the store.
    #[error("the image store in {root} is in use by another process")]
    Locked {
        /// Root of the store.
        root: PathBuf,
    },
    /// A file of the store cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of the store cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Something cannot be renamed to its final name.
    #[error("cannot rename {from} to {to}")]
    Rename {
        /// Old name.
        from: PathBuf,
        /// New name.
        to: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The file system cannot be synced.
    #[error("cannot sync the file system of {path}")]
    Sync {
        /// A directory on it.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Something cannot be removed.
    #[error("cannot remove {path}")]
    Remove {
        /// What.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file is not what the store writes.
    #[error("{path} is malformed")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// A file is longer than any that the store writes.
    #[error("{path} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file of another version of Berth.
    #[error("{path} is of format {found}, and this Berth knows only format {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Two layers whose digests begin alike.
    #[error("layers {present} and {new} would share a name; the second is refused")]
    NameTaken {
        /// The layer in the store.
        present: Digest,
        /// The one that cannot come in.
        new: Digest,
    },
    /// An image config that cannot be read.
    #[error("the image config {id} is malformed")]
    Config {
        /// Its digest.
        id: Digest,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// A new image's config that is no table of fields.
    #[error("an image config must be a JSON object")]
    NotAConfig,
    /// A layer is not in the store.
    #[error("layer {diff_id} is not in the store")]
    NoLayer {
        /// The layer.
        diff_id: Digest,
    },
    /// An image is not in the store.
    #[error("image {name:?} is not in the store")]
    NoImage {
        /// As it was asked for.
        name: String,
    },
    /// Several images' ids begin like that.
    #[error("{prefix:?} is the beginning of several image ids: {}", list(candidates))]
    Ambiguous {
        /// As it was asked for.
        prefix: String,
        /// The ids.
        candidates: Vec<Digest>,
    },
    /// An image is in use.
    #[error("image {id} is in use by {users} sandboxes or builds")]
    Pinned {
        /// The image.
        id: Digest,
        /// How many pins there are.
        users: usize,
    },
}

fn list(ids: &[Digest]) -> String {
    ids.iter().map(Digest::short).collect::<Vec<_>>().join(", ")
}
