//! System calls that another thread answers: seccomp user notification, and what is needed to answer well.
//!
//! A thread installs a filter with [`listen`]; it and whatever it starts from then on stop at the calls that the filter
//! names, until somebody who holds the listener has answered. Threads that were there before are not concerned, so the
//! one that answers is started first.
//!
//! seccomp_unotify(2): Linux 5.0; [`let_through`]: Linux 5.5.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::checked;
use crate::seccomp::Instruction;

/// `SECCOMP_SET_MODE_FILTER`, `linux/seccomp.h`.
const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
/// `SECCOMP_GET_ACTION_AVAIL`, `linux/seccomp.h`.
const SECCOMP_GET_ACTION_AVAIL: libc::c_uint = 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`, `linux/seccomp.h`.
const NEW_LISTENER: libc::c_ulong = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, `linux/seccomp.h`; Linux 5.19.
const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
/// `SECCOMP_IOCTL_NOTIF_RECV`, `linux/seccomp.h`.
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`, `linux/seccomp.h`.
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_IOCTL_NOTIF_ID_VALID`, `linux/seccomp.h`.
const NOTIF_ID_VALID: libc::c_ulong = 0x4008_2102;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, `linux/seccomp.h`.
const CONTINUE: u32 = 1;
/// Longest processor mask that is asked for: 65,536 processors.
const MASK_MAX: usize = 8192;

/// What a filter returns to have a call wait for an answer: `SECCOMP_RET_USER_NOTIF`.
pub const ASK: u32 = libc::SECCOMP_RET_USER_NOTIF;
/// What a filter returns to allow a call: `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

/// The architecture that filters see, `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: u32 = 0xc000_00b7;
/// The architecture that filters see, `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: u32 = 0xc000_003e;

/// Number of sched_getaffinity(2).
pub const SCHED_GETAFFINITY: u32 = libc::SYS_sched_getaffinity as u32;
/// Number of sysinfo(2).
pub const SYSINFO: u32 = libc::SYS_sysinfo as u32;
/// Number of statfs(2).
pub const STATFS: u32 = libc::SYS_statfs as u32;
/// Number of fstatfs(2).
pub const FSTATFS: u32 = libc::SYS_fstatfs as u32;

/// `struct seccomp_notif` of `linux/seccomp.h`.
#[repr(C)]
#[derive(Default)]
struct RawCall {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction_pointer: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp` of `linux/seccomp.h`.
#[repr(C)]
struct RawAnswer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const _: () = assert!(size_of::<RawCall>() == 80);
const _: () = assert!(size_of::<RawAnswer>() == 24);

/// A call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Names it until it is answered or its thread has ended.
    pub id: u64,
    /// The thread, as the reader's pid namespace numbers it; 0 when it cannot be seen from there.
    pub pid: i32,
    /// Which call.
    pub number: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

/// Has the calls of this thread, and of what it starts, for which `program` returns [`ASK`] wait for answers by way of
/// the descriptor returned, which is close-on-exec. Once received they no longer end for signals that do not kill,
/// where the kernel has that.
///
/// Needs `CAP_SYS_ADMIN` or no-new-privileges (`EACCES`). `EBUSY`: a filter with a listener is there already.
///
/// seccomp(2), `SECCOMP_FILTER_FLAG_NEW_LISTENER`: Linux 5.0.
pub fn listen(program: &[Instruction]) -> io::Result<OwnedFd> {
    match install(program, NEW_LISTENER | WAIT_KILLABLE_RECV) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => install(program, NEW_LISTENER),
        answer => answer,
    }
}

fn install(program: &[Instruction], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let len = u16::try_from(program.len()).map_err(too_long)?;
    // The kernel only reads through the pointer, whatever its type says.
    let filter = program.as_ptr().cast_mut().cast::<libc::sock_filter>();
    let program = libc::sock_fprog { len, filter };
    // SAFETY: `Instruction` has the layout of `sock_filter`, `len` of which the pointer leads to, and the kernel copies
    // them before it returns.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let fd = i32::try_from(checked(answer)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Asks whether the kernel has user notification, without installing a filter. `SECCOMP_RET_USER_NOTIF`: Linux 5.0.
pub fn is_there() -> bool {
    let action = ASK;
    // SAFETY: the kernel reads one u32, which outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    checked(answer).is_ok()
}

/// Takes the next call that waits, to be called when the listener is readable. `None` when its thread has been killed
/// meanwhile.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    // The kernel refuses a structure that is not zeroed.
    let mut raw = RawCall::default();
    // SAFETY: the kernel reads and writes one seccomp_notif, which `raw` is, and which outlives the call.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV as _, &raw mut raw) };
    match checked(answer.into()) {
        Ok(_) => Ok(Some(Call {
            id: raw.id,
            pid: i32::try_from(raw.pid).unwrap_or(0),
            number: raw.number.unsigned_abs(),
            arguments: raw.arguments,
        })),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the thread still waits: if so, what was opened of it by its pid before was its own.
pub fn is_waiting(listener: BorrowedFd<'_>, call: &Call) -> bool {
    // SAFETY: the kernel reads one u64, which outlives the call.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ID_VALID as _, &raw const call.id) };
    answer == 0
}

/// Has the call return `value`.
///
/// # Errors
///
/// `ENOENT`: the thread no longer waits. So for [`let_through`].
pub fn answer(listener: BorrowedFd<'_>, call: &Call, value: i64) -> io::Result<()> {
    send(listener, RawAnswer { id: call.id, value, error: 0, flags: 0 })
}

/// Has the kernel execute the call as if there were no filter.
pub fn let_through(listener: BorrowedFd<'_>, call: &Call) -> io::Result<()> {
    send(listener, RawAnswer { id: call.id, value: 0, error: 0, flags: CONTINUE })
}

fn send(listener: BorrowedFd<'_>, answer: RawAnswer) -> io::Result<()> {
    // SAFETY: the kernel reads one seccomp_notif_resp, which outlives the call.
    let answer = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND as _, &raw const answer) };
    checked(answer.into()).map(drop)
}

/// The processors that a thread may run on, as the kernel writes them for a buffer of `len` bytes: errors and length
/// are the call's own. 0 is the caller. sched_getaffinity(2).
pub fn affinity(pid: i32, len: usize) -> io::Result<Vec<u8>> {
    let mut mask = vec![0; len.min(MASK_MAX)];
    // SAFETY: the kernel writes at most `mask.len()` bytes.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getaffinity, pid, mask.len(), mask.as_mut_ptr()) };
    mask.truncate(usize::try_from(checked(answer)?).unwrap_or(0));
    Ok(mask)
}

/// Memory as [`sysinfo`] is to tell it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// All there is.
    pub total: u64,
    /// Unused.
    pub free: u64,
    /// Shared.
    pub shared: u64,
    /// All swap space.
    pub swap_total: u64,
    /// Unused swap space.
    pub swap_free: u64,
}

/// What sysinfo(2) writes, with `memory` in place of the machine's.
pub fn sysinfo(memory: &Memory) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<libc::sysinfo>()];
    // SAFETY: the kernel writes one struct sysinfo, which is that long; it needs no alignment.
    checked(unsafe { libc::syscall(libc::SYS_sysinfo, bytes.as_mut_ptr()) })?;
    let mut long = |offset: usize, value: u64| put(&mut bytes, offset, &value.to_ne_bytes());
    long(offset_of!(libc::sysinfo, totalram), memory.total);
    long(offset_of!(libc::sysinfo, freeram), memory.free);
    long(offset_of!(libc::sysinfo, sharedram), memory.shared);
    long(offset_of!(libc::sysinfo, bufferram), 0);
    long(offset_of!(libc::sysinfo, totalswap), memory.swap_total);
    long(offset_of!(libc::sysinfo, freeswap), memory.swap_free);
    long(offset_of!(libc::sysinfo, totalhigh), 0);
    long(offset_of!(libc::sysinfo, freehigh), 0);
    put(&mut bytes, offset_of!(libc::sysinfo, mem_unit), &1_u32.to_ne_bytes());
    Ok(bytes)
}

/// What fstatfs(2) writes for `file`, as if its file system ended at `limit` bytes, `used` of which are taken. Never
/// tells of more free space than there is.
pub fn statfs(file: BorrowedFd<'_>, limit: u64, used: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; size_of::<libc::statfs>()];
    // SAFETY: the kernel writes one struct statfs, which is that long; it needs no alignment.
    checked(unsafe { libc::syscall(libc::SYS_fstatfs, file.as_raw_fd(), bytes.as_mut_ptr()) })?;
    let block = long_at(&bytes, offset_of!(libc::statfs, f_bsize)).max(1);
    let free = limit.saturating_sub(used) / block;
    for (offset, value) in [
        (offset_of!(libc::statfs, f_blocks), limit / block),
        (offset_of!(libc::statfs, f_bfree), free),
        (offset_of!(libc::statfs, f_bavail), free),
    ] {
        let there = long_at(&bytes, offset);
        put(&mut bytes, offset, &there.min(value).to_ne_bytes());
    }
    Ok(bytes)
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn long_at(bytes: &[u8], offset: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_ne_bytes(long)
}

/// Looks at files as another user for as long as it lives: this *thread* only. Supplementary groups stay its own.
/// Rights over files go and come back with it. setfsuid(2), setfsgid(2).
#[derive(Debug)]
pub struct LookingAs(());

impl LookingAs {
    /// Takes on a user and a group.
    pub fn new(uid: u32, gid: u32) -> io::Result<Self> {
        let guard = Self(());
        set_fs_ids(uid, gid)?;
        Ok(guard)
    }
}

impl Drop for LookingAs {
    fn drop(&mut self) {
        // Back to what the thread is: always permitted.
        let _ = set_fs_ids(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    }
}

fn set_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    for (call, id) in [(libc::SYS_setfsgid, gid), (libc::SYS_setfsuid, uid)] {
        // SAFETY: touches no memory.
        let _ = unsafe { libc::syscall(call, id) };
        // The call tells the old id whether or not it worked; -1 is no id and changes nothing.
        // SAFETY: touches no memory.
        let now = unsafe { libc::syscall(call, u32::MAX) };
        if now as u32 != id {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_thread_is_answered_by_another() {
        assert!(is_there());
        let (sender, receiver) = std::sync::mpsc::channel();
        let asking = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let program = [
                Instruction::new(0x20, 0),
                Instruction::jump(0x15, libc::SYS_getpriority as u32, 0, 1),
                Instruction::new(0x06, ASK),
                Instruction::new(0x06, ALLOW),
            ];
            sender.send(listen(&program).unwrap()).unwrap();
            // SAFETY: touches no memory.
            let ask = || checked(unsafe { libc::syscall(libc::SYS_getpriority, 0, 0) });
            [ask(), ask()].map(Result::unwrap)
        });
        let listener = receiver.recv().unwrap();
        let next = || receive(listener.as_fd()).unwrap().unwrap();
        let call = next();
        assert_eq!(call.number, libc::SYS_getpriority as u32);
        assert!(is_waiting(listener.as_fd(), &call));
        answer(listener.as_fd(), &call, 77).unwrap();
        assert!(!is_waiting(listener.as_fd(), &call));
        let_through(listener.as_fd(), &next()).unwrap();
        assert_eq!(asking.join().unwrap(), [77, 20]);
    }

    #[test]
    fn figures_replace_the_machines() {
        let memory = Memory { total: 1 << 30, free: 1 << 29, shared: 5, swap_total: 7, swap_free: 6 };
        let bytes = sysinfo(&memory).unwrap();
        assert_eq!(long_at(&bytes, offset_of!(libc::sysinfo, totalram)), 1 << 30);
        assert_eq!(long_at(&bytes, offset_of!(libc::sysinfo, freeswap)), 6);
        assert_ne!(long_at(&bytes, offset_of!(libc::sysinfo, uptime)), 0);
        let root = std::fs::File::open("/").unwrap();
        let bytes = statfs(root.as_fd(), 1 << 20, 3 << 18).unwrap();
        let block = long_at(&bytes, offset_of!(libc::statfs, f_bsize));
        assert_eq!(long_at(&bytes, offset_of!(libc::statfs, f_blocks)) * block, 1 << 20);
        assert_eq!(long_at(&bytes, offset_of!(libc::statfs, f_bavail)) * block, 1 << 18);
        let bytes = statfs(root.as_fd(), 1 << 20, 2 << 20).unwrap();
        assert_eq!(long_at(&bytes, offset_of!(libc::statfs, f_bfree)), 0);
    }

    #[test]
    fn a_mask_is_as_long_as_the_kernel_says() {
        let mask = affinity(0, 1 << 30).unwrap();
        assert!(mask.iter().any(|byte| *byte != 0) && mask.len().is_multiple_of(8));
        assert_eq!(affinity(0, 3).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
