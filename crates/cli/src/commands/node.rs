//! `berth node`.

use berth_types::system::{NodeStatus, Stock, TaskStatus};
use jiff::Timestamp;

use crate::Session;
use crate::failure::Failure;
use crate::output::{age, size, table};

/// Prints what the daemon's machine has, what of that is set aside, and the daemon's background tasks.
pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let status = session.client().await?.node().await?;
    session.output.result(&status, |status| render(status, Timestamp::now()))
}

fn render(status: &NodeStatus, now: Timestamp) -> String {
    let room = table(
        &["", "TOTAL", "RESERVED", "COMMITTED", "FREE", "AVAILABLE NOW"],
        [stock("memory", &status.memory), stock("disk", &status.disk), cpus(status)],
    );
    let (counts, starts) = (&status.sandboxes, &status.starts);
    let sandboxes = format!(
        "sandboxes: {} running, {} starting (at most {} at once), {} queued, {} stopping",
        counts.running, counts.starting, starts.limit, counts.queued, counts.stopping
    );
    let sandboxes = match status.adopted {
        0 => sandboxes,
        adopted => {
            format!("{sandboxes}\n{adopted} of an earlier daemon ran on and were taken over at the start")
        }
    };
    let tasks = table(
        &["TASK", "RUNS", "LAST", "TOOK", "RESULT"],
        status.tasks.iter().map(|status| task(status, now)),
    );
    [room, sandboxes, policy(status), tasks].join("\n\n")
}

fn stock(name: &str, stock: &Stock) -> Vec<String> {
    let shown = |bytes: Option<u64>| bytes.map_or("?".to_owned(), size);
    vec![
        name.to_owned(),
        shown(stock.total_bytes),
        size(stock.reserved_bytes),
        size(stock.committed_bytes),
        shown(stock.free_bytes),
        shown(stock.available_bytes),
    ]
}

fn cpus(status: &NodeStatus) -> Vec<String> {
    let (total, committed) = (status.cpus.total, status.cpus.committed);
    let free = (total as f64 - committed).max(0.0);
    vec![
        "cpus".into(),
        total.to_string(),
        "0".into(),
        format!("{committed}"),
        format!("{free}"),
        String::new(),
    ]
}

/// How commitments are reckoned, since the numbers above make no sense without it.
fn policy(status: &NodeStatus) -> String {
    let policy = &status.policy;
    let enforced = match (policy.storage_enforced, policy.allow_unenforced_storage) {
        (true, _) => "enforced",
        (false, true) => "not enforced by the disk engine, which the configuration allows",
        (false, false) => "not enforced by the disk engine: who asks for one is refused",
    };
    format!(
        "committed: a request of memory as it is, a limit divided by {}, else {} MB; a limit of storage divided by {}, \
         else {} MB\nlimits of storage: {enforced}; default {} MB, {} processes",
        policy.memory_overcommit,
        policy.assumed_memory_mb,
        policy.storage_overcommit,
        policy.assumed_storage_mb,
        policy.default_storage_mb,
        policy.default_pids
    )
}

fn task(task: &TaskStatus, now: Timestamp) -> Vec<String> {
    let failed = if task.failed { "FAILED: " } else { "" };
    vec![
        task.name.clone(),
        task.runs.to_string(),
        task.last_run_at.as_ref().map_or("never".to_owned(), |time| age(time, now)),
        task.last_duration_ms.map_or(String::new(), |ms| format!("{ms} ms")),
        format!("{failed}{}", task.last_result.as_deref().unwrap_or("")),
    ]
}

#[cfg(test)]
mod tests {
    use berth_types::system::{AdmissionPolicy, CpuStock, SandboxCounts, Starts};

    use super::*;

    #[test]
    fn the_room_and_the_tasks_are_shown() {
        let status = NodeStatus {
            memory: Stock {
                total_bytes: Some(24 << 30),
                reserved_bytes: 1 << 30,
                committed_bytes: 8 << 30,
                free_bytes: Some(15 << 30),
                available_bytes: Some(20 << 30),
            },
            disk: Stock { committed_bytes: 4 << 20, ..Stock::default() },
            cpus: CpuStock { total: 2, committed: 0.5 },
            sandboxes: SandboxCounts { running: 8, queued: 3, ..SandboxCounts::default() },
            adopted: 0,
            starts: Starts { limit: 6, ..Starts::default() },
            policy: AdmissionPolicy {
                memory_overcommit: 2.0,
                storage_overcommit: 8.0,
                assumed_memory_mb: 16,
                assumed_storage_mb: 4,
                default_storage_mb: 10_240,
                default_pids: 4096,
                ..AdmissionPolicy::default()
            },
            tasks: vec![
                TaskStatus {
                    name: "leases".into(),
                    runs: 12,
                    last_run_at: Some("2026-01-01T00:00:00Z".into()),
                    last_duration_ms: Some(0.25),
                    last_result: Some("the disk is full".into()),
                    failed: true,
                },
                TaskStatus { name: "queue".into(), ..TaskStatus::default() },
            ],
        };
        insta::assert_snapshot!(render(&status, "2026-01-01T00:00:05Z".parse().unwrap()));
        let after_restart = render(&NodeStatus { adopted: 2, ..status }, Timestamp::UNIX_EPOCH);
        assert!(after_restart.contains("2 of an earlier daemon"), "{after_restart}");
    }
}
