//! Uploading: what the registry has is skipped, what another repository of it has is mounted, the rest is sent whole, and in
//! chunks where the registry takes no more at once.

use std::io::{self, SeekFrom};
use std::path::Path;

use http_body_util::StreamBody;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, Request, Response, Url};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::error::tidy;
use super::http::same_origin;
use super::retry::checked;
use super::{Ask, Connection, RegistryError, Trouble};
use crate::digest::Digest;

const STREAM_BUFFER: usize = 256 * 1024;
/// Where a registry takes no whole blob: so much at a time, in bytes.
const CHUNK: u64 = 16 << 20;
const BINARY: &str = "application/octet-stream";

/// How an upload began.
enum Begun {
    /// The registry had it in another repository.
    Mounted,
    /// Where to send it.
    At(Url),
}

/// Hears how many bytes of a blob were sent.
pub(crate) type Sent<'a> = &'a (dyn Fn(u64) + Send + Sync);

impl Connection {
    /// Whether the repository has a blob already.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<bool, Trouble> {
        let ask = Ask::new(Method::HEAD, self.at(&format!("blobs/{digest}"))?);
        match self.ask(&ask).await {
            Ok(_) => Ok(true),
            Err(trouble) if trouble.status() == Some(404) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Has the registry take a blob from its repository `from`; whether it did.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<bool, Trouble> {
        match self.begin(digest, Some(from)).await {
            Ok(begun) => Ok(matches!(begun, Begun::Mounted)),
            // It may not show the other repository to this user; then the blob is sent.
            Err(trouble) if matches!(trouble.status(), Some(400..=405)) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Sends a file as a blob.
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        file: &Path,
        size: u64,
        sent: Sent<'_>,
    ) -> Result<(), Trouble> {
        let mut retry = self.retry();
        let mut chunked = false;
        loop {
            let trouble = match self.try_put(digest, file, size, chunked, sent).await {
                Ok(()) => return Ok(()),
                Err(trouble) => trouble,
            };
            match trouble.status() {
                // Too large for one request.
                Some(413) if !chunked && size > CHUNK => chunked = true,
                _ => retry.after(trouble).await?,
            }
        }
    }

    async fn try_put(
        &self,
        digest: &Digest,
        file: &Path,
        size: u64,
        chunked: bool,
        sent: Sent<'_>,
    ) -> Result<(), Trouble> {
        let mut at = match self.begin(digest, None).await? {
            Begun::Mounted => {
                sent(size);
                return Ok(());
            }
            Begun::At(url) => url,
        };
        if chunked {
            at = self.put_chunks(at, file, size, sent).await?;
        }
        at.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut request = Request::new(Method::PUT, at);
        if chunked {
            request.headers_mut().insert(CONTENT_LENGTH, 0.into());
        } else {
            let body = Part { file, offset: 0, length: size, whole: size };
            self.attach(&mut request, &body, sent).await?;
        }
        self.send(request).await?;
        sent(size);
        Ok(())
    }

    async fn begin(&self, digest: &Digest, from: Option<&str>) -> Result<Begun, Trouble> {
        let mut url = self.at("blobs/uploads/")?;
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", from);
        }
        let mut ask = Ask::new(Method::POST, url.clone());
        ask = ask.header(CONTENT_LENGTH, "0").body(Vec::new());
        let response = checked(self.once(ask.request()).await?).await?;
        match response.status().as_u16() {
            201 => Ok(Begun::Mounted),
            _ => Ok(Begun::At(self.location(&url, &response)?)),
        }
    }

    /// Where the registry wants the next part; mostly, but not always, at itself.
    fn location(&self, asked: &Url, response: &Response) -> Result<Url, Trouble> {
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let url = location.and_then(|l| asked.join(l).ok()).filter(|u| u.has_host());
        url.ok_or_else(|| Trouble::Protocol("it does not say where to upload to".into()))
    }

    /// Signed for the registry only, whoever it sends the upload to.
    async fn send(&self, mut request: Request) -> Result<Response, Trouble> {
        let http = &self.registries.http;
        if same_origin(request.url(), &self.at("")?) {
            self.authorizer.sign(http, &mut request).await?;
        }
        let response = http.send(request).await?;
        if response.status().as_u16() == 401 {
            // The body is gone by now; what is fetched here serves the next attempt.
            let url = response.url().clone();
            if same_origin(&url, &self.at("")?) && self.authorizer.meet(http, response.headers()).await? {
                return Err(Trouble::Status { status: 408, words: "the token expired".into() });
            }
        }
        checked(response).await
    }

    async fn put_chunks(&self, mut at: Url, file: &Path, size: u64, sent: Sent<'_>) -> Result<Url, Trouble> {
        let mut offset = 0;
        while offset < size {
            let length = CHUNK.min(size - offset);
            let mut request = Request::new(Method::PATCH, at.clone());
            let range = format!("{offset}-{}", offset + length - 1);
            if let Ok(range) = range.parse() {
                request.headers_mut().insert(CONTENT_RANGE, range);
            }
            self.attach(&mut request, &Part { file, offset, length, whole: size }, sent).await?;
            let response = self.send(request).await?;
            at = self.location(&at, &response)?;
            offset += length;
        }
        Ok(at)
    }

    async fn attach(&self, request: &mut Request, part: &Part<'_>, sent: Sent<'_>) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::Local { path: part.file.to_owned(), source: error };
        let mut file = tokio::fs::File::open(part.file).await.map_err(failed)?;
        file.seek(SeekFrom::Start(part.offset)).await.map_err(failed)?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_LENGTH, part.length.into());
        headers.insert(CONTENT_TYPE, reqwest::header::HeaderValue::from_static(BINARY));
        sent(part.offset.min(part.whole));
        let stream = ReaderStream::with_capacity(file.take(part.length), STREAM_BUFFER);
        let frames = futures_util::StreamExt::map(stream, |chunk| chunk.map(http_body::Frame::data));
        *request.body_mut() = Some(Body::wrap(StreamBody::new(frames)));
        Ok(())
    }

    /// Sends a small blob.
    pub(crate) async fn put_small(&self, digest: &Digest, bytes: Vec<u8>) -> Result<(), Trouble> {
        if self.has_blob(digest).await? {
            return Ok(());
        }
        let mut retry = self.retry();
        loop {
            let put = async {
                let Begun::At(mut at) = self.begin(digest, None).await? else { return Ok(()) };
                at.query_pairs_mut().append_pair("digest", digest.as_str());
                let ask = Ask::new(Method::PUT, at).header(CONTENT_TYPE, BINARY).body(bytes.clone());
                self.send(ask.request()).await.map(drop)
            };
            match put.await {
                Ok(()) => return Ok(()),
                Err(trouble) => retry.after(trouble).await?,
            }
        }
    }

    /// Points the connection's tag at a manifest, and checks what the registry made of it.
    pub(crate) async fn put_manifest(
        &self,
        bytes: Vec<u8>,
        media_type: &str,
        tag: &str,
    ) -> Result<Digest, Trouble> {
        let digest = Digest::of(&bytes);
        let url = self.at(&format!("manifests/{tag}"))?;
        let ask = Ask::new(Method::PUT, url).header(CONTENT_TYPE, media_type).body(bytes);
        let response = self.ask(&ask).await?;
        let told = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        match told.filter(|told| told.starts_with("sha256:") && *told != digest.as_str()) {
            Some(told) => Err(Trouble::Protocol(format!("it says that {digest} has digest {}", tidy(told)))),
            None => Ok(digest),
        }
    }

    /// The error of a push.
    pub(crate) fn refused(&self, what: &'static str, trouble: Trouble) -> RegistryError {
        match (trouble.status(), &trouble) {
            (Some(401 | 403 | 429), _) | (None, Trouble::Tls { .. }) => self.error(trouble),
            _ => RegistryError::Push { asked: self.asked.clone(), what, source: Box::new(trouble) },
        }
    }
}

/// A part of a file.
struct Part<'a> {
    file: &'a Path,
    offset: u64,
    length: u64,
    whole: u64,
}
