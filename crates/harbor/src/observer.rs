//! What a job tells while it runs. Nothing in this crate prints.

use std::path::Path;

use berth_types::progress::Progress;
use berth_types::sandbox::QueuePlace;

use crate::job::TrialOutcome;

/// Where a trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Image and sandbox are being made.
    EnvironmentSetup,
    /// The task's readiness check runs.
    Healthcheck,
    /// The agent runs.
    AgentExecution,
    /// What the agent left is fetched.
    Collecting,
    /// The verifier runs.
    Verifier,
    /// The sandbox is taken down.
    Cleanup,
}

/// Something that happened in a job.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The tasks are read, the job's directory is there.
    JobStarted {
        /// Name of the job.
        job: &'a str,
        /// Its directory.
        dir: &'a Path,
        /// Trials in all.
        trials: usize,
    },
    /// A trial begins.
    TrialStarted {
        /// Name of the trial.
        trial: &'a str,
        /// Name of the task.
        task: &'a str,
    },
    /// A trial enters a phase.
    PhaseStarted {
        /// Name of the trial.
        trial: &'a str,
        /// The phase.
        phase: Phase,
    },
    /// The image of a task is being made; told once for all trials that wait for it.
    Image {
        /// Name of the trial that asked first.
        trial: &'a str,
        /// What goes on.
        progress: &'a Progress,
    },
    /// A trial's sandbox waits for room on the machine; told whenever its place changes.
    Queued {
        /// Name of the trial.
        trial: &'a str,
        /// Its place, and what is missing for the first.
        place: QueuePlace,
    },
    /// A trial ended; its results are on disk.
    TrialFinished {
        /// How.
        outcome: &'a TrialOutcome,
    },
}

/// Whoever wants to know. Called from the job's own tasks, so it must not block for long.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Nobody wants to know.
impl Observer for () {
    fn event(&self, _: Event<'_>) {}
}
