//! Networks of sandboxes: a namespace for each, and for those that may, a way out of it.
//!
//! ```text
//!   sandbox's namespace            the host                                   the world
//!   ┌──────────────────┐  veth    ┌──────────────────────────────────┐
//!   │ lo, eth0 x/32  ──┼──────────┼─ bth<instance>-<n>   route x/32  │
//!   │ default via      │          │        │                         │
//!   │   169.254.1.1    │          │   table inet berth_<instance>    │
//!   └──────────────────┘          │        │ masquerade              ├── uplink ──▶
//!                                 └────────┴─────────────────────────┘
//! ```
//!
//! A [`Network`] belongs to one daemon, named by its *instance*; every name that it leaves in the host's tables carries
//! that instance, so several daemons share a machine and a crashed one's leavings are found again. It hands out
//! [`Slot`]s. No bridge: each sandbox has a route of its own, so sandboxes have no link in common. Neither side asks for
//! the other's hardware address (both neighbour entries are permanent), so `proxy_arp`, `arp_ignore` and `rp_filter`
//! of the host do not matter.
//!
//! # What a sandbox may reach
//!
//! * [`Mode::NoNetwork`]: its own loopback (IPv4 and IPv6), which is all that its namespace holds.
//! * [`Mode::Public`]: what the host can reach by IPv4, private networks included, as the host's own address; but not
//!   the host itself, no other sandbox (of any instance), and not 169.254.0.0/16 (metadata services), of which only port
//!   53 of the resolvers in use is open. Nobody but the host can start a connection to a sandbox. There is no IPv6:
//!   it is switched off on `eth0`, and the host drops it and has no address of it on the link.
//!
//! Inside, ports below 1024 and ping are for everybody and not for root alone, as in other container engines.
//!
//! # User namespaces
//!
//! Where the network is started with a [`NamespaceMaker`], a slot can have a user namespace, which owns its network
//! namespace: [`SlotSpec`], [`Slot::user`]. The maker's namespaces come bare, and are set up here from outside, with the
//! host's capabilities. The ids go back to whoever lent them when the slot's link has gone, and not before. A maker that
//! fails fails the attach ([`Error::MakePair`]): no slot without a user namespace ever takes the place of one with.
//!
//! # Slots that are ready
//!
//! A slot takes the kernel 1 to 2 ms to make, and 15 to 30 ms to remove. So some are made ahead of demand
//! ([`PoolSizes`], [`Network::pool`]), and removing is nobody's wait: the kernel is left to take the link with its
//! namespace, many at once. A slot that was kept is what a new one is: nothing has run in its namespace, its address
//! counts as used, and the rules know links by their names' beginning only. A used slot never returns to the pool. Of a
//! network with a maker, slots with a user namespace are what is kept, with ids that count as used meanwhile.
//! `examples/measure.rs` shows what it is good for.
//!
//! # Sandboxes that outlive their daemon
//!
//! What keeps a sandbox connected and confined is the kernel's: the link, the routes, the table, forwarding. So a sandbox
//! whose daemon has died or stopped ([`Network::leave`]) goes on as it was, able to do no more and no less. The next
//! daemon is told what to keep ([`Options::keep`], from [`Slot::kept`]), removes everything else, has its own rules in
//! force without a gap, and takes the slots over one by one ([`Network::adopt`]) or gives them up
//! ([`Network::abandon`]). The range is theirs, even if another one would be chosen now; where another one is configured,
//! or public is refused by now, they are cut off and the adoption says why. Of a slot that is adopted the host's side is
//! checked; addresses inside are the sandbox's own to change.
//!
//! # What it refuses
//!
//! A configured range that overlaps anything the host routes to or has an address in ([`Error::RangeOverlaps`]); and,
//! when the machine cannot do `public` (no `nft`, no right to use it, no free range), every public slot, with the reason
//! ([`Refusal`]): a mode never turns into another one. `no-network` works without any of these.
//!
//! # What it changes on the host, and what it cannot
//!
//! `net.ipv4.ip_forward` is switched on and stays on, as another program may have come to need it meanwhile. Rules of
//! other firewalls stay as they are, and nftables lets any table drop a packet, whatever ours accepts: where a forward
//! chain drops by default (Docker, ufw and firewalld set that up), public sandboxes have no way out until the interfaces
//! `bth*` are let through there. [`Network::warnings`] names such chains; those of the legacy iptables are not seen.
//! The host's resolvers and MTU are read once, at the start.
//!
//! # How it fails
//!
//! [`Error`] for what was asked, [`Refusal`] for what the machine cannot do. Nothing half-made stays: a link lives as long
//! as its [`Slot`], whatever became of the call that asked for it. Where a process outlives its slot in the namespace,
//! the link is removed by name, as soon as the kernel has passed it over or takes none any more for half a second.
//! Namespaces are descriptors only, so that the slots of a daemon that is killed go with it, but
//! for those that a process lives in; its nft table stays until its next start. That no slot could be made ahead of demand is logged, and whoever attaches then gets the error if it
//! lasts.
//!
//! Start reading at [`Network::start`], then `worker` (the threads), [`ruleset`] (pure) and [`range`] (pure).

mod addresses;
mod doomed;
mod error;
mod home;
mod host;
mod kept;
mod maker;
mod making;
mod names;
mod netlink;
mod network;
mod nft;
pub mod range;
mod resolver;
pub mod ruleset;
mod shelf;
mod slot;
mod switches;
mod worker;

#[cfg(test)]
mod maker_tests;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod world_tests;

pub use berth_types::sandbox::NetworkMode as Mode;
pub use error::{Error, PoolBound, Refusal};
pub use kept::{KeptIds, KeptLink, KeptSlot, Unfit};
pub use maker::{NamespaceMaker, Namespaces, UserNamespace};
pub use network::{MOST_KEPT, Network, Options, PoolSizes, SlotSpec};
pub use shelf::PoolCounts;
pub use slot::Slot;
