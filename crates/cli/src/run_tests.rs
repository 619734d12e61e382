//! Whole commands against a daemon that answers as it is told: their exit codes and what they leave behind.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use berth_client::Host;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// Status and body of an answer.
type Reply = (u16, Vec<u8>);

struct FakeDaemon {
    dir: TempDir,
    session: Session,
    seen: Arc<Mutex<Vec<String>>>,
}

impl FakeDaemon {
    /// `answer` gets `METHOD path`.
    fn new(answer: impl Fn(&str) -> Reply + Send + 'static) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("d.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let len = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..len]).into_owned();
                let line = head.split(" HTTP/").next().unwrap_or_default().to_owned();
                let (status, body) = match line.as_str() {
                    "GET /v1/version" => (200, version()),
                    line => answer(line),
                };
                log.lock().unwrap().push(line);
                let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
            }
        });
        let session = session(Host::Unix(socket));
        Self { dir, session, seen }
    }

    async fn run(&self, line: &str) -> String {
        run_line(&self.session, line).await
    }

    fn seen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|line| *line != "GET /v1/version").cloned().collect()
    }
}

fn session(host: Host) -> Session {
    let start = StartOptions {
        binary: "/nonexistent".into(),
        host,
        host_is_given: true,
        data_dir: "/nonexistent".into(),
        data_dir_is_given: false,
        idle_exit_seconds: None,
    };
    Session {
        context: Context { binary: "/nonexistent".into(), local_doctor: DoctorReport::default },
        output: Output::new(Global { json: false, quiet: true }),
        start: Some(start),
        patience: Some(std::time::Duration::from_millis(100)),
    }
}

async fn run_line(session: &Session, line: &str) -> String {
    let words = std::iter::once("berth").chain(line.split_whitespace()).map(OsString::from);
    let Action::Client(invocation) = Cli::parse_from_args(words).unwrap().action() else { panic!("{line}") };
    code(run_in(session, invocation.command).await)
}

fn code(code: ExitCode) -> String {
    format!("{code:?}")
}

fn is(number: u8) -> String {
    code(ExitCode::from(number))
}

fn version() -> Vec<u8> {
    json!({"version": berth_client::VERSION, "api": "v1", "pid": 1, "data_dir": "/d"}).to_string().into()
}

fn event(value: Value) -> Vec<u8> {
    let payload = value.to_string();
    let mut bytes = vec![3];
    bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(payload.as_bytes());
    bytes
}

fn not_found() -> Reply {
    let error =
        json!({"error": {"code": "sandbox_not_found", "kind": "not_found", "message": "no sandbox x"}});
    (404, error.to_string().into())
}

#[tokio::test]
async fn an_exec_exits_as_its_command_did() {
    let daemon = FakeDaemon::new(|_| {
        let end = json!({"event": "exited", "exit_code": 42, "reason": "exited", "duration_ms": 1});
        (200, event(end))
    });
    assert_eq!(daemon.run("sandbox exec box -- anything").await, is(42));
    assert_eq!(daemon.seen(), ["POST /v1/sandboxes/box/exec"]);
}

#[tokio::test]
async fn an_exec_that_berth_failed_has_the_code_of_its_own() {
    let lost = FakeDaemon::new(|_| (200, event(json!({"event": "started", "id": "e", "program": "p"}))));
    assert_eq!(lost.run("sandbox exec box true").await, is(125));
    let unknown = FakeDaemon::new(|_| not_found());
    assert_eq!(unknown.run("sandbox exec x true").await, is(125));
    let impossible = FakeDaemon::new(|_| {
        let end = json!({"event": "exited", "exit_code": 256, "reason": "exited", "duration_ms": 1});
        (200, event(end))
    });
    assert_eq!(impossible.run("sandbox exec box true").await, is(125));
    let nobody = session(Host::Unix("/nonexistent/berth-test.sock".into()));
    assert_eq!(run_line(&nobody, "sandbox exec box true").await, is(125));
    assert_eq!(run_line(&nobody, "sandbox ls").await, is(69));
}

#[tokio::test]
async fn removing_goes_on_after_a_failure_and_tells_it() {
    let daemon = FakeDaemon::new(|line| if line.ends_with("/x") { not_found() } else { (204, Vec::new()) });
    assert_eq!(daemon.run("--json sandbox rm a x b").await, is(66));
    assert_eq!(daemon.seen(), ["DELETE /v1/sandboxes/a", "DELETE /v1/sandboxes/x", "DELETE /v1/sandboxes/b"]);
}

#[tokio::test]
async fn a_doctor_that_finds_a_fault_fails() {
    let report =
        |status: &str| json!({"checks": [{"name": "n", "status": status, "found": "f"}]}).to_string().into();
    let fit = FakeDaemon::new(move |_| (200, report("warn")));
    assert_eq!(fit.run("doctor").await, is(0));
    let unfit = FakeDaemon::new(move |_| (200, report("fail")));
    assert_eq!(unfit.run("doctor").await, is(78));
}

#[tokio::test]
async fn a_file_is_copied_out_to_where_it_was_told() {
    let daemon = FakeDaemon::new(|line| match line.split(' ').next() {
        Some("POST") => {
            let stat = json!({"stat": {"kind": "file", "size": 2, "mode": 0o640, "uid": 0, "gid": 0}});
            (200, stat.to_string().into())
        }
        _ => (200, tar_of_one_file()),
    });
    let target = daemon.dir.path().join("out");
    fs::create_dir(&target).unwrap();
    assert_eq!(daemon.run(&format!("sandbox cp box:/logs/reward.txt {}", target.display())).await, is(0));
    assert_eq!(fs::read(target.join("reward.txt")).unwrap(), b"1\n");
    assert_eq!(
        daemon.seen(),
        ["POST /v1/sandboxes/box/fs", "GET /v1/sandboxes/box/archive?path=%2Flogs%2Freward.txt"]
    );
}

/// `reward.txt` with `1\n`, as ustar.
fn tar_of_one_file() -> Vec<u8> {
    let mut header = [0; 512];
    header[..10].copy_from_slice(b"reward.txt");
    header[100..107].copy_from_slice(b"0000640");
    header[124..135].copy_from_slice(b"00000000002");
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(b"1\n");
    tar.resize(512 * 4, 0);
    tar
}

#[tokio::test]
async fn copies_need_one_sandbox_and_a_source() {
    let daemon = FakeDaemon::new(|_| (200, b"{}".to_vec()));
    assert_eq!(daemon.run("sandbox cp /a /b").await, is(64));
    assert_eq!(daemon.run("sandbox cp a:/a b:/b").await, is(64));
    assert_eq!(daemon.run("sandbox cp box:/none /tmp").await, is(66));
    assert_eq!(daemon.run("sandbox cp /nonexistent/berth box:/x").await, is(66));
}

#[tokio::test]
async fn a_task_that_is_not_there_is_told_before_the_daemon_is_asked() {
    let daemon = FakeDaemon::new(|_| (500, Vec::new()));
    assert_eq!(daemon.run("run /nonexistent/berth-task").await, is(66));
    assert!(daemon.seen.lock().unwrap().is_empty());
    assert!(!Path::new("jobs").exists());
}
