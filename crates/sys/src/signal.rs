//! Signal dispositions and mask, and signals by number.

use std::io;

/// Highest signal number of the kernel, on every architecture that Berth runs on.
const LAST_SIGNAL: libc::c_long = 64;
/// Size of the kernel's signal set in bytes: one bit a signal.
const SIGNAL_SET_BYTES: usize = 8;

/// Whether the kernel has a signal of that number; `rustix` names those below the real-time ones alone.
pub fn is_signal(number: i32) -> bool {
    (1..=LAST_SIGNAL).contains(&number.into())
}

/// Sends signal `number` to process `to`, or to the process group `-to`. Real-time signals too, also those that the C
/// library of the receiver may have taken for itself. kill(2).
///
/// # Errors
/// `EINVAL` for what is no signal and for 0 and -1, which would be more than one process or group; `ESRCH`, `EPERM`.
pub fn send(to: i32, number: i32) -> io::Result<()> {
    if !is_signal(number) || to == 0 || to == -1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: kill touches no memory. What a signal does to the caller, should it aim at itself, it would do from
    // anybody else as well.
    let answer = unsafe { libc::kill(to, number) };
    crate::checked(answer.into()).map(drop)
}

/// Takes away the handlers that Rust's runtime has for faults, so that the kernel spares a container's first process those
/// signals when somebody inside sends them, as it spares it all that have no handler. A fault of its own still ends it.
///
/// Both handlers run on one small stack: a SIGBUS and a SIGSEGV sent at a time would overrun it, which is a fault.
pub fn default_faults() {
    disposition_default(libc::SIGSEGV.into());
    disposition_default(libc::SIGBUS.into());
}

/// SIGKILL and SIGSTOP are refused with EINVAL: there is nothing to reset in them.
fn disposition_default(signal: libc::c_long) {
    // All zeroes is SIG_DFL without flags, restorer or mask, and this is at least as long as the kernel's structure.
    let default = [0_u64; 8];
    // SAFETY: `default` is valid for reads of a kernel sigaction, the old one is not asked for.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            signal,
            default.as_ptr(),
            std::ptr::null::<u64>(),
            SIGNAL_SET_BYTES,
        )
    };
}

/// Gives every signal its default disposition and blocks none, as a program that starts afresh may expect. Rust's
/// runtime ignores SIGPIPE, and an ignored signal stays ignored over execve(2).
///
/// Asks the kernel and not the C library, which keeps two real-time signals to itself and would leave those as some
/// ancestor has set them. sigaction(2), sigprocmask(2), signal(7).
pub fn reset() -> io::Result<()> {
    (1..=LAST_SIGNAL).for_each(disposition_default);
    let none = 0_u64;
    // SAFETY: `none` is valid for reads of SIGNAL_SET_BYTES, the old set is not asked for.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            SIGNAL_SET_BYTES,
        )
    };
    crate::checked(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_real_time_signal_ends_who_does_not_expect_it() {
        let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(sleep.id()).unwrap();
        for (to, number) in [(pid, 0), (pid, 65), (pid, -1), (0, 64), (-1, 64)] {
            assert_eq!(send(to, number).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{to} {number}");
        }
        send(pid, 64).unwrap();
        assert_eq!(sleep.wait().unwrap().signal(), Some(64));
        assert_eq!(send(pid, 64).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
