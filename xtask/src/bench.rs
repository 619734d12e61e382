//! Measures Berth against its peers, in the same run and on the same machine, since machines differ.
//!
//! `engine` is a sandbox by itself: how fast it comes and goes, how hard its limits are, what it costs. See [`engine`].
//! `builds` is how images come about. See [`builds`].
//!
//! `trial` is the whole way: Harbor's `square-2` with the agent `oracle`, one trial and twelve at four at a time, by
//!
//! * Harbor with an environment that does nothing: the harness's own floor, below which no provider gets,
//! * Harbor with its own podman provider: the peer,
//! * Harbor with Berth,
//! * `berth run`: Berth without Python.
//!
//! ```text
//!  xtask ── berth serve (this machine, a data directory of its own) ◄───── unix socket ───────┐
//!    └─── scripts/bench/enter.sh (namespaces, pivot_root) ── driver.py ── harbor run, berth run, podman
//!                                                              times commands, one at a time
//! ```
//!
//! The peers live in a Debian trixie tree of their own, made once ([`world`]). Nothing is measured that did not do its
//! work: a run whose rewards are not all 1 is an error ([`rewards`]). What is measured and how it is shown is pure
//! ([`figures`], [`report`]). Every sub-command gives rows of one form ([`rows`]), which `--json FILE` writes.

mod builds;
mod daemon;
mod engine;
mod figures;
mod machine;
mod report;
mod rewards;
mod rows;
mod world;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use figures::{Figure, SANDBOXES, Subject};
use report::{Measured, Report, Sandboxes};
use world::World;

/// Where peers and figures' intermediate products are kept, unless `BERTH_BENCH_DIR` says otherwise.
const DEFAULT_DIR: &str = "/var/tmp/berth-bench";

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// Write the figures to this file too: a list of rows of one form, whatever was measured
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

/// What can be measured.
#[derive(Subcommand)]
enum Bench {
    /// Images: unchanged contexts, cold builds, pulls, equal requests at once, against podman
    Builds(builds::Builds),
    /// Sandboxes by themselves, against podman, runc, crun, bubblewrap and the kernel's own floor
    Engine(engine::Engine),
    /// Whole Harbor trials, against Harbor's own podman provider
    Trial(Trial),
}

/// Arguments of `cargo xtask bench trial`.
#[derive(Args)]
struct Trial {
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these; may be repeated
    #[arg(long, value_name = "SUBJECT", value_enum)]
    only: Vec<Subject>,
}

/// Measures, and prints the figures on stdout.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> anyhow::Result<bool> {
    let (table, rows) = match &arguments.bench {
        Bench::Builds(arguments) => builds::run(root, arguments)?,
        Bench::Engine(arguments) => engine::run(root, arguments)?,
        Bench::Trial(arguments) => {
            let report = trial(root, arguments)?;
            (report.markdown(), report.rows())
        }
    };
    print!("{table}");
    for line in rows::verdicts(&rows) {
        eprintln!("bench: {line}");
    }
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(true)
}

/// See [`DEFAULT_DIR`].
fn kept_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("BERTH_BENCH_DIR").unwrap_or_else(|| DEFAULT_DIR.into()))
}

fn trial(root: &Path, arguments: &Trial) -> anyhow::Result<Report> {
    let chosen = |subject: Subject| arguments.only.is_empty() || arguments.only.contains(&subject);
    let figures: Vec<_> = figures::all().into_iter().filter(|figure| chosen(figure.subject)).collect();
    let machine = machine::Machine::read();
    if let Some(warning) = machine.warning() {
        eprintln!("bench: {warning}");
    }

    let with_berth = figures.iter().any(|figure| figure.subject.is_berth());
    let mut world = World::prepare(root, with_berth)?;
    for figure in figures.iter().filter(|figure| figure.trials == 1) {
        // Images built and cached, bytecode compiled, files in memory.
        measure(&mut world, *figure, "warm-up")?;
    }
    let mut measured: Vec<_> = figures.iter().map(|figure| Measured::new(*figure)).collect();
    for round in 1..=arguments.rounds {
        for measured in &mut measured {
            for _ in 0..measured.figure.subject.repeats() {
                let label = format!("round {round}/{}", arguments.rounds);
                measured.add(measure(&mut world, measured.figure, &label)?);
            }
        }
    }
    let sandboxes = SANDBOXES.iter().filter(|(subject, _)| chosen(*subject));
    let sandboxes = sandboxes.map(|(subject, count)| sandboxes_of(&mut world, *subject, *count));
    let sandboxes = sandboxes.collect::<anyhow::Result<_>>()?;
    let versions = world.versions.clone();
    world.end()?;
    Ok(Report { machine, versions, rounds: arguments.rounds, measured, sandboxes })
}

/// Runs one job, and makes sure that it was worth measuring.
fn measure(world: &mut World, figure: Figure, label: &str) -> anyhow::Result<report::Sample> {
    let job = world.next_job();
    let done = world.time(&figure.command(&job)).with_context(|| figure.to_string())?;
    let verdicts = rewards::check(&world.job_dir(&job), figure.trials)
        .with_context(|| format!("{figure}: not measured, since it did not do its work\n{}", done.output))?;
    eprintln!("bench: {label}: {figure}: {:.2} s", done.seconds);
    Ok(report::Sample { seconds: done.seconds, verdicts })
}

fn sandboxes_of(world: &mut World, subject: Subject, count: u32) -> anyhow::Result<Sandboxes> {
    let name = subject.name();
    let command = ["/opt/harbor/bin/python", "/bench/scripts/sandbox.py", name, &count.to_string()];
    let done = world.time(&command.map(str::to_owned)).with_context(|| format!("sandboxes of {name}"))?;
    // Whatever was said on stderr came before it.
    let last = done.output.lines().last().unwrap_or_default();
    let milliseconds =
        serde_json::from_str(last).with_context(|| format!("sandboxes of {name}: {}", done.output))?;
    eprintln!("bench: {count} sandboxes of {name}, one after the other: {:.2} s", done.seconds);
    Ok(Sandboxes { subject, milliseconds })
}
