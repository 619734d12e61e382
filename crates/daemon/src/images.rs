//! Images.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use berth_types::error::{ApiError, ErrorBody, Kind};
use berth_types::files::{ArchiveOutReport, TAR_TYPE};
use berth_types::image::{
    BootstrapImage, ExportImages, Image, ImportImage, ImportResult, PruneImages, PruneReport, PullImage,
    PushImage, TagImage, VerifyImages, VerifyReport,
};
use berth_types::progress::Line;
use berth_types::sandbox::Page;
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;

use crate::extract::{self, Path};
use crate::reply::Reply;
use crate::transfer::{Contents, answer};
use crate::{App, progress};

/// How much of an export is sent at a time.
const PIECE: usize = 256 << 10;

/// Lists the images of the local store.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = Page<Image>)))]
pub(crate) async fn list(State(app): State<App>) -> Reply<Json<Page<Image>>> {
    Ok(Json(Page { items: app.node.images().await?, next: None }))
}

/// One image, by reference or id.
#[utoipa::path(get, path = "/v1/images/{id}", tag = "images", params(("id" = String, Path)),
    responses((status = 200, body = Image), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(id): Path<String>) -> Reply<Json<Image>> {
    Ok(Json(app.node.image(&id).await?))
}

/// Removes a reference, and the image when it was the last one.
#[utoipa::path(delete, path = "/v1/images/{id}", tag = "images", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(crate) async fn remove(State(app): State<App>, Path(id): Path<String>) -> Reply<StatusCode> {
    app.node.remove_image(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pulls an image from its registry.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", request_body = PullImage,
    responses((status = 200, content_type = "application/x-ndjson", body = Line<Image>)))]
pub(crate) async fn pull(
    State(app): State<App>,
    extract::Json(request): extract::Json<PullImage>,
) -> Response {
    progress::respond(|sink| async move { app.node.pull_image(request, sink).await })
}

/// Pushes an image to its registry.
#[utoipa::path(post, path = "/v1/images/push", tag = "images", request_body = PushImage,
    responses((status = 200, content_type = "application/x-ndjson", body = Line<Image>)))]
pub(crate) async fn push(
    State(app): State<App>,
    extract::Json(request): extract::Json<PushImage>,
) -> Response {
    progress::respond(|sink| async move { app.node.push_image(request, sink).await })
}

/// Imports the archive in the body.
#[utoipa::path(post, path = "/v1/images/import", tag = "images",
    params(("reference" = Option<String>, Query), ("format" = Option<String>, Query)),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, content_type = "application/x-ndjson", body = Line<ImportResult>)))]
pub(crate) async fn import(
    State(app): State<App>,
    extract::Query(query): extract::Query<ImportImage>,
    body: Body,
) -> Response {
    let archive = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    progress::respond(|sink| async move { app.node.import_images(query, Box::new(archive), sink).await })
}

/// Makes a base image from a Debian mirror.
#[utoipa::path(post, path = "/v1/images/bootstrap", tag = "images", request_body = BootstrapImage,
    responses((status = 200, content_type = "application/x-ndjson", body = Line<Image>)))]
pub(crate) async fn bootstrap(
    State(app): State<App>,
    extract::Json(request): extract::Json<BootstrapImage>,
) -> Response {
    progress::respond(|sink| async move { app.node.bootstrap_image(request, sink).await })
}

/// Points another reference at an image.
#[utoipa::path(post, path = "/v1/images/tag", tag = "images", request_body = TagImage,
    responses((status = 200, body = Image), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(crate) async fn tag(
    State(app): State<App>,
    extract::Json(request): extract::Json<TagImage>,
) -> Reply<Json<Image>> {
    Ok(Json(app.node.tag_image(request).await?))
}

/// Removes images, layers and cache mounts that nobody uses. What a sandbox, a build or a pull uses stays.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images", request_body = PruneImages,
    responses((status = 200, content_type = "application/x-ndjson", body = Line<PruneReport>)))]
pub(crate) async fn prune(
    State(app): State<App>,
    extract::Json(request): extract::Json<PruneImages>,
) -> Response {
    progress::respond(|sink| async move { app.node.prune_images(request, sink).await })
}

/// Compares the store with what it should hold. Nothing is repaired; what is wrong is in the report.
#[utoipa::path(post, path = "/v1/images/verify", tag = "images", request_body = VerifyImages,
    responses((status = 200, content_type = "application/x-ndjson", body = Line<VerifyReport>)))]
pub(crate) async fn verify(
    State(app): State<App>,
    extract::Json(request): extract::Json<VerifyImages>,
) -> Response {
    progress::respond(|sink| async move { app.node.verify_images(request, sink).await })
}

/// Images as an archive; in zstd where `Accept-Encoding` names that. A failure midway cuts the connection, or, to clients that
/// take trailers, is told in one: an archive that ends in order is whole.
#[utoipa::path(post, path = "/v1/images/export", tag = "images", request_body = ExportImages,
    responses((status = 200, content_type = "application/x-tar", body = String), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)))]
pub(crate) async fn export(
    State(app): State<App>,
    headers: HeaderMap,
    extract::Json(request): extract::Json<ExportImages>,
) -> Reply<Response> {
    let archive = Archive(app.node.export_images(request).await?);
    answer(archive, HeaderValue::from_static(TAR_TYPE), &headers)
}

/// An archive on its way out.
struct Archive(berth_node::Body);

impl Contents for Archive {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let mut piece = BytesMut::with_capacity(PIECE);
        match self.0.read_buf(&mut piece).await {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(piece.freeze())),
            Err(error) => {
                let message = format!("the export broke off: {error}");
                Err(ApiError::new(Kind::Unavailable, "export_broken_off", message))
            }
        }
    }

    fn report(&self) -> Option<ArchiveOutReport> {
        None
    }
}
