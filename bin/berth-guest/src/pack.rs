//! Packing a file or a tree into a tar: sorted names, nothing followed, and a stream that stays well-formed whatever
//! happens to the files while they are read.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use berth_wire::{FailureCode, MAX_LISTED, Notice, Outcome, Pack, PackReport};
use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use tar::{EntryType, Header};

use crate::failure::{self, Result};
use crate::pattern::Excludes;
use crate::places::{self, file_type, identity};

const BLOCK: usize = 512;
const BUFFER: usize = 64 * 1024;
/// Longest name that a ustar header holds without its prefix field.
const MAX_NAME: usize = 100;
/// Largest number that the size field holds in octal.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;
/// Largest number that the id fields hold in octal.
const MAX_OCTAL_ID: u32 = 0o7_777_777;
/// File systems that show the kernel, not files that anybody keeps, by their numbers in statfs(2): proc, sysfs, cgroup,
/// cgroup2, devpts, mqueue, securityfs, debugfs, tracefs, bpf.
const KERNEL_FILE_SYSTEMS: [u32; 10] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x1980_0202,
    0x7363_6673,
    0x6462_6720,
    0x7472_6163,
    0xcafe_4a11,
];

/// Carries out the request.
pub(crate) fn pack(request: &Pack, output: &mut impl Write) -> Result<Outcome> {
    let path = failure::absolute(&request.path)?;
    let mut packer = Packer {
        output,
        excludes: Excludes::new(&request.exclude),
        xattrs: request.xattrs,
        one_mount: request.one_mount,
        ignore_failed_read: request.ignore_failed_read,
        seen: HashMap::new(),
        buffer: vec![0; BUFFER],
        report: PackReport::default(),
    };
    packer.start(path, request)?;
    packer.write(&[0; 2 * BLOCK])?;
    packer.output.flush().map_err(|_| cancelled())?;
    Ok(Outcome::Packed(packer.report))
}

struct Packer<'a, W> {
    output: &'a mut W,
    excludes: Excludes,
    xattrs: bool,
    one_mount: bool,
    ignore_failed_read: bool,
    /// Names of files with several links.
    seen: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    report: PackReport,
}

/// A directory that is being packed.
struct Level {
    dir: OwnedFd,
    device: u64,
    /// Its path in the archive, empty or with a slash at the end.
    prefix: Vec<u8>,
    /// Names still to do, the last one first.
    names: Vec<Vec<u8>>,
}

impl<W: Write> Packer<'_, W> {
    fn start(&mut self, path: &[u8], request: &Pack) -> Result<()> {
        let fail = |errno| failure::at("open", path, errno);
        let follow = if request.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = rustix::fs::statat(CWD, path, follow).map_err(fail)?;
        if file_type(&stat) == FileType::Directory {
            // A path that ends in a slash or a dot names the directory also through a symlink.
            let dir = open_dir(CWD, path, request.follow || places::split(path).is_none()).map_err(fail)?;
            if request.include_top {
                self.entry_dir(&dir, b"./", &stat)?;
            }
            return self.tree(dir);
        }
        let Some((parent, name)) = places::split(path) else { return Err(fail(Errno::NOTDIR)) };
        let parent = open_dir(CWD, parent, true).map_err(fail)?;
        self.leaf(&parent, name, name.to_vec(), &stat, request.follow).map(drop)
    }

    fn tree(&mut self, top: OwnedFd) -> Result<()> {
        let fail = |errno| failure::at("read directory", b".", errno);
        let device = rustix::fs::fstat(&top).map_err(fail)?.st_dev;
        let names = names(&top).map_err(fail)?;
        let mut levels = vec![Level { dir: top, device, prefix: Vec::new(), names }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let path = [&level.prefix[..], &name].concat();
            if self.excludes.has(&path) {
                continue;
            }
            let stat = match rustix::fs::statat(&level.dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) => {
                    self.vanished(&path, errno)?;
                    continue;
                }
            };
            if self.one_mount && is_mount_point(&level.dir, &name) {
                self.mount_point(&level.dir, &path, &stat)?;
            } else if file_type(&stat) != FileType::Directory {
                self.leaf(&level.dir, &name, path, &stat, false)?;
            } else if let Some(next) = self.enter(level, &name, path, &stat)? {
                levels.push(next);
            }
        }
        Ok(())
    }

    fn enter(&mut self, parent: &Level, name: &[u8], path: Vec<u8>, stat: &Stat) -> Result<Option<Level>> {
        let dir = match open_dir(&parent.dir, name, false) {
            Ok(dir) => dir,
            Err(errno) => return self.vanished(&path, errno).map(|()| None),
        };
        if stat.st_dev != parent.device
            && let Some(why) = not_for_archives(&dir, stat)
        {
            self.skip(&path, why);
            return self.mount_point(&parent.dir, &path, stat).map(|()| None);
        }
        let names = match names(&dir) {
            Ok(names) => names,
            Err(errno) => return self.vanished(&path, errno).map(|()| None),
        };
        let prefix = [&path[..], b"/"].concat();
        self.entry_dir(&dir, &prefix, stat)?;
        Ok(Some(Level { dir, device: stat.st_dev, prefix, names }))
    }

    /// What is mounted is left out. What lies under it cannot be seen: a directory as images have it, without anything
    /// that would differ from one time to the next.
    fn mount_point(&mut self, parent: &OwnedFd, path: &[u8], mounted: &Stat) -> Result<()> {
        if file_type(mounted) != FileType::Directory {
            return Ok(());
        }
        let mut stat = rustix::fs::fstat(parent).map_err(|errno| failure::at("look at", path, errno))?;
        (stat.st_mode, stat.st_uid, stat.st_gid) = (0o755, 0, 0);
        self.header(&[path, b"/"].concat(), EntryType::Directory, &stat, 0, b"", Vec::new())
    }

    fn entry_dir(&mut self, dir: &OwnedFd, path: &[u8], stat: &Stat) -> Result<()> {
        let xattrs = self.attributes(dir);
        self.header(path, EntryType::Directory, stat, 0, b"", xattrs)
    }

    /// Anything but a directory.
    fn leaf(&mut self, dir: &OwnedFd, name: &[u8], path: Vec<u8>, stat: &Stat, follow: bool) -> Result<()> {
        match file_type(stat) {
            FileType::RegularFile => self.file(dir, name, path, stat, follow),
            FileType::Symlink => match rustix::fs::readlinkat(dir, name, Vec::new()) {
                Ok(to) => self.header(&path, EntryType::Symlink, stat, 0, to.as_bytes(), Vec::new()),
                Err(errno) => self.vanished(&path, errno),
            },
            other => {
                self.skip(&path, kind_name(other));
                Ok(())
            }
        }
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], path: Vec<u8>, stat: &Stat, follow: bool) -> Result<()> {
        if stat.st_nlink > 1
            && let Some(first) = self.seen.get(&identity(stat))
        {
            let first = first.clone();
            return self.header(&path, EntryType::Link, stat, 0, &first, Vec::new());
        }
        // Not blocking, should a FIFO have taken its place.
        let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let file = match places::open(dir, name, flags) {
            Ok(file) => file,
            Err(errno) => return self.vanished(&path, errno),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failure::at("look at", &path, errno))?;
        if file_type(&stat) != FileType::RegularFile {
            return self.changed(&path, "no longer a file when it was opened");
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 && is_the_kernel_s(&file) {
            self.skip(&path, "a file of the kernel's, which tells no size");
            return Ok(());
        }
        let xattrs = self.attributes(&file);
        let mut file = std::fs::File::from(file);
        // Before the header: of a file that gives nothing at all, nothing goes into the archive.
        let first = match self.read(&mut file, size) {
            Ok(len) => len,
            Err(errno) => return self.unread("read", &path, errno, "left out"),
        };
        if stat.st_nlink > 1 {
            self.seen.insert(identity(&stat), path.clone());
        }
        self.header(&path, EntryType::Regular, &stat, size, b"", xattrs)?;
        self.contents(&path, file, size, first)
    }

    /// Exactly `size` bytes, whatever the file has become; the `first` of them are in the buffer.
    fn contents(&mut self, path: &[u8], mut file: std::fs::File, size: u64, first: usize) -> Result<()> {
        let (mut left, mut len) = (size, first);
        while left > 0 {
            if len == 0 {
                self.zeros(left)?;
                self.changed(path, "shrank while it was read; filled up with zeros")?;
                break;
            }
            self.output.write_all(&self.buffer[..len]).map_err(|_| cancelled())?;
            left -= len as u64;
            len = match self.read(&mut file, left) {
                Ok(len) => len,
                Err(errno) => {
                    self.unread("read", path, errno, "filled up with zeros")?;
                    self.zeros(left)?;
                    break;
                }
            };
        }
        if left == 0 && file.metadata().is_ok_and(|now| now.len() > size) {
            self.changed(path, "grew while it was read; cut at its size at the start")?;
        }
        self.report.bytes += size;
        self.zeros(size.wrapping_neg() % BLOCK as u64)
    }

    /// Reads into the buffer, at most `left` bytes; none at the file's end, or where none are wanted.
    fn read(&mut self, file: &mut std::fs::File, left: u64) -> std::result::Result<usize, Errno> {
        let wanted = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        if wanted == 0 {
            return Ok(0);
        }
        loop {
            match file.read(&mut self.buffer[..wanted]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                answer => return answer.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
    }

    fn zeros(&mut self, mut len: u64) -> Result<()> {
        let zeros = [0; 4096];
        while len > 0 {
            let now = usize::try_from(len).unwrap_or(zeros.len()).min(zeros.len());
            self.write(&zeros[..now])?;
            len -= now as u64;
        }
        Ok(())
    }

    /// Books what was there when its directory was read and is not any more, and what cannot be opened.
    fn vanished(&mut self, path: &[u8], errno: Errno) -> Result<()> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => self.changed(path, "gone before it could be read"),
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

    fn changed(&mut self, path: &[u8], why: &str) -> Result<()> {
        self.report.changed_count += 1;
        list(&mut self.report.changed, path, why);
        Ok(())
    }

    // ---- headers ----

    fn header(
        &mut self,
        path: &[u8],
        kind: EntryType,
        stat: &Stat,
        size: u64,
        link: &[u8],
        mut records: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_size(size);
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        self.name(EntryType::GNULongName, "path", path, &mut header.as_old_mut().name, &mut records)?;
        self.name(EntryType::GNULongLink, "linkpath", link, &mut header.as_old_mut().linkname, &mut records)?;
        let mut number = |key: &str, value: String| records.push((key.into(), value.into_bytes()));
        if size > MAX_OCTAL_SIZE {
            number("size", size.to_string());
        }
        if stat.st_uid > MAX_OCTAL_ID {
            number("uid", stat.st_uid.to_string());
        }
        if stat.st_gid > MAX_OCTAL_ID {
            number("gid", stat.st_gid.to_string());
        }
        if stat.st_mtime < 0 {
            number("mtime", stat.st_mtime.to_string());
        }
        header.set_cksum();
        self.records(&records)?;
        self.report.entries += 1;
        self.write(header.as_bytes())
    }

    /// Puts `name` into its field, and where that cannot hold it into a record before the header. A long name with a
    /// newline goes into GNU's extension instead: common readers cut pax records at newlines.
    fn name(
        &mut self,
        extension: EntryType,
        key: &str,
        name: &[u8],
        field: &mut [u8; MAX_NAME],
        records: &mut Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<()> {
        let short = &name[..name.len().min(MAX_NAME)];
        field[..short.len()].copy_from_slice(short);
        if name.len() <= MAX_NAME && (name.is_ascii() || name.contains(&b'\n')) {
            return Ok(());
        }
        if name.contains(&b'\n') {
            return self.extension(extension, b"././@LongLink", &[name, b"\0"].concat());
        }
        records.push((key.into(), name.to_vec()));
        Ok(())
    }

    fn records(&mut self, records: &[(Vec<u8>, Vec<u8>)]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.extension(EntryType::XHeader, b"././@PaxHeader", &data)
    }

    fn extension(&mut self, kind: EntryType, name: &[u8], data: &[u8]) -> Result<()> {
        let mut header = if kind == EntryType::XHeader { Header::new_ustar() } else { Header::new_gnu() };
        header.set_entry_type(kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(data)?;
        self.zeros((data.len() as u64).wrapping_neg() % BLOCK as u64)
    }

    /// Extended attributes as pax records; those that cannot be read do not exist for whoever asks.
    fn attributes(&self, file: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
        if !self.xattrs {
            return Vec::new();
        }
        let mut names = vec![0; 64 * 1024];
        let len = rustix::fs::flistxattr(file, &mut names[..]).unwrap_or(0);
        let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut value = vec![0; 64 * 1024];
        let read = |name: &[u8]| {
            let len = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
            Some(([b"SCHILY.xattr.", name].concat(), value[..len].to_vec()))
        };
        names.filter_map(read).collect()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|_| cancelled())
    }
}

/// The only way in which sending fails.
fn cancelled() -> berth_wire::Failure {
    failure::because(FailureCode::Cancelled, "nobody takes the archive any more", None)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn open_dir(parent: impl rustix::fd::AsFd, name: &[u8], follow: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, !follow);
    places::open(parent, name, flags)
}

fn is_mount_point(dir: &OwnedFd, name: &[u8]) -> bool {
    let facts = rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    facts.is_ok_and(|facts| facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Why what is mounted on `dir` is left out below any directory: it is the kernel's view of the machine, which has no
/// end and no sizes, or the sandbox's own devices.
fn not_for_archives(dir: &OwnedFd, stat: &Stat) -> Option<&'static str> {
    if is_the_kernel_s(dir) {
        return Some("a file system of the kernel's");
    }
    let devices = rustix::fs::statat(CWD, "/dev", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    (identity(&devices) == identity(stat)).then_some("the directory of devices")
}

fn is_the_kernel_s(file: &OwnedFd) -> bool {
    // The numbers are of 32 bits; the field is wider.
    rustix::fs::fstatfs(file).is_ok_and(|facts| KERNEL_FILE_SYSTEMS.contains(&(facts.f_type as u32)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(record(b"path", b"abc"), b"12 path=abc\n");
        let long = record(b"path", &[b'x'; 91]);
        assert_eq!(long.len(), 101, "the length itself grows from two digits to three");
        assert!(long.starts_with(b"101 path=x"), "{:?}", String::from_utf8_lossy(&long));
    }
}
