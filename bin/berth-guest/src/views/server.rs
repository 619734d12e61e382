//! One file that is made when it is read.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::fuse::{EACCES, Operation, REQUEST_MAX, Reply, Request};

/// Texts that are kept for readers who take them in parts. Whoever opens a file a million times gets a text made anew
/// for every part, in place of the guest's memory.
const TEXTS_KEPT: usize = 16;

/// Blanks that a text is given at least when its size is settled, so that its numbers may grow.
const ROOM: usize = 64;

/// A connection, and what was read through it.
pub(crate) struct Server {
    connection: OwnedFd,
    owner: (u32, u32),
    next_handle: u64,
    /// What the kernel was told that the file has, once it asked: every text is made as long.
    size: usize,
    texts: VecDeque<(u64, Vec<u8>)>,
    request: Box<[u8]>,
}

/// Whether the connection is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    Open,
    Over,
}

impl Server {
    /// `owner` is who the file belongs to, as the mount's own user namespace numbers it.
    pub(crate) fn new(connection: OwnedFd, owner: (u32, u32)) -> Self {
        let request = vec![0; REQUEST_MAX].into_boxed_slice();
        Self { connection, owner, next_handle: 0, size: 0, texts: VecDeque::new(), request }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Takes one request and replies. `make` makes the text.
    pub(crate) fn serve(&mut self, make: impl Fn() -> Result<Vec<u8>, Errno>) -> Connection {
        let len = match rustix::io::read(&self.connection, &mut self.request[..]) {
            // ENOENT: whoever asked has been killed.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => return Connection::Open,
            Ok(len) if len > 0 => len,
            // ENODEV when it has been unmounted; nothing else is known to happen.
            Ok(_) | Err(_) => return Connection::Over,
        };
        let Some(request) = Request::parse(&self.request[..len]) else { return Connection::Open };
        if let Some(reply) = self.reply(request.operation, make) {
            // ENOENT when whoever asked has been killed; there is nobody to tell of anything else either.
            let _ = rustix::io::write(&self.connection, &reply.encode(request.unique));
        }
        Connection::Open
    }

    fn reply(&mut self, operation: Operation, make: impl Fn() -> Result<Vec<u8>, Errno>) -> Option<Reply> {
        Some(match operation {
            Operation::Init { minor, .. } => Reply::init(minor),
            Operation::GetAttributes => match self.settle_size(make) {
                Ok(size) => Reply::attributes(self.owner.0, self.owner.1, size),
                Err(errno) => Reply::Error(errno.raw_os_error()),
            },
            Operation::Open { write: true } => Reply::Error(EACCES),
            Operation::Open { write: false } => {
                self.next_handle += 1;
                Reply::opened(self.next_handle)
            }
            Operation::Read { handle, offset, len } => match self.text(handle, offset, make) {
                Ok(text) => Reply::part(text, offset, len),
                Err(errno) => Reply::Error(errno.raw_os_error()),
            },
            Operation::Release { handle } => {
                self.texts.retain(|(of, _)| *of != handle);
                Reply::done()
            }
            Operation::FileSystem => Reply::file_system(),
            Operation::Note => return None,
            Operation::Other | Operation::Malformed => Reply::refused(operation),
        })
    }

    /// The kernel keeps the size for ever, and shortens it itself when it meets a shorter text.
    fn settle_size(&mut self, make: impl Fn() -> Result<Vec<u8>, Errno>) -> Result<usize, Errno> {
        if self.size == 0 {
            self.size = (make()?.len() + ROOM).next_multiple_of(ROOM);
        }
        Ok(self.size)
    }

    /// The text made when this handle was last read from the beginning, as files in /proc have it.
    fn text(
        &mut self,
        handle: u64,
        offset: u64,
        make: impl Fn() -> Result<Vec<u8>, Errno>,
    ) -> Result<&[u8], Errno> {
        let kept = self.texts.iter().position(|(of, _)| *of == handle);
        let index = match kept {
            Some(index) if offset > 0 => index,
            found => {
                if let Some(stale) = found {
                    self.texts.remove(stale);
                }
                if self.texts.len() >= TEXTS_KEPT {
                    self.texts.pop_front();
                }
                self.texts.push_back((handle, filled(make()?, self.size)));
                self.texts.len() - 1
            }
        };
        Ok(&self.texts[index].1)
    }
}

/// Blanks before the last line's end: programs split lines at them. A text that has outgrown the size is cut for
/// sendfile(2) alone.
fn filled(mut text: Vec<u8>, size: usize) -> Vec<u8> {
    if text.len() < size && text.pop_if(|last| *last == b'\n').is_some() {
        text.resize(size - 1, b' ');
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn server() -> Server {
        let (connection, _) = rustix::pipe::pipe().unwrap();
        Server::new(connection, (5, 6))
    }

    fn read(server: &mut Server, handle: u64, offset: u64, texts: &Cell<u8>) -> Vec<u8> {
        let make = || {
            texts.set(texts.get() + 1);
            Ok(vec![b'0' + texts.get(); 10])
        };
        match server.reply(Operation::Read { handle, offset, len: 4 }, make) {
            Some(Reply::Body(body)) => body,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn texts_are_as_long_as_the_kernel_was_told() {
        assert_eq!(filled(b"a 1\nb 2\n".to_vec(), 12), b"a 1\nb 2    \n");
        assert_eq!(filled(b"a 1\n".to_vec(), 2), b"a 1\n");
        let mut server = server();
        assert_eq!(server.settle_size(|| Ok(vec![b'\n'; 10])), Ok(128));
        assert_eq!(server.settle_size(|| Ok(vec![b'\n'; 1000])), Ok(128));
        assert_eq!(server.text(1, 0, || Ok(b"a 1\n".to_vec())).unwrap().len(), 128);
    }

    #[test]
    fn parts_are_of_one_text_and_the_beginning_of_a_new_one() {
        let (mut server, texts) = (server(), Cell::new(0));
        assert_eq!(read(&mut server, 1, 0, &texts), b"1111");
        assert_eq!(read(&mut server, 2, 0, &texts), b"2222");
        assert_eq!(read(&mut server, 1, 8, &texts), b"11");
        assert_eq!(read(&mut server, 1, 10, &texts), b"");
        assert_eq!(read(&mut server, 1, 0, &texts), b"3333");
        assert_eq!(server.texts.len(), 2);
        server.reply(Operation::Release { handle: 1 }, || Err(Errno::IO));
        assert_eq!(server.texts.len(), 1);
    }

    #[test]
    fn a_million_readers_take_no_more_room_than_a_few() {
        let (mut server, texts) = (server(), Cell::new(0));
        for handle in 0..40 {
            read(&mut server, handle, 0, &texts);
        }
        assert_eq!(server.texts.len(), TEXTS_KEPT);
        // Its text is gone: made anew.
        assert_eq!(read(&mut server, 3, 4, &texts), vec![b'0' + 41; 4]);
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        let reply = server().reply(Operation::Read { handle: 1, offset: 0, len: 9 }, || Err(Errno::IO));
        assert_eq!(reply, Some(Reply::Error(Errno::IO.raw_os_error())));
    }
}
