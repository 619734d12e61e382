//! Sandboxes by themselves: Berth through its API, beside podman, runc, crun and bubblewrap, and beside a floor: a
//! program of ours that makes the same kernel objects by bare system calls and nothing else (`tests/floor`).
//!
//! All of it in one run on one machine, from one image, with the same limits. A peer that does not run here is a row
//! that says why. Figures and their targets, by module:
//!
//! * [`sequential`]: create → `echo ok` → delete, one after the other, without and with network; its parts;
//! * [`load`]: a hundred at once; ten thousand beside a thousand idle ones;
//! * [`idle`]: what a sandbox costs that does nothing;
//! * [`limits`]: how exact those of memory and processor are;
//! * [`neighbour`]: what a sandbox feels of one that misbehaves;
//! * [`commands`]: commands in a sandbox that is there, one and very many;
//! * [`bulk`]: output and files by the gigabyte and by the thousand;
//! * [`durable`]: execs while connections are cut and the daemon is killed.
//!
//! Everything made here is removed at the end, on failure and on Ctrl-C ([`place`]).

mod berth;
mod bulk;
mod commands;
mod durable;
mod idle;
mod limits;
mod load;
mod neighbour;
mod peers;
mod place;
mod sequential;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use berth_client::{Client, Host};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::daemon::{self, Daemon, Group};
use super::machine::Machine;
use super::rows::{self, Row};
use peers::Peer;
use place::Place;

/// For what runs when Ctrl-C comes.
const LAST_COMMAND: Duration = Duration::from_secs(60);

/// Arguments of `cargo xtask bench engine`.
#[derive(Args)]
pub(super) struct Engine {
    /// Measure only these; may be repeated
    #[arg(long, value_name = "FIGURE", value_enum)]
    only: Vec<Figure>,
    /// Compare with these peers only; may be repeated
    #[arg(long, value_name = "PEER", value_enum)]
    peer: Vec<Peer>,
    /// How often Berth and the floor go from create to delete; slower peers less often
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Idle sandboxes that the sustained rate is measured beside
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// Sandboxes of the sustained rate
    #[arg(long, value_name = "N")]
    cycles: Option<usize>,
    /// Execs while connections are cut and the daemon is killed
    #[arg(long, value_name = "N")]
    durable: Option<usize>,
    /// Fewer of everything, in two minutes: to see that it works, not for figures to be quoted
    #[arg(long)]
    quick: bool,
    /// A tar of the root file system to use, for example Debian's, in place of one of the machine's own busybox
    #[arg(long, value_name = "TAR")]
    rootfs: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Create, run, delete, one after the other
    Sequential,
    /// The same with network
    Network,
    /// A hundred at once
    Burst,
    /// The rate beside many idle sandboxes
    Sustained,
    /// What an idle sandbox costs
    Idle,
    /// How exact limits are
    Limits,
    /// What is felt of a neighbour
    Neighbour,
    /// Commands in a sandbox that is there
    Exec,
    /// Very many commands at once
    Crowd,
    /// 1 GiB of output
    Output,
    /// Files both ways
    Files,
    /// Commands while connections are cut and the daemon is killed
    Durable,
}

/// What all figures are measured with.
struct World {
    place: Place,
    client: Client,
    daemon_pid: u32,
    floor: PathBuf,
    machine: Machine,
    peers: Vec<Peer>,
    /// Why podman has no image, where it has none.
    podman: Result<(), String>,
    count: u32,
    bursts: u32,
    idle: usize,
    cycles: usize,
    resident: usize,
    limits: u32,
    files: u32,
    neighbour_time: Duration,
    durable: usize,
    berth: PathBuf,
    host: String,
}

impl World {
    /// A command of Berth's for the daemon that is measured.
    fn berth(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.berth);
        command.args(arguments).env("BERTH_HOST", &self.host).stdin(Stdio::null());
        command
    }

    fn podman_image(&self, peer: Peer) -> Result<(), String> {
        match peer {
            Peer::PodmanRunc | Peer::PodmanCrun => self.podman.clone(),
            Peer::Runc | Peer::Crun | Peer::Bwrap => Ok(()),
        }
    }
}

/// Says on stderr what is going on.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// Measures; returns what is to be printed, and the rows.
pub(super) fn run(root: &Path, arguments: &Engine) -> anyhow::Result<(String, Vec<Row>)> {
    let machine = Machine::read();
    progress(&format!("load {:.2} on {} cores", machine.load, machine.cores));
    if let Some(warning) = machine.warning() {
        progress(&format!("WARNING: {warning}"));
    }
    // Before there are threads.
    place::own_mounts()?;
    let binary = daemon::binary(root)?;
    let floor = daemon::built(root, "berth-floor")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
    // From here on signals no longer end this process, so that it can clean up.
    let guard = runtime.enter();
    let signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    drop(guard);
    let place = Place::make(&super::kept_dir(), arguments.rootfs.as_deref(), &binary)?;
    let daemon = Daemon::start(&binary, &place.dir, Group::Own)?;
    daemon.give_image(berth::IMAGE, &place.tar())?;
    let client = Client::new(Host::parse(&daemon.host)?);
    let versions = versions(&daemon)?;
    let world = World::new(place, client, &daemon, floor, binary, machine, arguments);
    let header = header(&world, &versions, arguments, &runtime.block_on(disk(&world)));
    progress(&header);
    let measured = runtime.block_on(interruptible(measure(&world, root, &arguments.only), signals));
    // A command that is timed at this moment ends first; the daemon next, and with it all sandboxes; files last.
    runtime.shutdown_timeout(LAST_COMMAND);
    drop(daemon);
    drop(world);
    let rows = measured?;
    Ok((format!("{header}\n\n{}", rows::markdown(&rows)), rows))
}

impl World {
    fn new(
        place: Place,
        client: Client,
        daemon: &Daemon,
        floor: PathBuf,
        binary: PathBuf,
        machine: Machine,
        arguments: &Engine,
    ) -> Self {
        let pick = |full, quick| if arguments.quick { quick } else { full };
        let all = Peer::value_variants().to_vec();
        let podman = podman_image(&place);
        Self {
            place,
            client,
            daemon_pid: daemon.pid(),
            floor,
            machine,
            peers: if arguments.peer.is_empty() { all } else { arguments.peer.clone() },
            podman,
            count: arguments.count.unwrap_or(pick(500, 60)),
            bursts: pick(5, 2),
            idle: arguments.idle.unwrap_or(if arguments.quick { 100 } else { 1000 }),
            cycles: arguments.cycles.unwrap_or(if arguments.quick { 500 } else { 10_000 }),
            resident: if arguments.quick { 100 } else { 500 },
            limits: pick(3, 1),
            files: pick(1_000_000, 20_000),
            neighbour_time: Duration::from_secs(pick(10, 3).into()),
            durable: arguments.durable.unwrap_or(if arguments.quick { 2000 } else { 100_000 }),
            berth: binary,
            host: daemon.host.clone(),
        }
    }
}

async fn interruptible<T>(
    work: impl Future<Output = anyhow::Result<T>>,
    [mut interrupt, mut terminate]: [Signal; 2],
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => anyhow::bail!("interrupted"),
        _ = terminate.recv() => anyhow::bail!("told to end"),
    }
}

async fn measure(world: &World, root: &Path, only: &[Figure]) -> anyhow::Result<Vec<Row>> {
    let wanted = |figure| only.is_empty() || only.contains(&figure);
    let mut rows = Vec::new();
    let beside_floor = [Figure::Sequential, Figure::Network, Figure::Burst].into_iter().any(wanted);
    // Both others are told beside this one.
    let plain = if beside_floor { Some(sequential::measure(world, false).await) } else { None };
    if let Some(plain) = plain.as_ref().filter(|_| wanted(Figure::Sequential)) {
        rows.extend(plain.rows(None));
    }
    if wanted(Figure::Network) {
        rows.extend(sequential::measure(world, true).await.rows(plain.as_ref()));
    }
    if wanted(Figure::Burst) {
        let floor = plain.as_ref().and_then(|plain| plain.floor.p50());
        rows.extend(load::burst(world, floor).await);
    }
    if wanted(Figure::Sustained) {
        rows.extend(load::sustained(world).await);
    }
    if wanted(Figure::Idle) {
        rows.extend(idle::cost(world).await);
    }
    if wanted(Figure::Limits) {
        rows.extend(limits::accuracy(world).await);
    }
    if wanted(Figure::Neighbour) {
        rows.extend(neighbour::neighbours(world).await);
    }
    if wanted(Figure::Exec) {
        rows.extend(commands::single(world, root).await);
    }
    if wanted(Figure::Output) {
        rows.extend(bulk::output(world).await);
    }
    if wanted(Figure::Files) {
        rows.extend(bulk::files(world).await);
    }
    // After those that tell of the daemon's memory, of which it keeps some.
    if wanted(Figure::Crowd) {
        rows.extend(commands::crowds(world).await);
    }
    if wanted(Figure::Durable) {
        rows.extend(durable::execs(world, &world.berth).await);
    }
    Ok(rows)
}

/// Gives podman the image; why not, where that fails.
fn podman_image(place: &Place) -> Result<(), String> {
    let mut argv = peers::podman(place);
    argv.extend(["import".to_owned(), place.tar().display().to_string(), peers::PODMAN_IMAGE.to_owned()]);
    let output = Command::new(&argv[0]).args(&argv[1..]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            Err(format!(
                "podman import: {}: {}",
                output.status,
                error.lines().last().unwrap_or("it said nothing")
            ))
        }
        Err(error) => Err(format!("podman cannot be started: {error}")),
    }
}

/// Whose figures these are. A program that is not there is none of them; its rows say so.
fn versions(daemon: &Daemon) -> anyhow::Result<Vec<String>> {
    let mut versions = vec![format!("berth {}", daemon.version()?)];
    for program in ["podman", "runc", "crun", "bwrap"] {
        let Ok(output) = Command::new(program).arg("--version").stdin(Stdio::null()).output() else {
            continue;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.lines().next().and_then(|line| line.split_whitespace().last());
        versions.extend(version.map(|version| format!("{program} {version}")));
    }
    Ok(versions)
}

/// What the daemon says of its disk.
async fn disk(world: &World) -> String {
    match world.client.doctor().await {
        Ok(report) => {
            let check = report.checks.into_iter().find(|check| check.name == "disk");
            check.map_or("disk engine unknown".to_owned(), |check| check.found)
        }
        Err(error) => format!("disk engine unknown: {error}"),
    }
}

fn header(world: &World, versions: &[String], arguments: &Engine, disk: &str) -> String {
    let Machine { cpu, cores, kernel, memory_mib, cgroups, load } = &world.machine;
    let busy = if world.machine.busy() { " (busy: these figures are not to be relied on)" } else { "" };
    let quick = if arguments.quick { " --quick (not for figures to be quoted)" } else { "" };
    let image = match &arguments.rootfs {
        Some(tar) => tar.display().to_string(),
        None => "static busybox".to_owned(),
    };
    format!(
        "`cargo xtask bench engine`{quick}: {cores} cores of {cpu}, {memory_mib} MiB, Linux {kernel}, cgroup {cgroups}, load \
         {load:.2} at the start{busy}; disk: {disk}; image: {image}; {}. Every sandbox has limits of {} MB of memory, {} \
         processor and {} processes.",
        versions.join(", "),
        peers::MEMORY_MB,
        peers::CPUS,
        peers::PIDS,
    )
}
