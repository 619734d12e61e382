//! The network of one daemon: a handle to the threads that work for it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use crate::Mode;
use crate::error::{Error, Refusal};
use crate::host::Started;
use crate::names::Names;
use crate::shelf::PoolCounts;
use crate::slot::Slot;
use crate::worker::{self, Door, Taken};

/// What a network is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Short name of the daemon, unique on the machine and the same at every start of it: 1 to 8 of `[a-z0-9]`.
    pub instance: String,
    /// Addresses for sandboxes, between /17 and /30; one is looked for in [`crate::range::POOL`] when absent.
    pub range: Option<Ipv4Net>,
    /// Resolvers for sandboxes; the host's when empty.
    pub nameservers: Vec<Ipv4Addr>,
    /// The program nft; looked for in /usr/sbin, /sbin and `PATH` when absent.
    pub nft: Option<PathBuf>,
    /// Slots that are kept ready.
    pub pool: PoolSizes,
}

/// How many slots are kept ready, so that an attach need not wait until one is made.
///
/// A kind's slots are made after the first of that kind was asked for, in the background. On two processors (some of it
/// is per processor), one that is ready costs the kernel about 230 KiB when connected and 140 KiB when not, and the daemon
/// a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Slots of [`Mode::NoNetwork`]; 0 keeps none.
    pub isolated: usize,
    /// Slots of [`Mode::Public`]; 0 keeps none. Their addresses count as used.
    pub connected: usize,
    /// How far either grows while more are asked for at once, until half of them lie unused for half a minute.
    pub most: usize,
}

impl Default for PoolSizes {
    fn default() -> Self {
        Self { isolated: 8, connected: 8, most: 64 }
    }
}

/// A running network.
pub struct Network {
    door: Arc<Door>,
    public: Result<Ipv4Net, Arc<Refusal>>,
    warnings: Vec<String>,
}

impl Network {
    /// Starts a network in the network namespace of the calling thread: removes what a crashed daemon of the same
    /// instance left, and prepares the host for public sandboxes. Where the host cannot do these, the network
    /// starts all the same, and [`Network::public`] says why.
    ///
    /// # Errors
    ///
    /// A wrong instance or range, and leavings that cannot be removed.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let names = Names::new(&options.instance)?;
        let started = worker::spawn(names, options)?;
        let (door, Started { public, warnings }) = started.await.map_err(|_| Error::Stopped)??;
        Ok(Self { door, public, warnings })
    }

    /// A slot for one sandbox, from those that are ready or made now. It is the caller's from the moment that this returns: a call that is
    /// cancelled leaves nothing behind.
    ///
    /// # Errors
    ///
    /// [`Error::PublicRefused`] where this machine cannot do `public`, [`Error::NoFreeAddress`], and what the kernel
    /// refuses.
    pub async fn attach(&self, mode: Mode) -> Result<Slot, Error> {
        if mode == Mode::Public
            && let Err(refusal) = &self.public
        {
            return Err(Error::PublicRefused(Arc::clone(refusal)));
        }
        match self.door.take(mode)? {
            Taken::Ready(slot) => Ok(slot),
            Taken::Waiting(slot) => slot.await.map_err(|_| Error::Stopped)?,
        }
    }

    /// Figures of the slots that are kept ready.
    pub fn pool(&self, mode: Mode) -> PoolCounts {
        self.door.counts(mode)
    }

    /// The range of public sandboxes, or why this machine cannot have any.
    ///
    /// # Errors
    ///
    /// The reason why `public` is refused.
    pub fn public(&self) -> Result<Ipv4Net, &Arc<Refusal>> {
        self.public.as_ref().copied()
    }

    /// What will keep public sandboxes from working well though nothing refused: no resolver that they can reach, a
    /// firewall that drops what is forwarded.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Ends the network: removes every link, those of living slots too, and the nft table; calls after that find it
    /// [`Error::Stopped`]. A network that is dropped instead does the same after its last slot, without anybody to
    /// hear of a failure.
    ///
    /// # Errors
    ///
    /// Something could not be removed; the rest was. A network that was shut down before is no error.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.door.shut_down(reply);
        done.await.unwrap_or(Ok(()))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("public", &self.public).finish_non_exhaustive()
    }
}
