//! A bounded pipe between a blocking thread and the async side, with an end that differs from an abort.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Size of a piece.
const PIECE: usize = 64 * 1024;

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

impl AsyncRead for PackedTar {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.piece.is_empty() && !this.ended {
            match ready!(this.receiver.poll_recv(cx)) {
                Some(Message::Data(data)) => this.piece = data,
                Some(Message::End) => this.ended = true,
                Some(Message::Failed(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(cut_off())),
            }
        }
        let len = this.piece.len().min(buf.remaining());
        buf.put_slice(&this.piece[..len]);
        this.piece.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// The blocking thread's end of a pipe to the async side.
pub(super) struct PipeWriter {
    sender: Sender<Message>,
    piece: BytesMut,
}

impl PipeWriter {
    pub(super) fn new(sender: Sender<Message>) -> Self {
        Self { sender, piece: BytesMut::with_capacity(PIECE) }
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
        let len = data.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&data[..len]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE));
        self.sender.blocking_send(Message::Data(piece.freeze())).map_err(|_| io::ErrorKind::BrokenPipe.into())
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
        let message = match reader.read_buf(&mut piece).await {
            Ok(0) => Message::End,
            Ok(_) => Message::Data(piece.freeze()),
            Err(error) => Message::Failed(error),
        };
        let is_last = !matches!(message, Message::Data(_));
        if sender.send(message).await.is_err() || is_last {
            return;
        }
    }
}
