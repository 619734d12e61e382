//! Carrying a plan out through a [`Runner`].
//!
//! First every step that may be needed is looked up, from the target's back to its lenders', so that it is known which
//! stages have anything to do: a stage that only lends files to steps which are cached costs nothing. Those keys say how a
//! step came to be: every instruction before it counts. A step that is not found so is looked up once more when its turn
//! comes, by what it finds: the layers below it and the bytes lent to it ([`digest`]).
//!
//! Then all of those stages go on side by side ([`stages`]), each one step after the other, each step in a fresh sandbox.
//! All of it is one future: the first failure, or whoever drops it, ends the rest with its sandboxes.

mod copy;
mod digest;
mod edit;
mod keys;
mod lend;
mod mask;
mod output;
mod prepare;
mod replay;
mod run;
mod stages;
mod tars;

use std::collections::BTreeMap;
use std::path::Path;

use berth_types::image::{BuildWarning, ContextManifest};
use berth_types::progress::Progress;
use futures_util::future::BoxFuture;

use crate::context::Digests;
use crate::error::Error;
use crate::plan::PlannedStep;
use crate::runner::{Runner, RunnerError};

use prepare::prepare;
pub use replay::{ReplayOutcome, base, replay};
use stages::Solver;

/// What to build.
pub struct Request<'a> {
    /// The build context.
    pub context: ContextSource<'a>,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Stage to build; the last when absent.
    pub target: Option<String>,
    /// Values for `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Run every step again. Base images are used as the runner has them. What the cache has is replaced when the
    /// build has succeeded, and not before.
    pub no_cache: bool,
    /// References to give the image.
    pub tags: Vec<String>,
    /// This machine's platform, `linux/amd64` and the like.
    pub platform: String,
    /// Whether commands have no network but their own loopback, whatever they say. The runner sees to it; keys tell it.
    pub no_network: bool,
    /// Steps that run at a time; [`default_parallel`] for 0.
    pub parallel: usize,
    /// Told what goes on, from several stages at a time.
    pub progress: &'a (dyn Fn(Progress) + Send + Sync),
}

/// Where the files of a build come from.
#[derive(Clone, Copy, Debug)]
pub enum ContextSource<'a> {
    /// A directory.
    Directory(&'a Path),
    /// A directory, of whose files some digests are known already. Nobody may have written to these since.
    Hashed(&'a Path, &'a Digests),
    /// What a directory elsewhere holds, without the bytes: enough to find an image that was built of the same, and
    /// not to build one.
    Manifest(&'a ContextManifest),
}

/// Where the Dockerfile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileSource {
    /// A file of the context.
    InContext(String),
    /// A text from elsewhere. The name is for messages and to find `<name>.dockerignore`.
    Text {
        /// Its name.
        name: String,
        /// Its text.
        text: String,
    },
}

/// What a build made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Id of the image.
    pub image: String,
    /// Hash over everything that decides it.
    pub content_key: String,
    /// Steps in all.
    pub steps: u32,
    /// Steps that did not have to be done again. Instructions that only edit the config count when the whole image,
    /// or their whole stage, was found.
    pub cached_steps: u32,
    /// What is not wrong but looks like a mistake.
    pub warnings: Vec<BuildWarning>,
}

/// Steps that run at a time where a request does not say: as many as there are CPUs, and at least two, for most of
/// what a step does is waiting.
pub fn default_parallel() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).max(2)
}

/// Builds an image, or finds the one that an earlier build made of the same content.
///
/// # Errors
///
/// [`Error::ContextNeeded`] when the context is a manifest and there is no such image yet.
pub async fn build(request: Request<'_>, runner: &dyn Runner) -> Result<Outcome, Error> {
    let prepared = prepare(&request, runner).await?;
    let plan = &prepared.plan;
    for warning in &plan.warnings {
        (request.progress)(Progress::Warning(warning.clone()));
    }
    let (content_key, steps, warnings) = (plan.content_key.clone(), plan.steps, plan.warnings.clone());
    if !request.no_cache
        && let Some(image) = store("look for the image", runner.cached_image(&content_key)).await?
    {
        store("tag the image", runner.tag_image(&image, &request.tags)).await?;
        for step in plan.stages.values().flat_map(|stage| &stage.steps) {
            (request.progress)(progress_of(step, steps, true));
        }
        return Ok(Outcome { image, content_key, steps, cached_steps: steps, warnings });
    }
    if let ContextSource::Manifest(_) = request.context {
        return Err(Error::ContextNeeded { path: ".".to_owned() });
    }
    let mut solver = Solver::new(&request, runner, &prepared);
    let solved = solver.target().await?;
    let cached_steps = steps - solver.not_cached();
    let epoch = plan.epoch.and_then(|epoch| jiff::Timestamp::from_second(epoch).ok());
    let now = epoch.unwrap_or_else(jiff::Timestamp::now).to_string();
    let config = plan.stages[&plan.target].config.finish(&solved.layers, &solved.history, &now);
    let image = store("create the image", runner.create_image(config, &solved.layers, &request.tags)).await?;
    solver.replace_cache().await?;
    store("remember the image", runner.remember_image(&content_key, &image)).await?;
    Ok(Outcome { image, content_key, steps, cached_steps, warnings: solver.warnings() })
}

/// Hash over everything that decides what a request builds, without building it. Only base images and what `ADD` brings
/// from elsewhere are asked for.
pub async fn content_key(request: &Request<'_>, runner: &dyn Runner) -> Result<String, Error> {
    Ok(prepare(request, runner).await?.plan.content_key)
}

async fn store<T>(
    operation: &'static str,
    answer: BoxFuture<'_, Result<T, RunnerError>>,
) -> Result<T, Error> {
    answer.await.map_err(|source| Error::Store { operation, source })
}

fn progress_of(step: &PlannedStep, steps: u32, cached: bool) -> Progress {
    Progress::Step { step: step.number, steps, instruction: step.text.clone(), cached }
}

/// An error that the author of the Dockerfile can mend.
fn user(message: impl Into<String>) -> RunnerError {
    RunnerError::User { message: message.into(), source: None }
}
