//! `berth daemon start|stop|status`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use berth_client::{Client, Error, Host};
use berth_types::system::Version;
use clap::Subcommand;
use serde::Serialize;

use crate::Session;
use crate::failure::Failure;

/// How long a daemon may take to end its sandboxes and itself.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Commands on the daemon.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Start the daemon, unless it runs; returns when it answers
    Start,
    /// Stop the daemon and with it its sandboxes; returns when it is gone
    Stop,
    /// Tell whether the daemon runs; exits with 69 when it does not
    Status,
}

/// What `berth daemon start --json` prints.
#[derive(Debug, Serialize)]
struct Started {
    host: String,
    pid: u32,
}

impl DaemonCommand {
    pub(crate) async fn run(self, session: &Session) -> Result<ExitCode, Failure> {
        match self {
            DaemonCommand::Start => start(session).await,
            DaemonCommand::Stop => stop(session).await,
            DaemonCommand::Status => status(session).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn start(session: &Session) -> Result<(), Failure> {
    let client = session.client().await?;
    let version = client.version().await?;
    let started = Started { host: client.host().to_string(), pid: version.pid };
    session.output.result(&started, |started| format!("daemon runs at {}, pid {}", started.host, started.pid))
}

async fn stop(session: &Session) -> Result<(), Failure> {
    let options = session.start_options()?;
    let client = Client::new(options.host.clone());
    // Asked before, since afterwards nobody answers.
    let version = client.version().await;
    match client.shutdown().await {
        Ok(()) => {}
        Err(Error::Connect { .. }) if !options.host_is_given => {
            session.output.note(&format!("no daemon runs at {}", options.host));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    await_end(&client, &options.host, version.ok().map(|version| version.pid)).await?;
    session.output.note(&format!("the daemon at {} has stopped", options.host));
    Ok(())
}

/// A daemon stops listening first and gives back what it holds on the machine then.
async fn await_end(client: &Client, host: &Host, pid: Option<u32>) -> Result<(), Failure> {
    // Only a daemon on a socket is surely a process of this machine.
    let process = pid.filter(|_| host.socket().is_some()).map(|pid| format!("/proc/{pid}"));
    let since = Instant::now();
    while !matches!(client.version().await, Err(Error::Connect { .. }))
        || process.as_ref().is_some_and(|process| Path::new(process).exists())
    {
        if since.elapsed() > STOP_LIMIT {
            return Err(Failure::StillThere { host: host.to_string(), seconds: STOP_LIMIT.as_secs() });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn status(session: &Session) -> Result<(), Failure> {
    let client = Client::new(session.start_options()?.host);
    let version = client.version().await?;
    session.output.result(&version, |version: &Version| {
        format!(
            "daemon {} runs at {}, pid {}, data in {}",
            version.version,
            client.host(),
            version.pid,
            version.data_dir
        )
    })
}
