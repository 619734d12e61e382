//! Writing a file as a whole: it is there with all of its bytes, or nothing of it is.
//!
//! The bytes go to a file of another name in the same directory, which takes the right name when they are complete. So
//! readers see the old file or the new one, and a full disk leaves the old one. Nothing is forced to the disk: what
//! happens when the machine loses power is the file system's business.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;

use berth_wire::{Failure, FailureCode, MAX_DATA, Outcome, WriteFile};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::places::{self, file_type};

/// How many names are tried for the file that takes the bytes.
const TRIES: usize = 100;
/// Mode of a file that replaces none.
const MODE: u32 = 0o644;

/// Carries out the request with the bytes of `input`, which ends in an error when it is not complete.
pub(crate) fn write(request: &WriteFile, input: &mut impl Read) -> Result<Outcome> {
    let path = failure::absolute(&request.path)?;
    let owner = request.owner.as_deref().map(places::ids).transpose()?;
    let Some((parent, name)) = places::split(path).filter(|_| !path.ends_with(b"/")) else {
        return Err(failure::because(FailureCode::Invalid, "write: not the name of a file", Some(path)));
    };
    let mut made = Made::find(parent);
    let dir = places::make(parent, None)?.dir;
    let attributes = attributes(request, path, &dir, name, owner)?;
    let temporary = Temporary::new(path, &dir)?;
    let bytes = fill(path, &temporary.file, input)?;
    attributes.set(path, &temporary.file)?;
    temporary.take_name(path, name, request.create_only)?;
    made.keep();
    Ok(Outcome::Written { bytes })
}

/// How the file will look.
struct Attributes {
    mode: u32,
    owner: (u32, u32),
}

/// Looks at what the file replaces, and refuses early what cannot end well: before the bytes come.
fn attributes(
    request: &WriteFile,
    path: &[u8],
    dir: &OwnedFd,
    name: &[u8],
    owner: Option<(u32, u32)>,
) -> Result<Attributes> {
    let old: Option<Stat> = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(failure::at("look at", path, errno)),
    };
    if let Some(stat) = &old {
        if request.create_only {
            return Err(exists(path));
        }
        if file_type(stat) == FileType::Directory {
            return Err(failure::at("write", path, Errno::ISDIR));
        }
    }
    // The mode of a link, or of a socket, is not meant for a file.
    let old = old.filter(|stat| file_type(stat) == FileType::RegularFile);
    Ok(Attributes {
        mode: request.mode.unwrap_or_else(|| old.map_or(MODE, |stat| stat.st_mode)) & 0o7777,
        owner: owner.unwrap_or_else(|| old.map_or((0, 0), |stat| (stat.st_uid, stat.st_gid))),
    })
}

impl Attributes {
    /// The owner first: to change it clears set-id bits.
    fn set(&self, path: &[u8], file: &OwnedFd) -> Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.owner.0)), Some(Gid::from_raw(self.owner.1)));
        rustix::fs::fchown(file, uid, gid).map_err(|errno| match errno {
            // An id that the sandbox's user namespace does not have.
            Errno::INVAL => {
                let message = "change owner: there is no such user or group in the sandbox";
                failure::because(FailureCode::Invalid, message, Some(path))
            }
            errno => failure::at("change owner", path, errno),
        })?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(self.mode))
            .map_err(|errno| failure::at("change mode", path, errno))
    }
}

/// The file that takes the bytes; gone when it is dropped before it has its name.
struct Temporary<'a> {
    dir: &'a OwnedFd,
    name: Vec<u8>,
    file: OwnedFd,
    is_settled: bool,
}

impl<'a> Temporary<'a> {
    fn new(path: &[u8], dir: &'a OwnedFd) -> Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .map_err(|errno| failure::at("find a name for", path, errno))?;
            let name = format!(".berth-{:016x}~", u64::from_ne_bytes(random)).into_bytes();
            match rustix::fs::openat(dir, &name[..], flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => return Ok(Self { dir, name, file, is_settled: false }),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failure::at("create file", path, errno)),
            }
        }
        Err(failure::at("create file", path, Errno::EXIST))
    }

    fn take_name(mut self, path: &[u8], name: &[u8], create_only: bool) -> Result<()> {
        let renamed = if create_only {
            match self.rename(name, RenameFlags::NOREPLACE) {
                // A file system that does not know the flag; a second link refuses as well.
                Err(Errno::INVAL | Errno::NOSYS) => self.link(name),
                other => other,
            }
        } else {
            self.rename(name, RenameFlags::empty())
        };
        match renamed {
            Ok(()) => {
                self.is_settled = true;
                Ok(())
            }
            Err(Errno::EXIST) => Err(exists(path)),
            Err(Errno::BUSY) => {
                let message = "write: something is mounted there, which cannot be replaced as a whole";
                Err(failure::because(FailureCode::Refused, message, Some(path)))
            }
            Err(errno) => Err(failure::at("write", path, errno)),
        }
    }

    fn rename(&self, name: &[u8], flags: RenameFlags) -> std::result::Result<(), Errno> {
        rustix::fs::renameat_with(self.dir, &self.name[..], self.dir, name, flags)
    }

    fn link(&self, name: &[u8]) -> std::result::Result<(), Errno> {
        rustix::fs::linkat(self.dir, &self.name[..], self.dir, name, AtFlags::empty())?;
        let _ = rustix::fs::unlinkat(self.dir, &self.name[..], AtFlags::empty());
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            // There is nobody to tell.
            let _ = rustix::fs::unlinkat(self.dir, &self.name[..], AtFlags::empty());
        }
    }
}

/// Directories that are not there yet, to be removed again when nothing comes into them.
struct Made<'a> {
    /// The deepest first.
    missing: Vec<&'a [u8]>,
}

impl<'a> Made<'a> {
    fn find(parent: &'a [u8]) -> Self {
        let mut missing = Vec::new();
        let mut rest = parent;
        while let Some(end) = rest.iter().rposition(|byte| *byte != b'/') {
            let path = &rest[..=end];
            if !matches!(rustix::fs::statat(CWD, path, AtFlags::empty()), Err(Errno::NOENT)) {
                break;
            }
            missing.push(path);
            rest = &path[..path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)];
        }
        Self { missing }
    }

    fn keep(&mut self) {
        self.missing.clear();
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for path in &self.missing {
            // Those that somebody else has filled meanwhile stay.
            let _ = rustix::fs::unlinkat(CWD, *path, AtFlags::REMOVEDIR);
        }
    }
}

fn fill(path: &[u8], file: &OwnedFd, input: &mut impl Read) -> Result<u64> {
    let mut buffer = vec![0; MAX_DATA];
    let mut bytes = 0;
    loop {
        let len = match input.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {
                let message = "the rest of the file does not come any more";
                return Err(failure::because(FailureCode::Cancelled, message, Some(path)));
            }
        };
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            match rustix::io::write(file, rest) {
                Ok(len) => rest = &rest[len..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failure::at("write", path, errno)),
            }
        }
        bytes += len as u64;
    }
}

fn exists(path: &[u8]) -> Failure {
    failure::because(FailureCode::Exists, "write: something is there already", Some(path))
}
