//! The control stream: what was received and not yet read, what is to be sent and was not yet taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_wire::{Body, Decoder, EncodeError, Failure, FailureCode, Frame, Reply};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::Error;

/// Data is produced only while less than this waits to be sent; messages are always accepted.
const HIGH_WATER: usize = 512 * 1024;
/// An output buffer larger than this is given back when it is empty.
const KEPT: usize = 128 * 1024;
/// How much is read at once while nothing large is under way.
const SMALL: usize = 64 * 1024;
/// How much is read at once: with less, a bulk transfer is many short turns.
const READ: usize = 256 * 1024;

pub(crate) struct Link {
    /// Absent while nobody is connected: what is to be sent then goes nowhere.
    stream: Option<OwnedFd>,
    out: Vec<u8>,
    sent: usize,
    decoder: Decoder,
    /// Made when it is needed: a sandbox that is only kept ready has no use for it.
    scratch: Vec<u8>,
}

impl Link {
    pub(crate) fn new(stream: OwnedFd) -> Result<Self, Error> {
        let nonblocking =
            fcntl_getfl(&stream).and_then(|flags| fcntl_setfl(&stream, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|errno| system("make the control stream non-blocking", errno))?;
        Ok(Self { stream: Some(stream), ..Self::none() })
    }

    /// The time between two connections.
    pub(crate) fn none() -> Self {
        Self { stream: None, out: Vec::new(), sent: 0, decoder: Decoder::new(), scratch: Vec::new() }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Whether data may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.stream.is_some() && self.waiting() < HIGH_WATER
    }

    /// Bytes that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.out.len() - self.sent
    }

    pub(crate) fn send(&mut self, channel: u32, body: Body) {
        if self.stream.is_none() {
            return;
        }
        let encoded = Frame { channel, body }.encode(&mut self.out);
        self.settle(channel, encoded);
    }

    pub(crate) fn reply(&mut self, channel: u32, reply: &Reply) {
        if self.stream.is_none() {
            return;
        }
        let encoded = berth_wire::encode_event(channel, reply, &mut self.out);
        self.settle(channel, encoded);
    }

    pub(crate) fn chunk(&mut self, channel: u32, stderr: bool, offset: u64, time_us: u64, bytes: &[u8]) {
        let stream = if stderr { berth_wire::Output::Stderr } else { berth_wire::Output::Stdout };
        let encoded = berth_wire::encode_chunk(channel, stream, offset, time_us, bytes, &mut self.out);
        self.settle(channel, encoded);
    }

    pub(crate) fn data(&mut self, channel: u32, bytes: &[u8]) {
        let encoded = berth_wire::encode_data(channel, bytes, &mut self.out);
        self.settle(channel, encoded);
    }

    /// Everything the guest sends is bounded well below the limits; should a message be too long all the same, the
    /// host learns that rather than nothing.
    fn settle(&mut self, channel: u32, encoded: Result<(), EncodeError>) {
        if let Err(error) = encoded {
            let failure = Failure { code: FailureCode::Io, message: error.to_string(), path: None };
            let _ = berth_wire::encode_event(channel, &Reply::Failed(failure), &mut self.out);
        }
    }

    /// Sends what the stream takes; false when there is nobody any more.
    pub(crate) fn flush(&mut self) -> Result<bool, Error> {
        let Some(stream) = &self.stream else { return Ok(true) };
        while self.sent < self.out.len() {
            match rustix::io::write(stream, &self.out[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(false),
                Err(errno) => return Err(system("write to the control stream", errno)),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            self.out.shrink_to(KEPT);
        } else if self.sent > HIGH_WATER {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(true)
    }

    /// Reads once; false at the end of the stream.
    pub(crate) fn receive(&mut self) -> Result<bool, Error> {
        let Some(stream) = &self.stream else { return Ok(true) };
        self.scratch.resize(READ, 0);
        let buffer = self.decoder.buffer();
        let wanted = berth_wire::missing(buffer).unwrap_or(0);
        buffer.reserve(if wanted > SMALL { READ } else { SMALL });
        match rustix::io::read(stream, rustix::buffer::spare_capacity(buffer)) {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(Errno::CONNRESET) => Ok(false),
            Err(errno) => Err(system("read from the control stream", errno)),
        }
    }

    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        Ok(self.decoder.next_frame()?)
    }
}

/// An error of the loop itself.
pub(crate) fn system(operation: &'static str, errno: Errno) -> Error {
    Error::System { operation, source: errno.into() }
}
