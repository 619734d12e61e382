//! Where the network's pool gets its namespaces from: a range of ids of ours, and the launcher's helper that maps it.

use std::io;
use std::sync::Arc;

use berth_jail::{IdRange, Launcher};
use berth_net::{NamespaceMaker, Namespaces, UserNamespace};

use crate::ids::IdRanges;

/// Makes pairs of a user namespace and a network namespace that belongs to it.
pub(crate) struct Maker {
    pub(crate) launcher: Arc<Launcher>,
    pub(crate) ids: IdRanges,
}

impl NamespaceMaker for Maker {
    fn make(&self) -> io::Result<Namespaces> {
        let lease = self.ids.take().map_err(io::Error::other)?;
        let range = lease.range();
        let (first, count) = (range.first, range.count);
        let pair = self.launcher.make_namespaces(IdRange { first, count }).map_err(io::Error::other)?;
        let user = UserNamespace { fd: pair.user, first, count, lease: Box::new(lease) };
        Ok(Namespaces { net: pair.net, user: Some(user) })
    }
}
