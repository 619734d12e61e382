//! One build's view of the machine: images, layers, the cache, and sandboxes for its steps.

use std::sync::{Arc, Mutex};

use berth_build::runner::{
    Answer, Base, CachedStep, Fetched, LayerId, Remote, Runner, RunnerError, Setting, Step,
};
use berth_image::{Digest, Layer};
use berth_sandbox::{Limits, Machine, StartSpec};
use berth_types::error::Kind;
use berth_types::image::PullPolicy;
use futures_util::FutureExt;
use serde_json::Value;
use uuid::Uuid;

use super::step::BuildStep;
use crate::images::Sink;
use crate::resources::assumed;
use crate::sandboxes::hostname;
use crate::{Error, Node, error};

/// Kinds of rows in the store's cache.
const STEP: &str = "step";
const IMAGE: &str = "image";

/// One build's view of the machine.
pub(super) struct Builder {
    pub(super) node: Node,
    pub(super) sink: Sink,
    pub(super) kept: Kept,
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
                grant,
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
