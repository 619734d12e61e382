//! Round trips, and archives that mean harm.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::*;

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

async fn packed(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_dir(dir).read_to_end(&mut bytes).await.unwrap();
    bytes
}

/// One entry with a raw name, as no honest packer writes it.
fn raw(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], data: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

#[tokio::test]
async fn a_tree_survives_the_round_trip() {
    let source = TempDir::new().unwrap();
    let root = source.path();
    fs::create_dir_all(root.join("a/empty")).unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    fs::write(root.join("closed/inside"), "x").unwrap();
    fs::write(root.join("a/run.sh"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("big"), vec![7; 300_000]).unwrap();
    fs::write(root.join("none"), "").unwrap();
    let long = format!("a/{}", "n".repeat(200));
    fs::write(root.join(&long), "long").unwrap();
    symlink("run.sh", root.join("a/link")).unwrap();
    symlink(format!("../{}", "t".repeat(150)), root.join("a/dangling")).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8")), "raw").unwrap();
    chmod(&root.join("a/run.sh"), 0o751);
    chmod(&root.join("a/empty"), 0o1777);
    chmod(&root.join("closed"), 0o555);
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();

    let target = TempDir::new().unwrap();
    let out = target.path().join("made/for/it");
    assert_eq!(unpack_into(pack_dir(root), &out).await.unwrap(), Vec::<String>::new());

    assert_eq!(fs::read(out.join("big")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read(out.join("none")).unwrap(), b"");
    assert_eq!(fs::read(out.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read(out.join("closed/inside")).unwrap(), b"x");
    assert_eq!(fs::read(out.join(std::ffi::OsStr::from_bytes(b"not-\xff-utf8"))).unwrap(), b"raw");
    assert_eq!(fs::read_link(out.join("a/link")).unwrap(), Path::new("run.sh"));
    assert_eq!(fs::read_link(out.join("a/dangling")).unwrap().as_os_str().len(), 153);
    assert_eq!(mode(&out.join("a/run.sh")), 0o751);
    assert_eq!(mode(&out.join("a/empty")), 0o1777);
    assert_eq!(mode(&out.join("closed")), 0o555);
    assert!(!out.join("fifo").exists());
}

#[tokio::test]
async fn packing_is_deterministic_and_owned_by_root() {
    let source = TempDir::new().unwrap();
    for name in ["b", "a", "c/d", "c/b"] {
        let path = source.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let bytes = packed(source.path()).await;
    assert_eq!(bytes, packed(source.path()).await);
    let mut names = Vec::new();
    for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        names.push(entry.path().unwrap().display().to_string());
    }
    assert_eq!(names, ["a", "b", "c/", "c/b", "c/d"]);
}

#[tokio::test]
async fn files_that_fill_a_piece_to_its_last_byte_are_packed_like_others() {
    let dir = TempDir::new().unwrap();
    let header = 512;
    // Whatever stands before it, one of these ends where a piece does, and a header follows.
    let sizes = [256 * 1024 - header, 256 * 1024 - 2 * header, 512, 1024];
    for (number, size) in sizes.iter().cycle().take(64).enumerate() {
        fs::write(dir.path().join(format!("{number:02}")), vec![7; *size]).unwrap();
    }
    let packed = packed(dir.path()).await;
    let read: u64 =
        tar::Archive::new(packed.as_slice()).entries().unwrap().map(|entry| entry.unwrap().size()).sum();
    assert_eq!(read, sizes.iter().sum::<usize>() as u64 * 16);
}

#[tokio::test]
async fn what_cannot_be_packed_is_an_error_that_names_it() {
    let missing = Path::new("/nonexistent/berth-test");
    let error = pack_dir(missing).read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (io::ErrorKind::NotFound, "cannot pack /nonexistent/berth-test")
    );
    let error = pack_file(Path::new("/dev/null"), "null").read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn contents_merge_into_what_is_there() {
    let source = TempDir::new().unwrap();
    fs::create_dir(source.path().join("d")).unwrap();
    fs::write(source.path().join("d/new"), "new").unwrap();
    fs::write(source.path().join("same"), "after").unwrap();
    fs::write(source.path().join("was-link"), "file").unwrap();
    let target = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    fs::create_dir(target.path().join("d")).unwrap();
    fs::write(target.path().join("d/old"), "old").unwrap();
    fs::write(target.path().join("same"), "before").unwrap();
    symlink(outside.path().join("kept"), target.path().join("was-link")).unwrap();

    assert!(unpack_into(pack_dir(source.path()), target.path()).await.unwrap().is_empty());
    assert_eq!(fs::read(target.path().join("d/old")).unwrap(), b"old");
    assert_eq!(fs::read(target.path().join("d/new")).unwrap(), b"new");
    assert_eq!(fs::read(target.path().join("same")).unwrap(), b"after");
    assert_eq!(fs::read(target.path().join("was-link")).unwrap(), b"file");
    assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"kept");
}

#[tokio::test]
async fn escapes_are_refused_one_by_one() {
    let target = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    symlink(outside.path(), target.path().join("there-already")).unwrap();
    fs::create_dir(target.path().join("dir")).unwrap();

    let mut tar = Builder::new(Vec::new());
    raw(&mut tar, EntryType::Regular, b"good", b"", b"1");
    raw(&mut tar, EntryType::Regular, b"/etc/berth-test", b"", b"x");
    raw(&mut tar, EntryType::Regular, b"a/../../berth-test", b"", b"x");
    raw(&mut tar, EntryType::Regular, b"there-already/x", b"", b"x");
    raw(&mut tar, EntryType::Symlink, b"abs", b"/etc", b"");
    raw(&mut tar, EntryType::Symlink, b"up", b"../x", b"");
    raw(&mut tar, EntryType::Symlink, b"sub/up-one", b"../good", b"");
    raw(&mut tar, EntryType::Symlink, b"here", b".", b"");
    raw(&mut tar, EntryType::Symlink, b"sly", b"here/../..", b"");
    raw(&mut tar, EntryType::Regular, b"here/through", b"", b"x");
    raw(&mut tar, EntryType::Link, b"hard", b"../../etc/passwd", b"");
    raw(&mut tar, EntryType::Link, b"moved", b"sub/up-one", b"");
    raw(&mut tar, EntryType::Link, b"good-too", b"good", b"");
    raw(&mut tar, EntryType::Fifo, b"fifo", b"", b"");
    raw(&mut tar, EntryType::Regular, b"dir", b"", b"x");
    raw(&mut tar, EntryType::Directory, b"good/", b"", b"");
    raw(&mut tar, EntryType::Regular, b"good/below", b"", b"x");
    raw(&mut tar, EntryType::Regular, b"last", b"", b"2");
    let bytes = tar.into_inner().unwrap();

    let refused = unpack_into(&bytes[..], target.path()).await.unwrap();
    insta::assert_snapshot!(refused.join("\n"));
    assert_eq!(fs::read(target.path().join("good-too")).unwrap(), b"1");
    assert_eq!(fs::read(target.path().join("last")).unwrap(), b"2");
    assert_eq!(fs::read(target.path().join("sub/up-one")).unwrap(), b"1");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn set_id_bits_are_dropped() {
    let source = TempDir::new().unwrap();
    fs::write(source.path().join("su"), "").unwrap();
    chmod(&source.path().join("su"), 0o4755);
    let target = TempDir::new().unwrap();
    unpack_into(pack_dir(source.path()), target.path()).await.unwrap();
    assert_eq!(mode(&target.path().join("su")), 0o755);
}

#[tokio::test]
async fn an_archive_cut_short_is_an_error_and_leaves_no_half_file() {
    let source = TempDir::new().unwrap();
    fs::write(source.path().join("big"), vec![1; 200_000]).unwrap();
    let bytes = packed(source.path()).await;
    let target = TempDir::new().unwrap();
    let error = unpack_into(&bytes[..100_000], target.path()).await.unwrap_err();
    assert!(matches!(error, Error::Read { .. }), "{error:?}");
    assert!(!target.path().join("big").exists());
    let file = target.path().join("one");
    assert!(unpack_file(&bytes[..100_000], &file).await.is_err());
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn one_file_goes_where_it_is_told() {
    let source = TempDir::new().unwrap();
    let file = source.path().join("f");
    fs::write(&file, "data").unwrap();
    chmod(&file, 0o640);
    let target = source.path().join("g");
    fs::write(&target, "before").unwrap();
    let link = source.path().join("link");
    symlink("g", &link).unwrap();
    unpack_file(pack_file(&file, "any"), &link).await.unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"data");
    assert_eq!(mode(&target), 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    let error = unpack_file(pack_file(&file, "any"), Path::new("/dev/null")).await.unwrap_err();
    assert!(matches!(error, Error::NotAFile { .. }), "{error:?}");
    let two = packed(source.path()).await;
    let error = unpack_file(&two[..], &target).await.unwrap_err();
    assert!(matches!(error, Error::NotOneFile { .. }), "{error:?}");
    assert_eq!(fs::read(&target).unwrap(), b"data");
}

#[tokio::test]
async fn a_reader_that_goes_away_stops_the_packing() {
    let source = TempDir::new().unwrap();
    let mut file = fs::File::create(source.path().join("big")).unwrap();
    for _ in 0..64 {
        file.write_all(&[0; 1 << 16]).unwrap();
    }
    let mut tar = pack_dir(source.path());
    tar.read_exact(&mut [0; 10]).await.unwrap();
    drop(tar);
    // The runtime waits for its blocking threads at its end: this test would hang, were one left behind.
}

/// A small archive with one of most kinds of entries.
fn honest() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    raw(&mut tar, EntryType::Directory, b"d", b"", b"");
    raw(&mut tar, EntryType::Regular, b"d/f", b"", b"data");
    raw(&mut tar, EntryType::Symlink, b"l", b"d/f", b"");
    raw(&mut tar, EntryType::Link, b"h", b"d/f", b"");
    raw(&mut tar, EntryType::XHeader, b"x", b"", b"12 path=ab\n\n");
    raw(&mut tar, EntryType::Regular, b"g", b"", b"more");
    tar.into_inner().unwrap()
}

/// Unpacks below a directory of its own, beside which nothing may come to be.
fn unpack_anything(bytes: Vec<u8>) {
    let top = TempDir::new().unwrap();
    let target = top.path().join("target");
    fs::create_dir(&target).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    drop(runtime.block_on(unpack_into(io::Cursor::new(bytes), &target)));
    let beside: Vec<_> = fs::read_dir(top.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["target"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_unpacking_panic_or_leave_its_directory(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        unpack_anything(bytes);
    }

    #[test]
    fn no_change_of_an_archive_makes_unpacking_panic_or_leave_its_directory(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        mend in any::<bool>(),
    ) {
        let mut bytes = honest();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if mend {
            mend_checksums(&mut bytes);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        unpack_anything(bytes);
    }
}

/// Makes every block's checksum right, as if it were a header: else a changed header is refused for its checksum alone.
fn mend_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block.iter().all(|byte| *byte == 0) || block[257..262] != *b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
