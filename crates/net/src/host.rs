//! The host of a network: what it has, what is prepared on it, and what is removed from it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::error::{Error, Refusal};
use crate::kept::{self, Sorted, Unfit};
use crate::names::Names;
use crate::netlink::{Link, Netlink, Route};
use crate::network::Options;
use crate::nft::Nft;
use crate::range::{self, Occupied, OccupiedKind};
use crate::resolver::{self, Resolver};
use crate::ruleset::{self, Rules};
use crate::switches::{LinkSwitches, Switches};

/// MTU where the host has no default route to take it from.
const DEFAULT_MTU: u32 = 1500;
/// How long the range of living sandboxes may still be held: the daemon before this one may be on its way out.
const HELD_PATIENCE: Duration = Duration::from_secs(2);
const HELD_LOOK: Duration = Duration::from_millis(20);

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
    /// Removes what a crashed daemon of the same instance left, but what is to be kept and can be, and prepares `public`
    /// if the machine can do it.
    pub(crate) fn prepare(names: Names, options: &Options) -> Result<(Self, Started, Sorted), Error> {
        let mut netlink = Netlink::open().map_err(|source| Error::ReadHost { what: "tables", source })?;
        let facts = Facts::read(&mut netlink)?;
        let mut kept = kept::sort(&names, options.range, &options.keep, &facts.links, &facts.routes);
        let facts = match remove_stale_links(&mut netlink, &names, &facts, &kept)? {
            0 => facts,
            _ => Facts::read(&mut netlink)?,
        };
        let resolver = resolver(options, &facts);
        let nft = Nft::find(options.nft.as_deref());
        let links = Switches::open().and_then(|mut all| LinkSwitches::open(all.for_another()?, "ipv4")).ok();
        let mut host = Self { names, netlink, nft, public: None, links };
        let (public, chains) = thread::scope(|scope| {
            // Only a diagnosis; and a second nft takes little longer than one, as loading mostly waits for the kernel.
            let nft = host.nft.clone();
            let listing = thread::Builder::new().spawn_scoped(scope, move || nft.list_chains());
            let public = host.prepare_public(options, &facts, &resolver, &kept);
            (public, listing.ok().and_then(|l| l.join().ok()?.ok()).unwrap_or_default())
        });
        let public = public?;
        let warnings = match &public {
            Ok(_) => warnings(&host.names, &chains, &resolver, facts.overlap(&kept, &resolver.nameservers)),
            Err(refusal) => {
                host.give_up(&mut kept, refusal)?;
                Vec::new()
            }
        };
        Ok((host, Started { public: public.map_err(Arc::new), warnings }, kept))
    }

    /// Cuts living sandboxes off, as there are no rules for them that could be trusted.
    fn give_up(&mut self, kept: &mut Sorted, refusal: &Refusal) -> Result<(), Error> {
        for link in kept.links() {
            tracing::warn!(link = link.name, "removing the link of a living sandbox, as public is refused");
            remove_link(&mut self.netlink, &link.name)?;
        }
        kept.fit.clear();
        if matches!(refusal, Refusal::Forwarding { .. }) {
            // Just loaded, so that it can be deleted, now that there is no link; what counts is the first failure.
            let _ = self.nft.delete_table(&self.names.table());
        }
        Ok(())
    }

    /// The outer error is the configuration's, the inner one the machine's.
    fn prepare_public(
        &mut self,
        options: &Options,
        facts: &Facts,
        resolver: &Resolver,
        kept: &Sorted,
    ) -> Result<Result<Ipv4Net, Refusal>, Error> {
        let occupied = facts.occupied(&resolver.nameservers);
        let found = match (kept.range, options.range) {
            // What overlaps it by now is no reason to cut living sandboxes off; it is warned of.
            (Some(range), _) => kept_range(range),
            (None, Some(range)) => Ok(configured_range(range, &occupied)?),
            (None, None) => free_range(self.names.instance(), &occupied),
        };
        let (range, reservation) = match found {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let loaded = self.load_rules(range, &resolver.nameservers, !kept.fit.is_empty());
        if let Err(refusal) = loaded.and_then(|()| enable_forwarding()) {
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

    /// Has the rules in force, and where sandboxes live, at no time others than these or those before.
    fn load_rules(&self, range: Ipv4Net, nameservers: &[Ipv4Addr], living: bool) -> Result<(), Refusal> {
        let (table, link_prefix) = (self.names.table(), self.names.link_prefix());
        let rules = Rules { table: &table, link_prefix: &link_prefix, range, nameservers };
        let guard = ruleset::guard_name(&table);
        if !living {
            // A daemon may have died between setting a guard and taking it away.
            return self.nft.load(&(ruleset::replace(&rules) + &ruleset::delete(&guard)));
        }
        let renewed = self.nft.load(&ruleset::renew(&rules));
        let Err(Refusal::NftRefused { stderr, .. }) = renewed else { return renewed };
        tracing::info!(stderr, "the rules of an earlier daemon have other chains, and are replaced");
        self.nft.load(&ruleset::guard(&rules))?;
        self.nft.load(&ruleset::replace(&rules))?;
        self.nft.delete_table(&guard)
    }

    /// Checks that the other end of `link` is in `netns`.
    pub(crate) fn check_peer(
        &mut self,
        link: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<Result<(), Unfit>, Error> {
        let failed = |source| Error::ReadHost { what: "links", source };
        let peer = match self.netlink.peer_namespace(link) {
            Err(error) if is_no_device(&error) => return Ok(Err(Unfit::Gone)),
            other => other.map_err(failed)?,
        };
        let given = self.netlink.namespace_number(netns).map_err(failed)?;
        Ok(if peer.is_some() && peer == given { Ok(()) } else { Err(Unfit::Elsewhere) })
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
    fn read(netlink: &mut Netlink) -> Result<Self, Error> {
        let read = |what| move |source| Error::ReadHost { what, source };
        Ok(Self {
            links: netlink.links().map_err(read("links"))?,
            addresses: netlink.addresses().map_err(read("addresses"))?,
            routes: netlink.routes().map_err(read("routes"))?,
        })
    }

    /// What else has come to overlap the range of living sandboxes, which have routes in it themselves.
    fn overlap(&self, kept: &Sorted, nameservers: &[Ipv4Addr]) -> Option<(Ipv4Net, Occupied)> {
        let range = kept.range?;
        let is_kept = |occupied: &Occupied| {
            occupied.kind == OccupiedKind::Route && kept.links().any(|l| occupied.net == l.address.into())
        };
        let others: Vec<_> = self.occupied(nameservers).into_iter().filter(|o| !is_kept(o)).collect();
        range::conflict(&range, &others).map(|occupied| (range, occupied.clone()))
    }

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

fn warnings(
    names: &Names,
    chains: &str,
    resolver: &Resolver,
    overlap: Option<(Ipv4Net, Occupied)>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some((range, occupied)) = overlap {
        warnings.push(format!(
            "the range {range} of sandboxes that live on overlaps {occupied}: it is used on until a start without them"
        ));
    }
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

/// The range of living sandboxes.
fn kept_range(range: Ipv4Net) -> Result<(Ipv4Net, UnixDatagram), Refusal> {
    let until = Instant::now() + HELD_PATIENCE;
    loop {
        match reserve(range)? {
            Some(reservation) => return Ok((range, reservation)),
            None if Instant::now() >= until => return Err(Refusal::KeptRangeHeld { range }),
            None => thread::sleep(HELD_LOOK),
        }
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

/// Returns how many there were.
fn remove_stale_links(
    host: &mut Netlink,
    names: &Names,
    facts: &Facts,
    kept: &Sorted,
) -> Result<usize, Error> {
    let prefix = names.link_prefix();
    let is_stale = |link: &&Link| link.name.starts_with(&prefix) && !kept.has_link(&link.name);
    let stale: Vec<_> = facts.links.iter().filter(is_stale).collect();
    for link in &stale {
        tracing::info!(link = link.name, "removing a link that an earlier daemon left");
        remove_link(host, &link.name)?;
    }
    Ok(stale.len())
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
