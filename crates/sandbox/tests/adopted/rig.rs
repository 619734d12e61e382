//! A daemon to be killed, and the next one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_disk::{Engine, Kind};
use berth_sandbox::{ContainerDriver, Driver, Error, Limits, Machine, StartSpec, container};
use berth_wire::{Body, Frame, GENERATION, Hello, TreeKill};
use tempfile::TempDir;

use crate::PATIENCE;

/// First argument with which this binary plays the daemon.
pub const DAEMON_ARG: &str = "daemon-to-be-killed";

/// What [`ContainerDriver::start`] says of those that it was to take over.
pub type Machines = Vec<(String, Result<Arc<dyn Machine>, Error>)>;

/// What a daemon that was killed had written down, by id.
pub struct Killed {
    pub records: Vec<(String, String)>,
}

/// A data directory, and the instance of its daemons.
pub struct Rig {
    pub dir: TempDir,
    instance: String,
    runtime: tokio::runtime::Runtime,
}

/// Why the tests cannot run here.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    match Command::new("cc").arg("--version").output() {
        Ok(_) => None,
        Err(error) => Some(format!("no C compiler: {error}")),
    }
}

/// The guest that is made up.
fn guest(dir: &Path) -> &'static [u8] {
    let program = dir.join("guest");
    if !program.exists() {
        let (tree_kill, is_init) = (TreeKill::Cgroup, true);
        let hello = Hello {
            generation: GENERATION,
            shell: None,
            tree_kill,
            is_init,
            earlier_connections: 0,
            last_error: None,
        };
        let mut bytes = Vec::new();
        Frame { channel: 0, body: Body::Hello(hello) }.encode(&mut bytes).unwrap();
        let bytes: Vec<String> = bytes.iter().map(u8::to_string).collect();
        let greeting = format!("static const unsigned char hello[] = {{{}}};\n", bytes.join(","));
        let source = dir.join("guest.c");
        fs::write(&source, greeting + include_str!("guest.c")).unwrap();
        let built =
            Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(source).status();
        assert!(built.unwrap().success(), "cc failed");
    }
    fs::read(program).unwrap().leak()
}

async fn start(dir: &Path, instance: &str, adopt: Vec<(String, String)>) -> (ContainerDriver, Machines) {
    let plain = berth_disk::Options { engine: Some(Kind::Plain), reserve: Some(0), ..Default::default() };
    let disk: Arc<dyn Engine> = Arc::from(berth_disk::open(&dir.join("data"), &plain).unwrap().engine);
    let can_map = berth_jail::Launcher::spawn().unwrap();
    let ids = berth_sandbox::ids::Options::default();
    let range = berth_jail::IdRange { first: ids.first, count: ids.per_sandbox };
    let ids = can_map.make_namespaces(range).is_ok().then_some(ids);
    let options = container::Options {
        instance: instance.to_owned(),
        network: berth_net::Options::default(),
        ids,
        layers_dir: dir.join("data"),
        guest: guest(dir),
        run_dir: dir.join("run"),
    };
    ContainerDriver::start(options, disk, adopt).await.unwrap()
}

/// What a sandbox of these tests is to be. With user namespace and network where the machine has them.
fn spec(driver: &ContainerDriver, id: &str, orphan: Option<Duration>) -> StartSpec {
    StartSpec {
        id: id.to_owned(),
        hostname: id.to_owned(),
        public_network: driver.network().public().is_ok(),
        limits: Limits { pids: Some(50), ..Limits::default() },
        user_namespace: driver.features().user_namespace,
        orphan,
        ..StartSpec::default()
    }
}

impl Rig {
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("berth-adopted-").unwrap();
        fs::create_dir(dir.path().join("data")).unwrap();
        // Another one for each test: by the random end of the directory's name.
        let name = dir.path().file_name().unwrap().to_string_lossy().to_lowercase();
        let instance = format!("t{}", &name[name.len() - 6..]);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        guest(dir.path());
        Self { dir, instance, runtime }
    }

    pub fn run(&self, test: impl Future<Output = ()>) {
        self.runtime.block_on(test);
    }

    pub async fn start(&self, adopt: Vec<(String, String)>) -> (TestDriver, Machines) {
        let (driver, machines) = start(self.dir.path(), &self.instance, adopt).await;
        (TestDriver(driver), machines)
    }

    /// Starts these sandboxes with a daemon of their own, and kills it.
    pub fn killed_daemon(&self, sandboxes: &[(&str, Option<Duration>)]) -> Killed {
        let sandboxes = sandboxes
            .iter()
            .map(|(id, orphan)| format!("{id}={}", orphan.map_or(0, |orphan| orphan.as_millis())));
        let mut daemon = Command::new("/proc/self/exe")
            .arg(DAEMON_ARG)
            .arg(self.dir.path())
            .arg(&self.instance)
            .args(sandboxes)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        Killed { records: serde_json::from_str(&line).unwrap() }
    }

    /// Ids of sandboxes that have directories.
    pub fn directories(&self) -> Vec<String> {
        names(&self.dir.path().join("data/sandboxes"))
    }

    /// Nothing is left that anybody would have to clean up after the instance.
    pub fn assert_no_trace(&self) {
        assert_eq!(self.directories(), Vec::<String>::new());
        assert_eq!(names(&self.dir.path().join("data/trash")), Vec::<String>::new());
        assert_eq!(names(&self.dir.path().join("run")), Vec::<String>::new());
        let link = format!("bth{}-", self.instance);
        let links = names(Path::new("/sys/class/net"));
        assert!(!links.iter().any(|name| name.starts_with(&link)), "{links:?}");
        let facts = berth_jail::cgroup::Facts::detect().unwrap();
        let bases = facts.v1.iter().map(|hierarchy| hierarchy.mount_point.clone());
        for base in bases.chain(facts.v2.map(|unified| unified.base)) {
            let group = base.join("berth").join(&self.instance);
            assert!(!group.exists(), "{}", group.display());
        }
        if let Ok(tables) = Command::new("nft").args(["list", "tables"]).output() {
            let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
            assert!(!tables.contains(&format!("berth_{}", self.instance)), "{tables}");
        }
    }
}

/// A driver, and what its sandboxes are.
pub struct TestDriver(ContainerDriver);

impl std::ops::Deref for TestDriver {
    type Target = ContainerDriver;

    fn deref(&self) -> &ContainerDriver {
        &self.0
    }
}

impl TestDriver {
    pub fn spec(&self, id: &str, orphan: Option<Duration>) -> StartSpec {
        spec(&self.0, id, orphan)
    }
}

/// The daemon's life: starts what its arguments say, tells what another one needs, and waits for its end.
pub fn daemon() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [dir, instance, sandboxes @ ..] = arguments.as_slice() else { return ExitCode::FAILURE };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (driver, _) = start(Path::new(dir), instance, Vec::new()).await;
        let mut machines = Vec::new();
        let mut records = Vec::new();
        for sandbox in sandboxes {
            let (id, orphan) = sandbox.split_once('=').unwrap();
            let orphan = orphan.parse().ok().filter(|ms| *ms > 0).map(Duration::from_millis);
            let machine = driver.start(spec(&driver, id, orphan)).await.unwrap();
            let written = Path::new(dir).join("data/sandboxes").join(id).join("upper/written");
            fs::write(written, id).unwrap();
            records.extend(machine.resume().map(|record| (id.to_owned(), record)));
            machines.push(machine);
        }
        println!("{}", serde_json::to_string(&records).unwrap());
        std::future::pending::<()>().await;
    });
    ExitCode::FAILURE
}

/// Of a sandbox's first process.
pub fn pid_of(record: &str) -> i32 {
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    i32::try_from(record["process"]["pid"].as_i64().unwrap()).unwrap()
}

/// What no two sandboxes may have in common: the first of its ids, its link and its address, each null where it has none.
pub fn marks_of(record: &str) -> [serde_json::Value; 3] {
    let mut record: serde_json::Value = serde_json::from_str(record).unwrap();
    ["/slot/ids/first", "/slot/link/name", "/slot/link/address"]
        .map(|at| record.pointer_mut(at).map(serde_json::Value::take).unwrap_or_default())
}

/// Name of its link on the host, if it has one.
pub fn link_of(record: &str) -> Option<String> {
    let record: serde_json::Value = serde_json::from_str(record).unwrap();
    record["slot"]["link"]["name"].as_str().map(str::to_owned)
}

/// Whether there is such a process, and not only what its parent has not reaped of it.
pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub fn kill(pid: i32) {
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    let began = Instant::now();
    while is_alive(pid) {
        assert!(began.elapsed() < PATIENCE, "{pid} does not die");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for it.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not yet");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
