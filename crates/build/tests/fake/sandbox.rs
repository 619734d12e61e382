//! One sandbox in memory.

use std::io::Read;

use berth_build::pattern::Pattern;
use berth_build::runner::{
    Answer, Attributes, LayerId, Mount, MountSource, Owner, RunSpec, Setting, Stat, Step, Tar,
};
use tokio::io::AsyncReadExt;

use super::{Machine, Node, Tree, merged, no_such, node, ready};

pub(crate) struct Sandbox {
    machine: Machine,
    before: Tree,
    pub(crate) now: Tree,
    mounts: Vec<Mounted>,
    /// Whether it can be given mounts while it is there.
    pub(crate) takes_mounts: bool,
}

struct Mounted {
    mount: Mount,
    /// What is there, by paths from the target: `""` for a file.
    tree: Tree,
}

impl Sandbox {
    pub(crate) fn new(machine: Machine, layers: &[LayerId], setting: Setting) -> Self {
        let before = {
            let mut state = machine.0.lock().unwrap();
            state.open += 1;
            state.peak = state.peak.max(state.open);
            merged(&state, layers)
        };
        let now = before.clone();
        let mut sandbox = Self { machine, before, now, mounts: Vec::new(), takes_mounts: false };
        sandbox.mount(setting);
        sandbox
    }

    fn mount(&mut self, setting: Setting) {
        let mut state = self.machine.0.lock().unwrap();
        self.mounts = setting
            .mounts
            .into_iter()
            .map(|mount| {
                let tree = match &mount.source {
                    MountSource::Layers { layers, path } => below(&merged(&state, layers), path),
                    MountSource::Cache { id, seed, .. } => {
                        let seed = seed.as_ref().map(|(layers, path)| below(&merged(&state, layers), path));
                        state.caches.entry(id.clone()).or_insert(seed.unwrap_or_default()).clone()
                    }
                    MountSource::Tmpfs { .. } => Tree::new(),
                    MountSource::Secret { bytes, mode, .. } => {
                        [(String::new(), node('f', *mode, &String::from_utf8_lossy(bytes)))].into()
                    }
                };
                Mounted { mount, tree }
            })
            .collect();
    }

    /// Where a path leads: to a mount by number and the path in it, or to the root.
    fn mounted(&self, path: &str) -> Option<(usize, String)> {
        let mut hits = self.mounts.iter().enumerate().rev().filter_map(|(number, mounted)| {
            let rest = path.strip_prefix(mounted.mount.target.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then(|| (number, rest.to_owned()))
        });
        hits.next()
    }

    fn put(&mut self, path: String, mut node: Node) {
        // A directory that exists merges.
        if node.kind == 'd' {
            node.content.clear();
        }
        self.now.insert(path, node);
    }

    /// Writes as a command does. False where that is not allowed.
    fn write(&mut self, path: &str, content: &str) -> bool {
        let node = node('f', 0o644, content);
        let Some((number, rest)) = self.mounted(path) else {
            self.put(path.to_owned(), node);
            return true;
        };
        let Mounted { mount, tree } = &mut self.mounts[number];
        if mount.read_only {
            return false;
        }
        tree.insert(rest, node.clone());
        if let MountSource::Cache { id, .. } = &mount.source {
            self.machine.0.lock().unwrap().caches.insert(id.clone(), tree.clone());
        }
        true
    }

    fn read(&self, path: &str) -> Option<String> {
        let found = match self.mounted(path) {
            Some((number, rest)) => self.mounts[number].tree.get(&rest),
            None => self.now.get(path),
        };
        found.map(|node| node.content.clone())
    }

    fn list(&self, path: &str) -> String {
        let (tree, prefix) = match self.mounted(path) {
            Some((number, rest)) => (&self.mounts[number].tree, rest),
            None => (&self.now, path.trim_end_matches('/').to_owned()),
        };
        let names: Vec<&str> =
            tree.keys().filter_map(|name| name.strip_prefix(&format!("{prefix}/"))).collect();
        names.join(" ")
    }

    /// `write PATH TEXT`, `copy FROM TO`, `echo TEXT`, `cat PATH`, `ls PATH`, `chunks TEXT` (a byte at a time), `mkfifo PATH`,
    /// `link TARGET PATH`, `env`, `meet NAME COUNT`, `hang`, `fail CODE`; anything else does nothing.
    async fn shell(&mut self, line: &str, spec: &RunSpec, output: &mut (dyn FnMut(&[u8]) + Send)) -> i32 {
        for command in line.split("&&").map(str::trim) {
            let words: Vec<&str> = command.split_whitespace().collect();
            match words.as_slice() {
                ["write", path, text @ ..] if !self.write(path, &text.join(" ")) => {
                    output(b"read-only\n");
                    return 30;
                }
                ["copy", from, to] => {
                    let Some(content) = self.read(from) else { return 1 };
                    self.write(to, &content);
                }
                ["mkfifo", path] => self.put((*path).to_owned(), node('p', 0o600, "")),
                ["link", target, path] => self.put((*path).to_owned(), node('l', 0o777, target)),
                ["hardlink", target, path] => self.put((*path).to_owned(), node('h', 0o644, target)),
                ["echo", text @ ..] => output(format!("{}\n", text.join(" ")).as_bytes()),
                ["chunks", text @ ..] => {
                    text.join(" ").as_bytes().chunks(1).for_each(&mut *output);
                    output(b"\n");
                }
                ["cat", path] => match self.read(path) {
                    Some(content) => output(format!("{content}\n").as_bytes()),
                    None => {
                        output(format!("no {path}\n").as_bytes());
                        return 1;
                    }
                },
                ["ls", path] => output(format!("{}\n", self.list(path)).as_bytes()),
                ["env"] => {
                    for (name, value) in &spec.env {
                        output(format!("{name}={value}\n").as_bytes());
                    }
                    output(format!("cwd={} user={}\n", spec.cwd, spec.user).as_bytes());
                }
                ["meet", name, count] if !self.machine.meet(name, count.parse().unwrap()).await => {
                    output(b"nobody came\n");
                    return 99;
                }
                ["hang"] => std::future::pending::<()>().await,
                ["fail", code] => return code.parse().unwrap(),
                _ => {}
            }
        }
        0
    }

    /// The path that a path leads to, links followed.
    fn resolve(&self, path: &str) -> String {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut at: Vec<String> = Vec::new();
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(part),
            }
            let Some(node) = self.now.get(&format!("/{}", at.join("/"))).filter(|node| node.kind == 'l')
            else {
                continue;
            };
            at.pop();
            if node.content.starts_with('/') {
                at.clear();
            }
            todo.extend(node.content.split('/').rev().map(str::to_owned));
        }
        format!("/{}", at.join("/"))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.machine.0.lock().unwrap().open -= 1;
    }
}

/// What stands at a path of a tree, by paths from there.
fn below(tree: &Tree, path: &str) -> Tree {
    let path = path.trim_end_matches('/');
    let inside = |name: &String| {
        let rest = name.strip_prefix(path)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
    };
    tree.iter().filter_map(|(name, node)| Some((inside(name)?, node.clone()))).collect()
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_owned()).filter(|parent| !parent.is_empty()).collect()
}

impl Step for Sandbox {
    fn set<'a>(&'a mut self, setting: Setting) -> Answer<'a, ()> {
        Box::pin(async move {
            if !self.takes_mounts && setting != Setting::default() {
                return Err(no_such("this sandbox takes no mounts".to_owned()));
            }
            self.mount(setting);
            Ok(())
        })
    }

    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        self.machine.0.lock().unwrap().log.push(format!("run {}", spec.argv.join(" ")));
        let line = spec.argv.last().cloned().unwrap_or_default();
        Box::pin(async move { Ok(self.shell(&line, &spec, output).await) })
    }

    fn unpack<'a>(
        &'a mut self,
        target: &'a str,
        owner: Owner,
        mode: Option<u32>,
        mut tar: Tar,
    ) -> Answer<'a, ()> {
        Box::pin(async move {
            let target = &self.resolve(target);
            assert!(target == "/" || self.now.get(target).is_some_and(|node| node.kind == 'd'), "{target}");
            let mut bytes = Vec::new();
            tar.read_to_end(&mut bytes).await.unwrap();
            let mut archive = tar::Archive::new(&bytes[..]);
            for entry in archive.entries().unwrap() {
                let mut entry = entry.map_err(|error| no_such(error.to_string()))?;
                let header = entry.header().clone();
                let name = entry.path().unwrap().to_string_lossy().trim_end_matches('/').to_owned();
                assert!(!name.is_empty() && !name.starts_with('/'), "{name}");
                let path = format!("{}/{name}", target.trim_end_matches('/'));
                let (kind, mut content) = match header.entry_type() {
                    tar::EntryType::Directory => ('d', String::new()),
                    tar::EntryType::Symlink => {
                        ('l', entry.link_name().unwrap().unwrap().to_string_lossy().into_owned())
                    }
                    tar::EntryType::Link => {
                        let link = entry.link_name().unwrap().unwrap().to_string_lossy().into_owned();
                        let earlier = format!("{}/{link}", target.trim_end_matches('/'));
                        assert!(self.now.contains_key(&earlier), "{path} is a link to nothing, {earlier}");
                        ('h', earlier)
                    }
                    tar::EntryType::Fifo => ('p', String::new()),
                    tar::EntryType::Regular => ('f', String::new()),
                    kind => return Err(no_such(format!("{path}: {kind:?} is refused"))),
                };
                if kind == 'f' {
                    let mut bytes = Vec::new();
                    entry.read_to_end(&mut bytes).map_err(|error| no_such(error.to_string()))?;
                    content = String::from_utf8_lossy(&bytes).into_owned();
                }
                let owner = match &owner {
                    Owner::Root => "0:0".to_owned(),
                    Owner::Keep | Owner::Archive => {
                        format!("{}:{}", header.uid().unwrap(), header.gid().unwrap())
                    }
                    Owner::Spec(spec) => spec.clone(),
                };
                let own = header.mode().unwrap();
                let mode = if kind == 'l' { 0o777 } else { mode.unwrap_or(own) };
                let mtime = header.mtime().unwrap();
                self.put(path, Node { kind, mode, owner, content, mtime });
            }
            Ok(())
        })
    }

    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar> {
        let path = &self.resolve(path);
        let mut builder = tar::Builder::new(Vec::new());
        let single = self.now.get(path).is_some_and(|node| node.kind != 'd');
        let prefix = if single {
            format!("{}/", path.rsplit_once('/').unwrap().0)
        } else {
            format!("{}/", path.trim_end_matches('/'))
        };
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
                'h' => tar::EntryType::Link,
                'p' => tar::EntryType::Fifo,
                _ => tar::EntryType::Regular,
            });
            match node.kind {
                'l' => builder.append_link(&mut header, relative, &node.content).unwrap(),
                'h' => builder.append_link(&mut header, relative, &node.content[prefix.len()..]).unwrap(),
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
        let path = self.resolve(path);
        ready(match self.now.get(&path).map(|node| node.kind) {
            _ if path == "/" => Some(Stat::Dir),
            Some('d') => Some(Stat::Dir),
            Some('f' | 'h') => Some(Stat::File),
            Some(_) => Some(Stat::Other),
            None => None,
        })
    }

    fn attributes<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Attributes>> {
        let node = self.now.get(&self.resolve(path));
        ready(node.map(|Node { mode, owner, .. }| {
            let (uid, gid) = owner.split_once(':').unwrap();
            Attributes { mode: *mode, uid: uid.parse().unwrap(), gid: gid.parse().unwrap() }
        }))
    }

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        let path = self.resolve(path);
        for part in parents(&path).into_iter().chain([path.clone()]).filter(|part| part != "/") {
            if self.now.get(&part).is_some_and(|node| node.kind != 'd') {
                return Box::pin(async move { Err(no_such(format!("{part} is no directory"))) });
            }
            let made = Node { owner: owner.unwrap_or("0:0").to_owned(), ..node('d', 0o755, "") };
            self.now.entry(part).or_insert(made);
        }
        ready(())
    }

    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        let mut own = self;
        let (before, now) = (std::mem::take(&mut own.before), std::mem::take(&mut own.now));
        let visible = |path: &str| !path.starts_with("/dev/") && path != "/dev";
        let changed: Tree =
            now.into_iter().filter(|(path, node)| visible(path) && before.get(path) != Some(node)).collect();
        let mut state = own.machine.0.lock().unwrap();
        if changed.is_empty() {
            drop(state);
            return ready(None);
        }
        let id = LayerId(format!("sha256:layer-{}", state.layers.len() + 1));
        state.layers.insert(id.clone(), changed);
        drop(state);
        ready(Some(id))
    }
}
