//! Finding the daemon, and starting one where none runs.
//!
//! ```text
//! something listens ──► same version, same data directory ──► Client
//! nothing listens ──► lock ──► listens by now? ──► spawn `serve --embedded` ──► answers ──► Client
//!                                                       └──► died or silent ──► error with its last log lines
//! ```
//!
//! The lock is held until the new daemon answers, so that of many processes that find none, one starts it and the
//! others find it. Where `BERTH_HOST` names a daemon, none is ever started.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use berth_types::error::Kind;
use berth_types::system::Version;
use tokio::time::{Instant, sleep, timeout};

use crate::host::HOST_VARIABLE;
use crate::{Client, Host};

/// Where a daemon keeps its data, unless `BERTH_DATA_DIR` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/berth";

/// Environment variable that names the data directory.
const DATA_DIR_VARIABLE: &str = "BERTH_DATA_DIR";

/// How long a new daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long a daemon that is going away may still hold the socket.
const GOING_AWAY: Duration = Duration::from_secs(3);

/// Pause between two questions whether the daemon is there.
const POLL: Duration = Duration::from_millis(15);

/// How much of a dead daemon's log an error shows.
const LOG_TAIL_LINES: usize = 12;
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// Which daemon to use and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartOptions {
    /// The `berth` binary.
    pub binary: PathBuf,
    /// Where the daemon listens.
    pub host: Host,
    /// Whether the user named `host`: then no daemon is started.
    pub host_is_given: bool,
    /// Where a new daemon keeps its data.
    pub data_dir: PathBuf,
    /// Whether the user named `data_dir`: then a daemon that runs must use the same.
    pub data_dir_is_given: bool,
    /// After how many idle seconds a new daemon ends itself; its own default when absent.
    pub idle_exit_seconds: Option<u64>,
}

/// Why no daemon could be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory could not be made.
    #[error("cannot make {}", path.display())]
    MakeDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The lock that keeps two processes from starting two daemons.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The daemon's log file.
    #[error("cannot open the log {}", path.display())]
    OpenLog {
        /// The log file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The binary could not be run.
    #[error("cannot run {}", binary.display())]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The daemon ended before it answered.
    #[error("it ended with {status}; end of {}:\n{tail}", log.display())]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// The daemon did not answer in time, and was stopped.
    #[error("it did not answer within {} s; end of {}:\n{tail}", START_LIMIT.as_secs(), log.display())]
    Silent {
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

impl Error {
    /// Whose fault it is. A daemon that ended says so by its exit code.
    pub fn kind(&self) -> Kind {
        match self {
            Error::MakeDir { .. } | Error::Lock { .. } | Error::OpenLog { .. } | Error::Spawn { .. } => {
                Kind::Config
            }
            Error::Died { status, .. } if status.code() == Some(Kind::Config.exit_code().into()) => {
                Kind::Config
            }
            Error::Died { .. } | Error::Silent { .. } => Kind::Unavailable,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let source = match self {
            Error::MakeDir { source, .. } | Error::Lock { source, .. } | Error::OpenLog { source, .. } => {
                source
            }
            Error::Died { .. } => return Some("`berth doctor` tells what this machine lacks".to_owned()),
            _ => return None,
        };
        (source.kind() == io::ErrorKind::PermissionDenied).then(|| {
            format!("Berth's daemon needs root: run as root, or set {HOST_VARIABLE} to a daemon that runs")
        })
    }
}

impl StartOptions {
    /// Options as `BERTH_HOST` and `BERTH_DATA_DIR` say, else the defaults.
    pub fn from_env(binary: PathBuf) -> Result<Self, crate::Error> {
        let host = Host::named_by(std::env::var_os(HOST_VARIABLE))
            .map_err(|source| crate::Error::Host { source })?;
        let data_dir = std::env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Ok(Self {
            binary,
            host_is_given: host.is_some(),
            host: host.unwrap_or_default(),
            data_dir_is_given: data_dir.is_some(),
            data_dir: data_dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR)),
            idle_exit_seconds: None,
        })
    }

    /// Where a daemon started here writes its log.
    pub fn log(&self) -> PathBuf {
        self.data_dir.join("daemon.log")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["serve", "--embedded", "--host"]).arg(self.host.to_string());
        command.arg("--data-dir").arg(&self.data_dir);
        if let Some(seconds) = self.idle_exit_seconds {
            command.arg("--idle-exit").arg(seconds.to_string());
        }
        // Of its own process group, so that a Ctrl-C for the client does not reach it; the session is the
        // daemon's own business.
        command.stdin(Stdio::null()).current_dir("/").process_group(0);
        command
    }
}

impl Client {
    /// A client of the daemon that `options` name; one is started where none runs and none was named.
    ///
    /// # Errors
    /// When the daemon is not reachable, of another version, of another data directory, or cannot be started.
    pub async fn connect_or_start(options: &StartOptions) -> Result<Client, crate::Error> {
        let client = Client::new(options.host.clone());
        let version = match client.settled_version().await {
            Err(error) if is_nobody_there(&error) && !options.host_is_given => client.start(options).await?,
            other => other?,
        };
        client.require_data_dir(options, version)?;
        Ok(client)
    }

    /// The daemon's version. A daemon that goes away while it is asked is asked again, until it is gone.
    async fn settled_version(&self) -> Result<Version, crate::Error> {
        let deadline = Instant::now() + GOING_AWAY;
        loop {
            match self.require_same_version().await {
                Err(crate::Error::Send { .. } | crate::Error::Read { .. }) if Instant::now() < deadline => {
                    sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    fn require_data_dir(&self, options: &StartOptions, version: Version) -> Result<(), crate::Error> {
        let same = |dir: &Path| match (fs::canonicalize(dir), fs::canonicalize(&version.data_dir)) {
            (Ok(asked), Ok(used)) => asked == used,
            _ => dir == Path::new(&version.data_dir),
        };
        if !options.data_dir_is_given || options.host_is_given || same(&options.data_dir) {
            return Ok(());
        }
        Err(crate::Error::DataDirMismatch {
            host: self.host.to_string(),
            daemon: version.data_dir,
            asked: options.data_dir.clone(),
        })
    }

    async fn start(&self, options: &StartOptions) -> Result<Version, crate::Error> {
        let failed = |source| crate::Error::Start { source };
        let Some(runtime_dir) = self.host.socket().and_then(Path::parent) else {
            // Only a socket on this machine can be given to a new daemon.
            return self.require_same_version().await;
        };
        make_dir(runtime_dir).map_err(failed)?;
        make_dir(&options.data_dir).map_err(failed)?;
        let _lock = lock(runtime_dir.join("start.lock")).await.map_err(failed)?;
        match self.settled_version().await {
            Err(error) if is_nobody_there(&error) => {}
            other => return other,
        }
        let started = spawn(options).map_err(failed)?;
        self.await_start(started).await
    }

    /// Waits until the new daemon answers. Its exit alone is no failure: another one may have won the socket.
    async fn await_start(&self, mut started: Started) -> Result<Version, crate::Error> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let ended = started.child.try_wait().ok().flatten();
            match timeout(START_LIMIT, self.version()).await {
                Ok(Ok(_)) => {
                    started.detach();
                    return self.require_same_version().await;
                }
                Ok(Err(error)) if !is_transient(&error) => return Err(error),
                _ => {}
            }
            if let Some(status) = ended {
                let tail = started.log_tail();
                return Err(crate::Error::Start { source: Error::Died { status, log: started.log, tail } });
            }
            if Instant::now() >= deadline {
                let tail = started.log_tail();
                let log = started.log.clone();
                started.stop();
                return Err(crate::Error::Start { source: Error::Silent { log, tail } });
            }
            sleep(POLL).await;
        }
    }
}

/// A daemon that was spawned and has not answered.
struct Started {
    child: Child,
    log: PathBuf,
    /// Length of the log before this start.
    log_start: u64,
}

impl Started {
    /// Leaves the daemon to itself. A thread waits for it, so that it is no zombie should it end before us.
    fn detach(mut self) {
        std::thread::spawn(move || self.child.wait());
    }

    fn stop(mut self) {
        // Both fail only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log_tail(&self) -> String {
        read_tail(&self.log, self.log_start).unwrap_or_else(|error| format!("(log not readable: {error})"))
    }
}

fn read_tail(log: &Path, log_start: u64) -> io::Result<String> {
    let mut file = File::open(log)?;
    let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES).max(log_start);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::MakeDir { path: path.to_owned(), source })
}

async fn lock(path: PathBuf) -> Result<File, Error> {
    let failed = |source| Error::Lock { path: path.clone(), source };
    let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
    let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await;
    locked.map_err(io::Error::other).flatten().map_err(failed)
}

fn spawn(options: &StartOptions) -> Result<Started, Error> {
    let log = options.log();
    let failed = |source| Error::OpenLog { path: log.clone(), source };
    let out = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
    let log_start = out.metadata().map_err(failed)?.len();
    let err = out.try_clone().map_err(failed)?;
    let child = options
        .command()
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|source| Error::Spawn { binary: options.binary.clone(), source })?;
    Ok(Started { child, log, log_start })
}

/// Whether nothing listens there, as against something that cannot be talked to.
fn is_nobody_there(error: &crate::Error) -> bool {
    matches!(error, crate::Error::Connect { source, .. }
        if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

fn is_transient(error: &crate::Error) -> bool {
    is_nobody_there(error) || matches!(error, crate::Error::Send { .. } | crate::Error::Read { .. })
}
