//! Writing tar: headers in ustar, and in pax what does not fit there.

use std::io::Write;

use berth_wire::FailureCode;
use rustix::fs::Stat;
use tar::{EntryType, Header};

use crate::failure::{self, Result};

pub(crate) const BLOCK: usize = 512;
/// Longest name that a ustar header holds without its prefix field.
const MAX_NAME: usize = 100;
/// Largest number that the size field holds in octal.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;
/// Largest number that the id fields hold in octal.
const MAX_OCTAL_ID: u32 = 0o7_777_777;

/// Keys and values of a pax header.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// An archive under way.
pub(crate) struct Writer<'a, W> {
    output: &'a mut W,
}

impl<'a, W: Write> Writer<'a, W> {
    pub(crate) fn new(output: &'a mut W) -> Self {
        Self { output }
    }

    /// Bytes of an entry, or of anything else.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(|_| cancelled())
    }

    pub(crate) fn zeros(&mut self, mut len: u64) -> Result<()> {
        let zeros = [0; 4096];
        while len > 0 {
            let now = usize::try_from(len).unwrap_or(zeros.len()).min(zeros.len());
            self.write(&zeros[..now])?;
            len -= now as u64;
        }
        Ok(())
    }

    /// What is missing to whole blocks after `len` bytes.
    pub(crate) fn pad(&mut self, len: u64) -> Result<()> {
        self.zeros(len.wrapping_neg() % BLOCK as u64)
    }

    /// Ends the archive.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.write(&[0; 2 * BLOCK])?;
        self.output.flush().map_err(|_| cancelled())
    }

    /// The header of an entry, of which `size` bytes follow.
    pub(crate) fn header(
        &mut self,
        path: &[u8],
        kind: EntryType,
        stat: &Stat,
        size: u64,
        link: &[u8],
        mut records: Records,
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
        if matches!(kind, EntryType::Char | EntryType::Block) {
            // The kernel's numbers, of 12 and 20 bits, always fit.
            let _ = header.set_device_major(rustix::fs::major(stat.st_rdev));
            let _ = header.set_device_minor(rustix::fs::minor(stat.st_rdev));
        }
        header.set_cksum();
        self.records(&records)?;
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
        records: &mut Records,
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
        self.pad(data.len() as u64)
    }
}

/// The only way in which sending fails.
pub(crate) fn cancelled() -> berth_wire::Failure {
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
