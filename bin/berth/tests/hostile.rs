//! Clients that go away half-way, disks that are full, and requests that make no sense.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::time::Duration;

use support::{Daemon, eventually, write_tree};

#[test]
fn a_delete_whose_client_goes_away_is_completed() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    for n in 0..24_u32 {
        let name = format!("box{n}");
        daemon.sandbox(&name, &["--network", "no-network"]);
        let request = daemon.send("DELETE", &format!("/v1/sandboxes/{name}"), "");
        // From before the daemon has read it to after the sandbox's end.
        std::thread::sleep(Duration::from_micros(u64::from(n) * 200));
        drop(request);
    }
    eventually("no sandbox is left half deleted", || {
        !daemon.ok(&["sandbox", "ls", "--json"]).contains("stopping")
    });
}

#[test]
fn a_full_disk_neither_stops_leases_nor_leaves_ghosts() {
    require_busybox!();
    let Some(daemon) = Daemon::on_small_disk(24) else { return };
    let (status, lease) = daemon.request("POST", "/v1/leases", r#"{"ttl_seconds": 4}"#);
    assert_eq!(status, 201, "{lease}");
    let lease = lease.split('"').nth(3).unwrap();
    let request = format!(r#"{{"image": "busybox:test", "name": "leased", "lease": "{lease}"}}"#);
    assert_eq!(daemon.request("POST", "/v1/sandboxes", &request).0, 201);
    daemon.sandbox("filler", &[]);
    daemon.sandbox("other", &[]);
    let fill = "dd if=/dev/zero of=/big bs=64k; dd if=/dev/zero of=/rest bs=512";
    assert!(daemon.sh("filler", fill).2.contains("No space left"));

    let (code, message) = daemon.fails(&["sandbox", "create", "busybox:test"]);
    assert_eq!(code, 75, "{message}");
    assert!(message.contains("full") || message.contains("No space left"), "{message}");
    eventually("the lease ends", || {
        daemon.request("GET", "/v1/sandboxes/leased", "").1.contains("stopping")
            || daemon.request("GET", "/v1/sandboxes/leased", "").0 == 404
    });

    // Its processes are dead and its files go; that it cannot be forgotten yet is told.
    let (status, body) = daemon.request("DELETE", "/v1/sandboxes/other", "");
    assert!(status == 204 || (status == 507 && body.contains("disk_full")), "{status} {body}");
    let (status, body) = daemon.request("DELETE", "/v1/sandboxes/filler", "");
    assert!(status == 204 || (status == 507 && body.contains("disk_full")), "{status} {body}");
    eventually("all is forgotten once there is room", || {
        daemon.request("GET", "/v1/sandboxes", "").1.contains(r#""items":[]"#)
    });
    daemon.sandbox("again", &[]);
    assert_eq!(daemon.sh("again", "echo well"), (0, "well\n".to_owned(), String::new()));
}

#[test]
fn what_cannot_be_meant_is_refused_in_the_apis_own_words() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let long = "x".repeat(5000);
    let archive = format!("/v1/sandboxes/box/archive?path=/{long}");
    for (method, path, body, code) in [
        ("GET", "/v1/sandboxes/%ff", "", "bad_path"),
        ("DELETE", "/v1/images/%ff", "", "bad_path"),
        ("GET", &archive, "", "bad_request"),
        ("POST", "/v1/sandboxes", r#"{"image": "busybox:test", "workdir": "/a\u0000"}"#, "bad_request"),
        ("POST", "/v1/sandboxes", r#"{"image": "busybox:test", "resources": {"cpus": 1e6}}"#, "bad_request"),
        ("POST", "/v1/sandboxes", r#"{"image": "#, "bad_body"),
        ("POST", "/v1/sandboxes", r#"{"image": "busybox:test", "imgae": 1}"#, "bad_body"),
    ] {
        let (status, answer) = daemon.request(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        assert!(answer.contains(&format!(r#""code":"{code}""#)), "{method} {path} {body}: {answer}");
    }
}

#[test]
fn a_list_of_users_that_never_ends_stops_nobody() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    for list in ["mkfifo /etc/passwd", "ln -s /dev/pts/ptmx /etc/passwd", "ln -s /dev/zero /etc/passwd"] {
        assert_eq!(daemon.sh("box", &format!("rm -f /etc/passwd; {list}")).0, 0, "{list}");
        // Root needs no list; who is to be looked up is not made out to be somebody.
        assert_eq!(daemon.sh("box", "echo in").1, "in\n", "{list}");
        let exec = ["sandbox", "exec", "box", "--user", "nobody", "--timeout", "5", "--", "true"];
        let (code, message) = daemon.fails(&exec);
        assert_eq!(code, 126, "{list}: {message}");
        assert!(message.contains("/etc/passwd cannot be read"), "{list}: {message}");
        // The sandbox still answers: its files can be put right.
        let remove = r#"{"op": "remove", "paths": ["/etc/passwd"]}"#;
        assert_eq!(daemon.request("POST", "/v1/sandboxes/box/fs", remove).0, 200);
        assert_eq!(daemon.sh("box", "echo well").1, "well\n");
    }
}

#[test]
fn a_run_that_is_told_to_end_takes_its_sandboxes_along() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let task = daemon.path().join("slow");
    let config =
        "schema_version = \"1.1\"\n[task]\nname = \"demo/slow\"\n[environment]\nallow_internet = false\n";
    write_tree(
        &task,
        &[
            ("task.toml", 0o644, config),
            ("instruction.md", 0o644, "Wait.\n"),
            ("environment/Dockerfile", 0o644, "FROM busybox:test\n"),
            ("solution/solve.sh", 0o755, "#!/bin/sh\nsleep 1000\n"),
            ("tests/test.sh", 0o755, "#!/bin/sh\necho 1 > /logs/verifier/reward.txt\n"),
        ],
    );
    let mut run = daemon.command(&["run", task.to_str().unwrap(), "--job-name", "told"]).spawn().unwrap();
    eventually("the trial runs", || daemon.ok(&["sandbox", "ls", "--json"]).contains("running"));
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("running"));
    let trials = std::fs::read_dir(daemon.path().join("jobs/told")).unwrap().flatten();
    let results: Vec<_> =
        trials.map(|trial| trial.path().join("result.json")).filter(|path| path.exists()).collect();
    let result = std::fs::read_to_string(results.first().unwrap()).unwrap();
    assert!(result.contains("CancelledError"), "{result}");
}
