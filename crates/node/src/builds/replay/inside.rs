//! A sandbox that runs, as the steps of a replay see it.
//!
//! Nothing can be mounted into it any more for one command. What a step mounts is put there for as long as the step runs and
//! taken away again: files of layers as copies, a cache as an empty directory (which a cache may always be), a secret as a
//! file in memory (`/dev/shm`) that a link leads to, so that it is never on disk. That is the same to the command where nothing
//! is at the target; where something is, which a mount would hide, the step is refused.

use std::sync::Arc;

use berth_build::runner::{
    Answer, LayerId, Mount, MountSource, Owner, RunSpec, RunnerError, Setting, Stat, Step, Tar,
};
use berth_sandbox::guest::{PackSpec, ReadFile, WriteFile};
use berth_sandbox::{Limits, Machine};
use berth_types::files::{FsRequest, FsResponse};
use berth_types::progress::Progress;
use berth_types::sandbox::Sandbox;
use futures_util::FutureExt;
use uuid::Uuid;

use super::super::mounts::like;
use super::super::runner::{Builder, Opening, infrastructure};
use super::super::step::{Inside, guest_failed, stubs_below};
use crate::resources::MB;

/// Where the sandbox has memory for files.
const MEMORY: &str = "/dev/shm";

/// The sandbox of a replay.
pub(super) struct Running<'a> {
    machine: Arc<dyn Machine>,
    builder: &'a Builder,
    limits: Limits,
    /// What was put there for the step, to be taken away after it.
    put: Vec<Put>,
}

/// Something at a target.
struct Put {
    target: String,
    /// Directories that were made for it, the uppermost first.
    made: Vec<String>,
    /// Whether the target was an empty directory before, and is to be one again.
    was_dir: bool,
    /// The file in memory that it leads to.
    memory: Option<String>,
}

impl<'a> Running<'a> {
    pub(super) fn new(machine: Arc<dyn Machine>, builder: &'a Builder, sandbox: &Sandbox) -> Running<'a> {
        let resources = &sandbox.resources;
        let limits = Limits {
            memory_bytes: resources.memory_mb.map(|mb| mb.saturating_mul(MB)),
            storage_bytes: resources.storage_mb.map(|mb| mb.saturating_mul(MB)),
            storage_inodes: resources.storage_inodes,
            ..Limits::default()
        };
        Running { machine, builder, limits, put: Vec::new() }
    }

    fn inside(&self) -> Inside<'_> {
        Inside { machine: &self.machine, limits: self.limits, sink: &self.builder.sink, is_own: false }
    }

    async fn fs(&self, request: FsRequest) -> Result<FsResponse, RunnerError> {
        self.machine.guest().fs(request).await.map_err(guest_failed)
    }

    /// Puts there what one mount shows.
    async fn mount(&mut self, mount: Mount) -> Result<(), RunnerError> {
        let target = mount.target.trim_end_matches('/').to_owned();
        let is_file = matches!(mount.source, MountSource::Secret { .. });
        let was_dir = self.check_free(&target, is_file).await?;
        let parent = target.rsplit_once('/').map_or("", |(parent, _)| parent);
        let made = self.missing(parent).await?;
        self.put.push(Put { target: target.clone(), made, was_dir, memory: None });
        if !parent.is_empty() {
            self.inside().mkdir(parent, None).await?;
        }
        match mount.source {
            MountSource::Secret { bytes, uid, gid, mode } => {
                self.secret(&target, bytes, format!("{uid}:{gid}"), mode).await
            }
            MountSource::Tmpfs { .. } => self.inside().mkdir(&target, None).await,
            MountSource::Cache { id, uid, gid, mode, seed, .. } => {
                let text = format!(
                    "the cache mount `{id}` is empty at first: a running sandbox is given none to keep"
                );
                (self.builder.sink)(Progress::Message { text });
                match seed {
                    Some((layers, path)) => self.copy(&layers, &path, &target).await,
                    None => {
                        self.fs(FsRequest::Mkdir {
                            paths: vec![target],
                            mode: Some(mode),
                            owner: Some(format!("{uid}:{gid}")),
                        })
                        .await?;
                        Ok(())
                    }
                }
            }
            MountSource::Layers { layers, path } => self.copy(&layers, &path, &target).await,
        }
    }

    /// Whether there is an empty directory at a target; an error where something is that a mount would hide.
    async fn check_free(&self, target: &str, is_file: bool) -> Result<bool, RunnerError> {
        let hides = |what: &str| {
            let message = format!(
                "a running sandbox cannot be given mounts, and `{target}` holds {what} that one would hide (build the image instead)"
            );
            RunnerError::User { message, source: None }
        };
        if target.is_empty() {
            return Err(hides("everything"));
        }
        match self.inside().stat(target).await? {
            None => Ok(false),
            Some(Stat::Dir) if !is_file => {
                let listed = self.fs(FsRequest::List { path: target.to_owned(), user: None }).await?;
                match listed.entries.is_none_or(|entries| entries.is_empty()) {
                    true => Ok(true),
                    false => Err(hides("files")),
                }
            }
            Some(_) => Err(hides("something")),
        }
    }

    /// The directories of a path that are not there, the uppermost first.
    async fn missing(&self, path: &str) -> Result<Vec<String>, RunnerError> {
        let mut missing = Vec::new();
        let mut above = path;
        while !above.is_empty() && self.inside().stat(above).await?.is_none() {
            missing.push(above.to_owned());
            above = above.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        missing.reverse();
        Ok(missing)
    }

    async fn secret(
        &mut self,
        target: &str,
        bytes: Vec<u8>,
        owner: String,
        mode: u32,
    ) -> Result<(), RunnerError> {
        let memory = format!("{MEMORY}/.berth-{}", Uuid::now_v7().simple());
        // Before it is there: it is taken away whatever happens.
        if let Some(put) = self.put.last_mut() {
            put.memory = Some(memory.clone());
        }
        let file =
            WriteFile { path: memory.clone(), mode: Some(mode), owner: Some(owner), create_only: true };
        let written = self.machine.guest().write_file(file, std::io::Cursor::new(bytes)).await;
        written.map_err(guest_failed)?;
        let (dir, name) = target.rsplit_once('/').unwrap_or(("", target));
        let tar = link(name, &memory).map_err(|source| infrastructure("cannot make a link", source))?;
        let dir = if dir.is_empty() { "/" } else { dir };
        self.inside().unpack(dir, Owner::Root, None, Box::new(std::io::Cursor::new(tar))).await
    }

    /// Copies a file or directory of layers, by a sandbox of their own.
    async fn copy(&self, layers: &[LayerId], path: &str, target: &str) -> Result<(), RunnerError> {
        let _slot = self.builder.slot().await?;
        let admission = &self.builder.node.0.admission;
        let _grant = admission.commit(crate::resources::assumed(&self.builder.node.0.limits));
        let lender = self.builder.start(layers, Opening::default()).await?;
        let copied = self.copy_of(&lender, path, target).await;
        let stopped = lender.stop().await;
        copied?;
        stopped.map_err(|source| infrastructure("cannot end the sandbox that lends the files", source))
    }

    async fn copy_of(&self, lender: &Arc<dyn Machine>, path: &str, target: &str) -> Result<(), RunnerError> {
        let from =
            Inside { machine: lender, limits: Limits::default(), sink: &self.builder.sink, is_own: true };
        match from.stat(path).await? {
            Some(Stat::Dir) => {}
            Some(_) => return self.copy_file(lender, path, target).await,
            None => {
                return Err(RunnerError::User { message: format!("`{path}` is not there"), source: None });
            }
        }
        let pack = PackSpec {
            path: path.to_owned(),
            exclude: stubs_below(path, &lender.stubs()),
            follow: true,
            xattrs: true,
            exact: true,
            one_mount: true,
            ..PackSpec::default()
        };
        let tar = lender.guest().pack(pack).await.map_err(guest_failed)?;
        self.fs(like(&lender.guest(), path, target).await?).await?;
        self.inside().unpack(target, Owner::Keep, None, Box::new(tar)).await
    }

    async fn copy_file(
        &self,
        lender: &Arc<dyn Machine>,
        path: &str,
        target: &str,
    ) -> Result<(), RunnerError> {
        let request = FsRequest::Stat { path: path.to_owned(), user: None };
        let stat = lender.guest().fs(request).await.map_err(guest_failed)?.stat;
        let owner = stat.as_ref().map(|stat| format!("{}:{}", stat.uid, stat.gid));
        let read = ReadFile { path: path.to_owned(), offset: 0, length: None, user: None };
        let bytes = lender.guest().read_file(read).await.map_err(guest_failed)?;
        let mode = stat.map(|stat| stat.mode);
        let file = WriteFile { path: target.to_owned(), mode, owner, create_only: true };
        self.machine.guest().write_file(file, bytes).await.map(drop).map_err(guest_failed)
    }

    /// Takes away all that was put there.
    async fn clear(&mut self) -> Result<(), RunnerError> {
        let mut first = Ok(());
        while let Some(put) = self.put.pop() {
            let cleared = self.take_away(put).await;
            first = first.and(cleared);
        }
        first
    }

    async fn take_away(&self, put: Put) -> Result<(), RunnerError> {
        // The secret first, whatever becomes of the rest.
        if let Some(memory) = put.memory {
            self.fs(FsRequest::Remove { paths: vec![memory] }).await?;
        }
        match put.was_dir {
            true => self.fs(FsRequest::Empty { paths: vec![put.target], mode: None }).await?,
            false => self.fs(FsRequest::Remove { paths: vec![put.target] }).await?,
        };
        for dir in put.made.into_iter().rev() {
            let listed = self.fs(FsRequest::List { path: dir.clone(), user: None }).await;
            let is_empty =
                listed.is_ok_and(|listed| listed.entries.is_some_and(|entries| entries.is_empty()));
            if !is_empty {
                break;
            }
            self.fs(FsRequest::Remove { paths: vec![dir] }).await?;
        }
        Ok(())
    }
}

impl Step for Running<'_> {
    fn set<'a>(&'a mut self, setting: Setting) -> Answer<'a, ()> {
        async move {
            self.clear().await?;
            if setting.no_network {
                let message =
                    "a running sandbox cannot lose its network for one command (build the image instead)"
                        .to_owned();
                return Err(RunnerError::User { message, source: None });
            }
            for mount in setting.mounts {
                if let Err(error) = self.mount(mount).await {
                    // The step does not run: nothing of it is to stay.
                    self.clear().await?;
                    return Err(error);
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn run<'a>(&'a mut self, spec: RunSpec, output: &'a mut (dyn FnMut(&[u8]) + Send)) -> Answer<'a, i32> {
        async move {
            let mut env = spec.env.into_iter().collect();
            self.builder.node.0.trust.sandboxes.add_to(&mut env);
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

    fn mkdir<'a>(&'a mut self, path: &'a str, owner: Option<&'a str>) -> Answer<'a, ()> {
        async move { self.inside().mkdir(path, owner).await }.boxed()
    }

    fn commit<'a>(self: Box<Self>) -> Answer<'a, Option<LayerId>>
    where
        Self: 'a,
    {
        let message = "a running sandbox makes no layer".to_owned();
        async move { Err(RunnerError::Infrastructure { message, source: None }) }.boxed()
    }
}

/// A tar of one symbolic link.
fn link(name: &str, to: &str) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    header.set_mode(0o777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_link(&mut header, name, to)?;
    tar.into_inner()
}
