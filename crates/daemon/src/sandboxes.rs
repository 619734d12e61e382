//! Sandboxes.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use berth_node::Filter;
use berth_types::error::ErrorBody;
use berth_types::sandbox::{CreateSandbox, Page, Sandbox, SetLease};
use serde::Deserialize;

use crate::reply::{Reply, user_error};
use crate::{App, extract};

/// Makes a sandbox and returns when it is ready.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandboxes", request_body = CreateSandbox,
    responses((status = 201, body = Sandbox), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
              (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    extract::Json(request): extract::Json<CreateSandbox>,
) -> Reply<(StatusCode, Json<Sandbox>)> {
    Ok((StatusCode::CREATED, Json(app.node.create_sandbox(request).await?)))
}

/// Query of [`list`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    label: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// Lists sandboxes, oldest first.
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandboxes",
    params(("label" = Option<String>, Query, description = "only those with this `key=value`"),
           ("limit" = Option<usize>, Query, description = "at most so many, 1 to 1000; 100 when absent"),
           ("after" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, body = Page<Sandbox>), (status = 400, body = ErrorBody)))]
pub(crate) async fn list(
    State(app): State<App>,
    extract::Query(query): extract::Query<ListQuery>,
) -> Reply<Json<Page<Sandbox>>> {
    let label = match query.label.as_deref().map(|label| label.split_once('=')) {
        None => None,
        Some(Some((key, value))) => Some((key.to_owned(), value.to_owned())),
        Some(None) => return Err(user_error("bad_query", "label takes key=value")),
    };
    let limit = query.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(user_error("bad_query", format!("limit takes 1 to 1000, not {limit}")));
    }
    Ok(Json(app.node.sandboxes(&Filter { label, limit, after: query.after })))
}

/// One sandbox, by id or name.
#[utoipa::path(get, path = "/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Sandbox), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(id): Path<String>) -> Reply<Json<Sandbox>> {
    Ok(Json(app.node.sandbox(&id)?))
}

/// Deletes a sandbox: when this returns its processes are dead; its disk is freed soon after.
#[utoipa::path(delete, path = "/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn delete(State(app): State<App>, Path(id): Path<String>) -> Reply<StatusCode> {
    app.node.delete_sandbox(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a sandbox under another lease, or under none.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/lease", tag = "sandboxes", request_body = SetLease,
    params(("id" = String, Path)), responses((status = 200, body = Sandbox), (status = 404, body = ErrorBody)))]
pub(crate) async fn set_lease(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<SetLease>,
) -> Reply<Json<Sandbox>> {
    Ok(Json(app.node.set_lease(&id, request.lease).await?))
}
