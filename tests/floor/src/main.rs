//! The floor of the benchmarks: makes the kernel objects that a sandbox is made of, by bare system calls and nothing
//! else, runs one command in them and removes them. What any engine with these objects takes at least.
//!
//! `berth-floor ROUNDS ROOTFS DIR [network]` prints one line of JSON: the microseconds of each round, and of each phase
//! of it. `ROOTFS` is a directory with `/bin/echo` and `/proc`; `DIR` is where the writable layers go, on the file
//! system that is to be measured.
//!
//! ```text
//!  namespaces  user namespace with its maps and network namespace, by a process that is thrown away
//!  link        with `network`: a pair of links with addresses and a route
//!  groups      a control group with limits of memory, processor and processes (v1: one in each hierarchy)
//!  layer       directories for the overlay
//!  entering    the groups, by the new process
//!  command     process in mount, pid, ipc and uts namespaces; id-mapped mounts, overlay, pivot_root, /proc; the user
//!              namespace entered; exec; its output read; its end waited for
//!  removal     of groups and directories; namespaces go with their last descriptor
//! ```
//!
//! It has one thread and keeps nothing ready: no pool, no second process, no cache but the kernel's.

mod groups;
mod link;
mod round;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use groups::Hierarchies;
use round::{Floor, PHASES, Round};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rounds, rootfs, dir, network) = match arguments.as_slice() {
        [rounds, rootfs, dir] => (rounds, rootfs, dir, false),
        [rounds, rootfs, dir, word] if word == "network" => (rounds, rootfs, dir, true),
        _ => anyhow::bail!("usage: berth-floor ROUNDS ROOTFS DIR [network]"),
    };
    let rounds: u32 = rounds.parse().with_context(|| format!("{rounds:?} is no number of rounds"))?;
    let hierarchies = Hierarchies::make()?;
    let mut floor = Floor::new(PathBuf::from(rootfs), PathBuf::from(dir), network)?;
    let mut done = Vec::new();
    for _ in 0..rounds {
        done.push(floor.round(&hierarchies)?);
    }
    drop(floor);
    writeln!(std::io::stdout(), "{}", json(&done)).context("writing to stdout")
}

/// Numbers and constants only, so that nothing needs to be escaped.
fn json(rounds: &[Round]) -> String {
    let list = |micros: Vec<String>| format!("[{}]", micros.join(","));
    let total = list(rounds.iter().map(|round| format!("{:.1}", round.total())).collect());
    let phases = PHASES.iter().enumerate().map(|(index, phase)| {
        let micros = rounds.iter().map(|round| format!("{:.1}", round.phases[index]));
        format!("\"{phase}\":{}", list(micros.collect()))
    });
    format!("{{\"rounds_us\":{total},\"phases_us\":{{{}}}}}", phases.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_told_as_json() {
        let rounds = [Round { phases: [1.0, 0.0, 2.0, 3.0, 0.0, 4.0, 5.5] }, Round { phases: [1.0; 7] }];
        assert_eq!(
            json(&rounds),
            "{\"rounds_us\":[15.5,7.0],\"phases_us\":{\"namespaces\":[1.0,1.0],\"link\":[0.0,1.0],\
             \"groups\":[2.0,1.0],\"layer\":[3.0,1.0],\"entering\":[0.0,1.0],\"command\":[4.0,1.0],\"removal\":[5.5,1.0]}}"
        );
    }
}
