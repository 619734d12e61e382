//! What `task.toml` says, checked and with the defaults filled in.

use berth_types::sandbox::NetworkMode;

/// A parsed `task.toml`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskConfig {
    /// Version of the format, `1.0` to `1.4` or a later 1.x.
    pub schema_version: String,
    /// `[task]`.
    pub package: Option<Package>,
    /// Where the task came from, by its own account.
    pub source: Option<String>,
    /// `[agent]`.
    pub agent: AgentSection,
    /// `[verifier]`.
    pub verifier: VerifierSection,
    /// `[environment]`.
    pub environment: EnvironmentSection,
    /// `[solution.env]`: for the oracle only.
    pub solution_env: EnvTable,
    /// `artifacts`, as declared; the convention directory is added when they are collected.
    pub artifacts: Vec<Artifact>,
    /// What the task wants and the native runner cannot give, in the file's order.
    pub unsupported: Vec<Unsupported>,
}

/// `[task]`: the task's name in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// `org/name`.
    pub name: String,
    /// Version of the task.
    pub version: Option<String>,
}

impl Package {
    /// The name without the organisation.
    pub fn short_name(&self) -> &str {
        self.name.split_once('/').map_or(self.name.as_str(), |(_, short)| short)
    }
}

/// `[agent]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentSection {
    /// Limit of the agent's run in seconds; none when absent.
    pub timeout_sec: Option<f64>,
    /// User of the agent's commands; the image's when absent.
    pub user: Option<String>,
}

/// `[verifier]`.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifierSection {
    /// Limit of the verification in seconds.
    pub timeout_sec: f64,
    /// Environment of the test script.
    pub env: EnvTable,
    /// User of the test script; the image's when absent.
    pub user: Option<String>,
}

/// `[environment]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentSection {
    /// Limit for building and starting, in seconds.
    pub build_timeout_sec: f64,
    /// Image to run in place of one that is built.
    pub docker_image: Option<String>,
    /// Processor time, in cores.
    pub cpus: Option<f64>,
    /// Memory, in MB of 2^20 bytes.
    pub memory_mb: Option<u64>,
    /// Writable disk, in MB of 2^20 bytes.
    pub storage_mb: Option<u64>,
    /// Environment of everything that runs in the sandbox.
    pub env: EnvTable,
    /// Directory of skills in the environment; of meaning to agents only.
    pub skills_dir: Option<String>,
    /// Readiness check.
    pub healthcheck: Option<Healthcheck>,
    /// Working directory of commands; the image's when absent.
    pub workdir: Option<String>,
    /// What the sandbox may reach.
    pub network: NetworkMode,
}

/// `[environment.healthcheck]`, with Docker's meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Healthcheck {
    /// Line for the shell; exit code 0 means ready.
    pub command: String,
    /// Pause between checks, in seconds.
    pub interval_sec: f64,
    /// Limit of one check, in seconds; whole seconds count, below one means none (as in Harbor).
    pub timeout_sec: f64,
    /// How long failures do not count, in seconds.
    pub start_period_sec: f64,
    /// Pause between checks while failures do not count, in seconds.
    pub start_interval_sec: f64,
    /// Failures in a row that end it.
    pub retries: u64,
}

/// A table of environment variables whose values may be `${VAR}` or `${VAR:-default}` of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvTable {
    /// The entries, in the order of their names.
    pub entries: Vec<EnvEntry>,
}

/// One variable of an [`EnvTable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvEntry {
    /// Name.
    pub name: String,
    /// Value as it stands in the file.
    pub value: String,
    /// Line in `task.toml`.
    pub line: usize,
}

/// A file or directory to be kept from the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifact {
    /// Absolute path in the sandbox.
    pub source: String,
    /// Path below the trial's `artifacts`; the source's own when absent.
    pub destination: Option<String>,
    /// Patterns left out of a directory.
    pub exclude: Vec<String>,
    /// Service, as declared; only `main` is collected.
    pub service: Option<String>,
}

/// Something a task wants that the native runner does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// What it is, in the words of the file.
    pub what: String,
    /// Line in `task.toml`.
    pub line: usize,
}
