//! Numbers of ioctls, as `asm-generic/ioctl.h` puts them together (x86-64, arm64, RISC-V alike).

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const WRITE: u32 = 1;
const READ: u32 = 2;

const fn number(direction: u32, magic: u32, number: u32, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | (magic << 8) | number
}

/// `_IOW`: the kernel reads the argument.
pub(crate) const fn w(magic: u32, nr: u32, size: usize) -> u32 {
    number(WRITE, magic, nr, size)
}

/// `_IOR`: the kernel writes the argument (or is said to).
pub(crate) const fn r(magic: u32, nr: u32, size: usize) -> u32 {
    number(READ, magic, nr, size)
}

/// `_IOWR`: both.
pub(crate) const fn rw(magic: u32, nr: u32, size: usize) -> u32 {
    number(READ | WRITE, magic, nr, size)
}

/// ioctl(2) with a pointer.
///
/// # Safety
///
/// `argument` points to what the request asks for, valid for reading and writing during the call.
pub(crate) unsafe fn call(fd: BorrowedFd<'_>, request: u32, argument: *mut c_void) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) };
    crate::checked(libc::c_long::from(answer)).map(drop)
}
