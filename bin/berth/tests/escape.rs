//! Ways out of a sandbox, tried against the shipped configuration: each must fail, and a control outside shows that it
//! is a real one. And what a full machine must be able to do all the same.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use support::{Daemon, compiled, eventually, text, write_tree};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const ENODATA: i32 = 61;
const EAFNOSUPPORT: i32 = 97;
/// By SIGSYS.
const KILLED: i32 = -31;

/// What root in a sandbox must get, by the names in `support/attempts.c`.
const ESCAPES: &[(&str, i32)] = &[
    ("mount_tmpfs", EPERM),
    ("mount_bind", EPERM),
    ("mount_proc", EPERM),
    ("mount_cgroup2", EPERM),
    ("release_agent", EPERM),
    ("remount_sys", EPERM),
    ("shared_root", EPERM),
    ("unmount_proc", EPERM),
    ("fs_open", EPERM),
    ("open_tree_clone", EPERM),
    ("mount_attributes", EPERM),
    ("pivot", EPERM),
    ("unshare_user", EPERM),
    ("unshare_mounts", EPERM),
    ("unshare_net", EPERM),
    ("unshare_time", EPERM),
    ("clone_user", EPERM),
    ("clone3_any", ENOSYS),
    ("setns_own", EPERM),
    ("io_uring", EPERM),
    ("bpf_map", EPERM),
    ("perf_event", EPERM),
    ("user_fault", EPERM),
    ("key_session", EPERM),
    ("key_add", EPERM),
    ("handle", EPERM),
    ("dmesg", EPERM),
    ("module_load", EPERM),
    ("module_remove", EPERM),
    ("kexec", EPERM),
    ("reboot_bad", EPERM),
    ("swap_on", EPERM),
    ("account", EPERM),
    ("set_clock", EPERM),
    ("set_hostname", EPERM),
    ("ports", EPERM),
    ("executable_data", EPERM),
    ("vsock", EAFNOSUPPORT),
    ("alg", EAFNOSUPPORT),
    ("type_ahead", EPERM),
    ("trace_init", EPERM),
    ("read_init", EPERM),
    ("limit_init", EPERM),
    ("schedule_init", EPERM),
    ("pin_init", EPERM),
    ("renice_init", EPERM),
    ("renice_user", EPERM),
    ("core_pattern", EROFS),
    ("modprobe", EROFS),
    ("drop_caches", EROFS),
    ("sysrq", EROFS),
    ("kmsg_proc", EPERM),
    ("kmsg_dev", ENOENT),
    ("uevent_helper", EROFS),
    ("sys_bus", EROFS),
    ("init_memory", EROFS),
    ("init_program", EACCES),
    ("init_score", EROFS),
    ("init_thread_score", EROFS),
    ("init_namespace", EACCES),
    ("init_root", EACCES),
    ("init_descriptors", EACCES),
    ("kcore", ENODATA),
    ("character_node", EACCES),
    ("memory_node", EACCES),
    ("unknown_call", ENOSYS),
    ("x32_call", ENOSYS),
    ("compat_call", KILLED),
];

/// Whose control depends on what the machine's own kernel and container have.
const CONTROL_MAY_AGREE: [&str; 12] = [
    "vsock",
    "alg",
    "kcore",
    "modprobe",
    "sysrq",
    "unknown_call",
    "x32_call",
    "init_program",
    "init_namespace",
    "init_root",
    "kmsg_dev",
    "init_descriptors",
];

macro_rules! require {
    () => {{
        require_busybox!();
        match compiled("attempts.c") {
            Some(program) => program,
            None => return,
        }
    }};
}

/// A daemon whose image has the program as `/attempts`, and as `/setuid` with that bit.
fn daemon(program: &[u8]) -> Daemon {
    Daemon::with_busybox_and(&[("attempts", 0o755, program), ("setuid", 0o4755, program)])
}

/// The program on the host, gone with its directory.
fn on_host(daemon: &Daemon, program: &[u8]) -> PathBuf {
    let path = daemon.path().join("attempts");
    std::fs::write(&path, program).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn results(lines: &str) -> BTreeMap<&str, i32> {
    let parse = |line| {
        let (name, result): (&str, &str) = str::split_once(line, ": ").unwrap();
        let signal =
            || result.strip_prefix("signal ").and_then(|number| number.parse::<i32>().ok()).map(|n| -n);
        (name, result.parse().ok().or_else(signal).unwrap())
    };
    lines.lines().map(parse).collect()
}

#[test]
fn known_escapes_fail() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);

    let control = Command::new(on_host(&daemon, &program)).arg("escapes").env("HOST", "1").output().unwrap();
    let control = text(&control.stdout);
    let control = results(&control);
    // A file that this machine's kernel does not have cannot be refused either.
    let is_file = |result| result == EROFS || result == ENODATA;
    let absent = |name, result| is_file(result) && control.get(name) == Some(&ENOENT);
    let expected: BTreeMap<&str, i32> = ESCAPES
        .iter()
        .map(|(name, result)| (*name, if absent(*name, *result) { ENOENT } else { *result }))
        .collect();

    let (_, as_root, _) = daemon.sh("box", "/attempts escapes");
    assert_eq!(results(&as_root), expected);
    let as_user = daemon.ok(&["sandbox", "exec", "box", "--user", "alice", "--", "/attempts", "escapes"]);
    for (name, result) in results(&as_user) {
        assert_ne!(result, 0, "{name} works for a user");
    }

    for (name, result) in &control {
        if *result == expected[name] {
            assert!(CONTROL_MAY_AGREE.contains(name), "{name} fails outside as well, so it proves nothing");
            println!("NOTE: {name} fails outside as well");
        }
    }

    let mounts = daemon.sh("box", "cat /proc/self/mountinfo").1;
    assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "mounts spread: {mounts}");
    assert_eq!(daemon.sh("box", "cat /proc/1/comm").1, "berth-guest\n");
}

#[test]
fn the_guest_cannot_be_killed_stopped_or_rewritten() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);
    daemon.sh("box", "/attempts signals");
    assert_eq!(daemon.sh("box", "echo still here").1, "still here\n");

    // A script whose interpreter is "whoever executes it" makes the guest's own program run as the command.
    let (code, ..) = daemon.sh("box", "printf '#!/proc/self/exe\\n' > /self && chmod +x /self");
    assert_eq!(code, 0);
    let hunter = daemon
        .command(&["sandbox", "exec", "box", "--", "/attempts", "hunt", "3"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while start.elapsed().as_secs() < 3 {
        let _ = daemon.run(&["sandbox", "exec", "box", "--", "/self", "--control-fd=0"]);
    }
    let found = text(&hunter.wait_with_output().unwrap().stdout);
    println!("NOTE: the hunter has {found}");
    assert!(found.contains("never written"), "{found}");
    assert_eq!(daemon.sh("box", "echo still here").1, "still here\n");
    daemon.sandbox("another", &["--network", "no-network"]);
    assert_eq!(daemon.sh("another", "echo healthy").1, "healthy\n");
}

/// Ends a command in a sandbox by ending its client.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn links_that_change_during_a_transfer_lead_nowhere() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);
    let victim = daemon.path().join("victim");
    write_tree(&victim, &[("secret", 0o600, "the host's"), ("file", 0o600, "the host's")]);
    let source = daemon.path().join("source");
    write_tree(&source, &[("d/file", 0o644, "uploaded")]);
    let line = format!(
        "mkdir -p /race/d && echo inside > /race/d/secret && ln -s {} /race/link && /attempts swap /race/d /race/link",
        victim.display()
    );
    let swap = daemon.command(&["sandbox", "exec", "box", "--", "/bin/sh", "-c", &line]).spawn().unwrap();
    let _swap = Running(swap);
    eventually("the race", || daemon.sh("box", "test -L /race/d").0 == 0);

    let (mut up, mut down) = (0, 0);
    for round in 0..25 {
        let target = daemon.path().join(format!("target-{round}"));
        let into = target.to_str().unwrap();
        down += i32::from(daemon.run(&["sandbox", "cp", "box:/race/.", into]).status.success());
        let _ = daemon.run(&["sandbox", "cp", "box:/race/d/secret", &format!("{into}-file")]);
        let from = format!("{}/.", source.display());
        up += i32::from(daemon.run(&["sandbox", "cp", &from, "box:/race"]).status.success());
        for file in
            [target.join("d/secret"), target.join("link/secret"), PathBuf::from(format!("{into}-file"))]
        {
            // Not by way of a link that was itself copied: that one is text, and the host's own affair.
            let linked = file.parent().is_some_and(std::path::Path::is_symlink) || file.is_symlink();
            let copied = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(linked || copied != "the host's", "{} came out of a sandbox", file.display());
        }
    }
    println!("NOTE: {down} downloads and {up} uploads of 25 succeeded amid the race");
    let names: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    for name in ["secret", "file"] {
        assert_eq!(std::fs::read_to_string(victim.join(name)).unwrap(), "the host's");
    }
    assert_eq!(daemon.sh("box", "echo still here").1, "still here\n");
}

#[test]
fn the_host_is_out_of_reach_over_sockets() {
    let program = require!();
    let daemon = daemon(&program);
    let helper = on_host(&daemon, &program);
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = everywhere.local_addr().unwrap().port().to_string();
    let name = format!("berth-escape-{}", std::process::id());
    let _abstract_socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let name = format!("@{name}");
    let socket = daemon.socket().display().to_string();
    let outside = |args: &[&str]| Command::new(&helper).args(args).status().unwrap().code().unwrap();
    let mut addresses = vec!["127.0.0.1".to_owned()];
    // Where packets for elsewhere would leave from; none is sent.
    let route = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    addresses.extend(route.ok().map(|address| address.ip().to_string()));

    for network in ["no-network", "public"] {
        daemon.sandbox(network, &["--network", network]);
        let inside = |line: &str| daemon.sh(network, line).0;
        let mut addresses = addresses.clone();
        let gateway = daemon.sh(network, "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'").1;
        addresses.extend(gateway.lines().map(str::to_owned));
        println!("NOTE: {network} tries {addresses:?}");
        assert!(network == "no-network" || addresses.len() >= 2);
        for address in &addresses {
            assert_ne!(inside(&format!("/attempts reach {address} {port}")), 0, "{address} from {network}");
        }
        for path in [&name, &socket] {
            assert_ne!(inside(&format!("/attempts reach-unix {path}")), 0, "{path} from {network}");
        }
    }
    for address in &addresses {
        assert_eq!(outside(&["reach", address, &port]), 0, "{address} from outside");
    }
    for path in [&name, &socket] {
        assert_eq!(outside(&["reach-unix", path]), 0, "{path} from outside");
    }
}

#[test]
fn a_fork_bomb_is_contained_and_can_be_deleted() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("neighbour", &["--network", "no-network"]);
    daemon.sandbox("box", &["--network", "no-network", "--pids", "60", "--cpus", "0.5"]);
    let mut bomb =
        Running(daemon.command(&["sandbox", "exec", "box", "--", "/attempts", "bomb"]).spawn().unwrap());
    let processes = || {
        let named = |entry: &std::fs::DirEntry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"/attempts\0bomb\0")
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter(named).count()
    };
    eventually("a full sandbox", || processes() >= 50);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(processes() < 60, "{} processes", processes());
    assert_eq!(daemon.sh("neighbour", "echo unharmed").1, "unharmed\n");
    daemon.ok(&["sandbox", "rm", "box"]);
    eventually("the end of the bomb", || processes() == 0);
    assert_eq!(bomb.0.wait().unwrap().code(), Some(125), "the sandbox was taken from under it");
}

#[test]
fn shared_memory_counts_as_the_sandboxes_own() {
    let program = require!();
    let daemon = daemon(&program);
    // 60 of the 64 MB that the file systems themselves would take.
    for (name, place) in [("one", "/dev/shm"), ("other", "/dev")] {
        daemon.sandbox(name, &["--network", "no-network", "--memory-mb", "48"]);
        let (code, _, errors) = daemon.sh(name, &format!("head -c 60000000 /dev/zero > {place}/hog"));
        assert_ne!(code, 0, "{place} is free of charge: {errors}");
        // No kill frees what is in files. Whether it can be entered again is another matter; deleted it can be.
        let (_, output, errors) = daemon.sh(name, &format!("rm {place}/hog; echo usable"));
        println!("NOTE: after {place} had filled the memory: {output}{errors}");
        assert!(output == "usable\n" || errors.contains("memory"), "{errors}");
        daemon.ok(&["sandbox", "rm", name]);
    }
    daemon.sandbox("box", &["--network", "no-network", "--memory-mb", "48"]);
    // The control: within the limit it works.
    assert_eq!(daemon.sh("box", "head -c 20000000 /dev/zero > /dev/shm/fits && rm /dev/shm/fits").0, 0);
}

#[test]
fn a_full_machine_works() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);
    let (code, output, errors) = daemon.sh("box", "/attempts works");
    assert_eq!(code, 0, "{errors}");
    let results = results(&output);
    assert!(results.len() > 10, "{output}");
    for (name, result) in results {
        assert_eq!(result, 0, "{name}");
    }
    let as_alice =
        |command: &str| daemon.ok(&["sandbox", "exec", "box", "--user", "alice", "--", command, "ids"]);
    assert_eq!(as_alice("/attempts"), "1000 1000");
    assert_eq!(as_alice("/setuid"), "1000 0");
    // What programs ask the kernel about themselves.
    assert_eq!(
        daemon.sh("box", "grep -c processor /proc/cpuinfo > /dev/null; nproc > /dev/null; ps > /dev/null").0,
        0
    );
    let mut trace = String::new();
    std::fs::File::open(format!("/proc/{}/status", daemon.pid()))
        .unwrap()
        .read_to_string(&mut trace)
        .unwrap();
    assert!(trace.contains("Seccomp:\t0"), "the daemon itself is not filtered");
}
