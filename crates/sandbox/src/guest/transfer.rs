//! Tars in and out, and lists of names.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_wire::{HEADER_LEN, MAX_DATA, Outcome, PackReport, Reply};
use bytes::{Buf, BufMut, Bytes};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::Error;
use super::connection::{Channel, Incoming};

/// Sends what `source` gives as fast as the guest takes it, and waits for its last word. The guest may have that before
/// the end of the source.
pub(super) async fn send_all(
    channel: &mut Channel,
    path: &str,
    mut source: impl AsyncRead + Unpin + Send,
) -> Result<Outcome, Error> {
    let sender = channel.sender().clone();
    let mut end = None;
    while end.is_none() {
        let mut frame = Vec::new();
        end = tokio::select! {
            answer = last_word(channel) => return answer,
            end = fill(&mut source, &mut frame) => end,
        };
        if frame.len() == HEADER_LEN {
            continue;
        }
        // A conversation that is over has a last word.
        tokio::select! {
            answer = last_word(channel) => return answer,
            true = sender.send_frame(frame) => {}
        }
    }
    if let Some(Err(source)) = end {
        return Err(Error::Archive { path: path.to_owned(), source });
    }
    channel.sender().end();
    last_word(channel).await
}

/// Reads the payload of a frame: waits for the first of it, and takes along what is there already. How the source ended,
/// where it did.
async fn fill(source: &mut (impl AsyncRead + Unpin), frame: &mut Vec<u8>) -> Option<io::Result<()>> {
    const FULL: usize = HEADER_LEN + MAX_DATA;
    frame.reserve_exact(FULL);
    frame.resize(HEADER_LEN, 0);
    let mut read = Some(source.read_buf(&mut (&mut *frame).limit(MAX_DATA)).await);
    while let Some(Ok(1..)) = read {
        let left = FULL - frame.len();
        if left == 0 {
            return None;
        }
        read = source.read_buf(&mut (&mut *frame).limit(left)).now_or_never();
    }
    read.map(|read| read.map(drop))
}

/// The end of a conversation in which the guest sends no data.
pub(super) async fn last_word(channel: &mut Channel) -> Result<Outcome, Error> {
    match channel.receive().await {
        Some(Incoming::Reply(Reply::Done(outcome))) => Ok(outcome),
        Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
        Some(_) => Err(Error::Answer { request: "without data" }),
        None => Err(Error::Gone),
    }
}

/// A tar that is coming out of the sandbox, to be read. It ends only when the guest says that it is complete; anything
/// else is an error of the read, which wraps an [`Error`]. Dropping it stops the packing.
pub struct Pack {
    channel: Channel,
    data: Bytes,
    report: Option<PackReport>,
}

impl Pack {
    pub(super) async fn start(mut channel: Channel) -> Result<Self, Error> {
        match channel.receive().await {
            Some(Incoming::Data(data)) => Ok(Self { channel, data, report: None }),
            Some(Incoming::Reply(Reply::Failed(failure))) => Err(Error::Refused(failure)),
            Some(_) => Err(Error::Answer { request: "pack" }),
            None => Err(Error::Gone),
        }
    }

    /// What went into the tar; there once all of it has been read.
    pub fn report(&self) -> Option<&PackReport> {
        self.report.as_ref()
    }
}

impl AsyncRead for Pack {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.data.is_empty() && self.report.is_none() {
            match ready!(self.channel.poll_receive(context)) {
                Some(Incoming::Data(data)) => self.data = data,
                Some(Incoming::Reply(Reply::Done(Outcome::Packed(report)))) => self.report = Some(report),
                Some(Incoming::Reply(Reply::Failed(failure))) => return failed(Error::Refused(failure)),
                Some(_) => return failed(Error::Answer { request: "pack" }),
                None => return failed(Error::Gone),
            }
        }
        let len = self.data.len().min(buffer.remaining());
        buffer.put_slice(&self.data[..len]);
        self.data.advance(len);
        self.channel.consumed(len);
        Poll::Ready(Ok(()))
    }
}

fn failed(error: Error) -> Poll<io::Result<()>> {
    Poll::Ready(Err(io::Error::other(error)))
}

/// Reads names, each with a NUL byte after it.
pub(super) async fn names(mut channel: Channel) -> Result<Vec<String>, Error> {
    let mut bytes = Vec::new();
    let found = loop {
        match channel.receive().await {
            Some(Incoming::Data(data)) => {
                bytes.extend_from_slice(&data);
                channel.consumed(data.len());
            }
            Some(Incoming::Reply(Reply::Done(Outcome::Globbed { found }))) => break found,
            Some(Incoming::Reply(Reply::Failed(failure))) => return Err(Error::Refused(failure)),
            Some(Incoming::End) => {}
            Some(_) => return Err(Error::Answer { request: "glob" }),
            None => return Err(Error::Gone),
        }
    };
    let names = bytes.split_inclusive(|byte| *byte == 0).map(|name| name.strip_suffix(&[0]).unwrap_or(name));
    let names: Vec<_> = names.map(utf8).collect::<Result<_, _>>()?;
    if names.len() as u64 == found { Ok(names) } else { Err(Error::Answer { request: "glob" }) }
}

fn utf8(name: &[u8]) -> Result<String, Error> {
    String::from_utf8(name.to_vec())
        .map_err(|error| Error::Name { path: String::from_utf8_lossy(error.as_bytes()).into_owned() })
}
