//! Open files and directories, by handles that are never given twice.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::{self, Attributes};
use super::packet::MAX_BLOCK;
use super::paths;
use super::session::{Answer, Name, Outcome, Refusal};
use crate::users::Names;

/// Most files that a client may have open at once; well below the soft limit that commands usually have.
pub(super) const MAX_HANDLES: usize = 256;

/// Entries of one answer; each is some 600 bytes at most.
const LISTED: usize = 128;

/// Flags of an open.
const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
const EXCLUSIVE: u32 = 32;

/// What a file gets when the client does not say; the umask is taken off.
const FILE_MODE: u32 = 0o666;

#[derive(Default)]
pub(super) struct Handles {
    open: HashMap<u64, Open>,
    given: u64,
}

enum Open {
    File(OwnedFd),
    Directory(Dir),
}

impl Open {
    fn fd(&self) -> Result<BorrowedFd<'_>, Refusal> {
        match self {
            Self::File(file) => Ok(file.as_fd()),
            Self::Directory(dir) => Ok(dir.fd()?),
        }
    }
}

impl Handles {
    pub(super) fn open(&mut self, path: &[u8], flags: u32, attributes: &Attributes) -> Outcome {
        let bit = |bit: u32, flag: OFlags| if flags & bit != 0 { flag } else { OFlags::empty() };
        let access = match flags & (READ | WRITE) {
            WRITE => OFlags::WRONLY,
            flags if flags == READ | WRITE => OFlags::RDWR,
            _ => OFlags::RDONLY,
        };
        // Not to wait for the other end of a FIFO; regular files do not care.
        let flags = access
            | bit(APPEND, OFlags::APPEND)
            | bit(CREATE, OFlags::CREATE)
            | bit(TRUNCATE, OFlags::TRUNC)
            | bit(EXCLUSIVE, OFlags::EXCL)
            | OFlags::NONBLOCK
            | OFlags::NOCTTY
            | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(FILE_MODE) & 0o7777);
        self.give(|| Ok(Open::File(rustix::fs::open(path, flags, mode)?)))
    }

    pub(super) fn open_directory(&mut self, path: &[u8]) -> Outcome {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.give(|| Ok(Open::Directory(Dir::new(rustix::fs::open(path, flags, Mode::empty())?)?)))
    }

    fn give(&mut self, open: impl FnOnce() -> Result<Open, Errno>) -> Outcome {
        if self.open.len() >= MAX_HANDLES {
            return Err(Refusal::TooManyHandles);
        }
        let open = open()?;
        self.given += 1;
        self.open.insert(self.given, open);
        Ok(Answer::Handle(self.given))
    }

    fn get(&mut self, handle: &[u8]) -> Result<&mut Open, Refusal> {
        number(handle).and_then(|handle| self.open.get_mut(&handle)).ok_or(Refusal::BadHandle)
    }

    fn file(&mut self, handle: &[u8]) -> Result<&OwnedFd, Refusal> {
        match self.get(handle)? {
            Open::File(file) => Ok(file),
            Open::Directory(_) => Err(Refusal::BadHandle),
        }
    }

    pub(super) fn close(&mut self, handle: &[u8]) -> Outcome {
        let open = number(handle).and_then(|handle| self.open.remove(&handle));
        open.map(|_| Answer::Done).ok_or(Refusal::BadHandle)
    }

    pub(super) fn read(&mut self, handle: &[u8], offset: u64, wanted: u32) -> Outcome {
        let file = self.file(handle)?;
        let mut data = vec![0; (wanted as usize).min(MAX_BLOCK)];
        let mut len = 0;
        // A short answer would be taken for the end of the file by some clients.
        while len < data.len() {
            match rustix::io::pread(file, &mut data[len..], offset.saturating_add(len as u64)) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(Errno::INTR) => {}
                Err(_) if len > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        data.truncate(len);
        if len == 0 { Err(Refusal::Eof) } else { Ok(Answer::Data(data)) }
    }

    pub(super) fn write(&mut self, handle: &[u8], mut offset: u64, mut data: &[u8]) -> Outcome {
        let file = self.file(handle)?;
        while !data.is_empty() {
            match rustix::io::pwrite(file, data, offset) {
                Ok(0) => return Err(Errno::IO.into()),
                Ok(len) => {
                    data = &data[len..];
                    offset = offset.saturating_add(len as u64);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(Answer::Done)
    }

    pub(super) fn stat(&mut self, handle: &[u8]) -> Outcome {
        let stat = rustix::fs::fstat(self.get(handle)?.fd()?)?;
        Ok(Answer::Attributes(Attributes::of(&stat)))
    }

    /// The owner first, since a change of that takes set-id bits away; and times last, since everything changes those.
    pub(super) fn set(&mut self, handle: &[u8], attributes: &Attributes) -> Outcome {
        let fd = self.get(handle)?.fd()?;
        if let Some(size) = attributes.size {
            rustix::fs::ftruncate(fd, size)?;
        }
        if let Some((uid, gid)) = attributes.owner {
            let (uid, gid) = paths::ids(uid, gid);
            rustix::fs::fchown(fd, uid, gid)?;
        }
        if let Some(mode) = attributes.mode {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if let Some(times) = attributes.times {
            rustix::fs::futimens(fd, &paths::timestamps(times))?;
        }
        Ok(Answer::Done)
    }

    pub(super) fn file_system(&mut self, handle: &[u8]) -> Outcome {
        Ok(paths::told(&rustix::fs::fstatvfs(self.get(handle)?.fd()?)?))
    }

    pub(super) fn sync(&mut self, handle: &[u8]) -> Outcome {
        rustix::fs::fsync(self.file(handle)?)?;
        Ok(Answer::Done)
    }

    /// The next entries of a directory.
    pub(super) fn list(&mut self, handle: &[u8], names: &Names) -> Outcome {
        let Open::Directory(dir) = self.get(handle)? else { return Err(Refusal::BadHandle) };
        let mut listed = Vec::new();
        while listed.len() < LISTED {
            match dir.read() {
                Some(Ok(entry)) => listed.extend(describe(dir.fd()?, entry.file_name().to_bytes(), names)),
                // What was read is told first; the error comes again, or is over.
                Some(Err(_)) if !listed.is_empty() => break,
                Some(Err(errno)) => return Err(errno.into()),
                None => break,
            }
        }
        if listed.is_empty() { Err(Refusal::Eof) } else { Ok(Answer::Names(listed)) }
    }
}

/// `None` for what is gone meanwhile. What is there and may not be looked at is there all the same.
fn describe(dir: BorrowedFd<'_>, name: &[u8], names: &Names) -> Option<Name> {
    let (long, attributes) = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => (attributes::long_name(name, &stat, names), Attributes::of(&stat)),
        Err(Errno::NOENT) => return None,
        Err(_) => (attributes::unknown(name), Attributes::default()),
    };
    Some(Name { name: name.to_vec(), long, attributes })
}

fn number(handle: &[u8]) -> Option<u64> {
    handle.try_into().ok().map(u64::from_be_bytes)
}

/// Opens what may be cut at the path, without waiting for anything.
pub(super) fn open_to_cut(path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let is_file = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
    if is_file { Ok(file) } else { Err(Errno::INVAL) }
}
