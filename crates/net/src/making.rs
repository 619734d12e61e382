//! Making one slot: its namespace, and its link if it is to have one.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};

use crate::error::Error;
use crate::netlink::{Mac, Netlink, Veth};

/// The sandbox's end of a link.
const GUEST_LINK: &str = "eth0";
/// The default gateway of every sandbox. It is nobody's address: only its permanent neighbour entry counts.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The address and the link that one slot has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) number: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) link: String,
}

/// A namespace that nothing has run in yet, and its lease if it is connected. Whoever drops it must see to the lease.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) netns: OwnedFd,
    pub(crate) lease: Option<Lease>,
}

/// Makes a slot, connected if there is a `lease`. When this fails the link may be there all the same.
pub(crate) fn make(host: &mut Netlink, lease: Option<&Lease>, mtu: u32) -> Result<Made, Error> {
    let (netns, mut guest) = new_netns()?;
    if let Some(lease) = lease {
        connect(host, &netns, &mut guest, lease, mtu)?;
    }
    Ok(Made { netns, lease: lease.cloned() })
}

fn connect(
    host: &mut Netlink,
    netns: &OwnedFd,
    guest: &mut Netlink,
    lease: &Lease,
    mtu: u32,
) -> Result<(), Error> {
    let (link, address) = (lease.link.as_str(), lease.address);
    let at = |step| move |source| Error::Connect { step, link: link.to_owned(), address, source };
    let (host_mac, guest_mac) = macs(address);
    let veth = Veth {
        name: link,
        mac: host_mac,
        peer_name: GUEST_LINK,
        peer_mac: guest_mac,
        peer_netns: netns.as_fd(),
        mtu,
    };
    host.add_veth(&veth).map_err(at("make the pair of links"))?;
    disable_ipv6(link).map_err(at("switch off IPv6"))?;
    let index = host.index_of(link).map_err(at("find the host's end"))?;
    host.link_up(index).map_err(at("bring up the host's end"))?;
    host.add_link_route(index, address).map_err(at("add the host's route"))?;
    host.add_neighbour(index, address, guest_mac).map_err(at("add the host's neighbour"))?;

    let index = guest.index_of(GUEST_LINK).map_err(at("find the sandbox's end"))?;
    guest.add_address(index, address.into()).map_err(at("add the sandbox's address"))?;
    guest.link_up(index).map_err(at("bring up the sandbox's end"))?;
    guest.add_neighbour(index, GATEWAY, host_mac).map_err(at("add the sandbox's gateway"))?;
    guest.add_default_route(index, GATEWAY).map_err(at("add the sandbox's default route"))
}

/// A namespace whose loopback is up and whose later links have no IPv6, and a socket to its tables.
fn new_netns() -> Result<(OwnedFd, Netlink), Error> {
    let inside = || {
        disable_ipv6("default")?;
        Netlink::open()
    };
    let (netns, mut guest) = berth_sys::netns::create(inside).map_err(Error::MakeNamespace)?;
    guest.loopback_up().map_err(Error::Loopback)?;
    Ok((netns, guest))
}

/// Switches IPv6 off for a link, or for links to come (`default`), of the calling thread's namespace. A kernel without
/// IPv6 has no such file, and nothing to switch off.
fn disable_ipv6(link: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Hardware addresses of both ends. Chosen here and not left to the kernel, since device managers (udev) replace random
/// ones after the link is made, and the permanent neighbour entries would then be wrong.
fn macs(address: Ipv4Addr) -> (Mac, Mac) {
    let [a, b, c, d] = address.octets();
    // 02: locally administered, one station.
    ([0x02, 0xbe, a, b, c, d], [0x02, 0xbf, a, b, c, d])
}
