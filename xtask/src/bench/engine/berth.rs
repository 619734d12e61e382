//! Berth through its API: create, run, read, delete.

use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::exec::{Command, ExecRequest};
use berth_client::types::sandbox::{CreateSandbox, NetworkMode, Resources, Sandbox, StartPhases};
use berth_client::{Client, ExecOutcome};
use futures_util::{StreamExt as _, stream};

use super::peers::{CPUS, GREETING, MEMORY_MB, PIDS};

/// The one image.
pub(super) const IMAGE: &str = "library/berth-bench:latest";

/// One sandbox's life, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Cycle {
    pub(super) create: f64,
    pub(super) exec: f64,
    pub(super) delete: f64,
    /// What the daemon says of the create's parts, where it does.
    pub(super) phases: Vec<(String, f64)>,
}

impl Cycle {
    /// From the request to the answer that it is gone.
    pub(super) fn total(&self) -> f64 {
        self.create + self.exec + self.delete
    }
}

/// A sandbox with the limits that everybody's has.
pub(super) fn request(network: NetworkMode) -> CreateSandbox {
    CreateSandbox {
        image: IMAGE.to_owned(),
        network,
        resources: Resources {
            cpus: Some(CPUS),
            memory_mb: Some(MEMORY_MB),
            pids: Some(PIDS),
            ..Resources::default()
        },
        ..CreateSandbox::default()
    }
}

/// A program and its arguments.
pub(super) fn argv(words: &[&str]) -> ExecRequest {
    exec(Command::Argv(words.iter().map(|word| (*word).to_owned()).collect()))
}

/// A script, for the image's `sh`, with a limit of its time.
pub(super) fn script(text: &str, seconds: f64) -> ExecRequest {
    ExecRequest { timeout_seconds: Some(seconds), ..argv(&["sh", "-c", text]) }
}

fn exec(command: Command) -> ExecRequest {
    ExecRequest::new(command)
}

/// One sandbox from the request to its end.
pub(super) async fn cycle(client: &Client, request: &CreateSandbox) -> anyhow::Result<Cycle> {
    let start = Instant::now();
    let sandbox = client.create_sandbox(request).await.context("create")?;
    let created = Instant::now();
    let ran = client.exec_collect(&sandbox.id, &argv(&["echo", GREETING])).await;
    let executed = Instant::now();
    client.delete_sandbox(&sandbox.id).await.context("delete")?;
    let deleted = Instant::now();
    greeted(&ran.context("exec")?)?;
    let milliseconds = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
    Ok(Cycle {
        create: milliseconds(start, created),
        exec: milliseconds(created, executed),
        delete: milliseconds(executed, deleted),
        phases: phases(sandbox.start_phases.as_ref()),
    })
}

/// The milliseconds of one command in a sandbox that is there.
pub(super) async fn time_true(client: &Client, sandbox: &str) -> anyhow::Result<f64> {
    let start = Instant::now();
    let ran = client.exec_collect(sandbox, &argv(&["true"])).await?;
    let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
    anyhow::ensure!(ran.status.exit_code == 0, "true ended with {:?}", ran.status);
    Ok(milliseconds)
}

fn greeted(ran: &ExecOutcome) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(&ran.stdout);
    anyhow::ensure!(ran.status.exit_code == 0, "echo ended with {:?}", ran.status);
    anyhow::ensure!(said.trim_end() == GREETING, "it said {said:?}, not {GREETING:?}");
    Ok(())
}

/// The parts of a create as the API tells them, in milliseconds. Nothing where it tells none.
fn phases(phases: Option<&StartPhases>) -> Vec<(String, f64)> {
    let Some(phases) = phases else { return Vec::new() };
    let StartPhases { disk_ms, network_ms, cgroups_ms, launch_ms, guest_ms } = *phases;
    let named = [
        ("disk", disk_ms),
        ("network", network_ms),
        ("cgroups", cgroups_ms),
        ("launch", launch_ms),
        ("guest", guest_ms),
    ];
    named.map(|(name, milliseconds)| (name.to_owned(), milliseconds)).to_vec()
}

/// Many sandboxes that do nothing, so many being made at once; all are there, or none and an error.
pub(super) async fn idle(
    client: &Client,
    request: &CreateSandbox,
    count: usize,
    at_once: usize,
) -> anyhow::Result<Vec<Sandbox>> {
    let creates = stream::iter(0..count).map(|_| client.create_sandbox(request)).buffer_unordered(at_once);
    let made: Vec<_> = creates.collect().await;
    let (made, failed): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
    let made: Vec<Sandbox> = made.into_iter().flatten().collect();
    match failed.into_iter().find_map(Result::err) {
        None => Ok(made),
        Some(error) => {
            let there = made.len();
            delete(client, &made, at_once).await?;
            Err(error).with_context(|| format!("only {there} of {count} idle sandboxes could be made"))
        }
    }
}

/// Deletes them all, and tells the first failure.
pub(super) async fn delete(client: &Client, sandboxes: &[Sandbox], at_once: usize) -> anyhow::Result<()> {
    let ids: Vec<String> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
    let deletes = stream::iter(ids).map(|id| async move { client.delete_sandbox(&id).await });
    let done: Vec<_> = deletes.buffer_unordered(at_once).collect().await;
    done.into_iter().collect::<Result<Vec<()>, _>>().map(drop).context("deleting idle sandboxes")
}
