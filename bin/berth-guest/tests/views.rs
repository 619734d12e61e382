//! What commands are shown of their sandbox's limits, through the host's side.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod rig;

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rig::{Rig, shell};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 512 * MIB;
const STORAGE: u64 = 64 * MIB;

/// A served file as the first process of a sandbox mounts it.
struct View {
    path: tempfile::NamedTempFile,
    connection: Option<OwnedFd>,
}

impl View {
    /// `None`, said out loud, where there is no FUSE.
    fn mount() -> Option<Self> {
        let path = tempfile::NamedTempFile::new().unwrap();
        let connection = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(connection) => connection,
            Err(error) => {
                println!("SKIP: cannot open /dev/fuse: {error}");
                return None;
            }
        };
        let fd = connection.as_raw_fd();
        let options = format!("fd={fd},rootmode=100444,user_id=0,group_id=0,allow_other,default_permissions");
        let options = std::ffi::CString::new(options).unwrap();
        if let Err(error) =
            rustix::mount::mount("berth", path.path(), "fuse", MountFlags::RDONLY, options.as_c_str())
        {
            println!("SKIP: cannot mount by FUSE: {error}");
            return None;
        }
        Some(Self { path, connection: Some(connection) })
    }

    fn path(&self) -> &str {
        self.path.path().to_str().unwrap()
    }

    /// The argument that hands the connection to the guest.
    fn argument(&mut self, name: &str) -> (String, OwnedFd) {
        argument(name, self.connection.take().unwrap())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path.path(), UnmountFlags::DETACH);
    }
}

/// A descriptor that a child inherits, and the argument that tells its number. It is to be kept until the child runs.
fn argument(name: &str, fd: OwnedFd) -> (String, OwnedFd) {
    // Far above the numbers that the shell in between uses, and not closed by execve(2).
    let inherited = rustix::io::fcntl_dupfd_cloexec(&fd, 100).unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    (format!("{name}={}", inherited.as_raw_fd()), inherited)
}

fn open(path: impl AsRef<Path>) -> OwnedFd {
    std::fs::File::open(path).unwrap().into()
}

/// A control group with a limit of memory.
struct Group(PathBuf, bool);

impl Group {
    fn make() -> Option<Self> {
        for (root, v2, limit) in [
            ("/sys/fs/cgroup/memory", false, "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", true, "memory.max"),
        ] {
            let dir = Path::new(root).join(format!("berth-views-{}", std::process::id()));
            if std::fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir, v2);
            if std::fs::write(group.0.join(limit), LIMIT.to_string()).is_ok() {
                return Some(group);
            }
        }
        println!("SKIP: no memory can be limited here");
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..500 {
            let text = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for pid in text.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} is left", self.0.display());
    }
}

fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    there.is_ok_and(|status| status.success())
}

fn more_than_one_processor() -> bool {
    let there = std::thread::available_parallelism().unwrap().get() > 1;
    if !there {
        println!("SKIP: this machine has one processor");
    }
    there
}

async fn one_processor() -> Option<Rig> {
    if !more_than_one_processor() {
        return None;
    }
    Rig::as_init_with(&["--processors=0".to_owned()]).await
}

#[tokio::test]
async fn memory_is_that_of_the_group_and_follows_its_use() {
    let (Some(mut view), Some(group)) = (View::mount(), Group::make()) else { return };
    let connection = view.argument("--meminfo-fd");
    let machine = argument("--machine-meminfo-fd", open("/proc/meminfo"));
    let dir = argument("--memory-group-fd", open(&group.0));
    let mut arguments = vec![connection.0, machine.0, dir.0, format!("--memory-bytes={LIMIT}")];
    if group.1 {
        arguments.push("--cgroup-v2".to_owned());
    }
    let Some(rig) = Rig::as_init_with(&arguments).await else { return };
    drop((connection.1, machine.1, dir.1));
    let free = |text: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix("MemFree:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    };
    let path = view.path();
    let ran = rig
        .sh(&format!(
            "echo $$ > {}/cgroup.procs; cat {path}; head -c {} /dev/zero > /dev/shm/berth-views-$$; cat {path}; \
             rm /dev/shm/berth-views-$$; cat {path} | wc -l; stat -c '%a %F' {path}; echo x > {path} || echo no",
            group.0.display(),
            100 * MIB
        ))
        .await
        .out();
    let at = ran.match_indices("MemTotal:").map(|(at, _)| at).collect::<Vec<_>>();
    let [before, after] = [&ran[at[0]..at[1]], &ran[at[1]..]];
    assert!(before.starts_with(&format!("MemTotal:         {} kB\n", LIMIT / 1024)), "{before}");
    let fallen = free(before).saturating_sub(free(after));
    assert!((95 * 1024..120 * 1024).contains(&fallen), "fell by {fallen} kB");
    assert!(
        ran.ends_with("444 regular file\nno\n") || ran.ends_with("444 regular empty file\nno\n"),
        "{ran}"
    );
    // sysinfo(2) says the same; as any user.
    if has("python3") {
        let mut asking = shell(
            "python3 -c 'import os; print(os.sysconf(\"SC_PHYS_PAGES\") * os.sysconf(\"SC_PAGESIZE\"))'",
        );
        asking.user = Some("65534:65534".into());
        let ran = rig.run(asking).await;
        assert_eq!(ran.out(), format!("{LIMIT}\n"), "{ran:?}");
    }
    // By sendfile(2), as busybox has it: whole, and anew each time. No stat(2) has to come first.
    if has("python3") {
        let script = format!(
            "import os\nfor _ in range(3):\n f = os.open(\"{path}\", 0)\n while os.sendfile(1, f, None, 1000): pass"
        );
        let ran = rig.sh(&format!("python3 -c '{script}'; stat -c %s {path}")).await.out();
        let (texts, size) = ran.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(texts.matches("MemTotal:").count(), 3, "{ran}");
        assert_eq!(texts.len() + 1, 3 * size.parse::<usize>().unwrap(), "{ran}");
        assert!(!texts.contains('\0'));
    }
    // In parts, from one moment.
    let ran = rig
        .sh(&format!("dd if={path} bs=7 status=none | head -n 1; exec 3<{path}; read a b c <&3; echo $b"))
        .await;
    assert_eq!(ran.out(), format!("MemTotal:         {0} kB\n{0}\n", LIMIT / 1024));
}

#[tokio::test]
async fn processors_are_as_many_as_are_shown() {
    let Some(rig) = one_processor().await else { return };
    assert_eq!(rig.sh("nproc").await.out(), "1\n");
    let mut nobody = shell("nproc");
    nobody.user = Some("65534:65534".into());
    assert_eq!(rig.run(nobody).await.out(), "1\n");
    // Whoever has narrowed its own mask sees that.
    if has("taskset") {
        assert_eq!(rig.sh("taskset -c 1 sh -c 'taskset -pc $$' | sed 's/.*: //'").await.out(), "1\n");
    }
    if has("python3") {
        let script = "import os; print(os.sched_getaffinity(0)); os.sched_setaffinity(0, {1}); \
                      print(os.sched_getaffinity(0), os.sched_getaffinity(1))";
        assert_eq!(rig.sh(&format!("python3 -c '{script}'")).await.out(), "{0}\n{1} {0}\n");
        let script =
            "import os\ntry: os.sched_getaffinity(99999999)\nexcept ProcessLookupError: print(\"none\")";
        assert_eq!(rig.sh(&format!("python3 -c '{script}'")).await.out(), "none\n");
    }
}

#[tokio::test]
async fn statistics_are_of_the_processors_that_are_shown() {
    let Some(mut view) = View::mount().filter(|_| more_than_one_processor()) else { return };
    let connection = view.argument("--stat-fd");
    let machine = argument("--machine-stat-fd", open("/proc/stat"));
    let arguments = [connection.0, machine.0, "--processors=0".to_owned()];
    let Some(rig) = Rig::as_init_with(&arguments).await else { return };
    let ran = rig.sh(&format!("grep -c ^cpu {0}; grep -c ^cpu1 {0}; grep -c ^btime {0}", view.path())).await;
    assert_eq!(ran.out(), "2\n0\n1\n");
}

#[tokio::test]
async fn room_on_the_root_is_that_of_the_limit() {
    let mut used = tempfile::NamedTempFile::new().unwrap();
    writeln!(used, "{}", 48 * MIB).unwrap();
    let file = argument("--storage-used-fd", open(used.path()));
    let arguments = [file.0, format!("--storage-bytes={STORAGE}")];
    let Some(rig) = Rig::as_init_with(&arguments).await else { return };
    let df = "df -B1 --output=size,avail";
    for (user, path) in
        [("0:0", "/"), ("65534:65534", "/"), ("65534:65534", "etc/../usr"), ("0:0", "/etc/passwd")]
    {
        let mut asking = shell(&format!("{df} {path} | tail -n 1"));
        asking.user = Some(user.into());
        let ran = rig.run(asking).await;
        let figures: Vec<u64> =
            ran.out().split_ascii_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(figures, [STORAGE, 16 * MIB], "{user} {path}: {ran:?}");
    }
    // Live.
    std::fs::write(used.path(), "67108864\n").unwrap();
    assert!(rig.sh(&format!("{df} /")).await.out().trim().ends_with(" 0"));
    // What is not on the root is told truly.
    let truly = |path: &str| {
        let out = Command::new("stat").args(["-f", "-c", "%b %T", path]).output().unwrap().stdout;
        String::from_utf8(out).unwrap()
    };
    for path in ["/dev/shm", "/sys"] {
        assert_eq!(rig.sh(&format!("stat -f -c '%b %T' {path}")).await.out(), truly(path));
    }
    let ran = rig.sh("stat -f /nowhere 2>&1").await;
    assert!(ran.out().contains("No such file"), "{ran:?}");
    if has("python3") {
        let script =
            "import os; s = os.fstatvfs(os.open(\"/etc\", os.O_RDONLY)); print(s.f_blocks * s.f_frsize)";
        assert_eq!(rig.sh(&format!("python3 -c '{script}'")).await.out(), format!("{STORAGE}\n"));
    }
    // Nobody learns what is in a directory that they may not enter.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("inner")).unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut asking = shell(&format!("stat -f {}/inner 2>&1", dir.path().display()));
    asking.user = Some("65534:65534".into());
    let ran = rig.run(asking).await;
    assert!(ran.out().contains("Permission denied"), "{ran:?}");
}

#[tokio::test]
async fn a_thousand_at_once_are_all_answered() {
    let Some(rig) = one_processor().await else { return };
    let ran = rig.sh("for i in $(seq 1000); do nproc & done | sort | uniq -c | tr -s ' '; wait").await;
    assert_eq!(ran.out(), " 1000 1\n");
}

#[tokio::test]
async fn whoever_is_killed_while_it_asks_is_no_trouble() {
    let Some(rig) = one_processor().await else { return };
    if !has("python3") {
        println!("SKIP: no python3");
        return;
    }
    let script = "import os, time, signal\nfor i in range(200):\n    pid = os.fork()\n    if not pid:\n        while True: \
                  os.sched_getaffinity(0)\n    time.sleep(0.001)\n    os.kill(pid, signal.SIGKILL)\n    os.wait()\n\
                  print(len(os.sched_getaffinity(0)))";
    assert_eq!(rig.sh(&format!("python3 -c '{script}'")).await.out(), "1\n");
}

#[tokio::test]
async fn garbage_in_place_of_the_kernels_requests_is_survived() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = argument("--meminfo-fd", theirs.into());
    let Some(rig) = Rig::as_init_with(&[connection.0]).await else { return };
    drop(connection.1);
    for garbage in [&[0_u8; 3][..], &[0xff; 100], &[7; 40], &[0; 9000]] {
        ours.write_all(garbage).unwrap();
        assert_eq!(rig.sh("echo still").await.out(), "still\n");
    }
    drop(ours);
    assert_eq!(rig.sh("echo here").await.out(), "here\n");
}
