//! One socket: how it comes to be connected, and what passes through it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_wire::{
    Body, Failure, FailureCode, MAX_DATA, Outcome, ReceiveWindow, Reply, SendWindow, WindowError,
};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};

use super::Sink;
use super::target::Target;
use crate::failure;

/// How long all addresses of a request together may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a unix socket is tried whose queue is full: the kernel does not tell when it no longer is.
const RETRY: Duration = Duration::from_millis(20);

/// What has come of looking at a socket.
pub(super) enum Step {
    /// Nothing more can be done until something happens.
    Idle,
    /// There is more to read.
    More,
    /// There is something to read, and no room for it.
    Held,
    /// The channel is over.
    Over(Reply),
}

pub(super) struct Socket {
    /// Whether it is to be looked at already.
    pub(super) queued: bool,
    /// Absent between two attempts.
    fd: Option<OwnedFd>,
    /// Absent once connected.
    attempt: Option<Attempt>,
    /// What epoll has told and no call has found otherwise since.
    readable: bool,
    writable: bool,
    hung_up: bool,
    send: SendWindow,
    receive: ReceiveWindow,
    /// Data of the host that the peer has not taken yet; of the first, what is before `at` is taken.
    outgoing: VecDeque<Vec<u8>>,
    at: usize,
    /// The host's data is complete; and the peer knows.
    host_ended: bool,
    shut: bool,
    /// The peer's data is complete, and the host knows.
    peer_ended: bool,
    /// Why the peer takes no data any more, when some was left.
    refused: Option<Errno>,
}

struct Attempt {
    /// Those still to be tried, the one under way first.
    targets: VecDeque<Target>,
    until: Instant,
    /// When to try the same again.
    retry_at: Option<Instant>,
    /// What came of the others.
    failed: Vec<String>,
    code: FailureCode,
}

impl Socket {
    pub(super) fn new(targets: Vec<Target>, now: Instant) -> Self {
        let attempt = Attempt {
            targets: targets.into(),
            until: now + TIMEOUT,
            retry_at: None,
            failed: Vec::new(),
            code: FailureCode::NotConnected,
        };
        Self {
            queued: false,
            fd: None,
            attempt: Some(attempt),
            readable: false,
            writable: false,
            hung_up: false,
            send: SendWindow::default(),
            receive: ReceiveWindow::default(),
            outgoing: VecDeque::new(),
            at: 0,
            host_ended: false,
            shut: false,
            peer_ended: false,
            refused: None,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.attempt.is_none()
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        let attempt = self.attempt.as_ref()?;
        Some(attempt.retry_at.map_or(attempt.until, |at| at.min(attempt.until)))
    }

    /// Remembers what epoll tells.
    pub(super) fn note(&mut self, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        self.readable |= broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        self.writable |= broken || flags.contains(EventFlags::OUT);
        self.hung_up |= flags.contains(EventFlags::HUP);
    }

    pub(super) fn data(&mut self, data: Vec<u8>) -> Result<(), WindowError> {
        self.receive.received(data.len())?;
        if !data.is_empty() && !self.host_ended {
            self.outgoing.push_back(data);
        }
        Ok(())
    }

    pub(super) fn end(&mut self) {
        self.host_ended = true;
    }

    pub(super) fn credit(&mut self, bytes: u32) -> Result<(), WindowError> {
        self.send.grant(bytes)
    }

    /// Does what can be done; reads at most once, so that others have their turn.
    pub(super) fn step(
        &mut self,
        channel: u32,
        now: Instant,
        epoll: &OwnedFd,
        sink: &mut impl Sink,
        scratch: &mut [u8],
        may_read: bool,
    ) -> Step {
        if self.attempt.is_some() {
            match self.connect(channel, now, epoll) {
                Ok(true) => sink.send(channel, Body::Event(Reply::Connected)),
                Ok(false) => return Step::Idle,
                Err(failure) => return Step::Over(Reply::Failed(failure)),
            }
        }
        self.write(channel, sink);
        match self.read(channel, sink, scratch, may_read) {
            Step::Idle if self.is_over() => Step::Over(self.last_word()),
            step => step,
        }
    }

    // ---- becoming connected ----

    /// Whether it is connected now.
    fn connect(&mut self, channel: u32, now: Instant, epoll: &OwnedFd) -> failure::Result<bool> {
        let Some(attempt) = &mut self.attempt else { return Ok(true) };
        if self.fd.is_none() && attempt.retry_at.is_some_and(|at| at > now) && now < attempt.until {
            return Ok(false);
        }
        loop {
            let Some(target) = attempt.targets.front() else { return Err(attempt.failure()) };
            if now >= attempt.until {
                attempt.failed.push(format!("{target}: no answer in {} s", TIMEOUT.as_secs()));
                return Err(attempt.failure());
            }
            let progress = match &self.fd {
                Some(fd) => progress(fd),
                None => {
                    (self.readable, self.writable, self.hung_up) = (false, false, false);
                    begin(target, channel, epoll, &mut self.fd)
                }
            };
            match progress {
                Ok(true) => {
                    self.attempt = None;
                    return Ok(true);
                }
                Ok(false) => return Ok(false),
                Err(Errno::AGAIN) => {
                    self.fd = None;
                    attempt.retry_at = Some(now + RETRY);
                    return Ok(false);
                }
                Err(errno) => {
                    self.fd = None;
                    attempt.next(errno);
                }
            }
        }
    }

    // ---- from the host to the peer ----

    fn write(&mut self, channel: u32, sink: &mut impl Sink) {
        let taken = self.write_some();
        if let Some(credit) = self.receive.consumed(taken) {
            sink.send(channel, Body::Credit(credit));
        }
        if self.host_ended && self.outgoing.is_empty() && !self.shut {
            self.shut = true;
            // It fails only where the peer is gone, which reading tells.
            let _ = self.fd.as_ref().map(|fd| rustix::net::shutdown(fd, Shutdown::Write));
        }
    }

    /// Gives the number of bytes that are no longer held.
    fn write_some(&mut self) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        let mut taken = 0;
        while self.refused.is_none() && self.writable {
            let Some(chunk) = self.outgoing.front() else { return taken };
            match rustix::net::send(fd, &chunk[self.at..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(len) => {
                    taken += len;
                    self.at += len;
                    if self.at == chunk.len() {
                        self.outgoing.pop_front();
                        self.at = 0;
                    }
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(errno) => self.refused = Some(errno),
            }
        }
        if self.refused.is_some() {
            // Of no use to anybody; the last word tells.
            taken += self.outgoing.drain(..).map(|chunk| chunk.len()).sum::<usize>() - self.at;
            self.at = 0;
        }
        taken
    }

    // ---- from the peer to the host ----

    fn read(&mut self, channel: u32, sink: &mut impl Sink, scratch: &mut [u8], may_read: bool) -> Step {
        let Some(fd) = self.fd.as_ref().filter(|_| self.readable && !self.peer_ended) else {
            return Step::Idle;
        };
        if !may_read || !sink.has_room() {
            return Step::Held;
        }
        // The end needs no room in the window.
        let window = self.send.left();
        let (room, peek) = if window == 0 { (1, RecvFlags::PEEK) } else { (window, RecvFlags::empty()) };
        let room = room.min(MAX_DATA).min(scratch.len());
        match rustix::net::recv(fd, &mut scratch[..room], RecvFlags::DONTWAIT | peek) {
            Ok((len, _)) if len > 0 && window == 0 => Step::Idle,
            Ok((0, _)) => {
                self.peer_ended = true;
                sink.send(channel, Body::End);
                Step::Idle
            }
            Ok((len, _)) => {
                self.send.take(len);
                sink.data(channel, &scratch[..len]);
                Step::More
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Step::Idle
            }
            Err(Errno::INTR) => Step::More,
            Err(errno) => Step::Over(Reply::Failed(broken("read from", errno))),
        }
    }

    // ---- the end ----

    /// Both halves are closed: the host's also where nobody is left to take what it may still send.
    fn is_over(&self) -> bool {
        let host_is_done = self.shut || self.refused.is_some() || (self.hung_up && self.outgoing.is_empty());
        self.is_connected() && self.peer_ended && host_is_done
    }

    fn last_word(&self) -> Reply {
        match self.refused {
            Some(errno) => Reply::Failed(broken("write to", errno)),
            None => Reply::Done(Outcome::Disconnected),
        }
    }
}

impl Attempt {
    /// Goes on to the next target.
    fn next(&mut self, errno: Errno) {
        if let Some(target) = self.targets.pop_front() {
            self.failed.push(format!("{target}: {}", std::io::Error::from(errno)));
        }
        self.retry_at = None;
        self.code = match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS => FailureCode::Limit,
            Errno::ACCESS | Errno::PERM => FailureCode::Permission,
            _ => FailureCode::NotConnected,
        };
    }

    fn failure(&self) -> Failure {
        failure::because(self.code, format!("connect to {}", self.failed.join("; ")), None)
    }
}

fn broken(operation: &str, errno: Errno) -> Failure {
    let message = format!("{operation} the socket: {}", std::io::Error::from(errno));
    failure::because(FailureCode::NotConnected, message, None)
}

/// Begins to connect; whether it is at once. `EAGAIN` when the queue of a unix socket is full.
fn begin(target: &Target, channel: u32, epoll: &OwnedFd, place: &mut Option<OwnedFd>) -> Result<bool, Errno> {
    let family = match target {
        Target::Tcp(address) if address.is_ipv4() => AddressFamily::INET,
        Target::Tcp(_) => AddressFamily::INET6,
        Target::Unix(..) => AddressFamily::UNIX,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let connected = match target {
        Target::Tcp(address) => {
            // Keystrokes and small answers do not wait for more.
            let _ = sockopt::set_tcp_nodelay(&fd, true);
            rustix::net::connect(&fd, address)
        }
        Target::Unix(socket, _) => {
            // By its descriptor: its path may be too long for an address, or another socket's by now.
            let path = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
            rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)
        }
    };
    let connected = match connected {
        Ok(()) => true,
        Err(Errno::INPROGRESS) => false,
        Err(errno) => return Err(errno),
    };
    let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, &fd, EventData::new_u64(channel.into()), events)?;
    *place = Some(fd);
    Ok(connected)
}

/// Whether what was begun is done.
fn progress(fd: &OwnedFd) -> Result<bool, Errno> {
    sockopt::socket_error(fd)??;
    match rustix::net::getpeername(fd) {
        Ok(_) => Ok(true),
        Err(Errno::NOTCONN) => Ok(false),
        Err(errno) => Err(errno),
    }
}
