//! System call filters.

use std::io;

use crate::checked;

/// `SECCOMP_SET_MODE_FILTER`, `linux/seccomp.h`.
const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
/// `SECCOMP_GET_ACTION_AVAIL`, `linux/seccomp.h`.
const SECCOMP_GET_ACTION_AVAIL: libc::c_uint = 2;

/// One instruction of a classic BPF program: `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub if_true: u8,
    /// Instructions to skip when it does not.
    pub if_false: u8,
    /// The constant that it works with.
    pub operand: u32,
}

impl Instruction {
    /// One that does not jump by comparison.
    pub const fn new(code: u16, operand: u32) -> Self {
        Self { code, if_true: 0, if_false: 0, operand }
    }

    /// One that compares.
    pub const fn jump(code: u16, operand: u32, if_true: u8, if_false: u8) -> Self {
        Self { code, if_true, if_false, operand }
    }
}

/// Has all later system calls of this thread, and of what it starts, judged by `program` too. It cannot be taken back.
///
/// Needs `CAP_SYS_ADMIN` or no-new-privileges (`EACCES`); the kernel refuses a program that it cannot follow (`EINVAL`).
///
/// seccomp(2), Linux 3.17.
pub fn install_filter(program: &[Instruction]) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let len = u16::try_from(program.len()).map_err(too_long)?;
    // The kernel only reads through the pointer, whatever its type says.
    let filter = program.as_ptr().cast_mut().cast::<libc::sock_filter>();
    let program = libc::sock_fprog { len, filter };
    // SAFETY: `Instruction` has the layout of `sock_filter`, `len` of which the pointer leads to, and the kernel copies
    // them before it returns.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    checked(answer).map(drop)
}

/// Asks whether the kernel takes filters that can kill a process, without installing one. seccomp(2),
/// `SECCOMP_GET_ACTION_AVAIL` and `SECCOMP_RET_KILL_PROCESS`: Linux 4.14.
pub fn filters_are_there() -> bool {
    let action: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the kernel reads one u32, which outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    checked(answer).is_ok()
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(align_of::<Instruction>() >= align_of::<libc::sock_filter>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_found() {
        assert!(filters_are_there());
    }

    #[test]
    fn a_program_without_an_end_is_refused() {
        assert_eq!(install_filter(&[]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let load = Instruction::new(0x20, 0);
        assert_eq!(install_filter(&[load]).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
