//! Signal dispositions and mask.

use std::io;

/// Gives every signal its default disposition and blocks none, as a program that starts afresh may expect. Rust's
/// runtime ignores SIGPIPE, and an ignored signal stays ignored over execve(2). signal(7), sigprocmask(2).
pub fn reset() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition for every signal. The numbers that cannot be changed (SIGKILL,
        // SIGSTOP) or that the C library keeps to itself are refused with EINVAL, which is why the answer is ignored:
        // there is nothing to reset in them.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: sigset_t is plain old data, for which all zeroes is a value.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is ours and valid for writes.
    unsafe { libc::sigemptyset(&raw mut none) };
    // SAFETY: `none` is an initialised set; the old set is not asked for.
    let answer = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) };
    crate::checked(answer.into()).map(drop)
}
