//! The peers: by which commands they make a sandbox, run `echo ok` in it and end it, and what they do less than Berth.
//!
//! podman does all of it by itself. runc, crun and bubblewrap are given an overlay that was mounted before, once: a
//! figure of theirs lacks making, mounting and removing a writable layer.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_sys::netns::run_in;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::place::Place;

/// What the command in every sandbox says.
pub(super) const GREETING: &str = "ok";
/// podman's name for the one image.
pub(super) const PODMAN_IMAGE: &str = "localhost/berth-bench:latest";
/// Longer than any peer takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// A sandbox's limits, the same for everybody.
pub(super) const MEMORY_MB: u64 = 64;
pub(super) const CPUS: f64 = 1.0;
pub(super) const PIDS: u64 = 128;

/// Who else makes sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    /// podman run --rm, by runc
    PodmanRunc,
    /// podman run --rm, by crun
    PodmanCrun,
    /// runc run
    Runc,
    /// crun run
    Crun,
    /// bubblewrap
    Bwrap,
}

impl Peer {
    /// As in figures and paths.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PodmanRunc => "podman-runc",
            Self::PodmanCrun => "podman-crun",
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Bwrap => "bwrap",
        }
    }

    pub(super) fn is_podman(self) -> bool {
        matches!(self, Self::PodmanRunc | Self::PodmanCrun)
    }

    /// One in so many rounds is enough for those that take long.
    pub(super) fn share(self) -> u32 {
        match self {
            Self::PodmanRunc | Self::PodmanCrun => 20,
            Self::Runc | Self::Crun => 5,
            Self::Bwrap => 2,
        }
    }

    /// What a reader must know of its figure.
    pub(super) fn note(self) -> Option<&'static str> {
        match self {
            Self::PodmanRunc | Self::PodmanCrun => Some("no user namespace, which is its default as root"),
            Self::Runc | Self::Crun => Some(
                "by hand, on an overlay that was mounted before: no writable layer is made or removed, no user namespace",
            ),
            Self::Bwrap => Some(
                "by hand, on an overlay that was mounted before: no writable layer is made or removed, no control \
                 groups and so no limits, no user namespace",
            ),
        }
    }

    /// Whether it can make a sandbox with a network, or one without, at all.
    pub(super) fn command_exists(self, network: bool) -> bool {
        !network || self.is_podman()
    }

    /// The command; nothing where it makes no networks.
    pub(super) fn command(self, place: &Place, network: bool) -> Option<Vec<String>> {
        let argv = match self {
            Self::PodmanRunc => podman_run(place, "runc", network),
            Self::PodmanCrun => podman_run(place, "crun", network),
            Self::Runc | Self::Crun if !network => oci_run(place, self.name()),
            Self::Bwrap if !network => bwrap(&place.overlay()),
            Self::Runc | Self::Crun | Self::Bwrap => return None,
        };
        Some(argv)
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// podman with storage of its own.
pub(super) fn podman(place: &Place) -> Vec<String> {
    let dir = |name| place.dir.join(name).display().to_string();
    let mut argv = words(&["podman", "--root", &dir("podman"), "--runroot", &dir("podman-run")]);
    argv.extend(words(&["--cgroup-manager", "cgroupfs", "--events-backend", "none"]));
    argv
}

fn podman_run(place: &Place, runtime: &str, network: bool) -> Vec<String> {
    let (memory, cpus, pids) = (format!("{MEMORY_MB}m"), CPUS.to_string(), PIDS.to_string());
    let mut argv = podman(place);
    argv.extend(words(&["--runtime", runtime, "run", "--rm", "--pull", "never", "--cgroup-parent"]));
    argv.push(format!("/{}", place.name));
    argv.extend(words(&["--memory", &memory, "--cpus", &cpus, "--pids-limit", &pids]));
    // Its own defaults are above what a root without CAP_SYS_RESOURCE may set.
    argv.extend(words(&["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]));
    if !network {
        argv.extend(words(&["--network", "none"]));
    }
    argv.extend(words(&[PODMAN_IMAGE, "echo", GREETING]));
    argv
}

fn oci_run(place: &Place, runtime: &str) -> Vec<String> {
    let state = place.dir.join("state").join(runtime).display().to_string();
    let bundle = place.dir.join(format!("bundle-{runtime}")).display().to_string();
    words(&[runtime, "--root", &state, "run", "--bundle", &bundle, &place.name])
}

fn bwrap(root: &Path) -> Vec<String> {
    let root = root.display().to_string();
    let mut argv = words(&["bwrap", "--bind", &root, "/", "--proc", "/proc", "--dev", "/dev"]);
    argv.extend(words(&[
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--die-with-parent",
    ]));
    argv.extend(words(&["--clearenv", "--setenv", "PATH", "/bin:/usr/bin", "echo", GREETING]));
    argv
}

/// `config.json` of runc's and crun's bundles: Berth's namespaces and limits.
pub(super) fn bundle(root: &Path, cgroup: &str) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["echo", GREETING],
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": root, "readonly": false},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{cgroup}/oci"),
            "resources": {
                "memory": {"limit": MEMORY_MB << 20},
                "cpu": {"quota": 100_000, "period": 100_000},
                "pids": {"limit": PIDS},
            },
            "namespaces": namespaces,
        },
    })
}

/// Commands that end what interrupted peers have left.
pub(super) fn ends(place: &Place) -> Vec<Vec<String>> {
    let delete = |runtime: &str| {
        let state = place.dir.join("state").join(runtime);
        let argv =
            words(&[runtime, "--root", &state.display().to_string(), "delete", "--force", &place.name]);
        state.is_dir().then_some(argv)
    };
    let mut ends: Vec<_> = ["runc", "crun"].into_iter().filter_map(delete).collect();
    if place.dir.join("podman").is_dir() {
        let mut argv = podman(place);
        argv.extend(words(&["rm", "--all", "--force", "--time", "0"]));
        ends.push(argv);
    }
    ends
}

/// Runs a command to its success, in that network namespace where one is given; returns the milliseconds it took and what
/// it printed.
pub(super) async fn timed(argv: Vec<String>, netns: Option<Arc<OwnedFd>>) -> anyhow::Result<(f64, String)> {
    let pid = Arc::new(AtomicU32::new(0));
    let told = Arc::clone(&pid);
    let mut running = tokio::task::spawn_blocking(move || match netns {
        None => run(&argv, &told),
        Some(netns) => {
            run_in(netns.as_fd(), || Ok(run(&argv, &told))).context("entering podman's network")?
        }
    });
    tokio::select! {
        done = &mut running => done.context("a thread that times commands")?,
        () = tokio::time::sleep(PATIENCE) => {
            let raw = pid.load(Ordering::Relaxed).cast_signed();
            if let Some(pid) = rustix::process::Pid::from_raw(raw) {
                // Not reaped yet, for the thread still waits: the number is nobody else's.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = running.await;
            anyhow::bail!("not done within {} s", PATIENCE.as_secs())
        }
    }
}

fn run(argv: &[String], told: &AtomicU32) -> anyhow::Result<(f64, String)> {
    let (program, arguments) = argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    // Ctrl-C is for the benchmark alone, which lets commands end.
    command.args(arguments).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {program}"))?;
    told.store(child.id(), Ordering::Relaxed);
    let output = child.wait_with_output().with_context(|| format!("waiting for {program}"))?;
    let milliseconds = start.elapsed().as_secs_f64() * 1000.0;
    let error = String::from_utf8_lossy(&output.stderr);
    let error = error.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    anyhow::ensure!(output.status.success(), "{program}: {}: {error}", output.status);
    Ok((milliseconds, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Runs a peer once, and makes sure that it did its work.
pub(super) async fn time_peer(place: &Place, peer: Peer, argv: Vec<String>) -> anyhow::Result<f64> {
    let netns = peer.is_podman().then(|| Arc::clone(&place.netns));
    let (milliseconds, output) = timed(argv, netns).await?;
    anyhow::ensure!(output.trim_end() == GREETING, "it said {output:?}, not {GREETING:?}");
    Ok(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_that_a_person_would_type() {
        let place = std::mem::ManuallyDrop::new(Place {
            dir: "/b".into(),
            name: "berth-bench-1".to_owned(),
            podmans_group: true,
            netns: Arc::new(std::fs::File::open("/dev/null").unwrap().into()),
        });
        let mut text = Vec::new();
        for peer in Peer::value_variants() {
            for network in [false, true] {
                let command = peer.command(&place, network).map_or("–".to_owned(), |argv| argv.join(" "));
                text.push(format!("{} {network}: {command}", peer.name()));
            }
        }
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn a_bundle_has_the_namespaces_and_limits() {
        let bundle = bundle(Path::new("/b/overlay/root"), "berth-bench-1");
        insta::assert_snapshot!(serde_json::to_string_pretty(&bundle).unwrap());
    }
}
