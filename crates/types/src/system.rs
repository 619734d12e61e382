//! The daemon itself: what it is and whether its machine is fit.

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
