//! Decompressing and hashing on a thread of their own, while this one makes files of what comes out.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::digest::{Digest, Hasher};

/// Length of a piece that goes from thread to thread, in bytes.
const PIECE: usize = 256 * 1024;
/// Pieces on their way, and as many again that wait to be filled: the memory of one layer under way.
const DEPTH: usize = 8;

/// The bytes of a reader that is read and hashed by another thread, as far as [`DEPTH`] pieces ahead.
pub(crate) struct Ahead<'scope, R> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    piece: Vec<u8>,
    position: usize,
    ended: bool,
    thread: ScopedJoinHandle<'scope, (R, Digest)>,
}

impl<'scope, R: Read + Send + 'scope> Ahead<'scope, R> {
    pub(crate) fn spawn<'env>(scope: &'scope Scope<'scope, 'env>, reader: R) -> io::Result<Self> {
        let (send, pieces) = sync_channel(DEPTH);
        let (used, empty) = channel();
        let thread = Builder::new()
            .name("layer-decode".into())
            .spawn_scoped(scope, move || run(reader, &send, &empty))?;
        Ok(Self { pieces, used, piece: Vec::new(), position: 0, ended: false, thread })
    }

    /// The reader and the digest of what was read of it: of everything, when it was read to its end here.
    pub(crate) fn finish(self) -> (R, Digest) {
        // The thread ends when nobody takes its pieces any more.
        drop(self.pieces);
        match self.thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl<R> Read for Ahead<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.position == self.piece.len() && !self.ended {
            let used = std::mem::take(&mut self.piece);
            if used.capacity() > 0 {
                // It is only not wanted when the thread has ended.
                drop(self.used.send(used));
            }
            self.position = 0;
            match self.pieces.recv() {
                Ok(piece) => self.piece = piece?,
                Err(_) => self.ended = true,
            }
        }
        let n = buf.len().min(self.piece.len() - self.position);
        buf[..n].copy_from_slice(&self.piece[self.position..self.position + n]);
        self.position += n;
        Ok(n)
    }
}

fn run<R: Read>(
    mut reader: R,
    send: &SyncSender<io::Result<Vec<u8>>>,
    empty: &Receiver<Vec<u8>>,
) -> (R, Digest) {
    let mut hasher = Hasher::new();
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let filled = fill(&mut reader, &mut piece);
        let (n, error) = match filled {
            Ok(n) => (n, None),
            Err((n, error)) => (n, Some(error)),
        };
        piece.truncate(n);
        hasher.update(&piece);
        let end = n < PIECE;
        let mut gone = n > 0 && send.send(Ok(piece)).is_err();
        if let Some(error) = error {
            gone = send.send(Err(error)).is_err() || gone;
        }
        if end || gone {
            return (reader, hasher.finish());
        }
    }
}

/// As much as there is: less than the whole piece only at the end or before an error.
fn fill(reader: &mut impl Read, piece: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut filled = 0;
    while filled < piece.len() {
        match reader.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((filled, error)),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Breaks(usize);

    impl Read for Breaks {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = buf.len().min(self.0);
            self.0 -= n;
            buf[..n].fill(7);
            if n == 0 { Err(io::Error::other("broken")) } else { Ok(n) }
        }
    }

    #[test]
    fn what_comes_out_is_what_went_in_with_its_digest() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, PIECE * 20 + 3] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let (read, digest) = std::thread::scope(|scope| {
                let mut ahead = Ahead::spawn(scope, bytes.as_slice()).unwrap();
                let mut read = Vec::new();
                ahead.read_to_end(&mut read).unwrap();
                (read, ahead.finish().1)
            });
            assert!(read == bytes, "{length}");
            assert_eq!(digest, Digest::of(&bytes));
        }
    }

    #[test]
    fn an_error_comes_after_all_that_was_read_before_it() {
        std::thread::scope(|scope| {
            let mut ahead = Ahead::spawn(scope, Breaks(PIECE * 3 + 5)).unwrap();
            let mut read = Vec::new();
            let error = ahead.read_to_end(&mut read).unwrap_err();
            assert_eq!((error.to_string().as_str(), read.len()), ("broken", PIECE * 3 + 5));
            ahead.finish();
        });
    }

    #[test]
    fn nobody_who_stops_reading_waits_for_the_end() {
        std::thread::scope(|scope| {
            let mut ahead = Ahead::spawn(scope, io::repeat(1)).unwrap();
            ahead.read_exact(&mut [0; 10]).unwrap();
            ahead.finish();
        });
    }
}
