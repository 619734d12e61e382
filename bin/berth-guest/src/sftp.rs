//! An SFTP server, protocol version 3, on standard input and output: a program of the guest's own, run as a user like
//! any command, so that the kernel decides what he may.
//!
//! ```text
//!  bytes ──► serve: cuts packets, at most MAX_PACKET each ──► Session::answer ──► bytes
//!                                                               │
//!                         packet: fields, replies    files: handles    paths: all that goes by name
//! ```
//!
//! One request after the other, in the order in which they came; a client may send many before it reads. Answers are
//! sent before more is waited for. Any bytes at all may come: what is no request ends the session, what is a request
//! that cannot be carried out is answered with a status, and nothing panics. Opening never waits, for a FIFO neither.
//!
//! Version 3 as of `draft-ietf-secsh-filexfer-02` and with OpenSSH's deviations (its `PROTOCOL` file): the arguments of
//! `SYMLINK` are target, then link. Its extensions are in `packet::EXTENSIONS`.
//!
//! Where to start reading: [`serve`], then `session`.

mod attributes;
mod files;
mod packet;
mod paths;
mod session;

use std::io::{Read, Write};

use packet::MAX_PACKET;
use session::Session;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;
/// Answers are sent when this much has come together, even if more requests are there already.
const FLUSH: usize = 512 * 1024;
/// Bytes of the length that every packet begins with.
const LENGTH: usize = 4;

/// Why a session ended before its client did.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input or output failed.
    #[error("read or write the session's stream")]
    Stream(#[from] std::io::Error),
    /// A packet is longer than any can be, or empty.
    #[error("packet of {0} bytes, where 1 to {MAX_PACKET} can be")]
    Length(usize),
    /// A packet has no number by which it could be answered, or is one before the first.
    #[error("packet of type {0} that cannot be answered")]
    Unanswerable(u8),
    /// The stream ended within a packet.
    #[error("the stream ended within a packet")]
    CutOff,
}

/// Serves until the client has closed its side.
pub fn serve(mut input: impl Read, mut output: impl Write) -> Result<(), Error> {
    let mut session = Session::default();
    let (mut received, mut answers) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; CHUNK];
    loop {
        let answered = answer_all(&mut session, &mut received, &mut answers, &mut output);
        // What was asked before a packet that ends the session is answered all the same.
        flush(&mut answers, &mut output)?;
        answered?;
        match input.read(&mut chunk) {
            Ok(0) if received.is_empty() => return Ok(()),
            Ok(0) => return Err(Error::CutOff),
            Ok(len) => received.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes every complete packet from `received`.
fn answer_all(
    session: &mut Session,
    received: &mut Vec<u8>,
    answers: &mut Vec<u8>,
    output: &mut impl Write,
) -> Result<(), Error> {
    let mut taken = 0;
    while let Some(packet) = first_packet(&received[taken..])? {
        session.answer(packet, answers)?;
        taken += LENGTH + packet.len();
        if answers.len() >= FLUSH {
            flush(answers, output)?;
        }
    }
    received.drain(..taken);
    Ok(())
}

fn first_packet(bytes: &[u8]) -> Result<Option<&[u8]>, Error> {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length == 0 || length > MAX_PACKET {
        return Err(Error::Length(length));
    }
    Ok(rest.get(..length))
}

fn flush(answers: &mut Vec<u8>, output: &mut impl Write) -> std::io::Result<()> {
    output.write_all(answers)?;
    answers.clear();
    output.flush()
}

#[cfg(test)]
mod tests;
