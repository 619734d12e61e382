//! Where the engine's benchmark runs, and its end: nothing of it is left, whatever happened.
//!
//! `${BERTH_BENCH_DIR:-/var/tmp/berth-bench}/engine-PID`:
//!
//! | here | what it is |
//! |---|---|
//! | `rootfs/`, `rootfs.tar` | the one image, for everybody |
//! | `berth/`, `host/` | the daemon's data and socket |
//! | `overlay/` | an overlay of `rootfs`, mounted once, for runc, crun and bubblewrap |
//! | `bundle-runc/`, `bundle-crun/` | their configuration |
//! | `podman/`, `podman-run/`, `state/` | storage and state of podman, runc and crun |
//! | `floor/` | writable layers of the floor program |
//!
//! Mounts are made in a mount namespace of this process and end with it; podman's networks in a network namespace of
//! their own.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use super::super::daemon::succeed;
use super::peers::{self, Peer};

const CGROUPS: &str = "/sys/fs/cgroup";
const PODMANS_GROUP: &str = "libpod_parent";
const APPLETS: [&str; 18] = [
    "awk", "cat", "dd", "echo", "env", "kill", "ls", "mkdir", "rm", "seq", "sh", "sleep", "stat", "test",
    "time", "timeout", "touch", "true",
];

/// See the module's documentation. Removed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// What is ours alone on this machine is named by it.
    pub(super) name: String,
    /// Whether the group was there that podman makes for itself and leaves.
    pub(super) podmans_group: bool,
    /// A network namespace for podman, whose bridge, chains and rules would stay on the machine.
    pub(super) netns: Arc<OwnedFd>,
}

impl Place {
    /// Makes the image and what peers need. `tar` is a root file system to use in place of the tiny one; `berth` ends
    /// what a run has left that was killed.
    pub(super) fn make(kept: &Path, tar: Option<&Path>, berth: &Path) -> anyhow::Result<Self> {
        let name = format!("berth-bench-{}", std::process::id());
        let dir = kept.join(format!("engine-{}", std::process::id()));
        let (netns, ()) = berth_sys::netns::create(berth_sys::netdev::loopback_up)
            .context("making a network namespace for podman")?;
        let podmans_group = !groups(PODMANS_GROUP).is_empty();
        let place = Self { dir, name, podmans_group, netns: Arc::new(netns) };
        sweep(kept, berth);
        for dir in ["rootfs", "host", "floor", "state", "overlay/upper", "overlay/work", "overlay/root"] {
            let dir = place.dir.join(dir);
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let rootfs = place.rootfs();
        match tar {
            Some(tar) => {
                succeed(Command::new("tar").arg("-C").arg(&rootfs).arg("-xf").arg(tar))?;
                std::fs::copy(tar, place.tar()).with_context(|| format!("copying {}", tar.display()))?;
            }
            None => {
                make_tiny(&rootfs)?;
                succeed(Command::new("tar").arg("-C").arg(&rootfs).arg("-cf").arg(place.tar()).arg("."))?;
            }
        }
        place.mount_overlay()?;
        for peer in [Peer::Runc, Peer::Crun] {
            let bundle = place.dir.join(format!("bundle-{}", peer.name()));
            std::fs::create_dir_all(&bundle)?;
            let config = serde_json::to_string_pretty(&peers::bundle(&place.overlay(), &place.name))?;
            std::fs::write(bundle.join("config.json"), config)?;
        }
        Ok(place)
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    pub(super) fn tar(&self) -> PathBuf {
        self.dir.join("rootfs.tar")
    }

    pub(super) fn overlay(&self) -> PathBuf {
        self.dir.join("overlay/root")
    }

    /// Needs a mount namespace of its own, see [`own_mounts`].
    fn mount_overlay(&self) -> anyhow::Result<()> {
        let at = |name| self.dir.join("overlay").join(name);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.rootfs().display(),
            at("upper").display(),
            at("work").display()
        );
        let options = CString::new(options).context("the benchmark's directory has a NUL in its name")?;
        mount("overlay", self.overlay(), "overlay", MountFlags::empty(), options.as_c_str())
            .with_context(|| format!("mounting an overlay at {}", self.overlay().display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever a peer that was interrupted has left; each of these fails where there is nothing to do.
        for argv in peers::ends(self) {
            let mut command = Command::new(&argv[0]);
            command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = berth_sys::netns::run_in(self.netns.as_fd(), || command.status());
        }
        let _ = unmount(self.overlay(), UnmountFlags::DETACH);
        // podman's own, below its storage.
        for mount in mounts_below(&self.dir) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        remove_groups(&self.name);
        if !self.podmans_group {
            remove_groups(PODMANS_GROUP);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("bench: removing {}: {error}", self.dir.display());
        }
    }
}

/// Moves this process, which must have one thread still, into a mount namespace of its own: mounts made from here on
/// end with it, even if it is killed.
pub(super) fn own_mounts() -> anyhow::Result<()> {
    berth_sys::namespace::unshare(berth_sys::namespace::Namespaces::MOUNT)
        .context("making a mount namespace (this needs root)")?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)
        .context("keeping mounts from the machine")
}

/// A root of the machine's own static busybox.
fn make_tiny(rootfs: &Path) -> anyhow::Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        std::fs::create_dir_all(rootfs.join(dir))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.context("there is no busybox: run scripts/setup.sh bench")?;
    std::fs::copy(busybox, rootfs.join("bin/busybox")).with_context(|| format!("copying {busybox}"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// Removes what a run left that was killed, its daemon first.
fn sweep(kept: &Path, berth: &Path) {
    for entry in std::fs::read_dir(kept).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("engine-") else { continue };
        if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
            eprintln!("bench: removing what a run left that was killed: {}", entry.path().display());
            let host = format!("unix://{}", entry.path().join("host/berth.sock").display());
            let mut stop = Command::new(berth);
            stop.args(["daemon", "stop"]).env("BERTH_HOST", host);
            let _ = stop.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            remove_groups(&format!("berth-bench-{pid}"));
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // The last one first: a mount may lie in another.
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).rev().collect()
}

/// Groups of that name, in every hierarchy.
fn groups(name: &str) -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = hierarchies.chain([PathBuf::from(CGROUPS)]).map(|dir| dir.join(name));
    groups.filter(|group| group.is_dir()).collect()
}

/// Removes them all. One that is not empty stays, which is said.
fn remove_groups(name: &str) {
    for group in groups(name) {
        // Controllers that share a hierarchy have it under several names.
        if group.is_dir() {
            remove_group(&group);
        }
    }
}

fn remove_group(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    if let Err(error) = std::fs::remove_dir(group) {
        eprintln!("bench: removing {}: {error}", group.display());
    }
}
