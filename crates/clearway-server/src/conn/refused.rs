//! Answers to heads that are no requests: over a limit, malformed, or never complete.
//!
//! No handler sees them, so neither the address nor the caller is known. What hyper says about them
//! is a status with an empty body; here is what it means.

use axum::response::IntoResponse;
use bytes::{BufMut, Bytes, BytesMut};
use clearway_core::Code;
use futures_util::FutureExt;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;

use crate::Problem;
use crate::app::App;
use crate::problem::finish;

/// In place of what hyper says.
pub(super) fn not_a_request(app: &App, said: &[u8]) -> Bytes {
    // `HTTP/1.1 431 …`
    let status = said.get(9..12).and_then(|digits| StatusCode::from_bytes(digits).ok());
    let status = status.unwrap_or(StatusCode::BAD_REQUEST);
    let limits = &app.options.limits;
    let text = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => format!(
            "the request's head is over a limit: it may have {} fields and {} bytes",
            limits.headers, limits.header_bytes
        ),
        StatusCode::URI_TOO_LONG => "the address of the request is too long".to_owned(),
        _ => "the request's head is not valid HTTP/1.1: look at its first line, the names and values \
              of its fields, Content-Length and Transfer-Encoding"
            .to_owned(),
    };
    answer(app, status, &text)
}

/// For a head that was begun and is not complete in time.
pub(super) fn too_slow(app: &App) -> Bytes {
    let limit = app.options.limits.header_timeout.as_secs_f64();
    let text = format!("the request's head was not complete within {limit} s");
    answer(app, StatusCode::REQUEST_TIMEOUT, &text)
}

fn answer(app: &App, status: StatusCode, text: &str) -> Bytes {
    let id = app.engine.new_id().to_string();
    tracing::debug!(request.id = id, status = status.as_u16(), "no request");
    let id = HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
    let problem = Problem::new(Code::InvalidRequest, text).status(status);
    let (parts, body) = finish(problem.into_response(), &id).into_parts();
    // A problem's body is all there.
    let body = body.collect().now_or_never().and_then(Result::ok);
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut headers = parts.headers;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    let reason = status.canonical_reason().unwrap_or("Refused");
    let mut bytes = BytesMut::new();
    bytes.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    for (name, value) in &headers {
        bytes.put_slice(name.as_str().as_bytes());
        bytes.put_slice(b": ");
        bytes.put_slice(value.as_bytes());
        bytes.put_slice(b"\r\n");
    }
    bytes.put_slice(b"\r\n");
    bytes.put_slice(&body);
    bytes.freeze()
}
