//! The store on disk, and the picture of it in memory.
//!
//! ```text
//! layers/<24 hex>/        an overlayfs lower directory
//! layers/<24 hex>.split   what its tar was beyond its files, where Berth did not make it
//! layers/<24 hex>.json    its facts; a layer exists exactly when this file does
//! images/<64 hex>.json    an image config, byte for byte
//! images/references.json  which reference points at which image
//! images/lock             held while a process uses the store
//! images/spare            room for noting a removal on a full disk
//! tmp/image-*             work in progress; whatever is left there belongs to nobody
//! ```
//!
//! Whatever is visible under its final name is complete: a layer is synced before it is renamed, small files are written
//! beside, synced and renamed. Layers come before the configs that name them, configs before references.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::Mutex as AsyncMutex;

use crate::digest::Digest;
use crate::image::{Image, Layer, LayerFile, Original, is_layer_name, layer_name, parse_config};
use crate::layer::Facts;

mod collect;
mod error;
mod sync;

use collect::remove_in_background;
pub use error::StoreError;
use sync::Syncs;

/// Version of the layers' facts and of the references.
const FORMAT: u32 = 1;
pub(crate) const TMP_PREFIX: &str = "image-";
/// Most that is read of an image config, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;
pub(crate) const MAX_FACTS: u64 = 64 << 10;
/// Size of the spare file, in bytes: more than references take, mostly.
const SPARE: u64 = 1 << 20;
const MAX_REFERENCES: u64 = 64 << 20;
/// Shortest prefix of an id that is taken for one.
const MIN_ID_PREFIX: usize = 4;
/// An image's last use is written down at most this often; it is compared with ages of hours and days.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

/// The store. All of its methods block; none holds the lock while it moves bulk data.
pub(crate) struct Store {
    root: PathBuf,
    state: Mutex<State>,
    /// What the store was opened at: whatever lies in `tmp` from before is left over.
    opened: SystemTime,
    /// One ingest per layer at a time.
    flights: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
    syncs: Syncs,
    _lock: OwnedFd,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Image>,
    pub(crate) references: BTreeMap<String, Digest>,
    pub(crate) layers: HashMap<Digest, Layer>,
    pins: HashMap<Digest, usize>,
    holds: HashMap<Digest, usize>,
    /// When an image's last use was last written down.
    used: HashMap<Digest, SystemTime>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReferencesFile {
    version: u32,
    references: BTreeMap<String, Digest>,
}

/// Keeps an image, and so its layers, in the store while it lives.
#[derive(Debug)]
pub struct Pin {
    store: Weak<Store>,
    image: Image,
}

/// Keeps layers in the store while it lives, before an image names them.
#[derive(Debug, Default)]
pub struct Hold {
    store: Weak<Store>,
    diff_ids: Vec<Digest>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Pin {
    /// The image, as it was when pinned.
    pub fn image(&self) -> &Image {
        &self.image
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            release(&mut store.state().pins, &self.image.id);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(store) = self.store.upgrade() {
            let mut state = store.state();
            self.diff_ids.iter().for_each(|diff_id| release(&mut state.holds, diff_id));
        }
    }
}

fn release(counts: &mut HashMap<Digest, usize>, key: &Digest) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        for dir in ["layers", "images", "tmp"] {
            make_dir(&root.join(dir))?;
        }
        let lock = lock(root)?;
        let store = Self {
            root: root.to_owned(),
            state: Mutex::default(),
            opened: SystemTime::now(),
            flights: Mutex::default(),
            syncs: Syncs::default(),
            _lock: lock,
        };
        store.remove_leftovers()?;
        let layers = store.load_layers()?;
        let images = store.load_images(&layers)?;
        let references = store.load_references()?;
        let known = |(_, id): &(String, Digest)| images.contains_key(id);
        let references = references.into_iter().filter(known).collect();
        *store.state() = State { images, references, layers, ..State::default() };
        store.keep_spare();
        Ok(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn opened(&self) -> SystemTime {
        self.opened
    }

    /// Where the headers and padding of a layer's tar are kept.
    pub(crate) fn split_of(&self, layer: &Layer) -> PathBuf {
        split_path(&self.layers_dir(), Path::new(&layer.name))
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A directory for work in progress, on the store's file system; removed when dropped.
    pub(crate) fn scratch(&self) -> Result<TempDir, StoreError> {
        let tmp = self.root.join("tmp");
        tempfile::Builder::new()
            .prefix(TMP_PREFIX)
            .tempdir_in(&tmp)
            .map_err(|source| StoreError::MakeDir { path: tmp, source })
    }

    /// The lock under which one layer is brought in.
    pub(crate) fn flight(&self, diff_id: &Digest) -> Arc<AsyncMutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.strong_count() > 0);
        if let Some(flight) = flights.get(diff_id).and_then(Weak::upgrade) {
            return flight;
        }
        let flight = Arc::new(AsyncMutex::new(()));
        flights.insert(diff_id.clone(), Arc::downgrade(&flight));
        flight
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for entry in read_dir(&self.root.join("tmp"))? {
            let ours = entry.file_name().is_some_and(|n| n.to_string_lossy().starts_with(TMP_PREFIX));
            if ours {
                remove(&entry)?;
            }
        }
        let layers = self.layers_dir();
        for entry in read_dir(&layers)? {
            // A directory without facts never became a layer, facts without a directory no longer are one.
            let stem = entry.file_stem().map(PathBuf::from).unwrap_or_default();
            if is_layer_name(&stem) && !(layers.join(&stem).is_dir() && facts_path(&layers, &stem).is_file())
            {
                remove(&entry)?;
            }
        }
        Ok(())
    }

    fn load_layers(&self) -> Result<HashMap<Digest, Layer>, StoreError> {
        let mut layers = HashMap::new();
        for path in read_dir(&self.layers_dir())? {
            if path.extension().is_some_and(|e| e == "json") {
                let facts: LayerFile = read_json(&path, MAX_FACTS)?;
                layers.insert(facts.diff_id.clone(), layer_of(facts));
            }
        }
        Ok(layers)
    }

    fn load_images(&self, layers: &HashMap<Digest, Layer>) -> Result<BTreeMap<Digest, Image>, StoreError> {
        let mut images = BTreeMap::new();
        for path in read_dir(&self.root.join("images"))? {
            let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let Ok(id) = format!("sha256:{stem}").parse::<Digest>() else { continue };
            let bytes = read_limited(&path, MAX_CONFIG)?;
            if Digest::of(&bytes) != id {
                tracing::warn!(path = %path.display(), "an image config no longer has its digest; the image is ignored");
                continue;
            }
            match image_of(&id, bytes, layers) {
                Ok(image) => drop(images.insert(id, image)),
                Err(error) => {
                    tracing::warn!(%id, error = &error as &dyn std::error::Error, "an image is incomplete and ignored");
                }
            }
        }
        Ok(images)
    }

    fn references_path(&self) -> PathBuf {
        self.root.join("images/references.json")
    }

    pub(crate) fn load_references(&self) -> Result<BTreeMap<String, Digest>, StoreError> {
        let path = self.references_path();
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let file: ReferencesFile = read_json(&path, MAX_REFERENCES)?;
        Ok(file.references)
    }

    fn save_references(&self, references: &BTreeMap<String, Digest>) -> Result<(), StoreError> {
        let path = self.references_path();
        let file = ReferencesFile { version: FORMAT, references: references.clone() };
        self.write_json(&path, &file)
    }

    fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|source| StoreError::Malformed { path: path.to_owned(), source })?;
        self.write_file(path, &bytes)
    }

    /// Writes beside, syncs, renames, syncs the directory.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let full = |error: &StoreError| {
            use io::ErrorKind::{QuotaExceeded, StorageFull};
            matches!(error, StoreError::Write { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
        };
        match self.try_write_file(path, bytes) {
            // Whoever removes something makes room, and should be able to note it.
            Err(error) if full(&error) && fs::remove_file(self.spare()).is_ok() => {
                self.try_write_file(path, bytes)
            }
            written => written,
        }
    }

    /// A file of no meaning, given up when a disk is so full that not even a removal could be noted.
    fn spare(&self) -> PathBuf {
        self.root.join("images/spare")
    }

    /// Makes sure of it where there is room.
    pub(crate) fn keep_spare(&self) {
        let path = self.spare();
        if fs::metadata(&path).is_ok_and(|facts| facts.len() == SPARE) {
            return;
        }
        // Written and not only reserved: what a file system compresses or copies would be no room otherwise.
        let made = fs::write(&path, vec![0xb5; usize::try_from(SPARE).unwrap_or_default()]);
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
    }

    fn try_write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let failed = |source| StoreError::Write { path: path.to_owned(), source };
        let tmp = self.root.join("tmp");
        let mut file = tempfile::Builder::new().prefix(TMP_PREFIX).tempfile_in(tmp).map_err(failed)?;
        file.write_all(bytes).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(path).map_err(|e| failed(e.error))?;
        let dir = path.parent().unwrap_or(&self.root);
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
    }

    // Layers.

    pub(crate) fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        self.state().layers.get(diff_id).cloned()
    }

    pub(crate) fn layer_by_name(&self, name: &str) -> Option<Layer> {
        self.state().layers.values().find(|layer| layer.name == name).cloned()
    }

    /// Makes the complete tree at `dir` a layer; drops it when the layer is there already. `split` is the file from which
    /// its tar can be written again; without one, `dir` was packed and the digest is that of its canonical tar.
    pub(crate) fn commit_layer(
        &self,
        dir: &Path,
        diff_id: &Digest,
        facts: Facts,
        split: Option<&Path>,
    ) -> Result<Layer, StoreError> {
        if let Some(layer) = self.layer(diff_id) {
            remove(dir)?;
            return Ok(layer);
        }
        self.sync_file_system(dir)?;
        let name = layer_name(diff_id);
        let layers = self.layers_dir();
        let mut state = self.state();
        if let Some(present) = state.layers.values().find(|layer| layer.name == name) {
            if present.diff_id != *diff_id {
                return Err(StoreError::NameTaken { present: present.diff_id.clone(), new: diff_id.clone() });
            }
            let present = present.clone();
            drop(state);
            remove(dir)?;
            return Ok(present);
        }
        let target = layers.join(&name);
        let split_target = split_path(&layers, Path::new(&name));
        let file = LayerFile {
            version: FORMAT,
            diff_id: diff_id.clone(),
            size_bytes: facts.size_bytes,
            files: facts.files,
            privileged_files: facts.privileged_files,
            highest_id: Some(facts.highest_id),
            original: Some(if split.is_some() { Original::Split } else { Original::Canonical }),
        };
        let placed = split
            .map_or(Ok(()), |split| rename(split, &split_target))
            .and_then(|()| rename(dir, &target))
            .and_then(|()| self.write_json(&facts_path(&layers, Path::new(&name)), &file));
        if let Err(error) = placed {
            // Without its facts it is not a layer; should this fail too, the next open removes it.
            drop((remove(&target), remove(&split_target)));
            return Err(error);
        }
        let layer = layer_of(file);
        state.layers.insert(diff_id.clone(), layer.clone());
        Ok(layer)
    }

    /// Makes everything durable that was written to the store's file system.
    fn sync_file_system(&self, dir: &Path) -> Result<(), StoreError> {
        let failed = |source| StoreError::Sync { path: dir.to_owned(), source };
        // Before waiting for others: errors are told of what went wrong since it was opened.
        let file = File::open(dir).map_err(failed)?;
        self.syncs.sync(|| rustix::fs::syncfs(&file)).map_err(|e| failed(e.into()))
    }

    /// Notes the highest id of a layer that came in before that was done.
    pub(crate) fn note_highest_id(&self, layer: &Layer, highest_id: u32) -> Result<(), StoreError> {
        let mut state = self.state();
        let Some(known) = state.layers.get_mut(&layer.diff_id) else { return Ok(()) };
        known.highest_id = Some(highest_id);
        let file = LayerFile {
            version: FORMAT,
            diff_id: known.diff_id.clone(),
            size_bytes: known.size_bytes,
            files: known.files,
            privileged_files: known.privileged_files,
            highest_id: known.highest_id,
            original: known.original,
        };
        for image in state.images.values_mut() {
            let same = image.layers.iter_mut().filter(|other| other.diff_id == layer.diff_id);
            same.for_each(|other| other.highest_id = Some(highest_id));
        }
        // Under the lock, or a layer that is removed meanwhile would get its facts back.
        self.write_json(&facts_path(&self.layers_dir(), Path::new(&layer.name)), &file)
    }

    /// Keeps these layers, whether they are in the store yet or still on their way.
    pub(crate) fn hold(self: &Arc<Self>, diff_ids: &[Digest]) -> Hold {
        let mut state = self.state();
        for diff_id in diff_ids {
            *state.holds.entry(diff_id.clone()).or_default() += 1;
            if let Some(layer) = state.layers.get(diff_id) {
                touch(&facts_path(&self.layers_dir(), Path::new(&layer.name)));
            }
        }
        Hold { store: Arc::downgrade(self), diff_ids: diff_ids.to_vec() }
    }

    /// Keeps these layers without counting it as a use.
    pub(crate) fn keep<'a>(self: &Arc<Self>, diff_ids: impl Iterator<Item = &'a Digest>) -> Hold {
        let diff_ids: Vec<Digest> = diff_ids.cloned().collect();
        let mut state = self.state();
        for diff_id in &diff_ids {
            *state.holds.entry(diff_id.clone()).or_default() += 1;
        }
        Hold { store: Arc::downgrade(self), diff_ids }
    }

    /// Notes that an image was used; not more than once in a while, since creating sandboxes comes by here.
    fn note_use(&self, state: &mut State, id: &Digest) {
        let now = SystemTime::now();
        let lately = |at: &SystemTime| now.duration_since(*at).is_ok_and(|age| age < USE_NOTED_EVERY);
        if !state.used.get(id).is_some_and(lately) {
            touch(&self.image_path(id));
            state.used.insert(id.clone(), now);
        }
    }

    /// Notes that an image was used.
    pub(crate) fn used(&self, id: &Digest) {
        let mut state = self.state();
        if state.images.contains_key(id) {
            self.note_use(&mut state, id);
        }
    }

    // Images.

    /// Puts an image under its config's digest, and points `references` at it.
    pub(crate) fn put_image(&self, config: Vec<u8>, references: &[String]) -> Result<Image, StoreError> {
        let id = Digest::of(&config);
        let mut state = self.state();
        if !state.images.contains_key(&id) {
            let image = image_of(&id, config, &state.layers)?;
            self.write_file(&self.image_path(&id), image.raw_config())?;
            state.images.insert(id.clone(), image);
        }
        self.note_use(&mut state, &id);
        self.point(&mut state, &id, references)?;
        state.image(&id).ok_or_else(|| StoreError::NoImage { name: id.to_string() })
    }

    fn point(&self, state: &mut State, id: &Digest, references: &[String]) -> Result<(), StoreError> {
        if references.iter().all(|r| state.references.get(r) == Some(id)) {
            return Ok(());
        }
        let mut changed = state.references.clone();
        changed.extend(references.iter().map(|r| (r.clone(), id.clone())));
        self.save_references(&changed)?;
        state.references = changed;
        Ok(())
    }

    pub(crate) fn image_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn has_image(&self, id: &Digest) -> bool {
        self.state().images.contains_key(id)
    }

    pub(crate) fn list(&self) -> Vec<Image> {
        let state = self.state();
        state.images.keys().filter_map(|id| state.image(id)).collect()
    }

    pub(crate) fn by_reference(&self, reference: &str) -> Option<Image> {
        let state = self.state();
        state.references.get(reference).and_then(|id| state.image(id))
    }

    /// By a whole id or the beginning of one, with or without `sha256:`.
    pub(crate) fn by_id(&self, name: &str) -> Result<Option<Image>, StoreError> {
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if prefix.len() < MIN_ID_PREFIX || !prefix.bytes().all(hex) {
            return Ok(None);
        }
        let state = self.state();
        let mut found: Vec<&Digest> = state.images.keys().filter(|id| id.hex().starts_with(prefix)).collect();
        match (found.pop(), found.is_empty()) {
            (None, _) => Ok(None),
            (Some(id), true) => Ok(state.image(id)),
            (Some(last), false) => Err(StoreError::Ambiguous {
                prefix: name.to_owned(),
                candidates: found.into_iter().chain([last]).cloned().collect(),
            }),
        }
    }

    pub(crate) fn tag(&self, id: &Digest, reference: &str) -> Result<Image, StoreError> {
        let mut state = self.state();
        if !state.images.contains_key(id) {
            return Err(StoreError::NoImage { name: id.to_string() });
        }
        self.point(&mut state, id, &[reference.to_owned()])?;
        state.image(id).ok_or_else(|| StoreError::NoImage { name: id.to_string() })
    }

    pub(crate) fn pin(self: &Arc<Self>, id: &Digest) -> Result<Pin, StoreError> {
        let mut state = self.state();
        let image = state.image(id).ok_or_else(|| StoreError::NoImage { name: id.to_string() })?;
        *state.pins.entry(id.clone()).or_default() += 1;
        self.note_use(&mut state, id);
        Ok(Pin { store: Arc::downgrade(self), image })
    }

    /// Takes one reference away, and with the last one the image.
    pub(crate) fn remove_reference(&self, reference: &str) -> Result<Vec<Digest>, StoreError> {
        let mut state = self.state();
        let id = state.references.get(reference).cloned();
        let id = id.ok_or_else(|| StoreError::NoImage { name: reference.to_owned() })?;
        if state.references.values().filter(|i| **i == id).count() == 1 {
            drop(state);
            return self.remove_image(&id);
        }
        let mut changed = state.references.clone();
        changed.remove(reference);
        self.save_references(&changed)?;
        state.references = changed;
        Ok(Vec::new())
    }

    /// Takes the image away with all its references, and the layers that only it had.
    pub(crate) fn remove_image(&self, id: &Digest) -> Result<Vec<Digest>, StoreError> {
        let mut state = self.state();
        if let Some(users) = state.pins.get(id) {
            return Err(StoreError::Pinned { id: id.clone(), users: *users });
        }
        let layers: Vec<Digest> = match state.images.get(id) {
            Some(image) => image.layers.iter().map(|l| l.diff_id.clone()).collect(),
            None => return Err(StoreError::NoImage { name: id.to_string() }),
        };
        self.forget_images(&mut state, std::slice::from_ref(id))?;
        let used = state.used_layers();
        let victims: Vec<Digest> = layers.into_iter().filter(|l| !used.contains(l)).collect();
        let trash = self.discard_layers(&mut state, &victims)?;
        drop(state);
        remove_in_background(trash);
        Ok(vec![id.clone()])
    }
}

impl State {
    fn image(&self, id: &Digest) -> Option<Image> {
        let mut image = self.images.get(id)?.clone();
        let points_here = self.references.iter().filter(|(_, i)| *i == id);
        image.references = points_here.map(|(reference, _)| reference.clone()).collect();
        Some(image)
    }

    fn used_layers(&self) -> HashSet<Digest> {
        let of_images = self.images.values().flat_map(|i| i.layers.iter().map(|l| l.diff_id.clone()));
        of_images.chain(self.holds.keys().cloned()).collect()
    }
}

fn image_of(id: &Digest, raw: Vec<u8>, layers: &HashMap<Digest, Layer>) -> Result<Image, StoreError> {
    let parsed = parse_config(&raw).map_err(|source| StoreError::Config { id: id.clone(), source })?;
    let find = |diff_id: &Digest| {
        layers.get(diff_id).cloned().ok_or_else(|| StoreError::NoLayer { diff_id: diff_id.clone() })
    };
    Ok(Image {
        id: id.clone(),
        platform: parsed.platform,
        created: parsed.created,
        config: parsed.config,
        layers: parsed.diff_ids.iter().map(find).collect::<Result<_, _>>()?,
        references: Vec::new(),
        raw: raw.into(),
    })
}

fn layer_of(facts: LayerFile) -> Layer {
    Layer {
        name: layer_name(&facts.diff_id),
        diff_id: facts.diff_id,
        size_bytes: facts.size_bytes,
        files: facts.files,
        privileged_files: facts.privileged_files,
        highest_id: facts.highest_id,
        original: facts.original,
    }
}

fn facts_path(layers: &Path, name: &Path) -> PathBuf {
    layers.join(name).with_extension("json")
}

fn split_path(layers: &Path, name: &Path) -> PathBuf {
    layers.join(name).with_extension("split")
}

fn lock(root: &Path) -> Result<OwnedFd, StoreError> {
    let path = root.join("images/lock");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| StoreError::Write { path: path.clone(), source: e.into() })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked { root: root.to_owned() }),
        Err(e) => Err(StoreError::Write { path, source: e.into() }),
    }
}

fn make_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|source| StoreError::MakeDir { path: path.to_owned(), source })
}

pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let entries = fs::read_dir(path).map_err(failed)?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect()
}

pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > limit {
        true => Err(StoreError::TooLong { path: path.to_owned(), limit }),
        false => Ok(bytes),
    }
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path, limit: u64) -> Result<T, StoreError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let malformed = |source| StoreError::Malformed { path: path.to_owned(), source };
    let bytes = read_limited(path, limit)?;
    // First of all: another version may have other fields.
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(malformed)?;
    match version {
        FORMAT => serde_json::from_slice(&bytes).map_err(malformed),
        found => Err(StoreError::Format { path: path.to_owned(), found }),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|source| StoreError::Rename {
        from: from.to_owned(),
        to: to.to_owned(),
        source,
    })
}

fn remove(path: &Path) -> Result<(), StoreError> {
    let is_dir = path.symlink_metadata().is_ok_and(|m| m.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Remove { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// One sync for a whole tree is far cheaper than one per file.
/// Notes that a layer was asked for; that this may fail costs at most a rebuild later.
fn touch(path: &Path) {
    let now = SystemTime::now();
    drop(File::options().append(true).open(path).and_then(|file| file.set_modified(now)));
}
