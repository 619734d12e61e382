//! A guest as an ordinary process of this machine, and the host's side of it.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth_jail::cgroup::{self, Cgroup, Facts, Limits, Plan};
use berth_sandbox::guest::{Error, Exec, ExecOutput, ExecSpec, Guest};
use berth_types::exec::{self, ExecStatus, OutputStream};

/// Where cgroups may be, and whether the unified hierarchy is there.
pub(crate) const HIERARCHIES: [(&str, bool); 3] =
    [("/sys/fs/cgroup/pids", false), ("/sys/fs/cgroup/unified", true), ("/sys/fs/cgroup", true)];

/// Makes what it starts PID 1 of a namespace.
const AS_INIT: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// A running guest. Everything that it started ends with it.
pub(crate) struct Rig {
    pub(crate) guest: Guest,
    pub(crate) process: Child,
    cgroup: Option<PathBuf>,
    limited: Option<Limited>,
}

/// The groups of a sandbox, as a container's are. Gone with it.
struct Limited {
    cgroup: Cgroup,
    facts: Facts,
    instance: String,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: ExecStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Ran {
    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn message(&self) -> &str {
        self.status.message.as_deref().unwrap_or("")
    }
}

impl Rig {
    /// A guest without cgroups.
    pub(crate) async fn new() -> Self {
        Self::with(None, &[], &[]).await
    }

    /// A guest with a cgroup of its own; `None`, said out loud, where this machine gives none.
    pub(crate) async fn with_cgroup() -> Option<Self> {
        for (root, v2) in HIERARCHIES {
            if let Some(rig) = Self::in_hierarchy(root, v2).await {
                return Some(rig);
            }
        }
        println!("SKIP: no cgroup can be made on this machine");
        None
    }

    /// As [`Rig::with_cgroup`], in one of the places where cgroups may be.
    pub(crate) async fn in_hierarchy(root: &str, v2: bool) -> Option<Self> {
        let dir = Path::new(root).join(format!("berth-test-{}", std::process::id()));
        std::fs::create_dir(&dir).ok()?;
        if dir.join("cgroup.procs").exists() {
            return Some(Self::with(Some((dir, v2)), &[], &[]).await);
        }
        let _ = std::fs::remove_dir(&dir);
        None
    }

    /// A guest as PID 1 of a namespace; `None`, said out loud, where none can be made.
    pub(crate) async fn as_init() -> Option<Self> {
        Self::as_init_with(&[]).await
    }

    /// As [`Rig::as_init`], with further arguments.
    pub(crate) async fn as_init_with(arguments: &[String]) -> Option<Self> {
        let mut probe = Command::new(AS_INIT[0]);
        if !probe.args(&AS_INIT[1..]).arg("true").status().is_ok_and(|status| status.success()) {
            println!("SKIP: no pid namespace can be made by unshare");
            return None;
        }
        Some(Self::with(None, &AS_INIT, arguments).await)
    }

    async fn with(cgroup: Option<(PathBuf, bool)>, wrapper: &[&str], arguments: &[String]) -> Self {
        // The shell moves the stream from its standard input to the number that the guest is told.
        let mut script = format!("exec {} \"$0\" --control-fd=3 3<&0 0</dev/null", wrapper.join(" "));
        if let Some((dir, v2)) = &cgroup {
            script.push_str(&format!(" --cgroup-fd=4 4<{}", dir.display()));
            script.push_str(if *v2 { " --cgroup-v2" } else { "" });
        }
        for argument in arguments {
            script.push_str(&format!(" {argument}"));
        }
        let mut rig = Self::run_script(&script).await;
        rig.cgroup = cgroup.map(|(dir, _)| dir);
        rig
    }

    /// A guest in the groups that a container has, limited so; `None`, said out loud, where they cannot be made.
    pub(crate) async fn limited(limits: Limits) -> Option<Self> {
        Self::limited_on(limits, Facts::detect().unwrap()).await
    }

    /// As [`Rig::limited`], on a machine with these hierarchies.
    pub(crate) async fn limited_on(limits: Limits, facts: Facts) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let instance = format!("guest{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: needs root");
            return None;
        }
        let plan = match cgroup::plan(&limits, &facts, &format!("berth/{instance}/s"), None) {
            Err(error @ cgroup::Error::ControllerMissing { .. }) => {
                println!("SKIP: {error}");
                return None;
            }
            plan => plan.unwrap(),
        };
        let cgroup = plan.create().unwrap();
        let mut rig = Self::start_in(&plan).await;
        rig.limited = Some(Limited { cgroup, facts, instance });
        Some(rig)
    }

    /// What a launcher does, by a shell. As PID 1, or those that the guest did not start would stay as zombies a while.
    async fn start_in(plan: &Plan) -> Self {
        let membership = plan.membership();
        let guest = membership.guest.unwrap();
        let join = membership.join.iter().map(|door| format!("echo 0 > {}\n", door.display()));
        let settle = membership.settle.iter().map(|write| {
            let condition = if write.if_there {
                format!("test ! -e {} || ", write.path.display())
            } else {
                String::new()
            };
            format!("{condition}echo '{}' > {}\n", write.value, write.path.display())
        });
        let mut script: String = join.chain(settle).collect();
        script.insert_str(0, "set -e\n");
        script.push_str(&format!("exec {} \"$0\" --control-fd=3 3<&0 0</dev/null", AS_INIT.join(" ")));
        let execs = guest.execs.iter().map(|dir| ("--cgroup-fd", dir));
        let enter = guest.enter.iter().map(|dir| ("--enter-fd", dir));
        let memory = guest.memory.iter().map(|dir| ("--memory-fd", dir));
        for (number, (name, dir)) in (4..).zip(execs.chain(enter).chain(memory)) {
            script.push_str(&format!(" {name}={number} {number}<{}", dir.display()));
        }
        script.push_str(if guest.v2 { " --cgroup-v2" } else { "" });
        Self::run_script(&script).await
    }

    async fn run_script(script: &str) -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_berth-guest")]);
        let process = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().unwrap();
        drop(command);
        let stream = tokio::net::UnixStream::from_std(ours).unwrap();
        let guest = Guest::connect(stream).await.unwrap();
        Self { guest, process, cgroup: None, limited: None }
    }

    /// What the sandbox's groups count.
    pub(crate) fn usage(&self) -> cgroup::Usage {
        self.limited.as_ref().unwrap().cgroup.usage().unwrap()
    }

    /// Limits how many processes the commands may have in all, where that can be done.
    pub(crate) fn limit_processes(&self, max: u32) -> bool {
        self.cgroup.as_ref().is_some_and(|dir| std::fs::write(dir.join("pids.max"), max.to_string()).is_ok())
    }

    pub(crate) async fn start(&self, spec: ExecSpec) -> Result<Exec, Error> {
        self.guest.exec(spec).await
    }

    pub(crate) async fn run(&self, spec: ExecSpec) -> Ran {
        finish(self.guest.exec(spec).await.unwrap()).await
    }

    pub(crate) async fn sh(&self, line: &str) -> Ran {
        self.run(shell(line)).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let guest = self.process.id();
        let children =
            std::fs::read_to_string(format!("/proc/{guest}/task/{guest}/children")).unwrap_or_default();
        let _ = self.process.kill();
        // A guest that is not PID 1 and is killed leaves its commands, each the leader of a group.
        for pid in children
            .split_ascii_whitespace()
            .filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.process.wait();
        if let Some(dir) = &self.cgroup {
            kill_cgroup(dir);
        }
        if let Some(limited) = &self.limited {
            limited.cgroup.kill_all().unwrap();
            limited.cgroup.remove().unwrap();
            cgroup::remove_instance(&limited.facts, &limited.instance).unwrap();
        }
    }
}

fn kill_cgroup(dir: &Path) {
    let until = Instant::now() + Duration::from_secs(5);
    let children =
        || std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    while children().next().is_some() && Instant::now() < until {
        for child in children() {
            for pid in members(&child) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = std::fs::remove_dir(&child);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::fs::remove_dir(dir).unwrap();
}

fn members(cgroup: &Path) -> Vec<rustix::process::Pid> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?)).collect()
}

/// Reads an exec to its end.
pub(crate) async fn finish(mut exec: Exec) -> Ran {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(output) = exec.next().await {
        match output.unwrap() {
            ExecOutput::Started { .. } => {}
            ExecOutput::Output { stream: OutputStream::Stdout, data, .. } => stdout.extend_from_slice(&data),
            ExecOutput::Output { stream: OutputStream::Stderr, data, .. } => stderr.extend_from_slice(&data),
            ExecOutput::Gap { stream, from, to } => panic!("{stream:?} lacks {from} to {to}"),
            ExecOutput::Detached => panic!("detached"),
            ExecOutput::Exited(status) => {
                assert!(exec.next().await.is_none());
                return Ran { status, stdout, stderr };
            }
        }
    }
    panic!("the exec ended without a status");
}

/// A shell line as root in `/`.
pub(crate) fn shell(line: &str) -> ExecSpec {
    spec(exec::Command::Shell(line.to_owned()))
}

/// A program as root in `/`.
pub(crate) fn argv(argv: &[&str]) -> ExecSpec {
    spec(exec::Command::Argv(argv.iter().map(|arg| (*arg).to_owned()).collect()))
}

fn spec(command: exec::Command) -> ExecSpec {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    ExecSpec::new(format!("e{count}"), command)
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Waits until something is so; fails after ten seconds.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < limit, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
