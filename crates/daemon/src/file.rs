//! Single files, and changes of files.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use berth_node::{Changes, FileContents};
use berth_types::error::{ApiError, ErrorBody};
use berth_types::files::{ArchiveOutReport, FILE_SIZE, FileIn, FileOut, FileReport, WatchQuery};
use berth_types::progress::PROGRESS_TYPE;
use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use serde::Serialize;

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;
use crate::transfer::{Contents, Upload, answer};

/// Media type of a file's bytes.
const BYTES_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Bytes of one regular file: all of them, or `length` from `offset` on; nothing beyond its end.
///
/// The header `berth-file-size` tells the size of the whole file, just before it was opened. A failure midway cuts the
/// connection, or, to clients that take trailers, is told in one, `berth-archive-error`; an answer without either is
/// complete. In zstd where `Accept-Encoding` names that.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/file", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("offset" = Option<u64>, Query), ("length" = Option<u64>, Query),
        ("user" = Option<String>, Query)),
    responses((status = 200, content_type = "application/octet-stream", body = String,
               headers(("berth-file-size" = u64))),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<FileOut>,
    headers: HeaderMap,
) -> Reply<Response> {
    let contents = app.node.read_file(&id, query).await?;
    let size = contents.size();
    let mut response = answer(contents, BYTES_TYPE, &headers)?;
    response.headers_mut().insert(FILE_SIZE, size.into());
    Ok(response)
}

impl Contents for FileContents {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        FileContents::next(self).await.map_err(|error| ApiError::from(&error))
    }

    fn report(&self) -> Option<ArchiveOutReport> {
        None
    }
}

/// Makes the body a file's contents: as a whole, or not at all. Readers of the file see the old one or the new one.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/file", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("mode" = Option<String>, Query, description = "octal"),
        ("owner" = Option<String>, Query), ("create_only" = Option<bool>, Query)),
    request_body(content = String, content_type = "application/octet-stream", description = "`Content-Encoding: zstd` is understood"),
    responses((status = 200, body = FileReport), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
        (status = 507, body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<FileIn>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Json<FileReport>> {
    let upload = Upload::new(&headers, body)?;
    let (reader, fault) = upload.split();
    let written = app.node.write_file(&id, query, reader).await;
    Ok(Json(fault.explain(written)?))
}

/// Changes at or below a path, as they happen: a JSON `Change` a line, `ready` first. It ends when the client goes away,
/// and with a line that is an `ErrorBody` when what is watched, or the sandbox, is gone.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/watch", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("recursive" = Option<bool>, Query)),
    responses((status = 200, content_type = "application/x-ndjson", body = berth_types::files::Change),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn watch(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<WatchQuery>,
) -> Reply<Response> {
    let changes = app.node.watch(&id, query).await?;
    let mut response = Response::new(Body::from_stream(lines(changes)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(PROGRESS_TYPE));
    Ok(response)
}

fn lines(changes: Changes) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    unfold(Some(changes), |changes| async {
        let mut changes = changes?;
        Some(match changes.next().await {
            Ok(change) => (Ok(line(&change)), Some(changes)),
            Err(error) => (Ok(line(&ErrorBody { error: ApiError::from(&error) })), None),
        })
    })
}

fn line(value: &impl Serialize) -> Bytes {
    // The API's own types always serialise: string keys, no non-finite numbers.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}
