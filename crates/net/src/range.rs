//! Which range of addresses a network hands out: the configured one, or one that nothing on the machine uses.
//!
//! Pure: the host's routes and addresses come in as [`Occupied`], a range or what is in its way goes out.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// Where a range is taken from when none is configured. Few private networks live in this corner of 10.0.0.0/8.
pub const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 208, 0, 0), 12);
/// Size of a range that is taken from the pool: 4094 sandboxes, 256 ranges.
pub const TAKEN_PREFIX: u8 = 20;
/// Largest and smallest range that can be configured: slot numbers end at 46655, and a /31 numbers nobody.
const CONFIGURABLE: std::ops::RangeInclusive<u8> = 17..=30;

/// Something on the host that a range must not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// The addresses that it covers.
    pub net: Ipv4Net,
    /// What it is.
    pub kind: OccupiedKind,
}

/// What occupies a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OccupiedKind {
    /// A route of the host, other than a default route.
    Route,
    /// An address of the host.
    Address,
    /// A resolver that sandboxes use.
    Resolver,
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            OccupiedKind::Route => write!(f, "the route to {}", self.net),
            OccupiedKind::Address => write!(f, "the address {}", self.net),
            OccupiedKind::Resolver => write!(f, "the resolver {}", self.net.addr()),
        }
    }
}

/// Whether a range can number sandboxes, and is written as ranges are.
pub(crate) fn is_usable(range: Ipv4Net) -> bool {
    CONFIGURABLE.contains(&range.prefix_len()) && range == range.trunc()
}

/// What of `occupied` overlaps `range`, if anything does.
pub fn conflict<'a>(range: &Ipv4Net, occupied: &'a [Occupied]) -> Option<&'a Occupied> {
    let overlaps = |net: &Ipv4Net| range.contains(&net.network()) || net.contains(&range.network());
    // A default route covers everything and says nothing about use.
    occupied.iter().find(|o| o.net.prefix_len() > 0 && overlaps(&o.net))
}

/// Checks a range that somebody configured.
///
/// # Errors
///
/// [`Error::BadRange`] and [`Error::RangeOverlaps`].
pub fn check_configured(range: Ipv4Net, occupied: &[Occupied]) -> Result<Ipv4Net, Error> {
    if !CONFIGURABLE.contains(&range.prefix_len()) {
        return Err(Error::BadRange { range });
    }
    match conflict(&range.trunc(), occupied) {
        Some(occupied) => Err(Error::RangeOverlaps { range, occupied: occupied.clone() }),
        None => Ok(range.trunc()),
    }
}

/// All ranges of the pool, in the order in which `instance` tries them: from a place of its own onwards, so that
/// daemons rarely meet and one daemon mostly gets the same range again.
pub fn candidates(instance: &str) -> impl Iterator<Item = Ipv4Net> {
    let count = 1usize << (TAKEN_PREFIX - POOL.prefix_len());
    let digest = Sha256::digest(instance.as_bytes());
    let first = usize::from(u16::from_be_bytes([digest[0], digest[1]])) % count;
    let pool = u32::from(POOL.network());
    (0..count).map(move |i| {
        let index = ((first + i) % count) as u32;
        Ipv4Net::new_assert(Ipv4Addr::from(pool + (index << (32 - TAKEN_PREFIX))), TAKEN_PREFIX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(net: &str) -> Occupied {
        Occupied { net: net.parse().unwrap(), kind: OccupiedKind::Route }
    }

    #[test]
    fn candidates_cover_the_pool_once_and_start_at_a_place_of_the_instance() {
        let all: Vec<_> = candidates("a1b2").collect();
        assert_eq!(all.len(), 256);
        assert!(all.iter().all(|n| POOL.contains(n)));
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 256);
        assert_ne!(candidates("a1b2").next(), candidates("a1b3").next());
    }

    #[test]
    fn conflicts_are_found_in_both_directions_but_not_with_the_default_route() {
        let range = "10.208.16.0/20".parse().unwrap();
        assert_eq!(conflict(&range, &[route("0.0.0.0/0"), route("10.208.0.0/20")]), None);
        for net in ["10.0.0.0/8", "10.208.31.7/32", "10.208.16.0/20", "10.208.24.0/21"] {
            assert_eq!(conflict(&range, &[route("192.168.0.0/16"), route(net)]), Some(&route(net)));
        }
    }

    #[test]
    fn a_configured_range_is_checked() {
        let occupied = [route("172.16.0.0/12")];
        let check = |net: &str| check_configured(net.parse().unwrap(), &occupied).map_err(|e| e.to_string());
        assert_eq!(check("10.9.1.7/24"), Ok("10.9.1.0/24".parse().unwrap()));
        insta::assert_snapshot!(check("172.29.0.0/20").unwrap_err(), @"network range 172.29.0.0/20 overlaps the route to 172.16.0.0/12 of this machine");
        insta::assert_snapshot!(check("10.0.0.0/8").unwrap_err(), @"network range 10.0.0.0/8 is not between /17 and /30");
    }
}
