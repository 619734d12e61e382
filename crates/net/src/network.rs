//! The network of one daemon: a handle to the thread that owns it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ipnet::Ipv4Net;
use tokio::sync::oneshot;

use crate::Mode;
use crate::error::{Error, Refusal};
use crate::names::Names;
use crate::slot::Slot;
use crate::worker::{self, Command, Started};

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
}

/// A running network.
#[derive(Debug)]
pub struct Network {
    worker: Sender<Command>,
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
        let (commands, started) = worker::spawn(names, options)?;
        let Started { public, warnings } = started.await.map_err(|_| Error::Stopped)??;
        Ok(Self { worker: commands, public, warnings })
    }

    /// Makes a slot for one sandbox. It is the caller's from the moment that this returns: a call that is
    /// cancelled leaves nothing behind.
    ///
    /// # Errors
    ///
    /// [`Error::PublicRefused`] where this machine cannot do `public`, [`Error::NoFreeAddress`], and what the kernel
    /// refuses.
    pub async fn attach(&self, mode: Mode) -> Result<Slot, Error> {
        let (reply, slot) = oneshot::channel();
        let command = match mode {
            Mode::NoNetwork => Command::Isolate { reply },
            Mode::Public => match &self.public {
                Ok(_) => Command::Attach { reply, worker: self.worker.clone() },
                Err(refusal) => return Err(Error::PublicRefused(Arc::clone(refusal))),
            },
        };
        self.worker.send(command).map_err(|_| Error::Stopped)?;
        slot.await.map_err(|_| Error::Stopped)?
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
        if self.worker.send(Command::Shutdown { reply }).is_err() {
            return Ok(());
        }
        done.await.unwrap_or(Ok(()))
    }
}
