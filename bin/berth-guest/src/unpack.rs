//! Unpacking a tar into a directory: merge, replace, and never leave the directory by the archive's doing.
//!
//! Every entry is reached from the target directory by open descriptors, name by name, and the last step never follows
//! a symlink. A symlink that was there before is followed like any program in the sandbox would follow it; one that
//! the archive itself brought must not lead out of the target, or else what lies behind it is refused. So are names
//! that are absolute or hold `..`. A refused entry is listed and the rest goes on; a failing system call ends it.

use std::collections::{HashSet, VecDeque};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use berth_wire::{Failure, FailureCode, MAX_LISTED, Manner, Notice, Outcome, Owner, Unpack, UnpackReport};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::archive::{self, Archive, Device, Kind, Member};
use crate::failure::{self, Result};
use crate::fsops;
use crate::places::{self, PLACE, file_type, identity};

const BUFFER: usize = 256 * 1024;
/// The kernel's own limit of symlinks in one path.
const MAX_LINKS: usize = 40;

/// Carries out the request.
pub(crate) fn unpack(request: &Unpack, input: &mut impl Read) -> Result<Outcome> {
    let path = failure::absolute(&request.path)?;
    let owner = match &request.owner {
        Owner::Root => Some((0, 0)),
        Owner::Keep => None,
        Owner::User(spec) => Some(places::ids(spec)?),
    };
    let target = places::make(path, owner)?;
    let mut unpacker = Unpacker {
        target,
        owner,
        mode: request.mode,
        manner: request.manner,
        links: HashSet::new(),
        times: Vec::new(),
        parent: None,
        mounted: if request.manner == Manner::Upload { Vec::new() } else { mounted() },
        buffer: vec![0; BUFFER],
        report: UnpackReport::default(),
    };
    let mut archive = Archive::new(input);
    while let Some(member) = archive.next().map_err(|error| bad_archive(&error))? {
        unpacker.place(&member, &mut archive)?;
    }
    archive.drain().map_err(|error| bad_archive(&error))?;
    unpacker.set_times()?;
    Ok(Outcome::Unpacked(unpacker.report))
}

fn bad_archive(error: &archive::Error) -> berth_wire::Failure {
    let code = match error {
        archive::Error::Read(_) => FailureCode::Cancelled,
        _ => FailureCode::BadArchive,
    };
    failure::because(code, error.to_string(), None)
}

struct Unpacker {
    target: places::Place,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
    manner: Manner,
    /// Symlinks that the archive brought.
    links: HashSet<(u64, u64)>,
    /// Directories' times, set at the end: entries change them.
    times: Vec<(Vec<u8>, (i64, u32))>,
    /// The directory of the last entry, since the next one is mostly in it too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Devices of what the machine has mounted over the image, where a build's files would be lost.
    mounted: Vec<u64>,
    buffer: Vec<u8>,
    report: UnpackReport,
}

/// Devices of the file systems that every sandbox has over its image.
fn mounted() -> Vec<u64> {
    let device = |path: &str| rustix::fs::stat(path).ok().map(|stat| stat.st_dev);
    let root = device("/");
    let mounts = ["/dev", "/dev/shm", "/dev/pts", "/dev/mqueue", "/proc", "/sys", "/sys/fs/cgroup"];
    mounts.iter().filter_map(|path| device(path)).filter(|device| Some(*device) != root).collect()
}

/// Why a directory cannot be had for an entry.
enum Blocked {
    Refused(String),
    Failed(&'static str, Errno),
}

fn leaves() -> Blocked {
    Blocked::Refused("behind a symlink of the archive that leaves the target".into())
}

impl Unpacker {
    fn place<R: Read>(&mut self, member: &Member, archive: &mut Archive<R>) -> Result<()> {
        let shown = failure::shown(&member.path);
        match member.kind {
            Kind::Fifo | Kind::Device(_) if self.manner == Manner::Upload => {
                self.report.skipped_count += 1;
                list(&mut self.report.skipped, shown, "a device or FIFO");
                return Ok(());
            }
            Kind::Unknown => return self.refuse(shown, "of a type or encoding that is not understood"),
            _ => {}
        }
        let names = match names(&member.path) {
            Ok(names) => names,
            Err(why) => return self.refuse(shown, why),
        };
        let Some((name, parents)) = names.split_last() else { return self.top(member) };
        let parent = match self.directory(parents) {
            Ok(parent) => parent,
            Err(Blocked::Refused(why)) => return self.refuse(shown, &why),
            // Nothing that failed: what stands there is told by name, as a directory in its place is.
            Err(Blocked::Failed(_, Errno::NOTDIR)) if self.manner != Manner::Upload => {
                return self.refuse(shown, "below something that is there and is no directory");
            }
            Err(Blocked::Failed(operation, errno)) => {
                return Err(failure::at(operation, &member.path, errno));
            }
        };
        if !self.mounted.is_empty() && self.is_mounted(&parent, &member.path)? {
            let why = "below /dev, /proc or /sys, which are no part of an image";
            if parents.is_empty() {
                return self.refuse(shown, why);
            }
            // What a tree has there beside other things is left out, and told.
            self.report.skipped_count += 1;
            list(&mut self.report.skipped, shown, why);
            return Ok(());
        }
        let placed = match self.in_the_way(member, &parent, name)? {
            Some(why) => Err(why),
            None => self.place_in(member, archive, &names, (&parent, name))?,
        };
        self.parent = Some((parents.join(&b'/'), parent));
        if let Err(why) = placed {
            return self.refuse(shown, &why);
        }
        self.report.entries += 1;
        Ok(())
    }

    fn place_in<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        names: &[&[u8]],
        (parent, name): (&OwnedFd, &[u8]),
    ) -> Placed {
        match member.kind {
            Kind::Dir => self.place_dir(member, names, parent, name),
            Kind::Symlink => self.place_symlink(member, parent, name),
            Kind::HardLink => self.place_hard_link(member, parent, name),
            Kind::Fifo => self.place_special(member, None, parent, name),
            Kind::Device(device) => self.place_special(member, Some(device), parent, name),
            Kind::File | Kind::Unknown => self.place_file(member, archive, parent, name),
        }
    }

    /// Why what is there stays, if it does; what is to go and does not go by itself is removed.
    fn in_the_way(&self, member: &Member, parent: &OwnedFd, name: &[u8]) -> Result<Option<String>> {
        if self.manner == Manner::Upload {
            return Ok(None);
        }
        let there =
            lstat(parent, name).map_err(|errno| failure::at("look at what is there", &member.path, errno))?;
        let there = there.map(|stat| file_type(&stat));
        Ok(match (self.manner, member.kind, there) {
            (_, Kind::Dir, None | Some(FileType::Directory | FileType::Symlink)) => None,
            (Manner::Copy, Kind::Dir, Some(_)) => {
                Some("cannot copy a directory onto what is there, which is none".to_owned())
            }
            (Manner::Copy, _, Some(FileType::Directory)) => {
                Some("cannot copy anything else than a directory onto the directory that is there".to_owned())
            }
            (Manner::Archive, _, Some(FileType::Directory)) => {
                fsops::remove_tree(parent, name, &member.path)?;
                None
            }
            _ => None,
        })
    }

    fn is_mounted(&self, dir: &OwnedFd, path: &[u8]) -> Result<bool> {
        let facts =
            rustix::fs::fstat(dir).map_err(|errno| failure::at("look at the directory", path, errno))?;
        Ok(self.mounted.contains(&facts.st_dev))
    }

    fn refuse(&mut self, path: String, why: &str) -> Result<()> {
        self.report.refused_count += 1;
        list(&mut self.report.refused, path, why);
        Ok(())
    }

    /// The entry for the target itself: it says how the target looks if the target is new.
    fn top(&mut self, member: &Member) -> Result<()> {
        if member.kind != Kind::Dir {
            return self.refuse(failure::shown(&member.path), "a file without a name");
        }
        if self.target.is_new {
            let dir = rustix::fs::openat(&self.target.dir, ".", readable_dir(), Mode::empty());
            let dir = dir.map_err(|errno| failure::at("open directory", &member.path, errno))?;
            self.set_attributes(member, &dir)?;
            self.times.push((Vec::new(), member.mtime));
        }
        self.report.entries += 1;
        Ok(())
    }

    // ---- finding the directory of an entry ----

    /// The directory of `names` under the target; missing ones are made.
    fn directory(&mut self, names: &[&[u8]]) -> std::result::Result<OwnedFd, Blocked> {
        let path = names.join(&b'/');
        if let Some((known, dir)) = self.parent.take()
            && known == path
        {
            return Ok(dir);
        }
        let open = rustix::fs::openat(&self.target.dir, ".", PLACE | OFlags::DIRECTORY, Mode::empty());
        let mut walk = Walk {
            here: open.map_err(|errno| Blocked::Failed("open directory", errno))?,
            left: names.iter().map(|name| (name.to_vec(), true)).collect(),
            links: 0,
            by_archive: false,
        };
        while let Some((name, is_own)) = walk.left.pop_front() {
            self.step(&mut walk, &name, is_own)?;
        }
        if walk.by_archive && !self.is_inside(&walk.here) {
            return Err(leaves());
        }
        Ok(walk.here)
    }

    fn step(&mut self, walk: &mut Walk, name: &[u8], is_own: bool) -> std::result::Result<(), Blocked> {
        let fail = |errno| Blocked::Failed("open directory", errno);
        let open = || rustix::fs::openat(&walk.here, name, PLACE | OFlags::NOFOLLOW, Mode::empty());
        let next = match open() {
            // What a symlink names is not made up.
            Err(Errno::NOENT) if is_own => {
                if walk.by_archive && !self.is_inside(&walk.here) {
                    return Err(leaves());
                }
                match rustix::fs::mkdirat(&walk.here, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {}
                    // Somebody in the sandbox was faster; it is his, whatever it is.
                    Err(Errno::EXIST) => return self.step(walk, name, false),
                    Err(errno) => return Err(Blocked::Failed("make directory", errno)),
                }
                let next = open().map_err(fail)?;
                let (uid, gid) = self.owner.unwrap_or((0, 0));
                places::chown(&next, uid, gid)
                    .map_err(|errno| Blocked::Failed("change owner of directory", errno))?;
                next
            }
            other => other.map_err(fail)?,
        };
        let stat = rustix::fs::fstat(&next).map_err(fail)?;
        match file_type(&stat) {
            FileType::Directory => walk.here = next,
            FileType::Symlink => {
                walk.by_archive |= self.links.contains(&identity(&stat));
                walk.follow(&next).map_err(fail)?;
            }
            _ => return Err(fail(Errno::NOTDIR)),
        }
        Ok(())
    }

    /// Whether `dir` is the target or below it, told by climbing from it.
    fn is_inside(&self, dir: &OwnedFd) -> bool {
        let climb = || -> std::result::Result<bool, Errno> {
            let target = identity(&rustix::fs::fstat(&self.target.dir)?);
            let mut here = rustix::fs::openat(dir, ".", PLACE | OFlags::DIRECTORY, Mode::empty())?;
            let mut at = identity(&rustix::fs::fstat(&here)?);
            loop {
                if at == target {
                    return Ok(true);
                }
                here = rustix::fs::openat(&here, "..", PLACE | OFlags::DIRECTORY, Mode::empty())?;
                let above = identity(&rustix::fs::fstat(&here)?);
                if above == at {
                    return Ok(false);
                }
                at = above;
            }
        };
        climb().unwrap_or(false)
    }

    // ---- putting it there ----

    fn place_dir(&mut self, member: &Member, names: &[&[u8]], parent: &OwnedFd, name: &[u8]) -> Placed {
        let fail = |operation: &'static str| move |errno| failure::at(operation, &member.path, errno);
        match lstat(parent, name).map_err(fail("look at what is there"))? {
            Some(stat) if file_type(&stat) == FileType::Directory => {}
            // A link to a directory stands for it; what it leads to is not the archive's to change.
            Some(stat) if file_type(&stat) == FileType::Symlink => match self.directory(names) {
                Ok(_) => return Ok(Ok(())),
                Err(Blocked::Refused(why)) => return Ok(Err(why)),
                Err(Blocked::Failed(..)) if self.manner == Manner::Copy => {
                    let why = "cannot copy a directory onto the symlink that is there, which leads to none";
                    return Ok(Err(why.to_owned()));
                }
                Err(Blocked::Failed(..)) => self.replace_by_dir(member, parent, name)?,
            },
            Some(_) => self.replace_by_dir(member, parent, name)?,
            None => make_dir(parent, name).map_err(fail("make directory"))?,
        }
        let dir = rustix::fs::openat(parent, name, readable_dir() | OFlags::NOFOLLOW, Mode::empty());
        self.set_attributes(member, &dir.map_err(fail("open directory"))?)?;
        self.times.push((names.join(&b'/'), member.mtime));
        Ok(Ok(()))
    }

    fn replace_by_dir(&self, member: &Member, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        remove(parent, name).map_err(|errno| failure::at("replace by a directory", &member.path, errno))?;
        make_dir(parent, name).map_err(|errno| failure::at("make directory", &member.path, errno))
    }

    fn place_symlink(&mut self, member: &Member, parent: &OwnedFd, name: &[u8]) -> Placed {
        let fail = |errno| failure::at("make symlink", &member.path, errno);
        let make = || rustix::fs::symlinkat(&member.link[..], parent, name);
        replacing(parent, name, make).map_err(fail)?;
        let Some(link) = self.note_link(&member.link, parent, name) else {
            let message = "make symlink: something in the sandbox put something else in its place";
            return Err(failure::because(FailureCode::Io, message.to_owned(), Some(&member.path)));
        };
        let (uid, gid) = self.owner_of(member);
        places::chown(&link, uid, gid).map_err(|errno| not_owned(member, errno))?;
        rustix::fs::utimensat(parent, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        Ok(Ok(()))
    }

    /// Notes the symlink to `to` that was just made, and opens it. The kernel has no call that makes one and says which;
    /// `None` when something else is there by now. (Another one to the same place does as well as this.)
    fn note_link(&mut self, to: &[u8], parent: &OwnedFd, name: &[u8]) -> Option<OwnedFd> {
        let open = rustix::fs::openat(parent, name, PLACE | OFlags::NOFOLLOW, Mode::empty());
        let made = open.and_then(|link| {
            let is_it = rustix::fs::readlinkat(&link, "", Vec::new())?.as_bytes() == to;
            Ok(is_it.then_some((identity(&rustix::fs::fstat(&link)?), link)))
        });
        let (identity, link) = made.ok().flatten()?;
        self.links.insert(identity);
        Some(link)
    }

    fn place_hard_link(&mut self, member: &Member, parent: &OwnedFd, name: &[u8]) -> Placed {
        let fail = |errno| failure::at("make hard link", &member.path, errno);
        let names = match names(&member.link) {
            Ok(names) if !names.is_empty() => names,
            Ok(_) => return Ok(Err("a hard link to the target itself".into())),
            Err(why) => return Ok(Err(format!("a hard link to a name that is {why}"))),
        };
        let Some((source, parents)) = names.split_last() else { return Ok(Ok(())) };
        let from = match self.directory(parents) {
            Ok(from) => from,
            Err(Blocked::Refused(why)) => return Ok(Err(format!("a hard link to a file {why}"))),
            Err(Blocked::Failed(_, errno)) => return Err(fail(errno)),
        };
        let Some(stat) = lstat(&from, source).map_err(fail)? else {
            let link = failure::shown(&member.link);
            return Ok(Err(format!("a hard link to {link}, which is not there")));
        };
        if lstat(parent, name).map_err(fail)?.is_some_and(|there| identity(&there) == identity(&stat)) {
            return Ok(Ok(()));
        }
        let make = || rustix::fs::linkat(&from, *source, parent, name, AtFlags::empty());
        replacing(parent, name, make).map_err(fail)?;
        if file_type(&stat) == FileType::Symlink {
            self.links.insert(identity(&stat));
        }
        Ok(Ok(()))
    }

    /// A FIFO, or a device where this sandbox may make one.
    fn place_special(
        &mut self,
        member: &Member,
        device: Option<Device>,
        parent: &OwnedFd,
        name: &[u8],
    ) -> Placed {
        let fail = |errno| failure::at("make a FIFO or device", &member.path, errno);
        let (kind, (major, minor)) = match device {
            None => (FileType::Fifo, (0, 0)),
            Some(Device { numbers: None, .. }) => return Ok(Err("a device without numbers".to_owned())),
            Some(Device { is_block: true, numbers: Some(numbers) }) => (FileType::BlockDevice, numbers),
            Some(Device { is_block: false, numbers: Some(numbers) }) => (FileType::CharacterDevice, numbers),
        };
        // The umask is empty, and a descriptor of these takes no mode afterwards.
        let mode = Mode::from_raw_mode(self.mode.unwrap_or(member.mode));
        let make = || rustix::fs::mknodat(parent, name, kind, mode, rustix::fs::makedev(major, minor));
        match (replacing(parent, name, make), device) {
            (Err(Errno::PERM | Errno::ACCESS | Errno::INVAL), Some(device)) => {
                return Ok(Err(not_makeable(device.is_block, (major, minor))));
            }
            (made, _) => made.map_err(fail)?,
        }
        let made = rustix::fs::openat(parent, name, PLACE | OFlags::NOFOLLOW, Mode::empty()).map_err(fail)?;
        if rustix::fs::fstat(&made).map_err(fail)?.st_mode & 0o170_000 != kind.as_raw_mode() {
            let message = "make a FIFO or device: something in the sandbox put something else in its place";
            return Err(failure::because(FailureCode::Io, message.to_owned(), Some(&member.path)));
        }
        let (uid, gid) = self.owner_of(member);
        places::chown(&made, uid, gid).map_err(|errno| not_owned(member, errno))?;
        for (name, _) in &member.xattrs {
            self.lose(member, name, "of a FIFO or device are not kept");
        }
        rustix::fs::utimensat(parent, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        Ok(Ok(()))
    }

    fn lose(&mut self, member: &Member, attribute: &[u8], why: &str) {
        self.report.xattrs_lost += 1;
        let why = format!("attribute {}: {why}", failure::shown(attribute));
        list(&mut self.report.lost, failure::shown(&member.path), &why);
    }

    fn place_file<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        parent: &OwnedFd,
        name: &[u8],
    ) -> Placed {
        let fail = |errno| failure::at("create file", &member.path, errno);
        let file = create(parent, name).map_err(fail)?;
        let mut file = std::fs::File::from(file);
        self.write(member, archive, &mut file)?;
        let file = OwnedFd::from(file);
        self.set_attributes(member, &file)?;
        rustix::fs::futimens(&file, &times(member.mtime)).map_err(fail)?;
        Ok(Ok(()))
    }

    fn write<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        file: &mut std::fs::File,
    ) -> Result<()> {
        let Some(sparse) = &member.sparse else { return self.copy(member, archive, file, member.stored) };
        let fail = |error: std::io::Error| write_failure(member, &error);
        for (offset, length) in &sparse.pieces {
            file.seek(SeekFrom::Start(*offset)).map_err(fail)?;
            self.copy(member, archive, file, *length)?;
        }
        file.set_len(sparse.size).map_err(fail)
    }

    fn copy<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        file: &mut std::fs::File,
        mut left: u64,
    ) -> Result<()> {
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let read = archive.read(&mut self.buffer[..wanted]);
            let len = read.map_err(|error| bad_archive(&archive::cut_off(error)))?;
            if len == 0 {
                return Err(bad_archive(&archive::Error::Truncated));
            }
            file.write_all(&self.buffer[..len]).map_err(|error| write_failure(member, &error))?;
            left -= len as u64;
            self.report.bytes += len as u64;
        }
        Ok(())
    }

    /// Owner, then mode (a change of owner clears set-id bits), then attributes (it clears capabilities as well).
    fn set_attributes(&mut self, member: &Member, file: &OwnedFd) -> Result<()> {
        let (uid, gid) = self.owner_of(member);
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(|errno| not_owned(member, errno))?;
        let mode = Mode::from_raw_mode(self.mode.unwrap_or(member.mode));
        rustix::fs::fchmod(file, mode).map_err(|errno| failure::at("change mode", &member.path, errno))?;
        for (name, value) in &member.xattrs {
            if let Err(errno) = rustix::fs::fsetxattr(file, &name[..], value, XattrFlags::empty()) {
                self.lose(member, name, &errno.to_string());
            }
        }
        Ok(())
    }

    /// Ids beyond what the kernel has become the last ones it has, which no chown accepts.
    fn owner_of(&self, member: &Member) -> (u32, u32) {
        let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX - 1);
        self.owner.unwrap_or_else(|| (id(member.uid), id(member.gid)))
    }

    fn set_times(&mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.times).into_iter().rev() {
            let names: Vec<&[u8]> =
                path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
            self.parent = None;
            // Something in the sandbox may have removed it meanwhile.
            let Ok(dir) = self.directory(&names) else { continue };
            rustix::fs::utimensat(&dir, ".", &times(mtime), AtFlags::empty())
                .map_err(|errno| failure::at("set time", &path, errno))?;
        }
        Ok(())
    }
}

/// Done, or refused with a reason.
type Placed = Result<std::result::Result<(), String>>;

/// A path being walked.
struct Walk {
    here: OwnedFd,
    /// Names still to go; false for those that came out of a symlink.
    left: VecDeque<(Vec<u8>, bool)>,
    links: usize,
    /// Whether a symlink of the archive was followed.
    by_archive: bool,
}

impl Walk {
    fn follow(&mut self, link: &OwnedFd) -> std::result::Result<(), Errno> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let to = rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes();
        if to.starts_with(b"/") {
            self.here = rustix::fs::open("/", PLACE | OFlags::DIRECTORY, Mode::empty())?;
        }
        let names = to.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        for (at, name) in names.enumerate() {
            self.left.insert(at, (name.to_vec(), false));
        }
        Ok(())
    }
}

/// The names in an entry's path; none for the target itself.
fn names(path: &[u8]) -> std::result::Result<Vec<&[u8]>, &'static str> {
    if path.starts_with(b"/") {
        return Err("an absolute name");
    }
    if path.contains(&0) {
        return Err("a name with a NUL byte");
    }
    let names: Vec<_> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.iter().any(|name| *name == b"..") {
        return Err("a name with ..");
    }
    Ok(names)
}

fn list(listed: &mut Vec<Notice>, path: String, why: &str) {
    if listed.len() < MAX_LISTED {
        listed.push(Notice { path, why: why.to_owned() });
    }
}

fn readable_dir() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

fn lstat(dir: &OwnedFd, name: &[u8]) -> std::result::Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_dir(parent: &OwnedFd, name: &[u8]) -> std::result::Result<(), Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
}

/// Removes a file, or a directory that is empty.
fn remove(parent: &OwnedFd, name: &[u8]) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// Makes something under a name that may be taken.
fn replacing<T>(
    parent: &OwnedFd,
    name: &[u8],
    make: impl Fn() -> std::result::Result<T, Errno>,
) -> std::result::Result<T, Errno> {
    match make() {
        Err(Errno::EXIST) => {
            remove(parent, name)?;
            make()
        }
        other => other,
    }
}

fn not_makeable(is_block: bool, (major, minor): (u32, u32)) -> String {
    let kind = if is_block { "block" } else { "character" };
    format!(
        "{kind} device {major}:{minor}, which cannot be made here: only a sandbox without a user namespace of its own, with \
         the capability MKNOD, makes devices"
    )
}

/// An id that a user namespace does not have is the archive's fault: the kernel takes it for no id at all.
fn not_owned(member: &Member, errno: Errno) -> Failure {
    if errno != Errno::INVAL {
        return failure::at("change owner", &member.path, errno);
    }
    let message = format!(
        "change owner: there is no user {} or no group {} in the sandbox, which has ids {}",
        member.uid,
        member.gid,
        own_ids()
    );
    failure::because(FailureCode::Invalid, message, Some(&member.path))
}

/// The ids of this user namespace, user_namespaces(7): lines of first id inside, first outside, count.
fn own_ids() -> String {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().ok());
        let (first, _, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(format!("{first} to {}", first + count.saturating_sub(1)))
    };
    let ranges: Vec<String> = map.lines().filter_map(range).collect();
    if ranges.is_empty() { "that cannot be read".to_owned() } else { ranges.join(", ") }
}

/// A new, empty file: the old one is unlinked, so that a running program keeps its own. One that cannot be unlinked is
/// a mount (of `/etc/hosts`, say), and gets the new contents instead.
fn create(parent: &OwnedFd, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let make = || rustix::fs::openat(parent, name, flags | OFlags::CREATE | OFlags::EXCL, mode);
    match replacing(parent, name, make) {
        Err(Errno::BUSY) => {
            let mounted = lstat(parent, name)?.is_some_and(|stat| file_type(&stat) == FileType::RegularFile);
            if !mounted {
                return Err(Errno::BUSY);
            }
            rustix::fs::openat(parent, name, flags | OFlags::TRUNC, Mode::empty())
        }
        other => other,
    }
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn write_failure(member: &Member, error: &std::io::Error) -> berth_wire::Failure {
    failure::at("write file", &member.path, Errno::from_io_error(error).unwrap_or(Errno::IO))
}
