//! The daemon itself.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use berth_types::API_VERSION;
use berth_types::error::ErrorBody;
use berth_types::system::{DoctorReport, NodeStatus, Shutdown, Version};

use crate::{App, extract};

/// What this daemon is.
#[utoipa::path(get, path = "/v1/version", tag = "system", responses((status = 200, body = Version)))]
pub(crate) async fn version(State(app): State<App>) -> Json<Version> {
    Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION.to_owned(),
        pid: std::process::id(),
        data_dir: app.data_dir.display().to_string(),
    })
}

/// Whether this machine is fit, check by check.
#[utoipa::path(get, path = "/v1/doctor", tag = "system", responses((status = 200, body = DoctorReport)))]
pub(crate) async fn doctor(State(app): State<App>) -> Json<DoctorReport> {
    Json(app.node.doctor().await)
}

/// What the machine has, what of that is set aside for sandboxes, who waits, and what runs in the background.
#[utoipa::path(get, path = "/v1/node", tag = "system", responses((status = 200, body = NodeStatus)))]
pub(crate) async fn node(State(app): State<App>) -> Json<NodeStatus> {
    Json(app.node.status())
}

/// Ends the daemon. Its sandboxes end with it, unless it is told or configured to leave them running.
#[utoipa::path(post, path = "/v1/shutdown", tag = "system", request_body = Option<Shutdown>,
    responses((status = 202, description = "it will end"), (status = 400, body = ErrorBody)))]
pub(crate) async fn shutdown(
    State(app): State<App>,
    extract::MaybeJson(asked): extract::MaybeJson<Shutdown>,
) -> StatusCode {
    if let Some(keep) = asked.keep_sandboxes {
        app.node.keep_sandboxes(keep);
    }
    tracing::info!(keep_sandboxes = app.node.keeps_sandboxes(), "told to end by a client");
    app.stop.cancel();
    StatusCode::ACCEPTED
}
