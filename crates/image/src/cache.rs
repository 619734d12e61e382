//! A build cache on its way to another machine.
//!
//! It goes as an OCI artifact beside an image: a manifest whose config blob has the rows and whose layers are all layers that
//! the rows name.
//!
//! A row is a claim of whoever made it: "this step gives this layer". The layers' digests are verified, the claim cannot be
//! without running the step. So taking a cache is trusting its maker as one trusts the maker of an image.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::images::Images;
use crate::store::Hold;

/// `artifactType` of the manifest.
pub const CACHE_TYPE: &str = "application/vnd.berth.build-cache.v1";
/// Media type of its config blob.
pub(crate) const CACHE_CONFIG_TYPE: &str = "application/vnd.berth.build-cache.config.v1+json";
/// Most that is read of a config blob, in bytes.
pub(crate) const MAX_CACHE_CONFIG: u64 = 64 << 20;

const VERSION: u32 = 1;

/// One thing that a build cache knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheRow {
    /// What kind of key it is; the builder's own word.
    pub kind: String,
    /// The key.
    pub key: String,
    /// What is remembered for it; the builder's own form.
    pub value: String,
    /// The layer that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// The image that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
}

/// Rows of a build cache and the layers they name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildCache {
    version: u32,
    /// Diff ids, in the order of the manifest's layers.
    diff_ids: Vec<Digest>,
    rows: Vec<CacheRow>,
}

/// Why a build cache cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The table of rows is none.
    #[error("the build cache's table is malformed")]
    Malformed {
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// It was written by another Berth.
    #[error("the build cache is of format {found}, and this Berth knows only format {VERSION}")]
    Format {
        /// Its format.
        found: u32,
    },
    /// Table and manifest disagree.
    #[error("the build cache names {rows} layers in its table and {manifest} in its manifest")]
    LayerCount {
        /// Layers in the table.
        rows: usize,
        /// Layers in the manifest.
        manifest: usize,
    },
    /// What lies there is something else.
    #[error("{reference} is no build cache of Berth's, or is not whole")]
    NoCache {
        /// Its reference.
        reference: String,
    },
    /// A row names a layer that the cache does not have.
    #[error("the build cache has a row for layer {diff_id}, which it does not hold")]
    Unlisted {
        /// The layer.
        diff_id: Digest,
    },
}

impl BuildCache {
    /// The layers that are to come with it, in order.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// Its rows.
    pub fn rows(&self) -> &[CacheRow] {
        &self.rows
    }

    pub(crate) fn into_rows(self) -> Vec<CacheRow> {
        self.rows
    }

    /// The config blob.
    pub fn to_config(&self) -> Vec<u8> {
        // Strings and numbers only: there is nothing that JSON could not hold.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a config blob; `layers` is how many the manifest has.
    ///
    /// # Errors
    /// When it is of another version, or does not agree with the manifest or itself.
    pub fn from_config(bytes: &[u8], layers: usize) -> Result<Self, CacheError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let malformed = |source| CacheError::Malformed { source };
        let Versioned { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != VERSION {
            return Err(CacheError::Format { found: version });
        }
        let cache: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        if cache.diff_ids.len() != layers {
            return Err(CacheError::LayerCount { rows: cache.diff_ids.len(), manifest: layers });
        }
        let listed: HashSet<&Digest> = cache.diff_ids.iter().collect();
        match cache.rows.iter().filter_map(|row| row.layer.as_ref()).find(|layer| !listed.contains(layer)) {
            Some(layer) => Err(CacheError::Unlisted { diff_id: layer.clone() }),
            None => Ok(cache),
        }
    }
}

impl Images {
    /// A build cache of those rows whose layer or image is in the store, and what keeps its layers there.
    pub fn build_cache(&self, rows: Vec<CacheRow>) -> (BuildCache, Hold) {
        let named: Vec<Digest> = rows.iter().filter_map(|row| row.layer.clone()).collect();
        let hold = self.hold(&named);
        let mut rows = self.usable(rows);
        rows.sort_by(|a, b| (&a.kind, &a.key).cmp(&(&b.kind, &b.key)));
        let mut diff_ids: Vec<Digest> = rows.iter().filter_map(|row| row.layer.clone()).collect();
        diff_ids.sort();
        diff_ids.dedup();
        (BuildCache { version: VERSION, diff_ids, rows }, hold)
    }

    /// The rows whose layer or image is in the store.
    pub fn usable(&self, rows: Vec<CacheRow>) -> Vec<CacheRow> {
        let here = |row: &CacheRow| {
            row.layer.as_ref().is_none_or(|layer| self.store().layer(layer).is_some())
                && row.image.as_ref().is_none_or(|image| self.store().has_image(image))
        };
        rows.into_iter().filter(here).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, layer: Option<&[u8]>) -> CacheRow {
        CacheRow {
            kind: "step".into(),
            key: key.into(),
            value: "{}".into(),
            layer: layer.map(Digest::of),
            image: None,
        }
    }

    fn cache(rows: Vec<CacheRow>, layers: &[&[u8]]) -> BuildCache {
        BuildCache { version: VERSION, diff_ids: layers.iter().map(|l| Digest::of(l)).collect(), rows }
    }

    #[test]
    fn a_table_comes_back_as_it_went() {
        let sent = cache(vec![row("a", Some(b"x")), row("b", None)], &[b"x"]);
        assert_eq!(BuildCache::from_config(&sent.to_config(), 1).unwrap(), sent);
    }

    #[test]
    fn tables_that_disagree_are_refused() {
        let good = cache(vec![row("a", Some(b"x"))], &[b"x"]);
        assert!(matches!(
            BuildCache::from_config(&good.to_config(), 2),
            Err(CacheError::LayerCount { rows: 1, manifest: 2 })
        ));
        let liar = cache(vec![row("a", Some(b"y"))], &[b"x"]);
        assert!(matches!(
            BuildCache::from_config(&liar.to_config(), 1),
            Err(CacheError::Unlisted { diff_id }) if diff_id == Digest::of(b"y")
        ));
        let newer = br#"{"version":2,"anything":1}"#;
        assert!(matches!(BuildCache::from_config(newer, 0), Err(CacheError::Format { found: 2 })));
        assert!(matches!(BuildCache::from_config(b"[]", 0), Err(CacheError::Malformed { .. })));
    }
}
