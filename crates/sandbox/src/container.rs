//! Sandboxes as containers: disk, network, control groups and jail put together, and taken apart again.
//!
//! Each phase of a start adds what it made to `Parts`. Whoever drops `Parts` (a failed start, a cancelled one, a
//! sandbox that was stopped) hands it to the `reaper`, which gives everything back in order.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use berth_disk::{Engine, Writable};
use berth_jail::spec::{self, EtcFiles, Root};
use berth_jail::{Capability, Exit, GuestImage, LaunchRequest, Launcher, Process, cgroup};
use berth_net::{Mode, Network, Slot, SlotSpec};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::driver::{Death, Disk, Driver, Machine, StartSpec};
use crate::guest::Guest;
use crate::reaper::Reaper;
use crate::{Error, etc, stubs};

/// How long a guest may take to answer. It needs milliseconds; a machine that swaps needs longer.
const HELLO_LIMIT: Duration = Duration::from_secs(20);

/// How long the kernel may take to end a container's processes: one may sit in an uninterruptible wait.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What the container driver works with.
#[derive(Debug)]
pub struct Options {
    /// Short name of the daemon on this machine; names its cgroups.
    pub instance: String,
    /// Where layers are; see the image store.
    pub layers_dir: PathBuf,
    /// The static executable that becomes PID 1.
    pub guest: &'static [u8],
}

/// Runs sandboxes as containers of this machine's kernel.
pub struct ContainerDriver {
    options: Options,
    launcher: Arc<Launcher>,
    guest: Arc<GuestImage>,
    disk: Arc<dyn Engine>,
    network: Network,
    facts: berth_jail::Facts,
    cgroups: cgroup::Facts,
    reaper: Reaper,
    alive: Alive,
}

/// What living containers hold, so that a shutdown ends those too whose owners have not let go.
#[derive(Default)]
struct Alive {
    parts: Mutex<Vec<Weak<Mutex<Option<Parts>>>>>,
    closed: AtomicBool,
}

impl Alive {
    fn add(&self, parts: &Arc<Mutex<Option<Parts>>>) {
        let mut all = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|parts| parts.strong_count() > 0);
        all.push(Arc::downgrade(parts));
    }

    /// Takes everything from its owners; no container starts afterwards.
    fn close(&self) -> Vec<Parts> {
        self.closed.store(true, Ordering::SeqCst);
        let all = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        all.iter().filter_map(|parts| lock(&*parts.upgrade()?).take()).collect()
    }
}

/// What one sandbox holds on this machine. Given back in the order of the fields.
#[derive(Default)]
pub(crate) struct Parts {
    pub(crate) process: Option<Process>,
    pub(crate) cgroup: Option<cgroup::Cgroup>,
    pub(crate) slot: Option<Slot>,
    pub(crate) disk: Option<SandboxDisk>,
}

/// A sandbox's directories and the engine that made them.
pub(crate) struct SandboxDisk {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) id: String,
    pub(crate) writable: Writable,
}

impl ContainerDriver {
    /// A driver over these mechanisms. Removes what an earlier daemon of the same instance left.
    ///
    /// # Errors
    /// When the launcher, the guest's memory file or the cgroups are not to be had.
    pub fn new(options: Options, disk: Arc<dyn Engine>, network: Network) -> Result<ContainerDriver, Error> {
        let cgroups = cgroup::Facts::detect().map_err(Error::Cgroup)?;
        cgroup::remove_instance(&cgroups, &options.instance).map_err(Error::Cgroup)?;
        Ok(ContainerDriver {
            launcher: Arc::new(Launcher::spawn().map_err(Error::Launch)?),
            guest: Arc::new(GuestImage::new(options.guest).map_err(Error::GuestImage)?),
            reaper: Reaper::start(),
            options,
            disk,
            network,
            facts: berth_jail::Facts::detect().map_err(Error::Facts)?,
            cgroups,
            alive: Alive::default(),
        })
    }

    async fn make(&self, spec: StartSpec) -> Result<Container, Error> {
        let mut parts = self.reaper.guard();
        let writable = self.disk.create(&spec.id).map_err(Error::Disk)?;
        parts.parts().disk =
            Some(SandboxDisk { engine: self.disk.clone(), id: spec.id.clone(), writable: writable.clone() });

        let mode = if spec.public_network { Mode::Public } else { Mode::NoNetwork };
        let slot_spec = SlotSpec { mode, user_namespace: false };
        let slot = self.network.attach(slot_spec).await.map_err(Error::Network)?;
        let etc = etc::write(&writable.upper, &spec.hostname, &slot).map_err(Error::EtcFiles)?;
        let netns = slot.netns().try_clone_to_owned().map_err(Error::Socket)?;
        parts.parts().slot = Some(slot);

        let group = self.plan_cgroup(&spec)?;
        let membership = group.membership();
        parts.parts().cgroup = Some(group.create().map_err(Error::Cgroup)?);

        let plan = self.plan(&spec, &writable, etc, membership)?;
        let (ours, theirs) = control_pair().map_err(Error::Socket)?;
        parts.parts().process = Some(self.launch(plan, netns, theirs).await?);

        let connected = tokio::time::timeout(HELLO_LIMIT, Guest::connect(ours)).await;
        let guest =
            connected.map_err(|_| Error::GuestSilent { limit: HELLO_LIMIT })?.map_err(Error::Guest)?;
        let container = Container::new(guest, parts.release(), self.reaper.clone())?;
        self.alive.add(&container.parts);
        if self.alive.closed.load(Ordering::SeqCst) {
            return Err(Error::Cancelled);
        }
        Ok(container)
    }

    fn plan_cgroup(&self, spec: &StartSpec) -> Result<cgroup::Plan, Error> {
        let limits = cgroup::Limits {
            cpus: spec.limits.cpus,
            memory_bytes: spec.limits.memory_bytes,
            pids: spec.limits.pids,
        };
        let path = format!("berth/{}/{}", self.options.instance, spec.id);
        cgroup::plan(&limits, &self.cgroups, &path).map_err(Error::Cgroup)
    }

    fn plan(
        &self,
        spec: &StartSpec,
        writable: &Writable,
        etc: EtcFiles,
        cgroups: spec::CgroupMembership,
    ) -> Result<berth_jail::Plan, Error> {
        let bind = |bind: &crate::driver::Bind| spec::Bind {
            source: bind.source.clone(),
            target: bind.target.clone(),
            read_only: bind.read_only,
        };
        let jail = spec::Spec {
            id: spec.id.clone(),
            hostname: spec.hostname.clone(),
            root: Root {
                layers_dir: self.options.layers_dir.clone(),
                lowers: spec.layers.clone(),
                upper: writable.upper.clone(),
                work: writable.work.clone(),
            },
            binds: spec.binds.iter().map(bind).collect(),
            etc,
            cgroups,
            no_new_privileges: spec.no_new_privileges,
            capabilities: Capability::defaults(),
            seccomp: berth_jail::seccomp::Profile::Default,
            shm_bytes: spec::DEFAULT_SHM_BYTES,
        };
        berth_jail::plan(&jail, &self.facts).map_err(Error::Plan)
    }

    /// Launches on a thread of its own: the child's mounts take milliseconds that no other request should wait for.
    async fn launch(
        &self,
        plan: berth_jail::Plan,
        netns: OwnedFd,
        control: OwnedFd,
    ) -> Result<Process, Error> {
        let (launcher, guest) = (self.launcher.clone(), self.guest.clone());
        let launched = tokio::task::spawn_blocking(move || {
            use std::os::fd::AsFd;
            let netns = Some(netns.as_fd());
            launcher.launch(LaunchRequest { plan: &plan, netns, control, guest: &guest, stderr: None })
        });
        launched.await.map_err(|_| Error::Cancelled)?.map_err(Error::Launch)
    }
}

impl Driver for ContainerDriver {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, Error>> {
        async move { Ok(Arc::new(self.make(spec).await?) as Arc<dyn Machine>) }.boxed()
    }

    fn enforces_storage(&self) -> bool {
        self.disk.enforces_storage()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async move {
            for parts in self.alive.close() {
                drop(self.reaper.guard_of(parts));
            }
            self.reaper.settled().await;
            if let Err(error) = self.network.shutdown().await {
                tracing::warn!(%error, "network rules stay behind until the next start");
            }
            if let Err(error) = cgroup::remove_instance(&self.cgroups, &self.options.instance) {
                tracing::warn!(%error, "control groups stay behind until the next start");
            }
        }
        .boxed()
    }
}

/// A running container.
struct Container {
    guest: Guest,
    /// Where the death is announced; `None` while it lives.
    death: watch::Receiver<Option<Death>>,
    parts: Arc<Mutex<Option<Parts>>>,
    reaper: Reaper,
}

impl Container {
    fn new(guest: Guest, parts: Parts, reaper: Reaper) -> Result<Container, Error> {
        let process = parts.process.as_ref().ok_or(Error::Ended)?;
        let pidfd = process.pidfd().try_clone().map_err(Error::Socket)?;
        #[expect(
            deprecated,
            reason = "an OwnedFd keeps its descriptor, which is all that the new, unsafe call asks"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(Error::Socket)?;
        let parts = Arc::new(Mutex::new(Some(parts)));
        let (announce, death) = watch::channel(None);
        tokio::spawn(announce_death(pidfd, parts.clone(), announce));
        Ok(Container { guest, death, parts, reaper })
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

    async fn wait(&self) -> Death {
        let mut death = self.death.clone();
        let unknown = || Death { oom_kills: 0, how: "its first process was lost track of".to_owned() };
        match death.wait_for(Option::is_some).await {
            Ok(death) => death.clone().unwrap_or_else(unknown),
            Err(_) => unknown(),
        }
    }
}

impl Machine for Container {
    fn guest(&self) -> &Guest {
        &self.guest
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

    fn stubs(&self) -> Vec<PathBuf> {
        let parts = lock(&self.parts);
        let stubs = parts
            .as_ref()
            .and_then(|parts| parts.process.as_ref())
            .map_or(&[][..], |process| process.stubs());
        stubs.iter().map(|stub| Path::new("/").join(stub)).collect()
    }

    fn take_disk(&self) -> BoxFuture<'_, Result<Disk, Error>> {
        async move {
            self.kill().await?;
            let parts = lock(&self.parts).take().ok_or(Error::Ended)?;
            let stubs = parts.process.as_ref().map(|process| process.stubs().to_vec()).unwrap_or_default();
            let upper = parts.disk.as_ref().map(|disk| disk.writable.upper.clone()).ok_or(Error::Ended)?;
            let guard = self.reaper.guard_of(parts);
            stubs::remove_empty(&upper, &stubs).map_err(Error::Stubs)?;
            Ok(Disk::new(upper, Box::new(guard)))
        }
        .boxed()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let parts = lock(&self.parts).take();
        drop(parts.map(|parts| self.reaper.guard_of(parts)));
    }
}

fn lock(parts: &Mutex<Option<Parts>>) -> MutexGuard<'_, Option<Parts>> {
    // Nothing panics while it holds the lock.
    parts.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the first process's end, reaps it, and tells what is known of it.
async fn announce_death(
    pidfd: AsyncFd<OwnedFd>,
    parts: Arc<Mutex<Option<Parts>>>,
    announce: watch::Sender<Option<Death>>,
) {
    let how = match pidfd.readable().await {
        Ok(_) => None,
        Err(error) => Some(format!("its first process cannot be watched: {error}")),
    };
    let death = match lock(&parts).as_mut() {
        None => Death { oom_kills: 0, how: "it was taken down".to_owned() },
        Some(parts) => Death {
            oom_kills: parts.cgroup.as_ref().and_then(|cgroup| cgroup.oom_kills().ok()?).unwrap_or(0),
            how: how.unwrap_or_else(|| describe_exit(parts.process.as_mut())),
        },
    };
    announce.send_replace(Some(death));
}

fn describe_exit(process: Option<&mut Process>) -> String {
    match process.map(Process::try_wait) {
        Some(Ok(Some(Exit::Code(code)))) => format!("its first process exited with code {code}"),
        Some(Ok(Some(Exit::Signal(signal)))) => format!("its first process was killed by signal {signal}"),
        Some(Ok(None)) | None => "its first process is gone".to_owned(),
        Some(Err(error)) => format!("its first process is gone, how is not known: {error}"),
    }
}

fn control_pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}
