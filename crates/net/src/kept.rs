//! Slots that outlive the daemon that made them: what is written down of one, and which of those that were written down
//! can be taken over. Pure: what the host's tables say comes in.
//!
//! ```text
//!   Slot::kept ──▶ the daemon's database ──▶ Options::keep ──sort──▶ fit ──────▶ link, address and rules stay
//!                                                             └────▶ unfit ────▶ the link is removed
//!                                                  Network::adopt ──▶ the slot, or why it is unfit
//! ```
//!
//! Sandboxes need nothing of the daemon to be kept in: rules, links and forwarding are the kernel's, and the table is
//! replaced in one transaction.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Mode;
use crate::addresses;
use crate::maker::UserNamespace;
use crate::making::Lease;
use crate::names::Names;
use crate::netlink::{Link, Route};
use crate::range;

/// What is written down of a [`Slot`](crate::Slot), for another daemon of the same instance to take it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptSlot {
    /// Its end on the host; none of a slot without a network.
    pub link: Option<KeptLink>,
    /// Ids of its user namespace, if it has one.
    pub ids: Option<KeptIds>,
}

/// The host's side of a connected slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptLink {
    /// Number of the slot, which is that of its address in the range.
    pub number: u32,
    /// Name of the link on the host.
    pub name: String,
    /// The sandbox's address.
    pub address: Ipv4Addr,
    /// The range of all sandboxes of that daemon.
    pub range: Ipv4Net,
}

/// Ids of a user namespace: `first..first + count` on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptIds {
    /// What root inside is on the host.
    pub first: u32,
    /// How many ids it has.
    pub count: u32,
}

impl KeptSlot {
    /// What it may reach.
    pub fn mode(&self) -> Mode {
        if self.link.is_some() { Mode::Public } else { Mode::NoNetwork }
    }
}

impl KeptIds {
    /// Those of a user namespace.
    pub(crate) fn of(user: &UserNamespace) -> Self {
        Self { first: user.first, count: user.count }
    }
}

impl fmt::Display for KeptSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.link {
            Some(KeptLink { name, address, .. }) => {
                write!(f, "the sandbox link {name} with address {address}")
            }
            None => write!(f, "the namespace of a sandbox without a network"),
        }
    }
}

impl fmt::Display for KeptIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = u64::from(self.first) + u64::from(self.count).saturating_sub(1);
        write!(f, "{}-{last}", self.first)
    }
}

/// Why a slot cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Its parts do not belong together, or to this instance.
    #[error("what was written down of it contradicts itself or is of another instance")]
    Garbled,
    /// Two slots of one number.
    #[error("another one with the same number was written down too")]
    Twice,
    /// The network has another range, configured or of other slots that are kept.
    #[error("its range {kept} is not the network's, {range}")]
    Range {
        /// The slot's.
        kept: Ipv4Net,
        /// The network's.
        range: Ipv4Net,
    },
    /// Its namespace has ended, or somebody removed the link.
    #[error("the link is gone")]
    Gone,
    /// Somebody changed the host's routes.
    #[error("the host does not route the address to the link")]
    NoRoute,
    /// The network was not started with it, or it was adopted or abandoned before.
    #[error("the network does not keep it, or not any more")]
    Unknown,
    /// The namespace that was given is not the one that the link leads to.
    #[error("the link leads to another network namespace")]
    Elsewhere,
    /// The user namespace that was given, or that none was given, does not fit what was written down.
    #[error("its ids are {}, those of the user namespace given are {}", or_none(*kept), or_none(*given))]
    Ids {
        /// As they were written down.
        kept: Option<KeptIds>,
        /// Of the namespace that was given.
        given: Option<KeptIds>,
    },
}

fn or_none(ids: Option<KeptIds>) -> String {
    ids.map_or_else(|| "none".to_owned(), |ids| ids.to_string())
}

impl KeptLink {
    /// As slots have it.
    pub(crate) fn lease(&self) -> Lease {
        let Self { number, name, address, range } = self.clone();
        Lease { number, address, range, link: name }
    }

    /// Whether it is one that a network of these names can have made.
    fn is_sound(&self, names: &Names) -> bool {
        let Self { number, name, address, range } = self;
        range::is_usable(*range)
            && (1..=addresses::last(*range)).contains(number)
            && *address == addresses::address(*range, *number)
            && *name == names.link(*number)
    }
}

/// Slots that were written down, sorted by whether they can be taken over. Those without a link are in neither part.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// The range of those that can.
    pub(crate) range: Option<Ipv4Net>,
    /// Those that can, by number.
    pub(crate) fit: BTreeMap<u32, KeptSlot>,
    /// The others, and why.
    pub(crate) unfit: Vec<(KeptSlot, Unfit)>,
}

impl Sorted {
    /// Whether a link of this name is kept.
    pub(crate) fn has_link(&self, name: &str) -> bool {
        self.links().any(|link| link.name == name)
    }

    /// The links that are kept.
    pub(crate) fn links(&self) -> impl Iterator<Item = &KeptLink> {
        self.fit.values().filter_map(|kept| kept.link.as_ref())
    }
}

/// Sorts `keep` by what the host has. The range is the `configured` one; else it is that of the first slot that fits in
/// every other way, since living sandboxes cannot be given other addresses.
pub(crate) fn sort(
    names: &Names,
    configured: Option<Ipv4Net>,
    keep: &[KeptSlot],
    links: &[Link],
    routes: &[Route],
) -> Sorted {
    let mut sorted = Sorted { range: configured.map(|range| range.trunc()), ..Sorted::default() };
    for kept in keep {
        let Some(link) = &kept.link else { continue };
        match judge(names, &sorted, link, links, routes) {
            Ok(()) => {
                sorted.range = Some(link.range);
                sorted.fit.insert(link.number, kept.clone());
            }
            Err(unfit) => sorted.unfit.push((kept.clone(), unfit)),
        }
    }
    if sorted.fit.is_empty() {
        sorted.range = None;
    }
    sorted
}

fn judge(
    names: &Names,
    sorted: &Sorted,
    kept: &KeptLink,
    links: &[Link],
    routes: &[Route],
) -> Result<(), Unfit> {
    if !kept.is_sound(names) {
        return Err(Unfit::Garbled);
    }
    if let Some(range) = sorted.range.filter(|range| *range != kept.range) {
        return Err(Unfit::Range { kept: kept.range, range });
    }
    if sorted.fit.contains_key(&kept.number) {
        return Err(Unfit::Twice);
    }
    let link = links.iter().find(|link| link.name == kept.name).ok_or(Unfit::Gone)?;
    let leads_there = |r: &Route| r.destination == Ipv4Net::from(kept.address) && r.link == Some(link.index);
    if routes.iter().any(leads_there) { Ok(()) } else { Err(Unfit::NoRoute) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u32, range: &str) -> KeptSlot {
        let range: Ipv4Net = range.parse().unwrap();
        let name = Names::new("a").unwrap().link(number);
        let link = KeptLink { number, name, address: addresses::address(range, number), range };
        KeptSlot { link: Some(link), ids: Some(KeptIds { first: 100_000, count: 65_536 }) }
    }

    /// Sorts with these slots' links on the host, each with its route.
    fn sort_among(configured: Option<&str>, keep: &[KeptSlot], there: &[KeptSlot]) -> Sorted {
        let there = || there.iter().filter_map(|kept| kept.link.as_ref()).zip(10..);
        let links: Vec<_> =
            there().map(|(kept, index)| Link { index, name: kept.name.clone(), mtu: 1500 }).collect();
        let route = |(kept, index): (&KeptLink, u32)| Route {
            destination: kept.address.into(),
            link: Some(index),
            priority: 0,
        };
        let routes: Vec<_> = there().map(route).collect();
        let configured = configured.map(|range| range.parse().unwrap());
        sort(&Names::new("a").unwrap(), configured, keep, &links, &routes)
    }

    fn reasons(sorted: Sorted) -> Vec<Unfit> {
        sorted.unfit.into_iter().map(|(_, unfit)| unfit).collect()
    }

    #[test]
    fn living_slots_decide_the_range_and_dead_ones_do_not() {
        let (living, dead) = (slot(3, "10.1.0.0/24"), slot(4, "10.2.0.0/24"));
        let sorted = sort_among(None, &[dead.clone(), living.clone()], std::slice::from_ref(&living));
        assert_eq!(sorted.range, living.link.as_ref().map(|link| link.range));
        assert!(sorted.fit.contains_key(&3) && sorted.has_link("btha-003") && !sorted.has_link("btha-004"));
        assert_eq!(reasons(sorted), [Unfit::Gone]);
        assert_eq!(sort_among(None, &[dead], &[]).range, None);
    }

    #[test]
    fn a_configured_range_that_changed_keeps_none_of_another() {
        let kept = slot(3, "10.1.0.0/24");
        let keep = std::slice::from_ref(&kept);
        assert_eq!(sort_among(Some("10.1.0.9/24"), keep, keep).fit.len(), 1);
        let sorted = sort_among(Some("10.9.0.0/24"), keep, keep);
        assert_eq!((sorted.range, sorted.fit.len()), (None, 0));
        let [Unfit::Range { kept, range }] = reasons(sorted)[..] else { panic!("another reason") };
        assert_eq!((kept.to_string(), range.to_string()), ("10.1.0.0/24".into(), "10.9.0.0/24".into()));
    }

    #[test]
    fn what_does_not_belong_together_is_not_believed() {
        let good = slot(3, "10.1.0.0/24");
        let with = |change: &dyn Fn(&mut KeptLink)| {
            let mut kept = good.clone();
            change(kept.link.as_mut().unwrap());
            kept
        };
        let garbled = [
            with(&|link| link.number = 4),
            with(&|link| link.number = u32::MAX),
            with(&|link| link.name = "bthb-003".into()),
            with(&|link| link.address = Ipv4Addr::new(10, 1, 0, 4)),
            with(&|link| link.range = "10.1.0.0/8".parse().unwrap()),
            with(&|link| link.range = "10.1.0.1/24".parse().unwrap()),
            with(&|link| (link.number, link.address) = (0, Ipv4Addr::new(10, 1, 0, 0))),
        ];
        let there = std::slice::from_ref(&good);
        for kept in garbled {
            assert_eq!(
                reasons(sort_among(None, std::slice::from_ref(&kept), there)),
                [Unfit::Garbled],
                "{kept:?}"
            );
        }
        assert_eq!(reasons(sort_among(None, &[good.clone(), good.clone()], there)), [Unfit::Twice]);
        let links = [Link { index: 10, name: "btha-003".into(), mtu: 1500 }];
        let elsewhere = Route { destination: "10.1.0.3/32".parse().unwrap(), link: Some(9), priority: 0 };
        let sorted = sort(&Names::new("a").unwrap(), None, there, &links, &[elsewhere]);
        assert_eq!(reasons(sorted), [Unfit::NoRoute]);
    }

    #[test]
    fn what_is_written_down_is_read_back() {
        let kept = slot(37, "10.208.16.0/20");
        let text = serde_json::to_string(&kept).unwrap();
        insta::assert_snapshot!(text, @r#"{"link":{"number":37,"name":"btha-011","address":"10.208.16.37","range":"10.208.16.0/20"},"ids":{"first":100000,"count":65536}}"#);
        assert_eq!(serde_json::from_str::<KeptSlot>(&text).unwrap(), kept);
        assert!(serde_json::from_str::<KeptSlot>(&text.replace("ids", "idz")).is_err());
    }
}
