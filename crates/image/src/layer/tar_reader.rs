//! Reading tar streams, one member at a time.
//!
//! The `tar` crate is used for header fields and checksums only. Its own iterator cuts pax records at newlines,
//! and so loses binary attributes such as `security.capability`, and knows no pax sparse files. Here records are read
//! by their length, and all of GNU's sparse formats are understood.

use std::io::{self, Read};
use std::ops::Range;

use tar::Header;

use super::Pairs;
use super::split::Recorder;

const BLOCK: u64 = 512;
// Where the numeric fields lie in a header.
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
/// Longest name or pax header that is read, in bytes; pax headers carry attributes of up to 64 KiB each.
const MAX_EXTENSION: u64 = 4 << 20;
/// Most data areas of one sparse file.
const MAX_SPARSE_AREAS: usize = 1 << 20;

/// Why a tar stream could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream itself failed: a broken compression stream, or the disk.
    #[error("cannot read the archive at byte {offset} of its uncompressed content")]
    Read {
        /// Where.
        offset: u64,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The stream ended inside a member.
    #[error("the archive ends in the middle of {member:?}")]
    Truncated {
        /// The member, or the header after it.
        member: String,
    },
    /// A header block is not one.
    #[error("not a tar header at byte {offset}")]
    Header {
        /// Where.
        offset: u64,
        /// Which field.
        #[source]
        source: io::Error,
    },
    /// A pax extended header is malformed.
    #[error("the pax header of {member:?} is malformed: {what}")]
    Pax {
        /// The member.
        member: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A sparse file's map makes no sense.
    #[error("the sparse map of {member:?} is malformed")]
    Sparse {
        /// The member.
        member: String,
    },
    /// A kind of member that is not supported.
    #[error("member {member:?} is of unsupported type {kind:?}")]
    Kind {
        /// The member.
        member: String,
        /// The type letter in the header.
        kind: char,
    },
    /// A name or attribute list beyond any sense.
    #[error(
        "an extended header at byte {offset} is {size} bytes long, more than the {MAX_EXTENSION} that are read"
    )]
    ExtensionTooLong {
        /// Where.
        offset: u64,
        /// Its size.
        size: u64,
    },
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
}

/// One member's header.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    /// Of the file as it will be on disk; a sparse file's holes included.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Pairs,
    /// Data areas `(offset, length)` of a sparse file.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
    /// Where its data begins in the uncompressed stream.
    pub(crate) data_offset: u64,
}

impl Member {
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads members in order. After [`TarReader::next`], the reader itself yields the member's data.
pub(crate) struct TarReader<R> {
    inner: R,
    position: u64,
    data_left: u64,
    padding: u64,
    current: String,
    global: Pax,
    ended: bool,
    recorder: Option<Recorder>,
}

#[derive(Clone, Default)]
struct Pax(Pairs);

impl Pax {
    fn get(&self, key: &str) -> Option<&[u8]> {
        // The last record of a key wins.
        self.0.iter().rev().find(|(k, _)| k == key.as_bytes()).map(|(_, v)| v.as_slice())
    }

    fn number(&self, key: &str, member: &str) -> Result<Option<u64>, TarError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok());
        number.map(Some).ok_or_else(|| TarError::Pax { member: member.to_owned(), what: "not a number" })
    }
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            position: 0,
            data_left: 0,
            padding: 0,
            current: String::from("the first header"),
            global: Pax::default(),
            ended: false,
            recorder: None,
        }
    }

    /// As [`TarReader::new`]; everything that is read is taken down.
    pub(crate) fn recording(inner: R, recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..Self::new(inner) }
    }

    pub(crate) fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    pub(crate) fn into_parts(self) -> (R, Option<Recorder>) {
        (self.inner, self.recorder)
    }

    /// Whether the archive's end marker was seen; an archive cut between two members has none.
    pub(crate) fn saw_end_marker(&self) -> bool {
        self.ended
    }

    /// The next member; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, TarError> {
        let mut long_name = None;
        let mut long_link = None;
        let mut pax = self.global.clone();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            match header.entry_type().as_byte() {
                b'L' => long_name = Some(c_string(self.read_extension(&header)?)),
                b'K' => long_link = Some(c_string(self.read_extension(&header)?)),
                b'x' | b'X' => {
                    let bytes = self.read_extension(&header)?;
                    pax.0.extend(parse_pax(&bytes, &self.current)?);
                }
                b'g' => {
                    let bytes = self.read_extension(&header)?;
                    let records = parse_pax(&bytes, &self.current)?;
                    self.global.0.extend(records.clone());
                    pax.0.extend(records);
                }
                _ => return self.member(&header, long_name, long_link, &pax).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        header: &Header,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        pax: &Pax,
    ) -> Result<Member, TarError> {
        let bytes = |key: &str| pax.get(key).map(<[u8]>::to_vec);
        let path = bytes("GNU.sparse.name")
            .or_else(|| bytes("path"))
            .or(long_name)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = bytes("linkpath")
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(|l| l.into_owned()))
            .unwrap_or_default();
        self.current = String::from_utf8_lossy(&path).into_owned();
        let name = self.current.clone();
        let kind = kind_of(header, &path, &name)?;
        let at = |source| TarError::Header { offset: self.position - BLOCK, source };
        let stored = match pax.number("size", &name)? {
            Some(size) => size,
            None => unsigned(header, SIZE).map_err(at)?,
        };
        let mut member = Member {
            link,
            kind,
            mode: u32::try_from(unsigned(header, MODE).map_err(at)? & 0o7777).unwrap_or(0),
            uid: pax.number("uid", &name)?.map_or_else(|| unsigned(header, UID), Ok).map_err(at)?,
            gid: pax.number("gid", &name)?.map_or_else(|| unsigned(header, GID), Ok).map_err(at)?,
            mtime: mtime_of(header, pax, &name).map_err(at)?,
            size: if kind == Kind::File { stored } else { 0 },
            device: device_of(header, kind).map_err(at)?,
            xattrs: xattrs_of(pax),
            sparse: None,
            data_offset: 0,
            path,
        };
        // Links, directories and devices have no data, whatever their size field says: so does every other reader.
        self.data_left = if kind == Kind::File { stored } else { 0 };
        self.padding = pad(self.data_left);
        self.read_sparse_map(header, pax, &mut member)?;
        member.data_offset = self.position;
        Ok(member)
    }

    fn read_sparse_map(&mut self, header: &Header, pax: &Pax, member: &mut Member) -> Result<(), TarError> {
        let bad = || TarError::Sparse { member: member.name() };
        let (areas, size) = if header.entry_type().as_byte() == b'S' {
            self.old_gnu_map(header, &member.name())?
        } else if pax.get("GNU.sparse.major").is_some() {
            let size = pax.number("GNU.sparse.realsize", &member.name())?.ok_or_else(bad)?;
            (self.inline_map(&member.name())?, size)
        } else if let Some(size) = pax.number("GNU.sparse.size", &member.name())? {
            (record_map(pax).ok_or_else(bad)?, size)
        } else {
            return Ok(());
        };
        check_map(&areas, size, self.data_left).ok_or_else(bad)?;
        member.size = size;
        member.sparse = Some(areas);
        Ok(())
    }

    /// GNU's first format: four areas in the header, more in blocks after it.
    fn old_gnu_map(&mut self, header: &Header, name: &str) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let bad = |_| TarError::Sparse { member: name.to_owned() };
        let gnu = header.as_gnu().ok_or_else(|| TarError::Sparse { member: name.to_owned() })?;
        let mut areas = Vec::new();
        let mut push = |block: &tar::GnuSparseHeader| -> Result<(), TarError> {
            if !block.is_empty() && areas.len() < MAX_SPARSE_AREAS {
                areas.push((block.offset().map_err(bad)?, block.length().map_err(bad)?));
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            block.sparse.iter().try_for_each(&mut push)?;
            more = block.is_extended();
        }
        Ok((areas, gnu.real_size().map_err(bad)?))
    }

    /// Format 1.0: decimal lines at the head of the data, padded to a block.
    fn inline_map(&mut self, name: &str) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = || TarError::Sparse { member: name.to_owned() };
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut text = String::new();
        while wanted.is_none_or(|w| numbers.len() < w) {
            let mut block = [0u8; BLOCK as usize];
            if self.data_left < BLOCK {
                return Err(bad());
            }
            self.fill(&mut block)?;
            self.data_left -= BLOCK;
            for byte in block {
                if wanted.is_some_and(|w| numbers.len() >= w) {
                    break;
                }
                if byte != b'\n' {
                    text.push(char::from(byte));
                    continue;
                }
                let number: u64 = text.parse().map_err(|_| bad())?;
                text.clear();
                match wanted {
                    None if number as usize > MAX_SPARSE_AREAS => return Err(bad()),
                    None => wanted = Some(number as usize * 2),
                    Some(_) => numbers.push(number),
                }
            }
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if self.fill_or_end(header.as_mut_bytes())? {
            return Ok(None);
        }
        if header.as_bytes().iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        let offset = self.position - BLOCK;
        let sum = header.as_bytes().iter().enumerate().map(|(i, b)| {
            // The checksum field itself counts as spaces.
            u32::from(if CHECKSUM.contains(&i) { b' ' } else { *b })
        });
        let at = |source| TarError::Header { offset, source };
        if unsigned(&header, CHECKSUM).map_err(at)? != u64::from(sum.sum::<u32>()) {
            return Err(at(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum")));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let offset = self.position;
        let size =
            unsigned(header, SIZE).map_err(|source| TarError::Header { offset: offset - BLOCK, source })?;
        if size > MAX_EXTENSION {
            return Err(TarError::ExtensionTooLong { offset, size });
        }
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.padding = pad(size);
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        // A size that an archive claims may be the largest number that there is.
        let mut left = self.data_left.saturating_add(self.padding);
        let mut scrap = [0u8; 16 * 1024];
        while left > 0 {
            let want = left.min(scrap.len() as u64) as usize;
            self.fill(&mut scrap[..want])?;
            left -= want as u64;
        }
        self.data_left = 0;
        self.padding = 0;
        Ok(())
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<(), TarError> {
        match self.fill_or_end(buf)? {
            true if !buf.is_empty() => Err(TarError::Truncated { member: self.current.clone() }),
            _ => Ok(()),
        }
    }

    /// Fills `buf`; true when the stream ended before its first byte.
    fn fill_or_end(&mut self, buf: &mut [u8]) -> Result<bool, TarError> {
        let mut done = 0;
        while done < buf.len() {
            match self.inner.read(&mut buf[done..]) {
                Ok(0) if done == 0 => return Ok(true),
                Ok(0) => return Err(TarError::Truncated { member: self.current.clone() }),
                Ok(n) => {
                    if let Some(recorder) = &mut self.recorder {
                        recorder.literal(&buf[done..done + n]);
                    }
                    done += n;
                    self.position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset: self.position, source }),
            }
        }
        Ok(false)
    }

    /// Reads some of the member's stored data; 0 at its end.
    pub(crate) fn read_data(&mut self, buf: &mut [u8]) -> Result<usize, TarError> {
        let want = self.data_left.min(buf.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let n = loop {
            match self.inner.read(&mut buf[..want]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        }
        .map_err(|source| TarError::Read { offset: self.position, source })?;
        if n == 0 {
            return Err(TarError::Truncated { member: self.current.clone() });
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.data(&buf[..n]);
        }
        self.data_left -= n as u64;
        self.position += n as u64;
        Ok(n)
    }
}

fn pad(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn kind_of(header: &Header, path: &[u8], name: &str) -> Result<Kind, TarError> {
    Ok(match header.entry_type().as_byte() {
        // Before ustar, a directory was a file whose name ends in a slash.
        b'0' | b'\0' if path.ends_with(b"/") => Kind::Dir,
        b'0' | b'\0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        other => return Err(TarError::Kind { member: name.to_owned(), kind: char::from(other) }),
    })
}

fn device_of(header: &Header, kind: Kind) -> io::Result<(u32, u32)> {
    if !matches!(kind, Kind::Char | Kind::Block) {
        return Ok((0, 0));
    }
    let number = |field| Ok::<_, io::Error>(u32::try_from(unsigned(header, field)?).unwrap_or(u32::MAX));
    Ok((number(MAJOR)?, number(MINOR)?))
}

fn xattrs_of(pax: &Pax) -> Pairs {
    const PREFIX: &[u8] = b"SCHILY.xattr.";
    let own = pax.0.iter().filter_map(|(k, v)| Some((k.strip_prefix(PREFIX)?.to_vec(), v.clone())));
    own.collect()
}

fn unsigned(header: &Header, field: Range<usize>) -> io::Result<u64> {
    let found = number(&header.as_bytes()[field])?;
    u64::try_from(found).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a negative number"))
}

/// A numeric field: octal digits, GNU's base 256 when its first bit is set, 0 when it is blank.
fn number(field: &[u8]) -> io::Result<i64> {
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    if field[0] & 0x80 != 0 {
        // The bit after the marker is the sign.
        let negative = field[0] & 0x40 != 0;
        let head = if negative { field[0] } else { field[0] & 0x7f };
        let bytes = std::iter::once(head).chain(field[1..].iter().copied());
        let sum = |sum: i64, byte: u8| sum.checked_mul(256)?.checked_add(i64::from(byte));
        let total = { bytes }.try_fold(if negative { -1 } else { 0 }, sum);
        return total.ok_or_else(|| bad("a number too large"));
    }
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let digits: Vec<u8> = field.iter().copied().skip_while(|b| blank(b)).take_while(|b| !blank(b)).collect();
    digits
        .iter()
        .try_fold(0i64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
        .ok_or_else(|| bad("not an octal number"))
}

fn mtime_of(header: &Header, pax: &Pax, name: &str) -> io::Result<(i64, u32)> {
    let Some(value) = pax.get("mtime") else {
        return Ok((number(&header.as_bytes()[MTIME])?, 0));
    };
    let text = std::str::from_utf8(value).ok();
    text.and_then(parse_time).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("pax mtime of {name:?} is not a time"))
    })
}

/// `seconds[.fraction]`, possibly negative.
fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match whole.starts_with('-') && nanos > 0 {
        // Before the epoch the fraction points backwards, while the kernel's always points forwards.
        true => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((seconds, nanos)),
    }
}

/// Records are `LENGTH key=value\n`, where the length counts itself: values may hold any byte.
fn parse_pax(mut bytes: &[u8], member: &str) -> Result<Pairs, TarError> {
    let bad = |what| TarError::Pax { member: member.to_owned(), what };
    let mut records = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().take(20).position(|b| *b == b' ').ok_or_else(|| bad("no length"))?;
        let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse::<usize>().ok());
        let length =
            length.filter(|l| *l > space + 1 && *l <= bytes.len()).ok_or_else(|| bad("wrong length"))?;
        let record = bytes[space + 1..length].strip_suffix(b"\n").ok_or_else(|| bad("no newline"))?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(|| bad("no equals sign"))?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

/// Formats 0.0 (repeated records) and 0.1 (one comma-separated record).
fn record_map(pax: &Pax) -> Option<Vec<(u64, u64)>> {
    let parse = |v: &[u8]| std::str::from_utf8(v).ok()?.parse::<u64>().ok();
    if let Some(map) = pax.get("GNU.sparse.map") {
        let numbers: Option<Vec<u64>> =
            map.split(|b| *b == b',').filter(|v| !v.is_empty()).map(parse).collect();
        let numbers = numbers.filter(|n| n.len() % 2 == 0)?;
        return Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
    }
    let mut areas = Vec::new();
    let mut offset = None;
    for (key, value) in &pax.0 {
        match key.as_slice() {
            b"GNU.sparse.offset" => offset = Some(parse(value)?),
            b"GNU.sparse.numbytes" => areas.push((offset.take()?, parse(value)?)),
            _ => {}
        }
    }
    Some(areas)
}

/// Areas must be in order, within the file, and add up to the data that is there.
fn check_map(areas: &[(u64, u64)], size: u64, data: u64) -> Option<()> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for (offset, length) in areas {
        if *offset < end {
            return None;
        }
        end = offset.checked_add(*length)?;
        sum = sum.checked_add(*length)?;
    }
    (end <= size && sum == data).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_values_may_hold_newlines() {
        let records = parse_pax(b"14 a=b\nc\n\n=\n\n\n11 path=/x\n", "m").unwrap();
        assert_eq!(records, [(b"a".to_vec(), b"b\nc\n\n=\n\n".to_vec()), (b"path".to_vec(), b"/x".to_vec())]);
        for bad in [&b"99 a=b\n"[..], b"x", b"5 a=b", b"6 abc\n"] {
            assert!(parse_pax(bad, "m").is_err());
        }
    }

    #[test]
    fn numbers() {
        for (field, wanted) in [
            (&b"0000644\0"[..], 0o644),
            (b" 644 \0\0\0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\x01\0", 256),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfb", -5),
        ] {
            assert_eq!(number(field).unwrap(), wanted, "{field:?}");
        }
        assert!(number(b"8").is_err());
        assert!(number(&[0xbf; 12]).is_err());
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(parse_time("x"), None);
    }

    #[test]
    fn maps_are_checked() {
        assert!(check_map(&[(0, 5), (10, 5)], 20, 10).is_some());
        for (areas, size, data) in [
            (&[(0, 5), (4, 5)][..], 20, 10),
            (&[(0, 5)], 4, 5),
            (&[(0, 5)], 20, 9),
            (&[(u64::MAX, 5)], 20, 5),
        ] {
            assert!(check_map(areas, size, data).is_none());
        }
    }
}
