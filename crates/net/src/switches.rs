//! The kernel's switches of network namespaces, `/proc/sys/net`, reached through a /proc of one's own.
//!
//! Whoever looks `/proc/sys/net/ipv4` up sees the directory of the network namespace that it is in, and the kernel
//! remembers each one that was ever seen under the same name, in one chain that it then has to search: with a thousand
//! namespaces on the machine, looking up one file takes a good part of a millisecond, for every program on it. What is
//! seen through one mount of /proc is not remembered for another one. So slots are set up through a mount that nobody
//! else sees and that is replaced before the chain gets long; and the host's own directories are kept open.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// How many namespaces are set up through one mount.
const USES: u32 = 32;

/// A /proc that nothing but this is seen through.
#[derive(Debug)]
pub(crate) struct Switches {
    proc: OwnedFd,
    uses: u32,
}

impl Switches {
    /// Mounts it, nowhere.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { proc: open_proc()?, uses: 0 })
    }

    /// The /proc for one namespace more.
    pub(crate) fn for_another(&mut self) -> io::Result<BorrowedFd<'_>> {
        if self.uses >= USES {
            *self = Self::open()?;
        }
        self.uses += 1;
        Ok(self.proc.as_fd())
    }
}

/// A mount of one's own where the machine allows it; else the one that everybody uses, which is slower and no worse.
fn open_proc() -> io::Result<OwnedFd> {
    let mount = || {
        let proc = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&proc)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(&proc, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    mount().or_else(|error| {
        tracing::debug!(%error, "no mount of /proc for the network alone");
        Ok(File::open("/proc")?.into())
    })
}

/// Sets the switch at `path`, which begins with `sys/net/`, for the network namespace of the calling thread.
pub(crate) fn set(proc: BorrowedFd<'_>, path: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    File::from(file).write_all(value.as_bytes())
}

/// Switches of the links of one network namespace, by the links' names.
#[derive(Debug)]
pub(crate) struct LinkSwitches(OwnedFd);

impl LinkSwitches {
    /// Those of `family` (`ipv4`, `ipv6`), for the network namespace of the calling thread, whoever uses them later.
    pub(crate) fn open(proc: BorrowedFd<'_>, family: &str) -> io::Result<Self> {
        let path = format!("sys/net/{family}/conf");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::openat(proc, path, flags, Mode::empty())?))
    }

    /// Sets a switch of one link.
    pub(crate) fn set(&self, link: &str, switch: &str, value: &str) -> io::Result<()> {
        set(self.0.as_fd(), &format!("{link}/{switch}"), value)
    }

    /// Whether the link is there, which this finds out without the kernel's lock over all links.
    pub(crate) fn has(&self, link: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.0, link, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_sys::netns;

    use super::*;
    use crate::netlink::Netlink;

    #[test]
    fn each_namespace_has_its_own_switches_through_the_same_mount() {
        let mut switches = Switches::open().unwrap();
        let port = |proc: BorrowedFd<'_>| {
            let path = "sys/net/ipv4/ip_unprivileged_port_start";
            let file = rustix::fs::openat(proc, path, OFlags::RDONLY, Mode::empty())?;
            io::read_to_string(File::from(file))
        };
        for n in 0..USES * 2 {
            let proc = switches.for_another().unwrap();
            let value = (n + 1).to_string();
            let set = || set(proc, "sys/net/ipv4/ip_unprivileged_port_start", &value);
            let (net, ()) = match netns::create(set) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    println!("SKIP: making a network namespace needs CAP_SYS_ADMIN");
                    return;
                }
                made => made.unwrap(),
            };
            assert_eq!(netns::run_in(net.as_fd(), || port(proc)).unwrap().trim(), value);
            assert_ne!(port(proc).unwrap().trim(), value);
        }
    }

    #[test]
    fn links_are_found_in_the_namespace_that_they_were_opened_in() {
        let switches = Switches::open().unwrap();
        let inside = || Ok((LinkSwitches::open(switches.proc.as_fd(), "ipv4")?, Netlink::open()?));
        let Ok((net, (links, mut netlink))) = netns::create(inside) else {
            println!("SKIP: making a network namespace needs CAP_SYS_ADMIN");
            return;
        };
        assert!(links.has("lo").unwrap() && !links.has("test0").unwrap());
        let veth = crate::netlink::Veth {
            name: "test0",
            mac: [2, 0, 0, 0, 0, 1],
            peer_name: "test1",
            peer_mac: [2, 0, 0, 0, 0, 2],
            peer_netns: net.as_fd(),
            mtu: 1500,
        };
        netlink.add_veth(&veth).unwrap();
        assert!(links.has("test0").unwrap() && links.has("test1").unwrap());
        links.set("test0", "forwarding", "1").unwrap();
        netlink.remove_link("test0").unwrap();
        assert!(!links.has("test0").unwrap() && !links.has("test1").unwrap());
    }
}
