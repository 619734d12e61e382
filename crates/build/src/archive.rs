//! Archives that `ADD` unpacks: a local tar, plain or compressed, told by its content and never by its name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// What a file's first bytes say.
    fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// The bytes behind the compression.
    pub(crate) fn reader(self, file: File) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Plain => Box::new(file),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(file)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new(io::BufReader::new(file), true)),
            Self::Zstd => Box::new(zstd::Decoder::new(file)?),
        })
    }
}

/// The compression of a tar; `None` for a file that is no tar, compressed or not, and so is copied as it is.
pub(crate) fn sniff(mut file: File) -> io::Result<Option<Compression>> {
    let mut head = Vec::new();
    file.by_ref().take(6).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    let compression = Compression::of(&head);
    let Ok(reader) = compression.reader(file) else { return Ok(None) };
    let mut block = Vec::new();
    // Bytes that do not decompress are those of a file that only looks compressed.
    let whole = reader.take(512).read_to_end(&mut block).is_ok() && block.len() == 512;
    Ok((whole && is_tar_header(&block)).then_some(compression))
}

/// Whether a block is the header of a tar entry: its checksum is right, and it is not all zeros.
fn is_tar_header(block: &[u8]) -> bool {
    let field = block[148..156].iter().map(|byte| *byte as char).collect::<String>();
    let Ok(wanted) = u32::from_str_radix(field.trim_matches([' ', '\0']), 8) else { return false };
    let sum = |(at, byte): (usize, &u8)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte });
    block.iter().enumerate().map(sum).sum::<u32>() == wanted && wanted != 8 * u32::from(b' ')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, "a", &b"abc"[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn sniff_bytes(bytes: &[u8]) -> Option<Compression> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        sniff(file).unwrap()
    }

    #[test]
    fn tars_are_told_by_content() {
        let gzip = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(&tar()).unwrap();
        assert_eq!(sniff_bytes(&tar()), Some(Compression::Plain));
        assert_eq!(sniff_bytes(&gzip(&tar())), Some(Compression::Gzip));
        assert_eq!(sniff_bytes(&bzip2.finish().unwrap()), Some(Compression::Bzip2));
        assert_eq!(sniff_bytes(&zstd::encode_all(&tar()[..], 1).unwrap()), Some(Compression::Zstd));
        assert_eq!(sniff_bytes(&gzip(b"only text")), None);
        assert_eq!(sniff_bytes(b"plain text"), None);
        assert_eq!(sniff_bytes(&[0; 1024]), None);
        assert_eq!(sniff_bytes(b"\x1f\x8b\x08 not gzip at all"), None);
        assert_eq!(sniff_bytes(b""), None);
    }
}
