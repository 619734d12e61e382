//! HTTP to a port inside: a request goes on to the server there, its answer comes back, both as streams.
//!
//! ```text
//!   client ══ HTTP ══► daemon ══ HTTP over Node::connect ══► a server in the sandbox, on its loopback
//!                        │ head: rewritten by `head.rs`, a pure function
//!                        │ bodies: passed on as they come
//!                        └ upgrades (WebSocket): bytes both ways once the server has agreed
//! ```
//!
//! Each request has a connection of its own, always to the sandbox's own loopback: no part of a request can name another
//! host.

mod head;
mod tls;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{OriginalUri, Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use berth_node::Connect;
use berth_types::error::{ApiError, ErrorBody, Kind};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::App;
use crate::activity::Busy;
use crate::extract::Path;
use crate::reply::{Failure, Reply, user_error};

/// How long a server may take to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Most bytes of an answer's head, and of what is read ahead of a slow client.
const BUFFER: usize = 64 << 10;

/// Passes an HTTP request on to a port of the sandbox, on its loopback; any method, WebSockets included.
///
/// `port` is a number, or `https:` and a number for TLS to the port; the server's certificate is not verified, since
/// the connection never leaves the sandbox. Path and query go on as they are. The server sees `Host: localhost:port`
/// and `X-Forwarded-Host`, `-Proto` and `-Prefix`; everything else of the request, cookies and `Authorization` included,
/// goes to the sandbox, and its answer comes back unchanged: redirects to absolute paths do not lead back here.
///
/// What the sandbox sends is not to be trusted. In a browser its pages have this daemon's origin, as those of every other
/// sandbox's have: they can reach other sandboxes' ports by this route. The rest of the API refuses requests that a page makes.
///
/// Without anything that listens the answer is 502, `not_listening`; with something that does not speak HTTP, 502, `bad_gateway`.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/proxy/{port}/{path}", tag = "ports",
    params(("id" = String, Path), ("port" = String, Path, description = "`8080`, or `https:8443`"), ("path" = String, Path)),
    responses((status = "default", description = "what the server says"), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn pass(
    State(app): State<App>,
    Path(names): Path<Names>,
    OriginalUri(uri): OriginalUri,
    mut request: Request,
) -> Reply<Response> {
    let target = Target::parse(&names.port)?;
    let place = Place::of(&uri)?;
    let upgrade = head::rewrite(request.headers_mut(), &target, place.prefix);
    *request.uri_mut() = place.rest;
    let connection = app.node.connect(&names.id, target.socket()).await?;
    let busy = app.activity.begin();
    if target.is_tls {
        let handshake = tokio::time::timeout(HANDSHAKE, tls::connect(connection));
        let connection = handshake.await.map_err(|_| bad_gateway("the TLS handshake took too long"))?;
        return exchange(
            connection.map_err(|error| bad_gateway(error.to_string()))?,
            request,
            upgrade,
            busy,
            app.stop,
        )
        .await;
    }
    exchange(connection, request, upgrade, busy, app.stop).await
}

/// What the path names.
#[derive(serde::Deserialize)]
pub(crate) struct Names {
    id: String,
    port: String,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    port: u16,
    is_tls: bool,
}

impl Target {
    /// Never another host's.
    fn socket(&self) -> Connect {
        Connect::Tcp { host: "localhost".to_owned(), port: self.port }
    }

    fn parse(text: &str) -> Reply<Self> {
        let (is_tls, number) = match text.split_once(':') {
            None => (false, text),
            Some(("http", number)) => (false, number),
            Some(("https", number)) => (true, number),
            Some(_) => (false, ""),
        };
        // Digits alone: a sign would be read as well.
        match number.parse() {
            Ok(port) if port > 0 && number.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self { port, is_tls })
            }
            _ => Err(user_error("bad_path", format!("{text:?} is no port; 8080 and https:8443 are"))),
        }
    }
}

/// A request's path, cut where the sandbox's begins.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    /// What leads here, without a slash at its end.
    prefix: &'a str,
    /// What the server is asked for.
    rest: Uri,
}

impl<'a> Place<'a> {
    /// Cuts `/v1/sandboxes/ID/proxy/PORT/…`, whose percent-encoding is left as it is.
    fn of(uri: &'a Uri) -> Reply<Self> {
        let path = uri.path();
        let cut = path.match_indices('/').nth(5).map_or(path.len(), |(index, _)| index);
        let (prefix, rest) = path.split_at(cut);
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let rest = if rest.is_empty() { "/" } else { rest };
        let rest = format!("{rest}{query}").parse();
        let rest = rest.map_err(|error| user_error("bad_path", format!("the path is not valid: {error}")))?;
        Ok(Self { prefix, rest })
    }
}

fn bad_gateway(message: impl std::fmt::Display) -> Failure {
    let message = format!("the server in the sandbox could not be talked to: {message}");
    Failure(ApiError::new(Kind::Unavailable, "bad_gateway", message))
}

/// One request and its answer over a connection.
async fn exchange(
    connection: impl AsyncRead + AsyncWrite + Send + 'static,
    mut request: Request,
    upgrade: bool,
    busy: Busy,
    stop: CancellationToken,
) -> Reply<Response> {
    let client = upgrade.then(|| hyper::upgrade::on(&mut request));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).preserve_header_case(true);
    let handshake = builder.handshake(TokioIo::new(Box::pin(connection))).await;
    let (mut sender, driver) = handshake.map_err(bad_gateway)?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = driver.with_upgrades().await {
            tracing::debug!(%error, "a connection to a server in a sandbox ended early");
        }
    }));
    let mut answer = sender.send_request(request).await.map_err(bad_gateway)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(bad_gateway("it changes the protocol without having been asked"));
        };
        let server = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            tokio::select! {
                () = splice(client, server) => {}
                () = stop.cancelled() => {}
            }
            drop((driver, busy));
        });
        return Ok(answer.map(|_| Body::empty()));
    }
    head::strip(answer.headers_mut());
    Ok(answer.map(|body| Body::new(Answer { body, _driver: driver })))
}

/// Bytes both ways, until both sides have sent all or one is gone.
async fn splice(client: OnUpgrade, server: OnUpgrade) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "a connection could not change its protocol"),
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!(%error, "a connection through the proxy ended early");
    }
}

/// The body of an answer, with the connection that it comes over: who drops it has the connection closed.
struct Answer {
    body: Incoming,
    _driver: AbortOnDropHandle<()>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
