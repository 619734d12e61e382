//! Becoming another program.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;

use crate::checked;
use crate::process::end_now;

/// First descriptor that a program gets beyond the standard three.
const FIRST_PASSED: RawFd = 3;
/// `SYS_close_range` has the same number on every architecture.
const SYS_CLOSE_RANGE: libc::c_long = 436;
/// `CLOSE_RANGE_CLOEXEC`, `linux/close_range.h`.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// A program to become, with all that it keeps of this one.
#[derive(Debug)]
pub struct Program {
    /// The executable, open; it needs no name in the file system.
    pub image: OwnedFd,
    /// Arguments, the program's own name first.
    pub arguments: Vec<CString>,
    /// Its standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Its further descriptors: they become 3, 4, and so on. Everything else is closed.
    pub passed: Vec<OwnedFd>,
}

/// Becomes `program`, with an empty environment. Does not come back: when it fails, `on_error` is called with `report`
/// and the error, and the process ends with code 127.
///
/// `report` closes by itself when the program starts, so a reader of it sees end-of-file on success. It is a plain
/// function that gets to see the failure because by then the descriptor table is torn: nothing else may run.
///
/// execveat(2): Linux 3.19; close_range(2) with `CLOSE_RANGE_CLOEXEC`: Linux 5.11.
pub fn become_program(program: Program, report: OwnedFd, on_error: fn(&OwnedFd, &io::Error)) -> ! {
    let first_free = FIRST_PASSED + RawFd::try_from(program.passed.len()).unwrap_or(RawFd::MAX / 2);
    // Out of the way of the numbers that are about to be overwritten.
    let report = match fcntl_dupfd_cloexec(&report, first_free) {
        Ok(moved) => moved,
        Err(error) => {
            on_error(&report, &error.into());
            end_now(127);
        }
    };
    let error = replace(&program, first_free);
    on_error(&report, &error);
    end_now(127)
}

/// Comes back only with an error.
fn replace(program: &Program, first_free: RawFd) -> io::Error {
    let attempt = || -> io::Result<()> {
        let image = fcntl_dupfd_cloexec(&program.image, first_free)?;
        let kept = program
            .stdio
            .iter()
            .chain(&program.passed)
            .map(|fd| fcntl_dupfd_cloexec(fd.as_fd(), first_free))
            .collect::<Result<Vec<_>, _>>()?;
        for (number, fd) in (0..).zip(&kept) {
            place(fd, number)?;
        }
        close_on_exec_from(first_free)?;
        execute(&image, &program.arguments)
    };
    match attempt() {
        Ok(()) => io::Error::from_raw_os_error(libc::EINVAL),
        Err(error) => error,
    }
}

fn place(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 touches no memory. It may close a descriptor that some OwnedFd of this process still names; that is
    // sound here alone because `become_program` never returns to any code that could use one.
    let answer = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    checked(answer.into()).map(drop)
}

fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: touches no memory, and with CLOSE_RANGE_CLOEXEC closes nothing as long as this program runs.
    let answer = unsafe { libc::syscall(SYS_CLOSE_RANGE, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    checked(answer).map(drop)
}

/// Comes back only with an error.
fn execute(image: &OwnedFd, arguments: &[CString]) -> io::Result<()> {
    let arguments = null_terminated(arguments);
    let environment = null_terminated(&[]);
    let path: &CStr = c"";
    // SAFETY: the path is NUL-terminated, both vectors are NULL-terminated arrays of pointers to NUL-terminated
    // strings, and all of them outlive the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            image.as_raw_fd(),
            path.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    checked(answer).map(drop)
}

fn null_terminated(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}
