//! The canonical tar of a layer's tree: the same tree gives the same bytes, always.
//!
//! Order is the walk's. Names over 100 bytes, numbers beyond ustar's fields and extended attributes go into a pax header, in sorted
//! order; times are whole seconds; no user names. Hard links point at the first name of their file. Sockets are
//! left out: nothing can be at their other end. overlayfs's deletions become OCI's.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::walk::{Node, WalkError, walk};
use super::{Pairs, is_whiteout};

const COPY_BUFFER: usize = 512 * 1024;
/// Most that the files of a new layer may hold together, in bytes, holes included: a tar has no holes, so each of their
/// bytes is hashed here and by whoever pulls the layer.
pub(crate) const MAX_LAYER: u64 = 64 << 30;
/// What holes are written from.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
/// Largest value of a ustar field of seven octal digits: owners.
const MAX_OCTAL_7: u64 = 0o7_777_777;
/// Largest value of a ustar field of eleven octal digits: sizes and times.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;

/// Why a tree could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file could not be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The archive could not be written.
    #[error("cannot write the archive of the tree at {root}")]
    Write {
        /// Root of the tree.
        root: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file grew or shrank meanwhile.
    #[error("{path} in the tree at {root} changed while it was read")]
    Changed {
        /// Root of the tree.
        root: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// A file that a layer cannot express.
    #[error("{path} in the tree at {root} cannot be put in a layer: {why}")]
    Inexpressible {
        /// Root of the tree.
        root: PathBuf,
        /// The file.
        path: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// The files of a new layer are too long, holes included.
    #[error(
        "{path} with its {size} bytes makes the layer {total} bytes long, and a layer may hold {limit}; \
         the holes of sparse files count, for layers have none"
    )]
    TooLarge {
        /// The file with which the limit is passed.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// Length of all files so far, in bytes.
        total: u64,
        /// What is allowed, in bytes.
        limit: u64,
    },
    /// Nobody waits for it any more.
    #[error("packing the tree at {root} was given up")]
    GivenUp {
        /// Root of the tree.
        root: PathBuf,
    },
}

/// Whether packing may tidy the tree on the way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tidy {
    /// The tree is a layer of the store and stays as it is.
    No,
    /// The tree was an overlay's upper directory: what it holds beyond the tar (sockets, overlayfs's notes) is removed.
    Yes,
}

/// Writes the canonical tar of the tree at `root`.
pub(crate) fn pack<W: Write>(root: &Path, tidy: Tidy, out: W) -> Result<W, PackError> {
    let mut packer = Packer::new(root, tidy, out, vec![0; COPY_BUFFER]);
    packer.pack()?;
    Ok(packer.out)
}

/// The same for a tree that becomes a layer, until `given_up` is set.
pub(crate) fn pack_new<W: Write>(root: &Path, given_up: &AtomicBool, out: W) -> Result<W, PackError> {
    let mut packer = Packer::new(root, Tidy::Yes, out, vec![0; COPY_BUFFER]);
    packer.given_up = Some(given_up);
    packer.pack()?;
    Ok(packer.out)
}

/// Length of that tar in bytes, without reading the files.
pub(crate) fn packed_length(root: &Path) -> Result<u64, PackError> {
    let mut packer = Packer::new(root, Tidy::No, Counter(0), Vec::new());
    packer.skipped = Some(0);
    packer.pack()?;
    Ok(packer.out.0 + packer.skipped.unwrap_or(0))
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Packer<'a, W> {
    root: &'a Path,
    out: W,
    tidy: Tidy,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    /// When only the length is wanted: bytes of files so far, which are not read.
    skipped: Option<u64>,
    /// Length of all files so far, in bytes.
    total: u64,
    given_up: Option<&'a AtomicBool>,
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(root: &'a Path, tidy: Tidy, out: W, buffer: Vec<u8>) -> Self {
        Self { root, out, tidy, links: HashMap::new(), buffer, skipped: None, total: 0, given_up: None }
    }

    fn pack(&mut self) -> Result<(), PackError> {
        walk::<PackError>(self.root, &mut |node| self.add(node))?;
        self.write(&[0; 1024])
    }

    fn add(&mut self, node: &Node<'_>) -> Result<(), PackError> {
        self.go_on()?;
        if node.name.to_bytes().starts_with(b".wh.") {
            return self.inexpressible(node, "names that begin with .wh. mean deletions there");
        }
        if is_whiteout(&node.stat) {
            return self.add_deletion(&in_dir(node.path, b".wh."));
        }
        if node.kind() == FileType::Socket {
            return self.drop_socket(node);
        }
        let (xattrs, opaque) = self.xattrs(node)?;
        if let Some(first) = self.first_name(node) {
            return self.write_header(node, EntryType::Link, &first, 0, &Pairs::new());
        }
        match node.kind() {
            FileType::Directory => self.write_header(node, EntryType::Directory, b"", 0, &xattrs)?,
            FileType::RegularFile => return self.add_file(node, &xattrs),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(node.parent, node.name, Vec::new()).map_err(|e| node.fail(e))?;
                self.write_header(node, EntryType::Symlink, target.to_bytes(), 0, &xattrs)?;
            }
            FileType::CharacterDevice => self.write_header(node, EntryType::Char, b"", 0, &xattrs)?,
            FileType::BlockDevice => self.write_header(node, EntryType::Block, b"", 0, &xattrs)?,
            FileType::Fifo => self.write_header(node, EntryType::Fifo, b"", 0, &xattrs)?,
            _ => return self.inexpressible(node, "it is of an unknown kind"),
        }
        match opaque {
            true => self.add_deletion(&[node.path, b"/.wh..wh..opq"].concat()),
            false => Ok(()),
        }
    }

    fn first_name(&mut self, node: &Node<'_>) -> Option<Vec<u8>> {
        if node.kind() == FileType::Directory || node.stat.st_nlink < 2 {
            return None;
        }
        let key = (node.stat.st_dev, node.stat.st_ino);
        let first = self.links.get(&key).cloned();
        if first.is_none() {
            self.links.insert(key, node.path.to_vec());
        }
        first
    }

    fn drop_socket(&self, node: &Node<'_>) -> Result<(), PackError> {
        if self.tidy == Tidy::Yes {
            rustix::fs::unlinkat(node.parent, node.name, AtFlags::empty()).map_err(|e| node.fail(e))?;
        }
        Ok(())
    }

    /// Attributes that belong to the content, and whether the directory is opaque.
    fn xattrs(&self, node: &Node<'_>) -> Result<(Pairs, bool), PackError> {
        let mut kept = Vec::new();
        let mut opaque = false;
        for (name, value) in node.xattrs()? {
            match name.strip_prefix(b"trusted.overlay.") {
                None if name == b"security.selinux" => {}
                None => kept.push((name, value)),
                Some(b"opaque") if value == b"y" && !node.path.is_empty() => opaque = true,
                // On the root "opaque" has no effect, and is tidied away with the rest.
                Some(b"opaque" | b"redirect" | b"metacopy") if !node.path.is_empty() => {
                    return self.inexpressible(node, "it only makes sense above the layers it was made on");
                }
                Some(_) if self.tidy == Tidy::Yes => node.remove_xattr(&name)?,
                Some(_) => {}
            }
        }
        Ok((kept, opaque))
    }

    fn add_file(&mut self, node: &Node<'_>, xattrs: &Pairs) -> Result<(), PackError> {
        let size = u64::try_from(node.stat.st_size).unwrap_or(0);
        self.count(node, size)?;
        self.write_header(node, EntryType::Regular, b"", size, xattrs)?;
        if let Some(skipped) = &mut self.skipped {
            *skipped += size;
            return self.pad(size);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(node.parent, node.name, flags, Mode::empty()).map_err(|e| node.fail(e))?;
        let file = File::from(file);
        // Asking for holes costs calls that most files need not have.
        let sparse = u64::try_from(node.stat.st_blocks).unwrap_or(0).saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let data = if sparse { self.next_data(node, &file, at, size)? } else { at };
            self.add_zeros(data - at)?;
            let end = if sparse { next_hole(&file, data, size) } else { size };
            self.add_data(node, &file, data, end)?;
            at = end;
        }
        self.pad(size)
    }

    /// Where the next bytes are that are in no hole; the file's end when there are none.
    fn next_data(&self, node: &Node<'_>, file: &File, at: u64, size: u64) -> Result<u64, PackError> {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.clamp(at, size)),
            // Also said beyond the end of a file that has shrunk.
            Err(Errno::NXIO) => match rustix::fs::fstat(file).map_err(|e| node.fail(e))?.st_size {
                now if u64::try_from(now).is_ok_and(|now| now >= size) => Ok(size),
                _ => Err(self.changed(node)),
            },
            // A file system that does not tell: all of it is read.
            Err(_) => Ok(at),
        }
    }

    fn add_zeros(&mut self, mut left: u64) -> Result<(), PackError> {
        while left > 0 {
            self.go_on()?;
            let n = left.min(ZEROS.len() as u64);
            self.write(&ZEROS[..n as usize])?;
            left -= n;
        }
        Ok(())
    }

    fn add_data(&mut self, node: &Node<'_>, file: &File, mut at: u64, end: u64) -> Result<(), PackError> {
        while at < end {
            self.go_on()?;
            let want = (end - at).min(self.buffer.len() as u64) as usize;
            let n = match file.read_at(&mut self.buffer[..want], at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(|e| node.fail(e))?,
            };
            if n == 0 {
                return Err(self.changed(node));
            }
            self.out.write_all(&self.buffer[..n]).map_err(|source| write_error(self.root, source))?;
            at += n as u64;
        }
        Ok(())
    }

    /// Only new layers are measured: what is in the store already must come out of it again.
    fn count(&mut self, node: &Node<'_>, size: u64) -> Result<(), PackError> {
        self.total = self.total.saturating_add(size);
        match self.tidy == Tidy::Yes && self.total > MAX_LAYER {
            true => Err(PackError::TooLarge { path: path(node), size, total: self.total, limit: MAX_LAYER }),
            false => Ok(()),
        }
    }

    fn go_on(&self) -> Result<(), PackError> {
        match self.given_up.is_some_and(|given_up| given_up.load(Ordering::Relaxed)) {
            true => Err(PackError::GivenUp { root: self.root.to_owned() }),
            false => Ok(()),
        }
    }

    fn changed(&self, node: &Node<'_>) -> PackError {
        PackError::Changed { root: self.root.to_owned(), path: path(node) }
    }

    fn add_deletion(&mut self, path: &[u8]) -> Result<(), PackError> {
        let mut header = blank(EntryType::Regular);
        let mut pax = Vec::new();
        put_name(&mut header, path, &mut pax);
        self.write_with_pax(header, pax)
    }

    fn write_header(
        &mut self,
        node: &Node<'_>,
        kind: EntryType,
        link: &[u8],
        size: u64,
        xattrs: &Pairs,
    ) -> Result<(), PackError> {
        let mut header = blank(kind);
        let mut pax: Pairs = Vec::new();
        header.set_mode(node.stat.st_mode & 0o7777);
        put_name(&mut header, &tar_name(node), &mut pax);
        put_link(&mut header, link, &mut pax);
        put_number(&mut pax, "uid", node.stat.st_uid.into(), MAX_OCTAL_7, |n| header.set_uid(n));
        put_number(&mut pax, "gid", node.stat.st_gid.into(), MAX_OCTAL_7, |n| header.set_gid(n));
        put_number(&mut pax, "size", size, MAX_OCTAL_11, |n| header.set_size(n));
        match u64::try_from(node.stat.st_mtime).ok().filter(|t| *t <= MAX_OCTAL_11) {
            Some(mtime) => header.set_mtime(mtime),
            None => pax.push((b"mtime".to_vec(), node.stat.st_mtime.to_string().into_bytes())),
        }
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let invalid = |source| write_error(node.root, source);
            header.set_device_major(rustix::fs::major(node.stat.st_rdev)).map_err(invalid)?;
            header.set_device_minor(rustix::fs::minor(node.stat.st_rdev)).map_err(invalid)?;
        }
        for (name, value) in xattrs {
            pax.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
        }
        self.write_with_pax(header, pax)
    }

    fn write_with_pax(&mut self, mut header: Header, mut pax: Pairs) -> Result<(), PackError> {
        if !pax.is_empty() {
            pax.sort();
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            let mut extension = blank(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            extension.set_cksum();
            self.write(extension.as_bytes())?;
            self.write(&records)?;
            self.pad(records.len() as u64)?;
        }
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> Result<(), PackError> {
        let padding = (512 - size % 512) % 512;
        self.write(&[0; 512][..padding as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.out.write_all(bytes).map_err(|source| write_error(self.root, source))
    }

    fn inexpressible<T>(&self, node: &Node<'_>, why: &'static str) -> Result<T, PackError> {
        Err(PackError::Inexpressible { root: self.root.to_owned(), path: path(node), why })
    }
}

/// Where the bytes from `data` on end: at a hole, or with the file.
fn next_hole(file: &File, data: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Hole(data)) {
        Ok(hole) if hole > data => hole.min(size),
        _ => size,
    }
}

fn write_error(root: &Path, source: io::Error) -> PackError {
    PackError::Write { root: root.to_owned(), source }
}

fn path(node: &Node<'_>) -> PathBuf {
    OsStr::from_bytes(node.path).into()
}

fn tar_name(node: &Node<'_>) -> Vec<u8> {
    match node.kind() {
        FileType::Directory if node.path.is_empty() => b"./".to_vec(),
        FileType::Directory => [node.path, b"/"].concat(),
        _ => node.path.to_vec(),
    }
}

/// `a/b` with a prefix on its last part.
fn in_dir(path: &[u8], prefix: &[u8]) -> Vec<u8> {
    let split = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
    [&path[..split], prefix, &path[split..]].concat()
}

/// A header whose numbers are all zero.
fn blank(kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_mtime(0);
    header
}

fn put_name(header: &mut Header, name: &[u8], pax: &mut Pairs) {
    let fits = name.len().min(100);
    header.as_mut_bytes()[..fits].copy_from_slice(&name[..fits]);
    if name.len() > 100 {
        pax.push((b"path".to_vec(), name.to_vec()));
    }
}

fn put_link(header: &mut Header, link: &[u8], pax: &mut Pairs) {
    let fits = link.len().min(100);
    header.as_mut_bytes()[157..157 + fits].copy_from_slice(&link[..fits]);
    if link.len() > 100 {
        pax.push((b"linkpath".to_vec(), link.to_vec()));
    }
}

fn put_number(pax: &mut Pairs, key: &str, value: u64, max: u64, set: impl FnOnce(u64)) {
    if value > max {
        pax.push((key.as_bytes().to_vec(), value.to_string().into_bytes()));
        set(0);
    } else {
        set(value);
    }
}

/// `LENGTH key=value\n`, where the length counts its own digits.
fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        assert_eq!(pax_record(b"path", b"abc"), b"12 path=abc\n");
        for n in 0..1200 {
            let record = pax_record(b"k", &vec![b'x'; n]);
            let (length, _) = std::str::from_utf8(&record).unwrap().split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn deletions_prefix_the_last_part() {
        assert_eq!(in_dir(b"a/b", b".wh."), b"a/.wh.b");
        assert_eq!(in_dir(b"b", b".wh."), b".wh.b");
    }
}
