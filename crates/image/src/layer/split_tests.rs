//! Tars come back bit for bit, however odd they are.

use std::fs;
use std::process::Command;

use proptest::prelude::*;

use super::split::{Recorder, SplitError, length, write_original};
use super::tar_reader::TarReader;
use super::unpack::{UnpackError, unpack};

struct Layer {
    tmp: tempfile::TempDir,
}

impl Layer {
    fn of(tar: &[u8]) -> Result<Self, UnpackError> {
        let tmp = tempfile::tempdir().unwrap();
        let (dir, split) = (tmp.path().join("layer"), tmp.path().join("split"));
        fs::create_dir(&dir).unwrap();
        let recorder = Recorder::create(&split, &tmp.path().join("lost")).unwrap();
        let mut reader = TarReader::recording(tar, recorder);
        unpack(&mut reader, &dir)?;
        let (mut rest, recorder) = reader.into_parts();
        let mut recorder = recorder.unwrap();
        std::io::copy(&mut rest, &mut recorder).unwrap();
        recorder.finish(&dir).unwrap();
        Ok(Self { tmp })
    }

    fn original(&self) -> Result<Vec<u8>, SplitError> {
        write_original(&self.tmp.path().join("layer"), &self.tmp.path().join("split"), Vec::new())
    }

    fn split_bytes(&self) -> Vec<u8> {
        fs::read(self.tmp.path().join("split")).unwrap()
    }
}

fn comes_back(tar: &[u8]) -> Layer {
    let layer = Layer::of(tar).unwrap();
    assert_eq!(length(&layer.tmp.path().join("split")).unwrap(), tar.len() as u64);
    assert!(layer.original().unwrap() == tar, "another tar came back");
    layer
}

/// `(kind, name, link or data)`.
fn tar(members: &[(u8, &str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        let is_link = matches!(kind, b'1' | b'2');
        if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content);
        }
        header.set_mode(0o755);
        header.set_mtime(7);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        if !is_link {
            bytes.extend_from_slice(content);
            // Padding need not be zeros.
            bytes.resize(bytes.len().next_multiple_of(512), 0xee);
        }
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

#[test]
fn a_plain_tar_comes_back_and_its_files_are_not_kept_twice() {
    let noise: Vec<u8> = (0..1_000_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let layer = comes_back(&tar(&[
        (b'5', "a/", b""),
        (b'0', "a/b", &noise),
        (b'0', "empty", b""),
        (b'2', "l", b"a/b"),
    ]));
    assert!(layer.split_bytes().len() < 2000, "{}", layer.split_bytes().len());
}

#[test]
fn what_follows_the_end_marker_comes_back() {
    let mut bytes = tar(&[(b'0', "a", b"1")]);
    bytes.extend_from_slice(&[0; 20 * 512]);
    bytes.extend_from_slice(&b"rubbish after the end".repeat(10_000));
    comes_back(&bytes);
}

#[test]
fn files_that_a_later_member_replaces_come_back() {
    let cases: &[&[(u8, &str, &[u8])]] = &[
        &[(b'0', "a", b"first"), (b'0', "a", b"second, longer")],
        &[(b'0', "a", b"first"), (b'0', "a", b""), (b'0', "a", b"third")],
        &[(b'5', "d", b""), (b'0', "d/x", b"in it"), (b'0', "d/e/y", b"deeper"), (b'0', "d", b"a file now")],
        &[(b'0', "d", b"a file"), (b'5', "d", b""), (b'0', "d/x", b"below")],
        // Through a link that is a directory later: the file stays where the link led.
        &[
            (b'5', "real", b""),
            (b'2', "via", b"real"),
            (b'0', "via/x", b"there"),
            (b'0', "via", b"f"),
            (b'0', "via", b"g"),
        ],
        // Its other name still leads to what was replaced.
        &[(b'0', "a", b"content"), (b'1', "b", b"a"), (b'0', "a", b"other")],
        &[(b'0', "a", b"content"), (b'0', "b", b"other"), (b'1', "a", b"b")],
        // Data of members that become no file.
        &[(b'0', ".wh.gone", b"data of a deletion"), (b'0', "gone", b"and it is back")],
        &[(b'0', "a", b"x"), (b'2', "a", b"elsewhere"), (b'0', "b", b"y")],
    ];
    for case in cases {
        comes_back(&tar(case));
    }
}

#[test]
fn tars_of_other_programs_come_back() {
    let tmp = tempfile::tempdir().unwrap();
    let root = tmp.path().join("tree");
    fs::create_dir_all(root.join("n".repeat(120))).unwrap();
    fs::write(root.join("n".repeat(120)).join("m".repeat(150)), "long").unwrap();
    fs::write(root.join("small"), "x").unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(9 << 20).unwrap();
    for at in [0u64, 1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", at).unwrap();
    }
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse"],
        &["--format=v7"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
    ] {
        let out = Command::new("tar").args(format).arg("-C").arg(&root).arg("-cf-").arg(".").output();
        let Ok(out) = out else {
            println!("SKIP: no tar on this machine");
            return;
        };
        // The oldest format has no place for the long names, and leaves them out.
        assert!(out.status.success() || format.contains(&"--format=v7"), "{format:?}");
        comes_back(&out.stdout);
    }
}

#[test]
fn a_changed_file_or_record_gives_an_error_or_another_tar() {
    let bytes = tar(&[(b'0', "a", b"content"), (b'0', "b", b"more")]);
    let layer = comes_back(&bytes);
    fs::write(layer.tmp.path().join("layer/a"), "CONTENT").unwrap();
    assert!(layer.original().unwrap() != bytes);
    fs::write(layer.tmp.path().join("layer/a"), "short").unwrap();
    assert!(matches!(layer.original(), Err(SplitError::File { .. })));
    fs::remove_file(layer.tmp.path().join("layer/a")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", layer.tmp.path().join("layer/a")).unwrap();
    assert!(matches!(layer.original(), Err(SplitError::File { .. })), "a link is not followed");
    let good = layer.split_bytes();
    fs::remove_file(layer.tmp.path().join("layer/a")).unwrap();
    fs::write(layer.tmp.path().join("layer/a"), "content").unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(layer.tmp.path().join("split"), &bad).unwrap();
        let back = layer.original();
        // A bit that means nothing may differ; what comes back may not.
        assert!(
            back.is_err() || at < 32 && back.is_ok_and(|back| back == bytes),
            "byte {at} of {}",
            good.len()
        );
        fs::write(layer.tmp.path().join("split"), &good[..at]).unwrap();
        assert!(layer.original().is_err(), "cut off at {at} of {} unnoticed", good.len());
    }
}

fn member() -> impl Strategy<Value = (u8, String, Vec<u8>)> {
    let name = prop::sample::select(vec![
        "a", "b", "c", "a/x", "b/x", "c/x", "a/x/y", "b/x/y", ".wh.a", "a/.wh.x", "l/x",
    ]);
    let kind = prop::sample::select(vec![b'0', b'0', b'0', b'5', b'2', b'1']);
    let link = prop::sample::select(vec!["a", "b", "a/x", "b/x", "c"]);
    let data = prop::collection::vec(any::<u8>(), 0..1500);
    (kind, name, link, data).prop_map(|(kind, name, link, data)| {
        let content = match kind {
            b'1' | b'2' => link.as_bytes().to_vec(),
            b'5' => Vec::new(),
            _ => data,
        };
        (kind, name.to_owned(), content)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_can_be_unpacked_comes_back(members in prop::collection::vec(member(), 0..14)) {
        let members: Vec<(u8, &str, &[u8])> =
            members.iter().map(|(kind, name, content)| (*kind, name.as_str(), content.as_slice())).collect();
        let bytes = tar(&members);
        if let Ok(layer) = Layer::of(&bytes) {
            prop_assert!(layer.original().unwrap() == bytes);
        }
    }
}
