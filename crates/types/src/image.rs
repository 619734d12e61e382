//! Images: what is in the store, how one gets there, how a build fails.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::sandbox::{NetworkMode, Resources};

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
    /// The build cache that was pushed with it, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
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
    /// Another name to push it to than `reference`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The build cache too, beside the image, so that another machine that pulls it with `cache` builds from there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cache: bool,
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

/// Result of `POST /v1/images/import`: the first image of the archive, as an [`Image`], and all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportResult {
    /// The first image.
    #[serde(flatten)]
    pub image: Image,
    /// All images of the archive.
    #[serde(default)]
    pub images: Vec<Image>,
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

/// What `POST /v1/images/build` is to build.
///
/// The body is a tar of the build context. These options go before it, as JSON, and the header [`BUILD_OPTIONS`] tells how
/// many bytes they are; without that header they are in the query's `options` parameter, which may hold no secrets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BuildImage {
    /// References to give the result.
    pub tags: Vec<String>,
    /// Path of the Dockerfile inside the context; `Dockerfile` when absent. With `dockerfile_text` only its name.
    pub dockerfile: Option<String>,
    /// The Dockerfile itself, where it is no file of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_text: Option<String>,
    /// Stage to build; the last when absent.
    pub target: Option<String>,
    /// Values for `ARG`s.
    pub build_args: BTreeMap<String, String>,
    /// Run every step again, whatever the cache holds.
    pub no_cache: bool,
    /// When the registries of base images are asked. An image that was made on this machine has none.
    #[serde(skip_serializing_if = "BasePull::is_default")]
    pub pull: BasePull,
    /// What `RUN` reaches, but where it says otherwise itself.
    #[serde(skip_serializing_if = "is_public")]
    pub network: NetworkMode,
    /// Limits of every step's sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What `RUN --mount=type=secret` finds, by id. Never in a layer, a key or a log.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// Credentials for the registries of base images, by host; before the daemon's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub auth: BTreeMap<String, BasicAuth>,
    /// Packages of the image's own distribution, installed on top as one more layer (apt, apk, dnf, microdnf, yum).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// The context by what it holds. With it and no body the daemon answers from its cache, joins the same build that is under
    /// way, or refuses with `context_needed`: then the same request is sent with the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ContextManifest>,
}

/// Header of `POST /v1/images/build` and `POST /v1/sandboxes/{id}/replay`: length in bytes of the [`BuildImage`] as JSON that
/// stands before the tar in the body.
pub const BUILD_OPTIONS: &str = "berth-build-options";

fn is_public(network: &NetworkMode) -> bool {
    *network == NetworkMode::Public
}

/// When a build asks the registries of its base images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BasePull {
    /// Only for those that the store lacks.
    #[default]
    Missing,
    /// For all that came from a registry: mutable tags are resolved anew. One that no registry ever had is used as it is.
    Refresh,
    /// Never.
    Never,
}

impl BasePull {
    fn is_default(&self) -> bool {
        *self == Self::Missing
    }
}

/// Bytes that are told to nobody, in base64; never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = String)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a build context holds, without its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextManifest {
    /// Everything in it, in any order, the context's own directory not included. What the ignore file excludes may be left out.
    pub entries: Vec<ContextEntry>,
    /// Texts of the Dockerfile and of the ignore files that are there, by path.
    pub texts: BTreeMap<String, String>,
}

/// One file of a build context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContextEntry {
    /// Path in the context, parts joined by `/`.
    pub path: String,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// What it is.
    #[serde(flatten)]
    pub kind: ContextKind,
}

/// What a file of a build context is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum ContextKind {
    /// A regular file.
    File {
        /// Its length, in bytes.
        size: u64,
        /// SHA-256 of its bytes, 64 hexadecimal digits.
        digest: String,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Link {
        /// Where it points.
        target: String,
    },
    /// Something that cannot be copied.
    Special,
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
    /// What is not wrong but looks like a mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<BuildWarning>,
    /// Whether this was a build under way that others had asked for first.
    #[serde(default)]
    pub joined: bool,
}

/// A warning about a Dockerfile: the cases that BuildKit's build checks warn about, by the same names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildWarning {
    /// Name of the check, for example `JSONArgsRecommended`.
    pub check: String,
    /// What is questionable and what would be right.
    pub message: String,
    /// The Dockerfile.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
}

/// Result of `POST /v1/sandboxes/{id}/replay`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayResult {
    /// What commands of the sandbox run with from now on.
    pub config: ImageConfig,
    /// Hash over everything that decides the result.
    pub content_key: String,
    /// Steps in all.
    pub steps: u32,
    /// What is not wrong but looks like a mistake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<BuildWarning>,
}

/// Body of `POST /v1/images/tag`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagImage {
    /// Reference or id of an image of the store.
    pub image: String,
    /// Reference to point at it as well.
    pub reference: String,
}

/// Body of `POST /v1/images/prune`. What a sandbox, a build or a pull uses stays in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PruneImages {
    /// Images with references too; otherwise only what no reference names.
    pub all: bool,
    /// Only what was not used for so many seconds.
    pub unused_for_seconds: Option<u64>,
    /// Only as much, what was not used for longest first, as brings the store down to so many bytes.
    pub keep_bytes: Option<u64>,
    /// The contents of cache mounts too.
    pub cache_mounts: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

/// Result of `POST /v1/images/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PruneReport {
    /// Ids of images that are gone.
    pub images: Vec<String>,
    /// Digests of layers that are gone.
    pub layers: Vec<String>,
    /// Ids of cache mounts that are gone.
    pub cache_mounts: Vec<String>,
    /// Bytes that their files had.
    pub freed_bytes: u64,
    /// Bytes that the files of what is left have.
    pub left_bytes: u64,
}

/// Body of `POST /v1/images/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyImages {
    /// Read every byte and compare digests; otherwise only that all is there, and as much as was noted.
    pub deep: bool,
}

/// Result of `POST /v1/images/verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// Images looked at.
    pub images: u64,
    /// Layers looked at.
    pub layers: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Layers whose bytes cannot be compared with their digest.
    pub unverifiable: Vec<String>,
    /// What is wrong, each with the image or layer that it is about. Empty: all is well.
    pub problems: Vec<String>,
}

/// Body of `POST /v1/images/export`; the answer is a tar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportImages {
    /// References or ids of images of the store.
    pub images: Vec<String>,
    /// `oci-archive` or `docker-archive`; the first when absent.
    pub format: Option<ArchiveFormat>,
    /// The build cache too, all of it, so that another machine builds from there. Only in `oci-archive`.
    pub cache: bool,
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
    /// Name or number of the stage that the step belongs to, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The lines of the Dockerfile that it is about, as in a [`DockerfileFault`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<String>,
}

/// The place in a Dockerfile that an error is about: `details` of an error with code `dockerfile_invalid`, `base_image_unusable`,
/// `remote_source_unusable` or `build_step_impossible`. What is wrong there is the error's message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DockerfileFault {
    /// Name of the Dockerfile.
    pub file: String,
    /// Line of the place, from 1. For a trigger of a base image the line of its `FROM`.
    pub line: u32,
    /// Column of the place, from 1, in characters.
    pub column: u32,
    /// The lines around the place, numbered, with a marker and the label below it: a drawing of several lines of plain text, long
    /// ones cut.
    pub excerpt: String,
    /// What the marker says.
    pub label: String,
    /// What to do about it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_s_entries_are_read_as_they_are_written_and_nothing_else() {
        let digest = "0".repeat(64);
        let kinds = [
            ContextKind::File { size: 3, digest },
            ContextKind::Dir,
            ContextKind::Link { target: "a".into() },
            ContextKind::Special,
        ];
        for kind in kinds {
            let entry = ContextEntry { path: "x/y".into(), mode: 0o644, kind };
            let json = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<ContextEntry>(&json).unwrap(), entry, "{json}");
        }
        let unknown = r#"{"path": "a", "mode": 1, "kind": "link", "target": "b", "uid": 1}"#;
        assert!(serde_json::from_str::<ContextEntry>(unknown).unwrap_err().to_string().contains("uid"));
    }

    #[test]
    fn an_import_s_result_is_an_image_too() {
        let image =
            r#"{"id": "i", "references": [], "size_bytes": 1, "layers": 1, "platform": "p", "config": {}}"#;
        let one: Image = serde_json::from_str(image).unwrap();
        let all = ImportResult { image: one.clone(), images: vec![one.clone()] };
        let json = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Image>(&json).unwrap(), one);
        assert_eq!(serde_json::from_str::<ImportResult>(&json).unwrap(), all);
    }
}
