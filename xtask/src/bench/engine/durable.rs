//! Execs while connections are cut and the daemon is killed: no wrong status, no command run twice, no byte lost.
//!
//! A daemon of its own, which is killed with SIGKILL and started again every few seconds, behind a relay that cuts
//! connections at random. Every command appends its number to a file in its sandbox, writes a text that can be told from
//! its number, and exits with a code that can be. In the end the files say what ran, and how often.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_client::types::sandbox::NetworkMode;
use berth_client::{Client, Host};
use futures_util::{StreamExt as _, stream};
use tokio::net::{UnixListener, UnixStream};

use super::super::daemon::{Daemon, Group};
use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{IMAGE, argv, delete, idle, request};
use super::{World, progress};

const SANDBOXES: usize = 8;
const AT_ONCE: usize = 32;
/// Between two kills of the daemon.
const KILL_EVERY: Duration = Duration::from_secs(4);
/// Of so many connections one is cut, after so many bytes at most.
const CUT_ONE_IN: u64 = 20;
const CUT_WITHIN: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(120);
/// Which of the commands write more than a pipe holds.
const LONG_ONE_IN: usize = 50;

/// See the module's documentation.
pub(super) async fn execs(world: &World, binary: &Path) -> Vec<Row> {
    let count = world.durable;
    let figure = format!("{count} execs, connections and daemon killed: wrong, repeated or lost");
    match run(world, binary, count).await {
        Ok(rows) => rows,
        Err(error) => {
            let target = Target::value(Bound::AtMost(0.0));
            vec![Row::not_measured(figure, "execs", format!("{error:#}")).asked(target)]
        }
    }
}

async fn run(world: &World, binary: &Path, count: usize) -> anyhow::Result<Vec<Row>> {
    progress(&format!("{count} execs while connections are cut and the daemon is killed"));
    let dir = world.place.dir.join("durable");
    std::fs::create_dir_all(dir.join("host"))?;
    let keeper = Keeper::start(binary, &dir)?;
    keeper.with(|daemon| daemon.give_image(IMAGE, &world.place.tar()))??;
    let relay = dir.join("host/relay.sock");
    let cuts = Arc::new(AtomicU64::new(0));
    let relaying = tokio::spawn(relay_to(relay.clone(), dir.join("host/berth.sock"), Arc::clone(&cuts)));
    let client = Client::new(Host::Unix(relay)).with_patience(PATIENCE);
    let direct = Client::new(Host::Unix(dir.join("host/berth.sock"))).with_patience(PATIENCE);
    let mut wanted = request(NetworkMode::NoNetwork);
    wanted.resources.memory_mb = Some(256);
    wanted.resources.pids = Some(1024);
    let sandboxes = idle(&direct, &wanted, SANDBOXES, 4).await?;
    let over = Arc::new(AtomicBool::new(false));
    let killing = std::thread::spawn({
        let (keeper, over) = (keeper.clone(), Arc::clone(&over));
        move || keeper.kill_again_and_again(&over)
    });
    let start = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let each = (0..count).map(|number| {
        let (client, sandbox) = (client.clone(), sandboxes[number % SANDBOXES].id.clone());
        let done = Arc::clone(&done);
        async move {
            let ran = tokio::spawn(async move { one(&client, &sandbox, number).await }).await;
            let so_far = done.fetch_add(1, Ordering::Relaxed) + 1;
            if so_far.is_multiple_of(5000) {
                progress(&format!("{so_far} execs"));
            }
            ran?
        }
    });
    let ran: Vec<anyhow::Result<f64>> = stream::iter(each).buffer_unordered(AT_ONCE).collect().await;
    let took = start.elapsed();
    over.store(true, Ordering::Relaxed);
    let kills = killing.join().map_err(|_| anyhow::anyhow!("the thread that kills daemons"))??;
    relaying.abort();
    let mut wrong = Samples::default();
    let mut each = Samples::default();
    for one in ran {
        match one {
            Ok(milliseconds) => each.values.push(milliseconds),
            Err(error) => wrong.fail(&error),
        }
    }
    let (repeated, missing) = ran_as_asked(&direct, &sandboxes, count).await?;
    delete(&direct, &sandboxes, 4).await?;
    let faults = wrong.failures + repeated + missing;
    let note = format!(
        "{kills} kills of the daemon, {} cuts; {} failed or wrong, {repeated} run twice, {missing} never run{}",
        cuts.load(Ordering::Relaxed),
        wrong.failures,
        wrong.error.map(|error| format!("; first: {error}")).unwrap_or_default(),
    );
    #[expect(clippy::cast_precision_loss, reason = "never so many execs")]
    let (faults, per_second) = (faults as f64, count as f64 / took.as_secs_f64());
    let row = Samples::of(vec![faults])
        .row(format!("{count} execs, connections and daemon killed: wrong, repeated or lost"), "execs")
        .asked(Target::value(Bound::AtMost(0.0)))
        .noted(note);
    Ok(vec![
        Row { n: count, per_second: Some(per_second), ..row },
        each.row(format!("{count} execs, connections and daemon killed: each"), "ms"),
    ])
}

/// What command `number` writes.
fn text(number: usize) -> String {
    let times = if number.is_multiple_of(LONG_ONE_IN) { 30_000 } else { number % 7 };
    format!("{number}\n").repeat(times)
}

async fn one(client: &Client, sandbox: &str, number: usize) -> anyhow::Result<f64> {
    let (times, code) = (text(number).lines().count(), number % 256);
    let script = format!(
        "echo {number} >> /ran; i=0; while [ $i -lt {times} ]; do echo {number}; i=$((i+1)); done; exit {code}"
    );
    let start = Instant::now();
    let mut wanted = argv(&["sh", "-c", &script]);
    wanted.id = Some(format!("n{number}"));
    let ran = client.exec_collect(sandbox, &wanted).await.with_context(|| format!("exec {number}"))?;
    let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
    anyhow::ensure!(usize::try_from(ran.status.exit_code) == Ok(code), "exec {number}: {:?}", ran.status);
    anyhow::ensure!(
        ran.stdout == text(number).as_bytes(),
        "exec {number}: {} bytes of output",
        ran.stdout.len()
    );
    anyhow::ensure!(ran.stderr.is_empty(), "exec {number} said {:?}", String::from_utf8_lossy(&ran.stderr));
    Ok(milliseconds)
}

/// How many ran more than once, and how many never.
async fn ran_as_asked(
    client: &Client,
    sandboxes: &[berth_client::types::sandbox::Sandbox],
    count: usize,
) -> anyhow::Result<(usize, usize)> {
    let mut times = BTreeMap::<usize, usize>::new();
    for sandbox in sandboxes {
        let ran = client.exec_collect(&sandbox.id, &argv(&["cat", "/ran"])).await?;
        for line in String::from_utf8_lossy(&ran.stdout).lines() {
            *times.entry(line.parse()?).or_default() += 1;
        }
    }
    let repeated = times.values().filter(|times| **times > 1).count();
    Ok((repeated, count - times.len().min(count)))
}

/// A daemon that can be killed and started again by several threads.
#[derive(Clone)]
struct Keeper {
    daemon: Arc<std::sync::Mutex<Option<Daemon>>>,
    binary: PathBuf,
    dir: PathBuf,
}

impl Keeper {
    fn start(binary: &Path, dir: &Path) -> anyhow::Result<Self> {
        let daemon = Daemon::start(binary, dir, Group::Own)?;
        let daemon = Arc::new(std::sync::Mutex::new(Some(daemon)));
        Ok(Self { daemon, binary: binary.to_owned(), dir: dir.to_owned() })
    }

    fn with<T>(&self, call: impl FnOnce(&Daemon) -> T) -> anyhow::Result<T> {
        let daemon = self.daemon.lock().map_err(|_| anyhow::anyhow!("the daemon's lock"))?;
        Ok(call(daemon.as_ref().context("no daemon")?))
    }

    /// Until `over`; how often.
    fn kill_again_and_again(&self, over: &AtomicBool) -> anyhow::Result<usize> {
        let mut kills = 0;
        loop {
            let next = Instant::now() + KILL_EVERY;
            while Instant::now() < next {
                if over.load(Ordering::Relaxed) {
                    return Ok(kills);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut slot = self.daemon.lock().map_err(|_| anyhow::anyhow!("the daemon's lock"))?;
            slot.take().context("no daemon")?.kill()?;
            *slot = Some(Daemon::start(&self.binary, &self.dir, Group::Own)?);
            kills += 1;
        }
    }
}

/// Passes bytes on, and cuts connections at random.
async fn relay_to(socket: PathBuf, daemon: PathBuf, cuts: Arc<AtomicU64>) -> anyhow::Result<()> {
    let listener = UnixListener::bind(&socket)?;
    // As random as it need be, and the same each time.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    loop {
        let (mut from, _) = listener.accept().await?;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (cut, after) = ((random >> 33).is_multiple_of(CUT_ONE_IN), (random >> 40) % CUT_WITHIN);
        let (daemon, cuts) = (daemon.clone(), Arc::clone(&cuts));
        tokio::spawn(async move {
            // Without a daemon the client finds a connection that ends at once.
            let Ok(mut to) = UnixStream::connect(&daemon).await else { return };
            if !cut {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                return;
            }
            cuts.fetch_add(1, Ordering::Relaxed);
            let (mut read, mut write) = from.split();
            let (back, forth) = to.split();
            let mut back = tokio::io::AsyncReadExt::take(back, after);
            let mut forth = forth;
            tokio::select! {
                _ = tokio::io::copy(&mut read, &mut forth) => {}
                _ = tokio::io::copy(&mut back, &mut write) => {}
            }
        });
    }
}
