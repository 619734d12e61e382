//! Plans and performs one container: namespaces, root, mounts, capabilities, control groups, first process.
//!
//! ```text
//!  daemon (any thread)             launcher (single-threaded helper)        child = the sandbox's PID 1
//!  ───────────────────             ─────────────────────────────────        ───────────────────────────
//!  Spec ─ plan() ─► Plan ─ launch ─► clone3(CLONE_PARENT, namespaces) ────► performs the plan
//!                        ◄─ pid, pidfd ─┘                                   becomes the guest program
//!                        ◄───────────── report pipe: stubs or {step, path, errno}; end-of-file = runs
//! ```
//!
//! A daemon has many threads and may not fork and go on running Rust code, so a helper process of one thread does it;
//! `CLONE_PARENT` makes the daemon the parent all the same. The child does its own mounting after the helper has
//! turned to the next request, so launches run side by side.
//!
//! A container with ids of its own needs a user namespace, which [`Launcher::make_namespaces`] makes ahead, by another
//! helper, together with a network namespace that belongs to it.
//!
//! Nothing ties a container to the process that started it but its guest's stream: whoever knows its [`Identity`] can
//! take it over ([`Process::adopt`]), and [`cgroup::remove_others`] ends those that nobody does.
//!
//! What it refuses: to open anything of a sandbox's tree before the old root is gone (see [`mod@plan`] for why), to skip a
//! limit whose controller is missing, to start a sandbox with more layers than the kernel's overlayfs takes, to touch control
//! groups outside `berth/`.
//!
//! How it fails: [`plan::Error`] before anything happened; [`launcher::Error`] with step, path and cause, and nothing
//! left behind, for everything after; [`cgroup::Error`] likewise.
//!
//! Where to start reading: [`spec`], then [`mod@plan`], then `perform`.

pub mod capability;
pub mod cgroup;
pub mod doctor;
mod guest_image;
mod helper;
pub mod ids;
pub mod launcher;
mod maker;
mod message;
mod mountpoint;
mod mounts;
mod perform;
pub mod plan;
mod process;
mod root;
pub mod seccomp;
pub mod spec;
pub mod views;

pub use capability::Capability;
pub use doctor::doctor;
pub use guest_image::{GuestImage, GuestImageError};
pub use helper::launcher_main;
pub use ids::{IdRange, IdRangeError, NamespacePair};
pub use launcher::{Error, LAUNCHER_ARG, LaunchRequest, Launcher};
pub use plan::{Facts, Plan, plan};
pub use process::{AdoptError, Exit, Identity, Process};
pub use spec::Spec;
pub use views::Views;
