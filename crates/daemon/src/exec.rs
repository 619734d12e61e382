//! Execs: started or attached to, as a stream of frames ([`berth_types::exec::frame`]), and what is done to them beside.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use berth_node::{AttachSpec, Exec};
use berth_types::error::{ApiError, ErrorBody};
use berth_types::exec::{
    EXEC_STREAM_TYPE, ExecInfo, ExecList, ExecOffsets, ExecRequest, OutputQuery, QuiesceReport,
    SignalRequest, Stdin, StdinQuery, StdinReport, TerminalSize,
};
use futures_util::stream::{self, Stream};

use crate::App;
use crate::extract::{self, Path};
use crate::frames::Told;
use crate::reply::Reply;
use crate::stream::ExecBody;
use crate::transfer::Upload;

/// How long the head of an answer may wait for the command's end: most commands of a few milliseconds are then answered
/// by a single write. Whoever talks to the command meanwhile is not made to wait.
const GATHER: Duration = Duration::from_millis(3);

/// Runs a command, once. The body streams its output; a client that goes away detaches from it.
///
/// With the `id` of an exec that the same request has started before, this attaches to that one, from the offsets in
/// `from`; so a request can be repeated until its answer has arrived. The same id with another request is a conflict,
/// `exec_id_taken`. With `detach` the answer is 202 and an `ExecInfo` as soon as the command runs.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec", tag = "execs", request_body = ExecRequest,
    params(("id" = String, Path)),
    responses((status = 200, content_type = "application/vnd.berth.exec-stream.v2", body = String,
               description = "frames: kind (1 byte), length (4 bytes, big endian), payload; see docs/exec.md"),
              (status = 202, body = ExecInfo, description = "with detach"),
              (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
              (status = 503, body = ErrorBody)))]
pub(crate) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<ExecRequest>,
) -> Reply<Response> {
    if request.detach {
        let info = app.node.exec_detached(&id, request).await?;
        return Ok((StatusCode::ACCEPTED, Json(info)).into_response());
    }
    let is_conversation = request.terminal.is_some() || request.stdin == Some(Stdin::Stream);
    let mut body = ExecBody::new(told(app.node.exec(&id, request).await?));
    if !is_conversation {
        body.gather(GATHER).await;
    }
    Ok(streamed(body))
}

/// The stream of an exec that was started before, from the given offsets on: attaches to it once more, beside whoever is
/// attached already. Without `follow` it ends, by `detached`, where the output ends at present.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/execs/{exec}/output", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path), ("stdout" = Option<u64>, Query), ("stderr" = Option<u64>, Query),
        ("follow" = Option<bool>, Query, description = "true when absent")),
    responses((status = 200, content_type = "application/vnd.berth.exec-stream.v2", body = String),
              (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn output(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
    extract::Query(query): extract::Query<OutputQuery>,
) -> Reply<Response> {
    let OutputQuery { stdout, stderr, follow } = query;
    let spec = AttachSpec { from: ExecOffsets { stdout, stderr }, stdin: false, follow };
    let mut body = ExecBody::new(told(app.node.attach_exec(&id, &exec, spec).await?));
    body.gather(GATHER).await;
    Ok(streamed(body))
}

fn streamed(body: ExecBody) -> Response {
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(EXEC_STREAM_TYPE));
    response
}

/// What an exec does, up to its end or an error.
pub(crate) fn told(exec: Exec) -> impl Stream<Item = Told> + Send {
    stream::unfold(exec, |mut exec| async {
        let told = exec.next().await.map_err(|error| ApiError::from(&error));
        Some((told, exec))
    })
}

/// The execs of a sandbox, running and over, the oldest first.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/execs", tag = "execs", params(("id" = String, Path)),
    responses((status = 200, body = ExecList), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, Path(id): Path<String>) -> Reply<Json<ExecList>> {
    Ok(Json(app.node.execs(&id).await?))
}

/// One exec: how it ended, or what it uses.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/execs/{exec}", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 200, body = ExecInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
) -> Reply<Json<ExecInfo>> {
    Ok(Json(app.node.exec_info(&id, &exec).await?))
}

/// Kills an exec with everything it started; returns when all of it is dead. One that is over already is no error.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/execs/{exec}", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn kill(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
) -> Reply<StatusCode> {
    app.node.kill_exec(&id, &exec).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a running exec the body as input.
///
/// `offset` says where in its input the body begins: what the exec has been given of it already is skipped, and a body
/// that begins further on is refused, `stdin_gap`. So a client that does not know what of a cut-off request has arrived
/// sends it again. The answer says how much the exec has been given in all; where that is less than was sent, the rest
/// is to be sent again.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/execs/{exec}/stdin", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path), ("offset" = Option<u64>, Query), ("end" = Option<bool>, Query)),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = StdinReport), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn stdin(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
    extract::Query(query): extract::Query<StdinQuery>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<StdinReport>> {
    let (reader, fault) = Upload::new(&headers, body)?.split();
    let given = app.node.write_stdin(&id, &exec, query, reader).await;
    Ok(Json(fault.explain(given)?))
}

/// Sends a running exec a signal.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/execs/{exec}/signal", tag = "execs", request_body = SignalRequest,
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn signal(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
    extract::Json(request): extract::Json<SignalRequest>,
) -> Reply<StatusCode> {
    app.node.signal_exec(&id, &exec, &request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells a running exec the size of its terminal.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/execs/{exec}/resize", tag = "execs", request_body = TerminalSize,
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn resize(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
    extract::Json(size): extract::Json<TerminalSize>,
) -> Reply<StatusCode> {
    app.node.resize_exec(&id, &exec, size).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Kills every process of every exec of the sandbox, daemons that they left behind included; returns when all are dead.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/quiesce", tag = "execs", params(("id" = String, Path)),
    responses((status = 200, body = QuiesceReport), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(crate) async fn quiesce(State(app): State<App>, Path(id): Path<String>) -> Reply<Json<QuiesceReport>> {
    Ok(Json(app.node.quiesce(&id).await?))
}
