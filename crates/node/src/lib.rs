//! This machine's sandboxes, images and builds: it makes the machine match what was asked, and keeps the record.
//!
//! ```text
//!   daemon ──► Node ──┬── registry + store   what there is, in memory and on disk
//!                     ├── sandbox::Driver    what runs it
//!                     ├── image::Images      what it stands on
//!                     └── build (through Runner, filled here)
//! ```
//!
//! It knows no HTTP, no JSON of a request, no command line. Everything that it starts has an owner: a sandbox lives
//! under a lease or until somebody deletes it, and a start that fails or is dropped gives back what it made.
//!
//! A sandbox may outlive its daemon for a while. The next daemon finds its row and takes it over; one that does not run
//! any more it marks lost, and clears what that held: see [`Node::start`].
//!
//! How it fails: [`Error`], which turns into an [`berth_types::error::ApiError`] with a kind: the client's, the machine's or
//! Berth's own fault.
//!
//! Start reading at [`Node::create_sandbox`].

mod admission;
mod builds;
mod doctor;
mod error;
mod exec;
#[cfg(test)]
mod exec_tests;
mod failure;
#[cfg(test)]
mod fake;
mod fetch;
mod files;
mod health;
mod images;
mod leases;
#[cfg(test)]
mod life_tests;
mod patience;
mod recovery;
#[cfg(test)]
mod recovery_tests;
mod registry;
mod request;
mod resources;
mod sandboxes;
mod status;
mod tasks;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use berth_disk::Engine;
use berth_image::Images;
use berth_sandbox::container::Adopted;
use berth_sandbox::{ContainerDriver, Driver};
use berth_store::Store;
use sha2::{Digest, Sha256};
use tokio_util::task::AbortOnDropHandle;

pub use berth_image::RegistryConfig;
pub use berth_sandbox::guest::{Connect, ExecInput, Socket};
pub use berth_sandbox::ids::Options as IdOptions;
pub use builds::BuildPolicy;
pub use doctor::local_doctor;
pub use error::Error;
pub use exec::{AttachSpec, Exec, ExecOutput};
pub use files::{Changes, Download, FileContents};
pub use images::{Body, ImageLimits, Sink};
pub use registry::Filter;
pub use resources::LimitPolicy;
pub use trust::BundleError;

use crate::admission::{Admission, HostMeter, Ledger, Meter};
use crate::builds::{Builds, Caches, Replays};
use crate::fetch::Fetcher;
use crate::registry::Registry;
use crate::tasks::Tasks;
use crate::trust::Trusts;

/// What a node is started with.
#[derive(Debug)]
pub struct Options {
    /// Where everything lives; one file system.
    pub data_dir: PathBuf,
    /// The static executable that becomes the first process of every sandbox.
    pub guest: &'static [u8],
    /// Registries: mirrors, credentials.
    pub registry: RegistryConfig,
    /// Where and how writable layers are kept.
    pub disk: berth_disk::Options,
    /// Networks of sandboxes: their addresses, and how many are kept ready. Its instance and maker are filled in here.
    pub network: berth_net::Options,
    /// Ids of this machine for the users of sandboxes with a user namespace; without them there are none.
    pub ids: Option<berth_sandbox::ids::Options>,
    /// Limits of sandboxes, and what is set aside for them.
    pub limits: LimitPolicy,
    /// How much of images and layers is kept, and for how long.
    pub images: ImageLimits,
    /// What builds may do and use.
    pub builds: BuildPolicy,
    /// Certificates (PEM) that sandboxes are to trust beside the machine's; absent: nothing is offered to them.
    pub ca_bundle: Option<PathBuf>,
    /// Whether sandboxes get a user namespace unless they ask for none.
    pub user_namespaces: bool,
    /// How long sandboxes live on when the daemon is gone, for the next one to take them over; absent: they end with it.
    pub orphan: Option<Duration>,
}

/// This machine, as a handle; clones are the same node.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    store: Store,
    images: Images,
    driver: Arc<dyn Driver>,
    sandboxes: Registry,
    builds: Builds,
    image_limits: ImageLimits,
    build_policy: BuildPolicy,
    caches: Caches,
    replays: Replays,
    fetcher: Fetcher,
    trust: Trusts,
    /// Scratch space on the store's file system.
    tmp: PathBuf,
    /// What the doctor says of the parts that only a running node knows.
    facts: doctor::Facts,
    limits: LimitPolicy,
    user_namespaces: bool,
    /// How many user and group ids a user namespace has.
    ids_per_sandbox: Option<u32>,
    orphan: Option<Duration>,
    /// How many sandboxes of an earlier daemon were taken over.
    adopted: AtomicU64,
    /// Whether sandboxes are left running when the node ends.
    keep_sandboxes: AtomicBool,
    admission: Arc<Admission>,
    /// What was found when the disk of sandboxes was last looked at, where that is lost.
    disk_lost: std::sync::Mutex<Option<String>>,
    tasks: Tasks,
    background: std::sync::Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// What a node is put together from; a test has its own.
struct Parts {
    store: Store,
    images: Images,
    driver: Arc<dyn Driver>,
    meter: Box<dyn Meter>,
    facts: doctor::Facts,
    limits: LimitPolicy,
    image_limits: ImageLimits,
    builds: BuildPolicy,
    caches: Caches,
    fetcher: Fetcher,
    trust: Trusts,
    user_namespaces: bool,
    ids_per_sandbox: Option<u32>,
    orphan: Option<Duration>,
    /// What became of taking over the sandboxes that [`recovery::candidates`] named.
    adopted: Adopted,
    tmp: PathBuf,
}

impl Node {
    /// Starts on a data directory: takes over the sandboxes of an earlier daemon that still run, and clears what it left of
    /// the others.
    ///
    /// # Errors
    /// When another daemon has the directory, or the machine cannot run sandboxes.
    pub async fn start(options: Options) -> Result<Node, Error> {
        let store = Store::open(&options.data_dir)?;
        let (builds, sandboxes) = (options.builds.ca_bundle.as_deref(), options.ca_bundle.as_deref());
        let trust = Trusts::of(builds, sandboxes, &options.data_dir)?;
        let instance = instance(&options.data_dir);
        let opened = berth_disk::open(&options.data_dir, &options.disk).map_err(Error::Disk)?;
        let disk: Arc<dyn Engine> = Arc::from(opened.engine);
        let root = disk.root().to_owned();
        let images = Images::open(berth_image::Options { root: root.clone(), registry: options.registry })?;
        let container = berth_sandbox::container::Options {
            instance,
            network: options.network,
            ids: options.ids,
            layers_dir: images.layers_dir(),
            guest: options.guest,
            run_dir: options.data_dir.join("run"),
        };
        let meter = HostMeter::new(disk.clone());
        // Before anything else may touch what they stand on.
        let running = recovery::candidates(&store.sandboxes()?);
        let (driver, adopted) = ContainerDriver::start(container, disk.clone(), running)
            .await
            .map_err(|source| Error::Driver(Box::new(source)))?;
        let facts = doctor::Facts::of(driver.network(), disk, opened.choice);
        let ca_bundle = trust.builds.file();
        let fetch = fetch::Options { ca_bundle, ..fetch::Options::new(root.join("fetched")) };
        let parts = Parts {
            store,
            images,
            driver: Arc::new(driver),
            meter: Box::new(meter),
            facts,
            limits: options.limits,
            caches: Caches::open(&root, options.builds.cache_bytes)
                .map_err(|source| Error::Caches(Box::new(source)))?,
            fetcher: Fetcher::open(fetch).map_err(|source| Error::Caches(Box::new(source)))?,
            trust,
            image_limits: options.images,
            builds: options.builds,
            user_namespaces: options.user_namespaces,
            ids_per_sandbox: options.ids.map(|ids| ids.per_sandbox),
            orphan: options.orphan,
            adopted,
            tmp: root.join("tmp"),
        };
        Node::assemble(parts).await
    }

    async fn assemble(parts: Parts) -> Result<Node, Error> {
        let tmp = parts.tmp;
        builds::clear_contexts(&tmp).map_err(Error::Context)?;
        let reserve = parts.limits.memory_reserve_mb.map(|mb| mb.saturating_mul(resources::MB));
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let node = Node(Arc::new(Inner {
            store: parts.store,
            images: parts.images,
            driver: parts.driver,
            sandboxes: Registry::default(),
            builds: Builds::new(&parts.builds),
            image_limits: parts.image_limits,
            build_policy: parts.builds,
            caches: parts.caches,
            replays: Replays::default(),
            fetcher: parts.fetcher,
            trust: parts.trust,
            tmp,
            facts: parts.facts,
            limits: parts.limits,
            user_namespaces: parts.user_namespaces,
            ids_per_sandbox: parts.ids_per_sandbox,
            orphan: parts.orphan,
            adopted: Default::default(),
            keep_sandboxes: Default::default(),
            admission: Admission::new(Ledger::new(cpus, reserve), parts.meter),
            disk_lost: Default::default(),
            tasks: Tasks::new(&[
                leases::TASK,
                images::TIDY_TASK,
                builds::BUILDS_TASK,
                status::QUEUE_TASK,
                health::TASK,
            ]),
            background: Default::default(),
        }));
        node.recover(parts.adopted).await?;
        node.run_in_background(leases::keep(node.clone()));
        node.run_in_background(images::tidy(node.clone()));
        node.run_in_background(status::keep_queue(node.clone()));
        node.run_in_background(health::keep(node.clone()));
        Ok(node)
    }

    /// Ends every sandbox and gives back what the node holds on this machine. The next daemon remembers them as lost.
    pub async fn shutdown(&self) {
        self.0.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        let alive = self.0.sandboxes.select(|entry| entry.live.is_some());
        futures_util::future::join_all(alive.iter().map(|entry| async {
            let id = &entry.sandbox().id;
            if let Err(error) = self.delete_if(id, sandboxes::Cause::Shutdown).await {
                tracing::warn!(id, %error, "a sandbox could not be ended");
            }
        }))
        .await;
        self.0.driver.shutdown().await;
    }

    fn run_in_background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = AbortOnDropHandle::new(tokio::spawn(task));
        self.0.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(handle);
    }

    /// Calls the store off the runtime's own threads.
    async fn with_store<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> Result<T, berth_store::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let node = self.clone();
        let called = tokio::task::spawn_blocking(move || call(&node.0.store)).await;
        Ok(called.map_err(|_| Error::Ending)??)
    }
}

/// Short name for everything global that belongs to the daemon of this data directory: its cgroups, links and rules.
/// Two daemons on one machine have two data directories.
fn instance(data_dir: &Path) -> String {
    let absolute = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let digest = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}
