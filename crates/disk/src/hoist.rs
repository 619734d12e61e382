//! Making a subvolume the tree that its `upper` directory is: a directory cannot be renamed out of a subvolume
//! (`EXDEV`), but the subvolume itself can.
//!
//! Only the top level is touched: entries are moved up by descriptor and name, and the directory's own attributes are
//! copied. A crash in between leaves a sandbox that is of no use but to be removed, which is what becomes of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::Error;
use crate::tree;

/// Moves all that is in `<dir>/upper` to `<dir>`, whose attributes become those of `upper`; nothing else may be in
/// `dir`. `path` is for errors.
pub(crate) fn hoist(dir: BorrowedFd<'_>, path: &Path) -> Result<(), Error> {
    let failed =
        |what| move |source: Errno| Error::Release { what, path: path.to_owned(), source: source.into() };
    let open = |name: &CStr| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty())
    };
    let upper = open(c"upper").map_err(failed("open the upper directory"))?;
    let stat = rustix::fs::fstat(&upper).map_err(failed("look at the upper directory"))?;
    let names = tree::names(upper.as_fd()).map_err(failed("read the upper directory"))?;

    // Under its own name it would be in the way of an entry called "upper".
    let aside = free_name(|name| names.iter().any(|(taken, _)| taken.as_c_str() == name));
    let no_replace = RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(dir, c"upper", dir, &aside, no_replace)
        .map_err(failed("set the upper directory aside"))?;
    for (name, _) in &names {
        rustix::fs::renameat_with(&upper, name, dir, name, no_replace).map_err(failed("move an entry up"))?;
    }
    rustix::fs::unlinkat(dir, &aside, AtFlags::REMOVEDIR).map_err(failed("remove the upper directory"))?;
    copy_xattrs(upper.as_fd(), dir).map_err(failed("copy extended attributes"))?;
    copy_owner_mode_times(&stat, dir).map_err(failed("copy owner, mode and times"))
}

fn free_name(taken: impl Fn(&CStr) -> bool) -> CString {
    let name = |n: u64| CString::new(format!(".upper-{n}")).unwrap_or_default();
    (0..).map(name).find(|name| !taken(name)).unwrap_or_default()
}

/// Owner first: chown(2) clears set-id bits and `security.capability`, which directories do not have, and bits of the
/// mode, which come after.
fn copy_owner_mode_times(stat: &rustix::fs::Stat, to: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds: i64, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::futimens(to, &times)
}

/// `from` may be unlinked already: its attributes stay with the open descriptor.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let wanted = list_xattrs(from)?;
    for name in list_xattrs(to)?.iter().filter(|name| !wanted.contains(name)) {
        rustix::fs::fremovexattr(to, name)?;
    }
    for name in &wanted {
        // XATTR_SIZE_MAX of linux/limits.h.
        let mut value = vec![0; 65536];
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn list_xattrs(fd: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    // XATTR_LIST_MAX of linux/limits.h.
    let mut list = vec![0u8; 65536];
    let length = rustix::fs::flistxattr(fd, &mut list)?;
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}
