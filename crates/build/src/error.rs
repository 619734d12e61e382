//! How a build fails.

use std::path::PathBuf;

use berth_types::error::{ApiError, Kind};
use berth_types::image::BuildFailure;

use crate::context::ContextError;
use crate::fault::Fault;
use crate::runner::RunnerError;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Dockerfile is malformed, asks for something unsupported, or names something that is not there.
    #[error(transparent)]
    Dockerfile(Box<Fault>),
    /// There is no Dockerfile.
    #[error("there is no `{name}` in the build context {}", context.display())]
    NoDockerfile {
        /// The file that was looked for.
        name: String,
        /// The directory.
        context: PathBuf,
    },
    /// The target is no stage of the Dockerfile.
    #[error("{file} has no stage `{target}`{}", suggestion(nearest.as_deref()))]
    UnknownTarget {
        /// The Dockerfile.
        file: String,
        /// The target asked for.
        target: String,
        /// The stage that looks most like it.
        nearest: Option<String>,
    },
    /// The build context cannot be read.
    #[error("cannot use the build context")]
    Context(#[source] ContextError),
    /// A base image cannot be had.
    #[error("{file}:{line}: cannot use image `{reference}`{}", suggestion(nearest.as_deref()))]
    BaseImage {
        /// The Dockerfile.
        file: String,
        /// The line that names the image.
        line: u32,
        /// The image.
        reference: String,
        /// A stage whose name looks like it.
        nearest: Option<String>,
        /// Why.
        #[source]
        source: RunnerError,
    },
    /// A command of the build ended with another exit code than 0.
    #[error(
        "{}:{}: step {} of {} failed with exit code {}: {}",
        .0.file, .0.line, .0.step, .0.steps, .0.exit_code.unwrap_or_default(), .0.instruction
    )]
    StepFailed(Box<BuildFailure>),
    /// A step could not be carried out.
    #[error("{file}:{line}: cannot {operation} for step {step}: {instruction}")]
    Step {
        /// The Dockerfile.
        file: String,
        /// The instruction's line.
        line: u32,
        /// The step's number.
        step: u32,
        /// The instruction.
        instruction: String,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: RunnerError,
    },
    /// The store of images or of the cache failed.
    #[error("cannot {operation}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: RunnerError,
    },
    /// The task that reads the context ended early.
    #[error("the build's reader ended early")]
    Reader(#[source] tokio::task::JoinError),
}

impl From<Box<Fault>> for Error {
    fn from(fault: Box<Fault>) -> Self {
        Self::Dockerfile(fault)
    }
}

impl From<ContextError> for Error {
    fn from(source: ContextError) -> Self {
        Self::Context(source)
    }
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dockerfile(_) | Self::UnknownTarget { .. } | Self::StepFailed(_) => Kind::User,
            Self::NoDockerfile { .. } => Kind::NotFound,
            Self::Context(context) if context.is_content() => Kind::User,
            Self::Context(_) | Self::Reader(_) => Kind::Internal,
            Self::BaseImage { source, .. } | Self::Step { source, .. } | Self::Store { source, .. } => {
                match source {
                    RunnerError::User { .. } => Kind::User,
                    RunnerError::Infrastructure { .. } => Kind::Unavailable,
                }
            }
        }
    }

    /// Stable name of the failure for the API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dockerfile(_) => "dockerfile_invalid",
            Self::NoDockerfile { .. } => "dockerfile_not_found",
            Self::UnknownTarget { .. } => "build_target_not_found",
            Self::Context(_) => "build_context_unusable",
            Self::BaseImage { .. } => "base_image_unusable",
            Self::StepFailed(_) => "build_failed",
            Self::Step { .. } => "build_step_impossible",
            Self::Store { .. } => "build_store_failed",
            Self::Reader(_) => "build_reader_failed",
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dockerfile(fault) => fault.hint(),
            _ => None,
        }
    }

    /// The failure as the API tells it.
    pub fn to_api(&self) -> ApiError {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        let mut api = ApiError::new(self.kind(), self.code(), message);
        api.hint = self.hint();
        if let Self::StepFailed(failure) = self {
            api.details = serde_json::to_value(failure).ok();
        }
        api
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean stage `{name}`?"))
}
