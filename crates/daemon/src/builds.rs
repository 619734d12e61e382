//! Builds and replays: options and a context in one body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use berth_types::image::{BUILD_OPTIONS, BuildImage, BuildResult, ReplayResult};
use berth_types::progress::Line;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, empty};

use crate::extract::{self, Path};
use crate::reply::{Reply, user_error};
use crate::transfer::Upload;
use crate::{App, progress};

/// Longest options, in bytes: a manifest of a million files is longer than any that is of use.
const MAX_OPTIONS: u64 = 64 << 20;

/// How long options may take to arrive: a client that stalls would hold its connection for ever.
const OPTIONS_LIMIT: Duration = Duration::from_secs(300);

/// How much of the context is read to know whether there is one.
const FIRST: usize = 4096;

/// Query of [`build`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BuildQuery {
    /// A [`BuildImage`] as JSON, from clients that do not send it in the body.
    options: Option<String>,
    /// Only bring in what the target stage begins with.
    #[serde(default)]
    base: bool,
}

/// Query of [`replay`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayQuery {}

/// Builds the Dockerfile of the context in the body, a tar. Options go before it in the body; see `BuildImage`. With
/// `base=true` nothing is built: the image that the target stage begins with is pulled where it is missing, and is the result.
#[utoipa::path(post, path = "/v1/images/build", tag = "images",
    params(("options" = Option<String>, Query, description = "a BuildImage as JSON, in place of one in the body; without secrets"),
        ("base" = Option<bool>, Query, description = "only bring in the base image of the target stage"),
        ("berth-build-options" = Option<u64>, Header, description = "how many bytes of the body are the BuildImage, as JSON, before the tar")),
    request_body(content = String, content_type = "application/x-tar", description = "`Content-Encoding: zstd` is understood"),
    responses((status = 200, content_type = "application/x-ndjson", body = Line<BuildResult>)))]
pub(crate) async fn build(
    State(app): State<App>,
    extract::Query(query): extract::Query<BuildQuery>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let Asked { options, context } = read(&headers, query.options.as_deref(), body).await?;
    if query.base {
        return Ok(progress::respond(
            |sink| async move { app.node.base_of_build(options, context, sink).await },
        ));
    }
    Ok(progress::respond(|sink| async move { app.node.build_image(options, context, sink).await }))
}

/// Carries out the steps of the Dockerfile of the context in the body in a running sandbox, which was made from the image that
/// the target stage begins with. The body is that of `POST /v1/images/build`.
#[utoipa::path(post, path = "/v1/sandboxes/{id}/replay", tag = "sandboxes",
    params(("id" = String, Path),
        ("berth-build-options" = Option<u64>, Header, description = "how many bytes of the body are the BuildImage, as JSON, before the tar")),
    request_body(content = String, content_type = "application/x-tar", description = "`Content-Encoding: zstd` is understood"),
    responses((status = 200, content_type = "application/x-ndjson", body = Line<ReplayResult>)))]
pub(crate) async fn replay(
    State(app): State<App>,
    Path(id): Path<String>,
    extract::Query(ReplayQuery {}): extract::Query<ReplayQuery>,
    headers: HeaderMap,
    body: Body,
) -> Reply<Response> {
    let Asked { options, context } = read(&headers, None, body).await?;
    let context = context.unwrap_or_else(|| Box::new(empty()));
    Ok(progress::respond(|sink| async move { app.node.replay(&id, options, context, sink).await }))
}

/// What a request holds.
struct Asked {
    options: BuildImage,
    /// `None` where nothing follows the options.
    context: Option<berth_node::Body>,
}

/// Reads the options, and whether there is a context.
async fn read(headers: &HeaderMap, query: Option<&str>, body: Body) -> Reply<Asked> {
    let length = options_length(headers)?;
    let (mut reader, _) = Upload::new(headers, body)?.split();
    let options = match (length, query) {
        (Some(_), Some(_)) => {
            let message = format!(
                "the options are in the query and, by the header {BUILD_OPTIONS}, in the body; expected one"
            );
            return Err(user_error("bad_options", message));
        }
        (None, None) => BuildImage::default(),
        (None, Some(json)) => from_query(json)?,
        (Some(length), None) => from_body(&mut reader, length).await?,
    };
    let mut first = vec![0; FIRST];
    let read = reader.read(&mut first).await;
    let read =
        read.map_err(|error| user_error("bad_body", format!("cannot read the request's body: {error}")))?;
    first.truncate(read);
    // An old client's body is its context, whatever it holds.
    let is_context = read > 0 || (length.is_none() && options.dockerfile_text.is_none());
    let context = is_context.then(|| Box::new(std::io::Cursor::new(first).chain(reader)) as berth_node::Body);
    Ok(Asked { options, context })
}

fn options_length(headers: &HeaderMap) -> Reply<Option<u64>> {
    let mut values = headers.get_all(BUILD_OPTIONS).iter();
    let (first, more) = (values.next(), values.next());
    let Some(value) = first else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).filter(|_| more.is_none());
    match length {
        Some(length) if length <= MAX_OPTIONS => Ok(Some(length)),
        Some(length) => {
            let message = format!("the options have {length} bytes, and may have {MAX_OPTIONS}");
            Err(user_error("bad_options", message))
        }
        None => {
            let message = format!("the header {BUILD_OPTIONS} is {value:?}, expected one number of bytes");
            Err(user_error("bad_options", message))
        }
    }
}

fn from_query(json: &str) -> Reply<BuildImage> {
    let options: BuildImage = serde_json::from_str(json)
        .map_err(|error| user_error("bad_query", format!("the options are not valid: {error}")))?;
    // Queries end up in logs.
    for (field, is_there) in [("secrets", !options.secrets.is_empty()), ("auth", !options.auth.is_empty())] {
        if is_there {
            let message = format!(
                "{field} may not be in the query; send the options in the body, with the header {BUILD_OPTIONS}"
            );
            return Err(user_error("bad_query", message));
        }
    }
    Ok(options)
}

async fn from_body(reader: &mut berth_node::Body, length: u64) -> Reply<BuildImage> {
    let mut bytes = Vec::new();
    let mut head = reader.take(length);
    let read = tokio::time::timeout(OPTIONS_LIMIT, head.read_to_end(&mut bytes)).await;
    let read = read.map_err(|_| {
        let seconds = OPTIONS_LIMIT.as_secs();
        user_error("bad_body", format!("the options did not arrive within {seconds} s"))
    })?;
    read.map_err(|error| user_error("bad_body", format!("cannot read the request's body: {error}")))?;
    if (bytes.len() as u64) < length {
        let message = format!(
            "the body ends after {} bytes, and {BUILD_OPTIONS} says that {length} are options",
            bytes.len()
        );
        return Err(user_error("bad_options", message));
    }
    extract::parse(&bytes)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::reply::Failure;

    const OPTIONS: &str = r#"{"tags":["a"]}"#;

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(BUILD_OPTIONS, HeaderValue::from_static(value));
        }
        headers
    }

    async fn asked(
        values: &[&'static str],
        query: Option<&str>,
        body: &str,
    ) -> Result<(BuildImage, Option<String>), String> {
        let read = read(&headers(values), query, Body::from(body.to_owned())).await;
        let Asked { options, context } =
            read.map_err(|Failure(error)| format!("{}: {}", error.code, error.message))?;
        let mut text = String::new();
        let context = match context {
            None => None,
            Some(mut context) => {
                context.read_to_string(&mut text).await.unwrap();
                Some(text)
            }
        };
        Ok((options, context))
    }

    #[tokio::test]
    async fn options_stand_before_the_context() {
        let (options, context) = asked(&["14"], None, &format!("{OPTIONS}tar")).await.unwrap();
        assert_eq!((options.tags.as_slice(), context.as_deref()), (["a".to_owned()].as_slice(), Some("tar")));
        let (options, context) = asked(&["14"], None, OPTIONS).await.unwrap();
        assert_eq!((options.tags.len(), context), (1, None));
        let long = "x".repeat(3 * FIRST);
        let (_, context) = asked(&["14"], None, &format!("{OPTIONS}{long}")).await.unwrap();
        assert_eq!(context, Some(long));
    }

    #[tokio::test]
    async fn options_may_stand_in_the_query_but_no_secrets() {
        let (options, context) = asked(&[], Some(OPTIONS), "tar").await.unwrap();
        assert_eq!((options.tags.len(), context.as_deref()), (1, Some("tar")));
        let (options, context) = asked(&[], None, "").await.unwrap();
        assert_eq!((options, context.as_deref()), (BuildImage::default(), Some("")));
        for query in [r#"{"secrets":{"a":"eA=="}}"#, r#"{"auth":{"h":{"username":"u","password":"p"}}}"#] {
            let refused = asked(&[], Some(query), "tar").await.unwrap_err();
            assert!(refused.starts_with("bad_query") && refused.contains("berth-build-options"), "{refused}");
        }
    }

    #[tokio::test]
    async fn what_is_framed_wrong_is_refused_in_words() {
        let cases: [(&[&'static str], Option<&str>, &str, &str); 8] = [
            (
                &["15"],
                None,
                OPTIONS,
                "bad_options: the body ends after 14 bytes, and berth-build-options says that 15 are options",
            ),
            (&["13"], None, OPTIONS, "bad_body: the request's body is not valid"),
            (&["14"], Some("{}"), OPTIONS, "bad_options: the options are in the query and"),
            (&["x"], None, OPTIONS, "bad_options: the header berth-build-options is \"x\""),
            (&["-1"], None, OPTIONS, "bad_options: the header berth-build-options is \"-1\""),
            (&["14", "14"], None, OPTIONS, "bad_options: the header"),
            (&["67108865"], None, OPTIONS, "bad_options: the options have 67108865 bytes"),
            (
                &["12"],
                None,
                r#"{"tegs":[1]}"#,
                "bad_body: the request's body is not valid: unknown field `tegs`",
            ),
        ];
        for (values, query, body, expected) in cases {
            let refused = asked(values, query, body).await.unwrap_err();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
