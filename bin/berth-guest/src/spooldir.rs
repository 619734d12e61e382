//! Files of spools: in a directory on the sandbox's disk that no path inside leads to.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::exec::above_stdio;
use crate::spool::{Disk, ring_parts};

/// Where the files are made.
#[derive(Clone)]
pub(crate) struct SpoolDir(Option<Rc<Place>>);

struct Place {
    dir: OwnedFd,
    /// Whether files of an earlier guest were removed.
    swept: Cell<bool>,
}

impl SpoolDir {
    /// Without a directory there are no files.
    pub(crate) fn new(dir: Option<OwnedFd>) -> Self {
        Self(dir.map(|dir| Rc::new(Place { dir, swept: Cell::new(false) })))
    }

    /// A new file; `None` where none can be made.
    pub(crate) fn file(&self, name: String) -> Option<Box<dyn Disk>> {
        let place = self.0.clone()?;
        if !place.swept.replace(true) {
            sweep(&place.dir);
        }
        let file = File { place, name, fd: RefCell::new(None) };
        let made = file.open(OFlags::CREATE | OFlags::TRUNC);
        made.is_ok().then(|| Box::new(file) as Box<dyn Disk>)
    }
}

/// What an earlier guest of this sandbox left is of no use: what it ran is gone.
fn sweep(dir: &OwnedFd) {
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.flatten() {
        // `.` and `..` are refused.
        let _ = rustix::fs::unlinkat(dir, entry.file_name(), AtFlags::empty());
    }
}

/// One file; removed with this.
struct File {
    place: Rc<Place>,
    name: String,
    /// Open only while it is needed: there may be thousands.
    fd: RefCell<Option<OwnedFd>>,
}

impl File {
    fn open(&self, flags: OFlags) -> Result<(), Errno> {
        let mut fd = self.fd.borrow_mut();
        if fd.is_none() {
            let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let opened = rustix::fs::openat(&self.place.dir, &self.name, flags, Mode::from_raw_mode(0o600))?;
            *fd = Some(above_stdio(opened)?);
        }
        Ok(())
    }

    fn with<T>(&self, act: impl FnOnce(&OwnedFd) -> Result<T, Errno>) -> Result<T, Errno> {
        self.open(OFlags::empty())?;
        self.fd.borrow().as_ref().map_or(Err(Errno::BADF), act)
    }
}

impl Disk for File {
    fn rest(&self) {
        *self.fd.borrow_mut() = None;
    }

    fn write_at(&self, at: u64, mut bytes: &[u8]) -> Result<(), Errno> {
        let mut at = at;
        self.with(|fd| {
            while !bytes.is_empty() {
                match rustix::io::pwrite(fd, bytes, at) {
                    Ok(0) => return Err(Errno::NOSPC),
                    Ok(len) => (bytes, at) = (&bytes[len..], at + len as u64),
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), Errno> {
        let mut done = 0;
        self.with(|fd| {
            while done < into.len() {
                match rustix::io::pread(fd, &mut into[done..], at + done as u64) {
                    Ok(0) => return Err(Errno::IO),
                    Ok(len) => done += len,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.place.dir, &self.name, AtFlags::empty());
    }
}

/// Bytes of the archive. Beyond it the oldest are overwritten.
const ARCHIVE: u64 = 64 << 20;

/// One file for the little outputs of many execs that are over: a ring in which each is whole.
pub(crate) struct Archive {
    file: Option<Box<dyn Disk>>,
    end: u64,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self { file: None, end: 0 }
    }

    /// Puts `bytes` away; gives where, or `None` where that cannot be done.
    pub(crate) fn put(&mut self, bytes: &[u8], dir: &SpoolDir) -> Option<u64> {
        if self.file.is_none() {
            self.file = dir.file("archive".to_owned());
        }
        let len = u32::try_from(bytes.len()).ok()?;
        let entry = [&len.to_le_bytes(), bytes].concat();
        let (at, file) = (self.end, self.file.as_ref()?);
        let parts = ring_parts(ARCHIVE, at, entry.len());
        // Also after a write that failed: it may have gone half over what was there.
        self.end += entry.len() as u64;
        let put = |(at, range): (u64, std::ops::Range<usize>)| file.write_at(at, &entry[range]).is_ok();
        parts.into_iter().all(put).then_some(at)
    }

    /// Whether what was put at `at` was not overwritten.
    pub(crate) fn has(&self, at: u64) -> bool {
        at + ARCHIVE >= self.end
    }

    /// What was put at `at`, unless it was overwritten.
    pub(crate) fn get(&self, at: u64) -> Option<Vec<u8>> {
        let mut len = [0; 4];
        self.read(at, &mut len)?;
        let len = u64::from(u32::from_le_bytes(len));
        if at + 4 + len > self.end {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.read(at + 4, &mut bytes)?;
        Some(bytes)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Option<()> {
        let file = self.file.as_ref().filter(|_| self.has(at))?;
        for (at, range) in ring_parts(ARCHIVE, at, into.len()) {
            if !range.is_empty() {
                file.read_at(at, &mut into[range]).ok()?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

    use super::*;

    fn dir() -> (tempfile::TempDir, SpoolDir) {
        let temp = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(temp.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (temp, SpoolDir::new(Some(fd)))
    }

    fn count(temp: &tempfile::TempDir) -> usize {
        std::fs::read_dir(temp.path()).unwrap().count()
    }

    #[test]
    fn a_file_keeps_its_bytes_while_it_rests_and_goes_with_its_owner() {
        let (temp, dir) = dir();
        std::fs::write(temp.path().join("7"), "of an earlier guest").unwrap();
        std::fs::write(temp.path().join("8"), "of an earlier guest").unwrap();
        let file = dir.file("7".into()).unwrap();
        assert_eq!(count(&temp), 1);
        file.write_at(10_000, b"hello").unwrap();
        file.rest();
        let mut read = [0; 5];
        file.read_at(10_000, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        assert!(file.read_at(10_001, &mut read).is_err(), "what is not there is not made up");
        drop(file);
        assert_eq!(count(&temp), 0);
    }

    #[test]
    fn the_archive_gives_back_what_is_not_overwritten() {
        let (_temp, dir) = dir();
        let mut archive = Archive::new();
        let text = |n: u64| format!("entry {n} ").repeat(90_000).into_bytes();
        let places: Vec<u64> = (0..100).map(|n| archive.put(&text(n), &dir).unwrap()).collect();
        assert!(archive.end > ARCHIVE);
        let mut there = 0;
        for (n, at) in (0..).zip(&places) {
            match archive.get(*at) {
                Some(bytes) => {
                    assert!(bytes == text(n));
                    there += 1;
                }
                None => assert_eq!(there, 0, "only the oldest are gone"),
            }
        }
        assert!(there > 60 && there < 100, "{there}");
        assert!(Archive::new().put(b"x", &SpoolDir::new(None)).is_none());
    }
}
