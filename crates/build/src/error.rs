//! How a build fails.

use std::path::PathBuf;
use std::sync::Arc;

use berth_types::error::{ApiError, Kind};
use berth_types::image::{BuildFailure, DockerfileFault};

use crate::context::ContextError;
use crate::excerpt::Excerpt;
use crate::fault::Fault;
use crate::runner::{Remote, RunnerError};
use crate::source::{Source, Span};

/// What a plan lacks: it is made again when all of this is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Images, by reference.
    pub bases: Vec<Needed<String>>,
    /// What `ADD` brings from elsewhere.
    pub remotes: Vec<Needed<Remote>>,
}

impl Needs {
    /// Whether nothing is lacking.
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty() && self.remotes.is_empty()
    }
}

/// One thing that a plan lacks, and the place that asks for it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed<T> {
    /// What it is.
    pub what: T,
    /// The file that asks for it.
    pub source: Arc<Source>,
    /// Where it stands there.
    pub span: Span,
}

impl<T> Needed<T> {
    /// Name of the file that asks for it.
    pub fn file(&self) -> &str {
        &self.source.in_file(self.span).0.name
    }

    /// Line of the place, from 1.
    pub fn line(&self) -> u32 {
        self.source.file_and_line(self.span).1
    }

    /// The place that asks for it.
    pub(crate) fn place(&self, label: &str) -> Box<DockerfileFault> {
        Box::new(Excerpt::new(&self.source, self.span, label).to_api(None))
    }
}

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
    /// The plan depends on what an image holds or on what comes from elsewhere, and that was not given yet.
    #[error("the plan needs {} images and {} sources from elsewhere", .0.bases.len(), .0.remotes.len())]
    Needs(Box<Needs>),
    /// Only the context's list of files was given, and the bytes of one are needed.
    #[error("the build needs the bytes of `{path}`, expected the build context itself")]
    ContextNeeded {
        /// The file.
        path: String,
    },
    /// A base image cannot be had.
    #[error("{}:{}: cannot use image `{reference}`{}", place.file, place.line, suggestion(nearest.as_deref()))]
    BaseImage {
        /// What names the image.
        place: Box<DockerfileFault>,
        /// The image.
        reference: String,
        /// A stage whose name looks like it.
        nearest: Option<String>,
        /// Why.
        #[source]
        source: RunnerError,
    },
    /// What `ADD` names elsewhere cannot be had.
    #[error("{}:{}: cannot fetch `{url}`", place.file, place.line)]
    Remote {
        /// What names it.
        place: Box<DockerfileFault>,
        /// Its URL, without user and password.
        url: String,
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
        file: Box<str>,
        /// The instruction's line.
        line: u32,
        /// The step's number.
        step: u32,
        /// The instruction.
        instruction: Box<str>,
        /// What was tried.
        operation: &'static str,
        /// The instruction's place, where it stands in a Dockerfile.
        place: Option<Box<DockerfileFault>>,
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
        match source {
            ContextError::NoBytes { name } => Self::ContextNeeded { path: name },
            source => Self::Context(source),
        }
    }
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dockerfile(_) | Self::UnknownTarget { .. } | Self::StepFailed(_) => Kind::User,
            Self::NoDockerfile { .. } => Kind::NotFound,
            Self::ContextNeeded { .. } => Kind::Conflict,
            // Only between the planner and who calls it again with what it needs.
            Self::Needs(_) => Kind::Internal,
            Self::Context(context) if context.is_content() => Kind::User,
            Self::Context(_) | Self::Reader(_) => Kind::Internal,
            Self::BaseImage { source, .. }
            | Self::Remote { source, .. }
            | Self::Step { source, .. }
            | Self::Store { source, .. } => match source {
                RunnerError::User { .. } => Kind::User,
                RunnerError::Infrastructure { .. } => Kind::Unavailable,
            },
        }
    }

    /// Stable name of the failure for the API.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dockerfile(_) => "dockerfile_invalid",
            Self::NoDockerfile { .. } => "dockerfile_not_found",
            Self::UnknownTarget { .. } => "build_target_not_found",
            Self::Context(_) => "build_context_unusable",
            Self::ContextNeeded { .. } => "context_needed",
            Self::Needs(_) => "build_plan_incomplete",
            Self::BaseImage { .. } => "base_image_unusable",
            Self::Remote { .. } => "remote_source_unusable",
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
        api.details = match self {
            Self::StepFailed(failure) => serde_json::to_value(failure).ok(),
            _ => self.place().and_then(|place| serde_json::to_value(place).ok()),
        };
        api
    }

    /// The place of the Dockerfile that it is about; a failed command has its own way to say so.
    pub fn place(&self) -> Option<DockerfileFault> {
        match self {
            Self::Dockerfile(fault) => Some(fault.to_api()),
            Self::BaseImage { place, .. } | Self::Remote { place, .. } => Some((**place).clone()),
            Self::Step { place, .. } => place.as_deref().cloned(),
            _ => None,
        }
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean stage `{name}`?"))
}
