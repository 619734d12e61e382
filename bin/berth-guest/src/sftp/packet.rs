//! Fields of packets: numbers are big-endian, strings are bytes after their length.

use super::attributes::Attributes;

/// Longest packet either way, as OpenSSH has it.
pub(crate) const MAX_PACKET: usize = 256 * 1024;
/// Longest data of one read or write.
pub(super) const MAX_BLOCK: usize = MAX_PACKET - 1024;

/// The version that is spoken.
pub(super) const VERSION: u32 = 3;

/// Extensions and their versions; OpenSSH's `PROTOCOL` describes them.
pub(super) const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Types of packets.
pub(super) mod kind {
    pub(in super::super) const INIT: u8 = 1;
    pub(in super::super) const VERSION: u8 = 2;
    pub(in super::super) const OPEN: u8 = 3;
    pub(in super::super) const CLOSE: u8 = 4;
    pub(in super::super) const READ: u8 = 5;
    pub(in super::super) const WRITE: u8 = 6;
    pub(in super::super) const LSTAT: u8 = 7;
    pub(in super::super) const FSTAT: u8 = 8;
    pub(in super::super) const SETSTAT: u8 = 9;
    pub(in super::super) const FSETSTAT: u8 = 10;
    pub(in super::super) const OPENDIR: u8 = 11;
    pub(in super::super) const READDIR: u8 = 12;
    pub(in super::super) const REMOVE: u8 = 13;
    pub(in super::super) const MKDIR: u8 = 14;
    pub(in super::super) const RMDIR: u8 = 15;
    pub(in super::super) const REALPATH: u8 = 16;
    pub(in super::super) const STAT: u8 = 17;
    pub(in super::super) const RENAME: u8 = 18;
    pub(in super::super) const READLINK: u8 = 19;
    pub(in super::super) const SYMLINK: u8 = 20;
    pub(in super::super) const STATUS: u8 = 101;
    pub(in super::super) const HANDLE: u8 = 102;
    pub(in super::super) const DATA: u8 = 103;
    pub(in super::super) const NAME: u8 = 104;
    pub(in super::super) const ATTRS: u8 = 105;
    pub(in super::super) const EXTENDED: u8 = 200;
    pub(in super::super) const EXTENDED_REPLY: u8 = 201;
}

/// Bits that say which attributes follow.
const SIZE: u32 = 1;
const OWNER: u32 = 2;
const PERMISSIONS: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// A packet ended before its fields did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Short;

/// The fields of a packet that are still to be read.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Short> {
        self.take().map(|[byte]| byte)
    }

    pub(super) fn number(&mut self) -> Result<u32, Short> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn long(&mut self) -> Result<u64, Short> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn string(&mut self) -> Result<&'a [u8], Short> {
        let length = self.number()? as usize;
        let (string, rest) = self.0.split_at_checked(length).ok_or(Short)?;
        self.0 = rest;
        Ok(string)
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Short> {
        let flags = self.number()?;
        let mut attributes = Attributes::default();
        if flags & SIZE != 0 {
            attributes.size = Some(self.long()?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((self.number()?, self.number()?));
        }
        if flags & PERMISSIONS != 0 {
            attributes.mode = Some(self.number()?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((self.number()?, self.number()?));
        }
        if flags & EXTENDED != 0 {
            // Each takes eight bytes at least, so the packet's length bounds them, whatever their number says.
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(attributes)
    }
}

/// A packet that is being written; its length is filled in by [`Reply::finish`].
pub(super) struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Reply<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>, kind: u8) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, kind]);
        Self { out, start }
    }

    pub(super) fn number(&mut self, number: u32) -> &mut Self {
        self.out.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub(super) fn long(&mut self, number: u64) -> &mut Self {
        self.out.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Everything that is sent is far shorter than a u32 can say.
    pub(super) fn string(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.out.extend_from_slice(bytes);
        self
    }

    pub(super) fn attributes(&mut self, attributes: &Attributes) -> &mut Self {
        let Attributes { size, owner, mode, times } = attributes;
        let bit = |is_there: bool, bit: u32| if is_there { bit } else { 0 };
        self.number(
            bit(size.is_some(), SIZE)
                | bit(owner.is_some(), OWNER)
                | bit(mode.is_some(), PERMISSIONS)
                | bit(times.is_some(), TIMES),
        );
        if let Some(size) = size {
            self.long(*size);
        }
        if let Some((first, second)) = owner {
            self.number(*first).number(*second);
        }
        if let Some(mode) = mode {
            self.number(*mode);
        }
        if let Some((first, second)) = times {
            self.number(*first).number(*second);
        }
        self
    }

    pub(super) fn finish(self) {
        let length = self.out.len() - self.start - super::LENGTH;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.out[self.start..self.start + super::LENGTH].copy_from_slice(&length.to_be_bytes());
    }
}
