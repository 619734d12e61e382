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
    /// Globs as of Python's `fnmatch` on the path relative to `path`, one per line. Where there are any, of files only
    /// those come along that match one.
    #[serde(default)]
    pub include: String,
    /// Globs as of `include`: of files, those that match one stay out, also where `include` matches.
    #[serde(default)]
    pub exclude_files: String,
    /// Paths (no globs) relative to `path` of files that come along whatever the others say, one per line.
    #[serde(default)]
    pub protect: String,
    /// Whether holes of sparse files are told (GNU's sparse format 1.0) rather than sent as zeros.
    #[serde(default)]
    pub sparse: bool,
}

impl ArchiveOut {
    /// All of `path`.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            exclude: String::new(),
            ignore_failed_read: false,
            include: String::new(),
            exclude_files: String::new(),
            protect: String::new(),
            sparse: false,
        }
    }
}

/// Query of `GET /v1/sandboxes/{id}/file`: bytes of one regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileOut {
    /// Absolute path; links are followed.
    pub path: String,
    /// Where to begin, in bytes. Beyond the end there is nothing.
    #[serde(default)]
    pub offset: u64,
    /// How many bytes at most; to the end when absent.
    #[serde(default)]
    pub length: Option<u64>,
    /// Whose permissions count; root's when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// Header of the answer to `GET …/file`: the size of the whole file just before it was opened, in bytes.
pub const FILE_SIZE: &str = "berth-file-size";

/// Query of `PUT /v1/sandboxes/{id}/file`: the body becomes the file's contents, as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileIn {
    /// Absolute path; a link there is replaced. Parents are made.
    pub path: String,
    /// Permission bits, as an octal number in text (`0644`); those of the file that is replaced, or 0644, when absent.
    #[serde(default)]
    pub mode: Option<String>,
    /// `user`, `uid`, `user:group`; that of the file that is replaced, or root, when absent.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether it is refused when something is there already.
    #[serde(default)]
    pub create_only: bool,
}

/// Answer to `PUT …/file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileReport {
    /// Bytes that were written.
    pub bytes: u64,
}

/// Query of `GET /v1/sandboxes/{id}/watch`: changes as JSON lines, until the client goes away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// Absolute path of a file or directory.
    pub path: String,
    /// Whether everything below is watched too.
    #[serde(default)]
    pub recursive: bool,
}

/// A line of `GET …/watch`. Nothing was missed between two of them, unless one says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The absolute path.
    pub path: String,
    /// Where it was before, for [`ChangeKind::Moved`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a directory.
    #[serde(default)]
    pub is_dir: bool,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// From here on changes are told; always the first.
    Ready,
    /// It is new.
    Created,
    /// Its contents changed.
    Modified,
    /// A writer closed it.
    Closed,
    /// Its mode, owner, times or number of links changed.
    Attributes,
    /// It has this name now.
    Moved,
    /// It is gone.
    Removed,
    /// There were too many to tell; some are missing here.
    Overflow,
}

/// Query of `GET /v1/sandboxes/{id}/tcp`: a WebSocket whose binary messages are the bytes of a connection to a port
/// inside. The text message `end` ends the client's half; closing it ends
/// both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpQuery {
    /// Host as the sandbox sees it; `localhost` when absent.
    #[serde(default)]
    pub host: Option<String>,
    /// Port.
    pub port: u16,
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
        /// `user`, `uid`, `user:group` to give each to, also where it exists already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
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
    /// What is in a directory, sorted by name.
    List {
        /// Absolute path; links are followed.
        path: String,
        /// Whose permissions count; root's when absent.
        #[serde(default)]
        user: Option<String>,
    },
}

/// Answer to an [`FsRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub struct FsResponse {
    /// For `stat`: what is there; absent when nothing is, or when `user` may not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stat: Option<FileStat>,
    /// For `list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<DirEntry>>,
}

/// An entry of a directory; links are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// What is there.
    pub stat: FileStat,
    /// Where a link points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
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
    /// When its contents last changed, in microseconds since the epoch.
    #[serde(default)]
    pub modified_us: i64,
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
