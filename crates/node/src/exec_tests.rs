//! Execs through the node, with a guest that is made up, and with one that says nothing.

use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_sandbox::DiskFull;
use berth_types::error::{ApiError, Kind};
use berth_types::exec::{
    Command, ExecOffsets, ExecRequest, ExecStatus, OnDisconnect, Signal, SignalRequest, Stdin, StdinQuery,
    TerminalSize,
};
use berth_types::files::FsRequest;
use berth_types::sandbox::SandboxState;
use berth_wire::Offsets;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::fake::{Controls, World, roomy};
use crate::{AttachSpec, Error, Exec, ExecOutput};

async fn answering() -> (World, String) {
    let world = World::with(Controls { reading: Mutex::new(roomy()), ..Controls::answering() }).await;
    let made = world.create(|_| ()).await.unwrap();
    (world, made.id)
}

fn shell(id: &str, line: &str) -> ExecRequest {
    ExecRequest { id: Some(id.into()), ..ExecRequest::new(Command::Shell(line.into())) }
}

fn code(error: &Error) -> (Kind, String) {
    let api = ApiError::from(error);
    (api.kind, api.code)
}

/// Everything up to the end: whether it was there before, what it wrote, how it ended.
async fn all(exec: &mut Exec) -> (bool, Vec<u8>, ExecStatus) {
    let (mut was_there, mut written) = (false, Vec::new());
    loop {
        match exec.next().await.unwrap() {
            ExecOutput::Started { attached, .. } => was_there = attached,
            ExecOutput::Output { data, .. } => written.extend_from_slice(&data),
            ExecOutput::Exited(status) => return (was_there, written, status),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_never_runs_twice() {
    let (world, id) = answering().await;
    let first = all(&mut world.node.exec(&id, shell("e", "exit 3")).await.unwrap()).await;
    assert_eq!((first.0, first.1.as_slice(), first.2.exit_code), (false, &b"out"[..], 3));
    let from = ExecOffsets { stdout: 1, stderr: 0 };
    let repeated = ExecRequest { from, ..shell("e", "exit 3") };
    let second = all(&mut world.node.exec(&id, repeated).await.unwrap()).await;
    assert_eq!((second.0, second.1.as_slice(), second.2), (true, &b"ut"[..], first.2));
    let started = world.controls.started.lock().unwrap().clone();
    assert_eq!(started, [("e".to_owned(), Offsets::default())]);
    let error = world.node.exec(&id, shell("e", "exit 4")).await.err().unwrap();
    assert_eq!(code(&error), (Kind::Conflict, "exec_id_taken".into()));
    assert_eq!(world.node.execs(&id).await.unwrap().items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_knew_of_an_end_is_told_again_and_not_asked_again() {
    let (world, id) = answering().await;
    let machine = world.controls.machine(&id);
    *machine.disk_full.lock().unwrap() = Some(DiskFull::Machine);
    let seen = all(&mut world.node.exec(&id, shell("full", "exit 1")).await.unwrap()).await.2;
    assert!(seen.machine_disk_full);
    *machine.disk_full.lock().unwrap() = None;
    let spec = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    let again = all(&mut world.node.attach_exec(&id, "full", spec).await.unwrap()).await.2;
    assert_eq!(again, seen);
    assert_eq!(world.node.exec_info(&id, "full").await.unwrap().status, Some(seen));
    // Nobody was there when this one ended: what the machine is like now is none of its business.
    world.node.exec_detached(&id, shell("alone", "exit 1")).await.unwrap();
    *machine.disk_full.lock().unwrap() = Some(DiskFull::Machine);
    let late = all(&mut world.node.attach_exec(&id, "alone", spec).await.unwrap()).await.2;
    assert!(!late.machine_disk_full);
}

#[tokio::test(flavor = "multi_thread")]
async fn input_arrives_whole_whoever_repeats_what() {
    let (world, id) = answering().await;
    let request = ExecRequest { stdin: Some(Stdin::Stream), ..shell("cat", "cat") };
    let mut exec = world.node.exec(&id, request).await.unwrap();
    let write = async |offset, end, data: &'static [u8]| {
        world.node.write_stdin(&id, "cat", StdinQuery { offset, end }, data).await.map(|report| report.offset)
    };
    assert_eq!(write(None, false, b"one ").await.unwrap(), 4);
    assert_eq!(write(Some(0), false, b"one two ").await.unwrap(), 8);
    assert_eq!(write(Some(4), false, b"two ").await.unwrap(), 8);
    let gap = write(Some(9), false, b"x").await.unwrap_err();
    assert_eq!(code(&gap), (Kind::Conflict, "stdin_gap".into()));
    assert!(matches!(gap, Error::StdinGap { given: 8, .. }));
    assert_eq!(write(Some(8), true, b"three").await.unwrap(), 13);
    assert_eq!(all(&mut exec).await.1, b"one two three");
    assert_eq!(code(&write(None, false, b"more").await.unwrap_err()).1, "exec_over");
    world.node.exec_detached(&id, shell("sleep", "sleep")).await.unwrap();
    let error = world.node.write_stdin(&id, "sleep", StdinQuery::default(), &b"x"[..]).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Conflict, "no_stdin".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_leaves_the_input_with_who_gives_it() {
    let (world, id) = answering().await;
    let request = ExecRequest { stdin: Some(Stdin::Stream), ..shell("cat", "cat") };
    let mut first = world.node.exec(&id, request.clone()).await.unwrap();
    let input = first.input().unwrap();
    input.write(b"one ").await.unwrap();
    let mut second = world.node.exec(&id, request).await.unwrap();
    assert!(second.input().is_none());
    input.write(b"two").await.unwrap();
    input.end();
    assert_eq!(all(&mut first).await.1, b"one two");
    let (was_there, written, _) = all(&mut second).await;
    assert!(was_there && written == b"one two");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_is_told_when_another_gives_the_input() {
    let (world, id) = answering().await;
    let request = ExecRequest { stdin: Some(Stdin::Stream), ..shell("cat", "cat") };
    let mut exec = world.node.exec(&id, request).await.unwrap();
    let (mut client, body) = tokio::io::duplex(64);
    let writer = {
        let (node, id) = (world.node.clone(), id.clone());
        tokio::spawn(async move { node.write_stdin(&id, "cat", StdinQuery::default(), body).await })
    };
    client.write_all(b"one ").await.unwrap();
    let watching = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    loop {
        let mut watcher = world.node.attach_exec(&id, "cat", watching).await.unwrap();
        if matches!(watcher.next().await.unwrap(), ExecOutput::Started { stdin_offset: 4, .. }) {
            break;
        }
    }
    let taker = world.node.attach_exec(&id, "cat", AttachSpec { stdin: true, ..watching }).await.unwrap();
    assert_eq!(code(&writer.await.unwrap().unwrap_err()), (Kind::Conflict, "stdin_taken".into()));
    let input = taker.input().unwrap();
    input.write(b"two").await.unwrap();
    input.end();
    assert_eq!(all(&mut exec).await.1, b"one two");
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_comes_with_a_request_arrives_whole_even_when_nobody_stays() {
    let (world, id) = answering().await;
    for len in [0, 5, 1 << 20] {
        let data: Vec<u8> = (0..len).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let name = format!("in-{len}");
        let stdin = Some(Stdin::Data(STANDARD.encode(&data)));
        let request = ExecRequest { stdin, ..shell(&name, "sha") };
        world.node.exec_detached(&id, request.clone()).await.unwrap();
        let (was_there, written, status) = all(&mut world.node.exec(&id, request).await.unwrap()).await;
        assert!(was_there && written == Sha256::digest(&data).as_slice(), "{len}");
        assert_eq!(status.exit_code, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_or_unknown_is_told_apart() {
    let (world, id) = answering().await;
    let signal = SignalRequest { signal: Signal::Name("TERM".into()), tree: false };
    let size = TerminalSize { rows: 1, cols: 1 };
    let info = world.node.exec_detached(&id, shell("runs", "sleep")).await.unwrap();
    assert_eq!((info.id.as_str(), info.attached, info.status), ("runs", 0, None));
    // What is delivered may be dropped, so nothing is.
    let nothing = Offsets { stdout: u64::MAX, stderr: u64::MAX };
    assert_eq!(world.controls.started.lock().unwrap()[0], ("runs".to_owned(), nothing));
    world.node.exec_detached(&id, shell("over", "exit 0")).await.unwrap();
    world.node.signal_exec(&id, "runs", &signal).await.unwrap();
    world.node.resize_exec(&id, "runs", size).await.unwrap();
    for (exec, expected) in [("over", "exec_over"), ("never", "exec_not_found")] {
        assert_eq!(code(&world.node.signal_exec(&id, exec, &signal).await.unwrap_err()).1, expected);
        assert_eq!(code(&world.node.resize_exec(&id, exec, size).await.unwrap_err()).1, expected);
    }
    world.node.kill_exec(&id, "runs").await.unwrap();
    world.node.kill_exec(&id, "over").await.unwrap();
    assert_eq!(code(&world.node.kill_exec(&id, "never").await.unwrap_err()).1, "exec_not_found");
    assert_eq!(code(&world.node.exec_info(&id, "never").await.unwrap_err()).1, "exec_not_found");
    let spec = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    assert_eq!(code(&world.node.attach_exec(&id, "never", spec).await.err().unwrap()).1, "exec_not_found");
    let kill = ExecRequest { on_disconnect: OnDisconnect::Kill, ..shell("x", "sleep") };
    assert_eq!(code(&world.node.exec_detached(&id, kill).await.unwrap_err()).1, "bad_request");
}

#[tokio::test(start_paused = true)]
async fn every_call_ends_although_the_guest_says_nothing() {
    let world = World::new().await;
    let id = world.create(|_| ()).await.unwrap().id;
    let signal = SignalRequest { signal: Signal::Number(15), tree: false };
    let spec = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    let stat = FsRequest::Stat { path: "/".into(), user: None };
    let node = &world.node;
    let began = Instant::now();
    let results = [
        node.execs(&id).await.err(),
        node.exec_info(&id, "e").await.err(),
        node.signal_exec(&id, "e", &signal).await.err(),
        node.kill_exec(&id, "e").await.err(),
        node.quiesce(&id).await.err(),
        node.attach_exec(&id, "e", spec).await.err(),
        node.write_stdin(&id, "e", StdinQuery::default(), &b"x"[..]).await.err(),
        node.fs(&id, stat).await.err(),
    ];
    for error in results {
        assert_eq!(code(&error.unwrap()), (Kind::Unavailable, "sandbox_unresponsive".into()));
    }
    assert!(began.elapsed() < Duration::from_secs(200));
    let error = node.exec(&id, shell("once", "true")).await.err().unwrap();
    assert_eq!(code(&error).1, "sandbox_unresponsive");
    let told = ApiError::from(&error);
    assert!(told.message.contains("once") && told.hint.unwrap().contains("safe"));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_outlasts_its_limit_is_given_up() {
    let (world, id) = answering().await;
    let limited = ExecRequest { timeout_seconds: Some(30.0), ..shell("long", "sleep") };
    let mut exec = world.node.exec(&id, limited).await.unwrap();
    assert!(matches!(exec.next().await.unwrap(), ExecOutput::Started { .. }));
    let began = Instant::now();
    let error = exec.next().await.unwrap_err();
    assert_eq!(code(&error).1, "sandbox_unresponsive");
    assert!(began.elapsed() >= Duration::from_secs(50) && began.elapsed() < Duration::from_secs(60));
    // Who attaches later is held to the same limit.
    let spec = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    let mut late = world.node.attach_exec(&id, "long", spec).await.unwrap();
    assert!(matches!(late.next().await.unwrap(), ExecOutput::Started { .. }));
    let began = Instant::now();
    assert_eq!(code(&late.next().await.unwrap_err()).1, "sandbox_unresponsive");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_a_cut_and_not_the_end_of_the_sandbox() {
    let (world, id) = answering().await;
    let (node, machine) = (&world.node, world.controls.machine(&id));
    let request = ExecRequest { stdin: Some(Stdin::Stream), ..shell("cat", "cat") };
    let mut exec = node.exec(&id, request.clone()).await.unwrap();
    assert!(matches!(exec.next().await.unwrap(), ExecOutput::Started { .. }));
    assert_eq!(node.write_stdin(&id, "cat", StdinQuery::default(), &b"one "[..]).await.unwrap().offset, 4);
    machine.cut().await;
    let error = exec.next().await.unwrap_err();
    assert_eq!(code(&error), (Kind::Unavailable, "sandbox_unresponsive".into()), "{error}");
    assert_eq!(node.sandbox(&id).await.unwrap().state, SandboxState::Running);
    // Who asks now waits for the next connection, and finds what he left.
    let (again, ()) = tokio::join!(node.exec(&id, request), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        machine.connect_again().await;
    });
    let mut again = again.unwrap();
    let query = StdinQuery { offset: Some(4), end: true };
    assert_eq!(node.write_stdin(&id, "cat", query, &b"two"[..]).await.unwrap().offset, 7);
    let (was_there, written, status) = all(&mut again).await;
    assert!(was_there && written == b"one two" && status.exit_code == 0);
    assert_eq!(world.controls.started.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_end_while_a_connection_is_not_made_again_and_tell_its_loss() {
    let (world, id) = answering().await;
    let (node, machine) = (&world.node, world.controls.machine(&id));
    machine.cut().await;
    let began = Instant::now();
    let stat = FsRequest::Stat { path: "/".into(), user: None };
    let spec = AttachSpec { from: ExecOffsets::default(), stdin: false, follow: true };
    let results = [
        node.execs(&id).await.err(),
        node.exec(&id, shell("e", "sleep")).await.err(),
        node.attach_exec(&id, "e", spec).await.err(),
        node.kill_exec(&id, "e").await.err(),
        node.quiesce(&id).await.err(),
        node.fs(&id, stat.clone()).await.err(),
    ];
    for error in results {
        assert_eq!(code(&error.unwrap()), (Kind::Unavailable, "sandbox_unresponsive".into()));
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    // The driver gives it up: both then say the same.
    machine.die(0);
    while node.sandbox(&id).await.unwrap().state == SandboxState::Running {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lost = node.sandbox(&id).await.unwrap();
    assert_eq!((lost.state, lost.reason.as_deref()), (SandboxState::Lost, Some("it fell over")));
    assert_eq!(code(&node.fs(&id, stat).await.unwrap_err()).1, "sandbox_lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_no_fault_of_the_sandbox() {
    let (world, id) = answering().await;
    let source = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    let failed = berth_sandbox::guest::Error::Archive { path: "/a".into(), source };
    assert_eq!(code(&world.node.guest_error(&id, failed).await), (Kind::User, "body_failed".into()));
}
