//! Trees that a sandbox wrote: deleting one, counting one.
//!
//! Their names and shape are the sandbox's and so not to be trusted. Every step goes from a directory's descriptor to
//! one name in it and follows no symbolic link.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::{Counted, Error, Usage};

/// Directories that [`usage`] has open at once; a sandbox can nest without end, descriptors have one.
const MAX_DEPTH: usize = 512;

/// Deletes the directory `path` and all below it; returns the number of entries deleted.
///
/// A directory that is not empty when its turn comes is first moved up into `path` under a number. So there is never
/// more than one level to walk: no recursion, and no descriptor kept for each level. The numbers meet no name of the
/// sandbox's, as only what this crate named lies directly in `path`.
pub(crate) fn delete(path: &Path) -> Result<u64, Error> {
    let failed = |source: Errno| Error::Delete { path: path.to_owned(), source: source.into() };
    let top = match open_dir(CWD, path) {
        Err(Errno::NOENT) => return Ok(0),
        other => other.map_err(failed)?,
    };
    let mut deletion = Deletion { top: top.as_fd(), path, moved: 0, waiting: Vec::new(), entries: 0 };
    deletion.empty(top.as_fd(), path)?;
    while let Some(name) = deletion.waiting.pop() {
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let dir = open_dir(top.as_fd(), &name)
            .map_err(|source| Error::Delete { path: path.clone(), source: source.into() })?;
        deletion.empty(dir.as_fd(), &path)?;
        deletion.remove_dir(top.as_fd(), &name, &path)?;
    }
    let entries = deletion.entries;
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(failed)?;
    Ok(entries + 1)
}

struct Deletion<'a> {
    top: BorrowedFd<'a>,
    path: &'a Path,
    /// Directories moved up so far; the next one's name.
    moved: u64,
    /// Names in `top` of directories whose turn is yet to come.
    waiting: Vec<CString>,
    entries: u64,
}

impl Deletion<'_> {
    /// Deletes what is in `dir`, but moves up what must itself be emptied first.
    fn empty(&mut self, dir: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
        let is_top = path == self.path;
        for (name, kind) in names(dir).map_err(|source| read_failed(path, source))? {
            let at = || path.join(OsStr::from_bytes(name.to_bytes()));
            // A file system that does not tell the kind in the listing says so by refusing.
            let as_file = match kind {
                FileType::Directory => Err(Errno::ISDIR),
                _ => rustix::fs::unlinkat(dir, &name, AtFlags::empty()),
            };
            match as_file {
                Ok(()) => self.entries += 1,
                Err(Errno::NOENT) => {}
                Err(Errno::ISDIR) if is_top => self.waiting.push(name),
                Err(Errno::ISDIR) => self.remove_or_move_up(dir, name, path)?,
                Err(source) => return Err(Error::Delete { path: at(), source: source.into() }),
            }
        }
        Ok(())
    }

    fn remove_or_move_up(&mut self, dir: BorrowedFd<'_>, name: CString, path: &Path) -> Result<(), Error> {
        match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) => self.entries += 1,
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.move_up(dir, &name, path)?,
            Err(source) => {
                let path = path.join(OsStr::from_bytes(name.to_bytes()));
                return Err(Error::Delete { path, source: source.into() });
            }
        }
        Ok(())
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Error> {
        loop {
            let number = CString::new(format!("{:x}", self.moved)).unwrap_or_default();
            self.moved += 1;
            match rustix::fs::renameat(dir, name, self.top, &number) {
                Ok(()) => {
                    self.waiting.push(number);
                    return Ok(());
                }
                // A number of an earlier deletion that was cut short; it waits for its own turn.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(source) => {
                    let path = path.join(OsStr::from_bytes(name.to_bytes()));
                    return Err(Error::Delete { path, source: source.into() });
                }
            }
        }
    }

    fn remove_dir(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Error> {
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(|source| Error::Delete { path: path.to_owned(), source: source.into() })?;
        self.entries += 1;
        Ok(())
    }
}

#[derive(Default)]
struct Count {
    bytes: u64,
    entries: u64,
}

/// Counts what is in the directories `paths`, themselves left out.
pub(crate) fn usage(paths: &[&Path]) -> Result<Usage, Error> {
    let (mut usage, mut counted) = (Count::default(), HashSet::new());
    for path in paths {
        count_all(path, &mut usage, &mut counted)?;
    }
    Ok(Usage { bytes: usage.bytes, inodes: Some(usage.entries), counted: Counted::Walked })
}

fn count_all(path: &Path, usage: &mut Count, counted: &mut HashSet<(u64, u64)>) -> Result<(), Error> {
    let failed = |source: Errno| read_failed(path, source);
    let top = open_dir(CWD, path).map_err(failed)?;
    let mut open = vec![(names(top.as_fd()).map_err(failed)?.into_iter(), top)];
    while let Some((entries, dir)) = open.last_mut() {
        let Some((name, _)) = entries.next() else {
            open.pop();
            continue;
        };
        let found = count(dir.as_fd(), &name, usage, counted).map_err(failed)?;
        if let Some(below) = found {
            if open.len() == MAX_DEPTH {
                return Err(Error::TooDeep { path: path.to_owned(), limit: MAX_DEPTH });
            }
            open.push((names(below.as_fd()).map_err(failed)?.into_iter(), below));
        }
    }
    Ok(())
}

/// Counts one entry; what is in it is still to be counted if this returns it. The sandbox may be at work, so one that
/// is gone by now is no error.
fn count(
    dir: BorrowedFd<'_>,
    name: &CStr,
    usage: &mut Count,
    counted: &mut HashSet<(u64, u64)>,
) -> Result<Option<OwnedFd>, Errno> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    usage.entries += 1;
    if stat.st_nlink == 1 || counted.insert((stat.st_dev, stat.st_ino)) {
        // st_blocks is in units of 512 bytes, whatever the file system's block size (stat(2)).
        usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Ok(None);
    }
    match open_dir(dir, name) {
        Ok(below) => Ok(Some(below)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// All names in a directory, read before anything is done to it: a directory that changes while it is read may skip or
/// repeat names.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

fn read_failed(path: &Path, source: Errno) -> Error {
    Error::ReadDir { path: PathBuf::from(path), source: io::Error::from(source) }
}
