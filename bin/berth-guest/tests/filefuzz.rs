//! What holds for trees and archives of every kind: what was packed comes back, other tars read ours and we read
//! theirs, and no bytes whatever make the guest leave its target, crash, hang or fill the memory.
//!
//! The dice fall the same way in every run. `BERTH_FUZZ_SECONDS` lets each test go on for so long.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod trees;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_guest::files;
use berth_wire::{Failure, Fs, Outcome, Owner, Pack, Unpack, UnpackReport};
use tar::{EntryType, Header};
use tempfile::TempDir;
use trees::{Dice, assert_same, more, picture, random_tree};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn pack(path: &Path, sparse: bool) -> Vec<u8> {
    let mut tar = Vec::new();
    let spec = Pack { path: text(path), sparse, xattrs: true, ..Pack::default() };
    files::pack(&spec, &mut tar).unwrap();
    tar
}

fn unpack(path: &Path, tar: &[u8]) -> Result<UnpackReport, Failure> {
    let request = Unpack { path: text(path), owner: Owner::Keep, ..Unpack::default() };
    match files::unpack(&request, &mut &tar[..])? {
        Outcome::Unpacked(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

/// A temporary directory in memory, where there is one: these tests make many small files.
fn quick_dir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn needs_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    !root
}

#[test]
fn every_tree_comes_back_as_it_was() {
    if needs_root() {
        return;
    }
    let (started, mut round) = (Instant::now(), 0);
    while more(started, round, 40) {
        let mut dice = Dice(round as u64);
        let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        random_tree(&mut dice, from.path());
        let wanted = picture(from.path());
        for sparse in [false, true] {
            let tar = pack(from.path(), sparse);
            let target = to.path().join(format!("{sparse}"));
            let report = unpack(&target, &tar).unwrap();
            assert_eq!(
                (report.refused_count, report.skipped_count, report.xattrs_lost),
                (0, 0, 0),
                "{report:?}"
            );
            assert_same(&picture(&target), &wanted, &format!("round {round}, sparse {sparse}"));
            assert!(pack(&target, sparse) == tar, "round {round}, sparse {sparse}: not the same bytes");
        }
        round += 1;
    }
}

fn gnu_tar(args: &[&str], dir: &Path) -> Option<Vec<u8>> {
    let Ok(output) = Command::new("tar").env("LC_ALL", "C").current_dir(dir).args(args).output() else {
        println!("SKIP: no tar to compare with");
        return None;
    };
    assert!(output.status.success(), "{args:?}: {output:?}");
    Some(output.stdout)
}

#[test]
fn gnu_tar_reads_our_holes_and_we_read_its() {
    if needs_root() {
        return;
    }
    for round in 1000..1010 {
        let mut dice = Dice(round);
        let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        random_tree(&mut dice, from.path());
        let wanted = picture(from.path());
        let archive = to.path().join("our.tar");
        fs::write(&archive, pack(from.path(), true)).unwrap();
        let target = to.path().join("by-gnu");
        fs::create_dir(&target).unwrap();
        let flags =
            ["-xp", "--sparse", "--same-owner", "--xattrs", "--xattrs-include=*", "-f", &text(&archive)];
        if gnu_tar(&flags, &target).is_none() {
            return;
        }
        assert_same(&picture(&target), &wanted, &format!("round {round}"));
        for format in [
            &["--format=gnu"][..],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ] {
            let attributes: &[&str] =
                if format.len() > 1 { &["--xattrs", "--xattrs-include=*"] } else { &[] };
            let flags = [&["-c", "-S", "-f", "-"], format, attributes, &["."]].concat();
            let tar = gnu_tar(&flags, from.path()).unwrap();
            let target = to.path().join(format.concat());
            let report = unpack(&target, &tar).unwrap();
            assert_eq!(report.refused_count, 0, "{format:?}: {report:?}");
            let mut wanted = wanted.clone();
            let mut read = picture(&target);
            if attributes.is_empty() {
                let plain = |facts: &mut String| facts.truncate(facts.find(" attributes ").unwrap());
                wanted.values_mut().for_each(plain);
                read.values_mut().for_each(plain);
            }
            assert_same(&read, &wanted, &format!("round {round}, {format:?}"));
        }
    }
}

#[test]
fn holes_stay_holes_and_python_reads_them() {
    const PROGRAM: &str = "import sys, tarfile\nt = tarfile.open(sys.argv[1])\nt.extractall(sys.argv[2])";
    let (from, to) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let holes = fs::File::create(from.path().join("holes")).unwrap();
    for at in [0, 1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", at).unwrap();
    }
    holes.set_len(8 << 20).unwrap();
    fs::File::create(from.path().join("nothing")).unwrap().set_len(1 << 20).unwrap();
    fs::create_dir(from.path().join("dir")).unwrap();
    fs::write(from.path().join("dir/whole"), vec![7; 300_000]).unwrap();
    let tar = pack(from.path(), true);
    assert!(tar.len() < 1 << 20, "{} bytes", tar.len());
    unpack(&to.path().join("ours"), &tar).unwrap();
    for name in ["holes", "nothing", "dir/whole"] {
        let (ours, theirs) = (to.path().join("ours").join(name), from.path().join(name));
        assert_eq!(fs::read(&ours).unwrap(), fs::read(&theirs).unwrap(), "{name}");
        let allocated = |path: &Path| path.metadata().unwrap().blocks();
        assert!(allocated(&ours) <= allocated(&theirs), "{name}");
    }
    let archive = to.path().join("our.tar");
    fs::write(&archive, tar).unwrap();
    let target = to.path().join("target");
    let mut python = Command::new("python3");
    let Ok(output) = python.args(["-c", PROGRAM, &text(&archive), &text(&target)]).output() else {
        println!("SKIP: no python3 to read with");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    for name in ["holes", "nothing", "dir/whole"] {
        assert_eq!(fs::read(target.join(name)).unwrap(), fs::read(from.path().join(name)).unwrap(), "{name}");
    }
}

// ---- archives that nobody means well with ----

/// A directory in which archives are unpacked, beside what they must not touch.
struct Cage {
    dir: TempDir,
    before: Vec<String>,
}

impl Cage {
    fn new() -> Self {
        let dir = quick_dir();
        fs::create_dir_all(dir.path().join("outside/deep")).unwrap();
        fs::write(dir.path().join("outside/secret"), "untouched").unwrap();
        fs::write(dir.path().join("outside/deep/secret"), "untouched").unwrap();
        symlink("secret", dir.path().join("outside/link")).unwrap();
        let mut cage = Self { dir, before: Vec::new() };
        cage.clear();
        cage.before = cage.look();
        cage
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn clear(&self) {
        let paths = vec![text(&self.target())];
        files::perform(&Fs::Empty { paths, mode: Some(0o755) }).unwrap();
    }

    /// All that there is outside of the target, with the times of its last change.
    fn look(&self) -> Vec<String> {
        let names = ["", "outside", "outside/secret", "outside/deep", "outside/deep/secret", "outside/link"];
        let mut seen: Vec<_> = names
            .iter()
            .map(|name| {
                let meta = self.dir.path().join(name).symlink_metadata().unwrap();
                let facts = (meta.mode(), meta.uid(), meta.nlink(), meta.ino(), meta.len());
                format!("{name} {facts:?} {} {}", meta.ctime(), meta.ctime_nsec())
            })
            .collect();
        for dir in ["", "outside", "outside/deep"] {
            let names = fs::read_dir(self.dir.path().join(dir)).unwrap();
            seen.push(format!("{dir}: {}", names.count()));
        }
        seen
    }

    /// Unpacks, and fails where anything outside is not as it was.
    fn unpack(&self, tar: &[u8]) -> Result<UnpackReport, Failure> {
        let result = unpack(&self.target(), tar);
        assert_eq!(self.look(), self.before);
        result
    }
}

fn header(kind: EntryType, name: &[u8], link: &[u8], size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(size as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    header
}

/// Entries that are bent on getting out, in any order.
fn hostile(dice: &mut Dice, away: &str) -> Vec<u8> {
    const PARTS: [&str; 9] = ["a", "b", "c", ".", "..", "outside", "secret", "deep", ""];
    let path = |dice: &mut Dice| {
        let parts: Vec<&str> = (0..1 + dice.below(4)).map(|_| *dice.pick(&PARTS)).collect();
        match dice.below(8) {
            0 => format!("{away}/{}", parts.join("/")),
            1 => format!("../outside/{}", parts.join("/")),
            _ => parts.join("/"),
        }
    };
    let mut tar = Vec::new();
    for _ in 0..2 + dice.below(14) {
        let kinds = [
            EntryType::Regular,
            EntryType::Regular,
            EntryType::Directory,
            EntryType::Symlink,
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Char,
            EntryType::Fifo,
        ];
        let kind = *dice.pick(&kinds);
        let (name, link) = (path(dice), path(dice));
        let data: &[u8] = if kind == EntryType::Regular { b"evil" } else { b"" };
        let link = if matches!(kind, EntryType::Symlink | EntryType::Link) { link } else { String::new() };
        let limit = |text: &str| text.as_bytes()[..text.len().min(99)].to_vec();
        tar.extend_from_slice(header(kind, &limit(&name), &limit(&link), data.len()).as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

#[test]
fn no_order_of_entries_leads_out_of_the_target() {
    let cage = Cage::new();
    let away = text(&cage.dir.path().join("outside"));
    let (mut dice, started) = (Dice(99), Instant::now());
    let (mut round, mut entries, mut refused) = (0, 0, 0);
    while more(started, round, 4000) {
        let tar = hostile(&mut dice, &away);
        if let Ok(report) = cage.unpack(&tar) {
            entries += report.entries;
            refused += report.refused_count;
        }
        cage.clear();
        round += 1;
    }
    assert!(entries > 1000 && refused > 1000, "{entries} unpacked, {refused} refused");
}

/// Archives of every kind that is understood, small enough that a change matters.
fn corpus() -> Vec<Vec<u8>> {
    let from = TempDir::new().unwrap();
    fs::create_dir_all(from.path().join("dir/deep")).unwrap();
    fs::write(from.path().join("dir/file"), "contents").unwrap();
    fs::write(from.path().join("l".repeat(150)), "long").unwrap();
    fs::write(from.path().join("new\nline".repeat(20)), "long").unwrap();
    symlink("../outside", from.path().join("out")).unwrap();
    symlink("dir", from.path().join("in")).unwrap();
    fs::hard_link(from.path().join("dir/file"), from.path().join("dir/hard")).unwrap();
    let holes = fs::File::create(from.path().join("holes")).unwrap();
    for at in 0..6_u64 {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"data", at << 14).unwrap();
    }
    holes.set_len(100_000).unwrap();
    let _ = rustix::fs::setxattr(from.path().join("dir"), "user.a", b"1", rustix::fs::XattrFlags::empty());
    let mut corpus = vec![pack(from.path(), false), pack(from.path(), true)];
    for format in [
        &["-S", "--format=gnu"][..],
        &["-S", "--format=posix", "--sparse-version=0.0"],
        &["-S", "--format=posix", "--sparse-version=0.1"],
        &["--format=ustar", "--exclude=./holes", "--exclude=./l*", "--exclude=./new*"],
        &["--format=v7", "--exclude=./holes", "--exclude=./l*", "--exclude=./new*"],
    ] {
        corpus.extend(gnu_tar(&[&["-c", "-b1", "-f", "-"], format, &["."]].concat(), from.path()));
    }
    corpus.push(hostile(&mut Dice(5), "/nowhere"));
    corpus
}

fn checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Bytes that mean something in a tar.
const TELLING: [&[u8]; 16] = [
    b"\0",
    b"/",
    b"..",
    b"../outside/secret",
    b"out/secret",
    b"77777777777\0",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"x",
    b"g",
    b"L",
    b"S",
    b"\n",
    b"=",
    b"999999999 ",
    b"GNU.sparse.",
    b"-1",
];

fn mutated(dice: &mut Dice, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = dice.pick(corpus).clone();
    for _ in 0..1 + dice.below(6) {
        let blocks = tar.len() / 512;
        if blocks == 0 {
            break;
        }
        let block = dice.below(blocks) * 512;
        match dice.below(9) {
            0 => tar.truncate(dice.below(tar.len())),
            1 => {
                let copy = tar[block..block + 512].to_vec();
                let to = dice.below(blocks) * 512;
                tar.splice(to..to, copy);
            }
            2 => drop(tar.drain(block..block + 512)),
            3 => {
                let other = dice.pick(corpus);
                let from = dice.below(other.len() / 512) * 512;
                tar.splice(block..block, other[from..].iter().copied());
            }
            4 | 5 => {
                let at = block + dice.below(512);
                tar[at] = dice.below(256) as u8;
            }
            _ => {
                let telling = *dice.pick(&TELLING);
                let fields = [0, 100, 108, 116, 124, 136, 156, 157, 345, 386, 398, 482, 483];
                let field = if dice.below(2) == 0 { *dice.pick(&fields) } else { dice.below(512) };
                let at = block + field;
                let end = (at + telling.len()).min(tar.len());
                tar[at..end].copy_from_slice(&telling[..end - at]);
            }
        }
        // Most changes would be found by the checksum alone.
        if dice.below(5) > 0
            && block + 512 <= tar.len()
            && tar[block + 148..block + 154].iter().all(u8::is_ascii_digit)
        {
            checksum(&mut tar[block..block + 512]);
        }
    }
    tar
}

/// The most memory that this process ever had, in bytes.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn no_bytes_make_unpacking_crash_hang_or_leave_its_target() {
    if needs_root() {
        return;
    }
    let (cage, corpus) = (Cage::new(), corpus());
    for tar in &corpus {
        cage.unpack(tar).unwrap();
        cage.clear();
    }
    let memory = peak_memory();
    let (mut dice, started) = (Dice(4), Instant::now());
    let (mut round, mut fine, mut bad) = (0, 0, 0);
    while more(started, round, 10_000) {
        let tar = mutated(&mut dice, &corpus);
        let begun = Instant::now();
        match cage.unpack(&tar) {
            Ok(_) => fine += 1,
            Err(_) => bad += 1,
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "round {round} takes for ever");
        cage.clear();
        round += 1;
    }
    assert!(fine > 500 && bad > 500, "{fine} unpacked, {bad} not");
    // Other tests of this process take some too.
    assert!(peak_memory() - memory < 256 << 20, "{} bytes more than at the start", peak_memory() - memory);
}
