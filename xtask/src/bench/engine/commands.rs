//! Commands in a sandbox that is there: one after the other from three clients, and very many at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::Context as _;
use berth_client::types::sandbox::NetworkMode;
use futures_util::{StreamExt as _, stream};

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::{argv, delete, idle, request, time_true};
use super::peers::{self, Peer, timed};
use super::{World, progress};

/// The targets, in milliseconds.
const RUST: f64 = 1.5;
const PYTHON: f64 = 3.0;
/// How much faster than `podman exec`.
const PODMAN: f64 = 1.0 / 40.0;
/// Podman takes a tenth of a second each.
const PODMAN_SHARE: u32 = 20;
const WARM_UP: u32 = 20;

/// Many at once in one sandbox.
const CROWD: usize = 500;
/// Many at once over many sandboxes.
const WIDE: (usize, usize) = (2000, 100);
/// Each of many may wait for all others.
const CROWD_TIMEOUT: f64 = 300.0;

/// What Python runs: prints the milliseconds of each `true`, as JSON.
const SCRIPT: &str = r#"
import json, sys, time
import berth
with berth.Client(sys.argv[1]) as client:
    box, times = client.sandbox(sys.argv[2]), []
    for _ in range(int(sys.argv[3])):
        began = time.perf_counter()
        result = box.exec(["true"])
        times.append(1000 * (time.perf_counter() - began))
        assert result.exit_code == 0, result
print(json.dumps(times[20:]))
"#;

/// `true` in a sandbox that is there, by each client and by podman.
pub(super) async fn single(world: &World, root: &Path) -> Vec<Row> {
    progress("exec of `true`, one after the other");
    let rust = rust(world).await;
    let python = python(world, root).await;
    let podman = podman(world).await;
    let podman_p50 = podman.as_ref().ok().and_then(Samples::p50);
    let beside = |row: Row| row.beside("podman exec", podman_p50).asked(Target::ratio(Bound::AtMost(PODMAN)));
    let mut rows = vec![
        rust.in_turn("exec/rust").asked(Target::value(Bound::AtMost(RUST))),
        beside(rust.in_turn("exec/rust beside podman")),
    ];
    match python {
        Ok(python) => rows.extend([
            python.in_turn("exec/python").asked(Target::value(Bound::AtMost(PYTHON))),
            beside(python.in_turn("exec/python beside podman")),
        ]),
        Err(error) => rows.push(Row::not_measured("exec/python", "ms", format!("{error:#}"))),
    }
    rows.push(match podman {
        Ok(podman) => podman.in_turn("exec/podman"),
        Err(error) => Row::not_measured("exec/podman", "ms", format!("{error:#}")),
    });
    rows
}

async fn rust(world: &World) -> Samples {
    let mut samples = Samples::default();
    let sandbox = match world.client.create_sandbox(&request(NetworkMode::NoNetwork)).await {
        Ok(sandbox) => sandbox,
        Err(error) => {
            samples.fail(&error.into());
            return samples;
        }
    };
    for round in 0..world.count + WARM_UP {
        let took = time_true(&world.client, &sandbox.id).await;
        if round >= WARM_UP {
            samples.add(took);
        }
    }
    if let Err(error) = world.client.delete_sandbox(&sandbox.id).await {
        samples.fail(&error.into());
    }
    samples
}

/// The same by the Python client, with an interpreter that has what that needs.
async fn python(world: &World, root: &Path) -> anyhow::Result<Samples> {
    let python = interpreter().context("no Python from 3.12 on that has httpx; BERTH_PYTHON names one")?;
    let sandbox = world.client.create_sandbox(&request(NetworkMode::NoNetwork)).await?;
    let (host, id, count) = (world.client.host().to_string(), sandbox.id.clone(), world.count + WARM_UP);
    let path = root.join("python");
    let ran = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT, &host, &id, &count.to_string()]).env("PYTHONPATH", path);
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()
    });
    let output = ran.await??;
    world.client.delete_sandbox(&sandbox.id).await?;
    anyhow::ensure!(output.status.success(), "the Python client: {}", output.status);
    Ok(Samples::of(serde_json::from_slice(&output.stdout).context("reading what Python measured")?))
}

fn interpreter() -> Option<PathBuf> {
    let given = std::env::var_os("BERTH_PYTHON").map(PathBuf::from);
    let usual = ["python3", "python3.13", "python3.12"].map(PathBuf::from);
    let fits = |python: &PathBuf| {
        let check = "import sys, httpx; sys.exit(sys.version_info < (3, 12))";
        let mut command = Command::new(python);
        command.args(["-c", check]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    given.into_iter().chain(usual).find(fits)
}

async fn podman(world: &World) -> anyhow::Result<Samples> {
    world.podman.clone().map_err(anyhow::Error::msg)?;
    let peer = *world.peers.iter().find(|peer| peer.is_podman()).context("podman was not asked for")?;
    let runtime = if peer == Peer::PodmanRunc { "runc" } else { "crun" };
    let name = format!("{}-exec", world.place.name);
    let netns = || Some(std::sync::Arc::clone(&world.place.netns));
    let command = |words: &[&str]| {
        let mut argv = peers::podman(&world.place);
        argv.extend(["--runtime".to_owned(), runtime.to_owned()]);
        argv.extend(words.iter().map(|word| (*word).to_owned()));
        argv
    };
    let group = format!("/{}", world.place.name);
    let start = [
        "run",
        "-d",
        "--rm",
        "--name",
        &name,
        "--pull",
        "never",
        "--cgroup-parent",
        &group,
        "--network",
        "none",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=4096:4096",
        peers::PODMAN_IMAGE,
        "sleep",
        "3600",
    ];
    timed(command(&start), netns()).await.context("podman run")?;
    let mut samples = Samples::default();
    for _ in 0..world.count.div_ceil(PODMAN_SHARE) {
        let ran = timed(command(&["exec", &name, "true"]), netns()).await;
        samples.add(ran.map(|(milliseconds, _)| milliseconds));
    }
    timed(command(&["rm", "-f", "-t", "0", &name]), netns()).await.context("podman rm")?;
    Ok(samples)
}

/// Very many at once. Each says a word of its own, so that crossed wires would show.
pub(super) async fn crowds(world: &World) -> Vec<Row> {
    progress(&format!("{CROWD} execs at once in one sandbox"));
    let narrow = crowd(world, CROWD, 1).await;
    progress(&format!("{} execs at once over {} sandboxes", WIDE.0, WIDE.1));
    let wide = crowd(world, WIDE.0, WIDE.1).await;
    vec![
        narrow.row(format!("{CROWD} execs at once, one sandbox, each"), "ms"),
        wide.row(format!("{} execs at once, {} sandboxes, each", WIDE.0, WIDE.1), "ms"),
    ]
}

async fn crowd(world: &World, execs: usize, sandboxes: usize) -> Samples {
    let mut samples = Samples::default();
    let mut request = request(NetworkMode::NoNetwork);
    // All of them in one sandbox need more than the usual room.
    request.resources.memory_mb = Some(if sandboxes == 1 { 1024 } else { 128 });
    request.resources.pids = Some(4096);
    let there = match idle(&world.client, &request, sandboxes, 16).await {
        Ok(there) => there,
        Err(error) => {
            samples.fail(&error);
            return samples;
        }
    };
    let each = (0..execs).map(|number| {
        let (client, sandbox) = (world.client.clone(), there[number % sandboxes].id.clone());
        async move {
            let start = Instant::now();
            let word = format!("word-{number}");
            let mut wanted = argv(&["sh", "-c", &format!("echo {word}; exit {}", number % 200)]);
            wanted.timeout_seconds = Some(CROWD_TIMEOUT);
            let ran = tokio::spawn(async move { client.exec_collect(&sandbox, &wanted).await }).await??;
            let said = String::from_utf8_lossy(&ran.stdout);
            let code = usize::try_from(ran.status.exit_code).unwrap_or(usize::MAX);
            anyhow::ensure!(
                said.trim_end() == word && code == number % 200,
                "{word}: {said:?}, {:?}",
                ran.status
            );
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        }
    });
    let done: Vec<_> = stream::iter(each).buffer_unordered(execs).collect().await;
    done.into_iter().for_each(|one| samples.add(one));
    if let Err(error) = delete(&world.client, &there, 16).await {
        samples.fail(&error);
    }
    samples
}
