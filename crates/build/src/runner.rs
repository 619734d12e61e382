//! What a build asks of the machine. The node fills these traits; nothing here knows how.
//!
//! Paths inside a [`Step`] are absolute, are resolved within its root, and follow symbolic links.

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::AsyncRead;

/// What a runner's method gives back, later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, RunnerError>>;
/// A stream of an uncompressed tar.
pub type Tar = Box<dyn AsyncRead + Send + Unpin>;

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

/// One build's view of the machine.
pub trait Runner: Send + Sync {
    /// Finds an image, pulling it when it is missing.
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base>;

    /// A fresh sandbox with these layers (the lowest first; maybe none) as its root and an empty writable layer.
    fn open<'a>(&'a self, layers: &'a [LayerId]) -> Answer<'a, Box<dyn Step>>;

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

/// One sandbox of a build.
///
/// `/dev`, `/proc` and `/sys` are mounts of their own: what is written there never becomes part of the layer.
/// Dropping a step without [`Step::commit`] throws it away.
pub trait Step: Send {
    /// Runs a command to its end and gives its exit code; 127 or 126 when it could not be started, with the reason
    /// as output. `output` gets stdout and stderr as they come.
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32>;

    /// Unpacks a tar into an existing directory. Directories merge and take over mode and owner of the tar's entry;
    /// anything else is replaced. `mode` replaces the permission bits of every entry but symbolic links.
    fn unpack<'a>(&'a mut self, target: &'a str, owner: Owner, mode: Option<u32>, tar: Tar)
    -> Answer<'a, ()>;

    /// A tar of a directory's contents, named relative to it, or of a file under its base name.
    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar>;

    /// The paths that match a pattern of Go's `filepath.Match`, sorted.
    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>>;

    /// What stands at a path; `None` for nothing.
    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>>;

    /// Makes a directory and those above it that are missing, each 0755 and owned by `owner` (root when absent).
    /// One that exists stays as it is.
    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()>;

    /// Ends the sandbox and turns what it changed into a layer; `None` when nothing changed.
    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a;
}
