//! Takes mount points that a container made out of the layer that a build keeps.
//!
//! Making one in a directory of the image has overlayfs copy that directory up, so it would be in the layer although
//! nothing of it has changed. Such a directory goes too, when it is what the image has.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of `linux/limits.h`: most bytes of the names on one file, and of one value.
const XATTR_MAX: usize = 65_536;
/// What overlayfs keeps for itself. Of these, [`OPAQUE`] alone says that a directory is another one.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Removes those of `stubs` (relative paths, parents first) that are still empty in `upper`, and then the directories
/// they were in, where nothing else is in them and they are as in `lowers`, the topmost first.
///
/// What stands in the layer is the sandbox's work, so no symlink of it is followed.
pub(crate) fn remove_empty(upper: &Path, stubs: &[PathBuf], lowers: &[PathBuf]) -> io::Result<()> {
    let root = open_root(upper)?;
    for stub in stubs.iter().rev() {
        remove_one(&root, stub)?;
    }
    let above = |stub: &PathBuf| stub.ancestors().skip(1).map(Path::to_owned).collect::<Vec<_>>();
    let touched: BTreeSet<PathBuf> = stubs.iter().flat_map(above).collect();
    let touched = touched.iter().filter(|path| !path.as_os_str().is_empty() && !stubs.contains(path));
    // From the inner to the outer: a path sorts after all that it lies in.
    for path in touched.rev() {
        remove_unchanged(&root, path, lowers)?;
    }
    Ok(())
}

fn remove_unchanged(root: &OwnedFd, path: &Path, lowers: &[PathBuf]) -> io::Result<()> {
    let Some(own) = open_dir(root, path)? else { return Ok(()) };
    let Some(found) =
        lowers.iter().map(|lower| open_dir(&open_root(lower)?, path)).find_map(Result::transpose)
    else {
        return Ok(());
    };
    let (own, image) = (Facts::of(&own)?, Facts::of(&found?)?);
    if own != image || own.opaque {
        return Ok(());
    }
    match (open_parent(root, path)?, path.file_name()) {
        (Some(parent), Some(name)) => remove_directory(&parent, name),
        _ => Ok(()),
    }
}

/// What a directory is beside what is in it, and its times.
#[derive(PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    xattrs: BTreeMap<CString, Vec<u8>>,
    opaque: bool,
}

impl Facts {
    fn of(dir: &OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(dir)?;
        let (mut xattrs, mut opaque) = (BTreeMap::new(), false);
        let (mut names, mut value) = (vec![0; XATTR_MAX], vec![0; XATTR_MAX]);
        let length = rustix::fs::flistxattr(dir, &mut names[..])?;
        for name in names[..length].split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            opaque |= name == OPAQUE;
            if name.to_bytes().starts_with(OVERLAY) {
                continue;
            }
            let length = rustix::fs::fgetxattr(dir, name, &mut value[..])?;
            xattrs.insert(name.to_owned(), value[..length].to_vec());
        }
        Ok(Self { mode: stat.st_mode, owner: (stat.st_uid, stat.st_gid), xattrs, opaque })
    }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
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
        rustix::fs::FileType::Directory => return remove_directory(&parent, name),
        rustix::fs::FileType::RegularFile if facts.st_size == 0 => unlinkat(&parent, name, AtFlags::empty()),
        _ => Ok(()),
    };
    Ok(removed?)
}

fn remove_directory(parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The stub's directory, unless the sandbox has put something else in its place.
fn open_parent(root: &OwnedFd, stub: &Path) -> io::Result<Option<OwnedFd>> {
    let parent = stub.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    open_with(root, parent, OFlags::PATH)
}

/// A directory, for its attributes. None if there is something else, or nothing.
fn open_dir(root: &impl AsFd, path: &Path) -> io::Result<Option<OwnedFd>> {
    open_with(root, path, OFlags::RDONLY)
}

fn open_with(root: &impl AsFd, path: &Path, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let flags = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(found) => Ok(Some(found)),
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
        remove_empty(&upper, &stubs.map(PathBuf::from), &[]).unwrap();

        assert!(!upper.join("etc/resolv.conf").exists());
        assert!(upper.join("etc/hostname").exists());
        assert!(!upper.join("proc").exists());
        assert!(upper.join("sys/kept").exists());
        assert!(outside.join("hosts").exists());
    }

    #[test]
    fn a_directory_that_a_stub_alone_brought_up_goes_and_a_changed_one_stays() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (top, base, upper) = (dir.path().join("top"), dir.path().join("base"), dir.path().join("upper"));
        let names = ["same/inner", "mode", "used", "above", "attribute"];
        for name in names {
            std::fs::create_dir_all(base.join(name)).unwrap();
            std::fs::create_dir_all(upper.join(name).join("stub")).unwrap();
        }
        std::fs::create_dir_all(upper.join("new/stub")).unwrap();
        std::fs::write(upper.join("used/file"), "").unwrap();
        std::fs::set_permissions(upper.join("mode"), std::fs::Permissions::from_mode(0o700)).unwrap();
        // What counts is the topmost layer that has it.
        std::fs::create_dir_all(top.join("above")).unwrap();
        std::fs::set_permissions(top.join("above"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let set =
            rustix::fs::setxattr(upper.join("attribute"), "user.mine", b"1", rustix::fs::XattrFlags::empty());
        let stubs = names.into_iter().chain(["new"]).map(|name| Path::new(name).join("stub"));
        remove_empty(&upper, &stubs.collect::<Vec<_>>(), &[top, base]).unwrap();
        assert!(!upper.join("same").exists());
        for kept in ["mode", "used", "above", "new"] {
            assert!(upper.join(kept).exists(), "{kept}");
            assert!(!upper.join(kept).join("stub").exists(), "{kept}");
        }
        if set.is_ok() {
            assert!(upper.join("attribute").exists());
        } else {
            println!("SKIP: the file system has no attributes of users: that part is not tried");
        }
    }
}
