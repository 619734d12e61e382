//! Sandboxes as containers: disk, network, control groups and jail put together, and taken apart again.
//!
//! Each phase of a start adds what it made to `Parts`. Whoever drops `Parts` (a failed start, a cancelled one, a
//! sandbox that was stopped) hands it to the `reaper`, which gives everything back in order.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_disk::{Engine, Writable};
use berth_jail::doctor::{Finding, State};
use berth_jail::spec::{self, EtcFiles, Root};
use berth_jail::views::{self, Views};
use berth_jail::{Capability, GuestImage, IdRange, LaunchRequest, Launcher, Process, cgroup};
use berth_net::{KeptSlot, Mode, Network, Slot, SlotSpec};
use berth_types::sandbox::{Capabilities, CapabilitySet, StartPhases};
use berth_types::system::TaskStatus;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::driver::{Driver, Features, Machine, StartSpec};
use crate::guest::Guest;
use crate::ids::{self, IdRanges};
use crate::machine::{Container, Known};
use crate::namespaces::Maker;
use crate::parts::{Alive, Left, Parts, SandboxDisk};
use crate::phases::Clock;
use crate::reaper::Reaper;
use crate::resume::Record;
use crate::sockets::Sockets;
use crate::{Error, adopt, etc, mounts};

/// How long a guest may take to answer. It needs milliseconds; a machine that swaps needs longer.
pub(crate) const HELLO_LIMIT: Duration = Duration::from_secs(20);

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
    sockets: Sockets,
    reaper: Reaper,
    alive: Alive,
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
        let cgroups = cgroup::Facts::detect().map_err(Error::Cgroup)?;
        let ids = id_ranges(&options)?;
        let sockets = Sockets::open(&options.run_dir)
            .map_err(|source| Error::Sockets { path: options.run_dir.clone(), source })?;
        let launcher = Arc::new(Launcher::spawn().map_err(Error::Launch)?);
        refuse_without_user_namespaces(options.ids, &launcher, disk.root())?;
        let guest = Arc::new(GuestImage::new(options.guest).map_err(Error::GuestImage)?);
        let facts = berth_jail::Facts::detect().map_err(Error::Facts)?;
        let host = views::Host::detect().map_err(Error::Host)?;
        // From here on things of the earlier daemon go, and hardly anything can fail.
        let (found, lost) = adopt::find(adopt, disk.as_ref(), ids.as_ref());
        adopt::clear(&found, &cgroups, &options.instance, &sockets, disk.as_ref())?;
        let network = start_network(&options, &launcher, ids, adopt::slots(&found)).await?;
        let driver = ContainerDriver {
            launcher,
            guest,
            reaper: Reaper::start(),
            options,
            disk,
            network,
            facts,
            cgroups,
            host,
            sockets,
            alive: Alive::default(),
        };
        let mut adopted = driver.adopt_all(found).await;
        adopted.extend(lost.into_iter().map(|(id, error)| (id, Err(error))));
        Ok((driver, adopted))
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.reaper
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Engine> {
        &self.disk
    }

    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Has it ended, or let go of, with the driver.
    pub(crate) fn keep(&self, container: &Container) -> Result<(), Error> {
        self.alive.add(&container.parts);
        if self.alive.is_closed() { Err(Error::Cancelled) } else { Ok(()) }
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
        let etc = match spec.bare {
            true => EtcFiles::default(),
            false => etc::write(&writable.upper, &spec.hostname, &slot).map_err(Error::EtcFiles)?,
        };
        mounts::make_dirs(&spec.mounts, &writable.mounts)
            .map_err(|source| Error::MountDirs { path: writable.mounts.clone(), source })?;
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
        let socket = outlives(&spec).map(|_| parts.parts().socket.insert(self.sockets.of(&spec.id)));
        let listen = socket.map(|socket| socket.listen()).transpose().map_err(Error::Socket)?;
        let (ours, theirs) = control_pair().map_err(Error::Socket)?;
        parts.parts().process = Some(self.launch(plan, namespaces, theirs, listen).await?);
        clock.phases.launch_ms = clock.lap();

        let connected = tokio::time::timeout(HELLO_LIMIT, Guest::connect(ours)).await;
        let guest =
            connected.map_err(|_| Error::GuestSilent { limit: HELLO_LIMIT })?.map_err(Error::Guest)?;
        clock.phases.guest_ms = clock.lap();
        let resume = record(parts.parts(), &spec, clock.phases)?;
        let lowers = spec.layers.iter().map(|layer| self.options.layers_dir.join(layer)).collect();
        let known = Known { phases: clock.phases, limits: spec.limits, resume, lowers };
        let container = Container::new(guest, parts, self.reaper.clone(), known)?;
        self.keep(&container)?;
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
            mounts: mounts::of_jail(&spec.mounts, &writable.mounts),
            etc,
            cgroups,
            views,
            no_new_privileges: spec.no_new_privileges,
            capabilities: Capability::defaults(),
            seccomp: berth_jail::seccomp::Profile::Default,
            shm_bytes: spec::DEFAULT_SHM_BYTES,
            spool: Some(writable.spool.clone()),
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
        listen: Option<OwnedFd>,
    ) -> Result<Process, Error> {
        let (launcher, guest) = (self.launcher.clone(), self.guest.clone());
        let launched = tokio::task::spawn_blocking(move || {
            use std::os::fd::AsFd;
            launcher.launch(LaunchRequest {
                plan: &plan,
                netns: Some(namespaces.net.as_fd()),
                user_namespace: namespaces.user.as_ref().map(AsFd::as_fd),
                control,
                listen,
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

/// The ranges of ids that sandboxes are to have; none where they are to have none of their own.
fn id_ranges(options: &Options) -> Result<Option<IdRanges>, Error> {
    let Some(ids) = options.ids else { return Ok(None) };
    let subordinate = ids::subordinate_of_host().map_err(Error::Ids)?;
    let ranges = IdRanges::new(ids, &subordinate).map_err(Error::Ids)?;
    Ok(Some(ranges.begin_at(seed(&options.instance))))
}

async fn start_network(
    options: &Options,
    launcher: &Arc<Launcher>,
    ids: Option<IdRanges>,
    keep: Vec<KeptSlot>,
) -> Result<Network, Error> {
    let maker = ids.map(|ids| -> Arc<dyn berth_net::NamespaceMaker> {
        Arc::new(Maker { launcher: launcher.clone(), ids })
    });
    let instance = options.instance.clone();
    let network = berth_net::Options { instance, maker, keep, ..options.network.clone() };
    Network::start(network).await.map_err(Error::Network)
}

/// How long it lives on without a daemon, in milliseconds; none when it ends with its connection.
fn outlives(spec: &StartSpec) -> Option<u64> {
    let ms = spec.orphan.map(|orphan| u64::try_from(orphan.as_millis()).unwrap_or(u64::MAX));
    ms.filter(|ms| *ms > 0)
}

/// What another daemon needs of a sandbox that outlives this one.
fn record(parts: &Parts, spec: &StartSpec, phases: StartPhases) -> Result<Option<String>, Error> {
    let (Some(_), Some(process), Some(cgroup), Some(slot)) =
        (&parts.socket, &parts.process, &parts.cgroup, &parts.slot)
    else {
        return Ok(None);
    };
    let identity = process.identity().map_err(Error::Identify)?;
    let stubs = process.stubs().to_vec();
    Record::new(identity, stubs, cgroup.clone(), slot.kept(), spec.limits, phases).write().map(Some)
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
        orphan_ms: outlives(spec),
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

    fn leave(&self) -> BoxFuture<'_, ()> {
        async move {
            let (outlive, end): (Vec<_>, Vec<_>) =
                self.alive.close().into_iter().partition(|parts| parts.socket.is_some());
            if outlive.is_empty() {
                end.into_iter().for_each(|parts| drop(self.reaper.guard_of(parts)));
                return self.shutdown().await;
            }
            let outlive = Left::new(outlive);
            end.into_iter().for_each(|parts| drop(self.reaper.guard_of(parts)));
            self.reaper.settled().await;
            // Before the slots are let go of, which otherwise ends them.
            if let Err(error) = self.network.leave().await {
                tracing::warn!(%error, "something of the network stays behind until the next start");
            }
            drop(outlive);
        }
        .boxed()
    }
}

/// What may be on its way from the daemon to a guest, or back; the kernel doubles it for its own bookkeeping. Nothing
/// while both read.
const CONTROL_BUFFER: usize = 1024 * 1024;

fn control_pair() -> io::Result<(tokio::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    // So that neither side waits for the other at every frame of a bulk transfer. What the machine allows anybody is
    // enough where it does not allow more.
    for end in [&ours, &theirs] {
        if rustix::net::sockopt::set_socket_send_buffer_size_force(end, CONTROL_BUFFER).is_err() {
            rustix::net::sockopt::set_socket_send_buffer_size(end, CONTROL_BUFFER)?;
        }
    }
    ours.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(ours)?, theirs.into()))
}
