//! Which blob a layer is in which repository: learnt from pulls and pushes, used to push without packing or sending.
//!
//! `images/blobs.json` beside the images. It is only a memory: what it says is asked of the registry before it is relied on, and
//! when it cannot be read or written, pushes send what they could have spared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

const FORMAT: u32 = 1;
/// Most that is read, in bytes.
const MAX_FILE: u64 = 32 << 20;
/// Most repositories that are remembered of one layer.
const MAX_PLACES: usize = 16;

/// A layer as registries hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownBlob {
    pub(crate) digest: Digest,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) media_type: String,
    /// `registry/repository`.
    places: BTreeSet<String>,
}

#[derive(Default, Serialize, Deserialize)]
struct KnownFile {
    version: u32,
    layers: BTreeMap<Digest, KnownBlob>,
}

/// What is known, and the file that it is in.
pub(crate) struct Known {
    path: PathBuf,
    layers: Mutex<Option<BTreeMap<Digest, KnownBlob>>>,
}

impl KnownBlob {
    pub(crate) fn new(digest: Digest, size: u64, media_type: &str) -> Self {
        Self { digest, size, media_type: media_type.to_owned(), places: BTreeSet::new() }
    }

    /// Another repository of that registry that had the blob.
    pub(crate) fn elsewhere(&self, registry: &str, repository: &str) -> Option<String> {
        let of = |place: &String| place.strip_prefix(registry)?.strip_prefix('/').map(str::to_owned);
        self.places.iter().filter_map(of).find(|other| other != repository)
    }
}

impl Known {
    pub(crate) fn new(root: &Path) -> Self {
        Self { path: root.join("images/blobs.json"), layers: Mutex::default() }
    }

    pub(crate) fn blob(&self, diff_id: &Digest) -> Option<KnownBlob> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.get_or_insert_with(|| self.load()).get(diff_id).cloned()
    }

    /// Notes where blobs are; forgets layers of which `keep` says no. Blocks.
    pub(crate) fn note(
        &self,
        found: Vec<(Digest, KnownBlob)>,
        registry: &str,
        repository: &str,
        keep: impl Fn(&Digest) -> bool,
    ) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = layers.get_or_insert_with(|| self.load());
        let before = known.clone();
        for (diff_id, blob) in found {
            let entry = known.entry(diff_id).or_insert_with(|| blob.clone());
            if entry.digest != blob.digest {
                *entry = blob;
            }
            if entry.places.len() < MAX_PLACES {
                entry.places.insert(format!("{registry}/{repository}"));
            }
        }
        known.retain(|diff_id, _| keep(diff_id));
        if *known == before {
            return;
        }
        if let Err(error) = self.save(known) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(path = %self.path.display(), error, "where layers are cannot be noted");
        }
    }

    fn load(&self) -> BTreeMap<Digest, KnownBlob> {
        let small = fs::metadata(&self.path).is_ok_and(|facts| facts.len() <= MAX_FILE);
        let bytes = small.then(|| fs::read(&self.path).ok()).flatten();
        let file = bytes.and_then(|bytes| serde_json::from_slice::<KnownFile>(&bytes).ok());
        file.filter(|file| file.version == FORMAT).unwrap_or_default().layers
    }

    fn save(&self, layers: &BTreeMap<Digest, KnownBlob>) -> io::Result<()> {
        let file = KnownFile { version: FORMAT, layers: layers.clone() };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let tmp = dir.with_file_name("tmp");
        let mut new = tempfile::Builder::new().prefix("image-").tempfile_in(tmp)?;
        serde_json::to_writer(&mut new, &file)?;
        new.as_file().sync_all()?;
        new.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_to_the_next_and_forgotten_with_its_layer() {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["images", "tmp"] {
            fs::create_dir(tmp.path().join(dir)).unwrap();
        }
        let (one, other) = (Digest::of(b"1"), Digest::of(b"2"));
        let blob = KnownBlob::new(Digest::of(b"blob"), 4, "t");
        let known = Known::new(tmp.path());
        known.note(vec![(one.clone(), blob.clone()), (other.clone(), blob)], "r:5000", "a/b", |_| true);
        let known = Known::new(tmp.path());
        let found = known.blob(&one).unwrap();
        assert_eq!(found.elsewhere("r:5000", "c"), Some("a/b".to_owned()));
        assert_eq!(found.elsewhere("r:5000", "a/b"), None);
        assert_eq!(found.elsewhere("r", "c"), None);
        known.note(Vec::new(), "", "", |diff_id| *diff_id == one);
        let known = Known::new(tmp.path());
        assert!(known.blob(&one).is_some() && known.blob(&other).is_none());
        fs::write(tmp.path().join("images/blobs.json"), "{").unwrap();
        assert!(Known::new(tmp.path()).blob(&one).is_none(), "a broken memory is none");
    }
}
