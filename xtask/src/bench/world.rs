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
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use serde_json::json;

use super::daemon::{Daemon, Group, binary, ended, succeed, terminate};
use super::figures::{JOBS, TASKS};

/// A command that takes longer is ended, and is no figure.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(900);
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
        let dir = super::kept_dir();
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
            let started = Daemon::start(&berth, &dir, Group::Callers)?;
            started.give_image("library/debian:bookworm", &dir.join("bookworm.tar"))?;
            ours = Some(started.version()?);
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
