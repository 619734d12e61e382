//! The launcher process: one thread, copies itself on request.
//!
//! It lives exactly as long as the daemon's end of its socket, which is its standard input. `PR_SET_PDEATHSIG` would be
//! wrong here: it fires when the *thread* that started the process ends, and a daemon's threads come and go.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use berth_sys::namespace::Namespaces;
use berth_sys::process::{Clone, clone_sibling, end_now};
use berth_sys::program::{Program, become_program};
use rustix::fs::{Mode, OFlags};

use crate::message::{self, Reply, Report, Request};
use crate::perform::{Failure, perform};
use crate::plan::Plan;

/// Descriptors that every request brings.
const FIXED_DESCRIPTORS: usize = 5;

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
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(null(OFlags::RDONLY)?)?;
    // Compiled once here, for all children. An error is every child's own, when it comes to need it.
    let _ = crate::seccomp::programs();
    while let Some((request, fds)) = message::receive::<Request>(&socket)? {
        let answered = match Descriptors::take(request, fds) {
            Some(fds) => start(&socket, fds),
            None => {
                let failure =
                    Failure::new("understand the request of", "the daemon", rustix::io::Errno::PROTO);
                message::send(&socket, &Reply::Failed(failure), &[])
            }
        };
        match answered {
            // The daemon died between request and answer; the next read says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            answered => answered?,
        }
    }
    Ok(())
}

struct Descriptors {
    plan: OwnedFd,
    report: OwnedFd,
    guest: OwnedFd,
    control: OwnedFd,
    stderr: OwnedFd,
    netns: Option<OwnedFd>,
}

impl Descriptors {
    fn take(request: Request, fds: Vec<OwnedFd>) -> Option<Self> {
        if fds.len() != FIXED_DESCRIPTORS + usize::from(request.netns) {
            return None;
        }
        let mut fds = fds.into_iter();
        Some(Self {
            plan: fds.next()?,
            report: fds.next()?,
            guest: fds.next()?,
            control: fds.next()?,
            stderr: fds.next()?,
            netns: fds.next(),
        })
    }
}

fn start(socket: &OwnedFd, fds: Descriptors) -> io::Result<()> {
    let mut namespaces = Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | Namespaces::UTS;
    if fds.netns.is_none() {
        namespaces = namespaces | Namespaces::NETWORK;
    }
    match clone_sibling(namespaces) {
        Ok(Clone::Child) => run_child(fds),
        Ok(Clone::Parent { pid, pidfd }) => message::send(socket, &Reply::Started { pid }, &[pidfd.as_fd()]),
        Err(error) => {
            let failure = Failure::new("make namespaces for", "the sandbox", error);
            message::send(socket, &Reply::Failed(failure), &[])
        }
    }
}

fn run_child(fds: Descriptors) -> ! {
    let prepared = prepare(fds.plan, fds.netns, fds.guest, fds.control, fds.stderr);
    let program = match prepared {
        Ok((program, stubs)) => {
            message::write_report(&fds.report, &Report::Ready { stubs }).map(|()| program)
        }
        Err(failure) => {
            // When nobody reads the report, nobody waits for this process either.
            let _ = message::write_report(&fds.report, &Report::Failed(failure));
            end_now(126)
        }
    };
    match program {
        Ok(program) => become_program(program, fds.report, |report, error| {
            let failure = Failure::new("execute", "the guest", io::Error::from(error.kind()));
            let failure = Failure { errno: error.raw_os_error().unwrap_or(failure.errno), ..failure };
            let _ = message::write_report(report, &Report::Failed(failure));
        }),
        Err(_) => end_now(126),
    }
}

fn prepare(
    plan: OwnedFd,
    netns: Option<OwnedFd>,
    guest: OwnedFd,
    control: OwnedFd,
    stderr: OwnedFd,
) -> Result<(Program, Vec<std::path::PathBuf>), Failure> {
    let plan: Plan =
        message::from_memory_file(plan).map_err(|error| Failure::new("read", "the plan", error))?;
    let open_null = |flags| null(flags).map_err(|error| Failure::new("open", "/dev/null", error));
    // Opened on the host's side, for a reader of /proc/1/fd it is the same device.
    let (input, output) = (open_null(OFlags::RDONLY)?, open_null(OFlags::WRONLY)?);
    let done = perform(&plan, netns.as_ref().map(AsFd::as_fd))?;
    let mut arguments = vec![c"berth-guest".to_owned(), c"--control-fd=3".to_owned()];
    let mut passed = vec![control];
    if let Some((dir, v2)) = done.guest_cgroup {
        arguments.push(CString::from(c"--cgroup-fd=4"));
        arguments.extend(v2.then(|| c"--cgroup-v2".to_owned()));
        passed.push(dir);
    }
    let program = Program { image: guest, arguments, stdio: [input, output, stderr], passed };
    Ok((program, done.stubs))
}

fn null(flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty())?)
}
