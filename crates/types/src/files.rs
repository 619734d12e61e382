//! Small file-system calls into a sandbox; bulk data goes as one tar stream (see the `archive` routes).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Media type of file trees on the wire: an uncompressed POSIX tar (pax).
pub const TAR_TYPE: &str = "application/x-tar";

/// Query of `PUT /v1/sandboxes/{id}/archive`: unpack the tar in the body into `path`.
///
/// Entries merge into the target: what is there already stays, same names are replaced. Owner is
/// root:root unless `keep_ids`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveIn {
    /// Absolute directory in the sandbox; made, with its parents, when it is not there.
    pub path: String,
    /// Keep the numeric owners of the archive's entries.
    #[serde(default)]
    pub keep_ids: bool,
}

/// Answer to `PUT /v1/sandboxes/{id}/archive`: what was not unpacked, entry by entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ArchiveReport {
    /// Entries that would have left the target or that the target does not allow, each `name: why`.
    pub refused: Vec<String>,
    /// Entries of kinds that are never unpacked (FIFOs, sockets, devices), by name.
    pub skipped: Vec<String>,
}

/// Query of `GET /v1/sandboxes/{id}/archive`: a tar of `path`.
///
/// A directory's entries are named relative to it; a file is one entry under its base name. FIFOs, sockets and
/// devices are left out; so are file systems of the kernel's (proc, sysfs, cgroup) and the directory of devices below
/// `path`, but for an empty directory.
///
/// To a client that takes trailers (`TE: trailers`) a complete tar is followed by [`ARCHIVE_REPORT`], and one that
/// breaks off by [`ARCHIVE_ERROR`]. To any other the connection breaks in that case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveOut {
    /// Absolute path in the sandbox.
    pub path: String,
    /// Patterns of GNU tar's `--exclude` (unanchored, wildcards match `/`), one per line.
    #[serde(default)]
    pub exclude: String,
    /// Whether files that cannot be read are left out, or filled up with zeros, and listed in the report. Without it
    /// the first one breaks the tar off.
    #[serde(default)]
    pub ignore_failed_read: bool,
}

/// Trailer after a complete tar: an [`ArchiveOutReport`] as JSON, percent-encoded.
pub const ARCHIVE_REPORT: &str = "berth-archive-report";

/// Trailer after a tar that broke off: a [`crate::error::ApiError`] as JSON, percent-encoded.
pub const ARCHIVE_ERROR: &str = "berth-archive-error";

/// What is not in a tar of `GET /v1/sandboxes/{id}/archive` as it was in the sandbox. The lists, `path: why` each, hold
/// the first ones; the counts count all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchiveOutReport {
    /// How many FIFOs, sockets, devices and file systems of the kernel's were left out.
    pub skipped_count: u64,
    /// Those.
    pub skipped: Vec<String>,
    /// How many files could not be read: left out, or filled up with zeros.
    pub unread_count: u64,
    /// Those.
    pub unread: Vec<String>,
    /// How many files changed while they were read: gone, cut, or filled up with zeros.
    pub changed_count: u64,
    /// Those.
    pub changed: Vec<String>,
}

/// Body of `POST /v1/sandboxes/{id}/fs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum FsRequest {
    /// What `path` is, following symlinks, as `user` sees it (root when absent).
    Stat {
        /// Absolute path.
        path: String,
        /// Whose permissions decide what can be seen.
        #[serde(default)]
        user: Option<String>,
    },
    /// Make directories and their parents, as root; existing ones stay as they are, but for `mode`.
    Mkdir {
        /// Absolute paths.
        paths: Vec<String>,
        /// Permission bits to set on each, also where it exists already.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Remove everything inside each directory but keep the directory itself, so that mounts on it live on;
    /// whatever else stands at the path (a file, a symlink) is replaced by a directory.
    Empty {
        /// Absolute paths.
        paths: Vec<String>,
        /// Permission bits to set on each.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Remove each path and all below it; one that is not there is no error.
    Remove {
        /// Absolute paths.
        paths: Vec<String>,
    },
}

/// Answer to an [`FsRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub struct FsResponse {
    /// For `stat`: what is there; absent when nothing is, or when `user` may not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<FileStat>,
}

/// One file's facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileStat {
    /// What kind of file it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of files that a caller tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: device, FIFO, socket.
    Other,
}
