//! Sandboxes.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use berth_node::Filter;
use berth_types::error::ErrorBody;
use berth_types::sandbox::{CreateSandbox, Page, Sandbox, SetLease, SetTtl};

use crate::App;
use crate::extract::{self, Path};
use crate::reply::{Reply, user_error};

/// Makes a sandbox and returns when it is ready. Where there is no room on the machine it waits, first come first
/// served, for as long as `wait_seconds` allows; in the meantime the sandbox is there in the state `queued`, and a client
/// that goes away gives its place back.
#[utoipa::path(post, path = "/v1/sandboxes", tag = "sandboxes", request_body = CreateSandbox,
    responses((status = 201, body = Sandbox), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
              (status = 409, body = ErrorBody), (status = 412, body = ErrorBody), (status = 503, body = ErrorBody),
              (status = 507, body = ErrorBody, description = "`never_fits`, `no_room` or `disk_full`")))]
pub(crate) async fn create(
    State(app): State<App>,
    extract::Json(request): extract::Json<CreateSandbox>,
) -> Reply<(StatusCode, Json<Sandbox>)> {
    Ok((StatusCode::CREATED, Json(app.node.create_sandbox(request).await?)))
}

/// Lists sandboxes, oldest first.
#[utoipa::path(get, path = "/v1/sandboxes", tag = "sandboxes",
    params(("label" = Option<String>, Query, description = "only those with this `key=value`; may be repeated"),
           ("limit" = Option<usize>, Query, description = "at most so many, 1 to 1000; 100 when absent"),
           ("after" = Option<String>, Query, description = "`next` of the page before"),
           ("usage" = Option<bool>, Query, description = "whether to tell what each uses")),
    responses((status = 200, body = Page<Sandbox>), (status = 400, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, RawQuery(query): RawQuery) -> Reply<Json<Page<Sandbox>>> {
    Ok(Json(app.node.sandboxes(&parse_filter(&query.unwrap_or_default())?).await))
}

/// By hand, since a label may be repeated.
fn parse_filter(query: &str) -> Reply<Filter> {
    let mut filter = Filter { limit: 100, ..Filter::default() };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*key, value.split_once('=')) {
            ("label", Some((name, value))) => filter.labels.push((name.to_owned(), value.to_owned())),
            ("label", None) => return Err(user_error("bad_query", "label takes key=value")),
            ("limit", _) => filter.limit = parse_limit(&value)?,
            ("after", _) => filter.after = Some(value.into_owned()),
            ("usage", _) => filter.usage = parse_bool(&value)?,
            (other, _) => {
                let message = format!("unknown parameter {other:?}; there are label, limit, after and usage");
                return Err(user_error("bad_query", message));
            }
        }
    }
    Ok(filter)
}

fn parse_bool(value: &str) -> Reply<bool> {
    value.parse().map_err(|_| user_error("bad_query", format!("usage takes true or false, not {value:?}")))
}

fn parse_limit(value: &str) -> Reply<usize> {
    let limit = value.parse().ok().filter(|limit| (1..=1000).contains(limit));
    limit.ok_or_else(|| user_error("bad_query", format!("limit takes 1 to 1000, not {value:?}")))
}

/// One sandbox, by id or name, with what it uses.
#[utoipa::path(get, path = "/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)),
    responses((status = 200, body = Sandbox), (status = 404, body = ErrorBody)))]
pub(crate) async fn show(State(app): State<App>, Path(id): Path<String>) -> Reply<Json<Sandbox>> {
    Ok(Json(app.node.sandbox(&id).await?))
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

/// Lets a sandbox live for so many seconds from now, or until it is deleted.
#[utoipa::path(put, path = "/v1/sandboxes/{id}/ttl", tag = "sandboxes", request_body = SetTtl,
    params(("id" = String, Path)),
    responses((status = 200, body = Sandbox), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
              (status = 409, body = ErrorBody)))]
pub(crate) async fn set_ttl(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Json(request): extract::Json<SetTtl>,
) -> Reply<Json<Sandbox>> {
    Ok(Json(app.node.set_ttl(&id, request.ttl_seconds).await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let filter = parse_filter("label=job%3Da&label=x=y=z&limit=7&after=1").unwrap();
        assert_eq!(filter.labels, [("job".to_owned(), "a".to_owned()), ("x".to_owned(), "y=z".to_owned())]);
        assert_eq!((filter.limit, filter.after.as_deref()), (7, Some("1")));
        for bad in ["label=x", "limit=0", "limit=1001", "limit=x", "lable=a=b"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
