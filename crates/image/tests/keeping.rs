//! What a store keeps, what it gives back, what it tells of itself, and what it lets go.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use berth_image::{Digest, Error, Image, Images, ImportOptions, Original, OriginalError};
use berth_types::image::{PruneImages, VerifyReport};
use fixture::*;

async fn add(images: &Images, reference: &str, bytes: &[u8]) -> Image {
    let options = ImportOptions { reference: Some(reference.into()), format: None };
    images.import(bytes, options, silent()).await.unwrap().remove(0)
}

async fn verified(images: &Images, deep: bool) -> VerifyReport {
    images.verify(deep, silent()).await.unwrap()
}

/// A store with an image of two layers, one that came and one that was made.
async fn two_layers(root: &Path) -> (Images, Image, Image) {
    let images = open(root);
    let base = add(&images, "base", &tar(&[("a", b"1"), ("etc/b", b"22"), ("a", b"333")])).await;
    let upper = root.join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("made"), "here").unwrap();
    let (layer, _hold) = images.adopt_layer(&upper).await.unwrap();
    let layers = [base.layers[0].diff_id.clone(), layer.diff_id];
    let config = serde_json::json!({ "config": { "Cmd": ["x"] } });
    let image = images.create_image(config, &layers, &["made".into()]).await.unwrap();
    (images, base, image)
}

#[tokio::test]
async fn layers_are_given_as_they_came() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, image) = two_layers(tmp.path()).await;
    assert_eq!(base.layers[0].original, Some(Original::Split));
    assert_eq!(image.layers[1].original, Some(Original::Canonical));
    let bytes = images.write_original(&base.layers[0].diff_id, Vec::new()).await.unwrap();
    assert_eq!(Digest::of(&bytes), base.layers[0].diff_id);
    let made = images.write_original(&image.layers[1].diff_id, Vec::new()).await.unwrap();
    assert_eq!(Digest::of(&made), image.layers[1].diff_id);
    let unknown = images.write_original(&Digest::of(b"none"), Vec::new()).await.unwrap_err();
    assert_eq!(unknown.code(), "layer_not_found");
    drop(images);
    // Nothing of this needs more than what is on disk.
    let images = open(tmp.path());
    assert_eq!(images.write_original(&base.layers[0].diff_id, Vec::new()).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_whole_store_has_no_problems() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, ..) = two_layers(tmp.path()).await;
    for deep in [false, true] {
        let report = verified(&images, deep).await;
        assert_eq!((report.images, report.layers, report.bytes), (2, 2, 9), "deep: {deep}");
        assert_eq!((report.problems.as_slice(), report.unverifiable.as_slice()), (&[][..], &[][..]));
    }
}

/// Damages a store, and checks that verifying names it.
async fn found(deep: bool, expected: &str, damage: impl FnOnce(&Path, &Image)) {
    let tmp = tempfile::tempdir().unwrap();
    let (images, _, image) = two_layers(tmp.path()).await;
    damage(tmp.path(), &image);
    let report = verified(&images, deep).await;
    let told = report.problems.iter().any(|problem| problem.contains(expected));
    assert!(told, "{expected:?} is not among {:?}", report.problems);
    if deep && expected.contains("digest") {
        assert_eq!(verified(&images, false).await.problems, [""; 0], "only reading every byte shows it");
    }
}

#[tokio::test]
async fn every_kind_of_damage_is_told() {
    let layer = |root: &Path, image: &Image, i: usize| root.join("layers").join(&image.layers[i].name);
    found(false, "its config has digest", |root, image| {
        fs::write(root.join(format!("images/{}.json", image.id.hex())), "{}").unwrap();
    })
    .await;
    found(false, "its config is gone", |root, image| {
        fs::remove_file(root.join(format!("images/{}.json", image.id.hex()))).unwrap();
    })
    .await;
    found(false, "is nothing of the store's", |root, _| fs::write(root.join("images/x"), "").unwrap()).await;
    found(false, "is nothing of the store's", |root, _| fs::write(root.join("layers/x"), "").unwrap()).await;
    found(false, "belongs to no layer", |root, _| {
        fs::create_dir(root.join("layers/0123456789abcdef01234567")).unwrap();
    })
    .await;
    found(false, "it has 1 files, and 3 were noted", |root, image| {
        fs::remove_dir_all(layer(root, image, 0).join("etc")).unwrap();
    })
    .await;
    found(false, "bytes, and", |root, image| {
        fs::write(layer(root, image, 1).join("made"), "longer").unwrap()
    })
    .await;
    found(false, "privileged files", |root, image| {
        use std::os::unix::fs::PermissionsExt;
        let path = layer(root, image, 1).join("made");
        fs::set_permissions(path, fs::Permissions::from_mode(0o4755)).unwrap();
    })
    .await;
    found(false, ".split", |root, image| {
        fs::remove_file(layer(root, image, 0).with_extension("split")).unwrap();
    })
    .await;
    found(false, ".json", |root, image| {
        fs::remove_file(layer(root, image, 1).with_extension("json")).unwrap();
    })
    .await;
    found(false, "its image sha256:", |root, image| {
        let path = root.join("images/references.json");
        let text = fs::read_to_string(&path).unwrap().replace(image.id.hex(), &"0".repeat(64));
        fs::write(path, text).unwrap();
    })
    .await;
    found(false, "left over", |root, _| {
        let left = root.join("tmp/image-left");
        fs::write(&left, "").unwrap();
        fs::File::options().append(true).open(left).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    })
    .await;
    found(true, "is damaged: its tar now has digest", |root, image| {
        fs::write(layer(root, image, 0).join("a"), "xxx").unwrap();
    })
    .await;
    found(true, "is damaged: its tar now has digest", |root, image| {
        fs::write(layer(root, image, 1).join("made"), "HERE").unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_layer_from_before_tars_were_kept_is_unverifiable_and_no_problem() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, image) = two_layers(tmp.path()).await;
    drop(images);
    for layer in &image.layers {
        let facts = tmp.path().join("layers").join(&layer.name).with_extension("json");
        let mut fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&fs::read_to_string(&facts).unwrap()).unwrap();
        assert!(fields.remove("original").is_some());
        fs::write(facts, serde_json::to_string(&fields).unwrap()).unwrap();
    }
    let old = base.layers[0].diff_id.clone();
    let split = tmp.path().join("layers").join(&base.layers[0].name).with_extension("split");
    fs::remove_file(split).unwrap();
    let images = open(tmp.path());
    let error = images.write_original(&old, Vec::new()).await.unwrap_err();
    assert!(matches!(&error, Error::Original(OriginalError::NotKept { diff_id }) if *diff_id == old));
    assert!(error.hint().is_some());
    // The one that Berth made packs to its digest all the same.
    let report = verified(&images, true).await;
    assert_eq!((report.problems, report.unverifiable), (vec![], vec![old.to_string()]));
}

#[tokio::test]
async fn an_incomplete_image_is_a_problem_after_a_restart_too() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, image) = two_layers(tmp.path()).await;
    drop(images);
    let layer = tmp.path().join("layers").join(&base.layers[0].name);
    fs::remove_dir_all(&layer).unwrap();
    let images = open(tmp.path());
    let problems = verified(&images, false).await.problems;
    for id in [&base.id, &image.id] {
        let expected = format!("image {id}: its layer {} is not there", base.layers[0].diff_id);
        assert!(problems.contains(&expected), "{problems:?}");
    }
    assert!(problems.iter().any(|problem| problem.starts_with("reference docker.io/library/base:latest")));
}

/// Makes an image's or a layer's last use so long ago.
fn age(root: &Path, file: &str, age: Duration) {
    let file = fs::File::options().append(true).open(root.join(file)).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

fn age_image(root: &Path, image: &Image, by: Duration) {
    age(root, &format!("images/{}.json", image.id.hex()), by);
    image.layers.iter().for_each(|layer| age(root, &format!("layers/{}.json", layer.name), by));
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_dry_run_says_exactly_what_then_goes() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let old = add(&images, "old", &tar(&[("a", b"1")])).await;
    let pinned = add(&images, "pinned", &tar(&[("a", b"22")])).await;
    let young = add(&images, "young", &tar(&[("a", b"333")])).await;
    age_image(tmp.path(), &old, 9 * DAY);
    age_image(tmp.path(), &pinned, 10 * DAY);
    let _pin = images.pin(&pinned.id).unwrap();
    let none = images.prune(PruneImages::default()).await.unwrap();
    assert_eq!((none.images.len(), none.layers.len(), none.left_bytes), (0, 0, 6), "all have references");
    let asked = PruneImages {
        all: true,
        unused_for_seconds: Some(7 * DAY.as_secs()),
        dry_run: true,
        ..PruneImages::default()
    };
    let said = images.prune(asked.clone()).await.unwrap();
    assert_eq!(said.images, [old.id.to_string()]);
    assert_eq!(said.layers, [old.layers[0].diff_id.to_string()]);
    assert_eq!((said.freed_bytes, said.left_bytes), (1, 5));
    assert_eq!(images.list().len(), 3, "only said");
    assert_eq!(images.prune(PruneImages { dry_run: false, ..asked }).await.unwrap(), said);
    assert!(images.resolve("old").unwrap().is_none());
    assert!(images.resolve("young").unwrap().is_some_and(|image| image.id == young.id));
    assert_eq!(verified(&images, true).await.problems, [""; 0]);
    assert_eq!(names(&images.layers_dir()).len(), 6, "directory, facts and headers of two layers");
}

#[tokio::test]
async fn use_is_remembered_over_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = add(&images, "x", &tar(&[("a", b"1")])).await;
    drop(images);
    age_image(tmp.path(), &image, 30 * DAY);
    let asked = PruneImages {
        all: true,
        unused_for_seconds: Some(DAY.as_secs()),
        dry_run: true,
        ..PruneImages::default()
    };
    let images = open(tmp.path());
    assert_eq!(images.prune(asked.clone()).await.unwrap().images.len(), 1);
    drop(images.pin(&image.id).unwrap());
    drop(images);
    let images = open(tmp.path());
    assert_eq!(images.prune(asked).await.unwrap().images, [""; 0], "it was pinned a moment ago");
}

#[tokio::test]
async fn layers_that_are_held_outlive_the_pruning_of_all() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, _, image) = two_layers(tmp.path()).await;
    let hold = images.hold(std::slice::from_ref(&image.layers[1].diff_id));
    let all = PruneImages { all: true, ..PruneImages::default() };
    let report = images.prune(all.clone()).await.unwrap();
    assert_eq!((report.images.len(), report.layers.len(), report.left_bytes), (2, 1, 4));
    assert!(images.layers_dir().join(&image.layers[1].name).join("made").is_file());
    drop(hold);
    assert_eq!(images.prune(all).await.unwrap().left_bytes, 0);
    assert_eq!(names(&images.layers_dir()), [""; 0]);
}
