//! Builds: the build crate's view of this machine, and equal builds asked for at once done once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use berth_build::runner::{
    Answer, Base, CachedStep, Fetched, LayerId, Owner, Remote, RunSpec, Runner, RunnerError, Setting, Stat,
    Step, Tar,
};
use berth_build::{DockerfileSource, Request};
use berth_image::{Digest, Layer};
use berth_sandbox::guest::{self, ExecOutput, ExecSpec, PackSpec, UnpackSpec};
use berth_sandbox::{Limits, Machine, StartSpec};
use berth_types::error::Kind;
use berth_types::exec::{Command, KeepOutput, WhenFull};
use berth_types::files::{FileKind, FsRequest};
use berth_types::image::{BuildImage, BuildResult, PullPolicy};
use berth_types::progress::Progress;
use futures_util::FutureExt;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, ReadBuf};
use uuid::Uuid;

use crate::admission::Grant;
use crate::images::{Body, Sink};
use crate::resources::assumed;
use crate::sandboxes::hostname;
use crate::{Error, Node, error};

/// How the directories of build contexts are called in the scratch space.
const CONTEXT_PREFIX: &str = "context-";

/// Kinds of rows in the store's cache.
const STEP: &str = "step";
const IMAGE: &str = "image";

impl Node {
    /// Builds the Dockerfile of a context, a tar.
    ///
    /// # Errors
    /// [`Error::BadContext`] for a body that is no tar, [`Error::Build`] for everything that the build meets.
    pub async fn build_image(
        &self,
        options: BuildImage,
        context: Body,
        sink: Sink,
    ) -> Result<BuildResult, Error> {
        for tag in &options.tags {
            tag.parse::<berth_image::Reference>().map_err(berth_image::Error::from)?;
        }
        let dir = tempfile::Builder::new()
            .prefix(CONTEXT_PREFIX)
            .tempdir_in(&self.0.tmp)
            .map_err(Error::Context)?;
        let bytes = unpack_context(context, dir.path()).await?;
        // Trials of one task send the same bytes; the first builds, the others then find its result.
        let flight = (!options.no_cache).then(|| self.0.builds.flight(&bytes, &options));
        let _turn = match &flight {
            Some(flight) => Some(flight.turn(&sink).await),
            None => None,
        };
        // Alive until the image was looked up: it keeps it in the store.
        let machine = Builder { node: self.clone(), sink: sink.clone(), kept: Kept::default() };
        let outcome = self.build_context(&options, dir.path(), &sink, &machine).await?;
        let image = self.resolve_image(&outcome.image).await?;
        Ok(BuildResult {
            image: image.to_api(),
            content_key: outcome.content_key,
            steps: outcome.steps,
            cached_steps: outcome.cached_steps,
            warnings: Vec::new(),
            joined: false,
        })
    }

    async fn build_context(
        &self,
        options: &BuildImage,
        dir: &Path,
        sink: &Sink,
        machine: &Builder,
    ) -> Result<berth_build::Outcome, Error> {
        let name = options.dockerfile.clone().unwrap_or_else(|| "Dockerfile".to_owned());
        let request = Request {
            context: dir,
            dockerfile: DockerfileSource::InContext(name),
            target: options.target.clone(),
            build_args: options.build_args.clone(),
            no_cache: options.no_cache,
            tags: options.tags.clone(),
            platform: berth_image::Platform::host().to_string(),
            progress: &**sink,
        };
        Ok(berth_build::build(request, machine).await?)
    }
}

/// Removes the contexts of builds that an earlier daemon did not live to end.
pub(crate) fn clear_contexts(tmp: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(tmp)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(CONTEXT_PREFIX.as_bytes()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Unpacks the context and returns the digest of its bytes.
async fn unpack_context(context: Body, dir: &Path) -> Result<[u8; 32], Error> {
    let (dir, runtime) = (dir.to_owned(), tokio::runtime::Handle::current());
    let work = tokio::task::spawn_blocking(move || {
        let _entered = runtime.enter();
        let mut body = Hashed { inner: tokio_util::io::SyncIoBridge::new(context), hash: Sha256::new() };
        let mut archive = tar::Archive::new(&mut body);
        archive.set_preserve_permissions(true);
        archive.set_preserve_mtime(true);
        archive.unpack(&dir).map_err(context_error)?;
        io::copy(&mut body, &mut io::sink()).map_err(Error::BadContext)?;
        Ok(body.hash.finalize().into())
    });
    work.await.map_err(|_| Error::Ending)?
}

/// A context that does not fit the disk is not the client's mistake.
fn context_error(error: io::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        let full = current.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(full, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return Error::Context(io::Error::new(io::ErrorKind::StorageFull, error));
        }
        cause = current.source();
    }
    Error::BadContext(error)
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

/// Builds under way, by what was asked for.
#[derive(Default)]
pub(crate) struct Builds {
    flights: std::sync::Mutex<BTreeMap<String, std::sync::Weak<tokio::sync::Mutex<()>>>>,
}

/// One build that several may wait for.
pub(crate) struct Flight(Arc<tokio::sync::Mutex<()>>);

impl Builds {
    fn flight(&self, context: &[u8; 32], options: &BuildImage) -> Flight {
        let untagged = BuildImage { tags: Vec::new(), ..options.clone() };
        let key = format!("{context:?}{untagged:?}");
        let mut flights = self.flights.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        let known = flights.get(&key).and_then(std::sync::Weak::upgrade);
        let flight = known.unwrap_or_else(|| {
            let new = Arc::new(tokio::sync::Mutex::new(()));
            flights.insert(key, Arc::downgrade(&new));
            new
        });
        Flight(flight)
    }
}

impl Flight {
    async fn turn(&self, sink: &Sink) -> tokio::sync::MutexGuard<'_, ()> {
        if let Ok(turn) = self.0.try_lock() {
            return turn;
        }
        sink(Progress::Message { text: "the same build is under way, waiting for it".to_owned() });
        self.0.lock().await
    }
}

/// One build's view of the machine.
struct Builder {
    node: Node,
    sink: Sink,
    kept: Kept,
}

/// Keeps what a build stands on, and what it has made, in the store until it is over: others may remove images that
/// share it meanwhile.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Box<dyn Send + Sync>>>>);

impl Kept {
    fn keep(&self, what: impl Send + Sync + 'static) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Box::new(what));
    }
}

impl Builder {
    /// A layer, if it is in the store.
    fn layer(&self, id: &LayerId) -> Result<Layer, RunnerError> {
        let digest: Digest =
            id.0.parse().map_err(|source| infrastructure("a layer's digest is malformed", source))?;
        self.node.0.images.layer(digest.as_str()).ok_or_else(|| RunnerError::Infrastructure {
            message: format!("layer {} is gone from the store", id.0),
            source: None,
        })
    }

    fn layer_exists(&self, id: &LayerId) -> bool {
        self.layer(id).is_ok()
    }

    async fn start(&self, layers: &[LayerId]) -> Result<Arc<dyn Machine>, RunnerError> {
        // The jail wants the topmost layer first.
        let layers = layers.iter().rev().map(|id| self.layer(id)).collect::<Result<Vec<_>, _>>()?;
        // As the sandboxes of the image that is built, so that owners mean the same in both.
        let user_namespace = self.node.0.user_namespaces && self.node.0.driver.features().user_namespace;
        if user_namespace {
            self.node.check_owners(&layers).await.map_err(owners_beyond)?;
        }
        let id = Uuid::now_v7().simple().to_string();
        let spec = StartSpec {
            hostname: hostname(&id),
            id: format!("build-{id}"),
            layers: layers.into_iter().map(|layer| layer.name).collect(),
            public_network: true,
            limits: Limits::default(),
            user_namespace,
            ..StartSpec::default()
        };
        let started = self.node.0.driver.start(spec).await;
        started.map_err(|source| infrastructure("cannot start a sandbox for the step", source))
    }
}

impl Runner for Builder {
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base> {
        let reference = reference.to_owned();
        async move {
            // As with `docker build --no-cache`, an image of the store is used as it is: one that was made on this
            // machine has no registry to be fresh from.
            let images = &self.node.0.images;
            let pulled = images.pull(&reference, PullPolicy::Missing, None, self.sink.clone()).await;
            let image = pulled.map_err(classify)?;
            self.kept.keep(images.pin(&image.id).map_err(classify)?);
            let layers = image.layers.iter().map(|layer| LayerId(layer.diff_id.to_string())).collect();
            Ok(Base { id: image.id.to_string(), config: image.config_json(), layers })
        }
        .boxed()
    }

    fn open<'a>(&'a self, layers: &'a [LayerId], setting: Setting) -> Answer<'a, Box<dyn Step>> {
        async move {
            if setting != Setting::default() {
                let message = "steps with mounts or without network are not built yet".to_owned();
                return Err(RunnerError::User { message, source: None });
            }
            // Set aside without waiting: a build holds the machines of its earlier steps, and two that waited for
            // each other's would never end.
            let grant = self.node.0.admission.commit(assumed(&self.node.0.limits));
            let machine = self.start(layers).await?;
            Ok(Box::new(BuildStep {
                node: self.node.clone(),
                machine,
                _grant: grant,
                kept: self.kept.clone(),
                sink: self.sink.clone(),
            }) as Box<dyn Step>)
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, remote: &'a Remote) -> Answer<'a, Arc<Fetched>> {
        let message = format!("{remote:?} is not fetched yet");
        async move { Err(RunnerError::User { message, source: None }) }.boxed()
    }

    fn secret(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn cached_layer<'a>(&'a self, key: &'a str) -> Answer<'a, Option<CachedStep>> {
        async move {
            let found = self.node.cached(STEP, key).await?;
            let step = found.and_then(|json| serde_json::from_str::<CachedStep>(&json).ok());
            if let Some(digest) = step.as_ref().and_then(|step| step.layer.as_ref()?.0.parse().ok()) {
                self.kept.keep(self.node.0.images.hold(&[digest]));
            }
            Ok(step.filter(|step| step.layer.as_ref().is_none_or(|layer| self.layer_exists(layer))))
        }
        .boxed()
    }

    fn remember<'a>(&'a self, key: &'a str, value: &'a CachedStep) -> Answer<'a, ()> {
        async move {
            let json = serde_json::to_string(value)
                .map_err(|source| infrastructure("a step's result cannot be kept", source))?;
            self.node.remember(STEP, key, json).await
        }
        .boxed()
    }

    fn cached_image<'a>(&'a self, key: &'a str) -> Answer<'a, Option<String>> {
        async move {
            let Some(id) = self.node.cached(IMAGE, key).await? else { return Ok(None) };
            let images = &self.node.0.images;
            let Some(image) = images.resolve(&id).map_err(classify)? else { return Ok(None) };
            // One that is removed at this moment is not there.
            let Ok(pin) = images.pin(&image.id) else { return Ok(None) };
            self.kept.keep(pin);
            Ok(Some(image.id.to_string()))
        }
        .boxed()
    }

    fn remember_image<'a>(&'a self, key: &'a str, id: &'a str) -> Answer<'a, ()> {
        self.node.remember(IMAGE, key, id.to_owned()).boxed()
    }

    fn create_image<'a>(
        &'a self,
        config: Value,
        layers: &'a [LayerId],
        tags: &'a [String],
    ) -> Answer<'a, String> {
        async move {
            let digests = layers.iter().map(|layer| layer.0.parse()).collect::<Result<Vec<Digest>, _>>();
            let digests =
                digests.map_err(|source| infrastructure("a layer's digest is malformed", source))?;
            let images = &self.node.0.images;
            let image = images.create_image(config, &digests, tags).await.map_err(classify)?;
            self.kept.keep(images.pin(&image.id).map_err(classify)?);
            Ok(image.id.to_string())
        }
        .boxed()
    }

    fn tag_image<'a>(&'a self, id: &'a str, tags: &'a [String]) -> Answer<'a, ()> {
        async move {
            for tag in tags {
                self.node.0.images.tag(id, tag).await.map_err(classify)?;
            }
            Ok(())
        }
        .boxed()
    }
}

impl Node {
    async fn cached(&self, kind: &'static str, key: &str) -> Result<Option<String>, RunnerError> {
        let key = key.to_owned();
        self.with_store(move |store| store.cached(kind, &key)).await.map_err(unreadable_cache)
    }

    async fn remember(&self, kind: &'static str, key: &str, value: String) -> Result<(), RunnerError> {
        let key = key.to_owned();
        self.with_store(move |store| store.remember(kind, &key, &value)).await.map_err(unreadable_cache)
    }
}

fn unreadable_cache(source: Error) -> RunnerError {
    infrastructure("the build cache failed", source)
}

/// One step's sandbox.
struct BuildStep {
    node: Node,
    machine: Arc<dyn Machine>,
    /// What is set aside for it.
    _grant: Grant,
    kept: Kept,
    sink: Sink,
}

impl Step for BuildStep {
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        async move {
            self.make_dir(&spec.cwd, None).await?;
            let id = Uuid::now_v7().simple().to_string();
            let spec = ExecSpec {
                env: spec.env.into_iter().collect(),
                cwd: spec.cwd,
                user: Some(spec.user).filter(|user| !user.is_empty()),
                plain_env: true,
                // A step that lost its reader is over: nobody comes back for its output.
                keep: Some(KeepOutput { bytes: 0, when_full: WhenFull::Wait }),
                ..ExecSpec::new(id, Command::Argv(spec.argv))
            };
            let mut exec = self.machine.guest().exec(spec).await.map_err(guest_failed)?;
            while let Some(event) = exec.next().await {
                match event.map_err(guest_failed)? {
                    ExecOutput::Started { .. } => {}
                    ExecOutput::Output { data, .. } => output(&data),
                    // The step has one reader, which was there from the start.
                    ExecOutput::Gap { .. } | ExecOutput::Detached => break,
                    ExecOutput::Exited(status) => {
                        if let Some(message) = status.message {
                            output(format!("{message}\n").as_bytes());
                        }
                        return Ok(status.exit_code);
                    }
                }
            }
            Err(RunnerError::Infrastructure {
                message: "the command's end was not told".into(),
                source: None,
            })
        }
        .boxed()
    }

    fn unpack<'a>(
        &'a mut self,
        target: &'a str,
        owner: Owner,
        mode: Option<u32>,
        tar: Tar,
    ) -> Answer<'a, ()> {
        async move {
            let owner = match owner {
                Owner::Root => guest::Owner::Root,
                Owner::Keep => guest::Owner::Keep,
                Owner::Spec(spec) => guest::Owner::User(spec),
            };
            let spec = UnpackSpec { path: target.to_owned(), owner, mode };
            let report = self.machine.guest().unpack(spec, tar).await.map_err(guest_failed)?;
            if let Some(first) = report.skipped.first() {
                let (path, why, count) = (&first.path, &first.why, report.skipped_count);
                let text = format!("warning: left out {path}, {why} ({count} left out in all)");
                (self.sink)(Progress::Message { text });
            }
            match report.refused.first() {
                None => Ok(()),
                Some(first) => Err(RunnerError::User {
                    message: format!(
                        "{}: {} ({} refused in all)",
                        first.path, first.why, report.refused_count
                    ),
                    source: None,
                }),
            }
        }
        .boxed()
    }

    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar> {
        async move {
            // What the machine mounts into a sandbox, and the places it made for that, are not the stage's files.
            let (exclude, one_mount) = (stubs_below(path, &self.machine.stubs()), true);
            let spec = PackSpec {
                path: path.to_owned(),
                exclude,
                follow: true,
                xattrs: true,
                one_mount,
                ..PackSpec::default()
            };
            let pack = self.machine.guest().pack(spec).await.map_err(guest_failed)?;
            // The stream needs the sandbox: it must outlive the step that it was made for.
            Ok(Box::new(Held { inner: pack, _machine: self.machine.clone() }) as Tar)
        }
        .boxed()
    }

    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>> {
        async move { self.machine.guest().glob(pattern).await.map_err(guest_failed) }.boxed()
    }

    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>> {
        self.stat_path(path).boxed()
    }

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        self.make_dir(path, owner).boxed()
    }

    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        async move {
            let disk = self.machine.take_disk().await;
            let disk = disk.map_err(|source| infrastructure("cannot end the step's sandbox", source))?;
            if is_empty(disk.upper())
                .map_err(|source| infrastructure("cannot read the step's layer", source))?
            {
                return Ok(None);
            }
            let (layer, hold) = self.node.0.images.adopt_layer(disk.upper()).await.map_err(classify)?;
            self.kept.keep(hold);
            Ok(Some(LayerId(layer.diff_id.to_string())))
        }
        .boxed()
    }
}

impl BuildStep {
    /// Makes a directory and those above it that are missing; all of these get the owner.
    async fn make_dir(&self, path: &str, owner: Option<&str>) -> Result<(), RunnerError> {
        let mut missing = Vec::new();
        for above in Path::new(path).ancestors().filter_map(Path::to_str).take_while(|above| *above != "/") {
            if self.stat_path(above).await?.is_some() {
                break;
            }
            missing.push(above.to_owned());
        }
        for path in missing.iter().rev() {
            self.machine.guest().make_dir(path, owner).await.map_err(guest_failed)?;
        }
        Ok(())
    }

    async fn stat_path(&self, path: &str) -> Result<Option<Stat>, RunnerError> {
        let request = FsRequest::Stat { path: path.to_owned(), user: None };
        let answer = self.machine.guest().fs(request).await.map_err(guest_failed)?;
        Ok(answer.stat.map(|stat| match stat.kind {
            FileKind::Dir => Stat::Dir,
            FileKind::File => Stat::File,
            FileKind::Other => Stat::Other,
        }))
    }
}

/// The stubs below a directory, as patterns of what to leave out of it.
fn stubs_below(dir: &str, stubs: &[PathBuf]) -> Vec<String> {
    let below = stubs.iter().filter_map(|stub| stub.strip_prefix(dir).ok()?.to_str());
    below.filter(|below| !below.is_empty()).map(|below| format!("./{below}")).collect()
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(dir)?.next().is_none())
}

/// A stream and the sandbox that it comes from.
struct Held<R> {
    inner: R,
    _machine: Arc<dyn Machine>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Held<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

fn infrastructure(message: &str, source: impl std::error::Error + Send + Sync + 'static) -> RunnerError {
    RunnerError::Infrastructure { message: message.to_owned(), source: Some(Box::new(source)) }
}

/// An image that a step cannot stand on is no failure of the machine.
fn owners_beyond(source: Error) -> RunnerError {
    match source {
        Error::OwnersBeyond { .. } => {
            let api = berth_types::error::ApiError::from(&source);
            let hint = api.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            RunnerError::User { message: format!("{}{hint}", api.message), source: None }
        }
        other => infrastructure("cannot look at the layers' owners", other),
    }
}

/// The image store knows whose fault its failures are.
fn classify(source: berth_image::Error) -> RunnerError {
    let message = error::chain(&source);
    match source.kind() {
        Kind::User | Kind::NotFound | Kind::Conflict => RunnerError::User { message, source: None },
        _ => RunnerError::Infrastructure { message, source: None },
    }
}

/// What the sandbox's files do not allow is the Dockerfile's affair; all else is ours.
fn guest_failed(source: guest::Error) -> RunnerError {
    let message = error::chain(&source);
    if source.refusal().is_some() {
        return RunnerError::User { message, source: None };
    }
    RunnerError::Infrastructure { message, source: None }
}
