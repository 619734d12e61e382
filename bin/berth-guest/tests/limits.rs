//! Limits: what commands meet, what they are told of it, and that the guest survives all of it.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_jail::cgroup::{Facts, Limits};
use berth_types::exec::{ExitReason, Limit};
use rig::{Rig, argv, shell};

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> Limits {
    Limits { memory_bytes: Some(mib * MIB), pids: Some(64), ..Limits::default() }
}

/// A directory in memory.
struct InMemory(PathBuf);

impl InMemory {
    fn new() -> Option<Self> {
        let path = Path::new("/dev/shm").join(format!("berth-test-{}", std::process::id()));
        if std::fs::create_dir(&path).is_err() {
            println!("SKIP: no /dev/shm");
            return None;
        }
        Some(Self(path))
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Rig {
    fn assert_guest_lives(&mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "the guest is gone");
    }
}

#[tokio::test]
async fn a_memory_hog_is_killed_and_that_is_said() {
    let Some(mut rig) = Rig::limited(memory(64)).await else { return };
    let ran = rig.run(argv(&["tail", "/dev/zero"])).await;
    assert_eq!((ran.status.reason, ran.status.exit_code), (ExitReason::OutOfMemory, 137), "{:?}", ran.status);
    assert_eq!((ran.status.signal, ran.status.oom_kills), (Some(9), Some(1)));
    assert_eq!(ran.status.limits_hit, [Limit::Memory]);
    assert!(ran.message().contains("out of memory"));
    // A command that only started what was killed goes on, and how it ends is its own affair.
    let ran = rig.sh("tail /dev/zero; echo ended with $?").await;
    assert_eq!((ran.status.reason, ran.out().as_str()), (ExitReason::Exited, "ended with 137\n"));
    assert_eq!((ran.status.oom_kills, ran.status.limits_hit.as_slice()), (Some(1), &[Limit::Memory][..]));
    // Killed by somebody else is not out of memory.
    let ran = rig.sh("kill -9 $$").await;
    assert_eq!((ran.status.reason, ran.status.oom_kills), (ExitReason::Signaled, Some(0)));
    let ran = rig.sh("echo well").await;
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("well\n", false));
    assert!(ran.status.limits_hit.is_empty());
    let usage = rig.usage();
    assert_eq!(usage.oom_kills, Some(2));
    assert!((60 * MIB..=64 * MIB).contains(&usage.memory_peak_bytes.unwrap()), "{usage:?}");
    rig.assert_guest_lives();
}

#[tokio::test]
async fn a_sandbox_full_of_files_in_memory_is_entered_and_freed() {
    let Some(mut rig) = Rig::limited(memory(64)).await else { return };
    let Some(dir) = InMemory::new() else { return };
    let fill = format!("head -c 100M /dev/zero > {}/file", dir.0.display());
    let ran = rig.sh(&fill).await;
    assert_ne!(ran.status.exit_code, 0);
    assert_eq!(ran.status.limits_hit, [Limit::Memory], "{:?}", ran.status);
    // More than once, and with children of its own.
    for _ in 0..5 {
        let ran = rig.sh("echo $(echo in) | cat").await;
        assert_eq!((ran.out().as_str(), ran.status.exit_code), ("in\n", 0), "{:?}", ran.status);
        assert!(ran.status.rescued);
    }
    // There it has a limit too, and filling that up does not shut the door.
    let ran = rig.sh(&format!("head -c 100M /dev/zero > {}/second", dir.0.display())).await;
    assert_ne!(ran.status.exit_code, 0);
    let ran = rig.sh(&format!("rm {0}/file {0}/second && echo freed", dir.0.display())).await;
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("freed\n", true), "{:?}", ran.status);
    let ran = rig.sh("echo well").await;
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("well\n", false));
    rig.assert_guest_lives();
}

#[tokio::test]
async fn a_sandbox_full_of_shared_segments_is_entered_and_freed() {
    let Some(mut rig) = Rig::limited(memory(96)).await else { return };
    let script = "import ctypes\nc = ctypes.CDLL(None)\nc.shmat.restype = ctypes.c_void_p\n\
                  i = c.shmget(0, 200 << 20, 0o1600)\nprint(i, flush=True)\na = c.shmat(i, None, 0)\n\
                  ctypes.memset(a, 1, 200 << 20)";
    let ran = rig.run(argv(&["python3", "-c", script])).await;
    let Ok(segment) = ran.out().trim().parse::<i32>() else {
        println!("SKIP: no python3 to make a segment with");
        return;
    };
    assert_eq!(ran.status.exit_code, 137, "{:?}", ran.status);
    let ran = rig.sh("echo in").await;
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("in\n", true), "{:?}", ran.status);
    let ran = rig.run(argv(&["ipcrm", "-m", &segment.to_string()])).await;
    assert_eq!(ran.status.exit_code, 0, "{:?}", ran.status);
    assert!(!rig.sh("true").await.status.rescued);
    rig.assert_guest_lives();
}

#[tokio::test]
async fn out_of_processes_a_program_still_starts_and_is_told() {
    let limits = Limits { pids: Some(16), ..Limits::default() };
    let Some(mut rig) = Rig::limited(limits).await else { return };
    let ran = rig.run(argv(&["sh", "-c", "while :; do sleep 100 & done 2>/dev/null"])).await;
    assert_eq!(ran.status.limits_hit, [Limit::Pids], "{:?}", ran.status);
    let ran = rig.run(argv(&["echo", "in"])).await;
    assert_eq!((ran.out().as_str(), ran.status.exit_code), ("in\n", 0), "{:?}", ran.status);
    assert!(ran.status.limits_hit.is_empty());
    let ran = rig.run(argv(&["sh", "-c", "sleep 0; sleep 0"])).await;
    assert_eq!(ran.status.limits_hit, [Limit::Pids], "{:?}", ran.status);
    let usage = rig.usage();
    assert!(usage.pids.unwrap() >= 15, "{usage:?}");
    rig.assert_guest_lives();
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_exec() {
    let limits = Limits { pids: Some(24), cpus: Some(1.0), ..Limits::default() };
    let Some(mut rig) = Rig::limited(limits).await else { return };
    let mut bomb = shell("bomb() { bomb | bomb & }; bomb; sleep 100");
    // Long enough for emulated processors too.
    bomb.timeout = Some(Duration::from_secs(3));
    let ran = rig.run(bomb).await;
    assert_eq!(ran.status.reason, ExitReason::TimedOut, "{:?}", ran.status);
    assert_eq!(ran.status.limits_hit, [Limit::Pids]);
    let ran = rig.sh("echo $(echo well)").await;
    assert_eq!((ran.out().as_str(), ran.status.limits_hit.len()), ("well\n", 0));
    assert_eq!(rig.usage().pids, Some(0));
    rig.assert_guest_lives();
}

#[tokio::test]
async fn processor_time_is_limited_and_counted() {
    let limits = Limits { cpus: Some(0.2), cpu_request: Some(0.1), ..Limits::default() };
    let Some(rig) = Rig::limited(limits).await else { return };
    let mut spin = argv(&["sh", "-c", "while :; do :; done"]);
    spin.timeout = Some(Duration::from_secs(1));
    let status = rig.run(spin).await.status;
    let Some(used) = status.cpu_usec else {
        println!("SKIP: processor time is not counted by exec here");
        return;
    };
    // A fifth of each tenth of a second, the first and the last of which may be cut short.
    let most = (status.duration_ms / 100 + 2) * 20_000;
    assert!(used > 0 && used <= most, "{used} of {most}: {status:?}");
    assert!(rig.usage().cpu_usec.unwrap() >= used);
}

#[tokio::test]
async fn commands_are_killed_before_the_guest_and_cannot_limit_it() {
    let Some(mut rig) = Rig::limited(memory(64)).await else { return };
    let score = rig.sh("cat /proc/self/oom_score_adj").await.out().trim().parse::<i32>().unwrap();
    assert!(score >= 500, "{score}");
    assert_eq!(rig.sh("id -g; id -G").await.out(), "0\n0\n");
    let capabilities = rig.sh("grep CapEff /proc/self/status").await.out();
    let mask = u64::from_str_radix(capabilities.trim().rsplit('\t').next().unwrap(), 16).unwrap();
    if mask & (1 << 24) != 0 {
        println!("SKIP: commands have CAP_SYS_RESOURCE here");
        return;
    }
    for limit in ["--nofile=1:1", "--cpu=1:1", "--nproc=1:1"] {
        let ran = rig.run(argv(&["prlimit", "--pid", "1", limit])).await;
        assert!(ran.status.exit_code != 0, "{limit}: {:?}", String::from_utf8_lossy(&ran.stderr));
    }
    rig.assert_guest_lives();
}

/// Where version 2 is mounted beside version 1 it has no controller that matters, but the rest of it works.
#[tokio::test]
async fn version_2_counts_processor_time_by_exec() {
    let mut facts = Facts::detect().unwrap();
    facts.v1.clear();
    let Some(unified) = &mut facts.v2 else {
        println!("SKIP: no cgroup2 mount");
        return;
    };
    if !unified.delegated {
        unified.controllers.clear();
    }
    let Some(rig) = Rig::limited_on(Limits::default(), facts).await else { return };
    let ran = rig.sh("grep ^0:: /proc/self/cgroup; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done").await;
    assert!(ran.out().ends_with("/commands/x-1\n"), "{:?}", ran.out());
    assert!(ran.status.cpu_usec.unwrap() > 0, "{:?}", ran.status);
}
