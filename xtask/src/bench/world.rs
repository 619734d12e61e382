//! Where the benchmark runs: the peers' root, Berth's daemon, and the driver that times commands inside.
//!
//! `${BERTH_BENCH_DIR:-/var/tmp/berth-bench}` is kept from run to run:
//!
//! | here | inside the root | what it is |
//! |---|---|---|
//! | `root/` | `/` | Debian with Harbor and podman, by `scripts/bench/root.sh` |
//! | `bookworm.tar` | `/bench/bookworm.tar` | the base image, for podman and for Berth |
//! | `berth/` | | the data directory of Berth's daemon |
//! | `host/` | `/bench/host` | the daemon's socket |
//! | `jobs/` | `/bench/jobs` | results, emptied at the start |
//!
//! Everything that is started here ends with [`World`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Deserialize;

use crate::cargo;
use serde_json::json;

use super::figures::{JOBS, TASKS};

const DEFAULT_DIR: &str = "/var/tmp/berth-bench";
/// A command that takes longer is ended, and is no figure.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(900);
/// For the daemon to answer, and for what was started to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Should this process be killed, the daemon ends by itself. Longer than anything that does not use it.
const IDLE_EXIT: &str = "1800";
const SOCKET_INSIDE: &str = "unix:///bench/host/berth.sock";

/// See the module's documentation.
pub(super) struct World {
    pub(super) versions: BTreeMap<String, String>,
    dir: PathBuf,
    jobs: u32,
    // In the order of ending.
    driver: Driver,
    _daemon: Option<Daemon>,
}

/// A command that succeeded.
pub(super) struct Done {
    pub(super) seconds: f64,
    /// The end of what it printed.
    pub(super) output: String,
}

impl World {
    /// Makes what is missing and starts everything.
    pub(super) fn prepare(checkout: &Path, with_berth: bool) -> anyhow::Result<Self> {
        let dir = PathBuf::from(std::env::var_os("BERTH_BENCH_DIR").unwrap_or_else(|| DEFAULT_DIR.into()));
        let scripts = checkout.join("scripts/bench");
        succeed(Command::new(scripts.join("root.sh")).arg(&dir))?;
        let jobs = dir.join("jobs");
        if jobs.exists() {
            std::fs::remove_dir_all(&jobs).with_context(|| format!("removing {}", jobs.display()))?;
        }
        for made in [&jobs, &dir.join("host")] {
            std::fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
        }
        let mut daemon = None;
        let mut ours = None;
        if with_berth {
            let berth = binary(checkout)?;
            install(checkout, &berth, &dir)?;
            let started = Daemon::start(&berth, &dir)?;
            ours = Some(
                started.give_base(&dir)? + if given().is_some() { " (a binary that was given)" } else { "" },
            );
            daemon = Some(started);
        }
        let (driver, mut versions) = Driver::start(checkout, &dir)?;
        versions.extend(ours.map(|version| ("berth".to_owned(), version)));
        Ok(Self { versions, dir, jobs: 0, driver, _daemon: daemon })
    }

    /// A name that no job has yet.
    pub(super) fn next_job(&mut self) -> String {
        self.jobs += 1;
        format!("job-{}", self.jobs)
    }

    /// Where a job's results are.
    pub(super) fn job_dir(&self, job: &str) -> PathBuf {
        self.dir.join("jobs").join(job)
    }

    /// Runs a command inside, to its success.
    pub(super) fn time(&mut self, command: &[String]) -> anyhow::Result<Done> {
        self.driver.time(command)
    }

    /// Ends everything in order, and tells what did not end well.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.driver.end()
    }
}

/// Runs a command of the set-up, its output on stderr.
fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("running {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The binary that `BERTH` names. Figures must not pass for those of the optimised one.
fn given() -> Option<PathBuf> {
    std::env::var_os("BERTH").map(PathBuf::from)
}

/// The berth to measure: the one that was given, else the optimised one, built now.
fn binary(checkout: &Path) -> anyhow::Result<PathBuf> {
    if let Some(given) = given() {
        return Ok(given);
    }
    succeed(cargo::command().args(["build", "--release", "--locked", "-p", "berth"]).current_dir(checkout))?;
    Ok(target_dir(checkout)?.join("release/berth"))
}

#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
}

fn target_dir(checkout: &Path) -> anyhow::Result<PathBuf> {
    let output = cargo::command()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(checkout)
        .output()
        .context("running cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("parsing cargo metadata")?;
    Ok(metadata.target_directory)
}

/// Puts the Python package and the binary where the wheel would.
fn install(checkout: &Path, berth: &Path, dir: &Path) -> anyhow::Result<()> {
    let venv = dir.join("root/opt/harbor");
    let mut versions = std::fs::read_dir(venv.join("lib")).context("looking for the root's Python")?;
    let python = versions.find_map(Result::ok).context("the root has no Python")?.path();
    let package = python.join("site-packages/berth");
    if package.exists() {
        std::fs::remove_dir_all(&package).with_context(|| format!("removing {}", package.display()))?;
    }
    succeed(Command::new("cp").arg("-r").arg(checkout.join("python/berth")).arg(&package))?;
    succeed(Command::new("install").arg(berth).arg(venv.join("bin/berth")))
}

/// Waits until `child` ends; false if it does not in time.
fn ended(child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => return false,
        }
    }
}

fn terminate(child: &mut Child) {
    // The standard library only knows SIGKILL, which lets nobody clean up.
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    if !ended(child) {
        eprintln!("bench: process {} does not end: killing it", child.id());
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// `berth serve`, for as long as this lives.
struct Daemon {
    child: Child,
    berth: PathBuf,
    host: String,
}

impl Daemon {
    fn start(berth: &Path, dir: &Path) -> anyhow::Result<Self> {
        let host = format!("unix://{}", dir.join("host/berth.sock").display());
        let log = dir.join("berth.log");
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = Command::new(berth)
            .args(["serve", "--idle-exit", IDLE_EXIT, "--host", &host, "--data-dir"])
            .arg(dir.join("berth"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", berth.display()))?;
        let mut daemon = Self { child, berth: berth.to_owned(), host };
        let deadline = Instant::now() + PATIENCE;
        while daemon.ask(&["version"]).is_err() {
            let gone = daemon.child.try_wait()?.is_some();
            anyhow::ensure!(
                !gone && Instant::now() < deadline,
                "berth serve does not answer: see {}",
                log.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// What a command of Berth prints.
    fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.berth)
            .args(arguments)
            .env("BERTH_HOST", &self.host)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {}", self.berth.display()))?;
        let error = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "berth {}: {}", arguments.join(" "), error.trim_end());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes sure of the base image, and tells Berth's version.
    fn give_base(&self, dir: &Path) -> anyhow::Result<String> {
        if !self.ask(&["image", "ls", "--json"])?.contains("library/debian:bookworm\"") {
            let tar = dir.join("bookworm.tar");
            let tar = tar.to_str().context("the benchmark's directory is not UTF-8")?;
            self.ask(&["image", "import", "--format", "rootfs", "--reference", "debian:bookworm", tar])?;
        }
        let version = self.ask(&["--version"])?;
        Ok(version.trim().trim_start_matches("berth ").to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}

/// `scripts/bench/driver.py`, inside the root.
struct Driver {
    child: Child,
    /// None when it was told to end.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Ready {
    versions: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Answer {
    seconds: f64,
    status: i32,
    output: String,
}

impl Driver {
    fn start(checkout: &Path, dir: &Path) -> anyhow::Result<(Self, BTreeMap<String, String>)> {
        let bind = |here: PathBuf, inside: &str| format!("{}:{inside}", here.display());
        let mut child = Command::new(checkout.join("scripts/bench/enter.sh"))
            .arg(dir.join("root"))
            .arg(bind(checkout.join("scripts/bench"), "/bench/scripts"))
            .arg(bind(checkout.join("examples/tasks"), TASKS))
            .arg(bind(dir.join("bookworm.tar"), "/bench/bookworm.tar"))
            .arg(bind(dir.join("host"), "/bench/host"))
            .arg(bind(dir.join("jobs"), JOBS))
            .args(["--", "python3", "-B", "/bench/scripts/driver.py"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting scripts/bench/enter.sh")?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the driver has no stdout")?);
        let mut driver = Self { child, requests, answers };
        let ready: Ready = serde_json::from_str(&driver.line()?).context("the driver's first line")?;
        Ok((driver, ready.versions))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("reading from the driver")?;
        anyhow::ensure!(!line.is_empty(), "the driver ended, see above");
        Ok(line)
    }

    fn time(&mut self, command: &[String]) -> anyhow::Result<Done> {
        let request = json!({
            "argv": command,
            "env": {"BERTH_HOST": SOCKET_INSIDE},
            "timeout": COMMAND_TIMEOUT.as_secs(),
        });
        let requests = self.requests.as_mut().context("the driver was told to end")?;
        writeln!(requests, "{request}").context("writing to the driver")?;
        let answer: Answer = serde_json::from_str(&self.line()?).context("parsing the driver's answer")?;
        let Answer { seconds, status, output } = answer;
        anyhow::ensure!(status == 0, "exit code {status}: {}\n{output}", command.join(" "));
        Ok(Done { seconds, output })
    }

    /// By the end of its stdin it ends podman's service and itself.
    fn end(&mut self) -> anyhow::Result<()> {
        self.requests = None;
        anyhow::ensure!(ended(&mut self.child), "the driver does not end");
        let status = self.child.wait().context("waiting for the driver")?;
        anyhow::ensure!(status.success(), "the driver: {status}");
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.requests = None;
        if !ended(&mut self.child) {
            terminate(&mut self.child);
        }
    }
}
