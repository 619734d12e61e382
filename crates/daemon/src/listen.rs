//! Where the daemon listens, and how it stops.

use std::future::IntoFuture;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// How long requests under way may take to end once the daemon has been told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Owner and group may talk to the daemon, nobody else: whoever can is root on this machine.
const SOCKET_MODE: u32 = 0o660;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A loopback TCP address.
    Tcp(SocketAddr),
}

impl Address {
    /// Parses `unix:///path`, `tcp://host:port` or `http://host:port`.
    ///
    /// # Errors
    /// [`Error::BadAddress`] for anything else, [`Error::NotLoopback`] for an address that others can reach.
    pub fn parse(text: &str) -> Result<Address, Error> {
        let bad = || Error::BadAddress { address: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Address::Unix(path.into())) } else { Err(bad()) };
        }
        let rest = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")).ok_or_else(bad)?;
        let address = rest
            .trim_end_matches('/')
            .to_socket_addrs()
            .ok()
            .and_then(|mut all| all.next())
            .ok_or_else(bad)?;
        if address.ip().is_loopback() {
            Ok(Address::Tcp(address))
        } else {
            Err(Error::NotLoopback { address: text.to_owned() })
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

pub(crate) enum Bound {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

pub(crate) async fn bind(address: &Address) -> Result<Bound, Error> {
    let failed = |source| Error::Bind { address: address.to_string(), source };
    match address {
        Address::Tcp(socket) => Ok(Bound::Tcp(TcpListener::bind(socket).await.map_err(failed)?)),
        Address::Unix(path) => {
            clear_stale(path, address).await?;
            let listener = UnixListener::bind(path).map_err(failed)?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(SOCKET_MODE)).map_err(failed)?;
            Ok(Bound::Unix(listener, path.clone()))
        }
    }
}

/// Makes the socket's directory and removes a socket that nobody listens on any more.
async fn clear_stale(path: &Path, address: &Address) -> Result<(), Error> {
    let failed = |source| Error::Bind { address: address.to_string(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::InUse { address: address.to_string() });
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Serves until `stop` is cancelled, then for at most [`GRACE`].
pub(crate) async fn run(bound: Bound, router: Router, stop: CancellationToken) {
    let stopped = stop.clone().cancelled_owned();
    let (served, socket): (std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>, _) =
        match bound {
            Bound::Unix(listener, path) => (
                Box::pin(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future()),
                Some(path),
            ),
            Bound::Tcp(listener) => {
                // Execs are many small writes with an answer awaited; waiting to coalesce them costs 40 ms each.
                let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
                (Box::pin(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future()), None)
            }
        };
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            tracing::error!(%error, "the listener failed");
        },
        () = deadline => tracing::warn!("requests still under way were cut off"),
    }
    if let Some(path) = socket {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(Address::parse("unix:///run/b.sock").unwrap(), Address::Unix("/run/b.sock".into()));
        assert_eq!(Address::parse("tcp://127.0.0.1:80").unwrap().to_string(), "tcp://127.0.0.1:80");
        assert_eq!(Address::parse("http://[::1]:80/").unwrap().to_string(), "tcp://[::1]:80");
        assert!(matches!(Address::parse("tcp://192.0.2.1:80"), Err(Error::NotLoopback { .. })));
        for bad in ["", "unix://relative", "/run/b.sock", "tcp://127.0.0.1", "ssh://x"] {
            assert!(matches!(Address::parse(bad), Err(Error::BadAddress { .. })), "{bad}");
        }
    }
}
