//! Harbor's own files of a job: `config.json`, `lock.json` and `result.json`, of job and trial.
//!
//! Field for field what Harbor 0.25 reads; what is left out has Harbor's default there. Every file is written beside
//! its place and renamed, so that a reader (`harbor view` on a running job) never sees half of one, and so that a
//! symlink that a sandbox left in its logs is replaced, not followed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::verdict::{Exception, Rewards};

/// The Python class that runs the same trials under Harbor; recorded so that Harbor can resume a job.
const PROVIDER: &str = "berth.harbor:BerthEnvironment";

/// `TrialConfig`: `config.json` of a trial, and part of its result.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrialConfig {
    pub(crate) task: TaskRef,
    pub(crate) trial_name: String,
    pub(crate) trials_dir: PathBuf,
    pub(crate) timeout_multiplier: f64,
    pub(crate) agent: AgentConfig,
    pub(crate) environment: EnvironmentConfig,
    pub(crate) verifier: Verifier,
    pub(crate) job_id: Uuid,
}

/// `TaskConfig` of a run: where the task is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskRef {
    pub(crate) path: PathBuf,
    pub(crate) source: Option<String>,
}

/// `AgentConfig` of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AgentConfig {
    pub(crate) name: String,
    pub(crate) kwargs: BTreeMap<String, String>,
}

/// `EnvironmentConfig` of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EnvironmentConfig {
    import_path: &'static str,
    force_build: bool,
    delete: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
}

impl EnvironmentConfig {
    pub(crate) fn new(force_build: bool, delete: bool, env: &BTreeMap<String, String>) -> Self {
        let env = env.iter().map(|(name, value)| (name.clone(), without_secret(name, value))).collect();
        Self { import_path: PROVIDER, force_build, delete, env }
    }
}

/// `VerifierConfig` of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verifier {
    pub(crate) disable: bool,
    /// Only in locks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) environment_mode: Option<&'static str>,
}

/// `TrialResult`: `result.json` of a trial.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrialResult {
    pub(crate) id: Uuid,
    pub(crate) task_name: String,
    pub(crate) trial_name: String,
    pub(crate) trial_uri: String,
    pub(crate) task_id: LocalTaskId,
    pub(crate) source: Option<String>,
    pub(crate) task_checksum: String,
    pub(crate) config: TrialConfig,
    pub(crate) agent_info: AgentInfo,
    pub(crate) agent_result: Option<AgentContext>,
    pub(crate) verifier_result: Option<VerifierResult>,
    pub(crate) verifier_environment_mode: &'static str,
    pub(crate) exception_info: Option<ExceptionInfo>,
    pub(crate) started_at: Time,
    pub(crate) finished_at: Option<Time>,
    pub(crate) environment_setup: Option<Timing>,
    pub(crate) agent_setup: Option<Timing>,
    pub(crate) agent_execution: Option<Timing>,
    pub(crate) verifier: Option<Timing>,
    pub(crate) step_results: Option<Vec<Value>>,
}

/// `LocalTaskId`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LocalTaskId {
    pub(crate) path: PathBuf,
}

/// `AgentInfo`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AgentInfo {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) model_info: Option<Value>,
}

/// `AgentContext`: what an agent reports of itself. These agents call no model.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct AgentContext {
    pub(crate) n_input_tokens: Option<u64>,
    pub(crate) n_cache_tokens: Option<u64>,
    pub(crate) n_output_tokens: Option<u64>,
    pub(crate) cost_usd: Option<f64>,
    pub(crate) rollout_details: Option<Vec<Value>>,
    pub(crate) metadata: Option<BTreeMap<String, Value>>,
}

/// `VerifierResult`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct VerifierResult {
    pub(crate) rewards: Rewards,
}

/// `ExceptionInfo`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ExceptionInfo {
    exception_type: &'static str,
    exception_message: String,
    exception_traceback: String,
    occurred_at: Time,
}

impl From<&Exception> for ExceptionInfo {
    fn from(exception: &Exception) -> Self {
        Self {
            exception_type: exception.failure.harbor_name(),
            exception_message: exception.message.clone(),
            exception_traceback: exception.trace(),
            occurred_at: Time(exception.occurred_at),
        }
    }
}

/// `TimingInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Timing {
    pub(crate) started_at: Time,
    pub(crate) finished_at: Option<Time>,
}

impl Timing {
    pub(crate) fn start() -> Self {
        Self { started_at: Time::now(), finished_at: None }
    }

    /// From start to end, once it has ended.
    pub(crate) fn duration(&self) -> Option<std::time::Duration> {
        let length = self.finished_at?.0.duration_since(self.started_at.0);
        // A clock that was set back in between gives no negative time.
        Some(length.try_into().unwrap_or_default())
    }
}

/// A moment, written as Harbor writes it: RFC 3339, UTC, at most microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Time(pub(crate) Timestamp);

impl Time {
    pub(crate) fn now() -> Self {
        Self(Timestamp::now())
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}

/// `TrialLock`: `lock.json` of a trial, and part of the job's.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TrialLock {
    schema_version: u32,
    task: TaskLock,
    timeout_multiplier: f64,
    agent: AgentConfig,
    environment: EnvironmentConfig,
    verifier: Verifier,
}

/// `TaskLock`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskLock {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
    pub(crate) path: PathBuf,
}

impl TrialLock {
    /// The lock of a trial: what it was asked to do, and on which content.
    pub(crate) fn new(config: &TrialConfig, task: TaskLock) -> Self {
        Self {
            schema_version: 2,
            task,
            timeout_multiplier: config.timeout_multiplier,
            agent: config.agent.clone(),
            environment: config.environment.clone(),
            verifier: Verifier { environment_mode: Some("shared"), ..config.verifier.clone() },
        }
    }
}

/// `JobLock`: `lock.json` of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobLock {
    schema_version: u32,
    created_at: Time,
    /// Harbor's version: none, for it did not run.
    harbor: BTreeMap<String, String>,
    n_concurrent_trials: usize,
    retry: Value,
    trials: Vec<TrialLock>,
}

impl JobLock {
    pub(crate) fn new(created_at: Time, n_concurrent_trials: usize, trials: Vec<TrialLock>) -> Self {
        let harbor = BTreeMap::new();
        Self { schema_version: 3, created_at, harbor, n_concurrent_trials, retry: json!({}), trials }
    }
}

/// `JobConfig`: `config.json` of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobConfig {
    pub(crate) job_name: String,
    pub(crate) jobs_dir: PathBuf,
    pub(crate) n_attempts: usize,
    pub(crate) timeout_multiplier: f64,
    pub(crate) n_concurrent_trials: usize,
    pub(crate) environment: EnvironmentConfig,
    pub(crate) agents: Vec<AgentConfig>,
    pub(crate) datasets: Vec<DatasetRef>,
    pub(crate) tasks: Vec<TaskRef>,
}

/// `DatasetConfig`: a directory of tasks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DatasetRef {
    pub(crate) path: PathBuf,
}

/// `JobResult`: `result.json` of a job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobResult {
    pub(crate) id: Uuid,
    pub(crate) started_at: Time,
    pub(crate) updated_at: Time,
    pub(crate) finished_at: Option<Time>,
    pub(crate) n_total_trials: usize,
    pub(crate) stats: crate::stats::JobStats,
}

/// Write a file whole or not at all.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".berth-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Write a record, indented as Harbor does it.
pub(crate) fn write_json(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    record.serialize(&mut serde_json::Serializer::with_formatter(&mut text, format))?;
    write(path, &text)
}

/// `file://` URI of an absolute path.
pub(crate) fn file_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file://");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(*byte as char)
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri
}

/// A value as it may be kept on disk: secrets become a reference to the host's variable of the same name, if that
/// holds the same, and are blotted out otherwise.
fn without_secret(name: &str, value: &str) -> String {
    let upper = name.to_uppercase();
    let sensitive =
        ["KEY", "SECRET", "PASSWORD", "CREDENTIAL", "AUTH"].iter().any(|word| upper.contains(word))
            || upper.replace("TOKENS", "").contains("TOKEN");
    let is_reference = value.starts_with("${") && value.ends_with('}');
    if !sensitive || value.is_empty() || is_reference {
        return value.to_owned();
    }
    if std::env::var(name).is_ok_and(|host| host == value) {
        return format!("${{{name}}}");
    }
    "****".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_written_down() {
        let table = [
            ("API_KEY", "sk-123", "****"),
            ("my_token", "abc", "****"),
            ("MAX_TOKENS", "100", "100"),
            ("API_KEY", "${API_KEY}", "${API_KEY}"),
            ("LANG", "C.UTF-8", "C.UTF-8"),
            ("PASSWORD", "", ""),
        ];
        for (name, value, expected) in table {
            assert_eq!(without_secret(name, value), expected, "{name}");
        }
    }

    #[test]
    fn a_path_becomes_a_uri() {
        assert_eq!(file_uri(Path::new("/tmp/a b/ü")), "file:///tmp/a%20b/%C3%BC");
    }

    #[test]
    fn a_write_replaces_a_planted_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        let path = dir.path().join("result.json");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert!(path.symlink_metadata().unwrap().is_file());
    }
}
