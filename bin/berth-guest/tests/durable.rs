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

/// Makes what it starts PID 1 of a namespace.
const AS_INIT: &str = "unshare --pid --fork --kill-child --mount-proc";
/// Connects to a socket and tells whether it was closed before anything came.
const KNOCK: &str = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; \
                     print sysread($s, my $b, 1) ? 'let in' : 'turned away'";

#[test]
fn who_comes_from_inside_the_sandbox_is_turned_away() {
    let has = |line: &str| std::process::Command::new("sh").args(["-c", line]).status().unwrap().success();
    if !has(&format!("{AS_INIT} true")) || !has("perl -MIO::Socket::UNIX -e 1") {
        println!("SKIP: needs unshare, with root's rights, and perl");
        return;
    }
    let (guest, connection) = RawGuest::start_by(AS_INIT, LONG, true);
    assert!(connection.hello.is_init);
    drop(connection);
    let mut connection = guest.connect();
    let mut knock = exec("knock", "");
    let socket = guest.dir.path().join("socket").to_str().unwrap().to_owned();
    let argv = ["perl", "-e", KNOCK, &socket].map(str::to_owned).to_vec();
    knock.command = berth_wire::Command::Argv(argv);
    let got = connection.run(Request::Exec(knock));
    assert_eq!((got.text().as_str(), got.exited().code), ("turned away", 0), "{got:?}");
    // Its own place was not taken, and who comes from outside is served as before.
    assert!(connection.info("knock").exited.is_some());
    assert_eq!(guest.connect().hello.earlier_connections, 2);
}

#[test]
fn what_is_for_those_who_wait_alone_never_touches_the_disk_and_goes_with_them() {
    let (guest, mut connection) = RawGuest::start(LONG, true);
    let mut read = exec("read", "head -c 5000000 /dev/zero");
    (read.keep.bytes, read.on_detach) = (0, OnDetach::Kill);
    let got = connection.run(Request::Exec(read.clone()));
    assert_eq!((got.out[0].len(), got.gaps.len(), got.exited().code), (5_000_000, 0, 0));
    let (mut unread, mut short) = (read.clone(), read);
    (unread.id, short.id) = ("unread".into(), "short".into());
    short.command = berth_wire::Command::Shell("head -c 200000 /dev/zero; sleep 600".into());
    connection.open(Request::Exec(unread));
    let short = connection.open(Request::Exec(short));
    until("it waits", || {
        connection.info("unread").blocked && connection.info("short").written.stdout == 200_000
    });
    connection.read_until(short, &mut Got::default(), |got| got.out[0].len() == 200_000);
    assert_eq!(guest.spooled(), 0);
    drop(connection);
    let mut connection = guest.connect();
    until("both are killed", || ["unread", "short"].iter().all(|id| connection.info(id).exited.is_some()));
    assert_eq!(guest.spooled(), 0);
    let got = connection.run(attach("unread", 0, 0));
    let written = got.exited().written.stdout;
    assert_eq!((got.out[0].len(), &got.gaps[..]), (0, &[(Output::Stdout, 0, written)][..]));
    assert_eq!(got.exited().reason, ExitReason::Killed);
    // What somebody may come back for is there, if he is to read it at all.
    let mut kept = exec("kept", "head -c 200000 /dev/zero");
    kept.keep.bytes = 0;
    connection.open(Request::Exec(kept));
    drop(connection);
    let mut connection = guest.connect();
    until("it ends", || connection.info("kept").exited.is_some());
    assert_eq!(connection.run(attach("kept", 0, 0)).out[0].len(), 200_000);
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
    for none in [0, -1, 65] {
        assert_eq!(failure(&connection.run(signal(none))), FailureCode::Invalid);
    }
    let channel = connection.open(Request::Exec(exec("real-time", "echo ready; exec sleep 60")));
    connection.read_until(channel, &mut Got::default(), |got| !got.out[0].is_empty());
    connection.ask(Request::Signal { id: "real-time".into(), signal: 40, tree: false });
    let exited = connection.finish(channel).exited().clone();
    assert_eq!((exited.reason, exited.signal, exited.code), (ExitReason::Signaled, Some(40), 168));
    // All of a tree, also what its first process has started; or that process alone.
    let line = "trap 'echo first' USR1; \
                (trap 'echo second' USR1; echo ready; while :; do sleep 0.05; done) & \
                while :; do sleep 0.05; done";
    let channel = connection.open(Request::Exec(exec("tree", line)));
    let mut got = Got::default();
    let signal = |tree| Request::Signal { id: "tree".into(), signal: 10, tree };
    let lines = |got: &Got, line: &str| got.text().lines().filter(|other| *other == line).count();
    connection.read_until(channel, &mut got, |got| lines(got, "ready") == 1);
    connection.ask(signal(true));
    connection.read_until(channel, &mut got, |got| lines(got, "first") == 1 && lines(got, "second") == 1);
    connection.ask(signal(false));
    connection.read_until(channel, &mut got, |got| lines(got, "first") == 2);
    assert_eq!(lines(&got, "second"), 1);
    connection.ask(Request::Kill { id: "tree".into(), grace_ms: Some(0) });

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
fn a_kill_that_cannot_wait_hurries_one_that_can() {
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    for hurry in
        [Request::Kill { id: "a1".into(), grace_ms: Some(0) }, Request::Quiesce { grace_ms: Some(0) }]
    {
        let id = if matches!(hurry, Request::Kill { .. }) { "a1" } else { "a2" };
        let channel =
            connection.open(Request::Exec(exec(id, "trap '' TERM; echo ready; while :; do sleep 0.1; done")));
        connection.read_until(channel, &mut Got::default(), |got| !got.out[0].is_empty());
        connection.open(Request::Kill { id: id.into(), grace_ms: Some(600_000) });
        let began = Instant::now();
        connection.ask(hurry);
        assert_eq!(connection.finish(channel).exited().reason, ExitReason::Killed);
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn a_terminal_is_emptied_at_the_end_whoever_still_holds_it() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root, for whom alone /dev/pts/ptmx is on an ordinary machine");
        return;
    }
    let (_guest, mut connection) = RawGuest::start(LONG, true);
    let on_terminal = |id: &str, line: &str| {
        let mut exec = exec(id, line);
        exec.terminal = Some(TerminalSize { rows: 24, cols: 80 });
        exec.keep.bytes = 0;
        Request::Exec(exec)
    };
    let began = Instant::now();
    let got = connection.run(on_terminal("held", "setsid sleep 600 & echo out; exit 3"));
    assert_eq!((got.text().as_str(), got.exited().code), ("out\r\n", 3));
    assert!(began.elapsed() < Duration::from_secs(60), "the holder was waited for");
    connection.ask(Request::Quiesce { grace_ms: Some(0) });
    // Nobody reads: what is in the window and what may be kept is full when it ends, and the rest in the terminal.
    for extra in [0, 3000, 6000, 9000, 20_000] {
        let (id, len) = (format!("full{extra}"), 512 * 1024 + extra);
        let line = format!("stty raw; head -c {len} /dev/zero; setsid sleep 600 &");
        let channel = connection.open(on_terminal(&id, &line));
        // Most of these end while all of it is full, the longest perhaps waits.
        let began = Instant::now();
        until("it is over, or waits", || {
            let info = connection.info(&id);
            info.exited.is_some() || (info.blocked && began.elapsed() > Duration::from_secs(1))
        });
        let got = connection.finish(channel);
        assert_eq!((got.out[0].len(), got.gaps.len(), got.exited().code), (len, 0, 0));
    }
    connection.ask(Request::Quiesce { grace_ms: Some(0) });
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
fn quiet_that_an_earlier_connection_asked_for_comes_and_is_answered_to_nobody_else() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    let channel = first.open(Request::Exec(exec("a", "trap '' TERM; while :; do sleep 0.01; done")));
    first.read_until(channel, &mut Got::default(), |got| got.started.is_some());
    first.open(Request::Quiesce { grace_ms: Some(300) });
    std::thread::sleep(Duration::from_millis(50));
    drop(first);
    let mut second = guest.connect();
    // Whatever were sent on a channel that this connection has not opened would end it.
    let got = second.run(attach("a", 0, 0));
    assert_eq!(got.exited().reason, ExitReason::Killed);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(second.ask(Request::Quiesce { grace_ms: None }), Outcome::Quiesced { killed: 0 });
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
