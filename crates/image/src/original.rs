//! A layer's tar as it came, bit for bit: what a push and an export send, and what a deep verification compares.

use std::io::Write;

use berth_types::error::Kind;

use crate::digest::{Digest, Hashing};
use crate::image::{Layer, Original};
use crate::layer::pack::{PackError, Tidy, pack, packed_length};
use crate::layer::split::{self, SplitError};
use crate::store::Store;

/// Why a layer's original tar cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum OriginalError {
    /// It came into the store when that was not kept.
    #[error(
        "layer {diff_id} came into the store before the headers of its tar were kept, and cannot be given as it was"
    )]
    NotKept {
        /// The layer.
        diff_id: Digest,
    },
    /// The layer is not what it was.
    #[error("layer {diff_id} is damaged: its tar now has digest {actual}")]
    Damaged {
        /// The layer.
        diff_id: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// Its headers or one of its files cannot be read, or the tar not be written.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// One of its files cannot be read, or the tar not be written.
    #[error(transparent)]
    Pack(#[from] PackError),
}

impl OriginalError {
    pub(crate) fn facts(&self) -> (&'static str, Kind) {
        match self {
            Self::NotKept { .. } => ("layer_not_kept", Kind::User),
            _ => ("image_store", Kind::Internal),
        }
    }
}

/// Writes the tar that the layer came as. Its digest is compared at the end: the writer has all of a wrong tar when this fails.
pub(crate) fn write_original<W: Write>(store: &Store, layer: &Layer, out: W) -> Result<W, OriginalError> {
    let dir = store.layers_dir().join(&layer.name);
    let out = Hashing::new(out);
    let out = match layer.original {
        Some(Original::Split) => split::write_original(&dir, &store.split_of(layer), out)?,
        Some(Original::Canonical) | None => pack(&dir, Tidy::No, out)?,
    };
    let (out, actual, _) = out.finish();
    let diff_id = layer.diff_id.clone();
    match (actual == layer.diff_id, layer.original) {
        (true, _) => Ok(out),
        (false, None) => Err(OriginalError::NotKept { diff_id }),
        (false, Some(_)) => Err(OriginalError::Damaged { diff_id, actual }),
    }
}

/// Length of that tar, in bytes.
pub(crate) fn original_length(store: &Store, layer: &Layer) -> Result<u64, OriginalError> {
    Ok(match layer.original {
        Some(Original::Split) => split::length(&store.split_of(layer))?,
        Some(Original::Canonical) | None => packed_length(&store.layers_dir().join(&layer.name))?,
    })
}
