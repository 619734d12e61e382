//! Small file-system calls.

use axum::Json;
use axum::extract::State;
use berth_types::error::ErrorBody;
use berth_types::files::{FsRequest, FsResponse};

use crate::App;
use crate::extract::{self, Path};
use crate::reply::Reply;

/// Looks at, makes, empties or removes paths of the sandbox.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/fs", tag = "files", request_body = FsRequest,
    params(("id" = String, Path)), responses((status = 200, body = FsResponse), (status = 404, body = ErrorBody)))]
pub(crate) async fn call(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<FsRequest>,
) -> Reply<Json<FsResponse>> {
    Ok(Json(app.node.fs(&id, request).await?))
}
