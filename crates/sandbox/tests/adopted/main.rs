//! Containers that outlive their daemon, for real. Needs root and a C compiler; says so and passes where one is missing.
//!
//! Their guest is one that is made up: it greets whoever connects, and then listens to nothing. So this is about what is
//! around it. Has a main of its own because the launcher re-executes the running binary, and because this is also the
//! daemon that is killed.

// Tests may: clippy's own exception covers only functions marked as tests.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test ends where it cannot go on")]

mod mounts;
mod rig;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_sandbox::{Driver, Error, Machine};
use libtest_mimic::{Arguments, Trial};
use rig::{Killed, Machines, Rig, is_alive, pid_of};

/// Longer than any test takes, short enough for what a broken one leaves.
const ORPHAN: Duration = Duration::from_secs(60);
/// What may take milliseconds, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(berth_jail::LAUNCHER_ARG) => return berth_jail::launcher_main(),
        Some(rig::DAEMON_ARG) => return rig::daemon(),
        _ => {}
    }
    let tests: [(&str, fn()); 7] = [
        ("a_killed_daemons_sandboxes_are_taken_over_and_end_without_a_trace", taken_over),
        ("what_nobody_takes_over_is_ended", others_end),
        ("one_that_cannot_be_taken_over_is_ended_and_hurts_no_other", failures_are_apart),
        ("a_sandbox_ends_when_nobody_comes_for_it", orphans_end),
        ("a_daemon_that_leaves_ends_only_what_nobody_could_take_over", leaves),
        ("mounts_and_their_places_leave_no_trace_in_a_layer", mounts::leave_no_trace),
        ("a_hundred_sandboxes_are_taken_over_at_once", many),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            match rig::missing() {
                Some(reason) => println!("SKIP: {reason}"),
                None => test(),
            }
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn by_id(machines: Machines) -> std::collections::BTreeMap<String, Result<Arc<dyn Machine>, Error>> {
    machines.into_iter().collect()
}

fn taken_over() {
    let rig = Rig::new();
    let Killed { records } = rig.killed_daemon(&[("a", Some(ORPHAN)), ("b", Some(ORPHAN))]);
    let pids: Vec<i32> = records.iter().map(|(_, record)| pid_of(record)).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    rig.run(async {
        let (driver, adopted) = rig.start(records.clone()).await;
        let mut adopted = by_id(adopted);
        for (id, record) in &records {
            let machine = adopted[id].as_ref().unwrap();
            assert_eq!(machine.resume().as_ref(), Some(record), "it stays the same");
            assert_eq!(machine.guest().info().generation, berth_wire::GENERATION);
            assert!(machine.phases().launch_ms > 0.0);
            assert_eq!(machine.usage().await.pids_limit, Some(50));
            assert!(is_alive(pid_of(record)));
            match rig::link_of(record) {
                Some(link) => assert!(Path::new("/sys/class/net").join(&link).exists(), "{link}"),
                None => println!("SKIP: its link: this machine has no public network for sandboxes"),
            }
        }
        // Ids and addresses of those who live are nobody else's.
        let new = driver.start(driver.spec("c", Some(ORPHAN))).await.unwrap();
        let record = new.resume().unwrap();
        for (id, other) in &records {
            for (of_new, of_other) in rig::marks_of(&record).into_iter().zip(rig::marks_of(other)) {
                assert!(of_new.is_null() || of_new != of_other, "{of_new} is {id}'s");
            }
        }
        drop(new);

        let machine = adopted.remove("a").unwrap().unwrap();
        machine.stop().await.unwrap();
        assert!(!is_alive(pids[0]) && is_alive(pids[1]));
        assert_eq!(machine.resume(), None);
        assert_eq!(
            machine.died().await.how,
            "its first process is gone, how is not known: an earlier daemon had started it"
        );
        let machine = adopted.remove("b").unwrap().unwrap();
        let taken = machine.take_disk().await.unwrap();
        assert_eq!(std::fs::read_to_string(taken.upper().join("written")).unwrap(), "b");
        drop(taken);
        assert!(!is_alive(pids[1]));
        driver.shutdown().await;
        drop(driver);
    });
    rig.assert_no_trace();
}

fn others_end() {
    let rig = Rig::new();
    let sandboxes = [("kept", Some(ORPHAN)), ("forgotten", Some(ORPHAN)), ("of-a-build", None)];
    let Killed { records } = rig.killed_daemon(&sandboxes);
    let forgotten = records.iter().find(|(id, _)| id == "forgotten").unwrap().clone();
    let kept = records.iter().find(|(id, _)| id == "kept").unwrap().clone();
    assert_eq!(records.len(), 2, "what ends with its connection has no record");
    assert!(is_alive(pid_of(&forgotten.1)));
    rig.run(async {
        let (driver, adopted) = rig.start(vec![kept.clone()]).await;
        let kept = by_id(adopted).remove("kept").unwrap().unwrap();
        assert!(!is_alive(pid_of(&forgotten.1)));
        assert_eq!(rig.directories(), ["kept"]);
        driver.shutdown().await;
        drop((kept, driver));
    });
    rig.assert_no_trace();
}

fn failures_are_apart() {
    let rig = Rig::new();
    let ids = ["good", "other-berth", "deaf", "dead", "nonsense"];
    let Killed { mut records } = rig.killed_daemon(&ids.map(|id| (id, Some(ORPHAN))));
    let pids: Vec<i32> = records.iter().map(|(_, record)| pid_of(record)).collect();
    let generation = format!("\"generation\":{}", berth_wire::GENERATION);
    records[1].1 = records[1].1.replace(&generation, "\"generation\":999");
    std::fs::remove_file(rig.dir.path().join("run/deaf.sock")).unwrap();
    rig::kill(pids[3]);
    records[4].1 = "{}".to_owned();
    // One whose pid is another process's by now: this one's, whose start is another time.
    let own = format!("\"pid\":{}", std::process::id());
    let stolen = records[3].1.replace(&format!("\"pid\":{}", pids[3]), &own);
    records.push(("never-was".to_owned(), stolen.clone()));
    records[3].1 = stolen;
    rig.run(async {
        let (driver, adopted) = rig.start(records).await;
        let mut adopted = by_id(adopted);
        let mut failed = |id: &str| adopted.remove(id).unwrap().err().unwrap();
        assert!(matches!(failed("other-berth"), Error::OtherGeneration { theirs: 999 }));
        assert!(matches!(failed("deaf"), Error::Connect(_)));
        assert!(matches!(failed("dead"), Error::NotThere(berth_jail::AdoptError::OtherProcess { .. })));
        assert!(matches!(failed("nonsense"), Error::Record(_)));
        assert!(matches!(failed("never-was"), Error::Disk(berth_disk::Error::Missing { .. })));
        let good = adopted.remove("good").unwrap().unwrap();
        rig::until("the others are gone", || pids[1..].iter().all(|pid| !is_alive(*pid))).await;
        rig::until("their directories are gone", || rig.directories() == ["good"]).await;
        assert!(is_alive(pids[0]));
        good.stop().await.unwrap();
        driver.shutdown().await;
        drop((good, driver));
    });
    rig.assert_no_trace();
}

fn orphans_end() {
    let rig = Rig::new();
    let Killed { records } = rig.killed_daemon(&[("a", Some(Duration::from_millis(200)))]);
    let pid = pid_of(&records[0].1);
    rig.run(async {
        rig::until("it has ended", || !is_alive(pid)).await;
        let (driver, adopted) = rig.start(records).await;
        let error = by_id(adopted).remove("a").unwrap().err().unwrap();
        assert!(matches!(error, Error::NotThere(berth_jail::AdoptError::Ended { .. })), "{error}");
        assert_eq!(rig.directories(), Vec::<String>::new());
        driver.shutdown().await;
        drop(driver);
    });
    rig.assert_no_trace();
}

fn leaves() {
    let rig = Rig::new();
    rig.run(async {
        let (driver, _) = rig.start(Vec::new()).await;
        let kept = driver.start(driver.spec("kept", Some(ORPHAN))).await.unwrap();
        let build = driver.start(driver.spec("of-a-build", None)).await.unwrap();
        let record = kept.resume().unwrap();
        assert_eq!(build.resume(), None);
        driver.leave().await;
        assert!(is_alive(pid_of(&record)));
        assert_eq!(rig.directories(), ["kept"]);
        assert_eq!(build.died().await.oom_kills, 0);
        assert_eq!(kept.resume(), None, "it is nobody's here any more");
        assert!(driver.start(driver.spec("late", None)).await.is_err());
        drop((kept, build, driver));
        assert!(is_alive(pid_of(&record)));

        let (driver, adopted) = rig.start(vec![("kept".to_owned(), record.clone())]).await;
        let kept = by_id(adopted).remove("kept").unwrap().unwrap();
        assert_eq!(kept.resume().unwrap(), record);
        // And on to a third one.
        driver.leave().await;
        drop((kept, driver));
        let (driver, adopted) = rig.start(vec![("kept".to_owned(), record.clone())]).await;
        let kept = by_id(adopted).remove("kept").unwrap().unwrap();
        kept.stop().await.unwrap();
        // With nothing to be left it is as good as a shutdown.
        driver.leave().await;
        drop((kept, driver));
    });
    rig.assert_no_trace();
}

fn many() {
    let rig = Rig::new();
    let ids: Vec<String> = (0..100).map(|number| format!("s{number}")).collect();
    let sandboxes: Vec<_> = ids.iter().map(|id| (id.as_str(), Some(ORPHAN))).collect();
    let Killed { records } = rig.killed_daemon(&sandboxes);
    rig.run(async {
        let began = Instant::now();
        let (driver, adopted) = rig.start(records).await;
        println!("100 sandboxes were taken over in {:?}", began.elapsed());
        assert!(began.elapsed() < PATIENCE);
        assert_eq!(adopted.len(), 100);
        for (id, adopted) in &adopted {
            assert!(adopted.is_ok(), "{id}: {:?}", adopted.as_ref().err());
        }
        driver.shutdown().await;
        drop((adopted, driver));
    });
    rig.assert_no_trace();
}
