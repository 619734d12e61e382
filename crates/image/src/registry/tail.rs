//! Reading a file that is still being downloaded, so that a layer is unpacked while it comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::partial::Partial;

/// How far a download is.
#[derive(Default)]
pub(crate) struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: u64,
    /// Whether it ended well, once it ended.
    ended: Option<bool>,
}

impl Growth {
    pub(crate) fn grown_to(&self, bytes: u64) {
        self.lock().bytes = bytes;
        self.changed.notify_all();
    }

    /// The end: with the digest that was asked for, or before.
    pub(crate) fn end(&self, well: bool) {
        self.lock().ended.get_or_insert(well);
        self.changed.notify_all();
    }

    /// Waits until there is something at `position`; how much there is, 0 at the end.
    fn wait(&self, position: u64) -> io::Result<u64> {
        let mut state = self.lock();
        loop {
            match state.ended {
                Some(false) => return Err(io::Error::other("the download did not come to its end")),
                _ if state.bytes > position => return Ok(state.bytes - position),
                Some(true) => return Ok(0),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a download as they come. Its end is only seen after the whole was verified, and with it the file is
/// removed: what was unpacked is not needed again, and need not be written to the disk.
pub(crate) struct Tail {
    file: File,
    position: u64,
    growth: Arc<Growth>,
    partial: Arc<Partial>,
}

impl Tail {
    pub(crate) fn new(partial: Arc<Partial>, growth: Arc<Growth>) -> io::Result<Self> {
        let file = File::open(partial.path())?;
        Ok(Self { file, position: 0, growth, partial })
    }
}

impl Read for Tail {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let there = self.growth.wait(self.position)?;
            if there == 0 {
                self.partial.discard()?;
                return Ok(0);
            }
            let most = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
            let n = self.file.read_at(&mut buf[..most], self.position)?;
            // Nothing there after all: the download was begun anew at this moment.
            if n > 0 || most == 0 {
                self.position += n as u64;
                return Ok(n);
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::digest::Digest;
    use crate::registry::partial::Partials;

    async fn download() -> (tempfile::TempDir, Arc<Partial>, File, Arc<Growth>) {
        let tmp = tempfile::tempdir().unwrap();
        let partial = Partials::new(tmp.path().to_owned()).take(&Digest::of(b"x")).await;
        let (file, _) = partial.open(1000).unwrap();
        (tmp, Arc::new(partial), file, Arc::default())
    }

    #[tokio::test]
    async fn what_is_written_is_read_while_it_comes_and_removed_at_the_end() {
        let (_tmp, partial, mut file, growth) = download().await;
        let mut tail = Tail::new(Arc::clone(&partial), Arc::clone(&growth)).unwrap();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            tail.read_to_string(&mut text).map(|_| text)
        });
        for (part, length) in [("one ", 4), ("two", 7)] {
            file.write_all(part.as_bytes()).unwrap();
            growth.grown_to(length);
        }
        growth.end(true);
        assert_eq!(reader.join().unwrap().unwrap(), "one two");
        assert!(!partial.path().exists());
    }

    #[tokio::test]
    async fn a_download_that_breaks_is_no_end() {
        let (_tmp, partial, mut file, growth) = download().await;
        file.write_all(b"one").unwrap();
        growth.grown_to(3);
        growth.end(false);
        growth.end(true);
        let mut tail = Tail::new(Arc::clone(&partial), growth).unwrap();
        assert!(tail.read_to_end(&mut Vec::new()).is_err());
        assert!(partial.path().exists());
    }
}
