//! File work, each request in a thread of its own, so that the loop never waits for a disk.
//!
//! The thread and the loop share three things: a queue of received data, whose length the window bounds; a short queue
//! of data to send, at which the thread waits; and notes to the loop, for which a shared eventfd wakes it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};

use berth_wire::{FailureCode, MAX_DATA, ReceiveWindow, Reply, Request, SendWindow};

use rustix::event::{EventfdFlags, eventfd};

use crate::failure;
use crate::link::Link;
use crate::{fsops, glob, pack, readfile, unpack, watch, writefile};

/// Chunks that may wait to be sent, so that the disk is read while the stream is written.
const OUTGOING: usize = 4;
/// Answers up to here are not given room for a whole chunk.
const SMALL: usize = 16 * 1024;
/// Deep recursion is nowhere; the rest is buffers on the heap.
const STACK: usize = 256 * 1024;

/// What a thread tells the loop.
pub(crate) enum Note {
    /// It has used up received data.
    Consumed { channel: u32, bytes: usize },
    /// It is done; all of its data is in its queue.
    Finished { channel: u32, reply: Reply },
}

/// The thread's way to the loop.
#[derive(Clone)]
pub(crate) struct Doorbell {
    pub(crate) notes: Sender<Note>,
    pub(crate) wake: Arc<OwnedFd>,
}

impl Doorbell {
    fn ring(&self) {
        // It can only fail when the counter is full, and then the loop is awake.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }

    fn tell(&self, note: Note) {
        // Without a loop there is no guest.
        let _ = self.notes.send(note);
        self.ring();
    }
}

enum Incoming {
    Data(Vec<u8>),
    End,
}

/// The loop's side of a request.
pub(crate) struct Work {
    incoming: Option<Sender<Incoming>>,
    pub(crate) receive: ReceiveWindow,
    outgoing: Option<Receiver<Vec<u8>>>,
    pub(crate) send: SendWindow,
    /// Taken from the queue, and how much of it is sent.
    pending: Vec<u8>,
    sent: usize,
    /// Chunks that are sent go back: memory that is used again costs no page faults.
    spare: Sender<Vec<u8>>,
    reply: Option<Box<Reply>>,
    /// Readable once nobody waits for the thread any more, for one that waits for what neither queue tells.
    stop: Option<Arc<OwnedFd>>,
}

/// Starts `request` in a thread.
pub(crate) fn start(channel_number: u32, request: Request, bell: Doorbell) -> failure::Result<Work> {
    let (incoming, received) = channel();
    let (output, outgoing) = sync_channel(OUTGOING);
    let (spare, spares) = channel();
    let window = request.window();
    let input = Input {
        channel: channel_number,
        received,
        chunk: Vec::new(),
        at: 0,
        ended: false,
        bell: bell.clone(),
    };
    let output = Output { queue: output, spares, buffer: Vec::new(), bell: bell.clone() };
    let stop = match &request {
        Request::Watch(_) => {
            let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
            Some(Arc::new(stop.map_err(|errno| failure::at("make an eventfd for", b"", errno))?))
        }
        _ => None,
    };
    let stopped = stop.clone();
    let run = move || {
        let reply = carry_out(request, input, output, stopped.as_deref());
        bell.tell(Note::Finished { channel: channel_number, reply });
    };
    std::thread::Builder::new().stack_size(STACK).spawn(run).map_err(|error| {
        failure::because(FailureCode::Limit, format!("start a thread for file work: {error}"), None)
    })?;
    Ok(Work {
        incoming: Some(incoming),
        receive: ReceiveWindow::new(window),
        outgoing: Some(outgoing),
        send: SendWindow::new(window),
        pending: Vec::new(),
        sent: 0,
        spare,
        reply: None,
        stop,
    })
}

fn carry_out(request: Request, mut input: Input, mut output: Output, stop: Option<&OwnedFd>) -> Reply {
    let outcome = match (request, stop) {
        (Request::Unpack(request), _) => unpack::unpack(&request, &mut input),
        (Request::Pack(request), _) => pack::pack(&request, &mut output),
        (Request::Fs(request), _) => fsops::perform(&request),
        (Request::Glob(request), _) => glob::find(&request, &mut output),
        (Request::ReadFile(request), _) => readfile::read(&request, &mut output),
        (Request::WriteFile(request), _) => writefile::write(&request, &mut input),
        (Request::Watch(request), Some(stop)) => watch::watch(&request, &mut output, stop),
        _ => Err(failure::because(FailureCode::Refused, "not file work", None)),
    };
    outcome.map_or_else(Reply::Failed, Reply::Done)
}

impl Work {
    /// Hands received data to the thread; one that is done already does not want it.
    pub(crate) fn feed(&self, data: Vec<u8>) {
        if let Some(incoming) = &self.incoming {
            let _ = incoming.send(Incoming::Data(data));
        }
    }

    /// Tells the thread that the data is complete.
    pub(crate) fn end(&self) {
        if let Some(incoming) = &self.incoming {
            let _ = incoming.send(Incoming::End);
        }
    }

    /// Lets go of both queues; the thread fails at its next touch of either.
    pub(crate) fn cancel(&mut self) {
        self.incoming = None;
        self.outgoing = None;
        self.pending = Vec::new();
        self.sent = 0;
        if let Some(stop) = &self.stop {
            // It can only fail when it is readable already.
            let _ = rustix::io::write(&**stop, &1_u64.to_ne_bytes());
        }
    }

    /// Keeps the thread's last word until its data is sent.
    pub(crate) fn finished(&mut self, reply: Reply) {
        self.reply = Some(Box::new(reply));
    }

    /// Sends what window and link allow; gives the reply once everything before it is sent.
    pub(crate) fn pump(&mut self, channel: u32, link: &mut Link) -> Option<Reply> {
        while link.has_room() {
            if self.sent == self.pending.len() && !self.refill() {
                return self.reply.take().map(|reply| *reply);
            }
            let chunk = &self.pending[self.sent..];
            let len = self.send.take(chunk.len().min(MAX_DATA));
            if len == 0 {
                return None;
            }
            link.data(channel, &chunk[..len]);
            self.sent += len;
        }
        None
    }

    fn refill(&mut self) -> bool {
        match self.outgoing.as_ref().map(Receiver::try_recv) {
            Some(Ok(chunk)) => {
                let mut used = std::mem::replace(&mut self.pending, chunk);
                self.sent = 0;
                used.clear();
                if used.capacity() > 0 {
                    // A thread that is done takes none.
                    let _ = self.spare.send(used);
                }
                true
            }
            Some(Err(TryRecvError::Empty | TryRecvError::Disconnected)) | None => false,
        }
    }
}

/// The thread's side of received data.
pub(crate) struct Input {
    channel: u32,
    received: Receiver<Incoming>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    bell: Doorbell,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() && !self.ended {
            match self.received.recv() {
                Ok(Incoming::Data(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Ok(Incoming::End) => self.ended = true,
                Err(_) => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        let len = buffer.len().min(self.chunk.len() - self.at);
        buffer[..len].copy_from_slice(&self.chunk[self.at..self.at + len]);
        self.at += len;
        if len > 0 && self.at == self.chunk.len() {
            let bytes = std::mem::take(&mut self.chunk).len();
            self.at = 0;
            self.bell.tell(Note::Consumed { channel: self.channel, bytes });
        }
        Ok(len)
    }
}

/// The thread's side of data to send.
pub(crate) struct Output {
    queue: SyncSender<Vec<u8>>,
    spares: Receiver<Vec<u8>>,
    buffer: Vec<u8>,
    bell: Doorbell,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(MAX_DATA - self.buffer.len());
        // What is small does not take room for what is large.
        if self.buffer.len() + len > SMALL {
            self.buffer.reserve_exact(MAX_DATA - self.buffer.len());
        }
        self.buffer.extend_from_slice(&bytes[..len]);
        if self.buffer.len() == MAX_DATA {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            let next = self.spares.try_recv().unwrap_or_default();
            let chunk = std::mem::replace(&mut self.buffer, next);
            self.queue.send(chunk).map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
            self.bell.ring();
        }
        Ok(())
    }
}
