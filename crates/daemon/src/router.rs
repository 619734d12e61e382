//! Every route.

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum::{Router, middleware};
use berth_types::error::{ApiError, Kind};

use crate::reply::Failure;
use crate::{App, activity, archive, exec, fs, images, leases, sandboxes, system};

pub(crate) fn router(app: App) -> Router {
    let v1 = Router::new()
        .route("/version", get(system::version))
        .route("/doctor", get(system::doctor))
        .route("/node", get(system::node))
        .route("/shutdown", post(system::shutdown))
        .route("/leases", post(leases::create))
        .route("/leases/{id}", put(leases::renew).delete(leases::delete))
        .route("/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/sandboxes/{id}", get(sandboxes::show).delete(sandboxes::delete))
        .route("/sandboxes/{id}/lease", put(sandboxes::set_lease))
        .route("/sandboxes/{id}/ttl", put(sandboxes::set_ttl))
        .route("/sandboxes/{id}/exec", post(exec::start))
        .route("/sandboxes/{id}/execs/{exec}", axum::routing::delete(exec::kill))
        .route("/sandboxes/{id}/archive", get(archive::get).put(archive::put))
        .route("/sandboxes/{id}/fs", post(fs::call))
        .route("/images", get(images::list))
        .route("/images/pull", post(images::pull))
        .route("/images/push", post(images::push))
        .route("/images/import", post(images::import))
        .route("/images/bootstrap", post(images::bootstrap))
        .route("/images/build", post(images::build))
        .route("/images/{id}", get(images::show).delete(images::remove));
    Router::new()
        .nest("/v1", v1)
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route)
        .layer(middleware::from_fn_with_state(app.clone(), activity::count))
        // Archives and images have no natural limit; what is parsed as JSON has its own.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

async fn unknown_route(method: axum::http::Method, uri: axum::http::Uri) -> Failure {
    let message = format!("there is no {method} {}", uri.path());
    Failure(ApiError::new(Kind::NotFound, "no_such_route", message))
}
