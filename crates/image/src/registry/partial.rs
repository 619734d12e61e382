//! Downloads that are not whole yet: `tmp/part-<64 hex>`, the first bytes of the blob of that digest.
//!
//! They outlive a pull that failed and the daemon, so that the next pull goes on where the last one ended. Nothing vouches for
//! their bytes before the whole has its digest. They are bounded by age and in number of bytes, and removed once their layer
//! is unpacked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::digest::Digest;

const PREFIX: &str = "part-";
/// A broken download that nobody went on with for so long is given up.
const MAX_AGE: Duration = Duration::from_secs(3 * 24 * 3600);
/// Most that broken downloads take in all, in bytes; the oldest go first.
const MAX_BYTES: u64 = 8 << 30;
/// A download that did not come so far is not worth keeping, in bytes.
const MIN_KEPT: u64 = 256 << 10;

/// The downloads of one store.
pub(crate) struct Partials {
    dir: PathBuf,
    in_use: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
}

/// One download, which nobody else has while this lives. Dropped, it stays for the next one if it is worth it.
pub(crate) struct Partial {
    path: PathBuf,
    _alone: OwnedMutexGuard<()>,
}

impl Partials {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, in_use: Mutex::default() }
    }

    /// The download of a blob, as soon as nobody else is at it.
    pub(crate) async fn take(&self, digest: &Digest) -> Partial {
        let path = self.dir.join(format!("{PREFIX}{}", digest.hex()));
        Partial { path, _alone: self.lock_of(digest).lock_owned().await }
    }

    fn lock_of(&self, digest: &Digest) -> Arc<AsyncMutex<()>> {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = in_use.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(AsyncMutex::new(()));
        in_use.insert(digest.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Removes what is too old or too much. Blocks; what cannot be removed is met again by the next one.
    pub(crate) fn sweep(&self) {
        if let Err(error) = self.try_sweep(MAX_AGE, MAX_BYTES) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(dir = %self.dir.display(), error, "broken downloads cannot be cleared away");
        }
    }

    fn try_sweep(&self, max_age: Duration, max_bytes: u64) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|n| n.strip_prefix(PREFIX));
            let Some(digest) = digest.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()) else {
                continue;
            };
            let facts = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                facts => facts?,
            };
            found.push((facts.modified()?, facts.len(), digest, entry.path()));
        }
        // The newest first, which are kept while there is room.
        found.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
        let mut total = 0;
        for (modified, bytes, digest, path) in found {
            total += bytes;
            let age = SystemTime::now().duration_since(modified).unwrap_or_default();
            if age <= max_age && total <= max_bytes {
                continue;
            }
            // One that is being written stays.
            if let Ok(_alone) = self.lock_of(&digest).try_lock() {
                remove(&path)?;
                total -= bytes;
            }
        }
        Ok(())
    }
}

impl Partial {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file to go on with, and tells how much of it there is. One that is longer than the blob is begun anew.
    pub(crate) fn open(&self, size: u64) -> io::Result<(File, u64)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        let length = file.metadata()?.len();
        if length <= size {
            return Ok((file, length));
        }
        file.set_len(0)?;
        Ok((file, 0))
    }

    /// Gives up what there is.
    pub(crate) fn discard(&self) -> io::Result<()> {
        remove(&self.path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let short = fs::metadata(&self.path).is_ok_and(|facts| facts.len() < MIN_KEPT);
        if short {
            drop(remove(&self.path));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(dir: &Path, content: &str, bytes: usize, age: Duration) -> (Digest, PathBuf) {
        let digest = Digest::of(content.as_bytes());
        let path = dir.join(format!("{PREFIX}{}", digest.hex()));
        fs::write(&path, vec![0; bytes]).unwrap();
        let file = File::options().append(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        (digest, path)
    }

    #[tokio::test]
    async fn old_downloads_go_and_of_too_many_the_oldest_but_none_in_use() {
        let tmp = tempfile::tempdir().unwrap();
        let partials = Partials::new(tmp.path().to_owned());
        let hour = Duration::from_secs(3600);
        let (_, young) = make(tmp.path(), "young", 100, hour);
        let (_, middle) = make(tmp.path(), "middle", 100, hour * 2);
        let (used, in_use) = make(tmp.path(), "used", 100, hour * 50);
        let (_, old) = make(tmp.path(), "old", 100, hour * 40);
        fs::write(tmp.path().join("image-x"), "another's").unwrap();
        let held = partials.take(&used).await;
        partials.try_sweep(hour * 24, 1000).unwrap();
        assert!(young.exists() && middle.exists() && in_use.exists() && !old.exists());
        partials.try_sweep(hour * 24, 150).unwrap();
        assert!(young.exists() && !middle.exists() && in_use.exists());
        drop(held);
        assert!(!in_use.exists(), "one that is hardly begun is not kept");
        assert!(tmp.path().join("image-x").exists());
    }

    #[tokio::test]
    async fn one_that_is_longer_than_the_blob_is_begun_anew() {
        let tmp = tempfile::tempdir().unwrap();
        let partials = Partials::new(tmp.path().to_owned());
        let (digest, path) = make(tmp.path(), "x", 300_000, Duration::ZERO);
        let partial = partials.take(&digest).await;
        assert_eq!(partial.open(300_000).unwrap().1, 300_000);
        assert_eq!(partial.open(299_999).unwrap().1, 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
