//! The system calls that `rustix` lacks, behind safe functions. The only crate of Berth with `unsafe` in it.
//!
//! Every function names its man page and the first kernel that has it, returns [`std::io::Error`]s that carry the
//! errno and nothing else (the caller knows the path and the operation), and never panics on what the kernel answers.
//! What rustix already offers safely is not wrapped again: callers use rustix for that.
//!
//! It refuses to be a convenience layer: no policy, no retries but those that a man page asks for.
//!
//! Where to start reading: [`process`] (how a sandbox's first process comes to be), then [`program`] (how it becomes
//! another program) and [`spawn`] (how that program starts commands).

// Rules of the workspace deny unsafe code; this crate is where it is allowed.
#![allow(unsafe_code)]

pub mod btrfs;
pub mod exec_child;
pub mod guest_fs;
pub mod heap;
mod ioctl;
pub mod loopdev;
pub mod mount;
pub mod namespace;
pub mod netdev;
pub mod netns;
pub mod notify;
pub mod peer;
pub mod process;
pub mod program;
pub mod quota;
pub mod seccomp;
pub mod signal;
pub mod spawn;

/// Turns a raw system call's answer into a `Result`.
pub(crate) fn checked(answer: libc::c_long) -> std::io::Result<libc::c_long> {
    if answer < 0 { Err(std::io::Error::last_os_error()) } else { Ok(answer) }
}
