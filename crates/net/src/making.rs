//! Making one slot: its namespaces, and its link if it is to have one.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipnet::Ipv4Net;

use crate::error::Error;
use crate::home::Home;
use crate::maker::{IdLease, NamespaceMaker, Namespaces, UserNamespace};
use crate::netlink::{Mac, Netlink, Veth};
use crate::switches::{self, LinkSwitches, Switches};

/// The sandbox's end of a link.
const GUEST_LINK: &str = "eth0";
/// The default gateway of every sandbox. It is nobody's address: only its permanent neighbour entry counts.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The largest group id that the kernel takes for ping (`GID_T_MAX`).
const LAST_PING_GROUP: u32 = i32::MAX.cast_unsigned();

/// The address and the link that one slot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) number: u32,
    pub(crate) address: Ipv4Addr,
    /// That the address is from.
    pub(crate) range: Ipv4Net,
    pub(crate) link: String,
}

/// Namespaces that nothing has run in yet, and their lease if they are connected. Whoever drops it must see to the
/// lease, see [`Made::close`].
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) netns: OwnedFd,
    pub(crate) user: Option<UserNamespace>,
    pub(crate) lease: Option<Lease>,
}

impl Made {
    /// Closes the namespaces; the number of the link and the ids that are free once that is gone.
    pub(crate) fn close(self) -> (Option<u32>, Option<IdLease>) {
        let Self { netns, user, lease } = self;
        drop(netns);
        (lease.map(|l| l.number), user.map(|u| u.lease))
    }
}

/// A slot that could not be made. Its link may be there all the same, and then its ids are not free yet.
#[derive(Debug)]
pub(crate) struct Unmade {
    pub(crate) error: Error,
    pub(crate) user: Option<UserNamespace>,
}

/// What a thread makes slots with, opened in the host's network namespace.
pub(crate) struct Tools {
    host: Netlink,
    home: Home,
    switches: Switches,
    /// None where the kernel has no IPv6, and so nothing to switch off.
    host_ipv6: Option<LinkSwitches>,
    mtu: u32,
}

impl Tools {
    /// Tools of the calling thread's namespace, for links of this MTU.
    pub(crate) fn open(mtu: u32) -> Result<Self, Error> {
        let host = Netlink::open().map_err(|source| Error::ReadHost { what: "tables", source })?;
        let home = Home::of_this_thread().map_err(Error::EnterNamespace)?;
        let mut switches = Switches::open().map_err(Error::OpenSwitches)?;
        let proc = switches.for_another().map_err(Error::OpenSwitches)?;
        let host_ipv6 = unless_absent(LinkSwitches::open(proc, "ipv6")).map_err(Error::OpenSwitches)?;
        Ok(Self { host, home, switches, host_ipv6, mtu })
    }

    /// Makes a slot, connected if there is a `lease`, with a user namespace if there is a `maker`.
    pub(crate) fn make(
        &mut self,
        maker: Option<&dyn NamespaceMaker>,
        lease: Option<&Lease>,
    ) -> Result<Made, Unmade> {
        let (Namespaces { net, user }, furnished) = match maker {
            None => self.plain().map_err(|error| Unmade { error, user: None })?,
            Some(maker) => self.pair(maker).map_err(|error| Unmade { error, user: None })?,
        };
        let connected = furnished.and_then(|mut guest| {
            guest.loopback_up().map_err(Error::Loopback)?;
            lease.map_or(Ok(()), |lease| self.connect(&net, &mut guest, lease))
        });
        match connected {
            Ok(()) => Ok(Made { netns: net, user, lease: lease.cloned() }),
            Err(error) => Err(Unmade { error, user }),
        }
    }

    fn plain(&mut self) -> Result<New, Error> {
        let proc = self.switches.for_another().map_err(Error::OpenSwitches)?;
        let (net, furnished) = self.home.create(|| furnish(proc, None)).map_err(Error::MakeNamespace)?;
        Ok((Namespaces { net, user: None }, furnished))
    }

    fn pair(&mut self, maker: &dyn NamespaceMaker) -> Result<New, Error> {
        let proc = self.switches.for_another().map_err(Error::OpenSwitches)?;
        let made = maker.make().map_err(Error::MakePair)?;
        let Some(user) = &made.user else { return Err(Error::MadeWithoutUser) };
        // The thread keeps the capabilities that it has on the host: only its network namespace is another one.
        let inside = || furnish(proc, Some(user));
        let furnished = self.home.visit(made.net.as_fd(), inside).map_err(Error::EnterNamespace).flatten();
        Ok((made, furnished))
    }

    fn connect(&mut self, netns: &OwnedFd, guest: &mut Netlink, lease: &Lease) -> Result<(), Error> {
        let Self { host, host_ipv6, mtu, .. } = self;
        let (link, address) = (lease.link.as_str(), lease.address);
        let at = |step| move |source| Error::Connect { step, link: link.to_owned(), address, source };
        let (host_mac, guest_mac) = macs(address);
        let veth = Veth {
            name: link,
            mac: host_mac,
            peer_name: GUEST_LINK,
            peer_mac: guest_mac,
            peer_netns: netns.as_fd(),
            mtu: *mtu,
        };
        host.add_veth(&veth).map_err(at("make the pair of links"))?;
        let index = host.index_of(link).map_err(at("find the host's end"))?;
        if let Some(switches) = host_ipv6 {
            // The rules drop IPv6; these are for the time in which somebody may have flushed them.
            host.no_ipv6_address(index).map_err(at("keep IPv6 addresses off"))?;
            let refused = switches.set(link, "accept_ra", "0");
            unless_absent(refused).map_err(at("refuse router advertisements"))?;
        }
        host.link_up(index).map_err(at("bring up the host's end"))?;
        host.add_link_route(index, address).map_err(at("add the host's route"))?;
        host.add_neighbour(index, address, guest_mac).map_err(at("add the host's neighbour"))?;

        let index = guest.index_of(GUEST_LINK).map_err(at("find the sandbox's end"))?;
        guest.add_address(index, address.into()).map_err(at("add the sandbox's address"))?;
        guest.link_up(index).map_err(at("bring up the sandbox's end"))?;
        guest.add_neighbour(index, GATEWAY, host_mac).map_err(at("add the sandbox's gateway"))?;
        guest.add_default_route(index, GATEWAY).map_err(at("add the sandbox's default route"))
    }
}

/// New namespaces, and what became of furnishing them: a socket to their tables.
type New = (Namespaces, Result<Netlink, Error>);

/// Sets the calling thread's namespace up as far as that takes no link: later links have no IPv6, and, as in other
/// container engines, ports below 1024 and ping are for everybody, not for root alone.
fn furnish(proc: BorrowedFd<'_>, user: Option<&UserNamespace>) -> Result<Netlink, Error> {
    let set = |path: &'static str, value: &str| {
        switches::set(proc, path, value).map_err(|source| Error::Setting { path, source })
    };
    match set("sys/net/ipv6/conf/default/disable_ipv6", "1") {
        // A kernel without IPv6.
        Err(Error::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        other => other?,
    }
    set("sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    // The host's ids, as it is a thread of the host that writes them; inside, the first one reads 0.
    let (first, last) = match user {
        Some(user) => (user.first, user.first.saturating_add(user.count.saturating_sub(1))),
        None => (0, LAST_PING_GROUP),
    };
    set("sys/net/ipv4/ping_group_range", &format!("{first} {last}"))?;
    Netlink::open().map_err(Error::OpenInside)
}

fn unless_absent<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Hardware addresses of both ends. Chosen here and not left to the kernel, since device managers (udev) replace random
/// ones after the link is made, and the permanent neighbour entries would then be wrong.
fn macs(address: Ipv4Addr) -> (Mac, Mac) {
    let [a, b, c, d] = address.octets();
    // 02: locally administered, one station.
    ([0x02, 0xbe, a, b, c, d], [0x02, 0xbf, a, b, c, d])
}
