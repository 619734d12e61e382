//! The host of a network: what it has, what is prepared on it, and what is removed from it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::error::{Error, Refusal};
use crate::names::Names;
use crate::netlink::{Link, Netlink, Route};
use crate::network::Options;
use crate::nft::Nft;
use crate::range::{self, Occupied, OccupiedKind};
use crate::resolver::{self, Resolver};
use crate::ruleset;
use crate::switches::{LinkSwitches, Switches};

/// MTU where the host has no default route to take it from.
const DEFAULT_MTU: u32 = 1500;

/// What became of the start.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) public: Result<Ipv4Net, Arc<Refusal>>,
    pub(crate) warnings: Vec<String>,
}

/// A host that is prepared for one network.
pub(crate) struct Host {
    pub(crate) names: Names,
    pub(crate) netlink: Netlink,
    pub(crate) nft: Nft,
    pub(crate) public: Option<Public>,
    /// Says quickly whether a link is there; none where /proc does not let that be seen.
    links: Option<LinkSwitches>,
}

/// What only networks that can do `public` have.
pub(crate) struct Public {
    pub(crate) range: Ipv4Net,
    pub(crate) mtu: u32,
    pub(crate) resolv_conf: Arc<str>,
    /// Holds the range against other daemons, see [`reserve`].
    _reservation: UnixDatagram,
}

/// What the host's tables say.
struct Facts {
    links: Vec<Link>,
    addresses: Vec<Ipv4Net>,
    routes: Vec<Route>,
}

impl Host {
    /// Removes what a crashed daemon of the same instance left, and prepares `public` if the machine can do it.
    pub(crate) fn prepare(names: Names, options: &Options) -> Result<(Self, Started), Error> {
        let read = |what| move |source| Error::ReadHost { what, source };
        let mut netlink = Netlink::open().map_err(read("tables"))?;
        remove_stale_links(&mut netlink, &names)?;
        let facts = Facts {
            links: netlink.links().map_err(read("links"))?,
            addresses: netlink.addresses().map_err(read("addresses"))?,
            routes: netlink.routes().map_err(read("routes"))?,
        };
        let resolver = resolver(options, &facts);
        let nft = Nft::find(options.nft.as_deref());
        let links = Switches::open().and_then(|mut all| LinkSwitches::open(all.for_another()?, "ipv4")).ok();
        let mut host = Self { names, netlink, nft, public: None, links };
        let (public, chains) = thread::scope(|scope| {
            // Only a diagnosis; and a second nft takes little longer than one, as loading mostly waits for the kernel.
            let nft = host.nft.clone();
            let listing = thread::Builder::new().spawn_scoped(scope, move || nft.list_chains());
            let public = host.prepare_public(options, &facts, &resolver);
            (public, listing.ok().and_then(|l| l.join().ok()?.ok()).unwrap_or_default())
        });
        let public = public?;
        let warnings = match &public {
            Ok(_) => warnings(&host.names, &chains, &resolver),
            Err(_) => Vec::new(),
        };
        Ok((host, Started { public: public.map_err(Arc::new), warnings }))
    }

    /// The outer error is the configuration's, the inner one the machine's.
    fn prepare_public(
        &mut self,
        options: &Options,
        facts: &Facts,
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
            range,
            mtu: facts.mtu(),
            resolv_conf: resolver.text().into(),
            _reservation: reservation,
        });
        Ok(Ok(range))
    }

    /// A link that is gone already went with its namespace.
    pub(crate) fn remove_link(&mut self, link: &str) -> Result<(), Error> {
        remove_link(&mut self.netlink, link)
    }

    /// Whether there is a link called `link`.
    pub(crate) fn has_link(&mut self, link: &str) -> bool {
        let seen = self.links.as_ref().and_then(|links| links.has(link).ok());
        seen.unwrap_or_else(|| !self.netlink.index_of(link).is_err_and(|error| is_no_device(&error)))
    }

    /// Waits until all of `links` are gone by themselves, but not for longer than `patience` without one going.
    pub(crate) fn wait_for_end<'a>(&mut self, links: impl Iterator<Item = &'a str>, patience: Duration) {
        let mut links: Vec<_> = links.collect();
        let mut moved_at = Instant::now();
        while !links.is_empty() && moved_at.elapsed() < patience {
            let before = links.len();
            links.retain(|link| self.has_link(link));
            if links.len() < before {
                moved_at = Instant::now();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Removes the nft table, if there is one.
    pub(crate) fn remove_table(&mut self) -> Result<(), Error> {
        if self.public.take().is_none() {
            return Ok(());
        }
        let table = self.names.table();
        let deleted = self.nft.delete_table(&table);
        deleted.map_err(|refusal| Error::RemoveTable { table, source: Arc::new(refusal) })
    }
}

impl Facts {
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

fn resolver(options: &Options, facts: &Facts) -> Resolver {
    if !options.nameservers.is_empty() {
        return Resolver::of(options.nameservers.clone());
    }
    let files = resolver::FILES.map(|path| fs::read_to_string(path).unwrap_or_default());
    let own: Vec<_> = facts.addresses.iter().map(Ipv4Net::addr).collect();
    Resolver::of_host(files.iter().map(String::as_str), &own)
}

fn warnings(names: &Names, chains: &str, resolver: &Resolver) -> Vec<String> {
    let mut warnings = Vec::new();
    if resolver.nameservers.is_empty() {
        warnings.push(format!(
            "no name server that a sandbox can reach is named in {}: sandboxes cannot resolve names",
            resolver::FILES.join(" or ")
        ));
    }
    for chain in ruleset::foreign_forward_drops(chains, &names.table()) {
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
