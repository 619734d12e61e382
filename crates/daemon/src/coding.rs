//! Content codings of archives: none, or zstd where the client asks for it.
//!
//! A piece of 64 KiB takes a fraction of a millisecond to compress, so that is done where the bytes pass, on no thread of its
//! own; between two pieces other requests have their turn.

use std::io;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use berth_types::error::{ApiError, Kind};
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::{Stream, unfold};
use zstd::stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use crate::reply::{Failure, Reply};

/// The name of the one coding there is.
pub(crate) const ZSTD: HeaderValue = HeaderValue::from_static("zstd");

/// Fast enough that the network is waited for rather than this.
const LEVEL: i32 = 1;

/// Largest window that is decoded, 8 MiB: what RFC 9659 allows for HTTP. The memory for it is the daemon's.
const WINDOW_LOG: u32 = 23;

/// How much is decoded at a time.
const PIECE: usize = 64 << 10;

/// Whether the answer may be in zstd, by `Accept-Encoding`. A wildcard does not count: a client that takes anything is not
/// asking for this.
pub(crate) fn takes_zstd(headers: &HeaderMap) -> bool {
    items(headers, &header::ACCEPT_ENCODING).any(|item| {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let weight = parameters.split(';').find_map(|part| part.trim().strip_prefix("q="));
        name.trim().eq_ignore_ascii_case("zstd")
            && weight.is_none_or(|q| q.trim().parse::<f32>().is_ok_and(|q| q > 0.0))
    })
}

/// Whether a request's body is in zstd, by `Content-Encoding`.
///
/// # Errors
/// `unsupported_encoding` for any coding but that.
pub(crate) fn is_zstd(headers: &HeaderMap) -> Reply<bool> {
    let mut codings =
        items(headers, &header::CONTENT_ENCODING).filter(|item| !item.eq_ignore_ascii_case("identity"));
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(one), None) if one.eq_ignore_ascii_case("zstd") => Ok(true),
        (Some(other), _) => {
            let message = format!(
                "the request's body is encoded in {other:?}, once or more; zstd once and identity are supported"
            );
            Err(Failure(ApiError::new(Kind::User, "unsupported_encoding", message)))
        }
    }
}

fn items<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    // What is no text stays in as a name that nobody knows.
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty())
}

/// Compresses piece by piece.
pub(crate) struct Compress(Encoder<'static>);

impl Compress {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Encoder::new(LEVEL)?))
    }

    /// What comes out for `piece`; often nothing, since it goes out in blocks.
    pub(crate) fn piece(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        let mut out = Vec::new();
        let mut input = InBuffer::around(piece);
        while input.pos() < piece.len() {
            step(&mut out, |buffer| self.0.run(&mut input, buffer))?;
        }
        Ok(out.into())
    }

    /// The rest, with the checksum of all.
    pub(crate) fn finish(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        while step(&mut out, |buffer| self.0.finish(buffer, true))? > 0 {}
        Ok(out.into())
    }
}

/// Runs one operation that adds to `out`.
fn step(
    out: &mut Vec<u8>,
    operation: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<usize>,
) -> io::Result<usize> {
    let start = out.len();
    out.reserve(PIECE);
    operation(&mut OutBuffer::around_pos(out, start))
}

/// What a stream in zstd holds. It fails on what is not that, and at an end that comes too early; it needs no more memory
/// than a window, whatever the stream grows to.
pub(crate) fn decode<S>(body: S) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send>
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    let state = Decode { body, decoder, piece: Bytes::new(), place: 0, is_midway: false, is_full: false };
    Ok(unfold(Some(state), |state| async {
        let mut state = state?;
        match state.next().await {
            Ok(Some(data)) => Some((Ok(data), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Decode<S> {
    body: S,
    decoder: Decoder<'static>,
    piece: Bytes,
    place: usize,
    /// Whether a frame has begun and not ended.
    is_midway: bool,
    /// Whether more may come out without anything going in.
    is_full: bool,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Decode<S> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if self.place == self.piece.len() && !self.is_full {
                match self.body.try_next().await? {
                    Some(piece) => (self.piece, self.place) = (piece, 0),
                    None if self.is_midway => {
                        return Err(io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            "the zstd stream is cut short",
                        ));
                    }
                    None => return Ok(None),
                }
                continue;
            }
            let out = self.step()?;
            if !out.is_empty() {
                return Ok(Some(out));
            }
        }
    }

    fn step(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        let mut input = InBuffer { src: &self.piece[..], pos: self.place };
        // 0 at the end of a frame; a frame may follow.
        let wanted = step(&mut out, |buffer| self.decoder.run(&mut input, buffer))?;
        self.place = input.pos();
        self.is_midway = wanted > 0;
        self.is_full = self.is_midway && out.len() == out.capacity();
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use proptest::prelude::*;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    fn compressed(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut compress = Compress::new().unwrap();
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| compress.piece(piece).unwrap()).collect();
        out.extend(compress.finish().unwrap());
        out
    }

    async fn decoded(bytes: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let parts: Vec<Bytes> = decode(stream::iter(pieces))?.boxed().try_collect().await?;
        Ok(parts.concat())
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        futures_util::FutureExt::now_or_never(future).expect("nothing waits here")
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..8),
            repeat in 1usize..60,
            piece in 1usize..5000,
        ) {
            let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.repeat(repeat)).collect();
            let bytes = compressed(&pieces);
            prop_assert_eq!(now(decoded(&bytes, piece)).unwrap(), pieces.concat());
            // Every cut is noticed, but for the one that leaves nothing at all.
            let cut = bytes.len() * 2 / 3;
            prop_assert!(now(decoded(&bytes[..cut.max(1)], piece)).is_err());
            prop_assert!(now(decoded(&bytes[..bytes.len() - 1], piece)).is_err());
        }
    }

    #[test]
    fn frames_may_follow_one_another_but_nothing_else_may() {
        let one = compressed(&[b"one".to_vec()]);
        assert_eq!(now(decoded(&[&one[..], &one[..]].concat(), 7)).unwrap(), b"oneone");
        assert!(now(decoded(&[&one[..], b"garbage"].concat(), 7)).is_err());
        assert!(now(decoded(b"garbage", 7)).is_err());
        assert_eq!(now(decoded(b"", 7)).unwrap(), b"");
    }

    #[test]
    fn a_bomb_comes_out_piece_by_piece() {
        let bytes = compressed(&[vec![0; 64 << 20]]);
        assert!(bytes.len() < 64 << 10, "{}", bytes.len());
        let parts = decode(stream::iter([Ok(Bytes::from(bytes))])).unwrap().boxed();
        let lens: Vec<usize> = now(parts.map_ok(|part| part.len()).try_collect()).unwrap();
        assert_eq!(lens.iter().sum::<usize>(), 64 << 20);
        assert!(lens.iter().all(|len| *len <= 2 * PIECE));
    }

    #[test]
    fn a_window_of_much_memory_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        io::Write::write_all(&mut encoder, &vec![7; 1 << 20]).unwrap();
        assert!(now(decoded(&encoder.finish().unwrap(), 4096)).is_err());
    }

    #[test]
    fn codings_that_are_asked_for() {
        for yes in ["zstd", "gzip, ZSTD", "zstd;q=0.5", "gzip;q=1, zstd ; q=1.0"] {
            assert!(takes_zstd(&headers(header::ACCEPT_ENCODING, yes)), "{yes}");
        }
        for no in ["", "*", "gzip", "zstd;q=0", "zstd; q=0.000", "zstdx"] {
            assert!(!takes_zstd(&headers(header::ACCEPT_ENCODING, no)), "{no}");
        }
        assert!(!takes_zstd(&HeaderMap::new()));
    }

    #[test]
    fn codings_of_bodies() {
        let is =
            |value| is_zstd(&headers(header::CONTENT_ENCODING, value)).map_err(|Failure(error)| error.code);
        assert_eq!(is("zstd"), Ok(true));
        assert_eq!(is("identity"), Ok(false));
        assert_eq!(is(""), Ok(false));
        for bad in ["gzip", "zstd, zstd", "zstd, gzip", "br"] {
            assert_eq!(is(bad), Err("unsupported_encoding".to_owned()), "{bad}");
        }
    }
}
