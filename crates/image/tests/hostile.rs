//! Registries that are slow, break off, lie, limit, redirect and expire: nothing half-done is ever visible, the store passes
//! verification after each, and a second pull goes on where the first one ended.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
#[path = "fixture/registry.rs"]
mod server;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_image::{Digest, Error, Images, IngestError, RegistryError};
use berth_types::error::Kind;
use berth_types::image::PullPolicy;
use berth_types::progress::Progress;
use fixture::*;
use serde_json::json;
use server::*;

/// A layer that is large enough for its broken download to be kept.
const LARGE: usize = 1_500_000;

/// No image is there, nothing is unpacked halfway, and what is there is whole.
async fn nothing_half_done(images: &Images, root: &std::path::Path) {
    assert!(images.list().is_empty());
    let left = names(&root.join("tmp"));
    assert!(left.iter().all(|name| name.starts_with("part-")), "{left:?}");
    whole(images).await;
}

async fn whole(images: &Images) {
    let report = images.verify(true, silent()).await.unwrap();
    assert_eq!((report.problems, report.unverifiable), (vec![], vec![]));
}

fn registry_error(error: &Error) -> &RegistryError {
    match error.root() {
        Error::Registry(error) => error,
        _ => panic!("{}", chain(error)),
    }
}

fn large() -> (Vec<u8>, Vec<u8>) {
    let layer = tar(&[("a", &noise(LARGE)), ("b", b"end")]);
    let stored = layer.clone();
    (layer, stored)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_any_kind_that_breaks_off_once_is_asked_for_again() {
    let (layer, stored) = large();
    for broken in ["/manifests/", "/blobs/"] {
        for length in [None, Some(None)] {
            let served = Served::new(&layer, &stored);
            let registry = FakeRegistry::start(move |request| {
                let mut response = served.answer(request).ranged(request);
                if request.path.contains(broken) && request.earlier == 0 && response.body.len() > 1000 {
                    response.cut_at = Some(response.body.len() / 2);
                    // Without a length, a manifest that breaks off cannot be told from a short one.
                    response.length = length.filter(|_| broken == "/blobs/");
                }
                response
            })
            .await;
            let tmp = tempfile::tempdir().unwrap();
            let images = open(tmp.path());
            pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{broken}: {}", chain(&e)));
            whole(&images).await;
            assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
            assert_eq!(registry.sent(&blob_path(&stored)), stored.len(), "no byte twice");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_failed_is_gone_on_with_after_a_restart() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    let served = Arc::new(Served::new(&layer, &stored));
    let half = stored.len() / 2;
    let (bad, blob) = (Arc::clone(&served), path.clone());
    let breaking = FakeRegistry::start(move |request| {
        let mut response = bad.answer(request).ranged(request);
        if request.path == blob {
            response.cut_at = Some(if request.from().is_none() { half } else { 0 });
        }
        response
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let error = pull_x(&images, &breaking).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (Kind::Unavailable, "registry_unreachable"),
        "{}",
        chain(&error)
    );
    assert!(error.to_string().contains(&breaking.host), "{error}");
    assert_eq!(breaking.asked(&path), 4);
    nothing_half_done(&images, tmp.path()).await;
    assert_eq!(names(&tmp.path().join("tmp")).len(), 1);
    drop(images);

    let images = open(tmp.path());
    let good = Arc::clone(&served);
    let registry = FakeRegistry::start(move |request| good.answer(request).ranged(request)).await;
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(registry.sent(&path), stored.len() - half, "only the rest is fetched");
    whole(&images).await;
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_with_wrong_bytes_is_begun_anew() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    let served = Served::new(&layer, &stored);
    let registry = FakeRegistry::start(move |request| served.answer(request).ranged(request)).await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let partial = tmp.path().join(format!("tmp/part-{}", Digest::of(&stored).hex()));
    std::fs::write(&partial, vec![7; 700_000]).unwrap();
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(registry.asked(&path), 2);
    whole(&images).await;
    assert!(!partial.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_resume_is_asked_for_the_whole() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    for (status, range) in [(200, None), (416, None), (206, Some("bytes 5-9/10"))] {
        let served = Served::new(&layer, &stored);
        let registry = FakeRegistry::start(move |request| {
            let mut response = served.answer(request);
            if response.body.len() > LARGE && request.earlier == 0 {
                response.cut_at = Some(response.body.len() / 2);
            } else if request.from().is_some() && status != 200 {
                response.status = status;
                response =
                    range.map_or_else(|| Response::status(416), |r| response.header("Content-Range", r));
            }
            response
        })
        .await;
        let tmp = tempfile::tempdir().unwrap();
        let images = open(tmp.path());
        pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{status}: {}", chain(&e)));
        assert_eq!(registry.asked(&path), if status == 200 { 2 } else { 3 });
        whole(&images).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_are_not_the_manifests_are_refused() {
    let (layer, stored) = large();
    let size = stored.len();
    for (told, sent) in [(size - 1, "longer"), (size + 1, "shorter")] {
        for endless in [false, true] {
            let served =
                Served::new(&layer, &stored).edited(&format!("\"size\":{size}"), &format!("\"size\":{told}"));
            let registry = FakeRegistry::start(move |request| {
                let mut response = served.answer(request).ranged(request);
                response.endless = endless && response.body.len() > LARGE;
                response
            })
            .await;
            let tmp = tempfile::tempdir().unwrap();
            let images = open(tmp.path());
            let error = pull_x(&images, &registry).await.unwrap_err();
            let sized = matches!(registry_error(&error), RegistryError::SizeMismatch { .. });
            assert!(sized, "{sent}, endless {endless}: {}", chain(&error));
            nothing_half_done(&images, tmp.path()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_are_cut() {
    let layer = tar(&[("a", b"1")]);
    for endless in ["/manifests/", "/blobs/"] {
        let served = Served::new(&layer, &gzip(&layer));
        let registry = FakeRegistry::start(move |request| {
            let mut response = served.answer(request);
            response.endless = request.path.contains(endless);
            response
        })
        .await;
        let tmp = tempfile::tempdir().unwrap();
        let images = open(tmp.path());
        let error = pull_x(&images, &registry).await.unwrap_err();
        let expected = matches!(
            registry_error(&error),
            RegistryError::TooLarge { .. }
                | RegistryError::SizeMismatch { .. }
                | RegistryError::DigestMismatch { .. }
        );
        assert!(expected, "{}", chain(&error));
        nothing_half_done(&images, tmp.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn digests_that_are_lies_are_told() {
    let (layer, mut stored) = large();
    let served = Served::new(&layer, &stored);
    let blob = blob_path(&stored);
    stored[LARGE / 2] ^= 1;
    let path = blob.clone();
    let registry = FakeRegistry::start(move |request| match request.path == path {
        true => Response::ok(stored.clone()).ranged(request),
        false => served.answer(request),
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    for times in [1, 2] {
        let error = pull_x(&images, &registry).await.unwrap_err();
        assert!(matches!(registry_error(&error), RegistryError::DigestMismatch { what: "a layer", .. }));
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(registry.asked(&blob), times, "wrong bytes are not gone on with");
        assert_empty(tmp.path());
    }
    // Of a tag, the registry's own header.
    let served = Served::new(&layer, &layer);
    let registry = FakeRegistry::start(move |request| {
        served.answer(request).header("Docker-Content-Digest", Digest::of(b"another").to_string())
    })
    .await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::DigestMismatch { what: "a manifest", .. }));
    // A layer that is what the manifest says and not what the config says.
    let other = tar(&[("a", b"2")]);
    let served = Served::new(&layer, &other);
    let registry = FakeRegistry::start(move |request| served.answer(request)).await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(matches!(error.root(), Error::Ingest(IngestError::DiffId { .. })), "{}", chain(&error));
    nothing_half_done(&images, tmp.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_waited_out_and_told_when_they_are_too_long() {
    let layer = tar(&[("a", b"1")]);
    let serve = |wait: &'static str| {
        let served = Served::new(&layer, &gzip(&layer));
        FakeRegistry::start(move |request| match request.earlier {
            0 => Response::status(429).header("Retry-After", wait),
            _ => served.answer(request),
        })
    };
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let registry = serve("3600").await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::RateLimited { .. }), "{}", chain(&error));
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "registry_rate_limited"));
    assert!(chain(&error).contains("wait 3600 s"), "{}", chain(&error));
    assert!(error.hint().is_some());
    nothing_half_done(&images, tmp.path()).await;
    let registry = serve("1").await;
    let (reporter, heard) = listening();
    images.pull(&format!("{}/x", registry.host), PullPolicy::Always, None, reporter).await.unwrap();
    let waits = heard
        .lock()
        .unwrap()
        .iter()
        .filter(|e| matches!(e, Progress::Message { text } if text.contains("waiting 1 s")))
        .count();
    assert_eq!(waits, 3, "for the manifest, the config and the layer");
    whole(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_server_are_tried_again() {
    let layer = tar(&[("a", b"1")]);
    let served = Served::new(&layer, &gzip(&layer));
    let registry = FakeRegistry::start(move |request| match request.earlier {
        0 => Response::status(500),
        1 => Response::status(503),
        _ => served.answer(request),
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    whole(&images).await;
    let registry = FakeRegistry::start(|_| Response::status(500)).await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(error.to_string().contains("HTTP status 500"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_from_who_is_not_known_and_from_what_is_not_there() {
    let layer = tar(&[("a", b"1")]);
    let stored = gzip(&layer);
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let denied = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    let registry = FakeRegistry::start(move |_| Response { status: 403, ..Response::ok(denied) }).await;
    let name = format!("{}/x", registry.host);
    let error = images.pull(&name, PullPolicy::Always, user("secret"), silent()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::User, "registry_forbidden"));
    let text = chain(&error);
    for part in [registry.host.as_str(), "user user", "/x:latest", "DENIED: requested access"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("secret"));
    let challenge = |request: &Request| match request.headers.contains_key("authorization") {
        true => Response::status(401),
        false => Response::status(401).header("WWW-Authenticate", "Basic realm=\"r\""),
    };
    let registry = FakeRegistry::start(challenge).await;
    let name = format!("{}/x", registry.host);
    for (auth, words) in [(None, "it wants credentials"), (user("bad"), "not accepted")] {
        let error = images.pull(&name, PullPolicy::Always, auth, silent()).await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (Kind::User, "registry_unauthorised"));
        assert!(error.to_string().contains(words), "{error}");
    }
    // The image is there, and a part of it is not.
    let (served, path) = (Served::new(&layer, &stored), blob_path(&stored));
    let registry = FakeRegistry::start(move |request| match request.path == path {
        true => Response::status(404),
        false => served.answer(request),
    })
    .await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::Unavailable, "registry_incomplete"), "{}", chain(&error));
    nothing_half_done(&images, tmp.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_a_mirror_lacks_comes_from_the_next() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    let serve = |lacks: bool| {
        let (served, path) = (Served::new(&layer, &stored), path.clone());
        FakeRegistry::start(move |request| {
            let plain = Request { path: request.path.replace("/v2/library/x/", "/v2/x/"), ..request.clone() };
            match lacks && plain.path == path {
                true => Response::status(404),
                false => served.answer(&plain).ranged(request),
            }
        })
    };
    let (first, second) = (serve(true).await, serve(false).await);
    let tmp = tempfile::tempdir().unwrap();
    let urls = [&first, &second].map(|r| format!("http://{}", r.host));
    let images = open_with(tmp.path(), mirrors(&urls));
    images.pull("x", PullPolicy::Always, None, silent()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(second.requests().len(), 1, "only what the first one lacks");
    whole(&images).await;
}

/// What a mirror makes of an honest answer.
type Twist = fn(&Request, Response, &str) -> Response;

#[tokio::test(flavor = "multi_thread")]
async fn of_a_mirror_that_lies_the_pull_goes_on_with_the_next_and_tells() {
    let (layer, stored) = large();
    let blob = blob_path(&stored);
    let serve = |twist: Option<Twist>| {
        let (served, blob) = (Served::new(&layer, &stored), blob.clone());
        FakeRegistry::start(move |request| {
            let plain = Request { path: request.path.replace("/v2/library/x/", "/v2/x/"), ..request.clone() };
            let answer = served.answer(&plain);
            match twist {
                Some(twist) => twist(&plain, answer, &blob),
                None => answer.ranged(request),
            }
        })
    };
    let twists: [(&str, Twist); 5] = [
        ("a layer", |request, mut answer, blob| {
            if request.path == blob {
                answer.body[LARGE / 2] ^= 1;
            }
            answer
        }),
        ("bytes long instead of the manifest's", |request, mut answer, blob| {
            if request.path == blob {
                answer.body.push(0);
            }
            answer
        }),
        ("the config", |request, mut answer, blob| {
            if request.path.contains("/blobs/") && request.path != blob {
                answer.body[0] ^= 1;
            }
            answer
        }),
        ("is malformed", |request, mut answer, _| {
            if request.path.contains("/manifests/") {
                answer.body.truncate(20);
                answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("docker-content-digest"));
            }
            answer
        }),
        ("a manifest", |request, answer, _| match request.path.contains("/manifests/") {
            true => answer.header("Docker-Content-Digest", Digest::of(b"another").to_string()),
            false => answer,
        }),
    ];
    for (words, twist) in twists {
        let (liar, honest) = (serve(Some(twist)).await, serve(None).await);
        let tmp = tempfile::tempdir().unwrap();
        let images = open_with(tmp.path(), mirrors(&[&liar, &honest].map(|r| format!("http://{}", r.host))));
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let reporter: berth_image::Reporter =
            Arc::new(move |progress| hears.lock().unwrap().push(format!("{progress:?}")));
        let pulled = images.pull("x", PullPolicy::Always, None, reporter).await;
        pulled.unwrap_or_else(|e| panic!("{words}: {}", chain(&e)));
        whole(&images).await;
        let told = heard.lock().unwrap().iter().any(|line| {
            line.contains("not to be believed") && line.contains(words) && line.contains(&liar.host)
        });
        assert!(told, "{words}: {:?}", heard.lock().unwrap());
        // Nobody else has it: the lie is part of the error.
        let tmp = tempfile::tempdir().unwrap();
        let lacks = FakeRegistry::start(|_| Response::status(404)).await;
        let images = open_with(tmp.path(), mirrors(&[&liar, &lacks].map(|r| format!("http://{}", r.host))));
        let error = images.pull("x", PullPolicy::Always, None, silent()).await.unwrap_err();
        assert!(matches!(registry_error(&error), RegistryError::Lied { .. }), "{words}: {}", chain(&error));
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(chain(&error).contains(words) && chain(&error).contains(&liar.host), "{}", chain(&error));
        assert!(chain(&error).contains(&lacks.host), "{}", chain(&error));
        nothing_half_done(&images, tmp.path()).await;
    }
}

/// A registry that gives tokens, each good for so many requests.
async fn with_tokens(served: Served, good_for: usize) -> FakeRegistry {
    let realm: Arc<OnceLock<String>> = Arc::default();
    let (own, given, used) = (Arc::clone(&realm), AtomicUsize::new(0), AtomicUsize::new(0));
    let registry = FakeRegistry::start(move |request| {
        if request.path.starts_with("/token") {
            used.store(0, Ordering::SeqCst);
            let token = format!("t{}", given.fetch_add(1, Ordering::SeqCst) + 1);
            return Response::ok(json!({ "access_token": token, "expires_in": 3600 }).to_string());
        }
        let current = format!("Bearer t{}", given.load(Ordering::SeqCst));
        let good = request.headers.get("authorization") == Some(&current);
        if good && used.fetch_add(1, Ordering::SeqCst) < good_for {
            return served.answer(request).ranged(request);
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:x:pull\"",
            own.get().unwrap()
        );
        Response::status(401).header("WWW-Authenticate", challenge)
    })
    .await;
    realm.set(registry.host.clone()).unwrap();
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_in_the_middle_is_renewed() {
    let layers: Vec<Vec<u8>> = (0u8..5).map(|n| tar(&[("a", &[n; 100])])).collect();
    let layers: Vec<_> = layers.iter().map(|l| (l.as_slice(), LAYER, l.as_slice())).collect();
    let registry = with_tokens(Served::of(&layers), 2).await;
    let tmp = tempfile::tempdir().unwrap();
    // One at a time, so that no other request uses up what was renewed for this one.
    let config = berth_image::RegistryConfig { parallel_downloads: 1, ..Default::default() };
    let images = open_with(tmp.path(), config);
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let tokens: Vec<_> = registry.requests().into_iter().filter(|r| r.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 4, "seven answers, two for each token");
    assert!(tokens.iter().all(|r| r.path.matches("scope=").count() == 1), "the scope once");
    whole(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_gets_no_credentials_and_circles_end() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    let blob = stored.clone();
    let storage = FakeRegistry::start(move |request| Response::ok(blob.clone()).ranged(request)).await;
    let (served, target) =
        (Served::new(&layer, &stored), format!("http://{}/signed?key=hidden", storage.host));
    let registry = FakeRegistry::start(move |request| {
        if !request.headers.contains_key("authorization") {
            return Response::status(401).header("WWW-Authenticate", "Basic realm=\"r\"");
        }
        match request.path == path {
            true => Response::status(307).header("Location", target.clone()),
            false => served.answer(request),
        }
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let name = format!("{}/x", registry.host);
    images.pull(&name, PullPolicy::Always, user("secret"), silent()).await.unwrap();
    assert_eq!(storage.requests().len(), 1);
    assert!(!storage.requests()[0].headers.contains_key("authorization"));
    whole(&images).await;

    let registry = FakeRegistry::start(|request| {
        Response::status(302)
            .header("Location", format!("{}x?key=hidden", request.path.replace("?key=hidden", "")))
    })
    .await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(chain(&error).contains("not followed"), "{}", chain(&error));
    assert!(!chain(&error).contains("hidden"), "a signature in an error");
    assert_eq!(registry.requests().len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_says_what_it_is() {
    let layer = tar(&[("a", b"1")]);
    let stored = gzip(&layer);
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let plain = || Served::new(&layer, &stored);
    let body = |body: &'static str| {
        let mut served = Served::new(&tar(&[]), &tar(&[]));
        served.manifests[0].1 = body.as_bytes().to_vec();
        served
    };
    for (served, words) in [
        (plain().edited("image.config.v1+json", "helm.config.v1+json"), "helm.config.v1+json"),
        (
            plain().edited("image.layer.v1.tar", "image.layer.nondistributable.v1.tar"),
            "may not be distributed",
        ),
        (body(r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#), "schema version 1"),
        (body(r#"{"schemaVersion":2,"manifests":[]}"#), "none at all"),
        (body("<html>"), "malformed"),
        (plain().edited("sha256:", "sha512:"), "bad digest"),
    ] {
        let registry = FakeRegistry::start(move |request| served.answer(request)).await;
        let error = pull_x(&images, &registry).await.unwrap_err();
        assert!(chain(&error).contains(words), "{words}: {}", chain(&error));
        assert_eq!(error.kind(), Kind::User, "{words}");
    }
    let registry =
        FakeRegistry::start(|_| Response::ok("<html>").header("Content-Type", "text/html; charset=utf-8"))
            .await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(chain(&error).contains("text/html"), "{}", chain(&error));
    assert_eq!(error.kind(), Kind::Unavailable, "a portal's page says nothing of the image");
    // An index that leads to an index.
    let index = json!({ "schemaVersion": 2, "manifests": [{ "digest": Digest::of(b"1"), "size": 1,
        "platform": { "os": "linux", "architecture": host_arch() } }] })
    .to_string();
    let inner = index.replace(Digest::of(b"1").as_str(), Digest::of(b"2").as_str());
    let outer = index
        .replace(Digest::of(b"1").as_str(), Digest::of(inner.as_bytes()).as_str())
        .replace("\"size\":1", &format!("\"size\":{}", inner.len()));
    let registry = FakeRegistry::start(move |request| match request.path.ends_with("latest") {
        true => Response::ok(outer.clone()),
        false => Response::ok(inner.clone()),
    })
    .await;
    let error = pull_x(&images, &registry).await.unwrap_err();
    assert!(chain(&error).contains("index within an index"), "{}", chain(&error));
    assert_empty(tmp.path());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_every_kind_and_hundreds_of_them() {
    let tars: Vec<Vec<u8>> = (0..300).map(|n| tar(&[(&format!("f{n}"), b"x")])).collect();
    let empty = tar(&[]);
    let (gzipped, zstded) = (gzip(&tars[1]), zstd(&tars[2]));
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let mut layers: Vec<(&[u8], &str, &[u8])> = vec![
        (&tars[0], LAYER, &tars[0]),
        (&tars[1], docker, &gzipped),
        (&tars[2], LAYER_ZSTD, &zstded),
        (&empty, LAYER, &empty),
        (&empty, LAYER, &empty),
    ];
    layers.extend(tars[3..].iter().map(|t| (t.as_slice(), LAYER, t.as_slice())));
    let served = Served::of(&layers);
    let registry = FakeRegistry::start(move |request| served.answer(request)).await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(image.layers.len(), 302);
    assert_eq!(registry.asked(&blob_path(&empty)), 1);
    whole(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pulls_at_once_are_one_and_all_hear_it() {
    let (layer, stored) = large();
    let served = Served::new(&layer, &stored);
    let registry = Arc::new(
        FakeRegistry::start(move |request| {
            let mut response = served.answer(request);
            response.slow = Some((100_000, Duration::from_millis(10)));
            response
        })
        .await,
    );
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let pulls: Vec<_> = (0..100)
        .map(|_| {
            let (images, registry) = (images.clone(), Arc::clone(&registry));
            tokio::spawn(async move {
                let (reporter, heard) = listening();
                let name = format!("{}/x", registry.host);
                let image = images.pull(&name, PullPolicy::Missing, None, reporter).await.unwrap();
                let heard = heard.lock().unwrap();
                let looked = heard
                    .iter()
                    .any(|e| matches!(e, Progress::Message { text } if text.contains("looking for")));
                let done = heard
                    .iter()
                    .any(|e| matches!(e, Progress::Transfer { current, total: Some(t), .. } if current == t));
                (image.id, looked && done)
            })
        })
        .collect();
    for pull in pulls {
        assert!(pull.await.unwrap().1);
    }
    assert_eq!(registry.requests().len(), 3, "a manifest, a config, a layer");
    whole(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_is_gone_on_with_by_the_next() {
    let (layer, stored) = large();
    let path = blob_path(&stored);
    let served = Served::new(&layer, &stored);
    let hurry = Arc::new(AtomicBool::new(false));
    let fast = Arc::clone(&hurry);
    let registry = FakeRegistry::start(move |request| {
        let mut response = served.answer(request).ranged(request);
        if !fast.load(Ordering::SeqCst) && response.body.len() > LARGE / 2 {
            response.slow = Some((300_000, Duration::from_secs(1)));
        }
        response
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let (reporter, heard) = listening();
    let (pulling, name) = (images.clone(), format!("{}/x", registry.host));
    let pull = tokio::spawn(async move { pulling.pull(&name, PullPolicy::Always, None, reporter).await });
    let there = |heard: &[Progress]| {
        heard.iter().any(|e| matches!(e, Progress::Transfer { action, current, .. } if action == "download" && *current > 1_000_000))
    };
    while !there(&heard.lock().unwrap()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pull.abort();
    drop(pull.await);
    let unpacking = || names(&tmp.path().join("tmp")).iter().any(|name| name.starts_with("image-"));
    while unpacking() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    nothing_half_done(&images, tmp.path()).await;
    hurry.store(true, Ordering::SeqCst);
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    let last = registry.requests().into_iter().rfind(|r| r.path == path).unwrap();
    assert!(last.from().is_some_and(|from| from >= 1_000_000), "what was there is not fetched again");
    whole(&images).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_for_all_but_the_exceptions_and_loopback() {
    let layer = tar(&[("a", b"1")]);
    let served = Served::new(&layer, &gzip(&layer));
    let proxy = FakeRegistry::start(move |request| {
        let path = request.path.strip_prefix("http://registry.invalid").unwrap_or("/none").to_owned();
        served.answer(&Request { path, ..request.clone() })
    })
    .await;
    let config = |no_proxy: &str| berth_image::RegistryConfig {
        proxy: Some(format!("http://{}", proxy.host)),
        no_proxy: vec![no_proxy.to_owned()],
        insecure: vec!["registry.invalid".into()],
        ..Default::default()
    };
    let tmp = tempfile::tempdir().unwrap();
    let images = open_with(tmp.path(), config("other.invalid"));
    images
        .pull("registry.invalid/x", PullPolicy::Always, None, silent())
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(proxy.requests().len(), 3);
    let direct = FakeRegistry::start(|_| Response::status(404)).await;
    assert!(pull_x(&images, &direct).await.is_err());
    assert_eq!((direct.requests().len(), proxy.requests().len()), (1, 3));
    drop(images);
    let images = open_with(tmp.path(), config(".invalid"));
    let error = images.pull("registry.invalid/x", PullPolicy::Always, None, silent()).await.unwrap_err();
    assert!(error.to_string().contains("does not resolve"), "{}", chain(&error));
    assert_eq!(proxy.requests().len(), 3);
}
