//! Takes over the containers of an earlier daemon, and ends what nobody can take over.
//!
//! ```text
//!   records ──find──▶ those whose process and directories are there ──▶ network and ids keep what is theirs
//!              │                        │                                         │
//!              │                     clear: ends everything else          adopt: slot, socket, greeting ──▶ Container
//!              └▶ why not ◀───────────────────────────────────────────────────────┴ (given back by the reaper)
//! ```
//!
//! Until a container is taken over wholly it is left as it is when this fails as a whole: a daemon that cannot start, for
//! a setting that is wrong, say, is no reason to end what another one could have taken over.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use berth_disk::{Engine, Writable};
use berth_jail::cgroup::{self, Survivor};
use berth_jail::{AdoptError, Process};
use berth_net::{KeptSlot, UserNamespace};
use rustix::fs::{CWD, Mode, OFlags};

use crate::container::{ContainerDriver, HELLO_LIMIT};
use crate::ids::{IdRanges, Range};
use crate::machine::{Container, Known};
use crate::parts::SandboxDisk;
use crate::resume::Record;
use crate::sockets::Sockets;
use crate::{Error, Machine, line};

/// A container that was written down, and runs. Dropping it leaves it running.
pub(crate) struct Found {
    id: String,
    text: String,
    record: Record,
    writable: Writable,
    /// None once it is taken over.
    living: Option<Living>,
}

/// What is held of it here.
struct Living {
    process: Process,
    netns: OwnedFd,
    user: Option<UserNamespace>,
}

/// What was found, and why the others were not.
pub(crate) type Search = (Vec<Found>, Vec<(String, Error)>);

/// Looks for what was written down. Blocks.
pub(crate) fn find(records: Vec<(String, String)>, disk: &dyn Engine, ids: Option<&IdRanges>) -> Search {
    let mut search = Search::default();
    for (id, text) in records {
        match find_one(&id, text, disk, ids) {
            Ok(found) => search.0.push(found),
            Err(error) => search.1.push((id, error)),
        }
    }
    search
}

fn find_one(id: &str, text: String, disk: &dyn Engine, ids: Option<&IdRanges>) -> Result<Found, Error> {
    let record = Record::read(&text)?;
    let writable = disk.writable(id).map_err(Error::Disk)?;
    let process = Process::adopt(&record.process, &record.cgroup, record.stubs.clone());
    let mut process = process.map_err(Error::NotThere)?;
    // From here on it is dropped as what is found: without being ended.
    let namespaces = open_namespaces(&mut process, &record).and_then(|(netns, user)| {
        let user = user.map(|fd| own_ids(fd, &record.slot, ids)).transpose()?.flatten();
        Ok((netns, user))
    });
    match namespaces {
        Ok((netns, user)) => {
            let living = Some(Living { process, netns, user });
            Ok(Found { id: id.to_owned(), text, record, writable, living })
        }
        Err(error) => {
            process.leave();
            Err(error)
        }
    }
}

/// Those of the process, and of no other one: it lives when they are open.
fn open_namespaces(process: &mut Process, record: &Record) -> Result<(OwnedFd, Option<OwnedFd>), Error> {
    let pid = process.pid();
    let open = |name: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::Namespaces(error.into()))
    };
    let net = open("net")?;
    let user = record.slot.ids.map(|_| open("user")).transpose()?;
    match process.try_wait().map_err(Error::Namespaces)? {
        None => Ok((net, user)),
        Some(_) => Err(Error::NotThere(AdoptError::Ended { pid })),
    }
}

/// Without ranges to hand out there is nothing to set aside.
fn own_ids(fd: OwnedFd, slot: &KeptSlot, ids: Option<&IdRanges>) -> Result<Option<UserNamespace>, Error> {
    let Some(kept) = slot.ids else { return Ok(None) };
    let range = Range { first: kept.first, count: kept.count };
    let lease: Box<dyn Send + Sync> = match ids {
        Some(ids) => Box::new(ids.reserve(range).map_err(Error::Ids)?),
        None => Box::new(()),
    };
    Ok(Some(UserNamespace { fd, first: kept.first, count: kept.count, lease }))
}

/// What is kept when everything else goes.
pub(crate) fn slots(found: &[Found]) -> Vec<KeptSlot> {
    found.iter().map(|found| found.record.slot.clone()).collect()
}

/// Ends every process and removes every group, socket and directory of the instance that is of none that was found.
/// Blocks.
pub(crate) fn clear(
    found: &[Found],
    cgroups: &cgroup::Facts,
    instance: &str,
    sockets: &Sockets,
    disk: &dyn Engine,
) -> Result<(), Error> {
    let survivors: Vec<Survivor> =
        found.iter().map(|found| Survivor { id: found.id.clone(), pid: found.record.process.pid }).collect();
    match cgroup::remove_others(cgroups, instance, &survivors) {
        // What hangs in the kernel must not keep all others from being served.
        Err(error @ cgroup::Error::Survivors { .. }) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "not all of an earlier daemon's could be ended"
            );
        }
        removed => removed.map_err(Error::Cgroup)?,
    }
    let kept: Vec<&str> = found.iter().map(|found| found.id.as_str()).collect();
    sockets
        .remove_others(&kept)
        .map_err(|source| Error::Sockets { path: sockets.path().to_owned(), source })?;
    for id in disk.list().map_err(Error::Disk)?.iter().filter(|id| !kept.contains(&id.as_str())) {
        disk.remove(id).map_err(Error::Disk)?;
    }
    disk.reap_trash().map(drop).map_err(Error::Disk)
}

impl ContainerDriver {
    /// Takes over what was found, all at once. What cannot be is given back, and said why.
    pub(crate) async fn adopt_all(
        &self,
        found: Vec<Found>,
    ) -> Vec<(String, Result<Arc<dyn Machine>, Error>)> {
        let adopt = |found: Found| async {
            let id = found.id.clone();
            let adopted = self.adopt(found).await;
            (id, adopted.map(|container| Arc::new(container) as Arc<dyn Machine>))
        };
        futures_util::future::join_all(found.into_iter().map(adopt)).await
    }

    async fn adopt(&self, mut found: Found) -> Result<Container, Error> {
        let Some(Living { process, netns, user }) = found.living.take() else { return Err(Error::Ended) };
        let Found { id, text, record, writable, .. } = &mut found;
        let mut guard = self.reaper().guard();
        let parts = guard.parts();
        parts.process = Some(process);
        parts.cgroup = Some(record.cgroup.clone());
        let disk = SandboxDisk { engine: self.disk().clone(), id: id.clone(), writable: writable.clone() };
        parts.disk = Some(disk);
        let socket = parts.socket.insert(self.sockets().of(id));
        let slot = self.network().adopt(record.slot.clone(), netns, user).await.map_err(Error::Network)?;
        parts.slot = Some(slot);
        let guest = tokio::time::timeout(HELLO_LIMIT, line::greet(socket));
        let guest = guest.await.map_err(|_| Error::GuestSilent { limit: HELLO_LIMIT })??;
        let resume = Some(std::mem::take(text));
        let lowers = Vec::new();
        let known = Known { phases: record.phases, limits: record.limits, resume, lowers };
        let container = Container::new(guest, guard, self.reaper().clone(), known)?;
        self.keep(&container)?;
        Ok(container)
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        if let Some(living) = self.living.take() {
            living.process.leave();
        }
    }
}
