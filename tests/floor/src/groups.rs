//! Control groups with the limits that a sandbox has: one group where the hierarchy is v2, one in each of several
//! where it is v1.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

const ROOT: &str = "/sys/fs/cgroup";
/// v1 controllers that a sandbox is in, and the files that limit it.
const V1: [(&str, &[(&str, &str)]); 4] = [
    ("memory", &[("memory.limit_in_bytes", "67108864")]),
    ("cpu", &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]),
    ("pids", &[("pids.max", "128")]),
    ("cpuacct", &[]),
];
const V2: &[(&str, &str)] = &[("memory.max", "67108864"), ("cpu.max", "100000 100000"), ("pids.max", "128")];
/// A group is busy for a moment after its last process was reaped.
const RMDIR_TRIES: u32 = 10_000;

type Limits = Vec<(&'static str, &'static str)>;

/// A directory of this program in each hierarchy, removed at the end.
#[derive(Debug)]
pub(crate) struct Hierarchies(Vec<(PathBuf, Limits)>);

impl Hierarchies {
    /// Finds out what the machine has, and makes the directories.
    pub(crate) fn make() -> anyhow::Result<Self> {
        let name = format!("berth-floor-{}", std::process::id());
        let v2 = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
        let found = match v2.split_whitespace().any(|controller| controller == "memory") {
            true => vec![(Path::new(ROOT).join(name), V2.to_vec())],
            false => v1().into_iter().map(|(dir, limits)| (dir.join(&name), limits)).collect(),
        };
        anyhow::ensure!(!found.is_empty(), "no control groups at {ROOT}");
        let mut made = Self(Vec::new());
        for (dir, limits) in found {
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            let v2 = limits == V2;
            made.0.push((dir.clone(), limits));
            if v2 {
                delegate(&dir)?;
            }
        }
        Ok(made)
    }

    /// Makes a group with limits in each.
    pub(crate) fn group(&self, number: u64) -> anyhow::Result<Group> {
        let mut group = Group { dirs: Vec::new(), procs: Vec::new() };
        for (parent, limits) in &self.0 {
            let dir = parent.join(number.to_string());
            fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
            group.dirs.push(dir.clone());
            for (file, value) in limits {
                let file = dir.join(file);
                fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
            }
            // A thread moves without the lock that keeps every process of the machine from starting threads, and whoever
            // enters has one. Version 2 does not let threads of ordinary groups move.
            let procs = dir.join(if *limits == V2 { "cgroup.procs" } else { "tasks" });
            let open = OpenOptions::new().write(true).open(&procs);
            group.procs.push(open.with_context(|| format!("opening {}", procs.display()))?);
        }
        Ok(group)
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for (dir, _) in &self.0 {
            if let Err(error) = fs::remove_dir(dir) {
                eprintln!("berth-floor: removing {}: {error}", dir.display());
            }
        }
    }
}

/// Has groups below this one limited. What the root group does not give is asked of it first, as any engine must.
fn delegate(dir: &Path) -> anyhow::Result<()> {
    let given = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let given: BTreeSet<&str> = given.split_whitespace().collect();
    let missing = ["memory", "cpu", "pids"].into_iter().filter(|controller| !given.contains(controller));
    for controller in missing {
        let file = Path::new(ROOT).join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}")).with_context(|| format!("writing {}", file.display()))?;
    }
    let file = dir.join("cgroup.subtree_control");
    fs::write(&file, "+memory +cpu +pids").with_context(|| format!("writing {}", file.display()))
}

/// The hierarchies of v1 that hold one of the controllers; where two share one, it is there once.
fn v1() -> Vec<(PathBuf, Limits)> {
    let mut found: Vec<(PathBuf, Limits)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (controller, limits) in V1 {
        let Ok(dir) = Path::new(ROOT).join(controller).canonicalize() else { continue };
        if seen.insert(dir.clone()) {
            found.push((dir, limits.to_vec()));
        } else if let Some((_, all)) = found.iter_mut().find(|(path, _)| *path == dir) {
            all.extend_from_slice(limits);
        }
    }
    found
}

/// One sandbox's groups; removed when dropped, where [`Group::remove`] did not.
#[derive(Debug)]
pub(crate) struct Group {
    dirs: Vec<PathBuf>,
    /// The file of each by which one enters, open for writing.
    procs: Vec<File>,
}

impl Group {
    /// Moves the calling process in.
    pub(crate) fn enter(&self) -> anyhow::Result<()> {
        for procs in &self.procs {
            rustix::io::write(procs, b"0").context("entering a control group")?;
        }
        Ok(())
    }

    /// Removes them all; they must be empty.
    pub(crate) fn remove(mut self) -> anyhow::Result<()> {
        while let Some(dir) = self.dirs.pop() {
            remove(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for dir in &self.dirs {
            if let Err(error) = remove(dir) {
                eprintln!("berth-floor: removing {}: {error}", dir.display());
            }
        }
    }
}

fn remove(dir: &Path) -> std::io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && tries < RMDIR_TRIES => {
                tries += 1;
                std::thread::yield_now();
            }
            done => return done,
        }
    }
}
