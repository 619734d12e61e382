//! What the tests of real engines share.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use berth_disk::{Limits, Writable};
use rustix::mount::{MountFlags, UnmountFlags};

pub const MIB: u64 = 1 << 20;

/// A directory on a disk. tmpfs cannot be behind a loop device with direct I/O, and is memory.
pub fn on_disk() -> tempfile::TempDir {
    const TMPFS: u64 = 0x0102_1994;
    let tmp = std::env::temp_dir();
    let in_memory = rustix::fs::statfs(&tmp).is_ok_and(|stat| stat.f_type as u64 == TMPFS);
    let place = if in_memory { Path::new("/var/tmp") } else { &tmp };
    tempfile::Builder::new().prefix("berth-disk-").tempdir_in(place).unwrap()
}

pub fn bytes(bytes: u64) -> Limits {
    Limits { bytes: Some(bytes), inodes: None }
}

/// Writes a file until there is no more room, and makes sure that all of it is on disk. Returns its size.
pub fn fill(path: &Path) -> (u64, io::Error) {
    let mut file = File::create(path).unwrap();
    let block: Vec<u8> = (0..64 << 10).map(|n: u32| (n % 251) as u8).collect();
    loop {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(error) => {
                file.sync_all().unwrap();
                return (file.metadata().unwrap().len(), error);
            }
        }
    }
}

/// An overlay as a sandbox has it, in this namespace.
pub struct Overlay(PathBuf);

impl Overlay {
    pub fn mount(dir: &Path, writable: &Writable) -> Self {
        let (lower, at) = (dir.join("lower"), dir.join("merged"));
        for path in [&lower, &at] {
            fs::create_dir_all(path).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}\0",
            lower.display(),
            writable.upper.display(),
            writable.work.display()
        );
        let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes()).unwrap();
        rustix::mount::mount("overlay", &at, "overlay", MountFlags::empty(), options).unwrap();
        Self(at)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

pub fn is_mounted(path: &Path) -> bool {
    let own = fs::metadata(path).unwrap().dev();
    own != fs::metadata(path.parent().unwrap()).unwrap().dev()
}

/// Loop devices with this file behind them, as the kernel names them.
pub fn devices_of(file: &Path) -> Vec<PathBuf> {
    let file = file.canonicalize().unwrap();
    let mut devices: Vec<_> = fs::read_dir("/sys/block")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|device| {
            fs::read_to_string(device.join("loop/backing_file"))
                .is_ok_and(|text| Path::new(text.trim()) == file)
        })
        .collect();
    devices.sort();
    devices
}

/// A file system of a test's own, in a file. Unmounted when dropped.
pub struct Mounted {
    at: PathBuf,
    _device: berth_sys::loopdev::LoopDevice,
}

impl Mounted {
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// Makes a file system in a file in `dir` and mounts it there; prints why it cannot.
pub fn make_and_mount(
    mkfs: &str,
    arguments: &[&str],
    kind: &str,
    options: &std::ffi::CStr,
    size: u64,
    dir: &Path,
) -> Option<Mounted> {
    let (image, at) = (dir.join("image"), dir.join("mounted"));
    let file = File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(size).unwrap();
    fs::create_dir(&at).unwrap();
    let made = std::process::Command::new(mkfs).args(arguments).arg(&image).output();
    if !made.is_ok_and(|output| output.status.success()) {
        println!("SKIP: no {mkfs} here");
        return None;
    }
    let device = match berth_sys::loopdev::LoopDevice::attach(std::os::fd::AsFd::as_fd(&file), false) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIP: no loop device here: {error}");
            return None;
        }
    };
    if let Err(error) = rustix::mount::mount(device.path(), &at, kind, MountFlags::empty(), options) {
        println!("SKIP: cannot mount {kind} here: {error}");
        return None;
    }
    Some(Mounted { at, _device: device })
}
