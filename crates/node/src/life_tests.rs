//! Lives of sandboxes on a machine that is made up: queue, time to live, reasons, restarts.

use std::sync::Mutex;
use std::time::Duration;

use berth_sandbox::Features;
use berth_store::{SandboxRow, Store};
use berth_types::error::{ApiError, Kind};
use berth_types::sandbox::{
    Capabilities, CapabilitySet, LeaseRequest, QueuePlace, ReasonCode, Resources, SandboxState, Usage,
    WaitsFor,
};

use crate::fake::{Controls, World, request, roomy, rootfs};
use crate::{Error, Filter};

/// Waits for what the node does by itself. The test runner's own limit is the deadline.
async fn until(mut is: impl FnMut() -> bool) {
    while !is() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn code(error: &Error) -> (Kind, String) {
    let api = ApiError::from(error);
    (api.kind, api.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_shows_what_is_in_force_and_what_it_uses() {
    let world = World::new().await;
    let made = world.create(|r| r.resources.memory_mb = Some(512)).await.unwrap();
    assert_eq!(made.resources.pids, Some(4096));
    assert_eq!(made.resources.storage_mb, Some(10_240));
    assert_eq!(made.resource_defaults, ["pids", "storage_mb"]);
    assert!(made.storage_enforced && !made.user_namespace);
    assert_eq!(made.committed.unwrap().memory_bytes, 256 << 20);
    let spec = world.controls.specs.lock().unwrap()[0].clone();
    assert_eq!((spec.limits.memory_bytes, spec.limits.pids), (Some(512 << 20), Some(4096)));
    assert_eq!(spec.limits.storage_bytes, Some(10_240 << 20));

    let usage = Usage { memory_peak_bytes: Some(7), ..Usage::default() };
    *world.controls.machine(&made.id).usage.lock().unwrap() = usage.clone();
    assert_eq!(world.node.sandbox(&made.id).await.unwrap().usage, Some(usage.clone()));
    assert_eq!(world.node.sandboxes(&Filter::default()).await.items[0].usage, None);
    let with_usage = Filter { usage: true, ..Filter::default() };
    assert_eq!(world.node.sandboxes(&with_usage).await.items[0].usage, Some(usage));

    let status = world.node.status();
    assert_eq!((status.sandboxes.running, status.memory.committed_bytes), (1, 256 << 20));
    world.node.delete_sandbox(&made.id).await.unwrap();
    let status = world.node.status();
    assert_eq!((status.sandboxes.running, status.memory.committed_bytes), (0, 0));
    assert_eq!(status.tasks.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_fits_fails_at_once_and_says_what_there_is() {
    let world = World::new().await;
    let error = world.create(|r| r.resources.memory_mb = Some(16_384)).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Capacity, "never_fits".into()));
    assert!(error.to_string().contains("16384 MB") && error.to_string().contains("8192 MB"), "{error}");
    let error = world.create(|r| r.resources.storage_mb = Some(1 << 20)).await.unwrap_err();
    assert_eq!(code(&error).1, "never_fits");
    let error = world.create(|r| r.resources.cpu_request = Some(60_000.0)).await.unwrap_err();
    assert_eq!(code(&error).1, "never_fits");
    assert!(ApiError::from(&error).hint.unwrap().contains("cpu_request"));
    assert_eq!(world.node.sandboxes(&Filter::default()).await.items, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_seen_in_its_place_and_served_in_turn() {
    let world = World::new().await;
    let big = |r: &mut berth_types::sandbox::CreateSandbox| r.resources.memory_request_mb = Some(6000);
    let first = world.create(big).await.unwrap();
    let error = world.create(|r| (r.wait_seconds, r.resources.memory_request_mb) = (Some(0.0), Some(6000)));
    assert_eq!(code(&error.await.unwrap_err()), (Kind::Capacity, "no_room".into()));

    let start = |name: &str| {
        let (node, name) = (world.node.clone(), name.to_owned());
        tokio::spawn(async move {
            let wanted = request(|r| {
                r.name = Some(name);
                big(r);
            });
            node.create_sandbox(wanted).await
        })
    };
    let queued = |name: &str| {
        world.node.0.sandboxes.find(name).is_ok_and(|entry| entry.sandbox().state == SandboxState::Queued)
    };
    let second = start("second");
    until(|| queued("second")).await;
    let third = start("third");
    until(|| queued("third")).await;
    let shown = world.node.sandbox("third").await.unwrap();
    assert_eq!(shown.queue, Some(QueuePlace { position: 2, waits_for: WaitsFor::Memory }));
    assert_eq!(world.node.status().sandboxes.queued, 2);
    let busy = world.node.set_ttl("third", Some(5)).await.unwrap_err();
    assert_eq!(code(&busy), (Kind::Conflict, "sandbox_queued".into()));

    // One that is deleted in the queue, and one whose client goes away, hold up nobody.
    world.node.delete_sandbox("second").await.unwrap();
    assert_eq!(code(&second.await.unwrap().unwrap_err()), (Kind::Conflict, "sandbox_deleted".into()));
    assert_eq!(world.node.sandbox("third").await.unwrap().queue.unwrap().position, 1);
    let fourth = start("fourth");
    until(|| queued("fourth")).await;
    third.abort();
    assert!(third.await.is_err());
    until(|| world.node.0.sandboxes.find("third").is_err()).await;
    world.node.delete_sandbox(&first.id).await.unwrap();
    let fourth = fourth.await.unwrap().unwrap();
    assert_eq!((fourth.state, fourth.queue), (SandboxState::Running, None));
    assert!(fourth.queued_ms.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_takes_its_place_in_the_queue_along() {
    let world = World::new().await;
    let lease = world.node.create_lease(&LeaseRequest { ttl_seconds: 600 }).await.unwrap();
    let _first = world.create(|r| r.resources.memory_request_mb = Some(8192)).await.unwrap();
    let waiting = {
        let (node, lease) = (world.node.clone(), lease.id.clone());
        tokio::spawn(async move { node.create_sandbox(request(|r| r.lease = Some(lease))).await })
    };
    until(|| world.node.status().sandboxes.queued == 1).await;
    world.node.delete_lease(&lease.id).await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(code(&error), (Kind::Conflict, "lease_ended".into()));
    assert!(error.to_string().ends_with("its lease ended"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_loses_the_sandboxes_and_no_other_is_made() {
    let world = World::new().await;
    let made = world.create(|_| ()).await.unwrap();
    world.controls.disk_lost.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = world.create(|_| ()).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Unavailable, "disk_lost".into()));
    let lost = world.node.sandbox(&made.id).await.unwrap();
    assert_eq!((lost.state, lost.reason_code), (SandboxState::Lost, Some(ReasonCode::DiskLost)));
    assert!(lost.reason.unwrap().contains("/pool.btrfs is gone"));
    until(|| world.controls.machine(&made.id).is_dead()).await;
    until(|| world.node.status().memory.committed_bytes == 0).await;
    let disk = world.node.doctor().await.checks.pop().unwrap();
    assert_eq!((disk.name.as_str(), disk.status), ("disk", berth_types::system::CheckStatus::Fail));
    let error = world.node.guest_error(&made.id, berth_sandbox::guest::Error::Gone).await;
    assert_eq!(code(&error), (Kind::Unavailable, "sandbox_lost".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_on_purpose_did_not_fail() {
    let world = World::new().await;
    let cut = async |reason_code| {
        let made = world.create(|_| ()).await.unwrap();
        world.node.0.sandboxes.update(&made.id, |entry| {
            let sandbox = &mut entry.row.sandbox;
            sandbox.state = SandboxState::Stopping;
            (sandbox.reason_code, sandbox.reason) = (Some(reason_code), Some("so it was".to_owned()));
        });
        code(&world.node.guest_error(&made.id, berth_sandbox::guest::Error::Gone).await)
    };
    assert_eq!(cut(ReasonCode::Ttl).await, (Kind::Conflict, "sandbox_ended".into()));
    assert_eq!(cut(ReasonCode::Deleted).await, (Kind::Conflict, "sandbox_deleted".into()));
    assert_eq!(cut(ReasonCode::LeaseEnded).await, (Kind::Conflict, "lease_ended".into()));
    assert_eq!(cut(ReasonCode::DaemonRestart).await, (Kind::Unavailable, "sandbox_lost".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_leaves_word_of_what_ran() {
    let world = World::new().await;
    let made = world.create(|_| ()).await.unwrap();
    world.node.shutdown().await;
    assert!(world.controls.machine(&made.id).is_dead());
    let id = made.id.clone();
    let rows = world.node.with_store(|store| store.sandboxes()).await.unwrap();
    let row = rows.into_iter().find(|row| row.sandbox.id == id).unwrap();
    assert_eq!(row.sandbox.state, SandboxState::Lost);
    assert_eq!(row.sandbox.reason_code, Some(ReasonCode::DaemonRestart));
    assert!(row.ended_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_use_is_waited_for_and_a_full_disk_is_not() {
    let world = World::new().await;
    world.controls.reading.lock().unwrap().memory_available = Some(0);
    tokio::time::sleep(Duration::from_millis(60)).await;
    let waiting = {
        let node = world.node.clone();
        tokio::spawn(async move { node.create_sandbox(request(|_| ())).await })
    };
    until(|| world.node.status().sandboxes.queued == 1).await;
    *world.controls.reading.lock().unwrap() = roomy();
    waiting.await.unwrap().unwrap();
    world.controls.reading.lock().unwrap().disk_free = Some(0);
    tokio::time::sleep(Duration::from_millis(60)).await;
    let error = world.create(|_| ()).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Capacity, "disk_full".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_time_is_up_is_ended_and_remembered() {
    let world = World::new().await;
    let made = world.create(|r| r.ttl_seconds = Some(600)).await.unwrap();
    assert!(made.expires_at.is_some());
    let kept = world.create(|r| r.ttl_seconds = Some(1)).await.unwrap();
    assert_eq!(world.node.set_ttl(&kept.id, None).await.unwrap().expires_at, None);
    world.node.set_ttl(&made.id, Some(1)).await.unwrap();
    let machine = world.controls.machine(&made.id);
    *machine.usage.lock().unwrap() = Usage { pids: Some(3), ..Usage::default() };
    until(|| world.node.0.sandboxes.find(&made.id).unwrap().sandbox().state == SandboxState::Ended).await;
    let ended = world.node.sandbox(&made.id).await.unwrap();
    assert_eq!(ended.reason_code, Some(ReasonCode::Ttl));
    assert_eq!(ended.usage.unwrap().pids, Some(3));
    assert!(machine.is_dead());
    let error = world.node.set_ttl(&made.id, Some(9)).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Conflict, "sandbox_ended".into()));
    assert_eq!(world.node.sandbox(&kept.id).await.unwrap().state, SandboxState::Running);
    assert_eq!(world.node.status().memory.committed_bytes, 16 << 20);
    world.node.delete_sandbox(&made.id).await.unwrap();
    assert!(world.node.sandbox(&made.id).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_has_a_code_its_last_usage_and_gives_its_room_back() {
    let world = World::new().await;
    for (kills, expected) in [(0, ReasonCode::GuestLost), (3, ReasonCode::OutOfMemory)] {
        let made = world.create(|_| ()).await.unwrap();
        let machine = world.controls.machine(&made.id);
        *machine.usage.lock().unwrap() = Usage { memory_peak_bytes: Some(9), ..Usage::default() };
        machine.die(kills);
        until(|| world.node.0.sandboxes.find(&made.id).unwrap().sandbox().state == SandboxState::Lost).await;
        until(|| world.node.status().memory.committed_bytes == 0).await;
        let lost = world.node.sandbox(&made.id).await.unwrap();
        assert_eq!(lost.reason_code, Some(expected));
        assert_eq!(lost.usage.unwrap().memory_peak_bytes, Some(9));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_daemon_ran_is_lost_with_a_code() {
    let ran = World::new().await.create(|_| ()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let row = SandboxRow { sandbox: ran.clone(), idempotency_key: None, ended_at: None, resume: None };
    Store::open(dir.path()).unwrap().put_sandbox(&row).unwrap();
    let world = World::at(dir, Controls { reading: Mutex::new(roomy()), ..Controls::default() }).await;
    let lost = world.node.sandbox(&ran.id).await.unwrap();
    assert_eq!((lost.state, lost.reason_code), (SandboxState::Lost, Some(ReasonCode::DaemonRestart)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_would_enforce_is_refused_unless_allowed() {
    let world = World::with(Controls { reading: Mutex::new(roomy()), ..Controls::default() }).await;
    let storage = Resources { storage_mb: Some(64), ..Resources::default() };
    let error = world.create(|r| r.resources = storage.clone()).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Config, "storage_unenforced".into()));
    let hint = ApiError::from(&error).hint.unwrap();
    for way in ["allow_unenforced_storage = true", "--ek", "--allow-unenforced-storage", "storage_unenforced"]
    {
        assert!(hint.contains(way), "{hint}");
    }
    let made = world
        .create(|r| {
            r.resources = storage;
            r.storage_unenforced = berth_types::sandbox::Unenforced::Allow;
        })
        .await
        .unwrap();
    assert!(!made.storage_enforced);
    assert_eq!(world.controls.specs.lock().unwrap()[0].limits.storage_bytes, None);
    // What this driver does not have is refused too.
    let error = world.create(|r| r.user_namespace = Some(true)).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Config, "unsupported".into()));
    let none = Capabilities::Set(CapabilitySet::None);
    let error = world.create(|r| r.capabilities = none).await.unwrap_err();
    assert_eq!(code(&error).1, "unsupported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_can_is_told_of_namespace_and_capabilities() {
    let features = Features { user_namespace: true, capabilities: true };
    let controls = Controls { reading: Mutex::new(roomy()), enforces: true, features, ..Controls::default() };
    let world = World::with(controls).await;
    let none = Capabilities::Set(CapabilitySet::None);
    let made = world.create(|r| r.capabilities = none.clone()).await.unwrap();
    assert!(made.user_namespace);
    assert_eq!(made.capabilities, none);
    world.create(|r| r.user_namespace = Some(false)).await.unwrap();
    let specs = world.controls.specs.lock().unwrap().clone();
    assert_eq!((specs[0].user_namespace, specs[1].user_namespace), (true, false));
    assert_eq!(specs[0].capabilities, none);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_owners_that_no_user_namespace_has_is_refused() {
    let features = Features { user_namespace: true, capabilities: true };
    let controls = Controls { reading: Mutex::new(roomy()), features, ..Controls::default() };
    let world = World::with(controls).await;
    world.import("low", rootfs(99_999)).await;
    world.import("high", rootfs(100_000)).await;
    world.create(|r| r.image = "low".into()).await.unwrap();
    let error = world.create(|r| r.image = "high".into()).await.unwrap_err();
    assert_eq!(code(&error), (Kind::Config, "owners_beyond".into()));
    assert!(error.to_string().contains("user or group 100000") && error.to_string().contains("0 to 99999"));
    let hint = ApiError::from(&error).hint.unwrap();
    assert!(hint.contains("ids_per_sandbox") && hint.contains("above 100000"), "{hint}");
    let made = world.create(|r| (r.image, r.user_namespace) = ("high".into(), Some(false))).await.unwrap();
    assert!(!made.user_namespace);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_gets_its_sandbox_defaults_and_all() {
    let world = World::new().await;
    let keyed = |r: &mut berth_types::sandbox::CreateSandbox| r.idempotency_key = Some("k".into());
    let first = world.create(keyed).await.unwrap();
    assert_eq!(world.create(keyed).await.unwrap().id, first.id);
    let error = world
        .create(|r| {
            keyed(r);
            r.resources.pids = Some(4096);
        })
        .await
        .unwrap_err();
    assert_eq!(code(&error).1, "idempotency_key_reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_the_machines_room_is_served_to_the_last() {
    let world = World::new().await;
    let burst = (0..60).map(|_| async {
        // Eight at a time have room.
        let made = world.create(|r| r.resources.memory_request_mb = Some(1000)).await?;
        assert!(world.node.status().memory.committed_bytes <= 8 << 30);
        world.node.delete_sandbox(&made.id).await
    });
    for result in futures_util::future::join_all(burst).await {
        result.unwrap();
    }
    let status = world.node.status();
    assert_eq!((status.memory.committed_bytes, status.starts.running, status.sandboxes.queued), (0, 0, 0));
}
