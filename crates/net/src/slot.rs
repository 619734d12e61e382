//! What one sandbox gets: a namespace, and its end of a link if it may have one.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::Mode;
use crate::worker::Command;

/// The network of one sandbox. Dropping it removes the link and gives the address back; the namespace ends with the last
/// process and descriptor in it.
pub struct Slot {
    netns: OwnedFd,
    connection: Option<Connection>,
}

/// A way out of the namespace.
pub(crate) struct Connection {
    pub(crate) number: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) link: String,
    pub(crate) resolv_conf: Arc<str>,
    pub(crate) worker: Sender<Command>,
}

impl Slot {
    pub(crate) fn isolated(netns: OwnedFd) -> Self {
        Self { netns, connection: None }
    }

    pub(crate) fn connected(netns: OwnedFd, connection: Connection) -> Self {
        Self { netns, connection: Some(connection) }
    }

    /// The namespace, to setns(2) into.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// What it may reach.
    pub fn mode(&self) -> Mode {
        if self.connection.is_some() { Mode::Public } else { Mode::NoNetwork }
    }

    /// Its address; none without a network.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.connection.as_ref().map(|c| c.address)
    }

    /// Name of its link on the host; none without a network.
    pub fn link(&self) -> Option<&str> {
        self.connection.as_ref().map(|c| c.link.as_str())
    }

    /// What its `/etc/resolv.conf` is to hold; empty without a network, where no name can be resolved.
    pub fn resolv_conf(&self) -> &str {
        self.connection.as_ref().map_or("", |c| &c.resolv_conf)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            // A network that is shut down has removed the link already.
            let _ = connection.worker.send(Command::Detach { number: connection.number });
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
