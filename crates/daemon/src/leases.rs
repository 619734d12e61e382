//! Leases.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_types::error::ErrorBody;
use berth_types::sandbox::{Lease, LeaseRequest};

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;

/// Makes a lease.
#[utoipa::path(post, path = "/v1/leases", tag = "leases", request_body = LeaseRequest,
    responses((status = 201, body = Lease), (status = 400, body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    extract::Json(request): extract::Json<LeaseRequest>,
) -> Reply<(StatusCode, Json<Lease>)> {
    Ok((StatusCode::CREATED, Json(app.node.create_lease(&request).await?)))
}

/// Renews a lease from now.
#[utoipa::path(put, path = "/v1/leases/{id}", tag = "leases", request_body = LeaseRequest,
    params(("id" = String, Path)), responses((status = 200, body = Lease), (status = 404, body = ErrorBody)))]
pub(crate) async fn renew(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<LeaseRequest>,
) -> Reply<Json<Lease>> {
    Ok(Json(app.node.renew_lease(&id, &request).await?))
}

/// Ends a lease, and deletes the sandboxes that it kept alive.
#[utoipa::path(delete, path = "/v1/leases/{id}", tag = "leases", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
pub(crate) async fn delete(State(app): State<App>, Path(id): Path<String>) -> Reply<StatusCode> {
    app.node.delete_lease(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
