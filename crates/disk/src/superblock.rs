//! What a pool file says of itself, before anything is mounted. Pure.
//!
//! The label carries the format's version (`docs/formats/pool.md`): it is in the superblock, so it can be read without
//! trusting the rest of the file.

use std::io::{self, Read, Seek, SeekFrom};

/// Label of the pools that this version makes and reads.
pub(crate) const LABEL: &str = "berth-pool-1";

/// What the label of every version begins with.
const LABEL_STEM: &str = "berth-pool-";

/// `BTRFS_SUPER_INFO_OFFSET`, and how much of it is read.
const OFFSET: u64 = 0x1_0000;
const LENGTH: usize = 0x1000;

/// A superblock that is Berth's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// UUID of the file system.
    pub(crate) id: [u8; 16],
    /// Size of the file system, which may be less than the file's.
    pub(crate) total_bytes: u64,
}

/// Why a superblock is not one of Berth's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    /// No btrfs, or none of Berth's.
    NotAPool(String),
    /// A pool of another version.
    Format(String),
}

/// Reads and judges the superblock of `file`; the outer error is the read's.
pub(crate) fn read(mut file: impl Read + Seek) -> io::Result<Result<Superblock, Odd>> {
    let mut block = Vec::with_capacity(LENGTH);
    file.seek(SeekFrom::Start(OFFSET))?;
    file.take(LENGTH as u64).read_to_end(&mut block)?;
    Ok(parse(&block))
}

/// Offsets are those of `struct btrfs_super_block` (linux/btrfs_tree.h).
fn parse(block: &[u8]) -> Result<Superblock, Odd> {
    let (Some(id), Some(magic), Some(total), Some(label)) =
        (block.get(32..48), block.get(64..72), block.get(112..120), block.get(299..555))
    else {
        return Err(Odd::NotAPool("it is too short".to_owned()));
    };
    if magic != b"_BHRfS_M" {
        return Err(Odd::NotAPool("it has no btrfs superblock".to_owned()));
    }
    let label = String::from_utf8_lossy(label.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
    match label.as_str() {
        LABEL => Ok(Superblock {
            id: id.try_into().unwrap_or_default(),
            total_bytes: u64::from_le_bytes(total.try_into().unwrap_or_default()),
        }),
        other if other.starts_with(LABEL_STEM) => Err(Odd::Format(label)),
        _ => Err(Odd::NotAPool(format!("its label is {label:?}"))),
    }
}

/// As in `/sys/fs/btrfs`.
pub(crate) fn uuid_text(id: [u8; 16]) -> String {
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(label: &str) -> Vec<u8> {
        let mut block = vec![0; LENGTH];
        block[32..48].copy_from_slice(&[7; 16]);
        block[64..72].copy_from_slice(b"_BHRfS_M");
        block[112..120].copy_from_slice(&(1u64 << 30).to_le_bytes());
        block[299..299 + label.len()].copy_from_slice(label.as_bytes());
        block
    }

    #[test]
    fn only_pools_of_this_format_are_taken() {
        assert_eq!(parse(&block(LABEL)), Ok(Superblock { id: [7; 16], total_bytes: 1 << 30 }));
        assert_eq!(parse(&block("berth-pool-2")), Err(Odd::Format("berth-pool-2".to_owned())));
        assert!(matches!(parse(&block("data")), Err(Odd::NotAPool(why)) if why.contains("data")));
        assert!(matches!(parse(&[0; LENGTH]), Err(Odd::NotAPool(_))));
        assert!(matches!(parse(&block(LABEL)[..300]), Err(Odd::NotAPool(_))));
        assert!(matches!(parse(&[]), Err(Odd::NotAPool(_))));
    }

    #[test]
    fn uuids_read_as_in_sysfs() {
        let id = *b"\x4c\x43\x3b\x2a\x6d\xb4\x49\x90\xab\xa4\x13\x71\x77\x55\x5e\xce";
        assert_eq!(uuid_text(id), "4c433b2a-6db4-4990-aba4-137177555ece");
    }
}
