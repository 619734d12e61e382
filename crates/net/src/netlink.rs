//! Questions to the kernel by rtnetlink, one at a time and blocking.
//!
//! A socket belongs for good to the network namespace of the thread that opened it, whichever thread uses it later. So
//! one socket speaks for the host and one for each namespace in the making, and nobody needs setns(2).
//!
//! Answers are read for the few attributes that matter here and nothing else: an attribute that this code has never
//! heard of, on a link that is none of ours, must not stop a daemon.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NlasIterator,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

// linux/netlink.h, linux/net_namespace.h, linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK_NETNSID: u16 = 37;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const NETNSA_NSID: u16 = 1;
const NSID_HEADER: usize = 4;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const ATTRIBUTE_HEADER: usize = 4;
/// Index of `lo` in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;
/// How often a dump is begun anew because the table changed meanwhile.
const DUMP_TRIES: u32 = 10;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A link of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
}

/// An IPv4 route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Ipv4Net,
    pub(crate) link: Option<u32>,
    pub(crate) priority: u32,
}

/// A pair of links, one end here and the other in another namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_mac: Mac,
    pub(crate) peer_netns: BorrowedFd<'a>,
    pub(crate) mtu: u32,
}

/// A socket to one namespace's tables.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket to the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All links.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), read_link)
    }

    /// All IPv4 addresses.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<Ipv4Net>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetAddress(message), read_address)
    }

    /// All IPv4 unicast routes of all tables.
    pub(crate) fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        self.dump(&RouteNetlinkMessage::GetRoute(message), read_route)
    }

    /// Index of the link called `name`.
    pub(crate) fn index_of(&mut self, name: &str) -> io::Result<u32> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.exchange(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        let link = answers.iter().find_map(|(payload, _)| read_link(payload));
        link.map(|l| l.index).ok_or_else(|| malformed("no link in the answer to RTM_GETLINK"))
    }

    /// The number by which this namespace knows the one that the other end of the pair `name` is in; none where that is
    /// this namespace itself.
    pub(crate) fn peer_namespace(&mut self, name: &str) -> io::Result<Option<i32>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self.exchange(RouteNetlinkMessage::GetLink(message), NLM_F_ACK)?;
        let number_in = |payload: &[u8]| attribute(payload, LINK_HEADER, IFLA_LINK_NETNSID).and_then(number);
        Ok(answers.iter().find_map(|(payload, _)| number_in(payload)).map(u32::cast_signed))
    }

    /// The number by which this namespace knows `netns`; none where it has none for it, as no link leads there.
    pub(crate) fn namespace_number(&mut self, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
        let answers = self.exchange(RouteNetlinkMessage::GetNsId(message), NLM_F_ACK)?;
        let number_in = |payload: &[u8]| attribute(payload, NSID_HEADER, NETNSA_NSID).and_then(number);
        let found = answers.iter().find_map(|(payload, _)| number_in(payload)).map(u32::cast_signed);
        // -1: NETNSA_NSID_NOT_ASSIGNED.
        Ok(found.filter(|number| *number >= 0))
    }

    /// Makes a pair of links, both down.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        self.act(RouteNetlinkMessage::NewLink(veth_message(veth)), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes the link called `name`, and the other end of it with it.
    pub(crate) fn remove_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.act(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Brings `lo` up; the kernel gives it 127.0.0.1/8 and, where there is IPv6, ::1/128.
    pub(crate) fn loopback_up(&mut self) -> io::Result<()> {
        self.link_up(LOOPBACK)
    }

    /// Brings a link up.
    pub(crate) fn link_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.act(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Keeps IPv6 from giving a link an address when it comes up.
    ///
    /// `disable_ipv6` in /proc/sys would do more, but its writer does not wait for the kernel's lock over all links: it
    /// tries for it again and again, and so takes a processor from whoever holds it.
    pub(crate) fn no_ipv6_address(&mut self, index: u32) -> io::Result<()> {
        const EAFNOSUPPORT: i32 = 97;
        let mut message = LinkMessage::default();
        message.header.index = index;
        let ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![ipv6]));
        match self.act(RouteNetlinkMessage::SetLink(message), 0) {
            // No IPv6 on this link at all, for example because its packets are too small for it.
            Err(error) if error.raw_os_error() == Some(EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address with no neighbours.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Net) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(address.addr().into()));
        message.attributes.push(AddressAttribute::Address(address.addr().into()));
        self.act(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Routes one address to a link, directly.
    pub(crate) fn add_link_route(&mut self, index: u32, to: Ipv4Addr) -> io::Result<()> {
        let mut message = route_message(RouteScope::Link, index);
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
        self.act(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Routes everything to a gateway that need not be in any network of the link.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = route_message(RouteScope::Universe, index);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
        self.act(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Tells a link the hardware address of a neighbour, for good.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: Mac) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.act(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn act(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK).map(drop)
    }

    fn dump<T>(
        &mut self,
        ask: &RouteNetlinkMessage,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let answers = self.exchange(ask.clone(), NLM_F_DUMP)?;
            let interrupted = answers.iter().any(|(_, flags)| flags & NLM_F_DUMP_INTR != 0);
            if !interrupted {
                return Ok(answers.iter().filter_map(|(payload, _)| read(payload)).collect());
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the table kept changing while it was read"))
    }

    /// Sends one message; returns payload and flags of every answer until the kernel says that it is done.
    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<(Vec<u8>, u16)>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.read_datagram(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    fn read_datagram(&self, mut rest: &[u8], answers: &mut Vec<(Vec<u8>, u16)>) -> io::Result<bool> {
        while !rest.is_empty() {
            let message =
                NetlinkBuffer::new_checked(&rest).map_err(|_| malformed("netlink message cut short"))?;
            let length = message.length() as usize;
            if message.sequence_number() == self.sequence {
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => return status(message.payload()).map(|()| true),
                    _ => answers.push((message.payload().to_vec(), message.flags())),
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// Errors and ends of dumps both begin with a negative errno, or zero.
fn status(payload: &[u8]) -> io::Result<()> {
    let code = number(payload).ok_or_else(|| malformed("netlink status cut short"))?.cast_signed();
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn veth_message(veth: &Veth<'_>) -> LinkMessage {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.peer_name.to_owned()),
        LinkAttribute::Address(veth.peer_mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(veth.name.to_owned()),
        LinkAttribute::Address(veth.mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    link
}

fn route_message(scope: RouteScope, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_ne_bytes)
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    bytes.first_chunk::<4>().copied().map(Ipv4Addr::from)
}

/// The value of one attribute of a message, behind a header of `header` bytes.
fn attribute(payload: &[u8], header: usize, kind: u16) -> Option<&[u8]> {
    let attributes = NlasIterator::new(payload.get(header..)?);
    let found = attributes.filter_map(Result::ok).find(|a| a.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(ATTRIBUTE_HEADER..length)
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let index = number(payload.get(4..)?)?;
    let name = attribute(payload, LINK_HEADER, IFLA_IFNAME)?;
    let name = String::from_utf8_lossy(name.split(|b| *b == 0).next()?).into_owned();
    let mtu = number(attribute(payload, LINK_HEADER, IFLA_MTU)?)?;
    Some(Link { index, name, mtu })
}

fn read_address(payload: &[u8]) -> Option<Ipv4Net> {
    let address = ipv4(attribute(payload, ADDRESS_HEADER, IFA_LOCAL)?)?;
    Ipv4Net::new(address, *payload.get(1)?).ok()
}

/// Multicast and broadcast entries of the local table are no use of a range.
fn read_route(payload: &[u8]) -> Option<Route> {
    let (prefix, kind) = (*payload.get(1)?, RouteType::from(*payload.get(7)?));
    if matches!(kind, RouteType::Broadcast | RouteType::Multicast) {
        return None;
    }
    let destination =
        attribute(payload, ROUTE_HEADER, RTA_DST).and_then(ipv4).unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route {
        destination: Ipv4Net::new(destination, prefix).ok()?,
        link: attribute(payload, ROUTE_HEADER, RTA_OIF).and_then(number),
        priority: attribute(payload, ROUTE_HEADER, RTA_PRIORITY).and_then(number).unwrap_or(0),
    })
}
