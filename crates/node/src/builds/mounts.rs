//! A step's mounts: from what the build asks for to what the driver makes, and what is held meanwhile.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use berth_build::runner::{LayerId, Mount, MountSource, RunnerError, Stat};
use berth_sandbox::Machine;
use berth_sandbox::guest::{Guest, Manner, Owner, PackSpec, UnpackSpec};
use berth_types::files::FsRequest;
use berth_types::progress::Progress;
use tokio::io::AsyncRead;
use uuid::Uuid;

use super::caches::{self, Attributes, Lease, Want};
use super::runner::{Builder, Opening, infrastructure};
use super::step::{guest_failed, stat, stubs_below};

/// What a step's sandbox is started with, and keeps.
#[derive(Default)]
pub(super) struct Mounted {
    pub(super) mounts: Vec<berth_sandbox::Mount>,
    /// Caches; to be given back once the sandbox has ended.
    pub(super) leases: Vec<Lease>,
}

/// A machine and the caches that it uses. Whoever drops it before the machine was ended has it ended: the next step is not
/// to meet one that still writes.
pub(super) struct InUse {
    pub(super) machine: Arc<dyn Machine>,
    pub(super) leases: Vec<Lease>,
}

impl InUse {
    /// Gives the caches back. The machine has ended.
    pub(super) fn ended(&mut self) {
        self.leases.clear();
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let (machine, leases) = (self.machine.clone(), std::mem::take(&mut self.leases));
        // Without a runtime the daemon is at its end, and all sandboxes with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Err(error) = machine.stop().await {
                let error = crate::error::chain(&error);
                tracing::warn!(
                    error,
                    "a build step's sandbox could not be ended, its caches are free all the same"
                );
            }
            drop(leases);
        });
    }
}

impl Builder {
    /// Finds, makes and takes what a step's mounts show.
    pub(super) async fn mounted(&self, wanted: &[Mount]) -> Result<Mounted, RunnerError> {
        let wants: Vec<Want> = wanted.iter().filter_map(want).collect();
        let leases = self.take_caches(wanted, &wants).await?;
        let source = |mount: &Mount| match &mount.source {
            MountSource::Layers { layers, path } => {
                Ok(berth_sandbox::MountSource::Layers { names: self.names(layers)?, path: path.into() })
            }
            MountSource::Cache { id, .. } => {
                // Each id that is wanted was taken.
                let lease = leases.iter().find(|lease| lease.id() == id);
                let dir = lease.map(Lease::dir).unwrap_or_default();
                Ok(berth_sandbox::MountSource::Directory(dir))
            }
            MountSource::Tmpfs { size } => Ok(berth_sandbox::MountSource::Tmpfs { size: *size }),
            MountSource::Secret { bytes, uid, gid, mode } => Ok(berth_sandbox::MountSource::Bytes {
                bytes: bytes.clone(),
                uid: *uid,
                gid: *gid,
                mode: *mode,
            }),
        };
        let mounts = wanted.iter().map(|mount| {
            let (target, read_only) = (PathBuf::from(&mount.target), mount.read_only);
            Ok(berth_sandbox::Mount { target, read_only, source: source(mount)? })
        });
        let mounts = mounts.collect::<Result<_, RunnerError>>()?;
        Ok(Mounted { mounts, leases })
    }

    async fn take_caches(&self, wanted: &[Mount], wants: &[Want]) -> Result<Vec<Lease>, RunnerError> {
        if wants.is_empty() {
            return Ok(Vec::new());
        }
        let waits = |id: &str| {
            let text = format!("waiting for the cache mount `{id}`, which another step uses");
            (self.sink)(Progress::Message { text });
        };
        let taken = self.node.0.caches.take(wants, waits).await;
        let mut leases = taken.map_err(|source| cache_failed("make a cache mount", source))?;
        for lease in leases.iter_mut().filter(|lease| lease.is_new()) {
            if let Some((layers, path)) = seed_of(wanted, lease.id()) {
                self.seed(lease, layers, path).await?;
            }
            lease.made().map_err(|source| cache_failed("make a cache mount", source))?;
        }
        Ok(leases)
    }

    /// Copies a directory of some layers into a new cache: by a sandbox, so that owners and links are what they are there.
    async fn seed(&self, lease: &Lease, layers: &[LayerId], path: &str) -> Result<(), RunnerError> {
        // A place that no image has.
        let target = format!("/.berth-cache-{}", Uuid::now_v7().simple());
        let mount = berth_sandbox::Mount {
            target: PathBuf::from(&target),
            read_only: false,
            source: berth_sandbox::MountSource::Directory(lease.dir()),
        };
        let opening = Opening { mounts: vec![mount], ..Opening::default() };
        let _slot = self.slot().await?;
        let _grant = self.node.0.admission.commit(crate::resources::assumed(&self.node.0.limits));
        let machine = self.start(layers, opening).await?;
        let copied = copy(machine.as_ref(), path, &target, lease.id()).await;
        let stopped = machine.stop().await;
        copied?;
        stopped.map_err(|source| infrastructure("cannot end the sandbox that filled a cache mount", source))
    }
}

async fn copy(machine: &dyn Machine, from: &str, to: &str, id: &str) -> Result<(), RunnerError> {
    let guest = machine.guest();
    if stat(&guest, from).await? != Some(Stat::Dir) {
        let message =
            format!("the cache mount `{id}` is to begin with `{from}`, and there is no such directory");
        return Err(RunnerError::User { message, source: None });
    }
    let pack = PackSpec {
        path: from.to_owned(),
        exclude: stubs_below(from, &machine.stubs()),
        follow: true,
        xattrs: true,
        exact: true,
        one_mount: true,
        ..PackSpec::default()
    };
    guest.fs(like(&guest, from, to).await?).await.map_err(guest_failed)?;
    let tar: Box<dyn AsyncRead + Send + Unpin> = Box::new(guest.pack(pack).await.map_err(guest_failed)?);
    let unpack = UnpackSpec { path: to.to_owned(), owner: Owner::Keep, mode: None, manner: Manner::Copy };
    let report = guest.unpack(unpack, tar).await.map_err(guest_failed)?;
    let left_out = report.refused.first().map(|entry| (&entry.path, &entry.why));
    let left_out = left_out.or(report.skipped.first().map(|entry| (&entry.path, &entry.why)));
    match left_out {
        None => Ok(()),
        Some((path, why)) => {
            let message = format!("the cache mount `{id}` cannot begin with `{from}`: {path}: {why}");
            Err(RunnerError::User { message, source: None })
        }
    }
}

/// Makes a directory (maybe one that is there) as another one is, in this or another sandbox.
pub(super) async fn like(guest: &Guest, model: &str, path: &str) -> Result<FsRequest, RunnerError> {
    let request = FsRequest::Stat { path: model.to_owned(), user: None };
    let stat = guest.fs(request).await.map_err(guest_failed)?.stat;
    let owner = stat.as_ref().map(|stat| format!("{}:{}", stat.uid, stat.gid));
    Ok(FsRequest::Mkdir { paths: vec![path.to_owned()], mode: stat.map(|stat| stat.mode), owner })
}

fn want(mount: &Mount) -> Option<Want> {
    match &mount.source {
        MountSource::Cache { id, sharing, uid, gid, mode, .. } => {
            let new = Attributes { uid: *uid, gid: *gid, mode: *mode };
            Some(Want { id: id.clone(), sharing: *sharing, new })
        }
        _ => None,
    }
}

fn seed_of<'a>(wanted: &'a [Mount], id: &str) -> Option<(&'a [LayerId], &'a str)> {
    wanted.iter().find_map(|mount| match &mount.source {
        MountSource::Cache { id: own, seed: Some((layers, path)), .. } if own == id => {
            Some((layers.as_slice(), path.as_str()))
        }
        _ => None,
    })
}

fn cache_failed(operation: &'static str, source: caches::Error) -> RunnerError {
    infrastructure(&format!("cannot {operation}"), source)
}
