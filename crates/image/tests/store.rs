//! The store itself: what stays, what goes, and what a crash or a full disk leaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::path::Path;
use std::time::Duration;

use berth_image::{Digest, Error, Image, Images, ImportOptions, Options, RegistryConfig, StoreError};
use berth_types::error::Kind;
use berth_types::image::PullPolicy;
use fixture::*;
use serde_json::json;

async fn add(images: &Images, reference: &str, files: &[(&str, &[u8])]) -> Image {
    let options = ImportOptions { reference: Some(reference.into()), format: None };
    images.import(tar(files).as_slice(), options, silent()).await.unwrap().remove(0)
}

#[tokio::test]
async fn images_are_found_by_reference_id_and_prefix() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = add(&images, "debian:test", &[("a", b"1")]).await;
    let id = image.id.clone();
    let by = |name: &str| images.resolve(name).unwrap().map(|i| i.id);
    for name in [
        "debian:test",
        "docker.io/library/debian:test",
        id.as_str(),
        id.hex(),
        &id.hex()[..12],
        &id.as_str()[..15],
    ] {
        assert_eq!(by(name), Some(id.clone()), "{name}");
    }
    assert_eq!(by("debian:other"), None);
    assert_eq!(by("sha256:0000"), None);
    assert!(matches!(images.resolve("Not A Name"), Err(Error::Reference(_))));
    let pulled = images.pull("debian:test", PullPolicy::Missing, None, silent()).await.unwrap();
    assert_eq!(pulled.id, id);
    let error = images.pull("debian:other", PullPolicy::Never, None, silent()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "image_not_found"));
}

#[tokio::test]
async fn references_move_and_images_go_with_the_last_one() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let first = add(&images, "x:1", &[("a", b"1")]).await;
    images.tag("x:1", "x:latest").await.unwrap();
    let second = add(&images, "x:latest", &[("a", b"2")]).await;
    assert_eq!(images.resolve("x").unwrap().unwrap().id, second.id);
    assert_eq!(images.resolve("x:1").unwrap().unwrap().references, ["docker.io/library/x:1"]);
    images.tag("x:1", "x:one").await.unwrap();
    assert_eq!(images.remove("x:1").await.unwrap(), []);
    assert_eq!(images.remove("x:one").await.unwrap(), [first.id]);
    assert!(!images.layers_dir().join(&first.layers[0].name).exists());
    assert!(images.layers_dir().join(&second.layers[0].name).exists());
    let error = images.remove("x:1").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "image_not_found"));
    images.remove(second.id.short()).await.unwrap();
    assert!(images.list().is_empty());
    assert_eq!(names(&images.layers_dir()), [""; 0]);
}

#[tokio::test]
async fn a_pinned_image_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = add(&images, "x", &[("a", b"1")]).await;
    let pin = images.pin(&image.id).unwrap();
    let error = images.remove("x").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::Conflict, "image_in_use"));
    images.gc(Duration::ZERO).await.unwrap();
    assert!(images.layers_dir().join(&pin.image().layers[0].name).is_dir());
    drop(pin);
    assert_eq!(images.remove("x").await.unwrap(), [image.id]);
}

#[tokio::test]
async fn a_build_makes_layers_and_an_image_of_them() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let base = add(&images, "base", &[("a", b"1")]).await;
    let upper = tmp.path().join("upper");
    let make = |text: &str| {
        std::fs::create_dir(&upper).unwrap();
        std::fs::write(upper.join("new"), text).unwrap();
        let times = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        std::fs::File::options().write(true).open(upper.join("new")).unwrap().set_times(times).unwrap();
        std::fs::File::open(&upper).unwrap().set_times(times).unwrap();
    };
    make("x");
    let (layer, _) = images.adopt_layer(&upper).await.unwrap();
    assert!(!upper.exists());
    make("x");
    assert_eq!(images.adopt_layer(&upper).await.unwrap().0, layer, "the same content is the same layer");
    assert!(!upper.exists());
    assert_eq!(images.layer(&layer.name).unwrap(), images.layer(layer.diff_id.as_str()).unwrap());
    let (_, digest) = images.pack_layer(&layer.diff_id, std::io::sink()).await.unwrap();
    assert_eq!(digest, layer.diff_id, "Berth's own layers pack to their own digest");

    let config = json!({ "config": { "Cmd": ["x"] }, "created": "2024-01-01T00:00:00Z", "history": [] });
    let layers = [base.layers[0].diff_id.clone(), layer.diff_id.clone()];
    let image = images.create_image(config.clone(), &layers, &["built:1".into()]).await.unwrap();
    assert_eq!(image.config_json()["rootfs"]["diff_ids"], json!(layers));
    assert_eq!(image.config_json()["architecture"], host_arch());
    assert_eq!(image.created.as_deref(), Some("2024-01-01T00:00:00Z"));
    assert_eq!(images.create_image(config, &layers, &[]).await.unwrap().id, image.id);
    let unknown = [Digest::of(b"no layer")];
    assert!(matches!(
        images.create_image(json!({}), &unknown, &[]).await,
        Err(Error::Store(StoreError::NoLayer { .. }))
    ));
    assert!(images.create_image(json!(1), &layers, &[]).await.is_err());
    // The base's layer is shared, and outlives the base.
    images.remove("base").await.unwrap();
    assert!(images.layers_dir().join(&image.layers[0].name).is_dir());
}

#[tokio::test]
async fn layers_without_an_image_go_when_nobody_holds_them() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let upper = tmp.path().join("upper");
    std::fs::create_dir(&upper).unwrap();
    let (layer, _) = images.adopt_layer(&upper).await.unwrap();
    let hold = images.hold(std::slice::from_ref(&layer.diff_id));
    assert_eq!(images.gc(Duration::ZERO).await.unwrap(), []);
    drop(hold);
    assert_eq!(images.gc(Duration::from_secs(3600)).await.unwrap(), [], "it was used just now");
    assert_eq!(images.gc(Duration::ZERO).await.unwrap(), [layer.diff_id]);
    assert_eq!(names(&images.layers_dir()), [""; 0]);
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_leftovers_are_not() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = add(&images, "x", &[("a", b"1")]).await;
    let again = Images::open(Options { root: tmp.path().into(), registry: RegistryConfig::default() });
    assert!(matches!(again, Err(Error::Store(StoreError::Locked { .. }))));
    drop(images);
    let root = tmp.path();
    for dir in ["tmp/image-half/layer", "tmp/somebody-elses", "layers/0123456789abcdef01234567/x"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::write(root.join("layers/ffffffffffffffffffffffff.json"), "{}").unwrap();
    let images = open(root);
    assert_eq!(names(&root.join("tmp")), ["somebody-elses"]);
    let name = &image.layers[0].name;
    assert_eq!(names(&root.join("layers")), [name.clone(), format!("{name}.json"), format!("{name}.split")]);
    let found = images.resolve("x").unwrap().unwrap();
    assert_eq!((found.layers, found.references), (image.layers, image.references));
}

#[test]
fn unknown_formats_and_broken_files_are_errors() {
    let error_with = |file: &str, text: &str| {
        let tmp = tempfile::tempdir().unwrap();
        drop(open(tmp.path()));
        std::fs::create_dir(tmp.path().join("layers/0123456789abcdef01234567")).unwrap();
        std::fs::write(tmp.path().join(file), text).unwrap();
        let options = Options { root: tmp.path().into(), registry: RegistryConfig::default() };
        Images::open(options).expect_err("an unreadable store").to_string()
    };
    let newer = error_with("images/references.json", r#"{"version":2,"more":{}}"#);
    assert!(newer.contains("format 2"), "{newer}");
    let newer = error_with("layers/0123456789abcdef01234567.json", r#"{"version":7}"#);
    assert!(newer.contains("format 7"), "{newer}");
    assert!(error_with("images/references.json", "{").contains("malformed"));
}

/// The store as version 1 wrote it: must stay readable.
#[test]
fn the_first_format_is_read() {
    let tmp = tempfile::tempdir().unwrap();
    let layer = format!("sha256:{}", "0123456789abcdef".repeat(4));
    let name = "0123456789abcdef01234567";
    std::fs::create_dir_all(tmp.path().join("layers").join(name)).unwrap();
    std::fs::create_dir_all(tmp.path().join("images")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(tmp.path().join(name), text).unwrap();
    write(
        &format!("layers/{name}.json"),
        &format!(r#"{{"version":1,"diff_id":"{layer}","size_bytes":10,"files":3,"privileged_files":true}}"#),
    );
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#,
        host_arch()
    );
    let id = Digest::of(config.as_bytes());
    write(&format!("images/{}.json", id.hex()), &config);
    write(
        "images/references.json",
        &format!(r#"{{"version":1,"references":{{"docker.io/library/x:latest":"{id}"}}}}"#),
    );
    let image = open(tmp.path()).resolve("x").unwrap().unwrap();
    assert_eq!(image.layers[0].size_bytes, 10);
    assert!(image.has_privileged_files());
}

#[tokio::test]
async fn the_highest_id_is_noted_and_found_where_it_was_not() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = add_owned(&images, "x", 300_000).await;
    let diff_id = image.layers[0].diff_id.clone();
    assert_eq!(image.layers[0].highest_id, Some(300_000));
    assert_eq!(images.highest_id(&image.layers).await.unwrap(), Some((300_000, diff_id.clone())));
    assert_eq!(images.highest_id(&[]).await.unwrap(), None);
    drop(images);

    // As one that came in before it was noted.
    let facts = tmp.path().join("layers").join(format!("{}.json", image.layers[0].name));
    let text = std::fs::read_to_string(&facts).unwrap();
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(fields.remove("highest_id"), Some(json!(300_000)));
    std::fs::write(&facts, serde_json::to_string(&fields).unwrap()).unwrap();
    let images = open(tmp.path());
    let image = images.resolve("x").unwrap().unwrap();
    assert_eq!(image.layers[0].highest_id, None);
    assert_eq!(images.highest_id(&image.layers).await.unwrap(), Some((300_000, diff_id)));
    assert_eq!(images.resolve("x").unwrap().unwrap().layers[0].highest_id, Some(300_000));
    drop(images);
    let again: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&facts).unwrap()).unwrap();
    assert_eq!(again["highest_id"], 300_000);
}

/// An image with one file, which belongs to this group.
async fn add_owned(images: &Images, reference: &str, gid: u64) -> Image {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_gid(gid);
    tar.append_data(&mut header, "mine", &b"x"[..]).unwrap();
    let bytes = tar.into_inner().unwrap();
    let options = ImportOptions { reference: Some(reference.into()), format: None };
    images.import(bytes.as_slice(), options, silent()).await.unwrap().remove(0)
}

struct Tmpfs<'a>(&'a Path);

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_half_stays() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("data");
    std::fs::create_dir(&root).unwrap();
    let mounted =
        rustix::mount::mount("tmpfs", &root, "tmpfs", rustix::mount::MountFlags::empty(), c"size=4m");
    if let Err(errno) = mounted {
        println!("SKIP: cannot mount a tmpfs: {errno}");
        return;
    }
    let _mounted = Tmpfs(&root);
    let images = open(&root);
    let big: Vec<u8> = (0..8 << 20u32).map(|i: u32| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let incompressible = tar(&[("big", &big)]);
    // Too big for the spool already; and small as an archive, but too big unpacked.
    for bytes in [incompressible, gzip(&tar(&[("zeros", &vec![0; 8 << 20])]))] {
        let options = ImportOptions { reference: Some("x".into()), format: None };
        let error = images.import(bytes.as_slice(), options, silent()).await.unwrap_err();
        assert!(matches!(&error, Error::DiskFull { path, .. } if *path == root), "{}", chain(&error));
        assert_eq!((error.kind(), error.code()), (Kind::Capacity, "disk_full"));
        assert_empty(&root);
    }
    let image = add(&images, "small", &[("a", b"1")]).await;
    assert_eq!(image.layers.len(), 1, "and it goes on afterwards");
    drop(images);
}
