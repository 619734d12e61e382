//! The guest's executable, in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;

/// The guest's executable in a sealed memory file: nothing is added to an image's files, and nobody who gets hold of
/// it, the sandbox included, can change what the next sandbox runs.
#[derive(Debug)]
pub struct GuestImage {
    memory: OwnedFd,
}

/// Why there is no guest image.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// The kernel refuses executable memory files.
    #[error("the kernel refuses executable memory files (sysctl vm.memfd_noexec)")]
    Refused(#[source] io::Error),
    /// It cannot be made.
    #[error("cannot make a memory file of {bytes} bytes for the guest")]
    Make {
        /// Size of the executable.
        bytes: usize,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl GuestImage {
    /// Puts `executable`, a static program, into a sealed memory file. Make one, use it for all sandboxes.
    pub fn new(executable: &[u8]) -> Result<Self, GuestImageError> {
        let failed = |source: io::Error| GuestImageError::Make { bytes: executable.len(), source };
        let memory = executable_memory_file()?;
        let mut file = File::from(memory);
        file.write_all(executable).map_err(failed)?;
        // Its owner is nobody in a sandbox with ids of its own: everybody must be able to execute it, and nobody more.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o555)).map_err(|error| failed(error.into()))?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(|error| failed(error.into()))?;
        Ok(Self { memory: file.into() })
    }
}

impl AsFd for GuestImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// `MFD_EXEC` says that execution is meant (Linux 6.3); older kernels do not know the flag and need none.
pub(crate) fn executable_memory_file() -> Result<OwnedFd, GuestImageError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match rustix::fs::memfd_create("berth-guest", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("berth-guest", flags),
        made => made,
    };
    made.map_err(|error| match error {
        Errno::ACCESS => GuestImageError::Refused(error.into()),
        other => GuestImageError::Make { bytes: 0, source: other.into() },
    })
}
