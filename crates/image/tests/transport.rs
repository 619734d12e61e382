//! What stands between a pull and a registry: certificates, token servers, uploads that are refused halfway.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;
#[path = "fixture/registry.rs"]
mod server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use berth_image::{Auth, Error, Images, ImportOptions, RegistryConfig, RegistryError};
use berth_types::error::Kind;
use berth_types::image::PullPolicy;
use fixture::*;
use serde_json::json;
use server::*;

/// An authority of its own, made by openssl, that signs certificates.
struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    /// `None`, loudly, where openssl is not installed.
    fn new() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            println!("SKIP: openssl is not installed");
            return None;
        }
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let names = ["-subj", "/CN=authority", "-days", "30", "-keyout", "ca.key", "-out", "ca.pem"];
        authority.openssl(&[&new[..], &names[..]].concat());
        Some(authority)
    }

    fn openssl(&self, args: &[&str]) {
        let done = Command::new("openssl").args(args).current_dir(self.dir.path()).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key in DER for `name` (`IP:…`, `DNS:…`).
    fn sign(&self, name: &str, days: &str) -> (Vec<u8>, Vec<u8>) {
        std::fs::write(self.dir.path().join("ext"), format!("subjectAltName={name}\n")).unwrap();
        let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"];
        self.openssl(&[&new[..], &["-keyout", "key.pem", "-out", "csr.pem"]].concat());
        let sign = ["x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(
            &[&sign[..], &["-days", days, "-extfile", "ext", "-outform", "DER", "-out", "cert.der"]].concat(),
        );
        self.openssl(&[
            "pkcs8", "-topk8", "-nocrypt", "-in", "key.pem", "-outform", "DER", "-out", "key.der",
        ]);
        let read = |name: &str| std::fs::read(self.dir.path().join(name)).unwrap();
        (read("cert.der"), read("key.der"))
    }
}

async fn tls_registry((certificate, key): (Vec<u8>, Vec<u8>)) -> FakeRegistry {
    let layer = tar(&[("a", b"1")]);
    let served = Served::new(&layer, &gzip(&layer));
    FakeRegistry::start_tls(certificate, key, move |request| {
        let path = request.path.replace("/v2/library/x/", "/v2/x/");
        served.answer(&Request { path, ..request.clone() })
    })
    .await
}

/// Pulls `x` of Docker's registry from a mirror on TLS.
async fn pull_tls(root: &Path, registry: &FakeRegistry, config: RegistryConfig) -> Result<(), Error> {
    let config = RegistryConfig {
        mirrors: mirrors(&[format!("https://{}", registry.host)]).mirrors,
        upstream: false,
        ..config
    };
    open_with(root, config).pull("x", PullPolicy::Always, None, silent()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_believed_for_a_reason_or_not_at_all() {
    let Some(authority) = Authority::new() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let bundle = || RegistryConfig { ca_bundle: Some(authority.bundle()), ..RegistryConfig::default() };
    let good = tls_registry(authority.sign("IP:127.0.0.1", "30")).await;
    let other = tls_registry(authority.sign("DNS:other.example", "30")).await;
    for (registry, config, words) in [
        (&good, RegistryConfig::default(), "signed by an authority that is not known here"),
        (&other, bundle(), "its certificate is for another name"),
    ] {
        let error = pull_tls(tmp.path(), registry, config).await.unwrap_err();
        assert!(matches!(error.root(), Error::Registry(RegistryError::Tls { .. })), "{}", chain(&error));
        assert_eq!((error.kind(), error.code()), (Kind::Config, "registry_tls"));
        assert!(chain(&error).contains(words), "{}", chain(&error));
        assert!(error.hint().unwrap().contains("ca_bundle"));
        assert_eq!(registry.requests().len(), 0, "nothing was asked of somebody unknown");
    }
    pull_tls(tmp.path(), &good, bundle()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    // What is not verified is so for this host only, and because the configuration says so.
    let unverified = RegistryConfig { unverified: vec![other.host.clone()], ..RegistryConfig::default() };
    pull_tls(tmp.path(), &other, unverified.clone()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(pull_tls(tmp.path(), &good, unverified).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_time_is_over_is_told_as_such() {
    let Some(authority) = Authority::new() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let registry = tls_registry(authority.sign("IP:127.0.0.1", "0")).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let config = RegistryConfig { ca_bundle: Some(authority.bundle()), ..RegistryConfig::default() };
    let error = pull_tls(tmp.path(), &registry, config).await.unwrap_err();
    assert!(chain(&error).contains("has expired"), "{}", chain(&error));
}

#[test]
fn a_bundle_that_is_none_is_refused_at_the_start() {
    let tmp = tempfile::tempdir().unwrap();
    let path = tmp.path().join("ca.pem");
    let open = |path: &Path| {
        let registry = RegistryConfig { ca_bundle: Some(path.to_owned()), ..RegistryConfig::default() };
        let error =
            Images::open(berth_image::Options { root: tmp.path().join("data"), registry }).unwrap_err();
        assert_eq!((error.kind(), error.code()), (Kind::Config, "bad_registry_config"));
        error.to_string()
    };
    assert!(open(&path).contains("cannot read"));
    std::fs::write(&path, "no certificate").unwrap();
    assert!(open(&path).contains("no certificate in PEM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_by_host_are_used_and_go_nowhere_else() {
    let layer = tar(&[("a", b"1")]);
    let served = Arc::new(Served::new(&layer, &gzip(&layer)));
    let asks = |served: Arc<Served>| {
        FakeRegistry::start(move |request| match request.headers.get("authorization") {
            // `user:secret`.
            Some(given) if given == "Basic dXNlcjpzZWNyZXQ=" => served.answer(request),
            Some(_) => Response::status(401),
            None => Response::status(401).header("WWW-Authenticate", "Basic realm=\"r\""),
        })
    };
    let (one, other) = (asks(Arc::clone(&served)).await, asks(served).await);
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let hosts = [(one.host.clone(), user("secret").unwrap())].into();
    let auth = Auth::Hosts(Arc::new(hosts));
    let pull = async |host: &str| {
        images.pull_as(&format!("{host}/x"), PullPolicy::Always, auth.clone(), silent()).await
    };
    pull(&one.host).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert!(pull(&other.host).await.is_err());
    assert!(other.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

async fn local(images: &Images) -> berth_image::Image {
    let (base, top) = (tar(&[("a", b"1")]), tar(&[("b", &[7; 3_000_000])]));
    let layers: &[&[u8]] = &[&base, &top];
    let archive = docker_archive(&[(&["local"], config(layers, &host_arch()), layers)]);
    images.import(archive.as_slice(), ImportOptions::default(), silent()).await.unwrap().remove(0)
}

/// Paths or methods, and the bodies that came with them.
type Kept = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A registry that takes uploads and keeps them, after `refuse` had its say.
async fn taking(
    refuse: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static,
) -> (FakeRegistry, Kept) {
    let kept: Kept = Arc::default();
    let (into, host) = (Arc::clone(&kept), Arc::new(OnceLock::<String>::new()));
    let own = Arc::clone(&host);
    let registry = FakeRegistry::start(move |request| {
        if let Some(response) = refuse(request) {
            return response;
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let at = format!("http://{}/v2/x/blobs/uploads/1?state=s", own.get().unwrap());
        match request.method.as_str() {
            "HEAD" => Response::status(404),
            "POST" | "PATCH" => {
                into.lock().unwrap().push((request.method.clone(), request.body.clone()));
                Response::status(202).header("Location", at)
            }
            _ => {
                assert!(
                    path.contains("/manifests/") || query.starts_with("state=s&digest=sha256"),
                    "{query}"
                );
                into.lock().unwrap().push((path.to_owned(), request.body.clone()));
                Response::status(201)
            }
        }
    })
    .await;
    host.set(registry.host.clone()).unwrap();
    (registry, kept)
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_repeated_while_the_registry_stumbles() {
    let (registry, kept) = taking(|request| (request.earlier == 0).then(|| Response::status(503))).await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = local(&images).await;
    let name = format!("{}/x:1", registry.host);
    let pushed = images.push(&image, &name, None, silent()).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
    assert_eq!(pushed.id, image.id, "digests stay what they were");
    let kept = kept.lock().unwrap();
    assert!(kept.iter().any(
        |(path, body)| path.ends_with("/manifests/1") && berth_image::Digest::of(body) == pushed.manifest
    ));
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_names_registry_user_and_image() {
    let (registry, kept) = taking(|request| (request.method == "POST").then(|| Response::status(403))).await;
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = local(&images).await;
    let name = format!("{}/x:1", registry.host);
    let error = images.push(&image, &name, user("secret"), silent()).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (Kind::User, "registry_forbidden"));
    for part in [registry.host.as_str(), "user user", "/x:1"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(kept.lock().unwrap().is_empty(), "nothing was sent");
    assert_eq!(names(&tmp.path().join("tmp")), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_is_exchanged_at_the_token_server() {
    let layer = tar(&[("a", b"1")]);
    let served = Served::new(&layer, &gzip(&layer));
    let realm: Arc<OnceLock<String>> = Arc::default();
    let own = Arc::clone(&realm);
    let registry = FakeRegistry::start(move |request| {
        if request.path == "/token" {
            let form = String::from_utf8(request.body.clone()).unwrap();
            assert_eq!(request.method, "POST");
            for part in [
                "grant_type=refresh_token",
                "refresh_token=ident",
                "scope=repository%3Ax%3Apull",
                "service=s",
            ] {
                assert!(form.contains(part), "{form}");
            }
            return Response::ok(json!({ "access_token": "t" }).to_string());
        }
        match request.headers.get("authorization").map(String::as_str) {
            Some("Bearer t") => served.answer(request),
            _ => Response::status(401).header(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{}/token\",service=\"s\"", own.get().unwrap()),
            ),
        }
    })
    .await;
    realm.set(registry.host.clone()).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let docker = tmp.path().join("docker.json");
    let auths = json!({ "auths": { registry.host.clone(): { "identitytoken": "ident" } } });
    std::fs::write(&docker, auths.to_string()).unwrap();
    let config = RegistryConfig { docker_config: Some(docker), ..RegistryConfig::default() };
    let images = open_with(&tmp.path().join("data"), config);
    pull_x(&images, &registry).await.unwrap_or_else(|e| panic!("{}", chain(&e)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_repository_of_the_registry_has_is_mounted_and_not_sent() {
    let Some(registry) = RealRegistry::start(false) else { return };
    let tmp = tempfile::tempdir().unwrap();
    let images = open(tmp.path());
    let image = local(&images).await;
    let name = |repository: &str| format!("{}/{repository}:1", registry.host);
    let (first, second) = (listening(), listening());
    let pushed = images.push(&image, &name("one"), None, first.0).await.unwrap();
    drop(images);
    // What was learnt outlives the process.
    let images = open(tmp.path());
    let image = images.list().remove(0);
    assert_eq!(images.push(&image, &name("two"), None, second.0).await.unwrap(), pushed);
    let steps = second.1.lock().unwrap().len();
    assert_eq!(steps, 4, "of each layer the beginning and the end");
    let other = tempfile::tempdir().unwrap();
    let pulled = open(other.path()).pull(&name("two"), PullPolicy::Always, None, silent()).await.unwrap();
    assert_eq!(pulled.id, image.id);
}
