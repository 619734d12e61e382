//! Packing a file or a tree into a tar: sorted names, nothing followed, and a stream that stays well-formed whatever
//! happens to the files while they are read.
//!
//! Every entry is reached from the packed directory by open descriptors, name by name and without following symlinks,
//! so a directory that is exchanged for a symlink meanwhile leads nowhere. What was moved is noticed on the way back.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;

use berth_wire::{FailureCode, MAX_LISTED, Notice, Outcome, Pack, PackReport};
use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use tar::EntryType;

use crate::failure::{self, Result};
use crate::places::{self, file_type, identity, is_the_kernel_s, not_for_users, open_dir};
use crate::selection::{Extent, Selection};
use crate::sparse::Sparse;
use crate::tarwrite::{Records, Writer};

const BUFFER: usize = 256 * 1024;
/// Longest path in an archive, in bytes. Deeper trees than this has room for are somebody's attempt to fill archives,
/// or the memory of those who read them.
const MAX_PATH: usize = 64 * 1024;
/// Most bytes that extended attributes of one entry take; readers limit the headers that hold them.
const MAX_ATTRIBUTES: usize = 768 * 1024;
/// Directories on the way down that are kept open, in addition to the top.
const KEPT_OPEN: usize = 32;
/// Carries out the request.
pub(crate) fn pack(request: &Pack, output: &mut impl Write) -> Result<Outcome> {
    let path = failure::absolute(&request.path)?;
    let mut packer = Packer {
        writer: Writer::new(output),
        selection: Selection::new(request),
        xattrs: request.xattrs,
        one_mount: request.one_mount,
        sparse: request.sparse,
        ignore_failed_read: request.ignore_failed_read,
        exact: request.exact,
        seen: HashMap::new(),
        buffer: vec![0; BUFFER],
        report: PackReport::default(),
    };
    packer.start(path, request)?;
    packer.writer.finish()?;
    Ok(Outcome::Packed(packer.report))
}

struct Packer<'a, W> {
    writer: Writer<'a, W>,
    selection: Selection,
    xattrs: bool,
    one_mount: bool,
    sparse: bool,
    ignore_failed_read: bool,
    exact: bool,
    /// Names of files with several links.
    seen: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    report: PackReport,
}

/// The directories from the top to the one that is being packed.
struct Tree {
    levels: Vec<Level>,
    /// Path in the archive of the last one, with a slash at the end; empty for the top.
    prefix: Vec<u8>,
}

/// A directory that is being packed.
struct Level {
    /// Closed while the walk is far below.
    dir: Option<OwnedFd>,
    identity: (u64, u64),
    device: u64,
    extent: Extent,
    /// How much of [`Tree::prefix`] is its own.
    prefix: usize,
    /// Names still to do, the last one first.
    names: Vec<Vec<u8>>,
}

/// A file, open, and what is known of it.
struct Opened {
    file: OwnedFd,
    stat: Stat,
    size: u64,
    /// Where its data is; all of it where it has no holes, or where they do not matter.
    map: Option<Sparse>,
}

impl<W: Write> Packer<'_, W> {
    fn start(&mut self, path: &[u8], request: &Pack) -> Result<()> {
        let fail = |errno| failure::at("open", path, errno);
        let follow = if request.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = rustix::fs::statat(CWD, path, follow).map_err(fail)?;
        if file_type(&stat) == FileType::Directory {
            // A path that ends in a slash or a dot names the directory also through a symlink.
            let dir = open_dir(CWD, path, request.follow || places::split(path).is_none()).map_err(fail)?;
            let stat = rustix::fs::fstat(&dir).map_err(fail)?;
            if request.include_top && !self.selection.files_alone() {
                self.entry_dir(&dir, b"./", &stat)?;
            }
            // What a symlink leads to was not asked for by that name: a command may have put the link there.
            if !places::is_plain(path)
                && let Some(why) = not_for_users(&dir, &stat)
            {
                self.skip(b".", why);
                return Ok(());
            }
            return self.tree(dir, &stat);
        }
        let Some((parent, name)) = places::split(path) else { return Err(fail(Errno::NOTDIR)) };
        let parent = open_dir(CWD, parent, true).map_err(fail)?;
        self.leaf(&parent, stat.st_dev, name, name, &stat, request.follow)
    }

    fn tree(&mut self, top: OwnedFd, stat: &Stat) -> Result<()> {
        // What is named outright is what is wanted, the kernel's file systems too; below something else they are not.
        let names = names(&top).map_err(|errno| failure::at("read directory", b".", errno))?;
        let mut tree = Tree { levels: Vec::new(), prefix: Vec::new() };
        tree.push(top, stat, Extent::Chosen, names);
        while let Some(level) = tree.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.leave(&mut tree)?;
                continue;
            };
            let path = [&tree.prefix[..], &name].concat();
            if let Some(dir) = &level.dir
                && let Some((dir, stat, extent, names)) = self.entry(level, dir, &name, &path)?
            {
                tree.prefix = path;
                tree.prefix.push(b'/');
                tree.push(dir, &stat, extent, names);
            }
        }
        Ok(())
    }

    /// One entry of a directory; gives the directory that it is, to go on in.
    fn entry(&mut self, level: &Level, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<Entered>> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => return self.vanished(path, errno).map(|()| None),
        };
        let kind = file_type(&stat);
        let extent = match kind {
            FileType::Directory => self.selection.dir(path, level.extent),
            kind => {
                let chosen = self.selection.leaf(path, level.extent, kind == FileType::RegularFile);
                chosen.then_some(level.extent)
            }
        };
        let Some(extent) = extent else { return Ok(None) };
        if path.len() > MAX_PATH {
            return self.unread("pack", path, Errno::NAMETOOLONG, "left out").map(|()| None);
        }
        if self.one_mount && is_mount_point(dir, name) {
            return self.mount_point(dir, path, &stat).map(|()| None);
        }
        if kind != FileType::Directory {
            return self.leaf(dir, level.device, name, path, &stat, false).map(|()| None);
        }
        self.enter(level, dir, name, path, extent)
    }

    fn enter(
        &mut self,
        level: &Level,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        extent: Extent,
    ) -> Result<Option<Entered>> {
        let opened =
            open_dir(parent, name, false).and_then(|dir| rustix::fs::fstat(&dir).map(|stat| (dir, stat)));
        let (dir, stat) = match opened {
            Ok(opened) => opened,
            Err(errno) => return self.vanished(path, errno).map(|()| None),
        };
        if stat.st_dev != level.device
            && let Some(why) = not_for_users(&dir, &stat)
        {
            self.skip(path, why);
            return self.mount_point(parent, path, &stat).map(|()| None);
        }
        let names = match names(&dir) {
            Ok(names) => names,
            Err(errno) => return self.vanished(path, errno).map(|()| None),
        };
        if extent == Extent::Chosen && !self.selection.files_alone() {
            self.entry_dir(&dir, &[path, b"/"].concat(), &stat)?;
        }
        Ok(Some((dir, stat, extent, names)))
    }

    /// Goes back up from a directory that is done.
    fn leave(&mut self, tree: &mut Tree) -> Result<()> {
        if !tree.pop() {
            let path = tree.prefix.strip_suffix(b"/").unwrap_or(b".").to_vec();
            self.changed(&path, "moved while it was read; the rest of it is left out");
        }
        Ok(())
    }

    /// What is mounted is left out. What lies under it cannot be seen: a directory as images have it, without anything
    /// that would differ from one time to the next.
    fn mount_point(&mut self, parent: &OwnedFd, path: &[u8], mounted: &Stat) -> Result<()> {
        if file_type(mounted) != FileType::Directory || self.selection.files_alone() {
            return Ok(());
        }
        let mut stat = match rustix::fs::fstat(parent) {
            Ok(stat) => stat,
            Err(errno) => return self.unread("look at", path, errno, "left out"),
        };
        (stat.st_mode, stat.st_uid, stat.st_gid) = (0o755, 0, 0);
        self.header(&[path, b"/"].concat(), EntryType::Directory, &stat, 0, b"", Vec::new())
    }

    fn entry_dir(&mut self, dir: &OwnedFd, path: &[u8], stat: &Stat) -> Result<()> {
        let xattrs = self.attributes(dir, path)?;
        self.header(path, EntryType::Directory, stat, 0, b"", xattrs)
    }

    /// Anything but a directory, in a directory on `device`.
    fn leaf(
        &mut self,
        dir: &OwnedFd,
        device: u64,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        follow: bool,
    ) -> Result<()> {
        match file_type(stat) {
            FileType::RegularFile => self.file(dir, device, name, path, stat, follow),
            FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(to) => self.header(path, EntryType::Symlink, stat, 0, to.as_bytes(), Vec::new()),
                // Something else has taken its place.
                Err(Errno::INVAL) => self.vanished(path, Errno::NOENT),
                Err(errno) => self.vanished(path, errno),
            },
            FileType::Fifo if self.exact => self.special(EntryType::Fifo, path, stat),
            FileType::CharacterDevice if self.exact => self.special(EntryType::Char, path, stat),
            FileType::BlockDevice if self.exact => self.special(EntryType::Block, path, stat),
            other if self.exact => {
                let message = format!("pack: {}, which no archive can hold", kind_name(other));
                Err(failure::because(FailureCode::Refused, message, Some(path)))
            }
            other => {
                self.skip(path, kind_name(other));
                Ok(())
            }
        }
    }

    fn special(&mut self, kind: EntryType, path: &[u8], stat: &Stat) -> Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.seen.get(&identity(stat)) {
                let first = first.clone();
                return self.header(path, EntryType::Link, stat, 0, &first, Vec::new());
            }
            self.seen.insert(identity(stat), path.to_vec());
        }
        self.header(path, kind, stat, 0, b"", Vec::new())
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        device: u64,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        follow: bool,
    ) -> Result<()> {
        if stat.st_nlink > 1
            && let Some(first) = self.seen.get(&identity(stat))
        {
            let first = first.clone();
            return self.header(path, EntryType::Link, stat, 0, &first, Vec::new());
        }
        let Some(opened) = self.open(dir, device, name, path, follow)? else { return Ok(()) };
        let xattrs = self.attributes(&opened.file, path)?;
        let whole = [(0, opened.size)];
        let pieces = opened.map.as_ref().map_or(&whole[..], |map| &map.pieces);
        // Before the header: of a file that gives nothing at all, nothing goes into the archive.
        let (start, length) = pieces.first().copied().unwrap_or_default();
        let first = match self.read(&opened.file, start, length) {
            Ok(len) => len,
            Err(errno) => return self.unread("read", path, errno, "left out"),
        };
        if opened.stat.st_nlink > 1 {
            self.seen.insert(identity(&opened.stat), path.to_vec());
        }
        self.file_header(path, &opened, xattrs)?;
        self.contents(path, &opened, pieces, first)
    }

    /// Opens a regular file; `None` when it is none that goes into an archive, which is then booked.
    fn open(
        &mut self,
        dir: &OwnedFd,
        device: u64,
        name: &[u8],
        path: &[u8],
        follow: bool,
    ) -> Result<Option<Opened>> {
        // Not blocking, should a FIFO have taken its place.
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let opened =
            places::open(dir, name, flags).and_then(|file| rustix::fs::fstat(&file).map(|stat| (file, stat)));
        let (file, stat) = match opened {
            Ok(opened) => opened,
            // A socket, or a device without a driver, has taken its place.
            Err(Errno::NXIO | Errno::NODEV) => return self.vanished(path, Errno::NOENT).map(|()| None),
            Err(errno) => return self.vanished(path, errno).map(|()| None),
        };
        if file_type(&stat) != FileType::RegularFile {
            self.changed(path, "no longer a file when it was opened");
            return Ok(None);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if (size == 0 || stat.st_dev != device) && is_the_kernel_s(&file) {
            self.skip(path, "a file of the kernel's, which tells no size");
            return Ok(None);
        }
        // Allocated in units of 512 bytes, stat(2). A name with a newline would be cut by common readers.
        let has_holes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let map = if self.sparse && has_holes && !path.contains(&b'\n') {
            Sparse::of_file(&file, size)
        } else {
            None
        };
        Ok(Some(Opened { file, stat, size, map }))
    }

    fn file_header(&mut self, path: &[u8], opened: &Opened, mut xattrs: Records) -> Result<()> {
        let Some(map) = &opened.map else {
            return self.header(path, EntryType::Regular, &opened.stat, opened.size, b"", xattrs);
        };
        let text = map.text();
        xattrs.extend(map.records(path));
        let slash = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        // For readers that do not know holes; the record has the name.
        let mut name = [&path[..slash], b"GNUSparseFile.0/", &path[slash..]].concat();
        name.truncate(100);
        let name = if name.is_ascii() { name } else { b"GNUSparseFile.0/file".to_vec() };
        let stored = text.len() as u64 + map.stored();
        self.header(&name, EntryType::Regular, &opened.stat, stored, b"", xattrs)?;
        self.writer.write(&text)
    }

    /// Exactly as many bytes as the pieces have, whatever the file has become; the `first` of them are in the buffer.
    fn contents(&mut self, path: &[u8], opened: &Opened, pieces: &[(u64, u64)], first: usize) -> Result<()> {
        let (mut len, mut ready) = (first, true);
        let mut is_whole = true;
        for (offset, length) in pieces {
            let mut done = 0;
            while done < *length {
                if !ready {
                    len = match self.read(&opened.file, offset + done, length - done) {
                        Ok(len) => len,
                        Err(errno) => {
                            self.unread("read", path, errno, "filled up with zeros")?;
                            is_whole = false;
                            0
                        }
                    };
                }
                ready = false;
                if len == 0 {
                    if std::mem::take(&mut is_whole) {
                        self.changed(path, "shrank while it was read; filled up with zeros");
                    }
                    self.writer.zeros(length - done)?;
                    break;
                }
                self.writer.write(&self.buffer[..len])?;
                done += len as u64;
            }
        }
        let now = if is_whole { rustix::fs::fstat(&opened.file).map_or(0, |now| now.st_size) } else { 0 };
        if u64::try_from(now).unwrap_or(0) > opened.size {
            self.changed(path, "grew while it was read; cut at its size at the start");
        }
        self.report.bytes += opened.size;
        self.writer.pad(opened.map.as_ref().map_or(opened.size, Sparse::stored))
    }

    /// Reads into the buffer, at most `left` bytes; none at the file's end, or where none are wanted.
    fn read(&mut self, file: &OwnedFd, offset: u64, left: u64) -> std::result::Result<usize, Errno> {
        let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        if wanted == 0 {
            return Ok(0);
        }
        loop {
            match rustix::io::pread(file, &mut self.buffer[..wanted], offset) {
                Err(Errno::INTR) => {}
                answer => return answer,
            }
        }
    }

    /// Books what was there when its directory was read and is not any more, and what cannot be opened.
    fn vanished(&mut self, path: &[u8], errno: Errno) -> Result<()> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => {
                self.changed(path, "gone before it could be read");
                Ok(())
            }
            errno => self.unread("open", path, errno, "left out"),
        }
    }

    /// Books what cannot be read, where that is allowed.
    fn unread(&mut self, operation: &str, path: &[u8], errno: Errno, done: &str) -> Result<()> {
        let failure = failure::at(operation, path, errno);
        if !self.ignore_failed_read {
            return Err(failure);
        }
        self.report.unread_count += 1;
        list(&mut self.report.unread, path, &format!("{}; {done}", failure.message));
        Ok(())
    }

    fn skip(&mut self, path: &[u8], why: &str) {
        self.report.skipped_count += 1;
        list(&mut self.report.skipped, path, why);
    }

    fn changed(&mut self, path: &[u8], why: &str) {
        self.report.changed_count += 1;
        list(&mut self.report.changed, path, why);
    }

    fn header(
        &mut self,
        path: &[u8],
        kind: EntryType,
        stat: &Stat,
        size: u64,
        link: &[u8],
        records: Records,
    ) -> Result<()> {
        self.report.entries += 1;
        self.writer.header(path, kind, stat, size, link, records)
    }

    /// Extended attributes as pax records; those that cannot be read do not exist for whoever asks, unless all is to be
    /// exact.
    fn attributes(&mut self, file: &OwnedFd, path: &[u8]) -> Result<Records> {
        if !self.xattrs {
            return Ok(Vec::new());
        }
        let mut names = vec![0; 64 * 1024];
        let len = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut value = vec![0; 64 * 1024];
        let (mut records, mut room) = (Vec::new(), MAX_ATTRIBUTES);
        for name in names {
            let len = match rustix::fs::fgetxattr(file, name, &mut value[..]) {
                Ok(len) => len,
                // Removed meanwhile.
                Err(Errno::NODATA) => continue,
                Err(errno) if self.exact => {
                    self.unread("read an attribute of", path, errno, "left out")?;
                    continue;
                }
                Err(_) => continue,
            };
            let Some(left) = room.checked_sub(name.len() + len + 64) else {
                self.unread("read attributes of", path, Errno::TOOBIG, "some of them left out")?;
                break;
            };
            room = left;
            records.push(([b"SCHILY.xattr.", name].concat(), value[..len].to_vec()));
        }
        Ok(records)
    }
}

/// A directory to go on in.
type Entered = (OwnedFd, Stat, Extent, Vec<Vec<u8>>);

impl Tree {
    fn push(&mut self, dir: OwnedFd, stat: &Stat, extent: Extent, names: Vec<Vec<u8>>) {
        let prefix = self.prefix.len();
        self.levels.push(Level {
            dir: Some(dir),
            identity: identity(stat),
            device: stat.st_dev,
            extent,
            prefix,
            names,
        });
        // Descriptors are limited, depth is not. The top stays open: from there every other can be found again.
        if let Some(far) = self.levels.len().checked_sub(KEPT_OPEN + 1).filter(|far| *far > 0) {
            self.levels[far].dir = None;
        }
    }

    /// Leaves the last directory. False when the one above has names to do but is no longer where it was; they are
    /// forgotten then.
    fn pop(&mut self) -> bool {
        let done = self.levels.pop().and_then(|level| level.dir);
        let Some(above) = self.levels.last() else { return true };
        self.prefix.truncate(above.prefix);
        if above.dir.is_some() || above.names.is_empty() {
            // Without names it is left at once as well, and the one above it is looked for from the top.
            return true;
        }
        let by_parent = done.and_then(|done| open_dir(&done, b"..", false).ok());
        let found = by_parent.filter(|dir| is(dir, above.identity)).or_else(|| self.find_last());
        let Some(above) = self.levels.last_mut() else { return true };
        above.dir = found;
        if above.dir.is_none() {
            above.names.clear();
        }
        above.dir.is_some()
    }

    /// Opens the last directory from the top, if it is still the same.
    fn find_last(&self) -> Option<OwnedFd> {
        let top = self.levels.first()?.dir.as_ref()?;
        let mut here = open_dir(top, b".", false).ok()?;
        for name in self.prefix.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            here = open_dir(&here, name, false).ok()?;
        }
        is(&here, self.levels.last()?.identity).then_some(here)
    }
}

fn is(dir: &OwnedFd, wanted: (u64, u64)) -> bool {
    rustix::fs::fstat(dir).is_ok_and(|stat| identity(&stat) == wanted)
}

fn is_mount_point(dir: &OwnedFd, name: &[u8]) -> bool {
    let facts = rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    facts.is_ok_and(|facts| facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Names in a directory, sorted so that the last comes first.
fn names(dir: &OwnedFd) -> std::result::Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of unknown type",
    }
}

fn list(listed: &mut Vec<Notice>, path: &[u8], why: &str) {
    if listed.len() < MAX_LISTED {
        listed.push(Notice { path: failure::shown(path), why: why.to_owned() });
    }
}
