//! Looking up what paths and patterns mean in the build context.
//!
//! As in Docker, a path never leaves the context: `..` at its top stays there. A symbolic link that leads out is refused.

use std::collections::HashSet;

use super::copy::{PlannedSource, is_left_out};
use super::stage::absolute;
use crate::archive::{self, Compression};
use crate::context::{Context, EntryKind, Unresolved};
use crate::error::Error;
use crate::fault::Problem;
use crate::ignore::Ignore;
use crate::instruction::Copy;
use crate::pattern::{Pattern, has_wildcards};
use crate::source::Span;
use crate::syntax::Statement;

/// Looks sources up.
pub(super) struct Finder<'a> {
    context: &'a Context,
    statement: &'a Statement,
    /// Whether archives are looked for, to be unpacked.
    unpack: bool,
    parents: bool,
    excludes: Ignore,
    pub(super) found: Vec<PlannedSource>,
}

impl<'a> Finder<'a> {
    pub(super) fn new(context: &'a Context, statement: &'a Statement) -> Self {
        let (excludes, found) = (Ignore::default(), Vec::new());
        Self { context, statement, unpack: false, parents: false, excludes, found }
    }

    /// For the sources of a `COPY` or `ADD`.
    pub(super) fn of_copy(self, copy: &Copy, excludes: Ignore) -> Self {
        let unpack = copy.add && copy.unpack.unwrap_or(true);
        Self { unpack, parents: copy.parents, excludes, ..self }
    }

    fn fault(&self, span: Span, problem: Problem) -> Error {
        self.statement.fault(span, problem).into()
    }

    fn missing(&self, written: &str, relative: &str, span: Span) -> Error {
        let (path, place) = (written.to_owned(), "the build context".to_owned());
        let excluded_by = self.context.excluded_by(relative);
        self.fault(span, Problem::SourceMissing { path, place, excluded_by })
    }

    /// Adds what a path means. False when it is a pattern that matches nothing.
    pub(super) fn add_path(&mut self, path: &str, span: Span) -> Result<bool, Error> {
        if self.parents {
            return self.add_parents(path, span);
        }
        let relative = inside(path);
        if has_wildcards(&relative) {
            let matches = self.matches(path, &relative, span)?;
            for path in matches.iter().filter(|path| !self.excludes_name(path)).cloned().collect::<Vec<_>>() {
                self.add_found(&path, &path, span)?;
            }
            return Ok(!matches.is_empty());
        }
        self.add_found(path, &relative, span)?;
        Ok(true)
    }

    /// The paths that a pattern matches. The parts before its first wildcard are a path, the rest is matched against
    /// everything below it.
    fn matches(&self, written: &str, relative: &str, span: Span) -> Result<Vec<String>, Error> {
        let parts: Vec<&str> = relative.split('/').collect();
        let first = parts.iter().position(|part| has_wildcards(part)).unwrap_or(0);
        let compiled = self.pattern(Pattern::go(&parts[first..].join("/")), written, span)?;
        let dir = match self.context.resolve(&parts[..first].join("/")) {
            Ok(dir) => dir,
            Err(Unresolved::Missing) => return Ok(Vec::new()),
            Err(Unresolved::Escapes(path)) => return Err(self.fault(span, Problem::SourceEscapes { path })),
        };
        let below = self.context.below(&dir).into_iter().filter(|(name, _)| compiled.matches(name));
        Ok(below.map(|(name, _)| joined(&dir, &name)).collect())
    }

    fn pattern(
        &self,
        compiled: Result<Pattern, crate::pattern::BadPattern>,
        written: &str,
        span: Span,
    ) -> Result<Pattern, Error> {
        compiled.map_err(|source| self.fault(span, Problem::Pattern { pattern: written.to_owned(), source }))
    }

    /// Whether a source itself is excluded, by its name or its path.
    fn excludes_name(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        self.excludes.excludes(path) || self.excludes.excludes(name)
    }

    /// Adds what a path or pattern means with the directories above it, those up to a `/./` not.
    fn add_parents(&mut self, written: &str, span: Span) -> Result<bool, Error> {
        let (pivot, rest) = written.split_once("/./").unwrap_or(("", written));
        let (pivot, rest) = (inside(pivot), inside(rest));
        let dirs = match has_wildcards(&pivot) {
            true => self.matches(written, &pivot, span)?,
            false => vec![self.resolve(written, &pivot, span)?],
        };
        let compiled = self.pattern(Pattern::ignore(&rest), written, span)?;
        let included =
            |path: &str| rest.is_empty() || self_and_above(path).any(|part| compiled.matches(part));
        let mut any = false;
        for dir in dirs {
            let below = self.context.below(&dir);
            if rest.is_empty() || below.iter().any(|(name, _)| included(name)) {
                any = true;
                let without = self.left_out(&dir, &included);
                self.check_special(&dir, &without, span)?;
                self.found.push(PlannedSource::Dir { path: dir, without });
            }
        }
        match any || has_wildcards(&pivot) || has_wildcards(&rest) {
            true => Ok(any),
            false => Err(self.missing(written, &joined(&pivot, &rest), span)),
        }
    }

    /// What is not copied of a directory: what is not included or is excluded, and has nothing below it that is.
    fn left_out(&self, dir: &str, included: &dyn Fn(&str) -> bool) -> Vec<String> {
        let below = self.context.below(dir);
        let mut kept: HashSet<&str> = HashSet::new();
        for (name, _) in below.iter().filter(|(name, _)| included(name) && !self.excludes.excludes(name)) {
            kept.extend(self_and_above(name));
        }
        let parent = |name: &'_ str| name.rsplit_once('/').is_none_or(|(parent, _)| kept.contains(parent));
        let out = below.iter().filter(|(name, _)| !kept.contains(name.as_str()) && parent(name));
        let mut out: Vec<String> = out.map(|(name, _)| name.clone()).collect();
        out.sort();
        out
    }

    fn add_found(&mut self, written: &str, relative: &str, span: Span) -> Result<(), Error> {
        let path = self.resolve(written, relative, span)?;
        let kind = self.context.entry(&path).map_or(&EntryKind::Dir, |entry| &entry.kind);
        if *kind == EntryKind::Dir {
            let without = self.left_out(&path, &|_| true);
            self.check_special(&path, &without, span)?;
            self.found.push(PlannedSource::Dir { path, without });
            return Ok(());
        }
        self.check_special(&path, &[], span)?;
        if !self.excludes_name(relative) {
            let archive = self.archive(&path)?;
            let name = relative.rsplit('/').next().unwrap_or_default().to_owned();
            self.found.push(PlannedSource::File { path, name, archive });
        }
        Ok(())
    }

    /// Where a path leads, all symbolic links followed.
    pub(super) fn resolve(&self, written: &str, relative: &str, span: Span) -> Result<String, Error> {
        self.context.resolve(relative).map_err(|unresolved| match unresolved {
            Unresolved::Escapes(path) => self.fault(span, Problem::SourceEscapes { path }),
            Unresolved::Missing => self.missing(written, relative, span),
        })
    }

    /// Nothing of what is copied is a device or the like.
    pub(super) fn check_special(&self, path: &str, without: &[String], span: Span) -> Result<(), Error> {
        let special = |entry: &crate::context::Entry| match entry.kind {
            EntryKind::Special(kind) => Some(kind),
            _ => None,
        };
        let own = self.context.entry(path).and_then(special).map(|kind| (path.to_owned(), kind));
        let below = || {
            let entries = self.context.below(path).into_iter();
            entries
                .filter(|(name, _)| !is_left_out(name, without))
                .find_map(|(name, entry)| Some((joined(path, &name), special(entry)?)))
        };
        match own.or_else(below) {
            Some((path, kind)) => Err(self.fault(span, Problem::SpecialFile { path, kind })),
            None => Ok(()),
        }
    }

    fn archive(&self, path: &str) -> Result<Option<Compression>, Error> {
        let empty = matches!(self.context.entry(path).map(|entry| &entry.kind), Some(EntryKind::File(0)));
        if !self.unpack || empty {
            return Ok(None);
        }
        let sniffed = self.context.open_file(path).and_then(archive::sniff);
        Ok(sniffed.map_err(|source| self.context.unreadable(path, source))?)
    }
}

/// A path within the context: without `.`, and `..` never above the top.
fn inside(path: &str) -> String {
    absolute("/", path)[1..].to_owned()
}

fn joined(dir: &str, name: &str) -> String {
    match (dir, name) {
        ("", name) => name.to_owned(),
        (dir, "") => dir.to_owned(),
        (dir, name) => format!("{dir}/{name}"),
    }
}

/// A path and every directory above it.
fn self_and_above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).chain(std::iter::once(path))
}
