//! A machine in memory: layers are maps from paths to files, a sandbox is a merged view, and commands are a few
//! words of a toy shell. It remembers everything that was asked of it.

#![allow(dead_code, reason = "each file of tests uses its own part")]

pub(crate) mod sandbox;
pub(crate) mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_build::runner::{
    Answer, Base, CachedStep, Fetched, LayerId, Remote, Runner, RunnerError, Setting, Step,
};
use sandbox::Sandbox;
use serde_json::{Value, json};

/// One file: type letter (`h` for a further name of another file), mode, owner, and its bytes or link target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: String,
    pub(crate) content: String,
    pub(crate) mtime: u64,
}

/// Something elsewhere: where it is, its digest, its name, its time.
#[derive(Clone)]
pub(crate) struct Thing {
    pub(crate) path: PathBuf,
    pub(crate) digest: String,
    pub(crate) name: Option<String>,
    pub(crate) modified: Option<i64>,
}

pub(crate) type Tree = BTreeMap<String, Node>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) layers: BTreeMap<LayerId, Tree>,
    pub(crate) bases: BTreeMap<String, Base>,
    pub(crate) steps: BTreeMap<String, CachedStep>,
    pub(crate) images: BTreeMap<String, String>,
    pub(crate) configs: BTreeMap<String, Value>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) remotes: BTreeMap<Remote, Thing>,
    pub(crate) secrets: BTreeMap<String, Vec<u8>>,
    /// What cache mounts hold.
    pub(crate) caches: BTreeMap<String, Tree>,
    /// What each sandbox had, in order.
    pub(crate) settings: Vec<Setting>,
    /// Sandboxes that there are.
    pub(crate) open: usize,
    /// The most that there were at a time.
    pub(crate) peak: usize,
    /// Commands that wait for others, by name of the meeting.
    pub(crate) meetings: BTreeMap<String, Arc<tokio::sync::Barrier>>,
    /// While true, no sandbox can be had.
    pub(crate) broken: bool,
    /// Every sandbox, command and pull, in order.
    pub(crate) log: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Machine(pub(crate) Arc<Mutex<State>>);

pub(crate) fn ready<'a, T: Send + 'a>(value: T) -> Answer<'a, T> {
    Box::pin(async move { Ok(value) })
}

pub(crate) fn no_such(message: String) -> RunnerError {
    RunnerError::User { message, source: None }
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Self::default();
        machine.add_base("debian", &[("bin/sh", "shell")], json!({}));
        machine
    }

    pub(crate) fn add_base(&self, name: &str, files: &[(&str, &str)], config: Value) {
        let mut tree = Tree::new();
        for (path, content) in files {
            for (at, _) in path.match_indices('/') {
                tree.insert(format!("/{}", &path[..at]), node('d', 0o755, ""));
            }
            tree.insert(format!("/{path}"), node('f', 0o644, content));
        }
        let layer = LayerId(format!("sha256:base-{name}"));
        let base = Base {
            id: format!("sha256:config-{name}"),
            config: json!({ "os": "linux", "architecture": "amd64", "config": config, "rootfs": {} }),
            layers: vec![layer.clone()],
        };
        let mut state = self.0.lock().unwrap();
        state.layers.insert(layer, tree);
        state.bases.insert(name.to_owned(), base);
    }

    /// Waits until so many commands are there.
    pub(crate) async fn meet(&self, name: &str, count: usize) -> bool {
        let barrier = {
            let mut state = self.0.lock().unwrap();
            let new = || Arc::new(tokio::sync::Barrier::new(count));
            state.meetings.entry(name.to_owned()).or_insert_with(new).clone()
        };
        tokio::time::timeout(Duration::from_secs(20), barrier.wait()).await.is_ok()
    }

    /// A sandbox of an image's layers, as one that a user has.
    pub(crate) fn sandbox(&self, layers: &[LayerId]) -> Sandbox {
        Sandbox::new(self.clone(), layers, Setting::default())
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }

    pub(crate) fn config(&self, image: &str) -> Value {
        self.0.lock().unwrap().configs[image].clone()
    }

    /// The files of an image, merged.
    pub(crate) fn tree(&self, image: &str) -> Tree {
        let state = self.0.lock().unwrap();
        let layers = state.configs[image]["rootfs"]["diff_ids"].as_array().unwrap();
        let layers: Vec<LayerId> = layers.iter().map(|id| LayerId(id.as_str().unwrap().to_owned())).collect();
        merged(&state, &layers)
    }
}

pub(crate) fn node(kind: char, mode: u32, content: &str) -> Node {
    Node { kind, mode, owner: "0:0".to_owned(), content: content.to_owned(), mtime: 0 }
}

pub(crate) fn merged(state: &State, layers: &[LayerId]) -> Tree {
    layers.iter().flat_map(|layer| state.layers[layer].clone()).collect()
}

impl Runner for Machine {
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base> {
        let mut state = self.0.lock().unwrap();
        state.log.push(format!("base {reference}"));
        let found = state.bases.get(reference).cloned();
        Box::pin(async move { found.ok_or_else(|| no_such(format!("no image {reference}"))) })
    }

    fn open<'a>(&'a self, layers: &'a [LayerId], setting: Setting) -> Answer<'a, Box<dyn Step>> {
        let mut state = self.0.lock().unwrap();
        state.log.push(if setting.no_network { "open without network" } else { "open" }.to_owned());
        if state.broken {
            let message = "the machine is out of sandboxes".to_owned();
            return Box::pin(async move { Err(RunnerError::Infrastructure { message, source: None }) });
        }
        state.settings.push(setting.clone());
        drop(state);
        ready(Box::new(Sandbox::new(self.clone(), layers, setting)) as Box<dyn Step>)
    }

    fn fetch<'a>(&'a self, remote: &'a Remote) -> Answer<'a, Arc<Fetched>> {
        let mut state = self.0.lock().unwrap();
        state.log.push(format!("fetch {}", remote.shown()));
        let found = state.remotes.get(remote).cloned();
        Box::pin(async move {
            let Thing { path, digest, name, modified } =
                found.ok_or_else(|| no_such(format!("{} is not there", remote.shown())))?;
            Ok(Arc::new(Fetched { path, digest, name, modified, keep: Box::new(()) }))
        })
    }

    fn secret(&self, id: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().secrets.get(id).cloned()
    }

    fn cached_layer<'a>(&'a self, key: &'a str) -> Answer<'a, Option<CachedStep>> {
        ready(self.0.lock().unwrap().steps.get(key).cloned())
    }

    fn remember<'a>(&'a self, key: &'a str, value: &'a CachedStep) -> Answer<'a, ()> {
        self.0.lock().unwrap().steps.insert(key.to_owned(), value.clone());
        ready(())
    }

    fn cached_image<'a>(&'a self, key: &'a str) -> Answer<'a, Option<String>> {
        ready(self.0.lock().unwrap().images.get(key).cloned())
    }

    fn remember_image<'a>(&'a self, key: &'a str, id: &'a str) -> Answer<'a, ()> {
        self.0.lock().unwrap().images.insert(key.to_owned(), id.to_owned());
        ready(())
    }

    fn create_image<'a>(
        &'a self,
        config: Value,
        layers: &'a [LayerId],
        tags: &'a [String],
    ) -> Answer<'a, String> {
        let listed: Vec<&str> = layers.iter().map(|layer| layer.0.as_str()).collect();
        assert_eq!(config["rootfs"]["diff_ids"], json!(listed));
        let mut state = self.0.lock().unwrap();
        let id = format!("image-{}", state.configs.len() + 1);
        state.configs.insert(id.clone(), config);
        state.tags.extend(tags.iter().map(|tag| (tag.clone(), id.clone())));
        ready(id)
    }

    fn tag_image<'a>(&'a self, id: &'a str, tags: &'a [String]) -> Answer<'a, ()> {
        let mut state = self.0.lock().unwrap();
        state.tags.extend(tags.iter().map(|tag| (tag.clone(), id.to_owned())));
        ready(())
    }
}
