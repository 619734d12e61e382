//! Images: getting them, verifying them, keeping them.
//!
//! What it is for: a store of images and unpacked layers, each named by its digest, and every way into it: a registry
//! ([`Images::pull`]), an archive ([`Images::import`]), a Debian mirror ([`Images::bootstrap`]), a build's step
//! ([`Images::adopt_layer`], [`Images::create_image`]). Layers are directories that overlayfs mounts as they are.
//!
//! ```text
//!   registry ──► blob file ─┐
//!   archive ───► spool ─────┼─► ingest: decompress → hash → unpack → verify → sync → rename ─► layers/<24 hex>/
//!   mirror ────► tar ───────┘                                                                  layers/<24 hex>.json
//!   build's upper directory ──► pack (hash only) → tidy ────────────────► sync → rename ───┘
//! ```
//!
//! What it refuses: content whose digest is not the one it was asked for by; layers with members that would leave the
//! layer's root, or that overlayfs would misread; images for other machines; digests other than sha256.
//!
//! How it fails: with [`Error`], whose [`Error::kind`] says whose fault it is. After any failure, a crash or a full disk included, the
//! store holds what it held before, and perhaps whole layers that no image names yet.
//!
//! Where to start reading: `images.rs` for the handle, `store.rs` for what is on disk, `ingest.rs` and `layer/unpack.rs`
//! for the way in.

mod apt_sources;
mod archive;
mod bootstrap;
mod cache;
mod cache_registry;
mod config;
mod digest;
mod error;
mod export;
mod flights;
mod image;
mod images;
mod import;
mod ingest;
mod layer;
mod manifest;
mod original;
mod pipeline;
mod progress;
mod prune;
mod pull;
mod push;
mod reference;
mod registry;
mod store;
mod verify;

pub use bootstrap::{BootstrapError, BootstrapOptions};
pub use cache::{BuildCache, CACHE_TYPE, CacheError, CacheRow};
pub use config::{ConfigError, RegistryConfig};
pub use digest::{Digest, DigestError};
pub use error::Error;
pub use export::{Export, ExportError};
pub use flights::{FlightError, Flights, Flying};
pub use image::{Image, Layer, Original, Platform};
pub use images::{Images, Options};
pub use import::{ImportError, ImportOptions, Imported};
pub use ingest::IngestError;
pub use layer::pack::PackError;
pub use layer::split::SplitError;
pub use layer::tar_reader::TarError;
pub use layer::unpack::UnpackError;
pub use layer::walk::WalkError;
pub use manifest::NoPlatform;
pub use original::OriginalError;
pub use progress::Reporter;
pub use pull::PullError;
pub use push::{PushError, Pushed};
pub use reference::{Reference, ReferenceError, Version};
pub use registry::error::{Asked, Trouble};
pub use registry::{Auth, RegistryError};
pub use store::{Hold, Pin, StoreError};
