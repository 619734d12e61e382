use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use berth_wire::{Outcome, WINDOW};
use rustix::event::{PollFd, PollFlags, poll};

use super::*;

/// The host's side: what came on each channel.
struct Host {
    sockets: Sockets,
    news: Collected,
}

#[derive(Default)]
struct Collected {
    data: HashMap<u32, Vec<u8>>,
    ended: HashSet<u32>,
    credit: HashMap<u32, u64>,
    connected: HashSet<u32>,
    last: HashMap<u32, Reply>,
    /// Chunks that it takes until [`Host::turn`] comes again; any number when `None`.
    room: Option<usize>,
    order: Vec<u32>,
}

impl Sink for Collected {
    fn has_room(&self) -> bool {
        self.room.is_none_or(|room| room > 0)
    }

    fn data(&mut self, channel: u32, bytes: &[u8]) {
        assert!(!self.ended.contains(&channel) && !self.last.contains_key(&channel));
        assert!(self.connected.contains(&channel));
        self.room = self.room.map(|room| room - 1);
        self.order.push(channel);
        self.data.entry(channel).or_default().extend_from_slice(bytes);
    }

    fn send(&mut self, channel: u32, body: Body) {
        assert!(!self.last.contains_key(&channel), "{body:?}");
        match body {
            Body::Credit(bytes) => *self.credit.entry(channel).or_default() += u64::from(bytes),
            Body::End => assert!(self.ended.insert(channel)),
            Body::Event(Reply::Connected) => assert!(self.connected.insert(channel)),
            Body::Event(reply) => {
                self.last.insert(channel, reply);
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Host {
    fn new() -> Self {
        Self { sockets: Sockets::new().unwrap(), news: Collected::default() }
    }

    fn open(&mut self, channel: u32, request: &Connect) {
        self.sockets.open(channel, request, Instant::now());
        self.turn();
    }

    fn tcp(&mut self, channel: u32, listener: &TcpListener) {
        let port = listener.local_addr().unwrap().port();
        self.open(channel, &Connect::Tcp { host: "localhost".into(), port });
    }

    fn unix(&mut self, channel: u32, path: &std::path::Path) {
        self.open(channel, &Connect::Unix { path: path.to_str().unwrap().into() });
    }

    fn turn(&mut self) {
        self.sockets.settle(Instant::now(), &mut self.news);
    }

    /// Turns as the loop does, until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Sockets, &mut Collected) -> bool) {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            self.turn();
            if is_so(&mut self.sockets, &mut self.news) {
                return;
            }
            assert!(Instant::now() < limit, "{what}: {:?}", self.news.last);
            if self.sockets.next_timer().is_some_and(|at| at <= Instant::now()) {
                continue;
            }
            let fd = self.sockets.fd();
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }))
                .unwrap();
        }
    }

    /// Turns until nothing happens any more.
    fn rest(&mut self) {
        let mut quiet = 0;
        while quiet < 5 {
            let before = self.news.data.values().map(Vec::len).sum::<usize>();
            self.turn();
            std::thread::sleep(Duration::from_millis(10));
            let after = self.news.data.values().map(Vec::len).sum::<usize>();
            quiet = if before == after { quiet + 1 } else { 0 };
        }
    }

    fn last(&mut self, channel: u32) -> Reply {
        self.until("a last word", |_, news| news.last.contains_key(&channel));
        assert!(!self.sockets.has(channel));
        self.news.last[&channel].clone()
    }

    fn failure(&mut self, channel: u32) -> Failure {
        match self.last(channel) {
            Reply::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn data_goes_both_ways_and_each_half_closes_by_itself() {
    let (mut host, listener) = (Host::new(), listen());
    let port = listener.local_addr().unwrap().port();
    // Without a turn: what is sent before it is connected waits.
    host.sockets.open(1, &Connect::Tcp { host: "localhost".into(), port }, Instant::now());
    host.sockets.data(1, b"ques".to_vec()).unwrap();
    host.sockets.data(1, b"tion".to_vec()).unwrap();
    host.sockets.end(1);
    let server = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut asked = String::new();
        peer.read_to_string(&mut asked).unwrap();
        peer.write_all(format!("{asked}? answer").as_bytes()).unwrap();
    });
    assert_eq!(host.last(1), Reply::Done(Outcome::Disconnected));
    assert_eq!(host.news.data[&1], b"question? answer");
    assert!(host.news.ended.contains(&1));
    server.join().unwrap();
}

#[test]
fn a_peer_that_has_said_everything_can_still_be_spoken_to() {
    let (mut host, listener) = (Host::new(), listen());
    host.tcp(1, &listener);
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"hello").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    host.until("the peer's end", |_, news| news.ended.contains(&1));
    assert_eq!(host.news.data[&1], b"hello");
    assert!(host.news.last.is_empty());
    host.sockets.data(1, b"late".to_vec()).unwrap();
    host.sockets.end(1);
    assert_eq!(host.last(1), Reply::Done(Outcome::Disconnected));
    let mut heard = String::new();
    peer.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "late");
}

#[test]
fn what_the_peer_does_not_take_is_not_credited_and_arrives_whole_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut host = Host::new();
    host.unix(1, &dir.path().join("s"));
    let (mut peer, _) = listener.accept().unwrap();
    let (mut sent, mut left) = (0_u64, u64::from(WINDOW));
    let total = 16 * u64::from(WINDOW);
    let mut feed = |host: &mut Host| {
        left += host.news.credit.remove(&1).unwrap_or(0);
        while left > 0 && sent < total {
            let len = left.min(10_000).min(total - sent);
            let chunk = (sent..sent + len).map(|at| (at % 251) as u8).collect();
            host.sockets.data(1, chunk).unwrap();
            (sent, left) = (sent + len, left - len);
        }
        host.turn();
        sent
    };
    for _ in 0..20 {
        feed(&mut host);
    }
    let stuck = feed(&mut host);
    assert!(stuck < total / 2, "{stuck} bytes were taken of a window and a socket's buffer");
    assert!(host.sockets.data(1, vec![0; WINDOW as usize]).is_err(), "more than was credited");
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; total as usize];
        peer.read_exact(&mut bytes).unwrap();
        bytes
    });
    let limit = Instant::now() + Duration::from_secs(20);
    while feed(&mut host) < total || !reader.is_finished() {
        assert!(Instant::now() < limit);
        std::thread::sleep(Duration::from_millis(1));
    }
    let bytes = reader.join().unwrap();
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
}

#[test]
fn no_more_is_read_than_the_host_has_room_for() {
    let (mut host, listener) = (Host::new(), listen());
    host.tcp(1, &listener);
    let (mut peer, _) = listener.accept().unwrap();
    let total = 3 * WINDOW as usize + 5;
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..total).map(|at| (at % 241) as u8).collect();
        peer.write_all(&bytes).unwrap();
    });
    host.until("a window", |_, news| news.data.get(&1).is_some_and(|data| data.len() == WINDOW as usize));
    host.rest();
    assert_eq!(host.news.data[&1].len(), WINDOW as usize);
    host.sockets.credit(1, WINDOW).unwrap();
    host.rest();
    assert_eq!(host.news.data[&1].len(), 2 * WINDOW as usize);
    host.sockets.credit(1, WINDOW).unwrap();
    host.rest();
    host.sockets.credit(1, 5).unwrap();
    host.until("its end", |_, news| news.ended.contains(&1));
    writer.join().unwrap();
    assert_eq!(host.news.data[&1].len(), total);
    assert!(host.news.data[&1].iter().enumerate().all(|(at, byte)| *byte == (at % 241) as u8));
    assert!(host.sockets.credit(1, WINDOW + 1).is_err(), "more than a window");
}

#[test]
fn sockets_take_turns_where_there_is_little_room() {
    let (mut host, listener) = (Host::new(), listen());
    let mut peers = Vec::new();
    for channel in 1..=3 {
        host.tcp(channel, &listener);
        peers.push(listener.accept().unwrap().0);
    }
    host.until("all", |_, news| news.connected.len() == 3);
    for peer in &mut peers {
        peer.write_all(&vec![7; 192 * 1024]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    for _ in 0..6 {
        host.news.room = Some(1);
        host.turn();
    }
    for channel in 1..=3 {
        assert_eq!(
            host.news.order.iter().filter(|turn| **turn == channel).count(),
            2,
            "{:?}",
            host.news.order
        );
    }
}

#[test]
fn hundreds_at_once_do_not_mix() {
    let (mut host, listener) = (Host::new(), listen());
    let count = 400;
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let echo = |mut peer: TcpStream| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                peer.read_to_end(&mut bytes).unwrap();
                peer.write_all(&bytes).unwrap();
            })
        };
        let peers: Vec<_> = (0..count).map(|_| echo(listener.accept().unwrap().0)).collect();
        peers.into_iter().for_each(|peer| peer.join().unwrap());
    });
    let said = |channel: u32| format!("{channel} ").repeat(1000 + channel as usize);
    for channel in 1..=count {
        host.open(channel, &Connect::Tcp { host: "127.0.0.1".into(), port });
        host.sockets.data(channel, said(channel).into_bytes()).unwrap();
        host.sockets.end(channel);
    }
    host.until("all", |_, news| news.last.len() == count as usize);
    for channel in 1..=count {
        assert_eq!(host.news.last[&channel], Reply::Done(Outcome::Disconnected));
        assert!(host.news.data[&channel] == said(channel).as_bytes(), "{channel}");
    }
    server.join().unwrap();
}

#[test]
fn who_does_not_answer_is_named_with_the_reason() {
    let mut host = Host::new();
    let gone = listen().local_addr().unwrap();
    host.open(1, &Connect::Tcp { host: "127.0.0.1".into(), port: gone.port() });
    let failure = host.failure(1);
    assert_eq!(failure.code, FailureCode::NotConnected);
    assert!(failure.message.contains(&format!("{gone}: Connection refused")), "{failure}");
    host.open(2, &Connect::Tcp { host: "localhost".into(), port: gone.port() });
    assert!(host.failure(2).message.contains("; [::1]:"), "both are tried");
    host.open(3, &Connect::Tcp { host: "no-such-host.invalid".into(), port: 80 });
    assert_eq!(host.failure(3).code, FailureCode::Refused);
    host.open(4, &Connect::Tcp { host: "localhost".into(), port: 0 });
    assert_eq!(host.failure(4).code, FailureCode::Invalid);
    host.unix(5, std::path::Path::new("/nowhere/socket"));
    assert_eq!(host.failure(5).code, FailureCode::NotConnected);
}

#[test]
fn localhost_is_also_who_listens_on_version_6_alone() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        println!("SKIP: no IPv6 on this machine");
        return;
    };
    let mut host = Host::new();
    host.tcp(1, &listener);
    host.until("connected", |_, news| news.connected.contains(&1));
    listener.accept().unwrap();
}

#[test]
fn unix_sockets_of_any_path_are_reached() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    // Its path is too long to bind to.
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    std::fs::rename(dir.path().join("s"), deep.join("s")).unwrap();
    let mut host = Host::new();
    host.unix(1, &deep.join("s"));
    host.until("connected", |_, news| news.connected.contains(&1));
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(b"hi").unwrap();
    drop(peer);
    assert_eq!(host.last(1), Reply::Done(Outcome::Disconnected), "nobody is left to be spoken to");
    assert_eq!(host.news.data[&1], b"hi");
}

#[test]
fn a_full_queue_is_waited_for_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let filling = UnixStream::connect(&path).unwrap();
    let mut host = Host::new();
    host.unix(1, &path);
    host.unix(2, &path);
    host.turn();
    assert!(host.news.connected.is_empty() && host.sockets.next_timer().is_some());
    drop(listener.accept().unwrap());
    host.until("one of them", |_, news| news.connected.len() == 1);
    let waiting = if host.news.connected.contains(&1) { 2 } else { 1 };
    host.sockets.settle(Instant::now() + Duration::from_secs(11), &mut host.news);
    let Reply::Failed(failure) = &host.news.last[&waiting] else { panic!() };
    assert!(failure.message.ends_with("no answer in 10 s"), "{failure}");
    assert_eq!(host.sockets.next_timer(), None);
    drop(filling);
}

#[test]
fn lost_bytes_and_broken_connections_are_never_an_orderly_end() {
    let (mut host, listener) = (Host::new(), listen());
    host.tcp(1, &listener);
    let (peer, _) = listener.accept().unwrap();
    host.until("connected", |_, news| news.connected.contains(&1));
    reset(peer);
    let failure = host.failure(1);
    assert_eq!(failure.code, FailureCode::NotConnected);
    assert!(failure.message.contains("reset"), "{failure}");

    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    host.unix(2, &dir.path().join("s"));
    let (mut peer, _) = listener.accept().unwrap();
    peer.shutdown(Shutdown::Read).unwrap();
    peer.write_all(b"not listening").unwrap();
    host.sockets.data(2, b"to nobody".to_vec()).unwrap();
    host.until("its words", |_, news| news.data.contains_key(&2));
    drop(peer);
    let failure = host.failure(2);
    assert!(failure.message.contains("write to the socket"), "{failure}");
    assert_eq!(host.news.data[&2], b"not listening");
}

/// Ends a connection the hard way.
fn reset(peer: TcpStream) {
    let linger = rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO));
    linger.unwrap();
    drop(peer);
}

#[test]
fn whoever_is_cancelled_is_closed_at_once() {
    let (mut host, listener) = (Host::new(), listen());
    host.tcp(1, &listener);
    host.tcp(2, &listener);
    let mut peers = [listener.accept().unwrap().0, listener.accept().unwrap().0];
    host.until("both", |_, news| news.connected.len() == 2);
    host.sockets.cancel(1);
    assert_eq!(host.failure(1).code, FailureCode::Cancelled);
    host.sockets.clear();
    host.turn();
    assert!(!host.news.last.contains_key(&2), "nobody is there to be told");
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
    }
    // Data that was under way is for nobody.
    host.sockets.data(1, b"late".to_vec()).unwrap();
    host.sockets.credit(1, 5).unwrap();
    host.sockets.cancel(1);
    host.turn();
}

#[test]
fn there_are_only_so_many() {
    let mut host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    // Those that wait for a place in the queue count as well.
    for channel in 1..=MAX_SOCKETS as u32 + 1 {
        host.unix(channel, &dir.path().join("s"));
    }
    assert_eq!(host.failure(MAX_SOCKETS as u32 + 1).code, FailureCode::Limit);
    assert!(host.news.last.len() == 1, "the others wait or are connected");
    drop(listener);
}
