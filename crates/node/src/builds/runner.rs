//! One build's view of the machine: images, layers, the cache, and sandboxes for its steps.

use std::sync::{Arc, Mutex};

use berth_build::runner::{
    Answer, Base, CachedStep, Fetched, LayerId, Remote, Runner, RunnerError, Setting, Step,
};
use berth_image::{Auth, Digest, Image, Layer, Reference};
use berth_sandbox::{Bind, Limits, Machine, StartSpec};
use berth_types::error::Kind;
use berth_types::image::{BasePull, PullPolicy};
use berth_types::progress::Progress;
use futures_util::FutureExt;
use serde_json::Value;
use uuid::Uuid;

use super::mounts::{InUse, Mounted};
use super::remotes::Remotes;
use super::settings::Settings;
use super::slots::Slot;
use super::step::{BuildStep, Held};
use crate::images::Sink;
use crate::resources::assumed;
use crate::sandboxes::hostname;
use crate::{Error, Node, error};

/// Kinds of rows in the store's cache.
pub(crate) const STEP: &str = "step";
pub(crate) const IMAGE: &str = "image";

/// Kind of the rows that tell which image a registry gave for a reference.
const PULLED: &str = "pulled";

/// One build's view of the machine.
pub(super) struct Builder {
    pub(super) node: Node,
    pub(super) sink: Sink,
    pub(super) kept: Kept,
    pub(super) settings: Settings,
    pub(super) remotes: Remotes,
    /// Id of the image that the sandbox was made of in which this is replayed; in a build there is none.
    pub(super) own: Option<Digest>,
}

/// Keeps what a build stands on, and what it has made, in the store until it is over: others may remove images that
/// share it meanwhile.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<Box<dyn Send + Sync>>>>);

impl Kept {
    pub(super) fn keep(&self, what: impl Send + Sync + 'static) {
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

    /// An image of the store, by id.
    fn image_here(&self, id: &Digest) -> Result<Base, RunnerError> {
        let images = &self.node.0.images;
        self.kept.keep(images.pin(id).map_err(classify)?);
        let image =
            images.resolve(id.as_str()).map_err(classify)?.ok_or_else(|| RunnerError::Infrastructure {
                message: format!("image {id} is gone from the store"),
                source: None,
            })?;
        let layers = image.layers.iter().map(|layer| LayerId(layer.diff_id.to_string())).collect();
        Ok(Base { id: image.id.to_string(), config: image.config_json(), layers })
    }

    fn layer_exists(&self, id: &LayerId) -> bool {
        self.layer(id).is_ok()
    }

    /// Directory names of layers, the topmost first, as the jail wants them; held until the build is over.
    pub(super) fn names(&self, layers: &[LayerId]) -> Result<Vec<String>, RunnerError> {
        let layers = layers.iter().rev().map(|id| self.layer(id)).collect::<Result<Vec<_>, _>>()?;
        let digests: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        self.kept.keep(self.node.0.images.hold(&digests));
        Ok(layers.into_iter().map(|layer| layer.name).collect())
    }

    /// Waits until one step more may run.
    pub(super) async fn slot(&self) -> Result<Slot, RunnerError> {
        let waits = |most: usize| {
            let text = format!("waiting for other builds: {most} steps run at a time");
            (self.sink)(Progress::Message { text });
        };
        let slot = self.node.0.builds.slots.take(waits).await;
        slot.map_err(|source| infrastructure("the daemon is ending", source))
    }

    /// The image of the sandbox in which this is replayed, where a reference still names that: it was asked for when the
    /// sandbox was made, and is not to become another one meanwhile.
    fn own_by_name(&self, reference: &str) -> Result<Option<Digest>, RunnerError> {
        let Some(own) = &self.own else { return Ok(None) };
        let named = self.node.0.images.resolve(reference).map_err(classify)?;
        Ok(named.map(|image| image.id).filter(|id| id == own))
    }

    /// Starts a sandbox on layers, the lowest first.
    pub(super) async fn start(
        &self,
        layers: &[LayerId],
        opening: Opening,
    ) -> Result<Arc<dyn Machine>, RunnerError> {
        let names = self.names(layers)?;
        // As the sandboxes of the image that is built, so that owners mean the same in both.
        let user_namespace = self.node.0.user_namespaces && self.node.0.driver.features().user_namespace;
        if user_namespace {
            let layers = layers.iter().map(|id| self.layer(id)).collect::<Result<Vec<_>, _>>()?;
            self.node.check_owners(&layers).await.map_err(owners_beyond)?;
        }
        let id = Uuid::now_v7().simple().to_string();
        let spec = StartSpec {
            hostname: hostname(&id),
            id: format!("build-{id}"),
            layers: names,
            public_network: opening.public_network,
            limits: opening.limits,
            binds: opening.binds,
            mounts: opening.mounts,
            bare: opening.bare,
            user_namespace,
            ..StartSpec::default()
        };
        let started = self.node.0.driver.start(spec).await;
        started.map_err(|source| match error::is_mount_target(&source) {
            true => RunnerError::User { message: error::chain(&source), source: None },
            false => infrastructure("cannot start a sandbox for the step", source),
        })
    }
}

/// What a sandbox of a build is started with beside its layers.
#[derive(Default)]
pub(super) struct Opening {
    pub(super) public_network: bool,
    pub(super) limits: Limits,
    pub(super) binds: Vec<Bind>,
    pub(super) mounts: Vec<berth_sandbox::Mount>,
    /// Whether only files are put into it or taken from it.
    pub(super) bare: bool,
}

impl Runner for Builder {
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base> {
        let reference = reference.to_owned();
        async move {
            if let Some(own) = self.own_by_name(&reference)? {
                return self.image_here(&own);
            }
            if let Some((_, id)) = self.settings.named.as_ref().filter(|(name, _)| *name == reference) {
                return self.image_here(id);
            }
            let policy = match self.settings.pull {
                BasePull::Missing => PullPolicy::Missing,
                BasePull::Refresh if self.node.is_made_here(&reference).await? => PullPolicy::Never,
                BasePull::Refresh => PullPolicy::Always,
                BasePull::Never => PullPolicy::Never,
            };
            let auth = match self.settings.auth.is_empty() {
                true => Auth::Configured,
                false => Auth::Hosts(Arc::new(self.settings.auth.clone())),
            };
            let pulled = self.node.pull(&reference, policy, auth, self.sink.clone()).await;
            let image = pulled.map_err(|error| match error {
                Error::Image(source) => classify(*source),
                other => infrastructure("cannot note where an image came from", other),
            })?;
            self.image_here(&image.id)
        }
        .boxed()
    }

    fn open<'a>(&'a self, layers: &'a [LayerId], setting: Setting) -> Answer<'a, Box<dyn Step>> {
        async move {
            // Caches before the slot: a step that waits for another's cache keeps no third one waiting. Who has a slot has
            // all that it needs but a lender, which needs none.
            let Mounted { mounts, leases } = self.mounted(&setting.mounts).await?;
            let slot = self.slot().await?;
            // Set aside without waiting: the steps of a replay are waited for by a sandbox that holds room itself, and two
            // that waited for each other's would never end. The slots bound how much it can be.
            let grant = self.node.0.admission.commit(self.settings.wants);
            let trust = self.node.0.trust.builds.clone();
            let opening = Opening {
                public_network: self.settings.public_network && !setting.no_network,
                limits: self.settings.limits,
                binds: trust.bind().into_iter().filter(|_| setting.runs).collect(),
                mounts,
                bare: !setting.runs,
            };
            let machine = self.start(layers, opening).await?;
            Ok(Box::new(BuildStep {
                node: self.node.clone(),
                inside: InUse { machine, leases },
                held: Held { _grant: grant, _slot: Some(slot) },
                trust,
                limits: self.settings.limits,
                kept: self.kept.clone(),
                sink: self.sink.clone(),
            }) as Box<dyn Step>)
        }
        .boxed()
    }

    fn lend<'a>(&'a self, layers: &'a [LayerId]) -> Answer<'a, Box<dyn Step>> {
        async move {
            // A replay's steps have no slot.
            let slot = match self.own {
                Some(_) => Some(self.slot().await?),
                None => None,
            };
            let grant = self.node.0.admission.commit(assumed(&self.node.0.limits));
            // It runs nothing of the Dockerfile's: its limits are for steps.
            let machine = self.start(layers, Opening { bare: true, ..Opening::default() }).await?;
            Ok(Box::new(BuildStep {
                node: self.node.clone(),
                inside: InUse { machine, leases: Vec::new() },
                held: Held { _grant: grant, _slot: slot },
                trust: self.node.0.trust.builds.clone(),
                limits: Limits::default(),
                kept: self.kept.clone(),
                sink: self.sink.clone(),
            }) as Box<dyn Step>)
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, remote: &'a Remote) -> Answer<'a, Arc<Fetched>> {
        self.bring(remote).boxed()
    }

    fn secret(&self, id: &str) -> Option<Vec<u8>> {
        self.settings.secrets.get(id).cloned()
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
    /// Pulls an image, and notes whether its reference came from a registry.
    pub(crate) async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: Auth,
        sink: Sink,
    ) -> Result<Image, Error> {
        let images = &self.0.images;
        let asks = policy == PullPolicy::Always || images.resolve(reference)?.is_none();
        let image = images.pull_as(reference, policy, auth, sink).await?;
        if asks {
            let (key, id) = (normal(reference), image.id.to_string());
            self.with_store(move |store| store.remember(PULLED, &key, &id)).await?;
        }
        Ok(image)
    }

    /// Whether a reference points at an image that no registry gave for it: it was built, imported or tagged on this machine.
    async fn is_made_here(&self, reference: &str) -> Result<bool, RunnerError> {
        let Some(image) = self.0.images.resolve(reference).map_err(classify)? else { return Ok(false) };
        let pulled = self.cached(PULLED, &normal(reference)).await?;
        Ok(pulled.as_deref() != Some(image.id.as_str()))
    }

    async fn cached(&self, kind: &'static str, key: &str) -> Result<Option<String>, RunnerError> {
        let key = key.to_owned();
        self.with_store(move |store| store.cached(kind, &key)).await.map_err(unreadable_cache)
    }

    async fn remember(&self, kind: &'static str, key: &str, value: String) -> Result<(), RunnerError> {
        let key = key.to_owned();
        self.with_store(move |store| store.remember(kind, &key, &value)).await.map_err(unreadable_cache)
    }
}

/// A reference in full.
fn normal(reference: &str) -> String {
    reference.parse::<Reference>().map_or_else(|_| reference.to_owned(), |parsed| parsed.to_string())
}

fn unreadable_cache(source: Error) -> RunnerError {
    infrastructure("the build cache failed", source)
}

pub(super) fn infrastructure(
    message: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> RunnerError {
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
pub(super) fn classify(source: berth_image::Error) -> RunnerError {
    let message = error::chain(&source);
    match source.kind() {
        Kind::User | Kind::NotFound | Kind::Conflict => RunnerError::User { message, source: None },
        _ => RunnerError::Infrastructure { message, source: None },
    }
}
