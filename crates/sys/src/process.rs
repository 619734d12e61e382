//! Making a process in new namespaces.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::checked;
use crate::namespace::Namespaces;

/// `CLONE_PIDFD`, `linux/sched.h`.
const CLONE_PIDFD: u64 = 0x1000;
/// `CLONE_PARENT`, `linux/sched.h`.
const CLONE_PARENT: u64 = 0x8000;
/// `SYS_clone3` has the same number on every architecture.
const SYS_CLONE3: libc::c_long = 435;
/// `KEYCTL_JOIN_SESSION_KEYRING`, `linux/keyctl.h`.
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// `struct clone_args` of `linux/sched.h` in its first version (64 bytes), which every kernel with clone3 takes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Which side of [`clone_sibling`] or [`clone_child`] is running.
#[derive(Debug)]
pub enum Clone {
    /// The new process.
    Child,
    /// The caller, told about the new process.
    Parent {
        /// Its pid, in the caller's pid namespace.
        pid: i32,
        /// A descriptor of it, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Copies this process into new namespaces, as a child of its own *parent* (`CLONE_PARENT`), which is then the one to
/// reap it. The exit signal is the caller's own (clone(2): it cannot be chosen together with `CLONE_PARENT`).
///
/// Refused with `EDEADLK` when the process has more than one thread: the copy would inherit locks that nobody is left
/// to open.
///
/// clone(2), `clone3`: Linux 5.3.
pub fn clone_sibling(namespaces: Namespaces) -> io::Result<Clone> {
    copy(CLONE_PARENT | u64::from(namespaces.bits()), 0)
}

/// Copies this process into new namespaces, as its own child, whose end `SIGCHLD` tells. Refused with `EDEADLK` as
/// [`clone_sibling`] is. clone(2), `clone3`: Linux 5.3.
pub fn clone_child(namespaces: Namespaces) -> io::Result<Clone> {
    copy(u64::from(namespaces.bits()), libc::SIGCHLD)
}

fn copy(flags: u64, exit_signal: libc::c_int) -> io::Result<Clone> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | flags,
        pidfd: (&raw mut pidfd) as u64,
        // 0 and SIGCHLD are all that comes.
        exit_signal: u64::from(exit_signal.unsigned_abs()),
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the length given and outlives the call; `pidfd` is where the kernel
    // writes one int. Neither CLONE_VM nor a stack is given, so this behaves like fork(2); the process has one thread
    // (checked above), so the copy holds no lock of another one and may go on running Rust code.
    let answer = unsafe { libc::syscall(SYS_CLONE3, &raw mut args, size_of::<CloneArgs>()) };
    match checked(answer)? {
        0 => Ok(Clone::Child),
        pid => Ok(Clone::Parent {
            pid: i32::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?,
            // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Asks whether the kernel has clone3(2), without making a process: an empty argument is refused with `EINVAL` where
/// the call exists and with `ENOSYS` (or a sandbox's `EPERM`) where it does not.
pub fn clone3_is_there() -> bool {
    // SAFETY: a null argument of length 0 is refused before it is read.
    let answer = unsafe { libc::syscall(SYS_CLONE3, std::ptr::null::<CloneArgs>(), 0_usize) };
    matches!(checked(answer), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// Ends this process at once: no destructors, no exit handlers. For the copy that [`clone_sibling`] made, in which the
/// original's handlers must not run. `_exit(2)`.
pub fn end_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Gives this process a new, empty session keyring, so that it no longer possesses the keys of the one that it
/// inherited. keyctl(2), Linux 2.6.10; `ENOSYS` on kernels built without keys.
pub fn new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring; the kernel reads no memory of ours.
    let answer = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    checked(answer).map(drop)
}

/// Has everything that this *thread* makes from here on belong to `id`, as user and group, and keeps all its
/// capabilities in force: the change alone takes those over files away. A mount remembers both as those of its maker.
///
/// setfsuid(2), setfsgid(2), capset(2).
pub fn make_files_as(id: u32) -> io::Result<()> {
    for call in [libc::SYS_setfsgid, libc::SYS_setfsuid] {
        // SAFETY: touches no memory.
        let _ = unsafe { libc::syscall(call, id) };
        // The calls answer with the old id whether or not they worked; -1 is no id and changes nothing.
        // SAFETY: touches no memory.
        let now = unsafe { libc::syscall(call, u32::MAX) };
        // Above i32::MAX it comes back as a negative number in some kernels' int.
        if now as u32 != id {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    raise_capabilities()
}

/// Makes `uid` the effective user of this *thread*, which keeps all its capabilities in force. What the kernel counts by
/// the effective user, such as the user namespaces it makes and all that is counted in those, counts as that user's.
///
/// setresuid(2), capset(2).
pub fn count_as(uid: u32) -> io::Result<()> {
    // SAFETY: touches no memory; -1 leaves an id as it is.
    let answer = unsafe { libc::syscall(libc::SYS_setresuid, u32::MAX, uid, u32::MAX) };
    checked(answer)?;
    raise_capabilities()
}

/// A change of the user takes capabilities out of force, but not away.
fn raise_capabilities() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        // The test harness runs this test on a thread of its own beside the main one.
        let error = clone_sibling(Namespaces::empty()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDEADLK));
    }

    #[test]
    fn clone3_is_found() {
        assert!(clone3_is_there());
    }
}
