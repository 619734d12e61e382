//! A target stage's steps, carried out one after the other in a sandbox that is there already.

use std::collections::BTreeSet;
use std::time::Instant;

use berth_types::image::BuildWarning;
use berth_types::progress::Progress;
use serde_json::{Value, json};

use super::prepare::{self, prepare};
use super::stages::{Solver, lenders};
use super::{ContextSource, Request};
use crate::error::{Error, Needed};
use crate::graph::{Graph, Root};
use crate::instruction::Instruction;
use crate::plan::{PlannedStage, PlannedStep};
use crate::runner::{Base, Runner, Setting, Step};

/// What a replay came to.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayOutcome {
    /// The image config at the end, as Docker and OCI have it, without layers and times: what commands run with now.
    pub config: Value,
    /// Hash over everything that decides the result: that of a build of the same.
    pub content_key: String,
    /// Steps that were replayed.
    pub steps: u32,
    /// What is not wrong but looks like a mistake.
    pub warnings: Vec<BuildWarning>,
}

/// What the target stage stands on: the image that it, or the first stage of the chain it is made from, begins with.
/// For `scratch` it has no layers and no config.
///
/// # Errors
///
/// Those of reading the Dockerfile, and [`Error::BaseImage`]. The context is read for the Dockerfile alone.
pub async fn base(request: &Request<'_>, runner: &dyn Runner) -> Result<Base, Error> {
    let (graph, target) = prepare::graph(request).await?;
    let first = &graph.stages[first_of(&graph, target)];
    let Root::Image(reference) = &first.root else {
        return Ok(Base { id: String::new(), config: json!({}), layers: Vec::new() });
    };
    let span = match &first.from.instruction {
        Instruction::From(from) => from.image.span,
        _ => first.from.statement.whole_span(),
    };
    let needed = Needed { what: reference.clone(), source: graph.source.clone(), span };
    prepare::base_image(&needed, &graph, runner).await
}

/// The first stage of the chain that a stage is made from.
fn first_of(graph: &Graph, mut index: usize) -> usize {
    while let Root::Stage(earlier) = graph.stages[index].root {
        index = earlier;
    }
    index
}

/// Carries the target stage's steps out in a sandbox that was made of [`base`], each on what the ones before it left.
/// Steps of the stages that it is made from come first; stages that only lend files are built as always.
///
/// Neither the cache nor any image gets anything of it. What a `RUN` mounts is up to the sandbox ([`Step::set`]).
///
/// # Errors
///
/// [`Error::ContextNeeded`] for a manifest: files are copied in any case.
pub async fn replay(
    request: &Request<'_>,
    runner: &dyn Runner,
    sandbox: &mut dyn Step,
) -> Result<ReplayOutcome, Error> {
    if let ContextSource::Manifest(_) = request.context {
        return Err(Error::ContextNeeded { path: ".".to_owned() });
    }
    let prepared = prepare(request, runner).await?;
    let plan = &prepared.plan;
    for warning in &plan.warnings {
        (request.progress)(Progress::Warning(warning.clone()));
    }
    let mut chain = vec![&plan.stages[&plan.target]];
    while let Some(Root::Stage(earlier)) = chain.last().map(|stage| &stage.root) {
        chain.push(&plan.stages[earlier]);
    }
    let steps: Vec<&PlannedStep> =
        chain.iter().rev().flat_map(|stage: &&PlannedStage| &stage.steps).collect();
    let mut solver = Solver::new(request, runner, &prepared);
    let lending: BTreeSet<usize> = steps.iter().flat_map(|step| lenders(step)).collect();
    solver.stages(lending).await?;
    solver.replace_cache().await?;
    for step in &steps {
        solver.replay(step, sandbox).await?;
    }
    Ok(ReplayOutcome {
        config: plan.stages[&plan.target].config.value(),
        content_key: plan.content_key.clone(),
        steps: u32::try_from(steps.len()).unwrap_or(u32::MAX),
        warnings: solver.warnings(),
    })
}

impl Solver<'_> {
    async fn replay(&self, step: &PlannedStep, sandbox: &mut dyn Step) -> Result<(), Error> {
        let mut ready = self.ready(step).await?;
        let begun = Instant::now();
        self.begin(step);
        let cannot = |source| self.failed(step, "set the sandbox up", source);
        let setting = ready.setting.clone();
        let set = !setting.mounts.is_empty() || setting.no_network;
        if set {
            sandbox.set(setting).await.map_err(cannot)?;
        }
        let acted = self.act(step, &mut ready, sandbox).await;
        if set {
            // Whatever became of the step: what it mounted, secrets among it, is not for the sandbox's later life.
            let cleared = sandbox.set(Setting::default()).await.map_err(cannot);
            acted?;
            cleared?;
        } else {
            acted?;
        }
        self.done(step, begun);
        Ok(())
    }
}
