//! Execs that outlive connections, frame by frame.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

#[path = "rig/raw.rs"]
mod raw;

use std::time::{Duration, Instant};

use berth_wire::{
    Attach, Body, ExitReason, FailureCode, Keep, Offsets, OnDetach, Outcome, Output, Reply, Request, Stdin,
    TerminalSize, WhenFull,
};
use raw::{Got, RawGuest, attach, exec};

const LONG: Duration = Duration::from_secs(120);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn failure(got: &Got) -> FailureCode {
    match &got.last {
        Some(Reply::Failed(failure)) => failure.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exec_runs_on_without_a_connection_and_is_found_again() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    assert_eq!(first.hello.earlier_connections, 0);
    let channel =
        first.open(Request::Exec(exec("a", "echo one; echo two >&2; sleep 0.3; echo three; exit 7")));
    let mut got = Got::default();
    first.read_until(channel, &mut got, |got| got.out[0].len() == 4);
    drop(first);
    std::thread::sleep(Duration::from_millis(500));
    let mut second = guest.connect();
    assert_eq!(second.hello.earlier_connections, 1);
    let again = second.run(attach("a", 4, 0));
    assert_eq!(again.started, Some((true, 0)));
    assert_eq!((again.text().as_str(), &again.out[1][..]), ("three\n", &b"two\n"[..]));
    assert_eq!((again.exited().code, again.exited().reason), (7, ExitReason::Exited));
    assert_eq!(again.exited().written, Offsets { stdout: 10, stderr: 4 });
    // The same request is the same exec.
    let all = second.run(Request::Exec(exec("a", "echo one; echo two >&2; sleep 0.3; echo three; exit 7")));
    assert_eq!((all.text().as_str(), all.exited()), ("one\nthree\n", again.exited()));
    assert_eq!(failure(&second.run(Request::Exec(exec("a", "true")))), FailureCode::Conflict);
    assert_eq!(failure(&second.run(attach("b", 0, 0))), FailureCode::NotFound);
}

#[test]
fn the_newest_connection_takes_the_place_of_the_one_before() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    let keep = first.open(Request::Exec(exec("keep", "sleep 60")));
    let mut kill = exec("kill", "sleep 60");
    kill.on_detach = OnDetach::Kill;
    let kill = first.open(Request::Exec(kill));
    for channel in [keep, kill] {
        first.read_until(channel, &mut Got::default(), |got| got.started.is_some());
    }
    let mut second = guest.connect();
    assert!(first.next(keep).is_none(), "the old connection is closed");
    let got = second.run(attach("kill", 0, 0));
    assert_eq!(got.exited().reason, ExitReason::Killed);
    assert!(second.info("keep").pid.is_some());
    assert_eq!(
        second.ask(Request::Kill { id: "keep".into(), grace_ms: None }),
        Outcome::Killed { was_running: true }
    );
    assert_eq!(
        second.ask(Request::Kill { id: "keep".into(), grace_ms: None }),
        Outcome::Killed { was_running: false }
    );
}

#[test]
fn a_guest_that_nobody_comes_back_to_ends_and_one_that_is_shut_down_does_so_at_once() {
    let (mut guest, connection) = RawGuest::start(Duration::from_millis(300), true);
    drop(connection);
    until("the guest ends", || guest.has_ended());
    let (mut guest, mut connection) = RawGuest::start(LONG, true);
    connection.open(Request::Shutdown);
    until("the guest ends", || guest.has_ended());
    // Who breaks the protocol is gone, not the guest.
    let (guest, mut connection) = RawGuest::start(LONG, true);
    connection.send(9, Body::Event(Reply::Connected));
    assert!(connection.next(9).is_none());
    assert_eq!(connection.hello.last_error, None);
    let told = guest.connect().hello.last_error;
    assert_eq!(told.as_deref(), Some("unexpected frame on channel 9"), "who connects next is told why");
    assert_eq!(guest.connect().hello.last_error, None, "that was only the end of a connection");
    assert_eq!(guest.connect().run(Request::Exec(exec("a", "echo hi"))).text(), "hi\n");
}

#[test]
fn nothing_is_lost_or_repeated_however_often_the_connection_breaks() {
    const SIZE: usize = 24 << 20;
    let (guest, mut connection) = RawGuest::start(LONG, true);
    let line = format!("echo x >> {0}/count; seq 100000000 | head -c {SIZE}", guest.dir.path().display());
    let mut expected = String::new();
    for number in 1.. {
        if expected.len() >= SIZE {
            break;
        }
        expected.push_str(&format!("{number}\n"));
    }
    let expected = &expected.as_bytes()[..SIZE];
    let mut got = Got::default();
    let mut seed = 7_u64;
    for round in 0..40 {
        let mut request = exec("a", &line);
        request.from.stdout = got.out[0].len() as u64;
        let channel = connection.open(Request::Exec(request));
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let more = got.out[0].len() + (seed >> 44) as usize;
        connection.read_until(channel, &mut got, |got| got.out[0].len() >= more);
        if got.last.is_some() {
            break;
        }
        assert!(round < 39 || got.out[0].len() > 4 << 20);
        connection = guest.connect();
    }
    if got.last.is_none() {
        let channel = connection.open(attach("a", got.out[0].len() as u64, 0));
        connection.read_until(channel, &mut got, |_| false);
    }
    assert!(got.out[0] == expected, "the bytes are those that were written");
    assert!(got.gaps.is_empty());
    assert_eq!(got.exited().code, 0);
    assert_eq!(std::fs::read_to_string(guest.dir.path().join("count")).unwrap(), "x\n");
}

#[test]
fn output_that_nobody_reads_is_bounded_by_waiting_or_by_dropping() {
    let (guest, mut connection) = RawGuest::start(LONG, true);
    let mut wait = exec("wait", "head -c 8000000 /dev/zero");
    wait.keep = Keep { bytes: 1 << 20, when_full: WhenFull::Wait };
    let mut dropping = exec("drop", "head -c 8000000 /dev/zero; echo end");
    dropping.keep = Keep { bytes: 1 << 20, when_full: WhenFull::DropOldest };
    connection.open(Request::Exec(wait));
    connection.open(Request::Exec(dropping));
    drop(connection);
    std::thread::sleep(Duration::from_millis(50));
    let mut connection = guest.connect();
    until("the one waits", || connection.info("wait").blocked);
    until("the other ends", || connection.info("drop").exited.is_some());
    let info = connection.info("wait");
    assert!(info.written.stdout < 2 << 20 && info.exited.is_none(), "{info:?}");
    let got = connection.run(attach("wait", 0, 0));
    assert_eq!((got.out[0].len(), got.gaps.len()), (8_000_000, 0));
    let got = connection.run(attach("drop", 0, 0));
    let [(Output::Stdout, 0, kept_from)] = got.gaps[..] else { panic!("{:?}", got.gaps) };
    assert!(got.text().ends_with("end\n"));
    assert_eq!(kept_from + got.out[0].len() as u64, 8_000_004);
    assert!(got.out[0].len() <= 1 << 20 && got.out[0].len() > 1 << 19, "{}", got.out[0].len());
    let dropped = got.exited().dropped.stdout;
    assert!(dropped > 0 && dropped <= kept_from);
    assert!(guest.spooled() < 4 << 20, "{}", guest.spooled());
}

#[test]
fn input_is_streamed_and_moves_to_who_attaches_for_it() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    let mut cat = exec("cat", "cat");
    cat.stdin = Stdin::Stream;
    let channel = first.open(Request::Exec(cat));
    first.send(channel, Body::Data(b"one ".to_vec()));
    first.read_until(channel, &mut Got::default(), |got| got.out[0].len() == 4);
    drop(first);
    let mut second = guest.connect();
    let request =
        |follow| Request::Attach(Attach { id: "cat".into(), from: Offsets::default(), stdin: true, follow });
    assert_eq!(failure(&second.run(request(false))), FailureCode::Invalid);
    let channel = second.open(request(true));
    let mut got = Got::default();
    second.read_until(channel, &mut got, |got| got.started.is_some());
    assert_eq!(got.started, Some((true, 4)));
    second.send(channel, Body::Data(b"two".to_vec()));
    second.send(channel, Body::End);
    second.read_until(channel, &mut got, |_| false);
    assert_eq!((got.text().as_str(), got.exited().code), ("one two", 0));
    // Who closes his input without reading it holds nobody up.
    let mut deaf = exec("deaf", "exec <&-; sleep 0.2");
    deaf.stdin = Stdin::Stream;
    let channel = second.open(Request::Exec(deaf));
    for _ in 0..4 {
        second.send(channel, Body::Data(vec![7; 60_000]));
    }
    assert_eq!(second.finish(channel).exited().code, 0);
}

#[test]
fn several_may_read_each_at_his_own_pace() {
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    let main = connection.open(Request::Exec(exec("a", "seq 100000; echo done >&2")));
    let late = connection.open(attach("a", 100, 2));
    let peek = connection.open(Request::Attach(Attach {
        id: "a".into(),
        from: Offsets::default(),
        stdin: false,
        follow: false,
    }));
    let (main, late, peek) = (connection.finish(main), connection.finish(late), connection.finish(peek));
    assert_eq!(main.out[0][100..], late.out[0][..]);
    assert_eq!((main.out[1].as_slice(), late.out[1].as_slice()), (&b"done\n"[..], &b"ne\n"[..]));
    assert!(matches!(peek.last, Some(Reply::Detached | Reply::Exited(_))));
    assert!(main.out[0].starts_with(&peek.out[0]));
    assert!(main.chunks.iter().all(|chunk| chunk.time_us > 1_600_000_000_000_000));
}

#[test]
fn signals_reach_the_first_process_and_a_terminal_its_command() {
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    let channel = connection
        .open(Request::Exec(exec("a", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done")));
    connection.read_until(channel, &mut Got::default(), |got| !got.out[0].is_empty());
    let signal = |signal| Request::Signal { id: "a".into(), signal, tree: false };
    assert_eq!(connection.ask(signal(10)), Outcome::Told { was_running: true });
    assert_eq!(connection.finish(channel).exited().code, 9);
    assert_eq!(connection.ask(signal(10)), Outcome::Told { was_running: false });
    assert_eq!(failure(&connection.run(signal(0))), FailureCode::Invalid);

    if !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root, for whom alone /dev/pts/ptmx is on an ordinary machine");
        return;
    }
    let mut shell = exec("tty", "stty size; read line; stty size; echo got $line; exit 3");
    shell.terminal = Some(TerminalSize { rows: 24, cols: 80 });
    let channel = connection.open(Request::Exec(shell));
    let mut got = Got::default();
    connection.read_until(channel, &mut got, |got| got.text().contains("24 80"));
    let size = TerminalSize { rows: 40, cols: 100 };
    connection.ask(Request::Resize { id: "tty".into(), size });
    connection.send(channel, Body::Data(b"hello\n".to_vec()));
    connection.read_until(channel, &mut got, |_| false);
    assert_eq!(got.exited().code, 3, "{got:?}");
    assert!(got.text().contains("40 100") && got.text().contains("got hello"), "{}", got.text());
}

#[test]
fn quiet_comes_when_it_is_asked_for() {
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    let channel = connection.open(Request::Exec(exec("a", "trap '' TERM; sleep 60 & sleep 61")));
    connection.read_until(channel, &mut Got::default(), |got| got.started.is_some());
    match connection.ask(Request::Quiesce { grace_ms: Some(50) }) {
        Outcome::Quiesced { killed } => assert!(killed >= 1),
        other => panic!("{other:?}"),
    }
    let got = connection.finish(channel);
    assert_eq!(got.exited().reason, ExitReason::Killed);
    assert_eq!(connection.ask(Request::Quiesce { grace_ms: None }), Outcome::Quiesced { killed: 0 });
}

#[test]
fn outputs_of_many_that_are_over_are_kept() {
    let (guest, mut connection) = RawGuest::start(LONG, true);
    for number in 0..60 {
        let got = connection
            .run(Request::Exec(exec(&format!("e{number}"), &format!("yes {number} | head -c 60000"))));
        assert_eq!(got.out[0].len(), 60_000);
    }
    drop(connection);
    let mut connection = guest.connect();
    for number in 0..60 {
        let got = connection.run(attach(&format!("e{number}"), 0, 0));
        assert_eq!((got.out[0].len(), got.gaps.len()), (60_000, 0));
        assert!(got.text().starts_with(&format!("{number}\n")));
    }
    let (infos, next) = connection.infos(None);
    assert_eq!(next, None);
    let ids: Vec<_> = infos.iter().map(|info| info.id.clone()).collect();
    assert_eq!(ids, (0..60).map(|number| format!("e{number}")).collect::<Vec<_>>());
    assert!(infos.iter().all(|info| info.kept_from == Offsets::default() && info.exited.is_some()));
}

#[test]
fn a_listing_tells_of_every_exec_however_many_there_are() {
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    // Long commands make short parts; these are told of before they are over, and these after.
    let line = |number: u32| format!("# {}\n[ {number} -lt 1490 ] || sleep 600", "x".repeat(200));
    let mut channels = std::collections::VecDeque::new();
    for number in 0..1500_u32 {
        let channel = connection.open(Request::Exec(exec(&format!("e{number}"), &line(number))));
        channels.push_back(channel);
        if channels.len() > 20 {
            connection.finish(channels.pop_front().unwrap());
        }
    }
    let (mut ids, mut after, mut parts) = (Vec::new(), None, 0);
    loop {
        let (infos, next) = connection.infos(after);
        ids.extend(infos.iter().map(|info| info.id.clone()));
        parts += 1;
        if next.is_none() {
            assert!(infos.last().unwrap().exited.is_none());
            break;
        }
        after = next;
    }
    assert!(parts > 1);
    assert_eq!(ids, (0..1500).map(|number| format!("e{number}")).collect::<Vec<_>>());
    assert_eq!(connection.infos(Some(u64::MAX)), (Vec::new(), None));
    connection.ask(Request::Quiesce { grace_ms: Some(0) });
}

/// Takes a minute: `cargo test -p berth-guest --test durable -- --ignored --nocapture`, with the guest built as it ships.
#[test]
#[ignore = "measures"]
fn a_hundred_thousand_execs_are_remembered_in_little_memory() {
    let (guest, mut connection) = RawGuest::start(LONG, true);
    println!("idle: {} KiB", guest.resident());
    let count: u32 = std::env::var("EXECS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000);
    let began = Instant::now();
    for number in 0..count {
        let mut request = exec(&format!("0193d0c8-aaaa-7bbb-8ccc-{number:012}"), "");
        request.command = berth_wire::Command::Argv(vec!["/bin/true".into(), "some arguments".into()]);
        assert_eq!(connection.run(Request::Exec(request)).exited().code, 0);
    }
    println!("{count} execs: {} KiB, {:?} each", guest.resident(), began.elapsed() / count);
}
