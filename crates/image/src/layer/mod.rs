//! Layers as directory trees: into the store ([`unpack`]), out of it ([`pack`], [`split`]), and their facts ([`survey`]).

pub(crate) mod pack;
pub(crate) mod split;
pub(crate) mod tar_reader;
pub(crate) mod unpack;
pub(crate) mod walk;

use std::collections::HashSet;
use std::path::Path;

use rustix::fs::{FileType, Stat};

use walk::WalkError;

/// Marks a directory that hides everything below it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// Names and values, both any bytes: extended attributes, pax records.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Sum of the regular files' sizes, each counted once however many names it has.
    pub(crate) size_bytes: u64,
    /// Names in the tree, its root not counted.
    pub(crate) files: u64,
    /// Whether programs can gain privileges by files in it.
    pub(crate) privileged_files: bool,
    /// The highest user or group id that a file in it belongs to.
    pub(crate) highest_id: u32,
}

/// A character device 0:0: what overlayfs takes for a deletion.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Walks the tree for its facts.
pub(crate) fn survey(root: &Path) -> Result<Facts, WalkError> {
    let mut facts = Facts::default();
    let mut counted = HashSet::new();
    walk::walk::<WalkError>(root, &mut |node| {
        facts.files += u64::from(!node.path.is_empty());
        // Deletions belong to nobody: overlayfs shows nothing of them.
        if !is_whiteout(&node.stat) {
            facts.highest_id = facts.highest_id.max(node.stat.st_uid).max(node.stat.st_gid);
        }
        if node.kind() == FileType::RegularFile {
            if node.stat.st_nlink < 2 || counted.insert(node.stat.st_ino) {
                facts.size_bytes += u64::try_from(node.stat.st_size).unwrap_or(0);
            }
            facts.privileged_files = facts.privileged_files
                || node.stat.st_mode & 0o6000 != 0
                || node.has_xattr(c"security.capability");
        }
        Ok(())
    })?;
    Ok(facts)
}

#[cfg(test)]
mod split_tests;
#[cfg(test)]
mod tests;
