//! A machine in memory: layers are maps from paths to files, a sandbox is a merged view, and commands are a few
//! words of a toy shell. It remembers everything that was asked of it.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex};

use berth_build::pattern::Pattern;
use berth_build::runner::{
    Answer, Base, CachedStep, Fetched, LayerId, Owner, Remote, RunSpec, Runner, RunnerError, Setting, Stat,
    Step, Tar,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

/// One file: type letter, mode, owner, and its bytes or link target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) owner: String,
    pub(crate) content: String,
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
    /// While true, no sandbox can be had.
    pub(crate) broken: bool,
    /// Every sandbox, command and pull, in order.
    pub(crate) log: Vec<String>,
}

#[derive(Clone, Default)]
pub(crate) struct Machine(pub(crate) Arc<Mutex<State>>);

fn ready<'a, T: Send + 'a>(value: T) -> Answer<'a, T> {
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

fn node(kind: char, mode: u32, content: &str) -> Node {
    Node { kind, mode, owner: "0:0".to_owned(), content: content.to_owned() }
}

fn merged(state: &State, layers: &[LayerId]) -> Tree {
    layers.iter().flat_map(|layer| state.layers[layer].clone()).collect()
}

impl Runner for Machine {
    fn base_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Base> {
        let mut state = self.0.lock().unwrap();
        state.log.push(format!("base {reference}"));
        let found = state.bases.get(reference).cloned();
        Box::pin(async move { found.ok_or_else(|| no_such(format!("no image {reference}"))) })
    }

    fn open<'a>(&'a self, layers: &'a [LayerId], _: Setting) -> Answer<'a, Box<dyn Step>> {
        let mut state = self.0.lock().unwrap();
        state.log.push("open".to_owned());
        if state.broken {
            let message = "the machine is out of sandboxes".to_owned();
            return Box::pin(async move { Err(RunnerError::Infrastructure { message, source: None }) });
        }
        let before = merged(&state, layers);
        ready(Box::new(Sandbox { machine: self.clone(), now: before.clone(), before }) as Box<dyn Step>)
    }

    fn fetch<'a>(&'a self, remote: &'a Remote) -> Answer<'a, Arc<Fetched>> {
        Box::pin(async move { Err(no_such(format!("{remote:?} is not there"))) })
    }

    fn secret(&self, _: &str) -> Option<Vec<u8>> {
        None
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

struct Sandbox {
    machine: Machine,
    before: Tree,
    now: Tree,
}

impl Sandbox {
    fn put(&mut self, path: String, mut node: Node) {
        // A directory that exists merges.
        if node.kind == 'd' {
            node.content.clear();
        }
        self.now.insert(path, node);
    }

    /// `write PATH TEXT`, `echo TEXT`, `env`, `fail CODE`; anything else does nothing.
    fn shell(&mut self, line: &str, spec: &RunSpec, output: &mut (dyn FnMut(&[u8]) + Send)) -> i32 {
        for command in line.split("&&").map(str::trim) {
            let words: Vec<&str> = command.split_whitespace().collect();
            match words.as_slice() {
                ["write", path, text @ ..] => self.put((*path).to_owned(), node('f', 0o644, &text.join(" "))),
                ["echo", text @ ..] => output(format!("{}\n", text.join(" ")).as_bytes()),
                ["env"] => {
                    for (name, value) in &spec.env {
                        output(format!("{name}={value}\n").as_bytes());
                    }
                    output(format!("cwd={} user={}\n", spec.cwd, spec.user).as_bytes());
                }
                ["fail", code] => return code.parse().unwrap(),
                _ => {}
            }
        }
        0
    }
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_owned()).filter(|parent| !parent.is_empty()).collect()
}

impl Step for Sandbox {
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        self.machine.0.lock().unwrap().log.push(format!("run {}", spec.argv.join(" ")));
        let line = spec.argv.last().cloned().unwrap_or_default();
        let code = self.shell(&line, &spec, output);
        ready(code)
    }

    fn unpack<'a>(
        &'a mut self,
        target: &'a str,
        owner: Owner,
        mode: Option<u32>,
        mut tar: Tar,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            assert!(target == "/" || self.now.get(target).is_some_and(|node| node.kind == 'd'), "{target}");
            let mut bytes = Vec::new();
            tar.read_to_end(&mut bytes).await.unwrap();
            let mut archive = tar::Archive::new(&bytes[..]);
            for entry in archive.entries().unwrap() {
                let mut entry = entry.map_err(|error| no_such(error.to_string()))?;
                let header = entry.header().clone();
                let name = entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
                let (kind, mut content) = match header.entry_type() {
                    tar::EntryType::Directory => ('d', String::new()),
                    tar::EntryType::Symlink => {
                        ('l', entry.link_name().unwrap().unwrap().to_string_lossy().into_owned())
                    }
                    _ => ('f', String::new()),
                };
                if kind == 'f' {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(|error| no_such(error.to_string()))?;
                    content = String::from_utf8_lossy(&bytes).into_owned();
                }
                let owner = match &owner {
                    Owner::Root => "0:0".to_owned(),
                    Owner::Keep => format!("{}:{}", header.uid().unwrap(), header.gid().unwrap()),
                    Owner::Spec(spec) => spec.clone(),
                };
                let own = header.mode().unwrap();
                let mode = if kind == 'l' { 0o777 } else { mode.unwrap_or(own) };
                let path = format!("{}/{name}", target.trim_end_matches('/'));
                self.put(path, Node { kind, mode, owner, content });
            }
            Ok(())
        })
    }

    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar> {
        let mut builder = tar::Builder::new(Vec::new());
        let single = self.now.get(path).is_some_and(|node| node.kind != 'd');
        let prefix =
            if single { format!("{}/", path.rsplit_once('/').unwrap().0) } else { format!("{path}/") };
        for (name, node) in &self.now {
            let Some(relative) = name.strip_prefix(&prefix) else { continue };
            if single && name != path {
                continue;
            }
            let (uid, gid) = node.owner.split_once(':').unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(uid.parse().unwrap());
            header.set_gid(gid.parse().unwrap());
            header.set_size(if node.kind == 'f' { node.content.len() as u64 } else { 0 });
            header.set_entry_type(match node.kind {
                'd' => tar::EntryType::Directory,
                'l' => tar::EntryType::Symlink,
                _ => tar::EntryType::Regular,
            });
            match node.kind {
                'l' => builder.append_link(&mut header, relative, &node.content).unwrap(),
                'd' => builder.append_data(&mut header, relative, std::io::empty()).unwrap(),
                _ => builder.append_data(&mut header, relative, node.content.as_bytes()).unwrap(),
            }
        }
        ready(Box::new(std::io::Cursor::new(builder.into_inner().unwrap())) as Tar)
    }

    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>> {
        let pattern = Pattern::go(pattern).unwrap();
        ready(self.now.keys().filter(|path| pattern.matches(path)).cloned().collect())
    }

    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>> {
        ready(match self.now.get(path).map(|node| node.kind) {
            _ if path == "/" => Some(Stat::Dir),
            Some('d') => Some(Stat::Dir),
            Some(_) => Some(Stat::File),
            None => None,
        })
    }

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        for part in parents(path).into_iter().chain([path.to_owned()]).filter(|part| part != "/") {
            let made = Node { owner: owner.unwrap_or("0:0").to_owned(), ..node('d', 0o755, "") };
            self.now.entry(part).or_insert(made);
        }
        ready(())
    }

    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        let Self { machine, before, now } = *self;
        let visible = |path: &str| !path.starts_with("/dev/") && path != "/dev";
        let changed: Tree =
            now.into_iter().filter(|(path, node)| visible(path) && before.get(path) != Some(node)).collect();
        let mut state = machine.0.lock().unwrap();
        if changed.is_empty() {
            return ready(None);
        }
        let id = LayerId(format!("sha256:layer-{}", state.layers.len() + 1));
        state.layers.insert(id.clone(), changed);
        ready(Some(id))
    }
}
