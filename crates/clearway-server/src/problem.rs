//! What a client is told when something went wrong: one type, one table of statuses.
//!
//! On our own addresses a [`Problem`] is RFC 9457 `application/problem+json`. A dialect keeps its
//! own shape ([`Shape`]); the status then still comes from here unless the dialect prescribes one.
//!
//! A problem becomes a body at the very edge, in [`finish`], because only the edge knows the
//! request's id.
//!
//! Not here: what each code means ([`crate::codes`]).

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use clearway_core::{Code, Failure};
use clearway_engine::Error;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use crate::codes;
use crate::extract::Invalid;

/// See the module.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

/// Boxed, so that results that carry a problem stay small.
#[derive(Clone, Debug)]
struct Parts {
    code: Code,
    status: StatusCode,
    detail: String,
    hint: Option<String>,
    retry_after: Option<Duration>,
    shape: Shape,
    headers: HeaderMap,
    /// What the failure knows for machines: `queue_position`, `active_run`, `phase`, …
    extra: Map<String, Value>,
}

/// How a problem looks on the wire.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    /// `application/problem+json`.
    Own,
    /// `{"detail": {error_type, error_message, thread_id}}`, the co-founder's.
    Chat { thread_id: Option<String> },
    /// `{"detail": [{type, loc, msg}]}`, with which the old services refuse a body.
    Invalid(Vec<Invalid>),
    /// `{"error": {message, type, param, code}}`, OpenAI's: the field that is to blame, and OpenAI's
    /// own word where its clients look for one.
    OpenAi { param: Option<&'static str>, code: Option<&'static str> },
}

impl Problem {
    /// A problem with the status, hint and time to retry that its code has.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let about = codes::about(code);
        Self(Box::new(Parts {
            code,
            status: about.status,
            detail: detail.into(),
            hint: Some(about.hint.to_owned()),
            retry_after: about.retry_after,
            shape: Shape::Own,
            headers: HeaderMap::new(),
            extra: Map::new(),
        }))
    }

    /// A body that an old service's dialect refuses: 422, mistake by mistake.
    pub(crate) fn unprocessable(invalid: Vec<Invalid>) -> Self {
        Self::from(invalid.clone())
            .status(StatusCode::UNPROCESSABLE_ENTITY)
            .shape(Shape::Invalid(invalid))
    }

    /// Why a run that was accepted has no answer here. When it goes on elsewhere, or later, nobody is
    /// told to ask again: that would be a second run.
    pub(crate) fn of_run(failure: Failure) -> Self {
        let goes_on = failure.code == Code::ShuttingDown;
        let mut problem = Self::from(failure);
        if goes_on {
            problem.0.retry_after = None;
            problem.0.hint = Some("The run was accepted: GET /runs/{id} shows it.".to_owned());
        }
        problem
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// The status that a dialect prescribes. A problem cannot be a success, so anything below 400
    /// is ignored.
    #[must_use]
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        if status.is_client_error() || status.is_server_error() {
            self.0.status = status;
        }
        self
    }

    #[must_use]
    pub(crate) fn shape(mut self, shape: Shape) -> Self {
        self.0.shape = shape;
        self
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What is wrong, in words.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    pub(crate) fn status_code(&self) -> StatusCode {
        self.0.status
    }

    fn retry_after_ms(&self) -> Option<u64> {
        self.0.retry_after.map(|after| after.as_millis() as u64)
    }

    fn body(&self, request_id: &str) -> Value {
        let mut object = match &self.0.shape {
            Shape::Own => {
                return self.own_body(request_id);
            }
            Shape::Chat { thread_id } => {
                let mut detail = Map::new();
                detail.insert("error_type".into(), self.0.code.as_str().into());
                detail.insert("error_message".into(), self.0.detail.clone().into());
                detail.insert("thread_id".into(), thread_id.clone().into());
                Map::from_iter([("detail".to_owned(), Value::Object(detail))])
            }
            Shape::Invalid(invalid) => {
                let detail: Vec<Value> = invalid.iter().map(Invalid::to_json).collect();
                Map::from_iter([("detail".to_owned(), Value::Array(detail))])
            }
            Shape::OpenAi { param, code } => {
                return self.openai_body(*param, *code, request_id);
            }
        };
        object.insert("code".into(), self.0.code.as_str().into());
        object.insert("request_id".into(), request_id.into());
        if let Some(after) = self.retry_after_ms() {
            object.insert("retry_after_ms".into(), after.into());
        }
        self.add_extra(&mut object);
        Value::Object(object)
    }

    fn openai_body(&self, param: Option<&str>, code: Option<&str>, request_id: &str) -> Value {
        let kind = match self.0.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let mut error = Map::new();
        error.insert("message".into(), self.0.detail.clone().into());
        error.insert("type".into(), kind.into());
        error.insert("param".into(), param.into());
        error.insert("code".into(), code.unwrap_or(self.0.code.as_str()).into());
        error.insert("request_id".into(), request_id.into());
        if let Some(after) = self.retry_after_ms() {
            error.insert("retry_after_ms".into(), after.into());
        }
        self.add_extra(&mut error);
        Value::Object(Map::from_iter([("error".to_owned(), Value::Object(error))]))
    }

    fn own_body(&self, request_id: &str) -> Value {
        let mut body = json!({
            "type": format!("/errors/{}", self.0.code),
            "title": codes::about(self.0.code).title,
            "status": self.0.status.as_u16(),
            "detail": self.0.detail,
            "code": self.0.code.as_str(),
            "request_id": request_id,
        });
        if let Some(hint) = &self.0.hint {
            body["hint"] = hint.clone().into();
        }
        if let Some(after) = self.retry_after_ms() {
            body["retry_after_ms"] = after.into();
        }
        if let Value::Object(body) = &mut body {
            self.add_extra(body);
        }
        body
    }

    /// Extension members never replace the problem's own.
    fn add_extra(&self, body: &mut Map<String, Value>) {
        for (name, value) in &self.0.extra {
            body.entry(name).or_insert_with(|| value.clone());
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let mut problem = Self::new(failure.code, failure.message);
        problem.0.retry_after = failure.retry_after.or(problem.0.retry_after);
        problem.0.extra = failure.detail;
        problem
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        error.0.into()
    }
}

/// A body that is not what the address expects, on one of our own addresses.
impl From<Vec<Invalid>> for Problem {
    fn from(invalid: Vec<Invalid>) -> Self {
        let texts: Vec<String> = invalid.iter().map(Invalid::to_string).collect();
        Self::new(Code::InvalidRequest, texts.join("; "))
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        vec![invalid].into()
    }
}

/// The response carries the problem itself; [`finish`] makes the body.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.0.status;
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a response its request id and, when it carries a problem, its body.
pub(crate) fn finish(mut response: Response, request_id: &HeaderValue) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let id = request_id.to_str().unwrap_or_default();
        let body = problem.body(id).to_string();
        let Parts { shape, headers: own, retry_after, .. } = *problem.0;
        let kind = match shape {
            Shape::Own => "application/problem+json",
            Shape::Chat { .. } | Shape::Invalid(_) | Shape::OpenAi { .. } => "application/json",
        };
        let headers = response.headers_mut();
        headers.extend(own);
        // The router has measured the empty body.
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(after) = retry_after {
            // Whole seconds, rounded up: a client must not come back too early.
            let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        *response.body_mut() = Body::from(body);
    }
    response.headers_mut().insert(HeaderName::from_static("x-request-id"), request_id.clone());
    response
}

#[cfg(test)]
mod tests;
