//! From the options of a job to its trials: read and check everything, then make the job's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Agent, Error, JobOptions};
use crate::record::{
    self, AgentConfig, DatasetRef, EnvironmentConfig, JobConfig, TaskLock, TaskRef, TrialConfig, TrialLock,
    Verifier,
};
use crate::task::{self, Task, Warning};
use crate::trial::{TaskRun, TrialPlan};

/// Letters of Harbor's random suffixes: none that looks like another.
const ALPHABET: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// The tasks of a job, read and checked.
pub struct LoadedTasks {
    pub(super) runs: Vec<TaskRun>,
    datasets: Vec<PathBuf>,
    /// What is odd in their files.
    pub warnings: Vec<Warning>,
}

impl LoadedTasks {
    /// The tasks.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.runs.iter().map(|run| &run.task)
    }
}

/// A job whose directory is there.
pub(super) struct Job<'a> {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) trials: Vec<TrialPlan<'a>>,
}

/// Read and check every task.
pub(super) fn load(options: &JobOptions) -> Result<LoadedTasks, Error> {
    check_options(options)?;
    let mut loaded = LoadedTasks { runs: Vec::new(), datasets: Vec::new(), warnings: Vec::new() };
    for path in &options.tasks {
        if path.join("task.toml").is_file() {
            loaded.add(options, path, None)?;
            continue;
        }
        let name =
            path.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
        for task in tasks_in(path)? {
            loaded.add(options, &task, name.clone())?;
        }
        loaded.datasets.push(path.clone());
    }
    Ok(loaded)
}

impl LoadedTasks {
    fn add(&mut self, options: &JobOptions, path: &Path, source: Option<String>) -> Result<(), Error> {
        let failed = |source| Error::Task { path: path.to_owned(), source: Box::new(source) };
        let (run, warnings) = task_run(options, path, source).map_err(failed)?;
        self.runs.push(run);
        self.warnings.extend(warnings);
        Ok(())
    }
}

fn task_run(
    options: &JobOptions,
    path: &Path,
    source: Option<String>,
) -> Result<(TaskRun, Vec<Warning>), task::Error> {
    let (task, warnings) = Task::load(path)?;
    task.check(options.agent.solver())?;
    let host = |name: &str| std::env::var(name).ok();
    let mut env = task.resolve_env(&task.config.environment.env, host)?;
    env.extend(options.env.clone());
    let verifier_env = task.resolve_env(&task.config.verifier.env, host)?;
    let solution_env = match options.agent {
        Agent::Oracle => task.resolve_env(&task.config.solution_env, host)?,
        _ => BTreeMap::new(),
    };
    let image_source = task.image_source(options.force_build)?;
    let image = OnceCell::new();
    Ok((TaskRun { task, image_source, source, env, verifier_env, solution_env, image }, warnings))
}

fn check_options(options: &JobOptions) -> Result<(), Error> {
    let wrong = |option, found, expected| Err(Error::Option { option, found, expected });
    if options.tasks.is_empty() {
        return wrong("the list of tasks", "empty".to_owned(), "at least one directory");
    }
    if options.attempts == 0 {
        return wrong("the number of attempts", "0".to_owned(), "at least 1");
    }
    if options.concurrency == 0 {
        return wrong("the number of concurrent trials", "0".to_owned(), "at least 1");
    }
    let factor = options.timeout_multiplier;
    if !(factor > 0.0 && factor <= 1e6) {
        return wrong("the timeout multiplier", factor.to_string(), "a number above 0 and up to 1000000");
    }
    let is_bad = |name: &str| name.is_empty() || name.contains(['=', '\0']);
    if let Some(name) = options.env.keys().find(|name| is_bad(name)) {
        return wrong("the name of an environment variable", format!("{name:?}"), "one without '=' or NUL");
    }
    let is_bad = |name: &str| matches!(name, "" | "." | "..") || name.contains(['/', '\0']);
    match &options.job_name {
        Some(name) if is_bad(name) => wrong("the job's name", format!("{name:?}"), "a file name without '/'"),
        _ => Ok(()),
    }
}

/// The tasks in a directory of tasks. One whose files are wrong is an error later, not left out.
fn tasks_in(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut tasks = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?.path();
        if entry.join("task.toml").is_file() {
            tasks.push(entry);
        }
    }
    if tasks.is_empty() {
        return Err(Error::NoTasks { path: path.to_owned() });
    }
    tasks.sort();
    Ok(tasks)
}

impl<'a> Job<'a> {
    /// Make the job's directory and plan its trials.
    pub(super) fn create(options: &JobOptions, loaded: &'a LoadedTasks) -> Result<Self, Error> {
        let (name, dir) = make_job_dir(options)?;
        let id = Uuid::now_v7();
        let environment = EnvironmentConfig::new(options.force_build, options.delete, &options.env);
        let agent = agent_config(&options.agent);
        let config = JobConfig {
            job_name: name.clone(),
            jobs_dir: options.jobs_dir.clone(),
            n_attempts: options.attempts,
            timeout_multiplier: options.timeout_multiplier,
            n_concurrent_trials: options.concurrency,
            environment: environment.clone(),
            agents: vec![agent.clone()],
            datasets: loaded.datasets.iter().map(|path| DatasetRef { path: path.clone() }).collect(),
            tasks: loaded.runs.iter().filter(|run| run.source.is_none()).map(task_ref).collect(),
        };
        let path = dir.join("config.json");
        record::write_json(&path, &config).map_err(|source| Error::Write { path, source })?;
        let mut names = BTreeSet::new();
        let mut trials = Vec::with_capacity(loaded.runs.len() * options.attempts);
        // Attempt by attempt, so that every task has a first result early; that is Harbor's order, too.
        for _ in 0..options.attempts {
            for run in &loaded.runs {
                let config = TrialConfig {
                    task: task_ref(run),
                    trial_name: trial_name(&run.task.dir_name, &mut names),
                    trials_dir: options.jobs_dir.join(&name),
                    timeout_multiplier: options.timeout_multiplier,
                    agent: agent.clone(),
                    environment: environment.clone(),
                    verifier: Verifier::default(),
                    job_id: id,
                };
                let lock = TrialLock::new(&config, task_lock(run));
                let dir = dir.join(&config.trial_name);
                trials.push(TrialPlan { id: Uuid::now_v7(), dir, config, lock, task: run });
            }
        }
        Ok(Job { id, name, dir, trials })
    }
}

fn task_ref(run: &TaskRun) -> TaskRef {
    TaskRef { path: run.task.path.clone(), source: run.source.clone() }
}

fn task_lock(run: &TaskRun) -> TaskLock {
    TaskLock {
        name: run.task.dir_name.clone(),
        version: run.task.config.package.as_ref().and_then(|package| package.version.clone()),
        kind: "local",
        digest: run.task.digest.clone(),
        source: run.source.clone(),
        path: run.task.path.clone(),
    }
}

fn agent_config(agent: &Agent) -> AgentConfig {
    let kwargs = match agent {
        Agent::Command(command) => BTreeMap::from([("command".to_owned(), command.clone())]),
        _ => BTreeMap::new(),
    };
    AgentConfig { name: agent.name().to_owned(), kwargs }
}

/// The job's directory, new; its path is absolute, so that results can be found from anywhere.
fn make_job_dir(options: &JobOptions) -> Result<(String, PathBuf), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    std::fs::create_dir_all(&options.jobs_dir).map_err(failed(&options.jobs_dir))?;
    let jobs_dir = options.jobs_dir.canonicalize().map_err(failed(&options.jobs_dir))?;
    let now = jiff::Zoned::now().strftime("%Y-%m-%d__%H-%M-%S").to_string();
    for number in 1.. {
        let name = match (&options.job_name, number) {
            (Some(name), _) => name.clone(),
            (None, 1) => now.clone(),
            // Two jobs within a second.
            (None, number) => format!("{now}_{number}"),
        };
        let dir = jobs_dir.join(&name);
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok((name, dir)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if options.job_name.is_some() || number >= 1000 {
                    return Err(Error::JobExists { path: dir });
                }
            }
            Err(source) => return Err(Error::Write { path: dir, source }),
        }
    }
    Err(Error::JobExists { path: jobs_dir.join(now) })
}

/// `<task>__<7 random letters>`, new in this job.
fn trial_name(task: &str, taken: &mut BTreeSet<String>) -> String {
    let short: String = task.chars().take(32).collect();
    let short = short.trim_end_matches(['_', '-']);
    loop {
        let name = format!("{short}__{}", random_suffix());
        if taken.insert(name.clone()) {
            return name;
        }
    }
}

fn random_suffix() -> String {
    // The second half of a version 7 UUID is random; the low digits of a base hardly favour any letter.
    let mut number = Uuid::now_v7().as_u64_pair().1;
    let base = ALPHABET.len() as u64;
    let mut suffix = String::new();
    for _ in 0..7 {
        suffix.push(char::from(ALPHABET[(number % base) as usize]));
        number /= base;
    }
    suffix
}
