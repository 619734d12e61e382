//! `berth run`: Harbor tasks without Python.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use support::{Daemon, write_tree};

const TEST: &str = "#!/bin/sh\nmkdir -p /logs/verifier\n[ \"$(cat /tmp/answer.txt 2>/dev/null)\" = 4 ] && echo 1 > \
                    /logs/verifier/reward.txt || echo 0 > /logs/verifier/reward.txt\n";

fn task(daemon: &Daemon, name: &str, test: &str, solve: &str) -> String {
    let dir = daemon.path().join(name);
    write_tree(
        &dir,
        &[
            (
                "task.toml",
                0o644,
                "schema_version = \"1.1\"\n[task]\nname = \"demo/square\"\n[verifier]\ntimeout_sec = 30.0\n\
            [agent]\ntimeout_sec = 5.0\n[environment]\ncpus = 1\nmemory_mb = 256\nallow_internet = false\n",
            ),
            ("instruction.md", 0o644, "Write the square of 2 to /tmp/answer.txt.\n"),
            ("environment/Dockerfile", 0o644, "FROM busybox:test\n"),
            ("solution/solve.sh", 0o755, solve),
            ("tests/test.sh", 0o755, test),
        ],
    );
    dir.to_str().unwrap().to_owned()
}

fn rewards(daemon: &Daemon, job: &str) -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir(daemon.path().join("jobs").join(job))
        .unwrap()
        .flatten()
        .filter_map(|trial| std::fs::read_to_string(trial.path().join("verifier/reward.txt")).ok())
        .map(|reward| reward.trim().to_owned())
        .collect();
    all.sort();
    all
}

#[test]
fn agents_get_what_they_earn() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let path = task(&daemon, "square", TEST, "#!/bin/sh\necho 4 > /tmp/answer.txt\n");
    daemon.ok(&["run", &path, "-a", "oracle", "--job-name", "oracle"]);
    assert_eq!(rewards(&daemon, "oracle"), ["1"]);
    daemon.ok(&["run", &path, "-a", "nop", "--job-name", "nop"]);
    assert_eq!(rewards(&daemon, "nop"), ["0"]);
    let command = "case \"$BERTH_INSTRUCTION\" in *square*) echo 4 > /tmp/answer.txt;; esac; exit 9";
    daemon.ok(&["run", &path, "--agent-cmd", command, "--job-name", "command"]);
    assert_eq!(rewards(&daemon, "command"), ["1"], "an agent's exit code does not stop verification");
    daemon.ok(&["run", &path, "-a", "oracle", "-k", "12", "-n", "4", "--job-name", "many"]);
    assert_eq!(rewards(&daemon, "many"), vec!["1"; 12]);
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("running"));
}

#[test]
fn what_went_wrong_is_recorded_and_never_a_reward() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let silent = task(&daemon, "silent", "#!/bin/sh\ntrue\n", "#!/bin/sh\ntrue\n");
    let _ = daemon.run(&["run", &silent, "-a", "oracle", "--job-name", "silent"]);
    assert_eq!(rewards(&daemon, "silent"), Vec::<String>::new());
    assert!(results(&daemon, "silent").contains("RewardFileNotFoundError"));

    let slow =
        task(&daemon, "slow", TEST, "#!/bin/sh\necho 4 > /tmp/answer.txt; setsid sleep 5555555 & sleep 60\n");
    let _ = daemon.run(&["run", &slow, "-a", "oracle", "--job-name", "slow"]);
    assert!(results(&daemon, "slow").contains("AgentTimeoutError"));
    assert_eq!(rewards(&daemon, "slow"), ["1"], "what was done in time is graded");
    assert!(!support::process_with("5555555"));

    let broken = task(&daemon, "broken", TEST, "#!/bin/sh\ntrue\n");
    std::fs::write(daemon.path().join("broken/environment/Dockerfile"), "FROM busybox:test\nRUN exit 7\n")
        .unwrap();
    let _ = daemon.run(&["run", &broken, "-a", "oracle", "--job-name", "broken"]);
    assert!(results(&daemon, "broken").contains("SandboxBuildFailedError"));

    let (_, error) = daemon.fails(&["run", daemon.path().join("absent").to_str().unwrap(), "-a", "oracle"]);
    assert!(error.contains("absent"), "{error}");
    std::fs::write(daemon.path().join("broken/task.toml"), "[environment]\ncpus = \"many\"\n").unwrap();
    let (_, error) = daemon.fails(&["run", &broken, "-a", "oracle"]);
    assert!(error.contains("task.toml") && error.contains(":2"), "{error}");
}

#[test]
fn a_daemon_that_dies_midway_is_an_infrastructure_error() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    let path = task(&daemon, "task", TEST, "#!/bin/sh\necho 4 > /tmp/answer.txt\nsleep 4\n");
    let run = daemon.command(&["run", &path, "-a", "oracle", "--job-name", "dead"]).spawn().unwrap();
    support::eventually("the agent's start", || support::process_with("/solution/solve.sh"));
    daemon.kill();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(rewards(&daemon, "dead"), Vec::<String>::new());
    assert!(results(&daemon, "dead").contains("RuntimeRequestError"));
    daemon.restart(&[]);
}

fn results(daemon: &Daemon, job: &str) -> String {
    let trials = std::fs::read_dir(daemon.path().join("jobs").join(job)).unwrap().flatten();
    trials.filter_map(|trial| std::fs::read_to_string(trial.path().join("result.json")).ok()).collect()
}
