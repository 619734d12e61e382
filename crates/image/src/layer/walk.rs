//! Walking a layer's tree in its canonical order: parents before children, siblings by the bytes of their names.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::Pairs;

/// A file could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path} in the tree at {root}")]
pub struct WalkError {
    /// Root of the tree.
    pub root: PathBuf,
    /// Path in it.
    pub path: PathBuf,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// One file on the way.
pub(crate) struct Node<'a> {
    pub(crate) root: &'a Path,
    pub(crate) parent: &'a OwnedFd,
    pub(crate) name: &'a CStr,
    /// Path from the root, without a leading slash; empty for the root itself.
    pub(crate) path: &'a [u8],
    pub(crate) stat: Stat,
}

impl Node<'_> {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(crate) fn fail(&self, source: impl Into<io::Error>) -> WalkError {
        fail(self.root, self.path, source)
    }

    /// For the attribute calls, which have no form with a directory descriptor and do not follow the last part.
    fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.parent.as_raw_fd()))
            .join(OsStr::from_bytes(self.name.to_bytes()))
    }

    /// Extended attributes, by name.
    pub(crate) fn xattrs(&self) -> Result<Pairs, WalkError> {
        let path = self.proc_path();
        let mut names = vec![0u8; 1024];
        let length = loop {
            match rustix::fs::llistxattr(&path, &mut names[..]) {
                Ok(length) => break length,
                Err(Errno::RANGE) => names.resize(names.len() * 4, 0),
                Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
                Err(errno) => return Err(self.fail(errno)),
            }
        };
        let mut found = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
            found.push((name.to_vec(), self.xattr(&path, name)?));
        }
        found.sort();
        Ok(found)
    }

    fn xattr(&self, path: &Path, name: &[u8]) -> Result<Vec<u8>, WalkError> {
        let mut value = vec![0u8; 256];
        loop {
            match rustix::fs::lgetxattr(path, name, &mut value[..]) {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(value);
                }
                Err(Errno::RANGE) if value.len() < 1 << 20 => value.resize(value.len() * 4, 0),
                Err(errno) => return Err(self.fail(errno)),
            }
        }
    }

    pub(crate) fn has_xattr(&self, name: &CStr) -> bool {
        rustix::fs::lgetxattr(self.proc_path(), name, &mut [0u8; 256][..]).is_ok()
    }

    pub(crate) fn remove_xattr(&self, name: &[u8]) -> Result<(), WalkError> {
        rustix::fs::lremovexattr(self.proc_path(), name).map_err(|errno| self.fail(errno))
    }
}

struct Level {
    dir: OwnedFd,
    /// Names still to visit, last one first.
    names: Vec<CString>,
    path_len: usize,
}

/// Calls `visit` for the root and everything below it, never leaving the tree.
pub(crate) fn walk<E: From<WalkError>>(
    root: &Path,
    visit: &mut dyn FnMut(&Node<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| fail(root, b"", e))?;
    let stat = rustix::fs::fstat(&top).map_err(|e| fail(root, b"", e))?;
    visit(&Node { root, parent: &top, name: c".", path: b"", stat })?;
    let mut path = Vec::new();
    let mut levels = vec![level(root, top, &path)?];
    while let Some(current) = levels.last_mut() {
        let Some(name) = current.names.pop() else {
            levels.pop();
            continue;
        };
        path.truncate(current.path_len);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat = rustix::fs::statat(&current.dir, &name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| fail(root, &path, e))?;
        let node = Node { root, parent: &current.dir, name: &name, path: &path, stat };
        visit(&node)?;
        if node.kind() == FileType::Directory {
            let dir = rustix::fs::openat(&current.dir, &name, flags, Mode::empty())
                .map_err(|e| fail(root, &path, e))?;
            let next = level(root, dir, &path)?;
            levels.push(next);
        }
    }
    Ok(())
}

fn level(root: &Path, dir: OwnedFd, path: &[u8]) -> Result<Level, WalkError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir).map_err(|e| fail(root, path, e))? {
        let entry = entry.map_err(|e| fail(root, path, e))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Level { dir, names, path_len: path.len() })
}

fn fail(root: &Path, path: &[u8], source: impl Into<io::Error>) -> WalkError {
    WalkError { root: root.to_owned(), path: OsStr::from_bytes(path).into(), source: source.into() }
}
