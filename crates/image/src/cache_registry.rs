//! A build cache in a registry: beside the image of a tag, under that tag and [`SUFFIX`].

use berth_types::error::Kind;
use berth_types::image::BasicAuth;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;

use crate::cache::{BuildCache, CACHE_CONFIG_TYPE, CACHE_TYPE, CacheError, MAX_CACHE_CONFIG};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Layer;
use crate::images::Images;
use crate::import::Imported;
use crate::manifest::{Manifest, parse};
use crate::original::OriginalError;
use crate::progress::Reporter;
use crate::pull::Found;
use crate::push::{MANIFEST_TYPE, Packed, PushError, descriptor};
use crate::reference::{Reference, Version};
use crate::registry::error::{Failure, Failures};
use crate::registry::{Auth, Connection, RegistryError};
use crate::store::StoreError;

/// What stands after the tag of the image.
pub(crate) const SUFFIX: &str = ".berth-cache";

impl Images {
    /// Pushes a build cache beside the image that `reference` names. The result is the digest of its manifest.
    ///
    /// # Errors
    /// As a push; also for layers that cannot be given as they came, since rows speak of their digests.
    pub async fn push_cache(
        &self,
        cache: &BuildCache,
        reference: &str,
        auth: Option<BasicAuth>,
        reporter: Reporter,
    ) -> Result<Digest, Error> {
        let pushed = self.push_cache_inner(cache, reference, auth.into(), &reporter).await;
        pushed.map_err(|error| error.at(self.store().root()))
    }

    async fn push_cache_inner(
        &self,
        cache: &BuildCache,
        reference: &str,
        auth: Auth,
        reporter: &Reporter,
    ) -> Result<Digest, Error> {
        let (reference, tag) = beside(&reference.parse()?)?;
        let registries = self.registries();
        let endpoint = registries.config.upstream(reference.registry());
        let connection = registries.connect(endpoint, &auth, &reference, "pull,push", reporter).await?;
        let missing = |diff_id: &Digest| StoreError::NoLayer { diff_id: diff_id.clone() };
        let layers: Vec<Layer> = cache
            .diff_ids()
            .iter()
            .map(|diff_id| self.store().layer(diff_id).ok_or_else(|| missing(diff_id)))
            .collect::<Result<_, _>>()?;
        let pushes: Vec<_> =
            layers.iter().map(|layer| self.push_layer(&connection, layer, reporter)).collect();
        let at_once = registries.config.parallel_downloads;
        let packed: Vec<Packed> = futures_util::stream::iter(pushes).buffered(at_once).try_collect().await?;
        if let Some((layer, _)) = layers.iter().zip(&packed).find(|(layer, p)| layer.diff_id != p.diff_id) {
            return Err(OriginalError::NotKept { diff_id: layer.diff_id.clone() }.into());
        }
        let config = cache.to_config();
        let (digest, size) = (Digest::of(&config), config.len());
        let put = connection.put_small(&digest, config).await;
        put.map_err(|trouble| connection.refused("the build cache's table", trouble))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": CACHE_TYPE,
            "config": { "mediaType": CACHE_CONFIG_TYPE, "digest": digest, "size": size },
            "layers": packed.iter().map(descriptor).collect::<Vec<_>>(),
        });
        let put = connection.put_manifest(manifest.to_string().into_bytes(), MANIFEST_TYPE, &tag).await;
        Ok(put.map_err(|trouble| connection.refused("the build cache's manifest", trouble))?)
    }

    /// Brings in the build cache beside the image that `reference` names: its layers, verified, and its rows. `None` when
    /// the registry has none. See [`crate::CacheRow`] for what taking the rows means.
    ///
    /// # Errors
    /// As a pull; also for a cache that does not agree with itself.
    pub async fn pull_cache(
        &self,
        reference: &str,
        auth: Option<BasicAuth>,
        reporter: Reporter,
    ) -> Result<Option<Imported>, Error> {
        match self.pull_cache_inner(reference, auth.into(), &reporter).await {
            Ok(imported) => Ok(Some(imported)),
            Err(Error::Registry(RegistryError::NotFound { .. })) => Ok(None),
            Err(error) => Err(error.at(self.store().root())),
        }
    }

    async fn pull_cache_inner(
        &self,
        reference: &str,
        auth: Auth,
        reporter: &Reporter,
    ) -> Result<Imported, Error> {
        let (reference, _) = beside(&reference.parse()?)?;
        let found = self.find_cache(&reference, &auth, reporter).await?;
        let Some(place) = found.places.first() else { return Err(Error::ShuttingDown) };
        let table = place.small_blob(&found.config, "the build cache's table", MAX_CACHE_CONFIG).await;
        let table = table.map_err(|failure| failed(place, failure, &reference))?;
        let cache = BuildCache::from_config(&table, found.layers.len())?;
        let hold = self.hold(cache.diff_ids());
        self.fetch_layers(&found, cache.diff_ids(), reporter).await?;
        Ok(Imported { images: Vec::new(), cache: self.usable(cache.into_rows()), hold })
    }

    async fn find_cache(
        &self,
        reference: &Reference,
        auth: &Auth,
        reporter: &Reporter,
    ) -> Result<Found, Error> {
        let registries = self.registries();
        let mut failures = Failures::default();
        for endpoint in registries.config.endpoints(reference)? {
            let connection = registries.connect(endpoint, auth, reference, "pull", reporter).await?;
            let bytes = match connection.manifest(None).await {
                Ok(bytes) => bytes,
                Err(failure) => {
                    failures.add(&connection.asked, failure)?;
                    continue;
                }
            };
            let malformed = |source| RegistryError::Manifest { asked: connection.asked.clone(), source };
            return match parse(&bytes).map_err(malformed)? {
                Manifest::Image { config, layers } if config.media_type == CACHE_CONFIG_TYPE => {
                    Ok(Found { places: vec![connection], config, layers })
                }
                _ => Err(CacheError::NoCache { reference: reference.to_string() }.into()),
            };
        }
        Err(failures.into_error(&reference.to_string()).into())
    }
}

fn failed(place: &Connection, failure: Failure, reference: &Reference) -> Error {
    let mut failures = Failures::default();
    match failures.add(&place.asked, failure) {
        Err(error) => error.into(),
        Ok(()) => match failures.into_error(&reference.to_string()) {
            // The manifest named it: that it is not there is no lack of a cache.
            RegistryError::NotFound { reference, .. } => CacheError::NoCache { reference }.into(),
            error => error.into(),
        },
    }
}

/// The reference of the build cache beside an image, and its tag.
fn beside(image: &Reference) -> Result<(Reference, String), Error> {
    let Version::Tag(tag) = image.version() else {
        return Err(PushError::ToDigest { reference: image.to_string() }.into());
    };
    let tag = format!("{tag}{SUFFIX}");
    Ok((format!("{}/{}:{tag}", image.registry(), image.repository()).parse()?, tag))
}

impl CacheError {
    pub(crate) fn facts(&self) -> (&'static str, Kind) {
        ("bad_build_cache", Kind::User)
    }
}
