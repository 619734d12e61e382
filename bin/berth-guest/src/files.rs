//! The file work by itself, without a loop, a stream or threads: what `work` carries out for the host, and what is
//! tried out with bytes that no host would send.
//!
//! Paths are resolved in the root of the calling process. Packing, removing and emptying never leave the directory that
//! they are told of, whatever is exchanged for what meanwhile; unpacking never leaves it by a symlink that the archive
//! brought. Everything else follows symlinks as any program does.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use berth_wire::{Failure, Fs, Outcome, Pack, ReadFile, Unpack, Watch, WriteFile};

/// Writes a tar of a path to `output`.
///
/// # Errors
/// What could not be read, where that is not to be left out; [`berth_wire::FailureCode::Cancelled`] when `output` fails.
pub fn pack(request: &Pack, output: &mut impl Write) -> Result<Outcome, Failure> {
    crate::pack::pack(request, output)
}

/// Unpacks the tar that `input` is.
///
/// # Errors
/// A malformed archive, and what the file system refuses; what was unpacked before stays.
pub fn unpack(request: &Unpack, input: &mut impl Read) -> Result<Outcome, Failure> {
    crate::unpack::unpack(request, input)
}

/// Carries out a small operation. Where it has a user, the calling *thread* has his rights over files from then on.
///
/// # Errors
/// What the file system refuses.
pub fn perform(request: &Fs) -> Result<Outcome, Failure> {
    crate::fsops::perform(request)
}

/// Writes a part of a regular file to `output`. As to its user, see [`perform`].
///
/// # Errors
/// What is no regular file, what the user may not read, a file that is cut meanwhile.
pub fn read(request: &ReadFile, output: &mut impl Write) -> Result<Outcome, Failure> {
    crate::readfile::read(request, output)
}

/// Writes a file of what `input` gives, as a whole or not at all. When `input` fails nothing of it stays.
///
/// # Errors
/// What the file system refuses, and what is there where something new was asked for.
pub fn write(request: &WriteFile, input: &mut impl Read) -> Result<Outcome, Failure> {
    crate::writefile::write(request, input)
}

/// Writes changes below a path to `output`, one JSON [`berth_wire::Change`] a line.
///
/// # Errors
/// Always, in the end: [`berth_wire::FailureCode::NotFound`] when what is watched is gone,
/// [`berth_wire::FailureCode::Cancelled`] when `stop` becomes readable or `output` fails.
pub fn watch(request: &Watch, output: &mut impl Write, stop: &OwnedFd) -> Result<Outcome, Failure> {
    crate::watch::watch(request, output, stop)
}
