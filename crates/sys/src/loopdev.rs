//! Loop devices: a file as a block device. loop(4), `linux/loop.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::{checked, ioctl};

const SET_CAPACITY: u32 = 0x4c07;
const GET_STATUS64: u32 = 0x4c05;
const CONFIGURE: u32 = 0x4c0a;
const CTL_GET_FREE: u32 = 0x4c82;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// Another process may take the device that the kernel named as free; so many of them in a row are a fault.
const ATTEMPTS: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Info {
    const fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

/// A loop device with a file behind it. It lasts as long as anybody has it open or mounted, this value included: the
/// kernel detaches it after the last one (`LO_FLAGS_AUTOCLEAR`), also when a process was killed.
#[derive(Debug)]
pub struct LoopDevice {
    device: File,
    path: PathBuf,
    direct_io: bool,
    whole: bool,
}

impl LoopDevice {
    /// Attaches `backing`, open for reading and writing, to a free device with blocks of 4096 bytes. With `direct_io`
    /// the device goes past the page cache of the file system below, where that can; [`LoopDevice::direct_io`] tells
    /// what came of it. `LOOP_CONFIGURE`, Linux 5.8.
    pub fn attach(backing: BorrowedFd<'_>, direct_io: bool) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            let number = free_number(control.as_fd())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(device.as_fd(), backing, direct_io) {
                Ok(()) => return Self::look(device, path),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// The devices that have the file `backing` behind them already. `LOOP_GET_STATUS64`, Linux 2.6.
    ///
    /// They are opened for reading: where a device is mounted, a kernel may refuse to open it for writing
    /// (`CONFIG_BLK_DEV_WRITE_MOUNTED`), and everything here can be done all the same, with `CAP_SYS_ADMIN`.
    pub fn find_all(backing: &File) -> io::Result<Vec<Self>> {
        let wanted = backing.metadata()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block")? {
            let entry = entry?;
            // Only a device with a file has this directory; opening all of them would wake them for nothing.
            if !entry.path().join("loop").exists() {
                continue;
            }
            let path = Path::new("/dev").join(entry.file_name());
            let device = match File::open(&path) {
                Err(error) if is_gone(&error) => continue,
                device => device?,
            };
            let info = match status(device.as_fd()) {
                Err(error) if is_gone(&error) => continue,
                info => info?,
            };
            if info.inode == wanted.ino() && info.device == wanted.dev() {
                found.push(Self::look(device, path)?);
            }
        }
        Ok(found)
    }

    fn look(device: File, path: PathBuf) -> io::Result<Self> {
        let Info { flags, offset, sizelimit, .. } = status(device.as_fd())?;
        let whole = flags & READ_ONLY == 0 && (offset, sizelimit) == (0, 0);
        Ok(Self { device, path, direct_io: flags & DIRECT_IO != 0, whole })
    }

    /// `/dev/loop<n>`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it goes past the page cache of the file system below.
    pub fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Whether it is all of the file, for reading and writing, as [`LoopDevice::attach`] makes it.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Makes the device as large as the file behind it is now. `LOOP_SET_CAPACITY`, Linux 2.6.30.
    pub fn grow(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        let answer = unsafe { libc::ioctl(self.device.as_raw_fd(), SET_CAPACITY as _, 0) };
        checked(answer.into()).map(drop)
    }
}

fn free_number(control: BorrowedFd<'_>) -> io::Result<libc::c_long> {
    // SAFETY: the request takes no argument.
    let answer = unsafe { libc::ioctl(control.as_raw_fd(), CTL_GET_FREE as _, 0) };
    checked(answer.into())
}

fn configure(device: BorrowedFd<'_>, backing: BorrowedFd<'_>, direct_io: bool) -> io::Result<()> {
    let mut info = Info::empty();
    info.flags = AUTOCLEAR | if direct_io { DIRECT_IO } else { 0 };
    let fd = backing.as_raw_fd().cast_unsigned();
    let mut config = Config { fd, block_size: 4096, info, reserved: [0; 8] };
    // SAFETY: `config` is a valid loop_config that outlives the call; the descriptor in it is borrowed for as long.
    unsafe { ioctl::call(device, CONFIGURE, ptr::from_mut(&mut config).cast()) }
}

fn status(device: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::empty();
    // SAFETY: `info` is a valid loop_info64 that outlives the call.
    unsafe { ioctl::call(device, GET_STATUS64, ptr::from_mut(&mut info).cast())? };
    Ok(info)
}

/// Whether a device was detached or removed in between. Any other failure leaves it open whether it is the one.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV))
}
