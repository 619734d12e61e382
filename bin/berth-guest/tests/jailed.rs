//! What commands of a whole container are shown of its limits. Needs root; says so and passes where it is missing.
//!
//! Has a main of its own because the launcher re-executes the running binary.

// Tests may: clippy's own exception covers only functions marked as tests.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

#[path = "jailed/copied.rs"]
mod copied;
mod rig;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use berth_jail::plan::Op;
use berth_jail::spec::{Bind, CgroupMembership, DEFAULT_SHM_BYTES, EtcFiles, GuestSettings, Root};
use berth_jail::views::{self, Host, Views};
use berth_jail::{Capability, Facts, GuestImage, IdRange, LaunchRequest, Launcher, Process, Spec, plan};
use berth_sandbox::guest::{Guest, PackSpec};
use libtest_mimic::{Arguments, Trial};
use rig::{finish, shell};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 512 * MIB;
const STORAGE: u64 = 64 * MIB;
const IDS: IdRange = IdRange { first: 1_900_000_000, count: 65_536 };

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(berth_jail::LAUNCHER_ARG) {
        return berth_jail::launcher_main();
    }
    let tests: [(&str, fn()); 9] = [
        ("limits_are_shown_to_root_of_the_host", || shows_limits(false)),
        ("limits_are_shown_in_a_user_namespace", || shows_limits(true)),
        ("a_list_of_users_that_is_a_view_holds_nobody_up", users_in_a_view),
        ("without_fuse_the_machines_files_are_shown", without_fuse),
        ("all_of_a_container_can_be_packed", packs_everything),
        ("a_builds_copy_has_all_that_the_tree_had", || copied::whole(false)),
        ("a_builds_copy_has_all_that_the_tree_had_in_a_user_namespace", || copied::whole(true)),
        ("devices_are_made_for_a_build", || copied::devices(false)),
        ("devices_are_refused_by_name_in_a_user_namespace", || copied::devices(true)),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            if rustix::process::geteuid().is_root() {
                test();
            } else {
                println!("SKIP: not root");
            }
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A container, its control group, its files. Dropped in this order.
struct Jail {
    guest: Guest,
    _process: Process,
    _group: Group,
    _dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

/// A control group with a limit of memory.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} is left", self.0.display());
    }
}

impl Group {
    /// And whether it is of version 2; `None`, said out loud, where no memory can be limited.
    fn make() -> Option<(Self, bool)> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        for (root, v2, limit) in [
            ("/sys/fs/cgroup/memory", false, "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", true, "memory.max"),
        ] {
            let dir = Path::new(root).join(format!("berth-jailed-{}-{count}", std::process::id()));
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            if fs::write(group.0.join(limit), LIMIT.to_string()).is_ok() {
                return Some((group, v2));
            }
        }
        println!("SKIP: no memory can be limited here");
        None
    }
}

/// The host's programs on a root of its own.
fn spec(dir: &Path) -> Spec {
    let at = |name: &str| dir.join(name);
    for name in ["layers/base/usr", "layers/base/etc", "layers/base/tmp", "sandbox/upper", "sandbox/work"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), at("layers/base").join(name)).unwrap();
    }
    fs::set_permissions(at("layers/base/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(at("layers/base/etc/passwd"), "root:x:0:0::/:/bin/sh\nworker:x:1000:1000::/:/bin/sh\n")
        .unwrap();
    Spec {
        id: "test".to_owned(),
        hostname: "box".to_owned(),
        root: Root {
            layers_dir: at("layers"),
            lowers: vec!["base".to_owned()],
            upper: at("sandbox/upper"),
            work: at("sandbox/work"),
        },
        binds: vec![Bind { source: "/usr".into(), target: "/usr".into(), read_only: true }],
        mounts: Vec::new(),
        etc: EtcFiles::default(),
        cgroups: CgroupMembership::default(),
        ids: None,
        guest: GuestSettings::default(),
        views: Views::default(),
        no_new_privileges: false,
        capabilities: Capability::defaults(),
        command_capabilities: None,
        seccomp: Default::default(),
        shm_bytes: 4 * DEFAULT_SHM_BYTES,
        spool: None,
    }
}

impl Jail {
    /// With limits of one processor, memory and disk, of which 48 MiB are taken.
    fn start(mapped: bool, host: &Host) -> Option<Self> {
        let (group, v2) = Group::make()?;
        let dir = TempDir::with_prefix("berth-jailed-").unwrap();
        let mut spec = spec(dir.path());
        let used = dir.path().join("used");
        fs::write(&used, format!("{}\n", 48 * MIB)).unwrap();
        spec.cgroups.join = vec![group.0.join("cgroup.procs")];
        spec.guest = GuestSettings {
            memory_bytes: Some(LIMIT),
            storage_bytes: Some(STORAGE),
            storage_used: vec![used],
            ..GuestSettings::default()
        };
        let limits = views::Limits { cpus: Some(0.5), memory: Some((LIMIT, &group.0)), storage: true };
        spec.views = views::views(&limits, host);
        let told = if v2 { vec!["--cgroup-v2".to_owned()] } else { Vec::new() };
        spec.ids = mapped.then_some(IDS);
        let (process, stream) = launch(&spec, told);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let guest = runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            tokio::time::timeout(Duration::from_secs(20), Guest::connect(stream)).await.unwrap().unwrap()
        });
        Some(Self { guest, _process: process, _group: group, _dir: dir, runtime })
    }

    fn sh(&self, line: &str) -> String {
        self.sh_as("0", line).unwrap()
    }

    /// The output, or why it was not started.
    fn sh_as(&self, user: &str, line: &str) -> Result<String, String> {
        let mut spec = shell(line);
        spec.user = Some(user.to_owned());
        let run = async { finish(self.guest.exec(spec).await.unwrap()).await };
        let patient = async { tokio::time::timeout(Duration::from_secs(30), run).await };
        let ran = self.runtime.block_on(patient).expect("a command hangs");
        match ran.status.message {
            Some(message) => Err(message),
            None => Ok(ran.out() + &String::from_utf8_lossy(&ran.stderr)),
        }
    }
}

fn launch(spec: &Spec, told: Vec<String>) -> (Process, std::os::unix::net::UnixStream) {
    let launcher = Launcher::spawn().unwrap();
    let image = GuestImage::new(&fs::read(env!("CARGO_BIN_EXE_berth-guest")).unwrap()).unwrap();
    let pair = spec.ids.map(|ids| launcher.make_namespaces(ids).unwrap());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).unwrap();
    let mut plan = plan(spec, &Facts::detect().unwrap()).unwrap();
    plan.ops.insert(0, Op::TellGuest(told));
    let process = launcher.launch(LaunchRequest {
        plan: &plan,
        netns: pair.as_ref().map(|pair| pair.net.as_fd()),
        user_namespace: pair.as_ref().map(|pair| pair.user.as_fd()),
        control: theirs.into(),
        listen: None,
        guest: &image,
        stderr: Some(stderr),
    });
    (process.unwrap(), ours)
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn shows_limits(mapped: bool) {
    let host = Host::detect().unwrap();
    if let Err(reason) = &host.fuse {
        println!("SKIP: no FUSE: {reason}");
        return;
    }
    let Some(jail) = Jail::start(mapped, &host) else { return };
    shows_memory(&jail);
    if host.processors.len() > 1 {
        shows_processors(&jail, &host);
    } else {
        println!("SKIP: this machine has one processor");
    }
    for user in ["root", "worker"] {
        assert_eq!(
            jail.sh_as(user, "df -B1 --output=size,avail / | tail -n 1 | tr -s ' '").unwrap().trim(),
            format!("{STORAGE} {}", 16 * MIB)
        );
    }
    for path in ["/proc/self/root", "/proc/self/root/etc", "/proc/self/cwd", "/proc/self/cwd/etc"] {
        let blocks = |path: &str| jail.sh(&format!("cd / && stat -f -c '%S %b %f' {path}"));
        assert_eq!(blocks(path), blocks("/"), "{path}");
    }
    assert!(jail.sh("stat -f /proc/self/root/nowhere 2>&1").contains("No such file"));
    assert!(jail.sh("stat -f -c %T /proc/self").contains("proc"));
    keeps_its_rights_to_itself(&jail);
}

fn shows_memory(jail: &Jail) {
    let before = jail.sh("cat /proc/meminfo");
    assert_eq!(kib(&before, "MemTotal:"), LIMIT / 1024);
    let after = jail.sh("head -c 104857600 /dev/zero > /dev/shm/x; cat /proc/meminfo; rm /dev/shm/x");
    let fallen = kib(&before, "MemFree:").saturating_sub(kib(&after, "MemFree:"));
    assert!((95 * 1024..125 * 1024).contains(&fallen), "fell by {fallen} kB");
    assert_eq!(jail.sh("ls -ln /proc/meminfo | cut -d ' ' -f 1-4"), "-r--r--r-- 1 0 0\n");
    assert_ne!(jail.sh("umount /proc/meminfo 2>&1; echo x > /proc/meminfo"), "");
    let free = jail.sh("free -b 2> /dev/null || busybox free -b 2> /dev/null || echo none");
    assert!(free == "none\n" || free.contains(&format!(" {LIMIT} ")), "{free}");
    assert!(jail.sh("ls -a /dev").lines().all(|name| !name.contains("view")));
}

fn shows_processors(jail: &Jail, host: &Host) {
    let first = host.processors[0];
    assert_eq!(jail.sh("cat /sys/devices/system/cpu/online"), format!("{first}\n"));
    for user in ["root", "worker"] {
        for (ask, answer) in [
            ("nproc", "1\n"),
            ("getconf _NPROCESSORS_ONLN", "1\n"),
            ("grep -c ^processor /proc/cpuinfo", "1\n"),
            ("grep -c '^cpu[0-9]' /proc/stat", "1\n"),
            ("/usr/bin/python3 -c 'import os; print(os.cpu_count())' 2> /dev/null || echo 1", "1\n"),
        ] {
            assert_eq!(jail.sh_as(user, ask).unwrap(), answer, "{user}: {ask}");
        }
    }
    assert_ne!(jail.sh("echo x >> /proc/cpuinfo"), "");
    assert_ne!(jail.sh("echo x >> /sys/devices/system/cpu/online"), "");
}

/// The thread that answers may reach into others; nothing else may, and nothing is left of the right to install it.
fn keeps_its_rights_to_itself(jail: &Jail) {
    let docker = "00000000a80425fb";
    assert_eq!(jail.sh("grep CapPrm /proc/self/status"), format!("CapPrm:\t{docker}\n"));
    assert_eq!(jail.sh("grep CapBnd /proc/self/status"), format!("CapBnd:\t{docker}\n"));
    assert_eq!(jail.sh("grep CapInh /proc/self/status"), "CapInh:\t0000000000000000\n");
    assert_eq!(jail.sh("grep CapPrm /proc/1/status"), format!("CapPrm:\t{docker}\n"));
    let threads = jail.sh("grep -h -e Name -e CapPrm -e CapInh /proc/1/task/*/status");
    assert!(
        threads.contains("berth-views\nCapInh:\t0000000000000000\nCapPrm:\t00000000a80c25fb\n"),
        "{threads}"
    );
}

fn users_in_a_view() {
    let host = Host::detect().unwrap();
    let Some(jail) = Jail::start(false, &host) else { return };
    jail.sh("ln -sf /proc/meminfo /etc/passwd; ln -sf /proc/stat /etc/group");
    assert!(jail.sh_as("worker", "true").unwrap_err().contains("no user"));
    assert_eq!(jail.sh("echo here"), "here\n");
    jail.sh("ln -sf /proc/meminfo /tmp/sh; ln -sfn /proc/meminfo /tmp/dir");
    assert_eq!(jail.sh("echo here"), "here\n");
}

fn without_fuse() {
    let host = Host { fuse: Err("not in this test".to_owned()), ..Host::detect().unwrap() };
    let Some(jail) = Jail::start(false, &host) else { return };
    let machine = fs::read_to_string("/proc/meminfo").unwrap();
    assert_eq!(kib(&jail.sh("cat /proc/meminfo"), "MemTotal:"), kib(&machine, "MemTotal:"));
    if host.processors.len() > 1 {
        assert_eq!(jail.sh("nproc; grep -c ^processor /proc/cpuinfo"), "1\n1\n");
    }
}

fn packs_everything() {
    let host = Host::detect().unwrap();
    let Some(jail) = Jail::start(true, &host) else { return };
    jail.sh("echo kept > /etc/kept");
    let pack = |path: &str, exclude: &[&str]| {
        let exclude = exclude.iter().map(|name| (*name).to_owned()).collect();
        let spec =
            PackSpec { path: path.to_owned(), exclude, ignore_failed_read: true, ..PackSpec::default() };
        let all = async {
            let mut pack = jail.guest.pack(spec).await.unwrap();
            let mut bytes = Vec::new();
            pack.read_to_end(&mut bytes).await.unwrap();
            (bytes, pack.report().unwrap().clone())
        };
        let patient = async { tokio::time::timeout(Duration::from_secs(60), all).await };
        let (bytes, report) = jail.runtime.block_on(patient).expect("packing has no end");
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
        (entries.collect::<Vec<_>>(), report)
    };
    let (names, report) = pack("/", &["./usr"]);
    assert!(names.contains(&"etc/kept".into()), "{names:?}");
    for left_out in ["proc", "sys", "dev"] {
        assert!(report.skipped.iter().any(|notice| notice.path == left_out), "{report:?}");
        let below = names.iter().filter(|name| name.starts_with(left_out)).count();
        assert_eq!(below, 1, "the empty directory: {names:?}");
    }
    assert_eq!((report.unread_count, report.changed_count), (0, 0), "{report:?}");

    // Named outright they are packed, as far as they can be.
    let (names, report) = pack("/proc", &[]);
    assert!(names.contains(&"self".into()) && report.skipped_count > 0, "{names:?} {report:?}");
    let (names, _) = pack("/sys", &[]);
    assert!(names.len() > 10, "{names:?}");
    let spec = PackSpec { path: "/proc".to_owned(), ..PackSpec::default() };
    let failed = jail.runtime.block_on(async {
        match jail.guest.pack(spec).await {
            Ok(mut pack) => pack.read_to_end(&mut Vec::new()).await.unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    });
    assert_ne!(failed, "");
}
