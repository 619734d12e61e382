//! How long attaching and detaching take, one at a time and a hundred at once, and what a slot costs the kernel.
//!
//! `cargo run --release -p berth-net --example measure`, as root. Everything happens in a network namespace of its
//! own; the machine's tables are not touched.
//!
//! `measure sustained [LIVE]` measures how many slots a second come and go while LIVE others are in use, flat out and at
//! a steady pace; `measure burst COUNT` how long it takes until COUNT that are asked for at once are there. The user namespaces are made by unshare(1) there, which takes longer than a daemon's own launcher.

#[path = "measure/sustained.rs"]
mod sustained;

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_net::{Mode, Network, Options, PoolSizes, SlotSpec};
use berth_sys::netns;

const SEQUENTIAL: u32 = 200;
const BURST: u32 = 100;
/// What a sandbox does meanwhile: sequential attaches without a pause would only measure how fast slots are made.
const WORK: Duration = Duration::from_millis(5);
const INSTANCE: &str = "gauge";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let Some(what) = arguments.first() {
        let count = arguments.get(1).map_or(Ok(0), |count| count.parse())?;
        return match what.as_str() {
            "sustained" => Ok(sustained::run(count, true)?),
            "burst" => Ok(sustained::run(count, false)?),
            other => Err(format!("{other} is neither sustained nor burst").into()),
        };
    }
    let off = PoolSizes { isolated: 0, connected: 0, most: 0 };
    for (name, pool) in [("off", off), ("on", PoolSizes::default())] {
        let (host, ()) = netns::create(|| Ok(()))?;
        netns::run_in(host.as_fd(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            runtime.block_on(measure(name, pool)).map_err(io::Error::other)
        })?;
    }
    Ok(())
}

async fn measure(name: &str, pool: PoolSizes) -> Result<(), berth_net::Error> {
    println!("pool {name}");
    one_sandbox(pool).await?;
    let network = Arc::new(start(pool).await?);
    for mode in [Mode::NoNetwork, Mode::Public] {
        sequential(&network, mode).await?;
        // The second burst finds what the first one made the pool grow to.
        for _ in 0..2 {
            burst(&network, mode).await?;
        }
    }
    let start = Instant::now();
    network.shutdown().await?;
    println!("  shutdown {:.1?}", start.elapsed());
    Ok(())
}

async fn start(pool: PoolSizes) -> Result<Network, berth_net::Error> {
    let range = "172.30.0.0/17".parse().ok();
    Network::start(Options { instance: INSTANCE.to_owned(), range, pool, ..Options::default() }).await
}

/// What a daemon that is started for one sandbox waits for.
async fn one_sandbox(pool: PoolSizes) -> Result<(), berth_net::Error> {
    let (mut starts, mut attaches, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let begin = Instant::now();
        let network = start(pool).await?;
        starts.push(begin.elapsed());
        let begin = Instant::now();
        let slot = network.attach(plain(Mode::Public)).await?;
        attaches.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(slot);
        let begin = Instant::now();
        network.shutdown().await?;
        ends.push(begin.elapsed());
    }
    print("start", starts);
    print("first attach", attaches);
    print("shutdown after one slot", ends);
    Ok(())
}

async fn sequential(network: &Network, mode: Mode) -> Result<(), berth_net::Error> {
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for _ in 0..SEQUENTIAL {
        let start = Instant::now();
        let slot = network.attach(plain(mode)).await?;
        attach.push(start.elapsed());
        tokio::time::sleep(WORK).await;
        let start = Instant::now();
        drop(slot);
        detach.push(start.elapsed());
    }
    print(&format!("{mode:?} sequential attach"), attach);
    print(&format!("{mode:?} sequential drop"), detach);
    Ok(())
}

async fn burst(network: &Arc<Network>, mode: Mode) -> Result<(), berth_net::Error> {
    settle(network, mode).await;
    let memory = kernel_memory();
    let begin = Instant::now();
    let calls: Vec<_> = (0..BURST).map(|_| tokio::spawn(attach(Arc::clone(network), mode, begin))).collect();
    let (mut slots, mut times) = (Vec::new(), Vec::new());
    for call in calls {
        let (slot, time) = call.await.map_err(|_| berth_net::Error::Stopped)??;
        slots.push(slot);
        times.push(time);
    }
    let all = begin.elapsed();
    print(&format!("{mode:?} burst attach, all in {all:.1?}"), times);
    println!("  kernel memory {} KiB more (slab, per-cpu)", kernel_memory().saturating_sub(memory));
    let kept = network.pool(mode).ready;
    let start = Instant::now();
    drop(slots);
    while mode == Mode::Public && links() > network.pool(mode).target.max(kept) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("  {mode:?} burst: all links gone {:.1?} after the drop", start.elapsed());
    Ok(())
}

async fn attach(
    network: Arc<Network>,
    mode: Mode,
    begin: Instant,
) -> Result<(berth_net::Slot, Duration), berth_net::Error> {
    let slot = network.attach(plain(mode)).await?;
    Ok((slot, begin.elapsed()))
}

/// Waits until the pool is full and the kernel has done what it does behind closed namespaces.
async fn settle(network: &Network, mode: Mode) {
    while network.pool(mode).ready < network.pool(mode).target {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

fn links() -> usize {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    table.matches(&format!("bth{INSTANCE}-")).count()
}

fn kernel_memory() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines = table.lines().filter(|l| l.starts_with("Slab:") || l.starts_with("Percpu:"));
    lines.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// Median and worst of a hundred.
fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    println!("  {what}: p50 {:.3?} p99 {:.3?}", at(50), at(99));
}

fn plain(mode: Mode) -> SlotSpec {
    SlotSpec { mode, user_namespace: false }
}
