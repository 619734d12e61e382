//! What a long call tells while it runs: one JSON object a line (NDJSON), the last one `result` or `error`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;

/// Media type of a progress stream.
pub const PROGRESS_TYPE: &str = "application/x-ndjson";

/// One line of a progress stream whose result is a `T`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// Something went on.
    Progress(Progress),
    /// The end, and well.
    Result(T),
    /// The end, and not.
    Error(ApiError),
}

/// Something that went on during a pull, an import or a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Progress {
    /// A plain message for the user.
    Message {
        /// The message.
        text: String,
    },
    /// Bytes moved for one item, for example a layer.
    Transfer {
        /// What is moved: a short digest or a file name.
        item: String,
        /// `download`, `unpack`, `verify`.
        action: String,
        /// Bytes so far.
        current: u64,
        /// Bytes in all, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    /// A build step begins or was found in the cache.
    Step {
        /// Number, from 1.
        step: u32,
        /// Steps in all.
        steps: u32,
        /// The instruction.
        instruction: String,
        /// Whether the cache had it.
        cached: bool,
    },
    /// Something in a Dockerfile that looks like a mistake.
    Warning(crate::image::BuildWarning),
    /// A build step is over; those of independent stages run side by side.
    StepDone {
        /// Number, from 1.
        step: u32,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
    },
    /// Output of a build step; may hold several lines or part of one.
    Output {
        /// Number of the step.
        step: u32,
        /// The text; invalid UTF-8 is replaced.
        text: String,
    },
}
