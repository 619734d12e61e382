//! The guest's stream, cut into frames. Data is not copied out of what was read, unless it is small.

use std::io;

use berth_wire::{Body, BodyRef, DecodeError, FrameRef, Output};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read at once where there is so much.
const READ: usize = 256 * 1024;

/// How much is read at once while a bulk transfer is under way.
const BULK: usize = 1024 * 1024;

/// With less room than this a new buffer is taken: several frames of the longest data fit into one.
const LEAST: usize = 64 * 1024;

/// Data below this is copied: or a few bytes that nobody reads would keep a whole buffer.
const SMALL: usize = 8 * 1024;

/// What a frame held.
#[derive(Debug)]
pub(super) enum Cut {
    Data(Bytes),
    Output(Piece),
    Control(Body),
}

/// A piece of an exec's output; [`berth_wire::Chunk`] without a copy.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) stream: Output,
    pub(super) offset: u64,
    pub(super) time_us: u64,
    pub(super) data: Bytes,
}

/// Reads a stream and cuts it.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    buffer: BytesMut,
}

impl Cutter {
    /// Reads once; 0 at the end of the stream. Nothing is lost when the future is dropped.
    pub(super) async fn read_from(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        // A large control message is rare; its room is not kept for the life of the connection.
        if self.buffer.is_empty() && self.buffer.capacity() > BULK + READ {
            self.buffer = BytesMut::new();
        }
        // A long frame is not read piece by piece.
        let missing = berth_wire::missing(&self.buffer).unwrap_or(0);
        if self.buffer.capacity() - self.buffer.len() < missing.max(LEAST) {
            self.buffer.reserve(if missing > LEAST { BULK } else { READ });
        }
        stream.read_buf(&mut self.buffer).await
    }

    /// The next complete frame and its channel; `None` until more is read.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Cut)>, DecodeError> {
        let Some(FrameRef { channel, body, len }) = FrameRef::first(&self.buffer)? else { return Ok(None) };
        let cut = match body {
            BodyRef::Control(body) => {
                let _ = self.buffer.split_to(len);
                Cut::Control(body)
            }
            BodyRef::Data(data) => {
                let size = data.len();
                Cut::Data(self.data(len, size))
            }
            BodyRef::Output { stream, offset, time_us, data } => {
                let size = data.len();
                Cut::Output(Piece { stream, offset, time_us, data: self.data(len, size) })
            }
        };
        Ok(Some((channel, cut)))
    }

    /// Takes the first `len` bytes, and gives the last `size` of them.
    fn data(&mut self, len: usize, size: usize) -> Bytes {
        let frame = self.buffer.split_to(len);
        if size < SMALL {
            Bytes::copy_from_slice(&frame[len - size..])
        } else {
            frame.freeze().slice(len - size..)
        }
    }
}
