//! Taking things out of the store again: always in the order in which nothing is left that names what is gone.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use berth_types::image::PruneImages;
use tempfile::TempDir;

use super::{State, Store, StoreError, facts_path, remove, rename, split_path};
use crate::digest::Digest;
use crate::image::{Image, Layer};
use crate::prune::{ImageUse, Inventory, LayerUse, Victims, plan};

impl Store {
    /// Removes layers that no image names, nobody holds, and nobody asked to hold for `unused_for`.
    pub(crate) fn collect(&self, unused_for: Duration) -> Result<Vec<Digest>, StoreError> {
        let mut state = self.state();
        let used = state.used_layers();
        let layers = self.layers_dir();
        let old = |layer: &Layer| {
            let modified =
                fs::metadata(facts_path(&layers, Path::new(&layer.name))).and_then(|m| m.modified());
            let age = modified.ok().and_then(|m| SystemTime::now().duration_since(m).ok());
            unused_for.is_zero() || age.is_some_and(|age| age >= unused_for)
        };
        let victims: Vec<Digest> = state
            .layers
            .values()
            .filter(|l| !used.contains(&l.diff_id) && old(l))
            .map(|l| l.diff_id.clone())
            .collect();
        let trash = self.discard_layers(&mut state, &victims)?;
        drop(state);
        remove_in_background(trash);
        Ok(victims)
    }

    /// Removes what `asked` says, or only says what that is.
    pub(crate) fn prune(&self, asked: &PruneImages) -> Result<Victims, StoreError> {
        let mut state = self.state();
        let victims = plan(&self.inventory(&state), asked, SystemTime::now());
        if asked.dry_run || victims == (Victims { left_bytes: victims.left_bytes, ..Victims::default() }) {
            return Ok(victims);
        }
        self.forget_images(&mut state, &victims.images)?;
        let trash = self.discard_layers(&mut state, &victims.layers)?;
        drop(state);
        remove_in_background(trash);
        Ok(victims)
    }

    fn inventory(&self, state: &State) -> Inventory {
        let layers = self.layers_dir();
        let named: HashSet<&Digest> = state.references.values().collect();
        let image = |image: &Image| ImageUse {
            id: image.id.clone(),
            named: named.contains(&image.id),
            pinned: state.pins.contains_key(&image.id),
            last_used: modified(&self.image_path(&image.id)),
            layers: image.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        };
        let layer = |layer: &Layer| {
            let last_used = modified(&facts_path(&layers, Path::new(&layer.name)));
            let held = state.holds.contains_key(&layer.diff_id);
            (layer.diff_id.clone(), LayerUse { size_bytes: layer.size_bytes, held, last_used })
        };
        Inventory {
            images: state.images.values().map(image).collect(),
            layers: state.layers.values().map(layer).collect(),
        }
    }

    /// References first, then configs, and both on disk before any layer that they name may go.
    pub(super) fn forget_images(&self, state: &mut State, ids: &[Digest]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut changed = state.references.clone();
        changed.retain(|_, id| !ids.contains(id));
        if changed.len() != state.references.len() {
            self.save_references(&changed)?;
            state.references = changed;
        }
        for id in ids {
            remove(&self.image_path(id))?;
            state.images.remove(id);
            state.used.remove(id);
        }
        let dir = self.root.join("images");
        let synced = File::open(&dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| StoreError::Sync { path: dir, source })
    }

    /// Moves layers out of the store; the result, when dropped, removes their files.
    #[must_use = "removing the files takes long and belongs after the lock"]
    pub(super) fn discard_layers(
        &self,
        state: &mut State,
        victims: &[Digest],
    ) -> Result<TempDir, StoreError> {
        let layers = self.layers_dir();
        let trash = self.scratch()?;
        for diff_id in victims {
            let Some(layer) = state.layers.remove(diff_id) else { continue };
            // Facts first: from here on it is no layer any more, however far the rest comes.
            remove(&facts_path(&layers, Path::new(&layer.name)))?;
            rename(&layers.join(&layer.name), &trash.path().join(&layer.name))?;
            remove(&split_path(&layers, Path::new(&layer.name)))?;
        }
        Ok(trash)
    }
}

/// Large trees take long to remove, and nobody should wait for it. What a crash leaves of it goes at the next start.
pub(super) fn remove_in_background(trash: TempDir) {
    let name = "berth-trash".to_owned();
    if let Err(error) = std::thread::Builder::new().name(name).spawn(move || drop(trash)) {
        // The closure was dropped, and the trash with it.
        tracing::debug!(%error, "removed what was freed while its caller waited");
    }
}

/// When a file was last changed; long ago, where that cannot be told.
fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}
