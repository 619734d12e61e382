//! Frames: the header, the kinds, and the decoder that is fed whatever the stream gives.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    Change, HEADER_LEN, Hello, MAX_CONTROL, MAX_DATA, MAX_OUTPUT, OUTPUT_HEADER_LEN, Output, Reply, Request,
};

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const EVENT: u8 = 3;
const DATA: u8 = 4;
/// 5 was stderr before generation 3.
const OUTPUT: u8 = 9;
const END: u8 = 6;
const CREDIT: u8 = 7;
const CANCEL: u8 = 8;

/// Length of a credit frame's body: one big-endian u32.
const CREDIT_LEN: usize = 4;

/// One frame of the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Which conversation it belongs to; 0 for [`Body::Hello`] alone.
    pub channel: u32,
    /// What it says.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Guest to host, once, before anything else.
    Hello(Hello),
    /// Host to guest: opens the channel.
    Open(Box<Request>),
    /// Guest to host: news of the channel.
    Event(Reply),
    /// Bytes: an exec's stdin, a tar, a file, the paths of a glob.
    Data(Vec<u8>),
    /// Output of an exec. Its data counts against the channel's window, its header does not.
    Output(Chunk),
    /// The sender's data is complete.
    End,
    /// The receiver of data allows this many bytes more.
    Credit(u32),
    /// Host to guest: nobody waits for this channel any more; stop, send no more data, and close it.
    Cancel,
}

/// A piece of what an exec wrote to one of its outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which output.
    pub stream: Output,
    /// Where in it the piece begins, in bytes.
    pub offset: u64,
    /// When it was read from the exec, in microseconds since the epoch.
    pub time_us: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Why a frame could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The JSON body is longer than [`MAX_CONTROL`].
    #[error("control message of {len} bytes is longer than the {MAX_CONTROL} bytes that the guest takes")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// A payload is longer than [`MAX_DATA`], or [`MAX_OUTPUT`] where it is output.
    #[error("data frame of {len} bytes is longer than it may be")]
    DataTooLong {
        /// Its length.
        len: usize,
    },
    /// The message has no JSON form.
    #[error("encode a control message")]
    Json(#[source] serde_json::Error),
}

/// Why bytes are not frames of this protocol. The stream is of no use after one.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No such kind of frame.
    #[error("frame of unknown kind {kind}")]
    UnknownKind {
        /// The kind byte.
        kind: u8,
    },
    /// The three reserved bytes of the header are not zero.
    #[error("frame of kind {kind} with reserved bytes set")]
    Reserved {
        /// The kind byte.
        kind: u8,
    },
    /// The header announces more (or less) than the kind allows.
    #[error("frame of kind {kind} announces {len} bytes")]
    Length {
        /// The kind byte.
        kind: u8,
        /// The announced length.
        len: u32,
    },
    /// The channel number does not go with the kind: 0 is for Hello, and for Hello alone.
    #[error("frame of kind {kind} on channel {channel}")]
    Channel {
        /// The kind byte.
        kind: u8,
        /// The channel.
        channel: u32,
    },
    /// An output frame of neither stdout nor stderr.
    #[error("output frame of unknown stream {stream}")]
    Stream {
        /// Its number.
        stream: u8,
    },
    /// The body is not the JSON that its kind calls for.
    #[error("body of a frame of kind {kind} on channel {channel} does not parse")]
    Json {
        /// The kind byte.
        kind: u8,
        /// The channel.
        channel: u32,
        /// What the JSON parser says.
        #[source]
        source: serde_json::Error,
    },
}

impl Frame {
    /// Appends the frame's bytes to `out`; leaves `out` as it was on an error.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match &self.body {
            Body::Hello(hello) => encode_json(HELLO, self.channel, hello, out),
            Body::Open(request) => encode_json(OPEN, self.channel, request, out),
            Body::Event(reply) => encode_json(EVENT, self.channel, reply, out),
            Body::Data(bytes) => encode_bytes(DATA, self.channel, bytes, out),
            Body::Output(Chunk { stream, offset, time_us, data }) => {
                encode_chunk(self.channel, *stream, *offset, *time_us, data, out)
            }
            Body::End => encode_bytes(END, self.channel, &[], out),
            Body::Credit(bytes) => encode_bytes(CREDIT, self.channel, &bytes.to_be_bytes(), out),
            Body::Cancel => encode_bytes(CANCEL, self.channel, &[], out),
        }
    }
}

/// Appends a data frame without copying the payload into a [`Frame`] first.
pub fn encode_data(channel: u32, payload: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_bytes(DATA, channel, payload, out)
}

/// Makes a data frame of its payload, before which [`HEADER_LEN`] bytes are left free; `None` where that is too long.
pub fn finish_data(channel: u32, mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let len = frame.len().checked_sub(HEADER_LEN).filter(|len| *len <= MAX_DATA)?;
    let (head, _) = frame.split_first_chunk_mut::<HEADER_LEN>()?;
    *head = header(DATA, channel, u32::try_from(len).ok()?);
    Some(frame)
}

/// Appends an output frame without copying the payload into a [`Chunk`] first.
pub fn encode_chunk(
    channel: u32,
    stream: Output,
    offset: u64,
    time_us: u64,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let len = match u32::try_from(payload.len() + OUTPUT_HEADER_LEN) {
        Ok(len) if payload.len() <= MAX_OUTPUT => len,
        _ => return Err(EncodeError::DataTooLong { len: payload.len() }),
    };
    out.extend_from_slice(&header(OUTPUT, channel, len));
    out.push(match stream {
        Output::Stdout => 1,
        Output::Stderr => 2,
    });
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&time_us.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends an event frame.
pub fn encode_event(channel: u32, reply: &Reply, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_json(EVENT, channel, reply, out)
}

/// Appends the frame that opens `channel`.
pub fn encode_open(channel: u32, request: &Request, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode_json(OPEN, channel, request, out)
}

/// Appends a change as the line that stands for it in the data of a [`Request::Watch`].
pub fn encode_change(change: &Change, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, change) {
        out.truncate(start);
        return Err(EncodeError::Json(error));
    }
    out.push(b'\n');
    Ok(())
}

fn encode_json<T: Serialize>(kind: u8, channel: u32, body: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = out.len();
    out.extend_from_slice(&header(kind, channel, 0));
    if let Err(error) = serde_json::to_writer(&mut *out, body) {
        out.truncate(start);
        return Err(EncodeError::Json(error));
    }
    let len = out.len() - start - HEADER_LEN;
    match u32::try_from(len) {
        Ok(announced) if len <= MAX_CONTROL => {
            out[start + 8..start + HEADER_LEN].copy_from_slice(&announced.to_be_bytes());
            Ok(())
        }
        _ => {
            out.truncate(start);
            Err(EncodeError::TooLong { len })
        }
    }
}

fn encode_bytes(kind: u8, channel: u32, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let len = match u32::try_from(body.len()) {
        Ok(len) if body.len() <= MAX_DATA => len,
        _ => return Err(EncodeError::DataTooLong { len: body.len() }),
    };
    out.extend_from_slice(&header(kind, channel, len));
    out.extend_from_slice(body);
    Ok(())
}

fn header(kind: u8, channel: u32, len: u32) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0] = kind;
    header[4..8].copy_from_slice(&channel.to_be_bytes());
    header[8..].copy_from_slice(&len.to_be_bytes());
    header
}

/// Cuts a stream into frames, however the stream was cut into reads.
///
/// It holds at most one incomplete frame more than what [`Decoder::feed`] was last given.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what the stream gave.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer().extend_from_slice(bytes);
    }

    /// What was fed and not yet given out, for a stream to be read into without a copy: bytes are to be added at its end.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        // A large control message is rare; its room is not kept for the life of the connection.
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * MAX_DATA {
            self.buffer = Vec::new();
        }
        &mut self.buffer
    }

    /// Whether bytes of an unfinished frame are held; at the end of the stream that means it was cut off.
    pub fn is_mid_frame(&self) -> bool {
        self.taken < self.buffer.len()
    }

    /// The next complete frame, or `None` until more is fed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let Some(FrameRef { channel, body, len }) = FrameRef::first(&self.buffer[self.taken..])? else {
            return Ok(None);
        };
        let body = match body {
            BodyRef::Data(data) => Body::Data(data.to_vec()),
            BodyRef::Output { stream, offset, time_us, data } => {
                Body::Output(Chunk { stream, offset, time_us, data: data.to_vec() })
            }
            BodyRef::Control(body) => body,
        };
        self.taken += len;
        Ok(Some(Frame { channel, body }))
    }
}

/// A frame whose data was left where it lies, for a reader that shares its buffer rather than copy out of it.
#[derive(Debug, PartialEq)]
pub struct FrameRef<'a> {
    /// As in [`Frame`].
    pub channel: u32,
    /// What it says.
    pub body: BodyRef<'a>,
    /// How long the frame is in bytes, header included. The data of a body is the last part of it.
    pub len: usize,
}

/// What a [`FrameRef`] says.
#[derive(Debug, PartialEq)]
pub enum BodyRef<'a> {
    /// [`Body::Data`].
    Data(&'a [u8]),
    /// [`Body::Output`].
    Output {
        /// As in [`Chunk`].
        stream: Output,
        /// As in [`Chunk`].
        offset: u64,
        /// As in [`Chunk`].
        time_us: u64,
        /// As in [`Chunk`].
        data: &'a [u8],
    },
    /// Any other.
    Control(Body),
}

impl<'a> FrameRef<'a> {
    /// The frame that `bytes` begin with; `None` when it is not complete.
    ///
    /// # Errors
    /// [`DecodeError`], as soon as the header is there.
    pub fn first(bytes: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let (kind, channel, len) = parse_header(head)?;
        let Some(body) = rest.get(..len) else { return Ok(None) };
        Ok(Some(Self { channel, body: parse_body(kind, channel, body)?, len: HEADER_LEN + len }))
    }
}

/// How many bytes the frame still lacks that `bytes` begin with; `None` where not even its header is there, or that is
/// none.
pub fn missing(bytes: &[u8]) -> Option<usize> {
    let (_, _, len) = parse_header(bytes.first_chunk()?).ok()?;
    Some((HEADER_LEN + len).saturating_sub(bytes.len()))
}

fn parse_header(head: &[u8; HEADER_LEN]) -> Result<(u8, u32, usize), DecodeError> {
    let [kind, reserved @ .., c0, c1, c2, c3, l0, l1, l2, l3] = *head;
    let reserved: [u8; 3] = reserved;
    let channel = u32::from_be_bytes([c0, c1, c2, c3]);
    let announced = u32::from_be_bytes([l0, l1, l2, l3]);
    if reserved != [0; 3] {
        return Err(DecodeError::Reserved { kind });
    }
    let allowed = match kind {
        HELLO | OPEN | EVENT => 1..=MAX_CONTROL,
        DATA => 0..=MAX_DATA,
        OUTPUT => OUTPUT_HEADER_LEN..=OUTPUT_HEADER_LEN + MAX_OUTPUT,
        END | CANCEL => 0..=0,
        CREDIT => CREDIT_LEN..=CREDIT_LEN,
        _ => return Err(DecodeError::UnknownKind { kind }),
    };
    if (kind == HELLO) != (channel == 0) {
        return Err(DecodeError::Channel { kind, channel });
    }
    match usize::try_from(announced) {
        Ok(len) if allowed.contains(&len) => Ok((kind, channel, len)),
        _ => Err(DecodeError::Length { kind, len: announced }),
    }
}

fn parse_body(kind: u8, channel: u32, body: &[u8]) -> Result<BodyRef<'_>, DecodeError> {
    Ok(BodyRef::Control(match kind {
        DATA => return Ok(BodyRef::Data(body)),
        OUTPUT => return parse_output(body),
        HELLO => Body::Hello(json(kind, channel, body)?),
        OPEN => Body::Open(Box::new(json(kind, channel, body)?)),
        EVENT => Body::Event(json(kind, channel, body)?),
        END => Body::End,
        CANCEL => Body::Cancel,
        CREDIT => match body.try_into() {
            Ok(bytes) => Body::Credit(u32::from_be_bytes(bytes)),
            Err(_) => return Err(DecodeError::Length { kind, len: 0 }),
        },
        _ => return Err(DecodeError::UnknownKind { kind }),
    }))
}

fn parse_output(body: &[u8]) -> Result<BodyRef<'_>, DecodeError> {
    let short = DecodeError::Length { kind: OUTPUT, len: 0 };
    let Some(([stream, place @ ..], data)) = body.split_first_chunk::<OUTPUT_HEADER_LEN>() else {
        return Err(short);
    };
    let place: &[u8; OUTPUT_HEADER_LEN - 1] = place;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte));
    Ok(BodyRef::Output {
        stream: parse_stream(*stream)?,
        offset: number(&place[..8]),
        time_us: number(&place[8..]),
        data,
    })
}

fn parse_stream(byte: u8) -> Result<Output, DecodeError> {
    match byte {
        1 => Ok(Output::Stdout),
        2 => Ok(Output::Stderr),
        stream => Err(DecodeError::Stream { stream }),
    }
}

fn json<T: DeserializeOwned>(kind: u8, channel: u32, body: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(body).map_err(|source| DecodeError::Json { kind, channel, source })
}
