//! Ranges of user and group ids, and the namespaces that they are mapped in.

use std::fmt;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// Fewest ids of a range: distributions give names to numbers up to 65534, `nobody`.
const COUNT_MIN: u32 = 65_536;

/// Ids of the host that belong to one container, users and groups alike: `first` is its 0, `first + 1` its 1, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// The lowest, which is root inside.
    pub first: u32,
    /// How many, at least 65,536.
    pub count: u32,
}

/// A range that cannot be a container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{count} ids from {first} cannot be a sandbox's: it takes at least {COUNT_MIN}, none of them 0 or above 4294967294"
)]
pub struct IdRangeError {
    /// As it was given.
    pub first: u32,
    /// As it was given.
    pub count: u32,
}

impl IdRange {
    /// Refuses a range with the host's root in it, one past the last id (4294967294; the number after it means "none"),
    /// and one too small for a distribution.
    pub fn check(&self) -> Result<(), IdRangeError> {
        // The sum is the first id that is not in it any more.
        let fits = self.first.checked_add(self.count).is_some();
        if self.first > 0 && self.count >= COUNT_MIN && fits {
            return Ok(());
        }
        Err(IdRangeError { first: self.first, count: self.count })
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, (u64::from(self.first) + u64::from(self.count)).saturating_sub(1))
    }
}

/// A user namespace, and a network namespace that belongs to it. Both live as long as something has them open or is in
/// them.
#[derive(Debug)]
pub struct NamespacePair {
    /// The user namespace, its ids mapped.
    pub user: OwnedFd,
    /// The network namespace: empty, its loopback down. Root of the user namespace is its administrator.
    pub net: OwnedFd,
}
