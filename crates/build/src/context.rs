//! The build context: a directory's files, seen once, without those that the ignore file excludes.
//!
//! The context comes from a client and may hold anything. Everything but file bytes is decided on the listing made by
//! [`Context::open`]; bytes are read by `openat2` beneath the directory, never through a symbolic link, so no file of
//! the host can slip in.
//!
//! [`Context::of_manifest`] makes the same from what a client says that its directory holds. The same content has the
//! same keys both ways; whoever asks such a context for a file's bytes gets [`ContextError::NoBytes`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use berth_types::image::{ContextEntry, ContextKind, ContextManifest};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat};

use crate::ignore::{Ignore, IgnoreError};
use crate::key::{Digest, Hasher};

/// Most symbolic links followed for one path, as in Linux.
const MAX_LINKS: usize = 40;
/// Longest Dockerfile or ignore file that is read.
const MAX_TEXT: u64 = 16 << 20;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// The files that a build may copy.
#[derive(Debug)]
pub struct Context {
    /// `None` when only a manifest is known.
    root: Option<OwnedFd>,
    path: PathBuf,
    ignore: Ignore,
    entries: BTreeMap<String, Entry>,
    digests: Mutex<HashMap<String, Digest>>,
    /// Digests that were known before.
    known: Digests,
}

/// SHA-256 of the bytes of files, by path in the context.
pub type Digests = Arc<HashMap<String, Digest>>;

/// One file of the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Time of the last change, in seconds. Kept in images, never in a key.
    pub mtime: i64,
}

/// What a file of the context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of so many bytes.
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link and where it points.
    Link(String),
    /// Something that cannot be copied, and what that is.
    Special(&'static str),
}

/// A context that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The directory cannot be opened.
    #[error("cannot open the build context {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error("cannot read `{name}` in the build context {}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// The file in it.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A Dockerfile or ignore file is too long to be one.
    #[error("`{name}` in the build context has more than {limit} bytes")]
    TooLong {
        /// The file.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// A manifest contradicts itself.
    #[error("the build context's manifest is wrong about `{path}`: {reason}")]
    Manifest {
        /// The entry.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file is known by its digest only: the context is a manifest.
    #[error("the bytes of `{name}` are not there, only what the build context's manifest says of it")]
    NoBytes {
        /// The file.
        name: String,
    },
    /// The ignore file is malformed.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
}

impl ContextError {
    /// Whether what the context holds is wrong, and not the machine that reads it.
    pub fn is_content(&self) -> bool {
        match self {
            Self::Open { .. } | Self::NoBytes { .. } => false,
            Self::TooLong { .. } | Self::Ignore(_) | Self::Manifest { .. } => true,
            // Links that lead out of the context or in circles, and texts that are not UTF-8.
            Self::Read { source, .. } => {
                let code = source.raw_os_error();
                let [out, circle] =
                    [rustix::io::Errno::XDEV, rustix::io::Errno::LOOP].map(|errno| errno.raw_os_error());
                source.kind() == io::ErrorKind::InvalidData || code == Some(out) || code == Some(circle)
            }
        }
    }
}

/// Why a file of a manifest cannot be opened, as the cause of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("only the manifest of the build context is there")]
struct NoBytes;

/// A path that leads nowhere in the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// Nothing is there.
    Missing,
    /// It, or a link on the way, leads out of the context.
    Escapes(String),
}

impl Context {
    /// Lists a directory. The ignore file is `<dockerfile>.dockerignore`, beside the Dockerfile, or else
    /// `.dockerignore`.
    pub fn open(path: &Path, dockerfile: &str) -> Result<Self, ContextError> {
        let root = open_root(path)?;
        let mut ignore = Ignore::default();
        for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
            if let Some(text) = read_text(&root, path, &name)? {
                ignore = Ignore::parse(&name, &text)?;
                break;
            }
        }
        let entries = Scan { root: &root, path, listing: Listing::new(&ignore) }.run()?;
        let (path, digests, known) = (path.to_owned(), Mutex::default(), Digests::default());
        Ok(Self { root: Some(root), path, ignore, entries, digests, known })
    }

    /// The same context, of whose files some digests are known already: nobody may have written to these since. Such files
    /// are not read for their digests.
    #[must_use]
    pub fn knowing(self, known: Digests) -> Self {
        Self { known, ..self }
    }

    /// What a manifest lists. The ignore file is found among its texts as [`Context::open`] finds it in a directory.
    ///
    /// # Errors
    ///
    /// An entry that no directory can have, and one whose directory is not an entry itself: a directory with files that
    /// are not excluded must be in the manifest, whether it is excluded or not.
    pub fn of_manifest(manifest: &ContextManifest, dockerfile: &str) -> Result<Self, ContextError> {
        let mut ignore = Ignore::default();
        for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
            if let Some(text) = manifest.texts.get(&name) {
                ignore = Ignore::parse(&name, text)?;
                break;
            }
        }
        // In this order every directory comes before what is in it.
        let mut sorted: Vec<&ContextEntry> = manifest.entries.iter().collect();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        let (mut digests, mut dirs) = (HashMap::new(), HashSet::new());
        let mut listing = Listing::new(&ignore);
        let mut last = None;
        for entry in sorted {
            let path = entry.path.as_str();
            let wrong = |reason| ContextError::Manifest { path: path.to_owned(), reason };
            if last.replace(path) == Some(path) {
                return Err(wrong("it is listed twice"));
            }
            check_path(path).map_err(wrong)?;
            let parent = path.rsplit_once('/').map(|(parent, _)| parent);
            if parent.is_some_and(|parent| !dirs.contains(parent)) {
                return Err(wrong("the directory that it is in is not listed before it"));
            }
            let kind = match &entry.kind {
                ContextKind::File { size, digest } => {
                    let digest = Digest::read(digest).ok_or_else(|| wrong("its digest is no SHA-256"))?;
                    digests.insert(path.to_owned(), digest);
                    EntryKind::File(*size)
                }
                ContextKind::Dir => {
                    dirs.insert(path);
                    EntryKind::Dir
                }
                ContextKind::Link { target } => EntryKind::Link(target.clone()),
                ContextKind::Special => EntryKind::Special("no file, directory or link"),
            };
            listing.keep(path.to_owned(), Entry { kind, mode: entry.mode & 0o7777, mtime: 0 });
        }
        let entries = listing.found;
        let known = Arc::new(digests);
        Ok(Self { root: None, path: PathBuf::new(), ignore, entries, digests: Mutex::default(), known })
    }

    /// A text file of a context that has not been listed yet; `None` when it is not there.
    pub fn read(path: &Path, name: &str) -> Result<Option<String>, ContextError> {
        read_text(&open_root(path)?, path, name)
    }

    /// Every file by its path.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The file of a path that is resolved already.
    pub(crate) fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Everything below a directory, with paths relative to it; `""` is the whole context.
    pub(crate) fn below(&self, dir: &str) -> Vec<(String, &Entry)> {
        if dir.is_empty() {
            return self.entries.iter().map(|(path, entry)| (path.clone(), entry)).collect();
        }
        let (from, to) = (format!("{dir}/"), format!("{dir}0"));
        self.entries
            .range(from.clone()..to)
            .map(|(path, entry)| (path[from.len()..].to_owned(), entry))
            .collect()
    }

    /// The path that `path` leads to, every symbolic link followed; `""` is the context itself.
    pub(crate) fn resolve(&self, path: &str) -> Result<String, Unresolved> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut at: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." if at.pop().is_none() => return Err(Unresolved::Escapes(path.to_owned())),
                ".." => continue,
                _ => at.push(part),
            }
            let here = at.join("/");
            let entry = self.entries.get(&here).ok_or(Unresolved::Missing)?;
            let EntryKind::Link(target) = &entry.kind else {
                match todo.iter().any(|part| !part.is_empty() && part != ".") && entry.kind != EntryKind::Dir
                {
                    true => return Err(Unresolved::Missing),
                    false => continue,
                }
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Unresolved::Missing);
            }
            if target.starts_with('/') {
                return Err(Unresolved::Escapes(here));
            }
            at.pop();
            if climbs_out(at.len(), target) {
                return Err(Unresolved::Escapes(here));
            }
            todo.extend(target.split('/').rev().map(str::to_owned));
        }
        Ok(at.join("/"))
    }

    /// The rule of the ignore file that excludes a path which is there otherwise.
    pub(crate) fn excluded_by(&self, path: &str) -> Option<String> {
        let path = path.trim_start_matches("./").trim_matches('/');
        // A manifest may leave out what is excluded, so only the rules can be asked.
        if let Some(root) = &self.root {
            statat(root, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        }
        self.ignore.excluded_by(path)
    }

    /// A file's bytes.
    pub(crate) fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = BENEATH | ResolveFlags::NO_SYMLINKS;
        let root = self.root.as_ref().ok_or_else(|| io::Error::other(NoBytes))?;
        Ok(File::from(openat2(root, name, flags, Mode::empty(), resolve)?))
    }

    /// Hash of a file's bytes. Each file is read once.
    pub(crate) fn digest(&self, name: &str) -> Result<Digest, ContextError> {
        if let Some(known) = self.known.get(name) {
            return Ok(*known);
        }
        if let Some(known) = self.hashed().get(name) {
            return Ok(*known);
        }
        let digest = self
            .open_file(name)
            .and_then(Hasher::of_reader)
            .map_err(|source| self.unreadable(name, source))?;
        self.hashed().insert(name.to_owned(), digest);
        Ok(digest)
    }

    pub(crate) fn unreadable(&self, name: &str, source: io::Error) -> ContextError {
        if source.get_ref().is_some_and(|inner| inner.is::<NoBytes>()) {
            return ContextError::NoBytes { name: name.to_owned() };
        }
        ContextError::Read { path: self.path.clone(), name: name.to_owned(), source }
    }

    fn hashed(&self) -> std::sync::MutexGuard<'_, HashMap<String, Digest>> {
        self.digests.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether a relative link in a directory `depth` levels down climbs above the context.
fn climbs_out(mut depth: usize, target: &str) -> bool {
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return true,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

fn open_root(path: &Path) -> Result<OwnedFd, ContextError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|source| ContextError::Open { path: path.to_owned(), source: source.into() })
}

fn read_text(root: &OwnedFd, path: &Path, name: &str) -> Result<Option<String>, ContextError> {
    let unreadable = |source| ContextError::Read { path: path.to_owned(), name: name.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat2(root, name, flags, Mode::empty(), BENEATH) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(unreadable(error.into())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(ContextError::TooLong { name: name.to_owned(), limit: MAX_TEXT });
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|error| unreadable(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The walk that lists a context.
struct Scan<'a> {
    root: &'a OwnedFd,
    path: &'a Path,
    listing: Listing<'a>,
}

impl Scan<'_> {
    fn run(mut self) -> Result<BTreeMap<String, Entry>, ContextError> {
        let mut queue = vec![String::new()];
        while let Some(dir) = queue.pop() {
            self.dir(&dir, &mut queue)?;
        }
        Ok(self.listing.found)
    }

    fn dir(&mut self, dir: &str, queue: &mut Vec<String>) -> Result<(), ContextError> {
        let unreadable = |source: rustix::io::Errno| self.unreadable(dir, source);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = if dir.is_empty() { "." } else { dir };
        let resolve = BENEATH | ResolveFlags::NO_SYMLINKS;
        let fd = openat2(self.root, name, flags, Mode::empty(), resolve).map_err(unreadable)?;
        let listing = Dir::read_from(&fd).map_err(unreadable)?;
        for item in listing {
            let item = item.map_err(|source| self.unreadable(dir, source))?;
            let raw = item.file_name();
            if matches!(raw.to_bytes(), b"." | b"..") {
                continue;
            }
            let name = raw.to_string_lossy();
            let path = if dir.is_empty() { name.to_string() } else { format!("{dir}/{name}") };
            let mut entry = entry(&fd, raw).map_err(|source| self.unreadable(&path, source))?;
            if raw.to_str().is_err() {
                entry.kind = EntryKind::Special("a file whose name is not UTF-8");
            }
            if self.listing.keep(path.clone(), entry) {
                queue.push(path);
            }
        }
        Ok(())
    }

    fn unreadable(&self, name: &str, source: rustix::io::Errno) -> ContextError {
        ContextError::Read { path: self.path.to_owned(), name: name.to_owned(), source: source.into() }
    }
}

/// What of a directory is part of the context.
struct Listing<'a> {
    ignore: &'a Ignore,
    /// Directories that are excluded but may hold files that are not.
    dirs: HashMap<String, Entry>,
    found: BTreeMap<String, Entry>,
}

impl<'a> Listing<'a> {
    fn new(ignore: &'a Ignore) -> Self {
        Self { ignore, dirs: HashMap::new(), found: BTreeMap::new() }
    }

    /// Adds what is part of the context. Directories come before what is in them. Says whether that has to be looked at.
    fn keep(&mut self, path: String, entry: Entry) -> bool {
        let excluded = self.ignore.excludes(&path);
        let is_dir = entry.kind == EntryKind::Dir;
        let descend = is_dir && (!excluded || self.ignore.keeps_any());
        if excluded {
            if is_dir {
                self.dirs.insert(path, entry);
            }
            return descend;
        }
        // A file that is kept brings the directories above it along.
        for (at, _) in path.match_indices('/') {
            if let Some(parent) = self.dirs.remove(&path[..at]) {
                self.found.insert(path[..at].to_owned(), parent);
            }
        }
        self.found.insert(path, entry);
        descend
    }
}

/// Whether a path can be that of a file in a directory: parts joined by one `/` each, none of them `.` or `..`.
fn check_path(path: &str) -> Result<(), &'static str> {
    match path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
        true => Err("it is not the path of a file in a directory"),
        false => Ok(()),
    }
}

fn entry(dir: impl AsFd, name: &std::ffi::CStr) -> rustix::io::Result<Entry> {
    let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File(u64::try_from(stat.st_size).unwrap_or(0)),
        FileType::Directory => EntryKind::Dir,
        FileType::Symlink => match readlinkat(&dir, name, Vec::new())?.into_string() {
            Ok(target) => EntryKind::Link(target),
            Err(_) => EntryKind::Special("a symbolic link whose target is not UTF-8"),
        },
        FileType::Fifo => EntryKind::Special("a FIFO"),
        FileType::Socket => EntryKind::Special("a socket"),
        _ => EntryKind::Special("a device"),
    };
    Ok(Entry { kind, mode: stat.st_mode & 0o7777, mtime: stat.st_mtime as i64 })
}
