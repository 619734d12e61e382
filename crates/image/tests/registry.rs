//! Pulling and pushing, from a real registry on loopback and from ones that misbehave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
#[path = "fixture/registry.rs"]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_image::{Digest, Error, Image, Images, ImportOptions, PullError, RegistryConfig, RegistryError};
use berth_types::error::Kind;
use berth_types::image::PullPolicy;
use berth_types::progress::Progress;
use fixture::*;
use serde_json::{Value, json};
use server::*;

async fn local(images: &Images) -> Image {
    let (base, top) = (tar(&[("a", b"1")]), tar(&[("b", &[7; 3_000_000])]));
    let layers: &[&[u8]] = &[&base, &top];
    let archive = docker_archive(&[(&["local"], config(layers, &host_arch()), layers)]);
    images.import(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_can_be_pulled() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let images = open(here.path());
    let image = local(&images).await;
    let name = format!("{}/team/app:1", registry.host);
    let pushed = images.push(&image, &name, None, silent()).await.unwrap();

    let other = open(there.path());
    let (reporter, heard) = listening();
    let pulled = other.pull(&name, PullPolicy::Missing, None, reporter).await.unwrap();
    assert_eq!(pulled.id, pushed.id);
    assert_eq!(pulled.references, std::slice::from_ref(&name));
    assert_eq!(
        std::fs::read(other.layers_dir().join(&pulled.layers[1].name).join("b")).unwrap(),
        [7; 3_000_000]
    );
    assert_eq!(pulled.config, image.config);
    let complete = |action: &str| {
        let heard = heard.lock().unwrap();
        let done = heard.iter().filter(|event| matches!(event, Progress::Transfer { action: a, current, total: Some(t), .. } if a == action && current == t));
        done.count()
    };
    assert_eq!((complete("download"), complete("unpack")), (2, 2));

    // Pushed again from there, nothing changes: the layers are the same by now.
    assert_eq!(other.push(&pulled, &name, None, silent()).await.unwrap(), pushed);
    // By digest; and again, when all is there, without a byte of layers.
    let by_digest = format!("{}/team/app@{}", registry.host, pushed.manifest);
    let (reporter, heard) = listening();
    assert_eq!(other.pull(&by_digest, PullPolicy::Always, None, reporter).await.unwrap().id, pushed.id);
    assert!(!heard.lock().unwrap().iter().any(|e| matches!(e, Progress::Transfer { .. })));
    assert!(other.push(&pulled, &by_digest, None, silent()).await.is_err());
    // Through a mirror table: one that is away, one that lacks it, one that has it.
    let mirrored = tempfile::tempdir().unwrap();
    let empty = FakeRegistry::start(|_| Response::status(404)).await;
    let urls = [
        format!("http://{}", nobody()),
        format!("http://{}", empty.host),
        format!("http://{}", registry.host),
    ];
    let images = open_with(mirrored.path(), mirrors(&urls));
    assert_eq!(images.pull("team/app:1", PullPolicy::Always, None, silent()).await.unwrap().id, pushed.id);
    // With a path of its own before the repository.
    let prefixed = tempfile::tempdir().unwrap();
    let images = open_with(prefixed.path(), mirrors(&[format!("http://{}/team", registry.host)]));
    let error = images.pull("me/app:1", PullPolicy::Always, None, silent()).await.unwrap_err();
    assert!(
        matches!(error.root(), Error::Registry(RegistryError::NotFound { tried, .. }) if tried[0].contains("/team (MANIFEST_UNKNOWN")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_auth_is_asked_for_and_given() {
    let Some(registry) = RealRegistry::start(true) else { return };
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = local(&images).await;
    let name = format!("{}/app:1", registry.host);
    assert!(images.push(&image, &name, None, silent()).await.is_err());
    images.push(&image, &name, user("secret"), silent()).await.unwrap();
    for (auth, as_whom) in [(None, "an anonymous user"), (user("wrong"), "user")] {
        let error = images.pull(&name, PullPolicy::Always, auth, silent()).await.unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error.root(), Error::Registry(RegistryError::Unauthorised { .. })),
            "{}",
            chain(&error)
        );
        assert!(text.contains(&registry.host) && text.contains(as_whom), "{text}");
        assert!(!chain(&error).contains("wrong"), "a password in an error");
    }
    images.pull(&name, PullPolicy::Always, user("secret"), silent()).await.unwrap();
    drop(images);
    let auth = BTreeMap::from([(registry.host.clone(), user("secret").unwrap())]);
    let images = open_with(tmp.path(), RegistryConfig { auth, ..RegistryConfig::default() });
    images.pull(&name, PullPolicy::Always, None, silent()).await.unwrap();
}

#[tokio::test]
async fn absence_is_told_from_unreachability() {
    let tmp = tempfile::tempdir().unwrap();
    let empty = FakeRegistry::start(|_| Response::status(404)).await;
    let away = nobody();
    let urls = |hosts: &[&str]| mirrors(&hosts.iter().map(|h| format!("http://{h}")).collect::<Vec<_>>());
    let pull = async |config| {
        let images = open_with(tmp.path(), config);
        images.pull("debian:x", PullPolicy::Always, None, silent()).await.unwrap_err()
    };
    let error = pull(urls(&[&empty.host])).await;
    assert_eq!((error.kind(), error.code()), (Kind::NotFound, "image_not_found"));
    assert!(error.to_string().contains(&empty.host), "{error}");
    // One that cannot be asked might have had it.
    let error = pull(urls(&[&away, &empty.host])).await;
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "registry_unreachable"));
    let text = error.to_string();
    assert!(text.contains(&format!("{away} could not be reached")), "{text}");
    assert!(text.contains(&format!("{} does not have it", empty.host)), "{text}");
    assert_empty(tmp.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_transfers_are_resumed_and_gateways_asked_again() {
    let layer = tar(&[("a", &noise(500_000))]);
    let stored = gzip(&layer);
    let served = Served::new(&layer, &stored);
    let blob = format!("/v2/x/blobs/{}", Digest::of(&stored));
    let path = blob.clone();
    let registry = FakeRegistry::start(move |request| {
        let mut response = served.answer(request);
        if request.path.contains("/manifests/") && request.earlier < 2 {
            return Response::status(503);
        }
        if request.path == path {
            let from: Option<usize> = request
                .headers
                .get("range")
                .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            if let Some(from) = from {
                response.body.drain(..from);
                response.status = 206;
            }
            // Whoever starts anew each time never gets to the end.
            response.cut_at = (request.earlier < 2).then_some(response.body.len() / 2);
        }
        response
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let image = pull_x(&open(tmp.path()), &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(image.layers[0].size_bytes, 500_000);
    assert_eq!(registry.asked(&blob), 3);
    assert_eq!(registry.asked("/v2/x/manifests/latest"), 3);
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_is_fetched_once_for_many() {
    let layer = tar(&[("a", &noise(300_000))]);
    let stored = gzip(&layer);
    let served = Served::new(&layer, &stored);
    let registry = Arc::new(FakeRegistry::start(move |request| served.answer(request)).await);
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let pulls: Vec<_> = (0..5)
        .map(|_| {
            let (images, registry) = (images.clone(), Arc::clone(&registry));
            tokio::spawn(async move { pull_x(&images, &registry).await.unwrap().id })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    assert_eq!(registry.asked(&format!("/v2/x/blobs/{}", Digest::of(&stored))), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_content_is_refused() {
    let (layer, evil) = (tar(&[("a", b"1")]), tar(&[("a", b"2")]));
    let tmp = tempfile::tempdir().unwrap();
    // The blob is not the one of the manifest.
    let served = Served::new(&layer, &layer);
    let blob = format!("/v2/x/blobs/{}", Digest::of(&layer));
    let other = evil.clone();
    let registry =
        FakeRegistry::start(
            move |r| if r.path == blob { Response::ok(other.clone()) } else { served.answer(r) },
        )
        .await;
    let error = pull_x(&open(tmp.path()), &registry).await.unwrap_err();
    assert!(
        matches!(error.root(), Error::Registry(RegistryError::DigestMismatch { what: "a layer", .. })),
        "{}",
        chain(&error)
    );
    assert_empty(tmp.path());
    // The blob is, but unpacks to something that the config does not name.
    let served = Served::new(&layer, &gzip(&evil));
    let registry = FakeRegistry::start(move |r| served.answer(r)).await;
    let error = pull_x(&open(tmp.path()), &registry).await.unwrap_err();
    assert!(
        matches!(error.root(), Error::Ingest(berth_image::IngestError::DiffId { .. })),
        "{}",
        chain(&error)
    );
    assert_empty(tmp.path());
    // A manifest asked for by digest, and another one given.
    let served = Served::new(&layer, &gzip(&layer));
    let registry = FakeRegistry::start(move |r| {
        let path = if r.path.contains("/manifests/") { "/v2/x/manifests/latest" } else { &r.path };
        served.answer(&Request { path: path.into(), ..r.clone() })
    })
    .await;
    let name = format!("{}/x@{}", registry.host, Digest::of(b"another"));
    let error = open(tmp.path()).pull(&name, PullPolicy::Always, None, silent()).await.unwrap_err();
    assert!(
        matches!(error.root(), Error::Registry(RegistryError::DigestMismatch { what: "a manifest", .. })),
        "{}",
        chain(&error)
    );
    assert_eq!(error.code(), "digest_mismatch");
    assert_empty(tmp.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_machine_or_says_what_there_is() {
    let layer = tar(&[("a", b"1")]);
    let index = |architecture: &str, manifest: &[u8]| {
        let platform = |a: &str| json!({ "os": "linux", "architecture": a, "variant": "v9" });
        let entry = |a: &str, digest: Digest| json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(), "platform": platform(a) });
        let manifests = [entry("mips", Digest::of(b"elsewhere")), entry(architecture, Digest::of(manifest))];
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests })
    };
    let serve = |architecture: &str| {
        let mut served = Served::new(&layer, &gzip(&layer));
        let manifest = std::mem::take(&mut served.manifests[0]).1;
        let index: Value = index(architecture, &manifest);
        served.manifests = vec![("latest".into(), index.to_string().into_bytes()), (String::new(), manifest)];
        FakeRegistry::start(move |request| served.answer(request))
    };
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    pull_x(&images, &serve(&host_arch()).await).await.unwrap();
    let error = pull_x(&images, &serve("s390x").await).await.unwrap_err();
    assert!(matches!(error.root(), Error::Pull(PullError::Platform(_))), "{error}");
    assert!(error.to_string().ends_with("there is linux/mips/v9, linux/s390x/v9"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_with_and_without_a_user() {
    let layer = tar(&[("a", b"1")]);
    let served = Served::new(&layer, &gzip(&layer));
    let realm: Arc<std::sync::OnceLock<String>> = Arc::default();
    let own = Arc::clone(&realm);
    let registry = FakeRegistry::start(move |request| {
        let given = request.headers.get("authorization").cloned().unwrap_or_default();
        if request.path.starts_with("/token?") {
            assert!(request.path.contains("scope=repository%3Ax%3Apull"), "{}", request.path);
            let token = if given.starts_with("Basic ") { "known" } else { "anonymous" };
            return Response::ok(json!({ "token": token }).to_string());
        }
        let wanted = if request.path == "/v2/" { "none" } else { "Bearer known" };
        match given == wanted {
            true => served.answer(request),
            false => Response::status(401).header(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", own.get().unwrap()),
            ),
        }
    })
    .await;
    realm.set(registry.host.clone()).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(
        matches!(error.root(), Error::Registry(RegistryError::Unauthorised { user: None, .. })),
        "{}",
        chain(&error)
    );
    assert!(error.hint().is_some());
    let name = format!("{}/x", registry.host);
    images.pull(&name, PullPolicy::Always, user("secret"), silent()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_that_cannot_be_used_are_named() {
    let tmp = tempfile::tempdir().unwrap();
    let layer = tar(&[("a", b"1")]);
    let mut served = Served::new(&layer, &gzip(&layer));
    let text = String::from_utf8(served.manifests[0].1.clone()).unwrap();
    served.manifests[0].1 = text.replace("layer.v1.tar+gzip", "layer.v1.tar+gzip+encrypted").into_bytes();
    let registry = FakeRegistry::start(move |request| served.answer(request)).await;
    let error = pull_x(&open(tmp.path()), &registry).await.unwrap_err();
    assert!(error.to_string().contains("a layer of unsupported media type"), "{error}");
    let registry = FakeRegistry::start(|r| match r.path.as_str() {
        "/v2/" => Response::ok("{}"),
        _ => Response::ok(r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#),
    })
    .await;
    let error = pull_x(&open(tmp.path()), &registry).await.unwrap_err();
    assert!(error.to_string().contains("schema version 1"), "{error}");
    assert_empty(tmp.path());
}
