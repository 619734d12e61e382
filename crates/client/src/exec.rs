//! Running a command: the exec stream.
//!
//! The stream is the only word on how a command ended. It ends well only with an `Exited` event; whatever else
//! ends it is an error, so that no exit code is ever made up here.

use berth_types::exec::{ExecEvent, ExecRequest, ExecStatus, frame};
use bytes::{Buf, Bytes, BytesMut};
use http::Method;

use crate::sandboxes::sandbox_path;
use crate::transport::{Answer, Call, encode, next_data};
use crate::{Client, Error};

/// Kind byte and big-endian length.
const HEADER_LEN: usize = 5;

/// One thing that came from a command.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// It runs.
    Started {
        /// Its id, by which it can be killed.
        id: String,
        /// The program that was started.
        program: String,
    },
    /// Bytes of its stdout.
    Stdout(Bytes),
    /// Bytes of its stderr.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exited(ExecStatus),
}

/// A command that has ended, with all of its output.
#[derive(Clone, Debug, PartialEq)]
pub struct ExecOutcome {
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExecStatus,
}

/// A running command. Dropping this ends the connection, on which the daemon kills the command.
#[derive(Debug)]
pub struct ExecStream {
    sandbox: String,
    decoder: Decoder,
    /// Nothing once the stream has ended, well or not.
    answer: Option<Answer>,
}

impl Client {
    /// Starts a command; returns when the daemon has accepted it.
    pub async fn exec(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecStream, Error> {
        let operation = format!("run a command in sandbox {sandbox}");
        let call = Call::new(Method::POST, sandbox_path(sandbox, "/exec"), operation).json(request)?;
        let answer = self.send(call).await?;
        Ok(ExecStream { sandbox: sandbox.to_owned(), decoder: Decoder::default(), answer: Some(answer) })
    }

    /// Runs a command to its end and keeps all of its output.
    pub async fn exec_collect(&self, sandbox: &str, request: &ExecRequest) -> Result<ExecOutcome, Error> {
        let mut stream = self.exec(sandbox, request).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(output) = stream.next().await {
            match output? {
                ExecOutput::Started { .. } => {}
                ExecOutput::Stdout(data) => stdout.extend_from_slice(&data),
                ExecOutput::Stderr(data) => stderr.extend_from_slice(&data),
                ExecOutput::Exited(status) => return Ok(ExecOutcome { stdout, stderr, status }),
            }
        }
        Err(Error::ExecLost { sandbox: sandbox.to_owned(), source: None })
    }

    /// Kills an exec and all that it started; returns when none of it is left.
    pub async fn kill_exec(&self, sandbox: &str, exec: &str) -> Result<(), Error> {
        let path = sandbox_path(sandbox, &format!("/execs/{}", encode(exec)));
        self.call_empty(Call::new(Method::DELETE, path, format!("kill exec {exec} of sandbox {sandbox}")))
            .await
    }
}

impl ExecStream {
    /// What comes next; nothing after [`ExecOutput::Exited`] and after an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<ExecOutput, Error>> {
        let step = self.step().await;
        if !matches!(&step, Some(Ok(output)) if !matches!(output, ExecOutput::Exited(_))) {
            self.answer = None;
        }
        step
    }

    async fn step(&mut self) -> Option<Result<ExecOutput, Error>> {
        let answer = self.answer.as_mut()?;
        loop {
            match self.decoder.next() {
                Ok(None) => {}
                Ok(Some(Frame::Output(output))) => return Some(Ok(output)),
                Ok(Some(Frame::Error(source))) => {
                    return Some(Err(Error::Api {
                        operation: answer.operation().to_owned(),
                        source: Box::new(source),
                    }));
                }
                Err(fault) => return Some(Err(fault.into_error(&self.sandbox))),
            }
            let lost = |source| Error::ExecLost { sandbox: self.sandbox.clone(), source };
            match next_data(answer.response.body_mut()).await {
                Ok(Some(data)) => self.decoder.feed(&data),
                Ok(None) => return Some(Err(lost(None))),
                Err(source) => return Some(Err(lost(Some(source)))),
            }
        }
    }
}

/// Cuts a byte stream, however it is split, into frames.
#[derive(Debug, Default)]
struct Decoder {
    buffer: BytesMut,
}

#[derive(Debug)]
enum Frame {
    Output(ExecOutput),
    Error(berth_types::error::ApiError),
}

#[derive(Debug)]
enum Fault {
    Frame { kind: u8, len: u32 },
    Event(serde_json::Error),
}

impl Fault {
    fn into_error(self, sandbox: &str) -> Error {
        let sandbox = sandbox.to_owned();
        match self {
            Fault::Frame { kind, len } => Error::ExecFrame { sandbox, kind, len },
            Fault::Event(source) => Error::ExecEvent { sandbox, source },
        }
    }
}

impl Decoder {
    fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next whole frame, if there is one. Empty output is passed over.
    fn next(&mut self) -> Result<Option<Frame>, Fault> {
        while let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<HEADER_LEN>() {
            let len = u32::from_be_bytes([a, b, c, d]);
            if len > frame::MAX_LEN || !(frame::STDOUT..=frame::ERROR).contains(&kind) {
                return Err(Fault::Frame { kind, len });
            }
            let payload_len = usize::try_from(len).map_err(|_| Fault::Frame { kind, len })?;
            if self.buffer.len() < HEADER_LEN + payload_len {
                return Ok(None);
            }
            self.buffer.advance(HEADER_LEN);
            let payload = self.buffer.split_to(payload_len).freeze();
            if !payload.is_empty() || kind > frame::STDERR {
                return read_frame(kind, payload).map(Some);
            }
        }
        Ok(None)
    }
}

fn read_frame(kind: u8, payload: Bytes) -> Result<Frame, Fault> {
    Ok(match kind {
        frame::STDOUT => Frame::Output(ExecOutput::Stdout(payload)),
        frame::STDERR => Frame::Output(ExecOutput::Stderr(payload)),
        frame::EVENT => Frame::Output(match serde_json::from_slice(&payload).map_err(Fault::Event)? {
            ExecEvent::Started { id, program, .. } => ExecOutput::Started { id, program },
            ExecEvent::Gap { .. } | ExecEvent::Detached => {
                return Err(Fault::Event(serde::de::Error::custom("not an event that was asked for")));
            }
            ExecEvent::Exited(status) => ExecOutput::Exited(status),
        }),
        _ => Frame::Error(serde_json::from_slice(&payload).map_err(Fault::Event)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame_bytes(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_stream_is_split(
            frames in prop::collection::vec((1u8..=2, prop::collection::vec(any::<u8>(), 1..64)), 0..16),
            piece in 1usize..32,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(kind, data)| frame_bytes(*kind, data)).collect();
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in stream.chunks(piece) {
                decoder.feed(part);
                while let Some(Frame::Output(output)) = decoder.next().unwrap() {
                    found.push(match output {
                        ExecOutput::Stdout(data) => (1, data.to_vec()),
                        ExecOutput::Stderr(data) => (2, data.to_vec()),
                        other => panic!("{other:?}"),
                    });
                }
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn a_frame_too_long_or_unknown_is_refused_by_its_header() {
        for (kind, len) in [(frame::STDOUT, frame::MAX_LEN + 1), (0, 1), (9, 0)] {
            let mut decoder = Decoder::default();
            decoder.feed(&[kind]);
            decoder.feed(&len.to_be_bytes());
            assert!(matches!(decoder.next(), Err(Fault::Frame { kind: k, len: l }) if (k, l) == (kind, len)));
        }
    }
}
