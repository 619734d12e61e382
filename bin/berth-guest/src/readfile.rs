//! A part of a regular file, as somebody may read it.

use std::io::Write;
use std::os::fd::OwnedFd;

use berth_wire::{FailureCode, MAX_DATA, Outcome, ReadFile};
use rustix::fs::{CWD, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::places::{self, file_type, identity};

/// How often a path may lead somewhere else between two looks.
const TRIES: usize = 16;

/// Carries out the request: the bytes to `output`.
///
/// Of a file that has a size, exactly those bytes come that it had when it was opened, so that one that grows for ever
/// has an end; one that is cut meanwhile fails. Files of the kernel's tell no size and are read to their end.
pub(crate) fn read(request: &ReadFile, output: &mut impl Write) -> Result<Outcome> {
    let path = failure::absolute(&request.path)?;
    places::see_as(request.user.as_deref())?;
    let (file, stat) = open(path)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let known = (size > 0).then(|| size.saturating_sub(request.offset));
    let wanted = request.length.unwrap_or(u64::MAX);
    let left = known.map_or(wanted, |known| known.min(wanted));
    let sent = copy(path, &file, request.offset, left, output)?;
    if known.is_some() && sent < left {
        let message = "read: the file became shorter meanwhile";
        return Err(failure::because(FailureCode::Io, message, Some(path)));
    }
    output.flush().map_err(|_| cancelled())?;
    Ok(Outcome::Read { size })
}

/// Opens a regular file for reading. What else there is is told by a descriptor that does not open it: to open a
/// device may do something, and to open a FIFO waits.
fn open(path: &[u8]) -> Result<(OwnedFd, Stat)> {
    let fail = |errno| failure::at("open", path, errno);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        let place = places::open(CWD, path, places::PLACE).map_err(fail)?;
        let there = rustix::fs::fstat(&place).map_err(fail)?;
        match file_type(&there) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(fail(Errno::ISDIR)),
            _ => {
                let message = "open: not a regular file";
                return Err(failure::because(FailureCode::Refused, message, Some(path)));
            }
        }
        let file = places::open(CWD, path, flags).map_err(fail)?;
        let stat = rustix::fs::fstat(&file).map_err(fail)?;
        if identity(&stat) == identity(&there) {
            return Ok((file, stat));
        }
    }
    Err(failure::because(FailureCode::Io, "open: it is replaced again and again", Some(path)))
}

/// Sends at most `left` bytes; says how many it was.
fn copy(path: &[u8], file: &OwnedFd, offset: u64, left: u64, output: &mut impl Write) -> Result<u64> {
    let mut buffer = vec![0; MAX_DATA];
    let mut sent = 0;
    while sent < left {
        let wanted = usize::try_from(left - sent).unwrap_or(MAX_DATA).min(MAX_DATA);
        // No file is longer than the largest offset there is.
        let Some(at) = offset.checked_add(sent).filter(|at| i64::try_from(*at).is_ok()) else { break };
        let len = match rustix::io::pread(file, &mut buffer[..wanted], at) {
            Ok(0) => break,
            Ok(len) => len,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failure::at("read", path, errno)),
        };
        output.write_all(&buffer[..len]).map_err(|_| cancelled())?;
        sent += len as u64;
    }
    Ok(sent)
}

fn cancelled() -> berth_wire::Failure {
    failure::because(FailureCode::Cancelled, "nobody takes the file any more", None)
}
