//! Whether what an engine stands on is still what it was: asked every few seconds, so nothing here takes longer than
//! looking at a few directories.

use std::fs;
use std::io::{self, Read as _};
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

/// Name of the file, in an engine's root, with the errors that the devices had counted before the sandboxes that are
/// there were made: they may have lived through the end of a daemon, and what the devices counted meanwhile is theirs too.
const BASELINE: &str = "device-errors";

/// No number has more digits; anything longer is not ours.
const BASELINE_LENGTH: u64 = 20;

/// The errors that do not matter to any sandbox, of the `now` that the devices have counted.
pub(crate) fn baseline(layout: &Layout, now: u64) -> Result<u64, Error> {
    let path = layout.root.join(BASELINE);
    let stored = stored(&path);
    let baseline = choose_baseline(layout.list()?.is_empty(), stored, now);
    if stored != Some(baseline)
        && let Err(error) = store(&path, baseline)
    {
        // On a full disk, say. The next daemon then takes its own count.
        tracing::warn!(%error, path = %path.display(), "could not write down the errors of the devices");
    }
    Ok(baseline)
}

/// Pure part of it. Less than was written down means that somebody reset the counters.
fn choose_baseline(no_sandboxes: bool, stored: Option<u64>, now: u64) -> u64 {
    stored.filter(|stored| !no_sandboxes && *stored <= now).unwrap_or(now)
}

fn stored(path: &Path) -> Option<u64> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(BASELINE_LENGTH + 1).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn store(path: &Path, baseline: u64) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, format!("{baseline}\n"))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, path)
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
    fn errors_count_from_before_the_oldest_sandbox() {
        assert_eq!(choose_baseline(true, Some(3), 7), 7);
        assert_eq!(choose_baseline(false, Some(3), 7), 3);
        assert_eq!(choose_baseline(false, None, 7), 7);
        assert_eq!(choose_baseline(false, Some(9), 7), 7);
    }

    #[test]
    fn a_later_daemon_counts_from_where_the_sandboxes_it_finds_began() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path()).unwrap();
        assert_eq!(baseline(&layout, 2).unwrap(), 2);
        fs::create_dir(layout.sandboxes.join("a")).unwrap();
        assert_eq!(baseline(&layout, 5).unwrap(), 2);
        assert_eq!(baseline(&layout, 6).unwrap(), 2);
        fs::write(dir.path().join(BASELINE), "1".repeat(1 << 20)).unwrap();
        assert_eq!(baseline(&layout, 6).unwrap(), 6);
        fs::remove_dir(layout.sandboxes.join("a")).unwrap();
        assert_eq!(baseline(&layout, 8).unwrap(), 8);
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
