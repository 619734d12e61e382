//! Many at once.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use berth_jail::cgroup::Limits;
use berth_jail::seccomp::Profile;

use crate::rig::{Groups, IDS, Rig, guest, launcher};

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
    let start = Instant::now();
    for _ in 0..16 {
        // New ones each time: with version 2 only the first process of a sandbox can set them up.
        let groups = Groups::make(Limits::default());
        rigs[0].spec.cgroups = groups.membership.clone();
        drop(rigs[0].launch());
    }
    println!("with control groups of its own: {:?} each", start.elapsed() / 16);
    rigs[0].spec.cgroups = Default::default();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for rig in &rigs[16..] {
            scope.spawn(|| assert_eq!(rig.launch().ask("id"), "pid 1 uid 0 session 1"));
        }
    });
    println!("side by side: {:?} for 16", start.elapsed());
}

/// What ids of its own cost a launch, and what they cost ahead of it.
pub fn mapped() {
    const TIMES: usize = 200;
    let (_, _) = (guest(), launcher());
    let mut rig = Rig::usual();
    let pairs = (0..TIMES).map(|_| took(|| launcher().make_namespaces(IDS).unwrap()));
    let (times, mut pairs): (Vec<_>, Vec<_>) = pairs.unzip();
    println!("a pair of namespaces: {:?}", median(times));
    let plain = (0..TIMES).map(|_| took(|| rig.launch()).0).collect();
    println!("launch: {:?}", median(plain));
    let netns = berth_sys::netns::create(|| Ok(())).unwrap().0;
    let ready = (0..TIMES).map(|_| took(|| rig.launch_in(Some(netns.as_fd())).unwrap()).0).collect();
    println!("launch into a network namespace: {:?}", median(ready));
    let mapped = std::iter::from_fn(|| pairs.pop())
        .map(|pair| took(|| rig.try_launch_mapped(&pair).unwrap()).0)
        .collect();
    println!("launch into a pair: {:?}", median(mapped));
}

fn took<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let made = work();
    (start.elapsed(), made)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
