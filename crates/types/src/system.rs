//! The daemon itself: what it is, whether its machine is fit, and what room there is on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Version {
    /// Berth's version.
    pub version: String,
    /// API version.
    pub api: String,
    /// The daemon's process id on its machine.
    pub pid: u32,
    /// Where it keeps its data.
    pub data_dir: String,
}

/// Answer to `GET /v1/doctor` and output of `berth doctor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// One line a check, in a fixed order.
    pub checks: Vec<Check>,
}

/// One thing that Berth needs or can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Short name, for example `cgroups`.
    pub name: String,
    /// How it stands.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How a [`Check`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// In order.
    Ok,
    /// Works, but less well or with something missing.
    Warn,
    /// Sandboxes cannot run until it is mended.
    Fail,
}

/// Answer to `GET /v1/node`: what the machine has, what of that is set aside, and what the daemon does by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// Memory.
    pub memory: Stock,
    /// Disk for what sandboxes write.
    pub disk: Stock,
    /// Processors.
    pub cpus: CpuStock,
    /// Sandboxes by state.
    pub sandboxes: SandboxCounts,
    /// How many sandboxes of an earlier daemon ran on and were taken over when this one started.
    #[serde(default)]
    pub adopted: u64,
    /// How many starts run at once, and why so many.
    pub starts: Starts,
    /// How commitments are reckoned.
    pub policy: AdmissionPolicy,
    /// What runs in the background, in a fixed order.
    pub tasks: Vec<TaskStatus>,
}

/// Body of `POST /v1/shutdown`; it may be absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// Whether sandboxes are left running for another daemon to take over, for as long as `orphan_seconds` allows, or end
    /// with this one; as the daemon's configuration has it when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_sandboxes: Option<bool>,
}

/// Something of which the machine has so many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stock {
    /// What there is, in bytes: all memory; of the disk what Berth may fill, as large as its pool can grow now. Absent
    /// where it cannot be told, and then nothing is refused for want of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// What is kept for the machine itself, in bytes: a part of the total of memory, beside that of the disk.
    pub reserved_bytes: u64,
    /// What is set aside for sandboxes and steps of builds, in bytes.
    pub committed_bytes: u64,
    /// What is left to be set aside, in bytes; absent with the total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// What nobody uses at this moment, as the kernel or the disk engine measures it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
}

/// Processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CpuStock {
    /// How many there are.
    pub total: u64,
    /// What is set aside by `cpu_request`, in cores.
    pub committed: f64,
}

/// Sandboxes by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxCounts {
    /// Waiting for room.
    pub queued: u64,
    /// Being made.
    pub starting: u64,
    /// Running.
    pub running: u64,
    /// Being taken down.
    pub stopping: u64,
    /// Lost or ended, and remembered for an hour.
    pub remembered: u64,
}

/// How many sandboxes are started at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Starts {
    /// Under way.
    pub running: u64,
    /// At most so many at once; it follows how long starts take.
    pub limit: u64,
    /// Latest starts' duration, smoothed, in milliseconds; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// What an undisturbed start takes, in milliseconds; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undisturbed_ms: Option<f64>,
}

/// How the node reckons what it sets aside, from its configuration's `[limits]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AdmissionPolicy {
    /// Limits of memory are divided by this.
    pub memory_overcommit: f64,
    /// Limits of storage are divided by this.
    pub storage_overcommit: f64,
    /// Set aside for a sandbox without limit or request of memory, in MB.
    pub assumed_memory_mb: u64,
    /// Set aside for a sandbox that asks for no storage, in MB.
    pub assumed_storage_mb: u64,
    /// Limit of storage of a sandbox that asks for none, in MB; 0 means none. Only where the engine enforces it.
    pub default_storage_mb: u64,
    /// Limit of processes of a sandbox that asks for none; 0 means none.
    pub default_pids: u64,
    /// Whether limits of storage are waived where the disk engine cannot enforce them.
    pub allow_unenforced_storage: bool,
    /// Whether the disk engine enforces limits of storage.
    pub storage_enforced: bool,
    /// Whether sandboxes get a user namespace unless they ask for none.
    pub user_namespaces: bool,
}

/// Something that the daemon does by itself, over and over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskStatus {
    /// Its name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// When it last ended, RFC 3339; absent before the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run_at: Option<String>,
    /// How long that took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_duration_ms: Option<f64>,
    /// What it did, in words, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// Whether it failed.
    pub failed: bool,
}
