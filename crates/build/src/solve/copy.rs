//! `COPY` and `ADD`, carried out.
//!
//! As in BuildKit: a directory's contents merge into the destination; a file goes into a destination that is a
//! directory and otherwise takes its name. Directories that are missing are made 0755, and `--chown` owns them too,
//! but `--chmod` is only for what is copied. From the context files come as root's; from a stage they keep their owner.

use std::fs::File;

use super::chmod::Modes;
use super::edit::{self, Edit};
use super::stages::Solver;
use super::tars::{self, Item, Stream, joined};
use super::user;
use berth_types::image::BuildWarning;

use crate::archive;
use crate::context::Context;
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::Root;
use crate::ignore::Ignore;
use crate::pattern::{Pattern, has_wildcards};
use crate::plan::{Chmod, CopyPlan, CopyRoot, PlannedSource, PlannedStep};
use crate::runner::{Attributes, Fetched, LayerId, Owner, Remote, RunnerError, Setting, Stat, Step};
use crate::source::Span;

/// Permission bits of a file that came by HTTP, as documented.
const FETCHED_MODE: u32 = 0o600;

/// One `COPY` under way.
struct Copying<'a> {
    step: &'a PlannedStep,
    plan: &'a CopyPlan,
    sandbox: &'a mut dyn Step,
    /// `--chmod` with a symbolic mode.
    modes: Option<Modes>,
    /// `--exclude`.
    excludes: Option<Ignore>,
}

/// A source found in a stage or an image.
struct Found {
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

impl Copying<'_> {
    /// Owner of what has none of its own.
    fn owner(&self) -> Owner {
        self.plan.chown.clone().map_or(Owner::Root, Owner::Spec)
    }
}

impl Solver<'_> {
    /// Copies into a sandbox; `lender` are the layers of the stage or image that lends the files.
    pub(super) async fn copy(
        &self,
        step: &PlannedStep,
        plan: &CopyPlan,
        lender: Option<&[LayerId]>,
        sandbox: &mut dyn Step,
    ) -> Result<(), Error> {
        let modes = match &plan.chmod {
            Some(Chmod::Symbolic(text)) => Some(Modes::parse(text)),
            _ => None,
        };
        let modes = modes.transpose();
        let modes = modes.map_err(|error| self.failed(step, "copy the files", user(error.to_string())))?;
        let excludes = match plan.excludes.as_slice() {
            [] => None,
            patterns => Some(Ignore::of(patterns)),
        };
        let excludes = excludes.transpose();
        let excludes =
            excludes.map_err(|(_, error)| self.failed(step, "copy the files", user(error.to_string())))?;
        let mut copying = Copying { step, plan, sandbox, modes, excludes };
        match lender {
            None => self.copy_local(&mut copying).await,
            Some(lender) => {
                let from = self.runner.open(lender, Setting::default()).await;
                let mut from = from.map_err(|source| self.failed(step, "open a sandbox", source))?;
                self.copy_lent(&mut copying, from.as_mut()).await
            }
        }
    }

    async fn copy_local(&self, copying: &mut Copying<'_>) -> Result<(), Error> {
        let plan = copying.plan;
        let single = matches!(plan.sources.as_slice(), [_]);
        // What is no archive goes in one stream, as far as the order of sources lets it: hard links among it stay.
        let mut items = Vec::new();
        for source in &plan.sources {
            items.extend(ways(&self.prepared.context, source).map(|(name, mode)| Item::Dir { name, mode }));
            match source {
                PlannedSource::Dir { path, below, without } => items.push(Item::Tree {
                    path: path.clone(),
                    below: below.clone(),
                    without: without.clone(),
                }),
                PlannedSource::File { path, below, name, archive: None } => {
                    items.push(Item::File { path: path.clone(), name: joined(below, name) });
                }
                PlannedSource::Inline { name, content } => {
                    items.push(Item::Text { name: name.clone(), content: content.clone() });
                }
                PlannedSource::File { path, archive: Some(compression), .. } => {
                    self.flush(copying, &mut items).await?;
                    let dir = self.directory(copying, plan.dest.clone()).await?;
                    // An archive's entries bring owner and mode along; the flags are not for them.
                    let context = self.prepared.context.clone();
                    let stream = tars::archive(context, path.clone(), *compression);
                    self.unpack(copying, stream, &dir, Owner::Keep, None).await?;
                }
                PlannedSource::Fetched { remote, unpack, .. } => {
                    self.flush(copying, &mut items).await?;
                    self.copy_fetched(copying, remote, *unpack).await?;
                }
                // Only with `--from`, which is not local.
                PlannedSource::Elsewhere { .. } => {}
            }
        }
        if single && !plan.into {
            self.name_single(copying, &mut items).await?;
        }
        self.flush(copying, &mut items).await
    }

    /// Sends what has been gathered to the destination, a directory.
    async fn flush(&self, copying: &mut Copying<'_>, items: &mut Vec<Item>) -> Result<(), Error> {
        let items = std::mem::take(items);
        if items.is_empty() {
            return Ok(());
        }
        // A single file may have been given the whole path of its destination.
        let absolute = matches!(items.as_slice(), [Item::File { name, .. } | Item::Text { name, .. }] if name.starts_with('/'));
        let (dir, items) = match absolute {
            true => place(items),
            false => (copying.plan.dest.clone(), items),
        };
        let dir = self.directory(copying, dir).await?;
        let stream = tars::context(self.prepared.context.clone(), items, copying.modes.clone());
        let owner = copying.owner();
        self.unpack(copying, stream, &dir, owner, copying.plan.bits()).await
    }

    /// A single file without a slash after its destination takes the destination's name, unless that is a directory.
    async fn name_single(&self, copying: &mut Copying<'_>, items: &mut [Item]) -> Result<(), Error> {
        if let [Item::File { name, .. } | Item::Text { name, .. }] = items {
            let (dir, last) = self.file_target(copying, name, false).await?;
            *name = joined(if dir == "/" { "" } else { &dir }, &last);
            if !name.starts_with('/') {
                name.insert(0, '/');
            }
        }
        Ok(())
    }

    async fn copy_fetched(
        &self,
        copying: &mut Copying<'_>,
        remote: &Remote,
        unpack: bool,
    ) -> Result<(), Error> {
        let (step, plan) = (copying.step, copying.plan);
        let cannot = |source| self.failed(step, "copy what was fetched", source);
        let Some(fetched) = self.prepared.brought.remotes.get(remote) else {
            return Err(cannot(user(format!("`{}` was not fetched", remote.shown()))));
        };
        let mtime = fetched.modified.unwrap_or(0);
        if let Remote::Git { .. } = remote {
            let dir = self.directory(copying, plan.dest.clone()).await?;
            let (root, excludes) = (fetched.path.clone(), copying.excludes.clone());
            let stream = tars::directory(root, mtime, excludes, copying.modes.clone());
            let owner = copying.owner();
            return self.unpack(copying, stream, &dir, owner, plan.bits()).await;
        }
        let unreadable = |source: std::io::Error| {
            let message = "cannot read what was fetched".to_owned();
            cannot(RunnerError::Infrastructure { message, source: Some(source.into()) })
        };
        let file = File::open(&fetched.path).map_err(unreadable)?;
        if unpack
            && let Some(compression) =
                archive::sniff(file.try_clone().map_err(unreadable)?).map_err(unreadable)?
        {
            let dir = self.directory(copying, plan.dest.clone()).await?;
            let file = File::open(&fetched.path).map_err(unreadable)?;
            let stream = tars::brought_archive(file, compression);
            return self.unpack(copying, stream, &dir, Owner::Keep, None).await;
        }
        let name = file_name(remote, fetched);
        let file = File::open(&fetched.path).map_err(unreadable)?;
        let into = plan.into || unpack;
        let (dir, name) = match name {
            Some(name) => self.file_target(copying, &name, into).await?,
            None => self.nameless(copying, remote, into).await?,
        };
        let dir = self.directory(copying, dir).await?;
        let stream = tars::brought(file, name, FETCHED_MODE, mtime, copying.modes.clone());
        let owner = copying.owner();
        self.unpack(copying, stream, &dir, owner, plan.bits()).await
    }

    /// Where a file goes that has no name of its own.
    async fn nameless(
        &self,
        copying: &mut Copying<'_>,
        remote: &Remote,
        into: bool,
    ) -> Result<(String, String), Error> {
        const NONE: &str = "";
        let (dir, name) = self.file_target(copying, NONE, into).await?;
        if name != NONE {
            return Ok((dir, name));
        }
        let message = format!(
            "`{}` names no file, and the destination is a directory: name the file there",
            remote.shown()
        );
        Err(self.failed(copying.step, "copy what was fetched", user(message)))
    }

    async fn copy_lent(&self, copying: &mut Copying<'_>, from: &mut dyn Step) -> Result<(), Error> {
        let plan = copying.plan;
        let mut found = Vec::new();
        for source in &plan.sources {
            if let PlannedSource::Elsewhere { path, span } = source {
                found.extend(
                    self.find(copying.step, plan, copying.excludes.as_ref(), from, path, *span).await?,
                );
            }
        }
        let into = plan.into || found.len() > 1;
        for source in &plan.sources {
            if let PlannedSource::Inline { name, content } = source {
                let (dir, name) = self.file_target(copying, name, into).await?;
                let dir = self.directory(copying, dir).await?;
                let item = Item::Text { name, content: content.clone() };
                let context = self.prepared.context.clone();
                let stream = tars::context(context, vec![item], copying.modes.clone());
                let owner = copying.owner();
                self.unpack(copying, stream, &dir, owner, plan.bits()).await?;
            }
        }
        for found in found {
            self.copy_found(copying, from, found, into).await?;
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
        let unreadable = |source| self.failed(step, "read the files to copy", source);
        let owner = plan.chown.clone().map_or(Owner::Keep, Owner::Spec);
        let Found { from: pivot, path, below, is_dir, includes, written } = found;
        let ways = self.ways_lent(step, from, &pivot, &below).await?;
        let mut edit = Edit { below, ways, includes, modes: copying.modes.clone(), ..Edit::default() };
        let dir = if is_dir {
            edit.excludes = copying.excludes.clone();
            plan.dest.clone()
        } else {
            let name = path.rsplit('/').next().unwrap_or_default();
            let (dir, name) = self.file_target(copying, name, into || plan.parents).await?;
            edit.rename = Some(name);
            dir
        };
        if edit.chooses() {
            let tar = from.pack(&path).await.map_err(unreadable)?;
            edit = edit.survey(tar).await.map_err(|source| {
                let message = "cannot read the files of a stage".to_owned();
                unreadable(RunnerError::Infrastructure { message, source: Some(source.into()) })
            })?;
            if edit.takes_some() && !edit.keeps_any() {
                self.matches_nothing(step, &written);
                return Ok(());
            }
        }
        let tar = from.pack(&path).await.map_err(unreadable)?;
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
    ) -> Result<Vec<Found>, Error> {
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
                found.push(Found { from, path, below, is_dir, includes, written });
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
        self.warn(BuildWarning {
            check: "CopyNothing".to_owned(),
            message: format!("`{written}` matches nothing"),
            file: step.source.name.clone(),
            line: step.source.line_of(step.span.start),
        });
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

    /// Directory and name that a file gets.
    async fn file_target(
        &self,
        copying: &mut Copying<'_>,
        name: &str,
        into: bool,
    ) -> Result<(String, String), Error> {
        let dest = &copying.plan.dest;
        if into || dest == "/" {
            return Ok((dest.clone(), name.to_owned()));
        }
        let stat = copying.sandbox.stat(dest).await;
        let stat = stat.map_err(|source| self.failed(copying.step, "look at the destination", source))?;
        let (dir, last) = dest.rsplit_once('/').unwrap_or(("", dest));
        let dir = if dir.is_empty() { "/" } else { dir };
        Ok(match stat {
            Some(Stat::Dir) => (dest.clone(), name.to_owned()),
            _ => (dir.to_owned(), last.to_owned()),
        })
    }

    /// Makes a directory where it is missing. Anything else that stands there is in the way.
    async fn directory(&self, copying: &mut Copying<'_>, dir: String) -> Result<String, Error> {
        let stat = copying.sandbox.stat(&dir).await;
        match stat.map_err(|source| self.failed(copying.step, "look at the destination", source))? {
            Some(Stat::Dir) => return Ok(dir),
            Some(_) => {
                let message = format!("`{dir}` is there and is no directory");
                return Err(self.failed(copying.step, "copy into the destination", user(message)));
            }
            None => {}
        }
        let made = copying.sandbox.mkdir(&dir, copying.plan.chown.as_deref()).await;
        made.map_err(|source| self.failed(copying.step, "make the destination", source))?;
        Ok(dir)
    }

    async fn unpack(
        &self,
        copying: &mut Copying<'_>,
        stream: Stream,
        dir: &str,
        owner: Owner,
        mode: Option<u32>,
    ) -> Result<(), Error> {
        let unpacked = stream.unpack(copying.sandbox, dir, owner, mode).await;
        unpacked.map_err(|source| self.failed(copying.step, "copy the files", source))
    }
}

/// Splits the whole path of a single item into its directory and the item under its name alone.
fn place(mut items: Vec<Item>) -> (String, Vec<Item>) {
    let mut dir = "/".to_owned();
    for item in &mut items {
        if let Item::File { name, .. } | Item::Text { name, .. } = item
            && let Some((parent, last)) = name.rsplit_once('/')
        {
            (dir, *name) = (if parent.is_empty() { "/" } else { parent }.to_owned(), last.to_owned());
        }
    }
    (dir, items)
}

/// The directories on the way to a source that `--parents` keeps, and their modes in the context.
pub(super) fn ways(context: &Context, source: &PlannedSource) -> impl Iterator<Item = (String, u32)> {
    let (below, dir) = match source {
        PlannedSource::Dir { path, below, .. } => (below.as_str(), path.as_str()),
        PlannedSource::File { path, below, .. } => {
            (below.as_str(), path.rsplit_once('/').map_or("", |(dir, _)| dir))
        }
        _ => ("", ""),
    };
    // Where links were followed on the way, the path does not tell which directories are meant.
    let above = dir.strip_suffix(below).filter(|above| above.is_empty() || above.ends_with('/'));
    let ends = below.match_indices('/').map(|(at, _)| at).chain([below.len()]).filter(|end| *end > 0);
    let found = ends.map(|end| {
        let name = &below[..end];
        let entry = above.and_then(|above| context.entry(&format!("{above}{name}")));
        (name.to_owned(), entry.map_or(0o755, |entry| entry.mode))
    });
    found.collect::<Vec<_>>().into_iter()
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

/// Name of a fetched file: as the server has it, or else the last part of its URL's path.
fn file_name(remote: &Remote, fetched: &Fetched) -> Option<String> {
    let usable = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
    if let Some(name) = fetched.name.as_deref() {
        return usable(name).then(|| name.to_owned());
    }
    let Remote::Url { url, .. } = remote else { return None };
    let path = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let name = path.split_once('/').map_or("", |(_, path)| path).rsplit('/').next().unwrap_or_default();
    usable(name).then(|| name.to_owned())
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

    #[test]
    fn a_fetched_file_is_called_as_its_url_says() {
        let name = |url: &str| {
            let remote = Remote::Url { url: url.to_owned(), checksum: None };
            let (path, digest) = (std::path::PathBuf::new(), String::new());
            file_name(&remote, &Fetched { path, digest, name: None, modified: None, keep: Box::new(()) })
        };
        assert_eq!(name("https://h/a/b.txt?x=/y#z"), Some("b.txt".to_owned()));
        assert_eq!(name("https://h/a/"), None);
        assert_eq!(name("https://h"), None);
        assert_eq!(name("https://h/.."), None);
    }
}
