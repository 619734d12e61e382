//! Chores of the repository: `cargo xtask <chore>`.
//!
//! * `layers` checks that the crates import each other only down the floors of the house, that `unsafe` stays in its
//!   room, and points at files that have grown too long; and prints the drawing.
//! * `openapi` writes the API's document, or checks that the one in the repository is the present one.
//! * `bench` measures Berth against its peers.
//!
//! What is checked is pure and tested; this file and the bottom of each module only fetch and print.

mod bench;
mod cargo;
mod layers;
mod openapi;
mod sources;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the repository")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Check the floors of the house, and print the drawing.
    Layers,
    /// Write docs/openapi.json from what the berth binary says.
    Openapi {
        /// Only compare: fail when the document is not the present one.
        #[arg(long)]
        check: bool,
    },
    /// Measure Berth against its peers, in the same run.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let done = match Args::parse().chore {
        Chore::Layers => run_layers(),
        Chore::Openapi { check } => openapi::run(&root(), check),
        Chore::Bench(arguments) => bench::run(&root(), &arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout, which this crate lies in.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

fn run_layers() -> anyhow::Result<bool> {
    let root = root();
    let crates = layers::read(&root).context("reading the workspace")?;
    let sources = sources::read(&root).context("reading the sources")?;
    print!("{}", layers::draw(&crates));

    let mut violations = layers::violations(&crates);
    violations.extend(sources::misplaced_unsafe(&sources));
    for long in sources::too_long(&sources) {
        eprintln!("warning: {long}");
    }
    for violation in &violations {
        eprintln!("error: {violation}");
    }
    if violations.is_empty() {
        println!("\nlayers: {} crates, {} files, in order", crates.len(), sources.len());
    }
    Ok(violations.is_empty())
}
