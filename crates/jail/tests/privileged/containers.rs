//! Root, mounts, identity.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use berth_jail::plan::Op;
use berth_jail::seccomp::Profile;
use berth_jail::spec::{Bind, GuestSettings};
use berth_jail::{Error, Exit, Facts, plan};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::rig::{Rig, Sandbox, link};

pub fn merges_layers() {
    let mut rig = Rig::usual();
    let base = rig.spec.root.layers_dir.join("base");
    fs::write(base.join("kept"), "from base").unwrap();
    fs::write(base.join("deleted"), "from base").unwrap();
    let top = rig.layer("top");
    fs::write(top.join("kept"), "from top").unwrap();
    mknodat(CWD, top.join("deleted"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    let sandbox = rig.launch();
    assert_eq!(sandbox.ask("cat /kept"), "from top");
    assert_eq!(sandbox.ask("cat /deleted"), "errno 2");
    assert_eq!(sandbox.ask("put /new"), "ok");
    assert!(rig.dir.path().join("upper/new").exists());
}

pub fn is_pid_1_with_the_defaults() {
    let mut rig = Rig::usual();
    rig.spec.no_new_privileges = true;
    let sandbox = rig.launch();
    assert_eq!(sandbox.ask("id"), "pid 1 uid 0 session 1");
    assert_eq!(sandbox.ask("cat /proc/sys/kernel/hostname"), "box\n");
    assert_eq!(sandbox.ask("args"), "berth-guest --control-fd=3 ");
    assert_eq!(sandbox.ask("cat /proc/self/environ"), "");
    let docker = "00000000a80425fb";
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(sandbox.status(set), docker, "{set}");
    }
    for set in ["CapInh", "CapAmb", "SigBlk", "SigIgn"] {
        assert_eq!(sandbox.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(sandbox.status("NoNewPrivs"), "1");
    assert_eq!(sandbox.status("Umask"), "0022");
    assert_eq!(sandbox.ask("mount /tmp"), "1");
    // Its own three, the control stream, and the one that lists them.
    assert_eq!(sorted(&sandbox.ask("list /proc/self/fd")), "0 1 2 3 4");
    let limits = sandbox.ask("cat /proc/self/limits");
    let files: Vec<&str> =
        limits.lines().find(|line| line.contains("open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4]);
    // The directories can be used again at once: with the process the mounts are gone.
    drop(sandbox);
    rig.spec.no_new_privileges = false;
    assert_eq!(rig.launch().status("NoNewPrivs"), "0");
}

pub fn leaves_the_hosts_mounts_alone() {
    let rig = Rig::usual();
    let sandbox = rig.launch();
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!host.contains(rig.dir.path().to_str().unwrap()), "{host}");
    assert!(!host.contains("berth-test"), "{host}");
    let inside = sandbox.ask("cat /proc/self/mountinfo");
    let targets: Vec<&str> = inside.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert!(targets.contains(&"/") && targets.contains(&"/proc"));
    let temp = rig.dir.path().to_str().unwrap();
    assert!(!inside.contains(temp), "paths of the host show: {inside}");
}

pub fn hides_and_protects_kernel_files() {
    let sandbox = Rig::usual().launch();
    for file in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        if Path::new(file).exists() {
            assert_eq!(sandbox.ask(&format!("cat {file}")), "", "{file}");
        }
    }
    for directory in ["/sys/firmware", "/proc/scsi", "/sys/fs/cgroup"] {
        if Path::new(directory).exists() {
            assert_eq!(sandbox.ask(&format!("list {directory}")), "", "{directory}");
        }
    }
    for file in
        ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/x"]
    {
        if Path::new(file).exists() {
            assert_eq!(sandbox.ask(&format!("put {file}")), "errno 30", "{file}");
        }
    }
    // Only its own processes.
    let numbers = sandbox.ask("list /proc").lines().filter(|name| name.parse::<u32>().is_ok()).count();
    assert_eq!(numbers, 1);
}

pub fn opens_no_device_but_its_own() {
    let mut rig = Rig::usual();
    let shared = rig.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    rig.spec.binds.push(Bind { source: shared, target: "/shared".into(), read_only: false });
    let sandbox = rig.launch();
    // Root of a container may make nodes, as in Docker, but none of them opens: EACCES.
    for path in ["/node", "/dev/node", "/dev/shm/node", "/shared/node", "/tmp/node"] {
        assert_eq!(sandbox.ask(&format!("node {path}")), "mknod 0 open 13", "{path}");
    }
}

pub fn has_a_dev() {
    let sandbox = Rig::usual().launch();
    let names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(sorted(&sandbox.ask("list /dev")), names);
    assert_eq!(sandbox.ask("put /dev/null"), "ok");
    assert_eq!(sandbox.ask("cat /dev/null"), "");
    assert_eq!(sandbox.ask("put /dev/full"), "errno 28");
    assert_eq!(sandbox.ask("put /dev/shm/file"), "ok");
    assert_eq!(sandbox.ask("put /dev/ptmx"), "ok");
    assert_eq!(sandbox.ask("list /dev/pts"), "ptmx\n");
}

pub fn binds_files_and_directories() {
    let mut rig = Rig::usual();
    let directory = rig.dir.path().join("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inside"), "of a directory").unwrap();
    let file = rig.host_file("file", "of a file");
    let socket = rig.dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let bind = |source: &Path, target: &str, read_only| Bind {
        source: source.into(),
        target: target.into(),
        read_only,
    };
    rig.spec.binds = vec![
        bind(&directory, "/a/b", false),
        bind(&directory, "/read-only", true),
        bind(&file, "/etc/new/file", true),
        bind(&socket, "/run/daemon.sock", false),
    ];
    rig.spec.etc.hosts = Some(rig.host_file("hosts", "127.0.0.1 localhost\n"));
    let sandbox = rig.launch();
    assert_eq!(sandbox.ask("cat /a/b/inside"), "of a directory");
    assert_eq!(sandbox.ask("put /a/b/new"), "ok");
    assert!(directory.join("new").exists());
    assert_eq!(sandbox.ask("put /read-only/new"), "errno 30");
    assert_eq!(sandbox.ask("cat /etc/new/file"), "of a file");
    assert_eq!(sandbox.ask("put /etc/new/file"), "errno 30");
    assert_eq!(sandbox.ask("cat /run/daemon.sock"), "errno 6");
    assert_eq!(sandbox.ask("cat /etc/hosts"), "127.0.0.1 localhost\n");
    let made = ["etc/hosts", "a", "a/b", "read-only", "etc/new", "etc/new/file", "run", "run/daemon.sock"];
    assert_eq!(sandbox.process.stubs(), made.map(PathBuf::from));
    drop(sandbox);
    rig.spec.binds = vec![bind(Path::new("/nowhere/at/all"), "/x", false)];
    assert_perform(rig.try_launch(), "open the source of the bind", Path::new("/nowhere/at/all"));
    rig.spec.binds = vec![bind(&directory, "/etc/passwd", false)];
    assert_misfit(rig.try_launch(), Path::new("/etc/passwd"));
}

/// A hostile image: every path that is mounted over is a link towards the host.
pub fn links_stay_inside() {
    let mut rig = Rig::usual();
    let host = rig.dir.path().join("host-directory");
    fs::create_dir(&host).unwrap();
    let victim = rig.host_file("victim", "host's");
    let layer = rig.layer("hostile");
    fs::create_dir(layer.join("etc")).unwrap();
    link("/../../../../etc/passwd", layer.join("etc/resolv.conf"));
    link(victim.to_str().unwrap(), layer.join("etc/hosts"));
    link(&format!("../../../../..{}", host.display()), layer.join("up"));
    link("loop-b", layer.join("loop-a"));
    link("loop-a", layer.join("loop-b"));
    rig.spec.etc.resolv_conf = Some(rig.host_file("resolv.conf", "nameserver 192.0.2.1\n"));
    rig.spec.etc.hosts = Some(rig.host_file("hosts", "hosts\n"));
    let shared = rig.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("inside"), "shared").unwrap();
    rig.spec.binds.push(Bind { source: shared.clone(), target: "/up/deep".into(), read_only: false });
    let passwd = fs::read("/etc/passwd").unwrap();
    let sandbox = rig.launch();
    // The image's own file is covered, in the sandbox alone.
    assert_eq!(sandbox.ask("cat /etc/passwd"), "nameserver 192.0.2.1\n");
    assert_eq!(sandbox.ask("cat /etc/hosts"), "hosts\n");
    assert_eq!(sandbox.ask("cat /up/deep/inside"), "shared");
    assert_eq!(fs::read("/etc/passwd").unwrap(), passwd);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "host's");
    assert_eq!(fs::read_dir(&host).unwrap().count(), 0, "a directory was made on the host");
    drop(sandbox);
    rig.spec.binds = vec![Bind { source: shared, target: "/loop-a/x".into(), read_only: false }];
    assert_misfit(rig.try_launch(), Path::new("/loop-a/x"));
}

pub fn a_linked_proc_is_refused() {
    let mut rig = Rig::empty();
    let layer = rig.layer("hostile");
    link("/tmp", layer.join("proc"));
    assert_misfit(rig.try_launch(), Path::new("/proc"));
}

pub fn tells_stubs() {
    let mut rig = Rig::empty();
    rig.spec.etc.resolv_conf = Some(rig.host_file("resolv.conf", "nameserver 192.0.2.1\n"));
    let sandbox = rig.launch();
    let made = ["proc", "sys", "dev", "etc", "etc/resolv.conf"];
    assert_eq!(sandbox.process.stubs(), made.map(PathBuf::from));
    assert_eq!(sandbox.ask("cat /etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert_eq!(sandbox.ask("node /node"), "mknod 0 open 13");
    assert_eq!(sorted(&sandbox.ask("list /")), "dev etc node proc sys");
    drop(sandbox);
    let mut left: Vec<_> =
        fs::read_dir(&rig.spec.root.upper).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["dev", "etc", "node", "proc", "sys"]);
    assert_eq!(fs::metadata(rig.spec.root.upper.join("etc/resolv.conf")).unwrap().len(), 0);
}

pub fn mounts_many_layers() {
    let mut rig = Rig::usual();
    for number in 0..149 {
        let layer = rig.layer(&format!("{number:024x}"));
        fs::write(layer.join(format!("file{number}")), number.to_string()).unwrap();
    }
    let sandbox = rig.launch();
    assert_eq!(sandbox.ask("cat /file0"), "0");
    assert_eq!(sandbox.ask("cat /file148"), "148");
}

pub fn mounts_layers_one_by_one() {
    if !Facts::detect().unwrap().layers_one_by_one {
        println!("SKIP: the kernel's overlayfs does not take layers one by one");
        return;
    }
    let mut rig = Rig::usual();
    let sandbox = with_300_layers(&mut rig).launch();
    assert_eq!(sandbox.ask("cat /file0"), "0");
    assert_eq!(sandbox.ask("cat /file298"), "298");
    assert_eq!(sandbox.ask("put /new"), "ok");
    assert_eq!(sandbox.ask("node /node"), "mknod 0 open 13");
    drop(sandbox);
    assert!(rig.dir.path().join("upper/new").exists());
    rig.spec.root.lowers.insert(7, "missing".to_owned());
    assert_perform(rig.try_launch(), "open the directory", &rig.spec.root.layers_dir.join("missing"));
    // As many as the kernel has room for.
    rig.spec.root.lowers.remove(7);
    for number in 299..499 {
        rig.layer(&format!("{number:024x}"));
    }
    assert_eq!(rig.spec.root.lowers.len(), 500);
    assert_eq!(rig.launch().ask("cat /file0"), "0");
}

pub fn with_300_layers(rig: &mut Rig) -> &mut Rig {
    for number in 0..299 {
        let layer = rig.layer(&format!("{number:024x}"));
        fs::write(layer.join(format!("file{number}")), number.to_string()).unwrap();
    }
    rig
}

pub fn tells_the_guest() {
    let mut rig = Rig::usual();
    rig.spec.command_capabilities = Some(Vec::new());
    rig.spec.guest = GuestSettings {
        cpus: Some(0.5),
        memory_bytes: Some(1 << 20),
        storage_used: vec![rig.host_file("used", "4096\n")],
        ..GuestSettings::default()
    };
    let sandbox = rig.launch();
    let told =
        "berth-guest --control-fd=3 --capabilities=0 --cpus=0.5 --memory-bytes=1048576 --storage-used-fd=4 ";
    assert_eq!(sandbox.ask("args"), told);
    assert_eq!(sandbox.ask("cat /proc/self/fd/4"), "4096\n");
    drop(sandbox);
    rig.spec.guest.storage_used = vec!["/nowhere/used".into()];
    assert_perform(rig.try_launch(), "open for the guest", Path::new("/nowhere/used"));
}

pub fn names_the_bad_layer() {
    let mut rig = Rig::usual();
    rig.spec.root.lowers.insert(1, "missing".to_owned());
    rig.layer("top");
    let path = rig.spec.root.layers_dir.join("missing");
    assert_perform(rig.try_launch(), "open the directory", &path);
    let text = rig.try_launch().err().unwrap().to_string();
    assert_eq!(text, format!("cannot open the directory {}", path.display()));
}

pub fn networks() {
    let rig = Rig::usual();
    let sandbox = rig.launch();
    assert!(sandbox.ask("cat /proc/net/dev").lines().count() == 3, "loopback alone is expected");
    assert!(sandbox.ask("cat /proc/net/fib_trie").contains("127.0.0.1"), "loopback is not up");
    drop(sandbox);
    let (netns, inode) = berth_sys::netns::create(|| fs::read_link("/proc/thread-self/ns/net")).unwrap();
    let rig = Rig::usual();
    let sandbox = rig.launch_in(Some(netns.as_fd())).unwrap();
    let inside = fs::read_link(format!("/proc/{}/ns/net", sandbox.process.pid())).unwrap();
    assert_eq!(inside, inode);
}

pub fn lifecycle() {
    let rig = Rig::usual();
    let mut sandbox = rig.launch();
    assert_eq!(sandbox.process.try_wait().unwrap(), None);
    sandbox.control.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(sandbox.process.wait().unwrap(), Exit::Code(7));
    assert_eq!(sandbox.process.wait().unwrap(), Exit::Code(7));
    let mut sandbox = Rig::usual().launch();
    sandbox.process.kill().unwrap();
    assert_eq!(sandbox.process.wait().unwrap(), Exit::Signal(9));
    sandbox.process.kill().unwrap();

    // The launcher is the only child left; the next launch starts another one.
    let rig = Rig::usual();
    let sandbox = rig.launch();
    let helper = children().into_iter().find(|pid| *pid != sandbox.process.pid()).unwrap();
    let helper = rustix::process::Pid::from_raw(helper).unwrap();
    rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
    while !fs::read_to_string(format!("/proc/{}/stat", helper.as_raw_nonzero())).unwrap().contains(") Z ") {}
    assert_eq!(sandbox.ask("id"), "pid 1 uid 0 session 1");
    let another = Rig::usual();
    assert_eq!(another.launch().ask("id"), "pid 1 uid 0 session 1");
    let pid = sandbox.process.pid();
    drop(sandbox);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(children().len(), 1, "processes are left");
}

pub fn children() -> Vec<i32> {
    let of_thread = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let lists: Vec<String> = tasks.map(|task| of_thread(task.unwrap())).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).map(|pid| pid.parse().unwrap()).collect()
}

#[track_caller]
fn assert_misfit(launched: Result<Sandbox, Error>, target: &Path) {
    let error = launched.err();
    assert!(matches!(&error, Some(Error::MountTarget { path, .. }) if path == target), "{error:?}");
}

#[track_caller]
fn assert_perform(result: Result<Sandbox, Error>, expected_step: &str, expected_path: &Path) {
    match result {
        Err(Error::Perform { step, path, .. }) => {
            assert_eq!((step.as_str(), path.as_path()), (expected_step, expected_path))
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("launched"),
    }
}

fn sorted(list: &str) -> String {
    let mut names: Vec<&str> = list.lines().collect();
    names.sort_unstable();
    names.join(" ")
}

pub fn filters_system_calls() {
    let mut rig = Rig::usual();
    let sandbox = rig.launch();
    assert_eq!(sandbox.status("Seccomp"), "2");
    // One more than with a user namespace.
    assert_eq!(sandbox.status("Seccomp_filters"), "4");
    // Set-user-id programs work: the filter was not bought with no-new-privileges.
    assert_eq!(sandbox.status("NoNewPrivs"), "0");
    drop(sandbox);
    rig.spec.seccomp = Profile::Unconfined;
    assert_eq!(rig.launch().status("Seccomp"), "0");

    // Where it cannot be installed there is no sandbox.
    rig.spec.seccomp = Profile::Default;
    let mut plan = plan(&rig.spec, &Facts::detect().unwrap()).unwrap();
    let filter = plan.ops.iter().position(|op| matches!(op, Op::FilterSystemCalls(_))).unwrap();
    plan.ops.swap(filter, filter + 1);
    assert!(matches!(plan.ops[filter], Op::Capabilities { .. }));
    assert_perform(rig.launch_plan(&plan, None), "install the system call filter of", Path::new("the guest"));
}
