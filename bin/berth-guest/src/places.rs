//! Directories by path, made on the way where they are missing.
//!
//! The guest has its root in the sandbox, so a path means what it means to the programs in it, symlinks included. But
//! not links that are no paths: `/proc/1/fd/4` is the guest's own, and leads out of the sandbox.

use std::os::fd::{AsFd, OwnedFd};

use berth_wire::FailureCode;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::users;

/// Mode of directories that are made on the way.
const MODE: u32 = 0o755;

/// File systems that show the kernel, not files that anybody keeps, by their numbers in statfs(2): proc, sysfs, cgroup,
/// cgroup2, devpts, mqueue, securityfs, debugfs, tracefs, bpf.
const KERNEL_FILE_SYSTEMS: [u32; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
];

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

/// Whether no symlink is on the way to what is at the absolute `path`.
pub(crate) fn is_plain(path: &[u8]) -> bool {
    let mode = Mode::empty();
    rustix::fs::openat2(CWD, path, PLACE, mode, ResolveFlags::NO_SYMLINKS).is_ok()
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

/// Opens the directory at `path`, which is not followed to elsewhere at its last name unless it is to `follow`.
pub(crate) fn open_dir(parent: impl AsFd, path: &[u8], follow: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    open(parent, path, flags)
}

/// The ids of a user as a request names him.
pub(crate) fn ids(spec: &str) -> Result<(u32, u32)> {
    lookup(spec).map(|user| (user.ids.uid, user.ids.gid))
}

fn lookup(spec: &str) -> Result<users::User> {
    users::lookup(Some(spec)).map_err(|error| failure::because(FailureCode::Invalid, error.to_string(), None))
}

/// From here on this thread, which is for one request alone, has the rights of that user over files. Root's as before
/// when there is none.
pub(crate) fn see_as(user: Option<&str>) -> Result<()> {
    let Some(spec) = user else { return Ok(()) };
    let ids = lookup(spec)?.ids;
    berth_sys::guest_fs::see_as(ids.uid, ids.gid, &ids.groups).map_err(|error| {
        failure::because(FailureCode::Permission, format!("look as user {spec}: {error}"), None)
    })
}

/// Why the directory `dir` is left out of what is below another: it is the kernel's view of the machine, which has no
/// end and no sizes, or the sandbox's own devices.
pub(crate) fn not_for_users(dir: &OwnedFd, stat: &Stat) -> Option<&'static str> {
    if is_the_kernel_s(dir) {
        return Some("a file system of the kernel's");
    }
    let devices = rustix::fs::statat(CWD, "/dev", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    (identity(&devices) == identity(stat)).then_some("the directory of devices")
}

/// Whether a file is on a file system that shows the kernel.
pub(crate) fn is_the_kernel_s(file: &OwnedFd) -> bool {
    // The numbers are of 32 bits; the field is wider.
    rustix::fs::fstatfs(file).is_ok_and(|facts| KERNEL_FILE_SYSTEMS.contains(&(facts.f_type as u32)))
}

/// Type and numbers of a file, by its status.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What tells one file from all others while it exists.
pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
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
