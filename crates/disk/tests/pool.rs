//! The engine on a pool file, for real: loop devices, mounts, quotas. Needs root and mkfs.btrfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_disk::{
    Counted, Engine, Error, Full, Kind, Limits, Opened, Options, PoolOptions, Resource, Unavailable, open,
};
use rustix::fs::XattrFlags;

use common::{MIB, Overlay, bytes, fill, on_disk};

fn options() -> Options {
    Options {
        engine: Some(Kind::BtrfsLoop),
        reserve: Some(0),
        pool: PoolOptions { initial: 256 * MIB, step: 128 * MIB, max: Some(256 * MIB), direct_io: true },
        ..Options::default()
    }
}

/// A pool in `dir`, or a line that says why there is none.
fn pool(dir: &Path, options: &Options) -> Option<Opened> {
    match open(dir, options) {
        Ok(opened) => Some(opened),
        Err(Error::Unavailable { source, .. })
            if matches!(*source, Unavailable::NoMkfs | Unavailable::NoRoom { .. })
                || !rustix::process::geteuid().is_root() =>
        {
            println!("SKIP: no btrfs pool here: {source}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn a_limit_stops_the_write_and_room_comes_back() {
    let dir = on_disk();
    let Some(Opened { engine, choice }) = pool(dir.path(), &options()) else { return };
    assert_eq!((choice.engine, engine.name()), (Kind::BtrfsLoop, "btrfs-loop"));
    let limit = 32 * MIB;
    let writable = engine.create("a", &bytes(limit)).unwrap();
    assert!(matches!(engine.create("a", &bytes(limit)), Err(Error::Exists { .. })));
    let neighbour = engine.create("b", &bytes(limit)).unwrap();
    let overlay = Overlay::mount(dir.path(), &writable);
    assert_eq!(engine.limit_hit("a").unwrap(), None);

    let (written, error) = fill(&overlay.path().join("big"));
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::DQUOT.raw_os_error()), "{error}");
    assert!((31 * MIB..=limit).contains(&written), "{written}");
    let usage = engine.usage("a").unwrap();
    assert_eq!((usage.inodes, usage.counted), (None, Counted::QuotaGroup));
    assert!((31 * MIB..=limit).contains(&usage.bytes), "{usage:?}");
    let texts = writable.used_files.iter().map(|file| fs::read_to_string(file).unwrap());
    assert_eq!(texts.map(|text| text.trim().parse::<u64>().unwrap()).sum::<u64>(), usage.bytes);
    assert!(matches!(engine.limit_hit("a").unwrap(), Some(Full::Bytes { limit: told, .. }) if told == limit));

    // Full, it can still be read and deleted from; others do not notice.
    assert_eq!(fs::read(overlay.path().join("big")).unwrap().len() as u64, written);
    fs::write(neighbour.upper.join("f"), "x").unwrap();
    fs::remove_file(overlay.path().join("big")).unwrap();
    fs::write(overlay.path().join("again"), vec![1; 8 << 20]).unwrap();
    assert_eq!(engine.limit_hit("a").unwrap(), None);

    engine.set_limits("a", &bytes(64 * MIB)).unwrap();
    assert!(fill(&overlay.path().join("more")).0 > 48 * MIB);
    engine.set_limits("a", &bytes(2 * MIB)).unwrap();
    assert!(fs::write(overlay.path().join("none"), vec![1; 1 << 20]).is_err());
}

#[test]
fn files_without_content_count_too() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    let limit = 2 * MIB;
    let upper = engine.create("a", &bytes(limit)).unwrap().upper;
    let error = (0..1_000_000).find_map(|n| File::create(upper.join(n.to_string())).err()).unwrap();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::DQUOT.raw_os_error()), "{error}");
    assert!(engine.usage("a").unwrap().bytes <= limit);
    assert!(matches!(engine.limit_hit("a").unwrap(), Some(Full::Bytes { .. })));
}

#[test]
fn limits_that_it_cannot_hold_are_refused() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    assert!(engine.enforces_storage() && !engine.enforces(Resource::Inodes));
    let inodes = Limits { bytes: None, inodes: Some(10) };
    let refused = engine.create("a", &inodes);
    assert!(matches!(refused, Err(Error::NotEnforced { what: Resource::Inodes, .. })), "{refused:?}");
    assert!(matches!(engine.create("a", &bytes(1000)), Err(Error::LimitTooSmall { .. })));
    assert!(matches!(engine.create("../a", &bytes(MIB)), Err(Error::BadId { .. })));
    assert!(matches!(engine.set_limits("a", &bytes(MIB)), Err(Error::Missing { .. })));
    assert_eq!(engine.list().unwrap(), [""; 0]);
    // The least works, and an empty sandbox at it is not called full.
    engine.create("a", &bytes(MIB)).unwrap();
    assert_eq!(engine.limit_hit("a").unwrap(), None);
}

#[test]
fn a_hundred_thousand_files_go_as_one() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    let upper = engine.create("a", &Limits::default()).unwrap().upper;
    for d in 0..100 {
        let dir = upper.join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for f in 0..1000 {
            File::create(dir.join(f.to_string())).unwrap();
        }
    }
    engine.remove("a").unwrap();
    engine.remove("a").unwrap();
    assert_eq!(engine.list().unwrap(), [""; 0]);
    engine.create("a", &Limits::default()).unwrap();
    let reaped = engine.reap_trash().unwrap();
    assert_eq!((reaped.sandboxes, reaped.entries), (1, 1));
    assert_eq!(fs::read_dir(engine.root().join("trash")).unwrap().count(), 0);
}

#[test]
fn what_a_sandbox_wrote_becomes_a_layer() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    let writable = engine.create("a", &bytes(2 * MIB)).unwrap();
    fs::create_dir(writable.work.join("work")).unwrap();
    let upper = &writable.upper;
    // Names that what is being done could trip over.
    fs::create_dir_all(upper.join("upper/upper")).unwrap();
    fs::create_dir_all(upper.join("work/x")).unwrap();
    fs::write(upper.join(".upper-0"), "mine").unwrap();
    fs::create_dir(upper.join("spool")).unwrap();
    fs::write(upper.join("spool/mine"), "mine").unwrap();
    fs::write(writable.spool.join("0"), "said by a command").unwrap();
    std::os::unix::fs::symlink("/etc", upper.join("link")).unwrap();
    fs::set_permissions(upper, fs::Permissions::from_mode(0o2751)).unwrap();
    std::os::unix::fs::chown(upper, Some(7), Some(8)).unwrap();
    fs::set_permissions(upper, fs::Permissions::from_mode(0o2751)).unwrap();
    for name in ["user.note", "trusted.overlay.opaque"] {
        rustix::fs::setxattr(upper, name, b"y", XattrFlags::empty()).unwrap();
    }
    fill(&upper.join("big"));
    let before = fs::metadata(upper).unwrap();
    let content = fs::metadata(upper.join("big")).unwrap().len();

    let tree = engine.release_tree("a").unwrap();
    let layer = engine.root().join("layers/0123456789abcdef01234567");
    fs::create_dir(engine.root().join("layers")).unwrap();
    fs::rename(&tree, &layer).unwrap();
    engine.remove("a").unwrap();

    let mut names: Vec<_> = fs::read_dir(&layer).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".upper-0", "big", "link", "spool", "upper", "work"]);
    let spooled: Vec<_> =
        fs::read_dir(layer.join("spool")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(spooled, ["mine"], "what a sandbox said is no part of what it wrote");
    assert!(layer.join("upper/upper").is_dir() && layer.join("work/x").is_dir());
    assert_eq!(fs::metadata(layer.join("big")).unwrap().len(), content);
    let after = fs::metadata(&layer).unwrap();
    let facts = |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
    assert_eq!(facts(&after), facts(&before));
    for name in ["user.note", "trusted.overlay.opaque"] {
        let mut value = [0; 8];
        assert_eq!(rustix::fs::getxattr(&layer, name, &mut value).unwrap(), 1, "{name}");
    }
    // No limit any more, and gone like any directory.
    fs::write(layer.join("more"), vec![1; 4 << 20]).unwrap();
    fs::remove_dir_all(&layer).unwrap();
    assert!(matches!(engine.usage("a"), Err(Error::Missing { .. })));
}

#[test]
fn subvolumes_in_a_sandbox_are_out_of_reach_and_deleted() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    let writable = engine.create("a", &bytes(32 * MIB)).unwrap();
    {
        let overlay = Overlay::mount(dir.path(), &writable);
        let top = File::open(overlay.path()).unwrap();
        let refused = berth_sys::btrfs::create_subvolume(top.as_fd(), c"nested", None).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NOTTY.raw_os_error()), "{refused}");
    }
    let mut at = writable.upper.clone();
    for _ in 0..3 {
        let parent = File::open(&at).unwrap();
        for name in [c"one", c"two"] {
            berth_sys::btrfs::create_subvolume(parent.as_fd(), name, None).unwrap();
        }
        fs::write(at.join("two/file"), "x").unwrap();
        at = at.join("one");
    }
    engine.remove("a").unwrap();
    assert_eq!(engine.reap_trash().unwrap().entries, 7);
    assert_eq!(fs::read_dir(engine.root().join("trash")).unwrap().count(), 0);
}

#[test]
fn it_grows_as_it_fills_and_not_beyond_its_maximum() {
    let dir = on_disk();
    let mut options = options();
    options.pool = PoolOptions { initial: 128 * MIB, max: Some(512 * MIB), ..options.pool };
    let Some(Opened { engine, .. }) = pool(dir.path(), &options) else { return };
    let file = dir.path().join("pool.btrfs");
    let upper = engine.create("a", &Limits::default()).unwrap().upper;
    let mut big = File::create(upper.join("big")).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    // The writer waits for room as a patient program would; how fast growth is, is no matter of this test.
    let mut written = 0;
    while written < 400 {
        match big.write_all(&vec![1; 1 << 20]).and_then(|()| big.sync_data()) {
            Ok(()) => written += 1,
            Err(error) if error.kind() == io::ErrorKind::StorageFull && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => panic!("{error} after {written} MiB"),
        }
    }
    while fs::metadata(&file).unwrap().len() < 512 * MIB {
        assert!(Instant::now() < until, "it did not grow to its maximum");
        std::thread::sleep(Duration::from_millis(50));
    }
    let allocated = fs::metadata(&file).unwrap();
    assert_eq!(allocated.len(), 512 * MIB);
    assert!(allocated.blocks() * 512 >= allocated.len(), "it has holes");
    assert_eq!(engine.capacity().unwrap().total, 512 * MIB);
    let error = (0..10_000).find_map(|_| big.write_all(&vec![1; 1 << 20]).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    assert!(matches!(engine.limit_hit("a").unwrap(), Some(Full::Pool { .. })));
    assert_eq!(fs::metadata(&file).unwrap().len(), 512 * MIB);
}

#[test]
fn a_data_directory_has_one_owner_and_keeps_its_pool() {
    let dir = on_disk();
    let Some(first) = pool(dir.path(), &options()) else { return };
    first.engine.create("left", &bytes(8 * MIB)).unwrap();
    assert!(matches!(open(dir.path(), &options()), Err(Error::Busy { .. })));
    drop(first);
    assert!(!common::is_mounted(&dir.path().join("pool")));

    let plain = Options { engine: Some(Kind::Plain), ..Options::default() };
    assert!(matches!(open(dir.path(), &plain), Err(Error::OtherEngine { .. })));
    let Opened { engine, choice } = open(dir.path(), &Options { engine: None, ..options() }).unwrap();
    assert_eq!((choice.engine, choice.rejected.len()), (Kind::BtrfsLoop, 0));
    assert_eq!(engine.list().unwrap(), ["left"]);
    assert!(engine.usage("left").unwrap().bytes > 0);
    assert!(fill(&engine.root().join("sandboxes/left/upper/f")).0 <= 8 * MIB, "the limit is still there");
}

/// Not a test of its own: what [`a_killed_daemon_leaves_a_pool_that_opens`] kills.
#[test]
fn daemon_to_be_killed() {
    let Some(dir) = std::env::var_os("BERTH_TEST_KILLED_POOL") else { return };
    if std::env::var_os("BERTH_TEST_KILLED_NAMESPACE").is_some() {
        use rustix::mount::{MountPropagationFlags, mount_change};
        berth_sys::namespace::unshare(berth_sys::namespace::Namespaces::MOUNT).unwrap();
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).unwrap();
    }
    let opened = open(Path::new(&dir), &options()).unwrap();
    let upper = opened.engine.create("left", &bytes(8 * MIB)).unwrap().upper;
    fs::write(upper.join("file"), "x").unwrap();
    rustix::fs::syncfs(File::open(&upper).unwrap()).unwrap();
    opened.engine.create("removed", &bytes(8 * MIB)).unwrap();
    opened.engine.remove("removed").unwrap();
    if std::env::var_os("BERTH_TEST_KILLED_SANDBOX").is_some() {
        start_sandbox(Path::new(&dir));
    }
    fs::write(Path::new(&dir).join("ready"), "").unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

/// A process in a mount namespace of its own that has the directory of sandbox `left` and nothing else of the pool.
fn start_sandbox(dir: &Path) {
    let script = r#"
        mount --bind "$0/pool/sandboxes/left" "$0/held" && umount -l "$0/pool" && cd "$0/held" &&
        echo $$ > "$0/sandbox.new" && mv "$0/sandbox.new" "$0/sandbox" && exec sleep 600"#;
    fs::create_dir(dir.join("held")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    eventually("the sandbox runs", || {
        assert!(child.try_wait().unwrap().is_none(), "the sandbox did not start");
        dir.join("sandbox").exists()
    });
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What [`start_sandbox`] started, after its daemon died. Ends with the test.
struct Orphan(rustix::process::Pid);

impl Orphan {
    fn of(dir: &Path) -> Self {
        let pid = fs::read_to_string(dir.join("sandbox")).unwrap().trim().parse().unwrap();
        Self(rustix::process::Pid::from_raw(pid).unwrap())
    }

    /// The sandbox's directory as its process has it.
    fn dir(&self) -> PathBuf {
        format!("/proc/{}/cwd", self.0.as_raw_nonzero()).into()
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, rustix::process::Signal::KILL);
    }
}

/// Runs [`daemon_to_be_killed`] in `dir` until it is ready, and kills it.
fn kill_a_daemon(dir: &Path, namespace: bool) {
    kill_a_daemon_of(dir, namespace, false);
}

fn kill_a_daemon_of(dir: &Path, namespace: bool, sandbox: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "daemon_to_be_killed", "--nocapture"]).env("BERTH_TEST_KILLED_POOL", dir);
    if namespace {
        command.env("BERTH_TEST_KILLED_NAMESPACE", "1");
    }
    if sandbox {
        command.env("BERTH_TEST_KILLED_SANDBOX", "1");
    }
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !dir.join("ready").exists() {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "the child is not ready");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

fn is_as_it_was_left(engine: &dyn Engine) {
    assert_eq!(engine.list().unwrap(), ["left"]);
    assert_eq!(fs::read(engine.root().join("sandboxes/left/upper/file")).unwrap(), b"x");
    engine.remove("left").unwrap();
    assert_eq!(engine.reap_trash().unwrap().sandboxes, 2);
}

#[test]
fn a_killed_daemon_leaves_a_pool_that_opens() {
    let dir = on_disk();
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    kill_a_daemon(dir.path(), false);
    // Its mount is in our namespace, as it had none of its own: the device lives.
    let devices = common::devices_of(&dir.path().join("pool.btrfs"));
    assert_eq!(devices.len(), 1);
    let Opened { engine, .. } = open(dir.path(), &options()).unwrap();
    assert_eq!(common::devices_of(&dir.path().join("pool.btrfs")), devices, "a second device on one file");
    is_as_it_was_left(engine.as_ref());
    drop(engine);
    assert!(!common::is_mounted(&dir.path().join("pool")));
}

#[test]
fn a_killed_daemon_with_a_namespace_leaves_a_pool_that_opens() {
    let dir = on_disk();
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    kill_a_daemon(dir.path(), true);
    // The device may be alive still or not any more.
    let Opened { engine, .. } = open(dir.path(), &options()).unwrap();
    assert_eq!(common::devices_of(&dir.path().join("pool.btrfs")).len(), 1);
    is_as_it_was_left(engine.as_ref());
}

/// The sum of the files that a sandbox's use is read from.
fn sum(files: &[PathBuf]) -> u64 {
    files.iter().map(|file| fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn sandboxes_that_outlive_their_daemon_keep_their_disk_and_its_limit() {
    let dir = on_disk();
    let file = dir.path().join("pool.btrfs");
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    eventually("a pool that was closed has no device", || common::devices_of(&file).is_empty());
    kill_a_daemon_of(dir.path(), true, true);
    let sandbox = Orphan::of(dir.path());
    let devices = common::devices_of(&file);
    assert_eq!(devices.len(), 1, "the sandbox holds it");
    fs::write(sandbox.dir().join("upper/between"), "no daemon").unwrap();
    fs::write(sandbox.dir().join("spool/0"), "said").unwrap();
    // The daemon was killed while it made the file larger.
    File::options().write(true).open(&file).unwrap().set_len(384 * MIB).unwrap();

    let larger = Options {
        pool: PoolOptions { max: Some(512 * MIB), step: 128 * MIB, ..options().pool },
        ..options()
    };
    let Opened { engine, .. } = open(dir.path(), &larger).unwrap();
    assert_eq!(common::devices_of(&file), devices, "a second device on one file");
    assert!(fs::metadata(&file).unwrap().blocks() * 512 >= 384 * MIB, "it has holes");
    assert_eq!(engine.list().unwrap(), ["left"]);
    engine.health().unwrap();
    let found = engine.writable("left").unwrap();
    assert_eq!(fs::read(found.upper.join("between")).unwrap(), b"no daemon");
    assert_eq!(fs::read(found.spool.join("0")).unwrap(), b"said");
    fs::write(found.upper.join("after"), "a daemon").unwrap();
    assert_eq!(fs::read(sandbox.dir().join("upper/after")).unwrap(), b"a daemon");
    assert!(matches!(engine.writable("removed"), Err(Error::Missing { .. })));

    // The limit of 8 MiB is still there, for the spool too, and can be changed.
    let (written, error) = fill(&sandbox.dir().join("spool/1"));
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::DQUOT.raw_os_error()), "{error}");
    assert!((6 * MIB..=8 * MIB).contains(&written), "{written}");
    assert!(matches!(engine.limit_hit("left").unwrap(), Some(Full::Bytes { .. })));
    assert_eq!(engine.usage("left").unwrap().bytes, sum(&found.used_files));
    engine.set_limits("left", &bytes(16 * MIB)).unwrap();
    fs::write(sandbox.dir().join("upper/more"), vec![1; 4 << 20]).unwrap();

    // It grows on, and both see it.
    let other = engine.create("other", &Limits::default()).unwrap();
    fs::write(other.upper.join("f"), vec![1; 330 << 20]).unwrap();
    rustix::fs::syncfs(File::open(&other.upper).unwrap()).unwrap();
    eventually("the pool grows", || fs::metadata(&file).unwrap().len() == 512 * MIB);
    eventually("what is in it grows", || engine.capacity().unwrap().total == 512 * MIB);
    let room = rustix::fs::statvfs(sandbox.dir()).unwrap();
    assert_eq!(room.f_blocks * room.f_frsize, 512 * MIB);

    // The next daemon ends before its sandboxes, and the device with the last of them.
    drop(engine);
    assert!(!common::is_mounted(&dir.path().join("pool")));
    assert_eq!(common::devices_of(&file), devices);
    fs::write(sandbox.dir().join("upper/alone"), "again").unwrap();
    drop(sandbox);
    eventually("the device goes with the last sandbox", || common::devices_of(&file).is_empty());
    let Opened { engine, .. } = open(dir.path(), &larger).unwrap();
    let upper = engine.writable("left").unwrap().upper;
    assert_eq!(fs::read(upper.join("alone")).unwrap(), b"again");
}

#[test]
fn a_pool_that_is_cut_off_under_living_sandboxes_is_not_opened() {
    let dir = on_disk();
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    kill_a_daemon_of(dir.path(), true, true);
    let _sandbox = Orphan::of(dir.path());
    File::options().write(true).open(dir.path().join("pool.btrfs")).unwrap().set_len(200 * MIB).unwrap();
    let refused = open(dir.path(), &options());
    let Err(Error::Unavailable { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(
        matches!(*source, Unavailable::PoolShort { found, size, .. } if (found, size) == (200 * MIB, 256 * MIB)),
        "{source:?}"
    );
}

#[test]
fn a_pool_that_others_have_attached_or_mounted_a_copy_of_is_not_opened() {
    let dir = on_disk();
    let file = dir.path().join("pool.btrfs");
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    eventually("a pool that was closed has no device", || common::devices_of(&file).is_empty());
    let refusal = || match open(dir.path(), &options()) {
        Err(Error::Unavailable { source, .. }) => *source,
        other => panic!("{other:?}"),
    };
    let attached = Command::new("losetup").args(["--read-only", "--find", "--show"]).arg(&file).output();
    match attached {
        Ok(output) if output.status.success() => {
            let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            let refused = refusal();
            assert!(Command::new("losetup").arg("--detach").arg(&device).status().unwrap().success());
            assert!(matches!(refused, Unavailable::PoolHeld { device: told, .. } if told == device));
        }
        other => println!("SKIP: no losetup here: {other:?}"),
    }

    let (copy, at) = (dir.path().join("copy"), dir.path().join("at"));
    fs::copy(&file, &copy).unwrap();
    fs::create_dir(&at).unwrap();
    let backing = File::options().read(true).write(true).open(&copy).unwrap();
    let device = berth_sys::loopdev::LoopDevice::attach(backing.as_fd(), false).unwrap();
    rustix::mount::mount(device.path(), &at, "btrfs", rustix::mount::MountFlags::empty(), c"nodiscard")
        .unwrap();
    let refused = refusal();
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(
        matches!(&refused, Unavailable::PoolElsewhere { device: told, .. } if Path::new(told) == device.path())
    );
    assert!(common::devices_of(&file).is_empty(), "a device was attached all the same");
    drop(device);
    open(dir.path(), &options()).unwrap();
}

#[test]
fn a_pool_cut_short_while_it_was_made_or_grown_is_made_whole() {
    let dir = on_disk();
    fs::write(dir.path().join("pool.btrfs.new"), "cut short").unwrap();
    if pool(dir.path(), &options()).is_none() {
        return;
    }
    assert!(!dir.path().join("pool.btrfs.new").exists());
    let file = File::options().write(true).open(dir.path().join("pool.btrfs")).unwrap();
    file.set_len(384 * MIB).unwrap();
    drop(file);
    let Opened { engine, .. } = open(dir.path(), &options()).unwrap();
    assert_eq!(engine.capacity().unwrap().total, 384 * MIB);
    let file = fs::metadata(dir.path().join("pool.btrfs")).unwrap();
    assert!(file.blocks() * 512 >= file.len(), "it has holes");
}

#[test]
fn a_file_that_is_no_pool_is_neither_used_nor_overwritten() {
    let dir = on_disk();
    let file = dir.path().join("pool.btrfs");
    fs::write(&file, vec![0x5a; 1 << 20]).unwrap();
    for engine in [None, Some(Kind::BtrfsLoop)] {
        let refused = open(dir.path(), &Options { engine, ..options() });
        let Err(Error::Unavailable { source, .. }) = refused else { panic!("{refused:?}") };
        assert!(matches!(*source, Unavailable::NotAPool { .. }), "{source:?}");
    }
    assert_eq!(fs::read(&file).unwrap(), vec![0x5a; 1 << 20]);
}

#[test]
fn without_room_another_is_chosen_but_never_in_place_of_one_asked_for() {
    let dir = on_disk();
    let huge = Options { reserve: Some(u64::MAX / 2), ..options() };
    let refused = open(dir.path(), &huge);
    let Err(Error::Unavailable { engine: Kind::BtrfsLoop, source }) = refused else { panic!("{refused:?}") };
    if !matches!(*source, Unavailable::NoRoom { .. }) {
        println!("SKIP: no btrfs pool here: {source}");
        return;
    }
    let small = Options { pool: PoolOptions { initial: MIB, ..PoolOptions::default() }, ..options() };
    assert!(matches!(open(dir.path(), &small), Err(Error::Unavailable { .. })));
    assert!(!dir.path().join("pool.btrfs").exists() && !dir.path().join("pool.btrfs.new").exists());

    let Opened { engine, choice } = open(dir.path(), &Options { engine: None, ..huge }).unwrap();
    let rejected: Vec<_> = choice.rejected.iter().map(|rejected| rejected.engine).collect();
    if choice.engine == Kind::Plain {
        assert_eq!(rejected, [Kind::Btrfs, Kind::Xfs, Kind::BtrfsLoop]);
        assert!(choice.rejected[2].reason.contains("does not fit"), "{choice:?}");
        assert!(matches!(engine.create("a", &bytes(MIB)), Err(Error::NotEnforced { .. })));
        engine.create("a", &Limits::default()).unwrap();
        drop(engine);
        // What is there now stays in use, even with room.
        let again = open(dir.path(), &Options { engine: None, ..options() }).unwrap();
        assert_eq!(again.choice.engine, Kind::Plain);
        assert!(again.choice.why.contains("sandboxes"), "{:?}", again.choice);
    }
}

#[test]
fn room_of_removed_sandboxes_comes_before_growth() {
    let dir = on_disk();
    let mut options = options();
    options.pool = PoolOptions { step: 256 * MIB, max: Some(1024 * MIB), ..options.pool };
    let Some(Opened { engine, .. }) = pool(dir.path(), &options) else { return };
    // Far more than the pool holds at once, each gone before the next comes.
    for n in 0..20 {
        let id = format!("s{n}");
        let upper = engine.create(&id, &bytes(64 * MIB)).unwrap().upper;
        fs::write(upper.join("f"), vec![1; 48 << 20]).unwrap();
        rustix::fs::syncfs(File::open(&upper).unwrap()).unwrap();
        engine.remove(&id).unwrap();
        engine.reap_trash().unwrap();
    }
    let size = fs::metadata(dir.path().join("pool.btrfs")).unwrap().len();
    assert!(size <= 768 * MIB, "it grew to {size} for 48 MiB at a time");
}

/// Writes until not even a name more has room, neither now nor after all is on disk; or until it is late: the last files
/// on a full file system take some kernels seconds each, and where data has no room those are extras.
fn cram(upper: &Path, late: Instant) {
    let mut n = 0;
    loop {
        let before = n;
        // The last two take metadata alone.
        for block in [1 << 20, 64 << 10, 4 << 10, 2000, 0] {
            let content = vec![1; block];
            let write = |mut file: File| file.write_all(&content);
            while File::create(upper.join(n.to_string())).and_then(write).is_ok() {
                n += 1;
                if Instant::now() > late && block < 4 << 10 {
                    return;
                }
            }
            n += 1;
        }
        // Where there is no room left to write out, it says so.
        let _ = rustix::fs::syncfs(File::open(upper).unwrap());
        if n == before + 5 {
            return;
        }
    }
}

#[test]
fn a_pool_file_that_is_cut_off_or_taken_away_is_told() {
    let dir = on_disk();
    let Some(Opened { engine, .. }) = pool(dir.path(), &options()) else { return };
    engine.create("a", &bytes(32 * MIB)).unwrap();
    engine.health().unwrap();
    let file = dir.path().join("pool.btrfs");
    let aside = dir.path().join("aside");
    fs::rename(&file, &aside).unwrap();
    assert!(matches!(engine.health(), Err(Error::PoolGone { path }) if path == file));
    fs::write(&file, "another").unwrap();
    assert!(matches!(engine.health(), Err(Error::PoolGone { .. })));
    fs::rename(&aside, &file).unwrap();
    engine.health().unwrap();
    File::options().write(true).open(&file).unwrap().set_len(64 * MIB).unwrap();
    let cut = engine.health().unwrap_err();
    assert!(
        matches!(cut, Error::PoolCut { found, size, .. } if (found, size) == (64 * MIB, 256 * MIB)),
        "{cut}"
    );
}

#[test]
fn sandboxes_go_from_a_full_pool_and_others_come() {
    let dir = on_disk();
    let mut options = options();
    options.pool = PoolOptions { initial: 128 * MIB, max: Some(128 * MIB), ..options.pool };
    let Some(Opened { engine, .. }) = pool(dir.path(), &options) else { return };
    let ids = ["a", "b", "c", "d"];
    let made = ids.map(|id| engine.create(id, &bytes(if id == "d" { 1024 } else { 24 } * MIB)).unwrap());
    let overlay = Overlay::mount(dir.path(), &made[3]);
    let late = Instant::now() + Duration::from_secs(30);
    for _ in 0..2 {
        made.iter().for_each(|writable| cram(&writable.upper, late));
    }
    let full = engine.limit_hit("d").unwrap();
    assert!(matches!(full, Some(Full::Pool { .. })), "{full:?}");
    // Inside there is a way out, too.
    fs::remove_file(overlay.path().join("0")).unwrap();
    drop(overlay);
    cram(&made[3].upper, late);

    for id in &ids[..3] {
        engine.remove(id).unwrap();
        engine.remove(id).unwrap();
    }
    assert_eq!(engine.list().unwrap(), ["d"]);
    engine.reap_trash().unwrap();
    // The kernel takes its time to clean up.
    let until = Instant::now() + Duration::from_secs(120);
    while let Err(error) = engine.create("a", &bytes(32 * MIB)) {
        assert!(Instant::now() < until, "{error:?}");
        engine.reap_trash().unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    fs::write(engine.root().join("sandboxes/a/upper/f"), vec![1; 16 << 20]).unwrap();
    engine.remove("d").unwrap();
    engine.remove("a").unwrap();
    engine.reap_trash().unwrap();
    assert_eq!(engine.list().unwrap(), [""; 0]);
}
