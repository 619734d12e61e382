//! `berth shell` and `berth attach`: a terminal in a sandbox.

use std::process::ExitCode;

use berth_client::{Client, ListSandboxes};
use berth_types::error::Kind;
use berth_types::exec::{Command, ExecInfo, ExecRequest};
use berth_types::sandbox::SandboxState;
use clap::Args;

use super::sandbox::{End, Seat, exit_code, sit_at, tell_of};
use crate::failure::Failure;
use crate::{Session, terminal};

/// Labels by which a trial's sandbox is found: those of `berth run` and of Harbor's provider.
const TRIAL_LABELS: [&str; 2] = ["harbor.trial", "harbor.session"];

/// Arguments of `berth shell`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exits as the shell does. ctrl-p ctrl-q leaves it running; `berth attach` goes back to it."
)]
pub struct Shell {
    /// Id or name of the sandbox, or name of the trial that runs in it
    sandbox: String,
    /// User to run as: NAME, UID, NAME:GROUP or UID:GID; the sandbox's by default
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory; the sandbox's by default
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
}

/// Arguments of `berth attach`.
#[derive(Debug, Args)]
#[command(
    after_help = "Without EXEC it is the youngest that runs with a terminal; where there is none, a new shell. Exits as the \
command does; ctrl-p ctrl-q leaves it running."
)]
pub struct Attach {
    /// Id or name of the sandbox, or name of the trial that runs in it
    sandbox: String,
    /// Id of the exec
    exec: Option<String>,
}

impl Shell {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        need_terminal()?;
        let client = session.client().await?;
        let sandbox = find(&client, &self.sandbox).await?;
        new_shell(session, &client, &sandbox, self.user, self.cwd).await
    }
}

impl Attach {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        need_terminal()?;
        let client = session.client().await?;
        let sandbox = find(&client, &self.sandbox).await?;
        let exec = match self.exec {
            Some(exec) => Some(client.exec_info(&sandbox, &exec).await?),
            None => youngest(client.execs(&sandbox).await?),
        };
        let Some(exec) = exec else { return new_shell(session, &client, &sandbox, None, None).await };
        let seat = Seat { client: &client, sandbox: &sandbox, exec: &exec.id, terminal: exec.terminal };
        let raw = exec.terminal.then(terminal::Raw::enter).transpose().map_err(Failure::Stdin)?;
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        let end = seat.run(terminal::input(), &mut stdout, &mut stderr).await;
        drop(raw);
        finish(session, &client, &sandbox, end?).await
    }
}

async fn new_shell(
    session: &Session,
    client: &Client,
    sandbox: &str,
    user: Option<String>,
    cwd: Option<String>,
) -> Result<ExitCode, Failure> {
    let size = Some(terminal::size());
    let request = ExecRequest { user, cwd, terminal: size, ..ExecRequest::new(Command::LoginShell) };
    let end = sit_at(client, sandbox, &request, true).await?;
    finish(session, client, sandbox, end).await
}

async fn finish(session: &Session, client: &Client, sandbox: &str, end: End) -> Result<ExitCode, Failure> {
    match end {
        End::Exited(status) => {
            tell_of(session, client, sandbox, &status).await;
            exit_code(sandbox, &status)
        }
        End::Detached => {
            session.output.note(&format!("left running; back to it: berth attach {sandbox}"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn need_terminal() -> Result<(), Failure> {
    if terminal::is_there() { Ok(()) } else { Err(Failure::NoTerminal) }
}

fn youngest(execs: Vec<ExecInfo>) -> Option<ExecInfo> {
    execs.into_iter().rfind(|exec| exec.terminal && exec.status.is_none())
}

/// The sandbox of this id or name, or the one in which a trial of this name runs.
pub(super) async fn find(client: &Client, name: &str) -> Result<String, Failure> {
    let missing = match client.sandbox(name).await {
        Ok(sandbox) => return Ok(sandbox.id),
        Err(error) if error.kind() == Kind::NotFound => error,
        Err(error) => return Err(error.into()),
    };
    for label in TRIAL_LABELS {
        let labels = [(label.to_owned(), name.to_owned())].into();
        let page = client.list_sandboxes(&ListSandboxes { labels, ..ListSandboxes::default() }).await?;
        let alive = page.items.into_iter().rfind(|sandbox| sandbox.state == SandboxState::Running);
        if let Some(sandbox) = alive {
            return Ok(sandbox.id);
        }
    }
    Err(missing.into())
}
