//! Project quotas, in XFS's way. quotactl(2), ioctl_xfs_fsgetxattr(2), `linux/dqblk_xfs.h`, `linux/fs.h`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::{checked, ioctl};

/// `SYS_quotactl_fd` has the same number on every architecture. Linux 5.14.
const SYS_QUOTACTL_FD: libc::c_long = 443;

const FS_XFLAG_PROJINHERIT: u32 = 0x200;

const XSETQLIM: u32 = 0x5804;
const XGETQUOTA: u32 = 0x5803;
const XGETQSTATV: u32 = 0x5808;
const PROJECT: u32 = 2;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FsxAttr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

/// `struct fs_disk_quota`; blocks are of 512 bytes.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fieldmask: u16,
    id: u32,
    blk_hardlimit: u64,
    blk_softlimit: u64,
    ino_hardlimit: u64,
    ino_softlimit: u64,
    bcount: u64,
    icount: u64,
    timers: [i32; 2],
    warns: [u16; 2],
    timers_high: [i8; 4],
    rtb_hardlimit: u64,
    rtb_softlimit: u64,
    rtbcount: u64,
    rtbtimer: i32,
    rtbwarns: u16,
    padding3: i16,
    padding4: [u8; 8],
}

const _: () = assert!(size_of::<FsxAttr>() == 28);
const _: () = assert!(size_of::<DiskQuota>() == 112);

/// What project quotas do on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Use is counted.
    pub accounted: bool,
    /// Limits hold.
    pub enforced: bool,
}

/// What a project uses, and may use (0: no limit).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Project {
    /// Bytes in use, those reserved for data not yet written out included.
    pub bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Most bytes; a multiple of 512.
    pub max_bytes: u64,
    /// Most inodes.
    pub max_inodes: u64,
}

/// The project of the file or directory `fd`. `FS_IOC_FSGETXATTR`, Linux 4.5 (XFS: ever).
pub fn project_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(attributes(fd)?.projid)
}

/// The project that whatever is made in the directory `fd` gets (`FS_XFLAG_PROJINHERIT`), if it gets the directory's.
pub fn inherited_project(fd: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let attr = attributes(fd)?;
    Ok((attr.xflags & FS_XFLAG_PROJINHERIT != 0).then_some(attr.projid))
}

/// Puts the directory `fd` into project `id`; with `inherit` (`FS_XFLAG_PROJINHERIT`) also what is made in it later.
/// `FS_IOC_FSSETXATTR`, Linux 4.5; refused outside the initial user namespace.
pub fn set_project(fd: BorrowedFd<'_>, id: u32, inherit: bool) -> io::Result<()> {
    let mut attr = attributes(fd)?;
    attr.projid = id;
    attr.xflags =
        if inherit { attr.xflags | FS_XFLAG_PROJINHERIT } else { attr.xflags & !FS_XFLAG_PROJINHERIT };
    // SAFETY: `attr` is a valid fsxattr that outlives the call.
    unsafe { ioctl::call(fd, ioctl::w(0x58, 32, size_of::<FsxAttr>()), ptr::from_mut(&mut attr).cast()) }
}

fn attributes(fd: BorrowedFd<'_>) -> io::Result<FsxAttr> {
    let mut attr = FsxAttr::default();
    // SAFETY: `attr` is a valid fsxattr that outlives the call.
    unsafe { ioctl::call(fd, ioctl::r(0x58, 31, size_of::<FsxAttr>()), ptr::from_mut(&mut attr).cast())? };
    Ok(attr)
}

/// What project quotas do on the file system of `fd`. `Q_XGETQSTATV`, Linux 3.12; quotactl_fd(2), Linux 5.14.
pub fn state(fd: BorrowedFd<'_>) -> io::Result<State> {
    // struct fs_quota_statv (160 bytes): version (i8), padding, flags (u16), and what is of no interest here.
    let mut statv = [0u64; 20];
    statv[0] = u64::from_ne_bytes([1, 0, 0, 0, 0, 0, 0, 0]);
    // SAFETY: the argument is as large as fs_quota_statv, names its version, and outlives the call.
    unsafe { quotactl(fd, XGETQSTATV, 0, statv.as_mut_ptr().cast())? };
    let bytes = statv[0].to_ne_bytes();
    let flags = u16::from_ne_bytes([bytes[2], bytes[3]]);
    Ok(State { accounted: flags & (1 << 4) != 0, enforced: flags & (1 << 5) != 0 })
}

/// Sets the hard limits of project `id`; 0 is none. Bytes are rounded down to 512. `Q_XSETQLIM`.
pub fn set_limits(fd: BorrowedFd<'_>, id: u32, max_bytes: u64, max_inodes: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: 1,
        flags: 2,          // FS_PROJ_QUOTA
        fieldmask: 0b1010, // FS_DQ_IHARD | FS_DQ_BHARD
        id,
        blk_hardlimit: max_bytes / 512,
        ino_hardlimit: max_inodes,
        ..DiskQuota::default()
    };
    // SAFETY: `quota` is a valid fs_disk_quota that outlives the call.
    unsafe { quotactl(fd, XSETQLIM, id, ptr::from_mut(&mut quota).cast()) }
}

/// What project `id` uses and may use; all 0 for one that nothing belongs to. `Q_XGETQUOTA`.
pub fn project(fd: BorrowedFd<'_>, id: u32) -> io::Result<Project> {
    let mut quota = DiskQuota::default();
    // SAFETY: `quota` is a valid fs_disk_quota that outlives the call.
    match unsafe { quotactl(fd, XGETQUOTA, id, ptr::from_mut(&mut quota).cast()) } {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Project::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(Project {
            bytes: quota.bcount.saturating_mul(512),
            inodes: quota.icount,
            max_bytes: quota.blk_hardlimit.saturating_mul(512),
            max_inodes: quota.ino_hardlimit,
        }),
    }
}

/// quotactl_fd(2) for project quotas.
///
/// # Safety
///
/// `argument` points to what the command asks for, valid for reading and writing during the call.
unsafe fn quotactl(fd: BorrowedFd<'_>, command: u32, id: u32, argument: *mut libc::c_void) -> io::Result<()> {
    let command = (command << 8) | PROJECT;
    // SAFETY: the caller's promise.
    let answer = unsafe { libc::syscall(SYS_QUOTACTL_FD, fd.as_raw_fd(), command, id, argument) };
    checked(answer).map(drop)
}
