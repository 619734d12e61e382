//! Pulling: from a reference to an image in the store.

use std::collections::HashSet;

use berth_types::image::BasicAuth;
use futures_util::{StreamExt, TryStreamExt};
use oci_client::RegistryOperation;
use oci_client::manifest::OciDescriptor;

use crate::digest::{Digest, DigestError};
use crate::error::Error;
use crate::image::{Image, ParsedConfig, Platform, parse_config};
use crate::images::Images;
use crate::ingest::{Expected, ingest, open};
use crate::manifest::{Manifest, NoPlatform, choose, is_layer_type, parse};
use crate::progress::{Meter, Reporter, say};
use crate::reference::Reference;
use crate::registry::{Connection, Failure, Failures, RegistryError};
use crate::store::{MAX_CONFIG, StoreError};

const PARALLEL_LAYERS: usize = 3;

/// Why a pull failed, beyond what the registry and the store say.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// Policy `never`, and the image is not here.
    #[error("image {reference} is not in the store, and the pull policy is never to ask a registry")]
    NotLocal {
        /// The image.
        reference: String,
    },
    /// The image is for other machines.
    #[error(transparent)]
    Platform(#[from] NoPlatform),
    /// Config and manifest disagree.
    #[error("image {reference} names {manifest} layers in its manifest and {config} in its config")]
    LayerCount {
        /// The image.
        reference: String,
        /// Layers of the manifest.
        manifest: usize,
        /// Layers of the config.
        config: usize,
    },
    /// A digest in the manifest is none.
    #[error("the manifest of image {reference} names a bad digest")]
    Digest {
        /// The image.
        reference: String,
        /// What is wrong.
        #[source]
        source: DigestError,
    },
}

/// A manifest for this machine, and who had it.
struct Found {
    connection: Connection,
    config: OciDescriptor,
    layers: Vec<OciDescriptor>,
}

impl Images {
    pub(crate) async fn fetch(
        &self,
        reference: &Reference,
        auth: Option<&BasicAuth>,
        reporter: &Reporter,
    ) -> Result<Image, Error> {
        let found = self.find(reference, auth, reporter).await?;
        let raw = found.connection.small_blob(&found.config, MAX_CONFIG).await?;
        let id = Digest::of(&raw);
        let config = parse_config(&raw).map_err(|source| StoreError::Config { id, source })?;
        check_config(reference, &found, &config)?;
        let hold = self.store().hold(&config.diff_ids);
        self.fetch_layers(&found, &config.diff_ids, reporter).await?;
        let references = vec![reference.to_string()];
        let image = self.blocking(move |store| Ok(store.put_image(raw, &references)?)).await?;
        drop(hold);
        Ok(image)
    }

    /// Asks every endpoint in turn for a manifest.
    async fn find(
        &self,
        reference: &Reference,
        auth: Option<&BasicAuth>,
        reporter: &Reporter,
    ) -> Result<Found, Error> {
        let mut failures = Failures::default();
        for endpoint in self.registries().endpoints(reference)? {
            let auth = self.registries().credentials(&endpoint, auth, self.docker_config())?;
            let connection = Connection::new(endpoint, auth, reference)?;
            say(reporter, format!("looking for {reference} at {}", connection.url()));
            match manifest_here(&connection, reference).await {
                Ok(Ok((config, layers))) => return Ok(Found { connection, config, layers }),
                Ok(Err(failure)) => failures.add(&connection, failure)?,
                Err(error) => return Err(error),
            }
        }
        Err(failures.into_error(reference).into())
    }

    async fn fetch_layers(
        &self,
        found: &Found,
        diff_ids: &[Digest],
        reporter: &Reporter,
    ) -> Result<(), Error> {
        // Images may hold the same layer twice (the empty one, mostly).
        let mut seen = HashSet::new();
        let wanted = diff_ids.iter().zip(&found.layers).filter(|(diff_id, _)| seen.insert(*diff_id));
        // The futures are made here and not in the stream: a closure over borrowed pairs there would keep the whole
        // future from being `Send`.
        let fetches: Vec<_> = wanted
            .map(|(diff_id, layer)| self.fetch_layer(&found.connection, diff_id, layer, reporter))
            .collect();
        futures_util::stream::iter(fetches).buffer_unordered(PARALLEL_LAYERS).try_collect::<()>().await
    }

    async fn fetch_layer(
        &self,
        connection: &Connection,
        diff_id: &Digest,
        layer: &OciDescriptor,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let flight = self.store().flight(diff_id).lock_owned().await;
        if self.store().layer(diff_id).is_some() {
            return Ok(());
        }
        let reference = connection.target().whole();
        let blob: Digest = layer.digest.parse().map_err(|source| PullError::Digest { reference, source })?;
        let total = u64::try_from(layer.size).ok();
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let file = scratch.path().join("blob");
        let meter = std::sync::Mutex::new(Meter::start(reporter, blob.short(), "download", total));
        let progress = |bytes| {
            if let Ok(mut meter) = meter.lock() {
                meter.set(bytes);
            }
        };
        connection.blob_to_file(layer, &file, &progress).await?;
        let meter = Meter::start(reporter, blob.short(), "unpack", total);
        // The blob's digest was verified while it was downloaded.
        let expected =
            Expected { layer: format!("layer {blob}"), blob: None, diff_id: Some(diff_id.clone()) };
        self.blocking(move |store| {
            // Both live until the work is done, even when nobody waits for it any longer.
            let (_scratch, _flight) = (scratch, flight);
            ingest(store, open(&file)?, &expected, meter)?;
            Ok(())
        })
        .await
    }
}

type Descriptors = (OciDescriptor, Vec<OciDescriptor>);

/// The manifest for this machine at one endpoint. The inner error lets the next endpoint be asked.
async fn manifest_here(
    connection: &Connection,
    reference: &Reference,
) -> Result<Result<Descriptors, Failure>, Error> {
    if let Err(failure) = connection.log_in(RegistryOperation::Pull).await {
        return Ok(Err(failure));
    }
    let mut digest = None;
    // An index may lead to a manifest, but not to another index.
    for _ in 0..2 {
        let bytes = match connection.manifest(digest.as_ref()).await {
            Ok(bytes) => bytes,
            Err(failure) => return Ok(Err(failure)),
        };
        let malformed = |source| RegistryError::Manifest { reference: reference.to_string(), source };
        match parse(&bytes).map_err(malformed)? {
            Manifest::Image { config, layers } => return Ok(Ok((config, layers))),
            Manifest::Index(entries) => {
                let name = format!("image {reference}");
                let entry = choose(&name, &entries, &Platform::host()).map_err(PullError::from)?;
                let bad = |source| PullError::Digest { reference: reference.to_string(), source };
                digest = Some(entry.digest.parse().map_err(bad)?);
            }
            Manifest::Other(media_type) => return Err(unsupported(reference, "a manifest", media_type)),
        }
    }
    Err(unsupported(reference, "an index within an index", "index".to_owned()))
}

fn check_config(reference: &Reference, found: &Found, config: &ParsedConfig) -> Result<(), Error> {
    if let Some(layer) = found.layers.iter().find(|l| !is_layer_type(&l.media_type)) {
        return Err(unsupported(reference, "a layer", layer.media_type.clone()));
    }
    check_platform(&format!("image {reference}"), config).map_err(PullError::from)?;
    let (manifest, config) = (found.layers.len(), config.diff_ids.len());
    if manifest != config {
        return Err(PullError::LayerCount { reference: reference.to_string(), manifest, config }.into());
    }
    Ok(())
}

/// An image without an index says only in its config what it is for.
pub(crate) fn check_platform(name: &str, config: &ParsedConfig) -> Result<(), NoPlatform> {
    let host = Platform::host();
    match host.runs(&config.platform) {
        true => Ok(()),
        false => Err(NoPlatform {
            name: name.to_owned(),
            wanted: host.to_string(),
            available: vec![config.platform.to_string()],
        }),
    }
}

fn unsupported(reference: &Reference, what: &'static str, media_type: String) -> Error {
    RegistryError::MediaType { reference: reference.to_string(), what, media_type }.into()
}
