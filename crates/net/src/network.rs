//! The network of one daemon: a handle to the threads that work for it.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use crate::Mode;
use crate::error::{Error, PoolBound, Refusal};
use crate::host::Started;
use crate::kept::KeptSlot;
use crate::maker::{NamespaceMaker, UserNamespace};
use crate::names::Names;
use crate::shelf::PoolCounts;
use crate::slot::Slot;
use crate::worker::{self, Door, Taken};

/// What a network is started with.
#[derive(Clone, Default)]
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
    /// Makes the namespaces of slots with a user namespace; without one there are no such slots.
    pub maker: Option<Arc<dyn NamespaceMaker>>,
    /// Slots of sandboxes that an earlier daemon of this instance left alive, to be adopted: they stay as they are, and
    /// so does their range where none is configured. Anything else that it left is removed. See [`Network::adopt`].
    pub keep: Vec<KeptSlot>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, range, nameservers, nft, pool, maker, keep } = self;
        f.debug_struct("Options")
            .field("instance", instance)
            .field("range", range)
            .field("nameservers", nameservers)
            .field("nft", nft)
            .field("pool", pool)
            .field("maker", &maker.is_some())
            .field("keep", keep)
            .finish()
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotSpec {
    /// What it may reach.
    pub mode: Mode,
    /// Whether it is to have a user namespace. A slot without, of a network that can make them, is made when it is
    /// asked for; else both are kept ready.
    pub user_namespace: bool,
}

/// How far a kind's slots that are ready may ever grow: each costs up to two descriptors, and a daemon may have 20,000.
pub const MOST_KEPT: usize = 1024;

/// How many slots are kept ready, so that an attach need not wait until one is made.
///
/// A kind's slots are made after the first of that kind was asked for, in the background. On two processors (some of it
/// is per processor), one that is ready costs the kernel about 230 KiB when connected and 140 KiB when not, and the daemon
/// a descriptor, or two with a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Slots of [`Mode::NoNetwork`]; 0 keeps none.
    pub isolated: usize,
    /// Slots of [`Mode::Public`]; 0 keeps none. Their addresses count as used.
    pub connected: usize,
    /// How far either grows while more are asked for at once, until half of them lie unused for half a minute; no
    /// less than either, and no more than [`MOST_KEPT`].
    pub most: usize,
}

impl PoolSizes {
    fn check(&self) -> Result<(), Error> {
        let Self { isolated, connected, most } = *self;
        if most > MOST_KEPT {
            return Err(Error::BadPool { key: "most", value: most, bound: PoolBound::MostKept });
        }
        for (key, value) in [("isolated", isolated), ("connected", connected)] {
            if value > most {
                return Err(Error::BadPool { key, value, bound: PoolBound::Most(most) });
            }
        }
        Ok(())
    }
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
    /// instance left, but for what is to be kept ([`Options::keep`]), and prepares the host for public sandboxes. Where the host cannot do these, the network
    /// starts all the same, and [`Network::public`] says why.
    ///
    /// # Errors
    ///
    /// A wrong instance, range or size of the pool, and leavings that cannot be removed.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let names = Names::new(&options.instance)?;
        options.pool.check()?;
        let started = worker::spawn(names, options)?;
        let (door, Started { public, warnings }) = started.await.map_err(|_| Error::Stopped)??;
        Ok(Self { door, public, warnings })
    }

    /// A slot for one sandbox, from those that are ready or made now. It is the caller's from the moment that this
    /// returns: a call that is cancelled leaves nothing behind.
    ///
    /// # Errors
    ///
    /// [`Error::PublicRefused`] where this machine cannot do `public`, [`Error::NoMaker`] where the network has nobody
    /// to make user namespaces and [`Error::MakePair`] where that fails, [`Error::NoFreeAddress`], and what the kernel
    /// refuses. What was asked for never turns into less.
    pub async fn attach(&self, spec: SlotSpec) -> Result<Slot, Error> {
        if spec.mode == Mode::Public
            && let Err(refusal) = &self.public
        {
            return Err(Error::PublicRefused(Arc::clone(refusal)));
        }
        match self.door.take(spec)? {
            Taken::Ready(slot) => Ok(slot),
            Taken::Waiting(slot) => slot.await.map_err(|_| Error::Stopped)?,
        }
    }

    /// Takes over a slot of [`Options::keep`], whose sandbox lives in `netns` and, where it has one, in the user
    /// namespace `user`. It is then a slot like any other. One that cannot be taken over is given up: its link is
    /// removed.
    ///
    /// # Errors
    ///
    /// [`Error::Adopt`] with the reason; [`Error::PublicRefused`] where this machine cannot do `public` any more; and what
    /// the kernel refuses.
    pub async fn adopt(
        &self,
        kept: KeptSlot,
        netns: OwnedFd,
        user: Option<UserNamespace>,
    ) -> Result<Slot, Error> {
        if kept.link.is_some()
            && let Err(refusal) = &self.public
        {
            return Err(Error::PublicRefused(Arc::clone(refusal)));
        }
        match self.door.adopt(kept, netns, user)? {
            Taken::Ready(slot) => Ok(slot),
            Taken::Waiting(slot) => slot.await.map_err(|_| Error::Stopped)?,
        }
    }

    /// Gives up a slot of [`Options::keep`] whose sandbox is gone: its link is removed, its address rests. One that was
    /// adopted, or that is not known, is left alone.
    pub fn abandon(&self, kept: &KeptSlot) {
        self.door.abandon(kept);
    }

    /// Figures of the slots that are kept ready: those with a user namespace where the network has a maker of such.
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

    /// Ends the network and leaves what is in use as it is, for the next one of this instance to adopt: the links of
    /// living slots, their addresses and the nft table. Slots that were ready for nobody are removed, and a slot that is
    /// dropped from now on leaves its link to the kernel, which takes it with the namespace.
    ///
    /// # Errors
    ///
    /// Something that nobody uses could not be removed; the next start does it. A network that has ended before is no
    /// error.
    pub async fn leave(&self) -> Result<(), Error> {
        self.door.leave().await.unwrap_or(Ok(()))
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("public", &self.public).finish_non_exhaustive()
    }
}
