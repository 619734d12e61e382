//! Images: what is in the store, how one gets there, how a build fails.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image of the local store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Digest of the image's config, `sha256:…`: the image's identity.
    pub id: String,
    /// Normalised references that point at it, for example `docker.io/library/debian:bookworm`.
    pub references: Vec<String>,
    /// Sum of the unpacked layers' file sizes, in bytes.
    pub size_bytes: u64,
    /// Number of layers.
    pub layers: u32,
    /// `linux/amd64` and the like.
    pub platform: String,
    /// When it was made, by its own config, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What a sandbox of it runs with.
    pub config: ImageConfig,
}

/// The parts of the OCI image config that decide how a sandbox runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageConfig {
    /// `KEY=value`, in order.
    pub env: Vec<String>,
    /// Working directory; `/` when empty.
    pub working_dir: String,
    /// `USER`; root when empty.
    pub user: String,
    /// Not run by Berth (a sandbox's first process is its own), but kept.
    pub entrypoint: Vec<String>,
    /// Not run by Berth, but kept.
    pub cmd: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Body of `POST /v1/images/pull`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// `[registry/]name[:tag][@digest]`.
    pub reference: String,
    /// When to ask the registry.
    #[serde(default)]
    pub policy: PullPolicy,
    /// For a registry that wants them; the daemon's own configuration otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<BasicAuth>,
}

/// Body of `POST /v1/images/push`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushImage {
    /// `registry/name:tag`: the image of the local store that is pushed, and where to.
    pub reference: String,
    /// For a registry that wants them; the daemon's own configuration otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<BasicAuth>,
}

/// When a pull asks the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Only when the store has no image of that reference.
    Missing,
    /// Always; what the registry says wins.
    #[default]
    Always,
    /// Never: an image that is not in the store is an error.
    Never,
}

/// User and password for a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// User name.
    pub username: String,
    /// Password or token. Never printed.
    pub password: String,
}

impl std::fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BasicAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Query of `POST /v1/images/import`; the body is the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Reference to give the image; needed unless the archive names one itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the body is; told from its content when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ArchiveFormat>,
}

/// Kinds of archives that can be imported; each may be plain, gzip or zstd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveFormat {
    /// `docker save`'s format, with `manifest.json`.
    DockerArchive,
    /// A tar of an OCI image layout, with `index.json`.
    OciArchive,
    /// A plain root file system.
    Rootfs,
}

/// Body of `POST /v1/images/bootstrap`: make a base image from a Debian mirror.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootstrapImage {
    /// `debian:SUITE`, for example `debian:bookworm`; also the reference of the result.
    pub reference: String,
    /// Mirror URL; the one of the machine's own apt configuration when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Further packages to install.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// Query (as JSON in the `options` parameter) of `POST /v1/images/build`; the body is a tar of the build context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuildImage {
    /// References to give the result.
    pub tags: Vec<String>,
    /// Path of the Dockerfile inside the context; `Dockerfile` when absent.
    pub dockerfile: Option<String>,
    /// Stage to build; the last when absent.
    pub target: Option<String>,
    /// Values for `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Run every step again, whatever the cache holds. Base images of the store are used as they are.
    pub no_cache: bool,
}

/// Result of a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildResult {
    /// The image that was made or found.
    pub image: Image,
    /// Hash over everything that decides the result: context, Dockerfile, args, base digests.
    pub content_key: String,
    /// Steps in all.
    pub steps: u32,
    /// Steps found in the cache.
    pub cached_steps: u32,
}

/// Why a build failed; `details` of an error with code `build_failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildFailure {
    /// Number of the step, from 1.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// The instruction as it stands in the Dockerfile.
    pub instruction: String,
    /// Name of the Dockerfile.
    pub file: String,
    /// Line of the instruction, from 1.
    pub line: u32,
    /// Exit code of the command, for a `RUN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last lines of the step's output, at most 50.
    pub output_tail: Vec<String>,
}
