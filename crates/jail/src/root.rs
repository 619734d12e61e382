//! Making a container's root and turning to it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use berth_sys::mount::{Attributes, set_attributes};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, pivot_root};

use crate::perform::{At, Failure, c_string};
use crate::plan::Overlay;

pub(crate) fn mount_overlay(overlay: &Overlay) -> Result<(), Failure> {
    chdir(&overlay.layers_dir).at("enter", &overlay.layers_dir)?;
    let upper = directory(&overlay.upper)?;
    let work = directory(&overlay.work)?;
    // Named by descriptor: their real paths may hold characters that separate options, and would show in the
    // container's mount table.
    let (upper, work) = (fd_path(&upper), fd_path(&work));
    if overlay.one_by_one {
        mount_one_by_one(overlay, &upper, &work).map_err(|error| blame(overlay, error))?;
    } else {
        let options = c_string(&overlay.options(&upper, &work), &overlay.upper)?;
        mount(overlay.name.as_str(), &overlay.upper, "overlay", MountFlags::NODEV, options.as_c_str())
            .map_err(|error| blame(overlay, error))?;
    }
    refuse_read_only(&overlay.upper)
}

/// Where overlayfs cannot work in its work directory (a disk without any room left), it mounts all the same, and says
/// that nothing can be written only in the kernel's log.
fn refuse_read_only(root: &Path) -> Result<(), Failure> {
    let mounted = statvfs(root).at("look at the overlay at", root)?;
    if mounted.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Failure::new("mount the overlay, but for reading only, at", root, Errno::ROFS));
    }
    Ok(())
}

/// The same mount, without a string that all layers must fit.
fn mount_one_by_one(overlay: &Overlay, upper: &str, work: &str) -> Result<(), Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |name: &str, value: &str| fsconfig_set_string(&context, name, value);
    set("source", &overlay.name)?;
    overlay.lowers.iter().try_for_each(|name| set("lowerdir+", name))?;
    set("upperdir", upper)?;
    set("workdir", work)?;
    Overlay::SWITCHES.iter().try_for_each(|(name, value)| set(name, value))?;
    fsconfig_set_flag(&context, Overlay::VOLATILE)?;
    fsconfig_create(&context)?;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    move_mount(&mounted, "", CWD, &overlay.upper, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// mount(2) does not say which layer it did not like.
fn blame(overlay: &Overlay, error: Errno) -> Failure {
    let bad =
        overlay.lowers.iter().map(|name| overlay.layers_dir.join(name)).find_map(|dir| directory(&dir).err());
    bad.unwrap_or_else(|| Failure::new("mount the overlay at", &overlay.upper, error))
}

pub(crate) fn mount_upper(upper: &Path) -> Result<(), Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, upper, flags).at("open the upper directory", upper)?;
    let attributes = Attributes { no_dev: true, ..Attributes::default() };
    set_attributes(tree.as_fd(), attributes, false).at("restrict the mount of", upper)?;
    move_mount(&tree, "", CWD, upper, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .at("mount the upper directory", upper)
}

pub(crate) fn pivot(root: &Path) -> Result<(), Failure> {
    chdir(root).at("enter", root)?;
    // New and old root on one directory: the old one lands on top of the new one, and is taken off from there. So the
    // container needs no directory for it.
    pivot_root(".", ".").at("change the root to", root)?;
    unmount(".", UnmountFlags::DETACH).at("detach the old root from", root)?;
    chdir("/").at("enter", "/")
}

fn directory(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).at("open the directory", path)
}

fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
