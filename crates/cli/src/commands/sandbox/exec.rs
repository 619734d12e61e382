//! `berth sandbox exec SANDBOX -- COMMAND…`.

use std::process::ExitCode;

use berth_client::{Client, Error, ExecOutput, ExecStream, limits};
use berth_types::exec::{Command, ExecRequest, ExecStatus, ExitReason};
use clap::Args;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::Session;
use crate::arguments::{key_value, seconds};
use crate::failure::Failure;

/// Exit code when Berth itself failed, so that nothing is known about the command's end; docker's, too.
pub(crate) const EXEC_FAILURE: u8 = 125;

/// Arguments of `berth sandbox exec`.
#[derive(Debug, Args)]
#[command(after_help = "Exit codes:
  0-255  the command's own, but for these:
  124    it reached --timeout; everything that it started was killed
  125    Berth failed: no such sandbox, daemon or sandbox lost, ...; the error is on stderr
  126    the program cannot be executed
  127    there is no such program
  128+N  signal N ended it

Output is passed on as it comes, byte by byte. The command reads nothing: its stdin is /dev/null. When this program is \
interrupted, the command and all that it started are killed. A limit of the sandbox that the command met is told on \
stderr, unless --quiet is given.")]
pub struct Exec {
    /// Id or name
    sandbox: String,
    /// User to run as: NAME, UID, NAME:GROUP or UID:GID; the sandbox's by default
    #[arg(long, short)]
    user: Option<String>,
    /// Working directory; the sandbox's by default
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// Environment variable; may be repeated
    #[arg(long = "env", short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Kill it after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<f64>,
    /// Take the command's words, joined by blanks, as a line for the sandbox's shell
    #[arg(long)]
    shell: bool,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let client = session.client().await?;
        let sandbox = self.sandbox.clone();
        let stream = client.exec(&sandbox, &self.into_request()).await?;
        let status = pass_on(stream, &sandbox, &mut tokio::io::stdout(), &mut tokio::io::stderr()).await?;
        // Of a command that ran out of memory the note on limits says more, where there is one.
        let says_less = status.reason == ExitReason::OutOfMemory && !session.output.is_json();
        if let Some(message) = status.message.as_ref().filter(|_| !says_less) {
            session.output.note(&format!("berth: {message}"));
        }
        note_limits(session, &client, &sandbox, &status).await;
        exit_code(&sandbox, &status)
    }

    fn into_request(self) -> ExecRequest {
        let command =
            if self.shell { Command::Shell(self.command.join(" ")) } else { Command::Argv(self.command) };
        ExecRequest {
            env: self.env.into_iter().collect(),
            cwd: self.cwd,
            user: self.user,
            timeout_seconds: self.timeout,
            ..ExecRequest::new(command)
        }
    }
}

/// Tells which of the sandbox's limits the command met; who pipes its stderr on can have it quiet.
async fn note_limits(session: &Session, client: &Client, sandbox: &str, status: &ExecStatus) {
    let is_news = status.reason == ExitReason::OutOfMemory || !status.limits_hit.is_empty();
    if session.output.is_quiet() || session.output.is_json() || !is_news {
        return;
    }
    // For the numbers alone: without them the note still says what there is to say.
    let resources = client.sandbox(sandbox).await.ok().map(|sandbox| sandbox.resources);
    if let Some(met) = limits::met(status, resources.as_ref()) {
        session.output.note(&format!("berth: {met}"));
    }
}

/// Passes the output on until the command ends.
async fn pass_on(
    mut stream: ExecStream,
    sandbox: &str,
    stdout: &mut (impl AsyncWrite + Unpin),
    stderr: &mut (impl AsyncWrite + Unpin),
) -> Result<ExecStatus, Failure> {
    while let Some(output) = stream.next().await {
        match output? {
            ExecOutput::Started { .. } => {}
            ExecOutput::Stdout(data) => write(stdout, &data).await?,
            ExecOutput::Stderr(data) => write(stderr, &data).await?,
            ExecOutput::Gap { stream, from, to } => {
                return Err(Error::ExecGap { sandbox: sandbox.to_owned(), stream, from, to }.into());
            }
            ExecOutput::Exited(status) => return Ok(status),
            ExecOutput::Detached => break,
        }
    }
    Err(Error::ExecLost { sandbox: sandbox.to_owned(), source: None }.into())
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), Failure> {
    to.write_all(data).await.map_err(Failure::Output)?;
    to.flush().await.map_err(Failure::Output)
}

/// The command's own exit code; one that no process can have is the daemon's fault.
fn exit_code(sandbox: &str, status: &ExecStatus) -> Result<ExitCode, Failure> {
    u8::try_from(status.exit_code)
        .map(ExitCode::from)
        .map_err(|_| Failure::ExitCode { sandbox: sandbox.to_owned(), code: status.exit_code })
}
