//! Dockerfile → image: syntax → instructions → graph of stages → plan → solve.
//!
//! ```text
//!  text ── syntax ──► statements ── instruction ──► typed ── graph ──► stages
//!                                                                        │ + base images, context, args
//!                                                                        ▼
//!                    image ◄── solve (through a Runner) ◄───────────── plan: steps with keys
//! ```
//!
//! Everything up to the plan is pure but for reading the Dockerfile and the copied files' bytes; only
//! [`build`] acts, and only through the [`runner::Runner`] that the node fills. The crate knows neither sandboxes nor
//! stores.
//!
//! It builds Docker's Dockerfile syntax, the current one. What no build gets (the machine's network, its devices, an SSH
//! agent) it refuses, naming file and line and what to do instead; nothing is ever skipped. It never follows a symbolic
//! link out of the build context.
//!
//! It fails with an [`Error`]: what the author of the Dockerfile can mend ([`fault::Fault`], with its place and an
//! excerpt), a command that failed ([`Error::StepFailed`]), or the machine's failure; [`Error::kind`] tells which.
//!
//! Start reading at [`plan`], then `solve`.

pub mod archive;
mod chmod;
mod config;
pub mod context;
mod error;
mod excerpt;
pub mod expand;
pub mod fault;
pub mod graph;
pub mod ignore;
pub mod instruction;
mod key;
mod lint;
pub mod pattern;
pub mod plan;
pub mod runner;
mod solve;
pub mod source;
pub mod syntax;
mod variables;

pub use error::{Error, Needed, Needs};
pub use key::Digest;
pub use solve::{
    ContextSource, DockerfileSource, Outcome, ReplayOutcome, Request, base, build, content_key,
    default_parallel, replay,
};
pub use variables::Environment;
