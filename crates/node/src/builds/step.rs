//! One step's sandbox.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_build::runner::{
    Answer, Attributes, LayerId, Owner, RunSpec, RunnerError, SCRIPTS, Stat, Step, Tar,
};
use berth_sandbox::guest::{self, ExecOutput, ExecSpec, Guest, PackSpec, UnpackSpec};
use berth_sandbox::{DiskFull, Limits, Machine};
use berth_types::exec::{Command, ExecStatus, ExitReason, KeepOutput, WhenFull};
use berth_types::files::{FileKind, FsRequest};
use berth_types::progress::Progress;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, ReadBuf};
use uuid::Uuid;

use super::mounts::InUse;
use super::runner::{Kept, classify, infrastructure};
use super::slots::Slot;
use crate::admission::Grant;
use crate::images::Sink;
use crate::trust::Trust;
use crate::{Node, error};

/// How long the end of a sandbox is waited for that has gone away, to say what it died of.
const DEATH: Duration = Duration::from_secs(5);

/// How long the end of a failed command is held up to learn whether its disk was full.
const DISK: Duration = Duration::from_secs(2);

/// One step's sandbox.
pub(super) struct BuildStep {
    pub(super) node: Node,
    pub(super) inside: InUse,
    #[expect(dead_code, reason = "given back when it is dropped")]
    pub(super) held: Held,
    /// The certificates that its commands are to trust.
    pub(super) trust: Trust,
    pub(super) limits: Limits,
    pub(super) kept: Kept,
    pub(super) sink: Sink,
}

/// What a sandbox of a build takes of the machine, for as long as it lives.
pub(super) struct Held {
    /// What is set aside for it.
    pub(super) _grant: Grant,
    /// Its place among the steps that run at a time.
    pub(super) _slot: Option<Slot>,
}

impl BuildStep {
    fn inside(&self) -> Inside<'_> {
        Inside { machine: &self.inside.machine, limits: self.limits, sink: &self.sink, is_own: true }
    }
}

impl Step for BuildStep {
    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        async move {
            let mut env = spec.env.into_iter().collect();
            self.trust.add_to(&mut env);
            self.inside().run(RunSpec { env: Vec::new(), ..spec }, env, output).await
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
        async move { self.inside().unpack(target, owner, mode, tar).await }.boxed()
    }

    fn pack<'a>(&'a mut self, path: &'a str) -> Answer<'a, Tar> {
        async move { self.inside().pack(path).await }.boxed()
    }

    fn glob<'a>(&'a mut self, pattern: &'a str) -> Answer<'a, Vec<String>> {
        async move { self.inside().glob(pattern).await }.boxed()
    }

    fn stat<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Stat>> {
        async move { self.inside().stat(path).await }.boxed()
    }

    fn attributes<'a>(&'a mut self, path: &'a str) -> Answer<'a, Option<Attributes>> {
        async move {
            let request = FsRequest::Stat { path: path.to_owned(), user: None };
            let answer = self.inside.machine.guest().fs(request).await.map_err(guest_failed)?;
            Ok(answer.stat.map(|stat| Attributes { mode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid }))
        }
        .boxed()
    }

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        async move { self.inside().mkdir(path, owner).await }.boxed()
    }

    fn commit<'a>(mut self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        async move {
            let disk = self.inside.machine.take_disk().await;
            let disk = disk.map_err(|source| infrastructure("cannot end the step's sandbox", source))?;
            self.inside.ended();
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

/// What steps do inside a sandbox, be it one of their own or that of a trial.
pub(crate) struct Inside<'a> {
    pub(crate) machine: &'a Arc<dyn Machine>,
    /// Its limits, to be told when one was met.
    pub(crate) limits: Limits,
    pub(crate) sink: &'a Sink,
    /// Whether nothing else ever ran in it: what it met is then the step's.
    pub(crate) is_own: bool,
}

impl Inside<'_> {
    /// As [`Step::run`]; `env` is the whole environment, that of `spec` not.
    pub(crate) async fn run(
        &self,
        spec: RunSpec,
        env: BTreeMap<String, String>,
        output: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<i32, RunnerError> {
        self.mkdir(&spec.cwd, None).await?;
        let id = Uuid::now_v7().simple().to_string();
        let spec = ExecSpec {
            env,
            cwd: spec.cwd,
            user: Some(spec.user).filter(|user| !user.is_empty()),
            plain_env: true,
            // A step that lost its reader is over: nobody comes back for its output.
            keep: Some(KeepOutput { bytes: 0, when_full: WhenFull::Wait }),
            ..ExecSpec::new(id, Command::Argv(spec.argv))
        };
        let started = self.machine.guest().exec(spec).await;
        let mut exec = self.told(started).await?;
        while let Some(event) = exec.next().await {
            match self.told(event).await? {
                ExecOutput::Started { .. } => {}
                ExecOutput::Output { data, .. } => output(&data),
                // The step has one reader, which was there from the start.
                ExecOutput::Gap { .. } | ExecOutput::Detached => break,
                ExecOutput::Exited(status) => return self.ended(status, output).await,
            }
        }
        let message = "the command's end was not told".to_owned();
        Err(RunnerError::Infrastructure { message, source: None })
    }

    /// A command's end, with what only the machine knows of it as the last of its output.
    async fn ended(
        &self,
        status: ExecStatus,
        output: &mut (dyn FnMut(&[u8]) + Send),
    ) -> Result<i32, RunnerError> {
        if let Some(message) = &status.message {
            output(format!("{message}\n").as_bytes());
        }
        let killed = status.reason == ExitReason::OutOfMemory
            || (self.is_own && self.machine.usage().await.oom_kills > Some(0));
        if killed {
            output(format!("{}\n", self.out_of_memory()).as_bytes());
        }
        if status.exit_code == 0 {
            return Ok(0);
        }
        match tokio::time::timeout(DISK, self.machine.disk_full()).await {
            // What a command says whose writes failed for no fault of its own is no result.
            Ok(Some(DiskFull::Machine)) => {
                let code = status.exit_code;
                let message =
                    format!("the machine's disk is full, and the command ended with exit code {code}");
                Err(RunnerError::Infrastructure { message, source: None })
            }
            Ok(Some(DiskFull::Limit)) => {
                output(format!("{}\n", self.out_of_disk()).as_bytes());
                Ok(status.exit_code)
            }
            Ok(None) | Err(_) => Ok(status.exit_code),
        }
    }

    /// What was refused while files were put there, which is nobody's fault in the Dockerfile when the machine has no room.
    async fn full(
        &self,
        message: String,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RunnerError {
        match tokio::time::timeout(DISK, self.machine.disk_full()).await {
            Ok(Some(DiskFull::Machine)) => {
                let message = format!("the machine's disk is full: {message}");
                RunnerError::Infrastructure { message, source }
            }
            Ok(Some(DiskFull::Limit)) => {
                let message = format!("{}: {message}", self.out_of_disk());
                RunnerError::User { message, source }
            }
            Ok(None) | Err(_) => RunnerError::User { message, source },
        }
    }

    fn out_of_memory(&self) -> String {
        let limit = self.limits.memory_bytes.map_or_else(
            || "the machine had none left, the step has no limit".to_owned(),
            |bytes| format!("the step's limit is {} MB", bytes >> 20),
        );
        format!("the kernel killed processes of this step for want of memory: {limit}")
    }

    fn out_of_disk(&self) -> String {
        let bytes = self.limits.storage_bytes.map(|bytes| format!("{} MB", bytes >> 20));
        let files = self.limits.storage_inodes.map(|files| format!("{files} files"));
        let limit: Vec<String> = bytes.into_iter().chain(files).collect();
        format!("this step's disk is full: its limit is {}", limit.join(" and "))
    }

    /// The guest's answer. Where there is none because its sandbox is dead, what of.
    async fn told<T>(&self, answer: Result<T, guest::Error>) -> Result<T, RunnerError> {
        let source = match answer {
            Err(guest::Error::Gone) => guest::Error::Gone,
            other => return other.map_err(guest_failed),
        };
        let Ok(death) = tokio::time::timeout(DEATH, self.machine.died()).await else {
            return Err(guest_failed(source));
        };
        if death.oom_kills > 0 && self.limits.memory_bytes.is_some() {
            return Err(RunnerError::User { message: self.out_of_memory(), source: None });
        }
        let message = format!("the step's sandbox is gone: {death}");
        Err(RunnerError::Infrastructure { message, source: None })
    }

    /// As [`Step::unpack`].
    pub(crate) async fn unpack(
        &self,
        target: &str,
        owner: Owner,
        mode: Option<u32>,
        tar: Tar,
    ) -> Result<(), RunnerError> {
        let manner = match owner {
            Owner::Archive => guest::Manner::Archive,
            // No files of the image, and put where those would be lost on purpose.
            _ if target == SCRIPTS => guest::Manner::Upload,
            _ => guest::Manner::Copy,
        };
        let owner = match owner {
            Owner::Root => guest::Owner::Root,
            Owner::Keep | Owner::Archive => guest::Owner::Keep,
            Owner::Spec(spec) => guest::Owner::User(spec),
        };
        let spec = UnpackSpec { path: target.to_owned(), owner, mode, manner };
        let report = match self.told(self.machine.guest().unpack(spec, tar).await).await {
            Err(RunnerError::User { message, source }) => return Err(self.full(message, source).await),
            told => told?,
        };
        if let Some(first) = report.skipped.first() {
            let (path, why, count) = (&first.path, &first.why, report.skipped_count);
            let text = format!("warning: left out {path}, {why} ({count} left out in all)");
            (self.sink)(Progress::Message { text });
        }
        if let Some(first) = report.lost.first() {
            let (path, why, count) = (&first.path, &first.why, report.xattrs_lost);
            let text = format!("warning: {path} lost its {why} ({count} lost in all)");
            (self.sink)(Progress::Message { text });
        }
        let Some(first) = report.refused.first() else { return Ok(()) };
        let message = format!("{}: {} ({} refused in all)", first.path, first.why, report.refused_count);
        Err(RunnerError::User { message, source: None })
    }

    /// As [`Step::pack`].
    pub(crate) async fn pack(&self, path: &str) -> Result<Tar, RunnerError> {
        // What the machine mounts into a sandbox, and the places it made for that, are not the stage's files.
        let (exclude, one_mount) = (stubs_below(path, &self.machine.stubs()), true);
        let spec = PackSpec {
            path: path.to_owned(),
            exclude,
            follow: true,
            xattrs: true,
            exact: true,
            one_mount,
            ..PackSpec::default()
        };
        let pack = self.told(self.machine.guest().pack(spec).await).await?;
        // The stream needs the sandbox: it must outlive the step that it was made for.
        Ok(Box::new(Packed { inner: pack, _machine: self.machine.clone() }) as Tar)
    }

    /// As [`Step::glob`].
    pub(crate) async fn glob(&self, pattern: &str) -> Result<Vec<String>, RunnerError> {
        self.told(self.machine.guest().glob(pattern).await).await
    }

    /// As [`Step::stat`].
    pub(crate) async fn stat(&self, path: &str) -> Result<Option<Stat>, RunnerError> {
        stat(&self.machine.guest(), path).await
    }

    /// As [`Step::mkdir`].
    pub(crate) async fn mkdir(&self, path: &str, owner: Option<&str>) -> Result<(), RunnerError> {
        let mut missing = Vec::new();
        for above in Path::new(path).ancestors().filter_map(Path::to_str).take_while(|above| *above != "/") {
            if self.stat(above).await?.is_some() {
                break;
            }
            missing.push(above.to_owned());
        }
        for path in missing.iter().rev() {
            self.told(self.machine.guest().make_dir(path, owner).await).await?;
        }
        Ok(())
    }
}

/// What stands at a path of a sandbox.
pub(super) async fn stat(guest: &Guest, path: &str) -> Result<Option<Stat>, RunnerError> {
    let request = FsRequest::Stat { path: path.to_owned(), user: None };
    let answer = guest.fs(request).await.map_err(guest_failed)?;
    Ok(answer.stat.map(|stat| match stat.kind {
        FileKind::Dir => Stat::Dir,
        FileKind::File => Stat::File,
        FileKind::Other => Stat::Other,
    }))
}

/// The stubs below a directory, as patterns of what to leave out of it.
pub(super) fn stubs_below(dir: &str, stubs: &[PathBuf]) -> Vec<String> {
    let below = stubs.iter().filter_map(|stub| stub.strip_prefix(dir).ok()?.to_str());
    below.filter(|below| !below.is_empty()).map(|below| format!("./{below}")).collect()
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(dir)?.next().is_none())
}

/// A stream and the sandbox that it comes from.
struct Packed<R> {
    inner: R,
    _machine: Arc<dyn Machine>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Packed<R> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

/// What the sandbox's files do not allow is the Dockerfile's affair; all else is ours.
pub(super) fn guest_failed(source: guest::Error) -> RunnerError {
    let message = error::chain(&source);
    if source.refusal().is_some() || matches!(source, guest::Error::Name { .. }) {
        return RunnerError::User { message, source: None };
    }
    RunnerError::Infrastructure { message, source: None }
}
