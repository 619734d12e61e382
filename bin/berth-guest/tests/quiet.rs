//! Quiet: every process that any command has started is dead, and the next command finds none.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use berth_jail::cgroup::Limits;
use berth_types::exec::ExitReason;
use rig::{Rig, shell};

/// Commands that are over as soon as they have told the pids of what they leave.
const LEAVING: [(&str, usize); 6] = [
    // A daemon in a session of its own.
    ("setsid sleep 600 & echo $!", 1),
    // One that its grandparent never knew.
    ("echo $( (setsid sh -c 'echo $$; exec sleep 600' &) | head -n 1)", 1),
    // One that is stopped.
    ("sleep 600 & kill -STOP $!; echo $!", 1),
    // One that takes no notice of a polite word, with a child that does likewise.
    (
        "echo $( (sh -c 'trap \"\" TERM HUP; sleep 600 & echo $$ $!; while :; do sleep 600; done' &) | head -n 1)",
        2,
    ),
    // Stopped, and it would take no notice.
    ("(trap '' TERM; exec sleep 600) & sleep 0.1; kill -STOP $!; echo $!", 1),
    // One that starts others as fast as it can.
    ("echo $( (sh -c 'echo $$; while :; do sleep 0.01 & wait; done' &) | head -n 1)", 1),
];

/// Runs all of them; gives the pids.
async fn leave(rig: &Rig) -> Vec<String> {
    let mut pids = Vec::new();
    for (line, count) in LEAVING {
        let ran = rig.sh(&format!("{{ {line}; }} 2> /dev/null")).await;
        let told: Vec<_> = ran.out().split_whitespace().map(str::to_owned).collect();
        assert_eq!((told.len(), ran.status.exit_code), (count, 0), "{line}: {ran:?}");
        pids.extend(told);
    }
    assert_eq!(alive(rig, &pids).await, pids);
    pids
}

/// Which of them are there and no zombies, as a command sees it: the numbers may be of a namespace.
async fn alive(rig: &Rig, pids: &[String]) -> Vec<String> {
    let look = format!(
        "for pid in {}; do grep -q '^State:.[^ZX]' /proc/$pid/status 2> /dev/null && echo $pid; done; true",
        pids.join(" ")
    );
    rig.sh(&look).await.out().split_whitespace().map(str::to_owned).collect()
}

async fn assert_quiet(rig: &Rig, pids: &[String]) {
    let killed = rig.guest.quiesce().await.unwrap();
    assert!(killed >= pids.len() as u64, "{killed} of {}", pids.len());
    assert_eq!(alive(rig, pids).await, Vec::<String>::new(), "of {pids:?}");
    let execs = rig.guest.execs(None).await.unwrap();
    assert!(execs.iter().all(|exec| exec.processes == Some(0) && exec.pid.is_none()), "{execs:?}");
    assert_eq!(rig.guest.quiesce().await.unwrap(), 0);
    // What comes after it is served as ever.
    let ran = rig.sh("sleep 600 & echo $(echo well); kill $!").await;
    assert_eq!((ran.out().as_str(), ran.status.reason), ("well\n", ExitReason::Exited));
}

#[tokio::test]
async fn nothing_of_any_command_is_left() {
    let Some(rig) = Rig::with_cgroup().await else { return };
    let mut pids = leave(&rig).await;
    // And some that run: one as it is, one that is stopped, one that takes no notice.
    let mut running = Vec::new();
    for line in
        ["echo $$; exec sleep 600", "echo $$; kill -STOP $$; sleep 600", "trap '' TERM; echo $$; sleep 600"]
    {
        let mut exec = rig.start(shell(line)).await.unwrap();
        while let Some(output) = exec.next().await {
            if let berth_sandbox::guest::ExecOutput::Output { data, .. } = output.unwrap() {
                pids.push(String::from_utf8(data.to_vec()).unwrap().trim().to_owned());
                break;
            }
        }
        running.push(exec);
    }
    assert_quiet(&rig, &pids).await;
    for exec in running {
        assert_eq!(rig::finish(exec).await.status.reason, ExitReason::Killed);
    }
}

#[tokio::test]
async fn nothing_beside_a_full_sandbox_is_left() {
    let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(64), ..Limits::default() };
    let Some(rig) = Rig::limited(limits).await else { return };
    let Ok(dir) = tempfile::Builder::new().prefix("berth-test").tempdir_in("/dev/shm") else {
        println!("SKIP: no /dev/shm");
        return;
    };
    let before = leave(&rig).await;
    rig.sh(&format!("head -c 100M /dev/zero > {}/file", dir.path().display())).await;
    let ran = rig.sh("setsid sleep 600 & echo $!").await;
    assert!(ran.status.rescued, "{:?}", ran.status);
    let pids = [before, vec![ran.out().trim().to_owned()]].concat();
    // Some may have been killed for want of memory.
    let pids = alive(&rig, &pids).await;
    assert!(pids.contains(&ran.out().trim().to_owned()), "{pids:?}");
    assert_quiet(&rig, &pids).await;
    assert!(rig.sh("true").await.status.rescued, "it is still full");
    std::fs::remove_file(dir.path().join("file")).unwrap();
    assert!(!rig.sh("true").await.status.rescued);
}
