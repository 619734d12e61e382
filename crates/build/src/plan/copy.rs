//! `COPY` and `ADD`: which files they mean, and the key of their content.

use super::stage::{Current, absolute, owner};
use super::{Action, Planner};
use crate::archive::{self, Compression};
use crate::context::{Context, EntryKind, Unresolved};
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::Root;
use crate::instruction::{Copy, CopySource};
use crate::key::{Digest, Hasher};
use crate::pattern::{Pattern, has_wildcards};
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
    /// The contents of a directory of the context.
    Dir {
        /// Its path in the context.
        path: String,
        /// Directory below the destination that it goes to, for `--parents`; else empty. The directories on the way
        /// have the modes that those at the end of `path` have in the context.
        below: String,
        /// Paths below it, relative to it and sorted, that are left out; a directory without all that is below it.
        without: Vec<String>,
    },
    /// A file of the context.
    File {
        /// Its path in the context, links followed.
        path: String,
        /// The name it was asked for by.
        name: String,
        /// Directory below the destination that it goes to, for `--parents`; else empty.
        below: String,
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
        /// Absolute path. With `--parents` a `/./` in it marks where the directories to keep begin.
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
        copy: &Copy,
        statement: &Statement,
    ) -> Result<(Action, Option<Digest>, String), Error> {
        let name = if copy.add { "ADD" } else { "COPY" };
        let root = self.root(current, copy, statement)?;
        let chown = copy.chown.as_ref().map(|word| current.expand(word, statement)).transpose()?.map(owner);
        let chmod = copy.chmod.as_ref().map(|word| chmod(current, word, statement, name)).transpose()?;
        let mut finder = Finder { context: self.inputs.context, statement, add: copy.add, found: Vec::new() };
        for source in &copy.sources {
            match source {
                CopySource::Inline(heredoc, word) => {
                    let content = current.heredoc(heredoc, word, statement)?;
                    finder.found.push(PlannedSource::Inline { name: heredoc.name.clone(), content });
                }
                CopySource::Path(word) => {
                    let path = current.expand(word, statement)?;
                    if !finder.add_path(&root, &path, word.span)? {
                        self.warnings.push(berth_types::image::BuildWarning {
                            check: "CopyNothing".to_owned(),
                            message: format!("{name}: `{path}` matches nothing"),
                            file: statement.source.name.clone(),
                            line: statement.line,
                        });
                    }
                }
            }
        }
        let written = current.expand(&copy.dest, statement)?;
        let sources = finder.found;
        let several = sources.len() > 1 || copy.sources.len() > 1;
        let into = several
            || matches!(written.as_str(), "" | ".")
            || written.ends_with('/')
            || written.ends_with("/.");
        let dest = absolute(&current.config.workdir(), &written);
        let history = statement.one_line();
        if sources.is_empty() {
            return Ok((Action::Config, None, history));
        }
        let chmod = chmod.map(Chmod::Bits);
        let (link, parents, excludes) = (false, false, Vec::new());
        let plan = CopyPlan { root, sources, dest, into, chown, chmod, link, parents, excludes };
        let key = self.copy_key(current.key, &plan)?;
        Ok((Action::Copy(plan), Some(key), history))
    }

    fn root(
        &self,
        current: &Current<'_>,
        copy: &Copy,
        statement: &Statement,
    ) -> Result<CopyRoot, Box<Fault>> {
        let Some(from) = &copy.from else { return Ok(CopyRoot::Context) };
        let root = self.inputs.graph.copy_root(from, current.stage.index);
        root.map(CopyRoot::Root).map_err(|problem| statement.fault(from.span, problem))
    }

    fn copy_key(&self, parent: Digest, plan: &CopyPlan) -> Result<Digest, Error> {
        let mut key = Hasher::new("berth copy 1");
        key.field(parent.to_string()).field(&plan.dest).field([u8::from(plan.into)]);
        key.field(plan.chown.as_deref().unwrap_or("")).field(format!("{:?}", plan.chmod));
        key.field(match &plan.root {
            CopyRoot::Context => "context".to_owned(),
            CopyRoot::Root(root) => self.root_key(root),
        });
        for source in &plan.sources {
            self.source_key(&mut key, source)?;
        }
        Ok(key.finish())
    }

    fn root_key(&self, root: &Root) -> String {
        match root {
            Root::Scratch => "scratch".to_owned(),
            Root::Stage(index) => {
                self.done.get(index).map_or_else(String::new, |stage| stage.key.to_string())
            }
            Root::Image(reference) => {
                self.inputs.bases.get(reference).map_or_else(|| reference.clone(), |base| base.id.clone())
            }
        }
    }

    fn source_key(&self, key: &mut Hasher, source: &PlannedSource) -> Result<(), Error> {
        let context = self.inputs.context;
        match source {
            PlannedSource::Inline { name, content } => drop(key.field("inline").field(name).field(content)),
            PlannedSource::Elsewhere { path, .. } => drop(key.field("remote").field(path)),
            PlannedSource::Fetched { remote, unpack, .. } => {
                let digest = self.inputs.remotes.get(remote).map_or("", String::as_str);
                key.field("fetched").field(format!("{remote:?} {unpack}")).field(digest);
            }
            PlannedSource::File { path, name, below, archive } => {
                let mode = context.entry(path).map_or(0, |entry| entry.mode);
                key.field("file").field(name).field(below).field(format!("{mode:o} {archive:?}"));
                key.field(context.digest(path)?.to_string());
            }
            PlannedSource::Dir { path, below, without } => {
                key.field("dir").field(below).fields(without);
                for (name, entry) in context.below(path) {
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
            }
        }
        Ok(())
    }
}

fn chmod(
    current: &Current<'_>,
    word: &Word,
    statement: &Statement,
    instruction: &'static str,
) -> Result<u32, Box<Fault>> {
    let value = current.expand(word, statement)?;
    match u32::from_str_radix(&value, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        Err(_) if value.contains(['+', '-', '=']) => {
            let what = format!("the symbolic mode in `--chmod={value}`");
            Err(statement.fault(word.span, Problem::Unsupported { what }))
        }
        _ => {
            let (expected, found) = ("an octal mode up to 7777 after `--chmod=`", format!("`{value}`"));
            Err(statement.fault(word.span, Problem::Expected { instruction, expected, found }))
        }
    }
}

/// Looks sources up.
struct Finder<'a> {
    context: &'a Context,
    statement: &'a Statement,
    add: bool,
    found: Vec<PlannedSource>,
}

impl Finder<'_> {
    fn fault(&self, span: Span, problem: Problem) -> Error {
        self.statement.fault(span, problem).into()
    }

    /// Adds what a path means. False when it is a pattern that matches nothing.
    fn add_path(&mut self, root: &CopyRoot, path: &str, span: Span) -> Result<bool, Error> {
        self.refuse_remote(path, span)?;
        if matches!(root, CopyRoot::Root(_)) {
            self.found.push(PlannedSource::Elsewhere { path: absolute("/", path), span });
            return Ok(true);
        }
        let relative = self.inside(path, span)?;
        if has_wildcards(&relative) {
            return self.add_matches(path, &relative, span);
        }
        self.add_found(path, &relative, span)?;
        Ok(true)
    }

    fn refuse_remote(&self, path: &str, span: Span) -> Result<(), Error> {
        let remote =
            ["http://", "https://", "git://", "ssh://", "git@"].iter().any(|scheme| path.starts_with(scheme));
        match (remote, self.add) {
            (false, _) => Ok(()),
            (true, true) => {
                Err(self.fault(span, Problem::Unsupported { what: format!("`ADD` of `{path}`") }))
            }
            (true, false) => {
                let expected = "a path in the build context";
                let problem = Problem::Expected { instruction: "COPY", expected, found: format!("`{path}`") };
                Err(self.fault(span, problem))
            }
        }
    }

    /// A path within the context, without `.` and `..`.
    fn inside(&self, path: &str, span: Span) -> Result<String, Error> {
        let mut parts: Vec<&str> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.pop().is_none() => {
                    return Err(self.fault(span, Problem::SourceEscapes { path: path.to_owned() }));
                }
                ".." => {}
                part => parts.push(part),
            }
        }
        Ok(parts.join("/"))
    }

    /// The parts before the first wildcard are a path, the rest is matched against everything below it.
    fn add_matches(&mut self, written: &str, relative: &str, span: Span) -> Result<bool, Error> {
        let parts: Vec<&str> = relative.split('/').collect();
        let first = parts.iter().position(|part| has_wildcards(part)).unwrap_or(0);
        let pattern = parts[first..].join("/");
        let compiled = Pattern::go(&pattern)
            .map_err(|source| self.fault(span, Problem::Pattern { pattern: written.to_owned(), source }))?;
        let dir = match self.context.resolve(&parts[..first].join("/")) {
            Ok(dir) => dir,
            Err(Unresolved::Missing) => return Ok(false),
            Err(Unresolved::Escapes(path)) => return Err(self.fault(span, Problem::SourceEscapes { path })),
        };
        let matches: Vec<String> = self
            .context
            .below(&dir)
            .into_iter()
            .filter(|(name, _)| compiled.matches(name))
            .map(|(name, _)| if dir.is_empty() { name } else { format!("{dir}/{name}") })
            .collect();
        for path in &matches {
            self.add_found(path, path, span)?;
        }
        Ok(!matches.is_empty())
    }

    fn add_found(&mut self, written: &str, relative: &str, span: Span) -> Result<(), Error> {
        let path = match self.context.resolve(relative) {
            Ok(path) => path,
            Err(Unresolved::Escapes(path)) => return Err(self.fault(span, Problem::SourceEscapes { path })),
            Err(Unresolved::Missing) => {
                let excluded_by = self.context.excluded_by(relative);
                let place = "the build context".to_owned();
                let problem = Problem::SourceMissing { path: written.to_owned(), place, excluded_by };
                return Err(self.fault(span, problem));
            }
        };
        let name = relative.rsplit('/').next().unwrap_or_default().to_owned();
        let kind = self.context.entry(&path).map_or(&EntryKind::Dir, |entry| &entry.kind);
        match kind {
            EntryKind::Special(kind) => Err(self.fault(span, Problem::SpecialFile { path, kind })),
            EntryKind::Dir => {
                let special =
                    self.context.below(&path).into_iter().find_map(|(name, entry)| match entry.kind {
                        EntryKind::Special(kind) => Some((name, kind)),
                        _ => None,
                    });
                if let Some((path, kind)) = special {
                    return Err(self.fault(span, Problem::SpecialFile { path, kind }));
                }
                let (below, without) = (String::new(), Vec::new());
                self.found.push(PlannedSource::Dir { path, below, without });
                Ok(())
            }
            _ => {
                let archive = self.archive(&path)?;
                self.found.push(PlannedSource::File { path, name, below: String::new(), archive });
                Ok(())
            }
        }
    }

    fn archive(&self, path: &str) -> Result<Option<Compression>, Error> {
        if !self.add {
            return Ok(None);
        }
        let sniffed = self.context.open_file(path).and_then(archive::sniff);
        Ok(sniffed.map_err(|source| self.context.unreadable(path, source))?)
    }
}
