//! From a [`Spec`] to the list of operations that make the container. Pure: no file is looked at.
//!
//! The order is the safety argument. Everything of the *host* is opened first, as detached mount trees, which are
//! descriptors without a place. Then the container's root is mounted, becomes `/`, and the old root is detached. Only
//! after that is anything of the *container* named: from then on no path can lead to the host, whatever links an image
//! contains, because the host's files have no name here any more. The detached trees are attached last, at targets
//! found by a walk that follows links by itself and cannot leave the root either.
//!
//! Device nodes: no mount of a container permits them (`nodev` on the root, on /dev and on all binds), so a node that
//! root makes in it with `CAP_MKNOD` opens nothing. The six harmless ones are bind mounts of the host's own nodes,
//! each a mount of its own. So no device control group is needed, which version 2 has only as BPF programs.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::seccomp::Profile;
use crate::spec::{Bind, GuestCgroup, Spec};

/// Longest host name. gethostname(2).
const HOSTNAME_MAX: usize = 64;
/// Room that the options beside the lower directories take at most: fixed text and two descriptor numbers.
const OVERLAY_FIXED_BYTES: usize = 160;
/// `/dev`, as Docker sizes it.
const DEV_OPTIONS: &str = "mode=755,size=65536k";

/// Nodes that every container has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Links in `/dev` that programs expect.
const DEV_LINKS: [(&str, &str); 5] = [
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
/// What tells about, or reaches into, the host; hidden where it is there.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What root could change for the whole machine, namespaces or not.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// The guest's own files: root in the container is its user, and could offer it to the out-of-memory killer first.
const GUEST_FILES: &str = "/proc/1";

/// What the plan depends on besides the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What mount(2) takes as options: a page, with the final NUL.
    pub mount_options_bytes: usize,
    /// Highest capability number of the running kernel.
    pub last_capability: u8,
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
        Ok(Self { mount_options_bytes: 4096, last_capability })
    }
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

/// Why a spec has no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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

/// Operations that make a container, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
}

/// One operation of the container's first process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Leave the launcher's session, so that no terminal's signals come.
    NewSession,
    /// Let go of the daemon's keys.
    NewKeyring,
    /// Join this control group (host path).
    JoinCgroup(PathBuf),
    /// Keep this control group open for the guest (host path).
    OpenGuestCgroup(GuestCgroup),
    /// See the groups just joined as the roots of their hierarchies.
    UnshareCgroups,
    /// Enter the network namespace that came with the request; without one, take loopback up in the own, empty one.
    EnterNetwork,
    /// Stop mounts from spreading to the host.
    PrivateMounts,
    /// Open a host path as a detached mount tree; trees are numbered from 0 in order.
    OpenTree(Tree),
    /// Mount the layers at the upper directory.
    MountOverlay(Overlay),
    /// Mount the upper directory at itself: the root of an image without layers.
    MountUpper(PathBuf),
    /// Make what is mounted at this host path the root, and detach the old one.
    PivotRoot(PathBuf),
    /// Mount a file system; missing directories are made, links refused.
    Mount(Mount),
    /// Make a symbolic link; `target` is its text.
    Link {
        /// Where.
        path: PathBuf,
        /// To what.
        target: String,
    },
    /// Put a detached tree at a path; what is missing is made.
    Attach {
        /// Number of the tree.
        tree: usize,
        /// Where.
        target: PathBuf,
    },
    /// Hide this path if it is there.
    Mask(PathBuf),
    /// Make this path read-only if it is there.
    ReadOnly(PathBuf),
    /// Set the host name.
    Hostname(String),
    /// Raise the soft limit of open files to the hard one.
    RaiseOpenFiles,
    /// Have all system calls from here on judged by the filter of this profile.
    FilterSystemCalls(Profile),
    /// Keep no capability but these, of all up to `last`.
    Capabilities {
        /// Kept.
        keep: Vec<Capability>,
        /// Highest number of the kernel.
        last: u8,
    },
    /// Make set-uid bits and file capabilities ineffective, for good.
    NoNewPrivileges,
    /// Default signals, file mode mask 022.
    ResetSignalsAndUmask,
}

/// A host path to open as a detached tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Host path.
    pub source: PathBuf,
    /// Whether it may only be read.
    pub read_only: bool,
    /// Whether it is one of the device nodes that a container has.
    pub device: bool,
}

/// An overlay to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Shown as the mount's source.
    pub name: String,
    /// Host directory that the lower names are relative to.
    pub layers_dir: PathBuf,
    /// Uppermost first.
    pub lowers: Vec<String>,
    /// Host path.
    pub upper: PathBuf,
    /// Host path.
    pub work: PathBuf,
}

/// A file system to mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Type, and shown as the source.
    pub file_system: String,
    /// Where.
    pub target: PathBuf,
    /// Flags beside `nosuid`, which all have.
    pub flags: Vec<Flag>,
    /// Options.
    pub options: String,
}

/// Flags of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// `MS_NODEV`.
    NoDev,
    /// `MS_NOEXEC`.
    NoExec,
    /// `MS_RDONLY`.
    ReadOnly,
}

impl Overlay {
    /// The options, without the two directories that are known by descriptor when it comes to it.
    ///
    /// The three switches are said because the upper directory may become a layer: redirects and metadata-only copies
    /// would make it one that means nothing without the mount that it came from, and an index would tie it to these
    /// lowers. What a kernel's configuration has as default differs.
    pub fn options(&self, upper: &str, work: &str) -> String {
        format!(
            "lowerdir={},upperdir={upper},workdir={work},index=off,redirect_dir=off,metacopy=off",
            self.lowers.join(":")
        )
    }
}

/// Plans a container.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<Plan, Error> {
    check(spec, facts)?;
    let mut ops = vec![Op::NewSession, Op::NewKeyring];
    join_cgroups(spec, &mut ops);
    ops.extend([Op::EnterNetwork, Op::PrivateMounts]);
    let trees = trees(spec);
    ops.extend(trees.iter().map(|(tree, _)| Op::OpenTree(tree.clone())));
    root(spec, &mut ops);
    kernel_file_systems(spec, &mut ops);
    for (number, (_, target)) in trees.into_iter().enumerate() {
        ops.push(Op::Attach { tree: number, target });
    }
    // After the devices are attached: files are masked with the container's own /dev/null.
    ops.extend(MASKED.map(|path| Op::Mask(path.into())));
    ops.extend(READ_ONLY.into_iter().chain([GUEST_FILES]).map(|path| Op::ReadOnly(path.into())));
    ops.extend([Op::Hostname(spec.hostname.clone()), Op::RaiseOpenFiles]);
    if spec.seccomp != Profile::Unconfined {
        // While the right to do so is there: without it the kernel asks for no-new-privileges, which sudo is not to have.
        // So the filter applies to what follows too, all of which it allows.
        ops.push(Op::FilterSystemCalls(spec.seccomp));
    }
    ops.push(Op::Capabilities { keep: spec.capabilities.clone(), last: facts.last_capability });
    if spec.no_new_privileges {
        ops.push(Op::NoNewPrivileges);
    }
    ops.push(Op::ResetSignalsAndUmask);
    Ok(Plan { ops })
}

fn join_cgroups(spec: &Spec, ops: &mut Vec<Op>) {
    ops.extend(spec.cgroups.join.iter().cloned().map(Op::JoinCgroup));
    ops.extend(spec.cgroups.guest.clone().map(Op::OpenGuestCgroup));
    ops.push(Op::UnshareCgroups);
}

fn root(spec: &Spec, ops: &mut Vec<Op>) {
    let root = &spec.root;
    ops.push(if root.lowers.is_empty() {
        Op::MountUpper(root.upper.clone())
    } else {
        Op::MountOverlay(Overlay {
            name: format!("berth-{}", spec.id),
            layers_dir: root.layers_dir.clone(),
            lowers: distinct(&root.lowers),
            upper: root.upper.clone(),
            work: root.work.clone(),
        })
    });
    ops.push(Op::PivotRoot(root.upper.clone()));
}

/// Each layer where it stands uppermost. An image may hold one several times (an empty one, mostly), overlayfs refuses
/// that, and the lower ones say nothing that the uppermost does not say again.
fn distinct(lowers: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    lowers.iter().filter(|name| seen.insert(name.as_str())).cloned().collect()
}

fn kernel_file_systems(spec: &Spec, ops: &mut Vec<Op>) {
    use Flag::{NoDev, NoExec, ReadOnly};
    let mut mount = |file_system: &str, target: &str, flags: &[Flag], options: &str| {
        ops.push(Op::Mount(Mount {
            file_system: file_system.to_owned(),
            target: target.into(),
            flags: flags.to_vec(),
            options: options.to_owned(),
        }));
    };
    mount("proc", "/proc", &[NoDev, NoExec], "");
    mount("sysfs", "/sys", &[NoDev, NoExec, ReadOnly], "");
    mount("tmpfs", "/sys/fs/cgroup", &[NoDev, NoExec, ReadOnly], "mode=755,size=0k,nr_inodes=1");
    mount("tmpfs", "/dev", &[NoDev], DEV_OPTIONS);
    mount("devpts", "/dev/pts", &[NoExec], "newinstance,ptmxmode=0666,mode=0620,gid=5");
    mount("mqueue", "/dev/mqueue", &[NoDev, NoExec], "");
    mount("tmpfs", "/dev/shm", &[NoDev, NoExec], &format!("mode=1777,size={}", spec.shm_bytes));
    ops.extend(DEV_LINKS.map(|(path, target)| Op::Link { path: path.into(), target: target.to_owned() }));
}

/// What is taken from the host, and where it goes.
fn trees(spec: &Spec) -> Vec<(Tree, PathBuf)> {
    let device = |name: &str| {
        let path = Path::new("/dev").join(name);
        (Tree { source: path.clone(), read_only: false, device: true }, path)
    };
    let etc_files = [
        (&spec.etc.resolv_conf, "/etc/resolv.conf"),
        (&spec.etc.hosts, "/etc/hosts"),
        (&spec.etc.hostname, "/etc/hostname"),
    ];
    let etc = etc_files.into_iter().filter_map(|(source, target)| {
        let source = source.clone()?;
        Some((Tree { source, read_only: false, device: false }, PathBuf::from(target)))
    });
    let binds = spec.binds.iter().map(|bind| {
        let tree = Tree { source: bind.source.clone(), read_only: bind.read_only, device: false };
        (tree, bind.target.clone())
    });
    DEVICES.iter().map(|name| device(name)).chain(etc).chain(binds).collect()
}

fn check(spec: &Spec, facts: &Facts) -> Result<(), Error> {
    check_layers(spec, facts)?;
    if spec.hostname.is_empty() || spec.hostname.len() > HOSTNAME_MAX {
        return Err(Error::Hostname { hostname: spec.hostname.clone() });
    }
    let unknown = spec.capabilities.iter().find(|capability| capability.number() > facts.last_capability);
    if let Some(capability) = unknown {
        return Err(Error::CapabilityUnknownToKernel { capability: *capability });
    }
    absolute("directory of layers", &spec.root.layers_dir)?;
    absolute("upper directory", &spec.root.upper)?;
    absolute("work directory", &spec.root.work)?;
    for file in [&spec.etc.resolv_conf, &spec.etc.hosts, &spec.etc.hostname].into_iter().flatten() {
        absolute("file for /etc", file)?;
    }
    for dir in spec.cgroups.join.iter().chain(spec.cgroups.guest.as_ref().map(|guest| &guest.dir)) {
        absolute("control group", dir)?;
    }
    spec.binds.iter().try_for_each(check_bind)
}

fn check_layers(spec: &Spec, facts: &Facts) -> Result<(), Error> {
    let lowers = &spec.root.lowers;
    for name in lowers {
        let one_name = Path::new(name).components().collect::<Vec<_>>() == [Component::Normal(name.as_ref())];
        if !one_name || name.contains([',', ':', '\\', '\0']) {
            return Err(Error::LayerName { name: name.clone() });
        }
    }
    let lowers = distinct(lowers);
    let bytes = lowers.iter().map(|name| name.len() + 1).sum::<usize>() + OVERLAY_FIXED_BYTES;
    if bytes > facts.mount_options_bytes {
        return Err(Error::TooManyLayers { count: lowers.len(), bytes, limit: facts.mount_options_bytes });
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

fn absolute(what: &'static str, path: &Path) -> Result<(), Error> {
    let climbs = path.components().any(|component| component == Component::ParentDir);
    if path.is_absolute() && !climbs {
        return Ok(());
    }
    Err(Error::NotAbsolute { what, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{CgroupMembership, DEFAULT_SHM_BYTES, EtcFiles, Root};

    const FACTS: Facts = Facts { mount_options_bytes: 4096, last_capability: 40 };

    fn spec() -> Spec {
        Spec {
            id: "0190".to_owned(),
            hostname: "box".to_owned(),
            root: Root {
                layers_dir: "/data/layers".into(),
                lowers: vec!["bbbb".to_owned(), "aaaa".to_owned()],
                upper: "/data/sandboxes/0190/upper".into(),
                work: "/data/sandboxes/0190/work".into(),
            },
            binds: vec![Bind { source: "/srv/cache".into(), target: "/cache".into(), read_only: true }],
            etc: EtcFiles {
                resolv_conf: Some("/data/sandboxes/0190/resolv.conf".into()),
                hosts: Some("/data/sandboxes/0190/hosts".into()),
                hostname: None,
            },
            cgroups: CgroupMembership {
                join: vec!["/sys/fs/cgroup/berth/i/0190".into()],
                guest: Some(GuestCgroup { dir: "/sys/fs/cgroup/berth/i/0190".into(), v2: true }),
            },
            no_new_privileges: true,
            capabilities: Capability::defaults(),
            seccomp: Profile::Default,
            shm_bytes: DEFAULT_SHM_BYTES,
        }
    }

    #[test]
    fn a_container_with_everything() {
        insta::assert_json_snapshot!(plan(&spec(), &FACTS).unwrap());
    }

    #[test]
    fn a_container_without_layers_or_extras() {
        let mut spec = spec();
        spec.root.lowers.clear();
        spec.binds.clear();
        spec.etc = EtcFiles::default();
        spec.cgroups = CgroupMembership::default();
        spec.no_new_privileges = false;
        spec.seccomp = Profile::Unconfined;
        insta::assert_json_snapshot!(plan(&spec, &FACTS).unwrap());
    }

    #[test]
    fn overlay_options() {
        let plan = plan(&spec(), &FACTS).unwrap();
        let overlay = plan.ops.into_iter().find_map(|op| match op {
            Op::MountOverlay(overlay) => Some(overlay),
            _ => None,
        });
        insta::assert_snapshot!(overlay.unwrap().options("/proc/self/fd/8", "/proc/self/fd/9"), @"lowerdir=bbbb:aaaa,upperdir=/proc/self/fd/8,workdir=/proc/self/fd/9,index=off,redirect_dir=off,metacopy=off");
    }

    #[test]
    fn a_layer_that_an_image_holds_twice_is_mounted_once() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(distinct(&names(&["b", "e", "a", "e", "e", "base"])), names(&["b", "e", "a", "base"]));
    }

    #[test]
    fn the_fixed_part_of_the_options_is_within_its_allowance() {
        let overlay = Overlay {
            name: String::new(),
            layers_dir: PathBuf::new(),
            lowers: Vec::new(),
            upper: PathBuf::new(),
            work: PathBuf::new(),
        };
        let longest = "/proc/self/fd/2147483647";
        assert!(overlay.options(longest, longest).len() < OVERLAY_FIXED_BYTES);
    }

    #[test]
    fn a_hundred_and_fifty_layers_fit_and_two_hundred_do_not() {
        let mut spec = spec();
        let layers = |count: usize| (0..count).map(|number| format!("{number:024x}")).collect();
        spec.root.lowers = layers(150);
        assert!(plan(&spec, &FACTS).is_ok());
        spec.root.lowers = layers(200);
        let error = plan(&spec, &FACTS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "200 layers do not fit one overlay mount: they take 5160 of 4096 bytes"
        );
    }

    #[test]
    fn bad_specs_are_refused() {
        let refused = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            plan(&spec, &FACTS).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused(|spec| spec.root.lowers = vec!["a:b".to_owned()]), @r#"layer name "a:b" is not a plain file name"#);
        insta::assert_snapshot!(refused(|spec| spec.root.lowers = vec!["../a".to_owned()]), @r#"layer name "../a" is not a plain file name"#);
        insta::assert_snapshot!(refused(|spec| spec.binds[0].target = "/".into()), @"/srv/cache cannot be mounted at /");
        insta::assert_snapshot!(refused(|spec| spec.binds[0].target = "x".into()), @r#"target of a bind must be an absolute path without "..": x"#);
        insta::assert_snapshot!(refused(|spec| spec.binds[0].target = "/a/../..".into()), @r#"target of a bind must be an absolute path without "..": /a/../.."#);
        insta::assert_snapshot!(refused(|spec| spec.hostname = "x".repeat(65)), @r#"host name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" must have 1 to 64 bytes"#);
    }
}
