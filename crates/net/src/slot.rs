//! What one sandbox gets: a namespace, and its end of a link if it may have one.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Mode;
use crate::kept::{KeptIds, KeptLink, KeptSlot};
use crate::maker::UserNamespace;
use crate::making::{Lease, Made};
use crate::worker::Door;

/// The network of one sandbox, and its user namespace if it has one. Dropping it has the link removed and the address
/// given back; the namespaces end with the last process and descriptor in them. Nothing of it is ever used again for
/// another sandbox, but the address and the ids, after a while.
///
/// It holds a descriptor of each namespace, and no other.
pub struct Slot {
    // Before what is held, so that it is closed first: the kernel then takes the namespace and the link in one go.
    netns: OwnedFd,
    held: Held,
    resolv_conf: Arc<str>,
}

/// What goes back when a slot ends.
struct Held {
    user: Option<UserNamespace>,
    lease: Option<Lease>,
    door: Arc<Door>,
}

impl Slot {
    /// Takes over what was made, and its lease.
    pub(crate) fn new(made: Made, door: Arc<Door>, resolv_conf: Arc<str>) -> Self {
        let Made { netns, user, lease } = made;
        Self { netns, held: Held { user, lease, door }, resolv_conf }
    }

    /// The namespace, to setns(2) into.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The user namespace that owns it; none where the slot was asked for without.
    pub fn user(&self) -> Option<&UserNamespace> {
        self.held.user.as_ref()
    }

    /// What it may reach.
    pub fn mode(&self) -> Mode {
        if self.held.lease.is_some() { Mode::Public } else { Mode::NoNetwork }
    }

    /// Its address; none without a network.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.held.lease.as_ref().map(|l| l.address)
    }

    /// Name of its link on the host; none without a network.
    pub fn link(&self) -> Option<&str> {
        self.held.lease.as_ref().map(|l| l.link.as_str())
    }

    /// What is to be written down of it, so that a later daemon can adopt it; see [`Options::keep`](crate::Options::keep).
    pub fn kept(&self) -> KeptSlot {
        let Held { user, lease, .. } = &self.held;
        let link = lease.as_ref().map(|lease| KeptLink {
            number: lease.number,
            name: lease.link.clone(),
            address: lease.address,
            range: lease.range,
        });
        KeptSlot { link, ids: user.as_ref().map(KeptIds::of) }
    }

    /// What its `/etc/resolv.conf` is to hold; empty without a network, where no name can be resolved.
    pub fn resolv_conf(&self) -> &str {
        if self.held.lease.is_some() { &self.resolv_conf } else { "" }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let ids = self.user.take().map(|user| user.lease);
        if let Some(lease) = &self.lease {
            self.door.give_back(lease.number, ids);
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("address", &self.address())
            .field("link", &self.link())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}
