//! `berth sandbox ps`, `logs`, `kill` and `quiesce`: the execs of a sandbox.

use std::process::ExitCode;

use berth_types::exec::{ExecInfo, ExecList, ExitReason, OutputQuery, QuiesceReport, Signal};
use clap::Args;
use jiff::Timestamp;

use super::exec::{exit_code, pass_on, tell_of};
use crate::Session;
use crate::failure::Failure;
use crate::output::{age, table};

/// Arguments of `berth sandbox ps`.
#[derive(Debug, Args)]
pub struct Ps {
    /// Id or name
    sandbox: String,
    /// Those that have ended, too
    #[arg(long, short)]
    all: bool,
}

/// Arguments of `berth sandbox logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Once the command has ended this ends with its exit code; without --follow with 0 while it runs."
)]
pub struct Logs {
    /// Id or name
    sandbox: String,
    /// Id of the exec
    exec: String,
    /// Go on until the command ends
    #[arg(long, short)]
    follow: bool,
    /// Begin at this byte of stdout
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    stdout_from: u64,
    /// Begin at this byte of stderr
    #[arg(long, value_name = "BYTE", default_value_t = 0)]
    stderr_from: u64,
}

/// Arguments of `berth sandbox kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// Id or name
    sandbox: String,
    /// Id of the exec
    exec: String,
    /// Send this signal (name or number) to its first process, rather than killing all that it started
    #[arg(long, short, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Send the signal to all that it started
    #[arg(long, requires = "signal")]
    tree: bool,
}

/// Arguments of `berth sandbox quiesce`.
#[derive(Debug, Args)]
pub struct Quiesce {
    /// Id or name
    sandbox: String,
}

impl Ps {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let mut items = session.client().await?.execs(&self.sandbox).await?;
        items.retain(|exec| self.all || exec.status.is_none() || exec.processes.unwrap_or(0) > 0);
        session.output.result(&ExecList { items }, |list| render(&list.items, Timestamp::now()))
    }
}

impl Logs {
    pub(super) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        let Logs { sandbox, exec, follow, stdout_from, stderr_from } = self;
        let client = session.client().await?;
        let query = OutputQuery { stdout: stdout_from, stderr: stderr_from, follow };
        let stream = client.exec_output(&sandbox, &exec, query).await?;
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        match pass_on(stream, &sandbox, &mut stdout, &mut stderr).await? {
            Some(status) => {
                tell_of(session, &client, &sandbox, &status).await;
                exit_code(&sandbox, &status)
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }
}

impl Kill {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client().await?;
        match self.signal {
            None => client.kill_exec(&self.sandbox, &self.exec).await?,
            Some(signal) => {
                let signal = signal.parse().map_or(Signal::Name(signal), Signal::Number);
                client.signal_exec(&self.sandbox, &self.exec, signal, self.tree).await?;
            }
        }
        Ok(())
    }
}

impl Quiesce {
    pub(super) async fn run(self, session: &Session) -> Result<(), Failure> {
        let killed = session.client().await?.quiesce(&self.sandbox).await?;
        session
            .output
            .result(&QuiesceReport { killed }, |report| format!("{} processes killed\n", report.killed))
    }
}

fn render(execs: &[ExecInfo], now: Timestamp) -> String {
    let rows = execs.iter().map(|exec| {
        vec![
            exec.id.clone(),
            exec.user.clone().unwrap_or_else(|| "root".to_owned()),
            state(exec),
            age(&exec.started_at, now),
            exec.cpu_usec.map_or_else(|| "-".to_owned(), |usec| format!("{:.2} s", usec as f64 / 1e6)),
            exec.memory_bytes
                .map_or_else(|| "-".to_owned(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0)),
            exec.processes.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            exec.command.clone(),
        ]
    });
    table(&["ID", "USER", "STATE", "AGE", "CPU", "MEMORY", "PROCESSES", "COMMAND"], rows)
}

fn state(exec: &ExecInfo) -> String {
    match &exec.status {
        None if exec.blocked => "waits for a reader".to_owned(),
        None => "running".to_owned(),
        Some(status) => match status.reason {
            ExitReason::Exited => format!("exited {}", status.exit_code),
            ExitReason::Signaled => format!("signal {}", status.signal.unwrap_or(0)),
            ExitReason::OutOfMemory => "out of memory".to_owned(),
            ExitReason::TimedOut => "timed out".to_owned(),
            ExitReason::Killed => "killed".to_owned(),
            ExitReason::NotStarted => "not started".to_owned(),
        },
    }
}
