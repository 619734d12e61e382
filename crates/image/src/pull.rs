//! Pulling: from a reference to an image in the store.
//!
//! Pulls of one reference with the same credentials are one pull (`flights.rs`). Layers come in parallel, and each is unpacked
//! while it is downloaded; a layer that several images have is fetched once. A part that one place turns out to lack is
//! fetched from the next.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use berth_types::image::{BasicAuth, PullPolicy};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::OwnedMutexGuard;

use crate::digest::Digest;
use crate::error::Error;
use crate::flights::FlightError;
use crate::image::{Image, ParsedConfig, Platform, parse_config};
use crate::images::Images;
use crate::ingest::{Expected, ingest};
use crate::manifest::{
    Descriptor, Manifest, NoPlatform, choose, is_foreign_layer, is_image_config, is_layer_type, parse,
};
use crate::progress::{Meter, Reporter, say};
use crate::reference::Reference;
use crate::registry::download::{Blob, Download};
use crate::registry::error::{Failure, Failures};
use crate::registry::known::KnownBlob;
use crate::registry::tail::Tail;
use crate::registry::{Auth, Connection, RegistryError};
use crate::store::{MAX_CONFIG, StoreError};

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
}

/// A manifest for this machine, and who has it: the place that gave it, then those that were to be asked after it.
pub(crate) struct Found {
    pub(crate) places: Vec<Connection>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Images {
    /// An image by reference, as `policy` says from the store or from a registry.
    ///
    /// `auth` goes to the registry that the reference names and to no mirror; without it the configuration's credentials
    /// are used, then Docker's.
    pub async fn pull(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: Option<BasicAuth>,
        reporter: Reporter,
    ) -> Result<Image, Error> {
        self.pull_as(reference, policy, auth.into(), reporter).await
    }

    /// The same with credentials for several registries. Whoever asks while the same pull is under way joins it: all of them
    /// hear what went on and goes on, and it is cancelled when none of them waits any more.
    ///
    /// # Errors
    /// Those of a pull that was joined are [`Error::Shared`].
    pub async fn pull_as(
        &self,
        reference: &str,
        policy: PullPolicy,
        auth: Auth,
        reporter: Reporter,
    ) -> Result<Image, Error> {
        let reference: Reference = reference.parse()?;
        let name = reference.to_string();
        match (policy, self.store().by_reference(&name)) {
            (PullPolicy::Missing | PullPolicy::Never, Some(image)) => {
                self.store().used(&image.id);
                return Ok(image);
            }
            (PullPolicy::Never, None) => return Err(PullError::NotLocal { reference: name }.into()),
            _ => {}
        }
        let key = format!("{name} {}", auth.key());
        let images = self.clone();
        let flying = self.registries().pulls.join(key, reporter, |reporter| async move {
            let fetched = images.fetch(&reference, &auth, &reporter).await;
            fetched.map_err(|error| error.at(images.store().root()))
        });
        flying.landed().await.map_err(|error| match error {
            FlightError::Failed(error) => Error::Shared(error),
            FlightError::Cut => Error::ShuttingDown,
        })
    }

    async fn fetch(&self, reference: &Reference, auth: &Auth, reporter: &Reporter) -> Result<Image, Error> {
        self.sweep().await?;
        let found = self.find(reference, auth, reporter).await?;
        let raw = config_of(&found, reference).await?;
        let id = Digest::of(&raw);
        let config = parse_config(&raw).map_err(|source| StoreError::Config { id, source })?;
        check_config(reference, &found, &config)?;
        let hold = self.store().hold(&config.diff_ids);
        self.fetch_layers(&found, &config.diff_ids, reporter).await?;
        let references = vec![reference.to_string()];
        let image = self
            .blocking(move |store| {
                let image = store.put_image(raw, &references)?;
                note(&found, &config, |diff_id| store.layer(diff_id).is_some());
                Ok(image)
            })
            .await?;
        drop(hold);
        Ok(image)
    }

    /// Clears away broken downloads that nobody will go on with.
    async fn sweep(&self) -> Result<(), Error> {
        let registries = Arc::clone(self.registries());
        self.blocking(move |_| {
            registries.partials.sweep();
            Ok(())
        })
        .await
    }

    /// Asks every endpoint in turn for a manifest.
    async fn find(&self, reference: &Reference, auth: &Auth, reporter: &Reporter) -> Result<Found, Error> {
        let registries = self.registries();
        let mut failures = Failures::default();
        let mut endpoints = registries.config.endpoints(reference)?.into_iter();
        while let Some(endpoint) = endpoints.next() {
            let connection = registries.connect(endpoint, auth, reference, "pull", reporter).await?;
            say(reporter, format!("looking for {reference} at {}", connection.url()));
            match manifest_here(&connection, reference).await? {
                Ok((config, layers)) => {
                    let mut places = vec![connection];
                    for endpoint in endpoints {
                        // One that cannot be asked is none to fall back to; it need not be.
                        places.extend(
                            registries.connect(endpoint, auth, reference, "pull", reporter).await.ok(),
                        );
                    }
                    return Ok(Found { places, config, layers });
                }
                Err(failure) => connection.failed(&mut failures, failure)?,
            }
        }
        Err(failures.into_error(&reference.to_string()).into())
    }

    pub(crate) async fn fetch_layers(
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
            .map(|(diff_id, layer)| self.fetch_layer(&found.places, diff_id, layer, reporter))
            .collect();
        let at_once = self.registries().config.parallel_downloads;
        futures_util::stream::iter(fetches).buffer_unordered(at_once).try_collect::<()>().await
    }

    async fn fetch_layer(
        &self,
        places: &[Connection],
        diff_id: &Digest,
        layer: &Descriptor,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let flight = Arc::new(self.store().flight(diff_id).lock_owned().await);
        if self.store().layer(diff_id).is_some() {
            return Ok(());
        }
        let all = places;
        let reference = || all.first().map_or_else(String::new, |place| place.asked.reference.clone());
        let digest: Digest = layer
            .digest
            .parse()
            .map_err(|source| RegistryError::Digest { reference: reference(), source })?;
        let _room = self.registries().layers.acquire().await.map_err(|_| Error::ShuttingDown)?;
        let blob = Blob { digest, size: layer.size };
        let mut places: Vec<&Connection> = places.iter().collect();
        let mut lies = Vec::new();
        loop {
            let partial = self.registries().partials.take(&blob.digest).await;
            let (download, tail) = Download::begin(blob.clone(), partial).await?;
            let resumed = download.resumed_at > 0;
            let guard = Arc::clone(&flight);
            match self.unpack_while_downloading(&places, download, tail, diff_id, guard, reporter).await {
                // The bytes from before may be what is wrong; they are gone now.
                Err(Error::Registry(RegistryError::DigestMismatch { .. })) if resumed => {
                    say(
                        reporter,
                        format!("layer {} is fetched again from its beginning", blob.digest.short()),
                    );
                }
                Err(Error::Registry(error @ RegistryError::DigestMismatch { .. })) if places.len() > 1 => {
                    say(reporter, format!("warning: not to be believed: {error}"));
                    let RegistryError::DigestMismatch { asked, .. } = &error else {
                        return Err(error.into());
                    };
                    let left = places.len() - 1;
                    places.retain(|place| place.asked != *asked);
                    // One at a time, whatever they are called: this comes to an end.
                    places.truncate(left);
                    lies.push(error);
                }
                Err(Error::Registry(error)) => return Err(error.after(lies, &reference()).into()),
                other => return other,
            }
        }
    }

    async fn unpack_while_downloading(
        &self,
        places: &[&Connection],
        download: Download,
        tail: Tail,
        diff_id: &Digest,
        flight: Arc<OwnedMutexGuard<()>>,
        reporter: &Reporter,
    ) -> Result<(), Error> {
        let blob = download.blob().clone();
        let meter = Mutex::new(Meter::start(reporter, blob.digest.short(), "download", Some(blob.size)));
        let progress = |bytes| meter.lock().unwrap_or_else(PoisonError::into_inner).set(bytes);
        let unpacking = Meter::start(reporter, blob.digest.short(), "unpack", Some(blob.size));
        // The blob's digest is verified by the download, whose end the reader does not see before.
        let expected =
            Expected { layer: format!("layer {}", blob.digest), blob: None, diff_id: Some(diff_id.clone()) };
        let mut unpack = pin!(self.blocking(move |store| {
            // Nobody else may bring the layer in until this is done, even when nobody waits for it any longer.
            let _flight = flight;
            ingest(store, tail, &expected, unpacking)?;
            Ok(())
        }));
        let mut run = pin!(download.run(places, &progress));
        tokio::select! {
            downloaded = &mut run => match downloaded {
                Ok(()) => unpack.await,
                Err(error) => {
                    // It ends at once, and leaves nothing behind.
                    drop(unpack.await);
                    Err(error.into())
                }
            },
            unpacked = &mut unpack => match unpacked {
                // Not the layer's fault, so the rest of it would change nothing.
                Err(error @ (Error::DiskFull { .. } | Error::ShuttingDown)) => Err(error),
                // Bytes that cannot be unpacked may be the wrong bytes, which only the digest of all of them tells.
                unpacked => run.await.map_err(Error::from).and(unpacked),
            },
        }
    }
}

/// Notes where the layers came from, for pushes.
fn note(found: &Found, config: &ParsedConfig, keep: impl Fn(&Digest) -> bool) {
    let blobs = config.diff_ids.iter().zip(&found.layers).filter_map(|(diff_id, layer)| {
        let digest = layer.digest.parse().ok()?;
        Some((diff_id.clone(), KnownBlob::new(digest, layer.size, &layer.media_type)))
    });
    if let Some(place) = found.places.first() {
        place.note(blobs.collect(), keep);
    }
}

/// The image's config, from the first place that has it.
async fn config_of(found: &Found, reference: &Reference) -> Result<Vec<u8>, Error> {
    let mut failures = Failures::default();
    let mut missing = None;
    for place in &found.places {
        match place.small_blob(&found.config, "the config", MAX_CONFIG).await {
            Ok(raw) => return Ok(raw),
            Err(Failure::Fatal(error @ RegistryError::Missing { .. })) => missing = missing.or(Some(error)),
            Err(failure) => place.failed(&mut failures, failure)?,
        }
    }
    let reference = reference.to_string();
    Err(match missing {
        Some(missing) if failures.is_empty() => missing.into(),
        missing => match (failures.into_error(&reference), missing) {
            (lie, Some(missing)) if lie.is_lie() => missing.after(vec![lie], &reference).into(),
            (error, _) => error.into(),
        },
    })
}

type Descriptors = (Descriptor, Vec<Descriptor>);

/// The manifest for this machine at one endpoint. The inner error lets the next endpoint be asked.
async fn manifest_here(
    connection: &Connection,
    reference: &Reference,
) -> Result<Result<Descriptors, Failure>, Error> {
    let mut wanted = None;
    // An index may lead to a manifest, but not to another index.
    for _ in 0..2 {
        let bytes = match connection.manifest(wanted.as_ref()).await {
            Ok(bytes) => bytes,
            Err(failure) => return Ok(Err(failure)),
        };
        let malformed = |source| RegistryError::Manifest { asked: connection.asked.clone(), source };
        let manifest = match parse(&bytes) {
            Ok(manifest) => manifest,
            Err(source) => return Ok(Err(malformed(source).into())),
        };
        match manifest {
            Manifest::Image { config, .. } if !is_image_config(&config.media_type) => {
                let why = format!(
                    "it is an artifact of type {:?}, not an image of a file system",
                    config.media_type
                );
                return Err(no_image(reference, &why));
            }
            Manifest::Image { config, layers } => return Ok(Ok((config, layers))),
            Manifest::Index(entries) => {
                let name = format!("image {reference}");
                let entry = choose(&name, &entries, &Platform::host()).map_err(PullError::from)?;
                let bad = |source| RegistryError::Digest { reference: reference.to_string(), source };
                let digest = match entry.digest.parse() {
                    Ok(digest) => digest,
                    Err(source) => return Ok(Err(bad(source).into())),
                };
                wanted = Some((digest, entry.size));
            }
            Manifest::Other(media_type)
                if media_type.contains("schema version 1") || media_type.contains("manifest.v1+") =>
            {
                return Err(no_image(
                    reference,
                    "its manifest is of schema version 1, which Docker and the registries have given up; push it again with a current client",
                ));
            }
            Manifest::Other(media_type) => return Err(unsupported(reference, "a manifest", media_type)),
        }
    }
    Err(unsupported(reference, "an index within an index", "index".to_owned()))
}

fn check_config(reference: &Reference, found: &Found, config: &ParsedConfig) -> Result<(), Error> {
    // Also of layers that are here already: nothing of a manifest that names no digests is believed.
    for layer in &found.layers {
        let bad = |source| RegistryError::Digest { reference: reference.to_string(), source };
        layer.digest.parse::<Digest>().map_err(bad)?;
    }
    if let Some(layer) = found.layers.iter().find(|l| is_foreign_layer(&l.media_type)) {
        let digest = &layer.digest;
        return Err(no_image(
            reference,
            &format!(
                "layer {digest} ({}) may not be distributed by registries, and Berth fetches from nowhere else",
                layer.media_type
            ),
        ));
    }
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

fn no_image(reference: &Reference, why: &str) -> Error {
    RegistryError::NotAnImage { reference: reference.to_string(), why: why.to_owned() }.into()
}

fn unsupported(reference: &Reference, what: &'static str, media_type: String) -> Error {
    RegistryError::MediaType { reference: reference.to_string(), what, media_type }.into()
}
