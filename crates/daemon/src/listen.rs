//! Where the daemon listens, and how it stops.

use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::serve::{Listener, ListenerExt};
use futures_util::future::BoxFuture;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;

/// How long requests under way may take to end once the daemon has been told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long a connection may take from one request's end to the end of the next one's head. Clients keep idle
/// connections for less.
const HEAD_LIMIT: Duration = Duration::from_secs(30);

/// Longest head of a request, and most of a body that is held for a client that does not read, or sends faster than what it
/// sends is used: a stalled connection costs no more than this.
const BUFFER: usize = 64 << 10;

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
    let (served, socket): (BoxFuture<'_, ()>, _) = match bound {
        Bound::Unix(listener, path) => (Box::pin(accept(listener, router, stop.clone())), Some(path)),
        Bound::Tcp(listener) => {
            // Execs are many small writes with an answer awaited; waiting to coalesce them costs 40 ms each.
            let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
            (Box::pin(accept(listener, router, stop.clone())), None)
        }
    };
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        () = served => {}
        () = deadline => tracing::warn!("requests still under way were cut off"),
    }
    if let Some(path) = socket {
        let _ = std::fs::remove_file(path);
    }
}

/// Accepts until `stop` is cancelled; returns when the connections under way have ended.
async fn accept<L: Listener>(mut listener: L, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            (stream, _) = listener.accept() => stream,
        };
        connections.spawn(converse(stream, router.clone(), stop.clone(), HEAD_LIMIT));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Serves one connection. One that does not send the head of a request in time is closed: it would hold a descriptor
/// for ever.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    stop: CancellationToken,
    head_limit: Duration,
) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_limit);
    // The buffer alone may grow to nearly twice that before a head counts as too long.
    builder.max_buf_size(BUFFER).max_header_size(BUFFER);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
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

    #[tokio::test]
    async fn a_client_that_dawdles_over_its_head_is_cut_off() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut client, server) = UnixStream::pair().unwrap();
        let served = tokio::spawn(converse(
            server,
            Router::new(),
            CancellationToken::new(),
            Duration::from_millis(20),
        ));
        client.write_all(b"GET / HTTP/1.1\r\nHost: berth\r\nX-Slow: ").await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        served.await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }

    #[tokio::test]
    async fn a_head_has_a_limit() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let answer_to = async |len: usize| {
            let (client, server) = UnixStream::pair().unwrap();
            let served = tokio::spawn(converse(server, Router::new(), CancellationToken::new(), HEAD_LIMIT));
            let (mut reader, mut writer) = client.into_split();
            let write = async move {
                let mut head = "GET / HTTP/1.1\r\nHost: berth\r\nConnection: close\r\nX: ".to_owned();
                head.push_str(&"x".repeat(len - head.len() - "\r\n\r\n".len()));
                head.push_str("\r\n\r\n");
                // It is cut off where it gets too long.
                let _ = writer.write_all(head.as_bytes()).await;
                writer
            };
            let mut answer = Vec::new();
            let read = async { reader.read_to_end(&mut answer).await };
            let _ = tokio::join!(write, read);
            served.await.unwrap();
            String::from_utf8(answer).unwrap()
        };
        assert!(answer_to(BUFFER).await.starts_with("HTTP/1.1 404"));
        for len in [BUFFER + 1, BUFFER * 3 / 2, BUFFER * 4] {
            assert!(!answer_to(len).await.starts_with("HTTP/1.1 404"), "{len}");
        }
    }
}
