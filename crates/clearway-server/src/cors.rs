//! Which pages may read the answers, and addresses that end with a slash: what browsers and the old
//! services' clients take for granted at every address.
//!
//! Browsers ask before they let a page of another origin send JSON, and show the page only the
//! headers that the answer names. `location` is among them: without it a page cannot take up a stream
//! that broke off.
//!
//! Not here: which origins may ask at all ([`crate::guard`]).

use axum::body::Body;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request};

/// The path without a slash at its end.
pub(crate) fn without_slash(path: &str) -> Option<&str> {
    path.strip_suffix('/').filter(|short| !short.is_empty())
}

/// The answer to a browser that asks whether a page may send something.
pub(crate) fn preflight(request: &Request<Body>) -> Option<Response> {
    let asks = request.method() == Method::OPTIONS
        && is_page(request.headers())
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        return None;
    }
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(wanted) = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        headers.insert(VARY, HeaderValue::from_static("access-control-request-headers"));
    }
    Some(response)
}

/// Whether it is a page that asks.
pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN)
}

/// Lets the page that asked read the answer.
pub(crate) fn allow(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY";
const EXPOSED: &str = "x-pagination-total, x-pagination-next, content-location, location, \
                       x-request-id, x-run-id, retry-after, content-disposition";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slash_at_the_end_is_cut() {
        assert_eq!(without_slash("/threads/"), Some("/threads"));
        assert_eq!(without_slash("/chat/stream/"), Some("/chat/stream"));
        assert_eq!(without_slash("/"), None);
        assert_eq!(without_slash("/chat"), None);
    }
}
