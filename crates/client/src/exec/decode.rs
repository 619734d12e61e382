//! From bytes of an exec stream, however they are cut, to frames.

use berth_types::error::ApiError;
use berth_types::exec::{ExecEvent, OutputStream, frame};
use bytes::{Buf, Bytes, BytesMut};

use crate::Error;

/// Kind byte and big-endian length.
const HEADER_LEN: usize = 5;

/// One frame.
#[derive(Debug)]
pub(crate) enum Frame {
    /// Output from `offset` on, never empty.
    Output {
        stream: OutputStream,
        offset: u64,
        time_us: u64,
        data: Bytes,
    },
    Event(ExecEvent),
    Error(ApiError),
}

/// What is not a frame of this protocol.
#[derive(Debug)]
pub(crate) enum Fault {
    Frame { kind: u8, len: u32 },
    Event(serde_json::Error),
}

impl Fault {
    pub(crate) fn into_error(self, sandbox: &str) -> Error {
        let sandbox = sandbox.to_owned();
        match self {
            Fault::Frame { kind, len } => Error::ExecFrame { sandbox, kind, len },
            Fault::Event(source) => Error::ExecEvent { sandbox, source },
        }
    }
}

/// Cuts a byte stream into frames. What comes in whole frames is not copied.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    rest: Bytes,
}

impl Decoder {
    pub(crate) fn feed(&mut self, data: Bytes) {
        self.rest = if self.rest.is_empty() {
            data
        } else {
            let mut joined = BytesMut::with_capacity(self.rest.len() + data.len());
            joined.extend_from_slice(&self.rest);
            joined.extend_from_slice(&data);
            joined.freeze()
        };
    }

    /// The next whole frame, if there is one. Empty output is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Fault> {
        while let Some(&[kind, a, b, c, d]) = self.rest.first_chunk::<HEADER_LEN>() {
            let len = u32::from_be_bytes([a, b, c, d]);
            if len > frame::MAX_LEN || !(frame::STDOUT..=frame::ERROR).contains(&kind) {
                return Err(Fault::Frame { kind, len });
            }
            let payload_len = usize::try_from(len).map_err(|_| Fault::Frame { kind, len })?;
            if self.rest.len() < HEADER_LEN + payload_len {
                return Ok(None);
            }
            self.rest.advance(HEADER_LEN);
            let payload = self.rest.split_to(payload_len);
            if kind > frame::STDERR || payload.len() != frame::OUTPUT_HEADER_LEN {
                return read_frame(kind, payload).map(Some);
            }
        }
        Ok(None)
    }
}

fn read_frame(kind: u8, mut payload: Bytes) -> Result<Frame, Fault> {
    let stream = match kind {
        frame::STDOUT => OutputStream::Stdout,
        frame::STDERR => OutputStream::Stderr,
        frame::EVENT => return serde_json::from_slice(&payload).map(Frame::Event).map_err(Fault::Event),
        _ => return serde_json::from_slice(&payload).map(Frame::Error).map_err(Fault::Event),
    };
    if payload.len() < frame::OUTPUT_HEADER_LEN {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        return Err(Fault::Frame { kind, len });
    }
    let (offset, time_us) = (payload.get_u64(), payload.get_u64());
    Ok(Frame::Output { stream, offset, time_us, data: payload })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn output_bytes(kind: u8, offset: u64, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&u32::try_from(data.len() + frame::OUTPUT_HEADER_LEN).unwrap().to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&7_u64.to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_stream_is_split(
            frames in prop::collection::vec((1u8..=2, any::<u64>(), prop::collection::vec(any::<u8>(), 1..64)), 0..16),
            piece in 1usize..48,
        ) {
            let stream: Vec<u8> =
                frames.iter().flat_map(|(kind, offset, data)| output_bytes(*kind, *offset, data)).collect();
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in stream.chunks(piece) {
                decoder.feed(Bytes::copy_from_slice(part));
                while let Some(frame) = decoder.next().unwrap() {
                    let Frame::Output { stream, offset, time_us: 7, data } = frame else { panic!("{frame:?}") };
                    found.push((if stream == OutputStream::Stdout { 1 } else { 2 }, offset, data.to_vec()));
                }
            }
            prop_assert_eq!(found, frames);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = Decoder::default();
            decoder.feed(bytes.into());
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn a_frame_too_long_too_short_or_unknown_is_refused() {
        for (kind, len) in [(frame::STDOUT, frame::MAX_LEN + 1), (0, 1), (9, 0)] {
            let mut decoder = Decoder::default();
            decoder.feed([&[kind][..], &len.to_be_bytes()].concat().into());
            assert!(matches!(decoder.next(), Err(Fault::Frame { kind: k, len: l }) if (k, l) == (kind, len)));
        }
        let mut decoder = Decoder::default();
        decoder.feed(vec![frame::STDERR, 0, 0, 0, 3, 1, 2, 3].into());
        assert!(matches!(decoder.next(), Err(Fault::Frame { kind: frame::STDERR, len: 3 })));
    }
}
