//! Single files in and out, lists, and what of a tree is packed.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use berth_guest::files;
use berth_wire::{
    DirEntry, Failure, FailureCode, FileKind, Fs, Outcome, Pack, PackReport, ReadFile, WriteFile,
};
use tempfile::TempDir;

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// In a thread of its own: who looks as somebody else does so for good.
fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn read(
    path: &Path,
    offset: u64,
    length: Option<u64>,
    user: Option<&str>,
) -> Result<(Vec<u8>, u64), Failure> {
    let request = ReadFile { path: text(path), offset, length, user: user.map(str::to_owned) };
    alone(|| {
        let mut bytes = Vec::new();
        match files::read(&request, &mut bytes)? {
            Outcome::Read { size } => Ok((bytes, size)),
            other => panic!("{other:?}"),
        }
    })
}

fn new_file(path: &Path) -> WriteFile {
    WriteFile { path: text(path), mode: None, owner: None, create_only: false }
}

fn write(request: &WriteFile, mut bytes: impl Read) -> Result<u64, FailureCode> {
    match files::write(request, &mut bytes) {
        Ok(Outcome::Written { bytes }) => Ok(bytes),
        Ok(other) => panic!("{other:?}"),
        Err(failure) => Err(failure.code),
    }
}

fn list(path: &Path, user: Option<&str>) -> Result<Vec<DirEntry>, Failure> {
    let request = Fs::List { path: text(path), user: user.map(str::to_owned) };
    match alone(|| files::perform(&request))? {
        Outcome::Fs { stat: None, entries } => Ok(entries),
        other => panic!("{other:?}"),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn needs_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    !root
}

#[test]
fn parts_of_files_are_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    let bytes: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    fs::write(&path, &bytes).unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    for (offset, length) in [(0, None), (100_000, None), (5, Some(70_000)), (299_999, Some(9)), (7, Some(0))]
    {
        let wanted = &bytes[offset as usize..];
        let wanted = &wanted[..length.map_or(wanted.len(), |length: u64| wanted.len().min(length as usize))];
        let (got, size) = read(&dir.path().join("link"), offset, length, None).unwrap();
        assert!(got == wanted && size == 300_000, "{offset} {length:?}");
    }
    for offset in [300_000, u64::MAX] {
        assert_eq!(read(&path, offset, None, None).unwrap(), (Vec::new(), 300_000));
    }
    fs::write(&path, "").unwrap();
    assert_eq!(read(&path, 0, None, None).unwrap(), (Vec::new(), 0));
    // A file of the kernel's, which has bytes but no size.
    assert!(read(Path::new("/proc/self/status"), 0, None, None).unwrap().0.starts_with(b"Name:"));
}

#[test]
fn only_regular_files_are_read_and_nothing_waits() {
    let dir = TempDir::new().unwrap();
    let code = |path: &Path| read(path, 0, None, None).unwrap_err().code;
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    assert_eq!(code(&dir.path().join("fifo")), FailureCode::Refused);
    assert_eq!(code(&dir.path().join("socket")), FailureCode::Refused);
    assert_eq!(code(Path::new("/dev/zero")), FailureCode::Refused);
    assert_eq!(code(dir.path()), FailureCode::IsADirectory);
    assert_eq!(code(&dir.path().join("nowhere")), FailureCode::NotFound);
    assert_eq!(code(&dir.path().join("loop")), FailureCode::Invalid);
    assert_eq!(code(Path::new("/proc/self/exe")), FailureCode::Invalid, "a link that is no path");
    let relative = ReadFile { path: "file".into(), offset: 0, length: None, user: None };
    assert_eq!(files::read(&relative, &mut io::sink()).unwrap_err().code, FailureCode::Invalid);
}

#[test]
fn files_are_read_with_the_rights_of_who_asks() {
    if needs_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("private");
    fs::write(&path, "secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read(&path, 0, None, Some("65534")).unwrap_err().code, FailureCode::Permission);
    assert_eq!(read(&path, 0, None, Some("no-such-user")).unwrap_err().code, FailureCode::Invalid);
    assert_eq!(read(&path, 0, None, Some("0")).unwrap().0, b"secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, None, Some(4343)).unwrap();
    assert_eq!(read(&path, 0, None, Some("65534:4343")).unwrap().0, b"secret");
    assert_eq!(list(dir.path(), Some("65534")).unwrap().len(), 1);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(list(dir.path(), Some("65534")).unwrap_err().code, FailureCode::Permission);
}

/// Cuts the file that is read after its first piece.
struct Cut<'a>(&'a Path);

impl io::Write for Cut<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        fs::File::options().write(true).open(self.0).unwrap().set_len(70_000).unwrap();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_no_whole_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let request = ReadFile { path: text(&path), offset: 0, length: None, user: None };
    assert_eq!(files::read(&request, &mut Cut(&path)).unwrap_err().code, FailureCode::Io);
}

#[test]
fn files_are_written_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("made/on the way/file");
    assert_eq!(write(&new_file(&path), &b"first"[..]), Ok(5));
    let meta = path.metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o644, rustix::process::geteuid().as_raw()));
    let open = fs::File::open(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let big = vec![7; 300_000];
    assert_eq!(write(&new_file(&path), &big[..]), Ok(300_000));
    assert!(fs::read(&path).unwrap() == big);
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640, "as the file that it replaces");
    assert_eq!(open.metadata().unwrap().len(), 5, "who has the old file open keeps it");
    let with_mode = WriteFile { mode: Some(0o4755), ..new_file(&path) };
    assert_eq!(write(&with_mode, &b""[..]), Ok(0));
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o4755);
    // A link is replaced, what it leads to is not touched; a link on the way is followed.
    symlink(&path, dir.path().join("link")).unwrap();
    symlink("made", dir.path().join("way")).unwrap();
    write(&new_file(&dir.path().join("link")), &b"new"[..]).unwrap();
    write(&new_file(&dir.path().join("way/other")), &b"other"[..]).unwrap();
    assert!(!dir.path().join("link").is_symlink() && fs::read(&path).unwrap().is_empty());
    assert_eq!(names(dir.path()), ["link", "made", "way"]);
    assert_eq!(names(&dir.path().join("made")), ["on the way", "other"]);
    if !needs_root() {
        let owned = WriteFile { owner: Some("1234:4343".into()), ..new_file(&path) };
        write(&owned, &b"x"[..]).unwrap();
        write(&new_file(&path), &b"y"[..]).unwrap();
        let meta = path.metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4343), "as the file that it replaces");
    }
}

/// Gives some bytes, and then an error as when the host has gone.
struct Broken(usize);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.0);
        self.0 -= len;
        if len == 0 { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(len) }
    }
}

#[test]
fn what_is_not_written_to_its_end_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "old").unwrap();
    let created = WriteFile { create_only: true, ..new_file(&path) };
    assert_eq!(write(&created, &b"new"[..]), Err(FailureCode::Exists));
    assert_eq!(write(&new_file(&path), Broken(200_000)), Err(FailureCode::Cancelled));
    assert_eq!(write(&new_file(dir.path()), &b"x"[..]), Err(FailureCode::IsADirectory));
    let code =
        |path: String| write(&WriteFile { path, ..new_file(&dir.path().join("x")) }, &b"x"[..]).unwrap_err();
    assert_eq!(code(format!("{}/x/", text(dir.path()))), FailureCode::Invalid);
    assert_eq!(code(format!("{}/file/x", text(dir.path()))), FailureCode::NotADirectory);
    assert_eq!(code(format!("{}/{}", text(dir.path()), "x".repeat(300))), FailureCode::Invalid);
    assert_eq!(code("/".into()), FailureCode::Invalid);
    let deep = dir.path().join("a/b/c/file");
    assert_eq!(write(&new_file(&deep), Broken(10)), Err(FailureCode::Cancelled));
    let nobody = WriteFile { owner: Some("no-such-user".into()), ..new_file(&deep) };
    assert_eq!(write(&nobody, &b"x"[..]), Err(FailureCode::Invalid));
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["file"]);
    let created = WriteFile { create_only: true, ..new_file(&deep) };
    assert_eq!(write(&created, &b"new"[..]), Ok(3));
}

#[test]
fn of_many_who_create_a_file_one_does() {
    let dir = TempDir::new().unwrap();
    let request = WriteFile { create_only: true, ..new_file(&dir.path().join("d/file")) };
    for _ in 0..30 {
        let done = std::thread::scope(|scope| {
            let writer = |number: u8| {
                let request = &request;
                scope.spawn(move || write(request, &vec![number; 100_000][..]))
            };
            let writers: Vec<_> = (0..4).map(writer).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1, "{done:?}");
        assert!(done.iter().all(|done| matches!(done, Ok(100_000) | Err(FailureCode::Exists))), "{done:?}");
        let bytes = fs::read(dir.path().join("d/file")).unwrap();
        assert!(bytes.len() == 100_000 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(names(&dir.path().join("d")), ["file"]);
        fs::remove_dir_all(dir.path().join("d")).unwrap();
    }
}

#[test]
fn readers_see_the_old_file_or_the_new_one() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![0; 50_000]).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..200 {
                write(&new_file(&path), &vec![number; 50_000][..]).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) {
            let bytes = fs::read(&path).unwrap();
            assert!(bytes.len() == 50_000 && bytes.iter().all(|byte| *byte == bytes[0]));
        }
    });
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    if needs_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=1m", "berth-test"];
    if !Command::new("mount").args(mount).arg(dir.path()).status().is_ok_and(|status| status.success()) {
        println!("SKIP: no tmpfs can be mounted");
        return;
    }
    let path = dir.path().join("file");
    fs::write(&path, "old").unwrap();
    let result = write(&new_file(&path), &vec![1; 4 << 20][..]);
    let after = (fs::read(&path).unwrap(), names(dir.path()), write(&new_file(&path), &b"new"[..]));
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    assert_eq!(result, Err(FailureCode::NoSpace));
    assert_eq!(after, (b"old".to_vec(), vec!["file".to_owned()], Ok(3)));
}

#[test]
fn directories_are_listed() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("b"), "12345").unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    symlink("/nowhere", dir.path().join("c")).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_234_567_890_123_456);
    fs::File::open(dir.path().join("b")).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    let entries = list(dir.path(), None).unwrap();
    let seen: Vec<_> =
        entries.iter().map(|entry| (&entry.name[..], entry.stat.kind, entry.link.as_deref())).collect();
    let wanted =
        [("a", FileKind::Dir, None), ("b", FileKind::File, None), ("c", FileKind::Other, Some("/nowhere"))];
    assert_eq!(seen, wanted);
    assert_eq!((entries[1].stat.size, entries[1].stat.modified_us), (5, 1_234_567_890_123_456));
    assert_eq!(list(&dir.path().join("a"), None).unwrap(), []);
    assert_eq!(list(&dir.path().join("b"), None).unwrap_err().code, FailureCode::NotADirectory);
    assert_eq!(list(&dir.path().join("x"), None).unwrap_err().code, FailureCode::NotFound);
}

#[test]
fn a_list_that_no_answer_holds_is_refused_with_its_count() {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    // Names that take six bytes each in JSON.
    let count = 12_000;
    for number in 0..count {
        let name = format!("{number}{}", "\x01".repeat(240));
        fs::write(dir.path().join(name), "").unwrap();
    }
    let failure = list(dir.path(), None).unwrap_err();
    assert_eq!(failure.code, FailureCode::Limit);
    assert!(failure.message.contains("12000 entries"), "{failure}");
    for number in count / 2..count {
        fs::remove_file(dir.path().join(format!("{number}{}", "\x01".repeat(240)))).unwrap();
    }
    let entries = list(dir.path(), None).unwrap();
    assert_eq!(entries.len(), count / 2);
    // And what is not refused does fit.
    let reply = berth_wire::Reply::Done(Outcome::Fs { stat: None, entries });
    berth_wire::encode_event(1, &reply, &mut Vec::new()).unwrap();
}

// ---- what is packed ----

fn packed(spec: &Pack) -> (Vec<String>, PackReport) {
    let mut tar = Vec::new();
    let Outcome::Packed(report) = files::pack(spec, &mut tar).unwrap() else { panic!() };
    let mut archive = tar::Archive::new(&tar[..]);
    let names =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned());
    (names.collect(), report)
}

fn tree(paths: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for path in paths {
        let path: PathBuf = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
    }
    dir
}

fn strings(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
}

#[test]
fn files_are_chosen_as_harbor_chooses_them() {
    let dir = tree(&["reward.txt", "reward.json", "a/x.log", "a/b/y.log", "a/b/y.txt", "z.LOG"]);
    symlink("reward.txt", dir.path().join("link.log")).unwrap();
    fs::create_dir(dir.path().join("empty.log")).unwrap();
    let choose = |include: &[&str], exclude_files: &[&str], protect: &[&str]| {
        let spec = Pack {
            path: text(dir.path()),
            include: strings(include),
            exclude_files: strings(exclude_files),
            protect: strings(protect),
            ..Pack::default()
        };
        packed(&spec).0
    };
    assert_eq!(choose(&["*.log"], &[], &[]), ["a/b/y.log", "a/x.log"]);
    assert_eq!(choose(&["*.log"], &["a/b/*"], &["reward.txt"]), ["a/x.log", "reward.txt"]);
    assert_eq!(choose(&[], &["*"], &["reward.json", "a/b/y.txt", "nowhere"]), ["a/b/y.txt", "reward.json"]);
    assert_eq!(choose(&["nothing"], &[], &[]), [""; 0]);
    assert_eq!(choose(&["reward.*"], &["reward.*"], &["link.log"]), [""; 0], "links are no files");
    let pruned = Pack {
        path: text(dir.path()),
        exclude: strings(&["a", "*.log"]),
        protect: strings(&["a/b/y.log"]),
        ..Pack::default()
    };
    assert_eq!(packed(&pruned).0, ["a/b/y.log", "reward.json", "reward.txt", "z.LOG"]);
}

#[test]
fn deep_trees_take_few_descriptors_and_paths_have_an_end() {
    let dir = TempDir::new().unwrap();
    let mut here = fs::File::open(dir.path()).unwrap();
    let name = "d".repeat(200);
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    for _ in 0..400 {
        rustix::fs::mkdirat(&here, &name[..], mode).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        here = rustix::fs::openat(&here, &name[..], flags, mode).unwrap().into();
    }
    fs::write(dir.path().join("last"), "").unwrap();
    let spec = Pack { path: text(dir.path()), ignore_failed_read: true, ..Pack::default() };
    let mut tar = Vec::new();
    let Outcome::Packed(report) = files::pack(&spec, &mut tar).unwrap() else { panic!() };
    assert_eq!((report.unread_count, report.entries), (1, 65_536 / 201 + 1), "{:?}", report.unread.len());
    let strict = Pack { ignore_failed_read: false, ..spec };
    assert_eq!(files::pack(&strict, &mut io::sink()).unwrap_err().code, FailureCode::Invalid);
    let paths = vec![text(dir.path())];
    files::perform(&Fs::Empty { paths, mode: None }).unwrap();
}

#[test]
fn logs_that_are_written_and_rotated_meanwhile_do_not_break_an_archive() {
    let dir = tree(&["a/log", "b/log", "c/log", "d/keep"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0_u32;
            while !over.load(Ordering::Relaxed) {
                turn += 1;
                for name in ["a", "b", "c"] {
                    let dir = dir.path().join(name);
                    let _ = fs::create_dir(&dir);
                    let _ = fs::rename(dir.join("log"), dir.join("log.1"));
                    let _ = fs::write(dir.join("log"), vec![b'x'; turn as usize * 7 % 100_000]);
                    let _ = fs::File::options().write(true).open(dir.join("log")).map(|log| log.set_len(3));
                    if turn.is_multiple_of(3) {
                        let _ = fs::remove_dir_all(&dir);
                        let _ = symlink("/", &dir);
                        let _ = fs::remove_file(&dir);
                    }
                }
            }
        });
        for _ in 0..300 {
            let spec = Pack { path: text(dir.path()), ignore_failed_read: true, ..Pack::default() };
            let (names, report) = packed(&spec);
            assert!(names.contains(&"d/keep".to_owned()) && report.unread_count == 0, "{report:?}");
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_link_to_the_kernel_s_own_files_gives_an_archive_of_nothing() {
    let dir = TempDir::new().unwrap();
    symlink("/proc", dir.path().join("logs")).unwrap();
    let spec = Pack {
        path: text(&dir.path().join("logs")),
        follow: true,
        ignore_failed_read: true,
        ..Pack::default()
    };
    let (names, report) = packed(&spec);
    assert_eq!((names.len(), report.skipped_count), (0, 1), "{report:?}");
}
