//! `COPY` and `ADD`: which files they mean, and the key of their content.

use super::find::Finder;
use super::stage::{Current, absolute, owner};
use super::{Action, Keys, Planner, remote};
use crate::archive::Compression;
use crate::chmod::Modes;
use crate::context::EntryKind;
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::Root;
use crate::ignore::Ignore;
use crate::instruction::{Copy, CopySource, Instruction};
use crate::key::{Digest, Hasher};
use crate::runner::Remote;
use crate::source::Span;
use crate::syntax::{Statement, Word};

/// One `COPY` or `ADD`, ready to be carried out.
#[derive(Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// Where paths of [`PlannedSource::Elsewhere`] are looked for.
    pub root: CopyRoot,
    /// What to copy, in order.
    pub sources: Vec<PlannedSource>,
    /// Absolute path of the destination.
    pub dest: String,
    /// Whether the destination is a directory whatever stands there: it ends in a slash, or there are several sources.
    pub into: bool,
    /// `--chown`, with a group where the user is a number.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<Chmod>,
    /// `--link`: the layer is made on nothing, whatever the stage holds.
    pub link: bool,
    /// `--parents`, for sources of a stage or image; those of the context have what it makes of them.
    pub parents: bool,
    /// `--exclude`, patterns over paths below each source; those of the context are applied already.
    pub excludes: Vec<String>,
}

impl CopyPlan {
    /// Permission bits that all get, where `--chmod` says so.
    pub(crate) fn bits(&self) -> Option<u32> {
        match self.chmod {
            Some(Chmod::Bits(bits)) => Some(bits),
            _ => None,
        }
    }
}

/// `--chmod`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    /// These bits.
    Bits(u32),
    /// A symbolic mode, such as `u=rwX,go=rX`.
    Symbolic(String),
}

/// Where a `COPY` takes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyRoot {
    /// The build context.
    Context,
    /// A stage or an image.
    Root(Root),
}

/// One source of a `COPY` or `ADD`.
#[derive(Debug, PartialEq, Eq)]
pub enum PlannedSource {
    /// The contents of a directory of the context. What `--parents` keeps is that of the directory where it begins, without
    /// all else.
    Dir {
        /// Its path in the context.
        path: String,
        /// Paths below it, relative to it and sorted, that are left out; a directory without all that is below it.
        without: Vec<String>,
    },
    /// A file of the context.
    File {
        /// Its path in the context, links followed.
        path: String,
        /// The name it was asked for by.
        name: String,
        /// For `ADD`: the archive that it is.
        archive: Option<Compression>,
    },
    /// A file that stands in the Dockerfile.
    Inline {
        /// Its name.
        name: String,
        /// Its text.
        content: String,
    },
    /// What `ADD` brings from elsewhere.
    Fetched {
        /// What.
        remote: Remote,
        /// Where it stands in the Dockerfile.
        span: Span,
        /// `--unpack`: an archive is unpacked into the destination, which is then a directory.
        unpack: bool,
    },
    /// A path or pattern in a stage or image, to be looked up when that is there.
    Elsewhere {
        /// Absolute path. With `--parents` there is exactly one `/./` in it, or it begins so: the directories after it
        /// are kept, and what follows is a pattern that may have `**`.
        path: String,
        /// Where it stands in the Dockerfile.
        span: Span,
    },
}

impl Planner<'_> {
    /// Plans a `COPY` or `ADD`: what it does, its key when it does anything, and its line for the history.
    pub(super) fn copy(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        copy: &Copy,
        statement: &Statement,
    ) -> Result<(Action, Option<Keys>, String), Error> {
        let root = self.copy_root(current, instruction, copy, statement)?;
        let chown = current.expand_flag(copy.chown.as_ref(), statement)?.map(owner);
        check_linked_owner(copy, chown.as_deref(), statement)?;
        let chmod = chmod(current, copy, statement)?;
        let excludes: Vec<String> =
            copy.excludes.iter().map(|word| current.expand(word, statement)).collect::<Result<_, _>>()?;
        let written = current.expand(&copy.dest, statement)?;
        let into = copy.sources.len() > 1
            || matches!(written.as_str(), "" | ".")
            || written.ends_with('/')
            || written.ends_with("/.");
        let finder = Finder::new(self.inputs.context, statement);
        let mut finder = finder.of_copy(copy, ignore(copy, &excludes, statement)?);
        if let Some(word) = &copy.checksum {
            self.check_checksum(current, copy, word, statement)?;
        }
        for source in &copy.sources {
            match source {
                CopySource::Inline(heredoc, word) => {
                    let content = current.heredoc(heredoc, word, statement)?;
                    finder.found.push(PlannedSource::Inline { name: heredoc.name.clone(), content });
                }
                CopySource::Path(word) => {
                    let path = current.expand(word, statement)?;
                    if let Some(found) = self.remote(current, copy, &path, word.span, into, statement)? {
                        finder.found.push(found);
                    } else if matches!(root, CopyRoot::Root(_)) {
                        let path = elsewhere(&path, copy.parents);
                        finder.found.push(PlannedSource::Elsewhere { path, span: word.span });
                    } else {
                        self.local(&mut finder, copy, &path, word.span, statement)?;
                    }
                }
            }
        }
        let sources = finder.found;
        let into = into || sources.len() > 1;
        let dest = absolute(&current.config.workdir(), &written);
        let history = statement.one_line();
        if sources.is_empty() {
            return Ok((Action::Config, None, history));
        }
        let (link, parents) = (copy.link, copy.parents);
        let plan = CopyPlan { root, sources, dest, into, chown, chmod, link, parents, excludes };
        let keys = self.copy_keys(current.key, &plan)?;
        Ok((Action::Copy(plan), Some(keys), history))
    }

    fn copy_root(
        &mut self,
        current: &Current<'_>,
        instruction: &Instruction,
        copy: &Copy,
        statement: &Statement,
    ) -> Result<CopyRoot, Box<Fault>> {
        let Some(word) = &copy.from else { return Ok(CopyRoot::Context) };
        let name = current.expand_some(word, statement, "COPY", "a stage or an image after `--from=`")?;
        let root = self.taken_from(current.stage.index, instruction, &name, statement, word.span)?;
        Ok(CopyRoot::Root(root))
    }

    /// What stands in the context by a path.
    fn local(
        &mut self,
        finder: &mut Finder<'_>,
        copy: &Copy,
        path: &str,
        span: Span,
        statement: &Statement,
    ) -> Result<(), Error> {
        let name = if copy.add { "ADD" } else { "COPY" };
        if !finder.add_path(path, span)? {
            self.warn("CopyNothing", statement, span, format!("{name}: `{path}` matches nothing"));
        }
        let plain = &absolute("/", path)[1..];
        if !plain.is_empty() && self.inputs.context.excluded_by(plain).is_some() {
            let verb = if copy.add { "Add" } else { "Copy" };
            let message = format!("Attempting to {verb} file \"{path}\" that is excluded by .dockerignore");
            self.warn("CopyIgnoredFile", statement, span, message);
        }
        Ok(())
    }

    /// What a source means that is not in the context; `None` for a path.
    fn remote(
        &mut self,
        current: &Current<'_>,
        copy: &Copy,
        path: &str,
        span: Span,
        into: bool,
        statement: &Statement,
    ) -> Result<Option<PlannedSource>, Box<Fault>> {
        if !remote::is_remote(path) {
            return Ok(None);
        }
        let expected = |instruction, expected, found| {
            statement.fault(span, Problem::Expected { instruction, expected, found })
        };
        if !copy.add {
            let wanted = "a path in the build context (`ADD` takes URLs and git repositories)";
            return Err(expected("COPY", wanted, format!("`{path}`")));
        }
        let checksum = current.expand_flag(copy.checksum.as_ref(), statement)?;
        let remote = remote::parse(path, checksum.as_deref(), copy.keep_git_dir)
            .map_err(|problem| statement.fault(span, problem))?;
        let nameless = matches!(&remote, Remote::Url { url, .. } if remote::file_name(url).is_none());
        let unpack = copy.unpack.unwrap_or(false) && matches!(remote, Remote::Url { .. });
        if nameless && into && !unpack {
            let wanted = "a URL whose path ends in a file's name, as the destination is a directory";
            return Err(expected("ADD", wanted, format!("`{path}`")));
        }
        self.need_remote(&remote, statement, span);
        Ok(Some(PlannedSource::Fetched { remote, span, unpack }))
    }

    /// A checksum is of one thing from elsewhere.
    fn check_checksum(
        &self,
        current: &Current<'_>,
        copy: &Copy,
        word: &Word,
        statement: &Statement,
    ) -> Result<(), Box<Fault>> {
        let only = match copy.sources.as_slice() {
            [CopySource::Path(source)] => Some(current.expand(source, statement)?),
            _ => None,
        };
        if only.as_deref().is_some_and(remote::is_remote) {
            return Ok(());
        }
        let expected = "one URL or git repository as the only source with `--checksum`";
        let found = only.map_or_else(|| "something else".to_owned(), |path| format!("`{path}`"));
        Err(statement.fault(word.span, Problem::Expected { instruction: "ADD", expected, found }))
    }

    fn copy_keys(&self, parent: Digest, plan: &CopyPlan) -> Result<Keys, Error> {
        let mut key = Hasher::new("berth copy 4");
        key.field([u8::from(plan.link)]).field(&plan.dest).field([u8::from(plan.into)]);
        key.field(plan.chown.as_deref().unwrap_or("")).field(format!("{:?}", plan.chmod));
        let lent: Vec<String> = match &plan.root {
            CopyRoot::Context => Vec::new(),
            CopyRoot::Root(root) => vec![self.root_key(root)],
        };
        let later = |source: &PlannedSource| {
            matches!(source, PlannedSource::Elsewhere { .. } | PlannedSource::Fetched { .. })
        };
        if plan.sources.iter().any(later) {
            // What these leave out is not known yet.
            key.field([u8::from(plan.parents)]).fields(&plan.excludes);
        }
        for source in &plan.sources {
            self.source_key(&mut key, source)?;
        }
        // What is linked is the same layer on whatever it stands.
        Ok(Keys::new(key.finish(), (!plan.link).then_some(parent), &lent))
    }

    fn source_key(&self, key: &mut Hasher, source: &PlannedSource) -> Result<(), Error> {
        match source {
            PlannedSource::Inline { name, content } => drop(key.field("inline").field(name).field(content)),
            PlannedSource::Elsewhere { path, .. } => drop(key.field("remote").field(path)),
            PlannedSource::Fetched { remote, unpack, .. } => {
                let digest = self.inputs.remotes.get(remote).map_or("", String::as_str);
                key.field("fetched").field(format!("{remote:?} {unpack}")).field(digest);
            }
            PlannedSource::File { path, name, archive, .. } => {
                key.field(name).field(format!("{archive:?}"));
                self.file_key(key, path)?;
            }
            PlannedSource::Dir { path, without, .. } => self.dir_key(key, path, without)?,
        }
        Ok(())
    }

    /// What a key says of a file of the context.
    pub(super) fn file_key(&self, key: &mut Hasher, path: &str) -> Result<(), Error> {
        let context = self.inputs.context;
        let mode = context.entry(path).map_or(0, |entry| entry.mode);
        key.field("file").field(format!("{mode:o}")).field(context.digest(path)?.to_string());
        Ok(())
    }

    /// What a key says of the contents of a directory of the context.
    pub(super) fn dir_key(&self, key: &mut Hasher, path: &str, without: &[String]) -> Result<(), Error> {
        let context = self.inputs.context;
        key.field("dir");
        for (name, entry) in context.below(path) {
            if is_left_out(&name, without) {
                continue;
            }
            let whole = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let (kind, content) = match &entry.kind {
                EntryKind::File(_) => ("file", context.digest(&whole)?.to_string()),
                EntryKind::Dir => ("dir", String::new()),
                EntryKind::Link(target) => ("link", target.clone()),
                EntryKind::Special(kind) => (*kind, String::new()),
            };
            // Links have no permission bits of their own.
            let mode = if kind == "link" { 0 } else { entry.mode };
            key.field(kind).field(&name).field(format!("{mode:o}")).field(content);
        }
        key.field("end");
        Ok(())
    }
}

/// Whether a path, or a directory above it, is one of those that are left out.
pub(crate) fn is_left_out(path: &str, without: &[String]) -> bool {
    let known = |part: &str| without.binary_search_by(|left| left.as_str().cmp(part)).is_ok();
    !without.is_empty() && (known(path) || path.match_indices('/').any(|(at, _)| known(&path[..at])))
}

/// A path of a stage or image; with `--parents`, `/./` before the directories that are kept.
fn elsewhere(path: &str, parents: bool) -> String {
    if !parents {
        return absolute("/", path);
    }
    let (pivot, rest) = path.split_once("/./").unwrap_or(("", path));
    let pivot = absolute("/", pivot);
    format!("{}/.{}", pivot.trim_end_matches('/'), absolute("/", rest))
}

/// `--exclude`, compiled.
fn ignore(copy: &Copy, excludes: &[String], statement: &Statement) -> Result<Ignore, Box<Fault>> {
    Ignore::of(excludes).map_err(|(at, source)| {
        let pattern = excludes[at].clone();
        statement.fault(copy.excludes[at].span, Problem::Pattern { pattern, source })
    })
}

/// A linked layer has no lists of users to look names up in.
fn check_linked_owner(copy: &Copy, chown: Option<&str>, statement: &Statement) -> Result<(), Box<Fault>> {
    let (Some(word), Some(chown)) = (copy.chown.as_ref().filter(|_| copy.link), chown) else { return Ok(()) };
    if chown.split(':').all(|part| part.parse::<u32>().is_ok()) {
        return Ok(());
    }
    let instruction = if copy.add { "ADD" } else { "COPY" };
    let expected = "numbers after `--chown=`, as `--link` has no lists of users";
    let problem = Problem::Expected { instruction, expected, found: format!("`{chown}`") };
    Err(statement.fault(word.span, problem))
}

fn chmod(current: &Current<'_>, copy: &Copy, statement: &Statement) -> Result<Option<Chmod>, Box<Fault>> {
    let Some(word) = &copy.chmod else { return Ok(None) };
    let Some(value) = current.expand_flag(Some(word), statement)? else { return Ok(None) };
    if let Ok(bits @ 0..=0o7777) = u32::from_str_radix(&value, 8)
        && value.starts_with(|c: char| c.is_ascii_digit())
    {
        return Ok(Some(Chmod::Bits(bits)));
    }
    if Modes::parse(&value).is_ok() {
        return Ok(Some(Chmod::Symbolic(value)));
    }
    let instruction = if copy.add { "ADD" } else { "COPY" };
    let expected = "an octal mode up to 7777, or a symbolic one like `u=rwX,go=rX`, after `--chmod=`";
    let problem = Problem::Expected { instruction, expected, found: format!("`{value}`") };
    Err(statement.fault(word.span, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_elsewhere_say_where_parents_begin() {
        let table = [
            ("a/b", false, "/a/b"),
            ("/a/./b/", false, "/a/b"),
            ("/a/b/*.txt", true, "/./a/b/*.txt"),
            ("/a/./b/c", true, "/a/./b/c"),
            ("./a/./b", true, "/a/./b"),
            ("./a", true, "/./a"),
        ];
        for (path, parents, wanted) in table {
            assert_eq!(elsewhere(path, parents), wanted, "{path}");
        }
    }
}
