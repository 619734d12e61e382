//! File trees, as tar streams.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use berth_node::Download;
use berth_types::error::{ApiError, ErrorBody};
use berth_types::files::{ArchiveIn, ArchiveOut, ArchiveOutReport, ArchiveReport, TAR_TYPE};
use bytes::Bytes;

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;
use crate::transfer::{Contents, Upload, answer};

/// Unpacks the tar in the body into a directory of the sandbox.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/archive", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("keep_ids" = Option<bool>, Query)),
    request_body(content = String, content_type = "application/x-tar", description = "`Content-Encoding: zstd` is understood"),
    responses((status = 200, body = ArchiveReport), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 507, body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<ArchiveIn>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<ArchiveReport>> {
    let (reader, fault) = Upload::new(&headers, body)?.split();
    let unpacked = app.node.unpack(&id, query, reader).await;
    Ok(Json(fault.explain(unpacked)?))
}

/// A tar of a file or directory of the sandbox; in zstd where `Accept-Encoding` names that. A failure midway cuts the
/// connection, or, to clients that take trailers, is told in one.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/archive", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("exclude" = Option<String>, Query),
        ("ignore_failed_read" = Option<bool>, Query), ("include" = Option<String>, Query),
        ("exclude_files" = Option<String>, Query), ("protect" = Option<String>, Query), ("sparse" = Option<bool>, Query)),
    responses((status = 200, content_type = "application/x-tar", body = String), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<ArchiveOut>,
    headers: HeaderMap,
) -> Reply<Response> {
    let tar = app.node.pack(&id, query).await?;
    answer(tar, HeaderValue::from_static(TAR_TYPE), &headers)
}

impl Contents for Download {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        Download::next(self).await
    }

    fn report(&self) -> Option<ArchiveOutReport> {
        Some(Download::report(self))
    }
}
