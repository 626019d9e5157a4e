//! Which pages may read this door's answers.
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

/// The first parts of this door's paths.
const ROOTS: [&str; 7] = ["assistants", "threads", "runs", "store", "ok", "info", "mcp"];

/// Whether a path belongs to this door.
pub(crate) fn covers(path: &str) -> bool {
    let root = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    ROOTS.contains(&root)
}

/// The path without a slash at its end, where it is one of this door's.
pub(crate) fn without_slash(path: &str) -> Option<&str> {
    let short = path.strip_suffix('/')?;
    (!short.is_empty() && covers(short)).then_some(short)
}

/// The answer to a browser that asks whether a page may send something.
pub(crate) fn preflight(request: &Request<Body>) -> Option<Response> {
    let asks = request.method() == Method::OPTIONS
        && covers(request.uri().path())
        && request.headers().contains_key(ORIGIN)
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

/// Lets the page that asked read the answer.
pub(crate) fn allow(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}

const METHODS: &str = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY";
const EXPOSED: &str = "x-pagination-total, x-pagination-next, content-location, location, \
                       x-request-id, retry-after";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_doors_paths_are_covered() {
        assert!(covers("/threads/1/runs") && covers("/ok") && covers("/runs"));
        assert!(!covers("/") && !covers("/okay") && !covers("/chat") && !covers("/api/threads"));
        assert_eq!(without_slash("/threads/"), Some("/threads"));
        assert_eq!(without_slash("/"), None);
        assert_eq!(without_slash("/chat/"), None);
    }
}
