//! `berth sandbox …`.

mod cp;
mod create;
mod exec;
mod inspect;
mod ls;
mod rm;

use std::process::ExitCode;

use clap::Subcommand;

use crate::Session;
use crate::failure::Failure;

pub(crate) use exec::EXEC_FAILURE;

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
    /// Copy files into or out of a sandbox
    Cp(cp::Cp),
    /// End sandboxes and remove what they wrote
    Rm(rm::Rm),
}

impl SandboxCommand {
    /// Whether the exit code is to be the one of a command in a sandbox.
    pub(crate) fn is_exec(&self) -> bool {
        matches!(self, SandboxCommand::Exec(_))
    }

    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            SandboxCommand::Exec(command) => return command.run(session).await,
            SandboxCommand::Create(command) => command.run(session).await,
            SandboxCommand::Ls(command) => command.run(session).await,
            SandboxCommand::Inspect(command) => command.run(session).await,
            SandboxCommand::Cp(command) => command.run(session).await,
            SandboxCommand::Rm(command) => command.run(session).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
