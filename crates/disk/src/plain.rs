//! The engine that needs nothing: directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::health;
use crate::layout::{self, Layout};
use crate::tree;
use crate::{Capacity, Engine, Error, Full, Limits, Reaped, Resource, Usage, Writable};

/// Below this the file system is full for all that a sandbox may want.
const FULL: u64 = 64 << 10;

/// Directories of whatever file system the data directory is on. Limits nothing.
#[derive(Debug)]
pub struct Plain {
    layout: Layout,
    reserve: u64,
}

impl Plain {
    /// Opens the engine on `data_dir`, which is made where it does not exist.
    ///
    /// # Errors
    ///
    /// Its directories cannot be made.
    pub fn open(data_dir: &Path) -> Result<Self, Error> {
        Self::with_reserve(data_dir, 0)
    }

    pub(crate) fn with_reserve(data_dir: &Path, reserve: u64) -> Result<Self, Error> {
        Ok(Self { layout: Layout::open(data_dir)?, reserve })
    }
}

impl Engine for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn root(&self) -> &Path {
        &self.layout.root
    }

    fn create(&self, id: &str, limits: &Limits) -> Result<Writable, Error> {
        refuse(limits)?;
        let path = self.layout.sandbox(id)?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: id.to_owned(), path });
            }
            other => other.map_err(|source| Error::MakeDir { path: path.clone(), source })?,
        }
        layout::make_parts(&path).inspect_err(|_| {
            let _ = tree::delete(&path);
        })
    }

    fn writable(&self, id: &str) -> Result<Writable, Error> {
        self.layout.writable(id)
    }

    fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        refuse(limits)?;
        self.layout.open_sandbox(id).map(drop)
    }

    fn release_tree(&self, id: &str) -> Result<PathBuf, Error> {
        let found = layout::parts(self.layout.open_sandbox(id)?.0);
        tree::delete(&found.spool)?;
        tree::delete(&found.mounts)?;
        Ok(found.upper)
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        self.layout.discard(id)
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        self.layout.list()
    }

    fn reap_trash(&self) -> Result<Reaped, Error> {
        self.layout.reap(tree::delete)
    }

    fn enforces(&self, _what: Resource) -> bool {
        false
    }

    fn usage(&self, id: &str) -> Result<Usage, Error> {
        let found = layout::parts(self.layout.open_sandbox(id)?.0);
        let mut counted = vec![found.upper.as_path(), &found.spool];
        counted.extend(found.mounts.exists().then_some(found.mounts.as_path()));
        tree::usage(&counted)
    }

    fn limit_hit(&self, id: &str) -> Result<Option<Full>, Error> {
        self.layout.open_sandbox(id)?;
        let (_, free) = layout::space(&self.layout.root)?;
        Ok((free < FULL).then_some(Full::Pool { free }))
    }

    fn capacity(&self) -> Result<Capacity, Error> {
        let (total, free) = layout::space(&self.layout.root)?;
        Ok(Capacity::beside(self.reserve, total, free))
    }

    fn health(&self) -> Result<(), Error> {
        health::writable(&self.layout)
    }

    fn describe(&self) -> String {
        let root = &self.layout.root;
        let kind = rustix::fs::statfs(root).map(|s| file_system_name(s.f_type as u64));
        describe(root, kind.as_deref().unwrap_or("a file system that does not answer"))
    }
}

/// No limit can be held, so none is taken.
fn refuse(limits: &Limits) -> Result<(), Error> {
    let asked = [(Resource::Bytes, limits.bytes), (Resource::Inodes, limits.inodes)];
    match asked.into_iter().find(|(_, limit)| limit.is_some()) {
        Some((what, _)) => Err(Error::NotEnforced {
            engine: "plain",
            what,
            why: "plain directories share the file system's room",
        }),
        None => Ok(()),
    }
}

/// Pure part of [`Plain::describe`].
fn describe(data_dir: &Path, file_system: &str) -> String {
    format!("plain directories in {} on {file_system}; storage limits are not enforced", data_dir.display())
}

/// The file system with this magic number, for people.
pub(crate) fn file_system_name(magic: u64) -> String {
    file_system(magic).map_or_else(|| format!("a file system unknown to berth ({magic:#x})"), str::to_owned)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NONE: &Limits = &Limits { bytes: None, inodes: None };

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
        let writable = engine.create("a1", NONE).unwrap();
        assert_eq!(fs::metadata(&writable.upper).unwrap().mode() & 0o7777, 0o755);
        assert!(matches!(engine.create("a1", NONE), Err(Error::Exists { .. })));
        engine.create("b2", NONE).unwrap();
        assert_eq!(engine.list().unwrap(), ["a1", "b2"]);
        engine.remove("a1").unwrap();
        engine.remove("a1").unwrap();
        assert_eq!(engine.list().unwrap(), ["b2"]);
        assert!(matches!(engine.usage("a1"), Err(Error::Missing { .. })));

        // The id may be used again, and removed again, before anything is deleted.
        engine.create("a1", NONE).unwrap();
        engine.remove("a1").unwrap();
        assert_eq!(engine.reap_trash().unwrap(), Reaped { sandboxes: 2, entries: 8 });
        assert!(is_empty(&engine.layout.trash));
        assert_eq!(engine.reap_trash().unwrap(), Reaped::default());
        assert!(engine.capacity().unwrap().free > 0);
    }

    #[test]
    fn a_sandbox_that_is_there_is_found_again_and_its_spool_is_no_part_of_its_tree() {
        let (dir, engine) = engine();
        let made = engine.create("a", NONE).unwrap();
        assert_eq!(fs::metadata(&made.spool).unwrap().mode() & 0o7777, 0o700);
        fs::write(made.upper.join("file"), "x").unwrap();
        fs::create_dir_all(made.spool.join("deep/er")).unwrap();
        fs::write(made.spool.join("said"), vec![1; 100_000]).unwrap();
        let usage = engine.usage("a").unwrap();
        assert!(usage.bytes >= 100_000 && usage.inodes == Some(4), "{usage:?}");
        drop(engine);

        let engine = Plain::open(&dir.path().join("data")).unwrap();
        assert_eq!(engine.writable("a").unwrap(), made);
        assert!(matches!(engine.writable("b"), Err(Error::Missing { .. })));
        assert!(matches!(engine.writable("../a"), Err(Error::BadId { .. })));
        let tree = engine.release_tree("a").unwrap();
        assert_eq!(fs::read(tree.join("file")).unwrap(), b"x");
        assert!(!made.spool.exists());
        assert!(matches!(engine.writable("a"), Err(Error::Open { path, .. }) if path == made.spool));
        engine.remove("a").unwrap();
        assert!(matches!(engine.writable("a"), Err(Error::Missing { .. })));
        engine.reap_trash().unwrap();
        assert!(is_empty(&engine.layout.trash));
    }

    #[test]
    fn ids_that_are_not_names_are_refused() {
        let (_dir, engine) = engine();
        for id in ["", ".", "..", "a/b", "../x", "a b", "a\0", &"x".repeat(65)] {
            assert!(matches!(engine.create(id, NONE), Err(Error::BadId { .. })), "{id:?}");
            assert!(matches!(engine.remove(id), Err(Error::BadId { .. })), "{id:?}");
        }
    }

    #[test]
    fn what_a_hostile_tree_points_at_stays() {
        let (dir, engine) = engine();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        let upper = engine.create("a", NONE).unwrap().upper;
        symlink(&outside, upper.join("link")).unwrap();
        symlink("/", upper.join("root")).unwrap();
        fs::create_dir_all(upper.join("0/0/0")).unwrap();
        fs::write(upper.join("0/0/0/0"), "x").unwrap();
        fs::create_dir(upper.join("1")).unwrap();
        fs::set_permissions(upper.join("0"), Permissions::from_mode(0o0)).unwrap();
        engine.remove("a").unwrap();
        engine.reap_trash().unwrap();
        assert!(is_empty(&engine.layout.trash));
        assert!(outside.join("file").exists());
    }

    #[test]
    fn depth_without_end_is_deleted_and_not_counted() {
        let (_dir, engine) = engine();
        let upper = engine.create("a", NONE).unwrap().upper;
        let mut dir = rustix::fs::open(&upper, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        // Far beyond PATH_MAX and the number of descriptors that a process may have.
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&dir, "directory", rustix::fs::Mode::RWXU).unwrap();
            let flags = rustix::fs::OFlags::PATH;
            dir = rustix::fs::openat(&dir, "directory", flags, rustix::fs::Mode::empty()).unwrap();
        }
        assert!(matches!(engine.usage("a"), Err(Error::TooDeep { .. })));
        engine.remove("a").unwrap();
        assert_eq!(engine.reap_trash().unwrap().entries, 5_004);
    }

    #[test]
    fn a_deletion_that_was_cut_short_is_finished_later() {
        let (_dir, engine) = engine();
        let upper = engine.create("a", NONE).unwrap().upper;
        fs::create_dir_all(upper.join("x/y")).unwrap();
        engine.remove("a").unwrap();
        // As if a crash had come after moving up: a number lies there already, and not empty.
        fs::create_dir_all(engine.layout.trash.join("a-0/0/z")).unwrap();
        engine.reap_trash().unwrap();
        assert!(is_empty(&engine.layout.trash));
    }

    #[test]
    fn usage_counts_a_file_with_two_names_once() {
        let (_dir, engine) = engine();
        let upper = engine.create("a", NONE).unwrap().upper;
        fs::write(upper.join("one"), vec![1; 100_000]).unwrap();
        fs::hard_link(upper.join("one"), upper.join("two")).unwrap();
        symlink("/", upper.join("link")).unwrap();
        let usage = engine.usage("a").unwrap();
        assert_eq!(usage.inodes, Some(3));
        assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn whiteouts_and_a_hundred_thousand_files_are_deleted() {
        let (_dir, engine) = engine();
        let writable = engine.create("a", NONE).unwrap();
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
        assert!(is_empty(&engine.layout.trash));
    }

    #[test]
    fn the_doctors_line() {
        insta::assert_snapshot!(describe(Path::new("/var/lib/berth"), "ext4"), @"plain directories in /var/lib/berth on ext4; storage limits are not enforced");
    }
}
