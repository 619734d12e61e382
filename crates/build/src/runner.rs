//! What a build asks of the machine. The node fills these traits; nothing here knows how.
//!
//! Paths inside a [`Step`] are absolute, are resolved within its root, and follow symbolic links.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncRead;

/// What a runner's method gives back, later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RunnerError>>;
/// A stream of an uncompressed tar.
pub type Tar = Box<dyn AsyncRead + Send + Unpin>;

/// Where scripts of `RUN` heredocs are put to be run: `/dev` is no part of a layer.
pub const SCRIPTS: &str = "/dev/pipes";

/// A layer, by the digest of its uncompressed tar (`sha256:…`); the image config lists the same string.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerId(pub String);

/// An image to build on.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// Digest of its config.
    pub id: String,
    /// Its config, as Docker and OCI have it.
    pub config: Value,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerId>,
}

/// Result of a step that a later build can use again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedStep {
    /// The layer that it made; `None` when it changed nothing.
    pub layer: Option<LayerId>,
}

/// Why a runner could not do something.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The build asks for something that does not exist or is not allowed: no such image, no such user.
    #[error("{message}")]
    User {
        /// What is wrong, for the author of the Dockerfile.
        message: String,
        /// The cause, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The machine or something it depends on failed: never the Dockerfile's fault.
    #[error("{message}")]
    Infrastructure {
        /// What failed.
        message: String,
        /// The cause, if there is one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// What a step's sandbox has beside its layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// Mounts, made in this order after the root. What is written below them never becomes part of the layer, nor do
    /// the places that are made for them.
    pub mounts: Vec<Mount>,
    /// Without any network but its own loopback, whatever the build's policy allows.
    pub no_network: bool,
    /// Whether commands run in it. Where only files are put or taken, the machine has nothing of its own over the layers'.
    pub runs: bool,
}

/// One mount of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path inside.
    pub target: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What is mounted into a step.
#[derive(Clone, PartialEq, Eq)]
pub enum MountSource {
    /// What stands at `path` in a stack of layers, the lowest first. What is written is thrown away with the step.
    Layers {
        /// The layers.
        layers: Vec<LayerId>,
        /// Absolute path of a directory or file in them.
        path: String,
    },
    /// A directory that outlives the build.
    Cache {
        /// Its name, among all builds of the machine.
        id: String,
        /// What happens when several steps want it at a time.
        sharing: Sharing,
        /// What it holds at first: layers, and a directory in them.
        seed: Option<(Vec<LayerId>, String)>,
        /// Owner of a new one.
        uid: u32,
        /// Group of a new one.
        gid: u32,
        /// Permission bits of a new one.
        mode: u32,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size, in bytes.
        size: Option<u64>,
    },
    /// A file with these bytes, kept in memory only.
    Secret {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
}

impl std::fmt::Debug for MountSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Layers { layers, path } => {
                f.debug_struct("Layers").field("layers", layers).field("path", path).finish()
            }
            Self::Cache { id, sharing, .. } => {
                f.debug_struct("Cache").field("id", id).field("sharing", sharing).finish_non_exhaustive()
            }
            Self::Tmpfs { size } => f.debug_struct("Tmpfs").field("size", size).finish(),
            // Its bytes are nobody's business.
            Self::Secret { .. } => f.debug_struct("Secret").finish_non_exhaustive(),
        }
    }
}

/// How several steps use one cache at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All at once.
    #[default]
    Shared,
    /// Each one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// Something that `ADD` brings from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Remote {
    /// A file by HTTP.
    Url {
        /// Its URL, `http` or `https`.
        url: String,
        /// `sha256:…` that its bytes must have.
        checksum: Option<String>,
    },
    /// A git repository's tree.
    Git {
        /// URL to clone from.
        url: String,
        /// Branch, tag or commit; the default branch when absent.
        reference: Option<String>,
        /// Directory in it; all of it when absent.
        subdir: Option<String>,
        /// Whether `.git` comes along.
        keep_git_dir: bool,
        /// Commit that the reference must stand for.
        checksum: Option<String>,
    },
}

impl Remote {
    /// The URL as messages show it: without user and password.
    pub fn shown(&self) -> String {
        let (Self::Url { url, .. } | Self::Git { url, .. }) = self;
        let Some((scheme, rest)) = url.split_once("://") else { return url.clone() };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        match rest[..end].rfind('@') {
            Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
            None => url.clone(),
        }
    }
}

/// What came from elsewhere; its files are there as long as it lives.
pub struct Fetched {
    /// The file, or the directory that holds the tree.
    pub path: PathBuf,
    /// What it is by content: `sha256:…` of a file's bytes, the commit of a tree.
    pub digest: String,
    /// Name of the file as the server or the URL has it; `None` for a tree, and where neither says.
    pub name: Option<String>,
    /// When the file was last changed, in seconds since the epoch, if the server says.
    pub modified: Option<i64>,
    /// Keeps the files.
    pub keep: Box<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetched")
            .field("digest", &self.digest)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One build's view of the machine.
pub trait Runner: Send + Sync {
    /// Finds an image, pulling it when it is missing.
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base>;

    /// A fresh sandbox with these layers (the lowest first; maybe none) as its root and an empty writable layer.
    fn open<'a>(&'a self, layers: &'a [LayerId], setting: Setting) -> Answer<'a, Box<dyn Step>>;

    /// A sandbox that lends files to a step, which opens one of its own while it has this. A runner that lets only so many
    /// steps run at a time must not count it as another: steps that wait for their lenders would wait for each other.
    fn lend<'a>(&'a self, layers: &'a [LayerId]) -> Answer<'a, Box<dyn Step>> {
        self.open(layers, Setting::default())
    }

    /// Brings a file or a git repository from elsewhere. What was brought once in a build is not brought again.
    fn fetch<'a>(&'a self, remote: &'a Remote) -> Answer<'a, Arc<Fetched>>;

    /// The bytes of a secret that was given to the build.
    fn secret(&self, id: &str) -> Option<Vec<u8>>;

    /// The result of an earlier step of that key. `None` also when its layer is gone from the store.
    fn cached_layer<'a>(&'a self, key: &'a str) -> Answer<'a, Option<CachedStep>>;

    /// Keeps a step's result for later builds.
    fn remember<'a>(&'a self, key: &'a str, value: &'a CachedStep) -> Answer<'a, ()>;

    /// The image that an earlier build of that key made. `None` also when it is gone from the store.
    fn cached_image<'a>(&'a self, key: &'a str) -> Answer<'a, Option<String>>;

    /// Keeps a build's result for later builds.
    fn remember_image<'a>(&'a self, key: &'a str, id: &'a str) -> Answer<'a, ()>;

    /// Makes an image of a finished config (`rootfs` lists `layers`) and points the tags at it. Gives its id.
    fn create_image<'a>(
        &'a self,
        config: Value,
        layers: &'a [LayerId],
        tags: &'a [String],
    ) -> Answer<'a, String>;

    /// Points the tags at an image that is there already.
    fn tag_image<'a>(&'a self, id: &'a str, tags: &'a [String]) -> Answer<'a, ()>;
}

/// What a `RUN` runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSpec {
    /// Program and arguments; the program is looked up in `env`'s `PATH`.
    pub argv: Vec<String>,
    /// The whole environment, but for what the runner derives from the user (`HOME`).
    pub env: Vec<(String, String)>,
    /// Working directory; made when it is not there.
    pub cwd: String,
    /// `name`, `uid`, `name:group` or `uid:gid`; empty for root.
    pub user: String,
}

/// Whose files are after [`Step::unpack`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// root:root.
    Root,
    /// The numeric owners of the tar's entries.
    Keep,
    /// The same, of an archive that `ADD` unpacks: unlike files that are copied, its entries also take the place of what
    /// is of another kind, a file that of a directory with all that is in it.
    Archive,
    /// `name`, `uid`, `name:group` or `uid:gid`, looked up in the step's own root. Without a group, the user's own
    /// for a name and the same number for a number.
    Spec(String),
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stat {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// Anything else.
    Other,
}

/// Permission bits and owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One sandbox of a build.
///
/// `/dev`, `/proc` and `/sys` are mounts of their own: what is written there never becomes part of the layer.
/// Dropping a step without [`Step::commit`] throws it away.
pub trait Step: Send {
    /// Changes what the sandbox has beside its root, from now until the next call; an empty setting takes all of it away.
    /// For sandboxes that are there already; [`Runner::open`] sets up those that it makes.
    fn set<'a>(&'a mut self, setting: Setting) -> Answer<'a, ()> {
        Box::pin(async move {
            if setting.mounts.is_empty() && !setting.no_network {
                return Ok(());
            }
            let what = if setting.mounts.is_empty() { "lose its network" } else { "be given mounts" };
            let message =
                format!("a running sandbox cannot {what} for one command (build the image instead)");
            Err(RunnerError::User { message, source: None })
        })
    }

    /// Runs a command to its end and gives its exit code; 127 or 126 when it could not be started, with the reason
    /// as output. `output` gets stdout and stderr as they come.
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32>;

    /// Unpacks a tar into an existing directory. Directories merge and take over mode and owner of the tar's entry; a
    /// directory in the place of anything else, or the other way round, is the user's error, except of [`Owner::Archive`];
    /// anything else is replaced. `mode` replaces the permission bits of every entry but symbolic links.
    fn unpack<'a>(&'a mut self, target: &'a str, owner: Owner, mode: Option<u32>, tar: Tar)
    -> Answer<'a, ()>;

    /// A tar of a directory's contents, named relative to it, or of a file under its base name.
    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar>;

    /// The paths that match a pattern of Go's `filepath.Match`, sorted.
    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>>;

    /// What stands at a path; `None` for nothing.
    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>>;

    /// Permission bits and owner of what stands at a path; `None` for nothing, and where that cannot be told: what is made
    /// after it is then 0755 and root's.
    fn attributes<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Attributes>> {
        let _ = path;
        Box::pin(async { Ok(None) })
    }

    /// Makes a directory and those above it that are missing, each 0755 and owned by `owner` (root when absent).
    /// One that exists stays as it is.
    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()>;

    /// Ends the sandbox and turns what it changed into a layer; `None` when nothing changed.
    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a;
}
