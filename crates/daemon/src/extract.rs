//! Request bodies and queries, with Berth's own errors when they are not what they should be.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::App;
use crate::reply::{Failure, user_error};

/// Longest JSON body, in bytes. An exec's environment may be megabytes.
const MAX_JSON: usize = 32 << 20;

/// How long a JSON body may take to arrive: a client that stalls would hold its connection for ever.
const JSON_LIMIT: Duration = Duration::from_secs(300);

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &App) -> Result<Self, Failure> {
        parse(&body(request).await?).map(Json)
    }
}

/// A JSON body that may be absent: everything in it has a default.
pub(crate) struct MaybeJson<T>(pub(crate) T);

impl<T: DeserializeOwned + Default> FromRequest<App> for MaybeJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &App) -> Result<Self, Failure> {
        let bytes = body(request).await?;
        if bytes.is_empty() { Ok(Self(T::default())) } else { parse(&bytes).map(Self) }
    }
}

async fn body(request: Request) -> Result<axum::body::Bytes, Failure> {
    let read = tokio::time::timeout(JSON_LIMIT, axum::body::to_bytes(request.into_body(), MAX_JSON)).await;
    let read = read.map_err(|_| {
        user_error("bad_body", format!("the request's body did not arrive within {} s", JSON_LIMIT.as_secs()))
    })?;
    read.map_err(|error| user_error("bad_body", format!("cannot read the request's body: {error}")))
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| {
        let message = format!("the request's body is not valid: {error}");
        let Failure(failure) = user_error("bad_body", &message);
        Failure(match meant(&message) {
            Some(near) => failure.with_hint(format!("did you mean {near:?}?")),
            None => failure,
        })
    })
}

/// The valid name that is nearest to an unknown one, from serde's ``unknown field `x`, expected one of `a`, `b` ``.
fn meant(message: &str) -> Option<String> {
    let (_, rest) =
        message.split_once("unknown field `").or_else(|| message.split_once("unknown variant `"))?;
    let (wrong, rest) = rest.split_once('`')?;
    let names = rest.split('`').skip(1).step_by(2);
    let scored = names.map(|name| (strsim::normalized_damerau_levenshtein(wrong, name), name));
    let (score, name) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score >= 0.5).then(|| name.to_owned())
}

/// What the path names.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let path = axum::extract::Path::from_request_parts(parts, app)
            .await
            .map_err(|error| user_error("bad_path", format!("the request's path is not valid: {error}")))?;
        Ok(Path(path.0))
    }
}

/// The query string.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Failure> {
        let query = axum::extract::Query::try_from_uri(&parts.uri)
            .map_err(|error| user_error("bad_query", format!("the request's query is not valid: {error}")))?;
        Ok(Query(query.0))
    }
}

#[cfg(test)]
mod tests;
