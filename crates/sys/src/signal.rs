//! Signal dispositions and mask.

use std::io;

/// Highest signal number of the kernel, on every architecture that Berth runs on.
const LAST_SIGNAL: libc::c_long = 64;
/// Size of the kernel's signal set in bytes: one bit a signal.
const SIGNAL_SET_BYTES: usize = 8;

/// Gives every signal its default disposition and blocks none, as a program that starts afresh may expect. Rust's
/// runtime ignores SIGPIPE, and an ignored signal stays ignored over execve(2).
///
/// Asks the kernel and not the C library, which keeps two real-time signals to itself and would leave those as some
/// ancestor has set them. sigaction(2), sigprocmask(2), signal(7).
pub fn reset() -> io::Result<()> {
    // All zeroes is SIG_DFL without flags, restorer or mask, and this is at least as long as the kernel's structure.
    let default = [0_u64; 8];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `default` is valid for reads of a kernel sigaction, the old one is not asked for. SIGKILL and
        // SIGSTOP are refused with EINVAL, which is why the answer is ignored: there is nothing to reset in them.
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
