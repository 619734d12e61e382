//! Harbor's task format and a native runner for it: what `berth run` does, without Python.
//!
//! A task is a directory (`task.toml`, `instruction.md`, `environment/`, `solution/`, `tests/`). A job runs tasks, each in
//! a fresh sandbox, and writes its results in Harbor's own layout, so that `harbor view` opens them.
//!
//! ```text
//! JobOptions ──► task (read, check) ──► job (plan, record) ──► trial (phases) ──► env (calls to the daemon)
//!                                          │                      └─► reward, verdict
//!                                          └─► record, stats (Harbor's files)
//! ```
//!
//! What it refuses: everything of the format that it does not do yet (several steps, a separate verifier, compose,
//! allowlists, GPUs, MCP servers, collect hooks, ignore files) is an error before anything starts; nothing is
//! passed over. Values of the wrong type are errors with their line; unknown keys, which Harbor ignores, are warnings.
//!
//! How it fails: [`job::Error`] before trials start or when results cannot be written. What fails inside a trial is its
//! [`verdict::Verdict`], which tells a reward from a failure of the task and from one of the infrastructure: the last is
//! never graded.
//!
//! Start reading at [`job::run_job`], then `trial.rs`.

mod env;
pub mod job;
pub mod observer;
mod record;
mod reward;
mod stats;
pub mod task;
mod trial;
pub mod verdict;

pub use job::{Agent, JobOptions, JobOutcome, TrialOutcome, run_job};
pub use observer::{Event, Observer, Phase};
pub use verdict::{Failure, Verdict};
