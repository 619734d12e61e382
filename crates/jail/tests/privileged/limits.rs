//! Control groups.

use std::fs;

use berth_jail::cgroup::{Facts, Limits, Version};

use crate::rig::{Groups, Rig, Sandbox};

/// Number of the descriptor that the first process has been handed under this argument.
fn handed(sandbox: &Sandbox, argument: &str) -> u32 {
    let arguments = sandbox.ask("args");
    let mut numbers = arguments.split(' ').filter_map(|word| word.strip_prefix(argument)?.strip_prefix('='));
    numbers.next().unwrap().parse().unwrap()
}

pub fn memory() {
    let groups = Groups::make(Limits {
        cpus: Some(0.5),
        cpu_request: Some(0.1),
        memory_bytes: Some(32 << 20),
        memory_request_bytes: Some(16 << 20),
        pids: Some(64),
    });
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.membership.clone();
    let sandbox = rig.launch();
    if groups.cgroup.version == Version::V1 {
        for dir in groups.membership.join.iter().filter_map(|door| door.parent()) {
            let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
            let pid = sandbox.process.pid().to_string();
            assert!(members.lines().any(|member| member == pid), "{}", dir.display());
        }
    }
    // In its own view it sees nothing of where it is on the machine.
    let view = sandbox.ask("cat /proc/self/cgroup");
    assert!(!view.contains("berth"), "{view}");
    // Outside of the limit.
    assert_eq!(sandbox.ask("eat 64"), "exit 0");
    assert_eq!(groups.cgroup.usage().unwrap().pids, Some(0));
    if groups.cgroup.version == Version::V1 {
        assert_eq!(sandbox.ask(&format!("enter {} commands", handed(&sandbox, "--memory-fd"))), "0");
    } else {
        // Processes are in groups of execs there: the one that it is in hands on what it counts.
        assert_eq!(sandbox.ask("group x-1"), "mkdir 0 move 0");
    }
    // Within.
    assert_eq!(sandbox.ask("eat 8"), "exit 0");
    assert_eq!(groups.cgroup.oom_kills().unwrap(), Some(0));
    assert_eq!(sandbox.ask("eat 200"), "signal 9");
    assert_eq!(groups.cgroup.oom_kills().unwrap(), Some(1));
    let usage = groups.cgroup.usage().unwrap();
    assert!(usage.memory_peak_bytes.unwrap() > 30 << 20, "{usage:?}");
    assert!(usage.memory_peak_bytes.unwrap() <= 32 << 20, "{usage:?}");
    assert!(usage.memory_total_bytes.unwrap() >= usage.memory_bytes.unwrap(), "{usage:?}");
    assert!(usage.memory_limit_events.is_none_or(|events| events > 0), "{usage:?}");
    assert!(usage.cpu_usec.unwrap() > 0, "{usage:?}");
}

pub fn pids() {
    let groups = Groups::make(Limits { pids: Some(20), ..Limits::default() });
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.membership.clone();
    let mut sandbox = rig.launch();
    assert_eq!(sandbox.ask("group exec-1"), "mkdir 0 move 0");
    assert_eq!(sandbox.ask("forks 100"), "19");
    assert_eq!(groups.cgroup.usage().unwrap().pids, Some(20));
    groups.cgroup.kill_all().unwrap();
    assert_eq!(sandbox.process.wait().unwrap(), berth_jail::Exit::Signal(9));
}

/// Where version 2 is mounted beside version 1 it has no controller that matters, but the rest of it works.
pub fn version_2() {
    let mut facts = Facts::detect().unwrap();
    facts.v1.clear();
    let Some(unified) = &mut facts.v2 else {
        println!("SKIP: no cgroup2 mount");
        return;
    };
    if !unified.delegated {
        // Nothing is limited, so nothing need be enabled for the machine's other groups.
        unified.controllers.clear();
    }
    let counts_kills = unified.controllers.iter().any(|controller| controller == "memory");
    let groups = Groups::make_on(Limits::default(), &facts);
    assert_eq!(groups.cgroup.version, Version::V2);
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.membership.clone();
    let mut sandbox = rig.launch();
    let arguments = sandbox.ask("args");
    assert!(arguments.contains(" --cgroup-v2 ") && arguments.contains(" --memory-fd=5"), "{arguments}");
    assert_eq!(handed(&sandbox, "--cgroup-fd"), 4);
    // The sandbox's own group is the root of what it sees, also of groups beside its own.
    assert!(sandbox.ask("cat /proc/self/cgroup").lines().any(|line| line == "0::/guest"));
    assert_eq!(sandbox.ask("group exec-1"), "mkdir 0 move 0");
    assert!(sandbox.ask("cat /proc/self/cgroup").lines().any(|line| line == "0::/commands/exec-1"));
    assert_eq!(sandbox.ask("forks 10"), "10");
    assert!(groups.cgroup.usage().unwrap().cpu_usec.is_some());
    assert_eq!(groups.cgroup.oom_kills().unwrap(), counts_kills.then_some(0));
    groups.cgroup.kill_all().unwrap();
    assert_eq!(sandbox.process.wait().unwrap(), berth_jail::Exit::Signal(9));
    groups.cgroup.kill_all().unwrap();
}

/// In a user namespace the first process is nobody to the machine's groups, but for those that it is given.
pub fn given() {
    let limits =
        Limits { cpus: Some(0.5), memory_bytes: Some(32 << 20), pids: Some(20), ..Limits::default() };
    let groups = Groups::make_for(limits, &Facts::detect().unwrap(), Some(OWNER));
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.membership.clone();
    let sandbox = rig.launch();
    let owner = |path: std::path::PathBuf| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).uid()
    };
    let guest = groups.membership.guest.clone().unwrap();
    guest.execs.iter().chain(&guest.memory).for_each(|dir| assert_eq!(owner(dir.clone()), OWNER));
    let door = if groups.cgroup.version == Version::V1 { "tasks" } else { "cgroup.procs" };
    guest.enter.iter().for_each(|dir| assert_eq!(owner(dir.join(door)), OWNER));
    let commands = guest.memory.unwrap().join("commands");
    assert_eq!(owner(commands.join(door)), OWNER);
    let limits = ["memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max", "pids.max"];
    let dirs = guest.execs.iter().chain(&guest.enter).chain([&commands]);
    for limit in dirs.flat_map(|dir| limits.map(|name| dir.join(name))).filter(|path| path.exists()) {
        assert_eq!(owner(limit.clone()), 0, "{}", limit.display());
    }
    drop(sandbox);
}

/// Some id that is nobody's.
const OWNER: u32 = 1_900_000_000;
