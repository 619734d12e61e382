//! File trees, as tar streams.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use berth_types::error::ErrorBody;
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveReport, TAR_TYPE};
use futures_util::TryStreamExt;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;

/// Pieces of an archive on their way out, in bytes.
const CHUNK: usize = 64 << 10;

/// Unpacks the tar in the body into a directory of the sandbox.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/archive", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("keep_ids" = Option<bool>, Query)),
    request_body(content = String, content_type = "application/x-tar"),
    responses((status = 200, body = ArchiveReport), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<ArchiveIn>,
    body: Body,
) -> Reply<Json<ArchiveReport>> {
    let tar = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    Ok(Json(app.node.unpack(&id, query, Box::new(tar)).await?))
}

/// A tar of a file or directory of the sandbox. A failure midway cuts the connection.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/archive", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("exclude" = Option<String>, Query)),
    responses((status = 200, content_type = "application/x-tar", body = String), (status = 404, body = ErrorBody)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<ArchiveOut>,
) -> Reply<Response> {
    let tar = app.node.pack(&id, query).await?;
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(tar, CHUNK)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TAR_TYPE));
    Ok(response)
}
