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
use crate::registry::{Auth, Connection};
use crate::store::{Store, StoreError};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
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

pub(crate) struct Packed {
    file: PathBuf,
    pub(crate) diff_id: Digest,
    pub(crate) blob: Digest,
    pub(crate) size: u64,
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
        Ok(Pushed { manifest, id })
    }

    pub(crate) async fn push_layer(
        &self,
        connection: &Connection,
        layer: &Layer,
        reporter: &Reporter,
    ) -> Result<Packed, Error> {
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let file = scratch.path().join("blob");
        let layer = layer.clone();
        let packed = self.blocking(move |store| pack_gzip(store, &layer, file)).await?;
        let meter = Mutex::new(Meter::start(reporter, packed.blob.short(), "upload", Some(packed.size)));
        let sent = |bytes| meter.lock().unwrap_or_else(PoisonError::into_inner).set(bytes);
        let refused = |trouble| connection.refused("a layer", trouble);
        if connection.has_blob(&packed.blob).await.map_err(refused)? {
            sent(packed.size);
            return Ok(packed);
        }
        let put = connection.put_blob(&packed.blob, &packed.file, packed.size, None, &sent).await;
        put.map_err(refused)?;
        Ok(packed)
    }
}

fn manifest(id: &Digest, config_size: usize, layers: &[Packed]) -> Vec<u8> {
    let layer =
        |packed: &Packed| json!({ "mediaType": LAYER_TYPE, "digest": packed.blob, "size": packed.size });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": id, "size": config_size },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
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
    Ok(Packed { file, diff_id, blob, size })
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
