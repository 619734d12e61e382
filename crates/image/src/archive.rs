//! Reading an image archive: where its members lie, and what its table of contents says.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::Deserialize;

use crate::cache::{BuildCache, CACHE_TYPE, MAX_CACHE_CONFIG};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Platform, parse_config};
use crate::import::{ImportError, SPOOL_BUFFER, plain_name};
use crate::ingest::open;
use crate::layer::tar_reader::{Kind, Member, TarError, TarReader};
use crate::manifest::{self, Entry, Manifest, choose, is_layer_type};
use crate::reference::Reference;
use crate::store::{MAX_CONFIG, StoreError};

/// Longest chain of links between members of an archive.
const MAX_LINKS: usize = 8;
/// Most members of an image archive; a real one has a few per layer.
pub(crate) const MAX_MEMBERS: usize = 100_000;

/// An image of an archive, before its layers are unpacked.
pub(crate) struct Planned {
    /// What to call it in errors.
    pub(crate) name: String,
    pub(crate) config: Vec<u8>,
    /// Member of each layer, and its digest where the archive says it.
    pub(crate) layers: Vec<LayerMember>,
    pub(crate) references: Vec<String>,
}

/// An uncompressed tar, and where its members lie.
pub(crate) struct Archive {
    path: PathBuf,
    members: BTreeMap<String, Member>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct OciIndex {
    manifests: Vec<IndexEntry>,
}

#[derive(Deserialize)]
struct IndexEntry {
    #[serde(default, rename = "artifactType")]
    artifact_type: Option<String>,
    #[serde(flatten)]
    entry: Entry,
}

/// A layer's member, and its digest where the archive says it.
pub(crate) type LayerMember = (String, Option<Digest>);

/// A build cache of an archive, and the members of its layers.
pub(crate) type PlannedCache = (BuildCache, Vec<LayerMember>);

impl Archive {
    pub(crate) fn open(path: PathBuf) -> Result<Self, Error> {
        let mut members = BTreeMap::new();
        let mut tar = TarReader::new(io::BufReader::with_capacity(SPOOL_BUFFER, open(&path)?));
        while let Some(member) = tar.next().map_err(|source| ImportError::NotTar { source })? {
            if members.len() >= MAX_MEMBERS {
                return Err(ImportError::TooManyMembers.into());
            }
            members.insert(plain_name(&member.path), member);
        }
        Ok(Self { path, members })
    }

    /// A member's bytes; links between members are followed (older Docker links layers that occur twice).
    pub(crate) fn reader(&self, name: &str, named_by: &str) -> Result<io::Take<File>, Error> {
        let mut current = plain_name(name.as_bytes());
        for _ in 0..MAX_LINKS {
            let Some(member) = self.members.get(&current) else { break };
            match member.kind {
                Kind::File => return self.range(member),
                Kind::HardLink => current = plain_name(&member.link),
                Kind::Symlink => current = beside(&current, &member.link),
                _ => break,
            }
        }
        Err(ImportError::Missing { member: name.to_owned(), named_by: named_by.to_owned() }.into())
    }

    fn range(&self, member: &Member) -> Result<io::Take<File>, Error> {
        let mut file = open(&self.path)?;
        let failed = |source| ImportError::Read { member: member.name(), source };
        file.seek(SeekFrom::Start(member.data_offset)).map_err(failed)?;
        Ok(file.take(member.size))
    }

    fn small(&self, name: &str, named_by: &str) -> Result<Vec<u8>, Error> {
        self.small_up_to(name, named_by, MAX_CONFIG)
    }

    fn small_up_to(&self, name: &str, named_by: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let reader = self.reader(name, named_by)?;
        let (member, size) = (name.to_owned(), reader.limit());
        if size > limit {
            return Err(ImportError::TooLong { member, size, limit }.into());
        }
        let mut bytes = Vec::new();
        { reader }.read_to_end(&mut bytes).map_err(|source| ImportError::Read { member, source })?;
        Ok(bytes)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<T, Error> {
        let bytes = self.small(name, "its format")?;
        Ok(serde_json::from_slice(&bytes)
            .map_err(|source| ImportError::Malformed { member: name.to_owned(), source })?)
    }

    pub(crate) fn plan_docker(&self) -> Result<Vec<Planned>, Error> {
        const TABLE: &str = "manifest.json";
        let images: Vec<DockerImage> = self.json(TABLE)?;
        images.into_iter().map(|image| self.plan_docker_image(TABLE, image)).collect()
    }

    fn plan_docker_image(&self, table: &str, image: DockerImage) -> Result<Planned, Error> {
        let config = self.small(&image.config, table)?;
        check_name(&image.config, &config)?;
        let tags = image.repo_tags.unwrap_or_default();
        let layers = image.layers.into_iter().map(|member| {
            let digest = blob_digest(&member);
            (member, digest)
        });
        let planned = Planned {
            name: tags
                .first()
                .map_or_else(|| format!("image {}", image.config), |tag| format!("image {tag}")),
            config,
            layers: layers.collect(),
            references: tags.iter().map(|tag| full_reference(tag)).collect::<Result<_, _>>()?,
        };
        check_count(table, &planned)?;
        Ok(planned)
    }

    pub(crate) fn plan_oci(&self) -> Result<(Vec<Planned>, Option<PlannedCache>), Error> {
        const TABLE: &str = "index.json";
        let index: OciIndex = self.json(TABLE)?;
        let (caches, images): (Vec<IndexEntry>, Vec<IndexEntry>) =
            index.manifests.into_iter().partition(|e| e.artifact_type.as_deref() == Some(CACHE_TYPE));
        let cache = caches.first().map(|cache| self.plan_cache(TABLE, &cache.entry)).transpose()?;
        let images: Vec<Entry> = images.into_iter().map(|image| image.entry).collect();
        let host = Platform::host();
        let for_us: Vec<&Entry> =
            images.iter().filter(|e| e.platform.as_ref().is_none_or(|p| host.runs(p))).collect();
        if for_us.is_empty() && (cache.is_none() || !images.is_empty()) {
            // Fails, and lists what there is.
            choose("the archive", &images, &host).map_err(ImportError::from)?;
        }
        let mut seen = HashSet::new();
        let mut planned = Vec::new();
        for entry in for_us {
            let image = self.plan_oci_image(TABLE, entry)?;
            if seen.insert((Digest::of(&image.config), image.references.clone())) {
                planned.push(image);
            }
        }
        Ok((planned, cache))
    }

    fn plan_cache(&self, table: &str, entry: &Entry) -> Result<PlannedCache, Error> {
        let digest = digest_in(table, &entry.digest)?;
        let member = blob_member(&digest);
        let bytes = self.blob(&digest, table)?;
        let malformed = |source| ImportError::Malformed { member: member.clone(), source };
        let Manifest::Image { config, layers } = manifest::parse(&bytes).map_err(malformed)? else {
            return Err(ImportError::MediaType { member, media_type: "an index".to_owned() }.into());
        };
        let config_digest = digest_in(&member, &config.digest.to_string())?;
        let config_member = blob_member(&config_digest);
        let config = self.small_up_to(&config_member, &member, MAX_CACHE_CONFIG)?;
        check_digest(&config_member, &config_digest, &config)?;
        let cache = BuildCache::from_config(&config, layers.len())?;
        let layers = layers.iter().map(|layer| {
            let digest = digest_in(&member, &layer.digest.to_string())?;
            Ok((blob_member(&digest), Some(digest)))
        });
        Ok((cache, layers.collect::<Result<_, ImportError>>()?))
    }

    fn plan_oci_image(&self, table: &str, entry: &Entry) -> Result<Planned, Error> {
        let annotations = entry.annotations.clone().unwrap_or_default();
        let references = annotated_reference(&annotations)?;
        let name =
            references.first().map_or_else(|| format!("image {}", entry.digest), |r| format!("image {r}"));
        let mut digest = digest_in(table, &entry.digest)?;
        let mut named_by = table.to_owned();
        for _ in 0..2 {
            let member = blob_member(&digest);
            let bytes = self.blob(&digest, &named_by)?;
            let malformed = |source| ImportError::Malformed { member: member.clone(), source };
            match manifest::parse(&bytes).map_err(malformed)? {
                Manifest::Image { config, layers } => {
                    return self.plan_oci_manifest(&member, name, references, &config.digest, &layers);
                }
                Manifest::Index(entries) => {
                    let entry = choose(&name, &entries, &Platform::host()).map_err(ImportError::from)?;
                    digest = digest_in(&member, &entry.digest)?;
                    named_by = member;
                }
                Manifest::Other(media_type) => {
                    return Err(ImportError::MediaType { member, media_type }.into());
                }
            }
        }
        let media_type = "an index within an index".to_owned();
        Err(ImportError::MediaType { member: blob_member(&digest), media_type }.into())
    }

    fn plan_oci_manifest(
        &self,
        member: &str,
        name: String,
        references: Vec<String>,
        config: &str,
        layers: &[manifest::Descriptor],
    ) -> Result<Planned, Error> {
        let config = self.blob(&digest_in(member, config)?, member)?;
        let mut planned = Planned { name, config, layers: Vec::new(), references };
        for layer in layers {
            if !is_layer_type(&layer.media_type) {
                let (member, media_type) = (member.to_owned(), layer.media_type.clone());
                return Err(ImportError::MediaType { member, media_type }.into());
            }
            let digest = digest_in(member, &layer.digest)?;
            planned.layers.push((blob_member(&digest), Some(digest)));
        }
        check_count(member, &planned)?;
        Ok(planned)
    }

    /// A small blob, verified.
    fn blob(&self, digest: &Digest, named_by: &str) -> Result<Vec<u8>, Error> {
        let member = blob_member(digest);
        let bytes = self.small(&member, named_by)?;
        check_digest(&member, digest, &bytes)?;
        Ok(bytes)
    }
}

/// Whether a `manifest.json`, the next of a tar's members, names configs and layers as Docker's does.
pub(crate) fn is_docker_table<R: Read>(tar: &mut TarReader<R>, size: u64) -> Result<bool, TarError> {
    if size > MAX_CONFIG {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match tar.read_data(&mut bytes[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(serde_json::from_slice::<Vec<DockerImage>>(&bytes).is_ok_and(|images| !images.is_empty()))
}

fn beside(name: &str, link: &[u8]) -> String {
    let link = String::from_utf8_lossy(link);
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn blob_member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest in a member's name, where Docker put one there.
fn blob_digest(member: &str) -> Option<Digest> {
    format!("sha256:{}", member.strip_prefix("blobs/sha256/")?).parse().ok()
}

fn digest_in(member: &str, digest: &str) -> Result<Digest, ImportError> {
    digest.parse().map_err(|source| ImportError::Digest { member: member.to_owned(), source })
}

fn check_digest(member: &str, expected: &Digest, bytes: &[u8]) -> Result<(), ImportError> {
    let actual = Digest::of(bytes);
    match actual == *expected {
        true => Ok(()),
        false => {
            Err(ImportError::MemberDigest { member: member.to_owned(), expected: expected.clone(), actual })
        }
    }
}

/// Docker names configs by their digest, in either of two ways.
fn check_name(member: &str, bytes: &[u8]) -> Result<(), ImportError> {
    let by_json = member.strip_suffix(".json").and_then(|hex| format!("sha256:{hex}").parse().ok());
    match blob_digest(member).or(by_json) {
        Some(expected) => check_digest(member, &expected, bytes),
        None => Ok(()),
    }
}

fn check_count(member: &str, planned: &Planned) -> Result<(), Error> {
    let id = Digest::of(&planned.config);
    let config =
        parse_config(&planned.config).map_err(|source| StoreError::Config { id, source })?.diff_ids.len();
    let layers = planned.layers.len();
    match layers == config {
        true => Ok(()),
        false => Err(ImportError::LayerCount { member: member.to_owned(), layers, config }.into()),
    }
}

fn full_reference(name: &str) -> Result<String, ImportError> {
    let reference: Reference = name.parse().map_err(|source| ImportError::Reference { source })?;
    Ok(reference.to_string())
}

/// OCI's own annotation may hold a whole reference or just a tag; a tag alone names nothing.
fn annotated_reference(annotations: &BTreeMap<String, String>) -> Result<Vec<String>, ImportError> {
    let whole = annotations.get("io.containerd.image.name");
    let any = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    match whole.or(any) {
        Some(name) => Ok(vec![full_reference(name)?]),
        None => Ok(Vec::new()),
    }
}
