//! `berth run TASK…`: Harbor's trials, without Python.

mod report;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use berth_client::Client;
use berth_harbor::{Agent, JobOptions, JobOutcome, Verdict, job};
use berth_types::error::Kind;
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::Session;
use crate::arguments::{factor, key_value};
use crate::failure::Failure;
use report::{Report, render, render_failures};
use view::JobView;

/// Exit code after an interrupt: 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Arguments of `berth run`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 when every trial got a reward or failed by its own doing; 69 when the infrastructure \
failed in any, which is never graded; 130 when interrupted (once: trials save what they have and their sandboxes go; \
twice: at once)."
)]
pub struct Run {
    /// Task directories, or directories of task directories
    #[arg(required = true)]
    tasks: Vec<PathBuf>,
    /// Who solves the task: its own solution, or nobody
    #[arg(long, short, value_enum, default_value_t = BuiltIn::Oracle, conflicts_with = "agent_cmd")]
    agent: BuiltIn,
    /// A command as the agent, run by the sandbox's shell with the instruction in BERTH_INSTRUCTION
    #[arg(long, value_name = "COMMAND")]
    agent_cmd: Option<String>,
    /// Trials of each task
    #[arg(long, short = 'k', value_name = "N", default_value_t = 1, value_parser = count)]
    attempts: usize,
    /// Trials at once
    #[arg(long, short = 'n', value_name = "N", default_value_t = 4, value_parser = count)]
    concurrent: usize,
    /// Directory of results
    #[arg(long, value_name = "DIR", default_value = "jobs")]
    jobs_dir: PathBuf,
    /// Name of the job; the present time by default
    #[arg(long, value_name = "NAME")]
    job_name: Option<String>,
    /// Build the tasks' images anew, whatever the cache holds
    #[arg(long)]
    force_build: bool,
    /// Keep the sandboxes when their trials have ended
    #[arg(long)]
    no_delete: bool,
    /// Run tasks without their limit of storage where the daemon's disk engine cannot enforce it
    #[arg(long)]
    allow_unenforced_storage: bool,
    /// Factor on all of the tasks' time limits
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor)]
    timeout_multiplier: f64,
    /// Environment variable for the tasks' sandboxes; may be repeated
    #[arg(long = "env", short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BuiltIn {
    /// The task's own solution
    Oracle,
    /// Nobody: shows that a task does not solve itself
    Nop,
}

fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| "expected a whole number, at least 1".to_owned())
}

impl Run {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let options = self.into_options();
        // A mistake in a task is told before a daemon is started for it.
        for warning in &job::check_job(&options).map_err(Failure::Job)?.warnings {
            session.output.warning(&warning.to_string());
        }
        let client = session.client().await?;
        let view = JobView::new(&session.output);
        let cancel = options.cancel.clone();
        let Some(outcome) = run_until_interrupted(&client, options, &view, &cancel).await else {
            return Ok(ExitCode::from(INTERRUPTED));
        };
        drop(view);
        let outcome = outcome.map_err(Failure::Job)?;
        session.output.note(&render_failures(&outcome));
        session.output.result(&Report::from(&outcome), |_| render(&outcome))?;
        Ok(exit_code(&outcome))
    }

    fn into_options(self) -> JobOptions {
        let agent = match (self.agent_cmd, self.agent) {
            (Some(command), _) => Agent::Command(command),
            (None, BuiltIn::Oracle) => Agent::Oracle,
            (None, BuiltIn::Nop) => Agent::Nop,
        };
        JobOptions {
            attempts: self.attempts,
            concurrency: self.concurrent,
            jobs_dir: self.jobs_dir,
            job_name: self.job_name,
            timeout_multiplier: self.timeout_multiplier,
            delete: !self.no_delete,
            force_build: self.force_build,
            allow_unenforced_storage: self.allow_unenforced_storage,
            env: self.env.into_iter().collect(),
            ..JobOptions::new(self.tasks, agent)
        }
    }
}

/// Runs the job. The first interrupt ends it in good order, the second at once: then there is no outcome.
async fn run_until_interrupted(
    client: &Client,
    options: JobOptions,
    view: &JobView,
    cancel: &CancellationToken,
) -> Option<Result<JobOutcome, job::Error>> {
    let mut job = std::pin::pin!(berth_harbor::run_job(client, options, view));
    tokio::select! {
        outcome = &mut job => return Some(outcome),
        () = interrupt() => cancel.cancel(),
    }
    view.tell("interrupted: ending the trials; once more to leave at once");
    tokio::select! {
        outcome = &mut job => Some(outcome),
        () = interrupt() => None,
    }
}

/// Returns when the user, or by SIGTERM whoever runs this for them, asks for the end; never where signals cannot be
/// had, since then the default action ends this process.
async fn interrupt() {
    let asked = async |kind| match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = asked(SignalKind::interrupt()) => {}
        () = asked(SignalKind::terminate()) => {}
    }
}

fn exit_code(outcome: &JobOutcome) -> ExitCode {
    if outcome.cancelled {
        ExitCode::from(INTERRUPTED)
    } else if outcome.trials.iter().any(|trial| matches!(trial.verdict, Verdict::Infrastructure(_))) {
        ExitCode::from(Kind::Unavailable.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}
