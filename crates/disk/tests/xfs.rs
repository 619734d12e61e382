//! The engine on XFS, for real: on the mount that the variable `BERTH_TEST_XFS` names, which has project quotas
//! (`mount -o prjquota`). Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use berth_disk::{Counted, Engine, Error, Full, Kind, Limits, Opened, Options, Unavailable, open};
use berth_sys::quota;

use common::{MIB, Overlay, bytes, fill};

/// An engine in a directory of its own on the mount, or a line that says why there is none.
fn xfs() -> Option<(tempfile::TempDir, Box<dyn Engine>)> {
    let Some(mount) = std::env::var_os("BERTH_TEST_XFS").map(PathBuf::from) else {
        println!("SKIP: BERTH_TEST_XFS names no XFS mount with project quotas");
        return None;
    };
    let dir = tempfile::Builder::new().prefix("berth-disk-").tempdir_in(mount).unwrap();
    let options = Options { reserve: Some(0), ..Options::default() };
    let Opened { engine, choice } = open(dir.path(), &options).unwrap();
    // Unasked, it is the best: btrfs cannot be had here.
    assert_eq!((choice.engine, engine.name()), (Kind::Xfs, "xfs"), "{choice:?}");
    Some((dir, engine))
}

#[test]
fn a_limit_stops_the_write_and_room_comes_back() {
    let Some((dir, engine)) = xfs() else { return };
    let limit = 32 * MIB;
    let writable = engine.create("a", &bytes(limit)).unwrap();
    assert!(writable.used_files.is_empty());
    assert!(matches!(engine.create("a", &bytes(limit)), Err(Error::Exists { .. })));
    let neighbour = engine.create("b", &bytes(limit)).unwrap();
    let overlay = Overlay::mount(dir.path(), &writable);
    assert_eq!(engine.limit_hit("a").unwrap(), None);
    // What df shows inside is the limit.
    let inside = rustix::fs::statvfs(overlay.path()).unwrap();
    assert_eq!(inside.f_blocks * inside.f_frsize, limit);

    let (written, error) = fill(&overlay.path().join("big"));
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    assert!((30 * MIB..=limit).contains(&written), "{written}");
    let usage = engine.usage("a").unwrap();
    assert_eq!(usage.counted, Counted::Project);
    assert!((30 * MIB..=limit).contains(&usage.bytes), "{usage:?}");
    assert!(matches!(engine.limit_hit("a").unwrap(), Some(Full::Bytes { .. })), "{usage:?}");

    assert_eq!(fs::read(overlay.path().join("big")).unwrap().len() as u64, written);
    fs::write(neighbour.upper.join("f"), "x").unwrap();
    fs::remove_file(overlay.path().join("big")).unwrap();
    fs::write(overlay.path().join("again"), vec![1; 8 << 20]).unwrap();
    assert_eq!(engine.limit_hit("a").unwrap(), None);
    engine.set_limits("a", &bytes(64 * MIB)).unwrap();
    assert!(fill(&overlay.path().join("more")).0 > 48 * MIB);
}

#[test]
fn a_limit_of_inodes_is_exact() {
    let Some((dir, engine)) = xfs() else { return };
    let limits = Limits { bytes: None, inodes: Some(100) };
    let writable = engine.create("a", &limits).unwrap();
    let overlay = Overlay::mount(dir.path(), &writable);
    let made = (0..1000).take_while(|n| File::create(overlay.path().join(n.to_string())).is_ok()).count();
    assert_eq!(made, 100);
    assert_eq!(engine.usage("a").unwrap().inodes, Some(100));
    assert!(File::create(writable.spool.join("said")).is_err(), "the spool is outside of the limit");
    assert_eq!(engine.limit_hit("a").unwrap(), Some(Full::Inodes { used: 100, limit: 100 }));
    fs::remove_file(overlay.path().join("1")).unwrap();
    File::create(overlay.path().join("1")).unwrap();
}

#[test]
fn what_a_sandbox_wrote_becomes_a_layer() {
    let Some((_dir, engine)) = xfs() else { return };
    let writable = engine.create("a", &bytes(2 * MIB)).unwrap();
    fs::create_dir_all(writable.upper.join("d/e")).unwrap();
    fs::write(writable.upper.join("d/e/f"), vec![1; 1 << 20]).unwrap();
    fs::write(writable.spool.join("said"), "x").unwrap();
    assert_eq!(engine.writable("a").unwrap(), writable);
    let tree = engine.release_tree("a").unwrap();
    let layer = engine.root().join("layers/0123456789abcdef01234567");
    fs::create_dir(engine.root().join("layers")).unwrap();
    fs::rename(&tree, &layer).unwrap();
    assert_eq!(fs::read_dir(&layer).unwrap().count(), 1);
    assert!(!writable.spool.exists());
    engine.remove("a").unwrap();
    engine.reap_trash().unwrap();
    // No limit any more; and its project is nobody else's as long as it lives.
    fs::write(layer.join("d/more"), vec![1; 4 << 20]).unwrap();
    let project = quota::project_id(File::open(&layer).unwrap().as_fd()).unwrap();
    engine.create("b", &bytes(2 * MIB)).unwrap();
    let other = File::open(engine.root().join("sandboxes/b")).unwrap();
    assert_ne!(quota::project_id(other.as_fd()).unwrap(), project);
    // As the image store removes it: through a directory of its own.
    let tmp = engine.root().join("tmp");
    fs::create_dir(&tmp).unwrap();
    fs::rename(&layer, tmp.join("old")).unwrap();
    fs::remove_dir_all(tmp.join("old")).unwrap();
}

#[test]
fn removed_sandboxes_leave_no_account() {
    let Some((_dir, engine)) = xfs() else { return };
    let writable = engine.create("a", &bytes(8 * MIB)).unwrap();
    let dir = File::open(&writable.dir).unwrap();
    let project = quota::project_id(dir.as_fd()).unwrap();
    assert_ne!(project, 0);
    for path in [&writable.upper, &writable.work, &writable.spool] {
        assert_eq!(quota::project_id(File::open(path).unwrap().as_fd()).unwrap(), project);
    }
    drop(dir);
    fs::write(writable.upper.join("f"), vec![1; 1 << 20]).unwrap();
    engine.remove("a").unwrap();
    assert_eq!(engine.list().unwrap(), [""; 0]);
    assert_eq!(engine.reap_trash().unwrap().sandboxes, 1);
    let root = File::open(engine.root()).unwrap();
    let account = quota::project(root.as_fd(), project).unwrap();
    assert_eq!((account.max_bytes, account.max_inodes), (0, 0));
}

#[test]
fn without_project_quotas_it_says_so() {
    let dir = common::on_disk();
    let refused = open(dir.path(), &Options { engine: Some(Kind::Xfs), ..Options::default() });
    match refused {
        Err(Error::Unavailable { engine: Kind::Xfs, source }) => {
            let expected =
                matches!(*source, Unavailable::FileSystem { .. } | Unavailable::NoProjectQuota { .. });
            assert!(expected, "{source:?}");
        }
        Ok(_) => println!("SKIP: the temporary directory is on an XFS with project quotas"),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn an_xfs_without_quotas_is_recognised() {
    let dir = common::on_disk();
    let Some(mounted) =
        common::make_and_mount("mkfs.xfs", &["-q", "-ssize=4096"], "xfs", c"", 320 * MIB, dir.path())
    else {
        return;
    };
    let refused = open(mounted.path(), &Options { engine: Some(Kind::Xfs), ..Options::default() });
    let Err(Error::Unavailable { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(matches!(*source, Unavailable::NoProjectQuota { .. }), "{source:?}");
}
