//! Which engine, and why.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::btrfs::Btrfs;
use crate::pool::{self, Pool};
use crate::xfs::Xfs;
use crate::{
    Capacity, Engine, Error, Full, Limits, Plain, Reaped, Resource, Unavailable, Usage, Writable, layout,
};

const LOCK: &str = "disk.lock";

/// A daemon that was just killed dies with its children, and they with its lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

const GIB: u64 = 1 << 30;

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Subvolumes of the btrfs that the data directory is on.
    Btrfs,
    /// Subvolumes of a btrfs in a file.
    BtrfsLoop,
    /// Project quotas of the XFS that the data directory is on.
    Xfs,
    /// Directories, without limits.
    Plain,
}

impl Kind {
    /// All, the best first.
    pub const ALL: [Self; 4] = [Self::Btrfs, Self::Xfs, Self::BtrfsLoop, Self::Plain];

    /// As configuration and [`Engine::name`] have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::BtrfsLoop => "btrfs-loop",
            Self::Xfs => "xfs",
            Self::Plain => "plain",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(())
    }
}

/// How [`open`] goes about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The engine; `None` takes the best that can be had.
    pub engine: Option<Kind>,
    /// Whether quotas may be turned on on the btrfs that the data directory is on. It is the owner's file system, and
    /// other programs notice, so by default Berth asks for it to be done.
    pub enable_native_quota: bool,
    /// Bytes to be left free on the file system of the data directory; `None` is a twentieth of it, but
    /// at least 1 GiB and at most 4.
    pub reserve: Option<u64>,
    /// Of the pool in a file.
    pub pool: PoolOptions,
}

/// A pool's sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Bytes of a new one; at least 128 MiB, whole MiB.
    pub initial: u64,
    /// Bytes that it grows by when less than half as much is free.
    pub step: u64,
    /// Bytes that it does not grow beyond; `None` is what the file system below has.
    pub max: Option<u64>,
    /// Whether the loop device goes past the page cache of the file system below, where that can.
    pub direct_io: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { initial: GIB, step: GIB, max: None, direct_io: true }
    }
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: Kind,
    /// Why it was taken: a sentence's end, "it was asked for".
    pub why: String,
    /// Better ones that could not be had, the best first.
    pub rejected: Vec<Rejected>,
}

/// An engine that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The engine.
    pub engine: Kind,
    /// Why not, causes included.
    pub reason: String,
}

/// An engine and how it came to be chosen.
pub struct Opened {
    /// The engine.
    pub engine: Box<dyn Engine>,
    /// How.
    pub choice: Choice,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("choice", &self.choice).finish_non_exhaustive()
    }
}

/// Opens the engine that `options` ask for on `data_dir`, which is made where it does not exist. Its lock is held until
/// the engine is dropped.
///
/// With no engine asked for, what is in `data_dir` already decides first: a pool stays in use, and layers that lie in
/// the data directory itself stay there. Then come native btrfs with quotas, XFS with project quotas, a pool in a file,
/// and plain directories.
///
/// # Errors
///
/// [`Error::Busy`] when another has the data directory; [`Error::OtherEngine`]; [`Error::Unavailable`] for an engine
/// that was asked for, or whose pool is there; and what the file system refuses.
pub fn open(data_dir: &Path, options: &Options) -> Result<Opened, Error> {
    layout::make_private(data_dir)?;
    let lock = take_lock(&data_dir.join(LOCK))?;
    let (candidates, why) = candidates(options.engine, look(data_dir)?)?;
    let mut rejected = Vec::new();
    for kind in candidates.iter().copied() {
        match open_kind(kind, data_dir, options) {
            Ok(engine) => {
                let choice = Choice { engine: kind, why, rejected };
                return Ok(Opened { engine: Box::new(Locked { engine, _lock: lock }), choice });
            }
            Err(source) if candidates.last() == Some(&kind) => {
                return Err(Error::Unavailable { engine: kind, source: Box::new(source) });
            }
            Err(source) => {
                let reason = with_causes(&source);
                tracing::info!(engine = %kind, reason, "disk engine not to be had");
                rejected.push(Rejected { engine: kind, reason });
            }
        }
    }
    // Not reached while there is a candidate, but an error is the honest answer.
    Err(Error::Unavailable { engine: Kind::Plain, source: Box::new(no_directories(data_dir)) })
}

fn open_kind(kind: Kind, data_dir: &Path, options: &Options) -> Result<Box<dyn Engine>, Unavailable> {
    let reserve = match options.reserve {
        Some(reserve) => reserve,
        None => (layout::space(data_dir).map_err(Box::new)?.0 / 20).clamp(GIB, 4 * GIB),
    };
    Ok(match kind {
        Kind::Btrfs => Box::new(Btrfs::native(data_dir, options.enable_native_quota, reserve)?),
        Kind::BtrfsLoop => Box::new(Btrfs::on_pool(Pool::open(data_dir, &options.pool, reserve)?)?),
        Kind::Xfs => Box::new(Xfs::open(data_dir, reserve)?),
        Kind::Plain => Box::new(Plain::with_reserve(data_dir, reserve).map_err(Box::new)?),
    })
}

fn no_directories(data_dir: &Path) -> Unavailable {
    let source = std::io::ErrorKind::NotFound.into();
    Unavailable::System { what: "make directories in", path: data_dir.to_owned(), source }
}

/// What a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A pool file.
    Pool(PathBuf),
    /// Sandboxes or layers in the data directory itself: this one of the two.
    Directories(PathBuf),
}

fn look(data_dir: &Path) -> Result<Found, Error> {
    let pool = pool::file_path(data_dir);
    if pool.symlink_metadata().is_ok() {
        return Ok(Found::Pool(pool));
    }
    for name in ["layers", "sandboxes", "trash"] {
        let path = data_dir.join(name);
        match fs::read_dir(&path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Ok(Found::Directories(path));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::ReadDir { path, source }),
        }
    }
    Ok(Found::Nothing)
}

/// Engines to try in order, and why the one that will do is taken. Pure.
fn candidates(asked: Option<Kind>, found: Found) -> Result<(Vec<Kind>, String), Error> {
    match (asked, found) {
        (Some(asked), Found::Pool(path)) if asked != Kind::BtrfsLoop => {
            Err(Error::OtherEngine { asked, path })
        }
        (Some(asked @ Kind::BtrfsLoop), Found::Directories(path)) => Err(Error::OtherEngine { asked, path }),
        (Some(asked), _) => Ok((vec![asked], "it was asked for".to_owned())),
        (None, Found::Pool(path)) => {
            Ok((vec![Kind::BtrfsLoop], format!("the data directory has the pool {}", path.display())))
        }
        (None, Found::Directories(path)) => {
            let why = format!("the best that can use what is in {} already", path.display());
            Ok((vec![Kind::Btrfs, Kind::Xfs, Kind::Plain], why))
        }
        (None, Found::Nothing) => Ok((Kind::ALL.to_vec(), "the best that can be had here".to_owned())),
    }
}

fn take_lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Lock { path: path.to_owned(), source };
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(failed)?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy { path: path.to_owned() }),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// An engine and its data directory's lock, which outlives it.
struct Locked {
    engine: Box<dyn Engine>,
    _lock: File,
}

impl Engine for Locked {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn root(&self) -> &Path {
        self.engine.root()
    }

    fn create(&self, id: &str, limits: &Limits) -> Result<Writable, Error> {
        self.engine.create(id, limits)
    }

    fn writable(&self, id: &str) -> Result<Writable, Error> {
        self.engine.writable(id)
    }

    fn set_limits(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        self.engine.set_limits(id, limits)
    }

    fn release_tree(&self, id: &str) -> Result<PathBuf, Error> {
        self.engine.release_tree(id)
    }

    fn remove(&self, id: &str) -> Result<(), Error> {
        self.engine.remove(id)
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        self.engine.list()
    }

    fn reap_trash(&self) -> Result<Reaped, Error> {
        self.engine.reap_trash()
    }

    fn enforces(&self, what: Resource) -> bool {
        self.engine.enforces(what)
    }

    fn usage(&self, id: &str) -> Result<Usage, Error> {
        self.engine.usage(id)
    }

    fn limit_hit(&self, id: &str) -> Result<Option<Full>, Error> {
        self.engine.limit_hit(id)
    }

    fn capacity(&self) -> Result<Capacity, Error> {
        self.engine.capacity()
    }

    fn health(&self) -> Result<(), Error> {
        self.engine.health()
    }

    fn describe(&self) -> String {
        self.engine.describe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_decides_before_what_is_best() {
        let pool = || Found::Pool("/d/pool.btrfs".into());
        let dirs = || Found::Directories("/d/layers".into());
        let order = |asked, found| candidates(asked, found).map(|(kinds, _)| kinds);
        assert_eq!(order(None, Found::Nothing).unwrap(), Kind::ALL);
        assert_eq!(order(None, pool()).unwrap(), [Kind::BtrfsLoop]);
        assert_eq!(order(None, dirs()).unwrap(), [Kind::Btrfs, Kind::Xfs, Kind::Plain]);
        assert_eq!(order(Some(Kind::Plain), dirs()).unwrap(), [Kind::Plain]);
        assert_eq!(order(Some(Kind::Xfs), Found::Nothing).unwrap(), [Kind::Xfs]);
        for (asked, found) in [(Kind::Plain, pool()), (Kind::Btrfs, pool()), (Kind::BtrfsLoop, dirs())] {
            assert!(matches!(order(Some(asked), found), Err(Error::OtherEngine { .. })), "{asked}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("zfs".parse::<Kind>(), Err(()));
    }
}
