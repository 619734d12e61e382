//! Pushing an image to the registry that a reference names.
//!
//! A layer goes as the tar that it came as, gzipped, so that digests stay what they were. One that came into the store when
//! that was not kept yet is packed anew; the pushed config then names its new digest, and so the pushed image has an id of its
//! own, which [`Pushed`] says. What the registry has already is not sent.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use berth_types::image::BasicAuth;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Image, Layer};
use crate::images::Images;
use crate::layer::pack::{Tidy, pack};
use crate::original::{OriginalError, write_original};
use crate::progress::{Meter, Reporter};
use crate::reference::{Reference, Version};
use crate::registry::error::Trouble;
use crate::registry::known::KnownBlob;
use crate::registry::{Auth, Connection};
use crate::store::{Store, StoreError};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const WRITE_BUFFER: usize = 256 * 1024;

/// Why an image cannot be pushed, beyond what the registry and the store say.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A push needs a name that can be made to point at something.
    #[error("cannot push to {reference}: a digest is the result of a push, not its target")]
    ToDigest {
        /// The reference.
        reference: String,
    },
}

/// What a push put into the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Digest of the manifest, by which it can be pulled.
    pub manifest: Digest,
    /// Id of the pushed image; another than the local one's where layers had to be packed differently.
    pub id: Digest,
}

/// A layer that the repository has now.
pub(crate) struct Packed {
    /// Digest of its tar.
    pub(crate) diff_id: Digest,
    /// As the repository has it.
    pub(crate) blob: KnownBlob,
}

impl Images {
    /// Pushes an image to the registry that `reference` names, never to a mirror of it.
    pub async fn push(
        &self,
        image: &Image,
        reference: &str,
        auth: Option<BasicAuth>,
        reporter: Reporter,
    ) -> Result<Pushed, Error> {
        let _pin = self.pin(&image.id)?;
        let pushed = self.push_inner(image, reference, auth.into(), &reporter).await;
        pushed.map_err(|error| error.at(self.store().root()))
    }

    async fn push_inner(
        &self,
        image: &Image,
        reference: &str,
        auth: Auth,
        reporter: &Reporter,
    ) -> Result<Pushed, Error> {
        let reference: Reference = reference.parse()?;
        let Version::Tag(tag) = reference.version() else {
            return Err(PushError::ToDigest { reference: reference.to_string() }.into());
        };
        let registries = self.registries();
        let endpoint = registries.config.upstream(reference.registry());
        let connection = registries.connect(endpoint, &auth, &reference, "pull,push", reporter).await?;
        let pushes: Vec<_> =
            image.layers.iter().map(|layer| self.push_layer(&connection, layer, reporter)).collect();
        let at_once = registries.config.parallel_downloads;
        let pushes = futures_util::stream::iter(pushes).buffered(at_once);
        let layers: Vec<Packed> = pushes.try_collect().await?;
        let diff_ids: Vec<Digest> = layers.iter().map(|packed| packed.diff_id.clone()).collect();
        let config = config_with(image, &diff_ids);
        let id = Digest::of(&config);
        let manifest = manifest(&id, config.len(), &layers);
        let put = connection.put_small(&id, config).await;
        put.map_err(|trouble| connection.refused("the config", trouble))?;
        let put = connection.put_manifest(manifest, MANIFEST_TYPE, tag).await;
        let manifest = put.map_err(|trouble| connection.refused("the manifest", trouble))?;
        self.blocking(move |store| {
            let found = layers.into_iter().map(|packed| (packed.diff_id, packed.blob)).collect();
            connection.note(found, |diff_id| store.layer(diff_id).is_some());
            Ok(())
        })
        .await?;
        Ok(Pushed { manifest, id })
    }

    /// Sees to it that the repository has a layer: it has it, another repository of the registry gives it, or it is sent.
    pub(crate) async fn push_layer(
        &self,
        connection: &Connection,
        layer: &Layer,
        reporter: &Reporter,
    ) -> Result<Packed, Error> {
        let refused = |trouble| connection.refused("a layer", trouble);
        if let Some(blob) = self.registries().known.blob(&layer.diff_id)
            && is_there(connection, &blob).await.map_err(refused)?
        {
            upload(reporter, &blob).set(blob.size);
            return Ok(Packed { diff_id: layer.diff_id.clone(), blob });
        }
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let file = scratch.path().join("blob");
        let (layer, into) = (layer.clone(), file.clone());
        let packed = self.blocking(move |store| pack_gzip(store, &layer, into)).await?;
        let (digest, size) = (&packed.blob.digest, packed.blob.size);
        let meter = Mutex::new(upload(reporter, &packed.blob));
        let sent = |bytes| meter.lock().unwrap_or_else(PoisonError::into_inner).set(bytes);
        if connection.has_blob(digest).await.map_err(refused)? {
            sent(size);
        } else {
            connection.put_blob(digest, &file, size, &sent).await.map_err(refused)?;
        }
        Ok(packed)
    }
}

fn upload(reporter: &Reporter, blob: &KnownBlob) -> Meter {
    Meter::start(reporter, blob.digest.short(), "upload", Some(blob.size))
}

/// Whether the registry has a blob that was there or near it before, so that it need be neither packed nor sent.
async fn is_there(connection: &Connection, blob: &KnownBlob) -> Result<bool, Trouble> {
    if connection.has_blob(&blob.digest).await? {
        return Ok(true);
    }
    let (registry, repository) = connection.place();
    match blob.elsewhere(registry, repository) {
        Some(from) => connection.mount(&blob.digest, &from).await,
        None => Ok(false),
    }
}

/// A layer as manifests describe it, by the names that OCI has for its kinds.
pub(crate) fn descriptor(packed: &Packed) -> Value {
    let blob = &packed.blob;
    let media_type = match blob.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER_TYPE,
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        other => other,
    };
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

fn manifest(id: &Digest, config_size: usize, layers: &[Packed]) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": id, "size": config_size },
        "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

/// The layer as it came, or packed anew where that is no longer known.
fn pack_gzip(store: &Store, layer: &Layer, file: PathBuf) -> Result<Packed, Error> {
    let gzip = gzip(&file)?;
    let (gzip, diff_id) = match write_original(store, layer, gzip) {
        Ok(gzip) => (gzip, layer.diff_id.clone()),
        Err(OriginalError::NotKept { .. }) => {
            let anew = self::gzip(&file)?;
            let dir = store.layers_dir().join(&layer.name);
            let (anew, diff_id, _) = pack(&dir, Tidy::No, Hashing::new(anew))?.finish();
            (anew, diff_id)
        }
        Err(error) => return Err(error.into()),
    };
    let failed = |source| StoreError::Write { path: file.clone(), source };
    let (out, blob, size) = gzip.finish().map_err(failed)?.finish();
    out.into_inner().map_err(|e| failed(e.into_error()))?;
    Ok(Packed { diff_id, blob: KnownBlob::new(blob, size, LAYER_TYPE) })
}

fn gzip(file: &Path) -> Result<GzEncoder<Hashing<BufWriter<File>>>, StoreError> {
    let made = File::create(file).map_err(|source| StoreError::Write { path: file.to_owned(), source })?;
    let out = Hashing::new(BufWriter::with_capacity(WRITE_BUFFER, made));
    Ok(GzEncoder::new(out, flate2::Compression::fast()))
}

fn config_with(image: &Image, diff_ids: &[Digest]) -> Vec<u8> {
    if image.layers.iter().map(|l| &l.diff_id).eq(diff_ids) {
        return image.raw_config().to_vec();
    }
    let mut config = image.config_json();
    if let Value::Object(fields) = &mut config {
        fields.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    }
    config.to_string().into_bytes()
}
