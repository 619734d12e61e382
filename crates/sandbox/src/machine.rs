//! One container that runs, made by this daemon or taken over from an earlier one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use berth_disk::{Counted, Engine};
use berth_jail::{Exit, Process, cgroup};
use berth_types::sandbox::{Limit, StartPhases, Usage};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::driver::{Death, Disk, DiskFull, Limits, Machine, NetworkDoor};
use crate::guest::Guest;
use crate::line::{Line, Way};
use crate::parts::{Parts, lock};
use crate::reaper::{Guard, Reaper};
use crate::{Error, etc, stubs};

/// How long the kernel may take to end a container's processes: one may sit in an uninterruptible wait.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// A running container.
pub(crate) struct Container {
    line: Arc<Line>,
    /// Keeps the line.
    keeper: AbortHandle,
    /// Where the death is announced; `None` while it lives.
    death: watch::Receiver<Option<Death>>,
    pub(crate) parts: Arc<Mutex<Option<Parts>>>,
    reaper: Reaper,
    known: Known,
}

/// What is known of a container without asking anybody.
pub(crate) struct Known {
    pub(crate) phases: StartPhases,
    pub(crate) limits: Limits,
    /// What another daemon needs; none where it is not to have it.
    pub(crate) resume: Option<String>,
    /// Its layers on this machine, the topmost first; none where they are not known any more.
    pub(crate) lowers: Vec<PathBuf>,
}

impl Container {
    /// Of a guest that answers.
    pub(crate) fn new(
        guest: Guest,
        mut parts: Guard,
        reaper: Reaper,
        known: Known,
    ) -> Result<Container, Error> {
        let process = parts.parts().process.as_ref().ok_or(Error::Ended)?;
        let pidfd = process.pidfd().try_clone().map_err(Error::Socket)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps its descriptor, which is all that the new, unsafe call asks"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(Error::Socket)?;
        let parts = Arc::new(Mutex::new(Some(parts.release())));
        let line = Arc::new(Line::new(guest));
        let (announce, death) = watch::channel(None);
        let given_up = Arc::new(OnceLock::new());
        tokio::spawn(announce_death(pidfd, parts.clone(), announce.clone(), given_up.clone()));
        let keeper = tokio::spawn(keep(line.clone(), parts.clone(), announce, given_up)).abort_handle();
        Ok(Container { line, keeper, death, parts, reaper, known })
    }

    /// Kills the first process, and with it everything in the container, and waits until it is gone.
    async fn kill(&self) -> Result<(), Error> {
        let killed = match lock(&self.parts).as_ref().and_then(|parts| parts.process.as_ref()) {
            Some(process) => process.kill(),
            None => return Ok(()),
        };
        killed.map_err(Error::Kill)?;
        tokio::time::timeout(KILL_LIMIT, self.wait()).await.map(drop).map_err(|_| Error::Undead)
    }

    /// What counts for it, apart from its owner.
    fn held(&self) -> Held {
        let parts = lock(&self.parts);
        let cgroup = parts.as_ref().and_then(|parts| parts.cgroup.clone());
        let disk = parts.as_ref().and_then(|parts| parts.disk.as_ref());
        Held { cgroup, disk: disk.map(|disk| (disk.engine.clone(), disk.id.clone())) }
    }

    async fn wait(&self) -> Death {
        let mut death = self.death.clone();
        let unknown = || Death { oom_kills: 0, how: "its first process was lost track of".to_owned() };
        match death.wait_for(Option::is_some).await {
            Ok(death) => death.clone().unwrap_or_else(unknown),
            Err(_) => unknown(),
        }
    }
}

/// Where a container's use of the machine is read. What cannot be read is absent, and said in the log.
struct Held {
    cgroup: Option<cgroup::Cgroup>,
    disk: Option<(Arc<dyn Engine>, String)>,
}

impl Held {
    fn usage(&self, limits: &Limits) -> Usage {
        let counted = self.cgroup.as_ref().and_then(|cgroup| {
            cgroup.usage().inspect_err(|error| tracing::warn!(%error, "cannot read what a sandbox uses")).ok()
        });
        let counted = counted.unwrap_or_default();
        let disk = self.disk_usage();
        let disk_full = self.disk_full();
        let met = |limit, times: Option<u64>| times.is_some_and(|times| times > 0).then_some(limit);
        let hits = [
            met(Limit::Memory, counted.oom_kills),
            met(Limit::Pids, counted.pids_limit_events),
            (disk_full == Some(DiskFull::Limit)).then_some(Limit::Disk),
        ];
        Usage {
            memory_bytes: counted.memory_bytes,
            memory_peak_bytes: counted.memory_peak_bytes,
            memory_limit_bytes: limits.memory_bytes,
            oom_kills: counted.oom_kills,
            cpu_seconds: counted.cpu_usec.map(|usec| usec as f64 / 1e6),
            pids: counted.pids,
            pids_limit: limits.pids,
            disk_bytes: disk.map(|disk| disk.bytes),
            disk_limit_bytes: limits.storage_bytes,
            disk_inodes: disk.and_then(|disk| disk.inodes),
            disk_inodes_limit: limits.storage_inodes,
            limits_hit: hits.into_iter().flatten().collect(),
            machine_disk_full: disk_full == Some(DiskFull::Machine),
        }
    }

    /// Absent where telling it takes a walk through all files: this is asked often.
    fn disk_usage(&self) -> Option<berth_disk::Usage> {
        let (engine, id) = self.disk.as_ref()?;
        if !engine.enforces_storage() {
            return None;
        }
        let usage = engine.usage(id).inspect_err(|error| unread(id, error, "what a sandbox has on disk"));
        usage.ok().filter(|usage| usage.counted != Counted::Walked)
    }

    fn disk_full(&self) -> Option<DiskFull> {
        let (engine, id) = self.disk.as_ref()?;
        match engine.limit_hit(id) {
            Ok(full) => full.map(whose),
            Err(error) => {
                unread(id, &error, "whether a sandbox's disk is full");
                None
            }
        }
    }
}

impl Machine for Container {
    fn guest(&self) -> Guest {
        self.line.guest()
    }

    fn reached(&self) -> BoxFuture<'_, Guest> {
        async move {
            tokio::select! {
                guest = self.line.reached() => guest,
                _ = self.wait() => self.line.guest(),
            }
        }
        .boxed()
    }

    fn died(&self) -> BoxFuture<'_, Death> {
        self.wait().boxed()
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            self.kill().await?;
            let parts = lock(&self.parts).take();
            drop(parts.map(|parts| self.reaper.guard_of(parts)));
            Ok(())
        }
        .boxed()
    }

    fn phases(&self) -> StartPhases {
        self.known.phases
    }

    fn usage(&self) -> BoxFuture<'_, Usage> {
        async move {
            let held = self.held();
            let limits = self.known.limits;
            let counted = tokio::task::spawn_blocking(move || held.usage(&limits)).await;
            counted.unwrap_or_default()
        }
        .boxed()
    }

    fn disk_full(&self) -> BoxFuture<'_, Option<DiskFull>> {
        async move {
            let held = self.held();
            tokio::task::spawn_blocking(move || held.disk_full()).await.unwrap_or_default()
        }
        .boxed()
    }

    fn stubs(&self) -> Vec<PathBuf> {
        let parts = lock(&self.parts);
        let stubs = parts
            .as_ref()
            .and_then(|parts| parts.process.as_ref())
            .map_or(&[][..], |process| process.stubs());
        stubs.iter().map(|stub| Path::new("/").join(stub)).collect()
    }

    fn network(&self) -> Option<NetworkDoor> {
        let parts = lock(&self.parts);
        let slot = parts.as_ref()?.slot.as_ref()?;
        let netns = slot.netns().try_clone_to_owned();
        let netns = netns.inspect_err(|error| tracing::warn!(%error, "cannot keep a network open")).ok()?;
        Some(NetworkDoor { netns, resolv_conf: slot.resolv_conf().to_owned() })
    }

    fn resume(&self) -> Option<String> {
        // Without parts it has ended, or was let go of.
        lock(&self.parts).as_ref().and(self.known.resume.clone())
    }

    fn take_disk(&self) -> BoxFuture<'_, Result<Disk, Error>> {
        async move {
            self.kill().await?;
            let parts = lock(&self.parts).take().ok_or(Error::Ended)?;
            let stubs = parts.process.as_ref().map(|process| process.stubs().to_vec()).unwrap_or_default();
            let disk = parts.disk.as_ref().ok_or(Error::Ended)?;
            let (engine, id, upper) = (disk.engine.clone(), disk.id.clone(), disk.writable.upper.clone());
            let guard = self.reaper.guard_of(parts);
            stubs::remove_empty(&upper, &stubs, &self.known.lowers).map_err(Error::Stubs)?;
            etc::remove(&upper).map_err(Error::EtcFiles)?;
            let released = tokio::task::spawn_blocking(move || {
                let tree = engine.release_tree(&id).map_err(Error::Disk)?;
                write_out(&tree).map_err(|source| Error::WriteOut { path: tree.clone(), source })?;
                Ok(tree)
            });
            let tree = released.await.map_err(|_| Error::Cancelled)??;
            Ok(Disk::new(tree, Box::new(guard)))
        }
        .boxed()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It holds the connection, which may be what keeps the container alive.
        self.keeper.abort();
        let parts = lock(&self.parts).take();
        drop(parts.map(|parts| self.reaper.guard_of(parts)));
    }
}

fn whose(full: berth_disk::Full) -> DiskFull {
    match full {
        berth_disk::Full::Bytes { .. } | berth_disk::Full::Inodes { .. } => DiskFull::Limit,
        berth_disk::Full::Pool { .. } => DiskFull::Machine,
    }
}

/// A disk that is gone went with its sandbox while somebody asked.
fn unread(id: &str, error: &berth_disk::Error, what: &str) {
    use berth_disk::Error::{Missing, ReadQuota};
    match error {
        Missing { .. } => tracing::debug!(id, %error, "cannot read {what}"),
        ReadQuota { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            tracing::debug!(id, %error, "cannot read {what}");
        }
        error => tracing::warn!(id, %error, "cannot read {what}"),
    }
}

/// Nothing that a sandbox writes is on its disk by then: see [`berth_jail::plan::Overlay::VOLATILE`]. A layer must be.
fn write_out(tree: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(tree)?)?)
}

/// Waits for the first process's end, reaps it, and tells what is known of it.
async fn announce_death(
    pidfd: AsyncFd<OwnedFd>,
    parts: Arc<Mutex<Option<Parts>>>,
    announce: watch::Sender<Option<Death>>,
    given_up: Arc<OnceLock<String>>,
) {
    let how = match pidfd.readable().await {
        Ok(_) => None,
        Err(error) => Some(format!("its first process cannot be watched: {error}")),
    };
    let death = match lock(&parts).as_mut() {
        None => Death { oom_kills: 0, how: "it was taken down".to_owned() },
        Some(parts) => Death {
            oom_kills: parts.cgroup.as_ref().and_then(|cgroup| cgroup.oom_kills().ok()?).unwrap_or(0),
            how: {
                let exit = how.unwrap_or_else(|| describe_exit(parts.process.as_mut()));
                given_up.get().cloned().unwrap_or(exit)
            },
        },
    };
    announce.send_replace(Some(death));
}

/// Keeps the connection to the guest. Where that cannot be, everything is ended: a container that nobody can reach must
/// not seem to be of use.
async fn keep(
    line: Arc<Line>,
    parts: Arc<Mutex<Option<Parts>>>,
    announce: watch::Sender<Option<Death>>,
    given_up: Arc<OnceLock<String>>,
) {
    let mut death = announce.subscribe();
    let way = || match lock(&parts).as_ref() {
        None => Way::Left,
        Some(parts) => parts.socket.clone().map_or(Way::Nowhere, Way::Socket),
    };
    let why = tokio::select! {
        _ = death.wait_for(Option::is_some) => None,
        why = line.keep(way) => why,
    };
    let Some(why) = why else { return };
    let why = given_up.get_or_init(|| format!("{why}; it was ended"));
    let killed = lock(&parts).as_ref().and_then(|parts| Some(parts.process.as_ref()?.kill()));
    let Some(killed) = killed else { return };
    if let Err(error) = &killed {
        tracing::warn!(%error, "a sandbox that cannot be reached could not be ended");
    }
    if tokio::time::timeout(KILL_LIMIT, death.wait_for(Option::is_some)).await.is_err() {
        announce.send_replace(Some(Death { oom_kills: 0, how: why.clone() }));
    }
}

fn describe_exit(process: Option<&mut Process>) -> String {
    match process.map(Process::try_wait) {
        Some(Ok(Some(Exit::Code(code)))) => format!("its first process exited with code {code}"),
        Some(Ok(Some(Exit::Signal(signal)))) => format!("its first process was killed by signal {signal}"),
        Some(Ok(Some(Exit::Unknown))) => {
            "its first process is gone, how is not known: an earlier daemon had started it".to_owned()
        }
        Some(Ok(None)) | None => "its first process is gone".to_owned(),
        Some(Err(error)) => format!("its first process is gone, how is not known: {error}"),
    }
}
