//! btrfs: subvolumes, their quota groups, and growing. btrfs-ioctl(2), `linux/btrfs.h`, `linux/btrfs_tree.h`.
//!
//! All of these need `CAP_SYS_ADMIN` but [`create_subvolume`]. None but [`sync`] waits for a transaction to be on disk.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use crate::ioctl;

const MAGIC: u32 = 0x94;

/// `BTRFS_SUBVOL_NAME_MAX`, less one for the terminating zero byte.
const MAX_NAME: usize = 4039;

/// Key types of `linux/btrfs_tree.h`.
const ROOT_ITEM: u32 = 132;
const ROOT_REF: u32 = 156;
/// The tree of trees.
const ROOT_TREE: u64 = 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    size: u64,
    qgroup_inherit: u64,
    unused: [u64; 2],
    /// A name, or the id of a subvolume in the first eight bytes.
    name: [u8; 4040],
}

/// `struct btrfs_qgroup_limit`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct QgroupLimit {
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    rsv_referenced: u64,
    rsv_exclusive: u64,
}

/// `struct btrfs_qgroup_inherit` with no groups.
#[repr(C)]
#[derive(Default)]
struct QgroupInherit {
    flags: u64,
    num_qgroups: u64,
    num_ref_copies: u64,
    num_excl_copies: u64,
    limit: QgroupLimit,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimitArgs {
    qgroupid: u64,
    limit: QgroupLimit,
}

/// `struct btrfs_ioctl_search_args`: a key and room for what is found.
#[repr(C)]
struct SearchArgs {
    tree_id: u64,
    min_objectid: u64,
    max_objectid: u64,
    min_offset: u64,
    max_offset: u64,
    min_transid: u64,
    max_transid: u64,
    min_type: u32,
    max_type: u32,
    nr_items: u32,
    unused: u32,
    unused_more: [u64; 4],
    buf: [u8; 3992],
}

/// How quotas count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Every extent belongs to the subvolume that wrote it; costs next to nothing. Linux 6.7.
    Simple,
    /// What each subvolume references, and what it alone does; shared extents are traced at each commit. Linux 3.6.
    Full,
}

/// Turns quotas on for the file system of `fd`. `BTRFS_IOC_QUOTA_CTL`; [`Quota::Simple`]: `EINVAL` before Linux 6.7.
pub fn enable_quota(fd: BorrowedFd<'_>, quota: Quota) -> io::Result<()> {
    let command = match quota {
        Quota::Full => 1u64,
        Quota::Simple => 4,
    };
    let mut args = [command, 0];
    // SAFETY: the argument is a valid btrfs_ioctl_quota_ctl_args (two u64) that outlives the call.
    unsafe { ioctl::call(fd, ioctl::rw(MAGIC, 40, size_of_val(&args)), (&raw mut args).cast()) }
}

/// Waits until the kernel's first count for full quotas has ended; returns at once when none is under way.
/// `BTRFS_IOC_QUOTA_RESCAN_WAIT`, Linux 3.11.
pub fn wait_for_count(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { ioctl::call(fd, (MAGIC << 8) | 46, std::ptr::null_mut()) }
}

/// Writes everything out and wakes the kernel's thread that frees the space of destroyed subvolumes, which else happens
/// within the commit interval (30 s). Does not wait for that thread. `BTRFS_IOC_SYNC`, Linux 2.6.29.
pub fn sync(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { ioctl::call(fd, (MAGIC << 8) | 8, std::ptr::null_mut()) }
}

/// Makes the subvolume `name` in the directory `parent`; `limit` is the most bytes that it may reference, data and
/// metadata together, set in the same transaction. `BTRFS_IOC_SUBVOL_CREATE_V2`, Linux 3.6.
///
/// With quotas off the kernel ignores `limit`: the caller makes sure that they are on.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &CStr, limit: Option<u64>) -> io::Result<()> {
    let inherit = QgroupInherit {
        flags: 1, // BTRFS_QGROUP_INHERIT_SET_LIMITS
        limit: limit_to(limit),
        ..QgroupInherit::default()
    };
    let mut args = named_v2(name)?;
    if limit.is_some() {
        args.flags = 1 << 2; // BTRFS_SUBVOL_QGROUP_INHERIT
        args.size = size_of::<QgroupInherit>() as u64;
        args.qgroup_inherit = &raw const inherit as u64;
    }
    // SAFETY: `args` is a valid btrfs_ioctl_vol_args_v2; the btrfs_qgroup_inherit that it points to has the length
    // given; both outlive the call, and the kernel only reads them.
    unsafe { ioctl::call(parent, ioctl::w(MAGIC, 24, size_of::<VolArgsV2>()), (&raw mut *args).cast()) }
}

/// Deletes the subvolume `name` in the directory `parent`, whatever is in it but other subvolumes (`ENOTEMPTY`).
/// Takes constant time; the kernel frees the space afterwards. `BTRFS_IOC_SNAP_DESTROY`, Linux 2.6.29.
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut args = Box::new(VolArgs { fd: 0, name: [0; 4088] });
    put_name(&mut args.name, name)?;
    // SAFETY: `args` is a valid btrfs_ioctl_vol_args that outlives the call.
    unsafe { ioctl::call(parent, ioctl::w(MAGIC, 15, size_of::<VolArgs>()), (&raw mut *args).cast()) }
}

/// Like [`destroy_subvolume`], for the subvolume with this id, wherever in the file system of `fd` it hangs. `fd` must
/// be open on the root of a mount from which the subvolume can be seen. `BTRFS_IOC_SNAP_DESTROY_V2`, Linux 5.7.
pub fn destroy_subvolume_by_id(fd: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = named_v2(c"")?;
    args.flags = 1 << 4; // BTRFS_SUBVOL_SPEC_BY_ID
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: `args` is a valid btrfs_ioctl_vol_args_v2 that outlives the call.
    unsafe { ioctl::call(fd, ioctl::w(MAGIC, 63, size_of::<VolArgsV2>()), (&raw mut *args).cast()) }
}

/// Id of the subvolume that `fd` is in. `BTRFS_IOC_INO_LOOKUP`, Linux 2.6.34.
pub fn subvolume_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    /// `struct btrfs_ioctl_ino_lookup_args`.
    #[repr(C)]
    struct Args {
        treeid: u64,
        objectid: u64,
        name: [u8; 4080],
    }
    // BTRFS_FIRST_FREE_OBJECTID, a subvolume's root directory: the one inode whose look-up needs no path.
    let mut args = Box::new(Args { treeid: 0, objectid: 256, name: [0; 4080] });
    // SAFETY: `args` is a valid btrfs_ioctl_ino_lookup_args that outlives the call.
    unsafe { ioctl::call(fd, ioctl::rw(MAGIC, 18, size_of::<Args>()), (&raw mut *args).cast())? };
    Ok(args.treeid)
}

/// Ids of the subvolumes that hang directly in the subvolume `id`. `BTRFS_IOC_TREE_SEARCH`, Linux 2.6.34.
pub fn children(fd: BorrowedFd<'_>, id: u64) -> io::Result<Vec<u64>> {
    let mut children = Vec::new();
    let mut from = 0;
    loop {
        let found = search(fd, id, ROOT_REF, from)?;
        let Some(last) = found.last() else { return Ok(children) };
        from = last + 1;
        children.extend(found);
    }
}

/// Whether there is still something of the subvolume `id`: true until the kernel has freed the last of a deleted one.
pub fn subvolume_exists(fd: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    Ok(!search(fd, id, ROOT_ITEM, 0)?.is_empty())
}

/// Offsets of the items of this object and type in the tree of trees, from `offset` on; some, not always all.
fn search(fd: BorrowedFd<'_>, objectid: u64, kind: u32, offset: u64) -> io::Result<Vec<u64>> {
    let mut args = Box::new(SearchArgs {
        tree_id: ROOT_TREE,
        min_objectid: objectid,
        max_objectid: objectid,
        min_offset: offset,
        max_offset: u64::MAX,
        min_transid: 0,
        max_transid: u64::MAX,
        min_type: kind,
        max_type: kind,
        nr_items: 64,
        unused: 0,
        unused_more: [0; 4],
        buf: [0; 3992],
    });
    // SAFETY: `args` is a valid btrfs_ioctl_search_args that outlives the call.
    unsafe { ioctl::call(fd, ioctl::rw(MAGIC, 17, size_of::<SearchArgs>()), (&raw mut *args).cast())? };
    Ok(offsets(&args.buf, args.nr_items as usize))
}

/// Reads `struct btrfs_ioctl_search_header`s: transid, objectid, offset (u64), type, len (u32), then `len` bytes.
fn offsets(mut buf: &[u8], items: usize) -> Vec<u64> {
    let mut found = Vec::new();
    for _ in 0..items {
        let (Some(offset), Some(len)) = (buf.get(16..24), buf.get(28..32)) else { break };
        found.push(u64::from_ne_bytes(offset.try_into().unwrap_or_default()));
        let len = u32::from_ne_bytes(len.try_into().unwrap_or_default()) as usize;
        buf = buf.get(32 + len..).unwrap_or_default();
    }
    found
}

/// Sets the limit of the quota group of subvolume `id`, or takes it away. `BTRFS_IOC_QGROUP_LIMIT`, Linux 3.6.
pub fn limit_subvolume(fd: BorrowedFd<'_>, id: u64, limit: Option<u64>) -> io::Result<()> {
    let mut args = QgroupLimitArgs { qgroupid: id, limit: limit_to(limit) };
    // SAFETY: `args` is a valid btrfs_ioctl_qgroup_limit_args that outlives the call.
    unsafe { ioctl::call(fd, ioctl::r(MAGIC, 43, size_of::<QgroupLimitArgs>()), (&raw mut args).cast()) }
}

/// Removes the quota group of the subvolume `id`, which is gone. `BTRFS_IOC_QGROUP_CREATE`, Linux 3.6.
pub fn destroy_quota_group(fd: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args = [0u64, id];
    // SAFETY: the argument is a valid btrfs_ioctl_qgroup_create_args (two u64) that outlives the call.
    unsafe { ioctl::call(fd, ioctl::w(MAGIC, 42, size_of_val(&args)), (&raw mut args).cast()) }
}

/// Grows the file system on its one device to the device's size. `BTRFS_IOC_RESIZE`, Linux 2.6.29.
pub fn grow_to_device(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut args = Box::new(VolArgs { fd: 0, name: [0; 4088] });
    put_name(&mut args.name, c"max")?;
    // SAFETY: `args` is a valid btrfs_ioctl_vol_args that outlives the call.
    unsafe { ioctl::call(fd, ioctl::w(MAGIC, 3, size_of::<VolArgs>()), (&raw mut *args).cast()) }
}

/// The file system's UUID, the name of its directory in `/sys/fs/btrfs`. `BTRFS_IOC_FS_INFO`, Linux 2.6.39.
pub fn file_system_id(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut args = [0u64; 128];
    // SAFETY: the argument is a valid btrfs_ioctl_fs_info_args (1024 bytes) that outlives the call.
    unsafe { ioctl::call(fd, ioctl::r(MAGIC, 31, size_of_val(&args)), (&raw mut args).cast())? };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&args[2].to_ne_bytes());
    id[8..].copy_from_slice(&args[3].to_ne_bytes());
    Ok(id)
}

/// `BTRFS_QGROUP_LIMIT_MAX_RFER`; all bits set is how the kernel is told to forget a limit.
fn limit_to(limit: Option<u64>) -> QgroupLimit {
    QgroupLimit { flags: 1, max_referenced: limit.unwrap_or(u64::MAX), ..QgroupLimit::default() }
}

fn named_v2(name: &CStr) -> io::Result<Box<VolArgsV2>> {
    let mut args = Box::new(VolArgsV2 {
        fd: 0,
        transid: 0,
        flags: 0,
        size: 0,
        qgroup_inherit: 0,
        unused: [0; 2],
        name: [0; 4040],
    });
    put_name(&mut args.name, name)?;
    Ok(args)
}

fn put_name(field: &mut [u8], name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.len() > MAX_NAME.min(field.len() - 1) {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    field[..name.len()].copy_from_slice(name);
    Ok(())
}

// The kernel refuses arguments of other sizes as unknown requests.
const _: () = assert!(size_of::<VolArgs>() == 4096);
const _: () = assert!(size_of::<VolArgsV2>() == 4096);
const _: () = assert!(size_of::<SearchArgs>() == 4096);
const _: () = assert!(size_of::<QgroupLimitArgs>() == 48);
const _: () = assert!(size_of::<QgroupInherit>() == 72);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_results_are_read_to_their_end_and_no_further() {
        let mut buf = Vec::new();
        for (offset, len) in [(300u64, 5u32), (301, 0)] {
            buf.extend([0; 16]);
            buf.extend(offset.to_ne_bytes());
            buf.extend(156u32.to_ne_bytes());
            buf.extend(len.to_ne_bytes());
            buf.extend(vec![7; len as usize]);
        }
        assert_eq!(offsets(&buf, 2), [300, 301]);
        assert_eq!(offsets(&buf, 9), [300, 301]);
        assert_eq!(offsets(&buf, 1), [300]);
        assert_eq!(offsets(&buf[..20], 1), [0u64; 0]);
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let name = std::ffi::CString::new(vec![b'x'; 4040]).unwrap_or_default();
        assert!(named_v2(&name).is_err());
    }
}
