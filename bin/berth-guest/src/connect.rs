//! Sockets of the sandbox that the host is connected to: forwarded ports, proxies, SSH's tunnels.
//!
//! ```text
//!  host ── Data, End ──► Socket: outgoing ──► send, shutdown ──► somebody's server
//!       ◄── Data, End ── window, room of the link ◄── recv ────
//!       ◄── Done(Disconnected) once both halves are closed
//! ```
//!
//! No threads: [`Sockets`] has an epoll of its own, whose descriptor the loop watches as one of its own, and does
//! whatever has become possible in [`Sockets::settle`]. Neither side can make the guest hold more than a window of
//! bytes of each socket: what the peer does not take is not credited, and what the host has not credited is not read.
//!
//! The guest is what connects, so the peer sees root of the sandbox, and PID 1, at the other end of a unix socket. The
//! network is the sandbox's own, with the sandbox's own rules; names are looked up in its `/etc/hosts` and nowhere
//! else. Bytes that the peer did not take are never passed over: the channel ends with a failure then.

mod socket;
mod target;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use berth_wire::{Body, Connect, Failure, FailureCode, MAX_DATA, Reply, WindowError};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags};
use rustix::io::Errno;

use crate::failure;
use crate::link::Link;
use socket::{Socket, Step};

/// Most sockets at once. Each may hold a window of bytes, in the sandbox's memory.
const MAX_SOCKETS: usize = 1024;
/// Times that data is passed on before others have their turn at the link.
const BUDGET: usize = 4;
/// Events that are taken at once.
const EVENTS: usize = 64;

/// Where news of sockets go.
pub(crate) trait Sink {
    /// Whether data may be added.
    fn has_room(&self) -> bool;
    fn data(&mut self, channel: u32, bytes: &[u8]);
    fn send(&mut self, channel: u32, body: Body);
}

impl Sink for Link {
    fn has_room(&self) -> bool {
        Self::has_room(self)
    }

    fn data(&mut self, channel: u32, bytes: &[u8]) {
        Self::data(self, channel, bytes);
    }

    fn send(&mut self, channel: u32, body: Body) {
        Self::send(self, channel, body);
    }
}

/// All sockets, by the channels that they belong to.
pub(crate) struct Sockets {
    epoll: OwnedFd,
    open: HashMap<u32, Socket>,
    /// Those that are to be looked at, each once, in turn: none keeps the link for itself.
    queue: VecDeque<u32>,
    /// Those that are not connected yet, which alone have timers.
    connecting: HashSet<u32>,
    /// Last words of channels that are over.
    replies: Vec<(u32, Reply)>,
    /// When the last turn ended, if there was more to pass on.
    again: Option<Instant>,
    /// There from the first socket on.
    scratch: Box<[u8]>,
}

impl Sockets {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            open: HashMap::new(),
            queue: VecDeque::new(),
            connecting: HashSet::new(),
            replies: Vec::new(),
            again: None,
            scratch: Box::default(),
        })
    }

    /// Readable when something has happened for [`Sockets::settle`].
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether `channel` is that of a socket.
    pub(crate) fn has(&self, channel: u32) -> bool {
        self.open.contains_key(&channel)
    }

    /// Begins to connect; how that went is told by [`Sockets::settle`].
    pub(crate) fn open(&mut self, channel: u32, request: &Connect, now: Instant) {
        if self.open.len() >= MAX_SOCKETS {
            let message = format!("{MAX_SOCKETS} sockets are connected already");
            let failure = failure::because(FailureCode::Limit, message, None);
            self.replies.push((channel, Reply::Failed(failure)));
            return;
        }
        match target::find(request) {
            Ok(targets) => {
                if self.scratch.is_empty() {
                    self.scratch = vec![0; MAX_DATA].into_boxed_slice();
                }
                self.open.insert(channel, Socket::new(targets, now));
                self.connecting.insert(channel);
                self.look_at(channel);
            }
            Err(failure) => self.replies.push((channel, Reply::Failed(failure))),
        }
    }

    /// Takes data for the peer.
    pub(crate) fn data(&mut self, channel: u32, data: Vec<u8>) -> Result<(), WindowError> {
        if let Some(socket) = self.open.get_mut(&channel) {
            socket.data(data)?;
            self.look_at(channel);
        }
        Ok(())
    }

    /// The host's data is complete.
    pub(crate) fn end(&mut self, channel: u32) {
        if let Some(socket) = self.open.get_mut(&channel) {
            socket.end();
            self.look_at(channel);
        }
    }

    /// The host has used up what it was sent.
    pub(crate) fn credit(&mut self, channel: u32, bytes: u32) -> Result<(), WindowError> {
        if let Some(socket) = self.open.get_mut(&channel) {
            socket.credit(bytes)?;
            self.look_at(channel);
        }
        Ok(())
    }

    /// Closes the socket, whatever is under way.
    pub(crate) fn cancel(&mut self, channel: u32) {
        if self.forget(channel) {
            let failure = Failure { code: FailureCode::Cancelled, message: "cancelled".into(), path: None };
            self.replies.push((channel, Reply::Failed(failure)));
        }
    }

    /// Closes all of them without a word: the host that they belonged to is gone.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.queue.clear();
        self.connecting.clear();
        self.replies.clear();
    }

    fn forget(&mut self, channel: u32) -> bool {
        self.connecting.remove(&channel);
        self.open.remove(&channel).is_some()
    }

    fn look_at(&mut self, channel: u32) {
        if let Some(socket) = self.open.get_mut(&channel)
            && !std::mem::replace(&mut socket.queued, true)
        {
            self.queue.push_back(channel);
        }
    }

    /// When [`Sockets::settle`] has something to do without anything else happening.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        let timers = self.connecting.iter().filter_map(|channel| self.open.get(channel)?.next_timer());
        timers.chain(self.again).min()
    }

    /// Does what has become possible, as long as `sink` has room for it and others have waited long enough.
    pub(crate) fn settle(&mut self, now: Instant, sink: &mut impl Sink) {
        self.take_events();
        let due =
            |channel: &u32| self.open.get(channel)?.next_timer().filter(|at| *at <= now).map(|_| *channel);
        for channel in self.connecting.iter().filter_map(due).collect::<Vec<_>>() {
            self.look_at(channel);
        }
        let mut budget = BUDGET;
        loop {
            let mut held = VecDeque::new();
            for _ in 0..self.queue.len() {
                held.extend(self.step(now, sink, &mut budget));
            }
            // Those that found no room are the first to get some.
            held.append(&mut self.queue);
            self.queue = held;
            if self.queue.is_empty() || budget == 0 || !sink.has_room() {
                break;
            }
        }
        self.again = (budget == 0 && !self.queue.is_empty()).then_some(now);
        for (channel, reply) in self.replies.drain(..) {
            sink.send(channel, Body::Event(reply));
        }
    }

    /// Looks at the first in the queue; gives its channel if there is no room for it.
    fn step(&mut self, now: Instant, sink: &mut impl Sink, budget: &mut usize) -> Option<u32> {
        let channel = self.queue.pop_front()?;
        // Absent if it was cancelled meanwhile.
        let socket = self.open.get_mut(&channel)?;
        socket.queued = false;
        let step = socket.step(channel, now, &self.epoll, sink, &mut self.scratch, *budget > 0);
        if socket.is_connected() {
            self.connecting.remove(&channel);
        }
        match step {
            Step::Idle => {}
            Step::More => {
                *budget = budget.saturating_sub(1);
                self.look_at(channel);
            }
            Step::Held => {
                socket.queued = true;
                return Some(channel);
            }
            Step::Over(reply) => {
                self.forget(channel);
                self.replies.push((channel, reply));
            }
        }
        None
    }

    /// Edge-triggered: each is told once and remembered by its socket.
    fn take_events(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            events.clear();
            let buffer = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, buffer, Some(&at_once)) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            for event in &events {
                // The fields are packed.
                let (data, flags) = (event.data, event.flags);
                // Channels are what it was given.
                let channel = data.u64() as u32;
                if let Some(socket) = self.open.get_mut(&channel) {
                    socket.note(flags);
                    self.look_at(channel);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
