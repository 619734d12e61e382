//! Small file-system operations, as root but for looks with somebody else's eyes.

use std::os::fd::OwnedFd;

use berth_wire::{DirEntry, FailureCode, FileKind, FileStat, Fs, MAX_CONTROL, Outcome};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::failure::{self, Result};
use crate::places::{self, file_type, identity};

/// Carries out the request.
pub(crate) fn perform(request: &Fs) -> Result<Outcome> {
    match request {
        Fs::Stat { path, user } => {
            return stat(failure::absolute(path)?, user.as_deref())
                .map(|stat| Outcome::Fs { stat, entries: Vec::new() });
        }
        Fs::Mkdir { paths, mode, owner } => {
            let owner = owner.as_deref().map(places::ids).transpose()?;
            for path in paths {
                mkdir(failure::absolute(path)?, *mode, owner)?;
            }
        }
        Fs::Empty { paths, mode } => {
            for path in paths {
                empty(failure::absolute(path)?, *mode)?;
            }
        }
        Fs::List { path, user } => {
            let entries = list(failure::absolute(path)?, user.as_deref())?;
            return Ok(Outcome::Fs { stat: None, entries });
        }
        Fs::Remove { paths } => {
            for path in paths {
                remove(failure::absolute(path)?)?;
            }
        }
    }
    Ok(Outcome::Fs { stat: None, entries: Vec::new() })
}

fn stat(path: &[u8], user: Option<&str>) -> Result<Option<FileStat>> {
    places::see_as(user)?;
    match places::open(CWD, path, places::PLACE).and_then(rustix::fs::fstat) {
        Ok(stat) => Ok(Some(facts(&stat))),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::LOOP | Errno::NAMETOOLONG) => Ok(None),
        Err(errno) => Err(failure::at("look at", path, errno)),
    }
}

fn facts(stat: &Stat) -> FileStat {
    FileStat {
        kind: match file_type(stat) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Dir,
            _ => FileKind::Other,
        },
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_us: stat
            .st_mtime
            .saturating_mul(1_000_000)
            .saturating_add((stat.st_mtime_nsec / 1000).cast_signed()),
    }
}

/// Bytes of the answer that are not entries, and then some.
const REST_OF_ANSWER: usize = 64 * 1024;
/// Most bytes of an entry in JSON but for its texts: names of fields, and numbers at their longest.
const REST_OF_ENTRY: usize = 192;

/// What is in a directory. One that has more than an answer holds is refused with its count: half a list is none.
fn list(path: &[u8], user: Option<&str>) -> Result<Vec<DirEntry>> {
    let fail = |errno| failure::at("read directory", path, errno);
    places::see_as(user)?;
    let dir = places::open_dir(CWD, path, true).map_err(fail)?;
    let (mut entries, mut count) = (Vec::new(), 0_u64);
    let mut room = MAX_CONTROL - REST_OF_ANSWER;
    for entry in Dir::read_from(&dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        count += 1;
        // To the end, for the count.
        if room > 0
            && let Some((entry, len)) = dir_entry(&dir, path, name)?
        {
            room = room.saturating_sub(len);
            entries.push(entry);
        }
    }
    if room == 0 {
        let message = format!(
            "list: the directory has {count} entries, which is more than one answer of {MAX_CONTROL} bytes holds"
        );
        return Err(failure::because(FailureCode::Limit, message, Some(path)));
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// An entry, and the most bytes that it takes in an answer; `None` when it has gone meanwhile.
fn dir_entry(dir: &OwnedFd, path: &[u8], name: &[u8]) -> Result<Option<(DirEntry, usize)>> {
    let fail = |errno| failure::at("look at", &[path, b"/", name].concat(), errno);
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    };
    let link = match file_type(&stat) {
        FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(to) => Some(failure::shown(to.as_bytes())),
            // Gone, or something else has taken its place.
            Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(fail(errno)),
        },
        _ => None,
    };
    let name = failure::shown(name);
    let len = REST_OF_ENTRY + json_len(&name) + link.as_deref().map_or(0, json_len);
    Ok(Some((DirEntry { name, stat: facts(&stat), link }, len)))
}

/// Bytes of a text in JSON, quotes aside.
fn json_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        0..=0x1f => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

fn mkdir(path: &[u8], mode: Option<u32>, owner: Option<(u32, u32)>) -> Result<()> {
    let place = places::make(path, None)?;
    if let Some((uid, gid)) = owner {
        places::chown(&place.dir, uid, gid).map_err(|errno| failure::at("change owner", path, errno))?;
    }
    match mode {
        Some(mode) => {
            places::chmod(&place.dir, mode).map_err(|errno| failure::at("change mode", path, errno))
        }
        None => Ok(()),
    }
}

/// How often something else may take the place of a directory that is to be emptied.
const TRIES: usize = 64;

/// A symlink is replaced, not followed: what it leads to is not what was asked to be emptied.
fn empty(path: &[u8], mode: Option<u32>) -> Result<()> {
    let fail = |operation: &'static str| move |errno| failure::at(operation, path, errno);
    let dir = match places::split(path) {
        Some((parent, name)) => {
            let parent = places::make(parent, None)?.dir;
            own_dir(&parent, name).map_err(fail("replace by a directory"))?
        }
        None => places::make(path, None)?.dir,
    };
    clear(&dir, path)?;
    match mode {
        Some(mode) => places::chmod(&dir, mode).map_err(fail("change mode")),
        None => Ok(()),
    }
}

/// Opens the directory `name`, which is made, also in the place of whatever else is there. Never by a symlink, however
/// often one is put there meanwhile.
fn own_dir(parent: &OwnedFd, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    for _ in 0..TRIES {
        match places::open_dir(parent, name, false) {
            Err(Errno::NOTDIR | Errno::LOOP) => match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(errno) => return Err(errno),
            },
            Err(Errno::NOENT) => match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            },
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

fn remove(path: &[u8]) -> Result<()> {
    let fail = |errno| failure::at("remove", path, errno);
    let Some((parent, name)) = places::split(path) else {
        return Err(failure::because(
            FailureCode::Refused,
            "remove: not a path with a name at its end",
            Some(path),
        ));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match places::open(CWD, parent, flags) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(fail(errno)),
    };
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(fail(errno)),
    }
    remove_tree(&parent, name, path)
}

/// Removes the directory `name` with all that is in it; `path` is what errors call it.
pub(crate) fn remove_tree(parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
    let fail = |errno| failure::at("remove", path, errno);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(fail)?;
    clear(&dir, path)?;
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(fail(errno)),
    }
}

/// A directory on the way down, left behind while what is in it is cleared.
struct Above {
    identity: (u64, u64),
    /// Name, in it, of the directory that is being cleared.
    name: Vec<u8>,
}

/// Removes everything in `top`, however deep, with two descriptors and no recursion. Climbing back through `..` is
/// checked: a directory that was moved meanwhile must not lead the way to somebody else's files.
fn clear(top: &OwnedFd, path: &[u8]) -> Result<()> {
    let fail = |errno| failure::at("remove", path, errno);
    let open = |dir: &OwnedFd, name: &[u8]| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty())
    };
    let mut here = open(top, b".").map_err(fail)?;
    let mut above: Vec<Above> = Vec::new();
    loop {
        if let Some(name) = clear_files(&here).map_err(|(name, errno)| inside(path, &above, &name, errno))? {
            let identity = identity(&rustix::fs::fstat(&here).map_err(fail)?);
            here = open(&here, &name).map_err(|errno| inside(path, &above, &name, errno))?;
            above.push(Above { identity, name });
            continue;
        }
        let Some(parent) = above.pop() else { return Ok(()) };
        here = open(&here, b"..").map_err(fail)?;
        if identity(&rustix::fs::fstat(&here).map_err(fail)?) != parent.identity {
            return Err(failure::because(
                FailureCode::Io,
                "remove: a directory was moved meanwhile",
                Some(path),
            ));
        }
        match rustix::fs::unlinkat(&here, &parent.name[..], AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Filled again by a running process: once more, until it is empty or that process is faster for ever.
            Err(Errno::NOTEMPTY) => {}
            Err(errno) => return Err(inside(path, &above, &parent.name, errno)),
        }
    }
}

/// Removes what is not a directory, and empty directories, up to the first directory that is not empty, which it
/// gives. What came before is gone when the caller comes back, so nothing is looked at twice.
fn clear_files(dir: &OwnedFd) -> std::result::Result<Option<Vec<u8>>, (Vec<u8>, Errno)> {
    let unnamed = |errno| (Vec::new(), errno);
    for entry in Dir::read_from(dir).map_err(unnamed)? {
        let entry = entry.map_err(unnamed)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            other => other,
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) => return Ok(Some(name.to_vec())),
            Err(errno) => return Err((name.to_vec(), errno)),
        }
    }
    Ok(None)
}

fn inside(path: &[u8], above: &[Above], name: &[u8], errno: Errno) -> berth_wire::Failure {
    let mut full = path.to_vec();
    for name in above.iter().map(|above| &above.name[..]).chain([name]) {
        full.push(b'/');
        full.extend_from_slice(name);
    }
    failure::at("remove", &full, errno)
}
