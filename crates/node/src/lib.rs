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
//! A daemon that died took its sandboxes along (their first process ends with the control stream). The next one finds
//! their rows, marks them lost, and clears what they held: see [`Node::start`].
//!
//! How it fails: [`Error`], which turns into an [`berth_types::error::ApiError`] with a kind: the client's, the machine's or
//! Berth's own fault.
//!
//! Start reading at [`Node::create_sandbox`].

mod builds;
mod doctor;
mod error;
mod exec;
mod files;
mod images;
mod leases;
mod registry;
mod request;
mod sandboxes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_disk::Engine;
use berth_image::Images;
use berth_net::Network;
use berth_sandbox::{ContainerDriver, Driver};
use berth_store::Store;
use berth_types::sandbox::SandboxState;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio_util::task::AbortOnDropHandle;

pub use berth_image::RegistryConfig;
pub use doctor::local_doctor;
pub use error::Error;
pub use exec::{Exec, ExecOutput};
pub use images::{Body, Sink};
pub use registry::Filter;

use crate::builds::Builds;
use crate::registry::Registry;

/// What a node is started with.
#[derive(Debug)]
pub struct Options {
    /// Where everything lives; one file system.
    pub data_dir: PathBuf,
    /// The static executable that becomes the first process of every sandbox.
    pub guest: &'static [u8],
    /// Registries: mirrors, credentials.
    pub registry: RegistryConfig,
    /// Addresses for sandboxes; chosen when absent.
    pub network_range: Option<ipnet::Ipv4Net>,
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
    /// Scratch space on the store's file system.
    tmp: PathBuf,
    /// What the doctor says of the parts that only a running node knows.
    facts: doctor::Facts,
    background: std::sync::Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl Node {
    /// Starts on a data directory, clearing what an earlier daemon left of its sandboxes.
    ///
    /// # Errors
    /// When another daemon has the directory, or the machine cannot run sandboxes.
    pub async fn start(options: Options) -> Result<Node, Error> {
        let store = Store::open(&options.data_dir)?;
        let instance = instance(&options.data_dir);
        let disk: Arc<dyn Engine> = Arc::from(berth_disk::open(&options.data_dir).map_err(Error::Disk)?);
        clear_disk(disk.as_ref())?;
        let images = Images::open(berth_image::Options {
            root: options.data_dir.clone(),
            registry: options.registry,
        })?;
        let network = Network::start(berth_net::Options {
            instance: instance.clone(),
            range: options.network_range,
            ..berth_net::Options::default()
        })
        .await
        .map_err(|source| Error::Network(Box::new(source)))?;
        let facts = doctor::Facts::of(&network, disk.as_ref());
        let container = berth_sandbox::container::Options {
            instance,
            layers_dir: images.layers_dir(),
            guest: options.guest,
        };
        let driver = ContainerDriver::new(container, disk, network)
            .map_err(|source| Error::Driver(Box::new(source)))?;
        let tmp = options.data_dir.join("tmp");
        builds::clear_contexts(&tmp).map_err(Error::Context)?;
        let node = Node(Arc::new(Inner {
            store,
            images,
            driver: Arc::new(driver),
            sandboxes: Registry::default(),
            builds: Builds::default(),
            tmp,
            facts,
            background: Default::default(),
        }));
        node.recover().await?;
        node.run_in_background(leases::keep(node.clone()));
        node.run_in_background(images::tidy(node.clone()));
        Ok(node)
    }

    /// Ends every sandbox and gives back what the node holds on this machine.
    pub async fn shutdown(&self) {
        self.0.background.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        let alive = self.0.sandboxes.select(|entry| entry.live.is_some());
        futures_util::future::join_all(alive.iter().map(|entry| async {
            let id = &entry.sandbox().id;
            if let Err(error) = self.delete_sandbox(id).await {
                tracing::warn!(id, %error, "a sandbox could not be ended");
            }
        }))
        .await;
        self.0.driver.shutdown().await;
    }

    /// Every sandbox of an earlier daemon is gone with it; whoever used one is to learn that, not to find a blank.
    async fn recover(&self) -> Result<(), Error> {
        for mut row in self.with_store(|store| store.sandboxes()).await? {
            if row.ended_at.is_none() {
                row.sandbox.state = SandboxState::Lost;
                row.sandbox.reason = Some("the daemon ended while it ran".to_owned());
                row.ended_at = Some(Timestamp::now().as_second());
                let lost = row.clone();
                self.with_store(move |store| store.put_sandbox(&lost)).await?;
                tracing::warn!(id = row.sandbox.id, "a sandbox was lost with an earlier daemon");
            }
            self.0.sandboxes.insert(row)?;
        }
        Ok(())
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

fn clear_disk(disk: &dyn Engine) -> Result<(), Error> {
    for id in disk.list().map_err(Error::Disk)? {
        disk.remove(&id).map_err(Error::Disk)?;
    }
    disk.reap_trash().map(drop).map_err(Error::Disk)
}
