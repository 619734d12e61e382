//! A connection to a socket inside the sandbox.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_wire::{Outcome, Reply};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::PollSemaphore;

use super::Error;
use super::connection::{Channel, Incoming};

/// A connection to a socket inside the sandbox. Each half closes for itself: the end of what is read is the other
/// side's end, `shutdown` is ours. What was cut off fails with an error that wraps an [`Error`]; it never looks like an
/// end. Dropping it closes the socket inside.
pub struct Socket {
    channel: Channel,
    room: PollSemaphore,
    data: Bytes,
    /// The other side has sent all it will.
    has_ended: bool,
    is_shut: bool,
}

impl Socket {
    pub(super) async fn start(mut channel: Channel) -> Result<Self, Error> {
        match channel.receive().await {
            Some(Incoming::Reply(Reply::Connected)) => {}
            Some(Incoming::Reply(Reply::Failed(failure))) => return Err(Error::Refused(failure)),
            Some(_) => return Err(Error::Answer { request: "connect" }),
            None => return Err(Error::Gone),
        }
        let room = PollSemaphore::new(channel.sender().window().clone());
        Ok(Self { channel, room, data: Bytes::new(), has_ended: false, is_shut: false })
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() && !self.has_ended {
            match ready!(self.channel.poll_receive(context)) {
                Some(Incoming::Data(data)) => self.data = data,
                Some(Incoming::End | Incoming::Reply(Reply::Done(Outcome::Disconnected))) => {
                    self.has_ended = true;
                }
                Some(Incoming::Reply(Reply::Failed(failure))) => return failed(Error::Refused(failure)),
                Some(_) => return failed(Error::Answer { request: "connect" }),
                None => return failed(Error::Gone),
            }
        }
        let len = self.data.len().min(buffer.remaining());
        if len > 0 {
            buffer.put_slice(&self.data[..len]);
            self.data.advance(len);
            self.channel.consumed(len);
        }
        Poll::Ready(Ok(()))
    }
}

fn failed(error: Error) -> Poll<io::Result<()>> {
    Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)))
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Some(one) = ready!(self.room.poll_acquire(context)) else {
            let error = self.channel.sender().why_closed();
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
        };
        one.forget();
        Poll::Ready(Ok(self.channel.sender().send_after_one(data)))
    }

    /// What was written is on its way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_shut, true) {
            self.channel.sender().end();
        }
        Poll::Ready(Ok(()))
    }
}
