//! Files in and out of a sandbox.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use berth_types::error::ApiError;
use berth_types::files::{
    ARCHIVE_ERROR, ARCHIVE_REPORT, ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, Change, FileIn,
    FileOut, FileReport, FsRequest, FsResponse, TAR_TYPE, WatchQuery,
};
use bytes::{Bytes, BytesMut};
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

use crate::archive::PackedTar;
use crate::sandboxes::sandbox_path;
use crate::transport::{Answer, Call, Connection, encode};
use crate::{Client, Error};

/// A tar, or the bytes of one file, that comes from a sandbox. Reading it fails when the connection breaks, and with an [`Error`] inside when the
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
    /// What an answer holds, whose end must be told from a broken connection.
    pub(crate) fn of(answer: Answer) -> Result<ArchiveStream, Error> {
        let headers = answer.response.headers();
        if !headers.contains_key(TRANSFER_ENCODING) && !headers.contains_key(CONTENT_LENGTH) {
            return Err(Error::Unframed { operation: answer.operation().to_owned() });
        }
        let (operation, report) = (answer.operation().to_owned(), ReportOnceRead::default());
        let connection = answer.connection;
        let data = contents(answer.response.into_body(), operation, report.clone());
        Ok(ArchiveStream { reader: StreamReader::new(Box::pin(data)), report, _connection: connection })
    }

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

/// Changes of files; dropping it ends the watch.
#[derive(Debug)]
pub struct Changes {
    answer: Answer,
    rest: BytesMut,
}

impl Changes {
    /// The next one; nothing once what is watched is gone for good. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Change>, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                let operation = || self.answer.operation().to_owned();
                return match serde_json::from_slice(&line) {
                    Ok(WatchLine::Change(change)) => Ok(Some(change)),
                    Ok(WatchLine::Error { error }) => {
                        Err(Error::Api { operation: operation(), source: Box::new(error) })
                    }
                    Err(source) => Err(Error::Decode { operation: operation(), source }),
                };
            }
            match self.answer.chunk().await? {
                Some(data) => self.rest.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }
}

/// A line of a watch: a change, or why there are no more.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum WatchLine {
    Error { error: ApiError },
    Change(Change),
}

impl fmt::Debug for ArchiveStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveStream").finish_non_exhaustive()
    }
}

fn put(sandbox: &str, target: &ArchiveIn) -> Call {
    let query = format!("/archive?path={}&keep_ids={}", encode(&target.path), target.keep_ids);
    let operation = format!("copy into {} of sandbox {sandbox}", target.path);
    Call::new(Method::PUT, sandbox_path(sandbox, &query), operation)
}

impl Client {
    /// Unpacks the tar that `archive` yields into a directory of a sandbox.
    pub async fn put_archive(
        &self,
        sandbox: &str,
        target: &ArchiveIn,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<ArchiveReport, Error> {
        self.call(put(sandbox, target).upload(TAR_TYPE, archive)).await
    }

    /// As [`Client::put_archive`], of what is packed meanwhile, and without copying it once more.
    pub async fn put_packed(
        &self,
        sandbox: &str,
        target: &ArchiveIn,
        tar: PackedTar,
    ) -> Result<ArchiveReport, Error> {
        self.call(put(sandbox, target).upload_pieces(TAR_TYPE, tar)).await
    }

    /// A tar of a path of a sandbox.
    pub async fn get_archive(&self, sandbox: &str, source: &ArchiveOut) -> Result<ArchiveStream, Error> {
        let mut query = format!("/archive?path={}", encode(&source.path));
        let patterns = [
            ("exclude", &source.exclude),
            ("include", &source.include),
            ("exclude_files", &source.exclude_files),
            ("protect", &source.protect),
        ];
        for (name, patterns) in patterns {
            if !patterns.is_empty() {
                query.push_str(&format!("&{name}={}", encode(patterns)));
            }
        }
        if source.ignore_failed_read {
            query.push_str("&ignore_failed_read=true");
        }
        if source.sparse {
            query.push_str("&sparse=true");
        }
        let operation = format!("copy {} out of sandbox {sandbox}", source.path);
        let call = Call::new(Method::GET, sandbox_path(sandbox, &query), operation).with_trailers();
        let answer = self.send(call).await?;
        ArchiveStream::of(answer)
    }

    /// Bytes of one file of a sandbox, to be read to their end.
    pub async fn read_file(&self, sandbox: &str, file: &FileOut) -> Result<ArchiveStream, Error> {
        let mut query = format!("/file?path={}&offset={}", encode(&file.path), file.offset);
        if let Some(length) = file.length {
            query.push_str(&format!("&length={length}"));
        }
        if let Some(user) = &file.user {
            query.push_str(&format!("&user={}", encode(user)));
        }
        let operation = format!("read {} of sandbox {sandbox}", file.path);
        let answer = self.send(Call::new(Method::GET, sandbox_path(sandbox, &query), operation)).await?;
        let (operation, report) = (answer.operation().to_owned(), ReportOnceRead::default());
        let connection = answer.connection;
        let data = contents(answer.response.into_body(), operation, report.clone());
        Ok(ArchiveStream { reader: StreamReader::new(Box::pin(data)), report, _connection: connection })
    }

    /// Makes `contents` a file of a sandbox, as a whole or not at all; tells its size in bytes.
    pub async fn write_file(
        &self,
        sandbox: &str,
        file: &FileIn,
        contents: impl AsyncRead + Send + 'static,
    ) -> Result<u64, Error> {
        let mut query = format!("/file?path={}&create_only={}", encode(&file.path), file.create_only);
        for (name, value) in [("mode", &file.mode), ("owner", &file.owner)] {
            if let Some(value) = value {
                query.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        let operation = format!("write {} of sandbox {sandbox}", file.path);
        let call = Call::new(Method::PUT, sandbox_path(sandbox, &query), operation);
        let report: FileReport = self.call(call.upload("application/octet-stream", contents)).await?;
        Ok(report.bytes)
    }

    /// Changes at or below a path of a sandbox, as they happen. The first is [`ChangeKind::Ready`].
    ///
    /// [`ChangeKind::Ready`]: berth_types::files::ChangeKind::Ready
    pub async fn watch(&self, sandbox: &str, watch: &WatchQuery) -> Result<Changes, Error> {
        let query = format!("/watch?path={}&recursive={}", encode(&watch.path), watch.recursive);
        let operation = format!("watch {} of sandbox {sandbox}", watch.path);
        let answer = self.send(Call::new(Method::GET, sandbox_path(sandbox, &query), operation)).await?;
        Ok(Changes { answer, rest: BytesMut::new() })
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
