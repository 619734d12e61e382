//! A job: every task, attempted `attempts` times, `concurrency` trials at once, recorded in Harbor's layout.
//!
//! ```text
//! <jobs_dir>/<job_name>/  config.json  lock.json  result.json  job.log
//!   <task>__<7 random>/   config.json  lock.json  result.json  trial.log  [exception.txt]
//!     agent/  verifier/  artifacts/
//! ```

mod plan;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use berth_client::Client;
use berth_types::error::Kind;
use berth_types::exec::{ExecStatus, ExitReason};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::env::Platform;
use crate::observer::{Event, Observer};
use crate::record::{
    self, AgentContext, AgentInfo, ExceptionInfo, JobLock, JobResult, LocalTaskId, Time, Timing, TrialResult,
    VerifierResult,
};
use crate::stats::{Finished, JobStats};
use crate::task::{self, Solver, Warning};
use crate::trial::{self, Facts, JobContext, TrialPlan};
use crate::verdict::{Exception, Verdict};

pub use plan::LoadedTasks;

/// Who tries to solve the tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// The task's own solution.
    Oracle,
    /// Nobody.
    Nop,
    /// A line for the sandbox's shell, with the instruction in `BERTH_INSTRUCTION`.
    Command(String),
}

impl Agent {
    /// Name in the records.
    pub fn name(&self) -> &'static str {
        match self {
            Agent::Oracle => "oracle",
            Agent::Nop => "nop",
            Agent::Command(_) => "command",
        }
    }

    fn version(&self) -> &'static str {
        match self {
            // Harbor's own version of its two utility agents, whose behaviour this is.
            Agent::Oracle | Agent::Nop => "1.0.0",
            Agent::Command(_) => env!("CARGO_PKG_VERSION"),
        }
    }

    fn solver(&self) -> Solver {
        match self {
            Agent::Oracle => Solver::Oracle,
            Agent::Nop => Solver::Nop,
            Agent::Command(_) => Solver::Foreign,
        }
    }
}

/// What a job is to do.
#[derive(Clone, Debug)]
pub struct JobOptions {
    /// Task directories, or directories of task directories.
    pub tasks: Vec<PathBuf>,
    /// Who tries to solve them.
    pub agent: Agent,
    /// Trials of each task.
    pub attempts: usize,
    /// Trials at once.
    pub concurrency: usize,
    /// Where jobs are kept.
    pub jobs_dir: PathBuf,
    /// Name of the job; the present time when absent.
    pub job_name: Option<String>,
    /// Factor on every limit of the tasks.
    pub timeout_multiplier: f64,
    /// Whether sandboxes go when their trial has ended.
    pub delete: bool,
    /// Build images anew, once for each task, whatever the cache holds.
    pub force_build: bool,
    /// Run tasks without their limit of storage where the daemon's disk engine cannot enforce it.
    pub allow_unenforced_storage: bool,
    /// Added to, and winning over, the tasks' `[environment.env]`.
    pub env: BTreeMap<String, String>,
    /// Ends the job: trials save what they have and delete their sandboxes.
    pub cancel: CancellationToken,
}

impl JobOptions {
    /// One attempt of each task, with Harbor's defaults.
    pub fn new(tasks: Vec<PathBuf>, agent: Agent) -> Self {
        Self {
            tasks,
            agent,
            attempts: 1,
            concurrency: 4,
            jobs_dir: PathBuf::from("jobs"),
            job_name: None,
            timeout_multiplier: 1.0,
            delete: true,
            force_build: false,
            allow_unenforced_storage: false,
            env: BTreeMap::new(),
            cancel: CancellationToken::new(),
        }
    }
}

/// Why a job could not be run. What fails inside a trial is that trial's [`Verdict`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task cannot be run.
    #[error("cannot run task {path}")]
    Task {
        /// The task's directory.
        path: PathBuf,
        /// Why.
        source: Box<task::Error>,
    },
    /// A directory holds no task, or none was given.
    #[error("no task found in {path}: expected task.toml in it, or in a directory in it")]
    NoTasks {
        /// The directory.
        path: PathBuf,
    },
    /// A directory of tasks cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// An option is out of range.
    #[error("{option} is {found}: expected {expected}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A job of this name is there already.
    #[error("job directory {path} exists already")]
    JobExists {
        /// The directory.
        path: PathBuf,
    },
    /// Results cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Task { source, .. } => source.kind(),
            Error::NoTasks { .. } => Kind::NotFound,
            Error::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Error::Option { .. } => Kind::User,
            Error::JobExists { .. } => Kind::Conflict,
            Error::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => Kind::Capacity,
            Error::Read { .. } | Error::Write { .. } => Kind::Config,
        }
    }
}

/// What a job came to.
#[derive(Clone, Debug)]
pub struct JobOutcome {
    /// The job's id in its records.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where its results lie.
    pub dir: PathBuf,
    /// Its trials, in the order in which they were planned.
    pub trials: Vec<TrialOutcome>,
    /// Mean of each reward over the trials that are graded: one whose agent or verifier failed counts as 0,
    /// one whose infrastructure failed does not count. Absent where nothing was graded.
    pub means: BTreeMap<String, f64>,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// From start to end.
    pub duration: Duration,
    /// What is odd in the tasks' files.
    pub warnings: Vec<Warning>,
}

/// What a trial came to.
#[derive(Clone, Debug)]
pub struct TrialOutcome {
    /// Its name.
    pub name: String,
    /// Its task's name.
    pub task: String,
    /// Where its results lie.
    pub dir: PathBuf,
    /// Reward, failure of the task, or failure of the infrastructure.
    pub verdict: Verdict,
    /// What was recorded as its failure; an agent's timeout may stand beside a reward.
    pub exception: Option<Exception>,
    /// Exit code of the agent's command, where it gave one.
    pub agent_exit_code: Option<i32>,
    /// Time of each phase that was entered.
    pub timings: Timings,
    /// From start to end.
    pub duration: Duration,
}

/// Time of each phase; absent where it was not entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Image and sandbox.
    pub environment_setup: Option<Duration>,
    /// The agent's installation.
    pub agent_setup: Option<Duration>,
    /// The agent's run.
    pub agent_execution: Option<Duration>,
    /// Verification.
    pub verifier: Option<Duration>,
}

/// Run a job on a daemon.
///
/// All tasks are read and checked before the first trial starts. Dropping the future abandons the trials that run;
/// their sandboxes go when their leases run out. To end it in good order, use [`JobOptions::cancel`].
pub async fn run_job(
    client: &Client,
    options: JobOptions,
    observer: &dyn Observer,
) -> Result<JobOutcome, Error> {
    run(client, options, observer).await
}

/// Read and check the tasks of a job without running it.
pub fn check_job(options: &JobOptions) -> Result<LoadedTasks, Error> {
    plan::load(options)
}

async fn run<P: Platform>(
    platform: &P,
    options: JobOptions,
    observer: &dyn Observer,
) -> Result<JobOutcome, Error> {
    let loaded = plan::load(&options)?;
    let job = plan::Job::create(&options, &loaded)?;
    let context = JobContext {
        platform,
        observer,
        cancel: options.cancel.child_token(),
        job: job.name.clone(),
        agent: options.agent.clone(),
        timeout_multiplier: options.timeout_multiplier,
        delete: options.delete,
        force_build: options.force_build,
        allow_unenforced_storage: options.allow_unenforced_storage,
    };
    let board = Board::new(&job, &options)?;
    observer.event(Event::JobStarted { job: &job.name, dir: &job.dir, trials: job.trials.len() });
    let running = futures_util::stream::iter(job.trials.iter().enumerate()).for_each_concurrent(
        options.concurrency,
        |(index, plan)| {
            let (context, board) = (&context, &board);
            async move {
                if let Err(error) = run_trial(context, board, index, plan).await {
                    // Results that cannot be written are no results: the others stop, too.
                    context.cancel.cancel();
                    board.fail(error);
                }
            }
        },
    );
    running.await;
    board.finish(&job, loaded.warnings.clone(), options.cancel.is_cancelled())
}

async fn run_trial<P: Platform>(
    context: &JobContext<'_, P>,
    board: &Board,
    index: usize,
    plan: &TrialPlan<'_>,
) -> Result<(), Error> {
    // A trial that was not begun is left pending, as in Harbor.
    if context.cancel.is_cancelled() {
        return Ok(());
    }
    board.started()?;
    let facts =
        trial::run(context, plan).await.map_err(|source| Error::Write { path: plan.dir.clone(), source })?;
    let result = trial_result(context, plan, &facts);
    let path = plan.dir.join("result.json");
    record::write_json(&path, &result).map_err(|source| Error::Write { path, source })?;
    let outcome = outcome(plan, facts);
    board.finished(index, &outcome, plan)?;
    context.observer.event(Event::TrialFinished { outcome: &outcome });
    board.keep(index, outcome);
    Ok(())
}

fn trial_result<P: Platform>(
    context: &JobContext<'_, P>,
    plan: &TrialPlan<'_>,
    facts: &Facts,
) -> TrialResult {
    let task = &plan.task.task;
    let metadata = facts.agent_exit.as_ref().map(|exit| agent_metadata(&context.agent, exit));
    let metadata = metadata.filter(|metadata| !metadata.is_empty());
    TrialResult {
        id: plan.id,
        task_name: task.name.clone(),
        trial_name: plan.config.trial_name.clone(),
        trial_uri: record::file_uri(&plan.dir),
        task_id: LocalTaskId { path: task.path.clone() },
        source: plan.task.source.clone(),
        task_checksum: task.checksum.clone(),
        config: plan.config.clone(),
        agent_info: AgentInfo {
            name: context.agent.name().to_owned(),
            version: context.agent.version().to_owned(),
            model_info: None,
        },
        agent_result: facts.agent_execution.map(|_| AgentContext { metadata, ..AgentContext::default() }),
        verifier_result: facts.rewards.clone().map(|rewards| VerifierResult { rewards }),
        verifier_environment_mode: "shared",
        exception_info: facts.exception.as_ref().map(ExceptionInfo::from),
        started_at: facts.started_at,
        finished_at: Some(facts.finished_at),
        environment_setup: facts.environment_setup,
        agent_setup: facts.agent_setup,
        agent_execution: facts.agent_execution,
        verifier: facts.verifier,
        step_results: None,
    }
}

/// What Harbor has no field for: the exit code of a command, and which of the sandbox's limits the agent met.
fn agent_metadata(agent: &Agent, exit: &ExecStatus) -> BTreeMap<String, Value> {
    let mut metadata = BTreeMap::new();
    if matches!(agent, Agent::Command(_)) {
        metadata.insert("exit_code".to_owned(), Value::from(exit.exit_code));
    }
    if exit.reason == ExitReason::OutOfMemory {
        metadata.insert("reason".to_owned(), json!(exit.reason));
    }
    if !exit.limits_hit.is_empty() {
        metadata.insert("limits_hit".to_owned(), json!(exit.limits_hit));
    }
    metadata
}

fn outcome(plan: &TrialPlan<'_>, facts: Facts) -> TrialOutcome {
    let length = |timing: Option<Timing>| timing.as_ref().and_then(Timing::duration);
    let failure = facts.exception.as_ref().map(|exception| exception.failure);
    let whole = Timing { started_at: facts.started_at, finished_at: Some(facts.finished_at) };
    TrialOutcome {
        name: plan.config.trial_name.clone(),
        task: plan.task.task.name.clone(),
        dir: plan.dir.clone(),
        verdict: Verdict::of(facts.rewards.as_ref(), failure),
        exception: facts.exception,
        agent_exit_code: facts.agent_exit.map(|exit| exit.exit_code),
        timings: Timings {
            environment_setup: length(facts.environment_setup),
            agent_setup: length(facts.agent_setup),
            agent_execution: length(facts.agent_execution),
            verifier: length(facts.verifier),
        },
        duration: whole.duration().unwrap_or_default(),
    }
}

/// The job's `result.json`, kept up to date while trials come and go.
struct Board {
    id: Uuid,
    path: PathBuf,
    agent: &'static str,
    total: usize,
    started_at: Time,
    state: Mutex<BoardState>,
}

#[derive(Default)]
struct BoardState {
    running: usize,
    finished: Vec<Finished>,
    outcomes: BTreeMap<usize, TrialOutcome>,
    error: Option<Error>,
}

impl Board {
    fn new(job: &plan::Job<'_>, options: &JobOptions) -> Result<Self, Error> {
        let board = Board {
            id: job.id,
            path: job.dir.join("result.json"),
            agent: options.agent.name(),
            total: job.trials.len(),
            started_at: Time::now(),
            state: Mutex::default(),
        };
        let locks = job.trials.iter().map(|trial| trial.lock.clone()).collect();
        let lock = JobLock::new(board.started_at, options.concurrency, locks);
        let path = job.dir.join("lock.json");
        record::write_json(&path, &lock).map_err(|source| Error::Write { path, source })?;
        board.write(&BoardState::default(), None)?;
        Ok(board)
    }

    fn started(&self) -> Result<(), Error> {
        let mut state = self.lock();
        state.running += 1;
        self.write(&state, None)
    }

    fn finished(&self, index: usize, outcome: &TrialOutcome, plan: &TrialPlan<'_>) -> Result<(), Error> {
        let rewards = match &outcome.verdict {
            Verdict::Reward(rewards) => Some(rewards.clone()),
            _ => None,
        };
        let dataset = plan.task.source.as_deref().unwrap_or("adhoc");
        let mut state = self.lock();
        state.running -= 1;
        state.finished.push(Finished {
            trial: outcome.name.clone(),
            task: outcome.task.clone(),
            eval: format!("{}__{dataset}", self.agent),
            rewards,
            failure: outcome.exception.as_ref().map(|exception| exception.failure),
        });
        let line = log_line(index, outcome);
        append(&self.path.with_file_name("job.log"), &line)
            .map_err(|source| Error::Write { path: self.path.with_file_name("job.log"), source })?;
        self.write(&state, None)
    }

    fn keep(&self, index: usize, outcome: TrialOutcome) {
        self.lock().outcomes.insert(index, outcome);
    }

    fn fail(&self, error: Error) {
        self.lock().error.get_or_insert(error);
    }

    fn finish(
        self,
        job: &plan::Job<'_>,
        warnings: Vec<Warning>,
        cancelled: bool,
    ) -> Result<JobOutcome, Error> {
        let finished_at = Time::now();
        let mut state = std::mem::take(&mut *self.lock());
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        self.write(&state, Some(finished_at))?;
        let trials: Vec<TrialOutcome> = state.outcomes.into_values().collect();
        let whole = Timing { started_at: self.started_at, finished_at: Some(finished_at) };
        Ok(JobOutcome {
            id: job.id,
            name: job.name.clone(),
            dir: job.dir.clone(),
            means: means(&trials),
            trials,
            cancelled,
            duration: whole.duration().unwrap_or_default(),
            warnings,
        })
    }

    fn write(&self, state: &BoardState, finished_at: Option<Time>) -> Result<(), Error> {
        let result = JobResult {
            id: self.id,
            started_at: self.started_at,
            updated_at: Time::now(),
            finished_at,
            n_total_trials: self.total,
            stats: JobStats::of(&state.finished, self.total, state.running, finished_at.is_some()),
        };
        record::write_json(&self.path, &result)
            .map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BoardState> {
        // Nothing panics while it is held; if it did, the counts would still be whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn means(trials: &[TrialOutcome]) -> BTreeMap<String, f64> {
    let graded: Vec<&TrialOutcome> = trials
        .iter()
        .filter(|trial| matches!(trial.verdict, Verdict::Reward(_) | Verdict::TaskFailed(_)))
        .collect();
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for trial in &graded {
        if let Verdict::Reward(rewards) = &trial.verdict {
            for (name, reward) in rewards {
                *sums.entry(name.clone()).or_default() += reward.as_f64().unwrap_or_default();
            }
        }
    }
    if sums.is_empty() && !graded.is_empty() {
        sums.insert("reward".to_owned(), 0.0);
    }
    sums.into_iter().map(|(name, sum)| (name, sum / graded.len() as f64)).collect()
}

fn log_line(index: usize, outcome: &TrialOutcome) -> String {
    let verdict = match (&outcome.verdict, &outcome.exception) {
        (Verdict::Reward(rewards), _) => serde_json::to_string(rewards).unwrap_or_default(),
        (_, Some(exception)) => exception.failure.harbor_name().to_owned(),
        (_, None) => "no reward".to_owned(),
    };
    let now = jiff::Timestamp::now();
    format!("{now:.3} trial {} ({}): {verdict} in {:.2?}\n", index + 1, outcome.name, outcome.duration)
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}
