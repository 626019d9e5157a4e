//! What an `http` step does: one request to a permitted host, and what its answer means.

use std::time::Instant;

use bytes::Bytes;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Failure};
use clearway_engine::{ActionError, Ctx, Effect, NodeError};
use clearway_upstream::OutwardError;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use minijinja::Value as Jinja;
use serde_json::{Map, Value, json};

use super::expr::Template;
use super::shape::Shape;
use crate::services::Services;

/// What is asked.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    pub method: Method,
    pub url: Template,
    pub headers: Vec<(String, Template)>,
    pub body: Option<HttpBody>,
    pub effect: Effect,
    /// The same for the same thing: whoever is asked recognises a repetition by it.
    pub key: Option<Template>,
    /// Statuses besides 2xx that are no failure.
    pub accept: Vec<u16>,
    pub max_bytes: Option<usize>,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum HttpBody {
    Json(Shape),
    Text(Template),
}

/// Characters of an answer that an error shows.
const EXCERPT: usize = 300;

/// The header by which repetitions are recognised.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Sends the request once, as its effect asks for.
///
/// # Errors
/// `forbidden` for a host that is not permitted or an address that is private; `tool_unavailable`,
/// `tool_failed`; parks when the outcome of a write is not known.
pub(super) async fn perform(
    cx: &Ctx,
    step: &str,
    request: &HttpRequest,
    services: &Services,
    context: &Jinja,
) -> Result<Value, NodeError> {
    let prepared = prepare(step, request, services, context)?;
    let key = request.key.as_ref().map(|key| key.render(context)).transpose()?;
    let host = prepared.uri().host().unwrap_or_default().to_owned();
    let permitted = services.http();
    let limit = request.max_bytes.unwrap_or(permitted.max_bytes);
    let detail = format!("{} {host}", request.method);
    cx.wait.enter(WaitKind::Tool, detail, Some(cx.deadline), Instant::now());
    let asked = request.clone();
    let sent = cx.act("http", request.effect, |own_key| async move {
        let mut request = prepared;
        // Reads need none; a write has the call's own, for whoever cares.
        if !matches!(*request.method(), Method::GET | Method::HEAD) || key.is_some() {
            let key = key.unwrap_or(own_key);
            if let Ok(value) = HeaderValue::try_from(key) {
                request.headers_mut().entry(IDEMPOTENCY_KEY).or_insert(value);
            }
        }
        let outward = services.outward();
        match outward.send(request, cx.deadline.0.into(), limit).await {
            // A refusal is no outcome that a repetition of the step should find again.
            Ok(answer) => judge(step, &asked, &host, shown(&answer)),
            Err(error) => Err(failed(step, &error)),
        }
    });
    let answer = sent.await;
    cx.wait.enter(WaitKind::Work, "", Some(cx.deadline), Instant::now());
    answer
}

fn prepare(
    step: &str,
    request: &HttpRequest,
    services: &Services,
    context: &Jinja,
) -> Result<Request<Bytes>, Failure> {
    let wrong = |why: String| Failure::new(Code::InvalidRequest, format!("step `{step}`: {why}"));
    let url = request.url.render(context)?;
    let uri: Uri = url.trim().parse().map_err(|error| wrong(format!("`{url}`: {error}")))?;
    let host = uri.host().ok_or_else(|| wrong(format!("`{url}` has no host")))?.to_owned();
    let permitted = services.http();
    if !permitted.permits(&host) {
        let text = format!("step `{step}`: `{host}` is not among the hosts of [http]");
        return Err(Failure::new(Code::Forbidden, text).with("host", host));
    }
    let mut built = Request::builder().method(request.method.clone()).uri(uri);
    let (body, media_type) = match &request.body {
        None => (String::new(), None),
        Some(HttpBody::Json(shape)) => (shape.fill(context)?.to_string(), Some("application/json")),
        Some(HttpBody::Text(template)) => {
            (template.render(context)?, Some("text/plain; charset=utf-8"))
        }
    };
    if let Some(headers) = built.headers_mut() {
        for (name, value) in &request.headers {
            let value = value.render(context)?;
            let parsed = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(&value).ok());
            let Some((name, value)) = parsed else {
                return Err(wrong(format!("the header `{name}` cannot be sent")));
            };
            headers.insert(name, value);
        }
        if let Some(media_type) = media_type {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(media_type));
        }
        for (pattern, name, secret) in &permitted.headers {
            let fits = clearway_engine::tool::glob(pattern, &host.to_ascii_lowercase());
            let parsed = HeaderName::try_from(name).ok();
            let parsed = parsed.zip(HeaderValue::try_from(secret.expose()).ok());
            if let Some((name, mut value)) = parsed.filter(|_| fits) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
    }
    built.body(body.into()).map_err(|error| wrong(error.to_string()))
}

/// What the step's channel holds: nothing of it is a secret that we sent.
fn shown(answer: &Response<Bytes>) -> Value {
    let kept = ["content-type", "etag", "last-modified", "location", "link", "retry-after"];
    let headers: Map<String, Value> = kept
        .iter()
        .filter_map(|name| Some((*name, answer.headers().get(*name)?.to_str().ok()?)))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let text = String::from_utf8_lossy(answer.body());
    let is_json =
        answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(
            |kind| kind.split(';').next().unwrap_or_default().trim().ends_with("json"),
        );
    let parsed = is_json.then(|| serde_json::from_str::<Value>(&text).ok()).flatten();
    let mut shown = json!({"status": answer.status().as_u16(), "headers": headers});
    match parsed {
        Some(json) => shown["json"] = json,
        None => shown["text"] = text.into(),
    }
    shown
}

fn failed(step: &str, error: &OutwardError) -> ActionError {
    let failure = |code| Failure::new(code, format!("step `{step}`: {error}"));
    match error {
        OutwardError::Url(_) => ActionError::NotDone(failure(Code::InvalidRequest)),
        OutwardError::Private { .. } => ActionError::NotDone(failure(Code::Forbidden)),
        OutwardError::Connect(_) => {
            ActionError::NotDone(failure(Code::ToolUnavailable).retryable())
        }
        OutwardError::Broken { .. } => {
            ActionError::Unknown(failure(Code::ToolUnavailable).retryable())
        }
        OutwardError::Timeout { .. } => {
            ActionError::Unknown(failure(Code::DeadlineExceeded).retryable())
        }
        OutwardError::TooLong { .. } => {
            ActionError::Unknown(failure(Code::LimitExceeded).with("limit", "max_bytes"))
        }
    }
}

/// An answer is what was asked for, or the step's failure.
#[expect(clippy::result_large_err, reason = "it is what an action answers, once a request")]
fn judge(
    step: &str,
    request: &HttpRequest,
    host: &str,
    answer: Value,
) -> Result<Value, ActionError> {
    let status = answer["status"].as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.unwrap_or_default();
    if (200..300).contains(&status) || request.accept.contains(&status) {
        return Ok(answer);
    }
    let said = match &answer["json"] {
        Value::Null => answer["text"].as_str().unwrap_or_default().to_owned(),
        json => json.to_string(),
    };
    let excerpt: String = said.chars().take(EXCERPT).collect();
    let text = format!("step `{step}`: {host} answered {status}: {excerpt}");
    let mut failure = Failure::new(Code::ToolFailed, text)
        .with("step", step)
        .with("status", status)
        .with("excerpt", excerpt);
    if matches!(status, 408 | 425 | 429 | 500..) {
        failure = failure.retryable();
        let after = answer["headers"][RETRY_AFTER.as_str()].as_str();
        failure.retry_after =
            after.and_then(|text| text.parse().ok()).map(std::time::Duration::from_secs);
    }
    match status {
        // Somebody in between gave up; nobody knows what became of it behind them.
        502 | 504 => Err(ActionError::Unknown(failure)),
        _ => Err(ActionError::NotDone(failure)),
    }
}
