//! Packing: a tree of this machine becomes a tar.
//!
//! Entries are named relative to the directory, sorted by name, and belong to root. Modes, symlinks and empty directories are
//! kept; hard links become files of their own; sockets, FIFOs and devices are left out, as the API's other
//! direction leaves them out. Names too long for the header go into pax records.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::pipe::{PackedTar, PipeWriter, pipe};

/// A tar of what is inside `dir`. Must be called within a Tokio runtime.
///
/// Errors come from reading the result; each names the file. An unreadable file fails the whole.
pub fn pack_dir(dir: &Path) -> PackedTar {
    let dir = dir.to_owned();
    in_background(move |tar| {
        // The directory itself may be a symlink; what is below is never followed.
        let inside = fs::read_dir(&dir).map_err(|error| at(&dir, error))?;
        append_all(tar, &dir, Path::new(""), inside)
    })
}

/// A tar of one file, under the name `name`. A symlink is followed. Must be called within a Tokio runtime.
pub fn pack_file(file: &Path, name: &str) -> PackedTar {
    let (file, name) = (file.to_owned(), PathBuf::from(name));
    in_background(move |tar| {
        let open = File::open(&file).map_err(|error| at(&file, error))?;
        let metadata = open.metadata().map_err(|error| at(&file, error))?;
        if !metadata.is_file() {
            return Err(at(&file, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        append_file(tar, open, &metadata, &file, &name)
    })
}

type TarBuilder = Builder<PipeWriter>;

fn in_background(work: impl FnOnce(&mut TarBuilder) -> io::Result<()> + Send + 'static) -> PackedTar {
    let (sender, receiver) = pipe();
    tokio::task::spawn_blocking(move || {
        let mut tar = Builder::new(PipeWriter::new(sender));
        let result = work(&mut tar);
        // Finishing the tar after a failure would make a whole archive of half a tree; the failure that
        // follows makes the reader drop it all the same.
        if let Ok(writer) = tar.into_inner() {
            writer.finish(result);
        }
    });
    PackedTar::new(receiver)
}

fn append_all(tar: &mut TarBuilder, dir: &Path, name: &Path, inside: fs::ReadDir) -> io::Result<()> {
    let mut entries = inside.collect::<io::Result<Vec<_>>>().map_err(|error| at(dir, error))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        append(tar, &entry.path(), &name.join(entry.file_name()))?;
    }
    Ok(())
}

fn append(tar: &mut TarBuilder, path: &Path, name: &Path) -> io::Result<()> {
    let failed = |error| at(path, error);
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        append_header(tar, header(EntryType::Directory, &metadata), name, None).map_err(failed)?;
        append_all(tar, path, name, fs::read_dir(path).map_err(failed)?)
    } else if metadata.is_symlink() {
        let target = fs::read_link(path).map_err(failed)?;
        append_header(tar, header(EntryType::Symlink, &metadata), name, Some(&target)).map_err(failed)
    } else if metadata.is_file() {
        // It may have become something else since: a FIFO must not block us, a symlink not lead us away.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file =
            File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        append_file(tar, file, &metadata, path, name)
    } else {
        Ok(())
    }
}

fn append_file(
    tar: &mut TarBuilder,
    mut file: File,
    metadata: &Metadata,
    path: &Path,
    name: &Path,
) -> io::Result<()> {
    let mut header = header(EntryType::Regular, metadata);
    header.set_size(metadata.len());
    append_header(tar, header, name, None).map_err(|error| at(path, error))?;
    // A file that grows is taken as it was when it was opened; one that shrinks cannot be taken at all, since
    // its size stands in the header.
    let out = tar.get_mut();
    let copied = out.send_file(&mut file, metadata.len()).map_err(|error| at(path, error))?;
    if copied != metadata.len() {
        return Err(at(path, io::Error::new(io::ErrorKind::UnexpectedEof, "it shrank while it was read")));
    }
    let padding = metadata.len().next_multiple_of(512) - metadata.len();
    io::copy(&mut io::repeat(0).take(padding), out).map(drop)
}

fn header(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header
}

/// Writes an entry's header, with a pax record before it for each name that the header has no room for.
fn append_header(
    tar: &mut TarBuilder,
    mut header: Header,
    name: &Path,
    link: Option<&Path>,
) -> io::Result<()> {
    let mut name = name.as_os_str().as_bytes().to_vec();
    if header.entry_type().is_dir() {
        name.push(b'/');
    }
    let fields = header.as_old_mut();
    let link = link.map(|link| link.as_os_str().as_bytes()).unwrap_or_default();
    let name_fits = fill(&mut fields.name, &name);
    let link_fits = fill(&mut fields.linkname, link);
    let mut records: Vec<(&str, &[u8])> = Vec::new();
    if !name_fits {
        records.push(("path", &name));
    }
    if !link_fits {
        records.push(("linkpath", link));
    }
    tar.append_pax_extensions(records)?;
    header.set_cksum();
    tar.get_mut().write_all(header.as_bytes())
}

/// Puts as much of `value` as fits into a field of a header; whether that was all.
fn fill(field: &mut [u8], value: &[u8]) -> bool {
    let len = value.len().min(field.len());
    field[..len].copy_from_slice(&value[..len]);
    len == value.len()
}

/// The same error, naming its file: from here on it travels as an `io::Error` through the reader of the tar.
pub(super) fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), PathError { path: path.to_owned(), source: error })
}

#[derive(Debug, thiserror::Error)]
#[error("cannot pack {}", path.display())]
struct PathError {
    path: PathBuf,
    #[source]
    source: io::Error,
}
