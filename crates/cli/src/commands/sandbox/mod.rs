//! `berth sandbox …`.

mod cp;
mod create;
mod exec;
mod execs;
mod inspect;
mod ls;
mod rm;
mod session;

use std::process::ExitCode;

use clap::Subcommand;

use crate::Session;
use crate::failure::Failure;

pub(crate) use exec::{EXEC_FAILURE, exit_code, sit_at, tell_of};
pub(crate) use session::{End, Session as Seat};

/// Commands on sandboxes.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Make a sandbox of an image and print its id
    Create(Box<create::Create>),
    /// List sandboxes
    Ls(ls::Ls),
    /// Show one sandbox: state, limits, what it uses and which limits it met
    Inspect(inspect::Inspect),
    /// Run a command in a sandbox and exit as it does
    Exec(exec::Exec),
    /// List the commands of a sandbox: those that run, and what they use
    Ps(execs::Ps),
    /// Print what a command has written, also one that was left running
    Logs(execs::Logs),
    /// Kill a command with everything that it started, or send it a signal
    Kill(execs::Kill),
    /// Kill every process of every command, daemons that they left behind included
    Quiesce(execs::Quiesce),
    /// Copy files into or out of a sandbox
    Cp(cp::Cp),
    /// End sandboxes and remove what they wrote
    Rm(rm::Rm),
}

impl SandboxCommand {
    /// Whether the exit code is to be the one of a command in a sandbox.
    pub(crate) fn is_exec(&self) -> bool {
        matches!(self, SandboxCommand::Exec(_) | SandboxCommand::Logs(_))
    }

    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            SandboxCommand::Exec(command) => return command.run(session).await,
            SandboxCommand::Logs(command) => return command.run(session).await,
            SandboxCommand::Ps(command) => command.run(session).await,
            SandboxCommand::Kill(command) => command.run(session).await,
            SandboxCommand::Quiesce(command) => command.run(session).await,
            SandboxCommand::Create(command) => command.run(session).await,
            SandboxCommand::Ls(command) => command.run(session).await,
            SandboxCommand::Inspect(command) => command.run(session).await,
            SandboxCommand::Cp(command) => command.run(session).await,
            SandboxCommand::Rm(command) => command.run(session).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
