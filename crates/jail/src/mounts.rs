//! Mounts beside those that every container has: see [`crate::spec::Mount`].
//!
//! What is shown of an overlay is found by the kernel's own walk, held to the overlay: it is not looked at by anybody else
//! then, and all that can be in it are the layers, whose links lead to where they lead in the overlay.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{Attributes, set_attributes};
use rustix::fs::{CWD, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags, mount, open_tree, unmount};

use crate::mountpoint::{self, Kind, Links, Point};
use crate::perform::{At, Blame, EMPTY, Failure, Performed, attach_at, kind_of, mount_at, no_mount_point};
use crate::plan::{Bytes, Inside, Mount};

/// File systems whose files are the machine's, or guard against what is: nothing may stand in for them.
const KERNELS: [&str; 2] = ["proc", "sys"];
/// Name of the file in its own file system.
const NAME: &str = "contents";

impl Performed {
    pub(crate) fn open_inside(&mut self, inside: &Inside) -> Result<(), Failure> {
        let Inside { root, path, read_only } = inside;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, root, flags, Mode::empty()).at("open the overlay at", root)?;
        let held = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(&top, path, flags, Mode::empty(), held)
            .map_err(|error| not_inside(path, error))?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&found, "", flags).at("open in layers", path)?;
        let attributes = Attributes { read_only: *read_only, no_dev: true, ..Attributes::default() };
        set_attributes(tree.as_fd(), attributes, false).at("restrict the mount of", path)?;
        self.trees.push(Some(tree));
        Ok(())
    }

    pub(crate) fn attach_mount(&mut self, number: usize, target: &Path) -> Result<(), Failure> {
        let tree = self.take_tree(number, target)?;
        let point = self.place(target, kind_of(&tree, target)?)?;
        attach_at(&tree, &point, target)
    }

    pub(crate) fn mount_memory(&mut self, wanted: &Mount) -> Result<(), Failure> {
        let point = self.place(&wanted.target, Kind::Directory)?;
        mount_at(wanted, &point)
    }

    pub(crate) fn mount_bytes(&mut self, bytes: &Bytes) -> Result<(), Failure> {
        let tree = bytes_in_memory(bytes)?;
        let attributes =
            Attributes { read_only: bytes.read_only, no_dev: true, no_suid: true, no_exec: true };
        set_attributes(tree.as_fd(), attributes, false).at("restrict the file for", &bytes.target)?;
        let point = self.place(&bytes.target, Kind::File)?;
        attach_at(&tree, &point, &bytes.target)
    }

    fn place(&mut self, target: &Path, kind: Kind) -> Result<OwnedFd, Failure> {
        let refused = |error| Failure { blame: Blame::MountTarget, ..no_mount_point(target, error) };
        let mut made: Vec<PathBuf> = Vec::new();
        let found = mountpoint::open(target, kind, Links::Follow, &mut made);
        self.stubs.append(&mut made);
        match found {
            Ok(Point { path, .. }) if is_kernels(&path) => Err(refused(Errno::PERM)),
            Ok(Point { fd, .. }) => Ok(fd),
            // It would have to be made in another mount that may only be read, or where nobody makes anything (/proc has
            // all of these errors for that).
            Err(error @ (Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::NOENT)) => Err(refused(error)),
            Err(error) => Err(no_mount_point(target, error)),
        }
    }
}

fn is_kernels(path: &Path) -> bool {
    KERNELS.iter().any(|name| path.components().next().is_some_and(|top| top.as_os_str() == OsStr::new(name)))
}

/// What the layers lack is the fault of whoever asked for it.
fn not_inside(path: &Path, error: Errno) -> Failure {
    let missing =
        matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV);
    let blame = if missing { Blame::MountSource } else { Blame::Machine };
    Failure { blame, ..Failure::new("find in layers", path, error) }
}

/// A file of a file system of its own, as a detached tree. In ramfs, for what is in tmpfs may be swapped out to a disk.
fn bytes_in_memory(bytes: &Bytes) -> Result<OwnedFd, Failure> {
    let target = &bytes.target;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    // Only a tree that is mounted can be opened in part. It is there as long as that takes: nobody else is here yet.
    mount("ramfs", EMPTY, "ramfs", flags, c"mode=700").at("mount memory for", target)?;
    let file = write_bytes(&Path::new(EMPTY).join(NAME), bytes);
    let tree = file.and_then(|()| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, Path::new(EMPTY).join(NAME), flags).at("open the file for", target)
    });
    unmount(EMPTY, UnmountFlags::DETACH).at("unmount the memory for", target)?;
    tree
}

fn write_bytes(path: &Path, bytes: &Bytes) -> Result<(), Failure> {
    let Bytes { target, contents, uid, gid, mode, .. } = bytes;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file =
        rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o600)).at("make the file for", target)?;
    let mut file = std::fs::File::from(file);
    file.write_all(&contents.0).at("write the file for", target)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))
        .at("give away the file for", target)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777)).at("set the mode of the file for", target)
}
