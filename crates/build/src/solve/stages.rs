//! Stages side by side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use berth_types::image::BuildWarning;
use berth_types::progress::Progress;
use futures_util::future::{BoxFuture, try_join_all};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::lend::Lending;
use super::mask::Masks;
use super::prepare::Prepared;
use super::run::Lent;
use super::{Request, default_parallel, progress_of, store};
use crate::error::Error;
use crate::excerpt::Excerpt;
use crate::graph::Root;
use crate::key::Hasher;
use crate::plan::{Action, CopyRoot, MountKind, Plan, PlannedStage, PlannedStep};
use crate::runner::{CachedStep, LayerId, Runner, RunnerError, Setting, Step};

/// What a stage came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Solved {
    pub(super) layers: Vec<LayerId>,
    /// History entries of this build, and whether their step made a layer.
    pub(super) history: Vec<(usize, bool)>,
}

/// What a step needs before its sandbox is opened.
#[derive(Default)]
pub(super) struct Ready {
    /// What its sandbox has.
    pub(super) setting: Setting,
    /// Variables that no plan knows: they hold secrets.
    pub(super) env: Vec<(String, String)>,
    /// Layers of the stage or image that lends files to a `COPY`.
    pub(super) lender: Option<Vec<LayerId>>,
    /// That, and what it lends, where it was looked for already.
    pub(super) lending: Option<Lending>,
    /// What stages and images lend to mounts.
    pub(super) lent: Vec<Lent>,
}

/// One build under way. Nothing of it changes but behind locks: its stages go on side by side.
pub(super) struct Solver<'a> {
    pub(super) runner: &'a dyn Runner,
    pub(super) progress: &'a (dyn Fn(Progress) + Send + Sync),
    pub(super) prepared: &'a Prepared,
    pub(super) masks: Masks,
    no_cache: bool,
    stages: BTreeMap<usize, OnceCell<Solved>>,
    /// Results that the cache had, by step.
    found: HashMap<u32, Option<LayerId>>,
    /// Layers being made, by key: equal ones are made once.
    flights: Mutex<HashMap<String, Arc<OnceCell<Option<LayerId>>>>>,
    permits: Semaphore,
    /// Steps that were done and not found.
    not_cached: AtomicU32,
    /// What the cache gets once the build has succeeded.
    replacing: Mutex<Vec<(String, CachedStep)>>,
    /// Those of the plan, and what only the files of a stage could tell.
    warnings: Mutex<Vec<BuildWarning>>,
}

impl<'a> Solver<'a> {
    pub(super) fn new(request: &Request<'a>, runner: &'a dyn Runner, prepared: &'a Prepared) -> Self {
        let parallel = match request.parallel {
            0 => default_parallel(),
            parallel => parallel,
        };
        Self {
            runner,
            progress: request.progress,
            prepared,
            masks: masks(&prepared.plan, runner),
            no_cache: request.no_cache,
            stages: prepared.plan.stages.keys().map(|index| (*index, OnceCell::new())).collect(),
            found: HashMap::new(),
            flights: Mutex::default(),
            permits: Semaphore::new(parallel.min(Semaphore::MAX_PERMITS)),
            not_cached: AtomicU32::new(0),
            replacing: Mutex::default(),
            warnings: Mutex::new(prepared.plan.warnings.clone()),
        }
    }

    fn plan(&self) -> &'a Plan {
        &self.prepared.plan
    }

    pub(super) fn not_cached(&self) -> u32 {
        self.not_cached.load(Ordering::Relaxed)
    }

    /// The target, and before it all that it needs.
    pub(super) async fn target(&mut self) -> Result<Solved, Error> {
        let target = self.plan().target;
        self.stages([target]).await?;
        self.stage(target).await
    }

    /// Solves stages and all that they need, side by side.
    pub(super) async fn stages(&mut self, wanted: impl IntoIterator<Item = usize>) -> Result<(), Error> {
        let needed = self.look_up(wanted).await?;
        let solver = &*self;
        try_join_all(needed.into_iter().map(|index| solver.stage(index))).await.map(drop)
    }

    /// Asks the cache for every step that may be needed, and tells which stages are.
    async fn look_up(&mut self, wanted: impl IntoIterator<Item = usize>) -> Result<BTreeSet<usize>, Error> {
        let (mut queue, mut needed): (Vec<usize>, _) = (wanted.into_iter().collect(), BTreeSet::new());
        while let Some(index) = queue.pop() {
            if !needed.insert(index) {
                continue;
            }
            let stage = &self.plan().stages[&index];
            if let Root::Stage(earlier) = stage.root {
                queue.push(earlier);
            }
            for (step, found) in self.cached(stage).await? {
                match found {
                    Some(found) => drop(self.found.insert(step.number, found.layer)),
                    None => queue.extend(lenders(step)),
                }
            }
        }
        Ok(needed)
    }

    /// What the cache has of a stage's steps.
    async fn cached(
        &self,
        stage: &'a PlannedStage,
    ) -> Result<Vec<(&'a PlannedStep, Option<CachedStep>)>, Error> {
        let keyed = stage.steps.iter().filter_map(|step| Some((step, step.key?.to_string())));
        let looked = keyed.map(async |(step, key)| Ok((step, self.cached_layer(&key).await?)));
        try_join_all(looked).await
    }

    async fn cached_layer(&self, key: &str) -> Result<Option<CachedStep>, Error> {
        match self.no_cache {
            true => Ok(None),
            false => store("look for a step", self.runner.cached_layer(key)).await,
        }
    }

    /// Layers of a stage. Boxed because stages need stages.
    pub(super) fn stage(&self, index: usize) -> BoxFuture<'_, Result<Solved, Error>> {
        Box::pin(async move { self.stages[&index].get_or_try_init(|| self.solve(index)).await.cloned() })
    }

    async fn solve(&self, index: usize) -> Result<Solved, Error> {
        let stage: &'a PlannedStage = &self.plan().stages[&index];
        let mut solved = self.root(&stage.root).await?;
        for step in &stage.steps {
            let made = self.step(step, &solved.layers).await?;
            solved.history.extend(step.history.map(|entry| (entry, made.is_some())));
            solved.layers.extend(made);
        }
        Ok(solved)
    }

    pub(super) async fn root(&self, root: &Root) -> Result<Solved, Error> {
        Ok(match root {
            Root::Scratch => Solved::default(),
            Root::Stage(index) => self.stage(*index).await?,
            Root::Image(reference) => {
                let base = self.prepared.brought.bases.get(reference);
                Solved { layers: base.map_or_else(Vec::new, |base| base.layers.clone()), history: Vec::new() }
            }
        })
    }

    /// One step's layer, from the cache or made now.
    async fn step(&self, step: &'a PlannedStep, layers: &[LayerId]) -> Result<Option<LayerId>, Error> {
        let Some(key) = step.key.map(|key| key.to_string()) else {
            self.begin(step);
            self.done(step, Instant::now());
            return Ok(None);
        };
        if let Some(found) = self.found.get(&step.number) {
            (self.progress)(progress_of(step, self.plan().steps, true));
            return Ok(found.clone());
        }
        let own = AtomicBool::new(false);
        let layer = self
            .once(&key, || async {
                let mut ready = self.ready(step).await?;
                let _permit = self.permit().await;
                let begun = Instant::now();
                // What is linked stands on nothing.
                let layers = if is_linked(step) { &[] } else { layers };
                let by_content = self.by_content(step, &mut ready, layers).await;
                let by_content = by_content.inspect_err(|_| self.begin(step))?;
                let make = || async {
                    own.store(true, Ordering::Relaxed);
                    self.begin(step);
                    let made = self.make(step, ready, layers).await?;
                    if let Some(key) = &by_content {
                        self.keep(key, &made).await?;
                    }
                    self.done(step, begun);
                    Ok(made)
                };
                let made: Option<LayerId> = match &by_content {
                    None => make().await?,
                    Some(key) => self.once(key, make).await?,
                };
                self.keep(&key, &made).await?;
                Ok(made)
            })
            .await?;
        if !own.into_inner() {
            // An equal step of another stage was faster, or the same was done to the same files before.
            (self.progress)(progress_of(step, self.plan().steps, true));
        }
        Ok(layer)
    }

    /// Key of a step by what it finds: the layers that it stands on, and the bytes of what is lent to it. It is the same
    /// however those came to be, but known only when they are there. `None` where there is no telling.
    async fn by_content(
        &self,
        step: &PlannedStep,
        ready: &mut Ready,
        layers: &[LayerId],
    ) -> Result<Option<String>, Error> {
        let Some(own) = step.own else { return Ok(None) };
        let mut key = Hasher::new("berth by layers 1");
        let layers: Vec<&str> = layers.iter().map(|layer| layer.0.as_str()).collect();
        key.field(own.to_string()).fields(&layers);
        for lent in &ready.lent {
            let Some(digest) = self.lent_digest(step, lent).await? else { return Ok(None) };
            key.field(digest.to_string());
        }
        if let (Action::Copy(copy), Some(layers)) = (&step.action, &ready.lender) {
            let lending = ready.lending.insert(self.lending(step, copy, layers).await?);
            key.field(self.lending_digest(step, lending).await?.to_string());
        }
        Ok(Some(key.finish().to_string()))
    }

    /// Does a step in a sandbox of its own; gives the layer that comes of it.
    async fn make(
        &self,
        step: &PlannedStep,
        mut ready: Ready,
        layers: &[LayerId],
    ) -> Result<Option<LayerId>, Error> {
        let sandbox = self.runner.open(layers, ready.setting.clone()).await;
        let mut sandbox = sandbox.map_err(|source| self.failed(step, "open a sandbox", source))?;
        self.act(step, &mut ready, sandbox.as_mut()).await?;
        let made = sandbox.commit().await;
        made.map_err(|source| self.failed(step, "keep the result", source))
    }

    /// Makes a layer, unless one of that key is there or being made.
    pub(super) async fn once<F>(&self, key: &str, make: impl FnOnce() -> F) -> Result<Option<LayerId>, Error>
    where
        F: Future<Output = Result<Option<LayerId>, Error>>,
    {
        let cell = self.lock(&self.flights).entry(key.to_owned()).or_default().clone();
        let layer = cell.get_or_try_init(|| async {
            // Another build may have made it since this one looked.
            match self.cached_layer(key).await? {
                Some(found) => Ok(found.layer),
                None => make().await,
            }
        });
        layer.await.cloned()
    }

    /// What a step needs: stages that lend to it, what it mounts, secrets.
    pub(super) async fn ready(&self, step: &PlannedStep) -> Result<Ready, Error> {
        match &step.action {
            Action::Run { mounts, no_network, .. } => self.setting(step, mounts, *no_network).await,
            Action::Copy(copy) => {
                let lender = match &copy.root {
                    CopyRoot::Context => None,
                    CopyRoot::Root(root) => Some(self.root(root).await?.layers),
                };
                Ok(Ready { lender, ..Ready::default() })
            }
            Action::Config | Action::Mkdir { .. } => Ok(Ready::default()),
        }
    }

    /// Does what a step does, in a sandbox that stands on what was before it.
    pub(super) async fn act(
        &self,
        step: &PlannedStep,
        ready: &mut Ready,
        sandbox: &mut dyn Step,
    ) -> Result<(), Error> {
        match &step.action {
            Action::Config => Ok(()),
            Action::Mkdir { path, owner } => {
                let made = sandbox.mkdir(path, owner.as_deref()).await;
                made.map_err(|source| self.failed(step, "make the directory", source))
            }
            Action::Run { spec, script, .. } => {
                if let Some((path, text)) = script {
                    self.put_script(step, sandbox, path, text).await?;
                }
                let mut spec = spec.clone();
                spec.env.retain(|(name, _)| !ready.env.iter().any(|(secret, _)| secret == name));
                spec.env.extend(ready.env.iter().cloned());
                self.run(step, sandbox, spec).await
            }
            Action::Copy(copy) => {
                let lending = match (ready.lending.take(), &ready.lender) {
                    (None, Some(layers)) => Some(self.lending(step, copy, layers).await?),
                    (lending, _) => lending,
                };
                self.copy(step, copy, lending, sandbox).await
            }
        }
    }

    /// Keeps a layer for later builds; one that replaces another when the whole build has succeeded.
    pub(super) async fn keep(&self, key: &str, layer: &Option<LayerId>) -> Result<(), Error> {
        let value = CachedStep { layer: layer.clone() };
        if self.no_cache {
            self.lock(&self.replacing).push((key.to_owned(), value));
            return Ok(());
        }
        store("remember a step", self.runner.remember(key, &value)).await
    }

    /// Has the cache hold what a build made that took nothing from it.
    pub(super) async fn replace_cache(&self) -> Result<(), Error> {
        let replacing = std::mem::take(&mut *self.lock(&self.replacing));
        for (key, value) in replacing {
            store("remember a step", self.runner.remember(&key, &value)).await?;
        }
        Ok(())
    }

    /// Tells a warning.
    pub(super) fn warn(&self, warning: BuildWarning) {
        (self.progress)(Progress::Warning(warning.clone()));
        self.lock(&self.warnings).push(warning);
    }

    /// All warnings so far.
    pub(super) fn warnings(&self) -> Vec<BuildWarning> {
        self.lock(&self.warnings).clone()
    }

    pub(super) async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.permits.acquire().await.ok()
    }

    pub(super) fn begin(&self, step: &PlannedStep) {
        self.not_cached.fetch_add(1, Ordering::Relaxed);
        (self.progress)(progress_of(step, self.plan().steps, false));
    }

    pub(super) fn done(&self, step: &PlannedStep, begun: Instant) {
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        (self.progress)(Progress::StepDone { step: step.number, elapsed_ms });
    }

    pub(super) fn failed(&self, step: &PlannedStep, operation: &'static str, source: RunnerError) -> Error {
        let place = Excerpt::new(&step.source, step.span, "this step").to_api(None);
        Error::Step {
            file: place.file.as_str().into(),
            line: place.line,
            step: step.number,
            instruction: step.text.as_str().into(),
            operation,
            place: Some(Box::new(place)),
            source,
        }
    }

    fn lock<'l, T>(&self, mutex: &'l Mutex<T>) -> std::sync::MutexGuard<'l, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_linked(step: &PlannedStep) -> bool {
    matches!(&step.action, Action::Copy(copy) if copy.link)
}

/// The roots that a step takes files from.
fn roots(step: &PlannedStep) -> Vec<&CopyRoot> {
    match &step.action {
        Action::Copy(copy) => vec![&copy.root],
        Action::Run { mounts, .. } => mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Bind { root, .. } | MountKind::Cache { seed: Some((root, _)), .. } => Some(root),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The stages that lend files to a step.
pub(super) fn lenders(step: &PlannedStep) -> impl Iterator<Item = usize> + '_ {
    roots(step).into_iter().filter_map(|root| match root {
        CopyRoot::Root(Root::Stage(index)) => Some(*index),
        _ => None,
    })
}

/// Every secret that any step can see: one that a command left in a file may be shown by a later one.
fn masks(plan: &Plan, runner: &dyn Runner) -> Masks {
    let mut masks = Masks::default();
    let steps = plan.stages.values().flat_map(|stage| &stage.steps);
    let mounts = steps.flat_map(|step| match &step.action {
        Action::Run { mounts, .. } => mounts.as_slice(),
        _ => &[],
    });
    let ids: BTreeSet<&String> = mounts
        .filter_map(|mount| match &mount.kind {
            MountKind::Secret { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    for id in ids {
        if let Some(secret) = runner.secret(id) {
            masks.add(id, &secret);
        }
    }
    masks
}
