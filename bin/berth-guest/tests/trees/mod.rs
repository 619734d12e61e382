//! Trees made by dice, and pictures of trees.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The same numbers in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// Until when a test goes on: as long as `BERTH_FUZZ_SECONDS` says, or as soon as it has done its share.
pub(crate) fn more(started: Instant, done: usize, share: usize) -> bool {
    let seconds = std::env::var("BERTH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    done < share || seconds.is_some_and(|seconds| started.elapsed() < Duration::from_secs(seconds))
}

/// Everything that a tree is: path → kind, mode, owner, time, contents, holes, attributes, other names of the file.
pub(crate) fn picture(top: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut picture = BTreeMap::new();
    let mut first_names: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut left = vec![top.to_owned()];
    while let Some(dir) = left.pop() {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            let what = if meta.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                left.push(path.clone());
                "dir".to_owned()
            } else {
                let other = first_names.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
                format!("{} bytes {} as {other:?}", meta.len(), sum(&fs::read(&path).unwrap()))
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
            let facts = format!("{what} {mode:o} {}:{} {}", meta.uid(), meta.gid(), meta.mtime());
            picture.insert(name, format!("{facts} attributes {:?}", attributes(&path, &meta)));
        }
    }
    picture
}

/// Fails with the first difference, rather than with everything.
pub(crate) fn assert_same(found: &BTreeMap<Vec<u8>, String>, wanted: &BTreeMap<Vec<u8>, String>, what: &str) {
    for name in found.keys().chain(wanted.keys()) {
        let shown = String::from_utf8_lossy(name);
        assert_eq!(found.get(name), wanted.get(name), "{what}: {shown:?}");
    }
}

fn attributes(path: &Path, meta: &fs::Metadata) -> Vec<(Vec<u8>, Vec<u8>)> {
    if meta.is_symlink() {
        return Vec::new();
    }
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut value = vec![0; 4096];
    let read = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(|name| {
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        (name.to_vec(), value[..len].to_vec())
    });
    let mut read: Vec<_> = read.collect();
    read.sort();
    read
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

const NAMES: [&[u8]; 14] = [
    b"a",
    b"plain.txt",
    b"new\nline",
    b"-rf",
    b"\xff\xfe",
    "\u{e9}t\u{e9}".as_bytes(),
    b" ",
    b"a\\b",
    b"*",
    b"...",
    b"\x01\x7f",
    b"GNUSparseFile.0",
    b"=,'\"",
    b"~",
];

fn name(dice: &mut Dice) -> Vec<u8> {
    let mut name = dice.pick(&NAMES).to_vec();
    match dice.below(6) {
        0 => name.resize(100 - dice.below(3), b'x'),
        1 => name.resize(255, b'y'),
        2 => {}
        _ => name.extend_from_slice(dice.below(1000).to_string().as_bytes()),
    }
    name
}

/// Fills `top` with whatever may be in a directory. `holes` is what sparse files are made with.
pub(crate) fn random_tree(dice: &mut Dice, top: &Path) {
    let mut dirs = vec![top.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for _ in 0..4 + dice.below(40) {
        let path = dice.pick(&dirs).join(OsStr::from_bytes(&name(dice)));
        if path.symlink_metadata().is_ok() || path.as_os_str().len() > 3500 {
            continue;
        }
        match dice.below(8) {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                dirs.push(path);
                continue;
            }
            3 => {
                let target = dice.pick(&[&b"/nowhere"[..], b"a", b"..", b"new\nline", &[b'z'; 300]]).to_vec();
                symlink(OsStr::from_bytes(&target), &path).unwrap();
                continue;
            }
            4 if !files.is_empty() => {
                let first = dice.pick(&files).clone();
                fs::hard_link(first, &path).unwrap();
                continue;
            }
            5 => sparse_file(dice, &path),
            _ => {
                let len = *dice.pick(&[0, 1, 511, 512, 513, 4096, 70_000]);
                fs::write(&path, dice.bytes(len)).unwrap();
            }
        }
        if dice.below(4) == 0 {
            let value = *dice.pick(&[&b""[..], b"new\nline", b"\0\xff="]);
            // A file system that takes none gives none back.
            let _ = rustix::fs::setxattr(&path, "user.berth", value, rustix::fs::XattrFlags::empty());
        }
        chown(dice, &path);
        files.push(path);
    }
    for path in files.iter().chain(&dirs[1..]) {
        let mode = *dice.pick(&[0, 0o400, 0o644, 0o755, 0o4755, 0o2711, 0o1777]);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for path in files.iter().chain(dirs[1..].iter().rev()) {
        let seconds = *dice.pick(&[0, 1, 1_234_567_890, 4_000_000_000]);
        let time = std::time::UNIX_EPOCH + Duration::from_secs(seconds);
        let open = fs::File::open(path).unwrap();
        open.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    }
}

fn chown(dice: &mut Dice, path: &Path) {
    if rustix::process::geteuid().is_root() {
        let id = *dice.pick(&[0, 1, 1000, 2_097_151, 2_097_152, 4_000_000_000]);
        std::os::unix::fs::chown(path, Some(id), Some(id)).unwrap();
    }
}

fn sparse_file(dice: &mut Dice, path: &Path) {
    let file = fs::File::create(path).unwrap();
    for _ in 0..dice.below(30) {
        let at = dice.below(14) as u64 * 65_536 + *dice.pick(&[0, 1, 4096]);
        let len = 1 + dice.below(5000);
        file.write_all_at(&dice.bytes(len), at).unwrap();
    }
    if dice.below(2) == 0 {
        file.set_len(1 << 20).unwrap();
    }
}
