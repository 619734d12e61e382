//! Commands of a whole container whose daemon is killed under them. Needs root; says so and passes where it is missing.
//!
//! Has a main of its own because the launcher re-executes the running binary, which is also the daemon that is killed.

// Tests may: clippy's own exception covers only functions marked as tests.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

#[allow(unused_imports, reason = "each test binary uses its part")]
mod rig;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use berth_disk::{Engine, Kind, PoolOptions};
use berth_sandbox::guest::{AttachSpec, Error, ExecOutput, ExecSpec, Guest, PackSpec};
use berth_sandbox::{Bind, ContainerDriver, Driver, Limits, Machine, StartSpec, container};
use berth_types::exec::{ExecOffsets, OnDisconnect};
use libtest_mimic::{Arguments, Trial};
use rig::{finish, shell};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

const DAEMON_ARG: &str = "daemon-to-be-killed";
const ORPHAN: Duration = Duration::from_secs(60);
/// What may take milliseconds, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(30);
/// A command whose every line counts.
const COUNTER: &str = "counter";
const LINES: u32 = 400;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(berth_jail::LAUNCHER_ARG) => return berth_jail::launcher_main(),
        Some(DAEMON_ARG) => return daemon(),
        _ => {}
    }
    let tests: [(&str, fn()); 5] = [
        ("a_command_runs_on_while_daemons_come_and_go", || command_runs_on(Kind::Plain)),
        ("a_command_runs_on_on_a_disk_in_a_file", || command_runs_on(Kind::BtrfsLoop)),
        ("a_sandbox_without_a_daemon_ends_with_all_that_runs_in_it", ends_in_time),
        ("a_daemon_whose_connection_breaks_makes_another", reconnects),
        ("a_sandbox_whose_connection_breaks_again_and_again_is_ended", is_given_up),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            if rustix::process::geteuid().is_root() {
                test();
            } else {
                println!("SKIP: not root");
            }
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// The host's programs on a root of its own.
fn layers(dir: &Path) {
    let base = dir.join("layers/base");
    for name in ["usr", "etc", "tmp"] {
        fs::create_dir_all(base.join(name)).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), base.join(name)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(base.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::create_dir(dir.join("data")).unwrap();
}

/// Where a test has its files. Declared first, it goes last, and after a failure it takes away what the test did not come to.
struct Place {
    dir: TempDir,
    engine: Kind,
}

impl Place {
    fn new(engine: Kind) -> Place {
        Place { dir: TempDir::with_prefix("berth-outlives-").unwrap(), engine }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // A daemon that takes nothing over removes all that others of its instance have left. On a thread of its own: a
        // second failure on this one would end the process before anything else is cleaned up.
        let (dir, engine) = (self.path().to_owned(), self.engine);
        let cleared = std::thread::spawn(move || {
            runtime().block_on(async {
                start(&dir, &instance(&dir), engine, Vec::new()).await.0.shutdown().await;
            });
        });
        if cleared.join().is_err() {
            eprintln!("{} and what runs from it stay behind", self.path().display());
        }
    }
}

/// Another one for each test, and the same for all daemons of one: by the random end of the directory's name.
fn instance(dir: &Path) -> String {
    let name = dir.file_name().unwrap().to_string_lossy().to_lowercase();
    format!("g{}", &name[name.len() - 6..])
}

async fn start(
    dir: &Path,
    instance: &str,
    engine: Kind,
    adopt: Vec<(String, String)>,
) -> (ContainerDriver, container::Adopted) {
    let disk: Arc<dyn Engine> = Arc::from(open(dir, engine).unwrap().engine);
    let options = container::Options {
        instance: instance.to_owned(),
        network: berth_net::Options::default(),
        ids: Some(berth_sandbox::ids::Options::default()),
        layers_dir: dir.join("layers"),
        guest: fs::read(env!("CARGO_BIN_EXE_berth-guest")).unwrap().leak(),
        run_dir: dir.join("run"),
    };
    ContainerDriver::start(options, disk, adopt).await.unwrap()
}

fn open(dir: &Path, engine: Kind) -> Result<berth_disk::Opened, berth_disk::Error> {
    let pool = PoolOptions { initial: 256 << 20, ..PoolOptions::default() };
    let options = berth_disk::Options { engine: Some(engine), reserve: Some(0), pool, ..Default::default() };
    berth_disk::open(&dir.join("data"), &options)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Starts a sandbox, and in it a command that says numbers for some seconds; tells what another daemon needs once the
/// first of them are there.
fn daemon() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [dir, instance, engine, orphan_ms] = arguments.as_slice() else { return ExitCode::FAILURE };
    runtime().block_on(async {
        let (driver, _) = start(Path::new(dir), instance, engine.parse().unwrap(), Vec::new()).await;
        let machine = sandbox(&driver, Duration::from_millis(orphan_ms.parse().unwrap())).await;
        let line = format!(
            "echo began >> /began; for n in $(seq {LINES}); do echo line $n; echo problem $n >&2; sleep 0.005; done; exit 7"
        );
        let counter = ExecSpec { id: COUNTER.to_owned(), on_detach: OnDisconnect::Keep, ..shell(&line) };
        let mut exec = machine.guest().exec(counter).await.unwrap();
        exec.next().await.unwrap().unwrap();
        println!("{}", machine.resume().unwrap());
        std::future::pending::<()>().await;
    });
    ExitCode::FAILURE
}

async fn sandbox(driver: &ContainerDriver, orphan: Duration) -> Arc<dyn Machine> {
    let spec = StartSpec {
        id: "s".to_owned(),
        hostname: "box".to_owned(),
        layers: vec!["base".to_owned()],
        public_network: driver.network().public().is_ok(),
        limits: Limits { memory_bytes: Some(256 << 20), pids: Some(100), ..Limits::default() },
        binds: vec![Bind { source: "/usr".into(), target: "/usr".into(), read_only: true }],
        user_namespace: true,
        orphan: Some(orphan),
        ..StartSpec::default()
    };
    driver.start(spec).await.unwrap()
}

/// What another daemon needs, after the first was killed.
fn killed_daemon(dir: &Path, engine: Kind, orphan: Duration) -> String {
    let mut daemon: Child = Command::new("/proc/self/exe")
        .args([DAEMON_ARG.as_ref(), dir.as_os_str()])
        .args([instance(dir), engine.to_string(), orphan.as_millis().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(!line.is_empty(), "the daemon failed");
    line.trim().to_owned()
}

fn field<'a>(record: &'a serde_json::Value, path: &[&str]) -> &'a serde_json::Value {
    path.iter().fold(record, |value, key| &value[*key])
}

async fn out_of(guest: &Guest, line: &str) -> String {
    let run = async { finish(guest.exec(shell(line)).await.unwrap()).await };
    let ran = tokio::time::timeout(PATIENCE, run).await.expect("a command hangs");
    assert_eq!(ran.status.exit_code, 0, "{line}: {ran:?}");
    ran.out()
}

async fn adopt(dir: &Path, engine: Kind, record: &str) -> (ContainerDriver, Arc<dyn Machine>) {
    let (driver, mut adopted) =
        start(dir, &instance(dir), engine, vec![("s".to_owned(), record.to_owned())]).await;
    (driver, adopted.remove(0).1.unwrap())
}

fn command_runs_on(engine: Kind) {
    let dir = Place::new(engine);
    layers(dir.path());
    if let Err(error) = open(dir.path(), engine) {
        println!("SKIP: no disk of this kind here: {error}");
        return;
    }
    let record = killed_daemon(dir.path(), engine, ORPHAN);
    let facts: serde_json::Value = serde_json::from_str(&record).unwrap();
    runtime().block_on(async {
        // Twice: a daemon that leaves comes between.
        let (driver, machine) = adopt(dir.path(), engine, &record).await;
        assert_eq!(machine.guest().execs(Some(COUNTER)).await.unwrap().len(), 1);
        driver.leave().await;
        drop((machine, driver));

        let (driver, machine) = adopt(dir.path(), engine, &record).await;
        let guest = &machine.guest();
        let from = ExecOffsets::default();
        let whole = AttachSpec { id: COUNTER.to_owned(), from, stdin: false, follow: true };
        let attached = async { finish(guest.attach(whole).await.unwrap()).await };
        let ran = tokio::time::timeout(PATIENCE, attached).await.expect("the command does not end");
        let lines = |word: &str| (1..=LINES).map(|n| format!("{word} {n}\n")).collect::<String>();
        assert_eq!(ran.out(), lines("line"));
        assert_eq!(String::from_utf8_lossy(&ran.stderr), lines("problem"));
        assert_eq!(ran.status.exit_code, 7);
        assert_eq!(out_of(guest, "cat /began").await, "began\n", "it was started once");
        let line = "hostname; id -u; echo x > /new; cat /new; cat /proc/meminfo /proc/stat > /dev/null";
        assert_eq!(out_of(guest, line).await, "box\n0\nx\n");
        assert!(machine.usage().await.memory_bytes.is_none_or(|bytes| bytes > 0));
        match field(&facts, &["slot", "link", "address"]).as_str() {
            Some(address) => {
                let inside = out_of(guest, "cat /proc/net/fib_trie").await;
                assert!(inside.contains(address), "{address}: {inside}");
                // Its own kernel says no: the way there and back is as it was.
                let nobody = SocketAddr::from((address.parse::<Ipv4Addr>().unwrap(), 9));
                let refused = TcpStream::connect_timeout(&nobody, PATIENCE).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            }
            None => println!("SKIP: its network: this machine has none for sandboxes"),
        }
        machine.stop().await.unwrap();
        driver.shutdown().await;
        drop((machine, driver));
    });
    assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 0);
    let disk = open(dir.path(), engine).unwrap().engine;
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
}

fn ends_in_time() {
    let dir = Place::new(Kind::Plain);
    layers(dir.path());
    let record = killed_daemon(dir.path(), Kind::Plain, Duration::from_millis(300));
    let facts: serde_json::Value = serde_json::from_str(&record).unwrap();
    let pid = field(&facts, &["process", "pid"]).to_string();
    runtime().block_on(async {
        rig::until("it has ended", || !rig::is_alive(&pid)).await;
        let adopt = vec![("s".to_owned(), record)];
        let (driver, mut adopted) = start(dir.path(), &instance(dir.path()), Kind::Plain, adopt).await;
        let error = adopted.remove(0).1.err().unwrap();
        assert!(matches!(error, berth_sandbox::Error::NotThere(_)), "{error}");
        driver.shutdown().await;
        drop(driver);
    });
    assert_eq!(fs::read_dir(dir.path().join("data/sandboxes")).unwrap().count(), 0);
}

/// Takes the place of the daemon's connection, and goes again.
async fn steal(dir: &Path, machine: &Arc<dyn Machine>) {
    let guest = machine.reached().await;
    // It is served once it is greeted. One of the daemon's own that was on its way may take its place before.
    for attempt in 0.. {
        let mut thief = tokio::net::UnixStream::connect(dir.join("run/s.sock")).await.unwrap();
        match thief.read_u8().await {
            Ok(_) => break,
            Err(error) => assert!(attempt < 3, "never greeted: {error}"),
        }
    }
    tokio::time::timeout(PATIENCE, guest.closed()).await.expect("the connection is still there");
}

fn reconnects() {
    let dir = Place::new(Kind::Plain);
    layers(dir.path());
    runtime().block_on(async {
        let (driver, _) = start(dir.path(), &instance(dir.path()), Kind::Plain, Vec::new()).await;
        let machine = sandbox(&driver, ORPHAN).await;
        let guest = machine.guest();
        let deaf = "echo x >> /count; head -c 64M /dev/zero > /big; trap '' TERM; echo ready; while :; do sleep 0.01; done";
        let deaf = ExecSpec { id: "deaf".to_owned(), on_detach: OnDisconnect::Keep, ..shell(deaf) };
        let mut exec = guest.exec(deaf.clone()).await.unwrap();
        while !matches!(exec.next().await.unwrap().unwrap(), ExecOutput::Output { .. }) {}
        let pack = |path: &str| PackSpec { path: path.to_owned(), ..PackSpec::default() };
        let mut packed = guest.pack(pack("/big")).await.unwrap();
        let quiesce = guest.quiesce();
        let (quiesced, ()) = tokio::join!(quiesce, async {
            // Half of the grace that it gives is over.
            tokio::time::sleep(Duration::from_millis(berth_wire::DEFAULT_GRACE_MS / 2)).await;
            steal(dir.path(), &machine).await;
        });
        assert!(matches!(quiesced, Err(Error::Gone)), "{quiesced:?}");
        assert!(matches!(exec.next().await, Some(Err(Error::Gone))));
        assert!(packed.read_to_end(&mut Vec::new()).await.is_err(), "it is not taken for a whole tar");

        // The same daemon, the same sandbox, and all that it has.
        let again = machine.reached().await;
        assert_eq!(again.info().earlier_connections, 2);
        let mut tar = Vec::new();
        again.pack(pack("/count")).await.unwrap().read_to_end(&mut tar).await.unwrap();
        assert_eq!(&tar[..5], b"count");
        let repeated = tokio::time::timeout(PATIENCE, async { finish(again.exec(deaf).await.unwrap()).await });
        let ran = repeated.await.expect("nobody kills it");
        assert_eq!((ran.out().as_str(), ran.status.exit_code), ("ready\n", 137));
        assert_eq!(out_of(&again, "cat /count").await, "x\n", "it was started once");
        assert_eq!(again.quiesce().await.unwrap(), 0);
        assert!(!again.is_closed(), "nothing came that it had not asked for");
        machine.stop().await.unwrap();
        drop((machine, guest, again));
        driver.shutdown().await;
    });
}

fn is_given_up() {
    let dir = Place::new(Kind::Plain);
    layers(dir.path());
    runtime().block_on(async {
        let (driver, _) = start(dir.path(), &instance(dir.path()), Kind::Plain, Vec::new()).await;
        let machine = sandbox(&driver, ORPHAN).await;
        for _ in 0..6 {
            steal(dir.path(), &machine).await;
        }
        let death = tokio::time::timeout(PATIENCE, machine.died()).await.expect("it is not ended");
        assert_eq!(death.how, "the connection to its guest broke 6 times within 60 s; it was ended");
        machine.stop().await.unwrap();
        drop(machine);
        driver.shutdown().await;
    });
}
