//! What changes in the heads of requests and answers on their way through the proxy.

use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};

use super::Target;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Headers that are of one connection, not of the message. RFC 9110, 7.6.1.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Makes a request's headers those for the server at `target`; true when the request asks for another protocol.
pub(super) fn rewrite(headers: &mut HeaderMap, target: &Target, prefix: &str) -> bool {
    let upgrade = wanted_protocol(headers);
    strip(headers);
    let host = HeaderValue::try_from(format!("localhost:{}", target.port));
    // Digits after a name: always a value.
    let asked = host.ok().and_then(|host| headers.insert(HOST, host));
    // What a client says of where it comes from, the server would take for our word.
    headers.remove(FORWARDED);
    headers.remove(FORWARDED_FOR);
    replace(headers, FORWARDED_HOST, asked);
    replace(headers, FORWARDED_PROTO, Some(HeaderValue::from_static("http")));
    replace(headers, FORWARDED_PREFIX, HeaderValue::from_str(prefix).ok());
    let Some(protocol) = upgrade else { return false };
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
    true
}

fn replace(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => headers.insert(name, value),
        None => headers.remove(name),
    };
}

/// Removes what is of one connection, also what `Connection` names as such. Of two lengths the chunks are the true one (RFC
/// 9112, 6.3), and the other must not go on without them.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> =
        options(headers).filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in OF_CONNECTION {
        headers.remove(name);
    }
}

/// The protocol that a request wants to change to, where it does it by the rules.
fn wanted_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    options(headers)
        .any(|option| option.eq_ignore_ascii_case("upgrade"))
        .then(|| headers.get(UPGRADE).cloned())?
}

fn options(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { port: 8080, is_tls: false };

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let lines = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_is_of_one_connection_stays_behind() {
        let mut all = headers(&[
            ("connection", "close, X-Hop"),
            ("connection", "keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "Basic x"),
            ("upgrade", "h2c"),
            ("cookie", "a=b"),
            ("authorization", "Bearer x"),
        ]);
        assert!(!rewrite(&mut all, &TARGET, "/p"), "an upgrade that connection does not name is none");
        let mut left: Vec<&str> = all.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        let expected = ["authorization", "cookie", "host", "x-forwarded-prefix", "x-forwarded-proto"];
        assert_eq!(left, expected);
    }

    #[test]
    fn the_server_is_told_who_was_asked_and_nothing_that_a_client_made_up() {
        let mut all = headers(&[
            ("host", "127.0.0.1:9"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        rewrite(&mut all, &TARGET, "/v1/sandboxes/a/proxy/8080");
        assert_eq!(all[HOST], "localhost:8080");
        assert_eq!(all[FORWARDED_HOST], "127.0.0.1:9");
        assert_eq!(all[FORWARDED_PROTO], "http");
        assert_eq!(all[FORWARDED_PREFIX], "/v1/sandboxes/a/proxy/8080");
        assert!(!all.contains_key(FORWARDED_FOR) && !all.contains_key(FORWARDED));
    }

    #[test]
    fn a_websocket_may_pass() {
        let mut all = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "x"),
        ]);
        assert!(rewrite(&mut all, &TARGET, "/p"));
        assert_eq!(
            (&all[CONNECTION], &all[UPGRADE]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        assert_eq!(all["sec-websocket-key"], "x");
    }

    #[test]
    fn of_two_lengths_the_chunks_count() {
        let mut both = headers(&[("content-length", "3"), ("transfer-encoding", "chunked"), ("x", "1")]);
        strip(&mut both);
        assert_eq!(both.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x"]);
        let mut one = headers(&[("content-length", "3")]);
        strip(&mut one);
        assert!(one.contains_key("content-length"));
    }
}
