//! Unpacking: a tar becomes files of this machine.
//!
//! Every entry's parent is opened from the target directory with `openat2` and without following any symlink, and the entry
//! is made in it by its last name. So nothing lands outside, and a relative symlink can be judged by its text.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};
use tokio::io::AsyncRead;

use super::Error;
use super::pipe::{PipeReader, pipe, pump};

/// Rights that are kept. Set-id bits would lend this user's rights to whatever came out of a sandbox.
const FILE_MODE: u32 = 0o777;
const DIR_MODE: u32 = 0o1777;

const COPY_BUFFER: usize = 256 * 1024;

/// Unpacks a tar into `dir`, which is made where it is missing. What is there stays; files of the same name are replaced.
///
/// Returns the entries that were refused, each as `name: why`.
///
/// # Errors
/// When the archive breaks off or a file cannot be written; what was unpacked before stays.
pub async fn unpack_into(reader: impl AsyncRead + Unpin, dir: &Path) -> Result<Vec<String>, Error> {
    let dir = dir.to_owned();
    in_background(reader, move |tar| unpack_tree(tar, &dir)).await
}

/// Unpacks a tar that holds one file to `target`, whose parent must be there. A file at `target` is replaced at once
/// with all of the new one.
///
/// # Errors
/// When the archive holds anything else, and as [`unpack_into`].
pub async fn unpack_file(reader: impl AsyncRead + Unpin, target: &Path) -> Result<(), Error> {
    let target = target.to_owned();
    in_background(reader, move |tar| unpack_one(tar, &target)).await
}

async fn in_background<T: Send + 'static>(
    reader: impl AsyncRead + Unpin,
    work: impl FnOnce(&mut PipeReader) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = pipe();
    let thread = tokio::task::spawn_blocking(move || work(&mut PipeReader::new(receiver)));
    pump(reader, sender).await;
    thread.await.map_err(|source| Error::CutOff { source })?
}

fn read_error(source: io::Error) -> Error {
    Error::Read { source }
}

/// Reads what follows the archive's end mark: only then is it known that the sender got to its end.
fn drain(tar: &mut PipeReader) -> Result<(), Error> {
    io::copy(tar, &mut io::sink()).map(drop).map_err(read_error)
}

fn unpack_tree(tar: &mut PipeReader, dir: &Path) -> Result<Vec<String>, Error> {
    let mut unpacker = Unpacker::open(dir)?;
    for entry in Archive::new(&mut *tar).entries().map_err(read_error)? {
        unpacker.unpack(&mut entry.map_err(read_error)?)?;
    }
    drain(tar)?;
    unpacker.finish()
}

fn unpack_one(tar: &mut PipeReader, target: &Path) -> Result<(), Error> {
    // A symlink at the target is followed, as a shell's redirection would; what it leads to is replaced.
    let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
    if fs::symlink_metadata(&target).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::NotAFile { path: target });
    }
    let file = write_one(tar, &target)?;
    drain(tar)?;
    file.persist(&target).map(drop).map_err(|error| Error::Write { path: target, source: error.error })
}

fn write_one(tar: &mut PipeReader, target: &Path) -> Result<tempfile::NamedTempFile, Error> {
    let not_one = |found: &str| Error::NotOneFile { path: target.to_owned(), found: found.to_owned() };
    let mut archive = Archive::new(tar);
    let mut entries = archive.entries().map_err(read_error)?;
    let mut entry = entries.next().ok_or_else(|| not_one("nothing"))?.map_err(read_error)?;
    if !is_file(entry.header().entry_type()) {
        return Err(not_one("something that is no regular file"));
    }
    let failed = |source| Error::Write { path: target.to_owned(), source };
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed)?;
    copy_entry(&mut entry, file.as_file_mut(), target)?;
    match entries.next() {
        None => Ok(file),
        Some(Ok(_)) => Err(not_one("more than one entry")),
        Some(Err(error)) => Err(read_error(error)),
    }
}

/// Writes an entry's data, mode and time to `file`; `path` is for errors.
fn copy_entry<R: Read>(entry: &mut Entry<'_, R>, file: &mut File, path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    let mut left = entry.size();
    let mut buffer = vec![0; COPY_BUFFER];
    while left > 0 {
        // Not io::copy: whether the archive or the disk failed must stay known.
        let len = entry.read(&mut buffer).map_err(read_error)?;
        if len == 0 {
            return Err(read_error(io::ErrorKind::UnexpectedEof.into()));
        }
        file.write_all(&buffer[..len]).map_err(failed)?;
        left = left.saturating_sub(len as u64);
    }
    let mode = entry.header().mode().map_err(read_error)? & FILE_MODE;
    file.set_permissions(Permissions::from_mode(mode)).map_err(failed)?;
    let mtime = entry.header().mtime().map_err(read_error)?;
    match SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(mtime)) {
        Some(time) => file.set_modified(time).map_err(failed),
        None => Ok(()),
    }
}

fn is_file(kind: EntryType) -> bool {
    matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse)
}

/// Why an entry was not unpacked: its own fault, or the disk's.
enum Obstacle {
    Refused(&'static str),
    Failed(Error),
}

impl From<Error> for Obstacle {
    fn from(error: Error) -> Self {
        Obstacle::Failed(error)
    }
}

struct Unpacker {
    dir: PathBuf,
    root: OwnedFd,
    refused: Vec<String>,
    /// Modes of directories, set last: one without write permission must still be filled.
    dir_modes: BTreeMap<PathBuf, u32>,
}

impl Unpacker {
    fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::OpenTarget { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let root = rustix::fs::open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        Ok(Self { dir: dir.to_owned(), root, refused: Vec::new(), dir_modes: BTreeMap::new() })
    }

    fn unpack<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        let raw = entry.path_bytes().into_owned();
        match self.place(entry, &raw) {
            Ok(()) => Ok(()),
            Err(Obstacle::Failed(error)) => Err(error),
            Err(Obstacle::Refused(why)) => {
                self.refused.push(format!("{}: {why}", String::from_utf8_lossy(&raw)));
                Ok(())
            }
        }
    }

    fn place<R: Read>(&mut self, entry: &mut Entry<'_, R>, raw: &[u8]) -> Result<(), Obstacle> {
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = inner_path(raw).map_err(Obstacle::Refused)?;
        let Some(name) = path.file_name() else {
            // The directory itself, as `tar -C dir .` has it: it is there and stays as it is.
            return if kind.is_dir() { Ok(()) } else { Err(Obstacle::Refused("it has no name")) };
        };
        let parent = self.open_dir(path.parent().unwrap_or(Path::new("")))?;
        match kind {
            kind if is_file(kind) => self.place_file(entry, &parent, name, &path),
            EntryType::Directory => self.place_dir(entry, &parent, name, &path),
            EntryType::Symlink => self.place_symlink(entry, &parent, name, &path),
            EntryType::Link => self.place_link(entry, &parent, name, &path),
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                Err(Obstacle::Refused("FIFOs and devices are not unpacked"))
            }
            _ => Err(Obstacle::Refused("an unknown kind of entry")),
        }
    }

    fn place_file<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Obstacle> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let made = self.replacing(parent, name, path, || rustix::fs::openat(parent, name, flags, mode))?;
        let copied = copy_entry(entry, &mut File::from(made), &self.dir.join(path));
        if copied.is_err() {
            // Half a file is worse than none. The failure is being reported as it is.
            let _ = rustix::fs::unlinkat(parent, name, AtFlags::empty());
        }
        Ok(copied?)
    }

    fn place_dir<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Obstacle> {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if self.kind_at(parent, name, path)?.is_dir() => {}
            Err(Errno::EXIST) => return Err(Obstacle::Refused("something that is no directory is there")),
            Err(errno) => return Err(self.write_failed(path, errno)),
        }
        self.dir_modes.insert(path.to_owned(), entry.header().mode().map_err(read_error)? & DIR_MODE);
        Ok(())
    }

    fn place_symlink<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Obstacle> {
        let target = link_name(entry)?;
        if !stays_inside(path, &target) {
            return Err(Obstacle::Refused("a symlink that points out of the target directory"));
        }
        self.replacing(parent, name, path, || rustix::fs::symlinkat(&target, parent, name))
    }

    fn place_link<R: Read>(
        &self,
        entry: &Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), Obstacle> {
        let source = inner_path(link_name(entry)?.as_os_str().as_bytes()).map_err(Obstacle::Refused)?;
        let missing = Obstacle::Refused("a hard link to a file that is not there");
        let Some(source_name) = source.file_name() else { return Err(missing) };
        let source_parent = self.open_dir(source.parent().unwrap_or(Path::new("")))?;
        // Of a symlink there would then be a second one, at a place for which its target was not judged.
        match rustix::fs::statat(&source_parent, source_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_file() => {}
            Ok(_) => return Err(Obstacle::Refused("a hard link to something that is no regular file")),
            Err(_) => return Err(missing),
        }
        if source == path {
            return Ok(());
        }
        let link = || rustix::fs::linkat(&source_parent, source_name, parent, name, AtFlags::empty());
        self.replacing(parent, name, path, link)
    }

    /// Makes something by `make`, after removing the file of the same name where there is one.
    fn replacing<T>(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Obstacle> {
        match make() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|errno| self.write_failed(path, errno)),
        }
        if self.kind_at(parent, name, path)?.is_dir() {
            return Err(Obstacle::Refused("a directory of that name is there"));
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty())
            .and_then(|()| make())
            .map_err(|errno| self.write_failed(path, errno))
    }

    fn kind_at(&self, parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<FileType, Obstacle> {
        rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map(|stat| FileType::from_raw_mode(stat.st_mode))
            .map_err(|errno| self.write_failed(path, errno))
    }

    /// Opens a directory below the root, through no symlink; makes it where it is missing.
    fn open_dir(&self, path: &Path) -> Result<OwnedFd, Obstacle> {
        let missing = match self.open_beneath(path) {
            Err(Errno::NOENT) => path,
            Err(Errno::LOOP | Errno::XDEV) => return Err(Obstacle::Refused("it lies behind a symlink")),
            Err(Errno::NOTDIR) => {
                return Err(Obstacle::Refused("something that is no directory is in its way"));
            }
            Err(Errno::NAMETOOLONG) => return Err(Obstacle::Refused("its name is too long")),
            other => return other.map_err(|errno| self.write_failed(path, errno)),
        };
        let parent = self.open_dir(missing.parent().unwrap_or(Path::new("")))?;
        let name = missing.file_name().unwrap_or_default();
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.write_failed(path, errno)),
        }
        self.open_beneath(path).map_err(|errno| self.write_failed(path, errno))
    }

    fn open_beneath(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        rustix::fs::openat2(
            self.root.as_fd(),
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Sets the directories' modes, deepest first, and tells what was refused.
    fn finish(self) -> Result<Vec<String>, Error> {
        for (path, mode) in self.dir_modes.iter().rev() {
            self.open_beneath(path)
                .and_then(|dir| rustix::fs::fchmod(dir, Mode::from_raw_mode(*mode)))
                .map_err(|errno| Error::Write { path: self.dir.join(path), source: errno.into() })?;
        }
        Ok(self.refused)
    }

    fn write_failed(&self, path: &Path, errno: Errno) -> Obstacle {
        match errno {
            Errno::NAMETOOLONG => Obstacle::Refused("its name is too long"),
            errno => Obstacle::Failed(Error::Write { path: self.dir.join(path), source: errno.into() }),
        }
    }
}

fn link_name<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, Obstacle> {
    match entry.link_name_bytes() {
        Some(target) if !target.is_empty() => Ok(PathBuf::from(OsStr::from_bytes(&target))),
        _ => Err(Obstacle::Refused("a link without a target")),
    }
}

/// An entry's name as a path below the target; empty for the target itself.
fn inner_path(raw: &[u8]) -> Result<PathBuf, &'static str> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(raw)).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) if name.as_bytes().contains(&0) => return Err("a name with a NUL byte"),
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return Err("a name with .. in it"),
            Component::RootDir | Component::Prefix(_) => return Err("an absolute name"),
        }
    }
    Ok(path)
}

/// Whether a symlink at `path` (whose parents are no symlinks) stays inside whatever else the tree holds: `..` only
/// leads, and no further than the root. After a name, `..` could climb out of where that name links to.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let depth = path.components().count() - 1;
    let mut climbed = 0;
    let mut names_seen = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => names_seen = true,
            Component::ParentDir if names_seen => return false,
            Component::ParentDir => climbed += 1,
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    climbed <= depth
}
