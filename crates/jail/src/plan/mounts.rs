//! What is mounted beside the root: overlays of other layers, directories, memory.
//!
//! The order is that of all plans. Directories are opened, and overlays mounted, while the host's files have names;
//! of an overlay only the detached tree of what is shown of it comes along, the mount itself goes with the old root. What is
//! in memory is made when the container's root is there.

use std::path::{Path, PathBuf};

use crate::plan::op::{Bytes, Flag, Inside, Mount as MemoryMount, Op, Tree};
use crate::plan::{Facts, overlay};
use crate::spec::{Mount, MountSource, Spec};

/// The mounts of a spec, their trees numbered.
pub(super) struct Mounts<'a> {
    spec: &'a Spec,
    facts: &'a Facts,
    /// Number of the first tree that is a directory's.
    first: usize,
    /// Directories that must be seen with the container's ids.
    dirs: Vec<PathBuf>,
}

impl<'a> Mounts<'a> {
    /// Of a spec, whose trees so far are those below `first`.
    pub(super) fn new(spec: &'a Spec, facts: &'a Facts, first: usize) -> Self {
        let dirs = if spec.ids.is_some() { mapped_dirs(spec) } else { Vec::new() };
        Self { spec, facts, first, dirs }
    }

    /// What is opened of the host before anything is covered.
    pub(super) fn open(&self) -> impl Iterator<Item = Op> {
        let mapped = self.spec.ids.is_some();
        self.directories().map(move |(source, read_only)| {
            Op::OpenTree(Tree { source: source.to_owned(), read_only, device: false, mapped })
        })
    }

    /// The directories behind the root and these mounts, which are to be covered; the outer before the inner.
    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Number of the first tree of those.
    pub(super) fn first_mapped(&self) -> usize {
        self.first + self.directories().count()
    }

    /// The overlays, and what is shown of each.
    pub(super) fn make(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        for mount in &self.spec.mounts {
            let MountSource::Layers { lowers, upper, work, path } = &mount.source else { continue };
            ops.push(overlay(self.spec, self.facts, lowers, upper, work));
            let (root, path) = (upper.clone(), path.clone());
            ops.push(Op::OpenInside(Inside { root, path, read_only: mount.read_only }));
        }
        ops
    }

    /// All of them put to their places, in order.
    pub(super) fn attach(&self) -> Vec<Op> {
        let (mut directories, mut overlays) = (self.first.., self.first_mapped() + self.dirs.len()..);
        let attach = |mount: &Mount| {
            let tree = match &mount.source {
                MountSource::Directory(_) => directories.next()?,
                MountSource::Layers { .. } => overlays.next()?,
                _ => return Some(self.memory(mount)),
            };
            Some(Op::AttachMount { tree, target: mount.target.clone() })
        };
        self.spec.mounts.iter().filter_map(attach).collect()
    }

    fn memory(&self, mount: &Mount) -> Op {
        let Mount { target, read_only, source } = mount;
        let first = self.spec.ids.map_or(0, |ids| ids.first);
        if let MountSource::Bytes { contents, uid, gid, mode } = source {
            let (contents, uid, gid) = (contents.clone(), first + uid, first + gid);
            return Op::MountBytes(Bytes {
                target: target.clone(),
                read_only: *read_only,
                contents,
                uid,
                gid,
                mode: *mode,
            });
        }
        let size = match source {
            // To the kernel 0 is no limit at all.
            MountSource::Tmpfs { size: Some(size) } if *size > 0 => format!(",size={size}"),
            _ => String::new(),
        };
        let owner = self.spec.ids.map_or_else(String::new, |_| format!(",uid={first},gid={first}"));
        let flags = [Some(Flag::NoDev), read_only.then_some(Flag::ReadOnly)];
        Op::MountMemory(MemoryMount {
            file_system: "tmpfs".to_owned(),
            target: target.clone(),
            flags: flags.into_iter().flatten().collect(),
            options: format!("mode=1777{size}{owner}"),
        })
    }

    fn directories(&self) -> impl Iterator<Item = (&'a Path, bool)> + use<'a> {
        self.spec.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Directory(source) => Some((source.as_path(), mount.read_only)),
            _ => None,
        })
    }
}

fn mapped_dirs(spec: &Spec) -> Vec<PathBuf> {
    // Upper and work through one mount, as overlayfs asks.
    let mut dirs: Vec<PathBuf> = spec.root.upper.parent().map(Path::to_owned).into_iter().collect();
    let has_layers =
        |mount: &Mount| matches!(&mount.source, MountSource::Layers { lowers, .. } if !lowers.is_empty());
    if !spec.root.lowers.is_empty() || spec.mounts.iter().any(has_layers) {
        dirs.push(spec.root.layers_dir.clone());
    }
    dirs.sort_by_key(|dir| dir.components().count());
    dirs.dedup();
    dirs
}
