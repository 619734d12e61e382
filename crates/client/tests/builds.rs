//! Builds of a directory, against an in-process server that answers as it is told.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use berth_client::types::error::Kind;
use berth_client::types::image::{BuildImage, BuildResult, ContextKind, ExportImages};
use berth_client::{Client, Error, Host, secret};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

/// A request that came: its path and query, the options before the body's tar, and the tar.
#[derive(Clone)]
struct Came {
    path: String,
    options: BuildImage,
    tar: Bytes,
}

type Seen = Arc<Mutex<Vec<Came>>>;

/// Answers each request with the next of `answers`; asked more often it breaks the connection.
fn daemon(dir: &Path, answers: Vec<String>) -> (Client, Seen) {
    let socket = dir.join("daemon.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let seen = Seen::default();
    let (log, answers) = (seen.clone(), Arc::new(Mutex::new(answers.into_iter())));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (log, answers) = (log.clone(), answers.clone());
            let service = service_fn(move |request: Request<Incoming>| {
                let (log, answers) = (log.clone(), answers.clone());
                async move {
                    let came = came(request).await;
                    log.lock().unwrap().push(came);
                    let answer = answers.lock().unwrap().next().unwrap();
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer))))
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (Client::new(Host::Unix(socket)), seen)
}

async fn came(request: Request<Incoming>) -> Came {
    let path = request.uri().to_string();
    let header = request.headers().get("berth-build-options").unwrap().to_str().unwrap();
    let length: usize = header.parse().unwrap();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let options = serde_json::from_slice(&body[..length]).unwrap();
    Came { path, options, tar: body.slice(length..) }
}

fn built() -> String {
    let image = json!({
        "id": "sha256:1", "references": ["a:b"], "size_bytes": 1, "layers": 1, "platform": "linux/amd64",
        "config": {},
    });
    let result = json!({ "image": image, "content_key": "k", "steps": 2, "cached_steps": 1, "joined": true });
    format!("{}\n", json!({ "result": result }))
}

fn refused(code: &str) -> String {
    format!("{}\n", json!({ "error": { "code": code, "kind": "conflict", "message": "no" } }))
}

fn context() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::write(dir.path().join("data"), "x".repeat(100_000)).unwrap();
    dir
}

async fn build(client: &Client, dir: &Path) -> Result<BuildResult, Error> {
    let request = BuildImage { tags: vec!["a:b".into()], ..BuildImage::default() };
    client.build_dir(&request, dir, |_| {}).await
}

#[tokio::test]
async fn an_image_that_is_there_costs_no_context() {
    let (dir, context) = (tempfile::tempdir().unwrap(), context());
    let (client, seen) = daemon(dir.path(), vec![built()]);
    assert!(build(&client, context.path()).await.unwrap().joined);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].tar.len()), (1, 0));
    let manifest = seen[0].options.manifest.as_ref().unwrap();
    assert_eq!(manifest.entries.len(), 2);
    assert_eq!(manifest.texts["Dockerfile"], "FROM scratch\n");
    assert!(matches!(manifest.entries[1].kind, ContextKind::File { size: 100_000, .. }));
}

#[tokio::test]
async fn a_context_that_is_needed_is_sent_with_the_same_manifest() {
    let (dir, context) = (tempfile::tempdir().unwrap(), context());
    let (client, seen) = daemon(dir.path(), vec![refused("context_needed"), built()]);
    build(&client, context.path()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].options, seen[1].options);
    let mut archive = tar::Archive::new(&seen[1].tar[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names, ["Dockerfile", "data"]);
}

#[tokio::test]
async fn a_context_that_changed_is_read_again_once() {
    let (dir, context) = (tempfile::tempdir().unwrap(), context());
    let again = || vec![refused("context_needed"), refused("context_changed")];
    let (client, seen) = daemon(dir.path(), [again(), vec![refused("context_needed"), built()]].concat());
    build(&client, context.path()).await.unwrap();
    assert_eq!(seen.lock().unwrap().len(), 4);
    let dir = tempfile::tempdir().unwrap();
    let (client, seen) = daemon(dir.path(), [again(), again()].concat());
    let error = build(&client, context.path()).await.unwrap_err();
    assert_eq!(error.api().unwrap().code, "context_changed");
    assert_eq!(error.kind(), Kind::Conflict);
    assert_eq!(seen.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn replay_and_base_say_so_in_their_path() {
    let (dir, context) = (tempfile::tempdir().unwrap(), context());
    let replayed = json!({ "result": { "config": {}, "content_key": "k", "steps": 3 } });
    let (client, seen) = daemon(dir.path(), vec![built(), format!("{replayed}\n")]);
    let request =
        BuildImage { secrets: [("id".to_owned(), secret(b"hush"))].into(), ..BuildImage::default() };
    client.base_of_dir(&request, context.path(), |_| {}).await.unwrap();
    assert_eq!(client.replay_dir("box", &request, context.path(), |_| {}).await.unwrap().steps, 3);
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].path, "/v1/images/build?base=true");
    assert_eq!(seen[1].path, "/v1/sandboxes/box/replay");
    assert!(seen[0].tar.is_empty() && !seen[1].tar.is_empty());
    assert_eq!(seen[1].options.secrets["id"].0, "aHVzaA==");
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_the_users_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let (client, seen) = daemon(dir.path(), Vec::new());
    let error = build(&client, &dir.path().join("none")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::User);
    assert!(seen.lock().unwrap().is_empty());
}

/// A server that sends half an export and breaks off, in chunks or with neither chunks nor length.
async fn exported(head: &str, body: &str) -> Result<Vec<u8>, String> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("daemon.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        let _ = stream.read(&mut buffer).await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
    });
    let request = ExportImages { images: vec!["a".into()], ..ExportImages::default() };
    let archive = Client::new(Host::Unix(socket)).export_images(&request).await;
    let mut bytes = Vec::new();
    archive
        .map_err(|error| error.to_string())?
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[tokio::test]
async fn an_export_that_breaks_off_is_never_whole() {
    let whole = exported("transfer-encoding: chunked", "3\r\ntar\r\n0\r\n\r\n").await;
    assert_eq!(whole, Ok(b"tar".to_vec()));
    assert!(exported("transfer-encoding: chunked", "3\r\ntar\r\n").await.is_err());
    assert!(exported("content-length: 9", "tar").await.is_err());
    assert!(exported("x: y", "tar").await.unwrap_err().contains("framing"));
}
