//! Daemons that are gone, and what the next one makes of what they left.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use berth_types::sandbox::{LeaseRequest, ReasonCode, Sandbox, SandboxState, Usage};

use crate::Node;
use crate::fake::{Controls, World, roomy};

/// Waits for what the node does by itself. The test runner's own limit is the deadline.
async fn until(mut is: impl FnMut() -> bool) {
    while !is() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn state_of(node: &Node, id: &str) -> Option<SandboxState> {
    node.0.sandboxes.find(id).ok().map(|entry| entry.sandbox().state)
}

/// A daemon that finds what `before` has on disk, and these of its sandboxes running.
async fn after(before: &World, alive: &[&Sandbox]) -> World {
    let survivors = alive.iter().map(|sandbox| format!("resume {}", sandbox.id)).collect();
    World::at(before.killed(), Controls { reading: Mutex::new(roomy()), survivors, ..Controls::default() })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_runs_on_is_what_it_was() {
    let before = World::new().await;
    let made = before
        .create(|r| {
            r.resources.memory_request_mb = Some(512);
            r.env.insert("A".into(), "1".into());
            r.ttl_seconds = Some(600);
            r.no_new_privileges = Some(true);
            r.idempotency_key = Some("k".into());
        })
        .await
        .unwrap();
    let now = after(&before, &[&made]).await;
    let found = now.node.sandbox(&made.id).await.unwrap();
    assert_eq!(Sandbox { usage: None, ..found }, made);
    let (_, _, live) = now.node.live(&made.id).unwrap();
    assert_eq!(live.env.get("A").map(String::as_str), Some("1"));
    assert!(live.no_new_privileges);
    let status = now.node.status();
    assert_eq!((status.adopted, status.sandboxes.running, status.memory.committed_bytes), (1, 1, 512 << 20));
    // Its image is pinned, its key and name are its own, its death is noticed.
    assert!(now.node.remove_image("tiny").await.unwrap_err().to_string().contains("in use"));
    let again = now.node.0.sandboxes.find_key("k").unwrap();
    assert_eq!(again.sandbox().id, made.id);
    let row = || now.node.0.store.sandboxes().unwrap().remove(0);
    assert!(row().resume.is_some());
    now.controls.machine(&made.id).die(0);
    until(|| state_of(&now.node, &made.id) == Some(SandboxState::Lost)).await;
    until(|| now.node.status().memory.committed_bytes == 0).await;
    until(|| row().ended_at.is_some()).await;
    assert_eq!(row().resume, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_run_any_more_is_lost_and_says_why() {
    let before = World::new().await;
    let (gone, there) = (before.create(|_| ()).await.unwrap(), before.create(|_| ()).await.unwrap());
    let now = after(&before, &[&there]).await;
    let lost = now.node.sandbox(&gone.id).await.unwrap();
    assert_eq!((lost.state, lost.reason_code), (SandboxState::Lost, Some(ReasonCode::DaemonRestart)));
    assert_eq!(lost.reason.as_deref(), Some("the sandbox has ended"));
    assert_eq!(state_of(&now.node, &there.id), Some(SandboxState::Running));
    assert_eq!(now.node.status().adopted, 1);
    // A third daemon tells the same of it.
    let later = after(&now, &[&there]).await;
    assert_eq!(later.node.sandbox(&gone.id).await.unwrap().reason.as_deref(), Some("the sandbox has ended"));
    assert_eq!(state_of(&later.node, &there.id), Some(SandboxState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_made_is_lost() {
    let before = World::new().await;
    let made = before.create(|_| ()).await.unwrap();
    let mut row = before.node.0.sandboxes.find(&made.id).unwrap().row;
    row.sandbox.state = SandboxState::Starting;
    before.node.persist(row).await.unwrap();
    let now = after(&before, &[&made]).await;
    let lost = now.node.sandbox(&made.id).await.unwrap();
    assert_eq!(lost.reason.as_deref(), Some("the daemon ended while it was being made"));
    assert_eq!(now.node.status().adopted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_rebuilt_is_ended_and_lost() {
    let before = World::new().await;
    let made = before.create(|_| ()).await.unwrap();
    let mut row = before.node.0.sandboxes.find(&made.id).unwrap().row;
    row.sandbox.image = format!("sha256:{}", "0".repeat(64));
    before.node.persist(row).await.unwrap();
    let now = after(&before, &[&made]).await;
    let lost = now.node.sandbox(&made.id).await.unwrap();
    assert_eq!(lost.state, SandboxState::Lost);
    assert!(lost.reason.unwrap().contains("sha256:000"), "the image is named");
    assert!(now.controls.machine(&made.id).is_dead());
    assert_eq!(now.node.status().memory.committed_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_goes_on_while_no_daemon_runs() {
    let before = World::new().await;
    let made = before.create(|r| r.ttl_seconds = Some(600)).await.unwrap();
    let mut row = before.node.0.sandboxes.find(&made.id).unwrap().row;
    row.sandbox.expires_at = Some("2026-01-01T00:00:00Z".to_owned());
    before.node.persist(row).await.unwrap();
    let now = after(&before, &[&made]).await;
    until(|| state_of(&now.node, &made.id) == Some(SandboxState::Ended)).await;
    assert_eq!(now.node.sandbox(&made.id).await.unwrap().reason_code, Some(ReasonCode::Ttl));
    assert!(now.controls.machine(&made.id).is_dead());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ended_meanwhile_takes_its_sandboxes_along() {
    let before = World::new().await;
    let lease = before.node.create_lease(&LeaseRequest { ttl_seconds: 1 }).await.unwrap();
    let long = before.node.create_lease(&LeaseRequest { ttl_seconds: 600 }).await.unwrap();
    let made = before.create(|r| r.lease = Some(lease.id.clone())).await.unwrap();
    let kept = before.create(|r| r.lease = Some(long.id.clone())).await.unwrap();
    let now = after(&before, &[&made, &kept]).await;
    until(|| state_of(&now.node, &made.id).is_none()).await;
    assert!(now.controls.machine(&made.id).is_dead());
    assert_eq!(state_of(&now.node, &kept.id), Some(SandboxState::Running));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_counts_even_where_there_is_no_room_for_it() {
    let before = World::new().await;
    let made = before.create(|r| r.resources.memory_request_mb = Some(6000)).await.unwrap();
    let mut small = roomy();
    small.memory_total = Some(4 << 30);
    let survivors = [format!("resume {}", made.id)].into();
    let controls = Controls { reading: Mutex::new(small), survivors, ..Controls::default() };
    let now = World::at(before.killed(), controls).await;
    assert_eq!(now.node.status().memory.committed_bytes, 6000 << 20);
    let refused = now.create(|r| r.wait_seconds = Some(0.0)).await.unwrap_err();
    assert!(refused.to_string().contains("no room"), "{refused}");
    now.node.delete_sandbox(&made.id).await.unwrap();
    now.create(|r| r.wait_seconds = Some(0.0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_leaves_ends_only_what_nobody_could_take_over() {
    let before = World::new().await;
    let made = before.create(|_| ()).await.unwrap();
    let (_, _, live) = before.node.live(&made.id).unwrap();
    live.met.add(&[berth_types::sandbox::Limit::Pids]);
    before.node.keep_sandboxes(true);
    before.node.stop().await;
    assert!(before.controls.was_left.load(Ordering::SeqCst));
    assert!(!before.controls.machine(&made.id).is_dead());
    let now = after(&before, &[&made]).await;
    assert_eq!(state_of(&now.node, &made.id), Some(SandboxState::Running));
    let usage = now.node.sandbox(&made.id).await.unwrap().usage.unwrap();
    assert_eq!(usage, Usage { limits_hit: vec![berth_types::sandbox::Limit::Pids], ..Usage::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_end_ends_its_sandboxes_unless_told_otherwise() {
    let world = World::new().await;
    let made = world.create(|_| ()).await.unwrap();
    world.node.keep_sandboxes(true);
    world.node.keep_sandboxes(false);
    world.node.stop().await;
    assert!(world.controls.machine(&made.id).is_dead());
    let now = after(&world, &[&made]).await;
    let lost = now.node.sandbox(&made.id).await.unwrap();
    assert_eq!(lost.reason.as_deref(), Some("the daemon was shut down while it ran"));
}
