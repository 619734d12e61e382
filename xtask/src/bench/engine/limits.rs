//! How exact the limits are.
//!
//! Memory: a program takes a quarter of a MiB after another and says so, until it is killed; what it said last is compared
//! with the limit. What it does not say is its own code and what the limit is charged for beyond its data, so the figure
//! is what a task really gets.
//!
//! Processor: two loops on half a processor for five seconds of wall time; what `times` says of them is compared with
//! half of the wall time.

use std::time::Instant;

use anyhow::Context as _;
use berth_client::ExecOutcome;
use berth_client::types::exec::ExecRequest;
use berth_client::types::sandbox::{CreateSandbox, NetworkMode, Resources};

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{request, script};
use super::{World, progress};

const MEMORY_MB: u64 = 256;
const MEMORY_PERCENT: f64 = 2.0;
const CPUS: f64 = 0.5;
const CPU_PERCENT: f64 = 5.0;
/// A string that fills 63 pages with what the allocator and a number add to it.
const PIECE_BYTES: f64 = 63.0 * 4096.0;
const EAT: &str =
    r#"awk 'BEGIN { s = sprintf("%257900s", "x"); while (1) { a[n++] = s n; print n; fflush() } }'"#;
const BURN: &str =
    "(while :; do :; done) & a=$!; (while :; do :; done) & b=$!; sleep 5; kill $a $b; wait; times";
const PATIENCE_SECONDS: f64 = 60.0;

/// Both limits.
pub(super) async fn accuracy(world: &World) -> Vec<Row> {
    let (mut memory, mut cpu) = (Samples::default(), Samples::default());
    let (mut reached, mut used) = (Vec::new(), Vec::new());
    for round in 1..=world.limits {
        progress(&format!("limits: {round}/{}", world.limits));
        match memory_reached(world).await {
            Ok((mib, how)) => {
                memory.values.push((mib / as_f64(MEMORY_MB) - 1.0).abs() * 100.0);
                reached.push(format!("{mib:.2} MiB ({how})"));
            }
            Err(error) => memory.fail(&error),
        }
        match cpu_used(world).await {
            Ok(share) => {
                cpu.values.push((share / CPUS - 1.0).abs() * 100.0);
                used.push(format!("{share:.3}"));
            }
            Err(error) => cpu.fail(&error),
        }
    }
    let asked = |percent| Target::value(Bound::AtMost(percent));
    let told = format!("of {MEMORY_MB} MiB a program got {}", reached.join(", "));
    vec![
        memory.row("memory limit, off by", "%").asked(asked(MEMORY_PERCENT)).noted(told),
        cpu.row("cpu limit, off by", "%").asked(asked(CPU_PERCENT)).noted(format!(
            "two loops on {CPUS} processors for 5 s: their processor time ÷ wall time was {}",
            used.join(", ")
        )),
    ]
}

/// MiB that a program got before it was killed, and how it ended.
async fn memory_reached(world: &World) -> anyhow::Result<(f64, String)> {
    let resources = Resources { memory_mb: Some(MEMORY_MB), ..Resources::default() };
    let (ran, _) = run_in(world, resources, &script(EAT, PATIENCE_SECONDS)).await?;
    let output = String::from_utf8_lossy(&ran.stdout);
    let last = output.lines().last().with_context(|| {
        format!("the program said nothing: {}", String::from_utf8_lossy(&ran.stderr).trim())
    })?;
    let status = &ran.status;
    anyhow::ensure!(status.exit_code == 137, "it was not killed but ended with {status:?}");
    // The sample string is one more.
    let pieces = last.parse::<f64>().with_context(|| format!("the program said {last:?}"))? + 1.0;
    let told = serde_json::to_value(status)?;
    Ok((pieces * PIECE_BYTES / f64::from(1 << 20), format!("told as {told}")))
}

/// Processors that two loops had.
async fn cpu_used(world: &World) -> anyhow::Result<f64> {
    let resources = Resources { cpus: Some(CPUS), memory_mb: Some(64), ..Resources::default() };
    let (ran, seconds) = run_in(world, resources, &script(BURN, PATIENCE_SECONDS)).await?;
    let output = String::from_utf8_lossy(&ran.stdout);
    let used = times_of_children(&output).with_context(|| format!("`times` said {output:?}"))?;
    Ok(used / seconds)
}

async fn run_in(
    world: &World,
    resources: Resources,
    exec: &ExecRequest,
) -> anyhow::Result<(ExecOutcome, f64)> {
    let request = CreateSandbox { resources, ..request(NetworkMode::NoNetwork) };
    let sandbox = world.client.create_sandbox(&request).await?;
    let start = Instant::now();
    let ran = world.client.exec_collect(&sandbox.id, exec).await;
    let seconds = start.elapsed().as_secs_f64();
    world.client.delete_sandbox(&sandbox.id).await?;
    Ok((ran?, seconds))
}

/// The second line of the shell's `times`: `0m1.23s 0m0.04s`, user and system.
fn times_of_children(output: &str) -> Option<f64> {
    let line = output.trim_end().lines().nth(1)?;
    let seconds = |time: &str| {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.parse::<f64>().ok()?)
    };
    line.split_whitespace().map(seconds).sum()
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
fn as_f64(mb: u64) -> f64 {
    mb as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_children() {
        assert_eq!(times_of_children("0m0.00s 0m0.01s\n1m2.25s 0m0.25s\n"), Some(62.5));
        assert_eq!(times_of_children("0m0.00s 0m0.01s\n"), None);
        assert_eq!(times_of_children("a\nb\n"), None);
    }
}
