//! The `berth` command line, all but the daemon itself.
//!
//! ```text
//! bin/berth ──parse──► Cli ──action──► Action::Serve / OpenApi   (bin/berth's own)
//!                                       └─► Action::Client ──run──► commands/*.rs ──► berth-client ──HTTP──► daemon
//! ```
//!
//! House rules: what was asked for goes to stdout, everything else (progress, notes, errors) to stderr; `--json` prints the
//! API's own types; a failed command says what failed, why, and where it is known what to do about it, and exits with the code of
//! its kind ([`berth_types::error::Kind::exit_code`]). Commands that need a daemon start one where none runs.
//!
//! What it refuses: to import the daemon or any mechanism. Everything goes through HTTP.
//!
//! How it fails: `failure.rs` has the one error type and its printing.
//!
//! Start reading at [`Cli`], then `commands/sandbox/create.rs` for what a command looks like.

mod arguments;
mod commands;
mod failure;
mod output;
mod progress;
mod terminal;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use berth_client::{Client, StartOptions};
use berth_types::system::DoctorReport;
use clap::{Args, Parser, Subcommand};

pub use commands::ClientCommand;

use arguments::host;
use failure::Failure;
use output::Output;

/// Self-hosted sandboxes for agent evaluation.
#[derive(Debug, Parser)]
#[command(name = "berth", version, disable_help_subcommand = true)]
#[command(after_help = "Environment:
  BERTH_HOST      the daemon to use: unix:///path, tcp://host:port or http://host:port; none is started then
  BERTH_DATA_DIR  where a daemon keeps its data, by default /var/lib/berth
  BERTH_CONFIG    the daemon's configuration file (TOML)
  NO_COLOR        no colours

Exit codes: 0 well; 2 wrong usage; 64 wrong request; 66 not found; 69 unavailable; 70 internal; 73 conflict; \
75 capacity; 78 configuration. `berth sandbox exec` has its own, see its --help.")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Global {
    /// Print JSON, in the API's own types
    #[arg(long, global = true)]
    json: bool,
    /// No progress and no notes on stderr; errors still go there
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(ClientCommand),
    /// Run the daemon in the foreground
    Serve(ServeArgs),
    /// Print the OpenAPI document of the daemon's API
    Openapi,
    /// The daemon's configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print what a daemon would be configured with, as TOML: defaults, then the file, then the environment
    Show(ShowConfigArgs),
}

/// Arguments of `berth config show`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ShowConfigArgs {
    /// Print the defaults alone
    #[arg(long)]
    pub default: bool,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "BERTH_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
}

/// Arguments of `berth serve`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Where to listen: unix:///path or tcp://host:port; by default what the configuration says, else
    /// unix:///run/berth/berth.sock
    #[arg(long, value_name = "HOST", env = "BERTH_HOST", hide_env_values = true, value_parser = host)]
    pub host: Option<String>,
    /// Where to keep images, layers and sandboxes; by default what the configuration says, else /var/lib/berth
    #[arg(long, value_name = "DIR", env = "BERTH_DATA_DIR", hide_env_values = true)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "BERTH_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Detach from the terminal's session and end when idle, as when started by another command
    #[arg(long)]
    pub embedded: bool,
    /// End after so many seconds without a sandbox and without a request
    #[arg(long, value_name = "SECONDS")]
    pub idle_exit: Option<u64>,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Action {
    /// Run the daemon; the caller does that.
    Serve(ServeArgs),
    /// Print the OpenAPI document; the caller does that.
    OpenApi,
    /// Print the configuration; the caller does that.
    ShowConfig(ShowConfigArgs),
    /// Everything else: pass it to [`run`].
    Client(Invocation),
}

/// A command for [`run`].
#[derive(Debug)]
pub struct Invocation {
    global: Global,
    command: ClientCommand,
}

/// What the commands need from the binary that they are in.
#[derive(Clone, Debug)]
pub struct Context {
    /// The `berth` binary, to start a daemon with.
    pub binary: PathBuf,
    /// Checks this machine, for `berth doctor` where no daemon runs. May block.
    pub local_doctor: fn() -> DoctorReport,
}

impl Cli {
    /// Parses a command line; help, version and wrong usage come back as clap's error, to be printed by the caller
    /// (`error.exit()` does).
    pub fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(args)
    }

    /// Tells the caller's commands from those of this crate.
    pub fn action(self) -> Action {
        match self.command {
            Command::Serve(args) => Action::Serve(args),
            Command::Openapi => Action::OpenApi,
            Command::Config(ConfigCommand::Show(args)) => Action::ShowConfig(args),
            Command::Client(command) => Action::Client(Invocation { global: self.global, command }),
        }
    }
}

/// Runs a command to its end, prints its failure if there is one, and tells the process's exit code.
pub async fn run(invocation: Invocation, context: Context) -> ExitCode {
    let session = Session { context, output: Output::new(invocation.global), start: None, patience: None };
    run_in(&session, invocation.command).await
}

async fn run_in(session: &Session, command: ClientCommand) -> ExitCode {
    // An exec's exit code is the command's own, so its failures have one code that stands apart, as docker has it.
    let exec = match &command {
        ClientCommand::Sandbox(command) => command.is_exec(),
        ClientCommand::Shell(_) | ClientCommand::Attach(_) | ClientCommand::Ssh(_) => true,
        _ => false,
    };
    match command.run(session).await {
        Ok(code) => code,
        Err(failure) => {
            failure.print();
            if exec { ExitCode::from(commands::EXEC_FAILURE) } else { failure.exit_code() }
        }
    }
}

/// What every command has at hand.
pub(crate) struct Session {
    context: Context,
    output: Output,
    /// Which daemon to use; what the environment says when absent.
    start: Option<StartOptions>,
    /// For how long an exec whose connection was cut is tried to be picked up again; the client's own choice when absent.
    patience: Option<Duration>,
}

impl Session {
    /// Which daemon to use.
    fn start_options(&self) -> Result<StartOptions, Failure> {
        match &self.start {
            Some(options) => Ok(options.clone()),
            None => Ok(StartOptions::from_env(self.context.binary.clone())?),
        }
    }

    /// A client of the daemon, which is started where none runs.
    async fn client(&self) -> Result<Client, Failure> {
        let client = Client::connect_or_start(&self.start_options()?).await?;
        Ok(match self.patience {
            Some(patience) => client.with_patience(patience),
            None => client,
        })
    }
}

#[cfg(test)]
mod help_tests;
#[cfg(test)]
mod run_tests;
