//! Many sandboxes: a hundred at once, and one after the other beside a thousand that are there already.

use std::time::Instant;

use berth_client::types::sandbox::{CreateSandbox, NetworkMode, Resources};
use futures_util::{StreamExt as _, stream};

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{Cycle, cycle, delete, idle, request};
use super::{World, progress};

const BURST: usize = 100;
const BURST_RATIO: f64 = 1.5;
const RATE_RATIO: f64 = 0.6;
/// How many idle ones are made or deleted at once.
pub(super) const AT_ONCE: usize = 8;

/// A sandbox that does nothing and may do little, so that many are let in.
pub(super) fn idle_request() -> CreateSandbox {
    let resources = Resources { cpus: Some(0.1), memory_mb: Some(8), pids: Some(32), ..Resources::default() };
    CreateSandbox { resources, ..request(NetworkMode::NoNetwork) }
}

/// All at once, and again; beside what the floor program needs for as many, had it every core.
pub(super) async fn burst(world: &World, floor_p50: Option<f64>) -> Vec<Row> {
    let mut walls = Samples::default();
    let mut each = Samples::default();
    for round in 1..=world.bursts {
        progress(&format!("{BURST} at once: {round}/{}", world.bursts));
        let start = Instant::now();
        let done = many(world, BURST, BURST).await;
        walls.values.push(start.elapsed().as_secs_f64() * 1000.0);
        for cycle in done {
            each.add(cycle.map(|cycle| cycle.total()));
        }
    }
    walls.failures = each.failures;
    walls.error.clone_from(&each.error);
    #[expect(clippy::cast_precision_loss, reason = "nobody has so many cores")]
    let ideal = floor_p50.map(|floor| BURST as f64 * floor / world.machine.cores as f64);
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let per_second = walls.p50().map(|wall| BURST as f64 * 1000.0 / wall);
    let row = Row { per_second, ..walls.row("burst", "ms") }
        .beside(format!("{BURST} × floor ÷ {} cores", world.machine.cores), ideal)
        .asked(Target::ratio(Bound::AtMost(BURST_RATIO)))
        .noted(format!("wall time of {BURST} sandboxes asked for at once, each created, used and deleted"));
    vec![row, each.row("burst.each", "ms")]
}

/// The rate beside idle ones, and without.
pub(super) async fn sustained(world: &World) -> Vec<Row> {
    let figure = format!("sustained with {} idle", world.idle);
    let cycles = world.cycles;
    progress("sustained, empty host");
    let (empty_rate, _) = rate(world, (cycles / 10).max(100)).await;
    progress(&format!("making {} idle sandboxes", world.idle));
    let start = Instant::now();
    let there = match idle(&world.client, &idle_request(), world.idle, AT_ONCE).await {
        Ok(there) => there,
        Err(error) => {
            let target = Target::ratio(Bound::AtLeast(RATE_RATIO));
            return vec![Row::not_measured(figure, "1/s", format!("{error:#}")).asked(target)];
        }
    };
    let making = start.elapsed().as_secs_f64() * 1000.0;
    progress(&format!("sustained, {cycles} cycles beside {} idle sandboxes", world.idle));
    let (loaded_rate, each) = rate(world, cycles).await;
    progress("deleting the idle sandboxes");
    let start = Instant::now();
    let deleted = delete(&world.client, &there, AT_ONCE).await;
    let mut deleting = Samples::default();
    deleting.add(deleted.map(|()| start.elapsed().as_secs_f64() * 1000.0));
    let per_second = loaded_rate.p50();
    let row = Row { n: each.values.len(), per_second, ..loaded_rate.row(figure.clone(), "1/s") }
        .beside("empty host", empty_rate.p50())
        .asked(Target::ratio(Bound::AtLeast(RATE_RATIO)))
        .noted(format!("{} at a time; the rate over all cycles", world.machine.cores));
    vec![
        row,
        each.row(format!("{figure}, each"), "ms"),
        Samples::of(vec![making]).row(format!("making {} idle", world.idle), "ms"),
        deleting.row(format!("deleting {} idle", world.idle), "ms"),
    ]
}

/// So many cycles, as many at a time as there are cores: the rate, and what each took.
async fn rate(world: &World, cycles: usize) -> (Samples, Samples) {
    let start = Instant::now();
    let mut each = Samples::default();
    for cycle in many(world, cycles, world.machine.cores).await {
        each.add(cycle.map(|cycle| cycle.total()));
    }
    #[expect(clippy::cast_precision_loss, reason = "never so many cycles")]
    let rate = each.values.len() as f64 / start.elapsed().as_secs_f64();
    let rate = Samples { values: vec![rate], failures: each.failures, error: each.error.clone() };
    (rate, each)
}

async fn many(world: &World, count: usize, at_once: usize) -> Vec<anyhow::Result<Cycle>> {
    let request = request(NetworkMode::NoNetwork);
    let cycles = (0..count).map(|_| {
        let (client, request) = (world.client.clone(), request.clone());
        async move { tokio::spawn(async move { cycle(&client, &request).await }).await? }
    });
    stream::iter(cycles).buffer_unordered(at_once).collect().await
}
