//! File trees, as tar streams.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use berth_node::Download;
use berth_types::error::ErrorBody;
use berth_types::files::{ARCHIVE_ERROR, ARCHIVE_REPORT, ArchiveIn, ArchiveOut, ArchiveReport, TAR_TYPE};
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::{Stream, unfold};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use tokio_util::io::StreamReader;

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;

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

/// A tar of a file or directory of the sandbox. A failure midway cuts the connection, or, to clients that take trailers,
/// is told in one.
#[utoipa::path(get, path = "/v1/sandboxes/{id}/archive", tag = "files",
    params(("id" = String, Path), ("path" = String, Query), ("exclude" = Option<String>, Query),
        ("ignore_failed_read" = Option<bool>, Query)),
    responses((status = 200, content_type = "application/x-tar", body = String), (status = 404, body = ErrorBody)))]
pub(crate) async fn get(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(query): extract::Query<ArchiveOut>,
    headers: HeaderMap,
) -> Reply<Response> {
    let tar = app.node.pack(&id, query).await?;
    let trailers = takes_trailers(&headers);
    let mut response = Response::new(Body::new(StreamBody::new(frames(tar, trailers))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TAR_TYPE));
    if trailers {
        for name in [ARCHIVE_REPORT, ARCHIVE_ERROR] {
            response.headers_mut().append(header::TRAILER, HeaderValue::from_static(name));
        }
    }
    Ok(response)
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// The tar, and where `trailers` are taken how it ended.
fn frames(tar: Download, trailers: bool) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    unfold(Some(tar), move |tar| async move {
        let mut tar = tar?;
        match tar.next().await {
            Ok(Some(data)) => Some((Ok(Frame::data(data)), Some(tar))),
            Ok(None) if trailers => Some((trailer(ARCHIVE_REPORT, &tar.report()), None)),
            Ok(None) => None,
            Err(error) if trailers => Some((trailer(ARCHIVE_ERROR, &error), None)),
            Err(error) => Some((Err(io::Error::other(error.message)), None)),
        }
    })
}

fn trailer(name: &'static str, value: &impl Serialize) -> io::Result<Frame<Bytes>> {
    let text = serde_json::to_string(value)?;
    let value = utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
    let value = HeaderValue::try_from(value).map_err(io::Error::other)?;
    Ok(Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static(name), value)])))
}
