//! Performs a [`Plan`] on the process that calls it, which must be the container's fresh first process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::mount::{Attributes, map_ids, set_attributes};
use berth_sys::namespace::{self, Namespaces};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind, mount_change,
    mount_remount, move_mount, open_tree,
};
use rustix::process::{Resource, Rlimit, chdir, fchdir, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::mountpoint::{self, Kind, Links};
use crate::plan::{Flag, Mount, Op, Plan, Tree};
use crate::root;
use crate::seccomp::{self, Profile};
use crate::spec::CgroupWrite;
use crate::views;

/// A directory of the container in which there is nothing, nor ever can be: see `plan`. Mounted elsewhere it is as
/// read-only as there, and costs less than a file system of its own.
pub(crate) const EMPTY: &str = "/sys/fs/cgroup";

/// A step that failed, in a form that fits through a pipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What was tried, as in "cannot …".
    pub(crate) step: String,
    /// On what.
    pub(crate) path: PathBuf,
    /// Why.
    pub(crate) errno: i32,
    /// Whose it is.
    #[serde(default)]
    pub(crate) blame: Blame,
}

/// Whether a failure is more than one of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Blame {
    /// It is not.
    #[default]
    Machine,
    /// The place of something that is mounted does not fit the image.
    MountTarget,
    /// What is to be mounted is not in the layers that it is to come from.
    MountSource,
    /// What is to be mounted cannot be seen with other owners.
    BindOwners,
    /// The directories behind the root cannot be seen with other owners.
    RootOwners,
}

impl Failure {
    pub(crate) fn new(step: &str, path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        let errno = error.into().raw_os_error().unwrap_or_else(|| Errno::IO.raw_os_error());
        Self { step: step.to_owned(), path: path.into(), errno, blame: Blame::Machine }
    }

    /// Of an attempt to see the files of `path` with other owners; `blame` if they are none that could be.
    fn owners(path: &Path, error: &io::Error, blame: Blame) -> Self {
        let errno = error.raw_os_error().unwrap_or_else(|| Errno::IO.raw_os_error());
        let cannot = [Errno::INVAL, Errno::PERM, Errno::OPNOTSUPP].map(Errno::raw_os_error).contains(&errno);
        let blame = if cannot { blame } else { Blame::Machine };
        Self { step: "map the owners of".to_owned(), path: path.to_owned(), errno, blame }
    }
}

/// What the plan left behind for the first process to use.
#[derive(Debug, Default)]
pub(crate) struct Performed {
    /// Mount points that had to be made in the root, relative to it, parents first.
    pub(crate) stubs: Vec<PathBuf>,
    /// Further arguments of the guest.
    pub(crate) arguments: Vec<String>,
    /// Descriptors of the guest, each with the name of the argument that tells its number.
    pub(crate) passed: Vec<(String, OwnedFd)>,
    pub(crate) trees: Vec<Option<OwnedFd>>,
}

/// Namespaces that came with the request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given<'a> {
    pub(crate) network: Option<BorrowedFd<'a>>,
    pub(crate) user: Option<BorrowedFd<'a>>,
}

/// Performs all operations. After an error the process is good for nothing but to report it and end.
pub(crate) fn perform(plan: &Plan, given: Given<'_>) -> Result<Performed, Failure> {
    let mut done = Performed::default();
    // Mount points are made with exactly the modes that the code says.
    rustix::process::umask(Mode::empty());
    for op in &plan.ops {
        done.apply(op, given)?;
    }
    Ok(done)
}

impl Performed {
    fn apply(&mut self, op: &Op, given: Given<'_>) -> Result<(), Failure> {
        match op {
            Op::NewSession => rustix::process::setsid().map(drop).at("leave the session of", "the launcher"),
            Op::NewKeyring => new_keyring(),
            Op::JoinCgroup(dir) => join_cgroup(dir),
            Op::WriteCgroup(write) => write_cgroup(write),
            Op::UnshareCgroups => {
                namespace::unshare(Namespaces::CGROUP).at("enter a new", "cgroup namespace")
            }
            Op::TellGuest(arguments) => {
                self.arguments.extend_from_slice(arguments);
                Ok(())
            }
            Op::PassFile { path, argument } => self.pass_file(path, argument),
            Op::PassDirectory { path, argument, mapped } => {
                self.pass_directory(path, argument, given.user.filter(|_| *mapped))
            }
            Op::OpenView(argument) => views::connect().map(|connection| self.pass(argument, connection)),
            Op::EnterNetwork => enter_network(given.network),
            Op::PrivateMounts => {
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                    .at("make mounts private below", "/")
            }
            Op::OpenTree(tree) => self.open_tree(tree, given),
            Op::OpenMapped(dir) => self.open_mapped(dir, given),
            Op::Cover { tree, dir } => self.cover(*tree, dir),
            Op::MakeFilesAs(id) => berth_sys::process::make_files_as(*id).at("make files as", id.to_string()),
            Op::MountOverlay(overlay) => root::mount_overlay(overlay),
            Op::MountUpper(upper) => root::mount_upper(upper),
            Op::OpenInside(inside) => self.open_inside(inside),
            Op::PivotRoot(root) => root::pivot(root),
            Op::Mount(mount) => self.mount(mount),
            Op::Link { path, target } => {
                rustix::fs::symlinkat(target.as_str(), CWD, path).at("make the link", path)
            }
            Op::Attach { tree, target } => self.attach(*tree, target),
            Op::AttachMount { tree, target } => self.attach_mount(*tree, target),
            Op::MountMemory(mount) => self.mount_memory(mount),
            Op::MountBytes(bytes) => self.mount_bytes(bytes),
            Op::MountView { target, connection } => self.mount_view(target, connection),
            Op::MountText(text) => views::mount_text(text),
            Op::Mask(path) => mask(path),
            Op::ReadOnly(path) => read_only(path),
            Op::Hostname(name) => rustix::system::sethostname(name.as_bytes()).at("set the host name", name),
            Op::RaiseOpenFiles => raise_open_files(),
            Op::RaiseProcesses => raise_processes(),
            Op::EnterUserNamespace => enter_user_namespace(given.user),
            Op::FilterSystemCalls(profile) => filter_system_calls(*profile, given.user.is_some()),
            Op::Capabilities { keep, guest, last } => keep_capabilities(keep, guest, *last),
            Op::NoNewPrivileges => {
                rustix::thread::set_no_new_privs(true).at("give up new privileges of", "the guest")
            }
            Op::ResetSignalsAndUmask => {
                rustix::process::umask(Mode::from_raw_mode(0o022));
                berth_sys::signal::reset().at("reset signals of", "the guest")
            }
        }
    }

    fn pass_file(&mut self, path: &Path, argument: &str) -> Result<(), Failure> {
        let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at("open for the guest", path)?;
        self.pass(argument, file);
        Ok(())
    }

    /// By way of a mount of its own: whoever had the descriptor could climb to what lies beside the directory otherwise,
    /// the upper directory among it. Its last name goes with the tree's descriptor, the guest's keeps it alive.
    fn pass_directory(
        &mut self,
        path: &Path,
        argument: &str,
        user: Option<BorrowedFd<'_>>,
    ) -> Result<(), Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path, flags).at("open for the guest", path)?;
        let attributes = Attributes { no_suid: true, no_dev: true, no_exec: true, read_only: false };
        set_attributes(tree.as_fd(), attributes, false).at("restrict the mount of", path)?;
        if let Some(user) = user {
            map_ids(tree.as_fd(), user, false)
                .map_err(|error| Failure::owners(path, &error, Blame::RootOwners))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::openat(&tree, ".", flags, Mode::empty()).at("open for the guest", path)?;
        self.pass(argument, directory);
        Ok(())
    }

    /// Gives the guest a descriptor, whose number it finds in the argument `argument=number`.
    fn pass(&mut self, argument: &str, fd: OwnedFd) {
        self.passed.push((argument.to_owned(), fd));
    }

    fn mount_view(&self, target: &Path, connection: &str) -> Result<(), Failure> {
        let passed = self.passed.iter().find(|(argument, _)| argument == connection);
        let (_, fd) = passed.ok_or(Errno::BADF).at("find the connection of", target)?;
        views::mount_view(target, fd)
    }

    fn open_mapped(&mut self, dir: &Path, given: Given<'_>) -> Result<(), Failure> {
        // With all below: a layer that is a mount of its own would be an empty directory otherwise.
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let fd = open_tree(CWD, dir, flags).at("open the directory", dir)?;
        let user = given.user.ok_or(Errno::BADF).at("find the user namespace for", dir)?;
        map_ids(fd.as_fd(), user, true).map_err(|error| Failure::owners(dir, &error, Blame::RootOwners))?;
        self.trees.push(Some(fd));
        Ok(())
    }

    fn cover(&mut self, number: usize, dir: &Path) -> Result<(), Failure> {
        let tree = self.take_tree(number, dir)?;
        move_mount(&tree, "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("mount over", dir)
    }

    pub(crate) fn take_tree(&mut self, number: usize, target: &Path) -> Result<OwnedFd, Failure> {
        let tree = self.trees.get_mut(number).and_then(Option::take);
        tree.ok_or_else(|| Failure::new("find the opened source for", target, Errno::BADF))
    }

    fn open_tree(&mut self, tree: &Tree, given: Given<'_>) -> Result<(), Failure> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | if tree.device { OpenTreeFlags::empty() } else { OpenTreeFlags::AT_RECURSIVE };
        let fd = open_tree(CWD, &tree.source, flags).at("open the source of the bind", &tree.source)?;
        if tree.device {
            let stat = rustix::fs::fstat(&fd).at("look at the device", &tree.source)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
                return Err(Failure::new("find a character device at", &tree.source, Errno::NODEV));
            }
        }
        let attributes = Attributes {
            read_only: tree.read_only,
            no_dev: !tree.device,
            no_suid: tree.device,
            no_exec: tree.device,
        };
        set_attributes(fd.as_fd(), attributes, !tree.device).at("restrict the bind of", &tree.source)?;
        if tree.mapped {
            let user = given.user.ok_or(Errno::BADF).at("find the user namespace for", &tree.source)?;
            map_ids(fd.as_fd(), user, true)
                .map_err(|error| Failure::owners(&tree.source, &error, Blame::BindOwners))?;
        }
        self.trees.push(Some(fd));
        Ok(())
    }

    fn mount(&mut self, wanted: &Mount) -> Result<(), Failure> {
        let target = &wanted.target;
        let point = mountpoint::open(target, Kind::Directory, Links::Refuse, &mut self.stubs)
            .map_err(|error| no_mount_point(target, error))?;
        mount_at(wanted, &point.fd)
    }

    fn attach(&mut self, number: usize, target: &Path) -> Result<(), Failure> {
        let tree = self.take_tree(number, target)?;
        let kind = kind_of(&tree, target)?;
        let point = mountpoint::open(target, kind, Links::Follow, &mut self.stubs)
            .map_err(|error| no_mount_point(target, error))?;
        attach_at(&tree, &point.fd, target)
    }
}

/// Mounts a file system at a place that was examined.
pub(crate) fn mount_at(wanted: &Mount, point: &OwnedFd) -> Result<(), Failure> {
    let target = &wanted.target;
    let flags = wanted.flags.iter().fold(MountFlags::NOSUID, |flags, flag| {
        flags
            | match flag {
                Flag::NoDev => MountFlags::NODEV,
                Flag::NoExec => MountFlags::NOEXEC,
                Flag::ReadOnly => MountFlags::RDONLY,
            }
    });
    let options = c_string(&wanted.options, target)?;
    // By way of the working directory, so that what was just examined is what is mounted on.
    fchdir(point).at("enter", target)?;
    let kind = wanted.file_system.as_str();
    mount(kind, ".", kind, flags, options.as_c_str()).at("mount", target)?;
    chdir("/").at("enter", "/")
}

/// What the place of a detached tree must be.
pub(crate) fn kind_of(tree: &OwnedFd, target: &Path) -> Result<Kind, Failure> {
    let stat = rustix::fs::fstat(tree).at("look at the source for", target)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

/// Puts a detached tree at a place that was examined.
pub(crate) fn attach_at(tree: &OwnedFd, point: &OwnedFd, target: &Path) -> Result<(), Failure> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", point, "", flags).at("mount a bind at", target)
}

/// What the image has in the way is no fault of the machine's: a symlink at /proc, a file at /dev.
pub(crate) fn no_mount_point(target: &Path, error: Errno) -> Failure {
    let misfit = matches!(error, Errno::NOTDIR | Errno::ISDIR | Errno::NAMETOOLONG | Errno::LOOP);
    let blame = if misfit { Blame::MountTarget } else { Blame::Machine };
    Failure { blame, ..Failure::new("prepare the mount point", target, error) }
}

/// Says what an error is about.
pub(crate) trait At<T> {
    fn at(self, step: &str, path: impl AsRef<Path>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: &str, path: impl AsRef<Path>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, path.as_ref(), error))
    }
}

fn new_keyring() -> Result<(), Failure> {
    match berth_sys::process::new_session_keyring() {
        // A kernel without keys has none to let go of.
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(()),
        answer => answer.at("leave the keyring of", "the daemon"),
    }
}

fn write_cgroup(write: &CgroupWrite) -> Result<(), Failure> {
    // Not `fs::write`, which would make what is not there.
    let opened = std::fs::OpenOptions::new().write(true).open(&write.path);
    match opened.and_then(|mut file| io::Write::write_all(&mut file, write.value.as_bytes())) {
        Err(error) if write.if_there && error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.at("write to the control group", &write.path),
    }
}

fn join_cgroup(door: &Path) -> Result<(), Failure> {
    // Only opened: what would make or cut files takes the lock of the group's directory, and waits for all that is made
    // and removed in it.
    let opened = rustix::fs::openat(CWD, door, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    // "0" is the writer itself, whatever its pid is in whichever namespace.
    opened.and_then(|door| rustix::io::write(door, b"0")).map(drop).at("join the control group by", door)
}

fn enter_network(netns: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    match netns {
        Some(netns) => rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .at("enter", "the network namespace"),
        None => berth_sys::netdev::loopback_up().at("take up the device", "lo"),
    }
}

fn mask(path: &Path) -> Result<(), Failure> {
    let Some(found) = existing(path)? else { return Ok(()) };
    let nothing = if found == FileType::Directory { EMPTY } else { "/dev/null" };
    mount_bind(nothing, path).at("mask", path)
}

fn read_only(path: &Path) -> Result<(), Failure> {
    if existing(path)?.is_none() {
        return Ok(());
    }
    mount_bind(path, path).at("mount over itself", path)?;
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(path, flags, "").at("make read-only", path)
}

fn existing(path: &Path) -> Result<Option<FileType>, Failure> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(Failure::new("look at", path, error)),
    }
}

/// Only a process that may exceed hard limits may lift them; any other goes as far as the hard one.
fn raise_processes() -> Result<(), Failure> {
    if setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None }).is_ok() {
        return Ok(());
    }
    let maximum = getrlimit(Resource::Nproc).maximum;
    setrlimit(Resource::Nproc, Rlimit { current: maximum, maximum }).at("raise the limit of", "processes")
}

fn enter_user_namespace(user: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let user = user.ok_or(Errno::BADF).at("find", "the user namespace")?;
    namespace::become_root_of(user).at("become root of", "the user namespace")
}

fn raise_open_files() -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).at("raise the limit of", "open files")
}

fn filter_system_calls(profile: Profile, in_user_namespace: bool) -> Result<(), Failure> {
    if profile == Profile::Unconfined {
        return Ok(());
    }
    // Only an architecture that nobody has ported has none; doctor says so in full.
    let compiled = |programs: Result<&'static [Vec<_>], _>| {
        programs.map_err(|_| {
            Failure::new("compile the system call filter for", std::env::consts::ARCH, Errno::OPNOTSUPP)
        })
    };
    let more = match in_user_namespace {
        true => &[],
        false => compiled(seccomp::programs_without_user_namespace())?,
    };
    more.iter().chain(compiled(seccomp::programs())?).try_for_each(|program| {
        berth_sys::seccomp::install_filter(program).at("install the system call filter of", "the guest")
    })
}

/// What the guest alone is to have goes to it by the inheritable set, which execve(2) adds to root's: the bounding set,
/// which everything after it is held to, is without. That set takes only what is not bounded yet, so it comes first.
fn keep_capabilities(keep: &[Capability], guest: &[Capability], last: u8) -> Result<(), Failure> {
    let bit = |number: u8| CapabilitySet::from_bits_retain(1 << number);
    let set = |list: &[Capability]| {
        list.iter().fold(CapabilitySet::empty(), |set, capability| set | bit(capability.number()))
    };
    let kept = set(keep);
    let own = rustix::thread::capabilities(None).at("read the own", "capabilities")?;
    let inheritable = set(guest) & own.permitted;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable, ..own })
        .at("hand on", "capabilities")?;
    for number in (0..=last).filter(|number| !kept.contains(bit(*number))) {
        rustix::thread::remove_capability_from_bounding_set(bit(number))
            .at("drop the capability", number.to_string())?;
    }
    rustix::thread::clear_ambient_capability_set().at("clear the ambient", "capabilities")?;
    // What the daemon itself lacks cannot be given: it is not an error of the sandbox that there is no more.
    let kept = (kept & own.permitted) | inheritable;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable };
    rustix::thread::set_capabilities(None, sets).at("reduce the own", "capabilities")
}

pub(crate) fn c_string(text: &str, path: &Path) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new("pass options to the mount of", path, Errno::INVAL))
}
