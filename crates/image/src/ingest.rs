//! Bringing a layer into the store: decompress, hash, unpack, verify, commit. Nothing is visible before the last step.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::digest::{Digest, Hasher};
use crate::image::Layer;
use crate::layer::split::{Recorder, SplitError};
use crate::layer::tar_reader::{TarError, TarReader};
use crate::layer::unpack::{UnpackError, unpack};
use crate::layer::walk::WalkError;
use crate::layer::{Facts, survey};
use crate::pipeline::Ahead;
use crate::progress::Meter;
use crate::store::{Store, StoreError};

const READ_BUFFER: usize = 256 * 1024;

/// Why a layer could not be brought in.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The tar, or making one of its members, failed.
    #[error("cannot unpack {layer}")]
    Unpack {
        /// Which layer.
        layer: String,
        /// Cause.
        #[source]
        source: UnpackError,
    },
    /// The stream around the tar is broken.
    #[error("cannot decompress {layer}")]
    Decompress {
        /// Which layer.
        layer: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The compressed bytes are not the ones that were named.
    #[error("{layer} has digest {actual} instead of {expected}")]
    BlobDigest {
        /// Which layer.
        layer: String,
        /// The digest it was named by.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// The uncompressed tar is not the one that the image's config names.
    #[error("{layer} unpacks to digest {actual} instead of the image config's {expected}")]
    DiffId {
        /// Which layer.
        layer: String,
        /// The config's.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A tar without its end marker, and no digest that could vouch for it.
    #[error("{layer} ends without an end marker; it was probably cut off")]
    NoEnd {
        /// Which layer.
        layer: String,
    },
    /// The unpacked tree cannot be read back.
    #[error("cannot take stock of {layer}")]
    Survey {
        /// Which layer.
        layer: String,
        /// Cause.
        #[source]
        source: WalkError,
    },
    /// What its tar was beyond its files cannot be kept.
    #[error("cannot keep the tar headers of {layer}")]
    Split {
        /// Which layer.
        layer: String,
        /// Cause.
        #[source]
        source: SplitError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How bytes are packed; told from their beginning, whatever they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Any of the three, uncompressed as it is read.
pub(crate) enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: Read> Decoder<BufReader<R>> {
    pub(crate) fn new(inner: R) -> io::Result<Self> {
        let mut inner = BufReader::with_capacity(READ_BUFFER, inner);
        Ok(match Compression::of(inner.fill_buf()?) {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(inner))),
            Compression::Zstd => Self::Zstd(zstd::stream::read::Decoder::with_buffer(inner)?),
        })
    }

    fn into_inner(self) -> BufReader<R> {
        match self {
            Self::Plain(inner) => inner,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
            Self::Zstd(decoder) => decoder.read(buf),
        }
    }
}

/// What a layer is known to be before it is read.
pub(crate) struct Expected {
    /// What to call it in errors: a digest, a member's name.
    pub(crate) layer: String,
    /// Digest of the bytes as they come.
    pub(crate) blob: Option<Digest>,
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Option<Digest>,
}

/// Unpacks a layer from `reader` and commits it, if all of its digests are right.
pub(crate) fn ingest(
    store: &Store,
    reader: impl Read + Send,
    expected: &Expected,
    meter: Meter,
) -> Result<Layer, IngestError> {
    let scratch = store.scratch()?;
    let dir = scratch.path().join("layer");
    fs::create_dir(&dir).map_err(|source| StoreError::MakeDir { path: dir.clone(), source })?;
    let split = scratch.path().join("split");
    let create = |source| StoreError::Write { path: split.clone(), source };
    let recorder = Recorder::create(&split, &scratch.path().join("lost")).map_err(create)?;
    let diff_id = unpack_verified(reader, &dir, recorder, expected, meter)?;
    let facts = take_stock(&dir, &expected.layer)?;
    Ok(store.commit_layer(&dir, &diff_id, facts, Some(&split))?)
}

pub(crate) fn take_stock(dir: &Path, layer: &str) -> Result<Facts, IngestError> {
    survey(dir).map_err(|source| IngestError::Survey { layer: layer.to_owned(), source })
}

fn unpack_verified(
    reader: impl Read + Send,
    dir: &Path,
    recorder: Recorder,
    expected: &Expected,
    meter: Meter,
) -> Result<Digest, IngestError> {
    let layer = || expected.layer.clone();
    let decompress = |source| IngestError::Decompress { layer: layer(), source };
    // Whoever downloaded it has hashed it on the way.
    let hasher = expected.blob.as_ref().map(|_| Hasher::new());
    let decoder = Decoder::new(Metered { inner: reader, hasher, meter }).map_err(decompress)?;
    let (decoder, diff_id, ended, recorder) = std::thread::scope(|scope| {
        let ahead = Ahead::spawn(scope, decoder).map_err(decompress)?;
        let mut tar = TarReader::recording(ahead, recorder);
        let unpacked = unpack(&mut tar, dir).map_err(|source| match source {
            UnpackError::Tar(TarError::Read { source, .. }) => decompress(source),
            source => IngestError::Unpack { layer: layer(), source },
        });
        let ended = tar.saw_end_marker();
        let (mut ahead, recorder) = tar.into_parts();
        // The digests are those of everything, the padding after the end marker included.
        let recorded = unpacked.and_then(|()| {
            let mut recorder = recorder.ok_or_else(|| IngestError::NoEnd { layer: layer() })?;
            io::copy(&mut ahead, &mut recorder).map_err(decompress)?;
            Ok(recorder)
        });
        let (decoder, diff_id) = ahead.finish();
        recorded.map(|recorder| (decoder, diff_id, ended, recorder))
    })?;
    let mut rest = decoder.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(decompress)?;
    let blob = rest.into_inner().hasher.map(Hasher::finish);
    if let (Some(expected), Some(actual)) = (expected.blob.clone(), blob)
        && expected != actual
    {
        return Err(IngestError::BlobDigest { layer: layer(), expected, actual });
    }
    if let Some(expected) = expected.diff_id.clone().filter(|e| *e != diff_id) {
        return Err(IngestError::DiffId { layer: layer(), expected, actual: diff_id });
    }
    if expected.diff_id.is_none() && !ended {
        return Err(IngestError::NoEnd { layer: layer() });
    }
    recorder.finish(dir).map_err(|source| IngestError::Split { layer: layer(), source })?;
    Ok(diff_id)
}

/// Opens a file of the store's own scratch directory.
pub(crate) fn open(path: &Path) -> Result<File, StoreError> {
    File::open(path).map_err(|source| StoreError::Read { path: path.to_owned(), source })
}

struct Metered<R> {
    inner: R,
    hasher: Option<Hasher>,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..n]);
        }
        self.meter.add(n as u64);
        Ok(n)
    }
}
