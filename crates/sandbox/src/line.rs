//! The connection to a container's guest, and how it is made again when it breaks while the guest lives.
//!
//! ```text
//!   Guest ── stream ends ──► too often lately? ── yes ──────────────────────────────► given up: the container is ended
//!     ▲                            └─ no ──► its socket: connect, greeting ── not within LIMIT ──► given up likewise
//!     └────────────────────────────────────────────────┘
//! ```
//!
//! Calls under way on the stream that ended have failed, and are nobody's any more: the guest forgets whom it owed an
//! answer. Its execs run on. A container whose guest cannot be reached is of no use to anybody, and must not seem so.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::Error;
use crate::container::HELLO_LIMIT;
use crate::guest::{self, Guest};
use crate::reaper::chain;
use crate::sockets::Socket;

/// How long it is tried to reach a guest again.
const LIMIT: Duration = HELLO_LIMIT;

/// How long a guest without a socket, which ends with its stream, may take for that.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long a call waits for a connection that is being made again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first pause between two tries; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// A connection may break so many times within [`WHILE`]: what breaks more often does so for a reason that stays.
const MOST_BREAKS: usize = 5;
const WHILE: Duration = Duration::from_secs(60);

/// The connection, as it is now.
pub(crate) struct Line(watch::Sender<Guest>);

/// How to reach the guest again.
pub(crate) enum Way {
    /// At its socket.
    Socket(Socket),
    /// Not at all: it ends with its connection.
    Nowhere,
    /// It is nobody's business here any more: it was ended, or left for another daemon.
    Left,
}

impl Line {
    pub(crate) fn new(guest: Guest) -> Line {
        Line(watch::Sender::new(guest))
    }

    pub(crate) fn guest(&self) -> Guest {
        self.0.borrow().clone()
    }

    /// The connection, waited for while it is being made again; as it is where that takes long.
    pub(crate) async fn reached(&self) -> Guest {
        let mut news = self.0.subscribe();
        let open = tokio::time::timeout(PATIENCE, news.wait_for(|guest| !guest.is_closed()));
        match open.await {
            Ok(Ok(guest)) => guest.clone(),
            Ok(Err(_)) | Err(_) => self.guest(),
        }
    }

    /// Makes the connection again whenever it breaks. Returns why that is given up; `None` when there is no guest any
    /// more whose connection it would be.
    pub(crate) async fn keep(&self, way: impl Fn() -> Way) -> Option<String> {
        let mut breaks = Breaks::default();
        loop {
            self.guest().closed().await;
            if !breaks.add(Instant::now()) {
                let (times, seconds) = (MOST_BREAKS + 1, WHILE.as_secs());
                return Some(format!("the connection to its guest broke {times} times within {seconds} s"));
            }
            match again(&way).await {
                Ok(Some(guest)) => {
                    let earlier = guest.info().earlier_connections;
                    tracing::warn!(earlier, "the connection to a sandbox broke, and was made again");
                    self.0.send_replace(guest);
                }
                Ok(None) => return None,
                Err(error) => {
                    let why = chain(&error);
                    return Some(format!(
                        "the connection to its guest broke and could not be made again: {why}"
                    ));
                }
            }
        }
    }
}

/// When a connection broke lately.
#[derive(Default)]
struct Breaks(VecDeque<Instant>);

impl Breaks {
    /// False where that is too often.
    fn add(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < WHILE);
        self.0.push_back(now);
        self.0.len() <= MOST_BREAKS
    }
}

/// Another connection; `None` when there is nobody to be reached any more.
async fn again(way: &impl Fn() -> Way) -> Result<Option<Guest>, Error> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match way() {
            Way::Left => return Ok(None),
            Way::Nowhere => {
                tokio::time::sleep(FAREWELL).await;
                return Err(Error::OneConnection);
            }
            Way::Socket(socket) => match tokio::time::timeout_at(deadline, greet(&socket)).await {
                // It may have been left for another daemon meanwhile, whose connection is not to be replaced.
                Ok(Ok(guest)) => return Ok((!matches!(way(), Way::Left)).then_some(guest)),
                Ok(Err(error @ Error::OtherGeneration { .. })) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(Error::GuestSilent { limit: LIMIT }),
            },
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::debug!(error = &error as &dyn std::error::Error, "a guest is not reached again yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// A connection to the guest that listens there. Without a limit of time.
pub(crate) async fn greet(socket: &Socket) -> Result<Guest, Error> {
    let stream = socket.connect().await.map_err(Error::Connect)?;
    Guest::connect(stream).await.map_err(|error| match error {
        guest::Error::Generation { theirs } => Error::OtherGeneration { theirs },
        error => Error::Guest(error),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use berth_wire::{Body, Frame, GENERATION, Hello, TreeKill};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::sockets::Sockets;

    /// A guest that greets at its socket, and then does what the test says.
    struct Fake {
        _dir: tempfile::TempDir,
        sockets: Sockets,
        listener: UnixListener,
        made: u64,
    }

    impl Fake {
        fn new() -> Fake {
            let dir = tempfile::tempdir().unwrap();
            let sockets = Sockets::open(dir.path()).unwrap();
            let listener = StdListener::from(sockets.of("s").listen().unwrap());
            listener.set_nonblocking(true).unwrap();
            let listener = UnixListener::from_std(listener).unwrap();
            Fake { _dir: dir, sockets, listener, made: 0 }
        }

        fn way(&self) -> impl Fn() -> Way + Send + use<> {
            let socket = self.sockets.of("s");
            move || Way::Socket(socket.clone())
        }

        /// Lets the next one in.
        async fn greet(&mut self, generation: u32) -> UnixStream {
            let mut stream = self.listener.accept().await.unwrap().0;
            let hello = Hello {
                generation,
                shell: None,
                tree_kill: TreeKill::Cgroup,
                is_init: true,
                earlier_connections: self.made,
                last_error: None,
            };
            self.made += 1;
            say(&mut stream, 0, Body::Hello(hello)).await;
            stream
        }

        /// The first connection, and the guest's end of it.
        async fn line(&mut self) -> (Arc<Line>, UnixStream) {
            let socket = self.sockets.of("s");
            let (guest, stream) = tokio::join!(greet(&socket), self.greet(GENERATION));
            (Arc::new(Line::new(guest.unwrap())), stream)
        }
    }

    async fn say(stream: &mut UnixStream, channel: u32, body: Body) {
        let mut bytes = Vec::new();
        Frame { channel, body }.encode(&mut bytes).unwrap();
        stream.write_all(&bytes).await.unwrap();
    }

    /// What makes the host give the connection up, and waits until it has.
    async fn breach(stream: &mut UnixStream) {
        say(stream, 0, Body::Data(b"nobody asked".to_vec())).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }

    fn kept(line: &Arc<Line>, way: impl Fn() -> Way + Send + Sync + 'static) -> JoinHandle<Option<String>> {
        let line = line.clone();
        tokio::spawn(async move { line.keep(way).await })
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_made_again_and_calls_wait_for_it() {
        let mut fake = Fake::new();
        let (line, mut first) = fake.line().await;
        let keeper = kept(&line, fake.way());
        let old = line.guest();
        breach(&mut first).await;
        let call = old.kill("x").await;
        assert!(matches!(call, Err(guest::Error::Gone)), "{call:?}");
        let (reached, _second) = tokio::join!(line.reached(), fake.greet(GENERATION));
        assert_eq!(reached.info().earlier_connections, 1);
        assert_eq!(line.guest().info().earlier_connections, 1);
        assert!(!reached.is_closed() && old.is_closed());
        keeper.abort();
    }

    #[tokio::test]
    async fn one_that_breaks_again_and_again_is_given_up() {
        let mut fake = Fake::new();
        let (line, mut stream) = fake.line().await;
        let keeper = kept(&line, fake.way());
        for _ in 0..MOST_BREAKS {
            breach(&mut stream).await;
            stream = fake.greet(GENERATION).await;
        }
        breach(&mut stream).await;
        let why = keeper.await.unwrap().unwrap();
        assert_eq!(why, "the connection to its guest broke 6 times within 60 s");
        assert_eq!(fake.made, 6, "nobody came once more");
    }

    #[tokio::test(start_paused = true)]
    async fn breaks_of_long_ago_do_not_count() {
        let mut breaks = Breaks::default();
        for _ in 0..MOST_BREAKS * 3 {
            assert!(breaks.add(Instant::now()));
            tokio::time::advance(WHILE / MOST_BREAKS as u32).await;
        }
        let at_once = (0..MOST_BREAKS).filter(|_| breaks.add(Instant::now())).count();
        assert!(at_once < MOST_BREAKS, "{at_once}");
    }

    #[tokio::test]
    async fn a_guest_that_speaks_otherwise_or_lets_nobody_in_is_given_up() {
        let mut fake = Fake::new();
        let (line, mut stream) = fake.line().await;
        let keeper = kept(&line, fake.way());
        breach(&mut stream).await;
        fake.greet(GENERATION + 1).await;
        let why = keeper.await.unwrap().unwrap();
        assert!(why.contains("could not be made again: ") && why.contains("generation"), "{why}");

        let mut fake = Fake::new();
        let (line, mut stream) = fake.line().await;
        let way = fake.way();
        drop(fake);
        let _ = stream.shutdown().await;
        drop(stream);
        tokio::time::pause();
        let began = Instant::now();
        let why = line.keep(way).await.unwrap();
        assert!(why.contains("cannot connect to the running sandbox's guest"), "{why}");
        assert!(began.elapsed() <= LIMIT);
        // Who asks meanwhile gets an answer too.
        assert!(line.reached().await.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_ends_with_its_connection_has_a_while_for_that() {
        let mut fake = Fake::new();
        let (line, stream) = fake.line().await;
        drop(stream);
        let why = line.keep(|| Way::Nowhere).await.unwrap();
        assert!(why.contains("could not be made again"), "{why}");
    }

    #[tokio::test]
    async fn what_was_left_to_another_daemon_is_left_alone() {
        let mut fake = Fake::new();
        let (line, stream) = fake.line().await;
        let left = Arc::new(AtomicBool::new(false));
        let (is_left, way) = (left.clone(), fake.way());
        let keeper = kept(&line, move || if is_left.load(Ordering::SeqCst) { Way::Left } else { way() });
        left.store(true, Ordering::SeqCst);
        drop(stream);
        assert_eq!(keeper.await.unwrap(), None);
        assert_eq!(fake.made, 1);
    }
}
