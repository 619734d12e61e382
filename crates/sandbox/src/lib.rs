//! One sandbox's life: made of disk, network, control groups and jail, spoken to through its guest, taken apart again.
//!
//! ```text
//!   node ──► trait Driver ──► ContainerDriver ── disk, net, jail::cgroup, jail ──► Machine ── guest::Guest ──► PID 1
//!                        (a microVM driver and a fake fit the same seam)
//! ```
//!
//! A start is a row of phases, each of which owns what it made; a start that fails or is dropped half-way gives all
//! of it back through the reaper. Nothing here knows HTTP or keeps records: that is the node's.
//!
//! A sandbox may outlive its daemon: what [`Machine::resume`] says of it is all that the next one needs to take it over
//! ([`ContainerDriver::start`]). Whatever nobody takes over is ended there.
//!
//! How it fails: [`Error`], always of the infrastructure. What a command in a sandbox does wrong is an
//! [`berth_types::exec::ExecStatus`], never an error.
//!
//! Start reading at [`driver`], then [`container`]; the guest's protocol is in [`guest`].

mod adopt;
pub mod container;
pub mod driver;
mod error;
mod etc;
pub mod guest;
pub mod ids;
mod line;
mod machine;
mod mounts;
mod namespaces;
mod parts;
mod phases;
mod reaper;
mod resume;
mod sockets;
mod stubs;

pub use container::ContainerDriver;
pub use driver::{
    Bind, Death, Disk, DiskFull, Driver, Features, Limits, Machine, Mount, MountSource, NetworkDoor,
    StartSpec,
};
pub use error::Error;
