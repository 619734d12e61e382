//! Somebody in the sandbox exchanges directories for symlinks while the guest works on them, as fast as the kernel lets
//! him. Packing, removing and emptying never leave the tree; unpacking never leaves it by a symlink of the archive.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use berth_guest::files;
use berth_wire::{Failure, Fs, Outcome, Pack, Unpack};
use rustix::fs::{CWD, RenameFlags};
use tempfile::TempDir;

const CANARY: &[u8] = b"canary, which never leaves its cage";

/// Exchanges two names until it is dropped.
struct Attacker {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Attacker {
    fn new(one: PathBuf, other: PathBuf) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if rustix::fs::renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, count, thread: Some(thread) }
    }

    fn swaps(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// `tree/a` with files in it, `tree/swap` that leads to `outside`, where the canary is.
struct Cage {
    dir: TempDir,
}

impl Cage {
    fn new() -> Self {
        let cage = Self { dir: TempDir::new().unwrap() };
        fs::create_dir_all(cage.path("outside/deep")).unwrap();
        fs::write(cage.path("outside/inner"), CANARY).unwrap();
        fs::write(cage.path("outside/deep/inner"), CANARY).unwrap();
        fs::create_dir_all(cage.path("tree")).unwrap();
        symlink(cage.path("outside"), cage.path("tree/swap")).unwrap();
        cage.fill();
        cage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What is missing of what the guest may remove; an error is the attacker's doing.
    fn fill(&self) {
        let _ = fs::create_dir_all(self.path("tree/a/deep"));
        let _ = fs::write(self.path("tree/a/deep/more"), "inside");
        let _ = fs::write(self.path("tree/a/file"), "inside");
    }

    fn attack(&self) -> Attacker {
        Attacker::new(self.path("tree/a"), self.path("tree/swap"))
    }

    /// Nothing was taken from outside. (The test itself may have put files there, through a link.)
    fn assert_whole(&self) {
        for name in ["outside/inner", "outside/deep/inner"] {
            assert_eq!(fs::read(self.path(name)).unwrap(), CANARY, "{name}");
        }
    }
}

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn packed(path: &Path, sparse: bool) -> Result<(Vec<u8>, Outcome), Failure> {
    let mut tar = Vec::new();
    let path = path.to_str().unwrap().to_owned();
    let spec = Pack { path, sparse, xattrs: sparse, ignore_failed_read: true, ..Pack::default() };
    let outcome = files::pack(&spec, &mut tar)?;
    Ok((tar, outcome))
}

#[test]
fn nothing_from_behind_a_swapped_name_is_packed() {
    let cage = Cage::new();
    let attacker = cage.attack();
    let (mut with_dir, mut without) = (0, 0);
    for round in 0_u32..100_000 {
        let (tar, _) = packed(&cage.path("tree"), round.is_multiple_of(2)).unwrap();
        assert!(!has(&tar, CANARY), "round {round}");
        assert_eq!(tar.len() % 512, 0);
        if has(&tar, b"a/deep/more") || has(&tar, b"swap/deep/more") {
            with_dir += 1
        } else {
            without += 1
        }
        if round >= 1000 && attacker.swaps() > 1000 {
            break;
        }
    }
    assert!(attacker.swaps() > 0 && with_dir > 0, "{with_dir} packed, {without} not");
    // The check can fail: a program that follows links does read it.
    assert!(has(&fs::read(cage.path("outside/inner")).unwrap(), CANARY));
}

#[test]
fn a_directory_that_is_moved_away_below_the_walk_is_left_out_and_told() {
    // Deep enough that the walk has closed the directories above, and has to find its way back.
    let cage = Cage::new();
    let deep: PathBuf = (0..80).map(|_| "d").collect();
    fs::create_dir_all(cage.path("tree/a").join(&deep)).unwrap();
    for level in 0..80 {
        let level: PathBuf = (0..level).map(|_| "d").collect();
        fs::write(cage.path("tree/a").join(level).join("z-after"), "inside").unwrap();
    }
    let (tar, outcome) = packed(&cage.path("tree/a"), false).unwrap();
    let Outcome::Packed(report) = outcome else { panic!("{outcome:?}") };
    assert_eq!((report.entries, report.changed_count), (80 + 80 + 3, 0), "{report:?}");
    assert!(has(&tar, b"z-after"));
    let attacker = Attacker::new(cage.path("tree/a/d/d"), cage.path("outside/deep"));
    for _ in 0..60 {
        let (tar, outcome) = packed(&cage.path("tree/a"), false).unwrap();
        let Outcome::Packed(report) = outcome else { panic!("{outcome:?}") };
        // Whole directories that are moved into the tree are in it. But none is read in two places, and what is
        // there besides comes along.
        assert!(has(&tar, b"file") && report.unread_count == 0, "{report:?}");
    }
    assert!(attacker.swaps() > 0);
}

#[test]
fn nothing_behind_a_swapped_name_is_removed_or_emptied() {
    let cage = Cage::new();
    let attacker = cage.attack();
    for round in 0_u32..1500 {
        let paths = vec![cage.text("tree/a")];
        let request =
            if round.is_multiple_of(2) { Fs::Remove { paths } } else { Fs::Empty { paths, mode: None } };
        // It may lose against the attacker, with an error; what counts is what it does not touch.
        let _ = files::perform(&request);
        cage.assert_whole();
        if cage.path("tree/swap").symlink_metadata().is_err() {
            let _ = symlink(cage.path("outside"), cage.path("tree/swap"));
        }
        // Both may be directories by now, or neither.
        if cage.path("tree/a").is_dir() && cage.path("tree/swap").is_dir() {
            let is_link = |name: &str| cage.path(name).is_symlink();
            if !is_link("tree/a") && !is_link("tree/swap") {
                let _ = fs::remove_dir_all(cage.path("tree/swap"));
                let _ = symlink(cage.path("outside"), cage.path("tree/swap"));
            }
        }
        cage.fill();
    }
    assert!(attacker.swaps() > 0);
    cage.assert_whole();
}

#[test]
fn nothing_is_unpacked_through_a_link_of_the_archive_wherever_it_is_moved() {
    let cage = Cage::new();
    let target = cage.path("target");
    fs::create_dir_all(target.join("dir")).unwrap();
    let tar = {
        let mut builder = tar::Builder::new(Vec::new());
        let header = |kind, size| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(size);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "link", "../outside").unwrap();
        for name in ["link/inner", "dir/inner", "link/deep/inner", "dir/deep/inner"] {
            builder.append_data(&mut header(tar::EntryType::Regular, 4), name, &b"evil"[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let path = target.to_str().unwrap().to_owned();
    let request = Unpack { path, ..Unpack::default() };
    let outcome = files::unpack(&request, &mut &tar[..]).unwrap();
    let Outcome::Unpacked(report) = outcome else { panic!("{outcome:?}") };
    assert_eq!((report.entries, report.refused_count), (3, 2), "{report:?}");
    let attacker = Attacker::new(target.join("link"), target.join("dir"));
    let mut whole = 0;
    for _ in 0..2000 {
        // A directory may stand where the link is to go, which ends it.
        whole += u32::from(files::unpack(&request, &mut &tar[..]).is_ok());
        // There is never a second link, of an unpacking before, which would be followed: the directory is not empty.
        cage.assert_whole();
    }
    assert!(attacker.swaps() > 0 && whole > 0, "{} swaps, {whole} unpacked", attacker.swaps());
}
