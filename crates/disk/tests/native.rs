//! The engine on a btrfs that is not Berth's own. Needs root, loop devices and mkfs.btrfs.

mod common;

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::Path;

use berth_disk::{Error, Kind, Limits, Opened, Options, PoolOptions, Unavailable, open};

use common::{MIB, Mounted, bytes, fill};

fn btrfs(dir: &Path) -> Option<Mounted> {
    common::make_and_mount("mkfs.btrfs", &["-q", "-K"], "btrfs", c"nodiscard", 512 * MIB, dir)
}

fn options(enable_native_quota: bool) -> Options {
    Options { enable_native_quota, reserve: Some(0), ..Options::default() }
}

#[test]
fn quotas_are_turned_on_only_where_that_is_allowed() {
    let dir = common::on_disk();
    let Some(mounted) = btrfs(dir.path()) else { return };
    let data = mounted.path().join("data");
    let asked = |allowed| open(&data, &Options { engine: Some(Kind::Btrfs), ..options(allowed) });
    let Err(Error::Unavailable { source, .. }) = asked(false) else { panic!("quotas were off") };
    assert!(matches!(*source, Unavailable::QuotaOff { .. }), "{source:?}");

    let engine = asked(true).unwrap().engine;
    assert_eq!((engine.name(), engine.root()), ("btrfs", data.as_path()));
    engine.create("a", &bytes(16 * MIB)).unwrap();
    drop(engine);
    // They are on now, so it is the best engine without being asked for.
    let Opened { engine, choice } = open(&data, &options(false)).unwrap();
    assert_eq!((choice.engine, choice.rejected.len()), (Kind::Btrfs, 0));
    // What one daemon made the next one finds, with its account.
    let found = engine.writable("a").unwrap();
    fs::write(found.spool.join("said"), vec![1; 4 << 20]).unwrap();
    let sum = || -> u64 {
        found
            .used_files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap())
            .sum()
    };
    assert!(sum() >= 4 * MIB, "the spool does not count");
    assert!(matches!(engine.writable("b"), Err(Error::Missing { .. })));
    assert!(fill(&engine.root().join("sandboxes/a/upper/f")).0 <= 16 * MIB);
    engine.remove("a").unwrap();
    engine.reap_trash().unwrap();
}

#[test]
fn other_subvolumes_and_their_groups_are_left_alone() {
    let dir = common::on_disk();
    let Some(mounted) = btrfs(dir.path()) else { return };
    let top = File::open(mounted.path()).unwrap();
    berth_sys::btrfs::create_subvolume(top.as_fd(), c"theirs", None).unwrap();
    drop(top);
    let engine = open(&mounted.path().join("data"), &options(true)).unwrap().engine;
    for id in ["a", "b"] {
        engine.create(id, &bytes(16 * MIB)).unwrap();
    }
    engine.remove("a").unwrap();
    engine.reap_trash().unwrap();
    assert!(mounted.path().join("theirs").is_dir());
    assert_eq!(engine.list().unwrap(), ["b"]);
}

#[test]
fn full_quota_groups_do_as_well() {
    let dir = common::on_disk();
    let Some(mounted) = btrfs(dir.path()) else { return };
    let top = File::open(mounted.path()).unwrap();
    berth_sys::btrfs::enable_quota(top.as_fd(), berth_sys::btrfs::Quota::Full).unwrap();
    berth_sys::btrfs::wait_for_count(top.as_fd()).unwrap();
    drop(top);
    let asked = Options { engine: Some(Kind::Btrfs), ..options(false) };
    let engine = open(&mounted.path().join("data"), &asked).unwrap().engine;
    assert!(engine.describe().contains("full quota groups"), "{}", engine.describe());
    let upper = engine.create("a", &bytes(16 * MIB)).unwrap().upper;
    assert!((14 * MIB..=16 * MIB).contains(&fill(&upper.join("f")).0));
    assert!(engine.limit_hit("a").unwrap().is_some());
    engine.remove("a").unwrap();
    engine.reap_trash().unwrap();
}

#[test]
fn directories_of_the_plain_engine_are_taken_over() {
    let dir = common::on_disk();
    let Some(mounted) = btrfs(dir.path()) else { return };
    let data = mounted.path().join("data");
    let plain = open(&data, &Options { engine: Some(Kind::Plain), ..options(false) }).unwrap().engine;
    let upper = plain.create("old", &Limits::default()).unwrap().upper;
    fs::write(upper.join("f"), "x").unwrap();
    drop(plain);
    let Opened { engine, choice } = open(&data, &options(true)).unwrap();
    assert_eq!(choice.engine, Kind::Btrfs);
    engine.remove("old").unwrap();
    assert_eq!(engine.reap_trash().unwrap().entries, 5);
    drop(engine);
    // A pool beside them would hide what they hold.
    let pool = Options {
        engine: Some(Kind::BtrfsLoop),
        pool: PoolOptions { initial: 128 * MIB, ..PoolOptions::default() },
        ..options(false)
    };
    fs::create_dir_all(data.join("layers/0123456789abcdef01234567")).unwrap();
    assert!(matches!(open(&data, &pool), Err(Error::OtherEngine { .. })));
}
