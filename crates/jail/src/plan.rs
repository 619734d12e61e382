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
//!
//! A container with ids of its own does all of that as root of the host, and enters its user namespace as one of the
//! last steps. So its mounts and its mount namespace belong to the host, and no capability inside has power over them.
//! Layers, disk and binds are seen through id-mapped mounts, so that neutral ids (0, 5, …) are stored, whatever range
//! the container has.

mod check;
mod facts;
mod mounts;
mod op;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::IdRange;
pub use crate::plan::check::Error;
pub use crate::plan::facts::{DetectError, Facts};
pub use crate::plan::op::{Bytes, Flag, Inside, Mount, Op, Overlay, Tree};
use crate::seccomp::Profile;
use crate::spec::Spec;

/// Room that the options beside the lower directories take at most: fixed text and two descriptor numbers.
const OVERLAY_FIXED_BYTES: usize = 160;
/// `/dev`, as Docker sizes it.
const DEV_OPTIONS: &str = "mode=755,size=65536k";
/// The group of terminals, in every distribution.
const TTY_GROUP: u32 = 5;

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
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    // Switches of the kernel's log, on kernels of distributions.
    "/proc/dynamic_debug",
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

/// Operations that make a container, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The operations.
    pub ops: Vec<Op>,
}

impl Plan {
    /// Whether it needs a user namespace in its [`crate::LaunchRequest`].
    pub fn enters_user_namespace(&self) -> bool {
        self.ops.contains(&Op::EnterUserNamespace)
    }
}

/// Plans a container.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<Plan, Error> {
    check::check(spec, facts)?;
    let mut ops = vec![Op::NewSession];
    if spec.ids.is_none() {
        ops.push(Op::NewKeyring);
    }
    join_cgroups(spec, &mut ops);
    guest(spec, &mut ops);
    ops.extend(spec.views.open());
    ops.extend([Op::EnterNetwork, Op::PrivateMounts]);
    let trees = trees(spec);
    let mounts = mounts::Mounts::new(spec, facts, trees.len());
    ops.extend(trees.iter().map(|(tree, _)| Op::OpenTree(tree.clone())));
    ops.extend(mounts.open());
    // Before what it lies in is covered: no mount is mapped twice.
    ops.extend(spec.spool.iter().map(|path| Op::PassDirectory {
        path: path.clone(),
        argument: "--spool-fd".to_owned(),
        mapped: spec.ids.is_some(),
    }));
    if let Some(ids) = spec.ids {
        map_root(mounts.dirs(), ids, mounts.first_mapped(), &mut ops);
    }
    ops.extend(mounts.make());
    root(spec, facts, &mut ops);
    kernel_file_systems(spec, &mut ops);
    for (number, (_, target)) in trees.into_iter().enumerate() {
        ops.push(Op::Attach { tree: number, target });
    }
    // Files that stand in for those of /proc and /sys are mounted here: what they cover is there, and nothing hides or
    // locks it yet.
    ops.extend(spec.views.mount());

    // After the devices are attached: files are masked with the container's own /dev/null.
    ops.extend(MASKED.map(|path| Op::Mask(path.into())));
    ops.extend(READ_ONLY.into_iter().chain([GUEST_FILES]).map(|path| Op::ReadOnly(path.into())));
    // Whatever they cover then, it is nothing that the operations so far needed.
    ops.extend(mounts.attach());
    ops.extend([Op::Hostname(spec.hostname.clone()), Op::RaiseOpenFiles]);
    if spec.ids.is_some() {
        // The keyring last: it is to belong to the container's root, and to count as its.
        ops.extend([Op::RaiseProcesses, Op::EnterUserNamespace, Op::NewKeyring]);
    }
    if spec.seccomp != Profile::Unconfined {
        // While the right to do so is there: without it the kernel asks for no-new-privileges, which sudo is not to have.
        // So the filter applies to what follows too, all of which it allows.
        ops.push(Op::FilterSystemCalls(spec.seccomp));
    }
    // After the user namespace is entered: that fills all sets anew.
    ops.push(Op::Capabilities {
        keep: spec.capabilities.clone(),
        guest: spec.views.guest_capabilities(),
        last: facts.last_capability,
    });
    if spec.no_new_privileges {
        ops.push(Op::NoNewPrivileges);
    }
    ops.push(Op::ResetSignalsAndUmask);
    Ok(Plan { ops })
}

fn join_cgroups(spec: &Spec, ops: &mut Vec<Op>) {
    ops.extend(spec.cgroups.join.iter().cloned().map(Op::JoinCgroup));
    ops.push(Op::UnshareCgroups);
    ops.extend(spec.cgroups.settle.iter().cloned().map(Op::WriteCgroup));
    let Some(guest) = &spec.cgroups.guest else { return };
    let mut pass = |path: &PathBuf, argument: &str| {
        ops.push(Op::PassFile { path: path.clone(), argument: argument.to_owned() });
    };
    guest.execs.iter().for_each(|dir| pass(dir, "--cgroup-fd"));
    guest.enter.iter().for_each(|dir| pass(dir, "--enter-fd"));
    guest.memory.iter().for_each(|dir| pass(dir, "--memory-fd"));
    if guest.v2 {
        ops.push(Op::TellGuest(vec!["--cgroup-v2".to_owned()]));
    }
}

/// What the guest is told and given.
fn guest(spec: &Spec, ops: &mut Vec<Op>) {
    let guest = &spec.guest;
    let mask = spec.command_capabilities.as_ref().map(|list| {
        let mask = list.iter().fold(0_u64, |mask, capability| mask | 1 << capability.number());
        format!("--capabilities={mask:x}")
    });
    let number = |name: &str, value: Option<u64>| value.map(|value| format!("--{name}={value}"));
    let arguments: Vec<String> = [
        mask,
        guest.cpus.map(|cpus| format!("--cpus={cpus}")),
        number("memory-bytes", guest.memory_bytes),
        number("pids", guest.pids),
        number("storage-bytes", guest.storage_bytes),
        number("orphan-ms", guest.orphan_ms),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !arguments.is_empty() {
        ops.push(Op::TellGuest(arguments));
    }
    for path in guest.storage_used.iter().cloned() {
        ops.push(Op::PassFile { path, argument: "--storage-used-fd".to_owned() });
    }
}

/// Has the directories behind the root seen with the container's ids. All are opened before the first is covered: one
/// may lie in another, and a mount is mapped only once.
fn map_root(dirs: &[PathBuf], ids: IdRange, first_tree: usize, ops: &mut Vec<Op>) {
    ops.extend(dirs.iter().cloned().map(Op::OpenMapped));
    let covers = (first_tree..).zip(dirs).map(|(tree, dir)| Op::Cover { tree, dir: dir.clone() });
    ops.extend(covers);
    ops.push(Op::MakeFilesAs(ids.first));
}

fn root(spec: &Spec, facts: &Facts, ops: &mut Vec<Op>) {
    let root = &spec.root;
    ops.push(overlay(spec, facts, &root.lowers, &root.upper, &root.work));
    ops.push(Op::PivotRoot(root.upper.clone()));
}

/// Mounts layers at the directory that takes their changes.
fn overlay(spec: &Spec, facts: &Facts, lowers: &[String], upper: &Path, work: &Path) -> Op {
    if lowers.is_empty() {
        return Op::MountUpper(upper.to_owned());
    }
    let lowers = distinct(lowers);
    Op::MountOverlay(Overlay {
        name: format!("berth-{}", spec.id),
        layers_dir: spec.root.layers_dir.clone(),
        one_by_one: string_options_bytes(&lowers) > facts.mount_options_bytes,
        lowers,
        upper: upper.to_owned(),
        work: work.to_owned(),
    })
}

/// Each layer where it stands uppermost. An image may hold one several times (an empty one, mostly), overlayfs refuses
/// that, and the lower ones say nothing that the uppermost does not say again.
fn distinct(lowers: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    lowers.iter().filter(|name| seen.insert(name.as_str())).cloned().collect()
}

/// What the options of an overlay take at most, with its layers in one string.
fn string_options_bytes(lowers: &[String]) -> usize {
    lowers.iter().map(|name| name.len() + 1).sum::<usize>() + OVERLAY_FIXED_BYTES
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
    let first = spec.ids.map_or(0, |ids| ids.first);
    let owner = spec.ids.map_or_else(String::new, |_| format!(",uid={first},gid={first}"));
    let tty = first + TTY_GROUP;
    mount(
        "tmpfs",
        "/sys/fs/cgroup",
        &[NoDev, NoExec, ReadOnly],
        &format!("mode=755,size=0k,nr_inodes=1{owner}"),
    );
    mount("tmpfs", "/dev", &[NoDev], &format!("{DEV_OPTIONS}{owner}"));
    // No owner: a terminal belongs to whoever opens it.
    mount("devpts", "/dev/pts", &[NoExec], &format!("newinstance,ptmxmode=0666,mode=0620,gid={tty}"));
    mount("mqueue", "/dev/mqueue", &[NoDev, NoExec], "");
    mount("tmpfs", "/dev/shm", &[NoDev, NoExec], &format!("mode=1777,size={}{owner}", spec.shm_bytes));
    ops.extend(DEV_LINKS.map(|(path, target)| Op::Link { path: path.into(), target: target.to_owned() }));
}

/// What is taken from the host, and where it goes.
fn trees(spec: &Spec) -> Vec<(Tree, PathBuf)> {
    let mapped = spec.ids.is_some();
    // Never mapped: the file system of the host's /dev has it not, and their modes let everybody use them.
    let device = |name: &str| {
        let path = Path::new("/dev").join(name);
        (Tree { source: path.clone(), read_only: false, device: true, mapped: false }, path)
    };
    let etc_files = [
        (&spec.etc.resolv_conf, "/etc/resolv.conf"),
        (&spec.etc.hosts, "/etc/hosts"),
        (&spec.etc.hostname, "/etc/hostname"),
    ];
    let etc = etc_files.into_iter().filter_map(|(source, target)| {
        let source = source.clone()?;
        Some((Tree { source, read_only: false, device: false, mapped }, PathBuf::from(target)))
    });
    let binds = spec.binds.iter().map(|bind| {
        let tree = Tree { source: bind.source.clone(), read_only: bind.read_only, device: false, mapped };
        (tree, bind.target.clone())
    });
    DEVICES.iter().map(|name| device(name)).chain(etc).chain(binds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::Capability;
    use crate::spec::{
        Bind, CgroupMembership, CgroupWrite, Contents, DEFAULT_SHM_BYTES, EtcFiles, GuestCgroup,
        GuestSettings, Mount, MountSource, Root,
    };

    const FACTS: Facts = Facts { mount_options_bytes: 4096, last_capability: 40, layers_one_by_one: true };
    const IDS: IdRange = IdRange { first: 1 << 30, count: 262_144 };

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
            mounts: Vec::new(),
            etc: EtcFiles {
                resolv_conf: Some("/data/sandboxes/0190/resolv.conf".into()),
                hosts: Some("/data/sandboxes/0190/hosts".into()),
                hostname: None,
            },
            cgroups: CgroupMembership {
                join: vec!["/sys/fs/cgroup/berth/i/0190/cgroup.procs".into()],
                settle: vec![CgroupWrite {
                    path: "/sys/fs/cgroup/berth/i/0190/guest/cgroup.procs".into(),
                    value: "0".to_owned(),
                    if_there: false,
                }],
                guest: Some(GuestCgroup {
                    execs: vec!["/sys/fs/cgroup/berth/i/0190/commands".into()],
                    enter: Vec::new(),
                    memory: Some("/sys/fs/cgroup/berth/i/0190".into()),
                    v2: true,
                }),
            },
            ids: None,
            guest: GuestSettings::default(),
            views: Default::default(),
            no_new_privileges: true,
            capabilities: Capability::defaults(),
            command_capabilities: None,
            seccomp: Profile::Default,
            shm_bytes: DEFAULT_SHM_BYTES,
            spool: Some("/data/sandboxes/0190/spool".into()),
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
        spec.spool = None;
        spec.cgroups = CgroupMembership::default();
        spec.no_new_privileges = false;
        spec.seccomp = Profile::Unconfined;
        insta::assert_json_snapshot!(plan(&spec, &FACTS).unwrap());
    }

    #[test]
    fn a_container_with_ids_of_its_own() {
        let mut spec = spec();
        spec.ids = Some(IDS);
        insta::assert_json_snapshot!(plan(&spec, &FACTS).unwrap());
    }

    #[test]
    fn a_container_with_ids_of_its_own_and_no_layers() {
        let mut spec = spec();
        spec.ids = Some(IDS);
        spec.root.lowers.clear();
        let ops = plan(&spec, &FACTS).unwrap().ops;
        let from = ops.iter().position(|op| matches!(op, Op::OpenMapped(_))).unwrap();
        let to = ops.iter().position(|op| matches!(op, Op::PivotRoot(_))).unwrap();
        insta::assert_json_snapshot!(ops[from..=to]);
    }

    #[test]
    fn layers_inside_the_sandboxes_directory_are_covered_after_it() {
        let mut spec = spec();
        spec.ids = Some(IDS);
        spec.root.layers_dir = "/data/sandboxes/0190/layers".into();
        let covered = plan(&spec, &FACTS).unwrap().ops.into_iter().filter_map(|op| match op {
            Op::Cover { tree, dir } => Some((tree, dir)),
            _ => None,
        });
        let dirs = ["/data/sandboxes/0190", "/data/sandboxes/0190/layers"].map(PathBuf::from);
        assert_eq!(covered.collect::<Vec<_>>(), (9..).zip(dirs).collect::<Vec<_>>());
    }

    #[test]
    fn a_container_with_mounts() {
        let mut spec = spec();
        spec.mounts = mounts();
        let beside = |spec: &Spec| {
            let all = plan(spec, &FACTS).unwrap().ops;
            let mut without = spec.clone();
            without.mounts.clear();
            let known = plan(&without, &FACTS).unwrap().ops;
            let order = |op: &Op| {
                matches!(op, Op::OpenMapped(_) | Op::Cover { .. } | Op::MakeFilesAs(_) | Op::PivotRoot(_))
            };
            all.into_iter().filter(|op| order(op) || !known.contains(op)).collect::<Vec<_>>()
        };
        insta::assert_json_snapshot!(beside(&spec));
        spec.ids = Some(IDS);
        insta::assert_json_snapshot!("a_container_with_mounts_and_ids_of_its_own", beside(&spec));
    }

    #[test]
    fn bad_mounts_are_refused() {
        let refused = |ids: Option<IdRange>, change: fn(&mut Mount)| {
            let mut spec = spec();
            spec.ids = ids;
            spec.mounts = mounts();
            change(&mut spec.mounts[0]);
            plan(&spec, &FACTS).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused(None, |mount| mount.target = "/".into()), @"nothing can be mounted at /");
        insta::assert_snapshot!(refused(None, |mount| mount.target = "/a/../..".into()), @r#"target of a mount must be an absolute path without "..": /a/../.."#);
        insta::assert_snapshot!(refused(None, |mount| if let MountSource::Layers { lowers, .. } = &mut mount.source { lowers[0] = "../x".to_owned() }), @r#"layer name "../x" is not a plain file name"#);
        insta::assert_snapshot!(refused(None, |mount| if let MountSource::Layers { path, .. } = &mut mount.source { *path = "/a/../b".into() }), @r#"path in layers must be an absolute path without "..": /a/../b"#);
        insta::assert_snapshot!(refused(None, |mount| if let MountSource::Layers { work, .. } = &mut mount.source { *work = "/elsewhere".into() }), @"/data/sandboxes/0190/mounts/0/upper and /elsewhere must be in one directory below that of the sandbox's root");
        insta::assert_snapshot!(refused(Some(IDS), |mount| if let MountSource::Layers { upper, work, .. } = &mut mount.source { (*upper, *work) = ("/data/u".into(), "/data/w".into()) }), @"/data/u and /data/w must be in one directory below that of the sandbox's root");
        insta::assert_snapshot!(refused(Some(IDS), |mount| mount.source = MountSource::Bytes { contents: Contents(vec![1]), uid: 0, gid: 262_144, mode: 0 }), @"there is no user 0 or no group 262144 in a sandbox with 262144 ids to own /context");
    }

    /// One of each kind, and one without layers.
    fn mounts() -> Vec<Mount> {
        let layers = |number: u32, lowers: &[&str]| MountSource::Layers {
            lowers: lowers.iter().map(|&name| name.to_owned()).collect(),
            upper: format!("/data/sandboxes/0190/mounts/{number}/upper").into(),
            work: format!("/data/sandboxes/0190/mounts/{number}/work").into(),
            path: "/src".into(),
        };
        let bytes = MountSource::Bytes { contents: Contents(b"key".to_vec()), uid: 5, gid: 6, mode: 0o400 };
        let mounts = [
            ("/context", true, layers(0, &["dddd", "cccc"])),
            ("/cache", false, MountSource::Directory("/data/caches/1".into())),
            ("/scratch", false, MountSource::Tmpfs { size: Some(4096) }),
            ("/key", true, bytes),
            ("/nothing", false, layers(4, &[])),
        ];
        let mount = |(target, read_only, source)| Mount { target: PathBuf::from(target), read_only, source };
        mounts.map(mount).into()
    }

    #[test]
    fn what_the_guest_is_told() {
        let mut spec = spec();
        spec.command_capabilities = Some(Vec::new());
        spec.guest = GuestSettings {
            cpus: Some(1.5),
            memory_bytes: Some(1 << 30),
            pids: Some(100),
            storage_bytes: Some(10 << 30),
            storage_used: vec!["/data/used/0190".into()],
            orphan_ms: Some(600_000),
        };
        let ops = plan(&spec, &FACTS).unwrap().ops;
        let told = ops
            .iter()
            .filter(|op| matches!(op, Op::TellGuest(_) | Op::PassFile { .. } | Op::PassDirectory { .. }));
        insta::assert_json_snapshot!(told.collect::<Vec<_>>());
        assert!(ops.iter().any(|op| matches!(op, Op::Capabilities { keep, .. } if keep.len() == 14)));
    }

    #[test]
    fn overlay_options() {
        let plan = plan(&spec(), &FACTS).unwrap();
        let overlay = plan.ops.into_iter().find_map(|op| match op {
            Op::MountOverlay(overlay) => Some(overlay),
            _ => None,
        });
        insta::assert_snapshot!(overlay.unwrap().options("/proc/self/fd/8", "/proc/self/fd/9"), @"lowerdir=bbbb:aaaa,upperdir=/proc/self/fd/8,workdir=/proc/self/fd/9,index=off,redirect_dir=off,metacopy=off,volatile");
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
            one_by_one: false,
        };
        let longest = "/proc/self/fd/2147483647";
        assert!(overlay.options(longest, longest).len() < OVERLAY_FIXED_BYTES);
    }

    #[test]
    fn layers_that_do_not_fit_one_string_go_one_by_one_where_the_kernel_takes_them() {
        let mut spec = spec();
        let layers = |count: usize| (0..count).map(|number| format!("{number:024x}")).collect();
        let one_by_one = |spec: &Spec, facts: &Facts| {
            let ops = plan(spec, facts).map_err(|error| error.to_string())?.ops;
            Ok::<_, String>(
                ops.iter().any(|op| matches!(op, Op::MountOverlay(overlay) if overlay.one_by_one)),
            )
        };
        let old = Facts { layers_one_by_one: false, ..FACTS };
        spec.root.lowers = layers(150);
        assert_eq!(one_by_one(&spec, &old), Ok(false));
        assert_eq!(one_by_one(&spec, &FACTS), Ok(false));
        spec.root.lowers = layers(200);
        let refused = "200 layers do not fit one overlay mount: they take 5160 of 4096 bytes";
        assert_eq!(one_by_one(&spec, &old), Err(refused.to_owned()));
        assert_eq!(one_by_one(&spec, &FACTS), Ok(true));
        spec.root.lowers = layers(501);
        let refused = "501 layers are too many: one overlay has at most 500";
        assert_eq!(one_by_one(&spec, &FACTS), Err(refused.to_owned()));
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
        insta::assert_snapshot!(refused(|spec| spec.ids = Some(IdRange { first: 0, count: 65_536 })), @"65536 ids from 0 cannot be a sandbox's: it takes at least 65536, none of them 0 or above 4294967294");
        insta::assert_snapshot!(refused(|spec| spec.ids = Some(IdRange { first: 1, count: 1000 })), @"1000 ids from 1 cannot be a sandbox's: it takes at least 65536, none of them 0 or above 4294967294");
        insta::assert_snapshot!(refused(|spec| spec.ids = Some(IdRange { first: u32::MAX - 65_535, count: 65_536 })), @"65536 ids from 4294901760 cannot be a sandbox's: it takes at least 65536, none of them 0 or above 4294967294");
        insta::assert_snapshot!(refused(|spec| { spec.ids = Some(IDS); spec.root.work = "/data/work".into() }), @"/data/sandboxes/0190/upper and /data/work must be in one directory for a sandbox with ids of its own");
        insta::assert_snapshot!(refused(|spec| spec.spool = Some("spool".into())), @r#"directory of the spool must be an absolute path without "..": spool"#);
        insta::assert_snapshot!(refused(|spec| spec.guest.cpus = Some(f64::NAN)), @"NaN is not a number of processors");
        insta::assert_snapshot!(refused(|spec| spec.command_capabilities = Some(vec![Capability::named("BPF").unwrap()])), @"commands cannot have the capability BPF that the guest lacks");
        insta::assert_snapshot!(refused(|spec| { spec.command_capabilities = Some(vec![]); spec.capabilities.clear() }), @"commands cannot have the capability SETPCAP that the guest lacks");
        insta::assert_snapshot!(refused(|spec| spec.hostname = "x".repeat(65)), @r#"host name "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" must have 1 to 64 bytes"#);
    }
}
