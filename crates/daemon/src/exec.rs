//! Execs, as a stream of frames ([`berth_types::exec::frame`]).

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::Response;
use berth_node::ExecOutput;
use berth_types::error::{ApiError, ErrorBody};
use berth_types::exec::{EXEC_STREAM_TYPE, ExecEvent, ExecRequest, frame};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use serde::Serialize;

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;

/// Runs a command. The body streams its output; a client that goes away kills it.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/exec", tag = "execs", request_body = ExecRequest,
    params(("id" = String, Path)),
    responses((status = 200, content_type = "application/vnd.berth.exec-stream.v1", body = String,
               description = "frames: kind (1 byte), length (4 bytes, big endian), payload"),
              (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn start(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<ExecRequest>,
) -> Reply<Response> {
    let exec = app.node.exec(&id, request).await?;
    let frames = stream::unfold(Some(exec), |exec| async {
        let mut exec = exec?;
        let (frame, last) = encode(exec.next().await);
        Some((Ok::<Bytes, std::convert::Infallible>(frame), if last { None } else { Some(exec) }))
    });
    let mut response = Response::new(Body::from_stream(frames));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(EXEC_STREAM_TYPE));
    Ok(response)
}

/// Kills an exec with everything it started; returns when all of it is dead.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}/execs/{exec}", tag = "execs",
    params(("id" = String, Path), ("exec" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn kill(
    State(app): State<App>,
    Path((id, exec)): Path<(String, String)>,
) -> Reply<StatusCode> {
    app.node.kill_exec(&id, &exec).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The frame for one piece of output, and whether it is the last.
fn encode(output: Result<ExecOutput, berth_node::Error>) -> (Bytes, bool) {
    match output {
        Ok(ExecOutput::Stdout(data)) => (raw(frame::STDOUT, &data), false),
        Ok(ExecOutput::Stderr(data)) => (raw(frame::STDERR, &data), false),
        Ok(ExecOutput::Started { id, program }) => {
            (json(frame::EVENT, &ExecEvent::Started { id, program }), false)
        }
        Ok(ExecOutput::Exited(status)) => (json(frame::EVENT, &ExecEvent::Exited(status)), true),
        Err(error) => (json(frame::ERROR, &ApiError::from(&error)), true),
    }
}

fn json(kind: u8, value: &impl Serialize) -> Bytes {
    // The API's own types always serialise: string keys, no non-finite numbers.
    raw(kind, &serde_json::to_vec(value).unwrap_or_default())
}

fn raw(kind: u8, payload: &[u8]) -> Bytes {
    let mut all = BytesMut::with_capacity(payload.len() + 5);
    // The guest's data frames are far below the limit; this only guards the format.
    for chunk in payload.chunks(frame::MAX_LEN as usize).chain(payload.is_empty().then_some(&[][..])) {
        all.put_u8(kind);
        all.put_u32(u32::try_from(chunk.len()).unwrap_or(frame::MAX_LEN));
        all.put_slice(chunk);
    }
    all.freeze()
}
