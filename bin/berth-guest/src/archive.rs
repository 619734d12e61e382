//! Reading a tar stream, header by header.
//!
//! The fields of a header are the `tar` crate's business; the order of headers is handled here, since that crate cuts
//! pax records at newlines (names and attributes may hold some) and holds extension headers of any size in memory.
//! Understood are ustar, pax (global ones too), GNU's long names, and sparse files in all of GNU's ways.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::sparse::{Sparse, Told};

const BLOCK: u64 = 512;
/// Longest extension header (a name, or a set of pax records) that is read.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why no further member can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The stream itself failed; it was not the archive.
    #[error("read the archive")]
    Read(#[source] io::Error),
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    #[error("not a tar header (checksum mismatch) at byte {0}")]
    Checksum(u64),
    #[error("a number in the header at byte {0} does not parse")]
    Number(u64),
    #[error("malformed pax record at byte {0}")]
    Pax(u64),
    #[error("an extension header of {0} bytes is too long")]
    Extension(u64),
    #[error("a sparse file with a malformed map at byte {0}")]
    Sparse(u64),
}

/// One entry.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    /// Bytes of data that follow in the stream.
    pub(crate) stored: u64,
    /// For a sparse file: where its data goes, and how long the file is.
    pub(crate) sparse: Option<Sparse>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    #[default]
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
    Device(Device),
    /// Of a type, or in an encoding, that is not understood.
    Unknown,
}

/// A device's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) is_block: bool,
    /// Major and minor; `None` where the header has none that can be read.
    pub(crate) numbers: Option<(u32, u32)>,
}

/// The reader. Between two calls of [`Archive::next`] it is the [`Read`] of the member's data.
pub(crate) struct Archive<R> {
    input: R,
    at: u64,
    data_left: u64,
    padding: u64,
    globals: Records,
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What extension headers say of the entry after them.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Records,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, at: 0, data_left: 0, padding: 0, globals: Vec::new() }
    }

    /// The next member, skipping what was not read of the one before.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut extensions = Extensions::default();
        loop {
            // One after the other: the sum of sizes that an archive claims may be more than a number holds.
            self.skip(self.data_left)?;
            self.skip(self.padding)?;
            (self.data_left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let start = self.at - BLOCK;
            let size = header.entry_size().map_err(|_| Error::Number(start))?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.long_name = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extensions.long_link = Some(until_nul(self.extension(size)?)),
                EntryType::XHeader => extensions.records = parse_pax(&self.extension(size)?, start)?,
                EntryType::XGlobalHeader => self.globals = parse_pax(&self.extension(size)?, start)?,
                _ => return self.member(&header, size, extensions, start).map(Some),
            }
        }
    }

    /// Reads and throws away what follows the archive's end, so that its sender can finish.
    pub(crate) fn drain(mut self) -> Result<(), Error> {
        io::copy(&mut self.input, &mut io::sink()).map(drop).map_err(Error::Read)
    }

    /// `None` at the end: a block of zeros, or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let mut block = [0; BLOCK as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Truncated),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        // The checksum field itself counts as eight blanks.
        let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
        let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() - field + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(sum) {
            return Err(Error::Checksum(self.at));
        }
        self.at += BLOCK;
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            return Err(Error::Extension(size));
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.skip(padding(size))?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(bytes).map_err(cut_off)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn skip(&mut self, len: u64) -> Result<(), Error> {
        let skipped = io::copy(&mut self.input.by_ref().take(len), &mut io::sink()).map_err(Error::Read)?;
        self.at += skipped;
        if skipped == len { Ok(()) } else { Err(Error::Truncated) }
    }

    fn member(
        &mut self,
        header: &Header,
        size: u64,
        extensions: Extensions,
        start: u64,
    ) -> Result<Member, Error> {
        let mut kind = kind(header);
        let number = |value: io::Result<u64>| value.map_err(|_| Error::Number(start));
        let mut member = Member {
            path: extensions.long_name.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extensions
                .long_link
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .unwrap_or_default(),
            mode: header.mode().map_err(|_| Error::Number(start))? & 0o7777,
            uid: number(header.uid())?,
            gid: number(header.gid())?,
            mtime: (i64::try_from(number(header.mtime())?).unwrap_or(i64::MAX), 0),
            stored: size,
            ..Member::default()
        };
        let mut told = Told::default();
        for (key, value) in self.globals.iter().chain(&extensions.records) {
            let taken = match key.strip_prefix(b"GNU.sparse.") {
                Some(key) => told.take(key, value),
                None => apply_record(&mut member, key, value),
            };
            taken.ok_or(Error::Pax(start))?;
        }
        if told.is_sparse() && told.is_in_data().is_none() {
            kind = Kind::Unknown;
        }
        if let Some(name) = told.name() {
            member.path = name;
        }
        // Its blocks stand before the data, and are not counted by the size.
        let map = match header.entry_type() {
            EntryType::GNUSparse => self.sparse_map(header, start)?,
            _ => Sparse::default(),
        };
        // Old archives mark a directory by its name alone.
        member.kind = if kind == Kind::File && member.path.ends_with(b"/") { Kind::Dir } else { kind };
        // Some writers give these the size of what they stand for; no data follows all the same.
        if matches!(member.kind, Kind::Dir | Kind::Symlink | Kind::HardLink | Kind::Fifo | Kind::Device(_)) {
            member.stored = 0;
        }
        (self.data_left, self.padding) = (member.stored, padding(member.stored));
        if header.entry_type() == EntryType::GNUSparse {
            member.sparse = Some(map);
        } else if told.is_sparse() && member.kind == Kind::File {
            member.sparse = Some(self.told_map(&told, start)?);
            member.stored = self.data_left;
        }
        if member.sparse.as_ref().is_some_and(|map| map.stored() != member.stored) {
            return Err(Error::Sparse(start));
        }
        Ok(member)
    }

    /// The map that pax records tell; without data where it stood before that.
    fn told_map(&mut self, told: &Told, start: u64) -> Result<Sparse, Error> {
        let stored = self.data_left;
        let map = match told.is_in_data() {
            Some(true) => told.read_map(self, stored).map(|(map, _)| map),
            _ => told.map(stored),
        };
        map.ok_or(Error::Sparse(start))
    }

    fn sparse_map(&mut self, header: &Header, start: u64) -> Result<Sparse, Error> {
        let wrong = || Error::Sparse(start);
        let gnu = header.as_gnu().ok_or_else(wrong)?;
        let mut map = Sparse { pieces: Vec::new(), size: gnu.real_size().map_err(|_| wrong())? };
        for piece in gnu.sparse.iter().filter(|piece| !piece.is_empty()) {
            add(&mut map, piece).ok_or_else(wrong)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            for piece in block.sparse().iter().filter(|piece| !piece.is_empty()) {
                add(&mut map, piece).ok_or_else(wrong)?;
            }
            more = block.is_extended();
        }
        Ok(map)
    }
}

fn add(map: &mut Sparse, piece: &tar::GnuSparseHeader) -> Option<()> {
    map.add(piece.offset().ok()?, piece.length().ok()?)
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let len = self.input.read(&mut buffer[..wanted])?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data_left -= len as u64;
        self.at += len as u64;
        Ok(len)
    }
}

/// An end of the stream where there should be more is the archive's fault, anything else the stream's.
pub(crate) fn cut_off(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof { Error::Truncated } else { Error::Read(error) }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn kind(header: &Header) -> Kind {
    match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Fifo,
        entry @ (EntryType::Char | EntryType::Block) => Kind::Device(Device {
            is_block: entry == EntryType::Block,
            numbers: header.device_major().ok().flatten().zip(header.device_minor().ok().flatten()),
        }),
        _ => Kind::Unknown,
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts the whole record; the value may hold anything.
fn parse_pax(mut bytes: &[u8], start: u64) -> Result<Records, Error> {
    let mut records = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let (record, rest) = pax_record(bytes).ok_or(Error::Pax(start))?;
        records.push(record);
        bytes = rest;
    }
    Ok(records)
}

type Record = (Vec<u8>, Vec<u8>);

fn pax_record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let blank = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some(((record[..equals].to_vec(), record[equals + 1..].to_vec()), &bytes[length..]))
}

/// `None` when the value is not what the key calls for. Keys that say nothing about the file are passed over.
fn apply_record(member: &mut Member, key: &[u8], value: &[u8]) -> Option<()> {
    let number = || std::str::from_utf8(value).ok()?.parse().ok();
    match key {
        b"path" => member.path = value.to_vec(),
        b"linkpath" => member.link = value.to_vec(),
        b"size" => member.stored = number()?,
        b"uid" => member.uid = number()?,
        b"gid" => member.gid = number()?,
        b"mtime" => member.mtime = time(std::str::from_utf8(value).ok()?)?,
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                member.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Some(())
}

/// Decimal seconds with an optional fraction, rounded towards the past.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match nanos {
        0 => (seconds, 0),
        nanos if text.starts_with('-') => (seconds.checked_sub(1)?, 1_000_000_000 - nanos),
        nanos => (seconds, nanos),
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pax_values_may_hold_newlines() {
        let records = parse_pax(b"13 path=a\nb\nc\n20 SCHILY.xattr.x=1\n", 0);
        assert!(matches!(records, Err(Error::Pax(0))), "a length that does not fit: {records:?}");
        let records = parse_pax(b"14 path=a\nb\nc\n20 SCHILY.xattr.x=1\n", 0).unwrap();
        assert_eq!(records[0], (b"path".to_vec(), b"a\nb\nc".to_vec()));
        assert_eq!(records[1], (b"SCHILY.xattr.x".to_vec(), b"1".to_vec()));
    }

    #[test]
    fn times_before_the_epoch_round_towards_the_past() {
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time("7"), Some((7, 0)));
        assert_eq!(time("1.x"), None);
    }

    /// A header all of whose numbers are there.
    fn readable() -> Header {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    }

    #[test]
    fn a_size_near_the_largest_number_is_only_cut_off() {
        let mut header = readable();
        header.set_size(u64::MAX);
        header.set_cksum();
        let mut archive = Archive::new(&header.as_bytes()[..]);
        assert_eq!(archive.next().unwrap().unwrap().stored, u64::MAX);
        assert!(matches!(archive.next(), Err(Error::Truncated)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..3000)) {
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next() {}
        }

        /// Headers whose checksums are right, with anything in the fields that are read.
        #[test]
        fn no_header_makes_it_panic(kind in any::<u8>(), fields in vec((0_usize..512, any::<u8>()), 0..8),
                                    size in any::<u64>(), plain in any::<bool>(), rest in vec(any::<u8>(), 0..1600)) {
            let mut header = readable();
            header.set_entry_type(EntryType::new(kind));
            header.set_size(if plain { size % 2000 } else { size });
            let mut block = *header.as_bytes();
            for (at, byte) in fields {
                block[at] = byte;
            }
            let mut header = Header::from_byte_slice(&block).clone();
            header.set_cksum();
            let bytes = [header.as_bytes().as_slice(), &rest].concat();
            let mut archive = Archive::new(&bytes[..]);
            while let Ok(Some(_)) = archive.next() {}
        }

        #[test]
        fn no_pax_records_make_it_panic(bytes in "[0-9]{0,3} ?[a-z.A-Z]{0,12}=?.{0,20}\n?") {
            let _ = parse_pax(bytes.as_bytes(), 0);
        }
    }
}
