//! `COPY` and `ADD`, carried out.
//!
//! As in BuildKit: a directory's contents merge into the destination; a file goes into a destination that is a
//! directory and otherwise takes its name. Directories that are missing are made 0755, and `--chown` owns them too,
//! but `--chmod` is only for what is copied. From the context files come as root's; from a stage they keep their owner.

use std::fs::File;

use super::lend::Lending;
use super::stages::Solver;
use super::tars::{self, Item, Stream, joined};
use super::user;
use crate::archive;
use crate::chmod::Modes;
use crate::error::Error;
use crate::ignore::Ignore;
use crate::plan::{Chmod, CopyPlan, PlannedSource, PlannedStep};
use crate::runner::{Fetched, Owner, Remote, RunnerError, Stat, Step};

/// Permission bits of a file that came by HTTP, as documented.
const FETCHED_MODE: u32 = 0o600;

/// One `COPY` under way.
pub(super) struct Copying<'a> {
    pub(super) step: &'a PlannedStep,
    pub(super) plan: &'a CopyPlan,
    pub(super) sandbox: &'a mut dyn Step,
    pub(super) changes: Changes,
}

/// What becomes of files on their way.
pub(super) struct Changes {
    /// `--chmod` with a symbolic mode.
    pub(super) modes: Option<Modes>,
    /// `--exclude`.
    pub(super) excludes: Option<Ignore>,
}

impl Copying<'_> {
    /// Owner of what has none of its own.
    pub(super) fn owner(&self) -> Owner {
        self.plan.chown.clone().map_or(Owner::Root, Owner::Spec)
    }
}

impl Solver<'_> {
    /// Copies into a sandbox; `lending` is the stage or image that lends the files.
    pub(super) async fn copy(
        &self,
        step: &PlannedStep,
        plan: &CopyPlan,
        lending: Option<Lending>,
        sandbox: &mut dyn Step,
    ) -> Result<(), Error> {
        let changes = self.changes(step, plan)?;
        let mut copying = Copying { step, plan, sandbox, changes };
        match lending {
            None => self.copy_local(&mut copying).await,
            Some(lending) => self.copy_lent(&mut copying, lending).await,
        }
    }

    pub(super) fn changes(&self, step: &PlannedStep, plan: &CopyPlan) -> Result<Changes, Error> {
        let wrong = |message: String| self.failed(step, "copy the files", user(message));
        let modes = match &plan.chmod {
            Some(Chmod::Symbolic(text)) => {
                Some(Modes::parse(text).map_err(|error| wrong(error.to_string()))?)
            }
            _ => None,
        };
        let excludes = match plan.excludes.as_slice() {
            [] => None,
            patterns => Some(Ignore::of(patterns).map_err(|(_, error)| wrong(error.to_string()))?),
        };
        Ok(Changes { modes, excludes })
    }

    async fn copy_local(&self, copying: &mut Copying<'_>) -> Result<(), Error> {
        let plan = copying.plan;
        let single = matches!(plan.sources.as_slice(), [_]);
        // What is no archive goes in one stream, as far as the order of sources lets it: hard links among it stay.
        let mut items = Vec::new();
        for source in &plan.sources {
            match source {
                PlannedSource::Dir { path, without } => {
                    items.push(Item::Tree { path: path.clone(), without: without.clone() });
                }
                PlannedSource::File { path, name, archive: None } => {
                    items.push(Item::File { path: path.clone(), name: name.clone() });
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
                    self.unpack(copying, stream, &dir, Owner::Archive, None).await?;
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
        let stream = tars::context(self.prepared.context.clone(), items, copying.changes.modes.clone());
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
            let (root, excludes) = (fetched.path.clone(), copying.changes.excludes.clone());
            let stream = tars::directory(root, mtime, excludes, copying.changes.modes.clone());
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
            return self.unpack(copying, stream, &dir, Owner::Archive, None).await;
        }
        let name = file_name(remote, fetched);
        let file = File::open(&fetched.path).map_err(unreadable)?;
        let into = plan.into || unpack;
        let (dir, name) = match name {
            Some(name) => self.file_target(copying, &name, into).await?,
            None => self.nameless(copying, remote, into).await?,
        };
        let dir = self.directory(copying, dir).await?;
        let stream = tars::brought(file, name, FETCHED_MODE, mtime, copying.changes.modes.clone());
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

    /// Directory and name that a file gets.
    pub(super) async fn file_target(
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
    pub(super) async fn directory(&self, copying: &mut Copying<'_>, dir: String) -> Result<String, Error> {
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

    pub(super) async fn unpack(
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
