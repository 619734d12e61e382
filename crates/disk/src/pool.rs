//! A btrfs of Berth's own in a file, which grows as it fills (`docs/formats/pool.md`).
//!
//! ```text
//!   <data>/pool.btrfs       the file, every block of it allocated
//!         /pool.btrfs.new   one that was not finished
//!         /pool             where it is mounted
//! ```
//!
//! What the pool says it has exists: the file is allocated, never sparse, and nothing punches holes into it. It grows
//! only while the file system below keeps its reserve, so sandboxes cannot fill the host.
//!
//! Two loop devices on one file would corrupt it. So there is one owner (the data directory's lock), and a device that
//! an earlier daemon left is found and used again. It lives as long as anything is mounted from it: by sandboxes that
//! outlive their daemon, whose mount namespaces hold the file system though the daemon's own is gone, or for a moment by
//! what still dies. Mounting it once more is then one mount more of the same living file system. While there is no daemon
//! nobody makes the file larger.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use berth_sys::btrfs;
use berth_sys::loopdev::LoopDevice;
use rustix::fs::{FallocateFlags, IFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::choose::PoolOptions;
use crate::superblock::{self, LABEL, Odd, Superblock, uuid_text};
use crate::{Capacity, Error, Unavailable, layout};

const FILE: &str = "pool.btrfs";
const UNFINISHED: &str = "pool.btrfs.new";
const MOUNTED: &str = "pool";

/// mkfs.btrfs refuses less than 45 MiB; below this little is left for data.
const LEAST: u64 = 128 << 20;

/// Sizes are multiples of this, as the file system's are.
const UNIT: u64 = 1 << 20;

/// No discard: it would punch holes into the file, and what was promised to sandboxes would go to others. The free
/// space tree is what mkfs makes since 5.15; before, this makes it.
const MOUNT_OPTIONS: &std::ffi::CStr = c"nodiscard,space_cache=v2";

/// How fast sandboxes may fill the pool at most, in bytes a second: how often to look follows from it.
const FILL_RATE: u64 = 2 << 30;
const LOOK_AT_MOST: Duration = Duration::from_millis(100);
const LOOK_AT_LEAST: Duration = Duration::from_secs(5);

/// The file's path in `data_dir`.
pub(crate) fn file_path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE)
}

/// A mounted pool. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    grower: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    data_dir: PathBuf,
    root: PathBuf,
    options: PoolOptions,
    reserve: u64,
    device: LoopDevice,
    /// Device and inode number of the file.
    identity: (u64, u64),
    /// The file's size, and the file system's. Written under `state`; read without, as growing takes its time.
    size: AtomicU64,
    /// Subvolumes were destroyed whose space the kernel may be talked into freeing.
    reclaimable: AtomicBool,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Debug)]
struct State {
    file: File,
    stopping: bool,
    /// The last failure was told; the next success makes it news again.
    complained: bool,
}

impl Pool {
    /// Opens the pool of `data_dir`, making it where there is none. `reserve` is what the file system below keeps. The
    /// caller holds the data directory's lock.
    pub(crate) fn open(data_dir: &Path, options: &PoolOptions, reserve: u64) -> Result<Self, Unavailable> {
        let path = file_path(data_dir);
        if !path.exists() {
            make(data_dir, options, reserve)?;
        }
        let mut file = open_file(&path)?;
        let found = judge(&mut file, &path)?;
        let metadata = file.metadata().map_err(Unavailable::system("look at", &path))?;
        let (size, identity) = (metadata.len(), (metadata.dev(), metadata.ino()));
        if size < found.total_bytes {
            // Mounting would say so, but not where the file system is alive and only gets one mount more.
            return Err(Unavailable::PoolShort { path, found: size, size: found.total_bytes });
        }
        // Somebody may have copied it with holes in it.
        allocate(&file, 0, size).map_err(Unavailable::system("allocate all of", &path))?;
        let device = find_or_attach(&file, &path, &found, options.direct_io)?;
        let root = data_dir.join(MOUNTED);
        mount_at(&device, &root)?;
        let state = State { file, stopping: false, complained: false };
        let shared = Arc::new(Shared {
            data_dir: data_dir.to_owned(),
            root,
            options: options.clone(),
            reserve,
            device,
            identity,
            size: AtomicU64::new(size),
            reclaimable: AtomicBool::new(false),
            state: Mutex::new(state),
            stop: Condvar::new(),
        });
        let mut pool = Self { shared, grower: None };
        if found.total_bytes < size {
            // A daemon was killed between growing the file and growing what is in it.
            pool.shared.settle().map_err(|source| Unavailable::System { what: "grow", path, source })?;
        }
        pool.grower = Some(pool.start_grower()?);
        Ok(pool)
    }

    fn start_grower(&self) -> Result<JoinHandle<()>, Unavailable> {
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name("pool-grower".to_owned())
            .spawn(move || shared.grow_as_needed())
            .map_err(Unavailable::system("start a thread for", &self.shared.root))
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> &Path {
        &self.shared.root
    }

    /// Subvolumes were destroyed: their space can be had before the file grows.
    pub(crate) fn note_destroyed(&self) {
        self.shared.reclaimable.store(true, Ordering::Relaxed);
    }

    pub(crate) fn capacity(&self) -> Result<Capacity, Error> {
        let (total, free) = layout::space(&self.shared.root)?;
        let more = self.shared.room_to_grow()?;
        Ok(Capacity { total: total + more, free: free + more, reserve: self.shared.reserve })
    }

    /// Whether the file is the one that was opened, and as long as what is in it.
    pub(crate) fn health(&self) -> Result<(), Error> {
        let path = file_path(&self.shared.data_dir);
        // Before the file is looked at: it grows first.
        let size = self.shared.size();
        match fs::symlink_metadata(&path) {
            Ok(found) if (found.dev(), found.ino()) != self.shared.identity => Err(Error::PoolGone { path }),
            Ok(found) if found.len() < size => Err(Error::PoolCut { path, found: found.len(), size }),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::PoolGone { path }),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    pub(crate) fn describe(&self) -> String {
        let size = self.shared.size() >> 20;
        let max = match self.shared.options.max {
            Some(max) => format!("at most to {} MiB and ", max >> 20),
            None => String::new(),
        };
        format!(
            "the pool file {} ({size} MiB on {}{}, growing {max}while {} MiB stay free below)",
            file_path(&self.shared.data_dir).display(),
            self.shared.device.path().display(),
            if self.shared.device.direct_io() { " with direct I/O" } else { "" },
            self.shared.reserve >> 20
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.stop.notify_all();
        if let Some(Err(_)) = self.grower.take().map(JoinHandle::join) {
            tracing::error!("the thread that grows the pool had panicked");
        }
        let root = &self.shared.root;
        match unmount(root, UnmountFlags::empty()) {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                tracing::warn!(root = %root.display(), "the pool is still in use; it goes when its last user does");
                if let Err(error) = unmount(root, UnmountFlags::DETACH) {
                    tracing::warn!(root = %root.display(), %error, "could not detach the pool");
                }
            }
            Err(error) => tracing::warn!(root = %root.display(), %error, "could not unmount the pool"),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The grower's life. Looks the more often the less is free.
    fn grow_as_needed(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let wait = match self.grow_if_short(&mut state) {
                Ok(free) => {
                    state.complained = false;
                    until_next_look(free)
                }
                Err(error) => {
                    if !std::mem::replace(&mut state.complained, true) {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "the pool cannot grow");
                    }
                    LOOK_AT_LEAST
                }
            };
            state = self.stop.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Grows by a step when less than half a step is free; returns what is free.
    fn grow_if_short(&self, state: &mut State) -> Result<u64, Unavailable> {
        let (_, free) = layout::space(&self.root).map_err(Box::new)?;
        if free >= self.options.step / 2 {
            return Ok(free);
        }
        if self.reclaimable.swap(false, Ordering::Relaxed) {
            self.reclaim().map_err(Unavailable::system("free removed sandboxes in", &self.root))?;
            if free >= self.options.step / 8 {
                return Ok(0); // Looks again at once, and grows then unless enough came back.
            }
        }
        let more = self.room_to_grow().map_err(Box::new)?.min(self.options.step) / UNIT * UNIT;
        if more == 0 {
            return Ok(free.max(FILL_RATE));
        }
        self.grow_by(state, more).map_err(Unavailable::system("grow", file_path(&self.data_dir)))?;
        tracing::info!(bytes = self.size(), "the pool grew");
        Ok(free + more)
    }

    fn grow_by(&self, state: &mut State, more: u64) -> io::Result<()> {
        let size = self.size();
        if let Err(error) = allocate(&state.file, size, more) {
            // Part of it may be there; the file is again what the file system in it takes it for.
            state.file.set_len(size)?;
            return Err(error);
        }
        self.size.store(size + more, Ordering::Relaxed);
        self.settle()
    }

    fn reclaim(&self) -> io::Result<()> {
        btrfs::sync(File::open(&self.root)?.as_fd())
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Makes the device as large as the file, and the file system as large as the device.
    fn settle(&self) -> io::Result<()> {
        self.device.grow()?;
        btrfs::grow_to_device(File::open(&self.root)?.as_fd())
    }

    /// How much larger the file may become now.
    fn room_to_grow(&self) -> Result<u64, Error> {
        let (_, free) = layout::space(&self.data_dir)?;
        Ok(room_to_grow(self.size(), self.options.max, free, self.reserve))
    }
}

/// Pure part of it.
fn room_to_grow(size: u64, max: Option<u64>, free_below: u64, reserve: u64) -> u64 {
    max.unwrap_or(u64::MAX).saturating_sub(size).min(free_below.saturating_sub(reserve)) / UNIT * UNIT
}

fn until_next_look(free: u64) -> Duration {
    Duration::from_millis(free / (FILL_RATE / 1000)).clamp(LOOK_AT_MOST, LOOK_AT_LEAST)
}

/// Makes the file under another name and renames it when it is good.
fn make(data_dir: &Path, options: &PoolOptions, reserve: u64) -> Result<(), Unavailable> {
    let initial = options.initial / UNIT * UNIT;
    if initial < LEAST {
        return Err(Unavailable::PoolTooSmall { wanted: options.initial, least: LEAST });
    }
    let (_, free) = layout::space(data_dir).map_err(Box::new)?;
    if free < initial.saturating_add(reserve) {
        let path = data_dir.to_owned();
        return Err(Unavailable::NoRoom { path, wanted: initial, free, reserve });
    }
    let mkfs = find_mkfs().ok_or(Unavailable::NoMkfs)?;
    let unfinished = data_dir.join(UNFINISHED);
    let made = write_pool(&mkfs, &unfinished, initial)
        .and_then(|()| publish(&unfinished, &file_path(data_dir), data_dir));
    if made.is_err() {
        // Best effort: the next attempt begins by truncating it.
        let _ = fs::remove_file(&unfinished);
    }
    made
}

fn write_pool(mkfs: &Path, path: &Path, size: u64) -> Result<(), Unavailable> {
    let failed = |what| Unavailable::system(what, path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("make"))?;
    // On a btrfs below, copy on write would undo the allocation. Elsewhere there is no such flag, nor need.
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file) {
        let _ = rustix::fs::ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
    allocate(&file, 0, size).map_err(failed("allocate"))?;
    run_mkfs(mkfs, path)?;
    file.sync_all().map_err(failed("write out"))
}

fn publish(from: &Path, to: &Path, dir: &Path) -> Result<(), Unavailable> {
    fs::rename(from, to).map_err(Unavailable::system("rename into place", from))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Unavailable::system("write out", dir))
}

/// One copy of metadata: both would be on the same disk, and what the pool holds can be had again.
fn run_mkfs(mkfs: &Path, path: &Path) -> Result<(), Unavailable> {
    let output = Command::new(mkfs)
        .args([
            "--quiet",
            "--force",
            "--nodiscard",
            "--metadata",
            "single",
            "--data",
            "single",
            "--label",
            LABEL,
        ])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(Unavailable::system("run", mkfs))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Unavailable::Mkfs { status: output.status.to_string(), said })
}

/// Daemons often run without `sbin` in their path.
fn find_mkfs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join("mkfs.btrfs")).find(|candidate| candidate.is_file())
}

fn open_file(path: &Path) -> Result<File, Unavailable> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .map_err(Unavailable::system("open", path))
}

fn judge(file: &mut File, path: &Path) -> Result<Superblock, Unavailable> {
    match superblock::read(&mut *file).map_err(Unavailable::system("read", path))? {
        Ok(found) => Ok(found),
        Err(Odd::NotAPool(why)) => Err(Unavailable::NotAPool { path: path.to_owned(), why }),
        Err(Odd::Format(found)) => {
            Err(Unavailable::PoolFormat { path: path.to_owned(), found, known: LABEL })
        }
    }
}

fn find_or_attach(
    file: &File,
    path: &Path,
    superblock: &Superblock,
    direct_io: bool,
) -> Result<LoopDevice, Unavailable> {
    let found = LoopDevice::find_all(file).map_err(Unavailable::system("look for loop devices of", path))?;
    // After that: a device is attached for longer than its file system is alive.
    let living = living_devices(superblock);
    let names: Vec<_> = found.iter().map(|device| (device_name(device), device.is_whole())).collect();
    if let Some(at) = choose_device(&names, &living, path)?
        && let Some(device) = found.into_iter().nth(at)
    {
        return Ok(device);
    }
    let attached = match LoopDevice::attach(file.as_fd(), direct_io) {
        // Some kernels refuse where the file system below has no direct I/O, others do without by themselves.
        Err(error) if direct_io && error.kind() == io::ErrorKind::InvalidInput => {
            LoopDevice::attach(file.as_fd(), false)
        }
        other => other,
    };
    attached.map_err(Unavailable::system("attach a loop device to", path))
}

/// `loop<n>`.
fn device_name(device: &LoopDevice) -> String {
    device.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Names of the devices that the file system of this superblock is mounted from, in whatever mount namespace.
fn living_devices(superblock: &Superblock) -> Vec<String> {
    let devices = Path::new("/sys/fs/btrfs").join(uuid_text(superblock.id)).join("devices");
    let Ok(entries) = fs::read_dir(devices) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Which of the devices on the file, given by name and whether they are fit, is to be mounted; none where there is none.
fn choose_device(
    found: &[(String, bool)],
    living: &[String],
    path: &Path,
) -> Result<Option<usize>, Unavailable> {
    let path = || path.to_owned();
    if let Some(device) = living.first() {
        let at = found.iter().position(|(name, _)| living.contains(name));
        let elsewhere = || Unavailable::PoolElsewhere { path: path(), device: format!("/dev/{device}") };
        return at.map(Some).ok_or_else(elsewhere);
    }
    match found.iter().find(|(_, fit)| !fit) {
        Some((name, _)) => Err(Unavailable::PoolHeld { path: path(), device: format!("/dev/{name}") }),
        None => Ok((!found.is_empty()).then_some(0)),
    }
}

fn mount_at(device: &LoopDevice, root: &Path) -> Result<(), Unavailable> {
    layout::make_private(root).map_err(Box::new)?;
    // A daemon without a mount namespace of its own, killed, leaves its mount. We hold the device, so it stays.
    while is_mounted(device, root) {
        unmount(root, UnmountFlags::DETACH)
            .map_err(|e| Unavailable::system("detach an old mount at", root)(e.into()))?;
        tracing::info!(root = %root.display(), "detached the mount of a daemon that is gone");
    }
    mount(device.path(), root, "btrfs", MountFlags::NOATIME, MOUNT_OPTIONS)
        .map_err(|e| Unavailable::system("mount the pool at", root)(e.into()))
}

/// Whether `device` is mounted on `root`, as mountinfo tells it: a btrfs's device number is nobody else's.
fn is_mounted(device: &LoopDevice, root: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return false };
    let (device, root) = (device.path().to_string_lossy(), root.canonicalize());
    let Ok(root) = root else { return false };
    mounts.lines().any(|line| names_mount(line, &device, &root.to_string_lossy()))
}

/// Reads a line of mountinfo (proc_pid_mountinfo(5)): the mount point is the fifth field, the device the second after
/// the dash. Blanks in names are written in octal.
fn names_mount(line: &str, device: &str, root: &str) -> bool {
    let Some((left, right)) = line.split_once(" - ") else { return false };
    let escaped =
        root.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012");
    left.split(' ').nth(4) == Some(&escaped) && right.split(' ').nth(1) == Some(device)
}

fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), offset, length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn growth_leaves_the_reserve() {
        assert_eq!(room_to_grow(GIB, None, 10 * GIB, 2 * GIB), 8 * GIB);
        assert_eq!(room_to_grow(GIB, Some(3 * GIB), 10 * GIB, 2 * GIB), 2 * GIB);
        assert_eq!(room_to_grow(4 * GIB, Some(3 * GIB), 10 * GIB, 2 * GIB), 0);
        assert_eq!(room_to_grow(GIB, None, GIB, 2 * GIB), 0);
        assert_eq!(room_to_grow(GIB, None, 2 * GIB + UNIT + 5, 2 * GIB), UNIT);
    }

    #[test]
    fn it_looks_the_more_often_the_less_is_free() {
        assert_eq!(until_next_look(0), LOOK_AT_MOST);
        assert!(until_next_look(GIB) < until_next_look(4 * GIB));
        assert_eq!(until_next_look(u64::MAX), LOOK_AT_LEAST);
    }

    #[test]
    fn the_device_that_lives_is_used_and_never_a_second_one() {
        let choose = |found: &[(&str, bool)], living: &[&str]| {
            let found: Vec<_> = found.iter().map(|(name, fit)| ((*name).to_owned(), *fit)).collect();
            let living: Vec<_> = living.iter().map(|name| (*name).to_owned()).collect();
            choose_device(&found, &living, Path::new("/pool"))
        };
        assert!(matches!(choose(&[], &[]), Ok(None)));
        assert!(matches!(choose(&[("loop1", true)], &[]), Ok(Some(0))));
        assert!(matches!(choose(&[("loop1", true), ("loop2", true)], &["loop2"]), Ok(Some(1))));
        for found in [&[][..], &[("loop1", true)]] {
            let refused = choose(found, &["loop2"]);
            assert!(
                matches!(refused, Err(Unavailable::PoolElsewhere { device, .. }) if device == "/dev/loop2")
            );
        }
        let refused = choose(&[("loop1", true), ("loop2", false)], &[]);
        assert!(matches!(refused, Err(Unavailable::PoolHeld { device, .. }) if device == "/dev/loop2"));
    }

    #[test]
    fn mounts_are_recognised() {
        let line = "36 35 0:45 / /var/my\\040data/pool rw,noatime shared:1 - btrfs /dev/loop3 rw,nodiscard";
        assert!(names_mount(line, "/dev/loop3", "/var/my data/pool"));
        assert!(!names_mount(line, "/dev/loop4", "/var/my data/pool"));
        assert!(!names_mount(line, "/dev/loop3", "/var/my"));
        assert!(!names_mount("", "", ""));
    }
}
