//! Commands, through the host's side.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::time::{Duration, Instant};

use berth_sandbox::guest::{Error, ExecOutput, FailureCode, TreeKill};
use berth_types::exec::{ExitReason, OutputStream};
use rig::{Rig, argv, finish, is_alive, shell, until};

#[tokio::test]
async fn exit_codes_are_exact() {
    let rig = Rig::new().await;
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 200, 255] {
        let ran = rig.sh(&format!("exit {code}")).await;
        assert_eq!((ran.status.exit_code, ran.status.reason), (code, ExitReason::Exited));
    }
    for signal in [1, 2, 6, 9, 11, 13, 14, 15] {
        // Core files of a test would be nobody's.
        let ran = rig.sh(&format!("ulimit -c 0; kill -{signal} $$")).await;
        assert_eq!((ran.status.exit_code, ran.status.reason), (128 + signal, ExitReason::Signaled));
        assert_eq!(ran.status.signal, Some(signal));
    }
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("plain"), "#!/bin/sh\n").unwrap();
    for (name, text) in [("no-shebang", "echo hi\n"), ("no-interpreter", "#!/nowhere/interpreter\n")] {
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let not_in_path = "berth-no-such-program";
    for (spec, code, message) in [
        (argv(&[not_in_path]), 127, "not found in PATH"),
        (argv(&["/nowhere/program"]), 127, "/nowhere/program: No such file"),
        (argv(&[&path("no-interpreter")]), 127, "interpreter"),
        (argv(&[&path("plain")]), 126, "Permission denied"),
        (argv(&[&path("no-shebang")]), 126, "no #! line"),
        (argv(&["/"]), 126, "Permission denied"),
        (rig::argv(&[]), 126, "empty"),
    ] {
        let ran = rig.run(spec.clone()).await;
        assert_eq!((ran.status.exit_code, ran.status.reason), (code, ExitReason::NotStarted), "{spec:?}");
        assert!(ran.message().contains(message), "{:?}", ran.status);
    }
    let mut nowhere = shell("true");
    nowhere.cwd = "/nowhere/at/all".into();
    let ran = rig.run(nowhere).await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (126, ExitReason::NotStarted));
    assert!(ran.message().contains("/nowhere/at/all"), "{:?}", ran.status);
    let mut nobody = shell("true");
    nobody.user = Some("nobody-of-that-name".into());
    let ran = rig.run(nobody).await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (126, ExitReason::NotStarted));
    assert!(ran.message().contains("nobody-of-that-name"), "{:?}", ran.status);
}

#[tokio::test]
async fn outputs_are_separate_and_stdin_is_empty() {
    let rig = Rig::new().await;
    let ran = rig.sh("echo out; echo err >&2; cat; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l").await;
    // ls itself holds the directory open: 0, 1, 2 and that.
    assert_eq!(ran.out(), "out\n/dev/null\n4\n");
    assert_eq!(ran.stderr, b"err\n");
}

#[tokio::test]
async fn a_command_starts_with_a_clean_slate() {
    let rig = Rig::new().await;
    let script = "umask; ps -o sid= -p $$ | tr -d ' ' | grep -qx $$ && echo own session; \
                  grep -E '^Sig(Blk|Ign)' /proc/self/status; ulimit -n";
    let ran = rig.sh(script).await;
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap();
    let clean = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000";
    assert_eq!(ran.out(), format!("0022\nown session\n{clean}\n{soft}\n"));
}

#[tokio::test]
async fn environment_and_arguments_arrive_as_they_are() {
    let rig = Rig::new().await;
    let mut spec = argv(&["/usr/bin/env", "-0"]);
    spec.env.insert("LINES_".into(), "a\nb\n\"c' $x é".into());
    spec.env.insert("HOME".into(), "/mine".into());
    let ran = rig.run(spec).await;
    let out = ran.out();
    let env: Vec<_> = out.split_terminator('\0').collect();
    assert!(env.contains(&"LINES_=a\nb\n\"c' $x é"), "{env:?}");
    assert!(
        env.contains(&"HOME=/mine") && env.contains(&"USER=root") && env.contains(&"LOGNAME=root"),
        "{env:?}"
    );
    assert!(env.iter().any(|var| var.starts_with("PATH=/usr/local/sbin:")), "{env:?}");

    let long = "x".repeat(100_000);
    assert_eq!(rig.run(argv(&["printf", "%s", &long])).await.stdout.len(), 100_000);
    // The kernel takes no single string of 128 KiB or more.
    let ran = rig.sh(&format!("echo {}", "x".repeat(200_000))).await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (126, ExitReason::NotStarted));
    assert!(ran.message().contains("argument list too long"), "{:?}", ran.status);
    let mut spec = shell("true");
    spec.env.insert("BIG".into(), "x".repeat(1 << 20));
    let ran = rig.run(spec).await;
    assert_eq!(ran.status.reason, ExitReason::NotStarted);
    assert!(ran.message().contains("BIG"), "{:?}", ran.status);
    // Each is short enough, together they are too much.
    let mut spec = shell("true");
    spec.env.extend((0..80).map(|n| (format!("V{n}"), "x".repeat(100_000))));
    let ran = rig.run(spec).await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (126, ExitReason::NotStarted));
    assert!(ran.message().contains("E2BIG"), "{:?}", ran.status);
}

#[tokio::test]
async fn users_by_name_and_number() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root");
        return;
    }
    let rig = Rig::new().await;
    for (user, wanted) in [
        ("daemon", "1 1 1 daemon /usr/sbin"),
        ("4242", "4242 0 0 - /"),
        ("4242:4343", "4242 4343 4343 - /"),
        ("1:2", "1 2 2 daemon /usr/sbin"),
        ("root", "0 0 0 root /root"),
    ] {
        let mut spec = shell("echo $(id -u) $(id -g) $(id -G) ${USER:--} $HOME");
        spec.user = Some(user.into());
        assert_eq!(rig.run(spec).await.out().trim(), wanted, "{user}");
    }
}

#[tokio::test]
async fn no_new_privs_is_set_when_asked_for() {
    let rig = Rig::new().await;
    for wanted in [false, true] {
        let mut spec = shell("grep NoNewPrivs /proc/self/status");
        spec.no_new_privileges = wanted;
        assert_eq!(rig.run(spec).await.out(), format!("NoNewPrivs:\t{}\n", u8::from(wanted)));
    }
}

#[tokio::test]
async fn a_timeout_keeps_the_output_so_far() {
    let rig = Rig::new().await;
    let mut spec = shell("echo before; sleep 60; echo after");
    spec.timeout = Some(Duration::from_millis(300));
    let began = Instant::now();
    let ran = rig.run(spec).await;
    assert_eq!((ran.status.exit_code, ran.status.reason), (124, ExitReason::TimedOut));
    assert_eq!(ran.out(), "before\n");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(ran.status.duration_ms >= 300);
}

#[tokio::test]
async fn what_is_left_in_the_background_holds_nothing_up_and_lives_on() {
    let rig = Rig::new().await;
    let began = Instant::now();
    // The second one keeps the outputs open, and writes to them again later.
    let ran = rig
        .sh("sleep 30 >/dev/null 2>&1 & echo $!; (sleep 0.3; echo late; sleep 30) & echo $!; echo done")
        .await;
    assert_eq!(ran.status.exit_code, 0);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let out = ran.out();
    let [first, second, "done"] = out.lines().collect::<Vec<_>>()[..] else { panic!("{out:?}") };
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(is_alive(first) && is_alive(second), "writing to a finished exec's output must not kill");
    rig.sh(&format!("kill -9 {first} {second}; pkill -9 -s 0 -P {second}; true")).await;
}

#[tokio::test]
async fn late_output_of_a_process_substitution_is_waited_for() {
    let rig = Rig::new().await;
    // Written only once the guest has reaped the command. The wait for it is short, and a busy machine may let it pass.
    let script = "(while kill -0 $$ 2> /dev/null; do :; done; echo late) & echo early";
    for _ in 0..50 {
        let ran = rig.run(argv(&["sh", "-c", script])).await;
        if ran.out() == "early\nlate\n" {
            return;
        }
        assert_eq!(ran.out(), "early\n");
    }
    panic!("late output never comes");
}

#[tokio::test]
async fn all_that_was_written_before_the_end_is_delivered() {
    let rig = Rig::new().await;
    for _ in 0..20 {
        // A pipe's worth that nobody reads before the process is gone, held open by somebody else.
        let mut exec = rig.start(shell("sleep 1 & head -c 60000 /dev/zero; echo >&2 end")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (mut out, mut err) = (0, 0);
        while let Some(output) = exec.next().await {
            match output.unwrap() {
                ExecOutput::Output { stream: OutputStream::Stdout, data, .. } => out += data.len(),
                ExecOutput::Output { stream: OutputStream::Stderr, data, .. } => err += data.len(),
                ExecOutput::Started { .. } | ExecOutput::Exited(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((out, err), (60_000, 4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_its_own_exec_alone() {
    const SIZE: usize = 64 << 20;
    let rig = Rig::new().await;
    let mut slow = rig.start(shell(&format!("head -c {SIZE} /dev/zero"))).await.unwrap();
    let mut stderr = rig.start(shell(&format!("head -c {SIZE} /dev/zero >&2"))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Another exec is as fast as ever, and moves as much as it likes.
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(rig.sh("echo quick").await.out(), "quick\n");
    }
    assert_eq!(rig.sh("head -c 4000000 /dev/zero").await.stdout.len(), 4_000_000);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut read = [0, 0];
    for (exec, read) in [&mut slow, &mut stderr].into_iter().zip(&mut read) {
        while let Some(output) = exec.next().await {
            match output.unwrap() {
                ExecOutput::Output { data, .. } => *read += data.len(),
                ExecOutput::Started { .. } => {}
                ExecOutput::Exited(status) => assert_eq!(status.exit_code, 0),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(read, [SIZE, SIZE]);
}

#[tokio::test]
async fn two_hundred_at_once() {
    let rig = Rig::new().await;
    let mut execs = Vec::new();
    for _ in 0..200 {
        execs.push(rig.start(shell("sleep 0.2; echo out; echo err >&2; exit 3")).await.unwrap());
    }
    for exec in execs {
        let ran = finish(exec).await;
        assert_eq!((ran.status.exit_code, ran.out().as_str(), &ran.stderr[..]), (3, "out\n", &b"err\n"[..]));
    }
}

#[tokio::test]
async fn an_id_runs_once() {
    let rig = Rig::new().await;
    let mut spec = shell("echo $$; sleep 60");
    spec.fingerprint = Some("one".into());
    let first = rig.start(spec.clone()).await.unwrap();
    let second = rig.start(spec.clone()).await.unwrap();
    spec.fingerprint = Some("another".into());
    match rig.start(spec.clone()).await.map(drop) {
        Err(Error::Refused(failure)) => assert_eq!(failure.code, FailureCode::Conflict),
        other => panic!("{other:?}"),
    }
    assert!(rig.guest.kill(&spec.id).await.unwrap());
    let (first, second) = (finish(first).await, finish(second).await);
    assert_eq!(first.out(), second.out(), "one process, and both had all of its output");
    assert_eq!(first.status, second.status);
    // Also when it is over.
    spec.fingerprint = Some("one".into());
    assert_eq!(rig.run(spec).await.stdout, first.stdout);
}

#[tokio::test]
async fn killed_by_request() {
    let rig = Rig::new().await;
    let spec = shell("echo $$; sleep 60");
    let id = spec.id.clone();
    let mut exec = rig.start(spec).await.unwrap();
    let pid = loop {
        if let ExecOutput::Output { data, .. } = exec.next().await.unwrap().unwrap() {
            break String::from_utf8_lossy(&data).trim().to_owned();
        }
    };
    assert!(rig.guest.kill(&id).await.unwrap());
    assert!(!is_alive(&pid));
    let ran = finish(exec).await;
    assert_eq!((ran.status.reason, ran.status.exit_code), (ExitReason::Killed, 143));
    assert!(!rig.guest.kill(&id).await.unwrap());
    assert!(!rig.guest.kill("never there").await.unwrap());
}

#[tokio::test]
async fn a_dropped_exec_is_killed() {
    let rig = Rig::new().await;
    let mut exec = rig.start(shell("trap '' TERM; echo $$; yes")).await.unwrap();
    let pid = loop {
        if let ExecOutput::Output { data, .. } = exec.next().await.unwrap().unwrap() {
            break String::from_utf8_lossy(&data).lines().next().unwrap().to_owned();
        }
    };
    assert!(is_alive(&pid));
    drop(exec);
    until("a dropped exec lives on", || !is_alive(&pid)).await;
    assert_eq!(rig.sh("echo still here").await.out(), "still here\n");
}

#[tokio::test]
async fn without_a_connection_nothing_is_made_up() {
    let mut rig = Rig::new().await;
    let mut exec = rig.start(shell("echo $$; sleep 60")).await.unwrap();
    let pid = loop {
        if let ExecOutput::Output { data, .. } = exec.next().await.unwrap().unwrap() {
            break String::from_utf8_lossy(&data).trim().to_owned();
        }
    };
    rig.process.kill().unwrap();
    assert!(matches!(exec.next().await, Some(Err(Error::Gone))));
    assert!(exec.next().await.is_none());
    rig.guest.closed().await;
    assert!(matches!(rig.start(shell("true")).await, Err(Error::Gone)));
    assert!(matches!(rig.guest.kill("x").await, Err(Error::Gone)));
    assert!(matches!(rig.guest.glob("/*").await, Err(Error::Gone)));
    // A guest that is not PID 1 and is killed leaves what it started.
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
}

#[tokio::test]
async fn the_end_of_the_stream_ends_everything() {
    for by_request in [true, false] {
        let Some(mut rig) = Rig::with_cgroup().await else { return };
        let ran = rig.sh("setsid sleep 60 >/dev/null 2>&1 & echo $!").await;
        let daemon = ran.out().trim().to_owned();
        assert!(is_alive(&daemon));
        let exec = rig.start(shell("sleep 60")).await.unwrap();
        if by_request {
            rig.guest.shutdown().await;
        } else {
            let other = Rig::new().await;
            drop(exec);
            drop(std::mem::replace(&mut rig.guest, other.guest.clone()));
        }
        until("the guest ends", || rig.process.try_wait().unwrap().is_some()).await;
        assert!(!is_alive(&daemon));
    }
}

/// What a command starts in order to get away.
const ESCAPES: &str = "
    trap '' TERM
    echo $$
    setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' &
    sh -c 'setsid sh -c \"trap : TERM; echo \\$\\$; (setsid sh -c \\\"echo \\\\\\$\\\\\\$; sleep 99\\\" &) ; while :; do sleep 1; done\" &'
    sh -c 'echo $$; kill -STOP $$' &
    while :; do sleep 1; done
";

#[tokio::test]
async fn nothing_gets_away_from_its_cgroup() {
    let mut tried = 0;
    for (root, v2) in rig::HIERARCHIES {
        if let Some(rig) = Rig::in_hierarchy(root, v2).await {
            tried += 1;
            println!("in {root}");
            hunt_escapes(&rig).await;
        }
    }
    if tried == 0 {
        println!("SKIP: no cgroup can be made on this machine");
    }
}

async fn hunt_escapes(rig: &Rig) {
    assert_eq!(rig.guest.info().tree_kill, TreeKill::Cgroup);
    kill_escapes(rig).await;
    // All have to be up before the time is over, and how long that takes depends on the machine.
    let mut timeout = Duration::from_millis(500);
    while time_escapes_out(rig, timeout).await < 5 {
        assert!(timeout < Duration::from_secs(60), "five processes are not up after {timeout:?}");
        timeout *= 2;
    }
}

async fn kill_escapes(rig: &Rig) {
    let spec = shell(ESCAPES);
    let id = spec.id.clone();
    let mut exec = rig.start(spec).await.unwrap();
    let mut out = Vec::new();
    while out.iter().filter(|byte| **byte == b'\n').count() < 5 {
        let output = tokio::time::timeout(Duration::from_secs(60), exec.next()).await;
        match output.expect("five processes are not up").unwrap().unwrap() {
            ExecOutput::Output { stream: OutputStream::Stdout, data, .. } => out.extend_from_slice(&data),
            ExecOutput::Started { .. } | ExecOutput::Output { .. } => {}
            other => panic!("it ended by itself: {other:?}"),
        }
    }
    assert!(rig.guest.kill(&id).await.unwrap());
    let ran = finish(exec).await;
    assert_eq!((ran.status.reason, ran.status.exit_code), (ExitReason::Killed, 137));
    assert_eq!(all_dead(&out), 5);
}

/// How many processes came up in the time.
async fn time_escapes_out(rig: &Rig, timeout: Duration) -> usize {
    let mut spec = shell(ESCAPES);
    spec.timeout = Some(timeout);
    let ran = rig.run(spec).await;
    assert_eq!((ran.status.reason, ran.status.exit_code), (ExitReason::TimedOut, 124));
    all_dead(&ran.stdout)
}

/// None of the processes whose numbers are in the lines is there any more; how many lines there are.
fn all_dead(out: &[u8]) -> usize {
    let out = String::from_utf8_lossy(out);
    for pid in out.lines() {
        assert!(!is_alive(pid), "{pid} of {out}");
    }
    out.lines().count()
}

#[tokio::test]
async fn as_pid_1_it_reaps_and_cannot_be_killed_from_inside() {
    let Some(mut rig) = Rig::as_init().await else { return };
    assert!(rig.guest.info().is_init);
    // Orphans of orphans, all of which end up with PID 1.
    rig.sh("for n in 1 2 3 4 5; do (setsid sh -c '(sleep 0.05 &) &' &); done").await;
    rig.sh("kill -9 1; kill -15 1; kill -17 1; kill -13 1; kill -2 1").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ran = rig.sh("ps -e -o stat= | grep -c Z; cat /proc/1/oom_score_adj").await;
    assert!(ran.out().starts_with("0\n"), "zombies stay: {}", ran.out());
    rig.sh("setsid sleep 60 >/dev/null 2>&1 &").await;
    rig.guest.shutdown().await;
    until("the namespace ends", || rig.process.try_wait().unwrap().is_some()).await;
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_exec() {
    let Some(rig) = Rig::with_cgroup().await else { return };
    if !rig.limit_processes(300) {
        println!("SKIP: processes cannot be limited here");
        return;
    }
    let mut spec = shell("bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done");
    spec.timeout = Some(Duration::from_millis(500));
    let ran = rig.run(spec).await;
    assert_eq!(ran.status.exit_code, 124);
    assert_eq!(rig.sh("echo fine").await.out(), "fine\n");
}

#[tokio::test]
async fn cgroups_of_the_dead_are_removed() {
    let Some(rig) = Rig::with_cgroup().await else { return };
    let ran =
        rig.sh("setsid sleep 0.4 >/dev/null 2>&1 & grep -m1 -o '/berth-test.*' /proc/self/cgroup").await;
    let own = ran.out().trim().to_owned();
    let find = || {
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        roots.iter().any(|root| std::path::Path::new(&format!("{root}{own}")).exists())
    };
    assert!(own.contains("/x-"), "{own}");
    assert!(find(), "something still lives in it");
    tokio::time::sleep(Duration::from_millis(600)).await;
    // Where the guest is not PID 1 it learns of that death at the next one.
    rig.sh("true").await;
    until("an empty cgroup stays", || !find()).await;
}
