//! Sandboxes as btrfs subvolumes with a quota group each: on the btrfs that the data directory is on, or on a pool in
//! a file (`pool.rs`).
//!
//! ```text
//!   <root>/sandboxes/<id>    a subvolume; its group 0/<number> has the limit
//!                   /upper   directories in it: overlayfs wants both on one
//!                   /work    file system, renames between them in one subvolume
//!                   /spool
//!   <root>/trash/<id>-<n>    the subvolume, renamed: one that is destroyed in constant time
//! ```
//!
//! The limit counts data and metadata, so that a sandbox of nothing but empty files ends too; a limit of inodes the
//! engine does not have. At the limit writes fail with `EDQUOT`.
//!
//! Simple quotas (Linux 6.7) bill each extent to the subvolume that wrote it and cost next to nothing. Before that, full
//! quota groups do the same at a price per commit.
//!
//! A process that can reach a btrfs directory itself may make subvolumes in it without any privilege, and those have
//! groups of their own without limits. A sandbox reaches its files only through overlayfs, which passes no such ioctl
//! on (`ENOTTY`). Deletion still expects them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_sys::btrfs::{self, Quota};
use rustix::fs::statfs;

use crate::layout::{self, Layout};
use crate::pool::Pool;
use crate::superblock::uuid_text;
use crate::{
    Capacity, Counted, Engine, Error, Full, Limits, Reaped, Resource, Unavailable, Usage, Writable, health,
    hoist, tree,
};

/// Magic number of statfs(2).
const MAGIC: u64 = 0x9123_683e;

/// Inode number of every subvolume's root.
const ROOT_INODE: u64 = 256;

/// An empty sandbox needs a node or two of metadata (16 KiB each), and every operation reserves some more for a moment.
const LEAST_BYTES: u64 = 1 << 20;

/// Reservations come in pieces: a file cannot be made when less than about ten nodes are left.
const NEARLY: u64 = 256 << 10;

/// How often quota groups without a subvolume are looked for at most.
const SWEEP: Duration = Duration::from_secs(5);

/// How long a new sandbox waits on a full file system for the room of removed ones, and how often it looks.
const RECLAIM_PATIENCE: Duration = Duration::from_secs(10);
const RECLAIM_LOOK: Duration = Duration::from_millis(20);

/// Files in a quota group's directory in sysfs whose sum the limit is held against.
const COUNTERS: [&str; 4] = ["referenced", "rsv_data", "rsv_meta_pertrans", "rsv_meta_prealloc"];

/// The engine.
#[derive(Debug)]
pub(crate) struct Btrfs {
    layout: Layout,
    /// `/sys/fs/btrfs/<uuid>/qgroups`.
    groups: PathBuf,
    /// Left free on the data directory's file system, where that is the file system.
    reserve: u64,
    orphans: Mutex<Orphans>,
    /// What the devices had counted before there were sandboxes; they never forget.
    errors_before: Option<u64>,
    /// Dropped last: it unmounts the root.
    pool: Option<Pool>,
}

/// Quota groups without a subvolume.
#[derive(Debug, Default)]
struct Orphans {
    /// Numbers of destroyed subvolumes whose groups may still be there.
    numbers: Vec<u64>,
    /// When they were last gone through.
    swept: Option<Instant>,
}

impl Btrfs {
    /// On the file system that `data_dir` is on, whose quotas are turned on only when `may_enable`.
    pub(crate) fn native(data_dir: &Path, may_enable: bool, reserve: u64) -> Result<Self, Unavailable> {
        let found = statfs(data_dir)
            .map_err(|e| Unavailable::system("ask for the file system of", data_dir)(e.into()))?;
        if found.f_type as u64 != MAGIC {
            let found = crate::plain::file_system_name(found.f_type as u64);
            return Err(Unavailable::FileSystem { path: data_dir.to_owned(), found, wanted: "btrfs" });
        }
        let root = layout::open_dir(data_dir).map_err(Box::new)?;
        let groups = groups_dir(root.as_fd(), data_dir)?;
        if !quota_is_on(&groups) {
            if !may_enable {
                return Err(Unavailable::QuotaOff { path: data_dir.to_owned() });
            }
            enable_quota(root.as_fd(), data_dir)?;
        }
        if fs::read_to_string(groups.join("inconsistent")).is_ok_and(|text| text.trim() == "1") {
            return Err(Unavailable::QuotaInconsistent { path: data_dir.to_owned() });
        }
        Self::on(data_dir, groups, reserve, None)
    }

    /// On a pool, whose quotas are Berth's own to turn on.
    pub(crate) fn on_pool(pool: Pool) -> Result<Self, Unavailable> {
        let path = pool.root().to_owned();
        let root = layout::open_dir(&path).map_err(Box::new)?;
        let groups = groups_dir(root.as_fd(), &path)?;
        if !quota_is_on(&groups) {
            enable_quota(root.as_fd(), &path)?;
        }
        drop(root);
        let engine = Self::on(&path, groups, 0, Some(pool))?;
        engine.find_orphans();
        Ok(engine)
    }

    fn on(root: &Path, groups: PathBuf, reserve: u64, pool: Option<Pool>) -> Result<Self, Unavailable> {
        let layout = Layout::open(root).map_err(Box::new)?;
        let errors = groups.parent().and_then(health::device_errors);
        let errors_before = errors.map(|now| health::baseline(&layout, now)).transpose().map_err(Box::new)?;
        Ok(Self { layout, groups, reserve, orphans: Mutex::default(), errors_before, pool })
    }

    /// Groups of subvolumes that a daemon destroyed and did not live to clean up after. Only on a pool: elsewhere
    /// others have groups too.
    fn find_orphans(&self) {
        let (Ok(entries), Ok(root)) = (fs::read_dir(&self.groups), layout::open_dir(&self.layout.root))
        else {
            return;
        };
        let number = |name: String| name.strip_prefix("0_")?.parse::<u64>().ok();
        let numbers = entries.filter_map(|entry| number(entry.ok()?.file_name().into_string().ok()?));
        // Below 256 are the file system's own.
        let gone = |number: &u64| {
            *number >= ROOT_INODE && matches!(btrfs::subvolume_exists(root.as_fd(), *number), Ok(false))
        };
        let numbers = numbers.filter(gone).collect();
        *self.orphans() = Orphans { numbers, swept: None };
        self.forget_orphans();
    }

    /// Removes the groups of those subvolumes that are wholly gone; newer kernels do it themselves. The kernel takes
    /// seconds to clean up after a subvolume, so going through them more often is of no use.
    fn forget_orphans(&self) {
        let mut orphans = self.orphans();
        if orphans.swept.is_some_and(|swept| swept.elapsed() < SWEEP) {
            return;
        }
        orphans.swept = Some(Instant::now());
        let Ok(root) = layout::open_dir(&self.layout.root) else { return };
        orphans.numbers.retain(|number| {
            self.group(*number).exists()
                // One that has something on its account (shared with a living subvolume) is refused: it stays.
                && (!matches!(btrfs::subvolume_exists(root.as_fd(), *number), Ok(false))
                    || btrfs::destroy_quota_group(root.as_fd(), *number).is_err())
        });
    }

    fn orphans(&self) -> MutexGuard<'_, Orphans> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, number: u64) -> PathBuf {
        self.groups.join(format!("0_{number}"))
    }

    /// The sandbox's directory, and its group's in sysfs.
    fn sandbox_group(&self, id: &str) -> Result<(PathBuf, PathBuf), Error> {
        let (path, fd) = self.layout.open_sandbox(id)?;
        let number = btrfs::subvolume_id(fd.as_fd())
            .map_err(|source| Error::ReadQuota { path: path.clone(), source })?;
        Ok((path, self.group(number)))
    }

    /// What the bytes that the sandbox uses are read from.
    fn used_files(&self, id: &str) -> Result<Vec<PathBuf>, Error> {
        let (_, group) = self.sandbox_group(id)?;
        Ok(COUNTERS.iter().map(|name| group.join(name)).collect())
    }

    /// What the limit is held against, now.
    fn used(&self, group: &Path) -> Result<u64, Error> {
        COUNTERS.iter().try_fold(0u64, |sum, name| Ok(sum.saturating_add(read_number(&group.join(name))?)))
    }

    fn check(&self, limits: &Limits) -> Result<(), Error> {
        if limits.inodes.is_some() {
            return Err(Error::NotEnforced {
                engine: self.name(),
                what: Resource::Inodes,
                why: "btrfs has no such limit; the metadata of files counts towards the limit of bytes",
            });
        }
        layout::check_least(limits, LEAST_BYTES)
    }

    /// Destroys the subvolume `path`, or deletes the directory; the caller knows the directory that it is in.
    fn destroy(&self, path: &Path, parent: &Path) -> Result<u64, Error> {
        let failed = |source| Error::Delete { path: path.to_owned(), source };
        let dir = match layout::open_dir(path) {
            Ok(dir) => dir,
            Err(Error::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        // A data directory that was of the plain engine has directories.
        if rustix::fs::fstat(&dir).map_err(|error| failed(error.into()))?.st_ino != ROOT_INODE {
            return tree::delete(path);
        }
        let number = btrfs::subvolume_id(dir.as_fd()).map_err(failed)?;
        drop(dir);
        let root = layout::open_dir(&self.layout.root)?;
        let mut gone = self.destroy_nested(root.as_fd(), number).map_err(failed)?;
        let parent = layout::open_dir(parent)?;
        btrfs::destroy_subvolume(parent.as_fd(), &layout::last_part(path)).map_err(failed)?;
        gone.push(number);
        let entries = gone.len() as u64;
        self.orphans().numbers.extend(gone);
        if let Some(pool) = &self.pool {
            pool.note_destroyed();
        }
        Ok(entries)
    }

    /// On a full file system, waits for what destroyed subvolumes had.
    fn make_subvolume(&self, parent: BorrowedFd<'_>, name: &CStr, limit: Option<u64>) -> io::Result<()> {
        let until = Instant::now() + RECLAIM_PATIENCE;
        let mut coming = true;
        loop {
            match btrfs::create_subvolume(parent, name, limit) {
                Err(error)
                    if error.kind() == io::ErrorKind::StorageFull && coming && Instant::now() < until =>
                {
                    // Once more when nothing is left to come: the last may have come since the attempt.
                    coming = self.room_is_coming();
                    btrfs::sync(parent)?;
                    std::thread::sleep(RECLAIM_LOOK);
                }
                other => return other,
            }
        }
    }

    /// Whether the kernel still has a subvolume to clean up after.
    fn room_is_coming(&self) -> bool {
        let orphans = self.orphans();
        !orphans.numbers.is_empty()
            && layout::open_dir(&self.layout.root).is_ok_and(|root| {
                let exists =
                    |number: &u64| matches!(btrfs::subvolume_exists(root.as_fd(), *number), Ok(true));
                orphans.numbers.iter().any(exists)
            })
    }

    /// Destroys all subvolumes below subvolume `number`, the innermost first.
    fn destroy_nested(&self, root: BorrowedFd<'_>, number: u64) -> io::Result<Vec<u64>> {
        let mut order = btrfs::children(root, number)?;
        let mut next = 0;
        while let Some(parent) = order.get(next) {
            order.extend(btrfs::children(root, *parent)?);
            next += 1;
        }
        for number in order.iter().rev() {
            btrfs::destroy_subvolume_by_id(root, *number)?;
        }
        Ok(order)
    }
}

impl Engine for Btrfs {
    fn name(&self) -> &'static str {
        if self.pool.is_some() { "btrfs-loop" } else { "btrfs" }
    }

    fn root(&self) -> &Path {
        &self.layout.root
    }

    fn create(&self, id: &str, limits: &Limits) -> Result<Writable, Error> {
        self.check(limits)?;
        let path = self.layout.sandbox(id)?;
        let parent = layout::open_dir(&self.layout.sandboxes)?;
        let name = layout::last_part(&path);
        match self.make_subvolume(parent.as_fd(), &name, limits.bytes) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists { id: id.to_owned(), path });
            }
            other => other.map_err(|source| Error::MakeSubvolume { path: path.clone(), source })?,
        }
        let made = layout::make_parts(&path)
            .and_then(|made| Ok(Writable { used_files: self.used_files(id)?, ..made }));
        made.inspect_err(|_| {
            let _ = btrfs::destroy_subvolume(parent.as_fd(), &name);
        })
    }

    fn writable(&self, id: &str) -> Result<Writable, Error> {
        Ok(Writable { used_files: self.used_files(id)?, ..self.layout.writable(id)? })
    }

    fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        self.check(limits)?;
        let (path, fd) = self.layout.open_sandbox(id)?;
        btrfs::subvolume_id(fd.as_fd())
            .and_then(|number| btrfs::limit_subvolume(fd.as_fd(), number, limits.bytes))
            .map_err(|source| Error::SetQuota { path, source })
    }

    fn release_tree(&self, id: &str) -> Result<PathBuf, Error> {
        // Before anything moves: at its limit a sandbox cannot even be taken apart.
        self.set_limits(id, &Limits::default())?;
        let (path, fd) = self.layout.open_sandbox(id)?;
        let found = layout::parts(path.clone());
        for part in [&found.work, &found.spool, &found.mounts] {
            tree::delete(part)?;
        }
        hoist::hoist(fd.as_fd(), &path)?;
        Ok(path)
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        match self.layout.discard(id) {
            // A rename takes room for metadata, which a full file system has none of. It keeps some back for what makes
            // room: destroying, also in constant time, and not in halves either.
            Err(Error::MoveToTrash { from, source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                self.destroy(&from, &self.layout.sandboxes).map(drop)
            }
            other => other,
        }
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        self.layout.list()
    }

    fn reap_trash(&self) -> Result<Reaped, Error> {
        let reaped = self.layout.reap(|path| self.destroy(path, &self.layout.trash));
        self.forget_orphans();
        reaped
    }

    fn enforces(&self, what: Resource) -> bool {
        what == Resource::Bytes
    }

    fn usage(&self, id: &str) -> Result<Usage, Error> {
        let (_, group) = self.sandbox_group(id)?;
        Ok(Usage { bytes: self.used(&group)?, inodes: None, counted: Counted::QuotaGroup })
    }

    fn limit_hit(&self, id: &str) -> Result<Option<Full>, Error> {
        let (_, group) = self.sandbox_group(id)?;
        let used = self.used(&group)?;
        let limited = read_number(&group.join("limit_flags"))? & 1 != 0;
        let limit = if limited { read_number(&group.join("max_referenced"))? } else { u64::MAX };
        if used.saturating_add(NEARLY) >= limit {
            return Ok(Some(Full::Bytes { used, limit }));
        }
        let free = match &self.pool {
            Some(pool) => pool.capacity()?.free,
            // The reserve keeps sandboxes from being made, not those that are there from writing.
            None => layout::space(&self.layout.root)?.1,
        };
        Ok((free < LEAST_BYTES).then_some(Full::Pool { free }))
    }

    fn capacity(&self) -> Result<Capacity, Error> {
        match &self.pool {
            Some(pool) => pool.capacity(),
            None => {
                let (total, free) = layout::space(&self.layout.root)?;
                Ok(Capacity::beside(self.reserve, total, free))
            }
        }
    }

    fn health(&self) -> Result<(), Error> {
        self.pool.as_ref().map_or(Ok(()), Pool::health)?;
        health::writable(&self.layout)?;
        let errors = self.groups.parent().and_then(health::device_errors).zip(self.errors_before);
        match errors.map(|(now, then)| now.saturating_sub(then)) {
            None | Some(0) => Ok(()),
            Some(errors) => Err(Error::DeviceErrors { path: self.layout.root.clone(), errors }),
        }
    }

    fn describe(&self) -> String {
        let mode = fs::read_to_string(self.groups.join("mode")).unwrap_or_default();
        let quota = if mode.trim() == "squota" { "simple quotas" } else { "full quota groups" };
        let at = self.layout.root.display();
        match &self.pool {
            Some(pool) => format!("btrfs subvolumes in {}, with {quota}", pool.describe()),
            None => format!("btrfs subvolumes in {at}, with {quota}"),
        }
    }
}

fn groups_dir(root: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Unavailable> {
    let id = btrfs::file_system_id(root).map_err(Unavailable::system("ask for the btrfs UUID of", path))?;
    Ok(Path::new("/sys/fs/btrfs").join(uuid_text(id)).join("qgroups"))
}

/// The directory is there exactly as long as quotas are on; the file `enabled` in it came with Linux 6.1.
fn quota_is_on(groups: &Path) -> bool {
    groups.is_dir() && fs::read_to_string(groups.join("enabled")).map_or(true, |text| text.trim() == "1")
}

fn enable_quota(root: BorrowedFd<'_>, path: &Path) -> Result<(), Unavailable> {
    match btrfs::enable_quota(root, Quota::Simple) {
        // A kernel before 6.7 does not know the command.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            btrfs::enable_quota(root, Quota::Full).and_then(|()| btrfs::wait_for_count(root))
        }
        other => other,
    }
    .map_err(Unavailable::system("turn on quotas on", path))
}

fn read_number(path: &Path) -> Result<u64, Error> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::ReadQuota { path: path.to_owned(), source })?;
    text.trim().parse().map_err(|_| Error::OddQuota { path: path.to_owned(), text })
}
