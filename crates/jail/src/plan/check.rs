//! What is refused before anything happens.

use std::path::{Component, Path, PathBuf};

use crate::capability::Capability;
use crate::ids::IdRangeError;
use crate::plan::facts::Facts;
use crate::plan::{distinct, string_options_bytes};
use crate::spec::{Bind, Mount, MountSource, Spec};

/// Longest host name. gethostname(2).
const HOSTNAME_MAX: usize = 64;
/// `OVL_MAX_STACK` of the kernel's `fs/overlayfs`.
pub(crate) const LAYERS_MAX: usize = 500;

/// Why a spec has no plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A path is relative, or climbs.
    #[error("{what} must be an absolute path without \"..\": {}", path.display())]
    NotAbsolute {
        /// Which one.
        what: &'static str,
        /// As it was given.
        path: PathBuf,
    },
    /// A layer's name is not one plain file name, or holds a character that separates overlay options.
    #[error("layer name {name:?} is not a plain file name")]
    LayerName {
        /// As it was given.
        name: String,
    },
    /// The names of the layers are longer than one mount call takes.
    #[error("{count} layers do not fit one overlay mount: they take {bytes} of {limit} bytes")]
    TooManyLayers {
        /// How many layers.
        count: usize,
        /// What their options take.
        bytes: usize,
        /// What mount(2) takes.
        limit: usize,
    },
    /// More layers than overlayfs has room for.
    #[error("{count} layers are too many: one overlay has at most {LAYERS_MAX}")]
    LayersBeyondOverlay {
        /// How many layers.
        count: usize,
    },
    /// A range of ids that cannot be a sandbox's.
    #[error(transparent)]
    Ids(#[from] IdRangeError),
    /// Both must be seen through one id-mapped mount.
    #[error("{} and {} must be in one directory for a sandbox with ids of its own", upper.display(), work.display())]
    DisksApart {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// A number of processors to show that is none.
    #[error("{cpus} is not a number of processors")]
    Cpus {
        /// As it was given.
        cpus: f64,
    },
    /// Commands are to have what the guest itself does not, so it could not be given to them.
    #[error("commands cannot have the capability {} that the guest lacks", String::from(*capability))]
    CommandCapability {
        /// Which one.
        capability: Capability,
    },
    /// What takes the changes of a mount is not with what takes those of the root, or in two places.
    #[error("{} and {} must be in one directory below that of the sandbox's root", upper.display(), work.display())]
    MountDisks {
        /// The upper directory.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },
    /// The owner of a file is none that there is inside.
    #[error("there is no user {uid} or no group {gid} in a sandbox with {count} ids to own {}", target.display())]
    MountOwner {
        /// Where the file is mounted.
        target: PathBuf,
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
        /// How many ids there are.
        count: u32,
    },
    /// Another mount over the whole root.
    #[error("nothing can be mounted at {}", target.display())]
    MountRoot {
        /// Where.
        target: PathBuf,
    },
    /// A bind over the whole root.
    #[error("{} cannot be mounted at {}", source_path.display(), target.display())]
    BindTarget {
        /// What was to be mounted.
        source_path: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Longer than the kernel takes, or empty.
    #[error("host name {hostname:?} must have 1 to {HOSTNAME_MAX} bytes")]
    Hostname {
        /// As it was given.
        hostname: String,
    },
    /// A capability that the running kernel does not know, so that it cannot be granted.
    #[error("the running kernel has no capability {}", String::from(*capability))]
    CapabilityUnknownToKernel {
        /// Which one.
        capability: Capability,
    },
}

pub(crate) fn check(spec: &Spec, facts: &Facts) -> Result<(), Error> {
    check_layers(&spec.root.lowers, facts)?;
    if spec.hostname.is_empty() || spec.hostname.len() > HOSTNAME_MAX {
        return Err(Error::Hostname { hostname: spec.hostname.clone() });
    }
    let unknown = spec.capabilities.iter().find(|capability| capability.number() > facts.last_capability);
    if let Some(capability) = unknown {
        return Err(Error::CapabilityUnknownToKernel { capability: *capability });
    }
    check_guest(spec)?;
    check_ids(spec)?;
    absolute("directory of layers", &spec.root.layers_dir)?;
    absolute("upper directory", &spec.root.upper)?;
    absolute("work directory", &spec.root.work)?;
    for file in [&spec.etc.resolv_conf, &spec.etc.hosts, &spec.etc.hostname].into_iter().flatten() {
        absolute("file for /etc", file)?;
    }
    if let Some(spool) = &spec.spool {
        absolute("directory of the spool", spool)?;
    }
    for path in &spec.guest.storage_used {
        absolute("file of the storage in use", path)?;
    }
    let handed = spec
        .cgroups
        .guest
        .iter()
        .flat_map(|guest| guest.execs.iter().chain(&guest.enter).chain(&guest.memory));
    for path in spec.cgroups.join.iter().chain(handed) {
        absolute("control group", path)?;
    }
    for write in &spec.cgroups.settle {
        absolute("file of a control group", &write.path)?;
    }
    spec.binds.iter().try_for_each(check_bind)?;
    spec.mounts.iter().try_for_each(|mount| check_mount(spec, mount, facts))
}

fn check_guest(spec: &Spec) -> Result<(), Error> {
    if let Some(cpus) = spec.guest.cpus.filter(|cpus| !cpus.is_finite() || *cpus <= 0.0) {
        return Err(Error::Cpus { cpus });
    }
    let Some(commands) = &spec.command_capabilities else { return Ok(()) };
    // Without SETPCAP the guest could not take any away from them either.
    let needed = commands.iter().copied().chain([Capability::SETPCAP]);
    match needed.into_iter().find(|capability| !spec.capabilities.contains(capability)) {
        Some(capability) => Err(Error::CommandCapability { capability }),
        None => Ok(()),
    }
}

fn check_ids(spec: &Spec) -> Result<(), Error> {
    let Some(ids) = spec.ids else { return Ok(()) };
    ids.check()?;
    let (upper, work) = (&spec.root.upper, &spec.root.work);
    if upper.parent().is_none() || upper.parent() != work.parent() {
        return Err(Error::DisksApart { upper: upper.clone(), work: work.clone() });
    }
    Ok(())
}

fn check_layers(lowers: &[String], facts: &Facts) -> Result<(), Error> {
    for name in lowers {
        let one_name = Path::new(name).components().collect::<Vec<_>>() == [Component::Normal(name.as_ref())];
        if !one_name || name.contains([',', ':', '\\', '\0']) {
            return Err(Error::LayerName { name: name.clone() });
        }
    }
    let lowers = distinct(lowers);
    let (count, bytes, limit) = (lowers.len(), string_options_bytes(&lowers), facts.mount_options_bytes);
    if count > LAYERS_MAX {
        return Err(Error::LayersBeyondOverlay { count });
    }
    if bytes > limit && !facts.layers_one_by_one {
        return Err(Error::TooManyLayers { count, bytes, limit });
    }
    Ok(())
}

fn check_bind(bind: &Bind) -> Result<(), Error> {
    absolute("source of a bind", &bind.source)?;
    absolute("target of a bind", &bind.target)?;
    if bind.target == Path::new("/") {
        return Err(Error::BindTarget { source_path: bind.source.clone(), target: bind.target.clone() });
    }
    Ok(())
}

fn check_mount(spec: &Spec, mount: &Mount, facts: &Facts) -> Result<(), Error> {
    let target = &mount.target;
    absolute("target of a mount", target)?;
    if target == Path::new("/") {
        return Err(Error::MountRoot { target: target.clone() });
    }
    match &mount.source {
        MountSource::Layers { lowers, upper, work, path } => {
            check_layers(lowers, facts)?;
            absolute("upper directory of a mount", upper)?;
            absolute("work directory of a mount", work)?;
            absolute("path in layers", path)?;
            let dir = spec.root.upper.parent().filter(|_| spec.ids.is_some());
            let outside = |path: &Path| dir.is_some_and(|dir| !path.starts_with(dir));
            if upper.parent() != work.parent() || outside(upper) {
                return Err(Error::MountDisks { upper: upper.clone(), work: work.clone() });
            }
            Ok(())
        }
        MountSource::Directory(source) => absolute("directory to mount", source),
        MountSource::Tmpfs { .. } => Ok(()),
        MountSource::Bytes { uid, gid, .. } => match spec.ids {
            Some(ids) if *uid.max(gid) >= ids.count => {
                Err(Error::MountOwner { target: target.clone(), uid: *uid, gid: *gid, count: ids.count })
            }
            _ => Ok(()),
        },
    }
}

fn absolute(what: &'static str, path: &Path) -> Result<(), Error> {
    let climbs = path.components().any(|component| component == Component::ParentDir);
    if path.is_absolute() && !climbs {
        return Ok(());
    }
    Err(Error::NotAbsolute { what, path: path.to_owned() })
}
