//! Files in and out of a sandbox.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveReport, FsRequest, FsResponse, TAR_TYPE};
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::Method;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::StreamReader;

use crate::sandboxes::sandbox_path;
use crate::transport::{Call, Connection, encode};
use crate::{Client, Error};

/// A tar that comes from a sandbox. Reading it fails when the connection breaks: its end is the archive's end.
pub struct ArchiveStream {
    reader: StreamReader<Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>, Bytes>,
    _connection: Connection,
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
        let operation = format!("copy {} out of sandbox {sandbox}", source.path);
        let answer = self.send(Call::new(Method::GET, sandbox_path(sandbox, &query), operation)).await?;
        let headers = answer.response.headers();
        if !headers.contains_key(TRANSFER_ENCODING) && !headers.contains_key(CONTENT_LENGTH) {
            return Err(Error::Unframed { operation: answer.operation().to_owned() });
        }
        let connection = answer.connection;
        let data = answer.response.into_body().into_data_stream().map_err(io::Error::other);
        Ok(ArchiveStream { reader: StreamReader::new(Box::pin(data)), _connection: connection })
    }

    /// A small file-system call into a sandbox.
    pub async fn fs(&self, sandbox: &str, request: &FsRequest) -> Result<FsResponse, Error> {
        let operation = match request {
            FsRequest::Stat { path, .. } => format!("stat {path} in sandbox {sandbox}"),
            FsRequest::Mkdir { paths, .. } => format!("make {} in sandbox {sandbox}", paths.join(", ")),
            FsRequest::Empty { paths, .. } => format!("empty {} in sandbox {sandbox}", paths.join(", ")),
            FsRequest::Remove { paths } => format!("remove {} in sandbox {sandbox}", paths.join(", ")),
        };
        self.call(Call::new(Method::POST, sandbox_path(sandbox, "/fs"), operation).json(request)?).await
    }
}
