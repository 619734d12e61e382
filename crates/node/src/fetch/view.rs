//! What a child sees that fetches for a build: the machine's programs and certificates, its own directory, the names and
//! servers of the build's sandbox. No socket of the machine's, no configuration, no temporary files of others.
//!
//! The calling thread leaves the file systems of the daemon for a private copy, which its children get and which goes with
//! it. So it must be a thread that is thrown away.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use berth_build::runner::RunnerError;
use berth_sys::namespace::{Namespaces, unshare};
use rustix::fs::{CWD, Mode};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};

use super::infrastructure;

/// Where the child finds its directory.
pub(super) const INSIDE: &str = "/run/berth-fetch";
/// What it sees of `/etc`, where there: certificates, and how programs find their libraries.
const ETC: [&str; 8] = [
    "ssl",
    "pki",
    "ca-certificates",
    "crypto-policies",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
];

/// What a child is to see.
pub(super) struct View {
    /// The child's directory, as this thread sees it too.
    pub(super) dir: PathBuf,
    /// All certificates to trust, as the child sees them; the machine's when absent.
    pub(super) ca_bundle: Option<PathBuf>,
}

/// Has this thread and its children see the machine as described above, `work` at [`INSIDE`].
pub(super) fn enter(work: &Path, resolv_conf: &str, ca_bundle: Option<&Path>) -> Result<View, RunnerError> {
    let failed = |error| infrastructure("cannot set up a place to fetch in", error);
    let ca = ca_bundle.map(fs::read).transpose().map_err(failed)?;
    // Nobody else gets this far: what it lies in is root's alone.
    fs::set_permissions(work, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    if let Some(text) = &ca {
        let path = work.join("ca.pem");
        fs::write(&path, text).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed)?;
    }
    cover(work, resolv_conf).map_err(failed)?;
    let dir = PathBuf::from(INSIDE);
    Ok(View { ca_bundle: ca.map(|_| dir.join("ca.pem")), dir })
}

fn cover(work: &Path, resolv_conf: &str) -> io::Result<()> {
    unshare(Namespaces::MOUNT)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Opened before anything is covered: it may lie in what is.
    let work = tree(work)?;
    let etc = ETC.iter().map(|name| Path::new("/etc").join(name)).filter(|path| path.exists());
    let etc = etc.map(|path| Ok((tree(&path)?, path))).collect::<io::Result<Vec<_>>>()?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    for (dir, options) in [("/run", c"mode=755"), ("/tmp", c"mode=1777"), ("/etc", c"mode=755")] {
        mount("tmpfs", dir, "tmpfs", flags, options)?;
    }
    for (tree, path) in etc {
        attach(&tree, &path)?;
    }
    fs::write("/etc/resolv.conf", resolv_conf)?;
    fs::write("/etc/hosts", "127.0.0.1\tlocalhost\n")?;
    // Not by way of a daemon of the machine's.
    fs::write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    fs::write("/etc/passwd", "")?;
    fs::write("/etc/group", "")?;
    fs::create_dir(INSIDE)?;
    attach(&work, Path::new(INSIDE))?;
    // Set-user-id programs among the machine's are without effect too.
    Ok(rustix::thread::set_no_new_privs(true)?)
}

fn tree(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, path, flags)?)
}

fn attach(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    let directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode).is_dir();
    if directory {
        fs::create_dir_all(path)?;
    } else {
        fs::write(path, "")?;
    }
    Ok(move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes a directory of the child's own in its directory.
pub(super) fn own_dir(view: &View, name: &str, id: u32) -> Result<PathBuf, RunnerError> {
    let path = view.dir.join(name);
    fs::create_dir(&path)
        .and_then(|()| chown(&path, Some(id), Some(id)))
        .map_err(|error| infrastructure("cannot make a directory to fetch into", error))?;
    Ok(path)
}
