//! Why something failed: one closed set of codes, stable like an API.
//!
//! Callers branch on [`Code`]; people read the message. A code is never reused for something else.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Stable, machine-readable reason of a failure.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

codes! {
    /// The request is not what the address expects.
    InvalidRequest = "invalid_request",
    /// The body is larger than the limit.
    BodyTooLarge = "body_too_large",
    /// The body did not arrive in time.
    BodyTimeout = "body_timeout",
    /// The address exists, the method does not.
    MethodNotAllowed = "method_not_allowed",
    /// Nothing lives at this address.
    NotFound = "not_found",
    /// No key, or a wrong one.
    Unauthorized = "unauthorized",
    /// The key is right, the thing is somebody else's.
    Forbidden = "forbidden",
    RunNotFound = "run_not_found",
    ThreadNotFound = "thread_not_found",
    AgentNotFound = "agent_not_found",
    /// The multitask strategy is `reject` and a run is active.
    ThreadBusy = "thread_busy",
    /// The run has already ended.
    RunEnded = "run_ended",
    /// The same Idempotency-Key came with another body.
    IdempotencyConflict = "idempotency_conflict",
    /// A queue, pool or connection limit is reached.
    Overloaded = "overloaded",
    /// The server drains; another one, or a later try, will do.
    ShuttingDown = "shutting_down",
    /// The deadline passed.
    DeadlineExceeded = "deadline_exceeded",
    /// Somebody cancelled it.
    Cancelled = "cancelled",
    /// Restarted or taken over too often without getting any further.
    Poisoned = "poisoned",
    /// A graph visited more supersteps than it may.
    RecursionLimit = "recursion_limit",
    /// Two nodes wrote one last-value channel in the same superstep, or a write does not fit.
    InvalidUpdate = "invalid_update",
    /// A bound of the configuration or of the server; the detail names it.
    LimitExceeded = "limit_exceeded",
    /// Nothing waits for the answer, signal or decision that was sent.
    NothingWaits = "nothing_waits",
    /// The budget is used up.
    BudgetExhausted = "budget_exhausted",
    /// A checkpoint or artifact that does not exist.
    CheckpointNotFound = "checkpoint_not_found",
    ArtifactNotFound = "artifact_not_found",
    /// Somebody else changed the thread meanwhile.
    CheckpointConflict = "checkpoint_conflict",
    /// A model's answer does not fit its schema, after one repair.
    OutputInvalid = "output_invalid",
    /// A step ended the workflow on purpose.
    StepFailed = "step_failed",
    /// A tool, or the server that an `http` step asked, says that it failed.
    ToolFailed = "tool_failed",
    /// A tool, or the server that an `http` step asked, cannot be reached.
    ToolUnavailable = "tool_unavailable",
    /// The run's output or log grew over its limit.
    OutputTooLarge = "output_too_large",
    /// The store cannot take writes now (disk full, locked, read-only).
    StoreUnavailable = "store_unavailable",
    /// The lease was lost; another instance owns the run.
    Fenced = "fenced",
    /// The configuration is wrong.
    InvalidConfig = "invalid_config",
    /// A template failed to render.
    TemplateFailed = "template_failed",
    Internal = "internal",

    // Providers (design of the taxonomy: one code per thing an operator would do differently).
    /// All of a provider's slots stayed taken until the wait's limit.
    UpstreamQueueTimeout = "upstream.queue_timeout",
    /// The queue in front of a provider is full.
    UpstreamShedQueueFull = "upstream.shed_queue_full",
    /// The queue in front of a provider moves too slowly for the call's deadline.
    UpstreamShedDeadline = "upstream.shed_deadline",
    /// The circuit breaker of the only route, or of every route, is open.
    UpstreamRouteOpen = "upstream.route_open",
    UpstreamRateLimited = "upstream.rate_limited",
    UpstreamQuotaExhausted = "upstream.quota_exhausted",
    UpstreamCredentialsExhausted = "upstream.credentials_exhausted",
    UpstreamDnsFailed = "upstream.dns_failed",
    UpstreamConnectFailed = "upstream.connect_failed",
    UpstreamConnectTimeout = "upstream.connect_timeout",
    UpstreamTlsFailed = "upstream.tls_failed",
    UpstreamSendTimeout = "upstream.send_timeout",
    UpstreamHeadersTimeout = "upstream.headers_timeout",
    UpstreamFirstTokenTimeout = "upstream.first_token_timeout",
    UpstreamBodyTimeout = "upstream.body_timeout",
    /// No byte arrived for too long.
    UpstreamStreamIdle = "upstream.stream_idle",
    /// Bytes arrived, but nothing that is output.
    UpstreamStreamStalled = "upstream.stream_stalled",
    /// Fewer tokens in a second than the provider's `rate_floor`.
    UpstreamStreamTooSlow = "upstream.stream_too_slow",
    /// The stream ended without its terminal event.
    UpstreamStreamTruncated = "upstream.stream_truncated",
    UpstreamStreamMalformed = "upstream.stream_malformed",
    UpstreamStreamTooLarge = "upstream.stream_too_large",
    UpstreamServerError = "upstream.server_error",
    UpstreamOverloaded = "upstream.overloaded",
    /// A 2xx that is not what was asked for (HTML, wrong content type, no JSON).
    UpstreamBadResponse = "upstream.bad_response",
    UpstreamEmptyResponse = "upstream.empty_response",
    UpstreamContextLength = "upstream.context_length",
    UpstreamContentPolicy = "upstream.content_policy",
    UpstreamInvalidRequest = "upstream.invalid_request",
    UpstreamModelUnavailable = "upstream.model_unavailable",
    UpstreamForbidden = "upstream.forbidden",
    /// 408 from the provider.
    UpstreamTimeout = "upstream.timeout",
    /// 409 or 425 from the provider.
    UpstreamConflict = "upstream.conflict",
    /// Vectors that are too few, mixed up or not usable.
    UpstreamBadVectors = "upstream.bad_vectors",
    /// A text is longer than the model takes; nothing was sent.
    UpstreamInputTooLong = "upstream.input_too_long",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as it is kept with a run and told to clients.
///
/// `message` is written for the person who reads it and never carries prompts, keys or
/// provider bodies that were not scrubbed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    /// A later try may succeed.
    pub retryable: bool,
    pub retry_after: Option<Duration>,
    /// Machine-readable context: phase, route, attempts, times spent.
    pub detail: Map<String, Value>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: false,
            retry_after: None,
            detail: Map::new(),
        }
    }

    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(key.to_owned(), value.into());
        self
    }

    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("code".into(), self.code.as_str().into());
        object.insert("message".into(), self.message.clone().into());
        object.insert("retryable".into(), self.retryable.into());
        if let Some(after) = self.retry_after {
            object.insert("retry_after_ms".into(), (after.as_millis() as u64).into());
        }
        if !self.detail.is_empty() {
            object.insert("detail".into(), Value::Object(self.detail.clone()));
        }
        Value::Object(object)
    }

    /// Reads what [`Failure::to_json`] wrote. An unknown code (written by a newer version) reads
    /// as `internal` with the text kept in the message.
    pub fn from_json(value: &Value) -> Self {
        let text = value["code"].as_str().unwrap_or_default();
        let message = value["message"].as_str().unwrap_or_default();
        let (code, message) = match Code::parse(text) {
            Some(code) => (code, message.to_owned()),
            None => (Code::Internal, format!("{text}: {message}")),
        };
        Self {
            code,
            message,
            retryable: value["retryable"].as_bool().unwrap_or(false),
            retry_after: value["retry_after_ms"].as_u64().map(Duration::from_millis),
            detail: value["detail"].as_object().cloned().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for &code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(code));
            assert!(seen.insert(code.as_str()), "{code} twice");
        }
        assert_eq!(Code::parse("nonsense"), None);
    }

    #[test]
    fn failures_survive_storage() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(1500)),
            ..Failure::new(Code::UpstreamRateLimited, "slow down").retryable().with("route", "a/b")
        };
        assert_eq!(Failure::from_json(&failure.to_json()), failure);
    }
}
