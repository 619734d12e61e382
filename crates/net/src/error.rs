//! What can go wrong: [`Error`] for a call, [`Refusal`] for what the machine as it is cannot do.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::kept::{KeptSlot, Unfit};
use crate::network::MOST_KEPT;
use crate::range::Occupied;

/// What bounds a size of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolBound {
    /// The configured `most`.
    Most(usize),
    /// [`MOST_KEPT`].
    MostKept,
}

impl fmt::Display for PoolBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolBound::Most(most) => write!(f, "most = {most}"),
            PoolBound::MostKept => write!(f, "{MOST_KEPT}"),
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The instance does not fit the names of links.
    #[error("network instance {instance:?} is not 1 to 8 of [a-z0-9]")]
    BadInstance {
        /// As it was given.
        instance: String,
    },
    /// The configured range cannot number sandboxes.
    #[error("network range {range} is not between /17 and /30")]
    BadRange {
        /// As it was configured.
        range: Ipv4Net,
    },
    /// The configured range is in use on this machine.
    #[error("network range {range} overlaps {occupied} of this machine")]
    RangeOverlaps {
        /// As it was configured.
        range: Ipv4Net,
        /// What uses it.
        occupied: Occupied,
    },
    /// A size of the pool is larger than what bounds it.
    #[error("network pool size {key} = {value} is above {bound}")]
    BadPool {
        /// Which size.
        key: &'static str,
        /// As it was configured.
        value: usize,
        /// What it may be at most, and why.
        bound: PoolBound,
    },
    /// Another daemon hands out addresses of the configured range.
    #[error("network range {range} is in use by another berth daemon")]
    RangeTaken {
        /// As it was configured.
        range: Ipv4Net,
    },
    /// This machine cannot do `public`, for the reason in the source.
    #[error("network mode public is not available on this machine")]
    PublicRefused(#[source] Arc<Refusal>),
    /// A sandbox's network cannot be taken over from the daemon before this one.
    #[error("could not take over {kept}")]
    Adopt {
        /// What was written down of it.
        kept: Box<KeptSlot>,
        /// Why.
        #[source]
        source: Unfit,
    },
    /// Every address of the range is in use or was until a minute ago.
    #[error("no free address in network range {range}: {attached} in use, {resting} resting after use")]
    NoFreeAddress {
        /// The range.
        range: Ipv4Net,
        /// Addresses of living sandboxes.
        attached: usize,
        /// Addresses freed less than a minute ago.
        resting: usize,
    },
    /// Making a sandbox's network namespace failed.
    #[error("could not make a network namespace")]
    MakeNamespace(#[source] io::Error),
    /// Making a user namespace and the network namespace that it owns failed.
    #[error("could not make the user namespace and the network namespace of a sandbox")]
    MakePair(#[source] io::Error),
    /// What was to make both namespaces made one of them only, which is not what was asked for.
    #[error("a sandbox was to have a user namespace, and a network namespace without one was made for it")]
    MadeWithoutUser,
    /// A slot with a user namespace was asked for, of a network that was started without a maker of such.
    #[error("this network makes sandboxes without user namespaces only")]
    NoMaker,
    /// A network namespace that was made elsewhere cannot be entered.
    #[error("could not enter the network namespace made for a sandbox")]
    EnterNamespace(#[source] io::Error),
    /// A switch of a new namespace cannot be set.
    #[error("could not set /proc/{path} in a new network namespace")]
    Setting {
        /// The switch's file, beneath /proc.
        path: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The switches of network namespaces cannot be reached.
    #[error("could not open /proc for the switches of network namespaces")]
    OpenSwitches(#[source] io::Error),
    /// The tables of a new namespace cannot be reached.
    #[error("could not open a netlink socket in a new network namespace")]
    OpenInside(#[source] io::Error),
    /// Bringing up the loopback of a new namespace failed.
    #[error("could not bring up the loopback interface of a new network namespace")]
    Loopback(#[source] io::Error),
    /// Connecting a sandbox failed.
    #[error("could not {step} for the sandbox link {link} with address {address}")]
    Connect {
        /// What was being done.
        step: &'static str,
        /// The link's name on the host.
        link: String,
        /// The sandbox's address.
        address: Ipv4Addr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Reading the host's links, addresses or routes failed.
    #[error("could not read the host's {what} by netlink")]
    ReadHost {
        /// Which table.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A link that a crashed daemon left cannot be removed.
    #[error("could not remove the network link {link}")]
    RemoveLink {
        /// Its name.
        link: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The nft table cannot be removed.
    #[error("could not remove the nft table {table}")]
    RemoveTable {
        /// Its name.
        table: String,
        /// Why.
        #[source]
        source: Arc<Refusal>,
    },
    /// The thread that owns the network cannot be started.
    #[error("could not start the network's thread")]
    Spawn(#[source] io::Error),
    /// The network was shut down.
    #[error("the network is shut down")]
    Stopped,
}

impl Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::RangeOverlaps { .. } | Error::RangeTaken { .. } | Error::BadRange { .. } => Some(
                "choose another range, for example 172.29.0.0/20, or none: berth then looks for one".into(),
            ),
            Error::PublicRefused(refusal) => refusal.hint(),
            Error::Adopt { source: Unfit::Range { kept, .. }, .. } => Some(format!(
                "sandboxes cannot change their address: configure the range {kept} until they have ended"
            )),
            Error::NoFreeAddress { .. } => Some("configure a larger network range".into()),
            Error::BadPool { bound: PoolBound::Most(most), key, .. } => {
                Some(format!("set most to at least the size of {key}, or {key} to at most {most}"))
            }
            Error::BadPool { key, .. } => Some(format!("set {key} to at most {MOST_KEPT}")),
            Error::MakePair(_) => Some(
                "user namespaces may be switched off (user.max_user_namespaces) or all in use; without them \
                 sandboxes are less isolated, and have to be asked for so"
                    .into(),
            ),
            Error::MakeNamespace(_) => Some("the daemon needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN)".into()),
            _ => None,
        }
    }
}

/// Why a machine cannot do `public`.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no `nft`.
    #[error("the program {program} was not found")]
    NftMissing {
        /// What was looked for.
        program: PathBuf,
    },
    /// `nft` cannot be run.
    #[error("could not run nft to {action}")]
    NftRun {
        /// What it was to do.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// `nft` did not do what it was told.
    #[error("nft refused to {action}: {stderr}")]
    NftRefused {
        /// What it was to do.
        action: &'static str,
        /// What it said, in one line.
        stderr: String,
    },
    /// Each range that would have been taken overlaps something.
    #[error("every range of {from} that berth would take is in use, the last one tried by {occupied}")]
    NoFreeRange {
        /// Where ranges are taken from.
        from: Ipv4Net,
        /// What is in the way of the last candidate.
        occupied: Occupied,
    },
    /// Each range that is free of routes is held by another daemon.
    #[error("every free range of {from} is held by another berth daemon")]
    RangesHeld {
        /// Where ranges are taken from.
        from: Ipv4Net,
    },
    /// The range of sandboxes that live on is held by another daemon.
    #[error("the range {range} of sandboxes that live on is held by another berth daemon")]
    KeptRangeHeld {
        /// The range.
        range: Ipv4Net,
    },
    /// The reservation of a range failed.
    #[error("could not reserve the range {range}")]
    Reserve {
        /// The range.
        range: Ipv4Net,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Forwarding cannot be switched on.
    #[error("could not switch on forwarding in {path}")]
    Forwarding {
        /// The sysctl's file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Refusal {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Refusal::NftMissing { .. } => "install nftables, for example: apt-get install nftables",
            Refusal::NftRefused { .. } | Refusal::Forwarding { .. } => {
                "the daemon needs CAP_NET_ADMIN in the host's network namespace, and a kernel with nf_tables"
            }
            Refusal::NoFreeRange { .. } | Refusal::RangesHeld { .. } => {
                "configure a network range that this machine does not route to"
            }
            Refusal::NftRun { .. } | Refusal::Reserve { .. } | Refusal::KeptRangeHeld { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
