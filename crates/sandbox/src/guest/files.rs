//! Single files in and out, and changes of files.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_types::files::{Change, ChangeKind};
use berth_wire::{Outcome, Reply};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::Error;
use super::connection::{Channel, Incoming};

/// Longest line of a change: two paths, each byte of them escaped.
const MAX_LINE: usize = 128 * 1024;

/// Contents of a file that are coming out of the sandbox: piece by piece, or to be read. They end only when the guest
/// says that they are complete. Dropping it stops them.
pub struct FileStream {
    channel: Channel,
    first: Option<Bytes>,
    /// What was not read yet of the last piece, of the [`AsyncRead`].
    rest: Bytes,
    /// Bytes given to the caller, who is done with them when he asks for more.
    given: usize,
    size: Option<u64>,
    is_over: bool,
}

impl FileStream {
    pub(super) async fn start(mut channel: Channel) -> Result<Self, Error> {
        let piece = std::future::poll_fn(|context| poll_piece(&mut channel, context)).await?;
        let (first, size) = match piece {
            Piece::Data(data) => (Some(data), None),
            Piece::Complete(size) => (None, Some(size)),
        };
        let is_over = size.is_some();
        Ok(Self { channel, first, rest: Bytes::new(), given: 0, size, is_over })
    }

    /// The next piece; `None` after the last one, and after an error. While nobody asks, the guest stops at a window's
    /// worth. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Gone`].
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Size in bytes of the whole file when it was opened; there once all was read.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if let Some(first) = self.first.take() {
            self.given = first.len();
            return Poll::Ready(Some(Ok(first)));
        }
        match std::mem::take(&mut self.given) {
            0 => {}
            given => self.channel.consumed(given),
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        let piece = ready!(poll_piece(&mut self.channel, context));
        Poll::Ready(match piece {
            Ok(Piece::Data(data)) => {
                self.given = data.len();
                Some(Ok(data))
            }
            Ok(Piece::Complete(size)) => {
                self.size = Some(size);
                self.is_over = true;
                None
            }
            Err(error) => {
                self.is_over = true;
                Some(Err(error))
            }
        })
    }
}

enum Piece {
    Data(Bytes),
    Complete(u64),
}

fn poll_piece(channel: &mut Channel, context: &mut Context<'_>) -> Poll<Result<Piece, Error>> {
    loop {
        return Poll::Ready(match ready!(channel.poll_receive(context)) {
            Some(Incoming::Data(data)) => Ok(Piece::Data(data)),
            Some(Incoming::End) => continue,
            Some(Incoming::Reply(Reply::Done(Outcome::Read { size }))) => Ok(Piece::Complete(size)),
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(_) => Err(Error::Answer { request: "read_file" }),
            None => Err(Error::Gone),
        });
    }
}

impl AsyncRead for FileStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.poll_next(context)) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..len]);
        self.rest.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// Changes below a path, as they happen. Dropping it ends the watch.
pub struct Changes {
    channel: Channel,
    /// A line that is not complete.
    pending: BytesMut,
    changes: VecDeque<Change>,
    is_over: bool,
}

impl Changes {
    /// Returns when the watch is set up.
    pub(super) async fn start(channel: Channel) -> Result<Self, Error> {
        let mut changes =
            Self { channel, pending: BytesMut::new(), changes: VecDeque::new(), is_over: false };
        changes.fill().await?;
        Ok(changes)
    }

    /// What changed next, [`ChangeKind::Ready`] first; `None` after an error. While nobody asks, the guest
    /// stops at a window's worth, and then says by [`ChangeKind::Overflow`] that it lost some. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::Refused`] when what is watched is gone, [`Error::Gone`].
    pub async fn next(&mut self) -> Option<Result<Change, Error>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Some(Ok(change));
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.fill().await {
                self.is_over = true;
                return Some(Err(error));
            }
        }
    }

    async fn fill(&mut self) -> Result<(), Error> {
        while self.changes.is_empty() {
            match self.channel.receive().await {
                Some(Incoming::Data(data)) => {
                    self.channel.consumed(data.len());
                    self.pending.extend_from_slice(&data);
                    self.cut()?;
                }
                Some(Incoming::End) => {}
                Some(Incoming::Reply(Reply::Failed(failure))) => return Err(Error::Refused(failure)),
                Some(_) => return Err(Error::Answer { request: "watch" }),
                None => return Err(Error::Gone),
            }
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<(), Error> {
        let wrong = || Error::Answer { request: "watch" };
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            self.changes.push_back(change(serde_json::from_slice(&line).map_err(|_| wrong())?));
        }
        if self.pending.len() > MAX_LINE { Err(wrong()) } else { Ok(()) }
    }
}

fn change(berth_wire::Change { kind, path, from, is_dir }: berth_wire::Change) -> Change {
    let kind = match kind {
        berth_wire::ChangeKind::Ready => ChangeKind::Ready,
        berth_wire::ChangeKind::Created => ChangeKind::Created,
        berth_wire::ChangeKind::Modified => ChangeKind::Modified,
        berth_wire::ChangeKind::Closed => ChangeKind::Closed,
        berth_wire::ChangeKind::Attributes => ChangeKind::Attributes,
        berth_wire::ChangeKind::Moved => ChangeKind::Moved,
        berth_wire::ChangeKind::Removed => ChangeKind::Removed,
        berth_wire::ChangeKind::Overflow => ChangeKind::Overflow,
    };
    Change { kind, path, from, is_dir }
}
