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

use berth_disk::{Counted, Engine, Writable};
use berth_jail::doctor::{Finding, State};
use berth_jail::spec::{self, EtcFiles, Root};
use berth_jail::views::{self, Views};
use berth_jail::{Capability, Exit, GuestImage, IdRange, LaunchRequest, Launcher, Process, cgroup};
use berth_net::{Mode, Network, Slot, SlotSpec};
use berth_types::sandbox::{Capabilities, CapabilitySet, Limit, StartPhases, Usage};
use berth_types::system::TaskStatus;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::driver::{Death, Disk, DiskFull, Driver, Features, Machine, StartSpec};
use crate::guest::Guest;
use crate::ids::{self, IdRanges};
use crate::namespaces::Maker;
use crate::phases::Clock;
use crate::reaper::Reaper;
use crate::{Error, etc, stubs};

/// How long a guest may take to answer. It needs milliseconds; a machine that swaps needs longer.
const HELLO_LIMIT: Duration = Duration::from_secs(20);

/// How long the kernel may take to end a container's processes: one may sit in an uninterruptible wait.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// What the container driver works with.
#[derive(Debug)]
pub struct Options {
    /// Short name of the daemon on this machine; names its cgroups, links and rules.
    pub instance: String,
    /// Networks; `instance` and `maker` of it are filled in here.
    pub network: berth_net::Options,
    /// Ids of this machine for the users inside; none where no sandbox gets a user namespace of its own.
    pub ids: Option<ids::Options>,
    /// Where layers are; see the image store.
    pub layers_dir: PathBuf,
    /// The static executable that becomes PID 1.
    pub guest: &'static [u8],
    /// Where the sockets of sandboxes are that outlive a daemon; made where it is not there. For root alone.
    pub run_dir: PathBuf,
}

/// What became of taking over the sandboxes of an earlier daemon: of each, by its id.
pub type Adopted = Vec<(String, Result<Arc<dyn Machine>, Error>)>;

/// Runs sandboxes as containers of this machine's kernel.
pub struct ContainerDriver {
    options: Options,
    launcher: Arc<Launcher>,
    guest: Arc<GuestImage>,
    disk: Arc<dyn Engine>,
    network: Network,
    facts: berth_jail::Facts,
    cgroups: cgroup::Facts,
    /// What sandboxes would see of the machine without limits.
    host: views::Host,
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
    /// A driver over these mechanisms. Takes over those sandboxes of an earlier daemon of the same instance that are named
    /// in `adopt`, each by its id and what [`Machine::resume`] said of it, and removes whatever else that left. A sandbox
    /// that could not be taken over is removed too.
    ///
    /// # Errors
    /// When the launcher, the guest's memory file, the network or the cgroups are not to be had, or the ids not fit. What
    /// fails of one sandbox is in the answer, and no error of the others.
    pub async fn start(
        options: Options,
        disk: Arc<dyn Engine>,
        adopt: Vec<(String, String)>,
    ) -> Result<(ContainerDriver, Adopted), Error> {
        let adopted = adopt.into_iter().map(|(id, _)| (id, Err(Error::Ended))).collect();
        let cgroups = cgroup::Facts::detect().map_err(Error::Cgroup)?;
        cgroup::remove_instance(&cgroups, &options.instance).map_err(Error::Cgroup)?;
        let launcher = Arc::new(Launcher::spawn().map_err(Error::Launch)?);
        refuse_without_user_namespaces(options.ids, &launcher, disk.root())?;
        let network = start_network(&options, &launcher).await?;
        let driver = ContainerDriver {
            launcher,
            guest: Arc::new(GuestImage::new(options.guest).map_err(Error::GuestImage)?),
            reaper: Reaper::start(),
            options,
            disk,
            network,
            facts: berth_jail::Facts::detect().map_err(Error::Facts)?,
            cgroups,
            host: views::Host::detect().map_err(Error::Host)?,
            alive: Alive::default(),
        };
        Ok((driver, adopted))
    }

    /// The network that its sandboxes are on.
    pub fn network(&self) -> &Network {
        &self.network
    }

    async fn make(&self, spec: StartSpec) -> Result<Container, Error> {
        let mut clock = Clock::start();
        let mut parts = self.reaper.guard();
        let writable = self.make_disk(&spec).await?;
        parts.parts().disk =
            Some(SandboxDisk { engine: self.disk.clone(), id: spec.id.clone(), writable: writable.clone() });
        clock.phases.disk_ms = clock.lap();

        let mode = if spec.public_network { Mode::Public } else { Mode::NoNetwork };
        let wanted = SlotSpec { mode, user_namespace: spec.user_namespace };
        let slot = self.network.attach(wanted).await.map_err(Error::Network)?;
        let etc = etc::write(&writable.upper, &spec.hostname, &slot).map_err(Error::EtcFiles)?;
        let namespaces = Namespaces::of(&slot)?;
        parts.parts().slot = Some(slot);
        clock.phases.network_ms = clock.lap();

        let group = self.plan_cgroup(&spec, namespaces.ids)?;
        let membership = group.membership();
        let memory = group.cgroup.memory_of_commands();
        parts.parts().cgroup = Some(group.create().map_err(Error::Cgroup)?);
        clock.phases.cgroups_ms = clock.lap();

        let shown = self.views(&spec, &writable, memory.as_deref());
        let plan = self.plan(&spec, &writable, etc, membership, namespaces.ids, shown)?;
        let (ours, theirs) = control_pair().map_err(Error::Socket)?;
        parts.parts().process = Some(self.launch(plan, namespaces, theirs).await?);
        clock.phases.launch_ms = clock.lap();

        let connected = tokio::time::timeout(HELLO_LIMIT, Guest::connect(ours)).await;
        let guest =
            connected.map_err(|_| Error::GuestSilent { limit: HELLO_LIMIT })?.map_err(Error::Guest)?;
        clock.phases.guest_ms = clock.lap();
        let container = Container::new(guest, parts.release(), self.reaper.clone(), clock.phases, &spec)?;
        self.alive.add(&container.parts);
        if self.alive.closed.load(Ordering::SeqCst) {
            return Err(Error::Cancelled);
        }
        Ok(container)
    }

    /// Off the runtime's own threads: an engine may have to talk to the kernel for milliseconds.
    async fn make_disk(&self, spec: &StartSpec) -> Result<Writable, Error> {
        let limits =
            berth_disk::Limits { bytes: spec.limits.storage_bytes, inodes: spec.limits.storage_inodes };
        let (engine, id) = (self.disk.clone(), spec.id.clone());
        let mut guard = NewDisk { engine, id, kept: false };
        let made = tokio::task::spawn_blocking(move || {
            let writable = guard.engine.create(&guard.id, &limits).inspect_err(|_| guard.kept = true)?;
            Ok((guard, writable))
        });
        // A caller that goes away meanwhile drops the guard with the answer, and the disk with that.
        let (mut guard, writable) = made.await.map_err(|_| Error::Cancelled)?.map_err(Error::Disk)?;
        guard.kept = true;
        Ok(writable)
    }

    fn plan_cgroup(&self, spec: &StartSpec, ids: Option<IdRange>) -> Result<cgroup::Plan, Error> {
        let limits = cgroup::Limits {
            cpus: spec.limits.cpus,
            cpu_request: spec.limits.cpu_request,
            memory_bytes: spec.limits.memory_bytes,
            memory_request_bytes: spec.limits.memory_request_bytes,
            pids: spec.limits.pids,
        };
        let path = format!("berth/{}/{}", self.options.instance, spec.id);
        cgroup::plan(&limits, &self.cgroups, &path, ids.map(|ids| ids.first)).map_err(Error::Cgroup)
    }

    fn plan(
        &self,
        spec: &StartSpec,
        writable: &Writable,
        etc: EtcFiles,
        cgroups: spec::CgroupMembership,
        ids: Option<IdRange>,
        views: Views,
    ) -> Result<berth_jail::Plan, Error> {
        let bind = |bind: &crate::driver::Bind| spec::Bind {
            source: bind.source.clone(),
            target: bind.target.clone(),
            read_only: bind.read_only,
        };
        let jail = spec::Spec {
            id: spec.id.clone(),
            ids,
            guest: guest_settings(spec, writable),
            command_capabilities: command_capabilities(&spec.capabilities)?,
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
            views,
            no_new_privileges: spec.no_new_privileges,
            capabilities: Capability::defaults(),
            seccomp: berth_jail::seccomp::Profile::Default,
            shm_bytes: spec::DEFAULT_SHM_BYTES,
            spool: None,
        };
        berth_jail::plan(&jail, &self.facts).map_err(Error::Plan)
    }

    /// What it is shown of its limits in place of the machine.
    fn views(&self, spec: &StartSpec, writable: &Writable, memory: Option<&Path>) -> Views {
        let limits = views::Limits {
            cpus: spec.limits.cpus,
            memory: spec.limits.memory_bytes.zip(memory),
            storage: spec.limits.storage_bytes.is_some() && !writable.used_files.is_empty(),
        };
        views::views(&limits, &self.host)
    }

    /// Launches on a thread of its own: the child's mounts take milliseconds that no other request should wait for.
    async fn launch(
        &self,
        plan: berth_jail::Plan,
        namespaces: Namespaces,
        control: OwnedFd,
    ) -> Result<Process, Error> {
        let (launcher, guest) = (self.launcher.clone(), self.guest.clone());
        let launched = tokio::task::spawn_blocking(move || {
            use std::os::fd::AsFd;
            launcher.launch(LaunchRequest {
                plan: &plan,
                netns: Some(namespaces.net.as_fd()),
                user_namespace: namespaces.user.as_ref().map(AsFd::as_fd),
                control,
                listen: None,
                guest: &guest,
                stderr: None,
            })
        });
        launched.await.map_err(|_| Error::Cancelled)?.map_err(Error::Launch)
    }
}

/// What the machine has for user namespaces, tried with the first range of ids; it need not be free for that.
fn user_namespaces(ids: Option<ids::Options>, launcher: &Launcher, root: &Path) -> Vec<Finding> {
    let Some(ids) = ids else {
        return vec![Finding {
            name: "user namespaces",
            state: State::Warn,
            found: "switched off: root in sandboxes is root on the host".to_owned(),
            hint: Some("set user_namespaces = true under [isolation] of the configuration".to_owned()),
        }];
    };
    let range = IdRange { first: ids.first, count: ids.per_sandbox };
    berth_jail::doctor::user_namespaces(launcher, root, range)
}

/// A machine that cannot have them is said so at once: without, sandboxes are less apart than was asked for.
fn refuse_without_user_namespaces(
    ids: Option<ids::Options>,
    launcher: &Launcher,
    root: &Path,
) -> Result<(), Error> {
    let failed: Vec<String> = user_namespaces(ids, launcher, root)
        .into_iter()
        .filter(|finding| finding.state == State::Fail)
        .map(|finding| {
            let hint = finding.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}: {}{hint}", finding.name, finding.found)
        })
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(Error::UserNamespaces { found: failed.join("; ") }) }
}

async fn start_network(options: &Options, launcher: &Arc<Launcher>) -> Result<Network, Error> {
    let maker = match options.ids {
        None => None,
        Some(ids) => {
            let subordinate = ids::subordinate_of_host().map_err(Error::Ids)?;
            let ids = IdRanges::new(ids, &subordinate).map_err(Error::Ids)?.begin_at(seed(&options.instance));
            let maker: Arc<dyn berth_net::NamespaceMaker> =
                Arc::new(Maker { launcher: launcher.clone(), ids });
            Some(maker)
        }
    };
    let network = berth_net::Options { instance: options.instance.clone(), maker, ..options.network.clone() };
    Network::start(network).await.map_err(Error::Network)
}

/// A number that is another one for each instance, mostly.
fn seed(instance: &str) -> u64 {
    // FNV-1a: the same at every start, and good enough to tell names apart.
    instance.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A disk that nobody holds yet: removed again unless `kept`.
struct NewDisk {
    engine: Arc<dyn Engine>,
    id: String,
    kept: bool,
}

impl Drop for NewDisk {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.engine.remove(&self.id)
        {
            tracing::warn!(id = self.id, %error, "files of a sandbox stay behind until the next start");
        }
    }
}

/// The namespaces of a slot, for the launch.
struct Namespaces {
    net: OwnedFd,
    user: Option<OwnedFd>,
    ids: Option<IdRange>,
}

impl Namespaces {
    fn of(slot: &Slot) -> Result<Namespaces, Error> {
        let net = slot.netns().try_clone_to_owned().map_err(Error::Socket)?;
        let user = slot.user().map(|user| user.fd.try_clone()).transpose().map_err(Error::Socket)?;
        let ids = slot.user().map(|user| IdRange { first: user.first, count: user.count });
        Ok(Namespaces { net, user, ids })
    }
}

fn guest_settings(spec: &StartSpec, writable: &Writable) -> spec::GuestSettings {
    spec::GuestSettings {
        cpus: spec.limits.cpus,
        memory_bytes: spec.limits.memory_bytes,
        pids: spec.limits.pids,
        storage_bytes: spec.limits.storage_bytes,
        storage_used: writable.used_files.clone(),
        orphan_ms: None,
    }
}

/// What commands may have; `None` is all that the guest has.
fn command_capabilities(asked: &Capabilities) -> Result<Option<Vec<Capability>>, Error> {
    let names = match asked {
        Capabilities::Set(CapabilitySet::Default) => return Ok(None),
        Capabilities::Set(CapabilitySet::None) => return Ok(Some(Vec::new())),
        Capabilities::Only(names) => names,
    };
    let parsed = names.iter().map(|name| Capability::try_from(name.clone()));
    parsed.collect::<Result<_, _>>().map(Some).map_err(Error::Capability)
}

impl Driver for ContainerDriver {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, Error>> {
        async move { Ok(Arc::new(self.make(spec).await?) as Arc<dyn Machine>) }.boxed()
    }

    fn enforces_storage(&self) -> bool {
        self.disk.enforces_storage()
    }

    fn enforces_inodes(&self) -> bool {
        self.disk.enforces(berth_disk::Resource::Inodes)
    }

    fn health(&self) -> Result<(), Error> {
        self.disk.health().map_err(Error::DiskLost)
    }

    fn features(&self) -> Features {
        Features { user_namespace: self.options.ids.is_some(), capabilities: true }
    }

    fn doctor(&self) -> Vec<Finding> {
        user_namespaces(self.options.ids, &self.launcher, self.disk.root())
    }

    fn tasks(&self) -> Vec<TaskStatus> {
        vec![self.reaper.status()]
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
    phases: StartPhases,
    limits: crate::driver::Limits,
}

impl Container {
    fn new(
        guest: Guest,
        parts: Parts,
        reaper: Reaper,
        phases: StartPhases,
        spec: &StartSpec,
    ) -> Result<Container, Error> {
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
        Ok(Container { guest, death, parts, reaper, phases, limits: spec.limits })
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
    fn usage(&self, limits: &crate::driver::Limits) -> Usage {
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

    fn phases(&self) -> StartPhases {
        self.phases
    }

    fn usage(&self) -> BoxFuture<'_, Usage> {
        async move {
            let held = self.held();
            let limits = self.limits;
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

    fn take_disk(&self) -> BoxFuture<'_, Result<Disk, Error>> {
        async move {
            self.kill().await?;
            let parts = lock(&self.parts).take().ok_or(Error::Ended)?;
            let stubs = parts.process.as_ref().map(|process| process.stubs().to_vec()).unwrap_or_default();
            let disk = parts.disk.as_ref().ok_or(Error::Ended)?;
            let (engine, id, upper) = (disk.engine.clone(), disk.id.clone(), disk.writable.upper.clone());
            let guard = self.reaper.guard_of(parts);
            stubs::remove_empty(&upper, &stubs).map_err(Error::Stubs)?;
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
        Some(Ok(Some(Exit::Unknown))) => {
            "its first process is gone, how is not known: an earlier daemon had started it".to_owned()
        }
        Some(Ok(None)) | None => "its first process is gone".to_owned(),
        Some(Err(error)) => format!("its first process is gone, how is not known: {error}"),
    }
}

fn control_pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}
