//! Everything with real packets, in worlds made for each test: a namespace that plays the host, and one upstream of it
//! with servers in it. The machine's own tables are never touched.
//!
//! ```text
//!   sandboxes ── host: up0 203.0.113.1 ── upstream: eth0 203.0.113.2, 169.254.169.254
//! ```

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_sys::netns;
use ipnet::Ipv4Net;

use crate::netlink::{Link, Netlink, Route, Veth};
use crate::nft::Nft;
use crate::{Error, Mode, Network, Options, PoolSizes, Slot, SlotSpec};

const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const UPSTREAM: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PATIENCE: Duration = Duration::from_secs(2);
const UPLINK_MTU: u32 = 1380;
pub(crate) const NO_POOL: PoolSizes = PoolSizes { isolated: 0, connected: 0, most: 0 };

pub(crate) struct World {
    pub(crate) host: OwnedFd,
    pub(crate) upstream: OwnedFd,
}

impl World {
    /// A world, or none (and says so) where the test cannot have one.
    pub(crate) fn new() -> Option<Self> {
        if let Err(error) = Nft::find(None).list_chains() {
            println!("SKIP: network tests need nft and the right to use it: {error}");
            return None;
        }
        let make = || netns::create(Netlink::open).expect("a namespace");
        let ((host, mut host_link), (upstream, mut upstream_link)) = (make(), make());
        let veth = Veth {
            name: "up0",
            mac: [2, 0, 0, 0, 0, 1],
            peer_name: "eth0",
            peer_mac: [2, 0, 0, 0, 0, 2],
            peer_netns: upstream.as_fd(),
            mtu: UPLINK_MTU,
        };
        host_link.add_veth(&veth).unwrap();
        for (netlink, name, own, other) in
            [(&mut host_link, "up0", HOST, UPSTREAM), (&mut upstream_link, "eth0", UPSTREAM, HOST)]
        {
            netlink.loopback_up().unwrap();
            let index = netlink.index_of(name).unwrap();
            netlink.add_address(index, format!("{own}/24").parse().unwrap()).unwrap();
            if name == "eth0" {
                netlink.add_address(index, METADATA.into()).unwrap();
            }
            netlink.link_up(index).unwrap();
            // Upstream routes back to the sandboxes: what keeps it out of them must be the ruleset.
            netlink.add_default_route(index, other).unwrap();
        }
        Some(Self { host, upstream })
    }

    /// Runs `body` on a thread that is on the host of this world.
    pub(crate) fn on_host(&self, body: impl AsyncFnOnce() + Send) {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            runtime.block_on(body());
            Ok(())
        };
        netns::run_in(self.host.as_fd(), run).unwrap();
    }

    pub(crate) fn host_links(&self) -> Vec<String> {
        let links = netns::run_in(self.host.as_fd(), || Netlink::open()?.links()).unwrap();
        links.into_iter().map(|l| l.name).collect()
    }

    pub(crate) fn tables(&self) -> String {
        self.nft(&["list", "tables"])
    }

    pub(crate) fn nft(&self, args: &[&str]) -> String {
        let run = || Command::new("nft").args(args).output();
        let output = netns::run_in(self.host.as_fd(), run).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

pub(crate) fn options(instance: &str) -> Options {
    Options { instance: instance.to_owned(), nameservers: vec![METADATA], ..Options::default() }
}

/// A slot without a user namespace.
pub(crate) fn plain(mode: Mode) -> SlotSpec {
    SlotSpec { mode, user_namespace: false }
}

/// Serves TCP in `netns` until the process ends: tells each client the address that it was seen with.
pub(crate) fn serve(netns: BorrowedFd<'_>, address: (Ipv4Addr, u16)) {
    let listener = netns::run_in(netns, || TcpListener::bind(address)).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

/// Connects from `netns`; the address that the server saw.
pub(crate) fn ask(netns: BorrowedFd<'_>, to: impl Into<IpAddr>, port: u16) -> io::Result<String> {
    let to = SocketAddr::new(to.into(), port);
    netns::run_in(netns, || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut seen = String::new();
        stream.read_to_string(&mut seen)?;
        Ok(seen)
    })
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn address(slot: &Slot) -> Ipv4Addr {
    slot.address().expect("a public slot")
}

/// Both ways in which a slot comes to be; whatever holds of one must hold of the other.
const ORIGINS: [Origin; 2] = [Origin::Made, Origin::Kept];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Made when it was asked for.
    Made,
    /// Made before.
    Kept,
}

impl Origin {
    async fn network(self, instance: &str) -> Network {
        let pool = if self == Origin::Made { NO_POOL } else { PoolSizes::default() };
        Network::start(Options { pool, ..options(instance) }).await.unwrap()
    }

    async fn slot(self, network: &Network, mode: Mode) -> Slot {
        let hits = network.pool(mode).hits;
        if self == Origin::Kept {
            drop(network.attach(plain(mode)).await.unwrap());
            eventually("a slot is ready", || network.pool(mode).ready > 0);
        }
        let slot = network.attach(plain(mode)).await.unwrap();
        assert_eq!(network.pool(mode).hits > hits, self == Origin::Kept);
        slot
    }
}

#[test]
fn public_reaches_upstream_as_the_host_and_no_network_reaches_nothing() {
    let Some(world) = World::new() else { return };
    serve(world.upstream.as_fd(), (UPSTREAM, 7000));
    for origin in ORIGINS {
        world.on_host(async || {
            let network = origin.network("t1").await;
            let public = origin.slot(&network, Mode::Public).await;
            assert_eq!(ask(public.netns(), UPSTREAM, 7000).unwrap(), HOST.to_string());
            assert_eq!(public.resolv_conf(), format!("nameserver {METADATA}\n"));
            assert!(network.public().unwrap().contains(&address(&public)));

            let alone = origin.slot(&network, Mode::NoNetwork).await;
            let error = ask(alone.netns(), UPSTREAM, 7000).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable);
            assert_eq!((alone.address(), alone.resolv_conf(), alone.mode()), (None, "", Mode::NoNetwork));
            network.shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_sandbox_has_the_uplinks_mtu_loopback_of_both_kinds_and_no_ipv6_beyond() {
    let Some(world) = World::new() else { return };
    for origin in ORIGINS {
        world.on_host(async || {
            let network = origin.network("t2").await;
            let slot = origin.slot(&network, Mode::Public).await;
            let links = netns::run_in(slot.netns(), || Netlink::open()?.links()).unwrap();
            let eth0 = links.iter().find(|l| l.name == "eth0").unwrap();
            assert_eq!(eth0.mtu, UPLINK_MTU);
            serve(slot.netns(), (Ipv4Addr::LOCALHOST, 7000));
            assert_eq!(ask(slot.netns(), Ipv4Addr::LOCALHOST, 7000).unwrap(), "127.0.0.1");
            let v6 = |file: &str| {
                let path = format!("/proc/sys/net/ipv6/conf/{file}/disable_ipv6");
                netns::run_in(slot.netns(), || std::fs::read_to_string(&path))
            };
            match v6("eth0") {
                Ok(off) => assert_eq!((off.trim(), v6("lo").unwrap().trim()), ("1", "0")),
                Err(error) => println!("SKIP: this kernel has no IPv6 to switch off: {error}"),
            }
            let host_link = slot.link().unwrap();
            let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
            assert!(!read("/proc/thread-self/net/if_inet6".to_owned()).contains(host_link));
            let accepts = read(format!("/proc/sys/net/ipv6/conf/{host_link}/accept_ra"));
            assert!(matches!(accepts.trim(), "0" | ""), "{accepts}");
            network.shutdown().await.unwrap();
        });
    }
}

/// Everything in a namespace's tables and settings that could tell one slot from another.
fn looks(slot: &Slot) -> (Vec<Link>, Vec<Route>, Vec<Ipv4Net>, Vec<String>) {
    const SETTINGS: [&str; 4] = [
        "ipv4/ip_forward",
        "ipv4/conf/eth0/rp_filter",
        "ipv6/conf/all/disable_ipv6",
        "ipv4/ip_local_port_range",
    ];
    netns::run_in(slot.netns(), || {
        let mut tables = Netlink::open()?;
        let own = slot.address();
        let other_addresses = tables.addresses()?.into_iter().filter(|a| Some(a.addr()) != own).collect();
        let other_routes =
            tables.routes()?.into_iter().filter(|r| Some(r.destination.addr()) != own).collect();
        let read = |name| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap_or_default();
        let mut settings: Vec<_> = SETTINGS.into_iter().map(read).collect();
        settings.push(std::fs::read_to_string("/proc/thread-self/net/arp")?.replace('\t', " "));
        Ok((tables.links()?, other_routes, other_addresses, settings))
    })
    .unwrap()
}

#[test]
fn a_slot_that_was_kept_looks_like_one_that_was_just_made() {
    let Some(world) = World::new() else { return };
    for mode in [Mode::Public, Mode::NoNetwork] {
        let mut seen = Vec::new();
        for origin in ORIGINS {
            let seen = &mut seen;
            world.on_host(async || {
                let network = origin.network("te").await;
                let slot = origin.slot(&network, mode).await;
                let (links, routes, addresses, mut settings) = looks(&slot);
                // The gateway's hardware address follows from the sandbox's own.
                let arp = settings.pop().unwrap_or_default();
                assert_eq!(arp.matches("169.254.1.1").count(), usize::from(mode == Mode::Public));
                seen.push((links, routes, addresses, settings, slot.resolv_conf().to_owned()));
                network.shutdown().await.unwrap();
            });
        }
        assert_eq!(seen[0], seen[1]);
    }
}

#[test]
fn sandboxes_reach_neither_each_other_nor_the_host_nor_metadata() {
    let Some(world) = World::new() else { return };
    serve(world.host.as_fd(), (Ipv4Addr::UNSPECIFIED, 7001));
    serve(world.upstream.as_fd(), (METADATA, 80));
    serve(world.upstream.as_fd(), (METADATA, 53));
    for origin in ORIGINS {
        world.on_host(async || {
            let network = origin.network("t3").await;
            let a = origin.slot(&network, Mode::Public).await;
            let b = origin.slot(&network, Mode::Public).await;
            serve(b.netns(), (Ipv4Addr::UNSPECIFIED, 7002));

            // Each server answers somebody, so that a refusal is the ruleset's.
            assert!(ask(world.host.as_fd(), address(&b), 7002).is_ok());
            assert!(ask(a.netns(), address(&b), 7002).is_err());
            assert!(ask(world.upstream.as_fd(), address(&b), 7002).is_err());
            assert!(ask(world.upstream.as_fd(), HOST, 7001).is_ok());
            let unused = network.public().unwrap().network();
            for host in [HOST, Ipv4Addr::new(169, 254, 1, 1), unused] {
                assert!(ask(a.netns(), host, 7001).is_err(), "{host}");
            }
            assert!(ask(world.host.as_fd(), METADATA, 80).is_ok());
            assert!(ask(a.netns(), METADATA, 80).is_err());
            assert_eq!(ask(a.netns(), METADATA, 53).unwrap(), HOST.to_string());

            // A refusal is told at once, not found out by waiting.
            let start = Instant::now();
            let _ = ask(a.netns(), HOST, 7001);
            assert!(start.elapsed() < PATIENCE);
            network.shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_forged_source_address_goes_nowhere() {
    let Some(world) = World::new() else { return };
    let upstream = netns::run_in(world.upstream.as_fd(), || UdpSocket::bind((UPSTREAM, 7003))).unwrap();
    upstream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let send = |slot: &Slot, from: Ipv4Addr, what: &[u8]| {
        netns::run_in(slot.netns(), || UdpSocket::bind((from, 0))?.send_to(what, (UPSTREAM, 7003))).unwrap();
    };
    for origin in ORIGINS {
        world.on_host(async || {
            let network = origin.network("t4").await;
            let a = origin.slot(&network, Mode::Public).await;
            let b = origin.slot(&network, Mode::Public).await;
            for forged in [address(&b), Ipv4Addr::new(198, 51, 100, 1)] {
                let add = || {
                    let mut netlink = Netlink::open()?;
                    let index = netlink.index_of("eth0")?;
                    netlink.add_address(index, forged.into())
                };
                netns::run_in(a.netns(), add).unwrap();
                send(&a, forged, b"forged");
            }
            send(&a, address(&a), b"honest");
            let mut buffer = [0; 16];
            let (n, _) = upstream.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"honest");
            assert!(upstream.recv_from(&mut buffer).is_err());
            network.shutdown().await.unwrap();
        });
    }
}

#[test]
fn nothing_stays_after_a_slot_a_cancelled_call_or_the_network() {
    let Some(world) = World::new() else { return };
    let links = world.host_links();
    world.on_host(async || {
        let network = Network::start(Options { pool: NO_POOL, ..options("t5") }).await.unwrap();
        let slot = network.attach(plain(Mode::Public)).await.unwrap();
        let link = slot.link().unwrap().to_owned();
        assert!(world.host_links().contains(&link));
        drop(slot);
        eventually("the link goes with its slot", || world.host_links() == links);
        for _ in 0..3 {
            let call = network.attach(plain(Mode::Public));
            let _ = tokio::time::timeout(Duration::ZERO, call).await;
        }
        eventually("a cancelled call leaves no link", || world.host_links() == links);

        let kept = network.attach(plain(Mode::Public)).await.unwrap();
        assert_ne!(kept.link().unwrap(), link, "addresses rest before they are used again");
        assert!(world.tables().contains("berth_t5"));
        network.shutdown().await.unwrap();
        assert_eq!(world.host_links(), links);
        assert_eq!(world.tables(), "");
        network.shutdown().await.unwrap();
        assert!(matches!(network.attach(plain(Mode::NoNetwork)).await, Err(Error::Stopped)));
        drop(kept);

        // Without a shutdown, the last one out does it.
        let network = Network::start(Options { pool: NO_POOL, ..options("t5") }).await.unwrap();
        let slot = network.attach(plain(Mode::Public)).await.unwrap();
        drop(network);
        assert!(world.tables().contains("berth_t5"));
        drop(slot);
        eventually("the table goes with the last slot", || world.tables().is_empty());
        assert_eq!(world.host_links(), links);
    });
}

#[test]
fn leavings_of_a_crashed_daemon_are_removed_and_those_of_others_are_not() {
    let Some(world) = World::new() else { return };
    let (elsewhere, ()) = netns::create(|| Ok(())).unwrap();
    let mut netlink = netns::run_in(world.host.as_fd(), Netlink::open).unwrap();
    for (last, name) in [(1, "btht6-000"), (2, "btht6x-000")] {
        let (mac, peer_mac) = ([2, 0, 0, 1, 0, last], [2, 0, 0, 1, 1, last]);
        let veth =
            Veth { name, mac, peer_name: name, peer_mac, peer_netns: elsewhere.as_fd(), mtu: UPLINK_MTU };
        netlink.add_veth(&veth).unwrap();
    }
    world.nft(&["add", "table", "inet", "berth_t6"]);
    world.nft(&["add", "chain", "inet", "berth_t6", "stale"]);
    world.nft(&["add", "table", "inet", "berth_t6x"]);
    world.on_host(async || {
        let network = Network::start(options("t6")).await.unwrap();
        let links = world.host_links();
        assert!(!links.contains(&"btht6-000".to_owned()) && links.contains(&"btht6x-000".to_owned()));
        assert!(!world.nft(&["list", "table", "inet", "berth_t6"]).contains("stale"));
        network.shutdown().await.unwrap();
        assert_eq!(world.tables().trim(), "table inet berth_t6x");
    });
}

#[test]
fn daemons_keep_out_of_each_others_ranges_and_sandboxes() {
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        let one = Network::start(options("t7")).await.unwrap();
        let other = Network::start(options("t8")).await.unwrap();
        assert_ne!(one.public().unwrap(), other.public().unwrap());
        let (a, b) = (one.attach(plain(Mode::Public)).await.unwrap(), other.attach(plain(Mode::Public)).await.unwrap());
        serve(b.netns(), (Ipv4Addr::UNSPECIFIED, 7002));
        assert!(ask(world.host.as_fd(), address(&b), 7002).is_ok());
        assert!(ask(a.netns(), address(&b), 7002).is_err());

        let configured = |instance: &str, range: &str| {
            let range = Some(range.parse().unwrap());
            Network::start(Options { range, ..options(instance) })
        };
        let error = configured("t9", "203.0.113.0/25").await.unwrap_err();
        insta::assert_snapshot!(error, @"network range 203.0.113.0/25 overlaps the route to 203.0.113.0/24 of this machine");
        let third = configured("t9", "172.29.0.0/24").await.unwrap();
        assert!(matches!(configured("ta", "172.29.0.0/24").await, Err(Error::RangeTaken { .. })));
        for network in [one, other, third] {
            network.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_firewall_that_drops_is_warned_of_and_a_full_range_is_an_error() {
    let Some(world) = World::new() else { return };
    world.nft(&["add", "table", "ip", "filter"]);
    let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
    world.nft(&["add", "chain", "ip", "filter", "FORWARD", chain]);
    world.on_host(async || {
        let range = Some("172.29.0.0/30".parse().unwrap());
        let network = Network::start(Options { range, ..options("tb") }).await.unwrap();
        insta::assert_snapshot!(network.warnings().join("\n"), @"the firewall chain ip filter FORWARD drops what it does not accept: accept bthtb-* there, in and out");
        let _slots = (network.attach(plain(Mode::Public)).await.unwrap(), network.attach(plain(Mode::Public)).await.unwrap());
        let error = network.attach(plain(Mode::Public)).await.unwrap_err();
        insta::assert_snapshot!(error, @"no free address in network range 172.29.0.0/30: 2 in use, 0 resting after use");
        assert!(network.attach(plain(Mode::NoNetwork)).await.is_ok());
        network.shutdown().await.unwrap();
    });
}

#[test]
fn without_nft_public_is_refused_and_no_network_works() {
    let Some(world) = World::new() else { return };
    world.on_host(async || {
        let start = |program: &str| Network::start(Options { nft: Some(program.into()), ..options("td") });
        let network = start("/nonexistent/nft").await.unwrap();
        let error = network.attach(plain(Mode::Public)).await.unwrap_err();
        insta::assert_snapshot!(chain(&error), @"network mode public is not available on this machine: the program /nonexistent/nft was not found");
        insta::assert_snapshot!(error.hint().unwrap(), @"install nftables, for example: apt-get install nftables");
        assert!(network.public().is_err());
        assert!(network.attach(plain(Mode::NoNetwork)).await.is_ok());
        network.shutdown().await.unwrap();

        let network = start("/bin/false").await.unwrap();
        let error = network.attach(plain(Mode::Public)).await.unwrap_err();
        insta::assert_snapshot!(chain(&error), @"network mode public is not available on this machine: nft refused to load the ruleset: no reason given");
        assert!(network.attach(plain(Mode::NoNetwork)).await.is_ok());
        network.shutdown().await.unwrap();
    });
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
