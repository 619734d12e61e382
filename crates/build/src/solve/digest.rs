//! What a tar holds, as a digest: paths, types, modes, owners, link targets, extended attributes and bytes, and no times.

use std::io::{self, Read};

use tokio::runtime::Handle;
use tokio_util::io::SyncIoBridge;

use super::edit::{link_of, name_of};
use crate::key::{Digest, Hasher};
use crate::runner::{RunnerError, Tar};

/// Begins the names of the extended headers that hold extended attributes.
const XATTRS: [&str; 2] = ["SCHILY.xattr.", "LIBARCHIVE.xattr."];

/// Digest of what a tar holds, entry by entry in its own order.
pub(super) async fn of_tar(tar: Tar) -> Result<Digest, RunnerError> {
    let handle = Handle::current();
    let read = tokio::task::spawn_blocking(move || of_reader(SyncIoBridge::new_with_handle(tar, handle)));
    let message = "cannot read the files of a stage".to_owned();
    match read.await.map_err(io::Error::other) {
        Ok(Ok(digest)) => Ok(digest),
        Ok(Err(error)) | Err(error) => {
            Err(RunnerError::Infrastructure { message, source: Some(error.into()) })
        }
    }
}

fn of_reader(tar: impl Read) -> io::Result<Digest> {
    let mut key = Hasher::new("berth files 1");
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        one(&mut key, entry?)?;
    }
    // Whoever writes it is to come to an end.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(key.finish())
}

fn one<R: Read>(key: &mut Hasher, mut entry: tar::Entry<'_, R>) -> io::Result<()> {
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Continuous | tar::EntryType::GNUSparse => tar::EntryType::Regular,
        kind => kind,
    };
    let device = match kind {
        tar::EntryType::Block | tar::EntryType::Char => (header.device_major()?, header.device_minor()?),
        _ => (None, None),
    };
    // Symbolic links have no permissions of their own.
    let mode = if kind == tar::EntryType::Symlink { 0 } else { header.mode()? & 0o7777 };
    let about = format!("{mode:o} {} {} {device:?}", header.uid()?, header.gid()?);
    let target = match kind {
        tar::EntryType::Link => link_of(&entry)?.into_os_string().into_encoded_bytes(),
        tar::EntryType::Symlink => entry.link_name_bytes().unwrap_or_default().into_owned(),
        _ => Vec::new(),
    };
    key.field(name_of(&entry).into_os_string().into_encoded_bytes());
    key.field([kind.as_byte()]).field(about).field(target);
    let xattrs = xattrs(&mut entry)?;
    key.field(xattrs.len().to_string());
    for (name, value) in xattrs {
        key.field(name).field(value);
    }
    let mut counted = Counted { read: 0, inner: &mut entry };
    key.field(Hasher::of_reader(&mut counted)?.to_string());
    // A tar that breaks off within a file says no more than this.
    match counted.read == entry.size() {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Counts bytes.
struct Counted<R> {
    read: u64,
    inner: R,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(String, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for extension in extensions {
        let extension = extension?;
        // A name that is not UTF-8 is told by what of it is.
        let name = String::from_utf8_lossy(extension.key_bytes()).into_owned();
        if XATTRS.iter().any(|prefix| name.starts_with(prefix)) {
            found.push((name, extension.value_bytes().to_vec()));
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct File<'a> {
        path: &'a str,
        kind: tar::EntryType,
        mode: u32,
        owner: u64,
        mtime: u64,
        xattr: Option<&'a str>,
        content: &'a str,
    }

    const FILE: File<'static> = File {
        path: "a",
        kind: tar::EntryType::Regular,
        mode: 0o644,
        owner: 0,
        mtime: 1,
        xattr: None,
        content: "text",
    };

    fn digest(files: &[File<'_>]) -> Digest {
        let mut builder = tar::Builder::new(Vec::new());
        for file in files {
            if let Some(value) = file.xattr {
                builder.append_pax_extensions([("SCHILY.xattr.user.x", value.as_bytes())]).unwrap();
            }
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(file.kind);
            header.set_mode(file.mode);
            header.set_uid(file.owner);
            header.set_gid(0);
            header.set_mtime(file.mtime);
            if file.kind == tar::EntryType::Symlink || file.kind == tar::EntryType::Link {
                header.set_size(0);
                builder.append_link(&mut header, file.path, file.content).unwrap();
            } else {
                header.set_size(file.content.len() as u64);
                builder.append_data(&mut header, file.path, file.content.as_bytes()).unwrap();
            }
        }
        of_reader(&builder.into_inner().unwrap()[..]).unwrap()
    }

    #[test]
    fn times_make_no_other_digest_and_all_else_does() {
        assert_eq!(digest(&[FILE]), digest(&[File { mtime: 99, ..FILE }]));
        assert_eq!(digest(&[File { path: "./a", ..FILE }]), digest(&[FILE]));
        let link = |kind, content| File { kind, content, path: "l", ..FILE };
        let (symlink, hard) = (tar::EntryType::Symlink, tar::EntryType::Link);
        let mut all = vec![
            digest(&[]),
            digest(&[FILE]),
            digest(&[FILE, FILE]),
            digest(&[File { path: "b", ..FILE }]),
            digest(&[File { mode: 0o755, ..FILE }]),
            digest(&[File { owner: 7, ..FILE }]),
            digest(&[File { xattr: Some("1"), ..FILE }]),
            digest(&[File { xattr: Some("2"), ..FILE }]),
            digest(&[File { content: "texT", ..FILE }]),
            digest(&[FILE, link(symlink, "a")]),
            digest(&[FILE, link(symlink, "b")]),
            digest(&[FILE, link(hard, "a")]),
        ];
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_tar_that_breaks_off_has_no_digest() {
        let mut header = tar::Header::new_gnu();
        header.set_path("a").unwrap();
        header.set_size(1000);
        header.set_cksum();
        assert!(of_reader(&[header.as_bytes().as_slice(), b"short"].concat()[..]).is_err());
    }
}
