//! The berth under test: the binary, and `berth serve` on a socket and a data directory of its own.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Deserialize;

use crate::cargo;

/// For the daemon to answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// For what was started to end: a daemon takes its sandboxes down first, a thousand of them perhaps.
const END_PATIENCE: Duration = Duration::from_secs(120);
/// Should this process be killed, the daemon ends by itself. Longer than anything that does not use it.
const IDLE_EXIT: &str = "1800";

/// Runs a command of the set-up, its output on stderr.
pub(super) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("running {command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// The binary that `BERTH` names. Figures must not pass for those of the optimised one.
pub(super) fn given() -> Option<PathBuf> {
    std::env::var_os("BERTH").map(PathBuf::from)
}

/// The berth to measure: the one that was given, else the optimised one, built now.
pub(super) fn binary(checkout: &Path) -> anyhow::Result<PathBuf> {
    if let Some(given) = given() {
        return Ok(given);
    }
    built(checkout, "berth")
}

/// An optimised program of the workspace, built now; package and program have one name.
pub(super) fn built(checkout: &Path, package: &str) -> anyhow::Result<PathBuf> {
    succeed(cargo::command().args(["build", "--release", "--locked", "-p", package]).current_dir(checkout))?;
    Ok(target_dir(checkout)?.join("release").join(package))
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

/// Waits until `child` ends; false if it does not in time.
pub(super) fn ended(child: &mut Child) -> bool {
    let deadline = Instant::now() + END_PATIENCE;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            _ => return false,
        }
    }
}

pub(super) fn terminate(child: &mut Child) {
    // The standard library only knows SIGKILL, which lets nobody clean up.
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    if !ended(child) {
        eprintln!("bench: process {} does not end: killing it", child.id());
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Whose process group a daemon is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    Callers,
    Own,
}

/// `berth serve`, for as long as this lives.
pub(super) struct Daemon {
    child: Child,
    berth: PathBuf,
    /// Its address.
    pub(super) host: String,
}

impl Daemon {
    /// Starts one below `dir` and waits until it answers. In `group`s of their own, processes are not met by the
    /// terminal's Ctrl-C, and whoever catches that ends them.
    pub(super) fn start(berth: &Path, dir: &Path, group: Group) -> anyhow::Result<Self> {
        let host = format!("unix://{}", dir.join("host/berth.sock").display());
        let log = dir.join("berth.log");
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(berth);
        if group == Group::Own {
            command.process_group(0);
        }
        let child = command
            .args(["serve", "--idle-exit", IDLE_EXIT, "--host", &host, "--data-dir"])
            .arg(dir.join("berth"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {}", berth.display()))?;
        let mut daemon = Self { child, berth: berth.to_owned(), host };
        let deadline = Instant::now() + START_PATIENCE;
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

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as a fault of the machine would: it cleans nothing up.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("killing the daemon")?;
        self.child.wait().context("waiting for the daemon")?;
        Ok(())
    }

    /// What a command of Berth prints.
    pub(super) fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
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

    /// Makes sure of an image, by a tar of its root file system.
    pub(super) fn give_image(&self, reference: &str, tar: &Path) -> anyhow::Result<()> {
        // References are listed in full: `debian:bookworm` as `docker.io/library/debian:bookworm`.
        if !self.ask(&["image", "ls", "--json"])?.contains(&format!("/{reference}\"")) {
            let tar = tar.to_str().context("the benchmark's directory is not UTF-8")?;
            self.ask(&["image", "import", "--format", "rootfs", "--reference", reference, tar])?;
        }
        Ok(())
    }

    /// Berth's version, and whether it was given.
    pub(super) fn version(&self) -> anyhow::Result<String> {
        let version = self.ask(&["--version"])?;
        let given = if given().is_some() { " (a binary that was given)" } else { "" };
        Ok(version.trim().trim_start_matches("berth ").to_owned() + given)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // One that was killed has ended already.
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            terminate(&mut self.child);
        }
    }
}
