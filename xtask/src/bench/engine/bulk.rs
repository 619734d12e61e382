//! Bytes: 1 GiB of output, 1 GiB of file, and very many small files, both ways.
//!
//! By the command line, as a process of its own whose memory can be told, beside what the machine's own tools take for
//! the same on the same disk.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_client::types::sandbox::{NetworkMode, Sandbox};

use super::super::rows::{Bound, Row, Samples, Target};
use super::berth::request;
use super::{World, progress};

const GIB: u64 = 1 << 30;
const MIB: f64 = 1_048_576.0;
const ROUNDS: usize = 3;
const SMALL_FILES: usize = 20_000;

/// What 1 GiB of output has to reach of a pipe's speed.
const STREAM: f64 = 0.5;
/// What daemon and client may have meanwhile, in MiB.
const MEMORY: f64 = 64.0;
/// How long a large file may take beside `cp`.
const LARGE: f64 = 1.0 / 0.6;
/// How long many small ones may take beside `tar c | tar x`.
const SMALL: f64 = 2.0;

/// 1 GiB of stdout through the daemon to a client.
pub(super) async fn output(world: &World) -> Vec<Row> {
    progress("1 GiB of stdout");
    let figure = "stdout 1 GiB";
    match with_sandbox(world, measure_output).await {
        Ok(rows) => rows,
        Err(error) => {
            let target = Target::ratio(Bound::AtLeast(STREAM));
            vec![Row::not_measured(figure, "MB/s", format!("{error:#}")).asked(target)]
        }
    }
}

fn measure_output(world: &World, sandbox: &Sandbox) -> anyhow::Result<Vec<Row>> {
    let dd = format!("dd if=/dev/zero bs=1048576 count={} 2>/dev/null", GIB / 1_048_576);
    let (mut berth, mut pipe) = (Samples::default(), Samples::default());
    let (mut daemon_peak, mut client_peak) = (Samples::default(), Samples::default());
    let rate = |took: Duration| GIB as f64 / 1e6 / took.as_secs_f64();
    for _ in 0..ROUNDS {
        reset_peak(world.daemon_pid)?;
        let mut command = world.berth(&["sandbox", "exec", &sandbox.id, "--", "sh", "-c", &dd]);
        let (took, peak) = counted(command.stdout(Stdio::piped()))?;
        berth.values.push(rate(took));
        client_peak.values.push(peak);
        daemon_peak.values.push(peak_of(world.daemon_pid)?);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{dd} | cat")]).stdin(Stdio::null());
        let (took, _) = counted(command.stdout(Stdio::piped()))?;
        pipe.values.push(rate(took));
    }
    Ok(vec![
        berth
            .row("stdout 1 GiB", "MB/s")
            .beside("dd | cat", pipe.p50())
            .asked(Target::ratio(Bound::AtLeast(STREAM))),
        daemon_peak
            .row("stdout 1 GiB, daemon's most memory", "MiB")
            .asked(Target::value(Bound::AtMost(MEMORY))),
        client_peak
            .row("stdout 1 GiB, client's most memory", "MiB")
            .asked(Target::value(Bound::AtMost(MEMORY))),
    ])
}

/// Files both ways.
pub(super) async fn files(world: &World) -> Vec<Row> {
    progress("files");
    match with_sandbox(world, measure_files).await {
        Ok(rows) => rows,
        Err(error) => vec![Row::not_measured("files", "ms", format!("{error:#}"))],
    }
}

fn measure_files(world: &World, sandbox: &Sandbox) -> anyhow::Result<Vec<Row>> {
    let dir = Scratch::make(&world.place.dir.join("bulk"))?;
    let large = dir.0.join("large");
    let block: Vec<u8> = (0..1_048_576_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = std::fs::File::create(&large)?;
    for _ in 0..GIB / 1_048_576 {
        std::io::Write::write_all(&mut file, &block)?;
    }
    drop(file);
    let small = dir.0.join("small");
    make_small(&small)?;
    let inside = |path: &str| format!("{}:{path}", sandbox.id);
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
    let (mut large_in, mut large_out, mut cp) = (Samples::default(), Samples::default(), Samples::default());
    let (mut small_in, mut small_out, mut tar) = (Samples::default(), Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let (there, back) = (format!("/large-{round}"), dir.0.join("back"));
        large_in.add(milliseconds(&mut world.berth(&["sandbox", "cp", &text(&large)?, &inside(&there)])));
        large_out.add(milliseconds(&mut world.berth(&["sandbox", "cp", &inside(&there), &text(&back)?])));
        anyhow::ensure!(same(&large, &back)?, "the large file came back as another one");
        std::fs::remove_file(&back)?;
        cp.add(milliseconds(Command::new("cp").arg(&large).arg(&back)));
        std::fs::remove_file(&back)?;
        succeed(&mut world.berth(&["sandbox", "exec", &sandbox.id, "--", "rm", "-r", &there]))?;

        let there = format!("/small-{round}");
        small_in.add(milliseconds(&mut world.berth(&["sandbox", "cp", &text(&small)?, &inside(&there)])));
        small_out.add(milliseconds(&mut world.berth(&["sandbox", "cp", &inside(&there), &text(&back)?])));
        anyhow::ensure!(count(&back)? == SMALL_FILES, "not all small files came back");
        std::fs::remove_dir_all(&back)?;
        std::fs::create_dir(&back)?;
        let line = format!("tar -C {} -c . | tar -C {} -x", text(&small)?, text(&back)?);
        tar.add(milliseconds(Command::new("sh").args(["-c", &line])));
        std::fs::remove_dir_all(&back)?;
        succeed(&mut world.berth(&["sandbox", "exec", &sandbox.id, "--", "rm", "-r", &there]))?;
    }
    let beside = |samples: &Samples, figure: &str, peer: &str, other: &Samples, most| {
        samples.row(figure, "ms").beside(peer, other.p50()).asked(Target::ratio(Bound::AtMost(most)))
    };
    Ok(vec![
        beside(&large_in, "1 GiB file in", "cp", &cp, LARGE),
        beside(&large_out, "1 GiB file out", "cp", &cp, LARGE),
        beside(&small_in, "20,000 small files in", "tar c | tar x", &tar, SMALL),
        beside(&small_out, "20,000 small files out", "tar c | tar x", &tar, SMALL),
    ])
}

/// What a source tree looks like: directories of a hundred files of some kilobytes.
fn make_small(dir: &Path) -> anyhow::Result<()> {
    for number in 0..SMALL_FILES {
        let parent = dir.join(format!("d{}", number / 100));
        if number % 100 == 0 {
            std::fs::create_dir_all(&parent)?;
        }
        std::fs::write(
            parent.join(format!("file-{number}.txt")),
            vec![b'a' + (number % 26) as u8; number % 8192],
        )?;
    }
    Ok(())
}

fn count(dir: &Path) -> anyhow::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

fn same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    Ok(Command::new("cmp").arg("-s").arg(one).arg(other).status().context("running cmp")?.success())
}

struct Scratch(PathBuf);

impl Scratch {
    fn make(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn with_sandbox(
    world: &World,
    measure: impl FnOnce(&World, &Sandbox) -> anyhow::Result<Vec<Row>>,
) -> anyhow::Result<Vec<Row>> {
    let mut request = request(NetworkMode::NoNetwork);
    request.resources.cpus = None;
    request.resources.memory_mb = Some(1024);
    let sandbox = world.client.create_sandbox(&request).await?;
    let rows = tokio::task::block_in_place(|| measure(world, &sandbox));
    world.client.delete_sandbox(&sandbox.id).await?;
    rows
}

/// Runs a command whose stdout is 1 GiB of zeros; the time until it ended, and its most memory in MiB.
fn counted(command: &mut Command) -> anyhow::Result<(Duration, f64)> {
    use std::io::Read as _;
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let mut stdout = child.stdout.take().context("no stdout")?;
    let (mut bytes, mut peak) = (0, 0.0);
    let (mut buffer, zeros) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = stdout.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        // As one comparison: byte by byte, this would be what is measured.
        anyhow::ensure!(buffer[..read] == zeros[..read], "it wrote something else than zeros");
        bytes += read as u64;
        // The last word is what it has before its end; one that has ended tells no more.
        if bytes % (32 << 20) < read as u64 {
            peak = peak_of(child.id()).unwrap_or(peak);
        }
    }
    finish(&mut child)?;
    let took = start.elapsed();
    anyhow::ensure!(bytes == GIB, "{bytes} bytes came, not {GIB}");
    Ok((took, peak))
}

fn finish(child: &mut Child) -> anyhow::Result<()> {
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "it ended with {status}");
    Ok(())
}

fn milliseconds(command: &mut Command) -> anyhow::Result<f64> {
    let start = Instant::now();
    succeed(command)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    super::super::daemon::succeed(command)
}

/// The most memory that a process has had, in MiB.
fn peak_of(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / MIB)
}

fn reset_peak(pid: u32) -> anyhow::Result<()> {
    // proc(5): 5 resets the peak.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("resetting the daemon's peak")
}
