//! Which entries of a tree go into an archive.
//!
//! Two ways to choose meet here. `exclude` prunes whatever it names, as GNU tar does. `include` and `exclude_files` ask
//! for files alone: where there are any, nothing but regular files that were chosen comes along, without the
//! directories that hold them. `protect` names files that come along whatever the others say.

use std::collections::HashSet;

use berth_wire::Pack;

use crate::pattern::{Excludes, FileGlobs};

pub(crate) struct Selection {
    excludes: Excludes,
    include: FileGlobs,
    exclude_files: FileGlobs,
    protect: HashSet<Vec<u8>>,
}

/// How much of a directory comes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What the patterns say.
    Chosen,
    /// Protected files below it.
    Protected,
}

impl Selection {
    pub(crate) fn new(request: &Pack) -> Self {
        Self {
            excludes: Excludes::new(&request.exclude),
            include: FileGlobs::new(&request.include),
            exclude_files: FileGlobs::new(&request.exclude_files),
            protect: request.protect.iter().map(|path| path.clone().into_bytes()).collect(),
        }
    }

    /// Whether nothing but regular files comes along.
    pub(crate) fn files_alone(&self) -> bool {
        !self.include.is_empty() || !self.exclude_files.is_empty()
    }

    /// How much of the directory `path` in one of which `above` comes along does so; `None` for nothing.
    pub(crate) fn dir(&self, path: &[u8], above: Extent) -> Option<Extent> {
        if above == Extent::Chosen && !self.excludes.has(path) {
            return Some(Extent::Chosen);
        }
        let below = |file: &Vec<u8>| file.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        self.protect.iter().any(below).then_some(Extent::Protected)
    }

    /// Whether anything else than a directory comes along.
    pub(crate) fn leaf(&self, path: &[u8], above: Extent, is_file: bool) -> bool {
        if self.files_alone() && !is_file {
            return false;
        }
        if self.protect.contains(path) {
            return true;
        }
        above == Extent::Chosen
            && !self.excludes.has(path)
            && (self.include.is_empty() || self.include.has(path))
            && !self.exclude_files.has(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
    }

    #[test]
    fn protected_files_come_along_out_of_what_is_excluded() {
        let request = Pack {
            exclude: strings(&["logs"]),
            protect: strings(&["logs/a/keep", "reward.txt"]),
            ..Pack::default()
        };
        let selection = Selection::new(&request);
        assert_eq!(selection.dir(b"logs", Extent::Chosen), Some(Extent::Protected));
        assert_eq!(selection.dir(b"logs/a", Extent::Protected), Some(Extent::Protected));
        assert_eq!(selection.dir(b"logs/b", Extent::Protected), None);
        assert_eq!(selection.dir(b"other", Extent::Chosen), Some(Extent::Chosen));
        assert!(selection.leaf(b"logs/a/keep", Extent::Protected, true));
        assert!(!selection.leaf(b"logs/a/other", Extent::Protected, true));
        assert!(selection.leaf(b"link", Extent::Chosen, false), "no file was asked for by name");
    }

    #[test]
    fn files_that_are_left_out_win_over_those_that_are_wanted() {
        let request = Pack {
            include: strings(&["*.log", "*.txt"]),
            exclude_files: strings(&["a/*"]),
            protect: strings(&["a/reward.txt"]),
            ..Pack::default()
        };
        let selection = Selection::new(&request);
        for (path, is_file, wanted) in [
            ("x.log", true, true),
            ("b/c/x.log", true, true),
            ("a/x.log", true, false),
            ("a/reward.txt", true, true),
            ("a/reward.txt", false, false),
            ("x.md", true, false),
            ("x.log", false, false),
        ] {
            assert_eq!(selection.leaf(path.as_bytes(), Extent::Chosen, is_file), wanted, "{path}");
        }
    }
}
