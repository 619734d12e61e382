//! One trial: the phases of Harbor's single-step trial, as calls to Berth.
//!
//! ```text
//! environment  lease → image (built once for all trials of a task) → sandbox → log directories → loose files
//! healthcheck  until it passes
//! agent        oracle: solution up, run │ nop │ command
//! collect      /logs/agent down → artifacts down
//! verifier     old rewards away → tests up → run → /logs/verifier down → reward
//! cleanup      the lease is released, and with it the sandbox goes, whatever happened before
//! ```
//!
//! Cancelling drops the phase that runs; the exec that it held is killed by the daemon. The sandbox hangs on a lease that
//! this process renews, so that it goes also when this process is killed.

mod agent;
mod artifacts;
mod log;
mod queue;
mod verifier;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_types::exec::{Command, ExecRequest, ExecStatus, ExitReason};
use berth_types::files::{ArchiveOut, ArchiveReport, FsRequest};
use berth_types::image::{BasePull, BuildImage, Image, PullImage, PullPolicy};
use berth_types::sandbox::{CreateSandbox, Resources, Sandbox, Unenforced};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::env::Platform;
use crate::job::Agent;
use crate::observer::{Event, Observer, Phase};
use crate::record::{self, Time, Timing, TrialConfig, TrialLock};
use crate::task::{Healthcheck, ImageSource, Task};
use crate::verdict::{Exception, Failure, Rewards};
use log::TrialLog;
use queue::Queued;

/// What a trial says whose command failed on a machine without room.
const MACHINE_DISK_FULL: &str = "a command failed while the disk of the daemon's machine was full; it may not be the \
     command's doing";

/// How long a sandbox outlives this process when that is killed.
const LEASE: Duration = Duration::from_secs(60);

/// What a limit may be overrun by before the daemon itself is taken for hung.
const GRACE: Duration = Duration::from_secs(15);

/// Limit for saving what there is after a failure.
const RECOVERY: Duration = Duration::from_secs(30);

const AGENT_LOGS: &str = "/logs/agent";
const VERIFIER_LOGS: &str = "/logs/verifier";
const ARTIFACTS: &str = "/logs/artifacts";

/// What all trials of a job share.
pub(crate) struct JobContext<'a, P> {
    pub(crate) platform: &'a P,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) cancel: CancellationToken,
    pub(crate) job: String,
    pub(crate) agent: Agent,
    pub(crate) timeout_multiplier: f64,
    pub(crate) delete: bool,
    pub(crate) force_build: bool,
    pub(crate) allow_unenforced_storage: bool,
}

/// What all trials of a task share.
pub(crate) struct TaskRun {
    pub(crate) task: Task,
    pub(crate) image_source: ImageSource,
    /// Name of the directory of tasks that it came from.
    pub(crate) source: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) verifier_env: BTreeMap<String, String>,
    pub(crate) solution_env: BTreeMap<String, String>,
    /// The image, or why the task can have none; made by the first trial that needs it.
    pub(crate) image: OnceCell<Result<Image, Exception>>,
}

/// One trial to be run.
pub(crate) struct TrialPlan<'a> {
    pub(crate) id: Uuid,
    pub(crate) dir: PathBuf,
    pub(crate) config: TrialConfig,
    pub(crate) lock: TrialLock,
    pub(crate) task: &'a TaskRun,
}

/// What is known of a trial when it has ended.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) started_at: Time,
    pub(crate) finished_at: Time,
    pub(crate) environment_setup: Option<Timing>,
    pub(crate) agent_setup: Option<Timing>,
    pub(crate) agent_execution: Option<Timing>,
    pub(crate) verifier: Option<Timing>,
    pub(crate) rewards: Option<Rewards>,
    pub(crate) exception: Option<Exception>,
    /// How the agent's command ended.
    pub(crate) agent_exit: Option<ExecStatus>,
}

/// How a command with a limit ended.
enum Ended {
    Exited(ExecStatus),
    TimedOut,
}

/// A command of a trial.
struct Run<'r> {
    id: &'static str,
    command: String,
    env: BTreeMap<String, String>,
    user: Option<&'r str>,
    deadline: Option<Instant>,
}

struct Trial<'a, P: Platform> {
    job: &'a JobContext<'a, P>,
    plan: &'a TrialPlan<'a>,
    log: TrialLog,
    lease: Option<P::Lease>,
    sandbox: Option<Sandbox>,
    collected: bool,
    queued: Queued,
    facts: Facts,
}

/// Run a trial to its end. Fails only where its own directory cannot be written.
pub(crate) async fn run<P: Platform>(job: &JobContext<'_, P>, plan: &TrialPlan<'_>) -> io::Result<Facts> {
    let log = prepare_dir(plan)?;
    let mut trial = Trial {
        job,
        plan,
        log,
        lease: None,
        sandbox: None,
        collected: false,
        queued: Queued::default(),
        facts: Facts::start(),
    };
    let (name, task) = (plan.config.trial_name.as_str(), plan.task.task.name.as_str());
    job.observer.event(Event::TrialStarted { trial: name, task });
    let ended = tokio::select! {
        biased;
        () = job.cancel.cancelled() => Err(Exception::new(Failure::Cancelled, "the job was cancelled")),
        ended = trial.phases() => ended,
    };
    if let Err(exception) = ended {
        trial.record(exception);
        trial.recover().await;
    }
    trial.clean_up().await;
    trial.finish()
}

fn prepare_dir(plan: &TrialPlan<'_>) -> io::Result<TrialLog> {
    for name in ["agent", "verifier", "artifacts"] {
        std::fs::create_dir_all(plan.dir.join(name))?;
    }
    record::write_json(&plan.dir.join("config.json"), &plan.config)?;
    record::write_json(&plan.dir.join("lock.json"), &plan.lock)?;
    TrialLog::create(&plan.dir.join("trial.log"))
}

impl<P: Platform> Trial<'_, P> {
    async fn phases(&mut self) -> Result<(), Exception> {
        self.set_up_environment().await?;
        self.wait_until_healthy().await?;
        // Oracle, nop and a bare command have nothing to install; the phase is there for whoever compares times.
        let setup = Timing::start();
        self.facts.agent_setup = Some(Timing { finished_at: Some(setup.started_at), ..setup });
        match self.run_agent().await {
            Err(exception) if exception.failure == Failure::AgentTimeout => self.record(exception),
            other => other?,
        }
        self.collect().await;
        self.run_verifier().await
    }

    // --- environment -----------------------------------------------------------------------------------------------

    async fn set_up_environment(&mut self) -> Result<(), Exception> {
        self.enter(Phase::EnvironmentSetup);
        self.facts.environment_setup = Some(Timing::start());
        let limit = self.limit(self.plan.task.task.config.environment.build_timeout_sec);
        let queued = self.queued.clone();
        let started = queued.timeout(duration(limit), self.start()).await.unwrap_or_else(|| {
            let message = format!("environment start timed out after {limit} seconds");
            Err(Exception::new(Failure::EnvironmentStartTimeout, message))
        });
        close(&mut self.facts.environment_setup);
        started
    }

    async fn start(&mut self) -> Result<(), Exception> {
        let platform = self.job.platform;
        let lease = platform.hold_lease(LEASE).await;
        let lease = lease.map_err(|error| Exception::of_call("cannot hold a lease", &error))?;
        let lease_id = P::lease_id(&lease).to_owned();
        self.lease = Some(lease);
        let image = self.image().await?;
        let request = self.sandbox_request(&image, lease_id);
        let created = self.create(&request).await;
        let sandbox = created.map_err(|error| Exception::of_call("cannot create the sandbox", &error))?;
        self.log.line(&format!("sandbox {} of image {}", sandbox.id, image.id));
        let (id, workdir) = (sandbox.id.clone(), sandbox.workdir.clone());
        self.sandbox = Some(sandbox);
        self.make_log_dirs(&id).await?;
        if let Some(files) = self.plan.task.task.loose_environment_files() {
            let uploaded = platform.upload_dir(&id, &files, &workdir).await;
            let report =
                uploaded.map_err(|error| Exception::of_call("cannot upload environment/", &error))?;
            self.check_upload(report, Failure::RuntimeRequest, "environment/")?;
        }
        Ok(())
    }

    async fn make_log_dirs(&self, sandbox: &str) -> Result<(), Exception> {
        let paths = [VERIFIER_LOGS, AGENT_LOGS, ARTIFACTS].map(str::to_owned).to_vec();
        // Agent and verifier may each run as any user, and both write here.
        let made =
            self.job.platform.fs(sandbox, &FsRequest::Mkdir { paths, mode: Some(0o777), owner: None }).await;
        made.map(|_| ()).map_err(|error| Exception::of_call("cannot make the log directories", &error))
    }

    async fn image(&self) -> Result<Image, Exception> {
        let slot = &self.plan.task.image;
        let made = slot.get_or_try_init(|| async {
            match self.make_image().await {
                Ok(image) => Ok(Ok(image)),
                // The same Dockerfile will fail the same way; a registry or daemon that was away may be back.
                Err(error) if error.api().is_some_and(|answer| !answer.kind.is_infrastructure()) => {
                    Ok(Err(Exception::of_image("cannot make the image", &error)))
                }
                Err(error) => Err(Exception::of_image("cannot make the image", &error)),
            }
        });
        made.await?.clone()
    }

    async fn make_image(&self) -> Result<Image, berth_client::Error> {
        let trial = self.plan.config.trial_name.as_str();
        let on_progress = |progress| {
            self.job.observer.event(Event::Image { trial, progress: &progress });
        };
        match &self.plan.task.image_source {
            ImageSource::Reference(reference) => {
                let reference = reference.clone();
                let policy = if self.job.force_build { PullPolicy::Always } else { PullPolicy::Missing };
                let request = PullImage { reference, policy, auth: None, cache: false };
                self.job.platform.pull(&request, &on_progress).await
            }
            ImageSource::Dockerfile(context) => {
                let tags = vec![image_tag(&self.plan.task.task)];
                let no_cache = self.job.force_build;
                // Forced, tags of base images are looked up anew, too.
                let pull = if no_cache { BasePull::Refresh } else { BasePull::Missing };
                let request = BuildImage { tags, no_cache, pull, ..BuildImage::default() };
                self.job.platform.build(&request, context, &on_progress).await
            }
        }
    }

    fn sandbox_request(&self, image: &Image, lease: String) -> CreateSandbox {
        let environment = &self.plan.task.task.config.environment;
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        CreateSandbox {
            image: image.id.clone(),
            name: Some(sandbox_name(&self.plan.config.trial_name, self.plan.id)),
            idempotency_key: Some(self.plan.id.to_string()),
            labels: BTreeMap::from([
                label("harbor.job", &self.job.job),
                label("harbor.trial", &self.plan.config.trial_name),
                label("harbor.task", &self.plan.task.task.name),
            ]),
            lease: Some(lease),
            resources: Resources {
                cpus: environment.cpus,
                memory_mb: environment.memory_mb,
                storage_mb: environment.storage_mb,
                ..Resources::default()
            },
            storage_unenforced: if self.job.allow_unenforced_storage {
                Unenforced::Allow
            } else {
                Unenforced::Refuse
            },
            network: environment.network,
            env: self.plan.task.env.clone(),
            workdir: environment.workdir.clone(),
            ..CreateSandbox::default()
        }
    }

    // --- healthcheck -----------------------------------------------------------------------------------------------

    async fn wait_until_healthy(&mut self) -> Result<(), Exception> {
        let Some(check) = &self.plan.task.task.config.environment.healthcheck else { return Ok(()) };
        self.enter(Phase::Healthcheck);
        let free_until = Instant::now() + duration(check.start_period_sec);
        let mut failures = 0;
        loop {
            let is_free = Instant::now() < free_until;
            if self.is_healthy(check).await? {
                return Ok(());
            }
            if is_free {
                tokio::time::sleep(duration(check.start_interval_sec)).await;
                continue;
            }
            failures += 1;
            if failures >= check.retries {
                let Healthcheck { command, retries, .. } = check;
                let message = format!("healthcheck failed after {retries} consecutive retries: {command}");
                return Err(Exception::new(Failure::Healthcheck, message));
            }
            tokio::time::sleep(duration(check.interval_sec)).await;
        }
    }

    async fn is_healthy(&self, check: &Healthcheck) -> Result<bool, Exception> {
        // Whole seconds, and none below one: that is how Harbor passes it on.
        let seconds = check.timeout_sec.trunc();
        let run = Run {
            id: "",
            command: check.command.clone(),
            env: BTreeMap::new(),
            user: None,
            deadline: (seconds > 0.0).then(|| Instant::now() + duration(seconds)),
        };
        match self.exec(run, &mut |_| {}).await? {
            Ended::Exited(status) => {
                self.log.line(&format!("healthcheck: {}", self.describe(&status)));
                Ok(status.exit_code == 0)
            }
            Ended::TimedOut => {
                self.log.line("healthcheck: timed out");
                Ok(false)
            }
        }
    }

    // --- the calls that several phases make ------------------------------------------------------------------------

    /// Run a command by its deadline; when it is past, nothing that the command started is left.
    async fn exec(&self, run: Run<'_>, output: crate::env::Output<'_>) -> Result<Ended, Exception> {
        let remaining = run.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if remaining.is_some_and(|remaining| remaining.is_zero()) {
            return Ok(Ended::TimedOut);
        }
        let sandbox = self.sandbox_id()?;
        let request = ExecRequest {
            id: (!run.id.is_empty()).then(|| run.id.to_owned()),
            env: run.env,
            user: run.user.map(str::to_owned),
            timeout_seconds: remaining.map(|remaining| remaining.as_secs_f64()),
            ..ExecRequest::new(Command::Shell(run.command))
        };
        let running = self.job.platform.exec(sandbox, &request, output);
        // The sandbox enforces the limit itself; this one is for a daemon that answers no more.
        let guard = remaining.map_or(Duration::MAX, |remaining| remaining.saturating_add(GRACE));
        match timeout(guard, running).await {
            // Whatever it says of itself: with room to write it might have done otherwise.
            Ok(Ok(status)) if status.machine_disk_full => {
                self.log.line(&format!("a command failed: {}", self.describe(&status)));
                Err(Exception::new(Failure::RuntimeRequest, MACHINE_DISK_FULL))
            }
            Ok(Ok(status)) if status.reason == ExitReason::TimedOut => Ok(Ended::TimedOut),
            Ok(Ok(status)) => Ok(Ended::Exited(status)),
            Ok(Err(error)) => Err(Exception::of_call("a command was lost", &error)),
            Err(_) => self.kill(sandbox, run.id).await,
        }
    }

    async fn kill(&self, sandbox: &str, exec: &str) -> Result<Ended, Exception> {
        if !exec.is_empty()
            && let Ok(Ok(())) = timeout(GRACE, self.job.platform.kill_exec(sandbox, exec)).await
        {
            return Ok(Ended::TimedOut);
        }
        let message = "a command did not end at its limit, and its end could not be confirmed";
        Err(Exception::new(Failure::RuntimeRequest, message))
    }

    async fn download(&self, source: &str, target: &Path) -> Result<(), berth_client::Error> {
        let Some(sandbox) = &self.sandbox else { return Ok(()) };
        let source = ArchiveOut::new(source);
        let refused = self.job.platform.download(&sandbox.id, &source, target).await?;
        self.log_refused(&source.path, &refused);
        Ok(())
    }

    /// What a sandbox offers and this side does not take, such as links that lead out.
    fn log_refused(&self, source: &str, refused: &[String]) {
        for entry in refused {
            self.log.line(&format!("{source}: refused {entry}"));
        }
    }

    /// A tree of which a part was refused is not the tree that was to be uploaded.
    fn check_upload(&self, report: ArchiveReport, failure: Failure, what: &str) -> Result<(), Exception> {
        for name in &report.skipped {
            self.log.line(&format!("{what}: {name} is a special file and was left out"));
        }
        if report.refused.is_empty() {
            return Ok(());
        }
        let message = format!("parts of {what} could not be unpacked: {}", report.refused.join(", "));
        Err(Exception::new(failure, message))
    }

    fn sandbox_id(&self) -> Result<&str, Exception> {
        let none = || Exception::new(Failure::RuntimeRequest, "the trial has no sandbox");
        self.sandbox.as_ref().map(|sandbox| sandbox.id.as_str()).ok_or_else(none)
    }

    fn limit(&self, seconds: f64) -> f64 {
        seconds * self.job.timeout_multiplier
    }

    fn enter(&self, phase: Phase) {
        self.log.line(&format!("phase: {phase:?}"));
        let trial = self.plan.config.trial_name.as_str();
        self.job.observer.event(Event::PhaseStarted { trial, phase });
    }

    /// Keep an exception: the first one, as Harbor does, but one of the infrastructure wins over the agent's timeout,
    /// or a trial whose sandbox broke would be graded.
    fn record(&mut self, exception: Exception) {
        self.log.line(&exception.trace());
        let keeps_first =
            self.facts.exception.as_ref().is_some_and(|first| first.failure != Failure::AgentTimeout);
        let is_graded = matches!(
            exception.failure.blame(),
            crate::verdict::Blame::Agent | crate::verdict::Blame::Verifier
        );
        if !keeps_first && (self.facts.exception.is_none() || !is_graded) {
            self.facts.exception = Some(exception);
        }
    }

    // --- the end ---------------------------------------------------------------------------------------------------

    /// After a failure: save what the agent left, if the sandbox still gives it.
    async fn recover(&mut self) {
        if self.sandbox.is_none() || self.collected {
            return;
        }
        if timeout(RECOVERY, self.collect()).await.is_err() {
            self.log.line("saving the logs took too long and was given up");
        }
    }

    /// The sandbox goes. That it could not be deleted is no fault of the trial: its lease runs out.
    async fn clean_up(&mut self) {
        self.enter(Phase::Cleanup);
        let Some(lease) = self.lease.take() else { return };
        if let (false, Some(sandbox)) = (self.job.delete, &self.sandbox) {
            match self.job.platform.keep(&sandbox.id).await {
                Ok(()) => self.log.line(&format!("sandbox {} is kept", sandbox.id)),
                Err(error) => {
                    let exception = Exception::of_call("cannot keep the sandbox", &error);
                    self.log.line(&exception.trace());
                }
            }
        }
        match timeout(RECOVERY, self.job.platform.release(lease)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.log.line(&Exception::of_call("cannot delete the sandbox", &error).trace());
            }
            Err(_) => self.log.line("deleting the sandbox takes long; its lease will end it"),
        }
    }

    fn finish(mut self) -> io::Result<Facts> {
        let facts = &mut self.facts;
        for timing in [
            &mut facts.environment_setup,
            &mut facts.agent_setup,
            &mut facts.agent_execution,
            &mut facts.verifier,
        ] {
            close(timing);
        }
        facts.finished_at = Time::now();
        if let Some(exception) = &facts.exception {
            record::write(&self.plan.dir.join("exception.txt"), exception.trace().as_bytes())?;
        }
        Ok(self.facts)
    }
}

impl Facts {
    fn start() -> Self {
        let now = Time::now();
        Facts {
            started_at: now,
            finished_at: now,
            environment_setup: None,
            agent_setup: None,
            agent_execution: None,
            verifier: None,
            rewards: None,
            exception: None,
            agent_exit: None,
        }
    }
}

/// End a timing that is still open.
fn close(timing: &mut Option<Timing>) {
    if let Some(timing) = timing {
        timing.finished_at.get_or_insert_with(Time::now);
    }
}

/// Seconds that may come from a file times a multiplier: no panic, whatever they are.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX / 4)
}

/// Reference that a task's image is kept under: by name for people, by content so that no two are mixed up.
fn image_tag(task: &Task) -> String {
    let name = task.config.package.as_ref().map_or(task.dir_name.as_str(), |package| package.short_name());
    let clean: String =
        name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let trimmed = clean.trim_matches('-');
    let name = if trimmed.is_empty() { "task" } else { trimmed };
    let digest = task.digest.trim_start_matches("sha256:");
    format!("localhost/harbor/{name}:{}", digest.get(..12).unwrap_or("latest"))
}

/// The trial's name where a sandbox may be called so, else its id.
fn sandbox_name(trial: &str, id: Uuid) -> String {
    let is_valid = trial.len() <= 63 && trial.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if is_valid { trial.to_owned() } else { format!("trial-{}", id.simple()) }
}
