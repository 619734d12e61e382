//! Files in and out of a sandbox.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use berth_types::error::ApiError;
use berth_types::files::{
    ARCHIVE_ERROR, ARCHIVE_REPORT, ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, FsRequest,
    FsResponse, TAR_TYPE,
};
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::sandboxes::sandbox_path;
use crate::transport::{Call, Connection, encode};
use crate::{Client, Error};

/// A tar that comes from a sandbox. Reading it fails when the connection breaks, and with an [`Error`] inside when the
/// daemon says why it cannot go on: its end is the archive's end.
pub struct ArchiveStream {
    reader: StreamReader<Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>, Bytes>,
    report: ReportOnceRead,
    _connection: Connection,
}

/// What an archive's sender says of it, there once it has been read to its end.
#[derive(Clone, Debug, Default)]
pub struct ReportOnceRead(Arc<Mutex<Option<ArchiveOutReport>>>);

impl ReportOnceRead {
    /// The report; `None` before the end, and from a daemon that gives none.
    pub fn take(&self) -> Option<ArchiveOutReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, report: Option<ArchiveOutReport>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }
}

impl ArchiveStream {
    /// Where the report will be.
    pub fn report(&self) -> ReportOnceRead {
        self.report.clone()
    }
}

/// The data of `body`, and at its end what its trailers say.
fn contents(
    body: Incoming,
    operation: String,
    report: ReportOnceRead,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    unfold(Some((body, operation, report)), |state| async move {
        let (mut body, operation, report) = state?;
        loop {
            match body.frame().await? {
                Err(error) => return Some((Err(io::Error::other(error)), None)),
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Some((Ok(data), Some((body, operation, report)))),
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        if let Some(error) = trailer::<ApiError>(&trailers, ARCHIVE_ERROR) {
                            let error = Error::Api { operation, source: Box::new(error) };
                            return Some((Err(io::Error::other(error)), None));
                        }
                        report.set(trailer(&trailers, ARCHIVE_REPORT));
                    }
                },
            }
        }
    })
}

fn trailer<T: DeserializeOwned>(trailers: &HeaderMap, name: &str) -> Option<T> {
    let text = percent_decode_str(trailers.get(name)?.to_str().ok()?).decode_utf8().ok()?;
    serde_json::from_str(&text).ok()
}

impl AsyncRead for ArchiveStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().reader).poll_read(cx, buf)
    }
}

impl fmt::Debug for ArchiveStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveStream").finish_non_exhaustive()
    }
}

impl Client {
    /// Unpacks the tar that `archive` yields into a directory of a sandbox.
    pub async fn put_archive(
        &self,
        sandbox: &str,
        target: &ArchiveIn,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<ArchiveReport, Error> {
        let query = format!("/archive?path={}&keep_ids={}", encode(&target.path), target.keep_ids);
        let operation = format!("copy into {} of sandbox {sandbox}", target.path);
        self.call(Call::new(Method::PUT, sandbox_path(sandbox, &query), operation).upload(TAR_TYPE, archive))
            .await
    }

    /// A tar of a path of a sandbox.
    pub async fn get_archive(&self, sandbox: &str, source: &ArchiveOut) -> Result<ArchiveStream, Error> {
        let mut query = format!("/archive?path={}", encode(&source.path));
        if !source.exclude.is_empty() {
            query.push_str("&exclude=");
            query.push_str(&encode(&source.exclude));
        }
        if source.ignore_failed_read {
            query.push_str("&ignore_failed_read=true");
        }
        let operation = format!("copy {} out of sandbox {sandbox}", source.path);
        let call = Call::new(Method::GET, sandbox_path(sandbox, &query), operation).with_trailers();
        let answer = self.send(call).await?;
        let headers = answer.response.headers();
        if !headers.contains_key(TRANSFER_ENCODING) && !headers.contains_key(CONTENT_LENGTH) {
            return Err(Error::Unframed { operation: answer.operation().to_owned() });
        }
        let (operation, report) = (answer.operation().to_owned(), ReportOnceRead::default());
        let connection = answer.connection;
        let data = contents(answer.response.into_body(), operation, report.clone());
        Ok(ArchiveStream { reader: StreamReader::new(Box::pin(data)), report, _connection: connection })
    }

    /// A small file-system call into a sandbox.
    pub async fn fs(&self, sandbox: &str, request: &FsRequest) -> Result<FsResponse, Error> {
        let operation = match request {
            FsRequest::Stat { path, .. } => format!("stat {path} in sandbox {sandbox}"),
            FsRequest::Mkdir { paths, .. } => format!("make {} in sandbox {sandbox}", paths.join(", ")),
            FsRequest::Empty { paths, .. } => format!("empty {} in sandbox {sandbox}", paths.join(", ")),
            FsRequest::List { path, .. } => format!("list {path} in sandbox {sandbox}"),
            FsRequest::Remove { paths } => format!("remove {} in sandbox {sandbox}", paths.join(", ")),
        };
        self.call(Call::new(Method::POST, sandbox_path(sandbox, "/fs"), operation).json(request)?).await
    }
}
