//! Namespaces, by name.

use std::io;
use std::ops::BitOr;

use rustix::thread::UnshareFlags;

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
