//! The contexts that clients send.

use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::images::Body;

/// How the directories of build contexts are called in the scratch space.
pub(super) const CONTEXT_PREFIX: &str = "context-";

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

/// Unpacks the context and returns the digest of its bytes.
pub(super) async fn unpack_context(context: Body, dir: &Path) -> Result<[u8; 32], Error> {
    let (dir, runtime) = (dir.to_owned(), tokio::runtime::Handle::current());
    let work = tokio::task::spawn_blocking(move || {
        let _entered = runtime.enter();
        let mut body = Hashed { inner: tokio_util::io::SyncIoBridge::new(context), hash: Sha256::new() };
        let mut archive = tar::Archive::new(&mut body);
        archive.set_preserve_permissions(true);
        archive.set_preserve_mtime(true);
        archive.unpack(&dir).map_err(context_error)?;
        io::copy(&mut body, &mut io::sink()).map_err(Error::BadContext)?;
        Ok(body.hash.finalize().into())
    });
    work.await.map_err(|_| Error::Ending)?
}

/// A context that does not fit the disk is not the client's mistake.
fn context_error(error: io::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        let full = current.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(full, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return Error::Context(io::Error::new(io::ErrorKind::StorageFull, error));
        }
        cause = current.source();
    }
    Error::BadContext(error)
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: io::Read> io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}
