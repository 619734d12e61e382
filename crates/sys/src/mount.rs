//! Attributes of mounts.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::checked;

/// `SYS_mount_setattr` has the same number on every architecture.
const SYS_MOUNT_SETATTR: libc::c_long = 442;
/// `MOUNT_ATTR_IDMAP`, `linux/mount.h`.
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of `linux/mount.h`, first version.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What [`set_attributes`] turns on; all of these only ever take rights away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_RDONLY`.
    pub read_only: bool,
    /// `MOUNT_ATTR_NOSUID`.
    pub no_suid: bool,
    /// `MOUNT_ATTR_NODEV`.
    pub no_dev: bool,
    /// `MOUNT_ATTR_NOEXEC`.
    pub no_exec: bool,
}

/// Turns attributes on for the mount whose root `tree` is and, when `recursive`, for all mounts below it.
/// mount_setattr(2), Linux 5.12.
pub fn set_attributes(tree: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let bit = |on: bool, bit: u64| if on { bit } else { 0 };
    let attr = MountAttr {
        attr_set: bit(attributes.read_only, 0x1)
            | bit(attributes.no_suid, 0x2)
            | bit(attributes.no_dev, 0x4)
            | bit(attributes.no_exec, 0x8),
        ..MountAttr::default()
    };
    change(tree, &attr, recursive)
}

/// Shows the files of the detached mount whose root `tree` is, and of all mounts below it when `recursive`, with the
/// owners that the user namespace maps theirs to: 0 on disk is seen as what 0 inside is outside. mount_setattr(2) with
/// `MOUNT_ATTR_IDMAP`, Linux 5.12.
///
/// # Errors
///
/// `EINVAL` where a file system does not have it, `EPERM` for a mount that is mapped already.
pub fn map_ids(tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let userns_fd = u64::try_from(user_namespace.as_raw_fd());
    let userns_fd = userns_fd.map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let attr = MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() };
    change(tree, &attr, recursive)
}

fn change(tree: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated constant, `attr` is a valid mount_attr of the length given, and both
    // outlive the call.
    let answer = unsafe {
        libc::syscall(
            SYS_MOUNT_SETATTR,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    checked(answer).map(drop)
}
