//! Requests that name a path. Relative ones begin in the working directory, where the command was started.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, RenameFlags, StatVfs, StatVfsMountFlags, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::session::{Answer, Name, Outcome};

/// What a directory gets when the client does not say; the umask is taken off.
const DIRECTORY_MODE: u32 = 0o777;
/// Bits of `f_flag` in a statvfs answer.
const READ_ONLY: u64 = 1;
const NO_SET_ID: u64 = 2;

fn follow(follow: bool) -> AtFlags {
    if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW }
}

pub(super) fn stat(path: &[u8], through_links: bool) -> Outcome {
    let stat = rustix::fs::statat(CWD, path, follow(through_links))?;
    Ok(Answer::Attributes(Attributes::of(&stat)))
}

/// In the same order as an open file's; a link itself has no size and no mode to set.
pub(super) fn set(path: &[u8], attributes: &Attributes, through_links: bool) -> Outcome {
    let is_link = || -> Result<bool, Errno> {
        let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(!through_links && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    };
    if (attributes.size.is_some() || attributes.mode.is_some()) && is_link()? {
        return Err(Errno::OPNOTSUPP.into());
    }
    if let Some(size) = attributes.size {
        rustix::fs::ftruncate(super::files::open_to_cut(path)?, size)?;
    }
    if let Some((uid, gid)) = attributes.owner {
        let (uid, gid) = ids(uid, gid);
        rustix::fs::chownat(CWD, path, uid, gid, follow(through_links))?;
    }
    if let Some(mode) = attributes.mode {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
    }
    if let Some(times) = attributes.times {
        rustix::fs::utimensat(CWD, path, &timestamps(times), follow(through_links))?;
    }
    Ok(Answer::Done)
}

/// -1 leaves an id as it is, as in chown(2).
pub(super) fn ids(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    let known = |id: u32| (id != u32::MAX).then_some(id);
    (known(uid).map(Uid::from_raw), known(gid).map(Gid::from_raw))
}

pub(super) fn timestamps((access, modification): (u32, u32)) -> Timestamps {
    let time = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    Timestamps { last_access: time(access), last_modification: time(modification) }
}

pub(super) fn remove(path: &[u8]) -> Outcome {
    rustix::fs::unlinkat(CWD, path, AtFlags::empty())?;
    Ok(Answer::Done)
}

pub(super) fn make_directory(path: &[u8], attributes: &Attributes) -> Outcome {
    let mode = attributes.mode.unwrap_or(DIRECTORY_MODE) & 0o7777;
    rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(mode))?;
    Ok(Answer::Done)
}

pub(super) fn remove_directory(path: &[u8]) -> Outcome {
    rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)?;
    Ok(Answer::Done)
}

/// Version 3 replaces nothing.
pub(super) fn rename(from: &[u8], to: &[u8]) -> Outcome {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system knows how to look and rename in one.
        Err(Errno::INVAL) => match rustix::fs::statat(CWD, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(Errno::NOENT) => replace(from, to),
            Err(errno) => Err(errno.into()),
        },
        renamed => Ok(renamed.map(|()| Answer::Done)?),
    }
}

pub(super) fn replace(from: &[u8], to: &[u8]) -> Outcome {
    rustix::fs::renameat(CWD, from, CWD, to)?;
    Ok(Answer::Done)
}

pub(super) fn hard_link(from: &[u8], to: &[u8]) -> Outcome {
    rustix::fs::linkat(CWD, from, CWD, to, AtFlags::empty())?;
    Ok(Answer::Done)
}

pub(super) fn link_to(target: &[u8], link: &[u8]) -> Outcome {
    rustix::fs::symlinkat(target, CWD, link)?;
    Ok(Answer::Done)
}

pub(super) fn read_link(path: &[u8]) -> Outcome {
    let target = rustix::fs::readlinkat(CWD, path, Vec::new())?;
    Ok(named(target.into_bytes()))
}

/// The answer that is a path.
fn named(path: Vec<u8>) -> Answer {
    Answer::Names(vec![Name { long: path.clone(), name: path, attributes: Attributes::default() }])
}

/// The absolute path without links. Its last part need not be there.
pub(super) fn real(path: &[u8]) -> Outcome {
    let path = if path.is_empty() { b"." } else { path };
    let path = Path::new(OsStr::from_bytes(path));
    let real = std::fs::canonicalize(path).or_else(|error| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            std::fs::canonicalize(parent).map(|parent| parent.join(name))
        }
        _ => Err(error),
    });
    match real {
        Ok(real) => Ok(named(real.into_os_string().into_vec())),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL).into()),
    }
}

/// `~` and `~user` at the beginning, as a shell has them.
pub(super) fn expand(path: &[u8]) -> Outcome {
    let Some(rest) = path.strip_prefix(b"~") else { return real(path) };
    let (user, rest) = rest.split_at(rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
    let home = if user.is_empty() { own_home() } else { home_of(user) };
    let mut path = home.ok_or(Errno::NOENT)?.into_os_string().into_vec();
    path.extend_from_slice(rest);
    real(&path)
}

fn own_home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).or_else(|| std::env::current_dir().ok())
}

fn home_of(user: &[u8]) -> Option<PathBuf> {
    let user = str::from_utf8(user).ok()?;
    crate::users::lookup(Some(user))
        .ok()
        .filter(|found| found.name.as_deref() == Some(user))
        .map(|user| user.home.into())
}

pub(super) fn file_system(path: &[u8]) -> Outcome {
    Ok(told(&rustix::fs::statvfs(path)?))
}

pub(super) fn told(stat: &StatVfs) -> Answer {
    let bit = |flag: StatVfsMountFlags, bit: u64| if stat.f_flag.contains(flag) { bit } else { 0 };
    Answer::Numbers(vec![
        stat.f_bsize,
        stat.f_frsize,
        stat.f_blocks,
        stat.f_bfree,
        stat.f_bavail,
        stat.f_files,
        stat.f_ffree,
        stat.f_favail,
        stat.f_fsid,
        bit(StatVfsMountFlags::RDONLY, READ_ONLY) | bit(StatVfsMountFlags::NOSUID, NO_SET_ID),
        stat.f_namemax,
    ])
}
