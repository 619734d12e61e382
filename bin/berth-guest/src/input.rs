//! Standard input of an exec that is given as it runs.
//!
//! It belongs to one channel at a time. Bytes that the command does not want (it has closed its input, or is over) are
//! used up all the same: whoever sends must not wait for a reader that never comes.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::tty;

/// See the module.
#[derive(Default)]
pub(crate) struct Input {
    fd: Option<OwnedFd>,
    kind: Kind,
    pending: VecDeque<u8>,
    /// How much of `pending` came from channels that no longer have the input.
    foreign: usize,
    /// Bytes that it was given.
    offset: u64,
    owner: Option<u32>,
    ended: bool,
    /// Whether the loop is told when more can be written.
    pub(crate) armed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    /// There is none to be given.
    #[default]
    Null,
    Pipe,
    Terminal,
}

impl Input {
    /// The writing end of a pipe, not blocking.
    pub(crate) fn pipe(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), kind: Kind::Pipe, ..Self::default() }
    }

    /// The guest's end of a terminal, not blocking.
    pub(crate) fn terminal(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), kind: Kind::Terminal, ..Self::default() }
    }

    /// Of an exec that is over.
    pub(crate) fn over(streams: bool, offset: u64) -> Self {
        Self { kind: if streams { Kind::Pipe } else { Kind::Null }, offset, ended: true, ..Self::default() }
    }

    pub(crate) fn can_be_given(&self) -> bool {
        self.kind != Kind::Null
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Gives the input to `channel`; whatever others still send is not taken.
    pub(crate) fn belong_to(&mut self, channel: u32) {
        self.owner = Some(channel);
        self.foreign = self.pending.len();
    }

    pub(crate) fn belongs_to(&self, channel: u32) -> bool {
        self.owner == Some(channel)
    }

    pub(crate) fn owner(&self) -> Option<u32> {
        self.owner
    }

    /// Nobody has it any more; it stays open.
    pub(crate) fn left_by(&mut self, channel: u32) {
        if self.belongs_to(channel) {
            self.owner = None;
        }
    }

    /// Takes bytes of its owner; gives how many are used up.
    pub(crate) fn give(&mut self, bytes: &[u8]) -> usize {
        self.offset += bytes.len() as u64;
        if self.fd.is_none() || self.ended {
            return bytes.len();
        }
        self.pending.extend(bytes);
        self.write()
    }

    /// No more will come. A terminal is told by its own character for that, and can be given more later.
    pub(crate) fn end(&mut self) {
        match self.kind {
            Kind::Null => {}
            Kind::Pipe => self.ended = true,
            Kind::Terminal => self.pending.extend(self.fd.as_ref().and_then(tty::end_of_input)),
        }
        self.write();
    }

    /// Writes what can be written now; gives how many bytes of the owner are used up.
    pub(crate) fn write(&mut self) -> usize {
        let mut used = 0;
        while let Some(fd) = &self.fd {
            let (bytes, _) = self.pending.as_slices();
            if bytes.is_empty() {
                if self.ended {
                    self.fd = None;
                }
                break;
            }
            match rustix::io::write(fd, bytes) {
                Ok(len) => used += self.take(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Nobody reads it any more.
                Err(_) => used += self.close(),
            }
        }
        used
    }

    fn take(&mut self, len: usize) -> usize {
        self.pending.drain(..len);
        let foreign = self.foreign.min(len);
        self.foreign -= foreign;
        len - foreign
    }

    /// Lets go of it; gives how many bytes of the owner are used up so.
    pub(crate) fn close(&mut self) -> usize {
        self.fd = None;
        self.armed = false;
        let used = self.take(self.pending.len());
        self.pending = VecDeque::new();
        used
    }

    /// Whether there is something that cannot be written yet.
    pub(crate) fn waits(&self) -> bool {
        self.fd.is_some() && !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn input() -> (OwnedFd, Input) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (read, Input::pipe(write))
    }

    #[test]
    fn what_does_not_fit_waits_and_is_used_up_later() {
        let (read, mut input) = input();
        input.belong_to(1);
        let used = input.give(&[7; 100_000]);
        assert!(used > 0 && used < 100_000 && input.waits());
        input.end();
        let mut got = 0;
        let mut total = used;
        let mut buffer = [0; 10_000];
        while let Ok(len) = rustix::io::read(&read, &mut buffer) {
            if len == 0 {
                break;
            }
            got += len;
            total += input.write();
        }
        assert_eq!((got, total, input.offset()), (100_000, 100_000, 100_000));
    }

    #[test]
    fn without_a_reader_everything_is_used_up() {
        let (read, mut input) = input();
        input.belong_to(1);
        input.give(&[7; 100_000]);
        drop(read);
        assert!(input.give(&[7; 10]) > 10);
        assert!(!input.waits());
        assert_eq!(input.give(&[7; 10]), 10);
    }

    #[test]
    fn bytes_of_an_earlier_owner_are_none_of_the_next() {
        let (read, mut input) = input();
        input.belong_to(1);
        let used = input.give(&[7; 100_000]);
        input.belong_to(2);
        drop(read);
        assert_eq!(input.give(&[8; 10]), 10);
        assert!(used < 100_000);
    }
}
