//! Sandboxes: how one is asked for, what one is, who owns it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
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
}

/// Limits of a sandbox. Absent means not limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processor time, in cores; fractions allowed, at least 0.01.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory, in MB of 2^20 bytes; at least 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Writable disk, in MB of 2^20 bytes. See [`Sandbox::storage_enforced`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_mb: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
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
    /// Why it is in [`SandboxState::Lost`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Id (config digest) of its image.
    pub image: String,
    /// Owner's labels.
    pub labels: BTreeMap<String, String>,
    /// Lease, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Limits in force.
    pub resources: Resources,
    /// Whether `resources.storage_mb` is enforced by the disk engine in use.
    pub storage_enforced: bool,
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
    /// From the request to ready, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<f64>,
}

/// Where a sandbox is in its life.
///
/// ```text
/// starting ──► running ──► stopping ──► (gone)
///     │             └──► lost
///     └──► (gone: its maker got the error)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Being made.
    Starting,
    /// Ready for execs and files.
    Running,
    /// Being taken down.
    Stopping,
    /// Was running and died without being asked to: out of memory, killed, or with an earlier daemon.
    Lost,
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
