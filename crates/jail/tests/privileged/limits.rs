//! Control groups.

use std::fs;

use berth_jail::cgroup::{Facts, Limits, Version};

use crate::rig::{Groups, Rig};

pub fn memory() {
    let groups = Groups::make(Limits { cpus: Some(0.5), memory_bytes: Some(32 << 20), pids: Some(64) });
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.cgroup.membership();
    let sandbox = rig.launch();
    assert!(sandbox.ask("args").starts_with("berth-guest --control-fd=3 --cgroup-fd=4"));
    for dir in &groups.cgroup.dirs {
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(members.trim(), sandbox.process.pid().to_string(), "{}", dir.display());
    }
    // In its own view it is at the root of each hierarchy that Berth uses.
    let view = sandbox.ask("cat /proc/self/cgroup");
    assert!(!view.contains("berth"), "{view}");
    assert_eq!(sandbox.ask("eat 8"), "exit 0");
    assert_eq!(groups.cgroup.oom_kills().unwrap(), Some(0));
    assert_eq!(sandbox.ask("eat 200"), "signal 9");
    assert_eq!(groups.cgroup.oom_kills().unwrap(), Some(1));
    let usage = groups.cgroup.usage().unwrap();
    assert!(usage.memory_peak_bytes.unwrap() > 16 << 20);
    assert!(usage.memory_peak_bytes.unwrap() <= 32 << 20);
    assert!(usage.cpu_usec.unwrap() > 0);
    assert_eq!(usage.pids, Some(1));
}

pub fn pids() {
    let groups = Groups::make(Limits { pids: Some(20), ..Limits::default() });
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.cgroup.membership();
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
    let groups = Groups::make_on(Limits::default(), &facts);
    assert_eq!(groups.cgroup.version, Version::V2);
    let mut rig = Rig::usual();
    rig.spec.cgroups = groups.cgroup.membership();
    let mut sandbox = rig.launch();
    assert_eq!(sandbox.ask("args"), "berth-guest --control-fd=3 --cgroup-fd=4 --cgroup-v2 ");
    assert!(sandbox.ask("cat /proc/self/cgroup").lines().any(|line| line == "0::/"));
    assert_eq!(sandbox.ask("group exec-1"), "mkdir 0 move 0");
    assert!(sandbox.ask("cat /proc/self/cgroup").lines().any(|line| line == "0::/exec-1"));
    assert_eq!(sandbox.ask("forks 10"), "10");
    assert!(groups.cgroup.usage().unwrap().cpu_usec.is_some());
    assert_eq!(groups.cgroup.oom_kills().unwrap(), None);
    groups.cgroup.kill_all().unwrap();
    assert_eq!(sandbox.process.wait().unwrap(), berth_jail::Exit::Signal(9));
    groups.cgroup.kill_all().unwrap();
}
