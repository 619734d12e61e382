//! Images: how fast an unchanged or slightly changed context is an image again, a cold build and a pull beside podman's,
//! and what a hundred equal requests at once come to.
//!
//! Berth is asked by its Rust client over the daemon's socket, as the command line does. podman's builder is buildah, run
//! without a container runtime (`--isolation chroot`) and with the host's network, which is the least that it can do.
//! Both build from one base, Debian bookworm, and pull it from one registry on loopback (`scripts/bench/registry.py`).
//!
//! | figure | measured |
//! |---|---|
//! | [`contexts`] | 1,000 files unchanged; 50 MB unchanged; one line changed in the last `COPY` |
//! | [`cold`] | ten steps of apt and pip with nothing cached |
//! | [`pull`] | four layers, 180 MB unpacked, into an empty store |
//! | [`together`] | equal builds at once, on an image that has to be pulled: how many builds and pulls there were |

mod cold;
mod contexts;
mod pull;
mod together;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::image::{BuildImage, BuildResult};
use berth_client::types::progress::Progress;
use berth_client::{Client, Host};
use clap::{Args, ValueEnum};

use super::daemon::{self, Daemon, Group, succeed};
use super::machine::Machine;
use super::rows::{self, Row};

/// Name of the base image at the registry.
const REMOTE: &str = "bench/debian:1";
/// Name of the base image where it is given and not pulled.
const BASE: &str = "localhost/berth-bench/debian:bookworm";

/// Arguments of `cargo xtask bench builds`.
#[derive(Args)]
pub(super) struct Builds {
    /// Measure only these; may be repeated
    #[arg(long, value_name = "FIGURE", value_enum)]
    only: Vec<Figure>,
    /// How often to build an unchanged context
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How often to build from nothing, and to pull
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Equal requests at once
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    together: u32,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Contexts that did not change, or hardly
    Contexts,
    /// apt and pip with nothing cached
    Cold,
    /// An image of a registry
    Pull,
    /// Equal requests at once
    Together,
}

/// What all figures are measured with.
struct World {
    dir: PathBuf,
    kept: PathBuf,
    binary: PathBuf,
    count: u32,
    rounds: u32,
    together: u32,
}

/// A daemon with an empty store, and its client.
struct Fresh {
    client: Client,
    daemon: Option<Daemon>,
    dir: PathBuf,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // It ends first: what it has mounted and made goes with it.
        drop(self.daemon.take());
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            progress(&format!("removing {}: {error}", self.dir.display()));
        }
    }
}

impl World {
    fn fresh(&self, name: &str) -> anyhow::Result<Fresh> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(dir.join("host")).context("making a daemon's directory")?;
        let daemon = Daemon::start(&self.binary, &dir, Group::Own)?;
        let client = Client::new(Host::parse(&daemon.host)?);
        Ok(Fresh { client, daemon: Some(daemon), dir })
    }

    fn base_tar(&self) -> PathBuf {
        self.kept.join("bookworm-base.tar")
    }

    fn registry(&self) -> anyhow::Result<Registry> {
        Registry::start(&self.base_tar(), &self.kept.join("registry"))
    }

    /// podman, with storage of its own below `name`.
    fn podman(&self, name: &str) -> Command {
        let dir = self.dir.join(name);
        let mut command = Command::new("podman");
        // Its state has to be near the root: podman takes 50 characters of it at most.
        let run = format!("/run/bb-{}-{name}", std::process::id());
        command.arg("--root").arg(dir.join("root")).arg("--runroot").arg(run);
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1").env("TMPDIR", &self.dir).stdin(Stdio::null());
        command
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // podman's layers may be mounted; its own tool knows how to take them away.
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            progress(&format!("removing {}: {error}", self.dir.display()));
        }
    }
}

/// The registry, for as long as this lives.
struct Registry {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl Registry {
    fn start(tar: &Path, dir: &Path) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/bench/registry.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(tar).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the registry")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the registry's output")?;
        BufReader::new(stdout).read_line(&mut line).context("reading the registry's port")?;
        let port = line.trim().parse().context("the registry did not start")?;
        Ok(Self { child, port, log: dir.join("requests") })
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/{REMOTE}", self.port)
    }

    /// Requests so far.
    fn requests(&self) -> anyhow::Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.log).context("reading the registry's requests")?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says on stderr what is going on.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

/// Builds a directory, as the command line does.
async fn build(
    client: &Client,
    request: &BuildImage,
    context: &Path,
    on_progress: impl FnMut(Progress),
) -> anyhow::Result<BuildResult> {
    Ok(client.build_dir(request, context, on_progress).await?)
}

/// Runs a peer's command; how long it took, in milliseconds.
fn time(command: &mut Command) -> anyhow::Result<f64> {
    let start = Instant::now();
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    let took = milliseconds(start);
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        error.lines().last().unwrap_or("")
    );
    Ok(took)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Measures; returns what is to be printed, and the rows.
pub(super) fn run(root: &Path, arguments: &Builds) -> anyhow::Result<(String, Vec<Row>)> {
    let machine = Machine::read();
    progress(&format!("load {:.2} on {} cores", machine.load, machine.cores));
    if let Some(warning) = machine.warning() {
        progress(&format!("WARNING: {warning}"));
    }
    let kept = super::kept_dir();
    succeed(Command::new(root.join("scripts/bench/debian.sh")).arg(&kept))?;
    let world = World {
        dir: kept.join(format!("builds-{}", std::process::id())),
        kept,
        binary: daemon::binary(root)?,
        count: arguments.count,
        rounds: arguments.rounds,
        together: arguments.together,
    };
    std::fs::create_dir_all(&world.dir).context("making the benchmark's directory")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
    let chosen = |figure| arguments.only.is_empty() || arguments.only.contains(&figure);
    let mut measured = Vec::new();
    if chosen(Figure::Contexts) {
        measured.extend(runtime.block_on(contexts::measure(&world))?);
    }
    if chosen(Figure::Cold) {
        measured.extend(runtime.block_on(cold::measure(&world))?);
    }
    if chosen(Figure::Pull) {
        measured.extend(runtime.block_on(pull::measure(&world))?);
    }
    if chosen(Figure::Together) {
        measured.extend(runtime.block_on(together::measure(&world))?);
    }
    drop(world);
    Ok((rows::markdown(&measured), measured))
}
