//! The client against an in-process server on a unix socket that answers as it is told.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_client::start::Error as StartError;
use berth_client::types::error::Kind;
use berth_client::types::exec::{Command, ExecRequest, ExitReason};
use berth_client::types::files::{ArchiveIn, ArchiveOut};
use berth_client::types::image::{BuildImage, PullImage, PullPolicy};
use berth_client::types::progress::Progress;
use berth_client::types::sandbox::CreateSandbox;
use berth_client::{Client, Error, ExecOutput, Host, ListSandboxes, StartOptions, archive};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// What the server saw: `METHOD path?query`, and the body.
type Seen = Arc<Mutex<Vec<(String, Bytes)>>>;

/// One answer: a status and the pieces of its body; an error among them breaks the connection.
struct Reply {
    status: u16,
    pieces: Vec<Result<Bytes, io::Error>>,
    /// Keeps the body open; dropped when the client's connection goes.
    held: Option<oneshot::Sender<()>>,
}

impl Reply {
    fn json(status: u16, value: Value) -> Self {
        Self { status, pieces: vec![Ok(value.to_string().into())], held: None }
    }

    fn pieces(pieces: Vec<Vec<u8>>) -> Self {
        Self { status: 200, pieces: pieces.into_iter().map(|piece| Ok(piece.into())).collect(), held: None }
    }

    fn broken(mut self) -> Self {
        self.pieces.push(Err(io::ErrorKind::BrokenPipe.into()));
        self
    }

    fn into_response(self) -> Response<UnsyncBoxBody<Bytes, io::Error>> {
        // A pause after each piece, so that hyper sends it by itself.
        let pieces = stream::iter(self.pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(2)).await;
            piece.map(Frame::data)
        });
        let held = self.held;
        let rest = stream::once(async move {
            if let Some(mut held) = held {
                // `closed` waits for the test to give up; in truth this future is dropped before.
                held.closed().await;
            }
            Ok(Frame::data(Bytes::new()))
        });
        let body = StreamBody::new(pieces.chain(rest)).boxed_unsync();
        Response::builder().status(self.status).body(body).unwrap()
    }
}

struct FakeDaemon {
    seen: Seen,
    client: Client,
    _dir: TempDir,
}

impl FakeDaemon {
    fn new(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("d.sock");
        let seen = listen(&socket, answer);
        Self { seen, client: Client::new(Host::Unix(socket)), _dir: dir }
    }

    fn seen(&self) -> Vec<(String, Bytes)> {
        self.seen.lock().unwrap().clone()
    }
}

fn listen(socket: &Path, answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Seen {
    let listener = UnixListener::bind(socket).unwrap();
    let (seen, answer) = (Seen::default(), Arc::new(answer));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            let service = service_fn(move |request: Request<Incoming>| {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                async move {
                    let line = format!("{} {}", request.method(), request.uri());
                    let body = request.into_body().collect().await?.to_bytes();
                    let reply = answer(&line);
                    log.lock().unwrap().push((line, body));
                    Ok::<_, hyper::Error>(reply.into_response())
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    seen
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn output(kind: u8, offset: u64, data: &[u8]) -> Vec<u8> {
    frame(kind, &[&offset.to_be_bytes()[..], &9_u64.to_be_bytes(), data].concat())
}

fn event(value: Value) -> Vec<u8> {
    frame(3, value.to_string().as_bytes())
}

fn started() -> Vec<u8> {
    event(json!({"event": "started", "id": "e1", "program": "/bin/sh"}))
}

fn exited(code: i32) -> Vec<u8> {
    event(json!({"event": "exited", "exit_code": code, "reason": "exited", "duration_ms": 3}))
}

fn request() -> ExecRequest {
    ExecRequest::new(Command::Shell("true".into()))
}

#[tokio::test]
async fn exec_frames_survive_any_split() {
    let daemon = FakeDaemon::new(|_| {
        let all = [started(), output(1, 0, b"out"), output(2, 0, b"err"), output(1, 3, b"more"), exited(3)]
            .concat();
        Reply::pieces(all.chunks(7).map(<[u8]>::to_vec).collect())
    });
    let outcome = daemon.client.exec_collect("box/1", &request()).await.unwrap();
    assert_eq!((outcome.stdout, outcome.stderr), (b"outmore".to_vec(), b"err".to_vec()));
    assert_eq!((outcome.status.exit_code, outcome.status.reason), (3, ExitReason::Exited));
    let seen = daemon.seen();
    assert_eq!(seen[0].0, "POST /v1/sandboxes/box%2F1/exec");
    let mut sent = serde_json::from_slice::<Value>(&seen[0].1).unwrap();
    let id = sent.as_object_mut().unwrap().remove("id").unwrap();
    assert_eq!(id.as_str().unwrap().len(), 32, "a request without an id is given one");
    assert_eq!(sent, json!({"command": {"shell": "true"}}));
}

#[tokio::test]
async fn an_exec_that_is_cut_is_picked_up_where_it_was() {
    for broken in [false, true] {
        let tries = AtomicUsize::new(0);
        let daemon = FakeDaemon::new(move |_| {
            let reply = match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::pieces(vec![started(), output(1, 0, b"one"), exited(0)[..9].to_vec()]),
                1 => Reply::pieces(vec![started(), output(2, 0, b"err")[..7].to_vec()]),
                // More than was asked for: what is known already is not passed on again.
                _ => {
                    return Reply::pieces(vec![
                        started(),
                        output(1, 1, b"ne, two"),
                        output(2, 0, b"err"),
                        exited(4),
                    ]);
                }
            };
            if broken { reply.broken() } else { reply }
        });
        let outcome = daemon.client.exec_collect("s", &request()).await.unwrap();
        assert_eq!((&outcome.stdout[..], &outcome.stderr[..]), (&b"one, two"[..], &b"err"[..]));
        assert_eq!(outcome.status.exit_code, 4);
        let sent: Vec<Value> =
            daemon.seen().iter().map(|(_, body)| serde_json::from_slice(body).unwrap()).collect();
        assert!(sent.iter().all(|request| request["id"] == sent[0]["id"]), "{sent:?}");
        assert_eq!(sent[2]["from"], json!({"stdout": 3, "stderr": 0}));
    }
}

#[tokio::test]
async fn an_exec_that_stays_cut_is_lost() {
    for broken in [false, true] {
        let daemon = FakeDaemon::new(move |_| {
            let reply = Reply::pieces(vec![started(), output(1, 0, b"partial"), exited(0)[..9].to_vec()]);
            if broken { reply.broken() } else { reply }
        });
        let client = daemon.client.clone().with_patience(Duration::from_millis(200));
        let mut stream = client.exec("s", &request()).await.unwrap();
        assert!(matches!(stream.next().await, Some(Ok(ExecOutput::Started { .. }))));
        assert!(matches!(stream.next().await, Some(Ok(ExecOutput::Stdout(data))) if data == "partial"));
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(&error, Error::ExecLost { source, .. } if source.is_some() == broken), "{error:?}");
        assert!(error.is_infrastructure());
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn output_that_does_not_follow_is_no_output() {
    let daemon = FakeDaemon::new(|_| Reply::pieces(vec![started(), output(1, 5, b"late"), exited(0)]));
    let error = daemon.client.exec_collect("s", &request()).await.unwrap_err();
    assert!(matches!(error, Error::ExecOffset { expected: 0, found: 5, .. }), "{error:?}");
}

#[tokio::test]
async fn a_gap_is_told_and_fails_who_wants_all() {
    let gap = || event(json!({"event": "gap", "stream": "stdout", "from": 0, "to": 5}));
    let daemon =
        FakeDaemon::new(move |_| Reply::pieces(vec![started(), gap(), output(1, 5, b"late"), exited(0)]));
    let mut stream = daemon.client.exec("s", &request()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert!(matches!(stream.next().await, Some(Ok(ExecOutput::Gap { from: 0, to: 5, .. }))));
    assert!(matches!(stream.next().await, Some(Ok(ExecOutput::Stdout(data))) if data == "late"));
    let error = daemon.client.exec_collect("s", &request()).await.unwrap_err();
    assert!(matches!(error, Error::ExecGap { to: 5, .. }), "{error:?}");
}

#[tokio::test]
async fn an_error_frame_carries_the_daemons_words() {
    let daemon = FakeDaemon::new(|_| {
        let error = json!({"code": "sandbox_lost", "kind": "unavailable", "message": "it died"});
        Reply::pieces(vec![started(), frame(4, error.to_string().as_bytes())])
    });
    let error = daemon.client.exec_collect("s", &request()).await.unwrap_err();
    assert_eq!(error.api().unwrap().code, "sandbox_lost");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn dropping_an_exec_closes_its_connection() {
    let (held, gone) = oneshot::channel();
    let held = Mutex::new(Some(held));
    let daemon = FakeDaemon::new(move |_| {
        let mut reply = Reply::pieces(vec![started()]);
        reply.held = held.lock().unwrap().take();
        reply
    });
    let mut stream = daemon.client.exec("s", &request()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the server notices").unwrap_err();
}

#[tokio::test]
async fn error_bodies_become_typed_errors_and_strange_ones_are_quoted() {
    let daemon = FakeDaemon::new(|line| match line {
        "GET /v1/sandboxes/gone" => Reply::json(
            404,
            json!({"error": {"code": "sandbox_not_found", "kind": "not_found", "message": "no sandbox gone", "hint": "berth sandbox ls"}}),
        ),
        "GET /v1/version" => Reply::json(200, json!({"version": 3})),
        _ => Reply { status: 502, pieces: vec![Ok("<html>".into())], held: None },
    });
    let error = daemon.client.sandbox("gone").await.unwrap_err();
    assert_eq!((error.kind(), error.is_infrastructure()), (Kind::NotFound, false));
    assert_eq!(error.hint().as_deref(), Some("berth sandbox ls"));
    assert_eq!(error.to_string(), "cannot look up sandbox gone");
    let error = daemon.client.version().await.unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    let error = daemon.client.create_sandbox(&CreateSandbox::default()).await.unwrap_err();
    assert!(matches!(&error, Error::Status { status: 502, body, .. } if body == "<html>"), "{error:?}");
}

#[tokio::test]
async fn listings_and_deletes_use_the_documented_routes() {
    let daemon = FakeDaemon::new(|line| match line.split_once(' ') {
        Some(("DELETE", _)) => Reply { status: 204, pieces: vec![], held: None },
        _ => Reply::json(200, json!({"items": [], "next": null})),
    });
    let client = &daemon.client;
    let list = ListSandboxes { labels: [("a".into(), "b".into())].into(), ..Default::default() };
    assert!(client.list_sandboxes(&list).await.unwrap().items.is_empty());
    client.delete_sandbox("x").await.unwrap();
    client.kill_exec("x", "e").await.unwrap();
    client.remove_image("docker.io/library/a:b").await.unwrap();
    let lines: Vec<String> = daemon.seen().into_iter().map(|(line, _)| line).collect();
    assert_eq!(
        lines,
        [
            "GET /v1/sandboxes?label=a%3Db",
            "DELETE /v1/sandboxes/x",
            "DELETE /v1/sandboxes/x/execs/e",
            "DELETE /v1/images/docker.io%2Flibrary%2Fa%3Ab",
        ]
    );
}

fn pull() -> PullImage {
    PullImage { reference: "a:b".into(), policy: PullPolicy::Always, auth: None, cache: false }
}

const IMAGE: &str = r#"{"id":"sha256:1","references":["a:b"],"size_bytes":1,"layers":1,"platform":"linux/amd64","config":{}}"#;

#[tokio::test]
async fn progress_lines_are_handed_on_and_the_result_ends_them() {
    let daemon = FakeDaemon::new(|_| {
        let lines = format!(
            "{}\n\n{}\n{{\"result\":{IMAGE}}}\n",
            json!({"progress": {"what": "message", "text": "über"}}),
            json!({"progress": {"what": "transfer", "item": "l", "action": "download", "current": 5}}),
        );
        Reply::pieces(lines.as_bytes().chunks(11).map(<[u8]>::to_vec).collect())
    });
    let mut progress = Vec::new();
    let image = daemon.client.pull_image(&pull(), |step| progress.push(step)).await.unwrap();
    assert_eq!(image.id, "sha256:1");
    assert_eq!(progress[0], Progress::Message { text: "über".into() });
    assert_eq!(progress.len(), 2);
}

#[tokio::test]
async fn a_progress_stream_that_stops_is_no_success() {
    for (body, broken) in [("", false), ("{\"progress\":{\"what\":\"message\",\"text\":\"x\"}}\n", true)] {
        let daemon = FakeDaemon::new(move |_| {
            let reply = Reply::pieces(vec![body.into()]);
            if broken { reply.broken() } else { reply }
        });
        let error = daemon.client.pull_image(&pull(), |_| {}).await.unwrap_err();
        assert!(matches!(error, Error::ProgressEnded { .. } | Error::Read { .. }), "{error:?}");
        assert!(error.is_infrastructure());
    }
    let daemon = FakeDaemon::new(|_| {
        let error = json!({"error": {"code": "registry", "kind": "unavailable", "message": "away"}});
        Reply::pieces(vec![format!("{error}\n").into_bytes()])
    });
    let error = daemon.client.pull_image(&pull(), |_| {}).await.unwrap_err();
    assert_eq!(error.api().unwrap().code, "registry");
}

#[tokio::test]
async fn a_build_streams_its_context_and_names_its_options() {
    let daemon = FakeDaemon::new(|_| {
        let result =
            format!(r#"{{"result":{{"image":{IMAGE},"content_key":"k","steps":2,"cached_steps":1}}}}"#);
        Reply::pieces(vec![result.into_bytes()])
    });
    let context = TempDir::new().unwrap();
    std::fs::write(context.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let options = BuildImage { tags: vec!["t:1".into()], ..Default::default() };
    let result =
        daemon.client.build_image(&options, archive::pack_dir(context.path()), |_| {}).await.unwrap();
    assert_eq!(result.steps, 2);
    let (line, body) = daemon.seen().remove(0);
    assert_eq!(line, "POST /v1/images/build");
    let head = serde_json::to_vec(&options).unwrap();
    let mut tar = tar::Archive::new(body.strip_prefix(&head[..]).unwrap());
    let names: Vec<_> =
        tar.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names, [Path::new("Dockerfile")]);
}

#[tokio::test]
async fn an_upload_that_cannot_be_read_says_why() {
    let daemon = FakeDaemon::new(|_| Reply::json(200, json!({"refused": [], "skipped": ["fifo"]})));
    let target = ArchiveIn { path: "/a b".into(), keep_ids: false };
    let missing = archive::pack_dir(Path::new("/nonexistent/berth-test"));
    let error = daemon.client.put_archive("s", &target, missing).await.unwrap_err();
    assert!(
        matches!(&error, Error::Upload { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error:?}"
    );
    assert_eq!(error.kind(), Kind::User);

    let report = daemon.client.put_archive("s", &target, &b"tar"[..]).await.unwrap();
    assert_eq!(report.skipped, ["fifo"]);
    let (line, body) = daemon.seen().pop().unwrap();
    assert_eq!(
        (line.as_str(), &body[..]),
        ("PUT /v1/sandboxes/s/archive?path=%2Fa%20b&keep_ids=false", &b"tar"[..])
    );
}

#[tokio::test]
async fn an_upload_that_is_refused_early_still_says_why() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("d.sock")).unwrap();
    tokio::spawn(async move {
        loop {
            // Answers after the first bytes and hangs up on the rest.
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 256]).await.unwrap();
            let body = json!({"error": {"code": "path_not_found", "kind": "not_found", "message": "no"}})
                .to_string();
            let head =
                format!("HTTP/1.1 404 X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        }
    });
    let client = Client::new(Host::Unix(dir.path().join("d.sock")));
    let target = ArchiveIn { path: "/x".into(), keep_ids: false };
    for _ in 0..20 {
        let endless = tokio::io::repeat(7).take(64 << 20);
        let error = client.put_archive("s", &target, endless).await.unwrap_err();
        assert_eq!(error.api().map(|api| api.code.as_str()), Some("path_not_found"), "{error:?}");
    }
}

#[tokio::test]
async fn a_download_that_breaks_is_an_error_and_never_a_short_success() {
    let source = ArchiveOut { exclude: "*.pyc\n.git".into(), ..ArchiveOut::new("/d") };
    let daemon = FakeDaemon::new(|_| Reply::pieces(vec![b"abc".to_vec(), b"def".to_vec()]));
    let mut bytes = Vec::new();
    daemon.client.get_archive("s", &source).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"abcdef");
    assert_eq!(daemon.seen()[0].0, "GET /v1/sandboxes/s/archive?path=%2Fd&exclude=%2A.pyc%0A.git");

    let daemon = FakeDaemon::new(|_| Reply::pieces(vec![b"abc".to_vec()]).broken());
    let mut stream = daemon.client.get_archive("s", &source).await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap_err();
}

/// A server that answers every request with these bytes.
fn answering(answer: String) -> (Client, TempDir) {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("d.sock")).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let len = stream.read(&mut request).await.unwrap();
        assert!(String::from_utf8_lossy(&request[..len]).contains("te: trailers\r\n"));
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    (Client::new(Host::Unix(dir.path().join("d.sock"))), dir)
}

#[tokio::test]
async fn an_archive_s_trailers_tell_what_is_missing_and_why_it_broke_off() {
    let source = ArchiveOut { ignore_failed_read: true, ..ArchiveOut::new("/d") };
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n";
    let trailer = |name: &str, value: Value| {
        let value =
            percent_encoding::utf8_percent_encode(&value.to_string(), percent_encoding::NON_ALPHANUMERIC)
                .to_string();
        format!("{head}{name}: {value}\r\n\r\n")
    };
    let told = json!({"skipped_count": 7, "skipped": ["proc: é"]});
    let (client, _dir) = answering(trailer("berth-archive-report", told));
    let mut stream = client.get_archive("s", &source).await.unwrap();
    let (report, mut bytes) = (stream.report(), Vec::new());
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"abc");
    let report = report.take().unwrap();
    assert_eq!((report.skipped_count, report.skipped), (7, vec!["proc: é".to_owned()]));

    let why = json!({"code": "sandbox_io", "kind": "internal", "message": "x: read: no"});
    let (client, _dir) = answering(trailer("berth-archive-error", why));
    let stream = client.get_archive("s", &source).await.unwrap();
    let target = TempDir::new().unwrap();
    let error = archive::unpack_into(stream, target.path()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Internal, "{error:?}");
    assert!(format!("{error:?}").contains("x: read: no"), "{error:?}");
}

#[tokio::test]
async fn a_lease_is_renewed_until_it_is_released() {
    let daemon = FakeDaemon::new(|line| match line.split_once(' ') {
        Some(("DELETE", _)) => Reply { status: 204, pieces: vec![], held: None },
        _ => Reply::json(200, json!({"id": "l1", "expires_at": "2030-01-01T00:00:00Z"})),
    });
    let lease = daemon.client.hold_lease(Duration::from_secs(1)).await.unwrap();
    assert_eq!((lease.id(), lease.is_lost()), ("l1", false));
    tokio::time::sleep(Duration::from_millis(700)).await;
    lease.release().await.unwrap();
    let lines: Vec<String> = daemon.seen().into_iter().map(|(line, _)| line).collect();
    assert!(lines.iter().filter(|line| *line == "PUT /v1/leases/l1").count() >= 2, "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("DELETE /v1/leases/l1"));

    drop(daemon.client.hold_lease(Duration::from_secs(60)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(daemon.seen().iter().filter(|(line, _)| line.starts_with("DELETE")).count(), 2);
}

#[tokio::test]
async fn a_lease_that_the_daemon_lost_is_told() {
    let daemon = FakeDaemon::new(|line| match line.split_once(' ') {
        Some(("POST", _)) => Reply::json(201, json!({"id": "l1", "expires_at": "2030-01-01T00:00:00Z"})),
        _ => Reply::json(
            404,
            json!({"error": {"code": "lease_not_found", "kind": "not_found", "message": "no"}}),
        ),
    });
    let lease = daemon.client.hold_lease(Duration::from_secs(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(lease.is_lost());
    lease.release().await.unwrap();
}

// Starting.

fn version(version: &str, data_dir: &Path) -> Value {
    json!({"version": version, "api": "v1", "pid": 1, "data_dir": data_dir})
}

/// A "daemon" that says that it was started, how, and stays for a while.
fn script(dir: &Path, rest: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("fake-berth");
    let text = format!("#!/bin/sh\necho \"$$ $*\" >> {}/starts\n{rest}\n", dir.display());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn options(dir: &Path, binary: PathBuf) -> StartOptions {
    StartOptions {
        binary,
        host: Host::Unix(dir.join("run/d.sock")),
        host_is_given: false,
        data_dir: dir.join("data"),
        data_dir_is_given: true,
        idle_exit_seconds: Some(9),
    }
}

fn starts(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("starts")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn of_many_that_find_no_daemon_one_starts_it() {
    let dir = TempDir::new().unwrap();
    let options = options(dir.path(), script(dir.path(), "exec sleep 20"));
    let all: Vec<_> = (0..8)
        .map(|_| {
            let options = options.clone();
            tokio::spawn(async move { Client::connect_or_start(&options).await })
        })
        .collect();
    while starts(dir.path()).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reply = version(berth_client::VERSION, &dir.path().join("data"));
    listen(&dir.path().join("run/d.sock"), move |_| Reply::json(200, reply.clone()));
    for one in all {
        one.await.unwrap().unwrap();
    }
    let starts = starts(dir.path());
    assert_eq!(starts.len(), 1, "{starts:?}");
    let (pid, arguments) = starts[0].split_once(' ').unwrap();
    let expected = format!(
        "serve --embedded --host unix://{0}/run/d.sock --data-dir {0}/data --idle-exit 9",
        dir.path().display()
    );
    assert_eq!(arguments, expected);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[tokio::test]
async fn a_daemon_that_dies_at_its_start_leaves_its_last_words() {
    let dir = TempDir::new().unwrap();
    let options = options(dir.path(), script(dir.path(), "echo 'no overlayfs here' >&2; exit 78"));
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(options.log(), "of an earlier start\n").unwrap();
    let error = Client::connect_or_start(&options).await.unwrap_err();
    let Error::Start { source: StartError::Died { status, tail, .. } } = &error else { panic!("{error:?}") };
    assert_eq!((status.code(), tail.as_str()), (Some(78), "no overlayfs here"));
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.is_infrastructure());
}

#[tokio::test]
async fn a_named_host_is_never_started() {
    let dir = TempDir::new().unwrap();
    let mut options = options(dir.path(), script(dir.path(), "true"));
    options.host_is_given = true;
    let error = Client::connect_or_start(&options).await.unwrap_err();
    assert!(matches!(&error, Error::Connect { host, .. } if host.ends_with("/run/d.sock")), "{error:?}");
    assert!(starts(dir.path()).is_empty());
}

#[tokio::test]
async fn another_version_and_another_data_dir_are_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let mut options = options(dir.path(), "/nonexistent".into());
    let socket = dir.path().join("run/d.sock");
    let elsewhere = version(berth_client::VERSION, Path::new("/elsewhere"));
    listen(&socket, move |_| Reply::json(200, elsewhere.clone()));
    let error = Client::connect_or_start(&options).await.unwrap_err();
    assert!(matches!(&error, Error::DataDirMismatch { daemon, .. } if daemon == "/elsewhere"), "{error:?}");
    options.data_dir_is_given = false;
    Client::connect_or_start(&options).await.unwrap();

    std::fs::remove_file(&socket).unwrap();
    listen(&socket, |_| Reply::json(200, version("0.0.1", Path::new("/elsewhere"))));
    let error = Client::connect_or_start(&options).await.unwrap_err();
    assert!(matches!(&error, Error::VersionMismatch { daemon, .. } if daemon == "0.0.1"), "{error:?}");
    assert!(error.hint().unwrap().contains("berth daemon stop"));
}
