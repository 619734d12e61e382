//! Slots that come and go for a while, beside others that stay.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use berth_net::{
    Mode, NamespaceMaker, Namespaces, Network, Options, PoolSizes, Slot, SlotSpec, UserNamespace,
};
use berth_sys::netns;

const SPAN: Duration = Duration::from_secs(4);
/// Sandboxes that are being made at the same time, flat out.
const CALLERS: usize = 4;
/// New sandboxes a second, at a steady pace; each stays for a tenth of a second.
const PACES: [u32; 3] = [50, 100, 200];
const STAY: Duration = Duration::from_millis(100);
const COUNT: u32 = 65_536;
const FIRST: u32 = 1_073_741_824;

/// Measures in a namespace of its own for each kind of slot: `live` at once, and beside them, if `on`, others that come
/// and go.
pub(crate) fn run(live: usize, on: bool) -> io::Result<()> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load.trim());
    println!("{live} slots in use");
    for mode in [Mode::NoNetwork, Mode::Public] {
        for user_namespace in [false, true] {
            let (host, ()) = netns::create(|| Ok(()))?;
            netns::run_in(host.as_fd(), || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build()?;
                let task = measure(SlotSpec { mode, user_namespace }, live, on);
                runtime.block_on(task).map_err(io::Error::other)
            })?;
        }
    }
    Ok(())
}

async fn measure(spec: SlotSpec, live: usize, on: bool) -> Result<(), berth_net::Error> {
    let what = format!("{:?}{}", spec.mode, if spec.user_namespace { " with user namespace" } else { "" });
    let network = Arc::new(start(spec).await?);
    let (descriptors, begin) = (descriptors(), Instant::now());
    let lives = attach_many(&network, spec, live).await?;
    if live > 0 {
        let each = (self::descriptors() - descriptors) as f64 / live as f64;
        println!("  {what}: {live} at once in {:.2?}, {each:.2} descriptors each", begin.elapsed());
    }
    if on {
        come_and_go(&network, spec, &what).await?;
    }
    let begin = Instant::now();
    drop(lives);
    network.shutdown().await?;
    println!("  {what}: all removed in {:.2?}", begin.elapsed());
    Ok(())
}

async fn come_and_go(network: &Arc<Network>, spec: SlotSpec, what: &str) -> Result<(), berth_net::Error> {
    let (done, begin) = (Arc::new(AtomicUsize::new(0)), (Instant::now(), cpu()));
    let callers: Vec<_> =
        (0..CALLERS).map(|_| tokio::spawn(flat_out(Arc::clone(network), spec, Arc::clone(&done)))).collect();
    for caller in callers {
        caller.await.map_err(|_| berth_net::Error::Stopped)??;
    }
    report(&format!("{what} flat out"), done.load(Ordering::SeqCst), begin);
    for pace in PACES {
        let (before, begin) = (network.pool(spec.mode), (Instant::now(), cpu()));
        let times = steady(network, spec, pace).await?;
        report(&format!("{what} at {pace}/s"), times.len(), begin);
        crate::print(&format!("{what} at {pace}/s attach"), times);
        let after = network.pool(spec.mode);
        println!("    hits {}, misses {}", after.hits - before.hits, after.misses - before.misses);
    }
    Ok(())
}

async fn start(spec: SlotSpec) -> Result<Network, berth_net::Error> {
    let maker: Arc<dyn NamespaceMaker> = Arc::new(Unshare::default());
    let options = Options {
        instance: "gauge".to_owned(),
        range: "172.30.0.0/17".parse().ok(),
        pool: PoolSizes::default(),
        maker: spec.user_namespace.then_some(maker),
        ..Options::default()
    };
    Network::start(options).await
}

async fn attach_many(
    network: &Arc<Network>,
    spec: SlotSpec,
    count: usize,
) -> Result<Vec<Slot>, berth_net::Error> {
    let attach = |_| {
        let network = Arc::clone(network);
        tokio::spawn(async move { network.attach(spec).await })
    };
    let calls: Vec<_> = (0..count).map(attach).collect();
    let mut slots = Vec::new();
    for call in calls {
        slots.push(call.await.map_err(|_| berth_net::Error::Stopped)??);
    }
    Ok(slots)
}

async fn flat_out(
    network: Arc<Network>,
    spec: SlotSpec,
    done: Arc<AtomicUsize>,
) -> Result<(), berth_net::Error> {
    let end = Instant::now() + SPAN;
    while Instant::now() < end {
        drop(network.attach(spec).await?);
        done.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// How long each of the attaches took.
async fn steady(
    network: &Arc<Network>,
    spec: SlotSpec,
    pace: u32,
) -> Result<Vec<Duration>, berth_net::Error> {
    let (mut ticks, end) = (tokio::time::interval(Duration::from_secs(1) / pace), Instant::now() + SPAN);
    let mut calls = Vec::new();
    while Instant::now() < end {
        ticks.tick().await;
        let network = Arc::clone(network);
        calls.push(tokio::spawn(async move {
            let begin = Instant::now();
            let slot = network.attach(spec).await?;
            let time = begin.elapsed();
            tokio::time::sleep(STAY).await;
            drop(slot);
            Ok::<_, berth_net::Error>(time)
        }));
    }
    let mut times = Vec::new();
    for call in calls {
        times.push(call.await.map_err(|_| berth_net::Error::Stopped)??);
    }
    Ok(times)
}

fn report(what: &str, count: usize, (begin, cpu_begin): (Instant, Duration)) {
    let rate = count as f64 / begin.elapsed().as_secs_f64();
    let each = (cpu() - cpu_begin) / u32::try_from(count).unwrap_or(u32::MAX).max(1);
    println!("  {what}: {rate:.0}/s, {each:.2?} of processor each");
}

/// Time on a processor of this process and of its children that have ended, of which a tick is 10 ms. What the kernel
/// does behind a closed namespace is not in it.
fn cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // utime stime cutime cstime, of the fields from the state on
    let ticks = after_name.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Makes namespaces by unshare(1).
#[derive(Default)]
struct Unshare(AtomicU32);

impl NamespaceMaker for Unshare {
    fn make(&self) -> io::Result<Namespaces> {
        let first = FIRST + COUNT * (self.0.fetch_add(1, Ordering::SeqCst) % 16_000);
        let mut child = Command::new("unshare")
            .args(["--user", "--net", "sh", "-c", "echo; read end"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let opened = open_namespaces(&mut child, first);
        child.kill()?;
        child.wait()?;
        let (net, fd) = opened?;
        Ok(Namespaces { net, user: Some(UserNamespace { fd, first, count: COUNT, lease: Box::new(()) }) })
    }
}

fn open_namespaces(child: &mut Child, first: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let said = child.stdout.as_mut().ok_or_else(|| io::Error::other("no pipe"))?.read_exact(&mut [0]);
    said?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), format!("0 {first} {COUNT}"))?;
    }
    let open = |name| fs::File::open(proc.join("ns").join(name)).map(OwnedFd::from);
    Ok((open("net")?, open("user")?))
}
