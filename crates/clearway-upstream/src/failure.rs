//! Why a call failed, as its caller gets it.

use std::fmt;
use std::time::{Duration, Instant};

use clearway_core::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::call::Phase;
use crate::codec::failure::Rejection;

/// A call that failed: a [`Failure`] with the call's history in its detail:
/// `{phase, route, attempts: [{route, code, status, ms}], elapsed_ms, upstream: {status, code,
/// request_id}}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error(Box<Failure>);

impl Error {
    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn failure(&self) -> &Failure {
        &self.0
    }

    pub fn into_failure(self) -> Failure {
        *self.0
    }

    /// A refusal before any attempt.
    pub(crate) fn refused(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Failure::new(code, message)))
    }

    pub(crate) fn retryable(self) -> Self {
        Self(Box::new(self.into_failure().retryable()))
    }

    /// The same failure, told with something more for machines.
    pub(crate) fn with(self, key: &str, value: impl Into<Value>) -> Self {
        Self(Box::new(self.into_failure().with(key, value)))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self(Box::new(failure))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {}

/// Whether the same request may succeed later, as far as the code tells.
pub(crate) const fn is_retryable(code: Code) -> bool {
    matches!(
        code,
        Code::DeadlineExceeded
            | Code::UpstreamQueueTimeout
            | Code::UpstreamShedQueueFull
            | Code::UpstreamShedDeadline
            | Code::UpstreamRouteOpen
            | Code::UpstreamBadVectors
            | Code::UpstreamRateLimited
            | Code::UpstreamDnsFailed
            | Code::UpstreamConnectFailed
            | Code::UpstreamConnectTimeout
            | Code::UpstreamTlsFailed
            | Code::UpstreamSendTimeout
            | Code::UpstreamHeadersTimeout
            | Code::UpstreamFirstTokenTimeout
            | Code::UpstreamBodyTimeout
            | Code::UpstreamStreamIdle
            | Code::UpstreamStreamStalled
            | Code::UpstreamStreamTooSlow
            | Code::UpstreamStreamTruncated
            | Code::UpstreamStreamMalformed
            | Code::UpstreamStreamTooLarge
            | Code::UpstreamServerError
            | Code::UpstreamOverloaded
            | Code::UpstreamBadResponse
            | Code::UpstreamEmptyResponse
            | Code::UpstreamTimeout
            | Code::UpstreamConflict
    )
}

/// Why one attempt failed. What to do about it is the attempt loop's to say.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) retryable: bool,
    pub(crate) retry_after: Option<Duration>,
    /// The provider's own word, from `x-should-retry`.
    pub(crate) should_retry: Option<bool>,
    pub(crate) phase: Phase,
    /// What the provider said, if it came to that.
    pub(crate) status: Option<u16>,
    pub(crate) provider_code: Option<String>,
    pub(crate) request_id: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: Code, phase: Phase, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retryable: is_retryable(code),
            retry_after: None,
            should_retry: None,
            phase,
            status: None,
            provider_code: None,
            request_id: None,
        }
    }

    pub(crate) fn rejected(rejection: Rejection, phase: Phase) -> Self {
        Self {
            retryable: rejection.retryable,
            retry_after: rejection.retry_after,
            should_retry: rejection.should_retry,
            status: rejection.status,
            provider_code: rejection.provider_code,
            ..Self::new(rejection.code, phase, rejection.message)
        }
    }
}

/// The attempts of one call so far.
#[derive(Debug)]
pub(crate) struct History {
    started: Instant,
    attempts: Vec<Value>,
}

impl History {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, attempts: Vec::new() }
    }

    pub(crate) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Books a failed attempt that began at `began`.
    pub(crate) fn record(&mut self, route: &str, fault: &Fault, began: Instant, now: Instant) {
        self.attempts.push(json!({
            "route": route,
            "code": fault.code.as_str(),
            "status": fault.status,
            "ms": millis(now.saturating_duration_since(began)),
        }));
    }

    /// The call's error, when `fault` was the last attempt's.
    pub(crate) fn error(&self, route: &str, fault: Fault, now: Instant) -> Error {
        let mut upstream = Map::new();
        upstream.extend(fault.status.map(|status| ("status".to_owned(), status.into())));
        upstream.extend(fault.provider_code.map(|code| ("code".to_owned(), code.into())));
        upstream.extend(fault.request_id.map(|id| ("request_id".to_owned(), id.into())));
        let mut failure = Failure::new(fault.code, format!("{route}: {}", fault.message))
            .with("phase", fault.phase.as_str())
            .with("route", route)
            .with("attempts", self.attempts.clone())
            .with("elapsed_ms", millis(self.elapsed(now)));
        if !upstream.is_empty() {
            failure = failure.with("upstream", upstream);
        }
        failure.retryable = fault.retryable;
        failure.retry_after = fault.retry_after;
        Error(Box::new(failure))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
