//! Images.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use berth_types::error::ErrorBody;
use berth_types::image::{BootstrapImage, BuildImage, BuildResult, Image, ImportImage, PullImage, PushImage};
use berth_types::progress::Line;
use berth_types::sandbox::Page;
use futures_util::TryStreamExt;
use serde::Deserialize;
use tokio_util::io::StreamReader;

use crate::extract::{self, Path};
use crate::reply::{Reply, user_error};
use crate::{App, progress};

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
    responses((status = 200, content_type = "application/x-ndjson", body = Line<Image>)))]
pub(crate) async fn import(
    State(app): State<App>,
    extract::Query(query): extract::Query<ImportImage>,
    body: Body,
) -> Response {
    let archive = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    progress::respond(|sink| async move { app.node.import_image(query, Box::new(archive), sink).await })
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

/// Query of [`build`]: a [`BuildImage`] as JSON, since a query string cannot hold maps.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildQuery {
    options: Option<String>,
}

/// Builds the Dockerfile of the context in the body, a tar.
#[utoipa::path(post, path = "/v1/images/build", tag = "images",
    params(("options" = Option<String>, Query, description = "a BuildImage as JSON")),
    request_body(content = String, content_type = "application/x-tar"),
    responses((status = 200, content_type = "application/x-ndjson", body = Line<BuildResult>)))]
pub(crate) async fn build(
    State(app): State<App>,
    extract::Query(query): extract::Query<BuildQuery>,
    body: Body,
) -> Reply<Response> {
    let options: BuildImage = match query.options.as_deref() {
        None => BuildImage::default(),
        Some(json) => serde_json::from_str(json)
            .map_err(|error| user_error("bad_query", format!("the options are not valid: {error}")))?,
    };
    let context = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    Ok(progress::respond(|sink| async move { app.node.build_image(options, Box::new(context), sink).await }))
}
