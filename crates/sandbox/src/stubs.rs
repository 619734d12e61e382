//! Takes mount points that a container made out of the layer that a build keeps.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// Removes those of `stubs` (relative paths, parents first) that are still empty in `upper`.
///
/// What stands in the layer is the sandbox's work, so no symlink of it is followed.
pub(crate) fn remove_empty(upper: &Path, stubs: &[PathBuf]) -> io::Result<()> {
    let root = openat(CWD, upper, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for stub in stubs.iter().rev() {
        remove_one(&root, stub)?;
    }
    Ok(())
}

fn remove_one(root: &OwnedFd, stub: &Path) -> io::Result<()> {
    let Some(name) = stub.file_name() else { return Ok(()) };
    let Some(parent) = open_parent(root, stub)? else { return Ok(()) };
    let facts = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        facts => facts?,
    };
    let kind = rustix::fs::FileType::from_raw_mode(facts.st_mode);
    let removed = match kind {
        rustix::fs::FileType::Directory => unlinkat(&parent, name, AtFlags::REMOVEDIR),
        rustix::fs::FileType::RegularFile if facts.st_size == 0 => unlinkat(&parent, name, AtFlags::empty()),
        _ => Ok(()),
    };
    match removed {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The stub's directory, unless the sandbox has put something else in its place.
fn open_parent(root: &OwnedFd, stub: &Path) -> io::Result<Option<OwnedFd>> {
    let parent = stub.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(root, parent, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(parent) => Ok(Some(parent)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_empty_goes_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("hosts"), "").unwrap();
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("etc")).unwrap();
        std::fs::create_dir(upper.join("proc")).unwrap();
        std::fs::create_dir_all(upper.join("sys/kept")).unwrap();
        std::fs::write(upper.join("etc/resolv.conf"), "").unwrap();
        std::fs::write(upper.join("etc/hostname"), "mine").unwrap();
        std::os::unix::fs::symlink(&outside, upper.join("link")).unwrap();

        let stubs = ["etc", "etc/resolv.conf", "etc/hostname", "proc", "sys", "link/hosts", "gone/x"];
        remove_empty(&upper, &stubs.map(PathBuf::from)).unwrap();

        assert!(!upper.join("etc/resolv.conf").exists());
        assert!(upper.join("etc/hostname").exists());
        assert!(!upper.join("proc").exists());
        assert!(upper.join("sys/kept").exists());
        assert!(outside.join("hosts").exists());
    }
}
