//! Out of one store and into another, or another program.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
#[path = "fixture/registry.rs"]
mod fixture_registry;

use std::path::Path;
use std::process::Command;

use berth_image::{CacheRow, Digest, Error, ExportError, Image, Images, ImportOptions};
use berth_types::error::Kind;
use berth_types::image::ArchiveFormat;
use fixture::*;
use fixture_registry::RealRegistry;
use serde_json::json;

async fn add(images: &Images, reference: &str, bytes: &[u8]) -> Image {
    let options = ImportOptions { reference: Some(reference.into()), format: None };
    images.import(bytes, options, silent()).await.unwrap().remove(0)
}

/// Two images that share a layer; one layer was imported, with an odd tar, the others were made here.
async fn filled(root: &Path) -> (Images, Image, Image) {
    let images = open(root);
    let mut odd = tar(&[("a", b"1"), ("etc/passwd", b"root:x:0:0::/:/bin/sh\n"), ("a", b"333")]);
    odd.extend_from_slice(&[0; 512 * 7]);
    let base = add(&images, "base:1", &odd).await;
    let layer = made(&images, root, b"here").await;
    let config = json!({ "config": { "Cmd": ["x"] }, "created": "2024-01-01T00:00:00Z" });
    let layers = [base.layers[0].diff_id.clone(), layer];
    let image = images.create_image(config, &layers, &["made:1".into(), "made:2".into()]).await.unwrap();
    (images, base, image)
}

async fn made(images: &Images, root: &Path, content: &[u8]) -> Digest {
    let upper = root.join("upper");
    std::fs::create_dir(&upper).unwrap();
    std::fs::write(upper.join("made"), content).unwrap();
    images.adopt_layer(&upper).await.unwrap().0.diff_id
}

fn exported(images: &Images, names: &[&str], format: Option<ArchiveFormat>) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    images.export(&names, format, None).unwrap().write(Vec::new()).unwrap()
}

#[tokio::test]
async fn what_goes_out_comes_in_the_same() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, image) = filled(tmp.path()).await;
    for format in [None, Some(ArchiveFormat::OciArchive), Some(ArchiveFormat::DockerArchive)] {
        let archive = exported(&images, &["base:1", image.id.as_str()], format);
        assert!(
            archive == exported(&images, &["base:1", image.id.as_str()], format),
            "the same bytes each time"
        );
        for bytes in [archive.clone(), zstd(&archive)] {
            let other = tempfile::tempdir().unwrap();
            let there = open(other.path());
            let options = ImportOptions::default();
            there.import(bytes.as_slice(), options, silent()).await.unwrap();
            let mut found = there.list();
            found.sort_by_key(|image| image.references.len());
            assert_eq!(found[0].id, base.id);
            assert_eq!(found[0].references, ["docker.io/library/base:1"]);
            assert_eq!(found[1].id, image.id);
            assert_eq!(found[1].references, ["docker.io/library/made:1", "docker.io/library/made:2"]);
            assert_eq!(found.len(), 2);
            let report = there.verify(true, silent()).await.unwrap();
            assert_eq!((report.layers, report.problems, report.unverifiable), (2, vec![], vec![]));
            assert!(exported(&there, &["base:1", image.id.as_str()], format) == archive, "and out again");
        }
    }
}

#[tokio::test]
async fn by_a_reference_only_that_one_goes_out() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, _, image) = filled(tmp.path()).await;
    let other = tempfile::tempdir().unwrap();
    let there = open(other.path());
    let archive = exported(&images, &["made:2"], None);
    let found = there.import(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap();
    assert_eq!(
        (found[0].id.clone(), found[0].references.as_slice()),
        (image.id, &["docker.io/library/made:2".to_owned()][..])
    );
}

#[tokio::test]
async fn what_cannot_be_exported_is_refused_before_a_byte_is_written() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, ..) = filled(tmp.path()).await;
    let error = |names: &[&str], format| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        images.export(&names, format, None).unwrap_err()
    };
    assert_eq!(error(&["nothing:here"], None).code(), "image_not_found");
    assert_eq!((error(&[], None).code(), error(&[], None).kind()), ("bad_export", Kind::User));
    assert_eq!(error(&["base:1"], Some(ArchiveFormat::Rootfs)).code(), "bad_export");
    let cache = Some(images.build_cache(Vec::new()));
    let docker = images.export(&["base:1".into()], Some(ArchiveFormat::DockerArchive), cache).unwrap_err();
    assert!(matches!(docker, Error::Export(ExportError::Format { .. })));
}

#[tokio::test]
async fn a_damaged_layer_breaks_the_export_off() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, _) = filled(tmp.path()).await;
    std::fs::write(images.layers_dir().join(&base.layers[0].name).join("a"), "xxx").unwrap();
    let export = images.export(&["base:1".into()], None, None).unwrap();
    let error = export.write(Vec::new()).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("image_store", Kind::Internal));
}

#[tokio::test]
async fn an_export_keeps_what_it_is_to_write() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, ..) = filled(tmp.path()).await;
    let export = images.export(&["made:1".into()], None, None).unwrap();
    let before = export.write(Vec::new()).unwrap();
    let all = berth_types::image::PruneImages { all: true, ..Default::default() };
    images.prune(all).await.unwrap();
    assert!(export.write(Vec::new()).unwrap() == before);
}

fn row(key: &str, layer: Option<&Digest>, image: Option<&Digest>) -> CacheRow {
    let kind = if image.is_some() { "image" } else { "step" };
    CacheRow {
        kind: kind.into(),
        key: key.into(),
        value: format!("value of {key}"),
        layer: layer.cloned(),
        image: image.cloned(),
    }
}

#[tokio::test]
async fn a_build_cache_goes_along_and_only_rows_that_mean_something_there_are_taken() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, base, image) = filled(tmp.path()).await;
    let cached = made(&images, tmp.path(), b"in no image").await;
    let rows = vec![
        row("gone", Some(&Digest::of(b"no such layer")), None),
        row("layer", Some(&cached), None),
        row("nothing", None, None),
        row("made", None, Some(&image.id)),
        row("base", None, Some(&base.id)),
    ];
    let cache = images.build_cache(rows.clone());
    assert_eq!(cache.0.rows().len(), 4, "not the one whose layer is gone");
    let archive = images.export(&["made:1".into()], None, Some(cache)).unwrap().write(Vec::new()).unwrap();

    let other = tempfile::tempdir().unwrap();
    let there = open(other.path());
    let found = there.import_all(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap();
    assert_eq!(found.images.iter().map(|image| &image.id).collect::<Vec<_>>(), [&image.id]);
    // The base is no image there, only its layer.
    let mut expected = vec![rows[1].clone(), rows[2].clone(), rows[3].clone()];
    expected.sort_by(|a, b| (&a.kind, &a.key).cmp(&(&b.kind, &b.key)));
    assert_eq!(found.cache, expected);
    assert!(there.layer(cached.as_str()).is_some());
    let nothing = berth_types::image::PruneImages::default();
    assert_eq!(there.prune(nothing.clone()).await.unwrap().layers, [""; 0], "held until the rows are taken");
    drop(found.hold);
    assert_eq!(there.prune(nothing).await.unwrap().layers, [cached.to_string()]);

    // Without asking for it, nothing of the cache comes in.
    let third = tempfile::tempdir().unwrap();
    let there = open(third.path());
    there.import(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap();
    assert!(there.layer(cached.as_str()).is_none());
}

#[tokio::test]
async fn a_cache_alone_can_travel() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, ..) = filled(tmp.path()).await;
    let cached = made(&images, tmp.path(), b"in no image").await;
    let cache = images.build_cache(vec![row("k", Some(&cached), None)]);
    let archive = images.export(&[], None, Some(cache)).unwrap().write(Vec::new()).unwrap();
    let other = tempfile::tempdir().unwrap();
    let there = open(other.path());
    let found = there.import_all(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap();
    assert_eq!((found.images.len(), found.cache.len()), (0, 1));
    assert!(there.layer(cached.as_str()).is_some());
}

#[tokio::test]
async fn a_cache_whose_layer_is_another_is_refused() {
    let real = tar(&[("made", b"by another step")]);
    let claimed = Digest::of(&tar(&[("made", b"as it should be")]));
    let config = json!({
        "version": 1, "diff_ids": [claimed],
        "rows": [{ "kind": "step", "key": "k", "value": "v", "layer": claimed }],
    });
    let mut layout = Layout::default();
    let mut entry = layout.manifest(config.to_string().as_bytes(), &[(LAYER, &real)]);
    entry["artifactType"] = berth_image::CACHE_TYPE.into();
    let archive = layout.archive(&[entry]);
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let error = images.import_all(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::User, "{}", chain(&error));
    assert!(chain(&error).contains(claimed.as_str()), "{}", chain(&error));
    assert_empty(tmp.path());
}

#[tokio::test]
async fn a_cache_goes_through_a_registry() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let tmp = tempfile::tempdir().unwrap();
    let (images, _, image) = filled(tmp.path()).await;
    let cached = made(&images, tmp.path(), b"in no image").await;
    let rows = vec![row("k", Some(&cached), None), row("n", None, None), row("i", None, Some(&image.id))];
    let name = format!("{}/team/app:1", registry.host);

    let other = tempfile::tempdir().unwrap();
    let there = open(other.path());
    assert!(there.pull_cache(&name, None, silent()).await.unwrap().is_none(), "nobody pushed one");
    // An image under the cache's name is no cache.
    images.push(&image, &format!("{name}.berth-cache"), None, silent()).await.unwrap();
    assert_eq!(there.pull_cache(&name, None, silent()).await.unwrap_err().code(), "bad_build_cache");

    let (cache, _hold) = images.build_cache(rows.clone());
    let first = images.push_cache(&cache, &name, None, silent()).await.unwrap();
    assert_eq!(images.push_cache(&cache, &name, None, silent()).await.unwrap(), first);
    let found = there.pull_cache(&name, None, silent()).await.unwrap().unwrap();
    assert_eq!(found.cache, rows[..2], "the image is not there");
    assert!(there.layer(cached.as_str()).is_some());
    assert_eq!(there.verify(true, silent()).await.unwrap().problems, [""; 0]);
}

/// Runs a program, or says that the machine lacks it.
fn run(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).output() {
        Err(_) => {
            println!("SKIP: no {program} on this machine");
            None
        }
        Ok(out) => {
            let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert!(out.status.success(), "{program} {args:?}: {text}{errors}");
            Some(text.into_owned())
        }
    }
}

#[tokio::test]
async fn other_programs_read_it() {
    let tmp = tempfile::tempdir().unwrap();
    let (images, _, image) = filled(tmp.path()).await;
    for (format, transport) in
        [(ArchiveFormat::OciArchive, "oci-archive"), (ArchiveFormat::DockerArchive, "docker-archive")]
    {
        let path = tmp.path().join(transport);
        std::fs::write(&path, exported(&images, &["base:1", "made:1"], Some(format))).unwrap();
        let source = format!("{transport}:{}:docker.io/library/made:1", path.display());
        let Some(text) = run("skopeo", &["inspect", "--raw", "--config", &source]) else { return };
        assert_eq!(Digest::of(text.trim_end_matches('\n').as_bytes()), image.id, "{text}");
        // Copied whole, every blob is compared with its digest.
        let copy = tmp.path().join(format!("{transport}-copy"));
        let target = format!("dir:{}", copy.display());
        run("skopeo", &["copy", "--insecure-policy", "-q", &source, &target]).unwrap();
        for layer in &image.layers {
            let blob = std::fs::read(copy.join(layer.diff_id.hex())).unwrap();
            assert_eq!(Digest::of(&blob), layer.diff_id);
        }
    }
}

#[tokio::test]
async fn podman_loads_it() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    // Without a path that comes twice, which podman does not take.
    let base = add(&images, "base:1", &tar(&[("a", b"1"), ("etc/passwd", b"")])).await;
    let layers = [base.layers[0].diff_id.clone(), made(&images, tmp.path(), b"here").await];
    let config = json!({ "created": "2024-01-01T00:00:00Z" });
    let image = images.create_image(config, &layers, &["made:1".into()]).await.unwrap();
    for format in [ArchiveFormat::OciArchive, ArchiveFormat::DockerArchive] {
        let path = tmp.path().join("archive.tar");
        std::fs::write(&path, exported(&images, &["made:1"], Some(format))).unwrap();
        let storage = tempfile::tempdir().unwrap();
        let (root, state) = (storage.path().join("root"), storage.path().join("run"));
        let of_ours = |args: &[&str]| {
            let mut all = vec![
                "--root",
                root.to_str().unwrap(),
                "--runroot",
                state.to_str().unwrap(),
                "--storage-driver=vfs",
            ];
            all.extend_from_slice(args);
            run("podman", &all)
        };
        if of_ours(&["load", "-q", "-i", path.to_str().unwrap()]).is_none() {
            return;
        }
        let text = of_ours(&["image", "inspect", "--format", "{{.Id}}", "docker.io/library/made:1"]).unwrap();
        assert_eq!(text.trim(), image.id.hex());
    }
}
