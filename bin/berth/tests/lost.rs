//! Faults of the machine's disk, through the doors: each is told from what a sandbox does to itself.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Daemon, eventually};

/// A pool that cannot grow, and sandboxes that may hold more together than it does.
const FULL_POOL: &str =
    "[disk]\nengine = \"btrfs-loop\"\npool_size_mb = 256\npool_max_mb = 256\nreserve_mb = 0\n";

macro_rules! require_pool {
    () => {
        require_busybox!();
        if !["/sbin/mkfs.btrfs", "/usr/sbin/mkfs.btrfs"]
            .iter()
            .any(|path| std::path::Path::new(path).exists())
        {
            println!("SKIP: {}: no mkfs.btrfs (Debian's btrfs-progs)", module_path!());
            return;
        }
    };
}

fn disk_check(daemon: &Daemon) -> Value {
    let (_, report) = daemon.json("GET", "/v1/doctor", &Value::Null);
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "disk").unwrap().clone()
}

#[test]
fn a_full_pool_is_told_from_a_sandboxes_own_limit() {
    require_pool!();
    let daemon = Daemon::configured_with_busybox(FULL_POOL);
    for name in ["one", "two"] {
        daemon.sandbox(name, &["--network", "no-network", "--storage-mb", "200"]);
    }
    let fill = |name: &str| {
        daemon.exec(name, &Value::from("dd if=/dev/zero of=/big bs=1M count=190; sync; echo x > /more"))
    };
    let _ = fill("one");
    let mut last = fill("two");
    eventually("a full pool", || {
        last = fill("two");
        last.code() != 0
    });
    assert_eq!(last.status["machine_disk_full"], true, "{last:?}");
    assert!(!last.met("disk"), "{last:?}");
    let usage = daemon.show("two")["usage"].clone();
    assert_eq!(usage["machine_disk_full"], true, "{usage}");
    assert!(daemon.log().contains("the machine's disk was full"));
}

#[test]
fn a_pool_that_is_cut_off_takes_its_sandboxes_along_and_says_so() {
    require_pool!();
    let daemon = Daemon::configured_with_busybox(FULL_POOL);
    daemon.sandbox("box", &["--network", "no-network"]);
    daemon.sandbox("idle", &["--network", "no-network"]);
    assert_eq!(disk_check(&daemon)["status"], "ok");
    let pool = File::options().write(true).open(daemon.path().join("data/pool.btrfs")).unwrap();
    pool.set_len(64 << 20).unwrap();
    // Nobody needs to ask for that.
    eventually("the loss", || daemon.show("idle")["state"] == "lost");
    for name in ["box", "idle"] {
        let shown = daemon.show(name);
        assert_eq!(shown["reason_code"], "disk_lost", "{shown}");
        assert!(shown["reason"].as_str().unwrap().contains("was cut off"), "{shown}");
    }
    let exec = json!({"command": {"shell": "true"}});
    let (status, answer) = daemon.json("POST", "/v1/sandboxes/box/exec", &exec);
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("sandbox_lost")), "{answer}");
    let (status, answer) = daemon.json("POST", "/v1/sandboxes", &json!({"image": "busybox:test"}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("disk_lost")), "{answer}");
    assert_eq!(disk_check(&daemon)["status"], "fail");
}

#[test]
fn files_that_a_pool_does_not_count_are_no_limit() {
    require_pool!();
    let daemon = Daemon::configured_with_busybox(FULL_POOL);
    let mut request =
        json!({"image": "busybox:test", "network": "no-network", "resources": {"storage_inodes": 100}});
    let (status, answer) = daemon.json("POST", "/v1/sandboxes", &request);
    assert_eq!(&answer["error"]["code"], "storage_unenforced", "{status} {answer}");
    assert_eq!(&answer["error"]["kind"], "config", "{answer}");
    request["storage_unenforced"] = json!("allow");
    let (status, answer) = daemon.json("POST", "/v1/sandboxes", &request);
    assert_eq!((status, &answer["storage_enforced"]), (201, &json!(false)), "{answer}");
}

#[test]
fn what_a_shutdown_ended_is_remembered() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    assert!(daemon.terminate().success());
    daemon.restart(&[]);
    let shown = daemon.show("box");
    assert_eq!(
        (&shown["state"], &shown["reason_code"]),
        (&json!("lost"), &json!("daemon_restart")),
        "{shown}"
    );
    // Its name is free.
    daemon.sandbox("box", &["--network", "no-network"]);
}

/// Takes the place of the daemon's stream to a sandbox's first process, and goes again.
fn break_stream(daemon: &Daemon, id: &str) {
    let socket = daemon.path().join("data/run").join(format!("{id}.sock"));
    // It has taken the place once it is greeted. A sandbox that is being ended lets nobody in.
    if let Ok(mut thief) = UnixStream::connect(socket) {
        let _ = thief.read(&mut [0]);
    }
}

#[test]
fn a_stream_that_breaks_is_made_again_and_one_that_breaks_too_often_is_the_end() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let id = daemon.show("box")["id"].as_str().unwrap().to_owned();
    let line = "echo x >> /count; for n in $(seq 200); do echo line $n; sleep 0.01; done; exit 7";
    let (code, out, err) = std::thread::scope(|scope| {
        let running = scope.spawn(|| daemon.sh("box", line));
        eventually("it runs", || daemon.sh("box", "test -e /count").0 == 0);
        for _ in 0..3 {
            break_stream(&daemon, &id);
            std::thread::sleep(Duration::from_millis(300));
        }
        running.join().unwrap()
    });
    let lines: String = (1..=200).map(|n| format!("line {n}\n")).collect();
    assert_eq!((code, out == lines), (7, true), "{out}\n{err}");
    assert_eq!(daemon.sh("box", "cat /count").1, "x\n", "it was started once");
    assert_eq!(daemon.show("box")["state"], "running");
    assert_eq!(daemon.log().matches("was made again").count(), 3);

    while daemon.show("box")["state"] == "running" {
        break_stream(&daemon, &id);
        std::thread::sleep(Duration::from_millis(200));
    }
    let shown = daemon.show("box");
    assert_eq!((&shown["state"], &shown["reason_code"]), (&json!("lost"), &json!("guest_lost")), "{shown}");
    assert!(shown["reason"].as_str().unwrap().contains("broke 6 times within 60 s"), "{shown}");
    let (status, answer) =
        daemon.json("POST", "/v1/sandboxes/box/exec", &json!({"command": {"shell": "true"}}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("sandbox_lost")), "{answer}");
}
