//! One step's sandbox.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};

use berth_build::runner::{Answer, LayerId, Owner, RunSpec, RunnerError, Stat, Step, Tar};
use berth_sandbox::Machine;
use berth_sandbox::guest::{self, ExecOutput, ExecSpec, PackSpec, UnpackSpec};
use berth_types::exec::{Command, KeepOutput, WhenFull};
use berth_types::files::{FileKind, FsRequest};
use berth_types::progress::Progress;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, ReadBuf};
use uuid::Uuid;

use super::runner::{Kept, classify, infrastructure};
use crate::admission::Grant;
use crate::images::Sink;
use crate::{Node, error};

/// One step's sandbox.
pub(super) struct BuildStep {
    pub(super) node: Node,
    pub(super) machine: Arc<dyn Machine>,
    /// What is set aside for it.
    #[expect(dead_code, reason = "given back when it is dropped")]
    pub(super) grant: Grant,
    pub(super) kept: Kept,
    pub(super) sink: Sink,
}

impl Step for BuildStep {
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        async move {
            self.make_dir(&spec.cwd, None).await?;
            let id = Uuid::now_v7().simple().to_string();
            let spec = ExecSpec {
                env: spec.env.into_iter().collect(),
                cwd: spec.cwd,
                user: Some(spec.user).filter(|user| !user.is_empty()),
                plain_env: true,
                // A step that lost its reader is over: nobody comes back for its output.
                keep: Some(KeepOutput { bytes: 0, when_full: WhenFull::Wait }),
                ..ExecSpec::new(id, Command::Argv(spec.argv))
            };
            let mut exec = self.machine.guest().exec(spec).await.map_err(guest_failed)?;
            while let Some(event) = exec.next().await {
                match event.map_err(guest_failed)? {
                    ExecOutput::Started { .. } => {}
                    ExecOutput::Output { data, .. } => output(&data),
                    // The step has one reader, which was there from the start.
                    ExecOutput::Gap { .. } | ExecOutput::Detached => break,
                    ExecOutput::Exited(status) => {
                        if let Some(message) = status.message {
                            output(format!("{message}\n").as_bytes());
                        }
                        return Ok(status.exit_code);
                    }
                }
            }
            Err(RunnerError::Infrastructure {
                message: "the command's end was not told".into(),
                source: None,
            })
        }
        .boxed()
    }

    fn unpack<'a>(
        &'a mut self,
        target: &'a str,
        owner: Owner,
        mode: Option<u32>,
        tar: Tar,
    ) -> Answer<'a, ()> {
        async move {
            let owner = match owner {
                Owner::Root => guest::Owner::Root,
                Owner::Keep => guest::Owner::Keep,
                Owner::Spec(spec) => guest::Owner::User(spec),
            };
            let spec = UnpackSpec { path: target.to_owned(), owner, mode };
            let report = self.machine.guest().unpack(spec, tar).await.map_err(guest_failed)?;
            if let Some(first) = report.skipped.first() {
                let (path, why, count) = (&first.path, &first.why, report.skipped_count);
                let text = format!("warning: left out {path}, {why} ({count} left out in all)");
                (self.sink)(Progress::Message { text });
            }
            match report.refused.first() {
                None => Ok(()),
                Some(first) => Err(RunnerError::User {
                    message: format!(
                        "{}: {} ({} refused in all)",
                        first.path, first.why, report.refused_count
                    ),
                    source: None,
                }),
            }
        }
        .boxed()
    }

    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar> {
        async move {
            // What the machine mounts into a sandbox, and the places it made for that, are not the stage's files.
            let (exclude, one_mount) = (stubs_below(path, &self.machine.stubs()), true);
            let spec = PackSpec {
                path: path.to_owned(),
                exclude,
                follow: true,
                xattrs: true,
                one_mount,
                ..PackSpec::default()
            };
            let pack = self.machine.guest().pack(spec).await.map_err(guest_failed)?;
            // The stream needs the sandbox: it must outlive the step that it was made for.
            Ok(Box::new(Held { inner: pack, _machine: self.machine.clone() }) as Tar)
        }
        .boxed()
    }

    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>> {
        async move { self.machine.guest().glob(pattern).await.map_err(guest_failed) }.boxed()
    }

    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>> {
        self.stat_path(path).boxed()
    }

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        self.make_dir(path, owner).boxed()
    }

    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        async move {
            let disk = self.machine.take_disk().await;
            let disk = disk.map_err(|source| infrastructure("cannot end the step's sandbox", source))?;
            if is_empty(disk.upper())
                .map_err(|source| infrastructure("cannot read the step's layer", source))?
            {
                return Ok(None);
            }
            let (layer, hold) = self.node.0.images.adopt_layer(disk.upper()).await.map_err(classify)?;
            self.kept.keep(hold);
            Ok(Some(LayerId(layer.diff_id.to_string())))
        }
        .boxed()
    }
}

impl BuildStep {
    /// Makes a directory and those above it that are missing; all of these get the owner.
    async fn make_dir(&self, path: &str, owner: Option<&str>) -> Result<(), RunnerError> {
        let mut missing = Vec::new();
        for above in Path::new(path).ancestors().filter_map(Path::to_str).take_while(|above| *above != "/") {
            if self.stat_path(above).await?.is_some() {
                break;
            }
            missing.push(above.to_owned());
        }
        for path in missing.iter().rev() {
            self.machine.guest().make_dir(path, owner).await.map_err(guest_failed)?;
        }
        Ok(())
    }

    async fn stat_path(&self, path: &str) -> Result<Option<Stat>, RunnerError> {
        let request = FsRequest::Stat { path: path.to_owned(), user: None };
        let answer = self.machine.guest().fs(request).await.map_err(guest_failed)?;
        Ok(answer.stat.map(|stat| match stat.kind {
            FileKind::Dir => Stat::Dir,
            FileKind::File => Stat::File,
            FileKind::Other => Stat::Other,
        }))
    }
}

/// The stubs below a directory, as patterns of what to leave out of it.
fn stubs_below(dir: &str, stubs: &[PathBuf]) -> Vec<String> {
    let below = stubs.iter().filter_map(|stub| stub.strip_prefix(dir).ok()?.to_str());
    below.filter(|below| !below.is_empty()).map(|below| format!("./{below}")).collect()
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(dir)?.next().is_none())
}

/// A stream and the sandbox that it comes from.
struct Held<R> {
    inner: R,
    _machine: Arc<dyn Machine>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Held<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

/// What the sandbox's files do not allow is the Dockerfile's affair; all else is ours.
fn guest_failed(source: guest::Error) -> RunnerError {
    let message = error::chain(&source);
    if source.refusal().is_some() {
        return RunnerError::User { message, source: None };
    }
    RunnerError::Infrastructure { message, source: None }
}
