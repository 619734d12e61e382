//! The copy's side of [`crate::spawn`]: from fork(2) to execve(2), with system calls alone.
//!
//! Nothing here may allocate, lock or panic: the process was forked from one with threads. rustix makes its calls
//! directly, without the C library, and passes `CStr`s on as they are.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CapabilitySet;

use crate::process::end_now;
use crate::spawn::{Plan, Step};

/// Length of one message on the report pipe; short enough that a write of it is all or nothing.
pub(crate) const MESSAGE_LEN: usize = 8;

/// `SYS_close_range` has the same number on every architecture.
const SYS_CLOSE_RANGE: libc::c_long = 436;
/// `CLOSE_RANGE_CLOEXEC`, `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Code of a copy that never became the command; nobody but the reaper sees it.
const NOT_STARTED: i32 = 127;

/// One message on the report pipe.
pub(crate) enum Message {
    /// About to execute the program of this index.
    Trying(usize),
    /// Given up.
    Failed(Step, i32),
}

/// Reads what [`write_message`] wrote.
pub(crate) fn read_message(bytes: [u8; MESSAGE_LEN]) -> Message {
    let [kind, _, _, _, value @ ..] = bytes;
    let value = i32::from_ne_bytes(value);
    let step = match kind {
        0 => return Message::Trying(usize::try_from(value).unwrap_or(0)),
        1 => Step::Cgroup,
        2 => Step::Prepare,
        3 => Step::Ids,
        4 => Step::Cwd,
        _ => Step::Exec,
    };
    Message::Failed(step, value)
}

fn write_message(plan: &Plan<'_>, message: &Message) {
    let (kind, value) = match message {
        Message::Trying(index) => (0, i32::try_from(*index).unwrap_or(i32::MAX)),
        Message::Failed(Step::Cgroup, errno) => (1, *errno),
        Message::Failed(Step::Prepare, errno) => (2, *errno),
        Message::Failed(Step::Ids, errno) => (3, *errno),
        Message::Failed(Step::Cwd, errno) => (4, *errno),
        Message::Failed(Step::Exec, errno) => (5, *errno),
    };
    let mut bytes = [0; MESSAGE_LEN];
    bytes[0] = kind;
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    // With nobody left to read it there is nobody left to tell.
    let _ = rustix::io::write(&plan.report, &bytes);
}

/// Becomes the command, or reports why not and ends.
pub(crate) fn run(plan: &Plan<'_>) -> ! {
    let (step, errno) = match prepare(plan) {
        Ok(()) => (Step::Exec, execute(plan)),
        Err(failure) => failure,
    };
    write_message(plan, &Message::Failed(step, errno.raw_os_error()));
    end_now(NOT_STARTED)
}

fn prepare(plan: &Plan<'_>) -> Result<(), (Step, Errno)> {
    enter_cgroups(plan.spec.cgroups).map_err(|errno| (Step::Cgroup, errno))?;
    reset(plan).map_err(|errno| (Step::Prepare, errno))?;
    // First with the rights of this process, as container runtimes do: a command may start in a directory that its
    // user could not have entered. Where this process lacks the right (FUSE, NFS), the user may still have it.
    let entered = match change_directory(plan.spec.cwd) {
        Ok(()) => true,
        Err(Errno::ACCESS | Errno::PERM) => false,
        Err(errno) => return Err((Step::Cwd, errno)),
    };
    if let Some(mask) = plan.spec.capabilities {
        bound_capabilities(mask).map_err(|errno| (Step::Prepare, errno))?;
    }
    become_user(plan).map_err(|errno| (Step::Ids, errno))?;
    if !entered {
        change_directory(plan.spec.cwd).map_err(|errno| (Step::Cwd, errno))?;
    }
    if plan.spec.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(|errno| (Step::Prepare, errno))?;
    }
    Ok(())
}

/// The descriptors of this process are still open, and some are directories of the host: `/proc/self/fd/4`, in the
/// path or behind a symlink in it, would be a way out. So links that are no paths are not followed (`ELOOP`).
fn change_directory(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    rustix::process::fchdir(dir)
}

/// cgroups(7): writing "0" moves the writer.
fn enter_cgroups(cgroups: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    cgroups.iter().try_for_each(|procs| rustix::io::write(procs, b"0").map(drop))
}

fn reset(plan: &Plan<'_>) -> Result<(), Errno> {
    rustix::process::setsid()?;
    crate::signal::reset().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(score) = &plan.oom_score_adj {
        // Best effort: there may be no /proc.
        if let Ok(file) =
            rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        {
            let _ = rustix::io::write(&file, score.as_bytes());
        }
    }
    if let Some((current, maximum)) = plan.spec.open_files {
        let limit = Rlimit { current: Some(current), maximum: Some(maximum) };
        rustix::process::setrlimit(Resource::Nofile, limit)?;
    }
    let [stdin, stdout, stderr] = plan.spec.stdio;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    if plan.spec.controlling_terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    // Every descriptor is close-on-exec already; this is for those that something else in the process forgot. Kernels
    // before 5.11 refuse it, which changes nothing for the others.
    // SAFETY: touches no memory, and with CLOSE_RANGE_CLOEXEC closes nothing before execve.
    let _ = unsafe { libc::syscall(SYS_CLOSE_RANGE, 3, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    Ok(())
}

/// Drops the others from the bounding set. That is enough: what execve(2) gives, to root too, is never more than this
/// set, and no capability is inheritable. The process's own stay, for it has yet to become its user. capabilities(7).
fn bound_capabilities(mask: u64) -> Result<(), Errno> {
    for number in (0..u64::BITS).filter(|number| mask & (1 << number) == 0) {
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(
            1 << number,
        )) {
            Ok(()) => {}
            // Numbers past the kernel's last.
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The thread calls are the process's: the copy has one thread. From 0 to another uid they also drop capabilities.
fn become_user(plan: &Plan<'_>) -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&plan.groups)?;
    rustix::thread::set_thread_res_gid(plan.gid, plan.gid, plan.gid)?;
    rustix::thread::set_thread_res_uid(plan.uid, plan.uid, plan.uid)
}

/// Comes back only with an error.
fn execute(plan: &Plan<'_>) -> Errno {
    match plan.spec.image {
        Some(image) => execute_image(plan, image),
        None => execute_first(plan),
    }
}

fn execute_image(plan: &Plan<'_>, image: BorrowedFd<'_>) -> Errno {
    // SAFETY: the path is NUL-terminated, both vectors are NULL-terminated arrays of pointers to NUL-terminated
    // strings, and all of them were copied by the fork along with `plan`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            image.as_raw_fd(),
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_error()
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// The error is that of the first program that was there, or else of the last.
fn execute_first(plan: &Plan<'_>) -> Errno {
    let mut refused = None;
    let mut errno = Errno::NOENT;
    for (index, program) in plan.spec.programs.iter().enumerate() {
        write_message(plan, &Message::Trying(index));
        // SAFETY: the path is NUL-terminated, both vectors are NULL-terminated arrays of pointers to NUL-terminated
        // strings, and all of them were copied by the fork along with `plan`.
        unsafe { libc::execve(program.as_ptr(), plan.argv.as_ptr(), plan.env.as_ptr()) };
        errno = last_error();
        match errno {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => refused = refused.or(Some(index)),
            _ => return errno,
        }
    }
    match refused {
        Some(index) => {
            write_message(plan, &Message::Trying(index));
            Errno::ACCESS
        }
        None => errno,
    }
}
