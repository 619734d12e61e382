//! Entries of a context's archive as files beneath its directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use berth_types::image::ContextKind;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat,
    openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

use super::listing::Listing;
use super::settings::hex;
use super::upload::{Claim, copy, unwritable};
use crate::Error;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Permission bits of directories that no entry speaks of.
const IMPLIED_MODE: u32 = 0o755;

/// Makes entries one after the other.
pub(super) struct Unpack {
    root: OwnedFd,
    /// The directory that the last entry was in, and its path: archives go through one after the other.
    last: Option<(Vec<u8>, OwnedFd)>,
    listing: Listing,
    /// Directories and when they were changed: known to the file system when all is in them.
    dirs: BTreeMap<Vec<u8>, (u32, i64)>,
    buffer: Vec<u8>,
}

impl Unpack {
    pub(super) fn new(root: &Path) -> Result<Unpack, Error> {
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty()).map_err(unwritable)?;
        Ok(Unpack {
            root,
            last: None,
            listing: Listing::default(),
            dirs: BTreeMap::new(),
            buffer: Vec::new(),
        })
    }

    /// Makes one entry.
    pub(super) fn entry<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        claim: &mut Claim,
    ) -> Result<(), Error> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = within(&entry.path_bytes())?;
        let header = entry.header();
        let mode = header.mode().map_err(Error::BadContext)? & 0o7777;
        let changed = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
        if path.is_empty() {
            // The context's own directory.
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(refused(&path, "stands for the context itself and is no directory")),
            };
        }
        claim.grow(entry.size())?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, &path, mode, changed)
            }
            EntryType::Directory => {
                self.dir(&path, mode)?;
                self.dirs.insert(path, (mode, changed));
                Ok(())
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.link(&path, &target, changed)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&path, &target)
            }
            _ => Err(refused(&path, "is no file, directory or link")),
        }
    }

    /// What was made.
    pub(super) fn finish(self) -> Result<Listing, Error> {
        for (path, (mode, changed)) in self.dirs.iter().rev() {
            let dir = openat2(&self.root, OsStr::from_bytes(path), DIRECTORY, Mode::empty(), BENEATH);
            let dir = dir.map_err(unwritable)?;
            fchmod(&dir, Mode::from_raw_mode(*mode)).map_err(unwritable)?;
            futimens(&dir, &times(*changed)).map_err(unwritable)?;
        }
        Ok(self.listing)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &[u8],
        mode: u32,
        changed: i64,
    ) -> Result<(), Error> {
        let name = self.clear_place(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.last_dir(), name, flags, Mode::RUSR | Mode::WUSR).map_err(unwritable)?;
        let mut file = File::from(file);
        let mut hash = Sha256::new();
        let size = copy(entry, &mut file, &mut self.buffer, |bytes| hash.update(bytes))?;
        fchmod(&file, Mode::from_raw_mode(mode)).map_err(unwritable)?;
        futimens(&file, &times(changed)).map_err(unwritable)?;
        let digest = hex(&hash.finalize());
        self.note(path, mode, ContextKind::File { size, digest });
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8], changed: i64) -> Result<(), Error> {
        let name = self.clear_place(path)?;
        symlinkat(OsStr::from_bytes(target), self.last_dir(), name).map_err(unwritable)?;
        utimensat(self.last_dir(), name, &times(changed), AtFlags::SYMLINK_NOFOLLOW).map_err(unwritable)?;
        self.note(
            path,
            0o777,
            match std::str::from_utf8(target) {
                Ok(target) => ContextKind::Link { target: target.to_owned() },
                Err(_) => ContextKind::Special,
            },
        );
        Ok(())
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let target = within(target)?;
        let missing = || refused(path, "is a hard link to no file of the context");
        let known = String::from_utf8_lossy(&target).into_owned();
        let Some(kind @ ContextKind::File { .. }) = self.listing.get(&known).cloned() else {
            return Err(missing());
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(&self.root, OsStr::from_bytes(&target), flags, Mode::empty(), BENEATH);
        let file = file.map_err(|_| missing())?;
        let stat = rustix::fs::fstat(&file).map_err(unwritable)?;
        let name = self.clear_place(path)?;
        linkat(&file, "", self.last_dir(), name, AtFlags::EMPTY_PATH).map_err(unwritable)?;
        self.note(path, stat.st_mode & 0o7777, kind);
        Ok(())
    }

    fn note(&mut self, path: &[u8], mode: u32, kind: ContextKind) {
        // As a listing of the directory shows it: a name that is not UTF-8 cannot be copied.
        let kind = if std::str::from_utf8(path).is_ok() { kind } else { ContextKind::Special };
        self.listing.insert(String::from_utf8_lossy(path).into_owned(), mode, kind);
    }

    /// Makes a directory, or lets one be.
    fn dir(&mut self, path: &[u8], mode: u32) -> Result<(), Error> {
        let name = self.enter_above(path)?;
        match mkdirat(self.last_dir(), name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.is_dir(name)? => {}
            Err(Errno::EXIST) => {
                let name = self.clear_place(path)?;
                mkdirat(self.last_dir(), name, Mode::RWXU).map_err(unwritable)?;
            }
            Err(error) => return Err(unwritable(error)),
        }
        self.note(path, mode, ContextKind::Dir);
        Ok(())
    }

    fn is_dir(&self, name: &OsStr) -> Result<bool, Error> {
        let stat = statat(self.last_dir(), name, AtFlags::SYMLINK_NOFOLLOW).map_err(unwritable)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// The directory that was entered last.
    fn last_dir(&self) -> &OwnedFd {
        self.last.as_ref().map_or(&self.root, |(_, dir)| dir)
    }

    /// Enters the directory that `path` is in, making those that are missing; gives its name there.
    fn enter_above<'p>(&mut self, path: &'p [u8]) -> Result<&'p OsStr, Error> {
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        let name = OsStr::from_bytes(name);
        if self.last.as_ref().map_or(above.is_empty(), |(last, _)| last == above) {
            return Ok(name);
        }
        if above.is_empty() {
            self.last = None;
            return Ok(name);
        }
        let open =
            |root: &OwnedFd| openat2(root, OsStr::from_bytes(above), DIRECTORY, Mode::empty(), BENEATH);
        let dir = match open(&self.root) {
            Err(Errno::NOENT) => {
                self.dir(above, IMPLIED_MODE)?;
                self.dirs.insert(above.to_vec(), (IMPLIED_MODE, 0));
                open(&self.root)
            }
            opened => opened,
        };
        let dir = dir.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR | Errno::XDEV => {
                refused(path, "is below something that is no directory")
            }
            error => unwritable(error),
        })?;
        self.last = Some((above.to_vec(), dir));
        Ok(name)
    }

    /// Enters the directory that `path` is in, and makes sure that nothing stands there: of two entries with one path the
    /// later one counts.
    fn clear_place<'p>(&mut self, path: &'p [u8]) -> Result<&'p OsStr, Error> {
        let name = self.enter_above(path)?;
        let known = self.listing.get(&String::from_utf8_lossy(path)).is_some();
        if known {
            match unlinkat(self.last_dir(), name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    return Err(refused(path, "stands there twice, once as a directory"));
                }
                Err(error) => return Err(unwritable(error)),
            }
        }
        Ok(name)
    }
}

/// A path in the context, its parts joined by one slash each.
fn within(raw: &[u8]) -> Result<Vec<u8>, Error> {
    if raw.starts_with(b"/") {
        return Err(refused(raw, "is an absolute path"));
    }
    let parts: Vec<&[u8]> =
        raw.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(refused(raw, "leads out of it"));
    }
    Ok(parts.join(&b'/'))
}

fn refused(path: &[u8], problem: &'static str) -> Error {
    Error::ContextEntry { path: String::from_utf8_lossy(path).into_owned(), problem }
}

fn times(changed: i64) -> Timestamps {
    let time = Timespec { tv_sec: changed, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use tar::Header;

    use super::super::upload::Room;
    use super::*;

    enum Made<'a> {
        File(&'a str),
        Dir,
        Link(&'a str),
        Hard(&'a str),
        Fifo,
    }

    fn tar_of(entries: &[(&str, Made<'_>)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, made) in entries {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_mode(0o640);
            header.set_mtime(1_000_000_007);
            header.set_size(0);
            let (kind, link, data) = match made {
                Made::File(text) => (EntryType::Regular, "", *text),
                Made::Dir => (EntryType::Directory, "", ""),
                Made::Link(target) => (EntryType::Symlink, *target, ""),
                Made::Hard(target) => (EntryType::Link, *target, ""),
                Made::Fifo => (EntryType::Fifo, "", ""),
            };
            header.set_entry_type(kind);
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_size(data.len() as u64);
            header.set_cksum();
            tar.append(&header, data.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn unpacked(dir: &Path, entries: &[(&str, Made<'_>)], limit: Option<u64>) -> Result<Listing, Error> {
        let bytes = tar_of(entries);
        let mut claim = Claim::new(Room::new(limit));
        let mut unpack = Unpack::new(dir)?;
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            unpack.entry(&mut entry.unwrap(), &mut claim)?;
        }
        unpack.finish()
    }

    #[test]
    fn files_come_with_their_modes_times_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            ("./sub/", Made::Dir),
            ("sub/a", Made::File("hello")),
            ("implied/deep/b", Made::File("")),
            ("link", Made::Link("../sub/a")),
            ("same", Made::Hard("sub/a")),
        ];
        let listing = unpacked(dir.path(), &entries, None).unwrap();
        let digest = hex(&Sha256::digest("hello"));
        let file = ContextKind::File { size: 5, digest };
        assert_eq!(listing.get("sub/a"), Some(&file));
        assert_eq!(listing.get("same"), Some(&file));
        assert_eq!(listing.get("implied/deep"), Some(&ContextKind::Dir));
        assert_eq!(listing.get("link"), Some(&ContextKind::Link { target: "../sub/a".into() }));
        for path in ["sub", "sub/a"] {
            let metadata = std::fs::metadata(dir.path().join(path)).unwrap();
            assert_eq!(
                (metadata.permissions().mode() & 0o7777, metadata.mtime()),
                (0o640, 1_000_000_007),
                "{path}"
            );
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("same")).unwrap(), "hello");
        let implied = std::fs::metadata(dir.path().join("implied")).unwrap();
        assert_eq!(implied.permissions().mode() & 0o7777, IMPLIED_MODE);
    }

    #[test]
    fn of_two_entries_with_one_path_the_later_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [
            ("a", Made::File("long text")),
            ("a", Made::Link("x")),
            ("a", Made::File("b")),
            ("b", Made::File("")),
            ("b", Made::Dir),
        ];
        let listing = unpacked(dir.path(), &entries, None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "b");
        assert!(matches!(listing.get("a"), Some(ContextKind::File { size: 1, .. })));
        assert!(dir.path().join("b").is_dir());
    }

    #[test]
    fn nothing_is_made_outside_or_through_a_link() {
        let outside = tempfile::tempdir().unwrap();
        let out = outside.path().to_str().unwrap();
        let cases: Vec<Vec<(&str, Made<'_>)>> = vec![
            vec![("../a", Made::File("x"))],
            vec![("/a", Made::File("x"))],
            vec![("a/../../b", Made::File("x"))],
            vec![("l", Made::Link(out)), ("l/a", Made::File("x"))],
            vec![("l", Made::Link(".")), ("l/a", Made::File("x"))],
            vec![("a", Made::Hard("/etc/hostname"))],
            vec![("a", Made::Hard("../x"))],
            vec![("l", Made::Link("/etc/hostname")), ("a", Made::Hard("l"))],
            vec![("f", Made::Fifo)],
            vec![("f", Made::File("")), ("f/a", Made::File(""))],
            vec![("d", Made::Dir), ("d", Made::File(""))],
            vec![("", Made::File("x"))],
        ];
        for (number, entries) in cases.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let refused = unpacked(dir.path(), entries, None);
            assert!(matches!(refused, Err(Error::ContextEntry { .. })), "case {number}: {refused:?}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_does_not_fit_into_the_room_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [("a", Made::File("x")), ("b", Made::File("x"))];
        assert!(unpacked(dir.path(), &entries, Some(3 * 4096)).is_ok());
        let dir = tempfile::tempdir().unwrap();
        let refused = unpacked(dir.path(), &entries, Some(4096 + 10));
        assert!(matches!(refused, Err(Error::ContextRoom { limit: 4106 })), "{refused:?}");
    }
}
