//! Control groups: limits, accounting and the sure death of a sandbox, with version 1 and version 2.
//!
//! ```text
//!   v1, one directory a hierarchy                v2, one directory
//!   <cpu>/berth/<instance>/<sandbox>             <base>/berth/<instance>/<sandbox>   limits, PID 1
//!   <memory>/berth/<instance>/<sandbox>                                      └─ …     one an exec, made by the guest
//!   <pids>/berth/<instance>/<sandbox>/…          no controller is enabled below <sandbox>, so it may hold processes
//! ```
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

use std::io;
use std::path::PathBuf;

pub use facts::{Facts, Hierarchy, Texts, Unified};
pub use live::{Cgroup, Usage, remove_instance};
pub use plan::{Limits, Op, Plan, Version, plan};

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
    /// Not a whole number of pages: the kernel would round it.
    #[error("a memory limit of {bytes} bytes is not possible, it must be a positive multiple of 4096")]
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
