//! Unpacking a layer's tar into a directory that overlayfs can use as a lower layer.
//!
//! The tar is hostile. Every name is resolved by the kernel below the layer's own root (`RESOLVE_IN_ROOT`), so absolute
//! names and symlinked parents cannot lead out of it; names with more `..` than parents are refused. Deletions become what overlayfs understands: `.wh.name` a character
//! device 0:0, `.wh..wh..opq` the attribute `trusted.overlay.opaque`.
//!
//! Times of directories are set last, since making their entries changes them.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::tar_reader::{Kind, Member, TarError, TarReader};
use super::{OPAQUE_XATTR, is_whiteout};

const COPY_BUFFER: usize = 512 * 1024;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The tar stream is broken.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The directory to unpack into cannot be opened.
    #[error("cannot open the layer directory {dir}")]
    Open {
        /// The directory.
        dir: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// One member could not be made.
    #[error("cannot unpack {member:?}: {operation} failed")]
    Member {
        /// The member.
        member: String,
        /// What was being done for it.
        operation: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A hard link's target is not in this layer.
    #[error("hard link {member:?} points at {target:?}, which is not in the same layer")]
    HardLink {
        /// The link.
        member: String,
        /// What it should be the same file as.
        target: String,
    },
    /// A member that no file tree can hold, or that overlayfs would take for something else.
    #[error("member {member:?} is refused: {why}")]
    Refused {
        /// The member.
        member: String,
        /// Why.
        why: &'static str,
    },
}

/// Unpacks every member of `tar` below `dir`, which must be empty and on a file system with `trusted.*` attributes.
pub(crate) fn unpack<R: Read>(tar: &mut TarReader<R>, dir: &Path) -> Result<(), UnpackError> {
    let open = |source: Errno| UnpackError::Open { dir: dir.to_owned(), source: source.into() };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = Rc::new(rustix::fs::open(dir, flags, Mode::empty()).map_err(open)?);
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(open)?;
    let mut tree = Tree {
        root,
        last_parent: None,
        dir_times: vec![(Vec::new(), time(0, 0))],
        buffer: vec![0; COPY_BUFFER],
        lost: tar.recorder().map(|recorder| Lost { dir: recorder.lost().to_owned(), files: 0 }),
        replaced: false,
    };
    while let Some(member) = tar.next()? {
        tree.add(&member, tar)?;
    }
    if let Some(recorder) = tar.recorder().filter(|_| tree.replaced) {
        recorder.replaced();
    }
    tree.set_dir_times()
}

/// The tree under construction.
struct Tree {
    root: Rc<OwnedFd>,
    /// Neighbours mostly share their parent; resolved once, forgotten when anything is removed.
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    dir_times: Vec<(Vec<u8>, Timespec)>,
    buffer: Vec<u8>,
    /// For a tar that is taken down: where files go that a later member replaces.
    lost: Option<Lost>,
    /// Whether anything but a deletion was replaced.
    replaced: bool,
}

/// Replaced files. They are kept to the end, so that their bytes can be kept and their inodes are nobody else's.
struct Lost {
    dir: PathBuf,
    files: u64,
}

impl Lost {
    fn take(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        if self.files == 0 {
            std::fs::create_dir(&self.dir).map_err(|source| UnpackError::Member {
                member: place.member.name(),
                operation: "making a directory for what it replaces",
                source,
            })?;
        }
        self.files += 1;
        let to = self.dir.join(self.files.to_string());
        rustix::fs::renameat(&place.parent, place.name(), rustix::fs::CWD, &to)
            .map_err(place.fail("setting aside what it replaces"))
    }
}

/// A member's place: an open parent directory and a name in it.
struct Place<'a> {
    member: &'a Member,
    parent: Rc<OwnedFd>,
    name: Vec<u8>,
    /// Normalised path from the layer's root.
    path: Vec<u8>,
}

impl Place<'_> {
    fn fail(&self, operation: &'static str) -> impl Fn(Errno) -> UnpackError + '_ {
        move |errno| UnpackError::Member { member: self.member.name(), operation, source: errno.into() }
    }

    fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// A path for the calls that have no form with a directory descriptor; its last part is never followed by them.
    fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(self.name())
    }
}

impl Tree {
    fn add<R: Read>(&mut self, member: &Member, tar: &mut TarReader<R>) -> Result<(), UnpackError> {
        let path = normalise(member)?;
        let Some(name) = path.split(|b| *b == b'/').next_back().filter(|n| !n.is_empty()) else {
            return self.set_root(member);
        };
        let parent_path = path[..path.len() - name.len()].strip_suffix(b"/").unwrap_or_default().to_vec();
        let name = name.to_vec();
        let parent = self.parent(&parent_path, member)?;
        let place = Place { member, parent, name, path };
        if place.name.starts_with(WHITEOUT_PREFIX) {
            return self.add_deletion(&place, &parent_path);
        }
        match member.kind {
            Kind::Dir => self.add_dir(&place),
            Kind::HardLink => self.add_hard_link(&place),
            _ => self.add_leaf(&place, tar),
        }
    }

    /// The member `./`: attributes of the layer's root.
    fn set_root(&mut self, member: &Member) -> Result<(), UnpackError> {
        if member.kind != Kind::Dir {
            return refuse(member, "the root of a file tree is a directory");
        }
        let place = Place { member, parent: Rc::clone(&self.root), name: b".".to_vec(), path: Vec::new() };
        self.set_dir_attributes(&place, Rc::clone(&self.root))
    }

    fn add_deletion(&mut self, place: &Place<'_>, parent_path: &[u8]) -> Result<(), UnpackError> {
        if place.name == OPAQUE_MARKER {
            if parent_path.is_empty() {
                return refuse(place.member, "overlayfs cannot hide everything below a layer's root");
            }
            return self.set_opaque(place, &place.parent);
        }
        if place.name.starts_with(META_PREFIX) {
            return refuse(place.member, "AUFS bookkeeping is not supported");
        }
        let victim = place.name[WHITEOUT_PREFIX.len()..].to_vec();
        if matches!(victim.as_slice(), b"" | b"." | b"..") {
            return refuse(place.member, "it deletes no name");
        }
        let place =
            Place { member: place.member, parent: Rc::clone(&place.parent), name: victim, path: Vec::new() };
        // A deletion is about the layers below; what this layer itself has under that name stays, and must
        // not merge with what it replaces.
        match stat(&place)? {
            Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                let dir = open_dir(&place)?;
                self.set_opaque(&place, &dir)
            }
            Some(_) => Ok(()),
            None => {
                rustix::fs::mknodat(&place.parent, place.name(), FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(place.fail("making a whiteout"))
            }
        }
    }

    fn set_opaque(&self, place: &Place<'_>, dir: &OwnedFd) -> Result<(), UnpackError> {
        rustix::fs::fsetxattr(dir, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(place.fail("marking a directory opaque"))
    }

    fn add_dir(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        let found = stat(place)?;
        let is_dir =
            found.as_ref().is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if !is_dir {
            self.remove(place, found.as_ref())?;
            rustix::fs::mkdirat(&place.parent, place.name(), Mode::from_raw_mode(0o755))
                .map_err(place.fail("mkdir"))?;
        }
        let dir = Rc::new(open_dir(place)?);
        if found.as_ref().is_some_and(is_whiteout) {
            self.set_opaque(place, &dir)?;
        }
        self.set_dir_attributes(place, Rc::clone(&dir))?;
        self.last_parent = Some((place.path.clone(), dir));
        Ok(())
    }

    fn set_dir_attributes(&mut self, place: &Place<'_>, dir: Rc<OwnedFd>) -> Result<(), UnpackError> {
        let (uid, gid) = owner(place.member)?;
        rustix::fs::fchown(&dir, Some(uid), Some(gid)).map_err(place.fail("chown"))?;
        rustix::fs::fchmod(&dir, mode(place.member)).map_err(place.fail("chmod"))?;
        for (name, value) in xattrs(place.member)? {
            rustix::fs::fsetxattr(&dir, name, value, XattrFlags::empty()).map_err(place.fail("setxattr"))?;
        }
        let (seconds, nanos) = place.member.mtime;
        self.dir_times.push((place.path.clone(), time(seconds, nanos)));
        Ok(())
    }

    fn add_hard_link(&mut self, place: &Place<'_>) -> Result<(), UnpackError> {
        let missing = || UnpackError::HardLink {
            member: place.member.name(),
            target: String::from_utf8_lossy(&place.member.link).into_owned(),
        };
        let target = clean(&place.member.link);
        let name = target.split(|b| *b == b'/').next_back().unwrap_or_default();
        if name.is_empty() || place.member.link.contains(&0) {
            return Err(missing());
        }
        let parent = target[..target.len() - name.len()].strip_suffix(b"/").unwrap_or_default();
        let parent = Rc::new(self.open_in_root(parent).map_err(|_| missing())?);
        let target = Place { member: place.member, parent, name: name.to_vec(), path: Vec::new() };
        let found = stat(&target)?.filter(|s| !is_whiteout(s)).ok_or_else(missing)?;
        let existing = stat(place)?;
        if existing.as_ref().is_some_and(|e| (e.st_dev, e.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        self.remove(place, existing.as_ref())?;
        rustix::fs::linkat(&target.parent, target.name(), &place.parent, place.name(), AtFlags::empty())
            .map_err(place.fail("link"))
    }

    /// Anything but directories and hard links: made anew under its name, which is freed first.
    fn add_leaf<R: Read>(&mut self, place: &Place<'_>, tar: &mut TarReader<R>) -> Result<(), UnpackError> {
        let member = place.member;
        let found = stat(place)?;
        self.remove(place, found.as_ref())?;
        if member.kind == Kind::File {
            return self.add_file(place, tar);
        }
        let node = |kind, device| {
            rustix::fs::mknodat(&place.parent, place.name(), kind, mode(member), device)
                .map_err(place.fail("mknod"))
        };
        let device = rustix::fs::makedev(member.device.0, member.device.1);
        match member.kind {
            Kind::Char if device == 0 => {
                return refuse(member, "overlayfs takes character device 0:0 for a deletion");
            }
            Kind::Char => node(FileType::CharacterDevice, device)?,
            Kind::Block => node(FileType::BlockDevice, device)?,
            Kind::Fifo => node(FileType::Fifo, 0)?,
            _ => rustix::fs::symlinkat(OsStr::from_bytes(&member.link), &place.parent, place.name())
                .map_err(place.fail("symlink"))?,
        }
        let (uid, gid) = owner(member)?;
        rustix::fs::chownat(&place.parent, place.name(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.fail("chown"))?;
        if member.kind != Kind::Symlink {
            // mknod(2) obeyed the umask.
            rustix::fs::chmodat(&place.parent, place.name(), mode(member), AtFlags::empty())
                .map_err(place.fail("chmod"))?;
        }
        for (name, value) in xattrs(member)? {
            rustix::fs::lsetxattr(place.proc_path(), name, value, XattrFlags::empty())
                .map_err(place.fail("setxattr"))?;
        }
        rustix::fs::utimensat(&place.parent, place.name(), &times(member), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(place.fail("setting times"))
    }

    fn add_file<R: Read>(&mut self, place: &Place<'_>, tar: &mut TarReader<R>) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.parent, place.name(), flags, Mode::from_raw_mode(0o600))
            .map_err(place.fail("creating the file"))?;
        match &place.member.sparse {
            None => {
                record(place, &file, tar, 0)?;
                self.copy(place, &file, tar, None)?;
            }
            Some(areas) => {
                for (offset, length) in areas {
                    record(place, &file, tar, *offset)?;
                    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(*offset))
                        .map_err(place.fail("seek"))?;
                    self.copy(place, &file, tar, Some(*length))?;
                }
                rustix::fs::ftruncate(&file, place.member.size).map_err(place.fail("truncate"))?;
            }
        }
        let (uid, gid) = owner(place.member)?;
        // In this order: chown clears set-id bits and capabilities, writing and chmod change times.
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(place.fail("chown"))?;
        rustix::fs::fchmod(&file, mode(place.member)).map_err(place.fail("chmod"))?;
        for (name, value) in xattrs(place.member)? {
            rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty()).map_err(place.fail("setxattr"))?;
        }
        rustix::fs::futimens(&file, &times(place.member)).map_err(place.fail("setting times"))
    }

    /// Copies `length` bytes of the member's data, or all that are left of it.
    fn copy<R: Read>(
        &mut self,
        place: &Place<'_>,
        file: &OwnedFd,
        tar: &mut TarReader<R>,
        length: Option<u64>,
    ) -> Result<(), UnpackError> {
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let want = left.min(self.buffer.len() as u64) as usize;
            let n = tar.read_data(&mut self.buffer[..want])?;
            if n == 0 {
                break;
            }
            let mut chunk = &self.buffer[..n];
            while !chunk.is_empty() {
                let written = rustix::io::retry_on_intr(|| rustix::io::write(file, chunk))
                    .map_err(place.fail("write"))?;
                chunk = &chunk[written..];
            }
            left -= n as u64;
        }
        Ok(())
    }

    /// Frees a name for what replaces it.
    fn remove(&mut self, place: &Place<'_>, found: Option<&Stat>) -> Result<(), UnpackError> {
        let Some(found) = found else { return Ok(()) };
        let kind = FileType::from_raw_mode(found.st_mode);
        self.replaced |= !is_whiteout(found);
        if let Some(lost) = &mut self.lost
            && matches!(kind, FileType::Directory | FileType::RegularFile)
        {
            self.last_parent = None;
            return lost.take(place);
        }
        if kind != FileType::Directory {
            return rustix::fs::unlinkat(&place.parent, place.name(), AtFlags::empty())
                .map_err(place.fail("unlink"));
        }
        self.last_parent = None;
        std::fs::remove_dir_all(place.proc_path()).map_err(|source| UnpackError::Member {
            member: place.member.name(),
            operation: "removing the directory it replaces",
            source,
        })
    }

    /// The directory that `path` names, made with all above it where missing.
    fn parent(&mut self, path: &[u8], member: &Member) -> Result<Rc<OwnedFd>, UnpackError> {
        if path.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((last, fd)) = &self.last_parent
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_in_root(path) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path, member)?,
            Err(errno) => {
                return Err(UnpackError::Member {
                    member: member.name(),
                    operation: "opening the directory that holds it",
                    source: errno.into(),
                });
            }
        };
        self.last_parent = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_parents(&mut self, path: &[u8], member: &Member) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut dir = Rc::clone(&self.root);
        let mut end = 0;
        for name in path.split(|b| *b == b'/') {
            end += name.len() + usize::from(end > 0);
            let so_far = &path[..end];
            if let Ok(found) = self.open_in_root(so_far) {
                dir = Rc::new(found);
                continue;
            }
            let place = Place { member, parent: dir, name: name.to_vec(), path: so_far.to_vec() };
            let hidden = match stat(&place)? {
                None => false,
                Some(found) if is_whiteout(&found) => {
                    self.remove(&place, Some(&found))?;
                    true
                }
                Some(_) => {
                    return refuse(
                        member,
                        "a file or a dangling symlink stands where its directory should be",
                    );
                }
            };
            rustix::fs::mkdirat(&place.parent, place.name(), Mode::from_raw_mode(0o755))
                .map_err(place.fail("making the directory that holds it"))?;
            dir = Rc::new(open_dir(&place)?);
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(place.fail("chmod"))?;
            if hidden {
                self.set_opaque(&place, &dir)?;
            }
            // The archive gives no time for it: a fixed one keeps the tree the same every time.
            self.dir_times.push((place.path, time(0, 0)));
        }
        Ok(dir)
    }

    fn open_in_root(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.is_empty() {
            return rustix::fs::openat(&self.root, c".", flags, Mode::empty());
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
                // The kernel could not rule out a rename outside while resolving "..": try again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn set_dir_times(&self) -> Result<(), UnpackError> {
        // A later header of the same directory wins, so in order.
        for (path, mtime) in &self.dir_times {
            let dir = match self.open_in_root(path) {
                Ok(dir) => dir,
                // Replaced by something else, later in the archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(dir_time_error(path, errno)),
            };
            let times = Timestamps { last_access: *mtime, last_modification: *mtime };
            rustix::fs::futimens(&dir, &times).map_err(|errno| dir_time_error(path, errno))?;
        }
        Ok(())
    }
}

/// Says where the data goes that is read next.
fn record<R: Read>(
    place: &Place<'_>,
    file: &OwnedFd,
    tar: &mut TarReader<R>,
    offset: u64,
) -> Result<(), UnpackError> {
    if let Some(recorder) = tar.recorder() {
        let inode = rustix::fs::fstat(file).map_err(place.fail("stat"))?.st_ino;
        recorder.payload(&place.path, offset, inode);
    }
    Ok(())
}

fn dir_time_error(path: &[u8], errno: Errno) -> UnpackError {
    let member = String::from_utf8_lossy(path).into_owned();
    UnpackError::Member { member, operation: "setting times", source: errno.into() }
}

fn stat(place: &Place<'_>) -> Result<Option<Stat>, UnpackError> {
    match rustix::fs::statat(&place.parent, place.name(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(place.fail("stat")(errno)),
    }
}

fn open_dir(place: &Place<'_>) -> Result<OwnedFd, UnpackError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(place.parent.as_fd(), place.name(), flags, Mode::empty())
        .map_err(place.fail("opening the directory"))
}

fn refuse<T>(member: &Member, why: &'static str) -> Result<T, UnpackError> {
    Err(UnpackError::Refused { member: member.name(), why })
}

/// The member's path from the layer's root, without `.`, `..` and doubled slashes; empty for the root itself.
fn normalise(member: &Member) -> Result<Vec<u8>, UnpackError> {
    if member.path.contains(&0) || member.link.contains(&0) && member.kind == Kind::Symlink {
        return refuse(member, "its name holds a zero byte");
    }
    if climbs_out(&member.path) {
        return refuse(member, "its name leads out of the file tree");
    }
    Ok(clean(&member.path))
}

/// Whether a `..` of `path` has nothing above it. Such a member would get another name than it asks for.
fn climbs_out(path: &[u8]) -> bool {
    let mut depth = 0u32;
    path.split(|b| *b == b'/').any(|part| match part {
        b"" | b"." => false,
        b".." if depth == 0 => true,
        b".." => {
            depth -= 1;
            false
        }
        _ => {
            depth += 1;
            false
        }
    })
}

fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            // As in a root directory: there is nothing above it.
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn owner(member: &Member) -> Result<(Uid, Gid), UnpackError> {
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(member.uid), id(member.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => refuse(member, "its owner is beyond what Linux can hold"),
    }
}

fn mode(member: &Member) -> Mode {
    Mode::from_raw_mode(member.mode & 0o7777)
}

fn times(member: &Member) -> Timestamps {
    let mtime = time(member.mtime.0, member.mtime.1);
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn time(seconds: i64, nanos: u32) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanos.into() }
}

/// The attributes to set. Labels of SELinux belong to the machine that wrote the archive, not to the image, and are left
/// out; overlayfs's own are refused, since they would change what the layer means.
fn xattrs(member: &Member) -> Result<Vec<(&OsStr, &[u8])>, UnpackError> {
    let mut kept = Vec::new();
    for (name, value) in &member.xattrs {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            return refuse(member, "it carries attributes that only overlayfs itself may set");
        }
        if name != b"security.selinux" {
            kept.push((OsStr::from_bytes(name), value.as_slice()));
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::{clean, climbs_out};

    #[test]
    fn names_that_climb_out_are_known() {
        for (name, out) in [
            ("../x", true),
            ("a/../../x", true),
            ("/..", true),
            ("..", true),
            ("a/../x", false),
            ("./a/..", false),
        ] {
            assert_eq!(climbs_out(name.as_bytes()), out, "{name}");
        }
    }

    #[test]
    fn names_stay_below_the_root() {
        for (given, cleaned) in [
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("../../etc/passwd", "etc/passwd"),
            ("/etc//passwd", "etc/passwd"),
            ("a/./b/../c/", "a/c"),
        ] {
            assert_eq!(clean(given.as_bytes()), cleaned.as_bytes(), "{given}");
        }
    }
}
