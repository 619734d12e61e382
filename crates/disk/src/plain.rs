//! The engine that needs nothing: directories.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::tree::{self, Usage};
use crate::{Engine, Error, Reaped, Writable};

const SANDBOXES: &str = "sandboxes";
const TRASH: &str = "trash";
const MAX_ID: usize = 64;

/// Directories of whatever file system the data directory is on. Limits nothing.
#[derive(Debug)]
pub struct Plain {
    data_dir: PathBuf,
    sandboxes: PathBuf,
    trash: PathBuf,
    /// Held while the trash is emptied: two at once would trip over each other.
    reaping: Mutex<()>,
}

impl Plain {
    /// Opens the engine on `data_dir`, which is made where it does not exist.
    ///
    /// # Errors
    ///
    /// Its directories cannot be made.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        let engine = Self {
            data_dir: data_dir.to_owned(),
            sandboxes: data_dir.join(SANDBOXES),
            trash: data_dir.join(TRASH),
            reaping: Mutex::new(()),
        };
        for path in [&engine.sandboxes, &engine.trash] {
            // Sandboxes hold files of any owner and mode, set-user-id programs among them: nobody but root may
            // reach them from the host.
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(make_failed(path))?;
        }
        Ok(engine)
    }

    fn sandbox(&self, id: &str) -> Result<PathBuf, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(allowed) {
            return Err(Error::BadId { id: id.to_owned() });
        }
        Ok(self.sandboxes.join(id))
    }
}

impl Engine for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn create(&self, id: &str) -> Result<Writable, Error> {
        let path = self.sandbox(id)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: id.to_owned(), path });
            }
            other => other.map_err(make_failed(&path))?,
        }
        let writable = Writable { upper: path.join("upper"), work: path.join("work") };
        // The upper directory's mode is that of the sandbox's root, whatever the daemon's umask.
        for (dir, mode) in [(&writable.upper, 0o755), (&writable.work, 0o700)] {
            let made =
                fs::create_dir(dir).and_then(|()| fs::set_permissions(dir, Permissions::from_mode(mode)));
            if let Err(source) = made {
                let _ = tree::delete(&path);
                return Err(Error::MakeDir { path: dir.clone(), source });
            }
        }
        Ok(writable)
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        let from = self.sandbox(id)?;
        // An id may be used again before its last bearer is deleted.
        for n in 0u64.. {
            let to = self.trash.join(format!("{id}-{n}"));
            match rename_new(&from, &to) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(Error::MoveToTrash { from, to, source }),
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let mut ids = entries(&self.sandboxes)?;
        ids.sort();
        Ok(ids)
    }

    fn reap_trash(&self) -> Result<Reaped, Error> {
        let _alone = self.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reaped = Reaped::default();
        let mut first = None;
        for name in entries(&self.trash)? {
            match tree::delete(&self.trash.join(name)) {
                Ok(entries) => {
                    reaped.sandboxes += 1;
                    reaped.entries += entries;
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(reaped), Err)
    }

    fn enforces_storage(&self) -> bool {
        false
    }

    fn usage(&self, id: &str) -> Result<Usage, Error> {
        let path = self.sandbox(id)?;
        if !path.exists() {
            return Err(Error::Missing { id: id.to_owned(), path });
        }
        tree::usage(&path.join("upper"))
    }

    fn free_bytes(&self) -> Result<u64, Error> {
        let failed = |source: rustix::io::Errno| Error::FreeSpace {
            path: self.data_dir.clone(),
            source: source.into(),
        };
        let stat = rustix::fs::statvfs(&self.data_dir).map_err(failed)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn describe(&self) -> String {
        let kind = rustix::fs::statfs(&self.data_dir).map_or(None, |s| file_system(s.f_type as u64));
        describe(&self.data_dir, kind)
    }
}

/// Pure part of [`Plain::describe`].
fn describe(data_dir: &Path, file_system: Option<&str>) -> String {
    let on = file_system.unwrap_or("a file system unknown to berth");
    format!(
        "plain directories in {} on {on}: the only engine so far; storage limits are not enforced",
        data_dir.display()
    )
}

/// Name of the file system with this magic number (statfs(2), linux/magic.h).
fn file_system(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0xef53 => "ext4",
        0x9123_683e => "btrfs",
        0x5846_5342 => "xfs",
        0x0102_1994 => "tmpfs",
        0x794c_7630 => "overlayfs",
        0x2fc1_2fc1 => "zfs",
        0x6969 => "nfs",
        0xf2f5_2010 => "f2fs",
        _ => return None,
    })
}

/// Renames to a name that is not taken: rename(2) would replace an empty directory.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without that flag (old NFS, some FUSE): nobody else writes to the trash.
        Err(rustix::io::Errno::INVAL) if !to.exists() => fs::rename(from, to),
        Err(rustix::io::Errno::INVAL) => Err(io::ErrorKind::AlreadyExists.into()),
        other => Ok(other?),
    }
}

/// Names in a directory of Berth's own; all of them are made by it, and so UTF-8.
fn entries(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::ReadDir { path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        match entry.map_err(failed)?.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => tracing::warn!(?name, directory = %path.display(), "not made by berth, left alone"),
        }
    }
    Ok(names)
}

fn make_failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    |source| Error::MakeDir { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn engine() -> (tempfile::TempDir, Plain) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Plain::open(&dir.path().join("data")).unwrap();
        (dir, engine)
    }

    fn is_empty(path: &Path) -> bool {
        fs::read_dir(path).unwrap().next().is_none()
    }

    #[test]
    fn a_sandbox_comes_and_goes() {
        let (_dir, engine) = engine();
        let writable = engine.create("a1").unwrap();
        assert_eq!(fs::metadata(&writable.upper).unwrap().mode() & 0o7777, 0o755);
        assert!(matches!(engine.create("a1"), Err(Error::Exists { .. })));
        engine.create("b2").unwrap();
        assert_eq!(engine.list().unwrap(), ["a1", "b2"]);
        engine.remove("a1").unwrap();
        engine.remove("a1").unwrap();
        assert_eq!(engine.list().unwrap(), ["b2"]);
        assert!(matches!(engine.usage("a1"), Err(Error::Missing { .. })));

        // The id may be used again, and removed again, before anything is deleted.
        engine.create("a1").unwrap();
        engine.remove("a1").unwrap();
        assert_eq!(engine.reap_trash().unwrap(), Reaped { sandboxes: 2, entries: 6 });
        assert!(is_empty(&engine.trash));
        assert_eq!(engine.reap_trash().unwrap(), Reaped::default());
        assert!(engine.free_bytes().unwrap() > 0);
    }

    #[test]
    fn ids_that_are_not_names_are_refused() {
        let (_dir, engine) = engine();
        for id in ["", ".", "..", "a/b", "../x", "a b", "a\0", &"x".repeat(65)] {
            assert!(matches!(engine.create(id), Err(Error::BadId { .. })), "{id:?}");
            assert!(matches!(engine.remove(id), Err(Error::BadId { .. })), "{id:?}");
        }
    }

    #[test]
    fn what_a_hostile_tree_points_at_stays() {
        let (dir, engine) = engine();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        let upper = engine.create("a").unwrap().upper;
        symlink(&outside, upper.join("link")).unwrap();
        symlink("/", upper.join("root")).unwrap();
        fs::create_dir_all(upper.join("0/0/0")).unwrap();
        fs::write(upper.join("0/0/0/0"), "x").unwrap();
        fs::create_dir(upper.join("1")).unwrap();
        fs::set_permissions(upper.join("0"), Permissions::from_mode(0o0)).unwrap();
        engine.remove("a").unwrap();
        engine.reap_trash().unwrap();
        assert!(is_empty(&engine.trash));
        assert!(outside.join("file").exists());
    }

    #[test]
    fn depth_without_end_is_deleted_and_not_counted() {
        let (_dir, engine) = engine();
        let upper = engine.create("a").unwrap().upper;
        let mut dir = rustix::fs::open(&upper, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        // Far beyond PATH_MAX and the number of descriptors that a process may have.
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&dir, "directory", rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::PATH;
            dir = rustix::fs::openat(&dir, "directory", flags, rustix::fs::Mode::empty()).unwrap();
        }
        assert!(matches!(engine.usage("a"), Err(Error::TooDeep { .. })));
        engine.remove("a").unwrap();
        assert_eq!(engine.reap_trash().unwrap().entries, 5_003);
    }

    #[test]
    fn a_deletion_that_was_cut_short_is_finished_later() {
        let (_dir, engine) = engine();
        let upper = engine.create("a").unwrap().upper;
        fs::create_dir_all(upper.join("x/y")).unwrap();
        engine.remove("a").unwrap();
        // As if a crash had come after moving up: a number lies there already, and not empty.
        fs::create_dir_all(engine.trash.join("a-0/0/z")).unwrap();
        engine.reap_trash().unwrap();
        assert!(is_empty(&engine.trash));
    }

    #[test]
    fn usage_counts_a_file_with_two_names_once() {
        let (_dir, engine) = engine();
        let upper = engine.create("a").unwrap().upper;
        fs::write(upper.join("one"), vec![1; 100_000]).unwrap();
        fs::hard_link(upper.join("one"), upper.join("two")).unwrap();
        symlink("/", upper.join("link")).unwrap();
        let usage = engine.usage("a").unwrap();
        assert_eq!(usage.entries, 3);
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn whiteouts_and_a_hundred_thousand_files_are_deleted() {
        let (_dir, engine) = engine();
        let writable = engine.create("a").unwrap();
        let whiteout = writable.upper.join("gone");
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty());
        match rustix::fs::mknodat(rustix::fs::CWD, &whiteout, kind, mode, 0) {
            Ok(()) => assert!(fs::symlink_metadata(&whiteout).is_ok()),
            Err(error) => println!("SKIP: no right to make whiteouts: {error}"),
        }
        // What overlayfs leaves in its work directory.
        fs::create_dir(writable.work.join("work")).unwrap();
        fs::set_permissions(writable.work.join("work"), Permissions::from_mode(0o0)).unwrap();
        for d in 0..100 {
            let dir = writable.upper.join(format!("d{d}"));
            fs::create_dir(&dir).unwrap();
            for f in 0..1000 {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    dir.join(format!("f{f}")),
                    rustix::fs::FileType::RegularFile,
                    rustix::fs::Mode::RUSR,
                    0,
                )
                .unwrap();
            }
        }
        engine.remove("a").unwrap();
        assert!(engine.reap_trash().unwrap().entries >= 100_100);
        assert!(is_empty(&engine.trash));
    }

    #[test]
    fn the_doctors_line() {
        insta::assert_snapshot!(describe(Path::new("/var/lib/berth"), Some("ext4")), @"plain directories in /var/lib/berth on ext4: the only engine so far; storage limits are not enforced");
    }
}
