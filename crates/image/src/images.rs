//! The handle that everything above holds.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_types::image::{PruneImages, PruneReport};
use serde_json::{Map, Value, json};

use crate::config::RegistryConfig;
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Image, Layer, Platform};
use crate::ingest::take_stock;
use crate::layer::pack::{Tidy, pack, pack_new};
use crate::original::write_original;
use crate::reference::Reference;
use crate::registry::Registries;
use crate::store::{Hold, Pin, Store, StoreError};

/// What [`Images::open`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; one file system must hold all of `layers`, `images` and `tmp` below it.
    pub root: PathBuf,
    /// Which registries to ask, and how.
    pub registry: RegistryConfig,
}

/// The images of one data directory. Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    registries: Arc<Registries>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("root", &self.store.root()).finish_non_exhaustive()
    }
}

impl Images {
    /// Opens the store, making it where it is missing and clearing away what a crash left. Blocks for a moment.
    ///
    /// One process at a time: a second one gets [`StoreError::Locked`].
    pub fn open(options: Options) -> Result<Self, Error> {
        // Another part of the process may have installed it already, and that is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let registries = Registries::new(options.registry, &options.root)?;
        let store = Store::open(&options.root).map_err(|error| Error::from(error).at(&options.root))?;
        Ok(Self { store: Arc::new(store), registries: Arc::new(registries) })
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn registries(&self) -> &Arc<Registries> {
        &self.registries
    }

    /// Runs blocking work on the store off the runtime's own threads.
    pub(crate) async fn blocking<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Arc<Store>) -> Result<T, Error> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        let done =
            tokio::task::spawn_blocking(move || work(&store).map_err(|error| error.at(store.root()))).await;
        match done {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(Error::ShuttingDown),
        }
    }

    // Images.

    /// All images, by id.
    pub fn list(&self) -> Vec<Image> {
        self.store.list()
    }

    /// An image by reference, id, or the beginning of an id (at least four digits); a reference wins.
    pub fn resolve(&self, name: &str) -> Result<Option<Image>, Error> {
        if let Ok(reference) = name.parse::<Reference>()
            && let Some(image) = self.store.by_reference(&reference.to_string())
        {
            return Ok(Some(image));
        }
        if let Some(image) = self.store.by_id(name)? {
            return Ok(Some(image));
        }
        // Neither: then it should at least have been a reference.
        match name.starts_with("sha256:") {
            true => Ok(None),
            false => Ok(name.parse::<Reference>().map(|_| None)?),
        }
    }

    fn existing(&self, name: &str) -> Result<Image, Error> {
        self.resolve(name)?.ok_or_else(|| StoreError::NoImage { name: name.to_owned() }.into())
    }

    /// Points another reference at an image; it may have pointed at another one before.
    pub async fn tag(&self, name: &str, reference: &str) -> Result<Image, Error> {
        let image = self.existing(name)?;
        let reference = reference.parse::<Reference>()?.to_string();
        self.blocking(move |store| Ok(store.tag(&image.id, &reference)?)).await
    }

    /// Removes a reference, and with the last one its image; or, by id, an image with all its references. Layers that no
    /// other image has go with it. Returns the ids of the images that are gone.
    ///
    /// An image that is pinned stays, with an error.
    pub async fn remove(&self, name: &str) -> Result<Vec<Digest>, Error> {
        let image = self.existing(name)?;
        let reference = name.parse::<Reference>().ok().map(|r| r.to_string());
        let reference = reference.filter(|r| image.references.contains(r));
        self.blocking(move |store| match reference {
            Some(reference) => Ok(store.remove_reference(&reference)?),
            None => Ok(store.remove_image(&image.id)?),
        })
        .await
    }

    /// Keeps an image and its layers in the store while the result lives.
    pub fn pin(&self, id: &Digest) -> Result<Pin, Error> {
        Ok(self.store.pin(id)?)
    }

    /// Keeps layers in the store while the result lives: those of a build, which no image names yet.
    pub fn hold(&self, diff_ids: &[Digest]) -> Hold {
        self.store.hold(diff_ids)
    }

    /// Removes layers that no image has, nobody holds, and that were neither made nor held for `unused_for`. Returns them.
    pub async fn gc(&self, unused_for: Duration) -> Result<Vec<Digest>, Error> {
        self.blocking(move |store| Ok(store.collect(unused_for)?)).await
    }

    /// Removes images and layers that nobody uses, what was not used for longest first; with `dry_run` only says which. What is
    /// pinned or held stays. The files go in the background. Cache mounts are not this store's.
    pub async fn prune(&self, asked: PruneImages) -> Result<PruneReport, Error> {
        self.blocking(move |store| Ok(store.prune(&asked)?.report())).await
    }

    /// Bytes of all layers' files.
    pub fn size_bytes(&self) -> u64 {
        self.store.state().layers.values().map(|layer| layer.size_bytes).sum()
    }

    // Layers and builds.

    /// The directory whose entries layers are mounted by.
    pub fn layers_dir(&self) -> PathBuf {
        self.store.layers_dir()
    }

    /// A layer by digest or by name.
    pub fn layer(&self, name: &str) -> Option<Layer> {
        match name.parse::<Digest>() {
            Ok(diff_id) => self.store.layer(&diff_id),
            Err(_) => self.store.layer_by_name(name),
        }
    }

    /// The highest user or group id that a file of these layers belongs to, and the layer that it is in; `None` for no
    /// layers. Known at once, but for layers that came into the store before it was noted: those are walked once.
    pub async fn highest_id(&self, layers: &[Layer]) -> Result<Option<(u32, Digest)>, Error> {
        let mut highest: Option<(u32, Digest)> = None;
        for layer in layers {
            let id = match layer.highest_id {
                Some(id) => id,
                None => self.look_for_highest_id(layer.clone()).await?,
            };
            if highest.as_ref().is_none_or(|(before, _)| id > *before) {
                highest = Some((id, layer.diff_id.clone()));
            }
        }
        Ok(highest)
    }

    async fn look_for_highest_id(&self, layer: Layer) -> Result<u32, Error> {
        self.blocking(move |store| {
            let facts = take_stock(&store.layers_dir().join(&layer.name), layer.diff_id.short())?;
            store.note_highest_id(&layer, facts.highest_id)?;
            Ok(facts.highest_id)
        })
        .await
    }

    /// Makes the tree at `dir` (an overlay's upper directory, no longer mounted, on the store's file system) a layer. The
    /// directory is gone afterwards, into the store or, when the same layer is there already, for good. Sockets in it
    /// and overlayfs's own attributes are dropped.
    ///
    /// No image names the layer yet, and one that has the same may be removed at any time: keep the hold until one does.
    ///
    /// When the future is dropped, packing ends soon after.
    ///
    /// # Errors
    /// [`crate::PackError::TooLarge`] when the files, holes included, are longer than a layer may be.
    pub async fn adopt_layer(&self, dir: &Path) -> Result<(Layer, Hold), Error> {
        let dir = dir.to_owned();
        let waiting = GiveUp::default();
        let given_up = Arc::clone(&waiting.0);
        self.blocking(move |store| {
            let (_, diff_id, _) = pack_new(&dir, &given_up, Hashing::new(std::io::sink()))?.finish();
            let facts = take_stock(&dir, "the new layer")?;
            let hold = store.hold(std::slice::from_ref(&diff_id));
            Ok((store.commit_layer(&dir, &diff_id, facts, None)?, hold))
        })
        .await
    }

    /// Makes an image of layers in the store. `config` is an image config without `rootfs`; `os` and `architecture` are this
    /// machine's where it names none.
    pub async fn create_image(
        &self,
        config: Value,
        layers: &[Digest],
        references: &[String],
    ) -> Result<Image, Error> {
        let references: Vec<String> = references
            .iter()
            .map(|reference| Ok(reference.parse::<Reference>()?.to_string()))
            .collect::<Result<_, Error>>()?;
        let Value::Object(config) = config else {
            return Err(StoreError::NotAConfig.into());
        };
        let config = complete_config(config, layers);
        self.blocking(move |store| Ok(store.put_image(config, &references)?)).await
    }

    /// Writes the tar that a layer came as: the one whose digest is its diff id. When it turns out at the end that it is not
    /// (the layer is damaged, or too old for its headers to have been kept), this fails and what was written is worth nothing.
    pub async fn write_original<W: Write + Send + 'static>(
        &self,
        diff_id: &Digest,
        writer: W,
    ) -> Result<W, Error> {
        let diff_id = diff_id.clone();
        self.blocking(move |store| {
            let layer = store.layer(&diff_id).ok_or(StoreError::NoLayer { diff_id })?;
            Ok(write_original(store, &layer, writer)?)
        })
        .await
    }

    /// Writes a layer's canonical tar, and returns the writer with the tar's digest: the layer's own where Berth made the
    /// layer, mostly another where it was pulled or imported.
    pub async fn pack_layer<W: Write + Send + 'static>(
        &self,
        diff_id: &Digest,
        writer: W,
    ) -> Result<(W, Digest), Error> {
        let diff_id = diff_id.clone();
        self.blocking(move |store| {
            let layer = store.layer(&diff_id).ok_or(StoreError::NoLayer { diff_id })?;
            let dir = store.layers_dir().join(&layer.name);
            let (writer, digest, _) = pack(&dir, Tidy::No, Hashing::new(writer))?.finish();
            Ok((writer, digest))
        })
        .await
    }
}

/// Tells work on another thread that nobody waits for it any more.
#[derive(Default)]
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The config's bytes, with `rootfs` and, where missing, the platform filled in.
pub(crate) fn complete_config(mut fields: Map<String, Value>, layers: &[Digest]) -> Vec<u8> {
    let host = Platform::host();
    fields.entry("os").or_insert_with(|| host.os.into());
    fields.entry("architecture").or_insert_with(|| host.architecture.into());
    fields.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": layers }));
    Value::Object(fields).to_string().into_bytes()
}
