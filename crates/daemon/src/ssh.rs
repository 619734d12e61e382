//! The SSH door: opened when it is first asked for, or at the start where an address is configured.
//!
//! A port that nobody asked for is one more way in, so without `[ssh] listen` there is none until a client wants to know
//! where it is; then it is a free one on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_node::Node;
use berth_ssh::keys::{AuthorizedKey, Error as KeyError};
use berth_ssh::{Keys, Listener};
use berth_types::error::{ApiError, ErrorBody, Kind};
use berth_types::ssh::{AddSshKey, SshDoor, SshKey, SshKeys};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::extract::{self, Path};
use crate::reply::Reply;
use crate::{App, SshOptions};

/// Where the door is when nobody said where.
const ON_DEMAND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The door, open or not yet.
pub(crate) struct Ssh {
    options: SshOptions,
    data_dir: PathBuf,
    node: Node,
    activity: Arc<Activity>,
    stop: CancellationToken,
    /// Where it is once it is open. Held by whoever opens it, reads its keys or changes them.
    open: Mutex<Option<SocketAddr>>,
    tasks: TaskTracker,
}

impl Ssh {
    pub(crate) fn new(
        options: SshOptions,
        data_dir: PathBuf,
        node: Node,
        activity: Arc<Activity>,
        stop: CancellationToken,
    ) -> Self {
        Self { options, data_dir, node, activity, stop, open: Mutex::new(None), tasks: TaskTracker::new() }
    }

    /// Opens it at once where an address is configured.
    pub(crate) async fn start(&self) -> Result<(), berth_ssh::Error> {
        match self.options.listen {
            Some(listen) if self.options.enabled => self.listen(listen).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Waits until the connections have ended, once the daemon is told to stop.
    pub(crate) async fn ended(&self) {
        // Nobody opens it any more after this.
        drop(self.open.lock().await);
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, berth_ssh::Error> {
        let mut open = self.open.lock().await;
        if let Some(address) = *open {
            return Ok(address);
        }
        let options =
            berth_ssh::Options { listen: address, data_dir: self.data_dir.clone(), stop: self.stop.clone() };
        let listener = Listener::bind(options).await?;
        let address = listener.address();
        tracing::info!(%address, "the SSH door is open");
        let activity = self.activity.clone();
        self.tasks.spawn(listener.run_with(self.node.clone(), move || activity.begin()));
        *open = Some(address);
        Ok(address)
    }

    fn check_enabled(&self) -> Result<(), ApiError> {
        if self.options.enabled {
            return Ok(());
        }
        let message = "the SSH door is off: the daemon's configuration has [ssh] enabled = false";
        Err(ApiError::new(Kind::Config, "ssh_disabled", message))
    }

    /// Works on the keys, one call at a time.
    async fn with_keys<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Keys) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let dir = self.data_dir.join(berth_ssh::DIR);
        let _alone = self.open.lock().await;
        let done = tokio::task::spawn_blocking(move || work(&Keys::open(dir)?)).await;
        match done {
            Ok(done) => done.map_err(|error| of_keys(&error)),
            Err(error) => Err(ApiError::new(Kind::Internal, "internal", format!("work on keys: {error}"))),
        }
    }

    async fn door(&self) -> Result<SshDoor, ApiError> {
        self.check_enabled()?;
        if self.stop.is_cancelled() {
            return Err(ApiError::new(Kind::Unavailable, "shutting_down", "the daemon ends"));
        }
        let address = self.listen(self.options.listen.unwrap_or(ON_DEMAND)).await.map_err(of_door)?;
        let address = reachable(address);
        let door = self.with_keys(move |keys| {
            let path = keys.client()?;
            Ok(SshDoor {
                address: address.to_string(),
                host_key: keys.known_hosts_line(&address.ip().to_string(), address.port())?,
                client_key_path: keys.client_may_enter()?.then(|| path.display().to_string()),
            })
        });
        door.await
    }
}

/// What listens everywhere is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// An error and its causes in one line.
fn in_full(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn of_door(error: berth_ssh::Error) -> ApiError {
    match error {
        berth_ssh::Error::Keys(error) => of_keys(&error),
        berth_ssh::Error::Listen { .. } => {
            ApiError::new(Kind::Unavailable, "ssh_unavailable", format!("cannot {}", in_full(&error)))
        }
    }
}

fn of_keys(error: &KeyError) -> ApiError {
    let text = in_full(error);
    match error {
        KeyError::PublicKey(_) | KeyError::Private | KeyError::Lines { .. } | KeyError::Algorithm { .. } => {
            ApiError::new(Kind::User, "bad_ssh_key", text)
                .with_hint("one line as in ~/.ssh/id_ed25519.pub: ssh-ed25519 AAAA… comment")
        }
        KeyError::Line { .. } | KeyError::Key { .. } => {
            ApiError::new(Kind::Config, "ssh_keys_unusable", text).with_hint("mend the file, or remove it")
        }
        KeyError::File { .. } => {
            ApiError::new(Kind::Unavailable, "ssh_keys_unavailable", format!("cannot {text}"))
        }
        KeyError::Make(_) => ApiError::new(Kind::Internal, "internal", format!("cannot {text}")),
    }
}

fn shown(key: AuthorizedKey) -> SshKey {
    let AuthorizedKey { fingerprint, algorithm, comment } = key;
    SshKey { fingerprint, algorithm, comment }
}

/// Where the SSH door is and what opens it. Opens it when it is not open yet.
///
/// `ssh NAME@ADDRESS -p PORT` enters the sandbox of that name or id, `NAME+USER@…` as that user; commands, terminals, SFTP and
/// connections to ports inside work without anything in the image, and without a network.
#[utoipa::path(get, path = "/v1/ssh", tag = "ssh",
    responses((status = 200, body = SshDoor), (status = 412, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>) -> Reply<Json<SshDoor>> {
    Ok(Json(app.ssh.door().await?))
}

/// The keys that open the SSH door, for all sandboxes.
#[utoipa::path(get, path = "/v1/ssh/keys", tag = "ssh",
    responses((status = 200, body = SshKeys), (status = 412, body = ErrorBody)))]
pub(crate) async fn list_keys(State(app): State<App>) -> Reply<Json<SshKeys>> {
    let keys = app.ssh.with_keys(Keys::authorized).await?;
    Ok(Json(SshKeys { items: keys.into_iter().map(shown).collect() }))
}

/// Lets a key open the SSH door. One that does already is answered likewise.
#[utoipa::path(post, path = "/v1/ssh/keys", tag = "ssh", request_body = AddSshKey,
    responses((status = 201, body = SshKey), (status = 400, body = ErrorBody), (status = 412, body = ErrorBody)))]
pub(crate) async fn add_key(
    State(app): State<App>,
    extract::Json(request): extract::Json<AddSshKey>,
) -> Reply<(StatusCode, Json<SshKey>)> {
    app.ssh.check_enabled()?;
    let key = app.ssh.with_keys(move |keys| keys.add(&request.key)).await?;
    tracing::info!(fingerprint = key.fingerprint, comment = key.comment, "a key opens the SSH door now");
    Ok((StatusCode::CREATED, Json(shown(key))))
}

/// Lets a key open the SSH door no more. Connections that it has opened stay.
#[utoipa::path(delete, path = "/v1/ssh/keys/{fingerprint}", tag = "ssh", params(("fingerprint" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 412, body = ErrorBody)))]
pub(crate) async fn delete_key(State(app): State<App>, Path(fingerprint): Path<String>) -> Reply<StatusCode> {
    let wanted = fingerprint.clone();
    if app.ssh.with_keys(move |keys| keys.remove(&wanted)).await? {
        tracing::info!(fingerprint, "a key opens the SSH door no more");
        return Ok(StatusCode::NO_CONTENT);
    }
    let message = format!("no key {fingerprint} opens the SSH door");
    Err(ApiError::new(Kind::NotFound, "ssh_key_not_found", message).with_hint("berth ssh-key ls").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_everywhere_is_reached_by_loopback() {
        let told = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(told("0.0.0.0:2222"), "127.0.0.1:2222");
        assert_eq!(told("[::]:2222"), "[::1]:2222");
        assert_eq!(told("192.0.2.7:22"), "192.0.2.7:22");
    }

    #[test]
    fn whose_fault_a_key_is_that_cannot_be_used() {
        let of = |error: KeyError| of_keys(&error);
        let lines = of(KeyError::Lines { lines: 2 });
        assert_eq!(
            (lines.kind, &*lines.code, &*lines.message),
            (Kind::User, "bad_ssh_key", "2 lines in place of one public key")
        );
        let source = std::io::ErrorKind::StorageFull.into();
        let file = of(KeyError::File { operation: "write", path: "/x".into(), source });
        assert_eq!((file.kind, &*file.message), (Kind::Unavailable, "cannot write /x: no storage space"));
    }
}
