//! Finding, or making, the place in a container's root where something is mounted.
//!
//! Runs after the container's root has become `/`. Even so it walks name by name from a descriptor of the root, never
//! lets the kernel follow a link or `..`, and resolves both by itself against that root: a walk that cannot leave it
//! whatever runs beside it, for binds share directories with other containers.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

/// As the kernel's own limit of links in one path.
const LINKS_MAX: usize = 40;

/// What a mount point must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For a directory.
    Directory,
    /// For anything else.
    File,
}

/// What to do about symbolic links on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// Follow them inside the root.
    Follow,
    /// Fail with `ELOOP`.
    Refuse,
}

/// A mount point.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) fd: OwnedFd,
    /// Where it is, links followed, relative to the root.
    pub(crate) path: PathBuf,
}

/// Opens the mount point `path`, making what is missing of it. Paths made on the root's own mount are added to `made`,
/// relative to the root and parents first; those made in other mounts (such as /dev) leave no trace in an image.
pub(crate) fn open(path: &Path, kind: Kind, links: Links, made: &mut Vec<PathBuf>) -> Result<Point, Errno> {
    let root =
        rustix::fs::openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut found_type = FileType::Directory;
    let mut walk = Walk { stack: vec![(root, OsString::new())], left: names(path), links_seen: 0 };
    while let Some(name) = walk.left.pop_front() {
        if name == ".." {
            walk.up();
            found_type = FileType::Directory;
            continue;
        }
        let next = match walk.step(&name) {
            Err(Errno::NOENT) => {
                let new = walk.make(&name, kind)?;
                if mount_id(walk.here())? == mount_id(walk.root())? {
                    made.push(walk.path_of(&name));
                }
                new
            }
            found => found?,
        };
        found_type = file_type(&next)?;
        if found_type == FileType::Symlink {
            walk.follow(&next, links)?;
            // Where it is, until the link's own names lead on.
            found_type = FileType::Directory;
        } else {
            walk.stack.push((next, name));
        }
    }
    let path = walk.path();
    let (fd, _) = walk.stack.pop().ok_or(Errno::NOENT)?;
    match (kind, found_type) {
        (Kind::Directory, FileType::Directory) => Ok(Point { fd, path }),
        (Kind::Directory, _) => Err(Errno::NOTDIR),
        (Kind::File, FileType::Directory) => Err(Errno::ISDIR),
        (Kind::File, _) => Ok(Point { fd, path }),
    }
}

struct Walk {
    /// Directories from the root down to here, each with its name. Never empty.
    stack: Vec<(OwnedFd, OsString)>,
    /// Names still to walk.
    left: VecDeque<OsString>,
    links_seen: usize,
}

impl Walk {
    fn root(&self) -> &OwnedFd {
        &self.stack[0].0
    }

    fn here(&self) -> &OwnedFd {
        &self.stack[self.stack.len() - 1].0
    }

    fn up(&mut self) {
        // ".." of the root is the root.
        if self.stack.len() > 1 {
            self.stack.pop();
        }
    }

    fn step(&self, name: &OsStr) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(
            self.here(),
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
    }

    fn make(&self, name: &OsStr, kind: Kind) -> Result<OwnedFd, Errno> {
        let last = self.left.is_empty();
        if last && kind == Kind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(self.here(), name, flags, Mode::from_raw_mode(0o644))?;
        } else {
            rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(0o755))?;
        }
        self.step(name)
    }

    fn follow(&mut self, link: &OwnedFd, links: Links) -> Result<(), Errno> {
        self.links_seen += 1;
        if links == Links::Refuse || self.links_seen > LINKS_MAX {
            return Err(Errno::LOOP);
        }
        let text = rustix::fs::readlinkat(link, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(text.into_bytes()));
        if target.is_absolute() {
            self.stack.truncate(1);
        }
        for name in names(&target).into_iter().rev() {
            self.left.push_front(name);
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.stack.iter().skip(1).map(|(_, name)| name.as_os_str()).collect()
    }

    fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path().join(name)
    }
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn file_type(fd: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode))
}

fn mount_id(fd: impl AsFd) -> Result<u64, Errno> {
    Ok(rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}
