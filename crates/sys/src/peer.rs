//! Who is at the other end of a unix socket.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// Pid of the process that connected to, or made, the other end of a connected unix socket, as it was then; 0 for one
/// outside of this process's pid namespace and those below it, which has no number here.
///
/// unix(7), `SO_PEERCRED`; pid_namespaces(7). `rustix` has it as a number that cannot be 0.
pub fn pid(socket: impl AsFd) -> io::Result<i32> {
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` and `len` are valid for writes, and `len` is the length of the former.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    crate::checked(answer.into())?;
    // SAFETY: the structure is of numbers, for which zeroes are values too where the kernel has written less.
    Ok(unsafe { credentials.assume_init() }.pid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_is_who_made_the_other_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(pid(&ours).unwrap(), i32::try_from(std::process::id()).unwrap());
        assert!(pid(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
