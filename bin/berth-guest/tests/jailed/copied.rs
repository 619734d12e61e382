//! What a build copies from tree to tree, and what it is told of the rest.

use berth_jail::views::Host;
use berth_sandbox::guest::{Error, Manner, Owner, PackSpec, UnpackReport, UnpackSpec};
use tar::{Builder, EntryType, Header};
use tokio::io::AsyncReadExt;

use super::Jail;

/// `cap_net_raw+ep`, as capabilities(7) has it in a file's attribute.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ATTRIBUTES: [(&str, &[u8]); 2] =
    [("SCHILY.xattr.security.capability", &NET_RAW), ("SCHILY.xattr.user.note", b"kept")];

fn entry(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, data: &[u8]) {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o640 });
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_000_000_007);
    header.set_size(data.len() as u64);
    header.set_path(name).unwrap();
    if !link.is_empty() {
        header.set_link_name(link).unwrap();
    }
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    tar.append(&header, data).unwrap();
}

/// Of everything that has a place in a tar, but devices.
fn tree() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Directory, "d/", "", b"");
    entry(&mut tar, EntryType::Fifo, "d/fifo", "", b"");
    entry(&mut tar, EntryType::Link, "d/fifo-too", "d/fifo", b"");
    tar.append_pax_extensions(ATTRIBUTES).unwrap();
    entry(&mut tar, EntryType::Regular, "d/file", "", b"text");
    entry(&mut tar, EntryType::Link, "d/file-too", "d/file", b"");
    entry(&mut tar, EntryType::Symlink, "d/link", "nowhere", b"");
    tar.into_inner().unwrap()
}

fn unpack(jail: &Jail, path: &str, manner: Manner, tar: &[u8]) -> UnpackReport {
    let spec = UnpackSpec { path: path.to_owned(), owner: Owner::Keep, mode: None, manner };
    jail.runtime.block_on(jail.guest.unpack(spec, tar)).unwrap()
}

fn pack(jail: &Jail, path: &str) -> Result<Vec<u8>, String> {
    let spec = PackSpec { path: path.to_owned(), xattrs: true, exact: true, ..PackSpec::default() };
    jail.runtime.block_on(async {
        let mut bytes = Vec::new();
        let mut pack = jail.guest.pack(spec).await.map_err(|error| match error {
            Error::Refused(failure) => failure.to_string(),
            other => other.to_string(),
        })?;
        pack.read_to_end(&mut bytes).await.map_err(|error| error.to_string())?;
        let report = pack.report().unwrap();
        assert_eq!(
            (report.skipped_count, report.unread_count, report.changed_count),
            (0, 0, 0),
            "{report:?}"
        );
        Ok(bytes)
    })
}

/// Kind, name, mode, owner, time and attributes of each entry, and what a link names.
fn picture(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let header = entry.header().clone();
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        let device = is_device.then(|| (header.device_major().unwrap(), header.device_minor().unwrap()));
        let mut attributes: Vec<String> = entry
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(|record| {
                record.map(|record| format!("{:?}={:?}", record.key(), record.value_bytes())).unwrap()
            })
            .collect();
        attributes.sort();
        format!(
            "{:?} {:?} {} {:o} {}:{} {} {:?} {attributes:?}",
            header.entry_type(),
            device,
            entry.path().unwrap().display(),
            header.mode().unwrap() & if header.entry_type() == EntryType::Symlink { 0 } else { 0o7777 },
            header.uid().unwrap(),
            header.gid().unwrap(),
            header.mtime().unwrap(),
            entry.link_name().unwrap(),
        )
    });
    entries.collect()
}

pub(crate) fn whole(mapped: bool) {
    let Some(jail) = Jail::start(mapped, &Host::detect().unwrap()) else { return };
    let tar = tree();
    let report = unpack(&jail, "/tmp/first", Manner::Copy, &tar);
    let unsupported = report.lost.iter().all(|lost| lost.why.contains("os error 95"));
    if report.xattrs_lost > 0 && unsupported {
        println!("SKIP: attributes, which the file system here does not keep");
        return;
    }
    assert_eq!((report.entries, report.refused_count, report.skipped_count), (6, 0, 0), "{report:?}");
    assert_eq!(report.xattrs_lost, 0, "{report:?}");
    // Out and in again, which is what `COPY --from` is.
    let once = pack(&jail, "/tmp/first").unwrap();
    let report = unpack(&jail, "/tmp/second", Manner::Copy, &once);
    assert_eq!((report.entries, report.refused_count, report.xattrs_lost), (6, 0, 0), "{report:?}");
    assert_eq!(picture(&pack(&jail, "/tmp/second").unwrap()), picture(&once));
    let said = |tar: &[u8]| {
        let mut picture: Vec<String> = picture(tar);
        // An attribute is its file's, whichever of its names is told with it.
        picture.sort();
        picture
    };
    assert_eq!(said(&once), said(&tar));
    assert_eq!(jail.sh("cd /tmp/second/d; stat -c %F:%a:%h fifo; cat file-too"), "fifo:640:2\ntext");
    jail.sh("mkdir /tmp/upload");
    assert_eq!(unpack(&jail, "/tmp/upload", Manner::Upload, &tar).skipped_count, 1, "as uploads always did");
    in_the_way(&jail);
    sockets(&jail);
}

/// A directory in a file's place and a file in a directory's.
fn in_the_way(jail: &Jail) {
    let there = "mkdir -p /tmp/way/dir/full /tmp/way/to; echo old > /tmp/way/file; ln -s to /tmp/way/led; ln -s no /tmp/way/lost";
    jail.sh(there);
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Regular, "dir", "", b"new");
    entry(&mut tar, EntryType::Directory, "file/", "", b"");
    entry(&mut tar, EntryType::Regular, "file/below", "", b"new");
    entry(&mut tar, EntryType::Directory, "led/", "", b"");
    entry(&mut tar, EntryType::Regular, "led/below", "", b"new");
    entry(&mut tar, EntryType::Directory, "lost/", "", b"");
    entry(&mut tar, EntryType::Regular, "last", "", b"new");
    let tar = tar.into_inner().unwrap();
    let report = unpack(jail, "/tmp/way", Manner::Copy, &tar);
    let refused: Vec<String> = report.refused.iter().map(|n| format!("{}: {}", n.path, n.why)).collect();
    assert_eq!(
        refused,
        [
            "dir: cannot copy anything else than a directory onto the directory that is there",
            "file/: cannot copy a directory onto what is there, which is none",
            "file/below: below something that is there and is no directory",
            "lost/: cannot copy a directory onto the symlink that is there, which leads to none",
        ]
    );
    assert_eq!((report.entries, report.refused_count), (3, 4));
    assert_eq!(jail.sh("cd /tmp/way; ls dir to; cat file last"), "dir:\nfull\n\nto:\nbelow\nold\nnew");
    let report = unpack(jail, "/tmp/way", Manner::Archive, &tar);
    assert_eq!((report.entries, report.refused_count), (7, 0), "{report:?}");
    assert_eq!(jail.sh("cd /tmp/way; cat dir file/below; stat -c %F lost"), "newnewdirectory\n");
}

fn sockets(jail: &Jail) {
    let made = jail.sh("mkdir /tmp/s; /usr/bin/python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/tmp/s/door\")' 2>&1; ls /tmp/s");
    if made != "door\n" {
        println!("SKIP: no python3 to make a socket: {made}");
        return;
    }
    let refused = pack(jail, "/tmp/s").unwrap_err();
    assert!(refused.contains("door") && refused.contains("a socket, which no archive can hold"), "{refused}");
}

pub(crate) fn devices(mapped: bool) {
    let Some(jail) = Jail::start(mapped, &Host::detect().unwrap()) else { return };
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, EntryType::Char, "null", "", b"");
    entry(&mut tar, EntryType::Block, "disk", "", b"");
    entry(&mut tar, EntryType::Regular, "file", "", b"text");
    let tar = tar.into_inner().unwrap();
    for (at, manner) in [("/tmp/copied", Manner::Copy), ("/tmp/added", Manner::Archive)] {
        let report = unpack(&jail, at, manner, &tar);
        assert_eq!(jail.sh(&format!("cat {at}/file")), "text");
        if !mapped {
            assert_eq!((report.entries, report.refused_count, report.skipped_count), (3, 0, 0), "{report:?}");
            let shown = jail.sh(&format!("cd {at}; stat -c '%F %t:%T %a %u:%g %Y' null disk"));
            let rest = "1:3 640 1000:100 1000000007\n";
            assert_eq!(shown, format!("character special file {rest}block special file {rest}"));
            let mut names = picture(&pack(&jail, at).unwrap());
            names.sort();
            let mut sent = picture(&tar);
            sent.sort();
            assert_eq!(names, sent);
            continue;
        }
        assert_eq!((report.entries, report.refused_count, report.skipped_count), (1, 2, 0), "{report:?}");
        assert_eq!((report.refused[0].path.as_str(), report.refused[1].path.as_str()), ("null", "disk"));
        assert!(
            report.refused[0].why.starts_with("character device 1:3, which cannot be made"),
            "{report:?}"
        );
    }
    // What overlayfs takes for a deletion is made nowhere.
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Char);
    header.set_path("whiteout").unwrap();
    header.set_mode(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&header, &b""[..]).unwrap();
    let report = unpack(&jail, "/tmp/copied", Manner::Copy, &tar.into_inner().unwrap());
    assert_eq!((report.entries, report.refused_count), (0, 1), "{report:?}");
}
