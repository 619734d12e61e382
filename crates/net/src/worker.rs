//! The thread that owns a network: its socket to the host's tables, its addresses, its nft table.
//!
//! One thread, since the kernel changes links under one lock anyway, and since it stays in the network namespace in which
//! it was started. Slots that go away say so by a message, so dropping one never blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use crate::addresses::Addresses;
use crate::error::{Error, Refusal};
use crate::names::Names;
use crate::netlink::{Link, Mac, Netlink, Route, Veth};
use crate::network::Options;
use crate::nft::Nft;
use crate::range::{self, Occupied, OccupiedKind};
use crate::resolver::{self, Resolver};
use crate::ruleset;
use crate::slot::{Connection, Slot};

/// The sandbox's end of a link.
const GUEST_LINK: &str = "eth0";
/// The default gateway of every sandbox. It is nobody's address: only its permanent neighbour entry counts.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// MTU where the host has no default route to take it from.
const DEFAULT_MTU: u32 = 1500;

type Reply<T> = oneshot::Sender<Result<T, Error>>;
type Answer<T> = oneshot::Receiver<Result<T, Error>>;

/// What the thread is asked for.
pub(crate) enum Command {
    /// A slot with loopback only.
    Isolate { reply: Reply<Slot> },
    /// A connected slot, which reports its end to `worker`.
    Attach { reply: Reply<Slot>, worker: Sender<Command> },
    /// A slot's end.
    Detach { number: u32 },
    /// The network's end.
    Shutdown { reply: Reply<()> },
}

/// What became of the start.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) public: Result<Ipv4Net, Arc<Refusal>>,
    pub(crate) warnings: Vec<String>,
}

/// Starts the thread in the calling thread's namespace.
pub(crate) fn spawn(names: Names, options: Options) -> Result<(Sender<Command>, Answer<Started>), Error> {
    let (commands, inbox) = mpsc::channel();
    let (reply, started) = oneshot::channel();
    let body = move || match Worker::start(names, &options) {
        Ok((worker, outcome)) => {
            // With nobody waiting, the inbox is closed too, and the worker ends at once.
            let _ = reply.send(Ok(outcome));
            worker.run(&inbox);
        }
        Err(error) => drop(reply.send(Err(error))),
    };
    thread::Builder::new().name("berth-net".to_owned()).spawn(body).map_err(Error::Spawn)?;
    Ok((commands, started))
}

struct Worker {
    names: Names,
    host: Netlink,
    nft: Nft,
    public: Option<Public>,
    /// Living links, by slot number.
    links: BTreeMap<u32, String>,
}

/// What only networks that can do `public` have.
struct Public {
    addresses: Addresses,
    mtu: u32,
    resolv_conf: Arc<str>,
    /// Holds the range against other daemons, see [`reserve`].
    _reservation: UnixDatagram,
}

/// What the host's tables say.
struct Host {
    links: Vec<Link>,
    addresses: Vec<Ipv4Net>,
    routes: Vec<Route>,
}

impl Worker {
    fn start(names: Names, options: &Options) -> Result<(Self, Started), Error> {
        let read = |what| move |source| Error::ReadHost { what, source };
        let mut host = Netlink::open().map_err(read("tables"))?;
        remove_stale_links(&mut host, &names)?;
        let facts = Host {
            links: host.links().map_err(read("links"))?,
            addresses: host.addresses().map_err(read("addresses"))?,
            routes: host.routes().map_err(read("routes"))?,
        };
        let resolver = resolver(options, &facts);
        let nft = Nft::find(options.nft.as_deref());
        let mut worker = Self { names, host, nft, public: None, links: BTreeMap::new() };
        let public = worker.prepare_public(options, &facts, &resolver)?;
        let warnings = match &public {
            Ok(_) => warnings(&worker.names, &worker.nft, &resolver),
            Err(_) => Vec::new(),
        };
        Ok((worker, Started { public: public.map_err(Arc::new), warnings }))
    }

    /// The outer error is the configuration's, the inner one the machine's.
    fn prepare_public(
        &mut self,
        options: &Options,
        facts: &Host,
        resolver: &Resolver,
    ) -> Result<Result<Ipv4Net, Refusal>, Error> {
        let occupied = facts.occupied(&resolver.nameservers);
        let (range, reservation) = match options.range {
            Some(range) => configured_range(range, &occupied)?,
            None => match free_range(self.names.instance(), &occupied) {
                Ok(found) => found,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        let rules = ruleset::of(&self.names, range, &resolver.nameservers);
        if let Err(refusal) = self.nft.load(&rules) {
            return Ok(Err(refusal));
        }
        if let Err(refusal) = enable_forwarding() {
            // Just loaded, so that it can be deleted; what counts is the first failure.
            let _ = self.nft.delete_table(&self.names.table());
            return Ok(Err(refusal));
        }
        self.public = Some(Public {
            addresses: Addresses::new(range),
            mtu: facts.mtu(),
            resolv_conf: resolver.text().into(),
            _reservation: reservation,
        });
        Ok(Ok(range))
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        while let Ok(command) = inbox.recv() {
            match command {
                // A slot that nobody waits for any more is dropped, which undoes it.
                Command::Isolate { reply } => drop(reply.send(isolate())),
                Command::Attach { reply, worker } => drop(reply.send(self.attach(worker))),
                Command::Detach { number } => self.detach(number),
                Command::Shutdown { reply } => {
                    drop(reply.send(self.end()));
                    return;
                }
            }
        }
        if let Err(error) = self.end() {
            tracing::warn!(error = &error as &dyn std::error::Error, "network not fully removed");
        }
    }

    fn attach(&mut self, worker: Sender<Command>) -> Result<Slot, Error> {
        let Some(public) = &mut self.public else { return Err(Error::Stopped) };
        let (netns, mut guest) = new_netns()?;
        let Some((number, address)) = public.addresses.take(Instant::now()) else {
            let (attached, resting) = public.addresses.counts();
            return Err(Error::NoFreeAddress { range: public.addresses.range(), attached, resting });
        };
        let (mtu, resolv_conf) = (public.mtu, Arc::clone(&public.resolv_conf));
        let link = self.names.link(number);
        self.links.insert(number, link.clone());
        if let Err(error) = self.connect(&netns, &mut guest, &link, address, mtu) {
            self.detach(number);
            return Err(error);
        }
        Ok(Slot::connected(netns, Connection { number, address, link, resolv_conf, worker }))
    }

    fn connect(
        &mut self,
        netns: &OwnedFd,
        guest: &mut Netlink,
        link: &str,
        address: Ipv4Addr,
        mtu: u32,
    ) -> Result<(), Error> {
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
        self.host.add_veth(&veth).map_err(at("make the pair of links"))?;
        disable_ipv6(link).map_err(at("switch off IPv6"))?;
        let index = self.host.index_of(link).map_err(at("find the host's end"))?;
        self.host.link_up(index).map_err(at("bring up the host's end"))?;
        self.host.add_link_route(index, address).map_err(at("add the host's route"))?;
        self.host.add_neighbour(index, address, guest_mac).map_err(at("add the host's neighbour"))?;

        let index = guest.index_of(GUEST_LINK).map_err(at("find the sandbox's end"))?;
        guest.add_address(index, address.into()).map_err(at("add the sandbox's address"))?;
        guest.link_up(index).map_err(at("bring up the sandbox's end"))?;
        guest.add_neighbour(index, GATEWAY, host_mac).map_err(at("add the sandbox's gateway"))?;
        guest.add_default_route(index, GATEWAY).map_err(at("add the sandbox's default route"))
    }

    fn detach(&mut self, number: u32) {
        if let Some(link) = self.links.remove(&number)
            && let Err(error) = remove_link(&mut self.host, &link)
        {
            // The link dies with its namespace at the latest; until then the address must stay taken.
            tracing::warn!(error = &error as &dyn std::error::Error, link, "link of a sandbox not removed");
            self.links.insert(number, link);
            return;
        }
        if let Some(public) = &mut self.public {
            public.addresses.give_back(number, Instant::now());
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        let links = std::mem::take(&mut self.links);
        let removed: Vec<_> = links.values().map(|link| remove_link(&mut self.host, link)).collect();
        let table = self.names.table();
        let deleted = match self.public.take() {
            Some(_) => self.nft.delete_table(&table),
            None => Ok(()),
        };
        removed.into_iter().collect::<Result<(), _>>()?;
        deleted.map_err(|refusal| Error::RemoveTable { table, source: Arc::new(refusal) })
    }
}

impl Host {
    fn occupied(&self, nameservers: &[Ipv4Addr]) -> Vec<Occupied> {
        let addresses = self.addresses.iter().map(|&net| Occupied { net, kind: OccupiedKind::Address });
        let routes = self.routes.iter().map(|r| Occupied { net: r.destination, kind: OccupiedKind::Route });
        let resolvers =
            nameservers.iter().map(|&s| Occupied { net: Ipv4Net::from(s), kind: OccupiedKind::Resolver });
        routes.chain(addresses).chain(resolvers).collect()
    }

    /// MTU of the link behind the preferred default route: larger packets of a sandbox would only be cut there.
    fn mtu(&self) -> u32 {
        let defaults = self.routes.iter().filter(|r| r.destination.prefix_len() == 0 && r.link.is_some());
        let link = defaults.min_by_key(|r| r.priority).and_then(|r| r.link);
        let mtu = self.links.iter().find(|l| Some(l.index) == link).map(|l| l.mtu);
        mtu.unwrap_or(DEFAULT_MTU)
    }
}

fn resolver(options: &Options, facts: &Host) -> Resolver {
    if !options.nameservers.is_empty() {
        return Resolver::of(options.nameservers.clone());
    }
    let files = resolver::FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    let own: Vec<_> = facts.addresses.iter().map(Ipv4Net::addr).collect();
    Resolver::of_host(files.iter().map(String::as_str), &own)
}

fn warnings(names: &Names, nft: &Nft, resolver: &Resolver) -> Vec<String> {
    let mut warnings = Vec::new();
    if resolver.nameservers.is_empty() {
        warnings.push(format!(
            "no name server that a sandbox can reach is named in {}: sandboxes cannot resolve names",
            resolver::FILES.join(" or ")
        ));
    }
    // Only a diagnosis; that nft works has just been seen.
    let chains = nft.list_chains().unwrap_or_default();
    for chain in ruleset::foreign_forward_drops(&chains, &names.table()) {
        let prefix = names.link_prefix();
        warnings.push(format!(
            "the firewall chain {chain} drops what it does not accept: accept {prefix}* there, in and out"
        ));
    }
    warnings
}

fn configured_range(range: Ipv4Net, occupied: &[Occupied]) -> Result<(Ipv4Net, UnixDatagram), Error> {
    let range = range::check_configured(range, occupied)?;
    match reserve(range) {
        Ok(Some(reservation)) => Ok((range, reservation)),
        Ok(None) => Err(Error::RangeTaken { range }),
        Err(refusal) => Err(Error::PublicRefused(Arc::new(refusal))),
    }
}

fn free_range(instance: &str, occupied: &[Occupied]) -> Result<(Ipv4Net, UnixDatagram), Refusal> {
    let mut last = None;
    for range in range::candidates(instance) {
        if let Some(conflict) = range::conflict(&range, occupied) {
            last = Some(conflict.clone());
        } else if let Some(reservation) = reserve(range)? {
            return Ok((range, reservation));
        }
    }
    Err(match last {
        Some(occupied) => Refusal::NoFreeRange { from: range::POOL, occupied },
        None => Refusal::RangesHeld { from: range::POOL },
    })
}

/// Holds `range` in this network namespace, or finds it held by another daemon.
///
/// An abstract unix address is what fits: it belongs to the network namespace, two daemons that start at once cannot
/// both have it, and it ends with its owner, however that ends.
fn reserve(range: Ipv4Net) -> Result<Option<UnixDatagram>, Refusal> {
    let bind = || {
        let address = SocketAddr::from_abstract_name(format!("berth-net-range-{range}"))?;
        UnixDatagram::bind_addr(&address)
    };
    match bind() {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(source) => Err(Refusal::Reserve { range, source }),
    }
}

fn enable_forwarding() -> Result<(), Refusal> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    let failed = |source| Refusal::Forwarding { path: PathBuf::from(path), source };
    if fs::read_to_string(path).map_err(failed)?.trim() == "1" {
        return Ok(());
    }
    fs::write(path, "1").map_err(failed)
}

fn remove_stale_links(host: &mut Netlink, names: &Names) -> Result<(), Error> {
    let links = host.links().map_err(|source| Error::ReadHost { what: "links", source })?;
    let prefix = names.link_prefix();
    for link in links.into_iter().filter(|l| l.name.starts_with(&prefix)) {
        tracing::info!(link = link.name, "removing a link that an earlier daemon left");
        remove_link(host, &link.name)?;
    }
    Ok(())
}

/// A link that is gone already went with its namespace.
fn remove_link(host: &mut Netlink, link: &str) -> Result<(), Error> {
    match host.remove_link(link) {
        Err(source) if !is_no_device(&source) => Err(Error::RemoveLink { link: link.to_owned(), source }),
        _ => Ok(()),
    }
}

fn is_no_device(error: &io::Error) -> bool {
    const ENODEV: i32 = 19;
    error.raw_os_error() == Some(ENODEV)
}

fn isolate() -> Result<Slot, Error> {
    new_netns().map(|(netns, _)| Slot::isolated(netns))
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
