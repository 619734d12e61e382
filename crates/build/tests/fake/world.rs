//! A build under test: its context, its machine, its options, and what it told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use berth_build::{ContextSource, DockerfileSource, Error, Outcome, Request, build};
use berth_types::progress::Progress;

use super::{Machine, Tree};

/// A context on disk, a machine, and the options of the next build.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) machine: Machine,
    pub(crate) args: BTreeMap<String, String>,
    pub(crate) target: Option<String>,
    pub(crate) no_cache: bool,
    pub(crate) no_network: bool,
    pub(crate) parallel: usize,
    pub(crate) progress: Mutex<Vec<Progress>>,
}

impl World {
    pub(crate) fn new(dockerfile: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            dir,
            machine: Machine::new(),
            args: BTreeMap::new(),
            target: None,
            no_cache: false,
            no_network: false,
            parallel: 4,
            progress: Mutex::default(),
        };
        world.write("Dockerfile", dockerfile);
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub(crate) fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) async fn try_build(&self) -> Result<Outcome, Error> {
        let tell = |progress| self.progress.lock().unwrap().push(progress);
        build(self.request(&tell), &self.machine).await
    }

    pub(crate) fn request<'a>(&'a self, progress: &'a (dyn Fn(Progress) + Send + Sync)) -> Request<'a> {
        Request {
            context: ContextSource::Directory(self.path()),
            dockerfile: DockerfileSource::InContext("Dockerfile".to_owned()),
            target: self.target.clone(),
            build_args: self.args.clone(),
            no_cache: self.no_cache,
            parallel: self.parallel,
            no_network: self.no_network,
            tags: vec!["t:1".to_owned()],
            platform: "linux/amd64".to_owned(),
            progress,
        }
    }

    pub(crate) async fn build(&self) -> Outcome {
        self.try_build().await.unwrap_or_else(|error| panic!("{}", error.to_api()))
    }

    /// The tree of the built image, without the base's own files.
    pub(crate) async fn tree(&self) -> Tree {
        let outcome = self.build().await;
        let mut tree = self.machine.tree(&outcome.image);
        tree.retain(|path, _| !path.starts_with("/bin"));
        tree
    }

    /// The tree as lines: type, mode, owner, path, content.
    pub(crate) async fn listing(&self) -> String {
        let lines: Vec<String> = self
            .tree()
            .await
            .into_iter()
            .map(|(path, node)| {
                format!("{} {:04o} {} {path} {}", node.kind, node.mode, node.owner, node.content)
                    .trim_end()
                    .to_owned()
            })
            .collect();
        lines.join("\n")
    }

    pub(crate) async fn failure(&self) -> String {
        match self.try_build().await {
            Ok(_) => panic!("the build succeeded"),
            Err(error) => {
                let api = error.to_api();
                api.hint.map_or(api.message.clone(), |hint| format!("{} [{hint}]", api.message))
            }
        }
    }

    pub(crate) fn output(&self) -> String {
        let progress = self.progress.lock().unwrap();
        progress
            .iter()
            .filter_map(|line| match line {
                Progress::Output { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }
}
