//! Whether what an engine stands on is still what it was: asked every few seconds, so nothing here takes longer than
//! looking at a few directories.

use std::fs;
use std::path::Path;

use rustix::fs::{Access, CWD, StatVfsMountFlags};

use crate::Error;
use crate::layout::{self, Layout};

/// Kinds of errors that btrfs counts for a device; the others it has (`generation_errs`) are of old copies.
const COUNTED: [&str; 4] = ["write_errs", "read_errs", "flush_errs", "corruption_errs"];

/// Whether the engine's directories are there and can be written to.
pub(crate) fn writable(layout: &Layout) -> Result<(), Error> {
    for path in [&layout.sandboxes, &layout.trash] {
        layout::open_dir(path)?;
        let failed = |source: rustix::io::Errno| Error::Open { path: path.clone(), source: source.into() };
        if rustix::fs::statvfs(path).map_err(failed)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(Error::ReadOnly { path: layout.root.clone() });
        }
        rustix::fs::accessat(CWD, path, Access::WRITE_OK, rustix::fs::AtFlags::empty()).map_err(failed)?;
    }
    Ok(())
}

/// Errors that a btrfs has counted on its devices, ever; `dir` is `/sys/fs/btrfs/<uuid>`. `None` where the kernel does
/// not tell (before 5.14).
pub(crate) fn device_errors(dir: &Path) -> Option<u64> {
    let mut sum = 0;
    for device in fs::read_dir(dir.join("devinfo")).ok()? {
        sum += count(&fs::read_to_string(device.ok()?.path().join("error_stats")).ok()?);
    }
    Some(sum)
}

/// Sums up lines such as `read_errs 0`.
fn count(text: &str) -> u64 {
    let number = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        COUNTED.contains(&name).then(|| number.trim().parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_summed_up() {
        let text = "write_errs 1\nread_errs 20\nflush_errs 0\ncorruption_errs 300\ngeneration_errs 4000\n";
        assert_eq!(count(text), 321);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn a_directory_that_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        writable(&layout).unwrap();
        fs::remove_dir(&layout.sandboxes).unwrap();
        let error = writable(&layout).unwrap_err();
        assert!(matches!(error, Error::Open { path, .. } if path == layout.sandboxes));
    }
}
