//! Changes of files are told as they happen, or it is told that some were lost.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_guest::files;
use berth_wire::ChangeKind::{Attributes, Closed, Created, Modified, Moved, Overflow, Ready, Removed};
use berth_wire::{Change, ChangeKind, Failure, FailureCode, Outcome, Watch};
use rustix::event::{EventfdFlags, eventfd};
use tempfile::TempDir;

/// An outer limit: nothing here takes that long.
const LONG: Duration = Duration::from_secs(20);

/// Cuts what is written into lines.
struct Lines {
    rest: Vec<u8>,
    changes: Sender<Change>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let change = serde_json::from_slice(&line).unwrap();
            self.changes.send(change).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        assert!(self.rest.is_empty(), "no change is sent in halves");
        Ok(())
    }
}

struct Watcher {
    changes: Receiver<Change>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<Result<Outcome, Failure>>>,
    top: PathBuf,
}

impl Watcher {
    fn new(path: &Path, recursive: bool) -> Self {
        let (sender, changes) = channel();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let stopped = stop.clone();
        let request = Watch { path: path.to_str().unwrap().to_owned(), recursive };
        let thread = std::thread::spawn(move || {
            let mut lines = Lines { rest: Vec::new(), changes: sender };
            files::watch(&request, &mut lines, &stopped)
        });
        let mut watcher = Self { changes, stop, thread: Some(thread), top: path.to_owned() };
        let ready = watcher.next().unwrap();
        assert_eq!((ready.kind, ready.path.as_str()), (Ready, path.to_str().unwrap()));
        watcher
    }

    /// The next one; `None` when there will be no more.
    fn next(&mut self) -> Option<Change> {
        match self.changes.recv_timeout(LONG) {
            Ok(change) => Some(change),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no change is told"),
        }
    }

    /// Its kind and its path below the top.
    fn told(&mut self) -> (ChangeKind, String) {
        let change = self.next().unwrap();
        let path = Path::new(&change.path).strip_prefix(&self.top).unwrap();
        (change.kind, path.to_str().unwrap().to_owned())
    }

    fn expect(&mut self, wanted: &[(ChangeKind, &str)]) {
        for (kind, path) in wanted {
            assert_eq!(self.told(), (*kind, (*path).to_owned()));
        }
    }

    fn end(mut self) -> Failure {
        let thread = self.thread.take().unwrap();
        thread.join().unwrap().unwrap_err()
    }

    fn stop(self) -> Failure {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes()).unwrap();
        self.end()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
    }
}

#[test]
fn every_kind_of_change_is_told_in_order() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("old"), "").unwrap();
    let mut watcher = Watcher::new(dir.path(), true);
    fs::write(path("sub/file"), "text").unwrap();
    watcher.expect(&[(Created, "sub/file"), (Modified, "sub/file"), (Closed, "sub/file")]);
    fs::set_permissions(path("old"), fs::Permissions::from_mode(0o600)).unwrap();
    watcher.expect(&[(Attributes, "old")]);
    fs::rename(path("sub/file"), path("moved")).unwrap();
    let moved = watcher.next().unwrap();
    assert_eq!((moved.kind, moved.from), (Moved, Some(path("sub/file").to_str().unwrap().to_owned())));
    assert_eq!(moved.path, path("moved").to_str().unwrap());
    symlink("nowhere", path("link")).unwrap();
    fs::remove_file(path("moved")).unwrap();
    watcher.expect(&[(Created, "link"), (Removed, "moved")]);
    fs::remove_dir(path("sub")).unwrap();
    let removed = watcher.next().unwrap();
    assert_eq!((removed.kind, removed.is_dir), (Removed, true));
    assert_eq!(watcher.stop().code, FailureCode::Cancelled);
}

#[test]
fn only_the_directory_itself_is_watched_unless_all_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let mut watcher = Watcher::new(dir.path(), false);
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/unseen"), "").unwrap();
    fs::write(dir.path().join("seen"), "").unwrap();
    watcher.expect(&[(Created, "sub"), (Created, "seen")]);
}

#[test]
fn what_comes_and_goes_over_the_edge_is_made_and_removed() {
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut watcher = Watcher::new(dir.path(), true);
    fs::create_dir_all(other.path().join("tree/deep")).unwrap();
    fs::write(other.path().join("tree/deep/file"), "").unwrap();
    fs::rename(other.path().join("tree"), dir.path().join("tree")).unwrap();
    watcher.expect(&[(Created, "tree"), (Created, "tree/deep"), (Created, "tree/deep/file")]);
    // It is watched by its new name after a move within, and not any more after a move out.
    fs::rename(dir.path().join("tree"), dir.path().join("renamed")).unwrap();
    fs::write(dir.path().join("renamed/deep/more"), "").unwrap();
    watcher.expect(&[(Moved, "renamed"), (Created, "renamed/deep/more"), (Closed, "renamed/deep/more")]);
    fs::rename(dir.path().join("renamed"), other.path().join("gone")).unwrap();
    watcher.expect(&[(Removed, "renamed")]);
    fs::write(other.path().join("gone/deep/unseen"), "").unwrap();
    fs::write(dir.path().join("last"), "").unwrap();
    watcher.expect(&[(Created, "last")]);
}

#[test]
fn files_made_in_a_new_directory_before_it_can_be_watched_are_told_once() {
    let dir = TempDir::new().unwrap();
    let mut watcher = Watcher::new(dir.path(), true);
    let mut wanted = HashSet::new();
    for outer in 0..60 {
        let deep = format!("{outer}/a/b");
        fs::create_dir_all(dir.path().join(&deep)).unwrap();
        for inner in 0..8 {
            fs::write(dir.path().join(&deep).join(format!("{inner}")), "x").unwrap();
            wanted.insert(format!("{deep}/{inner}"));
        }
        wanted.extend([format!("{outer}"), format!("{outer}/a"), deep]);
    }
    fs::write(dir.path().join("last"), "x").unwrap();
    let mut made = HashSet::new();
    // The queue of the top is behind that of what is below, so that "last" may come before some others.
    while !made.contains("last") || made.len() <= wanted.len() {
        let (kind, path) = watcher.told();
        if kind == Created {
            assert!(made.insert(path.clone()), "{path} is told twice");
        }
    }
    made.remove("last");
    assert_eq!(made, wanted);
}

#[test]
fn the_end_of_what_is_watched_is_told() {
    for is_dir in [true, false] {
        for is_moved in [true, false] {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("watched");
            if is_dir {
                fs::create_dir(&path).unwrap()
            } else {
                fs::write(&path, "").unwrap()
            }
            // What is open keeps living without a name.
            let open = fs::File::open(&path).unwrap();
            let mut watcher = Watcher::new(&path, true);
            if is_moved {
                fs::rename(&path, dir.path().join("elsewhere")).unwrap();
            } else if is_dir {
                fs::remove_dir(&path).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let mut last = watcher.next().unwrap();
            while let Some(change) = watcher.next() {
                last = change;
            }
            assert_eq!(
                (last.kind, last.path.as_str(), last.is_dir),
                (Removed, path.to_str().unwrap(), is_dir)
            );
            assert_eq!(watcher.end().code, FailureCode::NotFound, "dir {is_dir}, moved {is_moved}");
            drop(open);
        }
    }
    let nowhere = Watch { path: "/nowhere/at/all".into(), recursive: false };
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let failure = files::watch(&nowhere, &mut io::sink(), &stop).unwrap_err();
    assert_eq!(failure.code, FailureCode::NotFound);
}

#[test]
fn a_single_file_is_watched() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    let mut watcher = Watcher::new(&path, false);
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    watcher.expect(&[(Modified, ""), (Closed, "")]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    watcher.expect(&[(Attributes, "")]);
    assert_eq!(watcher.stop().code, FailureCode::Cancelled);
}

/// A sink that takes nothing until it is told to.
struct Slow {
    lines: Lines,
    go: Option<Receiver<()>>,
}

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Some(go) = self.go.take() {
            let _ = go.recv();
        }
        self.lines.flush()
    }
}

#[test]
fn lost_changes_are_told_and_later_ones_are_not_lost() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 100_000 {
        println!("SKIP: the queue of changes holds {limit}, which are too many to make");
        return;
    }
    let dir = TempDir::new().unwrap();
    let (sender, changes) = channel();
    let (go, gone) = channel();
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let stopped = stop.clone();
    let request = Watch { path: dir.path().to_str().unwrap().to_owned(), recursive: true };
    let thread = std::thread::spawn(move || {
        let lines = Lines { rest: Vec::new(), changes: sender };
        files::watch(&request, &mut Slow { lines, go: Some(gone) }, &stopped)
    });
    let next = || changes.recv_timeout(LONG).unwrap();
    assert_eq!(next().kind, Ready);
    for number in 0..limit {
        fs::create_dir(dir.path().join(number.to_string())).unwrap();
        fs::remove_dir(dir.path().join(number.to_string())).unwrap();
    }
    // Its making is among what is lost.
    fs::create_dir(dir.path().join("late")).unwrap();
    drop(go);
    while next().kind != Overflow {}
    // The watcher has looked again once it tells what comes after.
    let last = dir.path().join("late/file");
    let until = Instant::now() + LONG;
    let mut seen = false;
    while !seen {
        assert!(Instant::now() < until, "the directory that was missed is not watched");
        let _ = fs::remove_file(&last);
        fs::write(&last, "x").unwrap();
        std::thread::sleep(Duration::from_millis(10));
        seen = changes.try_iter().any(|change| change.path == last.to_str().unwrap());
    }
    rustix::io::write(&*stop, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(thread.join().unwrap().unwrap_err().code, FailureCode::Cancelled);
}

#[test]
fn random_changes_are_told_so_that_a_listener_knows_what_is_there() {
    let dir = TempDir::new().unwrap();
    let mut watcher = Watcher::new(dir.path(), true);
    let top = dir.path().to_owned();
    let mut seed = 7_u64;
    let mut dice = move |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % end
    };
    for _ in 0..1500 {
        let path = |dice: &mut dyn FnMut(u64) -> u64| {
            let depth = 1 + dice(3);
            (0..depth).fold(top.clone(), |path, _| path.join(dice(3).to_string()))
        };
        let (one, other) = (path(&mut dice), path(&mut dice));
        // Many of these fail, as they should.
        let _ = match dice(6) {
            0 | 1 => fs::create_dir(&one),
            2 => fs::write(&one, "x"),
            3 => fs::rename(&one, &other),
            4 => fs::remove_file(&one),
            _ => {
                if dice(4) == 0 {
                    fs::remove_dir_all(&one)
                } else {
                    fs::remove_dir(&one)
                }
            }
        };
    }
    fs::write(top.join("last"), "").unwrap();
    let mut known: HashSet<String> = HashSet::new();
    loop {
        let change = watcher.next().unwrap();
        let below = |path: &str| format!("{path}/");
        match change.kind {
            Created if change.path.ends_with("/last") => break,
            Created => drop(known.insert(change.path)),
            Removed => known.retain(|path| *path != change.path && !path.starts_with(&below(&change.path))),
            Moved => {
                let from = change.from.unwrap();
                // What was there is replaced.
                known.retain(|path| *path != change.path);
                let is_moved = |path: &String| *path == from || path.starts_with(&below(&from));
                let moved: Vec<String> = known.iter().filter(|path| is_moved(path)).cloned().collect();
                known.retain(|path| !is_moved(path));
                known.extend(moved.iter().map(|path| format!("{}{}", change.path, &path[from.len()..])));
                known.insert(change.path);
            }
            Overflow => panic!("too slow"),
            _ => {}
        }
    }
    let mut there = HashSet::new();
    let mut left = vec![top.clone()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path.clone());
            }
            there.insert(path.to_str().unwrap().to_owned());
        }
    }
    there.remove(top.join("last").to_str().unwrap());
    assert_eq!(known, there);
}
