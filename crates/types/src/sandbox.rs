//! Sandboxes: how one is asked for, what one is, who owns it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::unique;

/// Body of `POST /v1/sandboxes`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSandbox {
    /// Reference or id of an image of the local store.
    pub image: String,
    /// Name, unique among the living ones; 1 to 63 of `[a-zA-Z0-9._-]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Makes a repeated request return the sandbox of the first one; refused where that is not what is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// Who it belongs to: job, trial, user.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique::map")]
    pub labels: BTreeMap<String, String>,
    /// Lease that keeps it alive; when that runs out, it is deleted. Without one it lives until deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
    /// What it may reach.
    #[serde(default)]
    pub network: NetworkMode,
    /// Added to, and winning over, the image's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "unique::map")]
    pub env: BTreeMap<String, String>,
    /// Working directory of execs; the image's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User of execs; the image's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host paths to mount into it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Whether programs may gain privileges by set-uid bits and file capabilities; absent means: only where the
    /// image holds such files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_new_privileges: Option<bool>,
    /// What to do where the daemon's disk engine cannot enforce `resources.storage_mb` or `storage_inodes`.
    #[serde(default)]
    pub storage_unenforced: Unenforced,
    /// Wall-clock life in seconds from when it runs, 1 to 31,536,000 (a year); then it is ended. Without one it lives
    /// until deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// How long to wait for room on the machine, in seconds; 0 fails at once where it would have to wait. Absent
    /// means as long as the client waits: one that goes away gives its place back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<f64>,
    /// Capabilities that root keeps inside.
    #[serde(default, skip_serializing_if = "Capabilities::is_default")]
    pub capabilities: Capabilities,
    /// Whether root inside is an unprivileged user of the machine; the daemon's configuration says when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_namespace: Option<bool>,
}

/// Limits of a sandbox, and what is set aside for it. An absent limit means not limited, but where the daemon has a
/// default; see [`Sandbox::resource_defaults`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Limit of processor time, in cores; fractions allowed, at least 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Processor time that is set aside, in cores; at least 0.01, at most `cpus`. When the machine is busy it is also
    /// the sandbox's weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<f64>,
    /// Limit of memory, in MB of 2^20 bytes, swap included; at least 4, in which a shell and
    /// small programs run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Memory that is set aside, in MB of 2^20 bytes; at most `memory_mb`. Where it is absent a share of the limit is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request_mb: Option<u64>,
    /// Limit of writable disk, in MB of 2^20 bytes; at least 1. The image does not count. See
    /// [`Sandbox::storage_enforced`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_mb: Option<u64>,
    /// Limit of files and directories that are written; at least 64. See [`Sandbox::storage_enforced`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_inodes: Option<u64>,
    /// Limit of processes and threads; at least 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// What to do about a limit of storage that cannot be enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unenforced {
    /// Fail, unless the daemon's configuration allows it.
    #[default]
    Refuse,
    /// Run without it; the sandbox says `storage_enforced: false`.
    Allow,
}

/// Capabilities that root keeps in a sandbox: a word, or a list of names out of the default set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"default\", \"none\" or a list of capability names")]
pub enum Capabilities {
    /// A set that has a name.
    Set(CapabilitySet),
    /// These, with or without `CAP_`; none that is not in the default set.
    Only(Vec<String>),
}

/// Sets of capabilities that have a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapabilitySet {
    /// What Docker gives.
    #[default]
    Default,
    /// None at all.
    None,
}

impl Default for Capabilities {
    fn default() -> Capabilities {
        Capabilities::Set(CapabilitySet::Default)
    }
}

impl Capabilities {
    /// Whether this is what a sandbox gets when nobody says.
    pub fn is_default(&self) -> bool {
        *self == Capabilities::default()
    }
}

/// What a sandbox may reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The internet, through address translation.
    #[default]
    Public,
    /// Its own loopback only.
    NoNetwork,
}

/// A path of the host, mounted into a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path on the daemon's machine: a file, directory or socket.
    pub source: String,
    /// Absolute path in the sandbox.
    pub target: String,
    /// Whether the sandbox may only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A sandbox, as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Identity, a UUID v7 without dashes.
    pub id: String,
    /// Name; the id's when none was given.
    pub name: String,
    /// Group that it lives in; a group of its own for now, so the sandbox's id.
    pub group: String,
    /// State.
    pub state: SandboxState,
    /// Why it is lost, has ended or is being taken down, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same as a code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason_code: Option<ReasonCode>,
    /// Its place, while it is [`SandboxState::Queued`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePlace>,
    /// Id (config digest) of its image.
    pub image: String,
    /// Owner's labels.
    pub labels: BTreeMap<String, String>,
    /// Lease, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Limits in force, and requests. `storage_mb` and `storage_inodes` only as far as `storage_enforced`.
    pub resources: Resources,
    /// Fields of `resources` that nobody asked for: they are the daemon's defaults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_defaults: Vec<String>,
    /// Whether `resources.storage_mb` and `storage_inodes`, as far as they are there, are all enforced by the disk engine
    /// in use; false also where neither is there.
    pub storage_enforced: bool,
    /// What is set aside for it on the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed: Option<Committed>,
    /// Whether it is in a user namespace of its own, so that root inside is an unprivileged user of the machine.
    #[serde(default)]
    pub user_namespace: bool,
    /// Capabilities that root has inside.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// What it may reach.
    pub network: NetworkMode,
    /// Working directory of execs.
    pub workdir: String,
    /// User of execs.
    pub user: String,
    /// Shell that [`crate::exec::Command::Shell`] runs in, where the image has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// When its time is up, RFC 3339; absent where it has no `ttl_seconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// From the request to ready, in milliseconds, without the time in the queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<f64>,
    /// Where that time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_phases: Option<StartPhases>,
    /// Time in the queue, in milliseconds; absent where it did not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<f64>,
    /// What it uses, or what was known of that when it died. Listings have it only where `usage=true` asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// Why a sandbox is no longer running. Closed: a new reason is a new version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasonCode {
    /// Its `ttl_seconds` are over.
    Ttl,
    /// A client deleted it.
    Deleted,
    /// Its lease ended.
    LeaseEnded,
    /// Its first process died after the kernel had killed processes in it for want of memory.
    OutOfMemory,
    /// Its first process died, for no cause that Berth knows.
    GuestLost,
    /// The disk that it is on is gone or failed.
    DiskLost,
    /// The daemon ended while it was there.
    DaemonRestart,
}

/// A place among the sandboxes that wait for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueuePlace {
    /// 1 is the next to start. Places are given in the order of the requests.
    pub position: u64,
    /// What is missing for the first in the queue.
    pub waits_for: WaitsFor,
}

/// What a queue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// Memory that is set aside for other sandboxes.
    Memory,
    /// Memory that is in use, by sandboxes or by others on the machine.
    MemoryInUse,
    /// Disk that is set aside for other sandboxes.
    Disk,
    /// Disk that is in use.
    DiskInUse,
    /// Processor time that is set aside for other sandboxes.
    Cpus,
    /// Other starts that are under way; a matter of milliseconds.
    Starts,
}

impl WaitsFor {
    /// As a person says it: "it waits for …".
    pub fn words(self) -> &'static str {
        match self {
            WaitsFor::Memory => "memory",
            WaitsFor::MemoryInUse => "memory that is in use",
            WaitsFor::Disk => "disk",
            WaitsFor::DiskInUse => "disk that is in use",
            WaitsFor::Cpus => "processor time",
            WaitsFor::Starts => "other starts",
        }
    }
}

/// What the node sets aside for a sandbox until it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Committed {
    /// Memory, in bytes: the request, else the limit divided by the daemon's overcommitment, else an assumed amount.
    pub memory_bytes: u64,
    /// Disk, in bytes: the limit divided by the daemon's overcommitment, else an assumed amount.
    pub disk_bytes: u64,
    /// Processor time, in cores: the request, else none.
    pub cpus: f64,
}

/// Where the time of a start went, in milliseconds: one phase after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StartPhases {
    /// Its writable directories.
    pub disk_ms: f64,
    /// Its network and user namespaces, from those that are ready or made for it.
    pub network_ms: f64,
    /// Its control groups.
    pub cgroups_ms: f64,
    /// Its first process, with all mounts.
    pub launch_ms: f64,
    /// Until the guest in it answered.
    pub guest_ms: f64,
}

/// What a sandbox uses. A field is absent where the machine cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Usage {
    /// Memory now, page cache and files in memory included, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most that it was, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Limit of memory, in bytes, as the kernel has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Processor time so far, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Processes and threads now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Limit of them, as the kernel has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Disk written, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Limit of it, in bytes, as the disk engine has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_limit_bytes: Option<u64>,
    /// Files and directories written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_inodes: Option<u64>,
    /// Limit of them, as the disk engine has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_inodes_limit: Option<u64>,
    /// Limits that it met so far, those that its execs met included: the kernel or the disk engine refused or killed
    /// something for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<Limit>,
    /// Whether the machine's disk is full, or was when an exec of it failed: what then failed in it may be the
    /// machine's fault.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub machine_disk_full: bool,
}

/// A limit that a sandbox can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `memory_mb`.
    Memory,
    /// `pids`.
    Pids,
    /// `storage_mb` or `storage_inodes`.
    Disk,
}

/// Where a sandbox is in its life.
///
/// ```text
/// queued ──► starting ──► running ──► stopping ──► (gone), or ended: its time was up
///     │         │             └──► lost
///     └─────────┴──► (gone: its maker got the error)
/// ```
///
/// Lost and ended ones are remembered for an hour, so that whoever used one learns why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Waiting for room on the machine; nothing of it is there yet.
    Queued,
    /// Being made.
    Starting,
    /// Ready for execs and files.
    Running,
    /// Being taken down.
    Stopping,
    /// Was running and died without being asked to: out of memory, killed, or with an earlier daemon.
    Lost,
    /// Was ended because its `ttl_seconds` were over.
    Ended,
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Pass as `after` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Body of `POST /v1/leases` and `PUT /v1/leases/{id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// How long it lasts from now, in seconds; 1 to 86,400.
    pub ttl_seconds: u32,
}

/// A dead man's switch: sandboxes that name it are deleted when nobody has renewed it in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lease {
    /// Identity.
    pub id: String,
    /// When it runs out, RFC 3339.
    pub expires_at: String,
}

/// Body of `PUT /v1/sandboxes/{id}/lease`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLease {
    /// Lease to live under; `null` to live until deleted.
    pub lease: Option<String>,
}

/// Body of `PUT /v1/sandboxes/{id}/ttl`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetTtl {
    /// How long it may live from now, in seconds, 1 to 31,536,000; `null` to live until deleted.
    pub ttl_seconds: Option<u64>,
}
