//! Archives of every kind into a store, and what is wrong with those that are refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use berth_image::{Error, Image, ImportError, ImportOptions, IngestError};
use berth_types::error::Kind;
use berth_types::image::ArchiveFormat;
use fixture::*;
use serde_json::json;

async fn import(
    images: &berth_image::Images,
    bytes: &[u8],
    reference: Option<&str>,
) -> Result<Vec<Image>, Error> {
    let options = ImportOptions { reference: reference.map(str::to_owned), format: None };
    images.import(bytes, options, silent()).await
}

async fn refused(bytes: &[u8], reference: Option<&str>) -> Error {
    let tmp = tempfile::tempdir().unwrap();
    let error = import(&open(tmp.path()), bytes, reference).await.expect_err("a bad archive");
    assert_empty(tmp.path());
    error
}

#[tokio::test]
async fn a_root_file_system_plain_gzip_and_zstd() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let rootfs = tar(&[("bin/sh", b"#!"), ("etc/hosts", b"")]);
    let mut ids = Vec::new();
    for bytes in [rootfs.clone(), gzip(&rootfs), zstd(&rootfs)] {
        let image = import(&images, &bytes, Some("me/base:1")).await.unwrap().remove(0);
        assert_eq!(image.references, ["docker.io/me/base:1"]);
        assert_eq!(image.platform.architecture, host_arch());
        assert_eq!((image.layers[0].files, image.layers[0].size_bytes), (4, 2));
        assert!(images.layers_dir().join(&image.layers[0].name).join("bin/sh").is_file());
        ids.push(image.id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "the same content is the same image");
    assert_eq!(names(&tmp.path().join("layers")).len(), 3, "one layer, its facts and its tar's headers");
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test]
async fn a_docker_archive_with_its_own_names() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let (base, top) = (tar(&[("a", b"1")]), tar(&[(".wh.a", b""), ("b", b"2")]));
    let layers: &[&[u8]] = &[&base, &top];
    let one = config(layers, &host_arch());
    let two = config(&[&base], &host_arch());
    let archive = docker_archive(&[
        (&["one:1", "registry.example/one:latest"], one.clone(), layers),
        (&["two"], two, &[&base]),
    ]);
    for bytes in [archive.clone(), gzip(&archive)] {
        let found = import(&images, &bytes, None).await.unwrap();
        assert_eq!(found[0].references, ["docker.io/library/one:1", "registry.example/one:latest"]);
        assert_eq!(found[1].references, ["docker.io/library/two:latest"]);
        assert_eq!(found[0].raw_config(), one, "byte for byte");
        assert_eq!(found[0].id, berth_image::Digest::of(&one));
        assert_eq!(found[0].config.env, ["PATH=/bin", "A=b"]);
        assert_eq!((found[0].config.working_dir.as_str(), found[0].config.user.as_str()), ("/w", "u"));
        assert_eq!(found[0].to_api().layers, 2);
    }
    let error = import(&images, &archive, Some("x")).await.unwrap_err();
    assert!(matches!(error, Error::Import(ImportError::SeveralImages { count: 2, .. })), "{error}");
    let single = docker_archive(&[(&[], one, layers)]);
    assert!(matches!(
        import(&images, &single, None).await,
        Err(Error::Import(ImportError::NoReference { .. }))
    ));
    assert_eq!(import(&images, &single, Some("x:y")).await.unwrap()[0].references.len(), 3);
}

#[tokio::test]
async fn a_docker_archive_is_known_by_its_table_wherever_it_stands_and_whatever_its_members_are_called() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let layer = tar(&[("a", b"1")]);
    let config = config(&[&layer], &host_arch());
    let hex = berth_image::Digest::of(&config).hex().to_owned();
    let by_digest = format!("{hex}.json");
    let table = |config: &str, layer: &str| {
        json!([{ "Config": config, "RepoTags": ["x:1"], "Layers": [layer] }]).to_string().into_bytes()
    };
    let orders: [[(&str, Vec<u8>); 3]; 4] = [
        [
            ("layer.tar", layer.clone()),
            ("config.json", config.clone()),
            ("manifest.json", table("config.json", "layer.tar")),
        ],
        [
            ("config.json", config.clone()),
            ("layer.tar", layer.clone()),
            ("./manifest.json", table("config.json", "layer.tar")),
        ],
        [
            (&by_digest, config.clone()),
            ("0.tar", layer.clone()),
            ("manifest.json", table(&by_digest, "0.tar")),
        ],
        [
            ("one/layer.tar", layer.clone()),
            ("manifest.json", table("c", "one/layer.tar")),
            ("c", config.clone()),
        ],
    ];
    for members in orders {
        let members: Vec<(&str, &[u8])> =
            members.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
        let archive = tar(&members);
        for bytes in [archive.clone(), gzip(&archive)] {
            let found = import(&images, &bytes, None).await.unwrap();
            assert_eq!(found[0].id, berth_image::Digest::of(&config), "{:?}", members[0].0);
        }
    }
    // What only is called so is a file of a root file system.
    for (name, text) in [("manifest.json", "{\"name\": \"an application\"}"), ("index.json", "{}")] {
        for rootfs in [
            tar(&[(name, text.as_bytes()), ("app/main", b"x")]),
            tar(&[("app/main", b"x"), (name, text.as_bytes())]),
            tar(&[("bin/sh", b"x"), (name, table("c", "l").as_slice())]),
        ] {
            let image = import(&images, &rootfs, Some("me/app:1")).await.unwrap().remove(0);
            assert!(images.layers_dir().join(&image.layers[0].name).join(name).is_file(), "{name}");
        }
    }
    let broken = tar(&[(&by_digest, config.as_slice()), ("manifest.json", b"[{"), ("repositories", b"{}")]);
    let error = import(&images, &broken, Some("x")).await.unwrap_err();
    assert!(matches!(error, Error::Import(ImportError::Malformed { .. })), "{error}");
}

#[tokio::test]
async fn layers_linked_to_each_other_are_found() {
    let tmp = tempfile::tempdir().unwrap();
    let layer = tar(&[("a", b"1")]);
    let config = config(&[&layer, &layer], &host_arch());
    let table = json!([{ "Config": "c.json", "RepoTags": ["x"], "Layers": ["1/layer.tar", "2/layer.tar"] }])
        .to_string();
    let archive = tar(&[
        ("1/layer.tar", &layer),
        ("2/layer.tar@link", b"../1/layer.tar"),
        ("c.json", &config),
        ("manifest.json", table.as_bytes()),
    ]);
    let options = ImportOptions { reference: None, format: Some(ArchiveFormat::DockerArchive) };
    let images = open(tmp.path()).import(archive.as_slice(), options, silent()).await.unwrap();
    assert_eq!(images[0].layers.len(), 2);
}

#[tokio::test]
async fn an_oci_layout_with_every_compression() {
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let tars = [tar(&[("a", b"1")]), tar(&[("b", b"2")]), tar(&[("c", b"3")])];
    let refs: Vec<&[u8]> = tars.iter().map(Vec::as_slice).collect();
    let mut layout = Layout::default();
    let (zipped, packed) = (gzip(&tars[1]), zstd(&tars[2]));
    let mut ours = layout.manifest(
        &config(&refs, &host_arch()),
        &[(LAYER, &tars[0]), (LAYER_GZIP, &zipped), (LAYER_ZSTD, &packed)],
    );
    ours["platform"] = json!({ "os": "linux", "architecture": host_arch() });
    let mut other = layout.manifest(&config(&refs[..1], "s390x"), &[(LAYER, &tars[0])]);
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    // Nested: an index in the layout's index, as multi-platform builds write it.
    let inner = json!({ "schemaVersion": 2, "manifests": [other, ours] }).to_string();
    let digest = layout.blob(inner.as_bytes());
    let outer = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": inner.len(),
        "annotations": { "io.containerd.image.name": "registry.example/x:1", "org.opencontainers.image.ref.name": "1" },
    });
    let archive = layout.clone().archive(&[outer]);
    let found = import(&images, &archive, None).await.unwrap();
    assert_eq!(found[0].references, ["registry.example/x:1"]);
    assert_eq!(found[0].layers.len(), 3);
    // A tag alone is no name.
    ours["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
    let archive = layout.clone().archive(&[ours]);
    assert!(matches!(
        import(&images, &archive, None).await,
        Err(Error::Import(ImportError::NoReference { .. }))
    ));
    assert_eq!(import(&images, &zstd(&archive), Some("y")).await.unwrap()[0].id, found[0].id);
    let error = refused(&layout.archive(&[other]), Some("z")).await;
    assert!(chain(&error).contains("there is linux/s390x"), "{error}");
    assert_eq!(error.code(), "wrong_platform");
}

#[tokio::test]
async fn wrong_digests_are_refused() {
    let (layer, evil) = (tar(&[("a", b"1")]), tar(&[("a", b"2")]));
    // The config names other content than the archive has.
    let docker = docker_archive(&[(&["x"], config(&[&layer], &host_arch()), &[&evil])]);
    let error = refused(&docker, None).await;
    assert!(matches!(error, Error::Ingest(IngestError::DiffId { .. })), "{error}");
    // A blob that is not what its name says.
    let mut layout = Layout::default();
    let manifest = layout.manifest(&config(&[&layer], &host_arch()), &[(LAYER, &layer)]);
    let swap = |name_of: &[u8], bytes: Vec<u8>| {
        let mut layout = layout.clone();
        let name = format!("blobs/sha256/{}", berth_image::Digest::of(name_of).hex());
        layout.files.iter_mut().find(|(n, _)| *n == name).unwrap().1 = bytes;
        layout.archive(std::slice::from_ref(&manifest))
    };
    let error = refused(&swap(&layer, evil.clone()), Some("x")).await;
    assert!(matches!(error, Error::Ingest(IngestError::BlobDigest { .. })), "{error}");
    let error =
        refused(&swap(&config(&[&layer], &host_arch()), config(&[&evil], &host_arch())), Some("x")).await;
    assert!(matches!(error, Error::Import(ImportError::MemberDigest { .. })), "{error}");
    assert_eq!(error.kind(), Kind::User);
}

#[tokio::test]
async fn broken_archives_name_the_member() {
    let rootfs = tar(&[("a", &[7; 100_000])]);
    let zipped = gzip(&rootfs);
    let error = refused(&zipped[..zipped.len() / 2], Some("x")).await;
    assert!(matches!(error, Error::Ingest(IngestError::Decompress { .. })), "{}", chain(&error));
    let packed = zstd(&rootfs);
    let error = refused(&packed[..packed.len() - 3], Some("x")).await;
    assert!(error.to_string().contains("cannot decompress"), "{}", chain(&error));
    let error = refused(&rootfs[..50_000], Some("x")).await;
    assert!(chain(&error).contains("in the middle of \"a\""), "{}", chain(&error));
    // Cut exactly between members: only the missing end tells.
    let error = refused(&rootfs[..512 + 100_352], Some("x")).await;
    assert!(matches!(error, Error::Ingest(IngestError::NoEnd { .. })), "{}", chain(&error));
    assert!(matches!(refused(b"", Some("x")).await, Error::Import(ImportError::Empty)));
    assert!(matches!(refused(b"no tar at all", Some("x")).await, Error::Import(ImportError::NotTar { .. })));
    assert!(matches!(refused(&rootfs, None).await, Error::Import(ImportError::NoReference { .. })));
    assert!(matches!(refused(&rootfs, Some("Bad:")).await, Error::Reference(_)));

    let table = json!([{ "Config": "c.json", "RepoTags": ["x"], "Layers": ["gone/layer.tar"] }]).to_string();
    let missing = tar(&[("manifest.json", table.as_bytes())]);
    let error = refused(&missing, None).await;
    assert_eq!(error.to_string(), "the archive has no member \"c.json\", which manifest.json names");
    let layer = tar(&[("a", b"")]);
    let missing = tar(&[("manifest.json", table.as_bytes()), ("c.json", &config(&[&layer], &host_arch()))]);
    let error = refused(&missing, None).await;
    assert!(error.to_string().contains("gone/layer.tar"), "{error}");
    let error = refused(&tar(&[("manifest.json", b"{")]), None).await;
    assert!(
        matches!(&error, Error::Import(ImportError::Malformed { member, .. }) if member == "manifest.json"),
        "{error}"
    );
    let more = docker_archive(&[(&["x"], config(&[&layer, &layer], &host_arch()), &[&layer])]);
    assert!(matches!(
        refused(&more, None).await,
        Error::Import(ImportError::LayerCount { layers: 1, config: 2, .. })
    ));
}

#[tokio::test]
async fn hostile_layers_leave_nothing() {
    let evil = tar(&[("ok", b"1"), ("h@link", b"/etc"), ("a/.wh..", b"")]);
    let error = refused(&evil, Some("x")).await;
    assert!(chain(&error).contains("a/.wh.."), "{}", chain(&error));
}
