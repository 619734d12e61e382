//! Who makes the namespaces of a slot, where each slot is to have a user namespace too.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

/// What gives a range of ids back when it is dropped.
pub(crate) type IdLease = Box<dyn Send + Sync>;

/// Makes namespaces for slots. A process with threads cannot make a user namespace, so whoever can does it: a process
/// beside the daemon.
///
/// Two threads of a network call it, each for one slot at a time.
pub trait NamespaceMaker: Send + Sync {
    /// Makes a network namespace that nothing has run in, and the user namespace that owns it.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from that. The attach that waits for the slot then fails with
    /// [`Error::MakePair`](crate::Error::MakePair).
    fn make(&self) -> io::Result<Namespaces>;
}

/// What a [`NamespaceMaker`] made.
#[derive(Debug)]
pub struct Namespaces {
    /// The network namespace, as the kernel makes it: with a loopback that is down, and nothing else.
    pub net: OwnedFd,
    /// The user namespace that owns it.
    pub user: Option<UserNamespace>,
}

/// A user namespace with its maps written: ids `0..count` inside are `first..first + count` on the host, of users and
/// groups alike.
pub struct UserNamespace {
    /// The namespace, to setns(2) into.
    pub fd: OwnedFd,
    /// What root inside is on the host.
    pub first: u32,
    /// How many ids it has.
    pub count: u32,
    /// Gives the ids back when dropped, which happens when the slot's link is gone.
    pub lease: Box<dyn Send + Sync>,
}

impl fmt::Debug for UserNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fd, first, count, lease: _ } = self;
        f.debug_struct("UserNamespace")
            .field("fd", fd)
            .field("first", first)
            .field("count", count)
            .finish_non_exhaustive()
    }
}
