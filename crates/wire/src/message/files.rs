//! Files: trees as tars, single ones, small operations, and changes.

use serde::{Deserialize, Serialize};

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadFile {
    /// Absolute path of a regular file; links are followed.
    pub path: String,
    /// Where it begins, in bytes; beyond the end there is nothing.
    #[serde(default)]
    pub offset: u64,
    /// Its length in bytes; to the end of the file when absent.
    #[serde(default)]
    pub length: Option<u64>,
    /// As in [`crate::Exec::user`]: whose permissions count; root's when absent.
    #[serde(default)]
    pub user: Option<String>,
}

/// A file to be written as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteFile {
    /// Absolute path. A link there is replaced, not followed; links in its directory are. Parents are made.
    pub path: String,
    /// Permission bits; those of the file that it replaces, or 0644, when absent.
    #[serde(default)]
    pub mode: Option<u32>,
    /// As in [`crate::Exec::user`]; that of the file that it replaces, or root, when absent.
    #[serde(default)]
    pub owner: Option<String>,
    /// Whether it is refused with [`crate::FailureCode::Exists`] when something is there already.
    #[serde(default)]
    pub create_only: bool,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Absolute path of a file or directory; links are followed.
    pub path: String,
    /// Whether all directories below are watched too, also those made later.
    #[serde(default)]
    pub recursive: bool,
}

/// Something that happened to a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What.
    pub kind: ChangeKind,
    /// The absolute path. Bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Where it was before, of [`ChangeKind::Moved`] within what is watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a directory.
    #[serde(default)]
    pub is_dir: bool,
}

/// Kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// From here on changes are told.
    Ready,
    /// It is new.
    Created,
    /// Its contents changed.
    Modified,
    /// A writer has closed it.
    Closed,
    /// Its mode, owner, times or links changed.
    Attributes,
    /// It has this name now.
    Moved,
    /// It is gone.
    Removed,
    /// Changes were lost since there were too many: look for yourself.
    Overflow,
}

/// Where a tar goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unpack {
    /// Absolute directory; made with its parents when it is not there, followed when it is a symlink to one.
    pub path: String,
    /// Who owns what is unpacked.
    pub owner: Owner,
    /// Permission bits for every file and directory of the archive, in place of the archive's own.
    #[serde(default)]
    pub mode: Option<u32>,
    /// What becomes of what cannot be unpacked as it is, and of what stands in the way. Left out where it is the default,
    /// so that a guest which does not know it yet takes uploads all the same.
    #[serde(default, skip_serializing_if = "Manner::is_default")]
    pub manner: Manner,
}

/// How strictly a tar is unpacked. In all manners directories merge, and anything else that is no directory is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// A client's upload: devices and FIFOs are skipped; a directory takes the place of a file, and a file that of an empty
    /// directory.
    #[default]
    Upload,
    /// The files of a build's `COPY`: FIFOs and devices are made, or refused; a file in the place of a directory, or a
    /// directory in that of a file, is refused.
    Copy,
    /// An archive that a build's `ADD` unpacks: FIFOs and devices are made, or refused; whatever is of another kind than the
    /// entry is replaced, a directory with all that is in it.
    Archive,
}

impl Manner {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Who owns unpacked files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// 0:0.
    #[default]
    Root,
    /// The numeric ids in the archive.
    Keep,
    /// A user as in [`crate::Exec::user`], looked up in the sandbox; directories made on the way get it as well.
    User(String),
}

/// What goes into a tar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Absolute path. A directory's entries are named relative to it; anything else is one entry of its base name.
    pub path: String,
    /// Patterns of GNU tar's `--exclude`, matched as if the archive were made of `.` in the directory.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether a symlink at `path` is followed.
    #[serde(default)]
    pub follow: bool,
    /// Whether a directory's own mode, owner and time come first, as an entry named `./`.
    #[serde(default)]
    pub include_top: bool,
    /// Whether extended attributes come along (as `SCHILY.xattr`).
    #[serde(default)]
    pub xattrs: bool,
    /// Whether what is mounted below `path` stays out: an empty directory stands for a tree, nothing for anything else.
    #[serde(default)]
    pub one_mount: bool,
    /// Whether what cannot be read is listed as unread, rather than failing the whole.
    #[serde(default)]
    pub ignore_failed_read: bool,
    /// Globs as of Python's `fnmatch` on the path relative to `path`. Where there are any of these or of `exclude_files`,
    /// regular files alone come along, without the directories that hold them, and here: those that match one.
    #[serde(default)]
    pub include: Vec<String>,
    /// Globs as of `include`: files that match one stay out, also where `include` matches.
    #[serde(default)]
    pub exclude_files: Vec<String>,
    /// Paths (no globs) relative to `path` of files that come along whatever `include`, `exclude` and `exclude_files` say.
    #[serde(default)]
    pub protect: Vec<String>,
    /// Whether holes of sparse files are told rather than sent as zeros (GNU sparse 1.0 in pax).
    #[serde(default)]
    pub sparse: bool,
    /// Whether files come along as they are or the whole fails: with FIFOs and devices, and without passing over a socket or
    /// an attribute that cannot be read. Left out where it is not, as [`Unpack::manner`] is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exact: bool,
}

/// Small file-system operations. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "op", deny_unknown_fields)]
pub enum Fs {
    /// What `path` is, following symlinks, as `user` sees it.
    Stat {
        /// The path.
        path: String,
        /// Whose permissions count; root's when absent.
        #[serde(default)]
        user: Option<String>,
    },
    /// Make directories and their parents; `mode` and `owner` are set on each named one, also where it exists.
    Mkdir {
        /// The directories.
        paths: Vec<String>,
        /// Permission bits; 0755, and only for new ones, when absent.
        #[serde(default)]
        mode: Option<u32>,
        /// As in [`crate::Exec::user`]; root, and only for new ones, when absent. Parents are always root's.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Remove what is in each directory but keep the directory; anything else there is replaced by a directory.
    Empty {
        /// The directories.
        paths: Vec<String>,
        /// Permission bits to set on each.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Remove each path and what is below it; one that is not there is no error.
    Remove {
        /// The paths.
        paths: Vec<String>,
    },
    /// What is in a directory, sorted by name.
    List {
        /// The directory; links are followed.
        path: String,
        /// Whose permissions count; root's when absent.
        #[serde(default)]
        user: Option<String>,
    },
}

/// An entry of a directory. Links are not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name. Bytes that are not UTF-8 are shown as U+FFFD.
    pub name: String,
    /// What is there; kind [`FileKind::Other`] for a link.
    pub stat: FileStat,
    /// Where a link points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// Which paths to find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Glob {
    /// An absolute path whose components are patterns of Go's `filepath.Match`.
    pub pattern: String,
}

/// What became of an archive. Lists end at [`crate::MAX_LISTED`] names; the counts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnpackReport {
    /// Entries that were unpacked.
    pub entries: u64,
    /// Bytes of file contents that were written.
    pub bytes: u64,
    /// How many entries were refused since they would have left the target or are not understood.
    pub refused_count: u64,
    /// Those, each `name: why`. Bytes that are not UTF-8 are shown as U+FFFD.
    pub refused: Vec<Notice>,
    /// How many entries were of kinds that an upload does not unpack: devices, FIFOs.
    pub skipped_count: u64,
    /// Those.
    pub skipped: Vec<Notice>,
    /// How many extended attributes the file system did not take.
    pub xattrs_lost: u64,
    /// Their files.
    pub lost: Vec<Notice>,
}

/// What went into an archive. Lists end at [`crate::MAX_LISTED`] names; the counts do not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PackReport {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of file contents in the archive.
    pub bytes: u64,
    /// How many sockets, FIFOs and devices, and trees that the kernel makes up, were left out.
    pub skipped_count: u64,
    /// Those.
    pub skipped: Vec<Notice>,
    /// How many files and directories could not be read, where that does not fail the whole: left out, or filled up
    /// with zeros.
    pub unread_count: u64,
    /// Those.
    pub unread: Vec<Notice>,
    /// How many files changed while they were read: cut at, or padded with zeros to, the size they had at first; or
    /// gone before they could be opened.
    pub changed_count: u64,
    /// Those.
    pub changed: Vec<Notice>,
}

/// A path and what there is to say of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The path, as in the archive. Bytes that are not UTF-8 are shown as U+FFFD.
    pub path: String,
    /// Why it is listed.
    pub why: String,
}

/// One file's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// Its kind.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else.
    Other,
}
