//! Namespaces, by name.

use std::io;
use std::ops::BitOr;
use std::os::fd::BorrowedFd;

use rustix::thread::{Gid, LinkNameSpaceType, Uid, UnshareFlags};

/// A set of kinds of namespace. namespaces(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces(u32);

impl Namespaces {
    /// Mounts. mount_namespaces(7), Linux 2.4.19.
    pub const MOUNT: Self = Self(UnshareFlags::NEWNS.bits());
    /// Process ids. pid_namespaces(7), Linux 2.6.24.
    pub const PID: Self = Self(UnshareFlags::NEWPID.bits());
    /// System V IPC and POSIX message queues. ipc_namespaces(7), Linux 2.6.19.
    pub const IPC: Self = Self(UnshareFlags::NEWIPC.bits());
    /// Host name. uts_namespaces(7), Linux 2.6.19.
    pub const UTS: Self = Self(UnshareFlags::NEWUTS.bits());
    /// View of the control groups. cgroup_namespaces(7), Linux 4.6.
    pub const CGROUP: Self = Self(UnshareFlags::NEWCGROUP.bits());
    /// Network. network_namespaces(7), Linux 2.6.29.
    pub const NETWORK: Self = Self(UnshareFlags::NEWNET.bits());

    /// User and group ids, capabilities. user_namespaces(7), Linux 3.8.
    pub const USER: Self = Self(UnshareFlags::NEWUSER.bits());

    /// None.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// The kernel's `CLONE_NEW*` bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Namespaces {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Moves the calling *thread* (with [`Namespaces::PID`]: its later children) into new namespaces. unshare(2).
pub fn unshare(namespaces: Namespaces) -> io::Result<()> {
    let flags = UnshareFlags::from_bits_retain(namespaces.bits());
    // SAFETY: rustix calls this unsafe for CLONE_FILES alone, which a `Namespaces` cannot contain.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// Enters a user namespace and becomes its root: no supplementary groups, group 0, user 0, every capability over what
/// belongs to that namespace, none over anything else. The bounding set is full again afterwards.
///
/// For a process of one thread: `EINVAL` otherwise. setns(2) with `CLONE_NEWUSER`, Linux 3.8.
pub fn become_root_of(user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    Ok(rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
}
