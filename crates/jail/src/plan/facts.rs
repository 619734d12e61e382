//! What of the machine a plan depends on.

use std::path::PathBuf;

use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};
use serde::{Deserialize, Serialize};

/// What the plan depends on besides the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What mount(2) takes as options: a page, with the final NUL.
    pub mount_options_bytes: usize,
    /// Highest capability number of the running kernel.
    pub last_capability: u8,
    /// Whether overlayfs takes layers one at a time too (`lowerdir+` of the new mount API), so that their number is
    /// not bounded by the length of the options.
    pub layers_one_by_one: bool,
}

impl Facts {
    /// Of this machine.
    pub fn detect() -> Result<Self, DetectError> {
        let path = PathBuf::from("/proc/sys/kernel/cap_last_cap");
        let text = std::fs::read_to_string(&path)
            .map_err(|source| DetectError::ReadLastCapability { path: path.clone(), source })?;
        let last_capability = text.trim().parse().map_err(|source| DetectError::ParseLastCapability {
            path,
            text: text.clone(),
            source,
        })?;
        // The kernel copies options in units of its page, and refuses what does not fit one of 4 KiB even where pages
        // are larger, in some versions; so the smallest.
        Ok(Self { mount_options_bytes: 4096, last_capability, layers_one_by_one: takes_layers_one_by_one() })
    }
}

/// Tried and not read from a version: distributions' kernels have it earlier. Nothing is mounted.
///
/// Before Linux 6.5 overlayfs only collects options, whatever they are called, and refuses them when it is mounted. So
/// what takes a name that nobody has says nothing by taking this one.
fn takes_layers_one_by_one() -> bool {
    let takes = |name: &str| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        context.is_ok_and(|context| fsconfig_set_string(&context, name, "/").is_ok())
    };
    takes("lowerdir+") && !takes("berth-has-no-such-option")
}

/// Why [`Facts::detect`] failed.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The file cannot be read.
    #[error("cannot read the highest capability from {}", path.display())]
    ReadLastCapability {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("not a capability number in {}: {text:?}", path.display())]
    ParseLastCapability {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// Cause.
        #[source]
        source: std::num::ParseIntError,
    },
}
