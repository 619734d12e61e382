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

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::Mode;
use crate::maker::UserNamespace;

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
