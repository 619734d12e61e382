//! Directories by path, made on the way where they are missing.
//!
//! The guest has its root in the sandbox, so a path means what it means to the programs in it, symlinks included. But
//! not links that are no paths: `/proc/1/fd/4` is the guest's own, and leads out of the sandbox.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::failure::{self, Result};

/// Mode of directories that are made on the way.
const MODE: u32 = 0o755;

/// Only as a place to start from: no reading, no blocking on what it is.
pub(crate) const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// A directory that is there now.
pub(crate) struct Place {
    pub(crate) dir: OwnedFd,
    /// Whether it was made.
    pub(crate) is_new: bool,
}

/// The directory at the absolute `path`; it and its parents are made where they are missing, and given to `owner`.
pub(crate) fn make(path: &[u8], owner: Option<(u32, u32)>) -> Result<Place> {
    let root = rustix::fs::openat(CWD, "/", PLACE | OFlags::DIRECTORY, Mode::empty());
    let mut place = Place { dir: root.map_err(|errno| failure::at("open", b"/", errno))?, is_new: false };
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        place = step(&place.dir, name, owner)
            .map_err(|(operation, errno)| failure::at(operation, path, errno))?;
    }
    Ok(place)
}

/// Opens what is there; links that are no paths are `ELOOP`.
pub(crate) fn open(dir: impl AsFd, path: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

fn step(
    dir: &OwnedFd,
    name: &[u8],
    owner: Option<(u32, u32)>,
) -> std::result::Result<Place, (&'static str, Errno)> {
    let open = || open(dir, name, PLACE | OFlags::DIRECTORY);
    match open() {
        Ok(dir) => return Ok(Place { dir, is_new: false }),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(("open directory", errno)),
    }
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(MODE)) {
        Ok(()) => {}
        // Somebody else was faster, or a symlink that leads nowhere is in the way.
        Err(Errno::EXIST) => {
            return open().map(|dir| Place { dir, is_new: false }).map_err(|errno| ("open directory", errno));
        }
        Err(errno) => return Err(("make directory", errno)),
    }
    let dir = open().map_err(|errno| ("open directory", errno))?;
    if let Some((uid, gid)) = owner {
        chown(&dir, uid, gid).map_err(|errno| ("change owner of directory", errno))?;
    }
    Ok(Place { dir, is_new: true })
}

/// Changes the owner of what `dir` is, also where it was opened as a place only.
pub(crate) fn chown(dir: &OwnedFd, uid: u32, gid: u32) -> std::result::Result<(), Errno> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    rustix::fs::chownat(dir, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// Changes the mode of a directory.
pub(crate) fn chmod(dir: &OwnedFd, mode: u32) -> std::result::Result<(), Errno> {
    // A place cannot be changed by fchmod(2), but "." in it can.
    rustix::fs::chmodat(dir, ".", Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Splits an absolute path into the path of its directory and its last name; `None` for the root and for names that
/// are no names.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let path = &path[..end];
    let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let name = &path[start..];
    (name != b"." && name != b"..").then_some((&path[..start], name))
}

/// Type and numbers of a file, by its status.
pub(crate) fn file_type(stat: &rustix::fs::Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What tells one file from all others while it exists.
pub(crate) fn identity(stat: &rustix::fs::Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_own_descriptors_lead_nowhere() {
        let dir = std::fs::File::open("/usr").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&dir);
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/bin"),
            "/proc/self/root".into(),
        ] {
            assert!(make(path.as_bytes(), None).is_err(), "{path}");
            assert_eq!(open(CWD, path.as_bytes(), PLACE).unwrap_err(), Errno::LOOP);
        }
    }

    #[test]
    fn paths_split_at_their_last_name() {
        assert_eq!(split(b"/a/b"), Some((&b"/a/"[..], &b"b"[..])));
        assert_eq!(split(b"/a/b//"), Some((&b"/a/"[..], &b"b"[..])));
        assert_eq!(split(b"/a"), Some((&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"/"), None);
        assert_eq!(split(b"/a/.."), None);
        assert_eq!(split(b""), None);
    }
}
