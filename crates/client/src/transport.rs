//! One call: connect, send, read the head of the answer.
//!
//! Each call has a connection of its own. On a unix socket that costs tens of microseconds, and in return nothing is
//! ever sent on a connection that the daemon has already closed, so no request needs repeating, and dropping an
//! answer closes its connection at once, which is how the daemon learns that a reader is gone.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_types::error::ErrorBody;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::io::ReaderStream;

use crate::{Client, Error, Host};

/// How long a TCP connection may take. A daemon is one hop away; longer means that it is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the pieces in which a body is sent.
const UPLOAD_CHUNK: usize = 64 * 1024;

/// How much of an unknown error body an error quotes.
const QUOTED_BODY: usize = 400;

/// Everything but RFC 3986's unreserved characters.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// `text` as one segment of a path or one value of a query.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, COMPONENT).to_string()
}

/// A request that has not been sent.
pub(crate) struct Call {
    operation: String,
    method: Method,
    path: String,
    content_type: Option<&'static str>,
    body: Body,
    upload: UploadFault,
    trailers: bool,
    headers: Vec<(&'static str, HeaderValue)>,
}

/// What went wrong with the reader of a body: hyper only tells that something did.
#[derive(Clone, Debug, Default)]
struct UploadFault(Arc<Mutex<Option<io::Error>>>);

impl UploadFault {
    fn note(&self, error: io::Error) -> io::Error {
        let kind = error.kind();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        kind.into()
    }

    fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Call {
    /// A request without a body; `operation` is what errors call it.
    pub(crate) fn new(method: Method, path: impl Into<String>, operation: impl Into<String>) -> Self {
        Self {
            operation: operation.into(),
            method,
            path: path.into(),
            content_type: None,
            body: Empty::new().map_err(|never| match never {}).boxed_unsync(),
            upload: UploadFault::default(),
            trailers: false,
            headers: Vec::new(),
        }
    }

    /// The same request, whose answer may end in trailers.
    pub(crate) fn with_trailers(mut self) -> Self {
        self.trailers = true;
        self
    }

    /// The same request with one header more.
    pub(crate) fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The same request with a JSON body.
    pub(crate) fn json(mut self, value: &impl Serialize) -> Result<Self, Error> {
        let text = serde_json::to_vec(value)
            .map_err(|source| Error::Encode { operation: self.operation.clone(), source })?;
        self.content_type = Some("application/json");
        self.body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        Ok(self)
    }

    /// The same request with a body that is read while it is sent.
    pub(crate) fn upload(self, media_type: &'static str, reader: impl AsyncRead + Send + 'static) -> Self {
        let reader = Box::pin(reader) as Pin<Box<dyn AsyncRead + Send>>;
        self.upload_pieces(media_type, ReaderStream::with_capacity(reader, UPLOAD_CHUNK))
    }

    /// The same request with a body that comes in pieces.
    pub(crate) fn upload_pieces(
        mut self,
        media_type: &'static str,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Self {
        let upload = self.upload.clone();
        let frames = pieces.map_ok(Frame::data).map_err(move |error| upload.note(error));
        self.content_type = Some(media_type);
        self.body = StreamBody::new(frames).boxed_unsync();
        self
    }

    fn into_request(self) -> Result<Request<Body>, http::Error> {
        let mut request = Request::builder().method(self.method).uri(self.path).header(HOST, "berth");
        if let Some(media_type) = self.content_type {
            request = request.header(CONTENT_TYPE, HeaderValue::from_static(media_type));
        }
        if self.trailers {
            request = request.header(TE, HeaderValue::from_static("trailers"));
        }
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(self.body)
    }
}

/// Keeps a call's connection alive, and ends it when dropped.
#[derive(Debug)]
pub(crate) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A success whose body has not been read.
#[derive(Debug)]
pub(crate) struct Answer {
    operation: String,
    upload: UploadFault,
    /// Head of the answer, and its body.
    pub(crate) response: Response<Incoming>,
    /// To be kept as long as the body is read.
    pub(crate) connection: Connection,
}

impl Client {
    /// Sends `call` and waits for the head of the answer; a status that is no success becomes an error.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, Error> {
        let operation = call.operation.clone();
        let upload = call.upload.clone();
        let request = call
            .into_request()
            .expect("methods and header values are constants, and paths are percent-encoded");
        let (response, connection) = match self.exchange(request).await {
            Ok(exchanged) => exchanged,
            Err(ExchangeError::Connect(source)) => {
                return Err(Error::Connect { operation, host: self.host.to_string(), source });
            }
            Err(ExchangeError::Http(source)) => {
                return Err(match upload.take() {
                    Some(source) => Error::Upload { operation, source },
                    None => Error::Send { operation, host: self.host.to_string(), source },
                });
            }
        };
        let answer = Answer { operation, upload, response, connection };
        if answer.response.status().is_success() { Ok(answer) } else { Err(answer.into_error().await) }
    }

    /// Sends `call` and reads the JSON of the answer.
    pub(crate) async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, Error> {
        self.send(call).await?.json().await
    }

    /// Sends `call`, whose success has no content.
    pub(crate) async fn call_empty(&self, call: Call) -> Result<(), Error> {
        self.send(call).await?.bytes().await.map(drop)
    }

    async fn exchange(
        &self,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Connection), ExchangeError> {
        match &self.host {
            Host::Unix(path) => exchange(UnixStream::connect(path).await?, request).await,
            Host::Tcp { host, port } => exchange(connect_tcp(host, *port).await?, request).await,
        }
    }
}

enum ExchangeError {
    Connect(io::Error),
    Http(hyper::Error),
}

impl From<io::Error> for ExchangeError {
    fn from(error: io::Error) -> Self {
        Self::Connect(error)
    }
}

impl From<hyper::Error> for ExchangeError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

pub(crate) async fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange<S>(
    stream: S,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Connection), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = Connection(tokio::spawn(async move {
        // What goes wrong here is also told to whoever waits for the answer or reads its body.
        if let Err(error) = driver.await {
            tracing::debug!(%error, "connection to the daemon ended");
        }
    }));
    let response = sender.send_request(request).await?;
    Ok((response, connection))
}

impl Answer {
    /// HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The operation, for errors.
    pub(crate) fn operation(&self) -> &str {
        &self.operation
    }

    /// The whole body.
    async fn bytes(self) -> Result<Bytes, Error> {
        let (operation, upload) = (self.operation, self.upload);
        let _connection = self.connection;
        match self.response.into_body().collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(source) => Err(read_error(operation, &upload, source)),
        }
    }

    /// The whole body, as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let operation = self.operation.clone();
        let body = self.bytes().await?;
        serde_json::from_slice(&body).map_err(|source| Error::Decode { operation, source })
    }

    /// The next bytes of the body; none at its proper end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        next_data(self.response.body_mut())
            .await
            .map_err(|source| read_error(self.operation.clone(), &self.upload, source))
    }

    /// What a status that is no success means.
    async fn into_error(self) -> Error {
        let operation = self.operation.clone();
        let status = self.status().as_u16();
        let body = match self.bytes().await {
            Ok(body) => body,
            Err(error) => return error,
        };
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Error::Api { operation, source: Box::new(body.error) },
            Err(_) => {
                let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BODY)]).into_owned();
                Error::Status { operation, status, body: quoted }
            }
        }
    }
}

/// The next bytes of a body, past trailers and empty pieces.
pub(crate) async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn read_error(operation: String, upload: &UploadFault, source: hyper::Error) -> Error {
    match upload.take() {
        Some(source) => Error::Upload { operation, source },
        None => Error::Read { operation, source },
    }
}
