//! Importing archives: `docker save`'s format, OCI layouts, plain root file systems; each plain, gzip or zstd.
//!
//! The archive is written to a file first, since its table of contents may come last. What it is, is told by its members:
//! `manifest.json`, if it is such a table, makes it Docker's, `index.json` with `oci-layout` OCI's (Docker's own archives have both, and Docker's
//! table knows the names), anything else a root file system.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_types::error::Kind as ErrorKind;
use berth_types::image::ArchiveFormat;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::archive::{Archive, LayerMember, MAX_MEMBERS, Planned, is_docker_table};
use crate::cache::{BuildCache, CacheRow};
use crate::digest::{Digest, DigestError};
use crate::error::Error;
use crate::image::{Image, parse_config};
use crate::images::Images;
use crate::ingest::{Compression, Decoder, Expected, ingest, open};
use crate::layer::tar_reader::{Kind, TarError, TarReader};
use crate::manifest::NoPlatform;
use crate::progress::{Meter, Reporter};
use crate::pull::check_platform;
use crate::reference::{Reference, ReferenceError};
use crate::store::{Hold, Store, StoreError};

pub(crate) const SPOOL_BUFFER: usize = 256 * 1024;

/// What an archive is to become.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Reference for the image; the archive's own when absent.
    pub reference: Option<String>,
    /// What the archive is; told from its members when absent.
    pub format: Option<ArchiveFormat>,
}

/// Why an archive cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The upload broke off, or could not be kept.
    #[error("cannot receive the archive")]
    Receive {
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A compressed archive cannot be uncompressed.
    #[error("cannot decompress the archive ({compression})")]
    Decompress {
        /// How it is compressed.
        compression: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// There is nothing in it.
    #[error("the archive is empty")]
    Empty,
    /// It is no tar.
    #[error("the archive is not a readable tar")]
    NotTar {
        /// Cause.
        #[source]
        source: TarError,
    },
    /// More members than an image archive has.
    #[error("the archive has more than {MAX_MEMBERS} members, too many for an image archive")]
    TooManyMembers,
    /// A member that another one names is missing.
    #[error("the archive has no member {member:?}, which {named_by} names")]
    Missing {
        /// The member.
        member: String,
        /// Who names it.
        named_by: String,
    },
    /// A member is too long to be what it should be.
    #[error("member {member:?} is {size} bytes long; at most {limit} are read")]
    TooLong {
        /// The member.
        member: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A member cannot be read.
    #[error("cannot read member {member:?}")]
    Read {
        /// The member.
        member: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A table of contents is not what it should be.
    #[error("member {member:?} is malformed")]
    Malformed {
        /// The member.
        member: String,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// A member does not have the digest that it is named by.
    #[error("member {member:?} has digest {actual} instead of {expected}")]
    MemberDigest {
        /// The member.
        member: String,
        /// The digest it is named by.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A digest in a member is none.
    #[error("member {member:?} names a bad digest")]
    Digest {
        /// The member.
        member: String,
        /// What is wrong.
        #[source]
        source: DigestError,
    },
    /// Config and layers disagree.
    #[error("member {member:?} names {layers} layers, and the image's config {config}")]
    LayerCount {
        /// The member that names layers.
        member: String,
        /// How many.
        layers: usize,
        /// How many the config names.
        config: usize,
    },
    /// Something in an index that is no image.
    #[error("member {member:?} is of unsupported media type {media_type:?}")]
    MediaType {
        /// The member.
        member: String,
        /// Its type.
        media_type: String,
    },
    /// The images are for other machines.
    #[error(transparent)]
    Platform(#[from] NoPlatform),
    /// The archive names no reference, or only a tag.
    #[error("{what} of the archive has no reference")]
    NoReference {
        /// Which image.
        what: String,
    },
    /// The archive's own reference is bad.
    #[error("the archive gives an image a bad reference")]
    Reference {
        /// What is wrong.
        #[source]
        source: ReferenceError,
    },
    /// One reference was given for several images.
    #[error("the archive holds {count} images ({}), which cannot all be called {reference}", names.join(", "))]
    SeveralImages {
        /// The reference.
        reference: String,
        /// How many images there are.
        count: usize,
        /// What they are called.
        names: Vec<String>,
    },
}

impl ImportError {
    pub(crate) fn facts(&self) -> (&'static str, ErrorKind) {
        match self {
            Self::Receive { .. } => ("import_broken_off", ErrorKind::Unavailable),
            Self::Platform(_) => ("wrong_platform", ErrorKind::User),
            Self::NoReference { .. } => ("import_without_reference", ErrorKind::User),
            _ => ("bad_archive", ErrorKind::User),
        }
    }
}

/// What was in an archive, and is in the store now.
#[derive(Debug)]
pub struct Imported {
    /// One, except for an archive of Docker's or OCI's with several, or with nothing but a build cache.
    pub images: Vec<Image>,
    /// The rows of the archive's build cache whose layers and images are here. See [`crate::CacheRow`] for what taking them
    /// means.
    pub cache: Vec<CacheRow>,
    /// Keeps the build cache's layers until the rows are taken.
    pub hold: Hold,
}

impl Images {
    /// Imports the images of an archive; a build cache in it is left out.
    pub async fn import(
        &self,
        reader: impl AsyncRead + Send,
        options: ImportOptions,
        reporter: Reporter,
    ) -> Result<Vec<Image>, Error> {
        let imported = self.receive_and_import(reader, options, false, reporter).await;
        Ok(imported.map_err(|error| error.at(self.store().root()))?.images)
    }

    /// Imports all of an archive: its images, and the layers of its build cache.
    pub async fn import_all(
        &self,
        reader: impl AsyncRead + Send,
        options: ImportOptions,
        reporter: Reporter,
    ) -> Result<Imported, Error> {
        let result = self.receive_and_import(reader, options, true, reporter).await;
        result.map_err(|error| error.at(self.store().root()))
    }

    async fn receive_and_import(
        &self,
        reader: impl AsyncRead + Send,
        options: ImportOptions,
        with_cache: bool,
        reporter: Reporter,
    ) -> Result<Imported, Error> {
        let reference = options.reference.as_deref().map(str::parse::<Reference>).transpose()?;
        let scratch = self.blocking(|store| Ok(store.scratch()?)).await?;
        let spool = scratch.path().join("archive");
        receive(reader, &spool, &reporter).await?;
        let (images, cache, hold) = self
            .blocking(move |store| {
                let work =
                    Import { store, scratch: scratch.path(), reference, with_cache, reporter: &reporter };
                work.run(spool, options.format)
            })
            .await?;
        // Only now are all images here that rows may speak of.
        let cache = self.usable(cache.map(BuildCache::into_rows).unwrap_or_default());
        Ok(Imported { images, cache, hold })
    }
}

async fn receive(reader: impl AsyncRead, spool: &Path, reporter: &Reporter) -> Result<(), Error> {
    let keep = |source| StoreError::Write { path: spool.to_owned(), source };
    let mut reader = std::pin::pin!(reader);
    let mut file = tokio::fs::File::create(spool).await.map_err(keep)?;
    let mut meter = Meter::start(reporter, "archive", "receive", None);
    let mut buffer = vec![0; SPOOL_BUFFER];
    loop {
        let n = reader.read(&mut buffer).await.map_err(|source| ImportError::Receive { source })?;
        if n == 0 {
            file.flush().await.map_err(keep)?;
            return Ok(());
        }
        file.write_all(&buffer[..n]).await.map_err(keep)?;
        meter.add(n as u64);
    }
}

/// One import, once the archive is a file.
struct Import<'a> {
    store: &'a Arc<Store>,
    scratch: &'a Path,
    reference: Option<Reference>,
    with_cache: bool,
    reporter: &'a Reporter,
}

impl Import<'_> {
    fn run(
        self,
        spool: PathBuf,
        format: Option<ArchiveFormat>,
    ) -> Result<(Vec<Image>, Option<BuildCache>, Hold), Error> {
        let format = match format {
            Some(format) => format,
            None => detect(&spool)?,
        };
        if format == ArchiveFormat::Rootfs {
            return self.rootfs(&spool).map(|image| (vec![image], None, Hold::default()));
        }
        let archive = Archive::open(self.uncompressed(spool)?)?;
        let (planned, cache) = match format {
            ArchiveFormat::DockerArchive => (archive.plan_docker()?, None),
            _ => archive.plan_oci()?,
        };
        let planned = self.named(planned)?;
        let images =
            planned.iter().map(|image| self.perform(&archive, image)).collect::<Result<Vec<_>, _>>()?;
        let Some((cache, layers)) = cache.filter(|_| self.with_cache) else {
            return Ok((images, None, Hold::default()));
        };
        let hold = self.store.hold(cache.diff_ids());
        for (diff_id, layer) in cache.diff_ids().iter().zip(&layers) {
            self.layer(&archive, diff_id, layer, "the build cache")?;
        }
        Ok((images, Some(cache), hold))
    }

    fn layer(
        &self,
        archive: &Archive,
        diff_id: &Digest,
        (member, blob): &LayerMember,
        named_by: &str,
    ) -> Result<(), Error> {
        if self.store.layer(diff_id).is_some() {
            return Ok(());
        }
        let reader = archive.reader(member, named_by)?;
        let meter = Meter::start(self.reporter, diff_id.short(), "unpack", Some(reader.limit()));
        let expected = Expected {
            layer: format!("member {member:?}"),
            blob: blob.clone(),
            diff_id: Some(diff_id.clone()),
        };
        ingest(self.store, reader, &expected, meter)?;
        Ok(())
    }

    fn rootfs(&self, spool: &Path) -> Result<Image, Error> {
        let reference = self.reference.as_ref();
        let reference = reference.ok_or(ImportError::NoReference { what: "the root file system".into() })?;
        import_rootfs(self.store, spool, reference, serde_json::Map::new(), self.reporter)
    }

    /// Members of a compressed tar cannot be found again: it is uncompressed into a file of its own.
    fn uncompressed(&self, spool: PathBuf) -> Result<PathBuf, Error> {
        let compression = compression_of(&spool)?;
        if compression == Compression::None {
            return Ok(spool);
        }
        let failed = |source| ImportError::Decompress { compression: compression.to_string(), source };
        let mut decoder = Decoder::new(open(&spool)?).map_err(failed)?;
        let path = self.scratch.join("uncompressed");
        let keep = |source| StoreError::Write { path: path.clone(), source };
        let mut out = File::create(&path).map_err(keep)?;
        let mut buffer = vec![0; SPOOL_BUFFER];
        loop {
            match decoder.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => out.write_all(&buffer[..n]).map_err(keep)?,
            }
        }
        std::fs::remove_file(&spool).map_err(|source| StoreError::Remove { path: spool.clone(), source })?;
        Ok(path)
    }

    /// Gives the images the caller's reference, or makes sure that each has one of its own.
    fn named(&self, mut planned: Vec<Planned>) -> Result<Vec<Planned>, ImportError> {
        if let Some(reference) = self.reference.as_ref().filter(|_| !planned.is_empty()) {
            let names: Vec<String> = planned.iter().map(|p| p.name.clone()).collect();
            let [one] = planned.as_mut_slice() else {
                let (reference, count) = (reference.to_string(), names.len());
                return Err(ImportError::SeveralImages { reference, count, names });
            };
            one.references = vec![reference.to_string()];
        }
        match planned.iter().find(|p| p.references.is_empty()) {
            Some(nameless) => Err(ImportError::NoReference { what: nameless.name.clone() }),
            None => Ok(planned),
        }
    }

    fn perform(&self, archive: &Archive, image: &Planned) -> Result<Image, Error> {
        let id = Digest::of(&image.config);
        let config = parse_config(&image.config).map_err(|source| StoreError::Config { id, source })?;
        check_platform(&image.name, &config).map_err(ImportError::from)?;
        let _hold = self.store.hold(&config.diff_ids);
        for (diff_id, layer) in config.diff_ids.iter().zip(&image.layers) {
            self.layer(archive, diff_id, layer, &image.name)?;
        }
        Ok(self.store.put_image(image.config.clone(), &image.references)?)
    }
}

/// Unpacks a root file system as the one layer of a new image; `config` has what goes beside `rootfs`.
pub(crate) fn import_rootfs(
    store: &Store,
    tar: &Path,
    reference: &Reference,
    config: serde_json::Map<String, serde_json::Value>,
    reporter: &Reporter,
) -> Result<Image, Error> {
    let file = open(tar)?;
    let total = file.metadata().ok().map(|m| m.len());
    if total == Some(0) {
        return Err(ImportError::Empty.into());
    }
    let meter = Meter::start(reporter, "root file system", "unpack", total);
    let expected = Expected { layer: "the root file system".into(), blob: None, diff_id: None };
    let layer = ingest(store, file, &expected, meter)?;
    let config = crate::images::complete_config(config, &[layer.diff_id]);
    Ok(store.put_image(config, &[reference.to_string()])?)
}

fn compression_of(path: &Path) -> Result<Compression, Error> {
    let mut head = [0u8; 4];
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let n = open(path)?.read(&mut head).map_err(failed)?;
    match n {
        0 => Err(ImportError::Empty.into()),
        n => Ok(Compression::of(&head[..n])),
    }
}

/// Reads members until it is clear what the archive is. What an image archive calls its layers and configs, and whether its
/// table comes before or after them, is its writer's choice: only a directory that belongs to a system decides at once.
fn detect(spool: &Path) -> Result<ArchiveFormat, Error> {
    let compression = compression_of(spool)?.to_string();
    let failed = |source| ImportError::Decompress { compression: compression.clone(), source };
    let mut tar = TarReader::new(Decoder::new(open(spool)?).map_err(failed)?);
    let broken = |source| match source {
        TarError::Read { source, .. } => failed(source),
        source => ImportError::NotTar { source },
    };
    let mut seen = Seen::default();
    loop {
        let member = match tar.next() {
            Ok(Some(member)) => member,
            Err(error) if seen.members == 0 => return Err(broken(error).into()),
            // What is broken further on is told by whoever reads it as what it is so far.
            Ok(None) | Err(_) => return Ok(seen.format()?),
        };
        seen.members += 1;
        let name = plain_name(&member.path);
        let is_file = !matches!(member.kind, Kind::Dir);
        match name.as_str() {
            "manifest.json" if is_file => {
                seen.table = Some(is_docker_table(&mut tar, member.size).map_err(broken)?);
            }
            "index.json" if is_file => seen.index = true,
            "oci-layout" if is_file => seen.layout = true,
            name if is_of_a_system(name) => return Ok(ArchiveFormat::Rootfs),
            name => seen.others |= !is_image_member(name),
        }
        if seen.members > MAX_MEMBERS {
            return Ok(ArchiveFormat::Rootfs);
        }
    }
}

/// What [`detect`] has seen of an archive.
#[derive(Default)]
struct Seen {
    members: usize,
    /// Whether `manifest.json`, where it is there, is Docker's table.
    table: Option<bool>,
    index: bool,
    layout: bool,
    /// Whether there are members whose names say nothing.
    others: bool,
}

impl Seen {
    fn format(&self) -> Result<ArchiveFormat, ImportError> {
        if self.members == 0 {
            return Err(ImportError::Empty);
        }
        Ok(match self {
            // A table that cannot be read is told as such where all else is as in an image archive.
            Self { table: Some(is_docker), others, .. } if *is_docker || !others => {
                ArchiveFormat::DockerArchive
            }
            Self { index: true, layout, others, .. } if *layout || !others => ArchiveFormat::OciArchive,
            _ => ArchiveFormat::Rootfs,
        })
    }
}

/// Whether a root file system has a directory of this name, and an image archive nothing of the sort.
fn is_of_a_system(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    matches!(
        first,
        "bin" | "dev" | "etc" | "home" | "lib" | "lib64" | "opt" | "proc" | "root" | "run" | "sbin"
    ) || matches!(first, "srv" | "sys" | "tmp" | "usr" | "var")
}

/// Whether an image archive, rather than anything else, has a member of this name.
fn is_image_member(name: &str) -> bool {
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let first = name.split('/').next().unwrap_or_default();
    let stem = first.split('.').next().unwrap_or_default();
    matches!(first, "" | "blobs" | "repositories") || hex(stem)
}

pub(crate) fn plain_name(path: &[u8]) -> String {
    let name = String::from_utf8_lossy(path);
    name.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/")
}
