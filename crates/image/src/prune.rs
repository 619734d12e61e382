//! What goes when room is made, and in which order: a plan over a picture of the store, made without touching it.
//!
//! ```text
//!   images no reference names (or all) ─┐
//!   layers no image names ──────────────┴─► by last use, oldest first ─► until enough is free
//!                  ▲                                   │
//!                  └── layers that nobody else names ◄─┘ an image goes
//! ```
//!
//! An image's last use is when it was made, pinned or pulled; a layer's, when it was made or held. What is pinned or held
//! is no candidate at all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::{Duration, SystemTime};

use berth_types::image::{PruneImages, PruneReport};

use crate::digest::Digest;

/// An image, as far as pruning cares.
#[derive(Clone, Debug)]
pub(crate) struct ImageUse {
    pub(crate) id: Digest,
    pub(crate) named: bool,
    pub(crate) pinned: bool,
    pub(crate) last_used: SystemTime,
    pub(crate) layers: Vec<Digest>,
}

/// A layer, as far as pruning cares.
#[derive(Clone, Debug)]
pub(crate) struct LayerUse {
    pub(crate) size_bytes: u64,
    pub(crate) held: bool,
    pub(crate) last_used: SystemTime,
}

/// Everything that could go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) images: Vec<ImageUse>,
    pub(crate) layers: HashMap<Digest, LayerUse>,
}

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Victims {
    pub(crate) images: Vec<Digest>,
    pub(crate) layers: Vec<Digest>,
    pub(crate) freed_bytes: u64,
    pub(crate) left_bytes: u64,
}

impl Victims {
    pub(crate) fn report(&self) -> PruneReport {
        PruneReport {
            images: self.images.iter().map(Digest::to_string).collect(),
            layers: self.layers.iter().map(Digest::to_string).collect(),
            cache_mounts: Vec::new(),
            freed_bytes: self.freed_bytes,
            left_bytes: self.left_bytes,
        }
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Candidate {
    Layer(Digest),
    /// By its place in the inventory.
    Image(usize),
}

/// What `asked` takes from the store.
pub(crate) fn plan(inventory: &Inventory, asked: &PruneImages, now: SystemTime) -> Victims {
    let unused_for = asked.unused_for_seconds.map(Duration::from_secs);
    let old = |last_used: SystemTime| {
        // A time in the future is one just now.
        let age = now.duration_since(last_used).unwrap_or_default();
        unused_for.is_none_or(|wanted| age >= wanted)
    };
    let mut names: HashMap<&Digest, usize> = HashMap::new();
    for layer in inventory.images.iter().flat_map(|image| distinct(&image.layers)) {
        *names.entry(layer).or_default() += 1;
    }
    let free = |layer: &LayerUse| !layer.held && old(layer.last_used);
    let mut queue = BinaryHeap::new();
    for (place, image) in inventory.images.iter().enumerate() {
        if !image.pinned && (asked.all || !image.named) && old(image.last_used) {
            queue.push(Reverse((image.last_used, Candidate::Image(place))));
        }
    }
    for (diff_id, layer) in &inventory.layers {
        if !names.contains_key(diff_id) && free(layer) {
            queue.push(Reverse((layer.last_used, Candidate::Layer(diff_id.clone()))));
        }
    }
    let total = inventory.layers.values().map(|layer| layer.size_bytes).sum();
    let mut victims = Victims { left_bytes: total, ..Victims::default() };
    while asked.keep_bytes.is_none_or(|keep| victims.left_bytes > keep) {
        match queue.pop() {
            None => break,
            Some(Reverse((_, Candidate::Layer(diff_id)))) => {
                let size = inventory.layers.get(&diff_id).map_or(0, |layer| layer.size_bytes);
                victims.freed_bytes += size;
                victims.left_bytes -= size;
                victims.layers.push(diff_id);
            }
            Some(Reverse((_, Candidate::Image(place)))) => {
                let image = &inventory.images[place];
                victims.images.push(image.id.clone());
                for diff_id in distinct(&image.layers) {
                    let left = names.entry(diff_id).or_default();
                    *left = left.saturating_sub(1);
                    if let Some(layer) = inventory.layers.get(diff_id).filter(|l| *left == 0 && free(l)) {
                        queue.push(Reverse((layer.last_used, Candidate::Layer(diff_id.clone()))));
                    }
                }
            }
        }
    }
    victims
}

/// An image may hold one layer twice.
fn distinct(layers: &[Digest]) -> impl Iterator<Item = &Digest> {
    layers.iter().enumerate().filter(|(i, layer)| !layers[..*i].contains(layer)).map(|(_, layer)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn at(age: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - age)
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    /// Layers as `(name, size, age, held)`, images as `(name, named, pinned, age, layers)`.
    fn inventory(
        layers: &[(&str, u64, u64, bool)],
        images: &[(&str, bool, bool, u64, &[&str])],
    ) -> Inventory {
        let layer = |&(name, size_bytes, age, held): &(&str, u64, u64, bool)| {
            (digest(name), LayerUse { size_bytes, held, last_used: at(age) })
        };
        let image = |&(name, named, pinned, age, layers): &(&str, bool, bool, u64, &[&str])| ImageUse {
            id: digest(name),
            named,
            pinned,
            last_used: at(age),
            layers: layers.iter().map(|l| digest(l)).collect(),
        };
        Inventory { images: images.iter().map(image).collect(), layers: layers.iter().map(layer).collect() }
    }

    fn planned(inventory: &Inventory, asked: PruneImages) -> (Vec<Digest>, Vec<Digest>, u64, u64) {
        let victims = plan(inventory, &asked, at(0));
        (victims.images, victims.layers, victims.freed_bytes, victims.left_bytes)
    }

    fn digests(names: &[&str]) -> Vec<Digest> {
        names.iter().map(|name| digest(name)).collect()
    }

    #[test]
    fn only_what_nobody_names_pins_or_holds_goes() {
        let store = inventory(
            &[
                ("base", 100, 90, false),
                ("top", 10, 80, false),
                ("cache", 5, 70, false),
                ("held", 3, 99, true),
            ],
            &[
                ("named", true, false, 90, &["base", "base"]),
                ("nameless", false, false, 80, &["base", "top"]),
                ("running", false, true, 99, &["base"]),
            ],
        );
        let (images, layers, freed, left) = planned(&store, PruneImages::default());
        assert_eq!((images, layers), (digests(&["nameless"]), digests(&["top", "cache"])));
        assert_eq!((freed, left), (15, 103));
        let all = PruneImages { all: true, ..PruneImages::default() };
        let (images, layers, ..) = planned(&store, all);
        assert_eq!((images, layers), (digests(&["named", "nameless"]), digests(&["top", "cache"])));
    }

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_are_needed() {
        let store = inventory(
            &[
                ("old", 10, 300, false),
                ("older", 10, 400, false),
                ("young", 10, 5, false),
                ("a", 7, 350, false),
            ],
            &[("image", false, false, 350, &["a"])],
        );
        let keep = |bytes| PruneImages { keep_bytes: Some(bytes), ..PruneImages::default() };
        assert_eq!(planned(&store, keep(37)), (vec![], vec![], 0, 37));
        assert_eq!(planned(&store, keep(36)), (vec![], digests(&["older"]), 10, 27));
        assert_eq!(planned(&store, keep(21)), (digests(&["image"]), digests(&["older", "a"]), 17, 20));
        assert_eq!(planned(&store, keep(10)).1, digests(&["older", "a", "old"]));
        assert_eq!(planned(&store, keep(0)).3, 0);
    }

    #[test]
    fn what_was_used_lately_stays_whatever_else_goes() {
        let store = inventory(
            &[("a", 1, 50, false), ("b", 2, 500, false), ("c", 4, 100, false)],
            &[("image", true, false, 500, &["a", "b"]), ("young", true, false, 20, &["c"])],
        );
        let asked = PruneImages { all: true, unused_for_seconds: Some(100), ..PruneImages::default() };
        // The layer "a" was held for a build's cache meanwhile; "c" is old, but an image that stays names it.
        assert_eq!(planned(&store, asked), (digests(&["image"]), digests(&["b"]), 2, 5));
    }
}
