//! A sandbox's life: made, watched, deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use berth_sandbox::{Bind, Death, Features, Limits, Machine, StartSpec};
use berth_store::SandboxRow;
use berth_types::sandbox::{
    CreateSandbox, NetworkMode, Page, ReasonCode, Sandbox, SandboxState, Usage, WaitsFor,
};
use jiff::Timestamp;
use uuid::Uuid;

use crate::admission::{Admitted, Grant, Refusal};
use crate::registry::{Entry, Filter, Live, Met};
use crate::resources::{Enforces, Settled, settle, without_defaults};
use crate::{Error, Node, recovery, request};

impl Node {
    /// Makes a sandbox and returns when it is ready, having waited for room if there was none. Dropping the future gives
    /// back what was made, or its place in the queue.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for what cannot be honoured exactly, [`Error::StorageUnenforced`], [`Error::ImageNotFound`],
    /// [`Error::OwnersBeyond`], [`Error::NameTaken`], [`Error::LeaseNotFound`], [`Error::NeverFits`], [`Error::NoRoom`], [`Error::DiskLost`]; anything else is the
    /// machine's.
    pub async fn create_sandbox(&self, request: CreateSandbox) -> Result<Sandbox, Error> {
        request::check(&request)?;
        if let Some(earlier) =
            request.idempotency_key.as_deref().and_then(|key| self.0.sandboxes.find_key(key))
        {
            return adopt(&request, earlier);
        }
        if let Some(lease) = &request.lease {
            self.check_lease(lease).await?;
        }
        let began = Instant::now();
        let disk = self.look_at_disk();
        let settled = settle(&request, &self.0.limits, self.enforces())?;
        let user_namespace = self.user_namespace(&request)?;
        let image = self.resolve_image(&request.image).await?;
        let pin = self.0.images.pin(&image.id)?;
        let config = &image.config;
        if user_namespace {
            self.check_owners(&image.layers).await?;
        }

        let sandbox = describe(&request, image.id.as_str(), config, &settled, user_namespace);
        let row = SandboxRow {
            sandbox: sandbox.clone(),
            idempotency_key: request.idempotency_key.clone(),
            ended_at: None,
            resume: None,
        };
        self.0.sandboxes.insert(row.clone())?;
        // From here on a drop of this future, or an error, takes the entry out again.
        let mut creating = Creating { node: self.clone(), id: sandbox.id.clone(), done: false };
        let arrived = Instant::now();
        let Admitted { grant, permit } = self.admit(&sandbox.id, &request, &settled).await?;
        let waited = arrived.elapsed();
        // Only now: before, there was nothing on the machine that a later daemon would have to clear up.
        let row = self.0.sandboxes.update(&sandbox.id, |entry| {
            entry.row.sandbox.queued_ms =
                (entry.sandbox().state == SandboxState::Queued).then(|| milliseconds(waited));
            entry.row.sandbox.state = SandboxState::Starting;
        });
        let row = row.ok_or(Error::Withdrawn { id: sandbox.id.clone(), lease_ended: false })?.row;
        self.persist(row).await?;

        let no_new_privileges = request.no_new_privileges.unwrap_or(!image.has_privileged_files());
        let layers = layer_names(&image);
        let mut spec = start_spec(&sandbox, &request, layers, settled.limits, no_new_privileges);
        spec.orphan = self.0.orphan;
        let trust = &self.0.trust.sandboxes;
        spec.binds.extend(trust.bind());
        let mut env = environment(&config.env, &request.env);
        trust.add_to(&mut env);
        let machine = match self.0.driver.start(spec).await {
            Ok(machine) => machine,
            Err(source) => {
                self.check_disk().await?;
                return Err(Error::Start(Box::new(source)));
            }
        };
        disk.await.map_err(|_| Error::Ending)??;
        permit.succeeded();
        let live = Live {
            machine: machine.clone(),
            env: Arc::new(env),
            _image: Arc::new(pin),
            grant: Arc::new(grant),
            no_new_privileges,
            met: Met::default(),
            execs: Default::default(),
        };
        let met = live.met.clone();
        let shell = machine.guest().info().shell.clone();
        let start = began.elapsed().saturating_sub(waited);
        let phases = machine.phases();
        let resume = recovery::resume_of(&live);
        let ready = self.0.sandboxes.update(&sandbox.id, |entry| {
            entry.live = Some(live);
            entry.expires_at = request.ttl_seconds.map(after);
            entry.row.resume = resume;
            let sandbox = &mut entry.row.sandbox;
            sandbox.state = SandboxState::Running;
            sandbox.shell = shell;
            sandbox.start_ms = Some(milliseconds(start));
            sandbox.start_phases = Some(phases);
            sandbox.expires_at = entry.expires_at.map(|time| time.to_string());
        });
        let entry = ready.ok_or(Error::SandboxNotFound { id: sandbox.id.clone() })?;
        self.persist(entry.row.clone()).await?;
        creating.done = true;
        tokio::spawn(watch(self.clone(), sandbox.id, machine, met));
        Ok(entry.row.sandbox)
    }

    /// Files of ids that a user namespace does not have would show as nobody's inside, and could be given to nobody.
    pub(crate) async fn check_owners(&self, layers: &[berth_image::Layer]) -> Result<(), Error> {
        let Some(ids) = self.0.ids_per_sandbox else { return Ok(()) };
        match self.0.images.highest_id(layers).await? {
            Some((highest, layer)) if highest >= ids => {
                Err(Error::OwnersBeyond { layer: layer.to_string(), highest, ids })
            }
            _ => Ok(()),
        }
    }

    /// Waits for room, and shows that in the meantime.
    async fn admit(&self, id: &str, request: &CreateSandbox, settled: &Settled) -> Result<Admitted, Error> {
        let asks_storage = request.resources.storage_mb.is_some() && settled.storage_enforced;
        let storage = settled.limits.storage_bytes.filter(|_| asks_storage);
        self.fits_at_all(settled.limits.memory_bytes, storage)?;
        let queued = || {
            self.0.sandboxes.update(id, |entry| entry.row.sandbox.state = SandboxState::Queued);
            tracing::info!(id, place = ?self.0.admission.place(id), "a sandbox waits for room");
        };
        let longest = request::wait(request.wait_seconds)?;
        let admitted = self.0.admission.admit(id, settled.wants, longest, queued).await;
        match admitted {
            Err(Refusal::Withdrawn) => {
                let lease_ended = match &request.lease {
                    Some(lease) => matches!(self.check_lease(lease).await, Err(Error::LeaseNotFound { .. })),
                    None => false,
                };
                Err(Error::Withdrawn { id: id.to_owned(), lease_ended })
            }
            other => other.map_err(|refusal| Error::of_refusal(id, refusal)),
        }
    }

    /// Limits of storage that are held here.
    pub(crate) fn enforces(&self) -> Enforces {
        let driver = &self.0.driver;
        Enforces { bytes: driver.enforces_storage(), inodes: driver.enforces_inodes() }
    }

    /// A limit above what the machine has would be one that it cannot keep.
    pub(crate) fn fits_at_all(&self, memory: Option<u64>, storage: Option<u64>) -> Result<(), Error> {
        let (of_memory, of_disk, ..) = self.0.admission.show();
        let never = |what, asked: u64, has: Option<u64>| match has {
            Some(has) if asked > has => Err(Error::never_fits(&crate::admission::Shortage {
                what,
                asked: asked as f64,
                has: has as f64,
            })),
            _ => Ok(()),
        };
        never(WaitsFor::Memory, memory.unwrap_or(0), of_memory.total_bytes)?;
        never(WaitsFor::Disk, storage.unwrap_or(0), of_disk.total_bytes)
    }

    /// Whether a sandbox is to have a user namespace of its own.
    fn user_namespace(&self, request: &CreateSandbox) -> Result<bool, Error> {
        let Features { user_namespace, capabilities, .. } = self.0.driver.features();
        if !capabilities && !request.capabilities.is_default() {
            return Err(Error::Unsupported { field: "capabilities" });
        }
        match request.user_namespace {
            Some(true) if !user_namespace => Err(Error::Unsupported { field: "user_namespace" }),
            Some(asked) => Ok(asked),
            None => Ok(self.0.user_namespaces && user_namespace),
        }
    }

    /// One sandbox, by id or name, with what it uses.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub async fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        let entry = self.0.sandboxes.find(id)?;
        let mut sandbox = self.show(entry.row.sandbox);
        if let Some(live) = entry.live {
            sandbox.usage = Some(live.met.usage_of(live.machine.as_ref()).await);
        }
        Ok(sandbox)
    }

    /// Sandboxes, oldest first.
    pub async fn sandboxes(&self, filter: &Filter) -> Page<Sandbox> {
        let Page { items, next } = self.0.sandboxes.page(filter);
        let shown = items.into_iter().map(|sandbox| async {
            if filter.usage {
                // One that has gone in the meantime is shown as it was.
                return self.sandbox(&sandbox.id).await.unwrap_or(sandbox);
            }
            Sandbox { usage: None, ..self.show(sandbox) }
        });
        Page { items: futures_util::future::join_all(shown).await, next }
    }

    /// With its place in the queue, which moves without anybody touching the record.
    fn show(&self, mut sandbox: Sandbox) -> Sandbox {
        if sandbox.state == SandboxState::Queued {
            sandbox.queue = self.0.admission.place(&sandbox.id);
        }
        sandbox
    }

    /// Whether any sandbox has not ended.
    pub fn has_sandboxes(&self) -> bool {
        self.0.sandboxes.any_alive()
    }

    /// Ends a sandbox and forgets it. When this returns its processes are dead. Dropping the future changes nothing:
    /// what was begun is completed.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`]; [`Error::SandboxBusy`] while it is still being made; [`Error::Store`] when its processes
    /// are dead but it cannot be forgotten for now.
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), Error> {
        self.delete_if(id, Cause::Asked).await
    }

    pub(crate) async fn delete_if(&self, id: &str, cause: Cause) -> Result<(), Error> {
        let (node, id) = (self.clone(), id.to_owned());
        // A task of its own, since a client that goes away half-way drops the caller: its sandbox would stay, dead
        // and holding everything.
        tokio::spawn(async move { node.take_down(&id, &cause).await }).await.map_err(|_| Error::Ending)?
    }

    async fn take_down(&self, id: &str, cause: &Cause) -> Result<(), Error> {
        let id = self.0.sandboxes.find(id)?.sandbox().id.clone();
        if self.leave_queue(&id, cause) {
            return Ok(());
        }
        let mut begun = Ok(false);
        let entry = self.0.sandboxes.update(&id, |entry| begun = begin_to_end(entry, cause));
        if !begun? {
            return Ok(());
        }
        if let Some(live) = entry.and_then(|entry| entry.live) {
            if *cause == Cause::TimeUp {
                let usage = live.met.usage_of(live.machine.as_ref()).await;
                self.0.sandboxes.update(&id, |entry| entry.row.sandbox.usage = Some(usage));
            }
            live.machine.stop().await.map_err(|source| Error::Stop(Box::new(source)))?;
            // An exec that has not noticed yet must not hold on to what others wait for.
            live.grant.release();
        }
        match cause {
            Cause::TimeUp => return self.remember_end(&id, SandboxState::Ended).await,
            Cause::Shutdown => return self.remember_end(&id, SandboxState::Lost).await,
            Cause::Asked | Cause::LeaseEnded(_) => {}
        }
        // The row goes first: while it is there, a repeated call must find what to repeat.
        self.0.sandboxes.update(&id, |entry| entry.live = None);
        let row = id.clone();
        self.with_store(move |store| store.delete_sandbox(&row)).await?;
        self.0.sandboxes.remove(&id);
        Ok(())
    }

    /// Takes a sandbox that waits for room out of the queue, if it does; its maker learns it.
    fn leave_queue(&self, id: &str, cause: &Cause) -> bool {
        let entry = self.0.sandboxes.find(id).ok();
        let lease = entry.filter(|entry| entry.sandbox().state == SandboxState::Queued);
        let Some(lease) = lease.map(|entry| entry.row.sandbox.lease) else { return false };
        if matches!(cause, Cause::LeaseEnded(ended) if *ended != lease) {
            return false;
        }
        let left = self.0.admission.withdraw(id);
        if left {
            self.0.sandboxes.remove(id);
        }
        left
    }

    /// Keeps the record of a sandbox that nobody asked to delete, so that whoever used it learns why it is gone.
    async fn remember_end(&self, id: &str, state: SandboxState) -> Result<(), Error> {
        let ended = self.0.sandboxes.update(id, |entry| {
            entry.live = None;
            entry.row.sandbox.state = state;
            entry.row.ended_at = Some(Timestamp::now().as_second());
            entry.row.resume = None;
        });
        match ended {
            Some(entry) => self.persist(entry.row).await,
            None => Ok(()),
        }
    }

    /// Lets a sandbox live for so many seconds from now, or until it is deleted.
    ///
    /// # Errors
    /// [`Error::BadRequest`], [`Error::SandboxNotFound`], [`Error::SandboxNotRunning`] once it is being taken down,
    /// [`Error::SandboxBusy`] and [`Error::SandboxQueued`] before it runs.
    pub async fn set_ttl(&self, id: &str, ttl_seconds: Option<u64>) -> Result<Sandbox, Error> {
        ttl_seconds.map_or(Ok(()), request::check_ttl)?;
        let (id, ..) = self.live(id)?;
        let mut running = false;
        let changed = self.0.sandboxes.update(&id, |entry| {
            running = entry.sandbox().state == SandboxState::Running;
            if running {
                entry.expires_at = ttl_seconds.map(after);
                entry.row.sandbox.expires_at = entry.expires_at.map(|time| time.to_string());
            }
        });
        let Entry { row, .. } = changed.ok_or(Error::SandboxNotFound { id })?;
        if !running {
            let Sandbox { id, state, reason, .. } = row.sandbox;
            return Err(Error::SandboxNotRunning { id, state, reason });
        }
        self.persist(row.clone()).await?;
        Ok(row.sandbox)
    }

    /// Puts a sandbox under another lease, or under none.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`], [`Error::LeaseNotFound`], [`Error::SandboxNotRunning`] once it is being taken down.
    pub async fn set_lease(&self, id: &str, lease: Option<String>) -> Result<Sandbox, Error> {
        if let Some(lease) = &lease {
            self.check_lease(lease).await?;
        }
        let id = self.0.sandboxes.find(id)?.sandbox().id.clone();
        let changed = self.0.sandboxes.update(&id, |entry| {
            if entry.sandbox().state != SandboxState::Stopping {
                entry.row.sandbox.lease = lease;
            }
        });
        let Entry { row, .. } = changed.ok_or(Error::SandboxNotFound { id })?;
        if row.sandbox.state == SandboxState::Stopping {
            let Sandbox { id, state, reason, .. } = row.sandbox;
            return Err(Error::SandboxNotRunning { id, state, reason });
        }
        self.persist(row.clone()).await?;
        Ok(row.sandbox)
    }

    /// The living part of a sandbox, or why there is none.
    pub(crate) fn live(&self, id: &str) -> Result<(String, Sandbox, Live), Error> {
        let entry = self.0.sandboxes.find(id)?;
        let sandbox = entry.row.sandbox;
        match (entry.live, sandbox.state) {
            (Some(live), SandboxState::Running) => Ok((sandbox.id.clone(), sandbox, live)),
            (_, SandboxState::Starting) => Err(Error::SandboxBusy { id: sandbox.id }),
            (_, SandboxState::Queued) => Err(Error::SandboxQueued { id: sandbox.id }),
            (_, state) => Err(Error::SandboxNotRunning { id: sandbox.id, state, reason: sandbox.reason }),
        }
    }

    pub(crate) async fn persist(&self, row: SandboxRow) -> Result<(), Error> {
        self.with_store(move |store| store.put_sandbox(&row)).await
    }
}

/// Why a sandbox is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody asked for it.
    Asked,
    /// This lease ended; one that is under another by now stays.
    LeaseEnded(Option<String>),
    /// Its time to live is over; one that got more by now stays.
    TimeUp,
    /// The daemon ends.
    Shutdown,
}

/// Marks a sandbox as going away; false when there is no cause to any more.
fn begin_to_end(entry: &mut Entry, cause: &Cause) -> Result<bool, Error> {
    let sandbox = &mut entry.row.sandbox;
    match (sandbox.state, cause) {
        (SandboxState::Starting, _) => Err(Error::SandboxBusy { id: sandbox.id.clone() }),
        (SandboxState::Queued, _) => Err(Error::SandboxQueued { id: sandbox.id.clone() }),
        (_, Cause::LeaseEnded(lease)) if sandbox.lease != *lease => Ok(false),
        (_, Cause::TimeUp) if !is_time_up(entry.expires_at) => Ok(false),
        (SandboxState::Lost | SandboxState::Ended, Cause::TimeUp | Cause::Shutdown) => Ok(false),
        _ => {
            let (code, reason) = match cause {
                Cause::Asked => (ReasonCode::Deleted, "it was deleted"),
                Cause::LeaseEnded(_) => (ReasonCode::LeaseEnded, "its lease ended"),
                Cause::TimeUp => (ReasonCode::Ttl, "its time to live was over"),
                Cause::Shutdown => (ReasonCode::DaemonRestart, "the daemon was shut down while it ran"),
            };
            // What a dead one died of is worth more than that it was tidied away; and a second call tells nothing new.
            if sandbox.reason_code.is_none() {
                (sandbox.reason_code, sandbox.reason) = (Some(code), Some(reason.to_owned()));
            }
            sandbox.state = SandboxState::Stopping;
            Ok(true)
        }
    }
}

pub(crate) fn is_time_up(expires_at: Option<Timestamp>) -> bool {
    expires_at.is_some_and(|time| time <= Timestamp::now())
}

/// The moment that is so many seconds from now.
fn after(seconds: u64) -> Timestamp {
    let span = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    Timestamp::now().checked_add(span).unwrap_or(Timestamp::MAX)
}

/// To microseconds.
fn milliseconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A sandbox that is being made; taken out again unless `done`.
struct Creating {
    node: Node,
    id: String,
    done: bool,
}

impl Drop for Creating {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.node.0.sandboxes.remove(&self.id);
        let (node, id) = (self.node.clone(), std::mem::take(&mut self.id));
        tokio::task::spawn_blocking(move || {
            if let Err(error) = node.0.store.delete_sandbox(&id) {
                tracing::warn!(id, %error, "a sandbox that was not made stays in the database until the next start");
            }
        });
    }
}

/// What a repeated request gets.
fn adopt(request: &CreateSandbox, earlier: Entry) -> Result<Sandbox, Error> {
    let sandbox = earlier.row.sandbox;
    if !is_as_asked(request, &sandbox) {
        let key = request.idempotency_key.clone().unwrap_or_default();
        return Err(Error::KeyReused { key, holder: sandbox.id });
    }
    match sandbox.state {
        SandboxState::Running => Ok(sandbox),
        SandboxState::Starting => Err(Error::SandboxBusy { id: sandbox.id }),
        SandboxState::Queued => Err(Error::SandboxQueued { id: sandbox.id }),
        state => Err(Error::SandboxNotRunning { id: sandbox.id, state, reason: sandbox.reason }),
    }
}

/// Whether a sandbox is what a request asks for, as far as the record tells: nobody is to get an open network where
/// he asked for none. The image is not compared, since its tag may have moved on, nor the lease, which may be another.
fn is_as_asked(request: &CreateSandbox, sandbox: &Sandbox) -> bool {
    let is_or_absent = |asked: &Option<String>, is: &String| asked.as_ref().is_none_or(|asked| asked == is);
    request.network == sandbox.network
        && request.resources == without_defaults(&sandbox.resources, &sandbox.resource_defaults)
        && request.capabilities == sandbox.capabilities
        && request.user_namespace.is_none_or(|asked| asked == sandbox.user_namespace)
        && request.labels == sandbox.labels
        && request.name.as_ref().unwrap_or(&sandbox.id) == &sandbox.name
        && is_or_absent(&request.workdir, &sandbox.workdir)
        && is_or_absent(&request.user, &sandbox.user)
}

fn describe(
    request: &CreateSandbox,
    image: &str,
    config: &berth_types::image::ImageConfig,
    settled: &Settled,
    user_namespace: bool,
) -> Sandbox {
    let id = Uuid::now_v7().simple().to_string();
    let workdir = request.workdir.clone().unwrap_or_else(|| config.working_dir.clone());
    Sandbox {
        name: request.name.clone().unwrap_or_else(|| id.clone()),
        group: id.clone(),
        state: SandboxState::Starting,
        reason: None,
        reason_code: None,
        queue: None,
        image: image.to_owned(),
        labels: request.labels.clone(),
        lease: request.lease.clone(),
        resources: settled.resources.clone(),
        resource_defaults: settled.defaults.clone(),
        storage_enforced: settled.storage_enforced,
        committed: Some(settled.wants),
        user_namespace,
        capabilities: request.capabilities.clone(),
        network: request.network,
        workdir: if workdir.is_empty() { "/".to_owned() } else { workdir },
        user: request.user.clone().unwrap_or_else(|| config.user.clone()),
        shell: None,
        created_at: Timestamp::now().to_string(),
        expires_at: None,
        start_ms: None,
        start_phases: None,
        queued_ms: None,
        usage: None,
        id,
    }
}

fn start_spec(
    sandbox: &Sandbox,
    request: &CreateSandbox,
    layers: Vec<String>,
    limits: Limits,
    no_new_privileges: bool,
) -> StartSpec {
    let bind = |mount: &berth_types::sandbox::Mount| Bind {
        source: mount.source.clone().into(),
        target: mount.target.clone().into(),
        read_only: mount.read_only,
    };
    StartSpec {
        id: sandbox.id.clone(),
        hostname: hostname(&sandbox.id),
        layers,
        mounts: Vec::new(),
        bare: false,
        public_network: sandbox.network == NetworkMode::Public,
        limits,
        binds: request.mounts.iter().map(bind).collect(),
        no_new_privileges,
        user_namespace: sandbox.user_namespace,
        capabilities: sandbox.capabilities.clone(),
        orphan: None,
    }
}

/// Directory names of an image's layers, the topmost first.
fn layer_names(image: &berth_image::Image) -> Vec<String> {
    image.layers.iter().rev().map(|layer| layer.name.clone()).collect()
}

/// Twelve characters of the id's random end, as Docker's host names are twelve of its id.
pub(crate) fn hostname(id: &str) -> String {
    id[id.len().saturating_sub(12)..].to_owned()
}

/// The image's `KEY=value` lines, then the request's.
fn environment(image: &[String], request: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = image.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
    own.chain(request.clone()).collect()
}

/// What a death that nobody asked for is called.
fn code_of(death: &Death) -> ReasonCode {
    if death.oom_kills > 0 { ReasonCode::OutOfMemory } else { ReasonCode::GuestLost }
}

/// Waits for a sandbox's end and, when nobody asked for it, says so.
pub(crate) async fn watch(node: Node, id: String, machine: Arc<dyn Machine>, met: Met) {
    let death = machine.died().await;
    let runs = |entry: &Entry| entry.sandbox().state == SandboxState::Running;
    if !node.0.sandboxes.find(&id).is_ok_and(|entry| runs(&entry)) {
        return;
    }
    // Before it is cleaned up: afterwards nobody knows any more what it was that it ran into.
    let usage = met.usage_of(machine.as_ref()).await;
    // A death that comes of a lost disk is that disk's.
    let _ = node.check_disk().await;
    if let Some(lost) = node.mark_lost(&id, death.to_string(), code_of(&death), usage) {
        tracing::warn!(id, %death, "a sandbox died without being asked to");
        node.clear_up(lost, machine).await;
    }
}

/// A sandbox that was just marked as lost.
pub(crate) struct Lost {
    row: SandboxRow,
    grant: Option<Arc<Grant>>,
}

impl Node {
    /// Marks a running sandbox as lost; `None` when it does not run (any more).
    pub(crate) fn mark_lost(&self, id: &str, reason: String, code: ReasonCode, usage: Usage) -> Option<Lost> {
        let (mut was_running, mut grant) = (false, None);
        let entry = self.0.sandboxes.update(id, |entry| {
            was_running = entry.sandbox().state == SandboxState::Running;
            if was_running {
                let sandbox = &mut entry.row.sandbox;
                sandbox.state = SandboxState::Lost;
                (sandbox.reason, sandbox.reason_code) = (Some(reason), Some(code));
                sandbox.usage = Some(usage);
                entry.row.ended_at = Some(Timestamp::now().as_second());
                entry.row.resume = None;
                grant = entry.live.take().map(|live| live.grant);
            }
        });
        entry.filter(|_| was_running).map(|entry| Lost { row: entry.row, grant })
    }

    /// Ends what is left of a lost sandbox, frees its disk and network, and records its end.
    pub(crate) async fn clear_up(self, lost: Lost, machine: Arc<dyn Machine>) {
        let id = lost.row.sandbox.id.clone();
        if let Err(error) = machine.stop().await {
            tracing::warn!(id, %error, "a lost sandbox could not be cleaned up");
        }
        if let Some(grant) = lost.grant {
            grant.release();
        }
        if let Err(error) = self.persist(lost.row).await {
            tracing::warn!(id, %error, "a sandbox's end could not be recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_types::sandbox::{Capabilities, CapabilitySet, Resources};

    #[test]
    fn a_key_gives_only_what_was_asked_for() {
        let request = CreateSandbox { image: "debian".into(), ..Default::default() };
        let config = berth_types::image::ImageConfig { working_dir: "/app".into(), ..Default::default() };
        let settled =
            settle(&request, &crate::LimitPolicy::default(), Enforces { bytes: true, inodes: true }).unwrap();
        let sandbox = describe(&request, "sha256:00", &config, &settled, true);
        assert!(is_as_asked(&request, &sandbox));
        assert!(is_as_asked(&CreateSandbox { workdir: Some("/app".into()), ..request.clone() }, &sandbox));
        for other in [
            CreateSandbox { network: NetworkMode::NoNetwork, ..request.clone() },
            CreateSandbox { name: Some("box".into()), ..request.clone() },
            CreateSandbox { workdir: Some("/".into()), ..request.clone() },
            CreateSandbox { user: Some("nobody".into()), ..request.clone() },
            CreateSandbox { resources: Resources { pids: Some(9), ..Default::default() }, ..request.clone() },
            CreateSandbox { capabilities: Capabilities::Set(CapabilitySet::None), ..request.clone() },
            CreateSandbox { user_namespace: Some(false), ..request.clone() },
            CreateSandbox { labels: BTreeMap::from([("job".into(), "1".into())]), ..request.clone() },
        ] {
            assert!(!is_as_asked(&other, &sandbox), "{other:?}");
        }
    }

    #[test]
    fn the_requests_environment_wins() {
        let image = ["PATH=/bin".to_owned(), "A=1=2".to_owned(), "broken".to_owned()];
        let request = BTreeMap::from([("PATH".to_owned(), "/opt".to_owned())]);
        let merged = environment(&image, &request);
        assert_eq!(merged.get("PATH").map(String::as_str), Some("/opt"));
        assert_eq!(merged.get("A").map(String::as_str), Some("1=2"));
        assert_eq!(merged.len(), 2);
    }
}
