//! Many at once.

use std::time::Instant;

use berth_jail::cgroup::Limits;
use berth_jail::seccomp::Profile;

use crate::rig::{Groups, Rig, guest, launcher};

/// Prints what a launch takes, so that a slow one is seen; judges nothing by the clock.
pub fn side_by_side() {
    let (_, _) = (guest(), launcher());
    let mut rigs: Vec<Rig> = (0..32).map(|_| Rig::usual()).collect();
    let start = Instant::now();
    for rig in &rigs[..16] {
        drop(rig.launch());
    }
    println!("one after the other: {:?} each", start.elapsed() / 16);
    rigs[1].spec.seccomp = Profile::Unconfined;
    let start = Instant::now();
    for _ in 0..16 {
        drop(rigs[1].launch());
    }
    println!("without a filter of system calls: {:?} each", start.elapsed() / 16);
    let groups = Groups::make(Limits::default());
    rigs[0].spec.cgroups = groups.cgroup.membership();
    let start = Instant::now();
    for _ in 0..16 {
        drop(rigs[0].launch());
    }
    println!("with {} control groups: {:?} each", groups.cgroup.dirs.len(), start.elapsed() / 16);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for rig in &rigs[16..] {
            scope.spawn(|| assert_eq!(rig.launch().ask("id"), "pid 1 uid 0 session 1"));
        }
    });
    println!("side by side: {:?} for 16", start.elapsed());
}
