//! What a sandbox feels of another one that takes all that it may: `true` over and over in the one, alone and beside
//! each kind of neighbour. Neighbours are bounded by their limits and by time.
//!
//! On a machine of two cores a neighbour's limit of one core leaves the other for everything else: the ratio says
//! whether it keeps to that, not that nothing is lost on one core.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_client::types::exec::ExecRequest;
use berth_client::types::sandbox::{CreateSandbox, NetworkMode, Resources, Sandbox, Unenforced};
use berth_client::{Client, Error, ExecOutcome};

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{request, script, time_true};
use super::{World, progress};

const RATIO: f64 = 2.0;
/// For a neighbour to be in full swing.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longer than a tree takes to be made, or to be removed.
const PATIENCE: Duration = Duration::from_secs(300);
const STORAGE_MB: u64 = 1024;

/// Kinds of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neighbour {
    ForkBomb,
    MemoryHog,
    DiskFiller,
    Tree,
}

impl Neighbour {
    const ALL: [Self; 4] = [Self::ForkBomb, Self::MemoryHog, Self::DiskFiller, Self::Tree];

    fn title(self) -> &'static str {
        match self {
            Self::ForkBomb => "a fork bomb",
            Self::MemoryHog => "a memory hog",
            Self::DiskFiller => "a disk filler",
            Self::Tree => "a tree of files",
        }
    }

    /// What it runs; a tree is of `files` files, in directories of a thousand.
    fn script(self, files: u32) -> String {
        match self {
            Self::ForkBomb => "f() { while :; do f & done; }; f 2>/dev/null".to_owned(),
            Self::MemoryHog => {
                r#"awk 'BEGIN { s = sprintf("%1048576s", "x"); while (1) a[n++] = s n }'"#.to_owned()
            }
            Self::DiskFiller => {
                "while :; do dd if=/dev/zero of=/fill bs=1M count=1000 2>/dev/null; rm -f /fill; done"
                    .to_owned()
            }
            Self::Tree => format!(
                "i=0; while [ $i -lt {} ]; do mkdir -p /tree/$i; j=0; while [ $j -lt 1000 ]; do : >/tree/$i/$j; \
                 j=$((j+1)); done; i=$((i+1)); done; echo done",
                files.div_ceil(1000)
            ),
        }
    }

    fn request(self) -> CreateSandbox {
        let storage = (self == Self::DiskFiller).then_some(STORAGE_MB);
        let resources = Resources {
            cpus: Some(1.0),
            memory_mb: Some(512),
            pids: Some(512),
            storage_mb: storage,
            ..Resources::default()
        };
        CreateSandbox { resources, storage_unenforced: Unenforced::Allow, ..request(NetworkMode::NoNetwork) }
    }
}

/// Alone, then beside each.
pub(super) async fn neighbours(world: &World) -> Vec<Row> {
    match beside_all(world).await {
        Ok(rows) => rows,
        Err(error) => vec![
            Row::not_measured("exec true beside a neighbour", "ms", format!("{error:#}"))
                .asked(Target::ratio(Bound::AtMost(RATIO))),
        ],
    }
}

async fn beside_all(world: &World) -> anyhow::Result<Vec<Row>> {
    let victim = world.client.create_sandbox(&request(NetworkMode::NoNetwork)).await?;
    progress("a sandbox alone");
    let mut alone = Samples::default();
    sample_for(world, &victim.id, world.neighbour_time, &mut alone).await;
    let mut rows = vec![alone.in_turn("exec true alone")];
    for neighbour in Neighbour::ALL {
        progress(&format!("a sandbox beside {}", neighbour.title()));
        match beside(world, &victim, neighbour).await {
            Ok(felt) => rows.extend(felt.rows(neighbour, &alone)),
            Err(error) => rows.push(
                Row::not_measured(figure(neighbour), "ms", format!("{error:#}"))
                    .asked(Target::ratio(Bound::AtMost(RATIO))),
            ),
        }
    }
    world.client.delete_sandbox(&victim.id).await?;
    Ok(rows)
}

fn figure(neighbour: Neighbour) -> String {
    format!("exec true, neighbour {}", neighbour.title())
}

/// What was felt of a neighbour.
struct Felt {
    during: Samples,
    removal: Samples,
    note: String,
}

async fn beside(world: &World, victim: &Sandbox, neighbour: Neighbour) -> anyhow::Result<Felt> {
    let there = world.client.create_sandbox(&neighbour.request()).await?;
    let (client, id) = (world.client.clone(), there.id.clone());
    let exec = script(&neighbour.script(world.files), PATIENCE.as_secs_f64());
    let again = neighbour != Neighbour::Tree;
    let told = Arc::new(Mutex::new(Ends::default()));
    let ends = Arc::clone(&told);
    let trouble =
        Aborted(tokio::spawn(async move { over_and_over(&client, &id, &exec, again, &ends).await }));
    let mut during = Samples::default();
    if neighbour == Neighbour::Tree {
        // As long as it is being made.
        let start = Instant::now();
        while !trouble.0.is_finished() && start.elapsed() < PATIENCE {
            during.add(time_true(&world.client, &victim.id).await);
        }
    } else {
        tokio::time::sleep(WARM_UP).await;
        sample_for(world, &victim.id, world.neighbour_time, &mut during).await;
    }
    let ended = trouble.0.is_finished();
    drop(trouble);
    let (client, id) = (world.client.clone(), there.id.clone());
    let start = Instant::now();
    let removing = tokio::spawn(async move { client.delete_sandbox(&id).await });
    let mut removal = Samples::default();
    while !removing.is_finished() && start.elapsed() < PATIENCE {
        removal.add(time_true(&world.client, &victim.id).await);
    }
    removing.await??;
    let gone = start.elapsed().as_secs_f64() * 1000.0;
    let mut note = {
        let ends = told.lock().unwrap_or_else(PoisonError::into_inner);
        format!("its command ended by itself {} times{}; gone in {gone:.0} ms", ends.count, ends.last())
    };
    if neighbour == Neighbour::DiskFiller && !there.storage_enforced {
        note +=
            "; its storage was not limited, since this disk engine cannot: it wrote 1,000 MB over and over";
    }
    if neighbour == Neighbour::Tree {
        let made = if ended { "made" } else { "NOT made in time" };
        note += &format!("; {} files, {made}", world.files.div_ceil(1000) * 1000);
    }
    Ok(Felt { during, removal, note })
}

impl Felt {
    fn rows(self, neighbour: Neighbour, alone: &Samples) -> Vec<Row> {
        let asked = || Target::ratio(Bound::AtMost(RATIO));
        let of = |samples: &Samples, figure: String| {
            let row = samples.in_turn(&figure).beside("alone", alone.p50()).asked(asked());
            let p99 = samples.percentile(99).into_iter().collect();
            let p99 = Samples::of(p99).row(format!("{figure}, p99"), "ms");
            let p99 = Row { n: samples.values.len(), p95: None, p99: None, ..p99 };
            [row, p99.beside("alone, p99", alone.percentile(99)).asked(asked())]
        };
        let mut rows = of(&self.during, figure(neighbour)).to_vec();
        rows[0] = rows[0].clone().noted(self.note);
        if neighbour == Neighbour::Tree {
            rows.extend(of(&self.removal, format!("{}, being removed", figure(neighbour))));
        }
        rows
    }
}

/// A task that ends with whoever waits for it; its exec ends with its connection.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How often a neighbour's command ended by itself, and how the last time: whether it was the trouble that it should be.
#[derive(Debug, Default)]
struct Ends {
    count: u32,
    last: Option<String>,
}

impl Ends {
    fn last(&self) -> String {
        self.last.as_ref().map_or(String::new(), |last| format!(", at last with {last}"))
    }

    fn add(&mut self, ran: &Result<ExecOutcome, Error>) {
        self.count += 1;
        self.last = Some(match ran {
            Ok(ran) => format!("{:?}, exit code {}", ran.status.reason, ran.status.exit_code),
            Err(error) => causes(error),
        });
    }
}

fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// Starts it anew whenever its limits have ended it.
async fn over_and_over(client: &Client, id: &str, exec: &ExecRequest, again: bool, ends: &Mutex<Ends>) {
    loop {
        let ran = client.exec_collect(id, exec).await;
        ends.lock().unwrap_or_else(PoisonError::into_inner).add(&ran);
        if !again {
            return;
        }
        if ran.is_err() {
            // Full of processes or memory: no reason to make the daemon busy as well.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn sample_for(world: &World, sandbox: &str, time: Duration, samples: &mut Samples) {
    let start = Instant::now();
    while start.elapsed() < time {
        samples.add(time_true(&world.client, sandbox).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_neighbours() {
        let scripts = Neighbour::ALL.map(|neighbour| neighbour.script(100_000));
        insta::assert_snapshot!(scripts.join("\n"));
    }

    #[test]
    fn both_middle_and_tail_are_asked_for() {
        let during = Samples::of(vec![1.0, 1.5, 9.0]);
        let felt = Felt { during, removal: Samples::of(vec![2.0]), note: "gone 3 ms after".to_owned() };
        let rows = felt.rows(Neighbour::Tree, &Samples::of(vec![1.0, 2.0]));
        insta::assert_snapshot!(super::super::super::rows::markdown(&rows));
    }
}
