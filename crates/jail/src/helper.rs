//! The launcher process: one thread, copies itself on request.
//!
//! It lives exactly as long as the daemon's end of its socket, which is its standard input. `PR_SET_PDEATHSIG` would be
//! wrong here: it fires when the *thread* that started the process ends, and a daemon's threads come and go.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use berth_sys::namespace::Namespaces;
use berth_sys::process::{Clone, clone_sibling, end_now};
use berth_sys::program::{Program, become_program};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::ids::IdRange;
use crate::maker;
use crate::message::{self, Reply, Report, Request};
use crate::perform::{Failure, Given, perform};
use crate::plan::Plan;

/// Descriptors that every request brings.
const FIXED_DESCRIPTORS: usize = 5;
/// The first descriptor that the guest has beside the standard three; see [`become_program`].
const FIRST_PASSED: usize = 3;

/// What a binary must do first thing in `main`, before any other thread exists, when its first argument is
/// [`crate::LAUNCHER_ARG`]; its end is the process's end.
pub fn launcher_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the daemon's; there is nobody else to tell.
            eprintln!("berth launcher: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    // The daemon's terminal may send signals to its process group; they are not for sandboxes. Fails only where the
    // process leads a group already, and then there is nothing to leave.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/")?;
    contain_core_dumps()?;
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(null(OFlags::RDONLY)?)?;
    // Compiled once here, for all children. An error is every child's own, when it comes to need it.
    let _ = (crate::seccomp::programs(), crate::seccomp::programs_without_user_namespace());
    while let Some((request, fds)) = message::receive::<Request>(&socket)? {
        let answered = match request {
            Request::Launch { network, user, listen } => {
                match Descriptors::take(network, user, listen, fds) {
                    Some((fds, report)) => start(&socket, fds, report),
                    None => {
                        let failure =
                            Failure::new("understand the request of", "the daemon", rustix::io::Errno::PROTO);
                        message::send(&socket, &Reply::Failed(failure), &[])
                    }
                }
            }
            Request::MakeNamespaces(ids) => make_namespaces(&socket, ids),
        };
        match answered {
            // The daemon died between request and answer; the next read says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            answered => answered?,
        }
    }
    Ok(())
}

/// A core dump stays in the sandbox where the host's pattern is a plain name. One for a program or a socket of the host,
/// or for a path (which a set-uid program's dump takes from the host's root with `fs.suid_dumpable` 2), would leave it: a
/// hard limit of one byte is too little for any file, and what the kernel takes as a no to the others. core(5),
/// `fs/coredump.c`.
fn contain_core_dumps() -> io::Result<()> {
    let pattern = match std::fs::read("/proc/sys/kernel/core_pattern") {
        Ok(pattern) => pattern,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if pattern.first().is_some_and(|first| b"|/@".contains(first)) {
        setrlimit(Resource::Core, Rlimit { current: Some(1), maximum: Some(1) })?;
    }
    Ok(())
}

/// What a launch brings, but for the report, which outlives the rest.
struct Descriptors {
    plan: OwnedFd,
    guest: OwnedFd,
    control: OwnedFd,
    stderr: OwnedFd,
    network: Option<OwnedFd>,
    user: Option<OwnedFd>,
    listen: Option<OwnedFd>,
}

impl Descriptors {
    fn take(network: bool, user: bool, listen: bool, fds: Vec<OwnedFd>) -> Option<(Self, OwnedFd)> {
        let optional = [network, user, listen].into_iter().filter(|comes| *comes).count();
        if fds.len() != FIXED_DESCRIPTORS + optional {
            return None;
        }
        let mut fds = fds.into_iter();
        let (plan, report) = (fds.next()?, fds.next()?);
        let taken = Self {
            plan,
            guest: fds.next()?,
            control: fds.next()?,
            stderr: fds.next()?,
            network: if network { fds.next() } else { None },
            user: if user { fds.next() } else { None },
            listen: fds.next(),
        };
        Some((taken, report))
    }
}

fn start(socket: &OwnedFd, fds: Descriptors, report: OwnedFd) -> io::Result<()> {
    let mut namespaces = Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | Namespaces::UTS;
    if fds.network.is_none() {
        namespaces = namespaces | Namespaces::NETWORK;
    }
    match clone_sibling(namespaces) {
        Ok(Clone::Child) => run_child(fds, report),
        Ok(Clone::Parent { pid, pidfd }) => message::send(socket, &Reply::Started { pid }, &[pidfd.as_fd()]),
        Err(error) => {
            let failure = Failure::new("make namespaces for", "the sandbox", error);
            message::send(socket, &Reply::Failed(failure), &[])
        }
    }
}

fn make_namespaces(socket: &OwnedFd, ids: IdRange) -> io::Result<()> {
    match maker::make(ids) {
        Ok(pair) => message::send(socket, &Reply::Made, &[pair.user.as_fd(), pair.net.as_fd()]),
        Err(failure) => message::send(socket, &Reply::Failed(failure), &[]),
    }
}

fn run_child(fds: Descriptors, report: OwnedFd) -> ! {
    let program = match prepare(fds) {
        Ok((program, stubs)) => message::write_report(&report, &Report::Ready { stubs }).map(|()| program),
        Err(failure) => {
            // When nobody reads the report, nobody waits for this process either.
            let _ = message::write_report(&report, &Report::Failed(failure));
            end_now(126)
        }
    };
    match program {
        Ok(program) => become_program(program, report, |report, error| {
            let failure = Failure::new("execute", "the guest", io::Error::from(error.kind()));
            let failure = Failure { errno: error.raw_os_error().unwrap_or(failure.errno), ..failure };
            let _ = message::write_report(report, &Report::Failed(failure));
        }),
        Err(_) => end_now(126),
    }
}

fn prepare(fds: Descriptors) -> Result<(Program, Vec<PathBuf>), Failure> {
    let plan: Plan =
        message::from_memory_file(fds.plan).map_err(|error| Failure::new("read", "the plan", error))?;
    let open_null = |flags| null(flags).map_err(|error| Failure::new("open", "/dev/null", error));
    // Opened on the host's side, for a reader of /proc/1/fd it is the same device.
    let (input, output) = (open_null(OFlags::RDONLY)?, open_null(OFlags::WRONLY)?);
    let given =
        Given { network: fds.network.as_ref().map(AsFd::as_fd), user: fds.user.as_ref().map(AsFd::as_fd) };
    hold_oom_score();
    let done = perform(&plan, given)?;
    let mut words = vec!["berth-guest".to_owned()];
    let mut passed = Vec::new();
    let mut pass = |name: &str, fd: OwnedFd| {
        passed.push(fd);
        format!("{name}={}", FIRST_PASSED + passed.len() - 1)
    };
    words.push(pass("--control-fd", fds.control));
    words.extend(fds.listen.map(|listen| pass("--listen-fd", listen)));
    words.extend(done.arguments);
    words.extend(done.passed.into_iter().map(|(name, fd)| pass(&name, fd)));
    let arguments = words.into_iter().map(CString::new).collect::<Result<_, _>>();
    let arguments =
        arguments.map_err(|_| Failure::new("pass arguments to", "the guest", rustix::io::Errno::INVAL))?;
    let program = Program { image: fds.guest, arguments, stdio: [input, output, fds.stderr], passed };
    Ok((program, done.stubs))
}

/// How far a process may take its out-of-memory score back is inherited, and whoever sets it with privilege moves that
/// point. A daemon that the kernel spares must not have sandboxes that can ask for the same: theirs go no lower than 0.
/// Without the privilege to do so there is nothing to be done, and a daemon with nothing to pass on needs nothing.
fn hold_oom_score() {
    let path = "/proc/self/oom_score_adj";
    let own = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(own) = own {
        // Written also where it is the same: that is what moves the point.
        let _ = std::fs::write(path, own.max(0).to_string());
    }
}

fn null(flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty())?)
}
