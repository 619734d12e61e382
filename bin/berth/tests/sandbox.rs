//! Sandboxes' lives: made, limited, isolated, deleted, and never a trace left.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::process::Stdio;

use support::{Daemon, SMALL_POOL, eventually, process_with, text};

#[test]
fn a_sandbox_is_a_machine_of_its_own() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let mounts_before = std::fs::read_to_string("/proc/self/mounts").unwrap();
    daemon.sandbox("box", &["--network", "no-network"]);
    assert_eq!(std::fs::read_to_string("/proc/self/mounts").unwrap(), mounts_before);

    assert_eq!(daemon.sh("box", "echo $$").1.trim().parse::<u32>().map(|pid| pid < 1000), Ok(true));
    assert_ne!(daemon.sh("box", "hostname").1, text(&std::fs::read("/proc/sys/kernel/hostname").unwrap()));
    assert_eq!(daemon.sh("box", "ls -A /sys/fs/cgroup").1, "");
    assert_eq!(daemon.sh("box", "cat /proc/1/comm").1, "berth-guest\n");
    assert_ne!(daemon.sh("box", "readlink /proc/1/fd/3").0, 0, "the guest's descriptors are its own");
    daemon.sh("box", "kill -9 1");
    assert_eq!(daemon.sh("box", "echo still here").1, "still here\n");
    assert_ne!(daemon.sh("box", "echo 1 > /proc/sys/kernel/core_pattern").0, 0);
    assert_ne!(daemon.sh("box", "mount -t tmpfs none /tmp").0, 0);
    assert_ne!(daemon.sh("box", "mknod /tmp/sda b 8 0 && cat /tmp/sda").0, 0);
    let devices = daemon.sh("box", "ls /dev | tr '\\n' ' '").1;
    assert_eq!(devices, "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ");
    assert_eq!(daemon.sh("box", "ls /sys/class/net").1, "lo\n");
    assert_eq!(daemon.sh("box", "ping -c 1 -W 1 127.0.0.1 >/dev/null; echo $?").1, "0\n");
}

#[test]
fn names_are_unique_and_errors_say_which() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let (code, error) = daemon.fails(&["sandbox", "create", "busybox:test", "--name", "box"]);
    assert_eq!(code, 73, "{error}");
    assert!(error.contains("box"), "{error}");
    let (code, error) = daemon.fails(&["sandbox", "create", "nothing:here"]);
    assert_eq!(code, 66, "{error}");
    assert!(error.contains("nothing:here") && error.contains("hint"), "{error}");
    let (code, error) = daemon.fails(&["sandbox", "exec", "nobody", "--", "true"]);
    assert_eq!(code, 125, "{error}");
    assert!(error.contains("nobody"), "{error}");
    let (code, error) = daemon.fails(&["sandbox", "create", "busybox:test", "--memory-mb", "1"]);
    assert_eq!(code, 2, "{error}");
    assert!(error.contains("memory-mb"), "{error}");
    daemon.ok(&["sandbox", "rm", "box"]);
    daemon.sandbox("box", &["--network", "no-network"]);
}

#[test]
fn memory_and_pids_are_limited() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon
        .sandbox("small", &["--network", "no-network", "--memory-mb", "64", "--pids", "40", "--cpus", "0.5"]);
    // A shell variable of 100 MB does not fit into 64.
    let (code, ..) = daemon.sh("small", "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}");
    assert_eq!(code, 137, "the hog was to be killed");
    assert_eq!(daemon.sh("small", "echo alive").1, "alive\n");
    let (_, _, errors) = daemon.sh("small", "i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; wait");
    assert!(errors.contains("fork"), "{errors}");
    assert_eq!(daemon.sh("small", "echo alive").1, "alive\n");
}

#[test]
fn a_deleted_sandbox_leaves_nothing() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    for network in ["no-network", "public"] {
        daemon.sandbox("gone", &["--network", network]);
        assert_eq!(daemon.sh("gone", "setsid sleep 2222222 & echo x > /tmp/file").0, 0);
        assert!(process_with("2222222"));
        daemon.ok(&["sandbox", "rm", "gone"]);
        assert!(!process_with("2222222"), "a process outlived its sandbox");
    }
    let sandboxes = daemon.path().join("data/sandboxes");
    eventually("an empty disk", || std::fs::read_dir(&sandboxes).map_or(true, |dir| dir.count() == 0));
    assert!(!daemon.ok(&["sandbox", "ls", "--json"]).contains("gone"));
    assert!(daemon.terminate().success());
}

#[test]
fn where_sandboxes_are_not_to_outlive_a_daemon_they_end_with_it_and_the_next_one_says_so() {
    require_busybox!();
    let config = format!("{SMALL_POOL}[sandboxes]\norphan_seconds = 0\n");
    let mut daemon = Daemon::configured_with_busybox(&config);
    daemon.sandbox("box", &["--network", "no-network"]);
    assert_eq!(daemon.sh("box", "setsid sleep 3333333 &").0, 0);
    daemon.kill();
    eventually("no process of the dead daemon's sandbox", || !process_with("3333333"));
    daemon.restart(&[]);
    let (code, error) = daemon.fails(&["sandbox", "exec", "box", "--", "true"]);
    assert_eq!(code, 125, "{error}");
    assert!(error.contains("daemon"), "{error}");
    let sandboxes = daemon.path().join("data/sandboxes");
    eventually("an empty disk", || std::fs::read_dir(&sandboxes).map_or(true, |dir| dir.count() == 0));
    daemon.sandbox("box", &["--network", "no-network"]);
    assert_eq!(daemon.sh("box", "echo new").1, "new\n");
}

#[test]
fn a_killed_daemon_leaves_its_sandboxes_running_and_the_next_one_has_them() {
    require_busybox!();
    let mut daemon = Daemon::with_busybox();
    for (name, network) in [("box", "no-network"), ("open", "public")] {
        daemon.sandbox(name, &["--network", network]);
    }
    assert_eq!(daemon.sh("box", "setsid sleep 5555555 & echo kept > /file").0, 0);
    let line = "echo begun; while [ ! -e /go ]; do sleep 0.05; done; echo done; exit 6";
    let client = daemon
        .command(&["sandbox", "exec", "box", "--", "/bin/sh", "-c", line])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the command's start", || daemon.ok(&["sandbox", "ps", "box"]).contains("echo begun"));
    daemon.kill();
    daemon.restart(&[]);
    assert!(process_with("5555555"), "what ran goes on");
    assert_eq!(daemon.sh("box", "cat /file; touch /go").1, "kept\n");
    let output = client.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(6), "begun\ndone\n"));
    assert_eq!(daemon.sh("open", "echo here").1, "here\n");
    daemon.ok(&["sandbox", "rm", "box", "open"]);
    assert!(!process_with("5555555"), "a process outlived its sandbox");
    assert!(daemon.terminate().success());
}

#[test]
fn a_sandbox_whose_first_process_dies_is_lost_not_replaced() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    daemon.sandbox("box", &["--network", "no-network"]);
    let inside = daemon.command(&["sandbox", "exec", "box", "--", "sleep", "4444444"]).spawn().unwrap();
    let command = || {
        std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let cmdline = std::fs::read(entry.path().join("cmdline")).ok()?;
            (cmdline == b"sleep\x004444444\x00").then(|| entry.file_name().into_string().unwrap())
        })
    };
    eventually("the command", || command().is_some());
    // PID 1 of the sandbox is the parent of the command.
    let status = std::fs::read_to_string(format!("/proc/{}/status", command().unwrap())).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    let parent = rustix::process::Pid::from_raw(parent).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();

    let output = inside.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125), "the death of the machine is not the command's exit code");
    let (code, error) = daemon.fails(&["sandbox", "exec", "box", "--", "true"]);
    assert_eq!(code, 125);
    assert!(error.contains("signal 9"), "{error}");
}

#[test]
fn host_paths_are_mounted_as_asked() {
    require_busybox!();
    let daemon = Daemon::with_busybox();
    let shared = daemon.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("in"), "from the host\n").unwrap();
    let rw = format!("type=bind,src={},dst=/mnt/rw", shared.display());
    let ro = format!("type=bind,src={},dst=/mnt/ro,ro", shared.display());
    daemon.sandbox("box", &["--network", "no-network", "--mount", &rw, "--mount", &ro]);
    assert_eq!(daemon.sh("box", "cat /mnt/ro/in; echo back > /mnt/rw/out").1, "from the host\n");
    assert_eq!(std::fs::read_to_string(shared.join("out")).unwrap(), "back\n");
    let misfit = format!("type=bind,src={},dst=/bin/busybox", shared.display());
    let (code, error) = daemon.fails(&["sandbox", "create", "busybox:test", "--mount", &misfit]);
    assert_eq!(code, 64, "{error}");
    assert!(error.contains("/bin/busybox") && error.contains("hint"), "{error}");
    assert_ne!(daemon.sh("box", "echo x > /mnt/ro/out").0, 0);
    assert_eq!(std::fs::read_to_string(shared.join("out")).unwrap(), "back\n");
}
