//! Files in and out, through the host's side. The guest shares this machine's root here, so every path is in a
//! directory of the test's own.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_sandbox::guest::{Error, Failure, FailureCode, Owner, PackSpec, UnpackReport, UnpackSpec};
use berth_types::files::{FileKind, FsRequest};
use rig::{Rig, until};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn unpack_to(path: &Path) -> UnpackSpec {
    UnpackSpec { path: text(path), owner: Owner::Root, mode: None, ..UnpackSpec::default() }
}

fn pack_of(path: &Path) -> PackSpec {
    PackSpec { path: text(path), ..PackSpec::default() }
}

async fn unpack(rig: &Rig, path: &Path, tar: &[u8]) -> Result<UnpackReport, Error> {
    rig.guest.unpack(unpack_to(path), tar).await
}

async fn pack(rig: &Rig, spec: PackSpec) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut pack = rig.guest.pack(spec).await.unwrap();
    pack.read_to_end(&mut bytes).await.unwrap();
    assert!(pack.report().is_some());
    bytes
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Failure {
    match result {
        Err(Error::Refused(failure)) => failure,
        other => panic!("{other:?}"),
    }
}

/// An entry as the `tar` crate would not write it: any name, any link.
fn entry(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(77);
    header.set_gid(78);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

/// Everything that a tree is: path → kind, mode, owner, time, contents.
fn picture(top: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut picture = BTreeMap::new();
    let mut left = vec![top.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let what = if meta.is_symlink() {
                format!("-> {:?}", fs::read_link(&path).unwrap())
            } else if meta.is_dir() {
                left.push(path.clone());
                "dir".to_owned()
            } else {
                format!("{} bytes, sum {}", meta.len(), sum(&fs::read(&path).unwrap()))
            };
            let mode = if meta.is_symlink() { 0 } else { meta.mode() & 0o7777 };
            let facts = format!("{what} {mode:o} {}:{} {}", meta.uid(), meta.gid(), meta.mtime());
            let name = path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec();
            picture.insert(name, facts);
        }
    }
    picture
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

fn odd_tree(top: &Path) {
    let chmod =
        |name: &str, mode| fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(top.join("dir/empty")).unwrap();
    fs::write(top.join("dir/plain"), "contents").unwrap();
    fs::write(top.join("setuid"), "x").unwrap();
    chmod("setuid", 0o4751);
    fs::create_dir(top.join("sticky")).unwrap();
    chmod("sticky", 0o1777);
    fs::write(top.join("none"), "").unwrap();
    chmod("none", 0);
    fs::create_dir(top.join("read-only")).unwrap();
    fs::write(top.join("read-only/in"), "x").unwrap();
    chmod("read-only", 0o555);
    fs::write(top.join("big"), (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    symlink("/nowhere/at all", top.join("dangling")).unwrap();
    symlink("dir", top.join("link-to-dir")).unwrap();
    symlink("x".repeat(300), top.join("long-link")).unwrap();
    symlink("new\nline".repeat(30), top.join("newline-link")).unwrap();
    fs::hard_link(top.join("dir/plain"), top.join("hard")).unwrap();
    for name in
        [&b"new\nline"[..], b"not-utf8-\xff\xfe", "unicode-é".as_bytes(), b" blank ", b"quote\"'\\", b"-dash"]
    {
        fs::write(top.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let long = top.join("l".repeat(200)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("n".repeat(255)), "deep").unwrap();
    fs::write(long.join("with\nnewline".repeat(20)), "deep").unwrap();
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_234_567_890));
    fs::File::open(top.join("dir/plain")).unwrap().set_times(times).unwrap();
    fs::File::open(top.join("dir/empty")).unwrap().set_times(times).unwrap();
}

fn needs_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: needs root");
    }
    !root
}

#[tokio::test]
async fn a_tree_comes_back_as_it_was() {
    if needs_root() {
        return;
    }
    let (rig, from, to) = (Rig::new().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    odd_tree(from.path());
    std::os::unix::fs::chown(from.path().join("hard"), Some(1234), Some(3_000_000)).unwrap();
    let tar = pack(&rig, pack_of(from.path())).await;
    let spec = UnpackSpec { owner: Owner::Keep, ..unpack_to(&to.path().join("made/on/the way")) };
    let report = rig.guest.unpack(spec, &tar[..]).await.unwrap();
    assert_eq!((report.refused_count, report.skipped_count), (0, 0), "{report:?}");
    let to = to.path().join("made/on/the way");
    assert_eq!(picture(&to), picture(from.path()));
    let inode = |name: &str| to.join(name).metadata().unwrap().ino();
    assert_eq!(inode("hard"), inode("dir/plain"));
    // The same once more over itself, and the same bytes whenever it is packed.
    unpack(&rig, &to, &tar).await.unwrap();
    assert_eq!(tar, pack(&rig, pack_of(from.path())).await);
}

#[tokio::test]
async fn other_tars_understand_ours_and_we_theirs() {
    let (rig, from, to) = (Rig::new().await, TempDir::new().unwrap(), TempDir::new().unwrap());
    odd_tree(from.path());
    let tar = pack(&rig, pack_of(from.path())).await;
    // The `tar` crate, through which hosts read.
    let mut ours = tar::Archive::new(&tar[..]);
    let names: Vec<Vec<u8>> =
        ours.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
    let plain = |name: &[u8]| name.strip_suffix(b"/").unwrap_or(name).to_vec();
    let mut read: Vec<_> = names.iter().map(|name| plain(name)).collect();
    read.sort();
    assert_eq!(read, picture(from.path()).into_keys().collect::<Vec<_>>());
    // GNU tar, both ways and in its formats.
    fs::write(to.path().join("our.tar"), &tar).unwrap();
    let run = |args: &[&str], dir: &Path| {
        std::process::Command::new("tar").env("LC_ALL", "C").current_dir(dir).args(args).output()
    };
    fs::create_dir(to.path().join("gnu")).unwrap();
    let our_tar = text(&to.path().join("our.tar"));
    let Ok(output) = run(&["-xpf", &our_tar, "--same-owner"], &to.path().join("gnu")) else {
        println!("SKIP: no tar to compare with");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(picture(&to.path().join("gnu")), picture(from.path()));
    for format in ["gnu", "pax"] {
        let output = run(&["-cf", "-", "--format", format, "."], from.path()).unwrap();
        let target = to.path().join(format!("from-{format}"));
        let spec = UnpackSpec { owner: Owner::Keep, ..unpack_to(&target) };
        let report = rig.guest.unpack(spec, &output.stdout[..]).await.unwrap();
        assert_eq!(report.refused_count, 0, "{report:?}");
        assert_eq!(picture(&target), picture(from.path()), "{format}");
    }
    let sparse = to.path().join("sparse");
    fs::create_dir(&sparse).unwrap();
    let file = fs::File::create(sparse.join("holes")).unwrap();
    for at in [0, 5 << 20, 40 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
    }
    file.set_len(64 << 20).unwrap();
    let output = run(&["-cSf", "-", "--format", "gnu", "."], &sparse).unwrap();
    assert!(output.stdout.len() < 1 << 20);
    let target = to.path().join("from-sparse");
    unpack(&rig, &target, &output.stdout).await.unwrap();
    assert_eq!(fs::read(target.join("holes")).unwrap(), fs::read(sparse.join("holes")).unwrap());
    assert!(target.join("holes").metadata().unwrap().blocks() * 512 < 1 << 20);
}

#[tokio::test]
async fn nothing_leaves_the_target() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let (target, outside) = (dir.path().join("target"), dir.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "untouched").unwrap();
    fs::create_dir_all(target.join("sub")).unwrap();
    symlink(&outside, target.join("was-there-before")).unwrap();
    let away = text(&outside);
    let tar = archive(|tar| {
        entry(tar, EntryType::Symlink, b"out", away.as_bytes(), b"");
        entry(tar, EntryType::Symlink, b"up", b"../outside", b"");
        entry(tar, EntryType::Symlink, b"chain", b"out", b"");
        entry(tar, EntryType::Symlink, b"inside", b"sub/../sub", b"");
        entry(tar, EntryType::Regular, b"out/secret", b"", b"1");
        entry(tar, EntryType::Regular, b"up/new", b"", b"2");
        entry(tar, EntryType::Directory, b"chain/dir/", b"", b"");
        entry(tar, EntryType::Regular, b"sub/../../outside/secret", b"", b"3");
        entry(tar, EntryType::Regular, format!("{away}/secret").as_bytes(), b"", b"4");
        entry(tar, EntryType::Link, b"stolen", b"out/secret", b"");
        entry(tar, EntryType::Link, b"stolen2", b"../outside/secret", b"");
        entry(tar, EntryType::Regular, b"inside/fine", b"", b"fine");
        entry(tar, EntryType::Regular, b"was-there-before/followed", b"", b"followed");
        entry(tar, EntryType::Char, b"device", b"", b"");
        entry(tar, EntryType::Fifo, b"fifo", b"", b"");
        entry(tar, EntryType::Regular, b"last", b"", b"last");
    });
    let report = unpack(&rig, &target, &tar).await.unwrap();
    let refused: Vec<_> = report.refused.iter().map(|notice| &notice.path[..]).collect();
    let absolute = format!("{away}/secret");
    let wanted =
        ["out/secret", "up/new", "chain/dir/", "sub/../../outside/secret", &absolute, "stolen", "stolen2"];
    assert_eq!(refused, wanted);
    assert_eq!((report.refused_count, report.skipped_count, report.skipped.len()), (7, 2, 2));
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"untouched");
    assert_eq!(fs::read(outside.join("followed")).unwrap(), b"followed");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
    assert_eq!(fs::read(target.join("sub/fine")).unwrap(), b"fine");
    assert_eq!(fs::read(target.join("last")).unwrap(), b"last");
    assert_eq!(target.join("last").metadata().unwrap().uid(), 0);
}

#[tokio::test]
async fn entries_merge_into_what_is_there() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let target = dir.path();
    fs::create_dir_all(target.join("kept/inner")).unwrap();
    fs::write(target.join("kept/inner/old"), "old").unwrap();
    fs::write(target.join("same"), "a longer old text").unwrap();
    fs::write(target.join("file-becomes-dir"), "x").unwrap();
    fs::create_dir(target.join("dir-becomes-file")).unwrap();
    symlink("kept", target.join("link-to-dir")).unwrap();
    fs::set_permissions(target, fs::Permissions::from_mode(0o711)).unwrap();
    let open = fs::File::open(target.join("same")).unwrap();
    let tar = archive(|tar| {
        entry(tar, EntryType::Directory, b"./", b"", b"");
        entry(tar, EntryType::Directory, b"kept/", b"", b"");
        entry(tar, EntryType::Regular, b"kept/inner/new", b"", b"new");
        entry(tar, EntryType::Regular, b"same", b"", b"new");
        entry(tar, EntryType::Directory, b"file-becomes-dir/", b"", b"");
        entry(tar, EntryType::Regular, b"dir-becomes-file", b"", b"x");
        entry(tar, EntryType::Directory, b"link-to-dir/", b"", b"");
        entry(tar, EntryType::Regular, b"link-to-dir/through", b"", b"x");
    });
    unpack(&rig, target, &tar).await.unwrap();
    assert_eq!(fs::read(target.join("kept/inner/old")).unwrap(), b"old");
    assert_eq!(fs::read(target.join("kept/inner/new")).unwrap(), b"new");
    assert_eq!(fs::read(target.join("kept/through")).unwrap(), b"x");
    assert!(target.join("link-to-dir").is_symlink());
    assert_eq!(fs::read(target.join("same")).unwrap(), b"new");
    assert_eq!(open.metadata().unwrap().len(), 17, "who has the old file open keeps it");
    assert!(target.join("file-becomes-dir").is_dir() && target.join("dir-becomes-file").is_file());
    assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o711, "the target itself stays as it was");
    assert_eq!(target.join("kept").metadata().unwrap().mtime(), 1_000_000_000);

    let tar = archive(|tar| entry(tar, EntryType::Regular, b"kept", b"", b"x"));
    let failure = refusal(unpack(&rig, target, &tar).await);
    assert_eq!((failure.code, failure.path.as_deref()), (FailureCode::IsADirectory, Some("kept")));
}

#[tokio::test]
async fn owners_and_modes_can_be_given() {
    if needs_root() {
        return;
    }
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let tar = archive(|tar| {
        entry(tar, EntryType::Directory, b"dir/", b"", b"");
        entry(tar, EntryType::Regular, b"dir/file", b"", b"x");
    });
    for (owner, mode, wanted) in [
        (Owner::Root, None, (0, 0, 0o644)),
        (Owner::Keep, None, (77, 78, 0o644)),
        (Owner::User("daemon:4343".into()), Some(0o2750), (1, 4343, 0o2750)),
    ] {
        let target = dir.path().join(format!("{owner:?}/made"));
        let spec = UnpackSpec { path: text(&target), owner, mode, ..UnpackSpec::default() };
        rig.guest.unpack(spec, &tar[..]).await.unwrap();
        for path in ["dir", "dir/file"] {
            let meta = target.join(path).metadata().unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), wanted, "{path}");
        }
        let made = target.metadata().unwrap();
        let owner = if wanted.0 == 77 { (0, 0) } else { (wanted.0, wanted.1) };
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (owner.0, owner.1, 0o755));
    }
    let spec = UnpackSpec { owner: Owner::User("nobody-of-that-name".into()), ..unpack_to(dir.path()) };
    assert_eq!(refusal(rig.guest.unpack(spec, &tar[..]).await).code, FailureCode::Invalid);
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let garbage = vec![b'x'; 4096];
    assert_eq!(refusal(unpack(&rig, dir.path(), &garbage).await).code, FailureCode::BadArchive);
    let whole = archive(|tar| entry(tar, EntryType::Regular, b"file", b"", &[b'x'; 5000]));
    assert_eq!(refusal(unpack(&rig, dir.path(), &whole[..3000]).await).code, FailureCode::BadArchive);
    fs::write(dir.path().join("a file"), "").unwrap();
    let failure = refusal(unpack(&rig, &dir.path().join("a file"), &whole).await);
    assert_eq!(failure.code, FailureCode::NotADirectory);
    assert!(failure.path.unwrap().ends_with("a file"));
    let relative =
        UnpackSpec { path: "relative".into(), owner: Owner::Root, mode: None, ..UnpackSpec::default() };
    assert_eq!(refusal(rig.guest.unpack(relative, &whole[..]).await).code, FailureCode::Invalid);
    // A failure in the middle of a long stream reaches a host that is still sending.
    let endless = tokio::io::repeat(b'x');
    assert_eq!(refusal(rig.guest.unpack(unpack_to(dir.path()), endless).await).code, FailureCode::BadArchive);
    assert_eq!(rig.sh("echo fine").await.out(), "fine\n");
}

#[tokio::test]
async fn a_full_disk_is_told() {
    if needs_root() {
        return;
    }
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "berth-test"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIP: no tmpfs can be mounted");
        return;
    }
    let tar = archive(|tar| entry(tar, EntryType::Regular, b"big", b"", &vec![1; 4 << 20]));
    let result = unpack(&rig, dir.path(), &tar).await;
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    let failure = refusal(result);
    assert_eq!((failure.code, failure.path.as_deref()), (FailureCode::NoSpace, Some("big")));
}

#[tokio::test]
async fn files_links_and_what_is_not_there() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "text").unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("dir/in"), "").unwrap();
    symlink("dir", path("link")).unwrap();
    symlink("file", path("file-link")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(path("dir/fifo")).status().unwrap().success());
    let names = |tar: &[u8]| -> Vec<(String, EntryType)> {
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().to_str().unwrap().to_owned(), entry.header().entry_type())
        });
        entries.collect()
    };
    let one = |name: &str, kind| vec![(name.to_owned(), kind)];
    let follow = |name: &str| PackSpec { follow: true, ..pack_of(&path(name)) };
    assert_eq!(names(&pack(&rig, pack_of(&path("file"))).await), one("file", EntryType::Regular));
    assert_eq!(names(&pack(&rig, pack_of(&path("link"))).await), one("link", EntryType::Symlink));
    assert_eq!(names(&pack(&rig, follow("file-link")).await), one("file-link", EntryType::Regular));
    assert_eq!(names(&pack(&rig, follow("link")).await), one("in", EntryType::Regular));
    let top = PackSpec { include_top: true, ..pack_of(&path("dir")) };
    assert_eq!(names(&pack(&rig, top).await)[0], ("./".to_owned(), EntryType::Directory));

    let mut reader = rig.guest.pack(pack_of(&path("dir"))).await.unwrap();
    reader.read_to_end(&mut Vec::new()).await.unwrap();
    let report = reader.report().unwrap();
    assert_eq!((report.entries, report.skipped_count), (1, 1));
    assert_eq!((report.skipped[0].path.as_str(), report.skipped[0].why.as_str()), ("fifo", "a FIFO"));
    assert!(path("dir/fifo").metadata().unwrap().file_type().is_fifo());

    let failure = refusal(rig.guest.pack(pack_of(&path("nowhere"))).await.map(drop));
    assert_eq!((failure.code, failure.path), (FailureCode::NotFound, Some(text(&path("nowhere")))));
}

#[tokio::test]
async fn exclusions_prune() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    for path in ["a/node_modules/x", "a/keep", "b.pyc", "c/b.pyc", "c/d"] {
        fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
        fs::write(dir.path().join(path), "").unwrap();
    }
    let exclude = vec!["node_modules".into(), "*.pyc".into()];
    let tar = pack(&rig, PackSpec { exclude, ..pack_of(dir.path()) }).await;
    let target = dir.path().join("target");
    unpack(&rig, &target, &tar).await.unwrap();
    let left: Vec<_> = picture(&target).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(left, ["a", "a/keep", "c", "c/d"]);
}

#[tokio::test]
async fn files_that_change_do_not_break_the_stream() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    // Larger than all the windows, so that the guest is in the middle of it when it changes.
    let (shrinks, grows) = (dir.path().join("a-shrinks"), dir.path().join("b-grows"));
    fs::write(&shrinks, vec![b'x'; 8 << 20]).unwrap();
    fs::write(&grows, "x").unwrap();
    fs::write(dir.path().join("c-last"), "last").unwrap();
    let mut pack = rig.guest.pack(pack_of(dir.path())).await.unwrap();
    let mut bytes = vec![0; 4096];
    pack.read_exact(&mut bytes).await.unwrap();
    fs::File::options().write(true).open(&shrinks).unwrap().set_len(1 << 20).unwrap();
    pack.read_to_end(&mut bytes).await.unwrap();
    let report = pack.report().unwrap();
    assert_eq!((report.changed_count, report.changed[0].path.as_str()), (1, "a-shrinks"));
    let target = dir.path().join("target");
    unpack(&rig, &target, &bytes).await.unwrap();
    let got = fs::read(target.join("a-shrinks")).unwrap();
    assert_eq!(got.len(), 8 << 20);
    assert!(got[..1 << 20].iter().all(|byte| *byte == b'x') && got.ends_with(&[0; 1 << 20]));
    assert_eq!(fs::read(target.join("c-last")).unwrap(), b"last");
}

#[tokio::test]
async fn dropped_transfers_stop_and_others_go_on() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    fs::write(dir.path().join("big"), vec![b'x'; 16 << 20]).unwrap();
    for _ in 0..20 {
        drop(rig.guest.pack(pack_of(dir.path())).await.unwrap());
        let (mut never, end) = tokio::io::duplex(4096);
        let target = dir.path().join("target");
        let unpack = tokio::spawn({
            let (guest, spec) = (rig.guest.clone(), unpack_to(&target));
            async move { guest.unpack(spec, end).await }
        });
        never.write_all(&[0; 100]).await.unwrap();
        unpack.abort();
        assert!(unpack.await.unwrap_err().is_cancelled());
    }
    let threads = || fs::read_dir(format!("/proc/{}/task", rig.process.id())).unwrap().count();
    until("threads of dropped transfers stay", || threads() == 1).await;
    assert_eq!(pack(&rig, pack_of(dir.path())).await.len() % 512, 0);
}

#[tokio::test]
async fn dropped_watches_stop_although_nothing_changes() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    for _ in 0..10 {
        let watch = berth_wire::Watch { path: text(dir.path()), recursive: true };
        let mut changes = rig.guest.watch(watch).await.unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        changes.next().await.unwrap().unwrap();
    }
    let threads = || fs::read_dir(format!("/proc/{}/task", rig.process.id())).unwrap().count();
    until("threads of dropped watches stay", || threads() == 1).await;
}

#[tokio::test]
async fn a_lost_guest_is_no_end_of_an_archive() {
    let (mut rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    fs::write(dir.path().join("big"), vec![b'x'; 16 << 20]).unwrap();
    let mut pack = rig.guest.pack(pack_of(dir.path())).await.unwrap();
    rig.process.kill().unwrap();
    let error = pack.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(matches!(error.get_ref().unwrap().downcast_ref(), Some(Error::Gone)), "{error:?}");
    let result = unpack(&rig, dir.path(), &[]).await;
    assert!(matches!(result, Err(Error::Gone)), "{result:?}");
}

#[tokio::test]
async fn small_operations() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    let path = |name: &str| dir.path().join(name);
    let stat = async |name: &str, user: Option<&str>| {
        let request = FsRequest::Stat { path: text(&path(name)), user: user.map(str::to_owned) };
        rig.guest.fs(request).await.unwrap().stat
    };
    let made = FsRequest::Mkdir {
        paths: vec![text(&path("a/b")), text(&path("c"))],
        mode: Some(0o777),
        owner: None,
    };
    rig.guest.fs(made.clone()).await.unwrap();
    rig.guest.fs(made).await.unwrap();
    let found = stat("a/b", None).await.unwrap();
    assert_eq!((found.kind, found.mode), (FileKind::Dir, 0o777));
    assert_eq!(stat("a", None).await.unwrap().mode, 0o755);
    assert_eq!(stat("nowhere", None).await, None);
    fs::write(path("a/file"), "text").unwrap();
    symlink("file", path("a/link")).unwrap();
    let found = stat("a/link", None).await.unwrap();
    assert_eq!((found.kind, found.size), (FileKind::File, 4));
    let not_a_dir = FsRequest::Mkdir { paths: vec![text(&path("a/file/x"))], mode: None, owner: None };
    assert_eq!(refusal(rig.guest.fs(not_a_dir).await).code, FailureCode::NotADirectory);

    if !needs_root() {
        rig.guest.make_dir(&text(&path("owned/by")), Some("daemon")).await.unwrap();
        assert_eq!(stat("owned/by", None).await.unwrap().uid, 1);
        assert_eq!(stat("owned", None).await.unwrap().uid, 0);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(stat("a/file", Some("daemon")).await, None);
        assert!(stat("a/file", Some("root")).await.is_some());
        assert!(stat("a/file", None).await.is_some(), "a look as somebody else leaves no trace");
    }

    let mut deep: PathBuf = path("deep");
    fs::create_dir(&deep).unwrap();
    for _ in 0..300 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("f"), "").unwrap();
        fs::create_dir(deep.join("e")).unwrap();
    }
    symlink(path("a"), path("deep/link")).unwrap();
    symlink(path("a"), path("replaced")).unwrap();
    let inode = path("deep").metadata().unwrap().ino();
    let paths = ["deep", "replaced", "a/link", "new/one"].map(|name| text(&path(name))).to_vec();
    rig.guest.fs(FsRequest::Empty { paths, mode: Some(0o700) }).await.unwrap();
    for name in ["deep", "replaced", "a/link", "new/one"] {
        assert!(path(name).symlink_metadata().unwrap().is_dir(), "{name}");
        assert_eq!(fs::read_dir(path(name)).unwrap().count(), 0, "{name}");
        assert_eq!(path(name).metadata().unwrap().mode() & 0o7777, 0o700);
    }
    assert_eq!(path("deep").metadata().unwrap().ino(), inode);
    assert_eq!(fs::read(path("a/file")).unwrap(), b"text", "nothing behind a symlink is touched");

    let paths = ["a", "deep", "nowhere", "nowhere/x"].map(|name| text(&path(name))).to_vec();
    rig.guest.fs(FsRequest::Remove { paths }).await.unwrap();
    assert!(!path("a").exists() && !path("deep").exists());
    let root = FsRequest::Remove { paths: vec!["/".into()] };
    assert_eq!(refusal(rig.guest.fs(root).await).code, FailureCode::Refused);
}

#[tokio::test]
async fn a_wide_tree_is_emptied_in_one_go() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    for outer in 0..300 {
        let outer = dir.path().join(format!("top/{outer}"));
        fs::create_dir_all(&outer).unwrap();
        for inner in 0..20 {
            fs::write(outer.join(format!("{inner}")), "").unwrap();
        }
    }
    let top = text(&dir.path().join("top"));
    rig.guest.fs(FsRequest::Empty { paths: vec![top.clone()], mode: None }).await.unwrap();
    assert_eq!(fs::read_dir(top).unwrap().count(), 0);
}

#[tokio::test]
async fn globs() {
    let (rig, dir) = (Rig::new().await, TempDir::new().unwrap());
    for name in ["src/a.txt", "src/b.txt", "src/.hidden.txt", "src/c.md", "lib/a.txt", "x[1]"] {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), "").unwrap();
    }
    let glob = async |pattern: &str| {
        let found = rig.guest.glob(&format!("{}/{pattern}", text(dir.path()))).await.unwrap();
        let top = format!("{}/", text(dir.path()));
        found.into_iter().map(|path| path.strip_prefix(&top).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(glob("src/*.txt").await, ["src/.hidden.txt", "src/a.txt", "src/b.txt"]);
    assert_eq!(glob("*/a.txt").await, ["lib/a.txt", "src/a.txt"]);
    assert_eq!(glob("src/a.txt").await, ["src/a.txt"]);
    assert_eq!(glob("src/nothing").await, [""; 0]);
    assert_eq!(glob("src/?.[^t]*").await, ["src/c.md"]);
    assert_eq!(glob(r"x\[1\]").await, ["x[1]"]);
    assert_eq!(refusal(rig.guest.glob("/[").await).code, FailureCode::Invalid);
    assert_eq!(refusal(rig.guest.glob("relative/*").await).code, FailureCode::Invalid);
    // More than a window's worth of names.
    let many = dir.path().join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..3000 {
        fs::write(many.join(format!("{n:0>200}")), "").unwrap();
    }
    assert_eq!(glob("many/*").await.len(), 3000);
}
