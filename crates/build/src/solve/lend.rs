//! `COPY --from`: what paths and patterns mean in a stage or an image, and how it gets from there to the destination.
//!
//! Unlike the context, a stage is known only when it is there: patterns are matched then, and `--parents` and
//! `--exclude` are applied to the tar on its way ([`Edit`]).

use berth_types::image::BuildWarning;

use super::copy::{Changes, Copying};
use super::digest;
use super::edit::{self, Edit};
use super::stages::Solver;
use super::tars::{self, Item, joined};
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::Root;
use crate::ignore::Ignore;
use crate::key::{Digest, Hasher};
use crate::pattern::{Pattern, has_wildcards};
use crate::plan::{CopyPlan, CopyRoot, PlannedSource, PlannedStep};
use crate::runner::{Attributes, LayerId, Owner, RunnerError, Stat, Step};
use crate::source::Span;

/// A stage or an image that lends files to a step, and which.
pub(super) struct Lending {
    from: Box<dyn Step>,
    found: Vec<Found>,
    /// Whether the destination is a directory since there are several sources.
    several: bool,
}

/// A source found in a stage or an image.
struct Found {
    path: String,
    is_dir: bool,
    /// What becomes of it on its way, but for the name that a single file gets.
    edit: Edit,
}

/// A source on the way to be one.
struct Candidate {
    /// Directory that `--parents` keeps nothing of, nor of what is above it.
    from: String,
    path: String,
    /// Directory below the destination that it goes to.
    below: String,
    is_dir: bool,
    /// What of a directory is meant.
    includes: Option<Pattern>,
    /// What stands in the Dockerfile.
    written: String,
}

impl Solver<'_> {
    /// Looks for what a `COPY --from` means in the stage or image of these layers.
    pub(super) async fn lending(
        &self,
        step: &PlannedStep,
        plan: &CopyPlan,
        layers: &[LayerId],
    ) -> Result<Lending, Error> {
        let changes = self.changes(step, plan)?;
        let from = self.runner.lend(layers).await;
        let mut from = from.map_err(|source| self.failed(step, "open a sandbox", source))?;
        let mut candidates = Vec::new();
        for source in &plan.sources {
            if let PlannedSource::Elsewhere { path, span } = source {
                let excludes = changes.excludes.as_ref();
                candidates.extend(self.find(step, plan, excludes, from.as_mut(), path, *span).await?);
            }
        }
        let several = candidates.len() > 1;
        let mut found = Vec::new();
        for candidate in candidates {
            found.extend(self.surveyed(step, &changes, from.as_mut(), candidate).await?);
        }
        Ok(Lending { from, found, several })
    }

    /// What of a source is copied, and how; `None` for a pattern that takes nothing of it.
    async fn surveyed(
        &self,
        step: &PlannedStep,
        changes: &Changes,
        from: &mut dyn Step,
        candidate: Candidate,
    ) -> Result<Option<Found>, Error> {
        let unreadable = |source| self.failed(step, "read the files to copy", source);
        let Candidate { from: pivot, path, below, is_dir, includes, written } = candidate;
        let ways = self.ways_lent(step, from, &pivot, &below).await?;
        let excludes = changes.excludes.clone().filter(|_| is_dir);
        let mut edit =
            Edit { below, ways, includes, excludes, modes: changes.modes.clone(), ..Edit::default() };
        if edit.chooses() {
            let tar = from.pack(&path).await.map_err(unreadable)?;
            edit = edit.survey(tar).await.map_err(|source| {
                let message = "cannot read the files of a stage".to_owned();
                unreadable(RunnerError::Infrastructure { message, source: Some(source.into()) })
            })?;
            if edit.takes_some() && !edit.keeps_any() {
                self.matches_nothing(step, &written);
                return Ok(None);
            }
        }
        Ok(Some(Found { path, is_dir, edit }))
    }

    /// Digest of the files that are lent, as they come to the destination.
    pub(super) async fn lending_digest(
        &self,
        step: &PlannedStep,
        lending: &mut Lending,
    ) -> Result<Digest, Error> {
        let unreadable = |source| self.failed(step, "read the files to copy", source);
        let mut key = Hasher::new("berth lent 1");
        key.field([u8::from(lending.several)]);
        for Found { path, is_dir, edit } in &lending.found {
            let tar = lending.from.pack(path).await.map_err(unreadable)?;
            let digest = match edit.is_nothing() {
                true => digest::of_tar(tar).await,
                false => edit::edited(tar, edit.clone()).digest().await,
            };
            // Of a file the name matters, where the destination is a directory; of a directory it never does.
            let name = if *is_dir { "" } else { path.rsplit('/').next().unwrap_or_default() };
            key.field(name).field([u8::from(*is_dir)]).field(digest.map_err(unreadable)?.to_string());
        }
        Ok(key.finish())
    }

    pub(super) async fn copy_lent(&self, copying: &mut Copying<'_>, lending: Lending) -> Result<(), Error> {
        let plan = copying.plan;
        let Lending { mut from, found, several } = lending;
        let into = plan.into || several;
        for source in &plan.sources {
            if let PlannedSource::Inline { name, content } = source {
                let (dir, name) = self.file_target(copying, name, into).await?;
                let dir = self.directory(copying, dir).await?;
                let item = Item::Text { name, content: content.clone() };
                let context = self.prepared.context.clone();
                let stream = tars::context(context, vec![item], copying.changes.modes.clone());
                let owner = copying.owner();
                self.unpack(copying, stream, &dir, owner, plan.bits()).await?;
            }
        }
        for found in found {
            self.copy_found(copying, from.as_mut(), found, into).await?;
        }
        Ok(())
    }

    async fn copy_found(
        &self,
        copying: &mut Copying<'_>,
        from: &mut dyn Step,
        found: Found,
        into: bool,
    ) -> Result<(), Error> {
        let (step, plan) = (copying.step, copying.plan);
        let owner = plan.chown.clone().map_or(Owner::Keep, Owner::Spec);
        let Found { path, is_dir, mut edit } = found;
        let dir = if is_dir {
            plan.dest.clone()
        } else {
            let name = path.rsplit('/').next().unwrap_or_default();
            let (dir, name) = self.file_target(copying, name, into || plan.parents).await?;
            edit.rename = Some(name);
            dir
        };
        let tar = from.pack(&path).await;
        let tar = tar.map_err(|source| self.failed(step, "read the files to copy", source))?;
        let dir = self.directory(copying, dir).await?;
        if edit.is_nothing() {
            let unpacked = copying.sandbox.unpack(&dir, owner, plan.bits(), tar).await;
            return unpacked.map_err(|source| self.failed(step, "copy the files", source));
        }
        self.unpack(copying, edit::edited(tar, edit), &dir, owner, plan.bits()).await
    }

    /// What a path or pattern means in a stage or an image.
    async fn find(
        &self,
        step: &PlannedStep,
        plan: &CopyPlan,
        excludes: Option<&Ignore>,
        from: &mut dyn Step,
        written: &str,
        span: Span,
    ) -> Result<Vec<Candidate>, Error> {
        let (pivot, rest) = split(written);
        let (literal, pattern) = match plan.parents {
            true => literal(rest),
            false => (rest.to_owned(), None),
        };
        let compiled = pattern.as_deref().map(Pattern::ignore).transpose();
        let includes = compiled.map_err(|source| {
            let pattern = written.to_owned();
            Error::from(Fault::new(&step.source, span, Problem::Pattern { pattern, source }))
        })?;
        let mut found = Vec::new();
        for dir in self.matched(step, from, pivot).await? {
            let whole = absolute(&joined(&dir, &literal));
            for path in self.matched(step, from, &whole).await? {
                let stat = from.stat(&path).await;
                let stat = stat.map_err(|source| self.failed(step, "look for the files to copy", source))?;
                let is_dir = stat == Some(Stat::Dir);
                match stat {
                    // A pattern that goes on below what is no directory matches nothing there.
                    Some(_) if includes.is_some() && !is_dir => continue,
                    None if includes.is_some() => continue,
                    None => {
                        let place = self.place(&plan.root);
                        let problem = Problem::SourceMissing { path, place, excluded_by: None };
                        return Err(Fault::new(&step.source, span, problem).into());
                    }
                    Some(_) => {}
                }
                let below = if plan.parents { kept_parents(&dir, &path, is_dir) } else { String::new() };
                if is_excluded(excludes, &path, &below, is_dir && !has_wildcards(written)) {
                    continue;
                }
                let (from, includes, written) = (dir.clone(), includes.clone(), written.to_owned());
                found.push(Candidate { from, path, below, is_dir, includes, written });
            }
        }
        if found.is_empty() && has_wildcards(written) {
            self.matches_nothing(step, written);
        }
        Ok(found)
    }

    /// What the directories that `--parents` keeps are in the stage.
    async fn ways_lent(
        &self,
        step: &PlannedStep,
        from: &mut dyn Step,
        pivot: &str,
        below: &str,
    ) -> Result<Vec<Option<Attributes>>, Error> {
        let mut ways = Vec::new();
        let mut at = pivot.trim_end_matches('/').to_owned();
        for part in below.split('/').filter(|part| !part.is_empty()) {
            at = format!("{at}/{part}");
            let found = from.attributes(&at).await;
            ways.push(found.map_err(|source| self.failed(step, "look at the files to copy", source))?);
        }
        Ok(ways)
    }

    /// The paths that a path or pattern of a stage means.
    async fn matched(
        &self,
        step: &PlannedStep,
        from: &mut dyn Step,
        path: &str,
    ) -> Result<Vec<String>, Error> {
        match has_wildcards(path) {
            false => Ok(vec![path.to_owned()]),
            true => {
                let found = from.glob(path).await;
                found.map_err(|source| self.failed(step, "look for the files to copy", source))
            }
        }
    }

    /// A pattern that matches nothing is no error, as in BuildKit; but it is hardly meant.
    fn matches_nothing(&self, step: &PlannedStep, written: &str) {
        let written = written.replace("/./", "/");
        let (file, line) = step.source.file_and_line(step.span);
        let message = format!("`{written}` matches nothing");
        self.warn(BuildWarning { check: "CopyNothing".to_owned(), message, file, line });
    }

    fn place(&self, root: &CopyRoot) -> String {
        match root {
            CopyRoot::Root(Root::Stage(index)) => match &self.prepared.graph.stages[*index].name {
                Some(name) => format!("stage `{name}`"),
                None => format!("stage {index}"),
            },
            CopyRoot::Root(Root::Image(reference)) => format!("image `{reference}`"),
            _ => "the build context".to_owned(),
        }
    }
}

/// Splits a path with a `/./`, where `--parents` begins to keep directories, into what is before and after it.
fn split(path: &str) -> (&str, &str) {
    match path.split_once("/./") {
        Some(("", rest)) => ("/", rest),
        Some((pivot, rest)) => (pivot, rest),
        None => ("/", path.trim_start_matches('/')),
    }
}

/// Splits a pattern into the directories before its first wildcard, and the rest.
fn literal(pattern: &str) -> (String, Option<String>) {
    let parts: Vec<&str> = pattern.split('/').collect();
    match parts.iter().position(|part| has_wildcards(part)) {
        None => (pattern.to_owned(), None),
        Some(first) => (parts[..first].join("/"), Some(parts[first..].join("/"))),
    }
}

fn absolute(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    format!("/{}", parts.join("/"))
}

/// The directories of a path, seen from another one, that are kept: a directory's own, or those above a file.
fn kept_parents(from: &str, path: &str, is_dir: bool) -> String {
    let below = path.strip_prefix(from).unwrap_or(path).trim_matches('/');
    match is_dir {
        true => below.to_owned(),
        false => below.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned(),
    }
}

/// Whether a source itself is excluded, by its name or its path. A directory that was named is not.
fn is_excluded(excludes: Option<&Ignore>, path: &str, below: &str, named_dir: bool) -> bool {
    let Some(excludes) = excludes.filter(|_| !named_dir) else { return false };
    let name = path.rsplit('/').next().unwrap_or_default();
    [path.trim_start_matches('/'), name, &joined(below, name)].iter().any(|text| excludes.excludes(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_kept_from_the_pivot_on() {
        let table = [
            ("/./a/b/c", false, "a/b"),
            ("/./a/b/c", true, "a/b/c"),
            ("/a/./b/c", false, "b"),
            ("/a/b/./c", false, ""),
            ("/./a/b", true, "a/b"),
            ("/./c", false, ""),
        ];
        for (written, is_dir, wanted) in table {
            let (pivot, rest) = split(written);
            let path = absolute(&joined(pivot, rest));
            assert_eq!(kept_parents(pivot, &path, is_dir), wanted, "{written} {path}");
        }
        assert_eq!(literal("a/b/*.x/c"), ("a/b".to_owned(), Some("*.x/c".to_owned())));
        assert_eq!(literal("**/c"), (String::new(), Some("**/c".to_owned())));
    }
}
