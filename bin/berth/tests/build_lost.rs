//! A daemon that is killed, and a disk that is full, in the middle of what is done to the store: afterwards it is whole, and
//! nothing is left.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::builds::{Built, send};
use support::registry::Registry;
use support::{Daemon, busybox_rootfs, eventually, write_tree};

fn build(daemon: &Daemon, dockerfile: &str) -> Built {
    send(daemon, "/v1/images/build", &json!({}), &[("Dockerfile", 0o644, dockerfile)])
}

/// The last line of what a call tells.
#[track_caller]
fn ask(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let (_, answer) = daemon.request("POST", path, &body.to_string());
    serde_json::from_str(answer.lines().last().unwrap()).unwrap()
}

/// The store is what it says of itself, byte for byte.
#[track_caller]
fn is_whole(daemon: &Daemon) {
    let report = ask(daemon, "/v1/images/verify", &json!({"deep": true}));
    assert_eq!(report["result"]["problems"], json!([]), "{report}");
    assert_eq!(report["result"]["unverifiable"], json!([]), "{report}");
}

/// Scratch files in the store but for those of downloads that go on.
fn scratch(daemon: &Daemon) -> Vec<String> {
    let (mut names, mut known) = (Vec::new(), false);
    // A pool is mounted where only its daemon sees it.
    let root = format!("/proc/{}/root{}", daemon.pid(), daemon.path().display());
    for tmp in ["data/tmp", "data/pool/tmp"] {
        let Ok(entries) = std::fs::read_dir(format!("{root}/{tmp}")) else { continue };
        known = true;
        names.extend(entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()));
    }
    assert!(known, "no scratch space is found at all");
    names.retain(|name| !name.starts_with("part-"));
    names
}

/// Nothing of this daemon's earlier life is on the machine: no scratch files, mounts or control groups.
#[track_caller]
fn nothing_is_left(daemon: &Daemon) {
    eventually("an empty scratch space", || scratch(daemon).is_empty());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let path = daemon.path().display().to_string();
    assert!(!mounts.contains(&path), "{mounts}");
    let groups = groups(daemon);
    assert_eq!(groups, [""; 0], "control groups of steps");
}

/// Control groups of steps of this daemon.
fn groups(daemon: &Daemon) -> Vec<String> {
    let data = daemon.path().join("data").canonicalize().unwrap();
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    let instance: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    let mut groups = Vec::new();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/memory"] {
        let Ok(entries) = std::fs::read_dir(format!("{root}/berth/{instance}")) else { continue };
        let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
        groups.extend(
            dirs.map(|entry| entry.file_name().into_string().unwrap())
                .filter(|name| name.starts_with("build-")),
        );
    }
    groups
}

/// Bytes that no compression makes fewer.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A busybox with a file of so many bytes.
fn large_rootfs(len: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(busybox_entries());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(len as u64);
    tar.append_data(&mut header, "large", noise(7, len).as_slice()).unwrap();
    tar.into_inner().unwrap()
}

/// The entries of a busybox's archive, without its end.
fn busybox_entries() -> Vec<u8> {
    let mut archive = busybox_rootfs();
    archive.truncate(archive.len() - 1024);
    archive
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_pull_goes_on_with_it_and_leaves_nothing() {
    require_busybox!();
    let mut daemon = Daemon::start();
    let layer = large_rootfs(8 << 20);
    let registry = Registry::of(layer.clone());
    registry.hold(layer.len() / 2);
    let reference = format!("{}/base:1", registry.host);
    let mut client = daemon.command(&["image", "pull", &reference]);
    let client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("half of the layer", || registry.holds_somebody());
    daemon.kill();
    assert!(!client.wait_with_output().unwrap().status.success());
    registry.release();
    daemon.restart(&[]);
    is_whole(&daemon);
    nothing_is_left(&daemon);
    assert_eq!(
        daemon.ok(&["image", "ls", "--json"]).matches("sha256").count(),
        0,
        "nothing half-done is visible"
    );
    daemon.ok(&["image", "pull", &reference]);
    is_whole(&daemon);
    nothing_is_left(&daemon);
    daemon.ok(&["sandbox", "create", &reference, "--name", "box", "--network", "no-network"]);
    assert_eq!(daemon.sh("box", "wc -c < /large").1, format!("{}\n", 8 << 20));
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_an_export_leaves_nothing() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let tar = daemon.path().join("large.tar");
    std::fs::write(&tar, large_rootfs(32 << 20)).unwrap();
    daemon.ok(&["image", "import", tar.to_str().unwrap(), "--reference", "large:1"]);
    let body = json!({"images": ["large:1"]}).to_string();
    let mut export = daemon.send("POST", "/v1/images/export", &body);
    let mut first = vec![0; 64 << 10];
    export.read_exact(&mut first).unwrap();
    daemon.kill();
    drop(export);
    daemon.restart(&[]);
    is_whole(&daemon);
    nothing_is_left(&daemon);
    // The client's half is no archive for anybody.
    let half = daemon.path().join("half.tar");
    let start = first.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    std::fs::write(&half, &first[start..]).unwrap();
    daemon.fails(&["image", "import", half.to_str().unwrap()]);
    is_whole(&daemon);
    nothing_is_left(&daemon);
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_prune_leaves_whole_images() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    for (round, delay) in [0, 3, 10, 30, 80].into_iter().enumerate() {
        for image in 0..6 {
            let tar = daemon.path().join("some.tar");
            write_archive(&tar, round * 10 + image);
            daemon.ok(&[
                "image",
                "import",
                tar.to_str().unwrap(),
                "--reference",
                &format!("some:{round}.{image}"),
            ]);
        }
        let answer = daemon.send("POST", "/v1/images/prune", r#"{"all":true,"cache_mounts":true}"#);
        std::thread::sleep(Duration::from_millis(delay));
        daemon.kill();
        drop(answer);
        daemon.restart(&[]);
        is_whole(&daemon);
        nothing_is_left(&daemon);
        let images: Value = serde_json::from_str(&daemon.ok(&["image", "ls", "--json"])).unwrap();
        let images = images["items"].as_array().or(images.as_array()).unwrap();
        // What is still there can be used.
        if let Some(image) = images.first() {
            let name = format!("box{round}");
            let id = image["id"].as_str().unwrap();
            daemon.ok(&["sandbox", "create", id, "--name", &name, "--network", "no-network"]);
            assert_eq!(daemon.sh(&name, "echo runs").1, "runs\n");
            daemon.ok(&["sandbox", "rm", &name]);
        }
    }
    let report = ask(&daemon, "/v1/images/prune", &json!({"all": true, "cache_mounts": true}));
    assert_eq!(report["result"]["left_bytes"], 0, "{report}");
    is_whole(&daemon);
}

/// A busybox with many small files, no two archives the same.
fn write_archive(path: &std::path::Path, seed: usize) {
    let mut tar = tar::Builder::new(busybox_entries());
    for file in 0..200 {
        let content = format!("{seed} {file}");
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, format!("many/{seed}/{file}"), content.as_bytes()).unwrap();
    }
    std::fs::write(path, tar.into_inner().unwrap()).unwrap();
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_build_leaves_nothing_of_its_steps() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let dockerfile = "FROM busybox:test AS lib\nRUN mkdir /out && echo lent > /out/file\nFROM busybox:test\n\
        RUN --mount=from=lib,source=/out,target=/m --mount=type=cache,from=lib,source=/out,target=/c \
        echo half > /half; sleep 9191919\n";
    write_tree(&daemon.path().join("context"), &[("Dockerfile", 0o644, dockerfile)]);
    let mut client = daemon.command(&["image", "build", "context"]);
    let client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the step", || support::process_with("9191919"));
    assert_ne!(groups(&daemon), [""; 0], "no control groups are found at all");
    daemon.kill();
    client.wait_with_output().unwrap();
    daemon.restart(&[]);
    eventually("the step's end", || !support::process_with("9191919"));
    is_whole(&daemon);
    nothing_is_left(&daemon);
    let built = build(&daemon, "FROM busybox:test\nRUN ! ls /half\n");
    built.succeeded();
}

#[test]
fn a_pull_that_fills_the_disk_is_the_machines_failure_and_leaves_what_was_there() {
    require_busybox!();
    let Some(daemon) = Daemon::on_small_disk(96) else { return };
    let registry = Registry::of(large_rootfs(120 << 20));
    let failed = ask(&daemon, "/v1/images/pull", &json!({"reference": format!("{}/base:1", registry.host)}));
    let error = &failed["error"];
    assert!(["capacity", "unavailable"].contains(&error["kind"].as_str().unwrap()), "{failed}");
    assert!(error.to_string().contains("disk"), "{failed}");
    is_whole(&daemon);
    // What did not fit takes no room from what does.
    eventually("room", || {
        build(&daemon, "FROM busybox:test\nRUN head -c 30000000 /dev/zero > /some\n").lines.last().unwrap()["result"].is_object()
    });
    is_whole(&daemon);
}

#[test]
fn a_full_disk_can_be_exported_from_and_pruned() {
    require_busybox!();
    let Some(daemon) = Daemon::on_small_disk(96) else { return };
    let fills = "FROM busybox:test\nRUN --mount=type=cache,target=/c head -c 400000000 /dev/zero > /c/big\n";
    let failed = build(&daemon, fills);
    assert_eq!(failed.error()["kind"], "unavailable", "{}", failed.error());
    is_whole(&daemon);
    let (status, body) = daemon.request("POST", "/v1/images/export", r#"{"images":["busybox:test"]}"#);
    assert_eq!(status, 200, "{body}");
    assert!(body.len() > 500_000, "{} bytes", body.len());
    // The step's sandbox is being ended still.
    eventually("the cache to go", || {
        let report = ask(&daemon, "/v1/images/prune", &json!({"cache_mounts": true}));
        let gone = report["result"]["cache_mounts"] == json!(["/c"]);
        gone && report["result"]["freed_bytes"].as_u64().unwrap() > 10 << 20
    });
    is_whole(&daemon);
    build(&daemon, "FROM busybox:test\nRUN head -c 30000000 /dev/zero > /some\n").succeeded();
}

/// A pool that cannot grow, on a disk that could take more.
const FULL_POOL: &str =
    "[disk]\nengine = \"btrfs-loop\"\npool_size_mb = 256\npool_max_mb = 256\nreserve_mb = 0\n";

#[test]
fn a_cache_mount_that_fills_the_pool_is_the_machines_failure_and_breaks_nothing() {
    require_busybox!();
    let mkfs = ["/sbin/mkfs.btrfs", "/usr/sbin/mkfs.btrfs"];
    if !mkfs.iter().any(|path| std::path::Path::new(path).exists()) {
        println!("SKIP: no mkfs.btrfs (Debian's btrfs-progs)");
        return;
    }
    let daemon = Daemon::configured_with_busybox(FULL_POOL);
    daemon.sandbox("beside", &["--network", "no-network"]);
    let fills =
        "FROM busybox:test\nRUN --mount=type=cache,target=/c dd if=/dev/zero of=/c/big bs=1M count=400\n";
    let failed = build(&daemon, fills);
    let error = failed.error();
    assert_eq!(error["kind"], "unavailable", "{error}");
    assert!(error["message"].to_string().contains("the machine's disk is full"), "{error}");
    is_whole(&daemon);
    assert_eq!(daemon.sh("beside", "echo runs").1, "runs\n", "others live on");
    // The step's sandbox is being ended still.
    eventually("the cache to go", || {
        let report = ask(&daemon, "/v1/images/prune", &json!({"cache_mounts": true}));
        report["result"]["cache_mounts"] == json!(["/c"])
    });
    eventually("room", || {
        build(&daemon, "FROM busybox:test\nRUN head -c 30000000 /dev/urandom > /some\n").lines.last().unwrap()
            ["result"]
            .is_object()
    });
    is_whole(&daemon);
}
