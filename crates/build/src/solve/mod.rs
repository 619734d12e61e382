//! Carrying a plan out through a [`Runner`].
//!
//! The target's steps are looked up in the cache one by one; a step that is not there runs in a fresh sandbox. A stage
//! that only lends files to a `COPY` is built when that `COPY` has to run, so a stage whose copy is cached costs nothing.

mod copy;
mod output;
mod tars;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::image::BuildFailure;
use berth_types::progress::Progress;
use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::error::Error;
use crate::fault::nearest;
use crate::graph::{Graph, Root};
use crate::plan::{Action, Inputs, Plan, PlannedStage, PlannedStep, plan};
use crate::runner::{Base, CachedStep, LayerId, Owner, RunSpec, Runner, RunnerError, Setting, Step};
use crate::source::Source;

use output::{Decoder, Tail};

/// What to build.
pub struct Request<'a> {
    /// Directory with the build context.
    pub context: &'a Path,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Stage to build; the last when absent.
    pub target: Option<String>,
    /// Values for `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Run every step again. Base images are used as the runner has them.
    pub no_cache: bool,
    /// References to give the image.
    pub tags: Vec<String>,
    /// This machine's platform, `linux/amd64` and the like.
    pub platform: String,
    /// Told what goes on.
    pub progress: &'a (dyn Fn(Progress) + Send + Sync),
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
}

/// Builds an image, or finds the one that an earlier build made of the same content.
pub async fn build(request: Request<'_>, runner: &dyn Runner) -> Result<Outcome, Error> {
    let prepared = prepare(&request, runner).await?;
    let plan = &prepared.plan;
    for warning in &plan.warnings {
        (request.progress)(Progress::Warning(warning.clone()));
    }
    if !request.no_cache
        && let Some(image) = store("look for the image", runner.cached_image(&plan.content_key)).await?
    {
        store("tag the image", runner.tag_image(&image, &request.tags)).await?;
        for step in plan.stages.values().flat_map(|stage| &stage.steps) {
            (request.progress)(progress_of(step, plan.steps, true));
        }
        let (content_key, steps) = (plan.content_key.clone(), plan.steps);
        return Ok(Outcome { image, content_key, steps, cached_steps: steps });
    }
    let mut solver = Solver {
        request: &request,
        runner,
        plan,
        bases: &prepared.bases,
        context: &prepared.context,
        graph: &prepared.graph,
        solved: HashMap::new(),
        not_cached: 0,
    };
    let solved = solver.stage(plan.target).await?;
    let cached_steps = plan.steps - solver.not_cached;
    let now = jiff::Timestamp::now().to_string();
    let config = plan.stages[&plan.target].config.finish(&solved.layers, &solved.history, &now);
    let image = store("create the image", runner.create_image(config, &solved.layers, &request.tags)).await?;
    store("remember the image", runner.remember_image(&plan.content_key, &image)).await?;
    Ok(Outcome { image, content_key: plan.content_key.clone(), steps: plan.steps, cached_steps })
}

/// Hash over everything that decides what a request builds, without building it. Only the base images are asked for.
pub async fn content_key(request: &Request<'_>, runner: &dyn Runner) -> Result<String, Error> {
    Ok(prepare(request, runner).await?.plan.content_key)
}

struct Prepared {
    graph: Arc<Graph>,
    context: Arc<Context>,
    bases: Arc<BTreeMap<String, Base>>,
    plan: Plan,
}

/// Reads, resolves base images, plans.
async fn prepare(request: &Request<'_>, runner: &dyn Runner) -> Result<Prepared, Error> {
    let (path, dockerfile) = (request.context.to_owned(), request.dockerfile.clone());
    let (build_args, platform) = (request.build_args.clone(), request.platform.clone());
    let read = move || -> Result<(Graph, Context), Error> {
        let source = Arc::new(read_dockerfile(&path, dockerfile)?);
        let graph = Graph::read(&source, &build_args, &platform)?;
        let context = Context::open(&path, &source.name)?;
        Ok((graph, context))
    };
    let (graph, context) = tokio::task::spawn_blocking(read).await.map_err(Error::Reader)??;
    let target = target(&graph, request.target.as_deref())?;
    let bases = Arc::new(bases(&graph, target, runner).await?);
    let (graph, context) = (Arc::new(graph), Arc::new(context));
    let plan = {
        let (graph, context, bases) = (graph.clone(), context.clone(), bases.clone());
        let (build_args, platform) = (request.build_args.clone(), request.platform.clone());
        let job = move || {
            let (build_args, platform) = (&build_args, platform.as_str());
            let (graph, context, bases, remotes) = (&*graph, &*context, &*bases, &BTreeMap::new());
            plan(&Inputs { graph, target, context, bases, remotes, build_args, platform })
        };
        tokio::task::spawn_blocking(job).await.map_err(Error::Reader)??
    };
    Ok(Prepared { graph, context, bases, plan })
}

fn read_dockerfile(context: &Path, dockerfile: DockerfileSource) -> Result<Source, Error> {
    match dockerfile {
        DockerfileSource::Text { name, text } => Ok(Source::new(name, text)),
        DockerfileSource::InContext(name) => match Context::read(context, &name)? {
            Some(text) => Ok(Source::new(name, text)),
            None => Err(Error::NoDockerfile { name, context: PathBuf::from(context) }),
        },
    }
}

fn target(graph: &Graph, target: Option<&str>) -> Result<usize, Error> {
    graph.target(target).ok_or_else(|| {
        let target = target.unwrap_or_default().to_owned();
        let nearest = nearest(&target, graph.stages.iter().filter_map(|stage| stage.name.as_deref()));
        Error::UnknownTarget { file: graph.source.name.clone(), target, nearest }
    })
}

/// The images that the needed stages name.
async fn bases(graph: &Graph, target: usize, runner: &dyn Runner) -> Result<BTreeMap<String, Base>, Error> {
    let mut bases = BTreeMap::new();
    for index in graph.needed(target) {
        let roots: Vec<_> = graph.roots(index).collect();
        for (root, span) in roots {
            let Root::Image(reference) = root else { continue };
            if bases.contains_key(&reference) {
                continue;
            }
            let base = runner.base_image(&reference).await.map_err(|source| Error::BaseImage {
                file: graph.source.name.clone(),
                line: graph.source.line_of(span.start),
                nearest: graph.nearest_stage(&reference),
                reference: reference.clone(),
                source,
            })?;
            bases.insert(reference, base);
        }
    }
    Ok(bases)
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

/// What a stage came to.
#[derive(Clone, Debug, Default)]
struct Solved {
    layers: Vec<LayerId>,
    /// History entries of this build, and whether their step made a layer.
    history: Vec<(usize, bool)>,
}

struct Solver<'a> {
    request: &'a Request<'a>,
    runner: &'a dyn Runner,
    plan: &'a Plan,
    bases: &'a BTreeMap<String, Base>,
    context: &'a Arc<Context>,
    graph: &'a Graph,
    solved: HashMap<usize, Solved>,
    /// Steps that were done and not found.
    not_cached: u32,
}

impl<'a> Solver<'a> {
    /// Layers of a stage, built where they are not there yet. Boxed because stages need stages.
    fn stage(&mut self, index: usize) -> BoxFuture<'_, Result<Solved, Error>> {
        Box::pin(async move {
            if let Some(solved) = self.solved.get(&index) {
                return Ok(solved.clone());
            }
            let plan: &'a Plan = self.plan;
            let stage: &'a PlannedStage = &plan.stages[&index];
            let mut solved = self.root(&stage.root).await?;
            for step in &stage.steps {
                let made = self.step(step, &solved.layers).await?;
                solved.history.extend(step.history.map(|entry| (entry, made.is_some())));
                solved.layers.extend(made);
            }
            self.solved.insert(index, solved.clone());
            Ok(solved)
        })
    }

    async fn root(&mut self, root: &Root) -> Result<Solved, Error> {
        Ok(match root {
            Root::Scratch => Solved::default(),
            Root::Stage(index) => self.stage(*index).await?,
            Root::Image(reference) => {
                let layers = self.bases.get(reference).map_or_else(Vec::new, |base| base.layers.clone());
                Solved { layers, history: Vec::new() }
            }
        })
    }

    /// One step's layer, from the cache or made now.
    async fn step(&mut self, step: &'a PlannedStep, layers: &[LayerId]) -> Result<Option<LayerId>, Error> {
        let Some(key) = step.key.map(|key| key.to_string()) else {
            self.begin(step);
            return Ok(None);
        };
        if !self.request.no_cache
            && let Some(found) = store("look for a step", self.runner.cached_layer(&key)).await?
        {
            (self.request.progress)(progress_of(step, self.plan.steps, true));
            return Ok(found.layer);
        }
        let layer = match &step.action {
            Action::Config => None,
            Action::Mkdir { path, owner } => {
                self.begin(step);
                let mut sandbox = self.open(step, layers).await?;
                let made = sandbox.mkdir(path, owner.as_deref()).await;
                made.map_err(|source| self.failed(step, "make the directory", source))?;
                self.commit(step, sandbox).await?
            }
            Action::Run { spec, script, .. } => {
                self.begin(step);
                let mut sandbox = self.open(step, layers).await?;
                if let Some((path, text)) = script {
                    self.put_script(step, sandbox.as_mut(), path, text).await?;
                }
                self.run(step, sandbox.as_mut(), spec).await?;
                self.commit(step, sandbox).await?
            }
            Action::Copy(copy) => self.copy(step, copy, layers).await?,
        };
        let value = CachedStep { layer };
        store("remember a step", self.runner.remember(&key, &value)).await?;
        Ok(value.layer)
    }

    fn begin(&mut self, step: &PlannedStep) {
        self.not_cached += 1;
        (self.request.progress)(progress_of(step, self.plan.steps, false));
    }

    async fn open(&self, step: &PlannedStep, layers: &[LayerId]) -> Result<Box<dyn Step>, Error> {
        self.runner
            .open(layers, Setting::default())
            .await
            .map_err(|source| self.failed(step, "open a sandbox", source))
    }

    async fn commit(&self, step: &PlannedStep, sandbox: Box<dyn Step>) -> Result<Option<LayerId>, Error> {
        sandbox.commit().await.map_err(|source| self.failed(step, "keep the result", source))
    }

    fn failed(&self, step: &PlannedStep, operation: &'static str, source: RunnerError) -> Error {
        Error::Step {
            file: step.source.name.clone(),
            line: step.source.line_of(step.span.start),
            step: step.number,
            instruction: step.text.clone(),
            operation,
            source,
        }
    }

    async fn put_script(
        &self,
        step: &PlannedStep,
        sandbox: &mut dyn Step,
        path: &str,
        text: &str,
    ) -> Result<(), Error> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("/", path));
        let made = sandbox.mkdir(dir, None).await;
        made.map_err(|source| self.failed(step, "make the script's directory", source))?;
        let stream = tars::inline(name.to_owned(), text.to_owned(), 0o755);
        stream
            .unpack(sandbox, dir, Owner::Root, None)
            .await
            .map_err(|source| self.failed(step, "put the script", source))
    }

    async fn run(&self, step: &PlannedStep, sandbox: &mut dyn Step, spec: &RunSpec) -> Result<(), Error> {
        let (mut decoder, mut tail) = (Decoder::default(), Tail::default());
        let progress = self.request.progress;
        let mut tell = |text: String| {
            if !text.is_empty() {
                tail.push(&text);
                progress(Progress::Output { step: step.number, text });
            }
        };
        let mut output = |bytes: &[u8]| tell(decoder.push(bytes));
        let code = sandbox.run(spec.clone(), &mut output).await;
        tell(decoder.finish());
        let code = code.map_err(|source| self.failed(step, "run the command", source))?;
        if code == 0 {
            return Ok(());
        }
        Err(Error::StepFailed(Box::new(BuildFailure {
            step: step.number,
            steps: self.plan.steps,
            instruction: step.text.clone(),
            file: step.source.name.clone(),
            line: step.source.line_of(step.span.start),
            exit_code: Some(code),
            output_tail: tail.lines(),
        })))
    }
}
