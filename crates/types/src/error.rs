//! What a failed call says: one shape, six kinds, a stable code.
//!
//! The kind decides the HTTP status and the exit code of the CLI, in one table here. The code is
//! stable and greppable; the message names what was wrong and what would be right.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whose fault an error is, and so who can mend it.
///
/// An infrastructure failure ([`Kind::Unavailable`], [`Kind::Capacity`], [`Kind::Internal`]) is never
/// to be graded as the failure of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request is wrong as it stands: bad field, unknown name, malformed file.
    User,
    /// The thing that the request names does not exist.
    NotFound,
    /// The daemon's or the machine's set-up does not allow it: no root, a kernel feature missing.
    Config,
    /// The request contradicts the present state: name taken, sandbox already gone.
    Conflict,
    /// The machine has not enough of something: memory, disk, addresses.
    Capacity,
    /// Something the request depends on is away: a registry, a dead sandbox, a daemon shutting down.
    Unavailable,
    /// A fault of Berth's own.
    Internal,
}

impl Kind {
    /// HTTP status that carries this kind.
    pub fn http_status(self) -> u16 {
        match self {
            Kind::User => 400,
            Kind::NotFound => 404,
            Kind::Config => 412,
            Kind::Conflict => 409,
            Kind::Capacity => 507,
            Kind::Unavailable => 503,
            Kind::Internal => 500,
        }
    }

    /// Exit code of the `berth` CLI for this kind (sysexits(3) where one fits).
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::User => 64,
            Kind::NotFound => 66,
            Kind::Config => 78,
            Kind::Conflict => 73,
            Kind::Capacity => 75,
            Kind::Unavailable => 69,
            Kind::Internal => 70,
        }
    }

    /// Whether this is a failure of the infrastructure, never of a task.
    pub fn is_infrastructure(self) -> bool {
        matches!(self, Kind::Capacity | Kind::Unavailable | Kind::Internal | Kind::Config)
    }
}

/// Body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ApiError,
}

/// One failure, as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Stable, snake-case name, for example `image_not_found` or `build_failed`.
    pub code: String,
    /// Whose fault it is.
    pub kind: Kind,
    /// What was wrong, with its cause chain, in one line where possible.
    pub message: String,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Further structured facts, by code; `build_failed` carries a [`crate::image::BuildFailure`], what is
    /// wrong at a place of a Dockerfile a [`crate::image::DockerfileFault`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<serde_json::Value>,
}

impl ApiError {
    /// An error with no hint and no details.
    pub fn new(kind: Kind, code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), kind, message: message.into(), hint: None, details: None }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with structured details.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}
