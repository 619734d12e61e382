//! One sandbox from nothing to nothing, phase by phase.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use berth_sys::mount::map_ids;
use berth_sys::namespace::{Namespaces, become_root_of};
use berth_sys::netdev::loopback_up;
use berth_sys::process::{Clone, clone_child, end_now, make_files_as};
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, chdir, kill_process, pivot_root, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::groups::{Group, Hierarchies};
use crate::link::Netlink;

/// See the program's own documentation.
pub(crate) const PHASES: [&str; 7] =
    ["namespaces", "link", "groups", "layer", "entering", "command", "removal"];

/// First of the host's ids that the sandbox has, and how many: within what no machine gives to its users.
const FIRST_ID: u32 = 1_879_048_192;
const IDS: u32 = 65_536;
const GREETING: &str = "ok\n";

/// Microseconds of one round, by phase.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) phases: [f64; PHASES.len()],
}

impl Round {
    /// Of the whole round.
    pub(crate) fn total(&self) -> f64 {
        self.phases.iter().sum()
    }
}

/// What all rounds share.
pub(crate) struct Floor {
    rootfs: PathBuf,
    dir: PathBuf,
    network: Option<Netlink>,
    rounds: u64,
}

/// A user namespace and a network namespace that belongs to it.
struct Pair {
    user: OwnedFd,
    net: OwnedFd,
}

impl Floor {
    /// Makes `dir` and, in it, the place that overlays are mounted at.
    pub(crate) fn new(rootfs: PathBuf, dir: PathBuf, network: bool) -> anyhow::Result<Self> {
        let root = dir.join("root");
        fs::create_dir_all(&root).with_context(|| format!("making {}", root.display()))?;
        let network = network.then(Netlink::open).transpose()?;
        Ok(Self { rootfs, dir, network, rounds: 0 })
    }

    /// From nothing to nothing.
    pub(crate) fn round(&mut self, hierarchies: &Hierarchies) -> anyhow::Result<Round> {
        self.rounds += 1;
        let mut clock = Stopwatch::start();
        let pair = make_pair()?;
        clock.phase();
        if let Some(netlink) = &self.network {
            let name = format!("bf{}-{}", std::process::id(), self.rounds);
            netlink.add_pair(&name, pair.net.as_fd())?;
        }
        clock.phase();
        let group = hierarchies.group(self.rounds)?;
        clock.phase();
        let layer = self.dir.join(self.rounds.to_string());
        for dir in [layer.clone(), layer.join("upper"), layer.join("work")] {
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
        clock.phase();
        let entered = self.command(&pair, &group, &layer);
        clock.phase_after(*entered.as_ref().unwrap_or(&0.0));
        group.remove()?;
        fs::remove_dir_all(&layer).with_context(|| format!("removing {}", layer.display()))?;
        drop(pair);
        clock.phase();
        entered?;
        Ok(Round { phases: clock.phases.try_into().unwrap_or([f64::NAN; PHASES.len()]) })
    }

    /// Runs the command in its sandbox, and makes sure that it said what it should. Returns the microseconds that
    /// entering the groups took.
    fn command(&self, pair: &Pair, group: &Group, layer: &Path) -> anyhow::Result<f64> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("making a pipe")?;
        let namespaces = Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | Namespaces::UTS;
        let pid = match clone_child(namespaces).context("clone3")? {
            Clone::Child => {
                let Err(error) = self.become_sandboxed(pair, group, layer, write);
                eprintln!("berth-floor: in the sandbox: {error:#}");
                end_now(127);
            }
            Clone::Parent { pid, .. } => pid,
        };
        drop(write);
        let mut output = String::new();
        let output_read = File::from(read).read_to_string(&mut output);
        let status = reap(pid)?;
        output_read.context("reading the command's output")?;
        anyhow::ensure!(status == Some(0), "the command's exit status is {status:?}");
        // The child's own word comes first, on the same pipe.
        let (entered, said) = output.split_once('\n').unwrap_or_default();
        anyhow::ensure!(said == GREETING, "the command said {said:?}, not {GREETING:?}");
        entered.parse().with_context(|| format!("the child said {entered:?}"))
    }

    /// The new process: all mounts while it still belongs to the host's user namespace, that one's change last.
    fn become_sandboxed(
        &self,
        pair: &Pair,
        group: &Group,
        layer: &Path,
        output: OwnedFd,
    ) -> anyhow::Result<std::convert::Infallible> {
        let start = Instant::now();
        group.enter()?;
        let entered = format!("{:.1}\n", start.elapsed().as_secs_f64() * 1e6);
        rustix::io::write(&output, entered.as_bytes()).context("writing to the pipe")?;
        move_into_link_name_space(pair.net.as_fd(), Some(LinkNameSpaceType::Network)).context("setns")?;
        loopback_up().context("bringing the loopback up")?;
        if self.network.is_some() {
            Netlink::open()?.set_up_inner()?;
        }
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
            .context("making mounts private")?;
        for dir in [&self.rootfs, layer] {
            mount_mapped(dir, &pair.user).with_context(|| format!("mapping {}", dir.display()))?;
        }
        self.mount_overlay(layer)?;
        chdir("/").context("entering the new root")?;
        mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"")
            .context("mounting /proc")?;
        become_root_of(pair.user.as_fd()).context("entering the user namespace")?;
        let error = Command::new("/bin/echo").arg("ok").env_clear().stdout(Stdio::from(output)).exec();
        Err(error).context("running /bin/echo")
    }

    /// Mounts the root and makes it this process's own.
    fn mount_overlay(&self, layer: &Path) -> anyhow::Result<()> {
        let options = format!(
            // Volatile, or its end would write out the whole file system below.
            "lowerdir={},upperdir={},workdir={},volatile",
            self.rootfs.display(),
            layer.join("upper").display(),
            layer.join("work").display()
        );
        let options = CString::new(options).context("a directory's name")?;
        let root = self.dir.join("root");
        make_files_as(FIRST_ID).context("taking on the sandbox's id")?;
        mount("overlay", &root, "overlay", MountFlags::NODEV, options.as_c_str())
            .context("mounting the overlay")?;
        make_files_as(0).context("giving back the sandbox's id")?;
        chdir(&root).context("entering the overlay")?;
        pivot_root(".", ".").context("pivot_root")?;
        unmount(".", UnmountFlags::DETACH).context("unmounting the host's root")
    }
}

/// Puts an id-mapped copy of a directory over itself.
fn mount_mapped(dir: &Path, user: &OwnedFd) -> anyhow::Result<()> {
    let tree = open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .context("open_tree")?;
    map_ids(tree.as_fd(), user.as_fd(), false).context("mount_setattr")?;
    move_mount(tree.as_fd(), "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).context("move_mount")
}

/// Both namespaces, by a process that has nothing else to do than to be in them.
fn make_pair() -> anyhow::Result<Pair> {
    let (wait, hold) = pipe_with(PipeFlags::CLOEXEC).context("making a pipe")?;
    let pid =
        match clone_child(Namespaces::USER | Namespaces::NETWORK).context("clone3 with a user namespace")? {
            Clone::Child => {
                drop(hold);
                let _ = rustix::io::read(&wait, &mut [0; 1]);
                end_now(0);
            }
            Clone::Parent { pid, .. } => pid,
        };
    let made = (|| {
        for map in ["uid_map", "gid_map"] {
            let file = format!("/proc/{pid}/{map}");
            fs::write(&file, format!("0 {FIRST_ID} {IDS}\n")).with_context(|| format!("writing {file}"))?;
        }
        let open = |kind: &str| {
            let file = format!("/proc/{pid}/ns/{kind}");
            File::open(&file).map(OwnedFd::from).with_context(|| format!("opening {file}"))
        };
        Ok(Pair { user: open("user")?, net: open("net")? })
    })();
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have gone by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
    reap(pid)?;
    made
}

fn reap(pid: i32) -> anyhow::Result<Option<i32>> {
    let pid = Pid::from_raw(pid).context("clone3 gave no pid")?;
    let ended = waitpid(Some(pid), WaitOptions::empty()).context("waiting for a process")?;
    Ok(ended.and_then(|(_, status)| status.exit_status()))
}

/// Cuts time into phases.
struct Stopwatch {
    last: Instant,
    phases: Vec<f64>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { last: Instant::now(), phases: Vec::with_capacity(PHASES.len()) }
    }

    fn phase(&mut self) {
        let now = Instant::now();
        self.phases.push((now - self.last).as_secs_f64() * 1e6);
        self.last = now;
    }

    /// Two phases, of which the first took so many microseconds.
    fn phase_after(&mut self, first: f64) {
        self.phase();
        if let Some(both) = self.phases.pop() {
            self.phases.extend([first, both - first]);
        }
    }
}
