//! `berth sandbox exec SANDBOX -- COMMAND…`.

use std::process::ExitCode;

use berth_client::{Client, Error, ExecOutput, ExecStream, limits};
use berth_types::exec::{Command, ExecRequest, ExecStatus, ExitReason, Stdin};
use clap::Args;
use tokio::io::AsyncWrite;
use tokio::signal::unix;

use super::session::{End, Session as Seat, write};
use crate::arguments::{key_value, seconds};
use crate::failure::Failure;
use crate::{Session, terminal};

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

Output is passed on as it comes, byte by byte; where the connection to the daemon is cut, or the daemon is started anew, \
it goes on where it was. Without --stdin the command reads nothing: its stdin is /dev/null. When this program is \
interrupted, the command and all that it started are killed; when it is killed, or was told --detach, the command runs \
on. With --tty, ctrl-p ctrl-q leaves it running. A limit of the sandbox that the command met is told on stderr, unless \
--quiet is given.")]
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
    /// Pass this program's stdin on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Give it a terminal; needs one here
    #[arg(long, short = 't')]
    tty: bool,
    /// Print its id once it runs, and leave it running
    #[arg(long, short, conflicts_with_all = ["stdin", "tty"])]
    detach: bool,
    /// Its id, at most 64 of [A-Za-z0-9_-]: with the same id the same command is never started twice, but attached to
    #[arg(long, value_name = "ID")]
    id: Option<String>,
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
        if self.tty && !terminal::is_there() {
            return Err(Failure::NoTerminal);
        }
        let client = session.client().await?;
        let sandbox = self.sandbox.clone();
        let (stdin, tty, detach) = (self.stdin, self.tty, self.detach);
        let request = self.into_request();
        if detach {
            let info = client.exec_detached(&sandbox, &request).await?;
            session.output.result(&info, |info| format!("{}\n", info.id))?;
            return Ok(ExitCode::SUCCESS);
        }
        let status = if stdin || tty {
            match sit_at(&client, &sandbox, &request, tty).await? {
                End::Exited(status) => status,
                End::Detached => return Ok(ExitCode::SUCCESS),
            }
        } else {
            // Before it starts: from then on it is never left without who kills it.
            let signals = Signals::new().map_err(Failure::Stdin)?;
            let stream = client.exec(&sandbox, &request).await?;
            let exec = stream.id().to_owned();
            let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
            let run = pass_on(stream, &sandbox, &mut stdout, &mut stderr);
            match or_killed(signals, &client, &sandbox, &exec, run).await? {
                Some(status) => status,
                None => return Err(Error::ExecLost { sandbox, source: None }.into()),
            }
        };
        tell_of(session, &client, &sandbox, &status).await;
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
            id: self.id,
            stdin: (self.stdin && !self.tty).then_some(Stdin::Stream),
            terminal: self.tty.then(terminal::size),
            ..ExecRequest::new(command)
        }
    }
}

/// Starts a command and sits at it.
pub(crate) async fn sit_at(
    client: &Client,
    sandbox: &str,
    request: &ExecRequest,
    tty: bool,
) -> Result<End, Failure> {
    let signals = Signals::new().map_err(Failure::Stdin)?;
    let started = client.exec_detached(sandbox, request).await?;
    let seat = Seat { client, sandbox, exec: &started.id, terminal: tty };
    // In raw mode what would interrupt is typed, and goes to the command.
    let raw = tty.then(terminal::Raw::enter).transpose().map_err(Failure::Stdin)?;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let run = seat.run(terminal::input(), &mut stdout, &mut stderr);
    let end = or_killed(signals, client, sandbox, &started.id, run).await;
    drop(raw);
    end
}

/// What `run` comes to; when this program is to end, the command is killed first.
async fn or_killed<T>(
    mut signals: Signals,
    client: &Client,
    sandbox: &str,
    exec: &str,
    run: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        end = run => end,
        signal = signals.next() => {
            client.kill_exec(sandbox, exec).await?;
            Err(Failure::Interrupted { signal })
        }
    }
}

/// Signals that ask a program to end.
struct Signals([unix::Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        use unix::{SignalKind, signal};
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) -> &'static str {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    }
}

/// What a person wants to know of an end besides its code.
pub(crate) async fn tell_of(session: &Session, client: &Client, sandbox: &str, status: &ExecStatus) {
    // Of a command that ran out of memory the note on limits says more, where there is one.
    let says_less = status.reason == ExitReason::OutOfMemory && !session.output.is_json();
    if let Some(message) = status.message.as_ref().filter(|_| !says_less) {
        session.output.note(&format!("berth: {message}"));
    }
    note_limits(session, client, sandbox, status).await;
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

/// Passes the output on until the command ends; `None` where the stream ends before that, as was asked.
pub(super) async fn pass_on(
    mut stream: ExecStream,
    sandbox: &str,
    stdout: &mut (impl AsyncWrite + Unpin),
    stderr: &mut (impl AsyncWrite + Unpin),
) -> Result<Option<ExecStatus>, Failure> {
    while let Some(output) = stream.next().await {
        match output? {
            ExecOutput::Started { .. } => {}
            ExecOutput::Stdout(data) => write(stdout, &data).await?,
            ExecOutput::Stderr(data) => write(stderr, &data).await?,
            ExecOutput::Gap { stream, from, to } => {
                return Err(Error::ExecGap { sandbox: sandbox.to_owned(), stream, from, to }.into());
            }
            ExecOutput::Exited(status) => return Ok(Some(status)),
            ExecOutput::Detached => return Ok(None),
        }
    }
    Err(Error::ExecLost { sandbox: sandbox.to_owned(), source: None }.into())
}

/// The command's own exit code; one that no process can have is the daemon's fault.
pub(crate) fn exit_code(sandbox: &str, status: &ExecStatus) -> Result<ExitCode, Failure> {
    u8::try_from(status.exit_code)
        .map(ExitCode::from)
        .map_err(|_| Failure::ExitCode { sandbox: sandbox.to_owned(), code: status.exit_code })
}
