//! What is mounted into a sandbox beside its root: from what the driver is asked for to what the jail is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use berth_jail::spec::{self, Contents};

use crate::driver::{Mount, MountSource};

/// Makes the directories below `dir` that take what is written to the overlays of `mounts`: `<number>/upper` and `work`.
pub(crate) fn make_dirs(mounts: &[Mount], dir: &Path) -> io::Result<()> {
    for (number, _) in overlays(mounts) {
        let own = dir.join(number.to_string());
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            let path = own.join(name);
            fs::create_dir_all(&path)?;
            // Whatever the daemon's umask: it is the mode of the overlay's `/`.
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

/// The same mounts for the jail, with the directories that [`make_dirs`] makes.
pub(crate) fn of_jail(mounts: &[Mount], dir: &Path) -> Vec<spec::Mount> {
    mounts
        .iter()
        .enumerate()
        .map(|(number, mount)| of_jail_one(mount, &dir.join(number.to_string())))
        .collect()
}

fn of_jail_one(mount: &Mount, dir: &Path) -> spec::Mount {
    let source = match &mount.source {
        MountSource::Layers { names, path } => spec::MountSource::Layers {
            lowers: names.clone(),
            upper: dir.join("upper"),
            work: dir.join("work"),
            path: path.clone(),
        },
        MountSource::Directory(path) => spec::MountSource::Directory(path.clone()),
        MountSource::Tmpfs { size } => spec::MountSource::Tmpfs { size: *size },
        MountSource::Bytes { bytes, uid, gid, mode } => {
            spec::MountSource::Bytes { contents: Contents(bytes.clone()), uid: *uid, gid: *gid, mode: *mode }
        }
    };
    spec::Mount { target: mount.target.clone(), read_only: mount.read_only, source }
}

fn overlays(mounts: &[Mount]) -> impl Iterator<Item = (usize, &Mount)> {
    mounts.iter().enumerate().filter(|(_, mount)| matches!(mount.source, MountSource::Layers { .. }))
}
