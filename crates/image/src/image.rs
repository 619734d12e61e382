//! What an image is, once it is in the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use berth_types::image as api;
use serde::Deserialize;

use crate::digest::Digest;

/// An image of the store. Cheap to clone; a picture of the moment it was asked for.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of its config: its identity.
    pub id: Digest,
    /// What it runs on.
    pub platform: Platform,
    /// When it was made, by its own config.
    pub created: Option<String>,
    /// What a sandbox of it runs with.
    pub config: api::ImageConfig,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// Normalised references that point at it, sorted.
    pub references: Vec<String>,
    pub(crate) raw: Arc<[u8]>,
}

/// One unpacked layer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Digest of its uncompressed tar.
    pub diff_id: Digest,
    /// Name of its directory in [`crate::Images::layers_dir`].
    pub name: String,
    /// Sum of its files' sizes.
    pub size_bytes: u64,
    /// Names in it.
    pub files: u64,
    /// Whether it holds set-uid or set-gid files or files with capabilities.
    pub privileged_files: bool,
    /// The highest user or group id that a file in it belongs to; `None` for a layer that came into the store before
    /// that was noted, until [`crate::Images::highest_id`] has looked.
    pub highest_id: Option<u32>,
    /// How the tar that it came as is written again; `None` for a layer that came into the store before that was noted.
    pub original: Option<Original>,
}

/// Where a layer's tar comes from when it is wanted again, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Original {
    /// Berth made the layer: packing its tree gives the tar.
    Canonical,
    /// Headers and padding are kept beside it.
    Split,
}

/// Operating system and processor, in OCI's words.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, ….
    pub architecture: String,
    /// `v7` and the like.
    #[serde(default)]
    pub variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_deref().filter(|v| !v.is_empty()).map_or(Ok(()), |v| write!(f, "/{v}"))
    }
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether this machine runs images of `other`. Variants are for choosing among several, not for refusing:
    /// most images of arm64 name none.
    pub(crate) fn runs(&self, other: &Platform) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl Image {
    /// The config as it came, byte for byte: its digest is the id.
    pub fn raw_config(&self) -> &[u8] {
        &self.raw
    }

    /// The config with all its fields, those included that Berth does not know.
    pub fn config_json(&self) -> serde_json::Value {
        // It was parsed when the image came into the store.
        serde_json::from_slice(&self.raw).unwrap_or_default()
    }

    /// Whether any layer holds files by which programs gain privileges.
    pub fn has_privileged_files(&self) -> bool {
        self.layers.iter().any(|layer| layer.privileged_files)
    }

    /// As the API shows it.
    pub fn to_api(&self) -> api::Image {
        api::Image {
            id: self.id.to_string(),
            references: self.references.clone(),
            size_bytes: self.layers.iter().map(|layer| layer.size_bytes).sum(),
            layers: u32::try_from(self.layers.len()).unwrap_or(u32::MAX),
            platform: self.platform.to_string(),
            created: self.created.clone(),
            config: self.config.clone(),
        }
    }
}

/// Name of a layer's directory: enough of its digest to be its own, short enough for mount(2)'s option string.
pub(crate) fn layer_name(diff_id: &Digest) -> String {
    diff_id.hex()[..24].to_owned()
}

/// A layer's facts, as they lie beside it.
#[derive(serde::Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerFile {
    pub(crate) version: u32,
    pub(crate) diff_id: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) files: u64,
    pub(crate) privileged_files: bool,
    /// Not there in what was written before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) highest_id: Option<u32>,
    /// Not there in what was written before it was noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) original: Option<Original>,
}

/// The parts of an image config that Berth reads.
#[derive(Clone, Debug)]
pub(crate) struct ParsedConfig {
    pub(crate) platform: Platform,
    pub(crate) created: Option<String>,
    pub(crate) config: api::ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(flatten)]
    platform: Platform,
    created: Option<String>,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RunConfig {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

pub(crate) fn parse_config(bytes: &[u8]) -> Result<ParsedConfig, serde_json::Error> {
    let file: ConfigFile = serde_json::from_slice(bytes)?;
    let run = file.config.unwrap_or_default();
    Ok(ParsedConfig {
        platform: file.platform,
        created: file.created,
        config: api::ImageConfig {
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            labels: run.labels.unwrap_or_default(),
        },
        diff_ids: file.rootfs.diff_ids,
    })
}

/// Whether a file name in `layers/` can be one that the store made.
pub(crate) fn is_layer_name(name: &Path) -> bool {
    name.to_str().is_some_and(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_missing_parts_are_empty() {
        let bytes = br#"{"os":"linux","architecture":"arm64","variant":"v8","config":{"Env":null,"Cmd":["x"],"User":"u"},
            "rootfs":{"type":"layers","diff_ids":[]},"x-unknown":1}"#;
        let parsed = parse_config(bytes).unwrap();
        assert_eq!(parsed.platform.to_string(), "linux/arm64/v8");
        assert_eq!((parsed.config.cmd.as_slice(), parsed.config.user.as_str()), (&["x".to_owned()][..], "u"));
        assert!(parse_config(br#"{"os":"linux","rootfs":{}}"#).is_err());
        assert!(parse_config(br#"{"os":"linux","architecture":"x","config":null,"rootfs":{}}"#).is_ok());
    }
}
