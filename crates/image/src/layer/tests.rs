//! Unpacking and packing with real files: needs root, as the daemon has it.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::pack::{PackError, Tidy, pack, pack_new, packed_length};
use super::tar_reader::{TarError, TarReader};
use super::unpack::{UnpackError, unpack};
use super::{OPAQUE_XATTR, survey};
use crate::digest::{Digest, Hashing};

/// A tar by hand, so that it may be as wrong as it likes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(
        mut self,
        kind: u8,
        name: &[u8],
        link: &[u8],
        edit: impl FnOnce(&mut tar::Header),
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.raw(b'0', name.as_bytes(), b"", |_| {}, data.as_bytes())
    }

    fn dir(self, name: &str) -> Self {
        self.raw(b'5', name.as_bytes(), b"", |h| h.set_mode(0o755), b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(b'2', name.as_bytes(), target.as_bytes(), |_| {}, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.raw(b'1', name.as_bytes(), target.as_bytes(), |_| {}, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", |_| {}, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

struct Unpacked {
    _tmp: tempfile::TempDir,
    root: PathBuf,
}

impl Unpacked {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        super::walk::walk::<super::walk::WalkError>(&self.root, &mut |node| {
            names.push(String::from_utf8_lossy(node.path).into_owned());
            Ok(())
        })
        .unwrap();
        names
    }
}

fn try_unpack(bytes: &[u8]) -> Result<Unpacked, UnpackError> {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("layer");
    fs::create_dir(&root).unwrap();
    let result = unpack(&mut TarReader::new(bytes), &root);
    // Whatever the archive says, nothing may appear beside the layer.
    let beside: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["layer"]);
    result.map(|()| Unpacked { _tmp: tmp, root })
}

fn unpacked(tar: Tar) -> Unpacked {
    try_unpack(&tar.end()).unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)))
}

fn packed(root: &Path) -> Vec<u8> {
    pack(root, Tidy::No, Vec::new()).unwrap()
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0u8; 256];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..n].to_vec())
}

fn is_whiteout(path: &Path) -> bool {
    let meta = path.symlink_metadata().unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn everything_a_layer_may_hold() {
    let long = "n/".repeat(120) + "end";
    let tree = unpacked(
        Tar::default()
            .raw(b'5', b"./", b"", |h| h.set_mode(0o711), b"")
            .raw(
                b'0',
                b"bin/su",
                b"",
                |h| {
                    h.set_mode(0o4755);
                    h.set_uid(3);
                    h.set_gid(4)
                },
                b"su",
            )
            .hard_link("bin/su2", "bin/su")
            .symlink("lib", "/usr/lib")
            .dir("usr/lib/")
            .file("lib/through-the-link", "x")
            .raw(
                b'3',
                b"dev/null",
                b"",
                |h| {
                    h.set_device_major(1).unwrap();
                    h.set_device_minor(3).unwrap()
                },
                b"",
            )
            .raw(b'6', b"fifo", b"", |h| h.set_mode(0o622), b"")
            .raw(b'0', b"\xff\xfe", b"", |_| {}, b"not utf-8")
            .pax(&[
                ("path", long.as_bytes()),
                ("uid", b"100000"),
                ("mtime", b"1.5"),
                ("SCHILY.xattr.user.k", b"a\nb=\n"),
            ])
            .file("short", "long"),
    );
    let meta = |name: &str| tree.path(name).symlink_metadata().unwrap();
    assert_eq!(meta("").mode() & 0o7777, 0o711);
    assert_eq!((meta("bin/su").mode() & 0o7777, meta("bin/su").uid(), meta("bin/su").gid()), (0o4755, 3, 4));
    assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
    assert_eq!(meta("bin/su").mtime(), 1_000_000_000);
    assert_eq!((meta("bin").mode() & 0o7777, meta("bin").mtime()), (0o755, 0));
    assert_eq!(meta("usr/lib").mtime(), 1_000_000_000, "its entries came after it");
    assert!(tree.path("usr/lib/through-the-link").exists(), "an absolute symlink leads to the layer's root");
    assert_eq!(meta("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!(meta("fifo").mode() & 0o7777, 0o622);
    assert!(tree.root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")).exists());
    assert_eq!((meta(&long).uid(), meta(&long).mtime_nsec()), (100_000, 500_000_000));
    assert_eq!(xattr(&tree.path(&long), "user.k").unwrap(), b"a\nb=\n");
    let facts = survey(&tree.root).unwrap();
    assert!(facts.privileged_files);
    assert_eq!(facts.size_bytes, 2 + 1 + 9 + 4);
    assert_eq!(facts.highest_id, 100_000);
}

#[test]
fn capabilities_survive_with_any_bytes() {
    // CAP_NET_RAW and CAP_NET_BIND_SERVICE, with a newline byte among the permitted ones.
    let capability = [1, 0, 0, 2, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tree = unpacked(Tar::default().pax(&[("SCHILY.xattr.security.capability", &capability)]).raw(
        b'0',
        b"ping",
        b"",
        |h| h.set_uid(7),
        b"x",
    ));
    assert_eq!(xattr(&tree.path("ping"), "security.capability").unwrap(), capability);
    assert!(survey(&tree.root).unwrap().privileged_files);
    let again = try_unpack(&packed(&tree.root)).unwrap();
    assert_eq!(xattr(&again.path("ping"), "security.capability").unwrap(), capability);
}

#[test]
fn a_size_that_nothing_has_is_only_cut_off() {
    let bytes = Tar::default().pax(&[("size", b"18446744073709551615")]).file("f", "x").end();
    assert!(try_unpack(&bytes).is_err());
    let skipped =
        Tar::default().pax(&[("size", b"18446744073709551615")]).raw(b'2', b"l", b"x", |_| (), b"").end();
    drop(try_unpack(&skipped));
}

#[test]
fn deletions() {
    let tree = unpacked(
        Tar::default()
            .file("etc/.wh.passwd", "")
            .dir("opaque/")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/new", "")
            // A name deleted and made again in one layer hides what is below, in either order.
            .file(".wh.first", "")
            .dir("first/")
            .dir("second/")
            .file(".wh.second", "")
            .file(".wh.implied", "")
            .file("implied/file", "")
            .file("stays", "")
            .file(".wh.stays", ""),
    );
    assert!(is_whiteout(&tree.path("etc/passwd")));
    for dir in ["opaque", "first", "second", "implied"] {
        assert_eq!(xattr(&tree.path(dir), OPAQUE_XATTR).as_deref(), Some(&b"y"[..]), "{dir}");
    }
    assert!(tree.path("stays").is_file());
    assert!(!tree.names().iter().any(|n| n.contains(".wh.")));
    let bytes = packed(&tree.root);
    let again = try_unpack(&bytes).unwrap();
    assert_eq!(again.names(), tree.names());
    assert_eq!(packed(&again.root), bytes);
}

#[test]
fn later_members_replace_earlier_ones() {
    let tree = unpacked(
        Tar::default()
            .file("a", "old")
            .file("a", "new")
            .file("dir-to-file/x", "")
            .file("dir-to-file", "now a file")
            .file("file-to-dir", "")
            .dir("file-to-dir/")
            .symlink("link", "/etc")
            .dir("link/")
            .file("link/inside", "")
            .file("self", "x")
            .hard_link("self", "./self"),
    );
    assert_eq!(fs::read_to_string(tree.path("a")).unwrap(), "new");
    assert!(tree.path("dir-to-file").is_file());
    assert!(tree.path("file-to-dir").is_dir());
    assert!(tree.path("link").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_to_string(tree.path("self")).unwrap(), "x");
}

#[test]
fn hostile_names_stay_inside() {
    let canary = tempfile::tempdir().unwrap();
    let out = canary.path().to_str().unwrap();
    for name in ["../up", "a/../../../b", "/../x"] {
        let climbs = try_unpack(&Tar::default().file(name, "").end());
        assert!(matches!(climbs, Err(UnpackError::Refused { .. })), "{name}");
    }
    let tree = unpacked(
        Tar::default()
            .file("/absolute", "")
            .symlink("escape", out)
            .file("escape2/../c", "")
            .symlink("up", "../../../../../../.."),
    );
    assert_eq!(tree.names(), ["", "absolute", "c", "escape", "up"].map(str::to_owned));
    // Through the symlinks: one leads to a path that the layer does not have, the other to its own root.
    let through = Tar::default().symlink("escape", out).file("escape/x", "");
    assert!(matches!(try_unpack(&through.end()), Err(UnpackError::Refused { .. })));
    let through = unpacked(Tar::default().symlink("up", "../../..").file("up/x", ""));
    assert!(through.path("x").is_file());
    // By a hard link, to a file of the host's.
    fs::write(canary.path().join("secret"), "s").unwrap();
    for target in
        [format!("{out}/secret"), format!("../../../../../../..{out}/secret"), String::new(), "/".into()]
    {
        let error = try_unpack(&Tar::default().hard_link("h", &target).end()).err().unwrap();
        assert!(matches!(error, UnpackError::HardLink { .. }), "{target}: {error}");
    }
    let by_link = Tar::default().symlink("d", out).hard_link("h", "d/secret");
    assert!(matches!(try_unpack(&by_link.end()), Err(UnpackError::HardLink { .. })));
    assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 1);
}

#[test]
fn what_overlayfs_would_misread_is_refused() {
    let overlay = |name: &'static str| Tar::default().pax(&[(name, b"y".as_slice())]).dir("d/");
    for (tar, part) in [
        (
            Tar::default().raw(
                b'3',
                b"d",
                b"",
                |h| {
                    h.set_device_major(0).unwrap();
                    h.set_device_minor(0).unwrap()
                },
                b"",
            ),
            "0:0",
        ),
        (overlay("SCHILY.xattr.trusted.overlay.redirect"), "overlayfs itself"),
        (overlay("SCHILY.xattr.trusted.overlay.opaque"), "overlayfs itself"),
        (Tar::default().file(".wh..wh..opq", ""), "root"),
        (Tar::default().file(".wh..wh.plnk", ""), "AUFS"),
        (Tar::default().file("a/.wh.", ""), "no name"),
        (Tar::default().file("a/.wh..", ""), "no name"),
        (Tar::default().file("a/.wh...", ""), "no name"),
        (Tar::default().file("a", "").file("a/b", ""), "stands where"),
        (Tar::default().pax(&[("uid", b"4294967295")]).file("a", ""), "owner"),
        (Tar::default().pax(&[("path", b"a\0b")]).file("a", ""), "zero byte"),
    ] {
        let error = try_unpack(&tar.end()).err().expect(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn broken_tars_say_where() {
    let whole = Tar::default().file("a-file", &"x".repeat(2000)).end();
    let error = try_unpack(&whole[..1000]).err().unwrap();
    assert!(
        matches!(&error, UnpackError::Tar(TarError::Truncated { member }) if member == "a-file"),
        "{error}"
    );
    let mut bad = whole.clone();
    bad[3] ^= 1;
    assert!(matches!(try_unpack(&bad), Err(UnpackError::Tar(TarError::Header { offset: 0, .. }))));
    assert!(matches!(try_unpack(&[b'x'; 600]), Err(UnpackError::Tar(TarError::Header { .. }))));
    let multi = Tar::default().raw(b'M', b"m", b"", |_| {}, b"").end();
    assert!(matches!(try_unpack(&multi), Err(UnpackError::Tar(TarError::Kind { kind: 'M', .. }))));
}

#[test]
fn sparse_files_of_every_format() {
    let Ok(version) = std::process::Command::new("tar").arg("--version").output() else {
        println!("SKIP: no tar program to write sparse archives with");
        return;
    };
    if !String::from_utf8_lossy(&version.stdout).contains("GNU tar") {
        println!("SKIP: the tar program is not GNU's, which alone writes sparse archives");
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let file = fs::File::create(tmp.path().join("s")).unwrap();
    for block in [1u64, 40, 41, 99, 400, 777] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[block as u8; 5000], block * 65536).unwrap();
    }
    file.set_len(100_000_000).unwrap();
    let wanted = Digest::of(&fs::read(tmp.path().join("s")).unwrap());
    for format in ["gnu", "0.0", "0.1", "1.0"] {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-C").arg(tmp.path()).args(["-c", "--sparse"]);
        match format {
            "gnu" => tar.arg("--format=gnu"),
            version => tar.args(["--format=pax", &format!("--sparse-version={version}")]),
        };
        let output = tar.arg("s").output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 1_000_000, "the archive itself is sparse");
        let tree = try_unpack(&output.stdout).unwrap_or_else(|e| panic!("{format}: {e}"));
        assert_eq!(tree.names(), ["", "s"], "{format}");
        assert_eq!(Digest::of(&fs::read(tree.path("s")).unwrap()), wanted, "{format}");
        assert!(tree.path("s").metadata().unwrap().blocks() < 2000, "{format}");
    }
}

#[test]
fn packing_an_upper_directory_tidies_it() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("upper");
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("d/socket")).unwrap();
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("d", "trusted.overlay.impure", b"y");
    set("d/f", "trusted.overlay.origin", b"whatever");
    set("", "trusted.overlay.opaque", b"y");
    let untidied = packed(&root);
    let tidied = pack(&root, Tidy::Yes, Vec::new()).unwrap();
    assert_eq!(untidied.len(), tidied.len());
    assert!(!root.join("d/socket").exists());
    for (name, key) in
        [("d", "trusted.overlay.impure"), ("d/f", "trusted.overlay.origin"), ("", "trusted.overlay.opaque")]
    {
        assert_eq!(xattr(&root.join(name), key), None);
    }
    set("d", "trusted.overlay.redirect", b"/elsewhere");
    assert!(matches!(pack(&root, Tidy::Yes, Vec::new()), Err(PackError::Inexpressible { .. })));
    rustix::fs::lremovexattr(root.join("d"), "trusted.overlay.redirect").unwrap();
    fs::write(root.join("d/.wh.f"), "").unwrap();
    assert!(matches!(pack(&root, Tidy::Yes, Vec::new()), Err(PackError::Inexpressible { .. })));
}

#[test]
fn other_tars_read_the_canonical_one() {
    let tree = unpacked(
        Tar::default()
            .pax(&[("path", "l/".repeat(80).as_bytes())])
            .dir("x/")
            .file("a", "hello")
            .hard_link("b", "a")
            .pax(&[("uid", b"3000000"), ("mtime", b"-5")])
            .file("c", "")
            .symlink("s", "a"),
    );
    let bytes = packed(&tree.root);
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: Vec<_> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
    assert_eq!(names.len(), tree.names().len());
    assert_eq!(names[0], Path::new("./"));
    let again = try_unpack(&bytes).unwrap();
    assert_eq!(again.path("c").metadata().unwrap().uid(), 3_000_000);
    assert_eq!(again.path("c").metadata().unwrap().mtime(), -5);
}

#[test]
fn layers_stack_as_overlayfs_mounts_them() {
    let lower =
        unpacked(Tar::default().file("gone", "").file("d/old", "").file("d2/kept", "").file("f", "1"));
    let upper = unpacked(
        Tar::default()
            .file(".wh.gone", "")
            .dir("d/")
            .file("d/.wh..wh..opq", "")
            .file("d/new", "")
            .dir("d2/")
            .file("f", "2"),
    );
    let merged = tempfile::tempdir().unwrap();
    let options = format!("lowerdir={}:{}", upper.root.display(), lower.root.display());
    let mounted = rustix::mount::mount(
        "overlay",
        merged.path(),
        "overlay",
        rustix::mount::MountFlags::RDONLY,
        &CString::new(options).unwrap()[..],
    );
    if let Err(errno) = mounted {
        println!("SKIP: no overlay mounts here: {errno}");
        return;
    }
    let list = |dir: &str| {
        let mut names: Vec<_> = fs::read_dir(merged.path().join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let seen = (list(""), list("d"), list("d2"), fs::read_to_string(merged.path().join("f")).unwrap());
    rustix::mount::unmount(merged.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(seen.0, ["d", "d2", "f"]);
    assert_eq!(seen.1, ["new"]);
    assert_eq!(seen.2, ["kept"]);
    assert_eq!(seen.3, "2");
}

/// One file of a generated tree.
#[derive(Clone, Debug)]
enum Made {
    File { data: Vec<u8>, mode: u32, sparse: bool },
    Dir { opaque: bool },
    Symlink(String),
    Deletion,
    LinkTo(usize),
}

fn made() -> impl Strategy<Value = Made> {
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..2000), 0u32..0o10000, any::<bool>())
            .prop_map(|(data, mode, sparse)| Made::File { data, mode, sparse }),
        3 => any::<bool>().prop_map(|opaque| Made::Dir { opaque }),
        2 => "[a-z/.]{1,150}".prop_map(Made::Symlink),
        2 => Just(Made::Deletion),
        1 => any::<usize>().prop_map(Made::LinkTo),
    ]
}

/// Makes the files in a directory; where each goes depends on the directories made before it.
fn make_tree(root: &Path, files: &[(Vec<u8>, usize, Made)]) {
    let mut dirs = vec![root.to_owned()];
    let mut regular: Vec<PathBuf> = Vec::new();
    for (name, place, made) in files {
        let path = dirs[place % dirs.len()].join(std::ffi::OsStr::from_bytes(name));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match made {
            Made::File { data, mode, sparse } => {
                fs::write(&path, data).unwrap();
                if *sparse {
                    fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
                }
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                regular.push(path);
            }
            Made::Dir { opaque } => {
                fs::create_dir(&path).unwrap();
                if *opaque {
                    rustix::fs::lsetxattr(&path, OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty())
                        .unwrap();
                }
                dirs.push(path);
            }
            Made::Symlink(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            Made::Deletion => rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::empty(),
                0,
            )
            .unwrap(),
            Made::LinkTo(which) if !regular.is_empty() => {
                fs::hard_link(&regular[which % regular.len()], &path).unwrap()
            }
            Made::LinkTo(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packing_what_was_unpacked_gives_the_same_digest(
        files in prop::collection::vec((prop::collection::vec(1u8..=255, 1..130), any::<usize>(), made()), 0..40),
    ) {
        let files: Vec<_> = files
            .into_iter()
            .map(|(name, place, made)| (name.into_iter().map(|b| if b == b'/' || b == b'.' { b'_' } else { b }).collect(), place, made))
            .collect();
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("made");
        fs::create_dir(&root).unwrap();
        make_tree(&root, &files);
        let (bytes, digest, _) = pack(&root, Tidy::No, Hashing::new(Vec::new())).unwrap().finish();
        let again = try_unpack(&bytes).unwrap();
        prop_assert_eq!(Digest::of(&packed(&again.root)), digest);
        let (before, mut after) = (survey(&root).unwrap(), survey(&again.root).unwrap());
        after.privileged_files = before.privileged_files;
        prop_assert_eq!(before, after);
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), valid in any::<bool>(), at in any::<usize>()) {
        if valid {
            let mut tar = Tar::default().dir("d/").file("d/f", "data").hard_link("h", "d/f").symlink("s", "d").end();
            for (i, b) in bytes.iter().take(6).enumerate() {
                let at = at.wrapping_add(i * 97) % tar.len();
                tar[at] = *b;
            }
            bytes = tar;
        }
        drop(try_unpack(&bytes));
    }
}

#[test]
fn a_file_too_long_for_a_layer_is_refused_by_name_however_little_it_takes() {
    let tmp = tempfile::tempdir().unwrap();
    if let Err(error) = fs::File::create(tmp.path().join("big")).unwrap().set_len(1 << 40) {
        println!("SKIP: no file of 1 TiB can be made here: {error}");
        return;
    }
    let error = pack(tmp.path(), Tidy::Yes, std::io::sink()).unwrap_err();
    let PackError::TooLarge { path, size, limit, .. } = &error else { panic!("{error}") };
    assert_eq!((path.as_path(), *size, *limit), (Path::new("big"), 1 << 40, 64 << 30));
    // What is in the store already is not measured anew.
    assert!(packed_length(tmp.path()).unwrap() > 1 << 40);
}

#[test]
fn holes_are_packed_as_the_zeros_that_they_read_as() {
    use std::os::unix::fs::FileExt;
    let tmp = tempfile::tempdir().unwrap();
    let (length, place) = (20 << 20, 9 << 20);
    let file = fs::File::create(tmp.path().join("f")).unwrap();
    file.set_len(length).unwrap();
    file.write_all_at(b"middle", place).unwrap();
    let sparse = packed(tmp.path());
    let mut whole = vec![0; length as usize];
    whole[place as usize..][..6].copy_from_slice(b"middle");
    assert_eq!(sparse.len() as u64, packed_length(tmp.path()).unwrap());
    // After the headers of the root and of the file.
    assert!(sparse[1024..][..whole.len()] == whole, "the bytes differ");
}

#[test]
fn packing_that_is_given_up_ends_in_the_middle_of_a_file() {
    use std::sync::atomic::{AtomicBool, Ordering};
    struct Stops<'a>(&'a AtomicBool, u64);
    impl std::io::Write for Stops<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.1 += bytes.len() as u64;
            self.0.store(self.1 > 1 << 20, Ordering::Relaxed);
            assert!(self.1 < 4 << 20, "it goes on");
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let tmp = tempfile::tempdir().unwrap();
    fs::File::create(tmp.path().join("f")).unwrap().set_len(1 << 30).unwrap();
    let given_up = AtomicBool::new(false);
    let packed = pack_new(tmp.path(), &given_up, Stops(&given_up, 0));
    assert!(matches!(packed, Err(PackError::GivenUp { .. })));
}
