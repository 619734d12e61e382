//! Containers with ids of their own.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use berth_jail::doctor::{State, user_namespaces};
use berth_jail::plan::Op;
use berth_jail::seccomp::Profile;
use berth_jail::spec::Bind;
use berth_jail::{Capability, Error, Facts, IdRange, plan};

use crate::containers::{children, with_300_layers};
use crate::rig::{IDS, Rig, launcher, probe};

pub fn is_root_of_its_range() {
    let mut rig = Rig::usual();
    rig.spec.no_new_privileges = true;
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("id"), "pid 1 uid 0 session 1");
    let numbers = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    for map in ["uid_map", "gid_map"] {
        let inside = sandbox.ask(&format!("cat /proc/self/{map}"));
        assert_eq!(numbers(&inside), "0 1500000000 262144", "{map}");
    }
    let outside = fs::read_to_string(format!("/proc/{}/status", sandbox.process.pid())).unwrap();
    for key in ["Uid", "Gid"] {
        let line = outside.lines().find(|line| line.starts_with(key)).unwrap();
        assert_eq!(numbers(line), format!("{key}: 1500000000 1500000000 1500000000 1500000000"));
    }
    assert_eq!(numbers(outside.lines().find(|line| line.starts_with("Groups")).unwrap()), "Groups:");
    // Entering filled all sets; they were emptied after it.
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(sandbox.status(set), "00000000a80425fb", "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(sandbox.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(sandbox.status("Seccomp"), "2");
    assert_eq!(sandbox.status("NoNewPrivs"), "1");
    assert_eq!(sorted_fds(&sandbox.ask("list /proc/self/fd")), "0 1 2 3 4");
}

pub fn stores_neutral_ids() {
    let mut rig = Rig::usual();
    let layer = rig.spec.root.layers_dir.join("base");
    chown(layer.join("etc/passwd"), Some(7), Some(8)).unwrap();
    rig.spec.etc.hosts = Some(rig.host_file("hosts", "hosts\n"));
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("put /new"), "ok");
    assert_eq!(sandbox.ask("look /new"), "0:0");
    assert_eq!(sandbox.ask("mkdir /directory"), "0");
    assert_eq!(sandbox.ask("own /directory 5 6"), "0");
    assert_eq!(sandbox.ask("own /new 262143 0"), "0");
    // EINVAL: there is no such id inside.
    assert_eq!(sandbox.ask("own /new 262144 0"), "22");
    assert_eq!(sandbox.ask("look /etc/passwd"), "7:8");
    assert_eq!(sandbox.ask("own /etc/passwd 9 9"), "0");
    assert_eq!(sandbox.ask("look /etc/hosts"), "0:0");
    assert_eq!(sandbox.ask("put /etc/hosts"), "ok");
    drop(sandbox);
    let owners = |name: &str| {
        let file = fs::symlink_metadata(rig.spec.root.upper.join(name)).unwrap();
        (file.uid(), file.gid())
    };
    assert_eq!(owners("new"), (262_143, 0));
    assert_eq!(owners("directory"), (5, 6));
    assert_eq!(owners("etc/passwd"), (9, 9));
    assert_eq!(owners("etc/hosts"), (0, 0), "a mount point that was made");
    assert_eq!(fs::metadata(layer.join("etc/passwd")).unwrap().uid(), 7);
    // Another range sees the same.
    rig.spec.ids = Some(IdRange { first: 1_600_000_000, ..IDS });
    let pair = launcher().make_namespaces(rig.spec.ids.unwrap()).unwrap();
    let again = plan(&rig.spec, &Facts::detect().unwrap()).unwrap();
    let sandbox = rig.launch_with(&again, Some(pair.net.as_fd()), Some(pair.user.as_fd())).unwrap();
    assert_eq!(sandbox.ask("look /directory"), "5:6");
    assert_eq!(sandbox.ask("put /directory/new"), "ok");
    drop(sandbox);
    // And so does a container without.
    rig.spec.ids = None;
    assert_eq!(rig.launch().ask("look /directory/new"), "0:0");
}

pub fn deletes() {
    let mut rig = Rig::usual();
    let base = rig.spec.root.layers_dir.join("base");
    fs::write(base.join("deleted"), "from base").unwrap();
    fs::create_dir(base.join("replaced")).unwrap();
    fs::write(base.join("replaced/file"), "from base").unwrap();
    let sandbox = rig.launch_mapped();
    for command in ["remove /deleted", "remove /replaced/file", "remove /replaced", "mkdir /replaced"] {
        assert_eq!(sandbox.ask(command), "0", "{command}");
    }
    assert_eq!(sandbox.ask("cat /deleted"), "errno 2");
    assert_eq!(sandbox.ask("list /replaced"), "");
    drop(sandbox);
    let whiteout = fs::symlink_metadata(rig.spec.root.upper.join("deleted")).unwrap();
    assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o020_000, 0));
    let mut value = [0; 8];
    let replaced = rig.spec.root.upper.join("replaced");
    let length = rustix::fs::getxattr(&replaced, "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    assert!(rustix::fs::getxattr(&replaced, "user.overlay.opaque", &mut value).is_err());
}

pub fn has_no_layers() {
    let mut rig = Rig::empty();
    rig.spec.etc.resolv_conf = Some(rig.host_file("resolv.conf", "nameserver 192.0.2.1\n"));
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("cat /etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert_eq!(sandbox.ask("put /new"), "ok");
    assert_eq!(sandbox.ask("look /new"), "0:0");
    assert_eq!(sandbox.process.stubs().len(), 5);
    drop(sandbox);
    for name in ["new", "etc", "proc", "etc/resolv.conf"] {
        assert_eq!(fs::metadata(rig.spec.root.upper.join(name)).unwrap().uid(), 0, "{name}");
    }
}

/// What changes the whole machine.
const HOSTS_SETTINGS: [&str; 3] =
    ["/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger"];

/// Even with capabilities that none should have, and no filter of system calls.
pub fn has_no_power() {
    let mut rig = Rig::usual();
    rig.spec.seccomp = Profile::Unconfined;
    let last = Facts::detect().unwrap().last_capability;
    let more = ["SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "MAC_ADMIN", "SYS_TIME", "NET_ADMIN"];
    rig.spec.capabilities = Capability::defaults();
    rig.spec.capabilities.extend(more.map(|name| Capability::named(name).unwrap()));
    assert!(rig.spec.capabilities.iter().all(|capability| capability.number() <= last));
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("mount /tmp"), "1");
    // Both locks: the host's files are nobody's here, and the mount is read-only for those that are its own.
    for file in HOSTS_SETTINGS.iter().filter(|file| Path::new(file).exists()) {
        assert_eq!(sandbox.ask(&format!("put {file}")), "errno 13", "{file}");
    }
    assert_eq!(sandbox.ask("put /proc/sys/net/ipv4/ip_forward"), "errno 30");
    assert_eq!(sandbox.ask("node /node"), "mknod 1 open 2");
    // The keyring was made inside.
    let keyring = sandbox.ask("keyring");
    assert!(keyring.starts_with("keyring;0;0;") || keyring == "errno 38", "{keyring}");
    // As a plan that leaves the locks out would not: even then the host's settings are the host's.
    let mut open = plan(&rig.spec, &Facts::detect().unwrap()).unwrap();
    open.ops.retain(|op| !matches!(op, Op::ReadOnly(_)));
    drop(sandbox);
    let pair = launcher().make_namespaces(IDS).unwrap();
    let sandbox = rig.launch_with(&open, Some(pair.net.as_fd()), Some(pair.user.as_fd())).unwrap();
    for file in HOSTS_SETTINGS.iter().filter(|file| Path::new(file).exists()) {
        assert_eq!(sandbox.ask(&format!("put {file}")), "errno 13", "{file}");
    }
}

pub fn needs_a_file_system_that_maps() {
    let mut rig = Rig::usual();
    rig.spec.root.layers_dir = "/proc/sys".into();
    rig.spec.root.lowers = vec!["kernel".to_owned()];
    let pair = launcher().make_namespaces(IDS).unwrap();
    let error = rig.try_launch_mapped(&pair).err().unwrap();
    assert!(matches!(&error, Error::RootOwners { path, .. } if path == Path::new("/proc/sys")), "{error:?}");
}

pub fn doctor_tells() {
    let dir = tempfile::TempDir::new().unwrap();
    let findings = user_namespaces(launcher(), dir.path(), IDS);
    assert!(findings.iter().all(|finding| finding.state != State::Fail), "{findings:?}");
    let findings = user_namespaces(launcher(), Path::new("/proc/sys"), IDS);
    let mapped = findings.iter().find(|finding| finding.name == "id-mapped mounts").unwrap();
    assert_eq!(mapped.state, State::Fail);
    assert!(mapped.found.starts_with("not of /proc/sys: "), "{}", mapped.found);
}

pub fn administers_its_network() {
    let mut rig = with_probe("/probe", 0o755);
    let pair = launcher().make_namespaces(IDS).unwrap();
    let sandbox = rig.try_launch_mapped(&pair).unwrap();
    let inside = fs::read_link(format!("/proc/{}/ns/net", sandbox.process.pid())).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&pair.net);
    assert_eq!(inside, fs::read_link(format!("/proc/self/fd/{fd}")).unwrap());
    assert!(sandbox.ask("run /probe 0").ends_with("raw 0"));
    // EPERM: an ordinary user may not.
    assert!(sandbox.ask("run /probe 1000").ends_with("raw 1"));
}

pub fn gains_privileges() {
    let none = "caps 0000000000000000";
    let mut rig = with_probe("/plain", 0o755);
    add_probe(&rig, "/set-uid", 0o4755);
    add_probe(&rig, "/with-raw", 0o755);
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("run /plain 1000"), format!("uid 1000 euid 1000 {none} raw 1"));
    assert_eq!(sandbox.ask("run /set-uid 1000"), "uid 1000 euid 0 caps 00000000a80425fb raw 0");
    assert_eq!(sandbox.ask("run /plain 262144"), "ids 22");
    // Given inside …
    assert_eq!(sandbox.ask("give-raw /with-raw"), "0");
    assert_eq!(sandbox.ask("run /with-raw 1000"), "uid 1000 euid 1000 caps 0000000000002000 raw 0");
    drop(sandbox);
    // … it still is for the next range, and came from a layer it is too.
    let layer = rig.layer("top").join("from-layer");
    fs::write(&layer, probe()).unwrap();
    fs::set_permissions(&layer, fs::Permissions::from_mode(0o755)).unwrap();
    let raw = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    rustix::fs::setxattr(&layer, "security.capability", &raw, rustix::fs::XattrFlags::empty()).unwrap();
    // And on disk it is what a layer has.
    let mut stored = [0; 32];
    let inside = rig.spec.root.upper.join("with-raw");
    let length = rustix::fs::getxattr(inside, "security.capability", &mut stored).unwrap();
    assert_eq!(stored[..length], raw);
    let sandbox = rig.launch_mapped();
    for program in ["/with-raw", "/from-layer"] {
        let shown = sandbox.ask(&format!("run {program} 1000"));
        assert_eq!(shown, "uid 1000 euid 1000 caps 0000000000002000 raw 0", "{program}");
    }
    drop(sandbox);
    rig.spec.no_new_privileges = true;
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("run /set-uid 1000"), format!("uid 1000 euid 1000 {none} raw 1"));
    assert!(sandbox.ask("run /from-layer 1000").ends_with("raw 1"));
}

pub fn binds() {
    let mut rig = Rig::usual();
    let shared = rig.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let file = rig.host_file("file", "of a file");
    chown(&file, Some(1000), Some(1000)).unwrap();
    let bind =
        |source: &Path, target: &str| Bind { source: source.into(), target: target.into(), read_only: false };
    rig.spec.binds = vec![bind(&shared, "/shared"), bind(&file, "/etc/file")];
    let sandbox = rig.launch_mapped();
    assert_eq!(sandbox.ask("look /shared"), "0:0");
    assert_eq!(sandbox.ask("look /etc/file"), "1000:1000");
    assert_eq!(sandbox.ask("put /shared/new"), "ok");
    assert_eq!(fs::metadata(shared.join("new")).unwrap().uid(), 0);
    // The host sees its own owners.
    assert_eq!(fs::metadata(&file).unwrap().uid(), 1000);
    drop(sandbox);
    // Kernel file systems cannot be mapped: said, not shown as somebody else's.
    rig.spec.binds = vec![bind(Path::new("/proc/sys"), "/settings")];
    let pair = launcher().make_namespaces(IDS).unwrap();
    let error = rig.try_launch_mapped(&pair).err().unwrap();
    assert!(matches!(&error, Error::BindOwners { path, .. } if path == Path::new("/proc/sys")), "{error:?}");
    assert!(error.to_string().starts_with("cannot show /proc/sys with a sandbox's own owners"), "{error}");
    rig.spec.binds = vec![bind(Path::new("/nowhere"), "/settings")];
    let error = rig.try_launch_mapped(&pair).err().unwrap();
    assert!(matches!(&error, Error::Perform { .. }), "{error:?}");
}

pub fn owns_its_dev() {
    let mut rig = Rig::usual();
    let sandbox = rig.launch_mapped();
    for path in ["/dev", "/dev/shm", "/dev/fd"] {
        assert_eq!(sandbox.ask(&format!("look {path}")), "0:0", "{path}");
    }
    // Nobody's, and for everybody's use.
    assert_eq!(sandbox.ask("look /dev/null"), "65534:65534");
    assert_eq!(sandbox.ask("put /dev/null"), "ok");
    assert_eq!(sandbox.ask("put /dev/full"), "errno 28");
    assert_eq!(sandbox.ask("put /dev/shm/file"), "ok");
    assert_eq!(sandbox.ask("look /dev/shm/file"), "0:0");
    assert_eq!(sandbox.ask("put /dev/ptmx"), "ok");
    assert_eq!(sandbox.ask("terminal"), "0:5");
}

pub fn mounts_many_layers() {
    if !Facts::detect().unwrap().layers_one_by_one {
        println!("SKIP: the kernel's overlayfs does not take layers one by one");
        return;
    }
    let mut rig = Rig::usual();
    let sandbox = with_300_layers(&mut rig).launch_mapped();
    assert_eq!(sandbox.ask("cat /file0"), "0");
    assert_eq!(sandbox.ask("look /file298"), "0:0");
    assert_eq!(sandbox.ask("put /new"), "ok");
    assert_eq!(fs::metadata(rig.spec.root.upper.join("new")).unwrap().uid(), 0);
}

/// What the kernel counts by user.
pub fn has_limits_of_its_own() {
    const LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";
    let limit: u32 = fs::read_to_string(LIMIT).unwrap().trim().parse().unwrap();
    if limit > 5000 {
        println!("SKIP: {LIMIT} is too high to be reached");
        return;
    }
    let mut greedy = Rig::usual();
    let greedy = greedy.launch_mapped();
    assert_eq!(greedy.ask(&format!("watch {}", limit + 1)), limit.to_string());
    let mut other = Rig::usual();
    other.spec.ids = Some(IdRange { first: 1_600_000_000, ..IDS });
    let pair = launcher().make_namespaces(other.spec.ids.unwrap()).unwrap();
    let plan = plan(&other.spec, &Facts::detect().unwrap()).unwrap();
    let other = other.launch_with(&plan, Some(pair.net.as_fd()), Some(pair.user.as_fd())).unwrap();
    assert_eq!(other.ask(&format!("watch {limit}")), limit.to_string());
}

pub fn agreement() {
    let mut rig = Rig::usual();
    rig.spec.ids = Some(IDS);
    let mapped = plan(&rig.spec, &Facts::detect().unwrap()).unwrap();
    let error = rig.launch_plan(&mapped, None).err().unwrap();
    assert!(matches!(error, Error::UserNamespace { planned: true }), "{error:?}");
    rig.spec.ids = None;
    let plain = plan(&rig.spec, &Facts::detect().unwrap()).unwrap();
    let pair = launcher().make_namespaces(IDS).unwrap();
    let error = rig.launch_with(&plain, None, Some(pair.user.as_fd())).err().unwrap();
    assert!(matches!(error, Error::UserNamespace { planned: false }), "{error:?}");
    let error = launcher().make_namespaces(IdRange { first: 0, count: 65_536 }).err().unwrap();
    assert!(matches!(error, Error::Ids(_)), "{error:?}");
}

pub fn leaves_no_process() {
    let first = launcher().make_namespaces(IDS).unwrap();
    let second = launcher().make_namespaces(IDS).unwrap();
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_ne!(inode(&first.user), inode(&second.user));
    assert_ne!(inode(&first.net), inode(&second.net));
    for helper in children() {
        let left = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
        assert_eq!(left, "", "processes of {helper} are left");
    }
}

fn with_probe(path: &str, mode: u32) -> Rig {
    let rig = Rig::usual();
    add_probe(&rig, path, mode);
    rig
}

/// Adds the test's own program to the image.
fn add_probe(rig: &Rig, path: &str, mode: u32) {
    let file = rig.spec.root.layers_dir.join("base").join(path.trim_start_matches('/'));
    fs::write(&file, probe()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
}

fn sorted_fds(list: &str) -> String {
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    names.join(" ")
}
