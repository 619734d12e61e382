//! The listener, and the life of a connection.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use russh::server::Config;
use russh::{Disconnect, MethodKind, MethodSet, SshId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::door::Door;
use crate::inlet::WINDOW;
use crate::keys::{self, Keys};
use crate::visitor::Visitor;

/// Where the keys are, below the data directory.
pub const DIR: &str = "ssh";

/// Connections at once; further ones wait.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to say who he is.
const LOGIN_LIMIT: Duration = Duration::from_secs(60);

/// How long connections, and the commands that were theirs, get when the daemon ends.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// A client of which nothing was heard for so long is asked whether he is there, and given up after the third time.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Pause after a connection could not be accepted, for want of descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the door needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The daemon's data directory; the keys are in `ssh` below it.
    pub data_dir: PathBuf,
    /// Ends the door.
    pub stop: CancellationToken,
}

/// Why there is no door.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not to be had.
    #[error("listen for SSH on {listen}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keys.
    #[error("the keys of the SSH door")]
    Keys(#[source] keys::Error),
}

/// A door that is not open yet: clients wait until it is.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    keys: Keys,
    config: Arc<Config>,
    stop: CancellationToken,
}

impl Listener {
    /// Listens; makes the machine's key at first.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options { listen, data_dir, stop } = options;
        let keys = Keys::open(data_dir.join(DIR)).map_err(Error::Keys)?;
        let host = keys.host().map_err(Error::Keys)?;
        let config = Config {
            server_id: SshId::Standard(concat!("SSH-2.0-Berth_", env!("CARGO_PKG_VERSION")).into()),
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            // A key is not guessed; and an agent may offer many.
            auth_rejection_time: Duration::ZERO,
            max_auth_attempts: 32,
            keys: vec![host],
            window_size: WINDOW,
            inactivity_timeout: None,
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: 3,
            ..Config::default()
        };
        let failed = |source| Error::Listen { listen, source };
        let socket = TcpListener::bind(listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, keys, config: Arc::new(config), stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The keys that it goes by.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Serves until it is stopped, and then until the connections have ended, three seconds at most.
    pub async fn run<D: Door>(self, door: D) {
        self.run_with(door, || ()).await;
    }

    /// The same; `witness` is called for each connection, and what it gives is dropped when that ends.
    pub async fn run_with<D: Door, W: Send + 'static>(self, door: D, witness: impl Fn() -> W) {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (self.socket.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                accepted = accepted => accepted,
                () = self.stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Connection {
                        door: door.clone(),
                        keys: self.keys.clone(),
                        config: self.config.clone(),
                        tasks: tasks.clone(),
                        stop: self.stop.clone(),
                    };
                    let seen = witness();
                    tasks.spawn(async move {
                        if let Err(error) = connection.serve(stream).await {
                            tracing::debug!(%peer, error = &error as &dyn std::error::Error, "an SSH connection broke");
                        }
                        drop((place, seen));
                    });
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "accept an SSH connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        tasks.close();
        if tokio::time::timeout(STOP_LIMIT, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "SSH connections did not end in time");
        }
    }
}

struct Connection<D> {
    door: D,
    keys: Keys,
    config: Arc<Config>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<D: Door> Connection<D> {
    async fn serve(self, stream: TcpStream) -> Result<(), russh::Error> {
        let _ = stream.set_nodelay(true);
        // The library's task cannot be ended from outside but by the end of its stream.
        let stream = stream.into_std()?;
        let closer = stream.try_clone()?;
        let is_in = Arc::new(AtomicBool::new(false));
        let end = self.stop.child_token();
        let visitor = Visitor::new(self.door, self.keys, self.tasks, is_in.clone(), end);
        let stream = TcpStream::from_std(stream)?;
        let greeted =
            tokio::time::timeout(LOGIN_LIMIT, russh::server::run_stream(self.config, stream, visitor));
        let Ok(session) = greeted.await else { return Ok(()) };
        let mut session = session?;
        let handle = session.handle();
        let login = async {
            tokio::time::sleep(LOGIN_LIMIT).await;
            if is_in.load(Ordering::Acquire) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = &mut session => return ended,
            () = login => {}
            () = self.stop.cancelled() => {
                let reason = "the daemon ends".to_owned();
                let told = handle.disconnect(Disconnect::ByApplication, reason, String::new());
                let _ = tokio::time::timeout(Duration::from_millis(200), told).await;
                let _ = tokio::time::timeout(Duration::from_millis(500), &mut session).await;
            }
        }
        let _ = closer.shutdown(Shutdown::Both);
        Ok(())
    }
}
