//! Bulk bytes both ways: bodies as readers, contents as bodies, each in zstd where both sides want it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use berth_types::error::ApiError;
use berth_types::files::{ARCHIVE_ERROR, ARCHIVE_REPORT, ArchiveOutReport};
use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt, TryStreamExt, unfold};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::coding::{Compress, ZSTD, decode, is_zstd, takes_zstd};
use crate::reply::{Failure, Reply, user_error};

/// A request's body, to be read.
pub(crate) struct Upload {
    reader: StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>,
    fault: Fault,
}

/// Why a body could not be read, once that is known. What is made of the body elsewhere may have forgotten it.
#[derive(Clone, Default)]
pub(crate) struct Fault(Arc<Mutex<Option<String>>>);

impl Upload {
    /// The body, decoded.
    ///
    /// # Errors
    /// `unsupported_encoding` where its coding is not known.
    pub(crate) fn new(headers: &HeaderMap, body: Body) -> Reply<Self> {
        let plain = body.into_data_stream().map_err(io::Error::other).boxed();
        let data = if is_zstd(headers)? {
            decode(plain).map_err(|error| user_error("bad_body", error.to_string()))?.boxed()
        } else {
            plain
        };
        Ok(Self { reader: StreamReader::new(data), fault: Fault::default() })
    }

    /// What reads it, and what tells why it could not be read.
    pub(crate) fn split(self) -> (Box<dyn AsyncRead + Send + Unpin>, Fault) {
        let fault = self.fault.clone();
        (Box::new(self), fault)
    }
}

impl AsyncRead for Upload {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.reader).poll_read(context, buffer));
        if let Err(error) = &read {
            *self.fault.lock() = Some(error.to_string());
        }
        Poll::Ready(read)
    }
}

impl Fault {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came of a call that read the body: its failure is the body's where that could not be read.
    pub(crate) fn explain<T>(&self, result: Result<T, berth_node::Error>) -> Reply<T> {
        match self.lock().take() {
            Some(fault) => Err(user_error("bad_body", format!("cannot read the request's body: {fault}"))),
            None => result.map_err(Failure::from),
        }
    }
}

/// Something that comes out of a sandbox piece by piece.
pub(crate) trait Contents: Send + 'static {
    /// The next piece; none at the end of what is complete.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, ApiError>> + Send;

    /// What there is to say of it at its end.
    fn report(&self) -> Option<ArchiveOutReport>;
}

/// Contents as an answer to a request with these headers.
pub(crate) fn answer(contents: impl Contents, media_type: HeaderValue, asked: &HeaderMap) -> Reply<Response> {
    let compress = takes_zstd(asked).then(Compress::new).transpose();
    let compress = compress.map_err(|error| {
        Failure(ApiError::new(
            berth_types::error::Kind::Internal,
            "zstd",
            format!("cannot compress: {error}"),
        ))
    })?;
    let (is_compressed, trailers) = (compress.is_some(), takes_trailers(asked));
    let frames = frames(Outgoing { contents, compress, is_over: false }, trailers);
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, media_type);
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if is_compressed {
        headers.insert(header::CONTENT_ENCODING, ZSTD);
    }
    if trailers {
        for name in [ARCHIVE_REPORT, ARCHIVE_ERROR] {
            headers.append(header::TRAILER, HeaderValue::from_static(name));
        }
    }
    Ok(response)
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Contents on their way out, compressed where that is wanted.
struct Outgoing<C> {
    contents: C,
    compress: Option<Compress>,
    is_over: bool,
}

impl<C: Contents> Outgoing<C> {
    async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        while !self.is_over {
            let piece = self.contents.next().await.map_err(Broken::Contents)?;
            self.is_over = piece.is_none();
            let data = match (&mut self.compress, piece) {
                (None, Some(piece)) => piece,
                (None, None) => break,
                (Some(compress), Some(piece)) => compress.piece(&piece).map_err(Broken::Coding)?,
                (Some(compress), None) => compress.finish().map_err(Broken::Coding)?,
            };
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// Why contents do not go on.
enum Broken {
    Contents(ApiError),
    Coding(io::Error),
}

/// The contents, and where `trailers` are taken how they ended.
fn frames<C: Contents>(source: Outgoing<C>, trailers: bool) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    unfold(Some(source), move |source| async move {
        let mut source = source?;
        match source.next().await {
            Ok(Some(data)) => Some((Ok(Frame::data(data)), Some(source))),
            Ok(None) if trailers => Some((trailer(ARCHIVE_REPORT, &source.contents.report()?), None)),
            Ok(None) => None,
            Err(Broken::Contents(error)) if trailers => Some((trailer(ARCHIVE_ERROR, &error), None)),
            Err(Broken::Contents(error)) => Some((Err(io::Error::other(error.message)), None)),
            Err(Broken::Coding(error)) => Some((Err(error), None)),
        }
    })
}

fn trailer(name: &'static str, value: &impl Serialize) -> io::Result<Frame<Bytes>> {
    let text = serde_json::to_string(value)?;
    let value = utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
    let value = HeaderValue::try_from(value).map_err(io::Error::other)?;
    Ok(Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static(name), value)])))
}

#[cfg(test)]
mod tests;
