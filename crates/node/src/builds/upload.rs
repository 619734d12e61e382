//! The contexts that clients send: unpacked into the scratch space, hashed on the way, counted, and removed in the end.
//!
//! The archive comes from a client and may hold anything. Every entry is made beneath the context's directory without
//! following a link; one that would be elsewhere, or that is no file, directory or link, fails the whole.

use std::io::{self, Read, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use berth_build::ContextSource;
use berth_build::context::Digests;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::listing::Listing;
use super::unpack::Unpack;
use crate::Error;
use crate::images::Body;

/// How the directories of build contexts are called in the scratch space.
const CONTEXT_PREFIX: &str = "context-";

/// How long a client may send nothing: others may wait for what it sends.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// What an entry counts beside its bytes: about what a file system needs for it.
const ENTRY_BYTES: u64 = 4096;

/// A context that has come. Its files are there as long as it lives.
#[derive(Debug)]
pub(super) struct Received {
    dir: Option<TempDir>,
    /// What it holds.
    pub(super) listing: Listing,
    /// Digests of its files.
    digests: Digests,
    _claim: Claim,
}

impl Received {
    pub(super) fn path(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// The same for a build, which need not hash it again.
    pub(super) fn source(&self) -> ContextSource<'_> {
        ContextSource::Hashed(self.path(), &self.digests)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        // Thousands of files take a while to remove.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(dir))),
            Err(_) => drop(dir),
        }
    }
}

/// Room for contexts, for all builds together.
#[derive(Debug)]
pub(super) struct Room {
    limit: Option<u64>,
    used: Mutex<u64>,
}

/// What one context has of it.
#[derive(Debug)]
pub(super) struct Claim {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(super) fn new(limit: Option<u64>) -> Arc<Room> {
        Arc::new(Room { limit, used: Mutex::new(0) })
    }

    fn used(&self) -> std::sync::MutexGuard<'_, u64> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    pub(super) fn new(room: Arc<Room>) -> Claim {
        Claim { room, bytes: 0 }
    }

    /// Takes room for one more entry of so many bytes.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Error> {
        let bytes = bytes.saturating_add(ENTRY_BYTES);
        let mut used = self.room.used();
        let after = used.saturating_add(bytes);
        if let Some(limit) = self.room.limit.filter(|limit| after > *limit) {
            return Err(Error::ContextRoom { limit });
        }
        *used = after;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.room.used() -= self.bytes;
    }
}

/// Takes a context in: a tar.
///
/// # Errors
/// [`Error::BadContext`] for a body that is no tar or breaks off, [`Error::ContextEntry`] for what no context may hold,
/// [`Error::ContextRoom`] and [`Error::Context`] where it does not fit or cannot be written.
pub(super) async fn receive(context: Body, tmp: &Path, room: &Arc<Room>) -> Result<Received, Error> {
    let (tmp, claim) = (tmp.to_owned(), Claim::new(room.clone()));
    let runtime = tokio::runtime::Handle::current();
    // All that is made belongs to the thread: whoever waits may go away at any time.
    let work = tokio::task::spawn_blocking(move || {
        let _entered = runtime.enter();
        let body = tokio_util::io::SyncIoBridge::new(Patient::new(context));
        take_in(body, &tmp, claim)
    });
    work.await.map_err(|_| Error::Ending)?
}

fn take_in(body: impl Read, tmp: &Path, mut claim: Claim) -> Result<Received, Error> {
    let dir = tempfile::Builder::new().prefix(CONTEXT_PREFIX).tempdir_in(tmp).map_err(Error::Context)?;
    let mut body = io::BufReader::with_capacity(PIECE, body);
    let mut unpack = Unpack::new(dir.path())?;
    let mut archive = tar::Archive::new(&mut body);
    for entry in archive.entries().map_err(Error::BadContext)? {
        unpack.entry(&mut entry.map_err(Error::BadContext)?, &mut claim)?;
    }
    io::copy(&mut body, &mut io::sink()).map_err(Error::BadContext)?;
    let listing = unpack.finish()?;
    let digests = Arc::new(listing.digests());
    Ok(Received { dir: Some(dir), listing, digests, _claim: claim })
}

/// Reads what nobody needs, so that the client gets to read its answer.
pub(super) async fn drain(context: Body) {
    let mut context = Patient::new(context);
    let mut buffer = vec![0; PIECE];
    while matches!(context.read(&mut buffer).await, Ok(read) if read > 0) {}
}

/// Removes the contexts of builds that an earlier daemon did not live to end.
pub(crate) fn clear_contexts(tmp: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(tmp)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(CONTEXT_PREFIX.as_bytes()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// A body that fails when nothing comes for long.
struct Patient {
    inner: Body,
    deadline: Pin<Box<Sleep>>,
}

impl Patient {
    fn new(inner: Body) -> Patient {
        Patient { inner, deadline: Box::pin(tokio::time::sleep(PATIENCE)) }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        if read.is_ready() {
            self.deadline.as_mut().reset(Instant::now() + PATIENCE);
            return read;
        }
        std::task::ready!(self.deadline.as_mut().poll(context));
        let message = format!("nothing came for {} s", PATIENCE.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

/// A context that cannot be written because the disk is full is not the client's mistake, and nor is any other failure to
/// write it.
pub(super) fn unwritable(error: impl Into<io::Error>) -> Error {
    Error::Context(error.into())
}

/// Copies an entry's bytes; what cannot be read is the client's, what cannot be written is ours.
pub(super) fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    buffer: &mut Vec<u8>,
    mut seen: impl FnMut(&[u8]),
) -> Result<u64, Error> {
    buffer.resize(PIECE, 0);
    let mut all = 0;
    loop {
        let read = match from.read(buffer) {
            Ok(0) => return Ok(all),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::BadContext(error)),
        };
        seen(&buffer[..read]);
        to.write_all(&buffer[..read]).map_err(Error::Context)?;
        all += read as u64;
    }
}
