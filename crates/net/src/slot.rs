//! What one sandbox gets: a namespace, and its end of a link if it may have one.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Mode;
use crate::making::{Lease, Made};
use crate::worker::Door;

/// The network of one sandbox. Dropping it has the link removed and the address given back; the namespace ends with the
/// last process and descriptor in it. Nothing of it is ever used again for another sandbox, but the address, after a
/// while.
pub struct Slot {
    netns: OwnedFd,
    lease: Option<Lease>,
    resolv_conf: Arc<str>,
    door: Arc<Door>,
}

impl Slot {
    /// Takes over what was made, and its lease.
    pub(crate) fn new(made: Made, door: Arc<Door>, resolv_conf: Arc<str>) -> Self {
        let Made { netns, lease } = made;
        Self { netns, lease, resolv_conf, door }
    }

    /// The namespace, to setns(2) into.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// What it may reach.
    pub fn mode(&self) -> Mode {
        if self.lease.is_some() { Mode::Public } else { Mode::NoNetwork }
    }

    /// Its address; none without a network.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.lease.as_ref().map(|l| l.address)
    }

    /// Name of its link on the host; none without a network.
    pub fn link(&self) -> Option<&str> {
        self.lease.as_ref().map(|l| l.link.as_str())
    }

    /// What its `/etc/resolv.conf` is to hold; empty without a network, where no name can be resolved.
    pub fn resolv_conf(&self) -> &str {
        if self.lease.is_some() { &self.resolv_conf } else { "" }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(lease) = &self.lease {
            self.door.give_back(lease.number);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("address", &self.address())
            .field("link", &self.link())
            .finish_non_exhaustive()
    }
}
