//! Ways out of a sandbox, tried against the shipped configuration: each must fail, and a control outside shows that it
//! is a real one. And what a full machine must be able to do all the same.

#![allow(clippy::unwrap_used, reason = "a test ends there, and says where")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use support::{Daemon, compiled, eventually, text, write_tree};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EACCES: i32 = 13;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;
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
    ("core_pattern", EACCES),
    ("modprobe", EACCES),
    ("drop_caches", EACCES),
    ("sysrq", EACCES),
    ("kmsg_proc", EACCES),
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
    ("character_node", EPERM),
    ("memory_node", EPERM),
    ("unknown_call", ENOSYS),
    ("x32_call", ENOSYS),
    ("compat_call", KILLED),
    ("init_namespaces", EACCES),
    ("enter_own_user", EPERM),
    ("enter_by_pidfd", EPERM),
    ("parent_of_user", EPERM),
    ("owner_of_mounts", EPERM),
    ("owner_of_processes", EPERM),
    ("parent_of_processes", EPERM),
    ("user_map", EPERM),
    ("group_map", EPERM),
    ("init_user_map", EROFS),
    ("set_groups", EACCES),
    ("chown_behind", EINVAL),
    ("chown_stranger", EINVAL),
    ("chown_last", EINVAL),
    ("become_stranger", EINVAL),
    ("join_strangers", EINVAL),
    ("project_id", EPERM),
    ("project_by_call", EPERM),
    ("immutable", EPERM),
    ("append_only", EPERM),
    ("freeze", EPERM),
    ("subvolume", EPERM),
    ("snapshot", EPERM),
    ("subvolume_delete", ENOTTY),
    ("subvolume_flags", ENOTTY),
    ("quota_off", ENOTTY),
    ("quota_group", ENOTTY),
    ("quota_limit", ENOTTY),
    ("tree_search", ENOTTY),
    ("ino_paths", ENOTTY),
    ("send_subvolume", ENOTTY),
    ("receive", ENOTTY),
    ("device_add", ENOTTY),
    ("resize", ENOTTY),
    ("encoded_read", ENOTTY),
    ("clone_proc", EXDEV),
    ("clone_hosts", EXDEV),
    ("quota_call", EPERM),
    ("quota_fd", EPERM),
    ("init_descriptor", EPERM),
    ("trace_views", EPERM),
    ("limit_views", EPERM),
    ("schedule_views", EPERM),
    ("renice_views", EPERM),
    ("pin_views", EPERM),
    ("views_memory", EROFS),
    ("fuse_open", EPERM),
    ("fuse_control", EPERM),
    ("fuse_device", ENOENT),
    ("fuse_abort", ENOENT),
    ("loop_control", ENOENT),
    ("debug_files", ENOENT),
    ("move_mounts", EPERM),
    ("key_request", EPERM),
    ("key_list", ENODATA),
];

/// What is otherwise for root in a sandbox without a user namespace of its own. Where nothing is refused (0), that
/// is what it lacks: it is the host's root, to whom every id is its own to give, if in its own tree alone.
const AS_ROOT_OF_HOST: &[(&str, i32)] = &[
    ("core_pattern", EROFS),
    ("modprobe", EROFS),
    ("drop_caches", EROFS),
    ("sysrq", EROFS),
    ("kmsg_proc", EPERM),
    ("character_node", EACCES),
    ("memory_node", EACCES),
    ("owner_of_mounts", 0),
    ("owner_of_processes", 0),
    ("chown_behind", 0),
    ("chown_stranger", 0),
    ("chown_last", 0),
    ("become_stranger", 0),
    ("join_strangers", 0),
];

/// Whose control depends on what the machine's own kernel and container have.
const CONTROL_MAY_AGREE: [&str; 23] = [
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
    "init_namespaces",
    "enter_by_pidfd",
    "parent_of_user",
    "parent_of_processes",
    "subvolume_flags",
    "tree_search",
    "ino_paths",
    "send_subvolume",
    "encoded_read",
    "clone_proc",
    "debug_files",
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

/// Limits of all kinds, so that all that serves them is there to be attacked: views, notifications, quota.
const LIMITED: [&str; 10] =
    ["--network", "no-network", "--memory-mb", "256", "--cpus", "1", "--storage-mb", "100", "--pids", "200"];

#[test]
fn known_escapes_fail() {
    let program = require!();
    let daemon = daemon(&program);
    let control = Command::new(on_host(&daemon, &program)).arg("escapes").env("HOST", "1").output().unwrap();
    let control = text(&control.stdout);
    let control = results(&control);
    // A file that this machine's kernel does not have cannot be refused either.
    let is_file = |result| [EROFS, EACCES, ENODATA].contains(&result);
    let absent = |name: &str, result| is_file(result) && control.get(name) == Some(&ENOENT);
    let expect = |table: &'static [(&str, i32)]| {
        table.iter().map(|(name, result)| (*name, if absent(name, *result) { ENOENT } else { *result }))
    };
    let expected: BTreeMap<&str, i32> = expect(ESCAPES).collect();
    let as_root_of_host: BTreeMap<&str, i32> = expect(ESCAPES).chain(expect(AS_ROOT_OF_HOST)).collect();

    for (name, namespace, expected) in [("box", "true", &expected), ("bare", "false", &as_root_of_host)] {
        let namespace = format!("--user-namespace={namespace}");
        daemon.sandbox(name, &[&LIMITED[..], &[&namespace]].concat());
        let (_, as_root, _) = daemon.sh(name, "/attempts escapes");
        assert_eq!(differences(&results(&as_root), expected), Vec::<String>::new(), "{namespace}");
        let as_user = daemon.ok(&["sandbox", "exec", name, "--user", "alice", "--", "/attempts", "escapes"]);
        for (name, result) in results(&as_user) {
            // Who owns a namespace is no secret, and gives no hold on it.
            let harmless = name.starts_with("owner_of_") && expected[name] == 0;
            assert!(result != 0 || harmless, "{name} works for a user, {namespace}");
        }
        let mounts = daemon.sh(name, "cat /proc/self/mountinfo").1;
        assert!(!mounts.contains("shared:") && !mounts.contains("master:"), "mounts spread: {mounts}");
        assert!(!mounts.contains("cgroup2 ") && !mounts.contains("- cgroup "), "control groups: {mounts}");
        assert_eq!(daemon.sh(name, "cat /proc/1/comm").1, "berth-guest\n");
    }

    for (name, result) in &control {
        if *result == expected[name] {
            assert!(CONTROL_MAY_AGREE.contains(name), "{name} fails outside as well, so it proves nothing");
            println!("NOTE: {name} fails outside as well");
        }
    }
}

fn differences(found: &BTreeMap<&str, i32>, expected: &BTreeMap<&str, i32>) -> Vec<String> {
    let names: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differs = names.into_iter().filter(|name| found.get(*name) != expected.get(*name));
    differs.map(|name| format!("{name}: {:?} and not {:?}", found.get(name), expected.get(name))).collect()
}

#[test]
fn an_image_without_layers_has_no_disk_of_its_own_either() {
    let program = require!();
    let daemon = daemon(&program);
    let context = daemon.path().join("context");
    write_tree(&context, &[("Dockerfile", 0o644, "FROM scratch\nENV A=b\n")]);
    daemon.ok(&["image", "build", context.to_str().unwrap(), "-t", "empty:test"]);
    daemon.ok(&[&["sandbox", "create", "empty:test", "--name", "box"], &LIMITED[..]].concat());
    // Its root is a directory of the disk engine itself, with no overlay before it.
    let program = on_host(&daemon, &program);
    daemon.ok(&["sandbox", "cp", program.to_str().unwrap(), "box:/tmp/attempts"]);
    let output = daemon.ok(&["sandbox", "exec", "box", "--", "/tmp/attempts", "escapes"]);
    let results = results(&output);
    assert_eq!(results.len(), ESCAPES.len());
    for (name, result) in &results {
        // Here both ends are the sandbox's own files on one disk.
        assert!(*result != 0 || *name == "clone_hosts", "{name} works");
    }
    for name in ["subvolume", "snapshot", "project_id", "project_by_call"] {
        assert_eq!(results[name], EPERM, "{name}");
    }
    daemon.ok(&["sandbox", "rm", "box"]);
}

#[test]
fn no_switch_of_the_kernel_can_be_opened_for_writing() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &LIMITED);
    // Whoever may read pressure may ask to be woken by it: a matter of the asker alone.
    let switches = |output: &str| -> Vec<String> {
        output.lines().filter(|path| !path.starts_with("/proc/pressure/")).map(str::to_owned).collect()
    };
    assert_eq!(switches(&daemon.ok(&["sandbox", "exec", "box", "--", "/attempts", "writable"])), [""; 0]);
    daemon.sandbox("bare", &[&LIMITED[..], &["--user-namespace=false"]].concat());
    let found = daemon.ok(&["sandbox", "exec", "bare", "--", "/attempts", "writable"]);
    // The host's root may open what it owns; what takes no writing at all stays as it is.
    let found: Vec<_> = switches(&found).into_iter().filter(|path| !only_read(path)).collect();
    assert_eq!(found, [""; 0]);
    let outside = Command::new(on_host(&daemon, &program)).arg("writable").output().unwrap();
    assert!(text(&outside.stdout).contains("/proc/sys/vm/drop_caches"), "the control finds nothing");
}

/// Whether a file of /proc has nobody's leave to be written in its mode, on this machine.
fn only_read(path: &str) -> bool {
    path.starts_with("/proc/")
        && std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o222 == 0)
}

#[test]
fn processes_of_others_do_not_exist() {
    let program = require!();
    let daemon = daemon(&program);
    for (name, namespace) in [("box", "true"), ("bare", "false")] {
        daemon.sandbox(name, &["--network", "no-network", &format!("--user-namespace={namespace}")]);
    }
    daemon.sandbox("neighbour", &["--network", "no-network"]);
    let sleep = daemon.command(&["sandbox", "exec", "neighbour", "--", "sleep", "6060606"]).spawn().unwrap();
    let _sleep = Running(sleep);
    eventually("the neighbour", || host_pid(b"sleep\x006060606\x00").is_some());
    let neighbour = host_pid(b"sleep\x006060606\x00").unwrap();
    // Higher than any number inside, so that it can mean nothing there by chance.
    assert!(neighbour > 100);
    for pid in [neighbour, daemon.pid()] {
        let pid = pid.to_string();
        for name in ["box", "bare"] {
            let output = daemon.ok(&["sandbox", "exec", name, "--", "/attempts", "poke", &pid]);
            for (attempt, result) in results(&output) {
                let expected = if attempt == "proc" { ENOENT } else { ESRCH };
                assert_eq!(result, expected, "{attempt} of {pid} from {name}");
            }
        }
    }
    let output =
        Command::new(on_host(&daemon, &program)).args(["poke", &neighbour.to_string()]).output().unwrap();
    assert_eq!(results(&text(&output.stdout))["kill"], 0, "the control");
}

fn host_pid(cmdline: &[u8]) -> Option<u32> {
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let found = std::fs::read(entry.path().join("cmdline")).ok()?;
        (found == cmdline).then(|| entry.file_name().to_str()?.parse().ok()).flatten()
    })
}

#[test]
fn set_uid_programs_made_inside_are_nobodys_outside() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);
    daemon.sandbox("other", &["--network", "no-network"]);
    let line = "cp /attempts /made && chown 5:7 /made && chmod 6755 /made && cp /attempts /roots && chmod 4755 /roots && \
                exec sleep ";
    for (name, seconds) in [("box", "7070707"), ("other", "7070708")] {
        let line = format!("{line}{seconds}");
        let inside =
            daemon.command(&["sandbox", "exec", name, "--", "/bin/sh", "-c", &line]).spawn().unwrap();
        let _inside = Running(inside);
        let found = || host_pid(format!("sleep\0{seconds}\0").as_bytes());
        eventually("the program", || found().is_some());
        let pid = found().unwrap();
        // As the kernel has it for whoever comes by that process: an id of the range, never a user of the host.
        let owner = |path: &str| std::fs::metadata(format!("/proc/{pid}/root/{path}")).unwrap().uid();
        let first = first_id(pid);
        assert!(first >= 1 << 30, "{first}");
        assert_eq!((owner("made"), owner("roots")), (first + 5, first));
    }
    // On disk names are neutral, and no user of the host comes to them: the pool is the daemon's own mount, and its
    // directory is root's.
    let shown = std::fs::read_dir(daemon.path().join("data/pool")).map_or(0, Iterator::count);
    assert_eq!(shown, 0, "the pool is mounted for all of the host");
    let data = std::fs::metadata(daemon.path().join("data")).unwrap();
    assert_eq!(
        (data.uid(), data.permissions().mode() & 0o077),
        (0, 0),
        "others may enter the data directory"
    );
}

/// The first id of a process's range, as /proc tells it.
fn first_id(pid: u32) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    map.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_crashes_leaves_nothing_outside() {
    let program = require!();
    let daemon = daemon(&program);
    daemon.sandbox("box", &["--network", "no-network"]);
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    assert_eq!(daemon.sh("box", "cd /tmp && /attempts crash").0, 134);
    let written = daemon.sh("box", "ls /tmp").1;
    println!("NOTE: the pattern is {pattern:?}, and the crash left {written:?}");
    if pattern.starts_with(['|', '/', '@']) {
        // One byte: too little for a file, and what the kernel takes as no to a program of the host.
        let limits = daemon.sh("box", "grep core /proc/self/limits").1;
        assert_eq!(limits.split_whitespace().collect::<Vec<_>>()[4..6], ["1", "1"]);
        assert_eq!(written, "");
    } else {
        assert!(written.contains("core"), "a core that may be written is the sandbox's own file");
    }
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
    // The limit counts commands: the guest is outside of it.
    assert!(processes() <= 60, "{} processes", processes());
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
