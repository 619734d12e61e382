//! Exporting: images, and what the build cache knows, as a tar of an OCI layout or in `docker save`'s format.
//!
//! Layers go as they came, uncompressed: their digest in the layout is then their diff id, the same on every machine, and
//! length and digest of every member are known before the first byte is written. So nothing is copied aside, the table of
//! contents comes first, and the same export gives the same bytes. Whoever wants it smaller compresses the whole; imports
//! take that.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::Arc;

use berth_types::error::Kind;
use berth_types::image::ArchiveFormat;
use serde_json::{Value, json};

use crate::cache::{BuildCache, CACHE_CONFIG_TYPE, CACHE_TYPE};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, Layer, Platform};
use crate::images::Images;
use crate::original::{original_length, write_original};
use crate::reference::Reference;
use crate::store::{Pin, Store, StoreError};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why images cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing was asked for.
    #[error("no image is named that should be exported")]
    Nothing,
    /// A format that cannot hold it.
    #[error("{what} cannot be exported as {format}")]
    Format {
        /// What.
        what: &'static str,
        /// The format.
        format: &'static str,
    },
    /// The archive cannot be written: whoever reads it went away, or the disk is full.
    #[error("cannot write the archive")]
    Write {
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl ExportError {
    pub(crate) fn facts(&self) -> (&'static str, Kind) {
        match self {
            Self::Nothing | Self::Format { .. } => ("bad_export", Kind::User),
            Self::Write { .. } => ("export_broken_off", Kind::Unavailable),
        }
    }
}

/// What is to be written, all of it in the store and kept there. See [`Images::export`].
#[derive(Debug)]
pub struct Export {
    store: Arc<Store>,
    images: Vec<Exported>,
    docker: bool,
    cache: Option<(BuildCache, crate::store::Hold)>,
}

/// One image, by the names that it is exported with.
#[derive(Debug)]
struct Exported {
    pin: Pin,
    references: Vec<String>,
}

impl Exported {
    fn image(&self) -> &Image {
        self.pin.image()
    }
}

/// A member of the archive.
enum Member {
    Bytes(String, Vec<u8>),
    Layer(String, Layer, u64),
}

impl Images {
    /// Prepares an export of images by reference or id: one that is named by a reference has that one in the archive, one
    /// by id all of its references. `cache` comes from [`Images::build_cache`].
    ///
    /// # Errors
    /// For names that lead to no image, and what the format cannot hold.
    pub fn export(
        &self,
        names: &[String],
        format: Option<ArchiveFormat>,
        cache: Option<(BuildCache, crate::store::Hold)>,
    ) -> Result<Export, Error> {
        let docker = match format {
            None | Some(ArchiveFormat::OciArchive) => false,
            Some(ArchiveFormat::DockerArchive) => true,
            Some(ArchiveFormat::Rootfs) => {
                return Err(ExportError::Format { what: "an image", format: "rootfs" }.into());
            }
        };
        if docker && cache.is_some() {
            return Err(ExportError::Format { what: "a build cache", format: "docker-archive" }.into());
        }
        if names.is_empty() && cache.is_none() {
            return Err(ExportError::Nothing.into());
        }
        let mut images: Vec<Exported> = Vec::new();
        for name in names {
            let image = self.resolve(name)?.ok_or_else(|| StoreError::NoImage { name: name.clone() })?;
            let pin = self.pin(&image.id)?;
            let by_name = name.parse::<Reference>().ok().map(|reference| reference.to_string());
            let references = match by_name.filter(|name| image.references.contains(name)) {
                Some(reference) => vec![reference],
                None => image.references.clone(),
            };
            match images.iter_mut().find(|other| other.image().id == image.id) {
                Some(other) => {
                    other.references.extend(references);
                    other.references.sort();
                    other.references.dedup();
                }
                None => images.push(Exported { pin, references }),
            }
        }
        Ok(Export { store: Arc::clone(self.store()), images, docker, cache })
    }
}

impl Export {
    /// Writes the archive; blocks. When this fails, what was written is no archive.
    ///
    /// # Errors
    /// When the writer fails, or a layer is not what it was.
    pub fn write<W: Write>(&self, out: W) -> Result<W, Error> {
        let written = self.write_members(out);
        written.map_err(|error| error.at(self.store.root()))
    }

    fn write_members<W: Write>(&self, mut out: W) -> Result<W, Error> {
        let members = if self.docker { self.docker_members()? } else { self.oci_members()? };
        let failed = |source| ExportError::Write { source };
        for member in members {
            match member {
                Member::Bytes(name, bytes) => {
                    out.write_all(&header(&name, bytes.len() as u64)).map_err(failed)?;
                    out.write_all(&bytes).map_err(failed)?;
                    pad(&mut out, bytes.len() as u64).map_err(failed)?;
                }
                Member::Layer(name, layer, length) => {
                    out.write_all(&header(&name, length)).map_err(failed)?;
                    // Its digest is compared at the end, and with that its length.
                    out = write_original(&self.store, &layer, out)?;
                    pad(&mut out, length).map_err(failed)?;
                }
            }
        }
        out.write_all(&[0; 1024]).map_err(failed)?;
        out.flush().map_err(failed)?;
        Ok(out)
    }

    fn docker_members(&self) -> Result<Vec<Member>, Error> {
        let layer_name = |diff_id: &Digest| format!("{}/layer.tar", diff_id.hex());
        let table: Vec<Value> = self
            .images
            .iter()
            .map(|exported| {
                let image = exported.image();
                let layers: Vec<String> = image.layers.iter().map(|l| layer_name(&l.diff_id)).collect();
                json!({
                    "Config": format!("{}.json", image.id.hex()),
                    "RepoTags": exported.references,
                    "Layers": layers,
                })
            })
            .collect();
        let mut members = Vec::new();
        for exported in &self.images {
            let image = exported.image();
            members.push(Member::Bytes(format!("{}.json", image.id.hex()), image.raw_config().to_vec()));
        }
        for layer in self.layers() {
            let length = original_length(&self.store, &layer)?;
            members.push(Member::Layer(layer_name(&layer.diff_id), layer, length));
        }
        // First, so that what it is shows at once.
        members.insert(0, Member::Bytes("manifest.json".into(), Value::from(table).to_string().into_bytes()));
        Ok(members)
    }

    fn oci_members(&self) -> Result<Vec<Member>, Error> {
        let mut layers = Vec::new();
        for layer in self.layers() {
            let length = original_length(&self.store, &layer)?;
            layers.push((layer, length));
        }
        let descriptor = |diff_id: &Digest| {
            let size = layers.iter().find(|(layer, _)| layer.diff_id == *diff_id).map(|(_, length)| *length);
            json!({ "mediaType": LAYER_TYPE, "digest": diff_id, "size": size })
        };
        let mut blobs = Blobs::default();
        let mut entries = Vec::new();
        for exported in &self.images {
            let image = exported.image();
            let descriptors: Vec<Value> = image.layers.iter().map(|l| descriptor(&l.diff_id)).collect();
            let config = blobs.add(CONFIG_TYPE, image.raw_config().to_vec());
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": descriptors,
            });
            let mut entry = blobs.add(MANIFEST_TYPE, manifest.to_string().into_bytes());
            entry["platform"] = platform(&image.platform);
            if exported.references.is_empty() {
                entries.push(entry.clone());
            }
            for reference in &exported.references {
                let mut named = entry.clone();
                named["annotations"] = json!({
                    "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference,
                });
                entries.push(named);
            }
        }
        if let Some((cache, _)) = &self.cache {
            let descriptors: Vec<Value> = cache.diff_ids().iter().map(descriptor).collect();
            let config = blobs.add(CACHE_CONFIG_TYPE, cache.to_config());
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": CACHE_TYPE,
                "config": config, "layers": descriptors,
            });
            let mut entry = blobs.add(MANIFEST_TYPE, manifest.to_string().into_bytes());
            entry["artifactType"] = CACHE_TYPE.into();
            entries.push(entry);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries });
        let mut members = vec![
            Member::Bytes("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            Member::Bytes("index.json".into(), index.to_string().into_bytes()),
        ];
        members.extend(blobs.members.into_iter().map(|(digest, bytes)| Member::Bytes(blob(&digest), bytes)));
        members.extend(
            layers.into_iter().map(|(layer, length)| Member::Layer(blob(&layer.diff_id), layer, length)),
        );
        Ok(members)
    }

    /// Every layer once, in the order in which images name them.
    fn layers(&self) -> Vec<Layer> {
        let mut seen = BTreeSet::new();
        let of_images = self.images.iter().flat_map(|exported| exported.image().layers.iter().cloned());
        let cached = self.cache.iter().flat_map(|(cache, _)| cache.diff_ids());
        let of_cache = cached.filter_map(|diff_id| self.store.layer(diff_id));
        of_images.chain(of_cache).filter(|layer| seen.insert(layer.diff_id.clone())).collect()
    }
}

#[derive(Default)]
struct Blobs {
    members: Vec<(Digest, Vec<u8>)>,
}

impl Blobs {
    /// Adds a blob; the result is its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let (digest, size) = (Digest::of(&bytes), bytes.len());
        if !self.members.iter().any(|(other, _)| *other == digest) {
            self.members.push((digest.clone(), bytes));
        }
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }
}

fn platform(platform: &Platform) -> Value {
    let mut fields = json!({ "os": platform.os, "architecture": platform.architecture });
    if let Some(variant) = platform.variant.as_deref().filter(|variant| !variant.is_empty()) {
        fields["variant"] = variant.into();
    }
    fields
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(name: &str, length: u64) -> [u8; 512] {
    // GNU's form: sizes beyond 8 GiB need it. All names are short.
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len().min(100)].copy_from_slice(&name.as_bytes()[..name.len().min(100)]);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length);
    header.set_cksum();
    *header.as_bytes()
}

fn pad(out: &mut impl Write, length: u64) -> io::Result<()> {
    out.write_all(&[0; 512][..((512 - length % 512) % 512) as usize])
}
