//! What the limits of a whole container do to its commands, and not to its guest. Needs root; says so and passes where
//! it is missing.
//!
//! Has a main of its own because the launcher re-executes the running binary.

// Tests may: clippy's own exception covers only functions marked as tests.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use berth_jail::cgroup::{self, Cgroup, Limits};
use berth_jail::spec::{Bind, DEFAULT_SHM_BYTES, EtcFiles, GuestSettings, Root};
use berth_jail::views::Views;
use berth_jail::{Capability, Facts, GuestImage, IdRange, LaunchRequest, Launcher, Process, Spec, plan};
use berth_sandbox::guest::{Connect, ExecSpec, FailureCode, Guest, Owner, UnpackSpec};
use berth_types::exec::{Command, ExitReason, Limit, TerminalSize};
use libtest_mimic::{Arguments, Trial};
use rig::{Ran, argv, finish, shell};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const IDS: IdRange = IdRange { first: 1_900_000_000, count: 262_144 };

type Test = fn(Option<IdRange>);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(berth_jail::LAUNCHER_ARG) {
        return berth_jail::launcher_main();
    }
    let mut trials = Vec::new();
    for (kind, ids) in [("in_a_user_namespace", Some(IDS)), ("as_root_of_the_host", None)] {
        let tests: [(&str, Test); 5] = [
            ("memory", memory),
            ("files_in_memory", files_in_memory),
            ("processes", processes),
            ("the_guest_is_out_of_reach", out_of_reach),
            ("terminals_and_own_programs", terminals_and_own_programs),
        ];
        trials.extend(tests.map(|(name, test)| {
            Trial::test(format!("{name}_{kind}"), move || {
                if rustix::process::geteuid().is_root() {
                    test(ids);
                } else {
                    println!("SKIP: not root");
                }
                Ok(())
            })
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A container and its groups.
struct Jail {
    guest: Option<Guest>,
    process: Option<Process>,
    cgroup: Cgroup,
    instance: String,
    _dir: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Jail {
    fn drop(&mut self) {
        drop((self.guest.take(), self.process.take()));
        self.cgroup.kill_all().unwrap();
        self.cgroup.remove().unwrap();
        cgroup::remove_instance(&cgroup::Facts::detect().unwrap(), &self.instance).unwrap();
    }
}

impl Jail {
    fn start(limits: Limits, ids: Option<IdRange>) -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let instance = format!("confined{}-{count}", std::process::id());
        let path = format!("berth/{instance}/s");
        let groups =
            cgroup::plan(&limits, &cgroup::Facts::detect().unwrap(), &path, ids.map(|ids| ids.first));
        let groups = match groups {
            Err(error @ cgroup::Error::ControllerMissing { .. }) => {
                println!("SKIP: {error}");
                return None;
            }
            groups => groups.unwrap(),
        };
        let dir = TempDir::with_prefix("berth-confined-").unwrap();
        let mut spec = spec(dir.path());
        spec.ids = ids;
        spec.cgroups = groups.membership();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let cgroup = groups.create().unwrap();
        let mut jail = Self { guest: None, process: None, cgroup, instance, _dir: dir, runtime };
        let (process, stream) = launch(&spec);
        jail.process = Some(process);
        jail.guest = Some(jail.runtime.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).unwrap();
            tokio::time::timeout(Duration::from_secs(20), Guest::connect(stream)).await.unwrap().unwrap()
        }));
        Some(jail)
    }

    fn run(&self, spec: ExecSpec) -> Ran {
        let run = async { finish(self.guest.as_ref().unwrap().exec(spec).await.unwrap()).await };
        let patient = async { tokio::time::timeout(Duration::from_secs(60), run).await };
        self.runtime.block_on(patient).expect("a command hangs")
    }

    fn sh(&self, line: &str) -> Ran {
        self.run(shell(line))
    }

    fn assert_guest_lives(&mut self) {
        assert!(self.process.as_mut().unwrap().try_wait().unwrap().is_none(), "the guest is gone");
        assert_eq!(self.sh("echo well").out(), "well\n");
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
    let users = "root:x:0:0::/:/bin/sh\nworker:x:1000:1000::/:/bin/sh\n";
    fs::write(at("layers/base/etc/passwd"), users).unwrap();
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
        cgroups: Default::default(),
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

fn launch(spec: &Spec) -> (Process, std::os::unix::net::UnixStream) {
    let launcher = Launcher::spawn().unwrap();
    let image = GuestImage::new(&fs::read(env!("CARGO_BIN_EXE_berth-guest")).unwrap()).unwrap();
    let pair = spec.ids.map(|ids| launcher.make_namespaces(ids).unwrap());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let stderr = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3).unwrap();
    let process = launcher.launch(LaunchRequest {
        plan: &plan(spec, &Facts::detect().unwrap()).unwrap(),
        netns: pair.as_ref().map(|pair| pair.net.as_fd()),
        user_namespace: pair.as_ref().map(|pair| pair.user.as_fd()),
        control: theirs.into(),
        listen: None,
        guest: &image,
        stderr: Some(stderr),
    });
    (process.unwrap(), ours)
}

fn limits(mib: u64) -> Limits {
    Limits { cpus: Some(1.5), memory_bytes: Some(mib * MIB), pids: Some(64), ..Limits::default() }
}

fn memory(ids: Option<IdRange>) {
    let Some(mut jail) = Jail::start(limits(64), ids) else { return };
    for user in ["root", "worker"] {
        let mut hog = argv(&["tail", "/dev/zero"]);
        hog.user = Some(user.to_owned());
        let ran = jail.run(hog);
        assert_eq!((ran.status.reason, ran.status.exit_code), (ExitReason::OutOfMemory, 137), "{ran:?}");
        assert_eq!((ran.status.oom_kills, &ran.status.limits_hit[..]), (Some(1), &[Limit::Memory][..]));
    }
    assert_eq!(jail.cgroup.usage().unwrap().oom_kills, Some(2));
    jail.assert_guest_lives();
}

fn files_in_memory(ids: Option<IdRange>) {
    let Some(mut jail) = Jail::start(limits(64), ids) else { return };
    let ran = jail.sh("head -c 200M /dev/zero > /dev/shm/file");
    assert_eq!(ran.status.limits_hit, [Limit::Memory], "{ran:?}");
    let ran = jail.sh("echo $(echo in) | cat");
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("in\n", true), "{ran:?}");
    // What the guest writes for a client does not depend on what commands have left over.
    let spec = UnpackSpec {
        path: "/dev/shm/uploaded".to_owned(),
        owner: Owner::Root,
        mode: None,
        ..UnpackSpec::default()
    };
    let tar = archive();
    let uploaded = jail.guest.as_ref().unwrap().unpack(spec, &tar[..]);
    assert_eq!(jail.runtime.block_on(uploaded).unwrap().entries, 1);
    let ran = jail.sh("rm -r /dev/shm/file /dev/shm/uploaded && echo freed");
    assert_eq!((ran.out().as_str(), ran.status.rescued), ("freed\n", true), "{ran:?}");
    assert!(!jail.sh("true").status.rescued);
    jail.assert_guest_lives();
}

/// One file of 8 MiB.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(8 * MIB);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "file", std::io::repeat(1).take(8 * MIB)).unwrap();
    tar.into_inner().unwrap()
}

fn processes(ids: Option<IdRange>) {
    let limits = Limits { pids: Some(24), ..limits(256) };
    let Some(mut jail) = Jail::start(limits, ids) else { return };
    let mut bomb = shell("bomb() { bomb | bomb & }; bomb; sleep 100");
    // Long enough for emulated processors too.
    bomb.timeout = Some(Duration::from_secs(3));
    let ran = jail.run(bomb);
    assert_eq!((ran.status.reason, &ran.status.limits_hit[..]), (ExitReason::TimedOut, &[Limit::Pids][..]));
    jail.assert_guest_lives();
    let ran = jail.run(argv(&["sh", "-c", "while :; do sleep 100 & done 2>/dev/null"]));
    assert_eq!(ran.status.limits_hit, [Limit::Pids], "{ran:?}");
    assert_eq!(jail.run(argv(&["echo", "in"])).out(), "in\n");
    // Root in the sandbox may end what it likes, but for the guest; the shell's own `kill` needs no process.
    assert_eq!(jail.run(argv(&["sh", "-c", "kill -9 -1"])).status.exit_code, 0);
    jail.assert_guest_lives();
}

fn out_of_reach(ids: Option<IdRange>) {
    let Some(mut jail) = Jail::start(limits(256), ids) else { return };
    let score = jail.sh("cat /proc/self/oom_score_adj").out();
    assert!(score.trim().parse::<i32>().unwrap() >= 500, "{score}");
    // Of the guest's threads only the first is refused by number; any would do for its limits.
    let threads = jail.sh("ls /proc/1/task").out();
    for thread in threads.split_whitespace() {
        for limit in ["--nofile=1:1", "--cpu=1:1"] {
            let ran = jail.run(argv(&["prlimit", "--pid", thread, limit]));
            assert_ne!(ran.status.exit_code, 0, "{thread}: {limit}: {ran:?}");
        }
    }
    for line in [
        "echo 1000 > /proc/1/oom_score_adj",
        "echo 1 > /proc/1/clear_refs",
        "cat /proc/1/environ",
        "chrt --idle --pid 0 1",
        "renice 19 1",
        "taskset --pid 1 1",
        "kill -STOP 1; grep -q State:.T /proc/1/status",
    ] {
        assert_ne!(jail.sh(line).status.exit_code, 0, "{line}");
    }
    jail.assert_guest_lives();
}

/// Whatever root has made of /dev/ptmx, and for users who could not follow /proc/1/exe.
fn terminals_and_own_programs(ids: Option<IdRange>) {
    let Some(jail) = Jail::start(limits(256), ids) else { return };
    let ran = jail.run(shell("rm /dev/ptmx && echo fake > /dev/ptmx; rm -f /dev/pts/ptmx; ls /dev/pts"));
    assert_eq!(ran.out(), "ptmx\n", "{ran:?}");
    for user in ["0", "1000:1000"] {
        let mut terminal = shell("stty size; stat -c '%u %g %a' $(tty); echo own > /dev/tty");
        terminal.user = Some(user.into());
        terminal.terminal = Some(TerminalSize { rows: 33, cols: 101 });
        let ran = jail.run(terminal);
        let uid = user.split(':').next().unwrap();
        assert_eq!(ran.out(), format!("33 101\r\n{uid} 5 620\r\nown\r\n"), "{ran:?}");
        // Without input there is nothing to serve.
        let mut sftp = shell("");
        sftp.command = Command::Sftp;
        sftp.user = Some(user.into());
        sftp.no_new_privileges = true;
        let ran = jail.run(sftp);
        assert_eq!((ran.status.exit_code, ran.status.reason), (0, ExitReason::Exited), "{ran:?}");
    }
    let nobody = Connect::Tcp { host: "localhost".into(), port: 9 };
    let refused = jail.runtime.block_on(jail.guest.as_ref().unwrap().connect_to(nobody)).err().unwrap();
    assert_eq!(refused.refusal().unwrap().code, FailureCode::NotConnected, "{refused:?}");
}
