//! What a directory holds, without its bytes: what a build is asked for by first.
//!
//! Every file is read each time. Nothing is remembered from one build to the next, so that a file that changed without its
//! time or size is never missed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_types::image::{ContextEntry, ContextKind, ContextManifest};
use sha2::{Digest, Sha256};

use super::pack::at;

/// Most threads that read files.
const MAX_THREADS: usize = 4;

/// Files up to which one thread is enough.
const FEW: usize = 32;

/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// What [`super::pack_dir`] would pack of `dir`, and the texts that a build needs; `None` where a name, a link or a text is
/// not UTF-8, which a manifest cannot tell. Blocks.
///
/// # Errors
/// With the file that cannot be read.
pub fn manifest_of(dir: &Path, dockerfile: &str) -> io::Result<Option<ContextManifest>> {
    let Some(mut found) = walk(dir)? else { return Ok(None) };
    digest_all(&mut found)?;
    let Some(texts) = texts(dir, dockerfile)? else { return Ok(None) };
    Ok(Some(ContextManifest { entries: found.into_iter().map(|found| found.entry).collect(), texts }))
}

struct Found {
    path: PathBuf,
    entry: ContextEntry,
}

fn walk(dir: &Path) -> io::Result<Option<Vec<Found>>> {
    let mut found = Vec::new();
    let mut dirs = vec![(dir.to_owned(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        for item in fs::read_dir(&dir).map_err(|error| at(&dir, error))? {
            let item = item.map_err(|error| at(&dir, error))?;
            let path = item.path();
            let Ok(name) = item.file_name().into_string() else { return Ok(None) };
            let metadata = item.metadata().map_err(|error| at(&path, error))?;
            let name = format!("{prefix}{name}");
            let kind = if metadata.is_dir() {
                dirs.push((path.clone(), format!("{name}/")));
                ContextKind::Dir
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| at(&path, error))?;
                let Ok(target) = target.into_os_string().into_string() else { return Ok(None) };
                ContextKind::Link { target }
            } else if metadata.is_file() {
                ContextKind::File { size: metadata.len(), digest: String::new() }
            } else {
                // As in the tar: left out.
                continue;
            };
            let entry = ContextEntry { path: name, mode: metadata.mode() & 0o7777, kind };
            found.push(Found { path, entry });
        }
    }
    found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    Ok(Some(found))
}

/// Fills in the digests, some files at a time.
fn digest_all(found: &mut [Found]) -> io::Result<()> {
    let files: Vec<&mut Found> =
        found.iter_mut().filter(|found| matches!(found.entry.kind, ContextKind::File { .. })).collect();
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = if files.len() <= FEW { 1 } else { cpus.min(MAX_THREADS) };
    let next = AtomicUsize::new(0);
    // Each file is taken by the one thread that drew its number.
    let files: Vec<std::sync::Mutex<&mut Found>> = files.into_iter().map(std::sync::Mutex::new).collect();
    let work = || -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            file.entry.kind = digest(&file.path, &mut buffer).map_err(|error| at(&file.path, error))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let ours = work();
        let theirs = others.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        theirs.fold(ours, |all, one| all.and(one))
    })
}

/// A file by its bytes; what was read counts, also where it has grown since it was looked at.
fn digest(path: &Path, buffer: &mut [u8]) -> io::Result<ContextKind> {
    // It may have become something else since: a FIFO must not block us, a symlink not lead us away.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(read) => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(ContextKind::File { size, digest })
}

/// The Dockerfile and the ignore files, as far as they are there and within the directory.
fn texts(dir: &Path, dockerfile: &str) -> io::Result<Option<BTreeMap<String, String>>> {
    let root = fs::canonicalize(dir).map_err(|error| at(dir, error))?;
    let mut texts = BTreeMap::new();
    for name in [dockerfile.to_owned(), format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
        let path = dir.join(&name);
        // One that leads out of the context is nothing that the daemon reads.
        if !fs::canonicalize(&path).is_ok_and(|real| real.starts_with(&root) && real.is_file()) {
            continue;
        }
        match String::from_utf8(fs::read(&path).map_err(|error| at(&path, error))?) {
            Ok(text) => drop(texts.insert(name, text)),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(texts))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_directory_is_told_by_kinds_modes_and_digests() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/a"), "hello").unwrap();
        fs::set_permissions(root.join("sub/a"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(root.join("Dockerfile"), "FROM scratch\n").unwrap();
        fs::write(root.join(".dockerignore"), "*.log\n").unwrap();
        symlink("/etc/passwd", root.join("away")).unwrap();
        (0..100).for_each(|n| fs::write(root.join(format!("sub/n{n}")), n.to_string()).unwrap());
        let manifest = manifest_of(root, "Dockerfile").unwrap().unwrap();
        let entry = |path: &str| manifest.entries.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!(manifest.entries.len(), 105);
        let hello = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        assert_eq!(entry("sub/a").kind, ContextKind::File { size: 5, digest: hello.to_owned() });
        assert_eq!(entry("sub/a").mode, 0o750);
        assert_eq!(entry("sub").kind, ContextKind::Dir);
        assert_eq!(entry("away").kind, ContextKind::Link { target: "/etc/passwd".into() });
        let digests = manifest.entries.iter().filter_map(|entry| match &entry.kind {
            ContextKind::File { digest, .. } => Some(digest.len()),
            _ => None,
        });
        assert!(digests.into_iter().all(|len| len == 64));
        assert_eq!(manifest.texts.keys().collect::<Vec<_>>(), [".dockerignore", "Dockerfile"]);
    }

    #[test]
    fn what_json_cannot_hold_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();
        assert_eq!(manifest_of(dir.path(), "Dockerfile").unwrap(), None);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Dockerfile"), b"\xff").unwrap();
        assert_eq!(manifest_of(dir.path(), "Dockerfile").unwrap(), None);
    }

    #[test]
    fn a_dockerfile_that_is_a_link_out_of_the_context_is_no_text() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(other.path().join("secret"), "FROM x").unwrap();
        symlink(other.path().join("secret"), dir.path().join("Dockerfile")).unwrap();
        assert!(manifest_of(dir.path(), "Dockerfile").unwrap().unwrap().texts.is_empty());
        let missing = manifest_of(&dir.path().join("none"), "Dockerfile").unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
