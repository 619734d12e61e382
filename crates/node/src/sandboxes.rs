//! A sandbox's life: made, watched, deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use berth_sandbox::{Bind, Limits, Machine, StartSpec};
use berth_store::SandboxRow;
use berth_types::sandbox::{CreateSandbox, NetworkMode, Page, Resources, Sandbox, SandboxState};
use jiff::Timestamp;
use uuid::Uuid;

use crate::registry::{Entry, Filter, Live};
use crate::{Error, Node, request};

/// MB in bytes, as in Harbor's task format.
const MB: u64 = 1 << 20;

impl Node {
    /// Makes a sandbox and returns when it is ready. Dropping the future gives back what was made.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for what cannot be honoured exactly, [`Error::ImageNotFound`], [`Error::NameTaken`],
    /// [`Error::LeaseNotFound`]; anything else is the machine's.
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
        let image = self.resolve_image(&request.image).await?;
        let pin = self.0.images.pin(&image.id)?;
        let config = &image.config;

        let sandbox = describe(&request, image.id.as_str(), config, self.0.driver.enforces_storage());
        let row = SandboxRow {
            sandbox: sandbox.clone(),
            idempotency_key: request.idempotency_key.clone(),
            ended_at: None,
        };
        self.0.sandboxes.insert(row.clone())?;
        // From here on a drop of this future, or an error, takes the entry out again.
        let mut creating = Creating { node: self.clone(), id: sandbox.id.clone(), done: false };
        self.persist(row).await?;

        let no_new_privileges = request.no_new_privileges.unwrap_or(!image.has_privileged_files());
        let spec = start_spec(&sandbox, &request, layer_names(&image), no_new_privileges);
        let machine = self.0.driver.start(spec).await.map_err(|source| Error::Start(Box::new(source)))?;
        let live = Live {
            machine: machine.clone(),
            env: Arc::new(environment(&config.env, &request.env)),
            _image: Arc::new(pin),
            no_new_privileges,
        };
        let shell = machine.guest().info().shell.clone();
        let start_ms = began.elapsed().as_secs_f64() * 1e3;
        let ready = self.0.sandboxes.update(&sandbox.id, |entry| {
            entry.live = Some(live);
            entry.row.sandbox.state = SandboxState::Running;
            entry.row.sandbox.shell = shell;
            entry.row.sandbox.start_ms = Some((start_ms * 1e3).round() / 1e3);
        });
        let entry = ready.ok_or(Error::SandboxNotFound { id: sandbox.id.clone() })?;
        self.persist(entry.row.clone()).await?;
        creating.done = true;
        tokio::spawn(watch(self.clone(), sandbox.id, machine));
        Ok(entry.row.sandbox)
    }

    /// One sandbox, by id or name.
    ///
    /// # Errors
    /// [`Error::SandboxNotFound`].
    pub fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        Ok(self.0.sandboxes.find(id)?.row.sandbox)
    }

    /// Sandboxes, oldest first.
    pub fn sandboxes(&self, filter: &Filter) -> Page<Sandbox> {
        self.0.sandboxes.page(filter)
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
        let mut begun = Ok(false);
        let entry = self.0.sandboxes.update(&id, |entry| begun = begin_to_end(entry, cause));
        if !begun? {
            return Ok(());
        }
        if let Some(live) = entry.and_then(|entry| entry.live) {
            live.machine.stop().await.map_err(|source| Error::Stop(Box::new(source)))?;
        }
        // The row goes first: while it is there, a repeated call must find what to repeat.
        self.0.sandboxes.update(&id, |entry| entry.live = None);
        let row = id.clone();
        self.with_store(move |store| store.delete_sandbox(&row)).await?;
        self.0.sandboxes.remove(&id);
        Ok(())
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
            (_, state) => Err(Error::SandboxNotRunning { id: sandbox.id, state, reason: sandbox.reason }),
        }
    }

    async fn persist(&self, row: SandboxRow) -> Result<(), Error> {
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
}

/// Marks a sandbox as going away; false when there is no cause to any more.
fn begin_to_end(entry: &mut Entry, cause: &Cause) -> Result<bool, Error> {
    let sandbox = &mut entry.row.sandbox;
    match (sandbox.state, cause) {
        (SandboxState::Starting, _) => Err(Error::SandboxBusy { id: sandbox.id.clone() }),
        (_, Cause::LeaseEnded(lease)) if sandbox.lease != *lease => Ok(false),
        _ => {
            sandbox.state = SandboxState::Stopping;
            Ok(true)
        }
    }
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
        state => Err(Error::SandboxNotRunning { id: sandbox.id, state, reason: sandbox.reason }),
    }
}

/// Whether a sandbox is what a request asks for, as far as the record tells: nobody is to get an open network where
/// he asked for none. The image is not compared, since its tag may have moved on, nor the lease, which may be another.
fn is_as_asked(request: &CreateSandbox, sandbox: &Sandbox) -> bool {
    let is_or_absent = |asked: &Option<String>, is: &String| asked.as_ref().is_none_or(|asked| asked == is);
    request.network == sandbox.network
        && request.resources == sandbox.resources
        && request.labels == sandbox.labels
        && request.name.as_ref().unwrap_or(&sandbox.id) == &sandbox.name
        && is_or_absent(&request.workdir, &sandbox.workdir)
        && is_or_absent(&request.user, &sandbox.user)
}

fn describe(
    request: &CreateSandbox,
    image: &str,
    config: &berth_types::image::ImageConfig,
    enforces_storage: bool,
) -> Sandbox {
    let id = Uuid::now_v7().simple().to_string();
    let workdir = request.workdir.clone().unwrap_or_else(|| config.working_dir.clone());
    Sandbox {
        name: request.name.clone().unwrap_or_else(|| id.clone()),
        group: id.clone(),
        state: SandboxState::Starting,
        reason: None,
        image: image.to_owned(),
        labels: request.labels.clone(),
        lease: request.lease.clone(),
        resources: request.resources.clone(),
        storage_enforced: enforces_storage && request.resources.storage_mb.is_some(),
        network: request.network,
        workdir: if workdir.is_empty() { "/".to_owned() } else { workdir },
        user: request.user.clone().unwrap_or_else(|| config.user.clone()),
        shell: None,
        created_at: Timestamp::now().to_string(),
        start_ms: None,
        id,
    }
}

fn start_spec(
    sandbox: &Sandbox,
    request: &CreateSandbox,
    layers: Vec<String>,
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
        public_network: sandbox.network == NetworkMode::Public,
        limits: limits(&sandbox.resources),
        binds: request.mounts.iter().map(bind).collect(),
        no_new_privileges,
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

fn limits(resources: &Resources) -> Limits {
    Limits { cpus: resources.cpus, memory_bytes: resources.memory_mb.map(|mb| mb * MB), pids: resources.pids }
}

/// The image's `KEY=value` lines, then the request's.
fn environment(image: &[String], request: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let own = image.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned()));
    own.chain(request.clone()).collect()
}

/// Waits for a sandbox's end and, when nobody asked for it, says so.
async fn watch(node: Node, id: String, machine: Arc<dyn Machine>) {
    let death = machine.died().await;
    let lost = node.0.sandboxes.update(&id, |entry| {
        if entry.row.sandbox.state == SandboxState::Running {
            entry.row.sandbox.state = SandboxState::Lost;
            entry.row.sandbox.reason = Some(death.to_string());
            entry.row.ended_at = Some(Timestamp::now().as_second());
            entry.live = None;
        }
    });
    let Some(entry) = lost.filter(|entry| entry.sandbox().state == SandboxState::Lost) else { return };
    tracing::warn!(id, %death, "a sandbox died without being asked to");
    // Frees its disk and network; its processes are gone already.
    if let Err(error) = machine.stop().await {
        tracing::warn!(id, %error, "a dead sandbox could not be cleaned up");
    }
    if let Err(error) = node.persist(entry.row).await {
        tracing::warn!(id, %error, "a sandbox's end could not be recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_only_what_was_asked_for() {
        let request = CreateSandbox { image: "debian".into(), ..Default::default() };
        let config = berth_types::image::ImageConfig { working_dir: "/app".into(), ..Default::default() };
        let sandbox = describe(&request, "sha256:00", &config, false);
        assert!(is_as_asked(&request, &sandbox));
        assert!(is_as_asked(&CreateSandbox { workdir: Some("/app".into()), ..request.clone() }, &sandbox));
        for other in [
            CreateSandbox { network: NetworkMode::NoNetwork, ..request.clone() },
            CreateSandbox { name: Some("box".into()), ..request.clone() },
            CreateSandbox { workdir: Some("/".into()), ..request.clone() },
            CreateSandbox { user: Some("nobody".into()), ..request.clone() },
            CreateSandbox { resources: Resources { pids: Some(9), ..Default::default() }, ..request.clone() },
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
