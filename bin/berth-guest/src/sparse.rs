//! Sparse files: where their data is, and how tars tell.
//!
//! Old GNU headers hold the map in the header itself (`archive` reads them). Pax has it in three ways: 0.0 repeats
//! records, 0.1 has one record with all numbers, and 1.0, the one that is written here, puts the numbers in front of
//! the data: `COUNT\nOFFSET\nLENGTH\n…`, filled up to whole blocks.

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::tarwrite::{BLOCK, Records};

/// Most pieces of data in a sparse file that is read.
pub(crate) const MAX_PIECES: usize = 1 << 20;
/// Most pieces that are written; a file in more is sent whole.
const MAX_WRITTEN: usize = 1 << 16;

/// Map of a sparse file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offsets and lengths, rising.
    pub(crate) pieces: Vec<(u64, u64)>,
    /// Length of the file.
    pub(crate) size: u64,
}

impl Sparse {
    /// `None` for a piece that goes back, or beyond the file.
    pub(crate) fn add(&mut self, offset: u64, length: u64) -> Option<()> {
        let end = offset.checked_add(length)?;
        let before = self.pieces.last().map_or(0, |(offset, length)| offset + length);
        if offset < before || end > self.size || self.pieces.len() >= MAX_PIECES {
            return None;
        }
        self.pieces.push((offset, length));
        Some(())
    }

    /// Bytes of data.
    pub(crate) fn stored(&self) -> u64 {
        // Pieces do not overlap and end before the file does.
        self.pieces.iter().map(|(_, length)| length).sum()
    }

    /// Where the data of an open file of `size` bytes is; `None` where it has no holes, or too many, or where the file
    /// system does not tell. lseek(2)
    pub(crate) fn of_file(file: &OwnedFd, size: u64) -> Option<Self> {
        let mut map = Self { pieces: Vec::new(), size };
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < size => start,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(_) => return None,
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).ok()?.min(size);
            // A file that changes under the search might keep it going for ever.
            if start < at || end <= start || map.pieces.len() >= MAX_WRITTEN {
                return None;
            }
            map.add(start, end - start)?;
            at = end;
        }
        (map.stored() < size).then_some(map)
    }

    /// The map as it stands before the data in format 1.0. Ends, as GNU tar's does, with an empty piece at the end.
    pub(crate) fn text(&self) -> Vec<u8> {
        let ends_in_data = self.pieces.last().is_some_and(|(offset, length)| offset + length == self.size);
        let end = (!ends_in_data).then_some((self.size, 0));
        let pieces: Vec<_> = self.pieces.iter().copied().chain(end).collect();
        let mut text = format!("{}\n", pieces.len());
        for (offset, length) in pieces {
            text.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        text
    }

    /// The records that go with [`Sparse::text`].
    pub(crate) fn records(&self, path: &[u8]) -> Records {
        vec![
            (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
            (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
            (b"GNU.sparse.name".to_vec(), path.to_vec()),
            (b"GNU.sparse.realsize".to_vec(), self.size.to_string().into_bytes()),
        ]
    }
}

/// What the pax records of one entry say of holes.
#[derive(Debug, Default)]
pub(crate) struct Told {
    version: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Numbers of formats 0.0 and 0.1.
    numbers: Vec<u64>,
    is_sparse: bool,
}

impl Told {
    /// Takes the record `GNU.sparse.KEY`; `None` when its value does not parse.
    pub(crate) fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        self.is_sparse = true;
        match key {
            b"major" => self.version.0 = Some(number(value)?),
            b"minor" => self.version.1 = Some(number(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"offset" | b"numbytes" => self.push(number(value)?)?,
            b"map" => {
                for value in value.split(|byte| *byte == b',').filter(|value| !value.is_empty()) {
                    self.push(number(value)?)?;
                }
            }
            // `numblocks` says again how many there are.
            _ => {}
        }
        Some(())
    }

    fn push(&mut self, number: u64) -> Option<()> {
        (self.numbers.len() < 2 * MAX_PIECES).then(|| self.numbers.push(number))
    }

    pub(crate) fn is_sparse(&self) -> bool {
        self.is_sparse
    }

    /// The name of the file, where the header has one made up.
    pub(crate) fn name(&mut self) -> Option<Vec<u8>> {
        self.name.take()
    }

    /// Whether the map stands before the data; `None` for a format that is not known.
    pub(crate) fn is_in_data(&self) -> Option<bool> {
        match self.version {
            (Some(1), Some(0)) => Some(true),
            (None, None) | (Some(0), Some(0 | 1)) => Some(false),
            _ => None,
        }
    }

    /// The map of formats 0.0 and 0.1, for `stored` bytes of data.
    pub(crate) fn map(&self, stored: u64) -> Option<Sparse> {
        self.checked(&self.numbers, stored)
    }

    /// Reads the map of format 1.0 from the data, of which `stored` bytes are left. Gives how many of them it was.
    pub(crate) fn read_map(&self, data: &mut impl Read, stored: u64) -> Option<(Sparse, u64)> {
        let mut reader =
            Numbers { data, block: [0; BLOCK], at: BLOCK, blocks: 0, most: stored / BLOCK as u64 };
        let count = usize::try_from(reader.next()?).ok().filter(|count| *count <= MAX_PIECES)?;
        let mut numbers = Vec::new();
        for _ in 0..2 * count {
            numbers.push(reader.next()?);
        }
        let used = reader.blocks * BLOCK as u64;
        Some((self.checked(&numbers, stored.checked_sub(used)?)?, used))
    }

    fn checked(&self, numbers: &[u64], stored: u64) -> Option<Sparse> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        let mut map = Sparse { pieces: Vec::new(), size: self.size? };
        for [offset, length] in pairs {
            map.add(*offset, *length)?;
        }
        (rest.is_empty() && map.stored() == stored).then_some(map)
    }
}

/// Decimal numbers with a newline after each, out of whole blocks.
struct Numbers<'a, R> {
    data: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
    blocks: u64,
    most: u64,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> Option<u64> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                if self.blocks == self.most {
                    return None;
                }
                self.data.read_exact(&mut self.block).ok()?;
                (self.at, self.blocks) = (0, self.blocks + 1);
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    value = Some(value.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
                }
                b'\n' => return value,
                _ => return None,
            }
        }
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_rise_and_stay_in_the_file() {
        let mut map = Sparse { pieces: Vec::new(), size: 100 };
        assert_eq!(map.add(10, 20), Some(()));
        assert_eq!(map.add(29, 1), None, "within the one before");
        assert_eq!(map.add(90, 11), None, "beyond the end");
        assert_eq!(map.add(u64::MAX, 2), None, "beyond all numbers");
        assert_eq!(map.add(100, 0), Some(()));
        assert_eq!(map.stored(), 20);
    }

    #[test]
    fn leading_zeros_and_missing_numbers() {
        let read = |text: &[u8]| {
            let mut block = text.to_vec();
            block.resize(BLOCK, 0);
            let told = Told { size: Some(10), ..Told::default() };
            told.read_map(&mut &block[..], 512 + 3)
        };
        assert_eq!(read(b"1\n04\n3\n").unwrap().0.pieces, [(4, 3)]);
        for wrong in [&b"1\n4\n"[..], b"1\n4\n4\n", b"\n", b"2\n4\n3\n", b"x\n", b"99999999999999999999\n"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn a_map_comes_back(gaps in vec((1_u64..1 << 40, 1_u64..1 << 20), 0..300), tail in 0_u64..9) {
            let mut map = Sparse { pieces: Vec::new(), size: u64::MAX };
            let mut at = 0;
            for (hole, length) in gaps {
                map.add(at + hole, length).unwrap();
                at += hole + length;
            }
            map.size = at + tail;
            let text = map.text();
            prop_assert_eq!(text.len() % BLOCK, 0);
            let told = Told { size: Some(map.size), ..Told::default() };
            let (read, used) = told.read_map(&mut &text[..], text.len() as u64 + map.stored()).unwrap();
            prop_assert_eq!(used, text.len() as u64);
            // The empty piece at the end aside.
            let pieces: Vec<_> = read.pieces.into_iter().filter(|(_, length)| *length > 0).collect();
            prop_assert_eq!(pieces, map.pieces);
        }

        #[test]
        fn no_map_makes_it_panic(bytes in vec(prop_oneof![Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..1200)) {
            let told = Told { size: Some(1000), ..Told::default() };
            let _ = told.read_map(&mut &bytes[..], bytes.len() as u64);
        }
    }
}
