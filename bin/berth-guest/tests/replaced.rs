//! What was under way on a connection that another one replaces is nobody's any more. Both number their channels alike,
//! so whatever came late would be taken for what the new one has asked.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

#[path = "rig/raw.rs"]
mod raw;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_wire::{Body, Connect, Outcome, Pack, Reply, Request, Watch, WriteFile};
use raw::{Connection, Got, RawGuest, attach, exec};

const LONG: Duration = Duration::from_secs(120);
/// Of what may go wrong when two threads meet.
const ROUNDS: usize = 30;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// All data of a channel, with credit for it, and its last word.
fn data(connection: &mut Connection, channel: u32) -> (Vec<u8>, Reply) {
    let mut all = Vec::new();
    loop {
        match connection.next(channel).unwrap() {
            Body::Data(data) => {
                connection.send(channel, Body::Credit(u32::try_from(data.len()).unwrap()));
                all.extend(data);
            }
            Body::Event(last) => return (all, last),
            Body::Credit(_) | Body::End => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tar_is_its_own_whatever_was_packed_before_on_its_channel() {
    let (guest, _) = RawGuest::start(LONG, true);
    let (big, small) = (guest.dir.path().join("big"), guest.dir.path().join("small"));
    for dir in [&big, &small] {
        fs::create_dir(dir).unwrap();
    }
    // More than any window, so that it is never packed to the end.
    fs::File::create(big.join("zeros")).unwrap().set_len(1 << 30).unwrap();
    fs::write(small.join("word"), "small").unwrap();
    let pack = |path: &Path| Request::Pack(Pack { path: text(path), ..Pack::default() });
    for _ in 0..ROUNDS {
        let mut connection = guest.connect();
        let old = connection.open(pack(&big));
        assert!(matches!(connection.next(old), Some(Body::Data(_))));
        connection = guest.connect();
        let new = connection.open(pack(&small));
        assert_eq!(new, old);
        let (tar, last) = data(&mut connection, new);
        assert!(matches!(last, Reply::Done(Outcome::Packed(_))), "{last:?}");
        let mut archive = tar::Archive::new(&tar[..]);
        let mut entries = archive.entries().unwrap();
        let mut word = String::new();
        entries.next().unwrap().unwrap().read_to_string(&mut word).unwrap();
        assert_eq!(word, "small");
        assert!(entries.next().is_none());
    }
}

#[test]
fn a_file_is_its_own_whatever_was_written_before_on_its_channel() {
    let (guest, _) = RawGuest::start(LONG, true);
    let dir = guest.dir.path().join("files");
    let request = |name: &str| {
        let (path, mode, owner) = (text(&dir.join(name)), None, None);
        Request::WriteFile(WriteFile { path, mode, owner, create_only: false })
    };
    for _ in 0..ROUNDS {
        let mut connection = guest.connect();
        let old = connection.open(request("old"));
        connection.send(old, Body::Data(vec![b'o'; 60_000]));
        connection = guest.connect();
        let new = connection.open(request("new"));
        assert_eq!(new, old);
        connection.send(new, Body::Data(b"new".to_vec()));
        connection.send(new, Body::End);
        let last = data(&mut connection, new).1;
        assert_eq!(last, Reply::Done(Outcome::Written { bytes: 3 }));
        assert_eq!(fs::read(dir.join("new")).unwrap(), b"new");
        assert!(!dir.join("old").exists(), "what was cut off is not there in part");
    }
}

#[test]
fn who_waits_for_a_kill_is_forgotten_with_his_connection() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    let channel = first.open(Request::Exec(exec("deaf", "trap '' TERM; while :; do sleep 0.01; done")));
    first.read_until(channel, &mut Got::default(), |got| got.started.is_some());
    let kill = first.open(Request::Kill { id: "deaf".into(), grace_ms: Some(300) });
    let mut second = guest.connect();
    let attached = second.open(attach("deaf", 0, 0));
    let other = second.open(Request::Exec(exec("other", "sleep 1; echo hi")));
    assert_eq!(other, kill);
    assert_eq!(second.finish(attached).exited().reason, berth_wire::ExitReason::Killed);
    let other = second.finish(other);
    assert_eq!((other.text().as_str(), other.exited().code), ("hi\n", 0));
}

#[test]
fn sockets_close_with_their_connection_and_are_heard_of_no_more() {
    let (guest, mut first) = RawGuest::start(LONG, true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = first.open(Request::Connect(Connect::Tcp { host: "127.0.0.1".into(), port }));
    let mut peer = listener.accept().unwrap().0;
    assert!(matches!(first.next(socket), Some(Body::Event(Reply::Connected))));
    peer.write_all(b"before").unwrap();
    let mut second = guest.connect();
    let other = second.open(Request::Exec(exec("other", "echo hi")));
    assert_eq!(other, socket);
    let got = second.finish(other);
    assert_eq!((got.text().as_str(), got.exited().code), ("hi\n", 0));
    peer.set_read_timeout(Some(LONG)).unwrap();
    // With bytes unread it is reset.
    assert!(matches!(peer.read(&mut [0; 9]), Ok(0) | Err(_)));
}

/// Threads of the guest: one beside the first for each piece of file work.
fn threads(guest: &RawGuest) -> usize {
    fs::read_dir(format!("/proc/{}/task", guest.process.id())).unwrap().count()
}

#[test]
fn watches_end_with_their_connection() {
    let (guest, mut connection) = RawGuest::start(LONG, true);
    let quiet = guest.dir.path().join("quiet");
    fs::create_dir(&quiet).unwrap();
    for _ in 0..5 {
        let request = Request::Watch(Watch { path: text(&quiet), recursive: false });
        let channel = connection.open(request);
        assert!(matches!(connection.next(channel), Some(Body::Data(_))), "it is ready");
        assert!(threads(&guest) > 1);
        connection = guest.connect();
    }
    // Nothing happens to the files that could wake them.
    let limit = Instant::now() + Duration::from_secs(20);
    while threads(&guest) > 1 {
        assert!(Instant::now() < limit, "{} threads watch for nobody", threads(&guest));
        std::thread::sleep(Duration::from_millis(5));
    }
}
