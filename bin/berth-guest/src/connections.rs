//! How the host comes and goes: the first connection is inherited, later ones are made at a socket.
//!
//! One is served at a time, the newest. The end of one detaches its channels from their execs, which run on; file work
//! ends with the connection that asked for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use berth_wire::{Body, GENERATION, Hello};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::engine::{CONTROL, Channel, Engine, Served, is_init, watch};
use crate::exec::above_stdio;
use crate::link::Link;
use crate::work::Doorbell;
use crate::{Error, launch};

/// See the module.
pub(crate) struct Connections {
    listener: Option<OwnedFd>,
    /// How long to wait for the next.
    orphan: Duration,
    until: Option<Instant>,
    made: u64,
    /// Why the last one was given up, where that was not just its end.
    last_error: Option<String>,
}

impl Connections {
    pub(crate) fn new(listener: Option<OwnedFd>, orphan: Duration) -> Self {
        Self { listener, orphan, until: None, made: 0, last_error: None }
    }

    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Whether nobody has come for long enough.
    pub(crate) fn is_given_up(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.until
    }
}

impl Engine {
    /// Serves a new connection.
    pub(crate) fn connect(&mut self, stream: OwnedFd) -> Result<(), Error> {
        self.link = Link::new(stream)?;
        self.control_flags = EventFlags::IN;
        if let Some(fd) = self.link.fd() {
            watch(&self.epoll, fd, CONTROL)?;
        }
        let hello = self.hello();
        self.link.send(0, Body::Hello(hello));
        self.connections.made += 1;
        self.connections.until = None;
        Ok(())
    }

    fn hello(&mut self) -> Hello {
        Hello {
            generation: GENERATION,
            shell: launch::find_shell().map(|(path, _)| path.to_owned()),
            tree_kill: self.trees.kind(),
            is_init: is_init(),
            earlier_connections: self.connections.made,
            last_error: self.connections.last_error.take(),
        }
    }

    /// Somebody has connected: he takes the place of whoever is there. A host that was cut off may not know it yet, and
    /// its successor must not wait until it does.
    ///
    /// The socket is bound outside, where no path of the sandbox leads, and a process of the sandbox cannot get at the
    /// guest's descriptors. Should one find a way all the same, it is turned away: see [`may_connect`].
    pub(crate) fn accept(&mut self) -> Result<(), Error> {
        let Some(listener) = self.connections.listener() else { return Ok(()) };
        let accepted = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        let stream = match accepted.and_then(above_stdio) {
            Ok(stream) => stream,
            // It has gone again, or there is no room: the listener stays.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return Ok(()),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                std::thread::sleep(Duration::from_millis(1));
                return Ok(());
            }
            Err(errno) => return Err(crate::link::system("accept a connection", errno)),
        };
        if !may_connect(&stream) {
            return Ok(());
        }
        self.disconnect();
        self.connect(stream)
    }

    /// What follows from how a connection was served; false when there is nothing more to serve. A host that breaks the
    /// protocol is as one that is gone.
    pub(crate) fn goes_on(&mut self, served: Result<Served, Error>) -> Result<bool, Error> {
        match served {
            Ok(Served::On) => return Ok(true),
            Ok(Served::End) => return Ok(false),
            Err(error) if self.connections.orphan.is_zero() => return Err(error),
            Ok(Served::Disconnected) => {}
            // The next who connects is told. There is no other way: who reads standard error may be gone too.
            Err(error) => self.connections.last_error = Some(crate::with_causes(&error)),
        }
        self.disconnect();
        let orphan = self.connections.orphan;
        self.connections.until = Instant::now().checked_add(orphan);
        Ok(!orphan.is_zero())
    }

    fn disconnect(&mut self) {
        self.link = Link::none();
        // Work lets go of its queues, which ends its thread; and what that still has to say is not to be taken for news
        // of a channel of the next connection.
        for channel in self.channels.drain() {
            if let (_, Channel::Work(mut work)) = channel {
                work.cancel();
            }
        }
        self.sockets.clear();
        self.quiesces.iter_mut().for_each(|quiesce| quiesce.channel = None);
        let (sender, notes) = channel();
        self.notes = notes;
        self.bell = Doorbell { notes: sender, wake: self.bell.wake.clone() };
        for (_, entry) in self.execs.all() {
            entry.detach_all();
            if let Some(exec) = &mut entry.exec {
                exec.kill_waiters.clear();
            }
        }
    }
}

/// Whether a peer may be the host: to PID 1, who is in the sandbox has a number, and who is outside has none. (Ids would
/// not tell them apart: the host's root is, seen from the sandbox's user namespace, nobody, and any root inside is 0.)
/// Elsewhere there is nothing to tell them by.
fn may_connect(stream: &OwnedFd) -> bool {
    !is_init() || berth_sys::peer::pid(stream).is_ok_and(|pid| pid == 0)
}
