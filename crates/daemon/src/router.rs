//! Every route.

use axum::extract::DefaultBodyLimit;
use axum::routing::{any, delete, get, post, put};
use axum::{Router, middleware};
use berth_types::error::{ApiError, Kind};

use crate::reply::Failure;
use crate::{
    App, activity, archive, attach, browser, builds, exec, file, fs, images, leases, proxy, sandboxes, ssh,
    system, tcp,
};

pub(crate) fn router(app: App) -> Router {
    let v1 = Router::new()
        .route("/version", get(system::version))
        .route("/doctor", get(system::doctor))
        .route("/node", get(system::node))
        .route("/shutdown", post(system::shutdown))
        .route("/ssh", get(ssh::show))
        .route("/ssh/keys", get(ssh::list_keys).post(ssh::add_key))
        .route("/ssh/keys/{fingerprint}", delete(ssh::delete_key))
        .route("/leases", post(leases::create))
        .route("/leases/{id}", put(leases::renew).delete(leases::delete))
        .route("/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/sandboxes/{id}", get(sandboxes::show).delete(sandboxes::delete))
        .route("/sandboxes/{id}/lease", put(sandboxes::set_lease))
        .route("/sandboxes/{id}/ttl", put(sandboxes::set_ttl))
        .route("/sandboxes/{id}/replay", post(builds::replay))
        .route("/sandboxes/{id}/exec", post(exec::start))
        .route("/sandboxes/{id}/quiesce", post(exec::quiesce))
        .route("/sandboxes/{id}/execs", get(exec::list))
        .route("/sandboxes/{id}/execs/{exec}", get(exec::show).delete(exec::kill))
        .route("/sandboxes/{id}/execs/{exec}/output", get(exec::output))
        .route("/sandboxes/{id}/execs/{exec}/stdin", post(exec::stdin))
        .route("/sandboxes/{id}/execs/{exec}/attach", get(attach::attach))
        .route("/sandboxes/{id}/execs/{exec}/signal", post(exec::signal))
        .route("/sandboxes/{id}/execs/{exec}/resize", post(exec::resize))
        .route("/sandboxes/{id}/archive", get(archive::get).put(archive::put))
        .route("/sandboxes/{id}/file", get(file::get).put(file::put))
        .route("/sandboxes/{id}/watch", get(file::watch))
        .route("/sandboxes/{id}/tcp", get(tcp::connect))
        .route("/sandboxes/{id}/fs", post(fs::call))
        .route("/images", get(images::list))
        .route("/images/pull", post(images::pull))
        .route("/images/push", post(images::push))
        .route("/images/import", post(images::import))
        .route("/images/bootstrap", post(images::bootstrap))
        .route("/images/build", post(builds::build))
        .route("/images/tag", post(images::tag))
        .route("/images/prune", post(images::prune))
        .route("/images/verify", post(images::verify))
        .route("/images/export", post(images::export))
        .route("/images/{id}", get(images::show).delete(images::remove));
    // Pages of a sandbox come from here, so what pages ask for does not get further than this.
    let proxy = Router::new()
        .route("/sandboxes/{id}/proxy/{port}", any(proxy::pass))
        .route("/sandboxes/{id}/proxy/{port}/", any(proxy::pass))
        .route("/sandboxes/{id}/proxy/{port}/{*path}", any(proxy::pass));
    Router::new()
        .nest("/v1", v1.layer(middleware::from_fn(browser::refuse)).merge(proxy))
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
