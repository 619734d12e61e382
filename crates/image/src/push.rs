//! Pushing an image to the registry that a reference names.
//!
//! Layers are packed anew and gzipped. Where Berth did not make a layer itself, its canonical tar has another digest than the
//! one it came with; the pushed config then names the new one, and so the pushed image has an id of its own, which
//! [`Pushed`] says.

use std::fs::File;
use std::path::{Path, PathBuf};

use berth_types::image::BasicAuth;
use futures_util::TryStreamExt;
use oci_client::RegistryOperation;
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Image, Layer};
use crate::images::Images;
use crate::layer::pack::{Tidy, pack};
use crate::progress::{Meter, Reporter};
use crate::reference::{Reference, Version};
use crate::registry::{Connection, RegistryError};
use crate::store::StoreError;

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const STREAM_BUFFER: usize = 256 * 1024;

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

struct Packed {
    file: PathBuf,
    diff_id: Digest,
    blob: Digest,
    size: u64,
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
        let pushed = self.push_inner(image, reference, auth, &reporter).await;
        pushed.map_err(|error| error.at(self.store().root()))
    }

    async fn push_inner(
        &self,
        image: &Image,
        reference: &str,
        auth: Option<BasicAuth>,
        reporter: &Reporter,
    ) -> Result<Pushed, Error> {
        let reference: Reference = reference.parse()?;
        if matches!(reference.version(), Version::Digest(_)) {
            return Err(PushError::ToDigest { reference: reference.to_string() }.into());
        }
        let endpoint = self.registries().upstream(reference.registry());
        let auth = self.registries().credentials(&endpoint, auth.as_ref(), self.docker_config())?;
        let connection = Connection::new(endpoint, auth, &reference)?;
        let logged_in = connection.log_in(RegistryOperation::Push).await;
        logged_in.map_err(|failure| connection.error(failure))?;
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for layer in &image.layers {
            let packed = self.push_layer(&connection, &reference, layer, reporter).await?;
            layers.push(json!({ "mediaType": LAYER_TYPE, "digest": packed.blob, "size": packed.size }));
            diff_ids.push(packed.diff_id);
        }
        let config = config_with(image, &diff_ids);
        let id = Digest::of(&config);
        let size = config.len();
        push_bytes(&connection, &reference, "the config", config, &id).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": { "mediaType": CONFIG_TYPE, "digest": id, "size": size },
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = Digest::of(&manifest);
        let content_type = http::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        let put = connection.client().push_manifest_raw(connection.target(), manifest, content_type).await;
        put.map_err(|source| refused(&connection, &reference, "the manifest", source))?;
        Ok(Pushed { manifest: digest, id })
    }

    async fn push_layer(
        &self,
        connection: &Connection,
        reference: &Reference,
        layer: &Layer,
        reporter: &Reporter,
    ) -> Result<Packed, Error> {
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let file = scratch.path().join("blob");
        let layer = layer.clone();
        let packed =
            self.blocking(move |store| pack_gzip(&store.layers_dir().join(&layer.name), file)).await?;
        let mut meter = Meter::start(reporter, packed.blob.short(), "upload", Some(packed.size));
        let refused = |source| refused(connection, reference, "a layer", source);
        let (client, target) = (connection.client(), connection.target());
        if client.blob_exists(target, packed.blob.as_str()).await.map_err(refused)? {
            meter.set(packed.size);
            return Ok(packed);
        }
        let failed = |source| StoreError::Read { path: packed.file.clone(), source };
        let file = tokio::fs::File::open(&packed.file).await.map_err(failed)?;
        let stream = ReaderStream::with_capacity(file, STREAM_BUFFER)
            .map_err(OciDistributionError::IoError)
            .inspect_ok(move |chunk| meter.add(chunk.len() as u64));
        let pushed = client.push_blob_stream(target, stream, packed.blob.as_str(), Some(packed.size)).await;
        pushed.map_err(refused)?;
        Ok(packed)
    }
}

fn pack_gzip(layer: &Path, file: PathBuf) -> Result<Packed, Error> {
    let failed = |source| StoreError::Write { path: file.clone(), source };
    let out =
        Hashing::new(std::io::BufWriter::with_capacity(STREAM_BUFFER, File::create(&file).map_err(failed)?));
    let gzip = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
    let (gzip, diff_id, _) = pack(layer, Tidy::No, Hashing::new(gzip))?.finish();
    let (out, blob, size) = gzip.finish().map_err(failed)?.finish();
    out.into_inner().map_err(|e| failed(e.into_error()))?;
    Ok(Packed { file, diff_id, blob, size })
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

async fn push_bytes(
    connection: &Connection,
    reference: &Reference,
    what: &'static str,
    bytes: Vec<u8>,
    digest: &Digest,
) -> Result<(), RegistryError> {
    let pushed = connection.client().push_blob(connection.target(), bytes, digest.as_str()).await;
    pushed.map(drop).map_err(|source| refused(connection, reference, what, source))
}

fn refused(
    connection: &Connection,
    reference: &Reference,
    what: &'static str,
    source: OciDistributionError,
) -> RegistryError {
    RegistryError::Push {
        url: connection.url(),
        what,
        reference: reference.to_string(),
        source: source.into(),
    }
}
