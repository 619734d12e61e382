//! What a layer's tar was beyond its files: headers and padding, kept so that the very same tar can be written again.
//!
//! ```text
//! "BERTH-SPLIT 1\n\0\0"  16 bytes
//! length                 u64, little-endian: bytes of the whole tar
//! one zstd frame with a checksum, of records:
//!   L  u32 length, bytes                           those bytes
//!   P  u32 length, path, u64 offset, u64 length    that range of the file at `path` in the layer
//!   E                                              the end
//! ```
//!
//! It is written while the tar is unpacked ([`Recorder`]), and costs what compressing the headers costs. A file that a later
//! member of the same tar replaces is set aside until the end, and its bytes go into the records. Nothing here is
//! trusted when it is read: whoever writes a tar with it compares the digest.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::walk::{WalkError, walk};

const MAGIC: &[u8; 16] = b"BERTH-SPLIT 1\n\0\0";
/// Fast: headers compress well at any level.
const LEVEL: i32 = 1;
/// Longest run of bytes in one record.
const MAX_LITERAL: usize = 64 * 1024;
/// Longest path in a record; the kernel takes 4096 bytes at once.
const MAX_PATH: usize = 64 * 1024;
const COPY_BUFFER: usize = 512 * 1024;

/// Why a layer's original tar cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The records cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file with the records.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The records are not what is written there.
    #[error("{path} is malformed: {what}")]
    Malformed {
        /// The file with the records.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A file of the layer cannot be read.
    #[error("cannot read {path} of the layer at {root}")]
    File {
        /// Root of the layer.
        root: PathBuf,
        /// The file in it.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The tar cannot be written.
    #[error("cannot write the tar of the layer at {root}")]
    Write {
        /// Root of the layer.
        root: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Takes down a tar while it is unpacked. Failing to write is told at the end, since unpacking goes on meanwhile.
pub(crate) struct Recorder {
    path: PathBuf,
    /// Where replaced files are set aside.
    lost: PathBuf,
    records: Records,
    literal: Vec<u8>,
    payload: Option<Payload>,
    /// Inode of each payload in the records, in order.
    inodes: Vec<u64>,
    total: u64,
    replaced: bool,
    failed: Option<io::Error>,
}

type Records = zstd::stream::write::Encoder<'static, BufWriter<File>>;

struct Payload {
    path: Vec<u8>,
    offset: u64,
    length: u64,
    inode: u64,
}

/// One record, as it is read.
enum Record {
    Literal(Vec<u8>),
    Payload { path: Vec<u8>, offset: u64, length: u64 },
    End,
}

impl Recorder {
    /// Records into a new file at `path`; `lost` is a name for a directory on the layer's file system, outside of it.
    pub(crate) fn create(path: &Path, lost: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            lost: lost.to_owned(),
            records: create(path)?,
            literal: Vec::with_capacity(MAX_LITERAL),
            payload: None,
            inodes: Vec::new(),
            total: 0,
            replaced: false,
            failed: None,
        })
    }

    /// Bytes of the tar that are in no file.
    pub(crate) fn literal(&mut self, mut bytes: &[u8]) {
        self.end_payload();
        self.total += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(MAX_LITERAL - self.literal.len()));
            self.literal.extend_from_slice(now);
            bytes = later;
            if self.literal.len() == MAX_LITERAL {
                self.flush_literal();
            }
        }
    }

    /// The data that comes next goes to the file at `path`, from `offset` on.
    pub(crate) fn payload(&mut self, path: &[u8], offset: u64, inode: u64) {
        self.end_payload();
        self.payload = Some(Payload { path: path.to_vec(), offset, length: 0, inode });
    }

    /// A member's data.
    pub(crate) fn data(&mut self, bytes: &[u8]) {
        match &mut self.payload {
            Some(payload) => {
                payload.length += bytes.len() as u64;
                self.total += bytes.len() as u64;
            }
            None => self.literal(bytes),
        }
    }

    /// Where files that are replaced are to be moved; the directory is made by whoever moves the first.
    pub(crate) fn lost(&self) -> &Path {
        &self.lost
    }

    /// Something was replaced: paths may lead elsewhere than they did.
    pub(crate) fn replaced(&mut self) {
        self.replaced = true;
    }

    fn end_payload(&mut self) {
        let Some(payload) = self.payload.take().filter(|payload| payload.length > 0) else { return };
        self.flush_literal();
        self.inodes.push(payload.inode);
        let written = write_payload(&mut self.records, &payload.path, payload.offset, payload.length);
        self.note(written);
    }

    fn flush_literal(&mut self) {
        let written = write_literal(&mut self.records, &self.literal);
        self.literal.clear();
        self.note(written);
    }

    fn note(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    /// Completes the file. `dir` is the layer as it was unpacked.
    pub(crate) fn finish(mut self, dir: &Path) -> Result<(), SplitError> {
        self.end_payload();
        self.flush_literal();
        let failed = |source| SplitError::Write { root: dir.to_owned(), source };
        if let Some(error) = self.failed.take() {
            return Err(failed(error));
        }
        finish(self.records, self.total).map_err(failed)?;
        match self.replaced {
            true => settle(&self.path, &self.inodes, dir, &self.lost, self.total),
            false => Ok(()),
        }
    }
}

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.literal(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<Records> {
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(MAGIC)?;
    file.write_all(&0u64.to_le_bytes())?;
    let mut records = zstd::stream::write::Encoder::new(file, LEVEL)?;
    records.include_checksum(true)?;
    Ok(records)
}

fn write_literal(records: &mut Records, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    records.write_all(b"L")?;
    records.write_all(&(bytes.len() as u32).to_le_bytes())?;
    records.write_all(bytes)
}

fn write_payload(records: &mut Records, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
    records.write_all(b"P")?;
    records.write_all(&(path.len() as u32).to_le_bytes())?;
    records.write_all(path)?;
    records.write_all(&offset.to_le_bytes())?;
    records.write_all(&length.to_le_bytes())
}

fn finish(mut records: Records, total: u64) -> io::Result<()> {
    records.write_all(b"E")?;
    let file = records.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.write_all_at(&total.to_le_bytes(), MAGIC.len() as u64)
}

/// Writes the records anew after files were replaced: by the inode that each payload went to, its path in the layer as it
/// is now, or the bytes themselves where it is no longer in the layer.
fn settle(path: &Path, inodes: &[u64], dir: &Path, lost: &Path, total: u64) -> Result<(), SplitError> {
    let (here, gone) = (by_inode(dir)?, by_inode(lost)?);
    let beside = path.with_extension("settled");
    let failed = |source| SplitError::Write { root: dir.to_owned(), source };
    let mut out = create(&beside).map_err(failed)?;
    let mut records = Reader::open(path)?;
    let mut inodes = inodes.iter();
    loop {
        match records.next()? {
            Record::End => break,
            Record::Literal(bytes) => write_literal(&mut out, &bytes).map_err(failed)?,
            Record::Payload { offset, length, .. } => {
                let inode =
                    inodes.next().ok_or_else(|| records.malformed("more payloads than were noted"))?;
                if let Some(path) = here.get(inode) {
                    write_payload(&mut out, path, offset, length).map_err(failed)?;
                } else if let Some(path) = gone.get(inode) {
                    embed(&mut out, lost, path, offset, length)?;
                } else {
                    return Err(records.malformed("a payload went to no file"));
                }
            }
        }
    }
    finish(out, total).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)
}

fn by_inode(root: &Path) -> Result<HashMap<u64, Vec<u8>>, SplitError> {
    let mut found = HashMap::new();
    if !root.exists() {
        return Ok(found);
    }
    walk::<WalkError>(root, &mut |node| {
        if node.kind() == FileType::RegularFile {
            found.insert(node.stat.st_ino, node.path.to_vec());
        }
        Ok(())
    })
    .map_err(|error| SplitError::File { root: error.root, path: error.path, source: error.source })?;
    Ok(found)
}

fn embed(out: &mut Records, root: &Path, path: &[u8], offset: u64, length: u64) -> Result<(), SplitError> {
    let files = Files::open(root)?;
    let mut file = files.range(path, offset)?.take(length);
    let mut buffer = vec![0; MAX_LITERAL];
    let mut left = length;
    while left > 0 {
        let n = file.read(&mut buffer).and_then(|n| if n == 0 { Err(short()) } else { Ok(n) });
        let n = n.map_err(|source| files.failed(path, source))?;
        write_literal(out, &buffer[..n])
            .map_err(|source| SplitError::Write { root: root.to_owned(), source })?;
        left -= n as u64;
    }
    Ok(())
}

/// Length of the tar that the records at `path` stand for.
pub(crate) fn length(path: &Path) -> Result<u64, SplitError> {
    Ok(Reader::open(path)?.total)
}

/// Writes the tar that the layer at `root` came as.
pub(crate) fn write_original<W: Write>(root: &Path, split: &Path, mut out: W) -> Result<W, SplitError> {
    let failed = |source| SplitError::Write { root: root.to_owned(), source };
    let files = Files::open(root)?;
    let mut records = Reader::open(split)?;
    let mut buffer = vec![0; COPY_BUFFER];
    let mut written = 0u64;
    loop {
        match records.next()? {
            Record::End => break,
            Record::Literal(bytes) => {
                out.write_all(&bytes).map_err(failed)?;
                written += bytes.len() as u64;
            }
            Record::Payload { path, offset, length } => {
                let mut file = files.range(&path, offset)?;
                let mut left = length;
                while left > 0 {
                    let want = left.min(buffer.len() as u64) as usize;
                    let n = file.read(&mut buffer[..want]);
                    let n = n.and_then(|n| if n == 0 { Err(short()) } else { Ok(n) });
                    let n = n.map_err(|source| files.failed(&path, source))?;
                    out.write_all(&buffer[..n]).map_err(failed)?;
                    left -= n as u64;
                }
                written += length;
            }
        }
    }
    match written == records.total {
        true => Ok(out),
        false => Err(records.malformed("its records are not as long as it says")),
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was")
}

/// A layer's files, opened by the kernel below its root.
struct Files<'a> {
    root: &'a Path,
    dir: OwnedFd,
}

impl<'a> Files<'a> {
    fn open(root: &'a Path) -> Result<Self, SplitError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(root, flags, Mode::empty()).map_err(|errno| SplitError::File {
            root: root.to_owned(),
            path: PathBuf::new(),
            source: errno.into(),
        })?;
        Ok(Self { root, dir })
    }

    fn failed(&self, path: &[u8], source: io::Error) -> SplitError {
        SplitError::File { root: self.root.to_owned(), path: OsStr::from_bytes(path).into(), source }
    }

    fn range(&self, path: &[u8], offset: u64) -> Result<File, SplitError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(&self.dir, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
        });
        let mut file = File::from(opened.map_err(|errno| self.failed(path, errno.into()))?);
        let found = file.metadata().map_err(|source| self.failed(path, source))?;
        if !found.is_file() {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is no regular file");
            return Err(self.failed(path, source));
        }
        file.seek(SeekFrom::Start(offset)).map_err(|source| self.failed(path, source))?;
        Ok(file)
    }
}

struct Reader {
    path: PathBuf,
    records: zstd::stream::read::Decoder<'static, BufReader<File>>,
    total: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, SplitError> {
        let failed = |source| SplitError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let mut head = [0; MAGIC.len() + 8];
        file.read_exact(&mut head).map_err(failed)?;
        let (magic, total) = head.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(SplitError::Malformed {
                path: path.to_owned(),
                what: "it begins with something else",
            });
        }
        let total = u64::from_le_bytes(total.try_into().unwrap_or_default());
        let records = zstd::stream::read::Decoder::new(file).map_err(failed)?;
        Ok(Self { path: path.to_owned(), records, total })
    }

    fn next(&mut self) -> Result<Record, SplitError> {
        let [kind] = self.array()?;
        match kind {
            b'L' => Ok(Record::Literal(self.bytes(MAX_LITERAL)?)),
            b'P' => {
                let path = self.bytes(MAX_PATH)?;
                let offset = u64::from_le_bytes(self.array()?);
                Ok(Record::Payload { path, offset, length: u64::from_le_bytes(self.array()?) })
            }
            b'E' => match self.read(&mut [0]) {
                // Reading to the end is what compares the checksum.
                Ok(0) => Ok(Record::End),
                Ok(_) => Err(self.malformed("there is more after its end")),
                Err(error) => Err(error),
            },
            _ => Err(self.malformed("an unknown record")),
        }
    }

    fn bytes(&mut self, limit: usize) -> Result<Vec<u8>, SplitError> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > limit {
            return Err(self.malformed("a record is too long"));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SplitError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SplitError> {
        let filled = self.records.read_exact(bytes);
        filled.map_err(|source| SplitError::Read { path: self.path.clone(), source })
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, SplitError> {
        self.records.read(bytes).map_err(|source| SplitError::Read { path: self.path.clone(), source })
    }

    fn malformed(&self, what: &'static str) -> SplitError {
        SplitError::Malformed { path: self.path.clone(), what }
    }
}
