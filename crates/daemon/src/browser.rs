//! Requests that a page in a browser makes: the API takes none.
//!
//! Whoever reaches the API is root on this machine, and a browser of a user who does runs code of others: any page may send
//! requests to a loopback address, and a page of a sandbox, shown through the proxy, even has this daemon's own origin.
//! Browsers say of such requests where they come from, and no page can keep them from it; nobody else says so.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::reply::user_error;

/// How the page that makes a request stands to where the request goes. `none`: it is no page, but the person.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Passes on what no page has asked for.
pub(crate) async fn refuse(request: Request, next: Next) -> Response {
    if is_of_page(request.headers()) {
        let message = "this request was made by a page in a browser (it has Origin or Sec-Fetch-Site), and those are refused";
        return user_error("from_a_page", message).into_response();
    }
    next.run(request).await
}

fn is_of_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers.get(SEC_FETCH_SITE).is_some_and(|site| !site.as_bytes().eq_ignore_ascii_case(b"none"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn what_pages_ask_for_is_told_from_the_rest() {
        let is = |name: &'static str, value: &'static str| {
            is_of_page(&HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )]))
        };
        assert!(is("origin", "http://127.0.0.1:1234"));
        assert!(is("origin", "null"));
        assert!(is("sec-fetch-site", "same-origin"));
        assert!(is("sec-fetch-site", "cross-site"));
        assert!(!is("sec-fetch-site", "none"));
        assert!(!is("user-agent", "curl/8"));
    }
}
