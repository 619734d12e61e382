//! Control groups.

use std::fs;

use berth_jail::cgroup::Limits;

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
