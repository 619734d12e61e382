//! The exec stream as bytes ([`berth_types::exec::frame`]): a queue that frames go into and pieces of the body come out of.
//!
//! Small frames are put together, so that a short command's whole stream is one piece. Output of some size is passed on
//! as it came, behind a piece that holds its header: nobody copies it here.

use std::collections::VecDeque;

use berth_node::ExecOutput;
use berth_types::error::ApiError;
use berth_types::exec::{ExecEvent, OutputStream, frame};
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

/// Kind and length.
pub(crate) const HEADER_LEN: usize = 5;

/// Output from this length on is passed on without a copy: copying less is cheaper than one more piece.
const UNCOPIED: usize = 8 << 10;

/// Most output in one frame.
const MAX_OUTPUT: usize = frame::MAX_LEN as usize - frame::OUTPUT_HEADER_LEN;

/// What is to be told of an exec next: what it did, or why no more is known.
pub(crate) type Told = Result<ExecOutput, ApiError>;

/// Frames on their way out.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Whole pieces, which come before `open`.
    pieces: VecDeque<Bytes>,
    /// The piece that the next frame is added to.
    open: BytesMut,
    /// Bytes in all of them.
    len: usize,
}

impl Queue {
    /// Adds the frames for what was told; true when nothing may follow.
    pub(crate) fn push(&mut self, told: Told) -> bool {
        let event = match told {
            Ok(ExecOutput::Output { stream, offset, time_us, data }) => {
                self.push_output(stream, offset, time_us, data);
                return false;
            }
            Ok(ExecOutput::Started { id, program, attached, stdin_offset }) => {
                ExecEvent::Started { id, program, attached, stdin_offset }
            }
            Ok(ExecOutput::Gap { stream, from, to }) => ExecEvent::Gap { stream, from, to },
            Ok(ExecOutput::Detached) => ExecEvent::Detached,
            Ok(ExecOutput::Exited(status)) => ExecEvent::Exited(status),
            Err(error) => {
                self.push_json(frame::ERROR, &error);
                return true;
            }
        };
        self.push_json(frame::EVENT, &event);
        matches!(event, ExecEvent::Detached | ExecEvent::Exited(_))
    }

    fn push_output(&mut self, stream: OutputStream, mut offset: u64, time_us: u64, mut data: Bytes) {
        let kind = match stream {
            OutputStream::Stdout => frame::STDOUT,
            OutputStream::Stderr => frame::STDERR,
        };
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_OUTPUT));
            self.header(kind, frame::OUTPUT_HEADER_LEN + part.len());
            self.open.put_u64(offset);
            self.open.put_u64(time_us);
            offset += part.len() as u64;
            self.len += frame::OUTPUT_HEADER_LEN + part.len();
            if part.len() < UNCOPIED {
                self.open.put_slice(&part);
            } else {
                self.pieces.push_back(self.open.split().freeze());
                self.pieces.push_back(part);
            }
        }
    }

    fn push_json(&mut self, kind: u8, value: &impl Serialize) {
        // The API's own types always serialise: string keys, no non-finite numbers.
        let payload = serde_json::to_vec(value).unwrap_or_default();
        self.header(kind, payload.len());
        self.open.put_slice(&payload);
        self.len += payload.len();
    }

    fn header(&mut self, kind: u8, payload_len: usize) {
        self.open.put_u8(kind);
        // Output is cut to fit, and events are far below: they hold no text longer than a path.
        self.open.put_u32(u32::try_from(payload_len).unwrap_or(u32::MAX));
        self.len += HEADER_LEN;
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The next piece of the stream.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let piece = match self.pieces.pop_front() {
            Some(piece) => piece,
            None if self.open.is_empty() => return None,
            None => self.open.split().freeze(),
        };
        self.len -= piece.len();
        Some(piece)
    }

    /// All that waits, as one piece of whole frames.
    pub(crate) fn pop_all(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            return self.pop();
        }
        let mut all = BytesMut::with_capacity(self.len);
        while let Some(piece) = self.pop() {
            all.put_slice(&piece);
        }
        Some(all.freeze())
    }
}

#[cfg(test)]
mod tests {
    use berth_types::error::Kind;
    use berth_types::exec::{ExecStatus, ExitReason};
    use proptest::prelude::*;

    use super::*;

    /// Cuts a stream into kinds and payloads.
    fn cut(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut frames = Vec::new();
        while let [kind, a, b, c, d, rest @ ..] = bytes {
            let len = u32::from_be_bytes([*a, *b, *c, *d]);
            assert!(len <= frame::MAX_LEN);
            let (payload, next) = rest.split_at(len as usize);
            frames.push((*kind, payload.to_vec()));
            bytes = next;
        }
        assert!(bytes.is_empty());
        frames
    }

    fn drain(queue: &mut Queue) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop()).flatten().collect()
    }

    fn output(offset: u64, data: Bytes) -> Told {
        Ok(ExecOutput::Output { stream: OutputStream::Stderr, offset, time_us: 77, data })
    }

    #[test]
    fn a_short_command_is_one_piece() {
        let mut queue = Queue::default();
        let started =
            ExecOutput::Started { id: "a".into(), program: "/b".into(), attached: false, stdin_offset: 0 };
        assert!(!queue.push(Ok(started)));
        assert!(!queue.push(output(0, Bytes::from_static(b"hi"))));
        assert!(queue.push(Ok(ExecOutput::Exited(ExecStatus::new(3, ExitReason::Exited)))));
        let len = queue.len();
        let piece = queue.pop().unwrap();
        assert_eq!((piece.len(), queue.len(), queue.pop()), (len, 0, None));
        let frames = cut(&piece);
        assert_eq!(frames[0].0, frame::EVENT);
        assert!(frames[0].1.starts_with(br#"{"event":"started","id":"a""#));
        let mut head = 0u64.to_be_bytes().to_vec();
        head.extend(77u64.to_be_bytes());
        assert_eq!(frames[1], (frame::STDERR, [&head[..], b"hi"].concat()));
        assert!(frames[2].1.starts_with(br#"{"event":"exited","exit_code":3"#));
    }

    #[test]
    fn large_output_is_not_copied() {
        let data = Bytes::from(vec![7; 64 << 10]);
        let mut queue = Queue::default();
        queue.push(output(5, data.clone()));
        assert_eq!(queue.pop().unwrap().len(), HEADER_LEN + frame::OUTPUT_HEADER_LEN);
        assert_eq!(queue.pop().unwrap().as_ptr(), data.as_ptr());
        assert_eq!((queue.pop(), queue.len()), (None, 0));
    }

    #[test]
    fn output_longer_than_a_frame_is_cut_with_its_offsets() {
        let mut queue = Queue::default();
        queue.push(output(10, Bytes::from(vec![1; MAX_OUTPUT + 1])));
        let frames = cut(&drain(&mut queue));
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].1[..8], 10u64.to_be_bytes());
        assert_eq!(frames[1].1[..8], (10 + MAX_OUTPUT as u64).to_be_bytes());
        assert_eq!(frames[1].1[16..], [1]);
    }

    #[test]
    fn an_error_is_the_last_word() {
        let mut queue = Queue::default();
        assert!(queue.push(Err(ApiError::new(Kind::Unavailable, "sandbox_lost", "gone"))));
        let frames = cut(&drain(&mut queue));
        assert_eq!(frames[0].0, frame::ERROR);
        assert_eq!(serde_json::from_slice::<ApiError>(&frames[0].1).unwrap().code, "sandbox_lost");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_out_of_order(lens in prop::collection::vec(0usize..20_000, 0..12), at_once in any::<bool>()) {
            let mut queue = Queue::default();
            let mut offset = 0;
            for (index, len) in lens.iter().enumerate() {
                queue.push(output(offset, Bytes::from(vec![index as u8; *len])));
                offset += *len as u64;
            }
            let len = queue.len();
            let bytes = if at_once { queue.pop_all().map(Vec::from).unwrap_or_default() } else { drain(&mut queue) };
            prop_assert_eq!(bytes.len(), len);
            let mut place = 0;
            for (_, payload) in cut(&bytes) {
                prop_assert_eq!(&payload[..8], &u64::to_be_bytes(place)[..]);
                place += payload.len() as u64 - 16;
            }
            prop_assert_eq!(place, offset);
        }
    }
}
