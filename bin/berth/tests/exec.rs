//! Commands in a sandbox, through the command line: what comes back is what happened.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{Daemon, eventually, process_with, text};

#[test]
fn exit_codes_are_exact() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 137, 255] {
        assert_eq!(daemon.sh("box", &format!("exit {code}")).0, code);
    }
    assert_eq!(daemon.sh("box", "kill -9 $$").0, 137);
    assert_eq!(daemon.sh("box", "kill -15 $$").0, 143);
    let missing = daemon.run(&["sandbox", "exec", "box", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).contains("no-such-program"), "{}", text(&missing.stderr));
    assert_eq!(daemon.run(&["sandbox", "exec", "box", "--", "/etc/passwd"]).status.code(), Some(126));
}

#[test]
fn streams_are_apart_and_whole() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let (code, out, err) = daemon.sh("box", "printf 'a\\r\\nb\\n\\n'; printf 'e\\033[0m' >&2");
    assert_eq!((code, out.as_str(), err.as_str()), (0, "a\r\nb\n\n", "e\x1b[0m"));
    assert_eq!(daemon.sh("box", "").1, "");

    // 100 MB, far beyond any buffer on the way; the digest is taken inside and outside.
    let big = daemon.run(&[
        "sandbox",
        "exec",
        "box",
        "--",
        "/bin/sh",
        "-c",
        "dd if=/dev/urandom of=/tmp/big bs=1M count=100 2>/dev/null; sha256sum < /tmp/big >&2; cat /tmp/big",
    ]);
    assert_eq!(big.status.code(), Some(0));
    assert_eq!(big.stdout.len(), 100 << 20);
    use sha2::Digest;
    let digest: String = sha2::Sha256::digest(&big.stdout).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(text(&big.stderr).starts_with(&digest));
}

#[test]
fn environment_directory_and_user_are_as_asked() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network", "--env", "A=sandbox", "--env", "B=two\nlines \"'$"]);
    let run = |args: &[&str]| {
        let mut all = vec!["sandbox", "exec", "box"];
        all.extend(args);
        text(&daemon.run(&all).stdout)
    };
    assert_eq!(
        run(&["--env", "A=exec", "--", "/bin/sh", "-c", "printf '%s|%s' \"$A\" \"$B\""]),
        "exec|two\nlines \"'$"
    );
    assert_eq!(run(&["--cwd", "/tmp", "--", "pwd"]), "/tmp\n");
    assert_eq!(run(&["--", "pwd"]), "/\n");
    assert_eq!(
        run(&["--user", "alice", "--", "/bin/sh", "-c", "id -u; id -g; id -G; echo $HOME $USER"]),
        "1000\n1000\n1000 50\n/home/alice alice\n"
    );
    assert_eq!(run(&["--user", "4321", "--", "id", "-u"]), "4321\n");
    assert_eq!(run(&["--user", "1000:50", "--", "id", "-g"]), "50\n");

    let nobody = daemon.run(&["sandbox", "exec", "box", "--user", "bob", "--", "true"]);
    assert_ne!(nobody.status.code(), Some(0));
    assert!(text(&nobody.stderr).contains("bob"), "{}", text(&nobody.stderr));
    let nowhere = daemon.run(&["sandbox", "exec", "box", "--cwd", "/no where", "--", "true"]);
    assert_ne!(nowhere.status.code(), Some(0));
    assert!(text(&nowhere.stderr).contains("/no where"), "{}", text(&nowhere.stderr));
}

#[test]
fn a_timeout_leaves_output_and_no_survivor() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let began = Instant::now();
    let line = "echo before; trap '' TERM; setsid sleep 7654321 & (setsid sh -c 'trap \"\" TERM; sleep 7654321' &) ; \
                while true; do sleep 1; done";
    let output = daemon.run(&["sandbox", "exec", "box", "--timeout", "1", "--", "/bin/sh", "-c", line]);
    assert_eq!(output.status.code(), Some(124));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(text(&output.stdout), "before\n");
    assert!(!process_with("7654321"), "something survived the timeout");
}

#[test]
fn a_daemonised_process_lives_on_and_holds_nothing_open() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let began = Instant::now();
    assert_eq!(daemon.sh("box", "sleep 1000 & echo started").1, "started\n");
    // Held open, it would last as long as the sleep does.
    assert!(began.elapsed() < Duration::from_secs(500));
    assert_eq!(daemon.sh("box", "pidof sleep >/dev/null").0, 0);
}

#[test]
fn a_client_that_is_told_to_end_takes_its_command_along() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let mut client = daemon
        .command(&["sandbox", "exec", "box", "--", "/bin/sh", "-c", "setsid sleep 1234567 & sleep 1234567"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the command's start", || daemon.sh("box", "pidof sleep").0 == 0);
    let pid = rustix::process::Pid::from_child(&client);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(!client.wait().unwrap().success());
    assert_ne!(daemon.sh("box", "pidof sleep").0, 0, "it ends before its client does");
}

#[test]
fn the_command_of_a_client_that_is_killed_runs_on_and_is_found_again() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let line = "echo begun; while [ ! -e /go ]; do sleep 0.05; done; echo done; exit 6";
    let mut client = daemon
        .command(&["sandbox", "exec", "--id", "mine", "box", "--", "/bin/sh", "-c", line])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the command's start", || daemon.ok(&["sandbox", "ps", "box"]).contains("mine"));
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(daemon.sh("box", "touch /go").0, 0);
    let output = daemon.run(&["sandbox", "logs", "--follow", "box", "mine"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(6), "begun\ndone\n"));
    // The same again is not run again.
    let output = daemon.run(&["sandbox", "exec", "--id", "mine", "box", "--", "/bin/sh", "-c", line]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(6), "begun\ndone\n"));
    let other = daemon.run(&["sandbox", "exec", "--id", "mine", "box", "--", "/bin/sh", "-c", "exit 0"]);
    assert_eq!(other.status.code(), Some(125));
}

#[test]
fn many_execs_at_once_do_not_mix() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    std::thread::scope(|scope| {
        for number in 0..24 {
            let daemon = &daemon;
            scope.spawn(move || {
                let (code, out, _) = daemon.sh("box", &format!("sleep 0.1; echo {number}; exit {number}"));
                assert_eq!((code, out), (number, format!("{number}\n")));
            });
        }
    });
}
