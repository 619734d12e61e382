//! The daemon's side of the launcher process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::guest_image::GuestImage;
use crate::ids::{IdRange, IdRangeError, NamespacePair};
use crate::message::{self, Reply, Report, Request};
use crate::perform::{Blame, Failure};
use crate::plan::Plan;
use crate::process::{Exit, Process};

/// First argument with which a binary is asked to be the launcher: see [`crate::launcher_main`].
pub const LAUNCHER_ARG: &str = "berth-launcher";

/// Starts containers. Shared by all threads; blocks the one that calls.
#[derive(Debug)]
pub struct Launcher {
    /// None after it died; the next launch starts another.
    helper: Mutex<Option<Helper>>,
    /// Makes namespaces, so that no launch waits for them. None until the first are asked for, and after it died.
    maker: Mutex<Option<Helper>>,
}

#[derive(Debug)]
struct Helper {
    /// Behind an Option only so that it can be closed before the process is waited for.
    socket: Option<OwnedFd>,
    process: Child,
}

/// What a launch needs.
#[derive(Debug)]
pub struct LaunchRequest<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// The network namespace to live in. None: an own one with nothing but loopback, which belongs to the host's user
    /// namespace whatever `user_namespace` is.
    pub netns: Option<BorrowedFd<'a>>,
    /// The user namespace to live in, exactly when [`Plan::enters_user_namespace`] says so; its map must be that of
    /// [`crate::Spec::ids`].
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// The guest's end of the control stream: its descriptor 3. Taken, so that the daemon sees end-of-file when the
    /// guest is gone.
    pub control: OwnedFd,
    /// A bound and listening socket, by which another stream can come when `control` has ended: the guest's
    /// `--listen-fd`. Taken likewise.
    pub listen: Option<OwnedFd>,
    /// What to execute.
    pub guest: &'a GuestImage,
    /// Where the guest's standard error goes; nowhere when absent.
    pub stderr: Option<OwnedFd>,
}

/// Why a container did not start. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher process cannot be started.
    #[error("cannot start the launcher process")]
    StartLauncher(#[source] io::Error),
    /// Descriptors for the launch cannot be made.
    #[error("cannot prepare the launch")]
    Prepare(#[source] io::Error),
    /// Talking to the launcher failed; the next launch starts another.
    #[error("the launcher process does not answer")]
    Talk(#[source] io::Error),
    /// The launcher ended; the next launch starts another.
    #[error("the launcher process is gone")]
    Gone,
    /// A step of the plan failed.
    #[error("cannot {step} {}", path.display())]
    Perform {
        /// What was tried.
        step: String,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What the request, or every container, mounts does not fit what the image has at its target: a file where a
    /// directory is, a path below a file, a name that is too long, a link at /proc.
    #[error("cannot mount at {}", path.display())]
    MountTarget {
        /// The target.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What the request mounts is not in the layers that it is to come from.
    #[error("there is no {} in what is to be mounted", path.display())]
    MountSource {
        /// The path in them.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What the request mounts would have wrong owners in a container with ids of its own.
    #[error(
        "cannot show {} with a sandbox's own owners: what is mounted there, or below it, has no id-mapped mounts or is \
         one; copy it to ext4, xfs, btrfs or tmpfs, or start the sandbox without a user namespace",
        path.display()
    )]
    BindOwners {
        /// The source of the bind.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Layers or disk would have wrong owners in a container with ids of its own.
    #[error(
        "cannot show {} with a sandbox's own owners: its file system has no id-mapped mounts, or is mounted as one; \
         move the data directory to ext4, xfs or btrfs, or start sandboxes without user namespaces",
        path.display()
    )]
    RootOwners {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Not a range of ids that a container can have.
    #[error(transparent)]
    Ids(#[from] IdRangeError),
    /// A user namespace came with a plan that does not enter one, or none with one that does.
    #[error("the plan enters a user namespace: {planned}, the request brings one: {}", !planned)]
    UserNamespace {
        /// Whether the plan enters one.
        planned: bool,
    },
    /// The report of the container's first process cannot be read.
    #[error("cannot read the report of the sandbox's first process")]
    ReadReport(#[source] io::Error),
    /// The first process ended before it said anything, for example because its memory limit is too small.
    #[error("the sandbox's first process ended before its root was ready ({exit:?})")]
    EndedEarly {
        /// How it ended, where that is known.
        exit: Option<Exit>,
    },
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let source = io::Error::from_raw_os_error(failure.errno);
        let Failure { step, path, .. } = failure;
        match failure.blame {
            Blame::Machine => Self::Perform { step, path, source },
            Blame::MountTarget => Self::MountTarget { path, source },
            Blame::MountSource => Self::MountSource { path, source },
            Blame::BindOwners => Self::BindOwners { path, source },
            Blame::RootOwners => Self::RootOwners { path, source },
        }
    }
}

impl Launcher {
    /// Starts the launcher process: this same executable, asked by [`LAUNCHER_ARG`].
    pub fn spawn() -> Result<Self, Error> {
        let helper = Helper::start().map_err(Error::StartLauncher)?;
        Ok(Self { helper: Mutex::new(Some(helper)), maker: Mutex::new(None) })
    }

    /// Starts a container and waits until its guest is being executed.
    pub fn launch(&self, request: LaunchRequest<'_>) -> Result<Process, Error> {
        let planned = request.plan.enters_user_namespace();
        if planned != request.user_namespace.is_some() {
            return Err(Error::UserNamespace { planned });
        }
        let plan = message::to_memory_file(request.plan).map_err(Error::Prepare)?;
        let (report, report_writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::Prepare(error.into()))?;
        let stderr = match request.stderr {
            Some(stderr) => stderr,
            None => null().map_err(Error::Prepare)?,
        };
        let mut fds = vec![
            plan.as_fd(),
            report_writer.as_fd(),
            request.guest.as_fd(),
            request.control.as_fd(),
            stderr.as_fd(),
        ];
        fds.extend(request.netns);
        fds.extend(request.user_namespace);
        fds.extend(request.listen.as_ref().map(AsFd::as_fd));
        let wanted = Request::Launch {
            network: request.netns.is_some(),
            user: planned,
            listen: request.listen.is_some(),
        };
        let (reply, mut answered) = ask(&self.helper, &wanted, &fds)?;
        let process = match (reply, answered.pop()) {
            (Reply::Started { pid }, Some(pidfd)) => Process::new(pid, pidfd),
            _ => return Err(Error::Talk(io::ErrorKind::InvalidData.into())),
        };
        // Ours must be closed, or the pipe never ends.
        drop((report_writer, request.control, request.listen, stderr));
        await_report(process, report)
    }

    /// Makes a user namespace in which `ids` are 0 and up, for users and groups, and a network namespace that belongs
    /// to it. No process stays behind, and no launch waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Ids`] for a range that no container can have; [`Error::Perform`] when the kernel refuses: `ENOSPC` at
    /// `user.max_user_namespaces` or `user.max_net_namespaces`, `EPERM` where this process may not map the range.
    pub fn make_namespaces(&self, ids: IdRange) -> Result<NamespacePair, Error> {
        ids.check()?;
        let (reply, mut fds) = ask(&self.maker, &Request::MakeNamespaces(ids), &[])?;
        match (reply, fds.pop(), fds.pop()) {
            (Reply::Made, Some(net), Some(user)) => Ok(NamespacePair { user, net }),
            _ => Err(Error::Talk(io::ErrorKind::InvalidData.into())),
        }
    }
}

/// Has a helper, started anew if need be, do something that can fail. Only this much is one at a time.
fn ask(
    slot: &Mutex<Option<Helper>>,
    request: &Request,
    fds: &[BorrowedFd<'_>],
) -> Result<(Reply, Vec<OwnedFd>), Error> {
    // A panic elsewhere cannot leave a helper half-changed: it is taken out while in use.
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let helper = match slot.take() {
        Some(helper) if helper.lives() => helper,
        _ => Helper::start().map_err(Error::StartLauncher)?,
    };
    let answer = helper.ask(request, fds)?;
    *slot = Some(helper);
    drop(slot);
    match answer {
        (Reply::Failed(failure), _) => Err(failure.into()),
        answer => Ok(answer),
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let process = Command::new("/proc/self/exe")
            .arg(LAUNCHER_ARG)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self { socket: Some(ours), process })
    }

    /// Whether its end of the socket is still open.
    fn lives(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(socket) = &self.socket else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let socket = self.socket.as_ref().ok_or(Error::Gone)?;
        message::send(socket, request, fds).map_err(Error::Talk)?;
        message::receive(socket).map_err(Error::Talk)?.ok_or(Error::Gone)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // End-of-file is what ends it.
        drop(self.socket.take());
        if let Err(error) = self.process.wait() {
            tracing::warn!(%error, "cannot wait for the launcher process");
        }
    }
}

fn await_report(mut process: Process, report: OwnedFd) -> Result<Process, Error> {
    let mut ready = None;
    for line in message::read_reports(report).map_err(Error::ReadReport)? {
        match line {
            Report::Ready { stubs } => ready = Some(stubs),
            // The process ends by itself now; dropping it here reaps it.
            Report::Failed(failure) => return Err(failure.into()),
        }
    }
    match ready {
        Some(stubs) => Ok(process.with_stubs(stubs)),
        None => Err(Error::EndedEarly { exit: process.wait().ok() }),
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
}
