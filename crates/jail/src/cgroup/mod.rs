//! Control groups: limits, accounting and the sure death of a sandbox, with version 1 and version 2.
//!
//! ```text
//!   v1, one directory a hierarchy                   v2
//!   <cpu>/berth/<i>                guest            <base>/berth/<i>/<sandbox>       share of the machine
//!   <cpu>/berth/<i>/<sandbox>      commands, quota         ├─ guest                  the guest
//!   <cpuacct>/berth/<i>/<sandbox>  guest                   ├─ commands               the limits
//!           └─ x-<n>               one an exec             │    └─ x-<n>             one an exec, made by the guest
//!   <memory>/berth/<i>/<sandbox>   guest                   └─ rescue                 made when commands is full
//!           ├─ commands            limit              └─ x-<n>
//!           └─ rescue              made when commands is full
//!   <pids>/berth/<i>               guest
//!   <pids>/berth/<i>/<sandbox>     limit
//!           └─ x-<n>               one an exec
//! ```
//!
//! The guest is outside of whatever limits commands, so that no command can starve, block or kill it, and a sandbox
//! that is full can still be entered. What the guest itself may use is bounded by the sandbox's own memory group.
//!
//! `<base>` is the root of the mount or, when the daemon runs in a systemd unit with `Delegate=yes`, that unit's group;
//! then the daemon itself moves to `<base>/berth/daemon`, since a group that distributes controllers may hold no
//! process. Nothing else outside `berth/` is changed, but for controllers enabled for the children of `<base>`.
//!
//! A limit whose controller is missing is an error, never skipped. Accounting whose controller is missing is absent.
//!
//! Where to start reading: [`Facts`], then [`plan`], then [`Cgroup`].

mod facts;
mod live;
mod plan;
mod sweep;

use std::io;
use std::path::PathBuf;

pub use facts::{Facts, Hierarchy, Texts, Unified};
pub use live::{Cgroup, Usage, remove_instance};
pub use plan::{Limits, Op, Plan, Reserve, Version, plan};
pub use sweep::{Survivor, remove_others};

/// Why something about control groups failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of the files that tell what the machine has cannot be read.
    #[error("cannot read {}", path.display())]
    Detect {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A limit was asked for whose controller this machine does not offer.
    #[error("cannot limit {limit}: this machine offers no {controller} control group")]
    ControllerMissing {
        /// The controller.
        controller: &'static str,
        /// What was to be limited.
        limit: &'static str,
    },
    /// Not a number of cores, or less than a hundredth.
    #[error("a limit of {cpus} cpus is not possible, the least is 0.01")]
    Cpus {
        /// As it was given.
        cpus: f64,
    },
    /// Not a number of cores that can be a share.
    #[error("a request of {cpus} cpus is not possible, it must be 0.01 to 100")]
    CpuRequest {
        /// As it was given.
        cpus: f64,
    },
    /// Not a whole number of pages: the kernel would round it.
    #[error("an amount of memory of {bytes} bytes is not possible, it must be a positive multiple of 4096")]
    Memory {
        /// As it was given.
        bytes: u64,
    },
    /// No process at all.
    #[error("a limit of 0 processes is not possible")]
    Pids,
    /// Not of the form `berth/<instance>/<sandbox>`, or with a reserved name.
    #[error("control group {path:?} is not of the form berth/<instance>/<sandbox>")]
    Path {
        /// As it was given.
        path: String,
    },
    /// A group cannot be made.
    #[error("cannot make the control group {}", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of a group cannot be written.
    #[error("cannot write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A group, or a file of one, cannot be given to the guest.
    #[error("cannot give {} to user {owner}", path.display())]
    Give {
        /// Directory or file.
        path: PathBuf,
        /// Id on the host.
        owner: u32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of a group cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file of a group does not hold what the kernel documents.
    #[error("unexpected content of {}: {text:?}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// A process of a group cannot be killed.
    #[error("cannot kill process {pid} of {}", path.display())]
    Kill {
        /// The group.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Processes are left although all were killed.
    #[error("{count} processes of {} survive being killed", path.display())]
    Survivors {
        /// The group.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A group cannot be removed.
    #[error("cannot remove the control group {}", path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}
