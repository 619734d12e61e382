//! `COPY` and `ADD`, carried out.
//!
//! As in BuildKit: a directory's contents merge into the destination; a file goes into a destination that is a
//! directory and otherwise takes its name. Directories that are missing are made 0755, and `--chown` owns them too,
//! but `--chmod` is only for what is copied. From the context files come as root's; from a stage they keep their owner.

use super::{Solver, tars};
use crate::error::Error;
use crate::fault::{Fault, Problem};
use crate::graph::Root;
use crate::pattern::has_wildcards;
use crate::plan::{CopyPlan, CopyRoot, PlannedSource, PlannedStep};
use crate::runner::{LayerId, Owner, RunnerError, Stat, Step};
use crate::source::Span;

/// One `COPY` under way.
struct Copying<'a> {
    step: &'a PlannedStep,
    plan: &'a CopyPlan,
    sandbox: Box<dyn Step>,
}

/// A source found in a stage or an image.
struct Found {
    path: String,
    stat: Stat,
}

impl<'a> Solver<'a> {
    pub(super) async fn copy(
        &mut self,
        step: &'a PlannedStep,
        plan: &'a CopyPlan,
        layers: &[LayerId],
    ) -> Result<Option<LayerId>, Error> {
        // The lending stage is built before this step begins, so that progress shows them in order.
        let lender = match &plan.root {
            CopyRoot::Context => None,
            CopyRoot::Root(root) => Some(self.root(root).await?.layers),
        };
        self.begin(step);
        let mut copying = Copying { step, plan, sandbox: self.open(step, layers).await? };
        match lender {
            None => self.copy_local(&mut copying).await?,
            Some(lender) => {
                let mut from = self.open(step, &lender).await?;
                self.copy_remote(&mut copying, from.as_mut()).await?;
            }
        }
        self.commit(step, copying.sandbox).await
    }

    async fn copy_local(&self, copying: &mut Copying<'_>) -> Result<(), Error> {
        let plan = copying.plan;
        let owner = plan.chown.clone().map_or(Owner::Root, Owner::Spec);
        for source in &plan.sources {
            match source {
                PlannedSource::Dir { path, .. } => {
                    let stream = tars::dir(self.context.clone(), path.clone());
                    self.unpack(copying, stream, &plan.dest, owner.clone(), plan.bits()).await?;
                }
                PlannedSource::File { path, archive: Some(compression), .. } => {
                    // An archive's entries bring owner and mode along; the flags are not for them.
                    let stream = tars::archive(self.context.clone(), path.clone(), *compression);
                    self.unpack(copying, stream, &plan.dest, Owner::Keep, None).await?;
                }
                PlannedSource::File { path, name, archive: None, .. } => {
                    let (dir, name) = self.file_target(copying, name, plan.into).await?;
                    let stream = tars::file(self.context.clone(), path.clone(), name);
                    self.unpack(copying, stream, &dir, owner.clone(), plan.bits()).await?;
                }
                PlannedSource::Inline { name, content } => {
                    self.inline(copying, name, content, plan.into).await?
                }
                // Only with `--from`, which is not local.
                PlannedSource::Elsewhere { .. } | PlannedSource::Fetched { .. } => {}
            }
        }
        Ok(())
    }

    async fn inline(
        &self,
        copying: &mut Copying<'_>,
        name: &str,
        content: &str,
        into: bool,
    ) -> Result<(), Error> {
        let owner = copying.plan.chown.clone().map_or(Owner::Root, Owner::Spec);
        let (dir, name) = self.file_target(copying, name, into).await?;
        let stream = tars::inline(name, content.to_owned(), 0o644);
        self.unpack(copying, stream, &dir, owner, copying.plan.bits()).await
    }

    async fn copy_remote(&self, copying: &mut Copying<'_>, from: &mut dyn Step) -> Result<(), Error> {
        let plan = copying.plan;
        let owner = plan.chown.clone().map_or(Owner::Keep, Owner::Spec);
        let mut found = Vec::new();
        for source in &plan.sources {
            if let PlannedSource::Elsewhere { path, span } = source {
                found.extend(self.find(copying.step, plan, from, path, *span).await?);
            }
        }
        let into = plan.into || found.len() > 1;
        for source in &plan.sources {
            if let PlannedSource::Inline { name, content } = source {
                self.inline(copying, name, content, into).await?;
            }
        }
        for Found { path, stat } in found {
            let tar = from.pack(&path).await;
            let tar = tar.map_err(|source| self.failed(copying.step, "read the files to copy", source))?;
            if stat == Stat::Dir {
                let made = copying.sandbox.mkdir(&plan.dest, plan.chown.as_deref()).await;
                made.map_err(|source| self.failed(copying.step, "make the destination", source))?;
                let unpacked = copying.sandbox.unpack(&plan.dest, owner.clone(), plan.bits(), tar).await;
                unpacked.map_err(|source| self.failed(copying.step, "copy the files", source))?;
                continue;
            }
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            let (dir, name) = self.file_target(copying, &name, into).await?;
            self.unpack(copying, tars::renamed(tar, name), &dir, owner.clone(), plan.bits()).await?;
        }
        Ok(())
    }

    /// What a path or pattern means in a stage or an image.
    async fn find(
        &self,
        step: &PlannedStep,
        plan: &CopyPlan,
        from: &mut dyn Step,
        path: &str,
        span: Span,
    ) -> Result<Vec<Found>, Error> {
        let cannot_look = |source| self.failed(step, "look for the files to copy", source);
        let paths = match has_wildcards(path) {
            true => from.glob(path).await.map_err(cannot_look)?,
            false => vec![path.to_owned()],
        };
        let mut found = Vec::new();
        for path in paths {
            match from.stat(&path).await.map_err(cannot_look)? {
                Some(stat @ (Stat::Dir | Stat::File)) => found.push(Found { path, stat }),
                Some(Stat::Other) => {
                    let message = format!("`{path}` is neither a file nor a directory");
                    return Err(cannot_look(RunnerError::User { message, source: None }));
                }
                None => {
                    let place = self.place(&plan.root);
                    let problem = Problem::SourceMissing { path, place, excluded_by: None };
                    return Err(Fault::new(&step.source, span, problem).into());
                }
            }
        }
        Ok(found)
    }

    fn place(&self, root: &CopyRoot) -> String {
        match root {
            CopyRoot::Root(Root::Stage(index)) => match &self.graph.stages[*index].name {
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

    /// Makes a directory, where it is missing, and unpacks into it.
    async fn unpack(
        &self,
        copying: &mut Copying<'_>,
        stream: tars::Stream,
        dir: &str,
        owner: Owner,
        mode: Option<u32>,
    ) -> Result<(), Error> {
        let made = copying.sandbox.mkdir(dir, copying.plan.chown.as_deref()).await;
        made.map_err(|source| self.failed(copying.step, "make the destination", source))?;
        let unpacked = stream.unpack(copying.sandbox.as_mut(), dir, owner, mode).await;
        unpacked.map_err(|source| self.failed(copying.step, "copy the files", source))
    }
}
