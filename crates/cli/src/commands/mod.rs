//! The commands, one file each.

mod completions;
mod daemon;
mod doctor;
mod image;
mod node;
mod port_forward;
mod removal;
mod run;
mod sandbox;
mod shell;
mod ssh;
mod version;

use std::process::ExitCode;

use clap::Subcommand;

use crate::Session;
use crate::failure::Failure;

pub(crate) use sandbox::EXEC_FAILURE;

/// Commands that are clients of a daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Run tasks of Harbor's format, and print their rewards
    Run(run::Run),
    /// Sandboxes: create, list, run commands, copy files, remove
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Open a shell in a sandbox, with this terminal
    Shell(shell::Shell),
    /// Go back to a shell or command in a sandbox that was left running
    Attach(shell::Attach),
    /// Reach ports of a sandbox from this machine
    PortForward(port_forward::PortForward),
    /// Enter a sandbox by SSH: a shell, a command, forwarded ports
    Ssh(ssh::Ssh),
    /// Print a block for ~/.ssh/config that makes a sandbox a host of scp, sftp, rsync and editors
    SshConfig(ssh::SshConfig),
    /// Keys that may enter sandboxes by SSH: add, list, remove
    #[command(subcommand)]
    SshKey(ssh::SshKeyCommand),
    /// Relay stdin and stdout to the SSH door, for ssh's ProxyCommand
    #[command(hide = true)]
    SshProxy,
    /// Images: pull, import, bootstrap, build, push, list, remove
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// The daemon: start, stop, status
    #[command(subcommand)]
    Daemon(daemon::DaemonCommand),
    /// Show what room there is for sandboxes, who waits for it, and what the daemon does by itself
    Node,
    /// Check whether the machine is fit for sandboxes
    Doctor,
    /// Print the versions of this program and of the daemon
    Version,
    /// Print a shell's completion script
    Completions(completions::Completions),
}

impl ClientCommand {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            ClientCommand::Run(command) => command.run(session).await,
            ClientCommand::Sandbox(command) => command.run(session).await,
            ClientCommand::Shell(command) => command.run(session).await,
            ClientCommand::Attach(command) => command.run(session).await,
            ClientCommand::PortForward(command) => command.run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::Ssh(command) => command.run(session).await,
            ClientCommand::SshConfig(command) => command.run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::SshKey(command) => command.run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::SshProxy => ssh::proxy(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::Image(command) => command.run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::Daemon(command) => command.run(session).await,
            ClientCommand::Node => node::run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::Doctor => doctor::run(session).await,
            ClientCommand::Version => version::run(session).await.map(|()| ExitCode::SUCCESS),
            ClientCommand::Completions(command) => command.run().map(|()| ExitCode::SUCCESS),
        }
    }
}
