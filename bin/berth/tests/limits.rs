//! Limits of sandboxes on the machine's own choice of disk engine, through the doors: each holds, is named where it was
//! met, and locks nobody out.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::{Child, Stdio};

use serde_json::{Value, json};
use support::{Daemon, Outcome, PLAIN, SMALL_POOL, compiled, eventually, meets, text};

fn line(daemon: &Daemon, sandbox: &str, line: &str) -> Outcome {
    daemon.exec(sandbox, &Value::from(line))
}

fn usage(daemon: &Daemon, sandbox: &str) -> Value {
    daemon.show(sandbox)["usage"].clone()
}

#[test]
fn a_memory_hog_is_named_and_leaves_the_sandbox_as_it_was() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network", "--memory-mb", "64"]);
    let hog = line(&daemon, "box", "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}");
    assert_eq!((hog.code(), &hog.status["reason"]), (137, &json!("out_of_memory")), "{hog:?}");
    assert!(hog.status["oom_kills"].as_u64() >= Some(1) && hog.met("memory"), "{hog:?}");
    // One that only started what was killed ends as it chooses, and is told all the same.
    let parent = line(&daemon, "box", "(x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}); exit 3");
    assert_eq!((parent.code(), &parent.status["reason"]), (3, &json!("exited")), "{parent:?}");
    assert!(parent.status["oom_kills"].as_u64() >= Some(1) && parent.met("memory"), "{parent:?}");

    let after = line(&daemon, "box", "echo usable");
    assert_eq!((after.stdout.as_str(), after.met("memory")), ("usable\n", false), "{after:?}");
    assert_eq!(after.status.get("rescued"), None, "{after:?}");
    let usage = usage(&daemon, "box");
    let (limit, peak) = (usage["memory_limit_bytes"].as_u64(), usage["memory_peak_bytes"].as_u64());
    assert_eq!(limit, Some(64 << 20), "{usage}");
    assert!(peak > Some(60 << 20) && peak <= limit, "{usage}");
    assert!(meets(&usage, "memory") && usage["oom_kills"].as_u64() >= Some(2), "{usage}");
}

/// Fills the memory by one command so that no kill frees it; the sandbox can be entered, and freed by another.
fn full_of_what_cannot_be_killed(daemon: &Daemon, fill: &str, free: &str) {
    daemon.sandbox("box", &["--network", "no-network", "--memory-mb", "48"]);
    let hog = line(daemon, "box", fill);
    assert!(hog.code() != 0 && hog.met("memory"), "{fill}: {hog:?}");
    let inside = line(daemon, "box", "echo entered");
    assert_eq!(inside.stdout, "entered\n", "{fill}: {inside:?}");
    assert_eq!(inside.status["rescued"], true, "{fill}: {inside:?}");
    let freed = line(daemon, "box", free);
    assert_eq!((freed.code(), &freed.status["rescued"]), (0, &json!(true)), "{fill}: {freed:?}");
    let after = line(daemon, "box", "echo free");
    assert_eq!((after.stdout.as_str(), after.status.get("rescued")), ("free\n", None), "{fill}: {after:?}");
    // Full again, it can be deleted.
    assert_ne!(line(daemon, "box", fill).code(), 0, "{fill}");
    daemon.ok(&["sandbox", "rm", "box"]);
}

#[test]
fn memory_full_of_files_locks_nobody_out() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    for place in ["/dev/shm", "/dev"] {
        let fill = format!("head -c 60000000 /dev/zero > {place}/hog");
        full_of_what_cannot_be_killed(&daemon, &fill, &format!("rm {place}/hog"));
    }
}

#[test]
fn memory_full_of_segments_locks_nobody_out() {
    require_busybox!();
    let Some(program) = compiled("attempts.c") else { return };
    let daemon = Daemon::with_busybox_and(&[("attempts", 0o755, &program)]);
    full_of_what_cannot_be_killed(&daemon, "/attempts segment 60", "/attempts no-segment");
}

#[test]
fn a_sandbox_out_of_processes_can_be_entered_and_deleted() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network", "--pids", "20"]);
    let many = line(&daemon, "box", "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done");
    assert!(many.code() != 0 && many.met("pids"), "{many:?}");
    let usage = usage(&daemon, "box");
    assert!(meets(&usage, "pids") && usage["pids_limit"] == 20, "{usage}");
    assert!(usage["pids"].as_u64() >= Some(19) && usage["pids"].as_u64() <= Some(20), "{usage}");
    let inside = line(&daemon, "box", "exec echo entered");
    assert_eq!((inside.stdout.as_str(), inside.code()), ("entered\n", 0), "{inside:?}");
    // Nothing is left to fork with, but a shell by itself can end all others.
    assert_eq!(line(&daemon, "box", "kill -9 -1").code(), 0);
    eventually("room for processes", || line(&daemon, "box", "echo again | cat").stdout == "again\n");
    let _ = line(&daemon, "box", "i=0; while [ $i -lt 40 ]; do sleep 1000 & i=$((i+1)); done");
    daemon.ok(&["sandbox", "rm", "box"]);
}

const MB: u64 = 1 << 20;

#[test]
fn a_full_disk_is_full_at_its_limit_and_for_nobody_else() {
    require_busybox!();
    // Where the engine is a pool, it may grow to this.
    let daemon = Daemon::configured_with_busybox(&format!("{SMALL_POOL}pool_max_mb = 320\n"));
    if daemon.json("GET", "/v1/node", &Value::Null).1["policy"]["storage_enforced"] != true {
        println!("SKIP: the disk engine that can be had here enforces no limits of storage");
        return;
    }
    daemon.sandbox("neighbour", &["--network", "no-network", "--storage-mb", "50"]);
    let limit = 100;
    daemon.sandbox("box", &["--network", "no-network", "--storage-mb", &limit.to_string()]);
    for place in ["/big", "/tmp/big", "/root/big", "/etc/hosts"] {
        let fill = format!("dd if=/dev/zero of={place} bs=64k; code=$?; stat -c %s {place}; exit $code");
        let full = line(&daemon, "box", &fill);
        assert_eq!(full.code(), 1, "{place}: {full:?}");
        assert!(is_full(&full.stderr), "{place}: {full:?}");
        let written: u64 = full.stdout.trim().parse().unwrap();
        assert!(written <= limit * MB && written >= limit * MB * 98 / 100, "{place}: {written}");
        // The end of a command waits for the answer only a moment, so on a busy machine the next may be the one told.
        eventually("an exec that is told", || line(&daemon, "box", "echo x > /another").met("disk"));
        let usage = usage(&daemon, "box");
        assert!(meets(&usage, "disk"), "{place}: {usage}");
        assert_eq!(usage["disk_limit_bytes"], limit * MB, "{place}: {usage}");
        assert!(usage["disk_bytes"].as_u64() >= Some(limit * MB * 98 / 100), "{place}: {usage}");
        assert_eq!(line(&daemon, "box", "head -n 1 /etc/passwd").stdout, "root:x:0:0:root:/root:/bin/sh\n");
        let other = line(&daemon, "neighbour", "dd if=/dev/zero of=/mine bs=1M count=20 && rm /mine");
        assert_eq!(other.code(), 0, "{place}: {other:?}");
        if place != "/etc/hosts" {
            assert_eq!(line(&daemon, "box", &format!("rm {place}")).code(), 0, "{place}");
        }
    }
    daemon.ok(&["sandbox", "rm", "box"]);
    // The pool has no room for them all together. What was deleted goes by itself, in a while.
    let full_again = || {
        let limits = ["--network", "no-network", "--storage-mb", &limit.to_string()];
        let made =
            daemon.run(&[&["sandbox", "create", "busybox:test", "--name", "box"], &limits[..]].concat());
        if !made.status.success() {
            return false;
        }
        let full = line(&daemon, "box", "dd if=/dev/zero of=/big bs=64k; stat -c %s /big");
        daemon.ok(&["sandbox", "rm", "box"]);
        full.stdout.trim().parse::<u64>().is_ok_and(|written| written >= limit * MB * 98 / 100)
    };
    for _ in 0..4 {
        eventually("the space comes back", full_again);
    }
}

/// By the disk engine: EDQUOT or ENOSPC.
fn is_full(message: &str) -> bool {
    message.contains("quota exceeded") || message.contains("No space left")
}

#[test]
fn an_image_without_layers_is_limited_as_well() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let context = daemon.path().join("context");
    support::write_tree(&context, &[("Dockerfile", 0o644, "FROM scratch\nENV A=b\n")]);
    daemon.ok(&["image", "build", context.to_str().unwrap(), "-t", "empty:test"]);
    let limits = ["--network", "no-network", "--storage-mb", "20"];
    daemon.ok(&[&["sandbox", "create", "empty:test", "--name", "box"], &limits[..]].concat());
    daemon.ok(&["sandbox", "cp", "/bin/busybox", "box:/bin/busybox"]);
    let fill = daemon.exec(
        "box",
        &json!({"command": {"argv": ["/bin/busybox", "dd", "if=/dev/zero", "of=/big", "bs=64k"]}}),
    );
    assert!(fill.code() == 1 && is_full(&fill.stderr), "{fill:?}");
    let size =
        daemon.exec("box", &json!({"command": {"argv": ["/bin/busybox", "stat", "-c", "%s", "/big"]}}));
    assert!(size.stdout.trim().parse::<u64>().unwrap() <= 20 * MB, "{size:?}");
    daemon.ok(&["sandbox", "rm", "box"]);
}

#[test]
fn a_hundred_thousand_files_hold_up_no_delete() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let made = line(
        &daemon,
        "box",
        "mkdir /many; cd /many; i=0; while [ $i -lt 100000 ]; do : > $i; i=$((i+1)); done; ls | wc -l",
    );
    assert_eq!(made.stdout, "100000\n", "{made:?}");
    let (status, answer) = daemon.json("DELETE", "/v1/sandboxes/box", &Value::Null);
    assert_eq!(status, 204, "{answer}");
    daemon.sandbox("box", &["--network", "no-network"]);
    assert_eq!(line(&daemon, "box", "ls -d /many; echo new").stdout, "new\n");
}

#[test]
fn processor_time_is_limited() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network", "--cpus", "0.5"]);
    let before = usage(&daemon, "box")["cpu_seconds"].as_f64().unwrap();
    let burn = "(while :; do :; done) & while :; do :; done";
    let burnt = daemon.exec("box", &json!({"command": {"shell": burn}, "timeout_seconds": 3}));
    assert_eq!((burnt.code(), &burnt.status["reason"]), (124, &json!("timed_out")), "{burnt:?}");
    let wall = burnt.status["duration_ms"].as_f64().unwrap() / 1000.0;
    let spent = usage(&daemon, "box")["cpu_seconds"].as_f64().unwrap() - before;
    println!("NOTE: {spent} s of processor time in {wall} s");
    // An upper bound only: a busy machine gives less.
    assert!(spent <= 0.5 * wall * 1.1, "{spent} s in {wall} s");
    assert!(spent > 0.0);
}

#[test]
fn programs_see_the_limits() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let doctor = text(&daemon.run(&["doctor"]).stdout);
    let shown =
        doctor.lines().find(|line| line.contains("limits shown inside")).unwrap_or_default().to_owned();
    if !["processors", "memory", "disk"].iter().all(|what| shown.contains(what)) {
        println!("SKIP: this machine cannot show sandboxes their limits: {shown}");
        return;
    }
    let limits = ["--cpus", "0.5", "--memory-mb", "64", "--storage-mb", "30"];
    for namespace in ["true", "false"] {
        let name = format!("box-{namespace}");
        let isolation = format!("--user-namespace={namespace}");
        daemon.sandbox(&name, &[&limits[..], &["--network", "no-network", &isolation]].concat());
        let says = |command: &str| line(&daemon, &name, command).stdout;
        assert_eq!(says("nproc"), "1\n");
        assert_eq!(says("grep -c ^processor /proc/cpuinfo"), "1\n");
        assert_eq!(says("grep -c '^cpu[0-9]' /proc/stat"), "1\n");
        assert_eq!(says("cat /sys/devices/system/cpu/online"), "0\n");
        assert_eq!(says("free -k | awk '/^Mem/ { print $2 }'"), "65536\n");
        assert_eq!(says("awk '/^MemTotal/ { print $2 }' /proc/meminfo"), "65536\n");
        assert_eq!(says("df -P -k / | awk 'END { print $2 }'"), "30720\n");
        // What is used shows as used.
        assert_eq!(
            line(
                &daemon,
                &name,
                "head -c 10000000 /dev/zero > /dev/shm/x; head -c 10000000 /dev/zero > /x; sync"
            )
            .code(),
            0
        );
        let free: u64 = says("awk '/^MemAvailable/ { print $2 }' /proc/meminfo").trim().parse().unwrap();
        assert!(free < 56_000, "{free}");
        let left: u64 = says("df -P -k / | awk 'END { print $4 }'").trim().parse().unwrap();
        assert!(left < 21_500, "{left}");
    }
}

#[test]
fn a_sandbox_ends_with_its_time_and_says_so() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network", "--ttl", "2"]);
    assert!(daemon.show("box")["expires_at"].is_string());
    let inside = daemon
        .command(&["sandbox", "exec", "box", "--", "sleep", "8080808"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = inside.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "the end of its sandbox is not the command's exit code");
    eventually("the end", || daemon.show("box")["state"] == "ended");
    assert_eq!(daemon.show("box")["reason_code"], "ttl");
    let (status, answer) =
        daemon.json("POST", "/v1/sandboxes/box/exec", &json!({"command": {"shell": "true"}}));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("sandbox_ended")), "{answer}");
    assert!(!support::process_with("8080808"));
    // Its name is free.
    daemon.sandbox("box", &["--network", "no-network"]);
}

#[test]
fn what_never_fits_is_refused_with_what_there_is() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let total = daemon.json("GET", "/v1/node", &Value::Null).1["memory"]["total_bytes"].as_u64().unwrap();
    for resources in [json!({"memory_mb": 9_999_999}), json!({"memory_request_mb": 9_999_999})] {
        let (status, answer) =
            daemon.json("POST", "/v1/sandboxes", &json!({"image": "busybox:test", "resources": resources}));
        assert_eq!((status, &answer["error"]["code"]), (507, &json!("never_fits")), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        let mut numbers = message.split(' ').filter_map(|word| word.parse::<u64>().ok());
        assert_eq!(numbers.next(), Some(9_999_999), "{answer}");
        // All of it, or what of it may be set aside.
        let has = numbers.next().unwrap();
        assert!(has > 0 && has <= total.div_ceil(MB), "{answer}");
    }
    let (code, message) = daemon.fails(&["sandbox", "create", "busybox:test", "--cpu-request", "10000"]);
    assert_eq!(code, 75, "{message}");
    assert!(message.contains("never fits") && message.contains("hint"), "{message}");
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("busybox"), "nothing is left of it");
}

/// A client that waits for its sandbox; it goes away with this.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn place(daemon: &Daemon, sandbox: &str) -> Option<u64> {
    let (status, answer) = daemon.json("GET", &format!("/v1/sandboxes/{sandbox}"), &Value::Null);
    (status == 200 && answer["state"] == "queued").then(|| answer["queue"]["position"].as_u64()).flatten()
}

#[test]
fn who_does_not_fit_now_waits_for_his_turn() {
    require_busybox!();
    let config = format!("{SMALL_POOL}[limits]\nmemory_reserve_mb = 256\n");
    let daemon = Daemon::configured_with_busybox(&config);
    let memory = daemon.json("GET", "/v1/node", &Value::Null).1["memory"].clone();
    let total = memory["total_bytes"].as_u64().unwrap();
    // More than half of what may be set aside: one fits, two do not.
    let request = ((total / MB - 256) * 52 / 100).to_string();
    if memory["available_bytes"].as_u64().unwrap() < total * 60 / 100 {
        println!("SKIP: others use too much of this machine's memory to set half of it aside");
        return;
    }
    let arguments = |name: &'static str| {
        vec![
            "sandbox",
            "create",
            "busybox:test",
            "--network",
            "no-network",
            "--memory-request-mb",
            &request,
            "--name",
            name,
        ]
    };
    let client = |name| Client(daemon.command(&arguments(name)).stdout(Stdio::null()).spawn().unwrap());
    daemon.ok(&arguments("first"));
    let mut second = client("second");
    eventually("a queue", || place(&daemon, "second") == Some(1));
    assert_eq!(daemon.show("second")["queue"]["waits_for"], "memory");
    let third = client("third");
    eventually("a longer queue", || place(&daemon, "third") == Some(2));
    let mut fourth = client("fourth");
    eventually("an even longer queue", || place(&daemon, "fourth") == Some(3));
    // Who does not wait is told; whose client goes away gives his place back.
    let (code, message) = daemon.fails(&[&arguments("fifth")[..], &["--wait", "0"]].concat());
    assert!(code == 75 && message.contains("place 4"), "{code} {message}");
    drop(third);
    eventually("a shorter queue", || place(&daemon, "fourth") == Some(2));
    eventually("no trace of it", || daemon.json("GET", "/v1/sandboxes/third", &Value::Null).0 == 404);
    let waiting = daemon.json("POST", "/v1/sandboxes/second/exec", &json!({"command": {"shell": "true"}}));
    assert_eq!((waiting.0, &waiting.1["error"]["code"]), (409, &json!("sandbox_queued")), "{waiting:?}");

    daemon.ok(&["sandbox", "rm", "first"]);
    assert_eq!(second.0.wait().unwrap().code(), Some(0));
    assert_eq!(line(&daemon, "second", "echo my turn").stdout, "my turn\n");
    assert!(daemon.show("second")["queued_ms"].as_f64() > Some(0.0));
    assert_eq!(place(&daemon, "fourth"), Some(1));
    // One that waits can be deleted, and its maker is told.
    daemon.ok(&["sandbox", "rm", "fourth"]);
    assert_eq!(fourth.0.wait().unwrap().code(), Some(73));
    daemon.ok(&["sandbox", "rm", "second"]);
}

#[test]
fn storage_that_nobody_limits_is_refused_unless_allowed() {
    require_busybox!();
    let daemon = Daemon::configured_with_busybox(PLAIN);
    let create = ["sandbox", "create", "busybox:test", "--network", "no-network", "--storage-mb", "100"];
    let (code, message) = daemon.fails(&create);
    assert_eq!(code, 78, "{message}");
    assert!(message.contains("hint") && message.contains("--allow-unenforced-storage"), "{message}");
    daemon.ok(&[&create[..], &["--name", "box", "--allow-unenforced-storage"]].concat());
    let shown = daemon.show("box");
    assert_eq!(shown["storage_enforced"], false, "{shown}");
    assert_eq!(shown["usage"].get("disk_limit_bytes"), None, "{shown}");
    // Who asks for none gets none, and is told so too.
    daemon.sandbox("other", &["--network", "no-network"]);
    assert_eq!(daemon.show("other")["storage_enforced"], false);
}

#[test]
fn root_without_capabilities_is_a_user_like_others() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    for namespace in ["--user-namespace=true", "--user-namespace=false"] {
        let name = if namespace.ends_with("true") { "box" } else { "bare" };
        daemon.sandbox(name, &["--network", "no-network", "--capabilities", "none", namespace]);
        let tried = line(&daemon, name, "touch /file && chown 5 /file");
        assert!(tried.code() == 1 && tried.stderr.contains("not permitted"), "{namespace}: {tried:?}");
        assert_eq!(line(&daemon, name, "chmod 600 /file; su alice -c true").code(), 1, "{namespace}");
        assert!(line(&daemon, name, "grep CapBnd /proc/self/status").stdout.contains("0000000000000000"));
        let alice = daemon.exec(name, &json!({"command": {"shell": "id -u"}, "user": "alice"}));
        assert_eq!(alice.stdout, "1000\n", "{namespace}: {alice:?}");
        assert_eq!(daemon.show(name)["capabilities"], "none");
    }
    daemon.sandbox("full", &["--network", "no-network"]);
    assert_eq!(line(&daemon, "full", "touch /file && chown 5 /file").code(), 0, "the control");
}

#[test]
fn a_sandbox_without_user_namespace_says_so() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("own", &["--network", "no-network"]);
    daemon.sandbox("bare", &["--network", "no-network", "--user-namespace=false"]);
    let map = |name| {
        let text = line(&daemon, name, "cat /proc/self/uid_map").stdout;
        text.split_whitespace().map(|number| number.parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(daemon.show("own")["user_namespace"], true);
    let own = map("own");
    assert!(own.len() == 3 && own[0] == 0 && own[1] >= 1 << 30, "{own:?}");
    assert_eq!(daemon.show("bare")["user_namespace"], false);
    assert_eq!(map("bare"), [0, 0, u64::from(u32::MAX)]);
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    for (field, value) in [
        ("cpus", json!(0)),
        ("cpus", json!(-1)),
        ("memory_mb", json!(1)),
        ("memory_mb", json!(0)),
        ("storage_mb", json!(0)),
        ("storage_inodes", json!(1)),
        ("pids", json!(1)),
    ] {
        let body = json!({"image": "busybox:test", "resources": {field: value}});
        let (status, answer) = daemon.json("POST", "/v1/sandboxes", &body);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{body}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(field) && message.contains(&value.to_string()), "{body}: {answer}");
    }
    for body in [
        r#"{"image": "busybox:test", "resources": {"cpus": NaN}}"#,
        r#"{"image": "busybox:test", "resources": {"cpus": 1e999}}"#,
        r#"{"image": "busybox:test", "resources": {"memory_mb": -1}}"#,
        r#"{"image": "busybox:test", "resources": {"memory_mb": 64.5}}"#,
        r#"{"image": "busybox:test", "resources": {"memory": 64}}"#,
        r#"{"image": "busybox:test", "user_namespace": "no"}"#,
    ] {
        let (status, answer) = daemon.request("POST", "/v1/sandboxes", body);
        assert!(status == 400 && answer.contains("bad_body"), "{body}: {status} {answer}");
    }
    for name in ["a\nb", "", " ", "../x", "\u{1b}[31m"] {
        let body = json!({"image": "busybox:test", "name": name});
        let (status, answer) = daemon.json("POST", "/v1/sandboxes", &body);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad_request")), "{name:?}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("name") && !message.contains('\n') && !message.contains('\u{1b}'),
            "{message:?}"
        );
    }
    for number in ["0", "-1", "NaN", "inf", "1e999", "x"] {
        let (code, message) =
            daemon.fails(&["sandbox", "create", "busybox:test", &format!("--cpus={number}")]);
        assert!(code == 2 && message.contains("--cpus"), "{number}: {code} {message}");
    }
    let (status, answer) = daemon.json("POST", "/v1/sandboxes", &json!({"image": "no:such"}));
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("image_not_found")), "{answer}");
    assert_eq!(daemon.json("GET", "/v1/sandboxes", &Value::Null).1["items"], json!([]));
    // The least of everything is not too little.
    daemon
        .sandbox("least", &["--network", "no-network", "--cpus", "0.01", "--memory-mb", "6", "--pids", "8"]);
    assert_eq!(line(&daemon, "least", "echo well").stdout, "well\n");
}

#[test]
fn commands_of_odd_sizes_run_or_say_why_not() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let run = |request: Value| daemon.exec("box", &request);
    assert_eq!(run(json!({"command": {"shell": ""}})).code(), 0);
    for argv in [json!([]), json!([""])] {
        let (status, body) =
            daemon.request("POST", "/v1/sandboxes/box/exec", &json!({"command": {"argv": argv}}).to_string());
        assert!(status == 400 || body.contains("the command is empty"), "{argv}: {status} {body}");
    }
    // One string of 128 KiB is what the kernel takes; 200 KB are all right in two.
    let long = "x".repeat(100_000);
    let two = run(json!({"command": {"argv": ["printf", "%s%s", long, long]}}));
    assert_eq!((two.code(), two.stdout.len()), (0, 200_000));
    let one = run(json!({"command": {"shell": format!("echo {long}{long}")}}));
    assert!(
        one.code() == 126 && one.status["message"].as_str().unwrap().contains("too long"),
        "{:?}",
        one.status
    );
    let value = "y".repeat(1 << 20);
    let env = run(json!({"command": {"shell": "true"}, "env": {"BIG": value}}));
    let message = env.status["message"].as_str().unwrap_or_default();
    assert!(env.code() == 126 && message.contains("BIG") && message.len() < 1000, "{:?}", env.status);
    let (status, answer) = daemon.json(
        "POST",
        "/v1/sandboxes",
        &json!({"image": "busybox:test", "name": "env", "env": {"BIG": value}}),
    );
    if status == 201 {
        let late = daemon.exec("env", &Value::from("true"));
        assert!(
            late.code() == 126 && late.status["message"].as_str().unwrap().contains("BIG"),
            "{:?}",
            late.status
        );
    } else {
        assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("env"), "{answer}");
    }
    for (user, name) in [("nobody-of-that-name", "nobody-of-that-name"), ("alice:no-group", "no-group")] {
        let output = run(json!({"command": {"shell": "true"}, "user": user}));
        let message = output.status["message"].as_str().unwrap_or_default();
        assert!(output.code() == 126 && message.contains(name), "{user}: {:?}", output.status);
        assert_eq!(output.status["reason"], "not_started");
    }
    // Beyond the range of ids: a user that no sandbox with ids of its own has.
    let beyond = run(json!({"command": {"shell": "id -u"}, "user": "4000000000"}));
    assert!(beyond.code() == 126 && beyond.status["message"].is_string(), "{:?}", beyond.status);
    assert_eq!(run(json!({"command": {"shell": "echo well"}})).stdout, "well\n");
}
