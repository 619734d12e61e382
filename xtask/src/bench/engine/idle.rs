//! What a sandbox costs that does nothing.
//!
//! Two readings, before and after so many idle sandboxes were made:
//!
//! * the proportional set size (`/proc/PID/smaps_rollup`) of the daemon and of all that descends from it, guests
//!   included: the daemon's share and the guests', each shared page counted once;
//! * files in memory, `Shmem` of `/proc/meminfo`: of these, too, a sandbox has some;
//! * the kernel's own memory, also of `/proc/meminfo`: `SUnreclaim`, `KernelStack`, `PageTables` and `Percpu`. This is the
//!   whole machine's, so it is right on an idle one only; control groups' own accounts would leave out what a sandbox
//!   costs outside its group. Reclaimable slab (names and inodes that are kept while there is room) is a row of its own.
//!
//! Beside these, how much less memory is available (`MemAvailable`): all of it in one number, and a check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::Context as _;

use super::super::machine::meminfo;
use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{delete, idle};
use super::load::{AT_ONCE, idle_request};
use super::{World, progress};

const LIMIT_MIB: f64 = 2.0;
const KERNEL: [&str; 4] = ["SUnreclaim", "KernelStack", "PageTables", "Percpu"];
/// For pools to be full again, and for what was deleted to be given back.
const SETTLE: Duration = Duration::from_secs(3);

/// All in KiB.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    processes: f64,
    files: f64,
    kernel: f64,
    reclaimable: f64,
    available: f64,
}

/// The cost of one.
pub(super) async fn cost(world: &World) -> Vec<Row> {
    match readings(world).await {
        Ok((before, after)) => rows(before, after, world.resident),
        Err(error) => {
            let row = Row::not_measured("idle sandbox", "MiB", format!("{error:#}"));
            vec![row.asked(Target::value(Bound::AtMost(LIMIT_MIB)))]
        }
    }
}

async fn readings(world: &World) -> anyhow::Result<(Reading, Reading)> {
    progress(&format!("memory of {} idle sandboxes", world.resident));
    // Pools and caches as they are in a daemon that has worked.
    let warm = idle(&world.client, &idle_request(), AT_ONCE, AT_ONCE).await?;
    delete(&world.client, &warm, AT_ONCE).await?;
    tokio::time::sleep(SETTLE).await;
    let before = Reading::take(world.daemon_pid)?;
    let there = idle(&world.client, &idle_request(), world.resident, AT_ONCE).await?;
    tokio::time::sleep(SETTLE).await;
    let after = Reading::take(world.daemon_pid);
    delete(&world.client, &there, AT_ONCE).await?;
    Ok((before, after?))
}

fn rows(before: Reading, after: Reading, count: usize) -> Vec<Row> {
    #[expect(clippy::cast_precision_loss, reason = "never so many sandboxes")]
    let each = |of: fn(&Reading) -> f64| (of(&after) - of(&before)) / 1024.0 / count as f64;
    let (processes, files, kernel) = (each(|r| r.processes), each(|r| r.files), each(|r| r.kernel));
    let row = |figure: &str, mib: f64| Row {
        n: count,
        ..Samples::of(vec![mib]).row(format!("idle sandbox{figure}"), "MiB")
    };
    let how = "mean of all; PSS of the daemon and its descendants plus Shmem, SUnreclaim, KernelStack, PageTables and Percpu of \
               the machine, after less before";
    vec![
        row("", processes + files + kernel).asked(Target::value(Bound::AtMost(LIMIT_MIB))).noted(how),
        row(".processes", processes),
        row(".files in memory", files),
        row(".kernel", kernel),
        row(".reclaimable slab", each(|r| r.reclaimable)),
        row(".less available", -each(|r| r.available)).noted("MemAvailable before less after, a check"),
    ]
}

impl Reading {
    fn take(daemon: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        #[expect(clippy::cast_precision_loss, reason = "nobody has so much memory")]
        let field = |name: &str| meminfo(&text, name).unwrap_or_default() as f64;
        Ok(Self {
            processes: processes(daemon)?,
            files: field("Shmem"),
            kernel: KERNEL.into_iter().map(field).sum(),
            reclaimable: field("SReclaimable"),
            available: field("MemAvailable"),
        })
    }
}

/// PSS of a process and its descendants, in KiB.
fn processes(root: u32) -> anyhow::Result<f64> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("listing /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while it is looked at.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        parents.extend(parent(&stat).map(|parent| (pid, parent)));
    }
    let mut sum = 0.0;
    for pid in descendants(root, &parents) {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "nobody has so much memory")]
        let pss = meminfo(&rollup, "Pss").unwrap_or_default() as f64;
        sum += pss;
    }
    anyhow::ensure!(sum > 0.0, "the daemon's memory could not be read");
    Ok(sum)
}

/// The name in brackets may hold anything, brackets too.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let more = parents.iter().filter(|(pid, parent)| found.contains(*parent) && !found.contains(*pid));
        let more: Vec<u32> = more.map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_at_any_depth() {
        assert_eq!(parent("12 (a ) b) S 7 1 1"), Some(7));
        let parents = [(2, 1), (10, 2), (4, 10), (5, 1)].into();
        assert_eq!(descendants(2, &parents), [2, 4, 10].into());
    }

    #[test]
    fn the_cost_is_the_difference_by_count() {
        let before =
            Reading { processes: 1024.0, files: 0.0, kernel: 2048.0, reclaimable: 0.0, available: 102_400.0 };
        let after = Reading {
            processes: 11_264.0,
            files: 512.0,
            kernel: 7168.0,
            reclaimable: 1024.0,
            available: 82_400.0,
        };
        insta::assert_snapshot!(super::super::super::rows::markdown(&rows(before, after, 10)));
    }
}
