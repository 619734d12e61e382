//! A bounded pipe between a blocking thread and the async side, with an end that differs from an abort.

use std::fs::File;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Size of a piece.
const PIECE: usize = 256 * 1024;

/// Pieces that may wait in the pipe.
const DEPTH: usize = 8;

/// What goes through: the last message is `End` or an error. A pipe that closes without either was cut off.
pub(super) enum Message {
    Data(Bytes),
    End,
    Failed(io::Error),
}

pub(super) fn pipe() -> (Sender<Message>, Receiver<Message>) {
    channel(DEPTH)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the other side went away before the end")
}

/// A tar that is made while it is read.
#[derive(Debug)]
pub struct PackedTar {
    receiver: Receiver<Message>,
    piece: Bytes,
    ended: bool,
}

impl PackedTar {
    pub(super) fn new(receiver: Receiver<Message>) -> Self {
        Self { receiver, piece: Bytes::new(), ended: false }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Message::Data(data) => write!(f, "Data({} bytes)", data.len()),
            Message::End => f.write_str("End"),
            Message::Failed(error) => write!(f, "Failed({error})"),
        }
    }
}

impl PackedTar {
    /// Waits until there is a piece, or the end.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.piece.is_empty() && !self.ended {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(Message::Data(data)) => self.piece = data,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(cut_off())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The tar piece by piece, without a copy.
impl Stream for PackedTar {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let this = self.get_mut();
        let piece = ready!(this.poll_piece(cx)).map(|()| std::mem::take(&mut this.piece));
        Poll::Ready(Some(piece).filter(|piece| !matches!(piece, Ok(piece) if piece.is_empty())))
    }
}

impl AsyncRead for PackedTar {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_piece(cx))?;
        let len = this.piece.len().min(buf.remaining());
        buf.put_slice(&this.piece[..len]);
        this.piece.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// The blocking thread's end of a pipe to the async side.
pub(super) struct PipeWriter {
    sender: Sender<Message>,
    piece: Vec<u8>,
}

impl PipeWriter {
    pub(super) fn new(sender: Sender<Message>) -> Self {
        Self { sender, piece: Vec::with_capacity(PIECE) }
    }

    /// Sends what `file` has, up to `most` bytes, and says how many those were.
    pub(super) fn send_file(&mut self, file: &mut File, most: u64) -> io::Result<u64> {
        if most <= (PIECE - self.piece.len()) as u64 {
            return file.take(most).read_to_end(&mut self.piece).map(|len| len as u64);
        }
        self.flush()?;
        let mut left = most;
        while left > 0 {
            // Read into at once, and no further than it has room.
            let mut piece = Vec::with_capacity(usize::try_from(left).unwrap_or(PIECE).min(PIECE));
            let read = loop {
                match rustix::io::read(&*file, rustix::buffer::spare_capacity(&mut piece)) {
                    Err(rustix::io::Errno::INTR) => {}
                    read => break read?,
                }
            };
            if read == 0 {
                break;
            }
            left -= read as u64;
            self.send(piece)?;
        }
        Ok(most - left)
    }

    fn send(&self, piece: Vec<u8>) -> io::Result<()> {
        self.sender.blocking_send(Message::Data(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Says how it ended. The reader may be gone; then there is nobody to tell.
    pub(super) fn finish(mut self, result: io::Result<()>) {
        let last = match result.and_then(|()| self.flush()) {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        };
        let _ = self.sender.blocking_send(last);
    }
}

impl Write for PipeWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // A file may have filled it to the last byte.
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        let len = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&data[..len]);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.send(piece)
    }
}

/// The blocking thread's end of a pipe from the async side.
pub(super) struct PipeReader {
    receiver: Receiver<Message>,
    piece: Bytes,
    ended: bool,
}

impl PipeReader {
    pub(super) fn new(receiver: Receiver<Message>) -> Self {
        Self { receiver, piece: Bytes::new(), ended: false }
    }
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Message::Data(data)) => self.piece = data,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(error),
                None => return Err(cut_off()),
            }
        }
        let len = self.piece.len().min(buf.len());
        buf[..len].copy_from_slice(&self.piece[..len]);
        self.piece.advance(len);
        Ok(len)
    }
}

/// Sends all of `reader` down the pipe; ends early when the thread at the other end has gone.
pub(super) async fn pump(mut reader: impl AsyncRead + Unpin, sender: Sender<Message>) {
    loop {
        let mut piece = BytesMut::with_capacity(PIECE);
        let end = fill(&mut reader, &mut piece).await;
        if !piece.is_empty() && sender.send(Message::Data(piece.freeze())).await.is_err() {
            return;
        }
        if let Some(end) = end {
            // A thread that has gone wants to know nothing more.
            let _ = sender.send(end.map_or_else(Message::Failed, |()| Message::End)).await;
            return;
        }
    }
}

/// Waits for the first bytes, and takes along what more is there already: each piece wakes the thread. How the reader
/// ended, where it did.
async fn fill(reader: &mut (impl AsyncRead + Unpin), piece: &mut BytesMut) -> Option<io::Result<()>> {
    let mut read = Some(reader.read_buf(&mut (&mut *piece).limit(PIECE)).await);
    while let Some(Ok(1..)) = read {
        let left = PIECE - piece.len();
        if left == 0 {
            return None;
        }
        read = reader.read_buf(&mut (&mut *piece).limit(left)).now_or_never();
    }
    read.map(|read| read.map(drop))
}
