//! Measures Berth against its peers, in the same run and on the same machine, since machines differ.
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
//! ([`figures`], [`report`]).

mod figures;
mod report;
mod rewards;
mod world;

use std::path::Path;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use figures::{Figure, SANDBOXES, Subject};
use report::{Measured, Report, Sandboxes};
use world::World;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Whole Harbor trials, against Harbor's own podman provider
    Trial(Trial),
}

/// Arguments of `cargo xtask bench trial`.
#[derive(Args)]
pub(crate) struct Trial {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// How often to measure everything
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure only these; may be repeated
    #[arg(long, value_name = "SUBJECT", value_enum)]
    only: Vec<Subject>,
}

/// Measures, and prints the figures on stdout.
pub(crate) fn run(root: &Path, bench: Bench) -> anyhow::Result<bool> {
    let Bench::Trial(arguments) = bench;
    let report = trial(root, &arguments)?;
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report.json())?),
        false => print!("{}", report.markdown()),
    }
    for line in report.verdicts() {
        eprintln!("bench: {line}");
    }
    Ok(true)
}

fn trial(root: &Path, arguments: &Trial) -> anyhow::Result<Report> {
    let chosen = |subject: Subject| arguments.only.is_empty() || arguments.only.contains(&subject);
    let figures: Vec<_> = figures::all().into_iter().filter(|figure| chosen(figure.subject)).collect();
    let machine = report::Machine::read();
    if machine.busy() {
        eprintln!(
            "bench: this machine is busy (load {:.1}): figures and ratios will not be right",
            machine.load
        );
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
