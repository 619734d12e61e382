//! A node over a driver that is made up: its machines are a stream with a guest's greeting on it, say of themselves
//! what a test tells them to, and die on command. No privilege is needed.

mod guest;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_image::Images;
use berth_sandbox::container::Adopted;
use berth_sandbox::guest::Guest;
use berth_sandbox::{Death, Disk, DiskFull, Driver, Error, Features, Machine, StartSpec};
use berth_store::Store;
use berth_types::image::{ArchiveFormat, ImportImage};
use berth_types::sandbox::{CreateSandbox, Sandbox, Usage};
use berth_wire::{Body, Frame, GENERATION, Hello, TreeKill};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::admission::{Meter, Reading};
use crate::{LimitPolicy, Node, Parts, doctor, recovery};

/// What a test sets of the machine, and what it sees of the driver.
#[derive(Default)]
pub(crate) struct Controls {
    pub(crate) reading: Mutex<Reading>,
    pub(crate) enforces: bool,
    /// Limits of files.
    pub(crate) enforces_inodes: bool,
    pub(crate) disk_lost: AtomicBool,
    pub(crate) image_limits: crate::ImageLimits,
    pub(crate) builds: crate::BuildPolicy,
    pub(crate) features: Features,
    /// Whether guests answer what they are asked of execs. They say nothing at all without.
    pub(crate) answering: bool,
    pub(crate) started: guest::Started,
    /// Those of an earlier daemon's sandboxes that run on, by what was said to resume them.
    pub(crate) survivors: BTreeSet<String>,
    pub(crate) was_left: AtomicBool,
    pub(crate) specs: Mutex<Vec<StartSpec>>,
    pub(crate) machines: Mutex<BTreeMap<String, Arc<FakeMachine>>>,
}

impl Controls {
    /// With guests that answer.
    pub(crate) fn answering() -> Controls {
        Controls { answering: true, ..Controls::default() }
    }

    async fn make(&self, id: &str, resume: Option<String>) -> Result<Arc<dyn Machine>, Error> {
        let inside = self.answering.then(|| guest::inside(self.started.clone()));
        let (stream, serving) = greeting(inside.clone());
        let guest = Guest::connect(stream).await.map_err(Error::Guest)?;
        let machine = Arc::new(FakeMachine {
            guest: watch::Sender::new(guest),
            inside,
            serving: Mutex::new(serving),
            resume,
            death: watch::Sender::new(None),
            usage: Mutex::default(),
            disk_full: Mutex::default(),
        });
        self.machines.lock().unwrap().insert(id.to_owned(), machine.clone());
        Ok(machine)
    }

    async fn adopt(&self, wanted: Vec<(String, String)>) -> Adopted {
        let mut adopted = Vec::new();
        for (id, resume) in wanted {
            let machine = match self.survivors.contains(&resume) {
                true => self.make(&id, Some(resume)).await,
                false => Err(Error::Ended),
            };
            adopted.push((id, machine));
        }
        adopted
    }

    pub(crate) fn machine(&self, id: &str) -> Arc<FakeMachine> {
        self.machines.lock().unwrap()[id].clone()
    }
}

struct FakeDriver(Arc<Controls>);

impl Driver for FakeDriver {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Arc<dyn Machine>, Error>> {
        async move {
            let resume = spec.orphan.map(|_| format!("resume {}", spec.id));
            let machine = self.0.make(&spec.id, resume).await?;
            self.0.specs.lock().unwrap().push(spec);
            Ok(machine)
        }
        .boxed()
    }

    fn enforces_storage(&self) -> bool {
        self.0.enforces
    }

    fn enforces_inodes(&self) -> bool {
        self.0.enforces_inodes
    }

    fn health(&self) -> Result<(), Error> {
        if self.0.disk_lost.load(Ordering::SeqCst) {
            return Err(Error::DiskLost(berth_disk::Error::PoolGone { path: "/pool.btrfs".into() }));
        }
        Ok(())
    }

    fn features(&self) -> Features {
        self.0.features
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.0.was_left.store(true, Ordering::SeqCst);
        std::future::ready(()).boxed()
    }
}

/// The host's end of a stream at whose other end somebody greets, and then says nothing or what [`guest`] does.
fn greeting(inside: Option<guest::Inside>) -> (UnixStream, AbortHandle) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let hello = Hello {
        generation: GENERATION,
        shell: Some("/bin/sh".into()),
        tree_kill: TreeKill::Cgroup,
        is_init: true,
        earlier_connections: 0,
        last_error: None,
    };
    let serving = tokio::spawn(async move {
        let _ = theirs.write_all(&encoded(0, Body::Hello(hello))).await;
        match inside {
            Some(inside) => guest::serve(theirs, &inside).await,
            None => drop(theirs.read_to_end(&mut Vec::new()).await),
        }
    });
    (ours, serving.abort_handle())
}

fn encoded(channel: u32, body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame { channel, body }.encode(&mut bytes).unwrap();
    bytes
}

pub(crate) struct FakeMachine {
    guest: watch::Sender<Guest>,
    /// What the guest knows, over which connection ever.
    inside: Option<guest::Inside>,
    serving: Mutex<AbortHandle>,
    resume: Option<String>,
    death: watch::Sender<Option<Death>>,
    pub(crate) usage: Mutex<Usage>,
    pub(crate) disk_full: Mutex<Option<DiskFull>>,
}

impl FakeMachine {
    pub(crate) fn die(&self, oom_kills: u64) {
        self.death.send_replace(Some(Death { oom_kills, how: "it fell over".into() }));
    }

    /// Ends the connection to the guest, which lives on.
    pub(crate) async fn cut(&self) {
        self.serving.lock().unwrap().abort();
        self.guest().closed().await;
    }

    /// Makes another one.
    pub(crate) async fn connect_again(&self) {
        let (stream, serving) = greeting(self.inside.clone());
        *self.serving.lock().unwrap() = serving;
        self.guest.send_replace(Guest::connect(stream).await.unwrap());
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.death.borrow().is_some()
    }
}

impl Machine for FakeMachine {
    fn guest(&self) -> Guest {
        self.guest.borrow().clone()
    }

    fn reached(&self) -> BoxFuture<'_, Guest> {
        let mut news = self.guest.subscribe();
        async move {
            let open = news.wait_for(|guest| !guest.is_closed());
            let _ = tokio::time::timeout(Duration::from_secs(5), open).await;
            self.guest()
        }
        .boxed()
    }

    fn died(&self) -> BoxFuture<'_, Death> {
        let mut death = self.death.subscribe();
        async move { death.wait_for(Option::is_some).await.unwrap().clone().unwrap() }.boxed()
    }

    fn stop(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.death.send_if_modified(|death| {
            death.get_or_insert(Death { oom_kills: 0, how: "it was stopped".into() });
            true
        });
        std::future::ready(Ok(())).boxed()
    }

    fn usage(&self) -> BoxFuture<'_, Usage> {
        std::future::ready(self.usage.lock().unwrap().clone()).boxed()
    }

    fn disk_full(&self) -> BoxFuture<'_, Option<DiskFull>> {
        std::future::ready(*self.disk_full.lock().unwrap()).boxed()
    }

    fn resume(&self) -> Option<String> {
        self.resume.clone()
    }

    fn stubs(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    fn take_disk(&self) -> BoxFuture<'_, Result<Disk, Error>> {
        std::future::ready(Err(Error::Ended)).boxed()
    }
}

struct FakeMeter(Arc<Controls>);

impl Meter for FakeMeter {
    fn read(&self) -> Reading {
        *self.0.reading.lock().unwrap()
    }
}

/// A node with the image `tiny`, and its controls.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) controls: Arc<Controls>,
    dir: TempDir,
}

/// A machine with 8 GiB of memory and 100 GiB of disk, all free.
pub(crate) fn roomy() -> Reading {
    Reading {
        memory_total: Some(8 << 30),
        memory_available: Some(8 << 30),
        memory_stalled: None,
        disk_total: Some(100 << 30),
        disk_free: Some(100 << 30),
        disk_reserve: Some(1 << 30),
    }
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(Controls { reading: Mutex::new(roomy()), enforces: true, ..Controls::default() }).await
    }

    pub(crate) async fn with(controls: Controls) -> World {
        World::at(tempfile::tempdir().unwrap(), controls).await
    }

    /// On what an earlier daemon left.
    pub(crate) async fn at(dir: TempDir, controls: Controls) -> World {
        let controls = Arc::new(controls);
        let node = assemble(&dir, &controls).await;
        let world = World { node, controls, dir };
        world.import("tiny", rootfs(0)).await;
        world
    }

    /// What is on disk now: what another daemon would find had this one been killed.
    pub(crate) fn killed(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let from = self.dir.path().join(".");
        let copied = std::process::Command::new("cp").arg("-a").args([&from, dir.path()]).status().unwrap();
        assert!(copied.success());
        dir
    }

    pub(crate) async fn import(&self, reference: &str, rootfs: Vec<u8>) {
        let import = ImportImage { reference: Some(reference.into()), format: Some(ArchiveFormat::Rootfs) };
        let body = Box::new(std::io::Cursor::new(rootfs));
        self.node.import_images(import, body, Arc::new(|_| {})).await.unwrap();
    }

    pub(crate) async fn create(
        &self,
        change: impl FnOnce(&mut CreateSandbox),
    ) -> Result<Sandbox, crate::Error> {
        self.node.create_sandbox(request(change)).await
    }
}

pub(crate) fn request(change: impl FnOnce(&mut CreateSandbox)) -> CreateSandbox {
    let mut request = CreateSandbox { image: "tiny".into(), ..CreateSandbox::default() };
    change(&mut request);
    request
}

async fn assemble(dir: &TempDir, controls: &Arc<Controls>) -> Node {
    let images = Images::open(berth_image::Options {
        root: dir.path().to_owned(),
        registry: crate::RegistryConfig::default(),
    });
    let store = Store::open(dir.path()).unwrap();
    let adopted = controls.adopt(recovery::candidates(&store.sandboxes().unwrap())).await;
    let limits = LimitPolicy { memory_reserve_mb: Some(0), ..LimitPolicy::default() };
    let parts = Parts {
        store,
        images: images.unwrap(),
        driver: Arc::new(FakeDriver(controls.clone())),
        meter: Box::new(FakeMeter(controls.clone())),
        facts: doctor::Facts::none(),
        limits,
        image_limits: controls.image_limits.clone(),
        builds: controls.builds.clone(),
        caches: crate::builds::Caches::open(dir.path(), None).unwrap(),
        fetcher: crate::fetch::Fetcher::open(crate::fetch::Options::new(dir.path().join("fetched"))).unwrap(),
        trust: crate::trust::Trusts::default(),
        user_namespaces: true,
        ids_per_sandbox: Some(100_000),
        orphan: Some(Duration::from_secs(300)),
        adopted,
        tmp: dir.path().join("tmp"),
    };
    Node::assemble(parts).await.unwrap()
}

/// A root file system with one file in it, of this user.
pub(crate) fn rootfs(uid: u64) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_uid(uid);
    header.set_size(3);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, "hello", &b"hi\n"[..]).unwrap();
    tar.into_inner().unwrap()
}
