//! What all engines have alike: where sandboxes and trash are, and how one becomes the other.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, Limits, Reaped, Resource, Writable};

const SANDBOXES: &str = "sandboxes";
const TRASH: &str = "trash";
const MAX_ID: usize = 64;

/// The directories of one root.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    pub(crate) sandboxes: PathBuf,
    pub(crate) trash: PathBuf,
    /// Held while the trash is emptied: two at once would trip over each other.
    reaping: Mutex<()>,
}

impl Layout {
    /// Makes the directories where they do not exist.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let layout = Self {
            root: root.to_owned(),
            sandboxes: root.join(SANDBOXES),
            trash: root.join(TRASH),
            reaping: Mutex::new(()),
        };
        for path in [&layout.sandboxes, &layout.trash] {
            make_private(path)?;
        }
        Ok(layout)
    }

    /// Where sandbox `id` is or will be.
    pub(crate) fn sandbox(&self, id: &str) -> Result<PathBuf, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(allowed) {
            return Err(Error::BadId { id: id.to_owned() });
        }
        Ok(self.sandboxes.join(id))
    }

    /// Opens the directory of sandbox `id`.
    pub(crate) fn open_sandbox(&self, id: &str) -> Result<(PathBuf, OwnedFd), Error> {
        let path = self.sandbox(id)?;
        match open_dir(&path) {
            Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(Error::Missing { id: id.to_owned(), path })
            }
            other => other.map(|fd| (path, fd)),
        }
    }

    /// The directories of sandbox `id`, each of which is there.
    pub(crate) fn writable(&self, id: &str) -> Result<Writable, Error> {
        let found = parts(self.open_sandbox(id)?.0);
        for path in [&found.upper, &found.work, &found.spool] {
            open_dir(path)?;
        }
        Ok(found)
    }

    /// Moves sandbox `id` to the trash.
    pub(crate) fn discard(&self, id: &str) -> Result<(), Error> {
        let from = self.sandbox(id)?;
        // An id may be used again before its last bearer is deleted.
        for n in 0u64.. {
            let to = self.trash.join(format!("{id}-{n}"));
            match rename_new(&from, &to) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(Error::MoveToTrash { from, to, source }),
            }
        }
        Ok(())
    }

    /// Ids of sandboxes, sorted.
    pub(crate) fn list(&self) -> Result<Vec<String>, Error> {
        let mut ids = entries(&self.sandboxes)?;
        ids.sort();
        Ok(ids)
    }

    /// Has `delete` delete each thing in the trash, and goes on after a failure; the first one is the answer.
    pub(crate) fn reap(&self, delete: impl Fn(&Path) -> Result<u64, Error>) -> Result<Reaped, Error> {
        let _alone = self.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reaped = Reaped::default();
        let mut first = None;
        for name in entries(&self.trash)? {
            match delete(&self.trash.join(name)) {
                Ok(entries) => {
                    reaped.sandboxes += 1;
                    reaped.entries += entries;
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(reaped), Err)
    }
}

/// Makes a directory that only root may reach from the host: below it are files of any owner and mode, set-user-id
/// programs among them.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(make_failed(path))
}

/// What is in the directory `dir` of a sandbox.
pub(crate) fn parts(dir: PathBuf) -> Writable {
    let (upper, work, spool) = (dir.join("upper"), dir.join("work"), dir.join("spool"));
    let mounts = dir.join("mounts");
    Writable { dir, upper, work, spool, mounts, used_files: Vec::new() }
}

/// Makes the directories in the new directory `dir` of a sandbox.
pub(crate) fn make_parts(dir: &Path) -> Result<Writable, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let made = parts(dir.to_owned());
    // The upper directory's mode is that of the sandbox's root, whatever the daemon's umask.
    for (path, mode) in [(&made.upper, 0o755), (&made.work, 0o700), (&made.spool, 0o700)] {
        fs::create_dir(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(make_failed(path))?;
    }
    Ok(made)
}

/// Opens a directory of Berth's own.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|source| Error::Open { path: path.to_owned(), source: source.into() })
}

/// `(total, free)` bytes of the file system of `path`; free is what is left to those who are not root, too.
pub(crate) fn space(path: &Path) -> Result<(u64, u64), Error> {
    let failed = |source: Errno| Error::FreeSpace { path: path.to_owned(), source: source.into() };
    let stat = rustix::fs::statvfs(path).map_err(failed)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// Refuses limits below what an empty sandbox needs.
pub(crate) fn check_least(limits: &Limits, least_bytes: u64) -> Result<(), Error> {
    let least = [(Resource::Bytes, limits.bytes, least_bytes), (Resource::Inodes, limits.inodes, 1)];
    for (what, limit, least) in least {
        if let Some(limit) = limit.filter(|limit| *limit < least) {
            return Err(Error::LimitTooSmall { what, limit, least });
        }
    }
    Ok(())
}

/// The last part of a path of Berth's own, for calls relative to a directory.
pub(crate) fn last_part(path: &Path) -> CString {
    use std::os::unix::ffi::OsStrExt as _;
    let name = path.file_name().unwrap_or_default().as_bytes();
    CString::new(name)
        .expect("a name that came from the file system or passed the check of ids has no zero byte")
}

/// Renames to a name that is not taken: rename(2) would replace an empty directory.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without that flag (old NFS, some FUSE): nobody else writes to the trash.
        Err(Errno::INVAL) if !to.exists() => fs::rename(from, to),
        Err(Errno::INVAL) => Err(io::ErrorKind::AlreadyExists.into()),
        other => Ok(other?),
    }
}

/// Names in a directory of Berth's own; all of them are made by it, and so UTF-8.
fn entries(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::ReadDir { path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        match entry.map_err(failed)?.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(?name, directory = %path.display(), "not made by berth, left alone"),
        }
    }
    Ok(names)
}

fn make_failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    |source| Error::MakeDir { path: path.to_owned(), source }
}
