//! Downloading a blob: resumed where it broke, from this place or the next, written and hashed on a thread of its own, and
//! readable meanwhile (`tail.rs`).

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::{Asked, Failures, RegistryError};
use super::partial::Partial;
use super::retry::checked;
use super::tail::{Growth, Tail};
use super::{Ask, Connection, Failure, Trouble};
use crate::digest::{Digest, Hasher};

/// Pieces on their way from the network to the disk; each is some 16 to 400 KB long.
const QUEUE: usize = 32;
const REHASH_BUFFER: usize = 1 << 20;
/// So many bytes between two failures count as going on.
const GOING_ON: u64 = 64 << 10;

/// What is downloaded: a blob's digest and size, by the manifest.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

enum Piece {
    Bytes(bytes::Bytes),
    /// The registry cannot go on in the middle.
    Restart,
}

/// A download under way.
pub(crate) struct Download {
    blob: Blob,
    path: PathBuf,
    /// How much there was before.
    pub(crate) resumed_at: u64,
    received: u64,
    /// The first place that gave some of it.
    given_by: Option<Box<Asked>>,
    pieces: Option<mpsc::Sender<Piece>>,
    writer: JoinHandle<io::Result<Digest>>,
    growth: Arc<Growth>,
    partial: Arc<Partial>,
}

impl Drop for Download {
    fn drop(&mut self) {
        // Whoever reads along hears of it; after a good end it says nothing more.
        self.growth.end(false);
    }
}

impl Download {
    /// Begins or goes on, and gives the reader that follows it.
    pub(crate) async fn begin(blob: Blob, partial: Partial) -> Result<(Self, Tail), RegistryError> {
        let partial = Arc::new(partial);
        let path = partial.path().to_owned();
        let keep = |source| RegistryError::Keep { path: path.clone(), source };
        let opening = Arc::clone(&partial);
        let size = blob.size;
        let opened = tokio::task::spawn_blocking(move || opening.open(size)).await;
        let (file, resumed_at) = opened.map_err(io::Error::other).and_then(|o| o).map_err(keep)?;
        let growth: Arc<Growth> = Arc::default();
        let tail = Tail::new(Arc::clone(&partial), Arc::clone(&growth)).map_err(keep)?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let (grows, held) = (Arc::clone(&growth), Arc::clone(&partial));
        let writer = tokio::task::spawn_blocking(move || {
            // Nobody else may have the file while this writes.
            let _held = held;
            write(file, queue, &grows)
        });
        let download = Self {
            blob,
            path: path.clone(),
            resumed_at,
            received: resumed_at,
            given_by: None,
            pieces: Some(pieces),
            writer,
            growth,
            partial,
        };
        Ok((download, tail))
    }

    pub(crate) fn blob(&self) -> &Blob {
        &self.blob
    }

    /// Downloads from the first place that has it all, and verifies the whole. `progress` hears the bytes so far.
    pub(crate) async fn run(
        mut self,
        places: &[&Connection],
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        progress(self.received);
        let mut failures = Failures::default();
        let mut missing = Vec::new();
        let mut complete = false;
        for place in places {
            let before = self.received;
            let downloaded = place.download(&mut self, progress).await;
            if self.received != before {
                self.given_by.get_or_insert_with(|| place.asked.clone());
            }
            match downloaded {
                Ok(()) => {
                    complete = true;
                    break;
                }
                Err(Failure::Trouble(trouble)) if trouble.status() == Some(404) => {
                    missing.push((place.asked.clone(), trouble));
                }
                Err(failure) => place.failed(&mut failures, failure)?,
            }
        }
        if !complete {
            let digest = self.blob.digest.to_string();
            if failures.is_empty()
                && let Some((asked, _)) = missing.first()
            {
                return Err(RegistryError::Missing { asked: asked.clone(), what: "a layer", digest });
            }
            for (asked, trouble) in missing {
                failures.add(&asked, trouble.into())?;
            }
            return Err(failures.into_error(places.first().map_or("", |place| &place.asked.reference)));
        }
        self.verify(places).await
    }

    async fn verify(&mut self, places: &[&Connection]) -> Result<(), RegistryError> {
        let keep = |source| RegistryError::Keep { path: self.path.clone(), source };
        self.pieces = None;
        let actual = (&mut self.writer).await.map_err(io::Error::other).and_then(|d| d).map_err(keep)?;
        if actual == self.blob.digest {
            self.growth.end(true);
            return Ok(());
        }
        // Nothing of it may be gone on with.
        self.partial.discard().map_err(keep)?;
        // Of several that gave parts of it the first one: whoever tries again does so without that one.
        let asked = self.given_by.take().or_else(|| places.first().map(|place| place.asked.clone()));
        let (expected, actual) = (self.blob.digest.to_string(), actual.to_string());
        match asked {
            Some(asked) => Err(RegistryError::DigestMismatch { what: "a layer", asked, expected, actual }),
            None => Ok(()),
        }
    }

    async fn push(&mut self, piece: Piece) -> Result<(), RegistryError> {
        let sent = match &self.pieces {
            Some(pieces) => pieces.send(piece).await.is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        // The writer has gone, and knows why.
        let result = (&mut self.writer).await.map_err(io::Error::other).and_then(|d| d);
        let source = result.err().unwrap_or_else(|| io::Error::other("the file is no longer written"));
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            // Others need the room more than the next attempt needs the beginning.
            drop(self.partial.discard());
        }
        Err(RegistryError::Keep { path: self.path.clone(), source })
    }

    async fn restart(&mut self) -> Result<(), RegistryError> {
        self.received = 0;
        self.push(Piece::Restart).await
    }
}

impl Connection {
    async fn download(
        &self,
        download: &mut Download,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Failure> {
        let mut retry = self.retry();
        while download.received < download.blob.size {
            let before = download.received;
            match self.download_rest(download, progress).await {
                Ok(()) => break,
                Err(Failure::Trouble(trouble)) => {
                    if download.received >= before + GOING_ON {
                        retry.went_on();
                    }
                    retry.after(trouble).await?;
                }
                Err(fatal) => return Err(fatal),
            }
        }
        Ok(())
    }

    async fn download_rest(
        &self,
        download: &mut Download,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Failure> {
        let expected = download.blob.size;
        let mut response = self.open(download).await?;
        while let Some(chunk) = response.chunk().await.map_err(Trouble::of)? {
            let received = download.received + chunk.len() as u64;
            if received > expected {
                // Never more on the disk than the manifest announces.
                self.check_size("a layer", expected, received)?;
            }
            download.push(Piece::Bytes(chunk)).await?;
            download.received = received;
            progress(received);
        }
        match download.received {
            got if got < expected => Err(Trouble::Short { got, expected }.into()),
            _ => Ok(()),
        }
    }

    /// The rest of the blob, or all of it where the registry cannot go on in the middle.
    async fn open(&self, download: &mut Download) -> Result<Response, Failure> {
        let url = self.at(&format!("blobs/{}", download.blob.digest))?;
        let expected = download.blob.size;
        loop {
            let from = download.received;
            let mut ask = Ask::new(Method::GET, url.clone());
            if from > 0 {
                ask = ask.header(RANGE, &format!("bytes={from}-"));
            }
            let response = self.once(ask.request()).await?;
            let status = response.status().as_u16();
            if from > 0 && (status == 416 || status == 206 && !continues(&response, from, expected)) {
                download.restart().await?;
                continue;
            }
            let response = checked(response).await?;
            if from > 0 && status != 206 {
                download.restart().await?;
            }
            let announced = response.content_length().map(|length| length + download.received);
            if let Some(actual) = announced.filter(|actual| *actual != expected) {
                let (what, asked) = ("a layer", self.asked.clone());
                let actual = Some(actual);
                return Err(RegistryError::SizeMismatch { what, asked, expected, actual }.into());
            }
            return Ok(response);
        }
    }
}

/// Whether a 206 is of the part that was asked for; one that does not say is trusted, since the digest tells.
fn continues(response: &Response, from: u64, size: u64) -> bool {
    let Some(range) = response.headers().get(CONTENT_RANGE) else { return true };
    let said = range.to_str().ok().and_then(|r| r.trim().strip_prefix("bytes "));
    let Some((range, total)) = said.and_then(|said| said.split_once('/')) else { return false };
    let begins = range.split_once('-').and_then(|(first, _)| first.parse::<u64>().ok()) == Some(from);
    begins && (total == "*" || total.parse::<u64>().ok() == Some(size))
}

/// The writer's thread: what was there before, then what comes; the digest of all of it.
fn write(mut file: File, mut queue: mpsc::Receiver<Piece>, growth: &Growth) -> io::Result<Digest> {
    let (mut hasher, mut bytes) = (Hasher::new(), 0u64);
    let mut buffer = vec![0; REHASH_BUFFER];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
        growth.grown_to(bytes);
    }
    drop(buffer);
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Bytes(chunk) => {
                file.write_all(&chunk)?;
                hasher.update(&chunk);
                bytes += chunk.len() as u64;
            }
            Piece::Restart => {
                file.set_len(0)?;
                file.rewind()?;
                (hasher, bytes) = (Hasher::new(), 0);
            }
        }
        growth.grown_to(bytes);
    }
    Ok(hasher.finish())
}
