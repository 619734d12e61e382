//! Whether the store holds what it says it holds. Nothing is repaired: what is wrong is told.
//!
//! One picture of names is taken under the store's lock, and everything in it is held; so a store may be verified while it is
//! in use, and what comes or goes meanwhile is no problem. Then each file is looked at: configs must have their digest,
//! layers be what their facts say, and, deep, their original tar have their digest.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};

use berth_types::image::VerifyReport;

use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Layer, LayerFile, Original, is_layer_name, parse_config};
use crate::images::Images;
use crate::layer::{Facts, split, survey};
use crate::original::{OriginalError, write_original};
use crate::progress::{Meter, Reporter};
use crate::store::{Hold, MAX_CONFIG, MAX_FACTS, Store, StoreError, TMP_PREFIX, read_json, read_limited};

/// Most layers that are looked at at once: beyond that the disk is the limit.
const MAX_THREADS: usize = 8;

impl Images {
    /// Compares the store with itself; `deep` also every byte of its layers with their digests, as far as their tars can
    /// be written again. Fails only where the store cannot be read at all; all else is in the report.
    pub async fn verify(&self, deep: bool, reporter: Reporter) -> Result<VerifyReport, Error> {
        self.blocking(move |store| {
            let mut work = Verify { store, deep, reporter: &reporter, report: VerifyReport::default() };
            work.run()?;
            Ok(work.report)
        })
        .await
    }
}

/// The names in the store at one moment.
struct Picture {
    configs: Vec<PathBuf>,
    known: HashSet<Digest>,
    references: BTreeMap<String, Digest>,
    layers: HashMap<Digest, Layer>,
    /// What lies in `layers/`.
    entries: Vec<PathBuf>,
    _hold: Hold,
}

/// What is found of one layer.
#[derive(Default)]
struct Found {
    bytes: u64,
    is_unverifiable: bool,
    problem: Option<String>,
}

struct Verify<'a> {
    store: &'a Arc<Store>,
    deep: bool,
    reporter: &'a Reporter,
    report: VerifyReport,
}

impl Verify<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        let picture = self.picture()?;
        self.leftovers()?;
        self.entries(&picture);
        let here = self.configs(&picture);
        for (reference, id) in &picture.references {
            if !here.contains(id) {
                self.problem(format!("reference {reference}: its image {id} is not there"));
            }
        }
        let mut layers: Vec<&Layer> = picture.layers.values().collect();
        layers.sort_by(|a, b| a.name.cmp(&b.name));
        let total = layers.iter().map(|layer| layer.size_bytes).sum();
        let meter = Mutex::new(Meter::start(self.reporter, "layers", "verify", Some(total)));
        for (layer, found) in layers.iter().zip(self.all(&layers, &meter)) {
            self.report.layers += 1;
            self.report.bytes += found.bytes;
            if found.is_unverifiable {
                self.report.unverifiable.push(layer.diff_id.to_string());
            }
            if let Some(problem) = found.problem {
                self.problem(format!("layer {}: {problem}", layer.diff_id));
            }
        }
        Ok(())
    }

    /// What is found of each layer, in their order. Reading and hashing takes a processor: so many are looked at at once.
    fn all(&self, layers: &[&Layer], meter: &Mutex<Meter>) -> Vec<Found> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((layer.name.as_str(), self.layer(layer)));
                meter.lock().unwrap_or_else(PoisonError::into_inner).add(layer.size_bytes);
            }
            done
        };
        let threads =
            thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(layers.len());
        let mut found: HashMap<&str, Found> = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map_while(|_| spawn(scope, &work).ok()).collect();
            let mut found: HashMap<_, _> = work().into_iter().collect();
            for other in others {
                found.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            found
        });
        layers.iter().filter_map(|layer| found.remove(layer.name.as_str())).collect()
    }

    fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    fn picture(&mut self) -> Result<Picture, StoreError> {
        let state = self.store.state();
        let images = self.store.root().join("images");
        // From the disk: what does not lead anywhere is left out when the store is opened.
        let references = self.store.load_references()?;
        let mut picture = Picture {
            configs: crate::store::read_dir(&images)?,
            known: state.images.keys().cloned().collect(),
            references,
            layers: state.layers.clone(),
            entries: crate::store::read_dir(&self.store.layers_dir())?,
            _hold: Hold::default(),
        };
        drop(state);
        picture._hold = self.store.keep(picture.layers.keys());
        // What went between the two is no longer of interest.
        picture.layers.retain(|diff_id, _| self.store.layer(diff_id).is_some());
        Ok(picture)
    }

    fn leftovers(&mut self) -> Result<(), StoreError> {
        for path in crate::store::read_dir(&self.store.root().join("tmp"))? {
            let ours = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(TMP_PREFIX));
            let Ok(found) = path.symlink_metadata() else { continue };
            if ours && found.modified().is_ok_and(|at| at < self.store.opened()) {
                self.problem(format!("tmp/{}: left over from an earlier process", file_name(&path)));
            }
        }
        Ok(())
    }

    /// Whether all that lies in `layers/` belongs to a layer.
    fn entries(&mut self, picture: &Picture) {
        let names: HashSet<&str> = picture.layers.values().map(|layer| layer.name.as_str()).collect();
        for path in &picture.entries {
            let stem = path.file_stem().map(PathBuf::from).unwrap_or_default();
            let known = stem.to_str().is_some_and(|stem| names.contains(stem));
            let kind = path.extension().map(|e| e.to_string_lossy().into_owned());
            let expected = matches!(kind.as_deref(), None | Some("json" | "split"));
            if !(known && expected) && path.symlink_metadata().is_ok() {
                let why =
                    if is_layer_name(&stem) { "belongs to no layer" } else { "is nothing of the store's" };
                self.problem(format!("layers/{}: {why}", file_name(path)));
            }
        }
    }

    /// Reads every image config; the result are those that are whole.
    fn configs(&mut self, picture: &Picture) -> HashSet<Digest> {
        let mut whole = HashSet::new();
        for path in &picture.configs {
            let name = file_name(path);
            if matches!(name.as_str(), "lock" | "spare" | "references.json" | "blobs.json") {
                continue;
            }
            let id =
                name.strip_suffix(".json").and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
            let Some(id) = id else {
                self.problem(format!("images/{name}: is nothing of the store's"));
                continue;
            };
            match self.config(picture, path, &id) {
                Ok(true) => {
                    whole.insert(id);
                }
                Ok(false) => {}
                Err(why) => self.problem(format!("image {id}: {why}")),
            }
        }
        for id in &picture.known {
            if !whole.contains(id) && !picture.configs.contains(&self.store.image_path(id)) {
                self.problem(format!("image {id}: its config is gone"));
            }
        }
        whole
    }

    /// Whether there still is such an image; what is wrong with it otherwise.
    fn config(&mut self, picture: &Picture, path: &Path, id: &Digest) -> Result<bool, String> {
        let bytes = match read_limited(path, MAX_CONFIG) {
            Ok(bytes) => bytes,
            // Removed meanwhile.
            Err(StoreError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !self.store.has_image(id) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(chain(&error)),
        };
        self.report.images += 1;
        let actual = Digest::of(&bytes);
        if actual != *id {
            return Err(format!("its config has digest {actual}"));
        }
        let config = parse_config(&bytes).map_err(|error| format!("its config is malformed: {error}"))?;
        if picture.known.contains(id) && !self.store.has_image(id) {
            // Removed meanwhile, perhaps with its layers.
            return Ok(false);
        }
        let missing = |diff_id: &&Digest| !picture.layers.contains_key(diff_id);
        if let Some(missing) = config.diff_ids.iter().find(missing) {
            return Err(format!("its layer {missing} is not there"));
        }
        if !picture.known.contains(id) {
            return Err("it is whole but was not when the store was opened".to_owned());
        }
        Ok(true)
    }

    fn layer(&self, layer: &Layer) -> Found {
        let facts = match self.facts(layer) {
            Ok(facts) => facts,
            Err(why) => return Found { problem: Some(why), ..Found::default() },
        };
        let found = Found { bytes: facts.size_bytes, ..Found::default() };
        if !self.deep {
            return Found { is_unverifiable: layer.original.is_none(), ..found };
        }
        match write_original(self.store, layer, io::sink()) {
            Ok(_) => found,
            Err(OriginalError::NotKept { .. }) => Found { is_unverifiable: true, ..found },
            Err(error) => Found { problem: Some(chain(&error)), ..found },
        }
    }

    /// Compares a layer's tree with what was noted of it.
    fn facts(&self, layer: &Layer) -> Result<Facts, String> {
        let dir = self.store.layers_dir().join(&layer.name);
        let noted: LayerFile =
            read_json(&dir.with_extension("json"), MAX_FACTS).map_err(|error| chain(&error))?;
        if noted.diff_id != layer.diff_id {
            return Err(format!("its facts are those of {}", noted.diff_id));
        }
        let split_path = self.store.split_of(layer);
        match noted.original {
            Some(Original::Split) => drop(split::length(&split_path).map_err(|error| chain(&error))?),
            _ if split_path.exists() => return Err("it has tar headers that it should not have".to_owned()),
            _ => {}
        }
        let found = survey(&dir).map_err(|error| chain(&error))?;
        for (what, noted, found) in [
            ("files", noted.files, found.files),
            ("bytes", noted.size_bytes, found.size_bytes),
            ("as highest id", noted.highest_id.unwrap_or(found.highest_id).into(), found.highest_id.into()),
            ("privileged files", noted.privileged_files.into(), found.privileged_files.into()),
        ] {
            if noted != found {
                return Err(format!("it has {found} {what}, and {noted} were noted"));
            }
        }
        Ok(found)
    }
}

fn spawn<'scope, 'env, T: Send + 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    work: &'scope (impl Fn() -> T + Sync),
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name("verify".into()).spawn_scoped(scope, work)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}
