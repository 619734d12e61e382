//! A pair of links between the machine and a network namespace, with addresses and a route, by rtnetlink.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use anyhow::Context as _;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Of the inner end; indexes are counted in each namespace.
const INNER: u32 = 2;
/// Link-local addresses, which no machine routes.
const HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 213, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(169, 254, 213, 2);
const PREFIX: u8 = 30;

/// A socket to the tables of the namespace that it was opened in.
pub(crate) struct Netlink(Socket);

impl Netlink {
    /// Of the caller's network namespace.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("connecting a netlink socket")?;
        Ok(Self(socket))
    }

    /// Makes the pair, and brings the outer end up. It goes with the namespace.
    pub(crate) fn add_pair(&self, name: &str, netns: BorrowedFd<'_>) -> anyhow::Result<()> {
        let mut peer = LinkMessage::default();
        peer.header.index = INNER;
        peer.attributes =
            vec![LinkAttribute::IfName("eth0".to_owned()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
        let mut pair = LinkMessage::default();
        pair.header.flags = LinkFlags::Up;
        pair.header.change_mask = LinkFlags::Up;
        pair.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.ask(RouteNetlinkMessage::NewLink(pair)).context("making a pair of links")?;
        let mut up = LinkMessage::default();
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        up.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.ask(RouteNetlinkMessage::SetLink(up)).context("bringing the outer link up")
    }

    /// Inside: address, up, and a route to everywhere.
    pub(crate) fn set_up_inner(&self) -> anyhow::Result<()> {
        self.up(INNER)?;
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.prefix_len = PREFIX;
        address.header.scope = AddressScope::Universe;
        address.header.index = INNER;
        address.attributes =
            vec![AddressAttribute::Local(INSIDE.into()), AddressAttribute::Address(INSIDE.into())];
        self.ask(RouteNetlinkMessage::NewAddress(address)).context("giving the inner link its address")?;
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes =
            vec![RouteAttribute::Oif(INNER), RouteAttribute::Gateway(RouteAddress::Inet(HOST))];
        self.ask(RouteNetlinkMessage::NewRoute(route)).context("adding a route")
    }

    fn up(&self, index: u32) -> anyhow::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.ask(RouteNetlinkMessage::SetLink(message)).context("bringing a link up")
    }

    fn ask(&self, message: RouteNetlinkMessage) -> anyhow::Result<()> {
        let makes = !matches!(message, RouteNetlinkMessage::SetLink(_));
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | if makes { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.0.send(&buffer, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io().into()),
            NetlinkPayload::Error(_) => Ok(()),
            other => anyhow::bail!("an answer that was not expected: {other:?}"),
        }
    }
}
