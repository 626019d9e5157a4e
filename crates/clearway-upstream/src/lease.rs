//! What an attempt holds while it lasts, settled exactly once, however it ends.
//!
//! A lease rides inside the answer's body: the slot, the reservations of the rate windows, the
//! tickets of both breakers, the verdict on the key and the usage row all go when it goes. Dropping
//! it without a verdict is a cancel: neutral for everybody, but not unrecorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::Code;
use tracing::{Span, info_span};

use crate::call::{CallCx, Class, Phase};
use crate::classify::{Blame, KeyEffect, classify};
use crate::codec::Usage;
use crate::failure::Fault;
use crate::guard::breaker::Ticket;
use crate::guard::keys::KeyFault;
use crate::guard::limiter::Grant;
use crate::guard::load::Underway;
use crate::route::Route;
use crate::usage::{OK, Observer, UsageRow, UsageSource, estimate_tokens};
use crate::watch::now;

/// See the module.
pub(crate) struct Lease {
    route: Arc<Route>,
    // Taken by the settlement.
    held: Option<Held>,
    pub(crate) key: usize,
    call: String,
    class: Class,
    number: u32,
    is_probe: bool,
    began: Instant,
    phase: Phase,
    status: Option<u16>,
    first_output: Option<Instant>,
    prompt_bytes: usize,
    output_bytes: usize,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) span: Span,
}

struct Held {
    endpoint: Ticket,
    model: Ticket,
    grant: Grant,
    _under_way: Underway,
}

/// The verdict about an attempt.
enum End<'a> {
    Whole(Option<Usage>),
    Failed(&'a Fault),
    LetGo,
}

impl Lease {
    pub(crate) fn new(
        route: Arc<Route>,
        (endpoint, model): (Ticket, Ticket),
        grant: Grant,
        key: usize,
        number: u32,
        cx: &CallCx,
        parent: &Span,
    ) -> Self {
        let span = info_span!(
            target: "clearway::trace",
            parent: parent,
            "attempt",
            otel.name = "POST",
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            server.address = %route.provider.endpoint.host,
            server.port = i64::from(route.provider.endpoint.port),
            http.request.method = "POST",
            http.response.status_code = tracing::field::Empty,
            http.request.resend_count = i64::from(number - 1),
            error.type = tracing::field::Empty,
        );
        Self {
            is_probe: endpoint.is_probe() || model.is_probe(),
            held: Some(Held { endpoint, model, grant, _under_way: route.load.begin() }),
            key,
            route,
            call: cx.call_id.clone(),
            class: cx.class,
            number,
            began: now(),
            phase: Phase::Connect,
            status: None,
            first_output: None,
            prompt_bytes: 0,
            output_bytes: 0,
            observer: cx.observer.clone(),
            span,
        }
    }

    /// How long the first output may take. A probe gets half: while it is out nobody else is let
    /// through, and where it is slow all would be.
    pub(crate) fn first_token_limit(&self) -> Duration {
        let limit = self.route.limits.ttft;
        if self.is_probe { limit / 2 } else { limit }
    }

    /// A connection is being opened.
    pub(crate) const fn dialling(&mut self) {
        self.phase = Phase::Connect;
    }

    /// The request goes out now and is this long.
    pub(crate) const fn sending(&mut self, bytes: usize) {
        self.phase = Phase::Send;
        self.prompt_bytes = bytes;
    }

    /// It is out.
    pub(crate) const fn sent(&mut self) {
        self.phase = Phase::Headers;
    }

    /// The head of the answer is there.
    pub(crate) fn answered(&mut self, status: u16) {
        self.status = Some(status);
        let is_good = (200..300).contains(&status);
        self.phase = if is_good { Phase::FirstToken } else { Phase::ErrorBody };
        self.span.record("http.response.status_code", i64::from(status));
    }

    /// So much output has come.
    pub(crate) fn output(&mut self, bytes: usize, at: Instant) {
        self.output_bytes += bytes;
        if self.first_output.is_none() {
            self.first_output = Some(at);
            self.phase = Phase::Stream;
        }
    }

    /// The answer is whole.
    pub(crate) fn succeed(mut self, usage: Option<Usage>) {
        self.settle(&End::Whole(usage));
    }

    /// The attempt failed.
    pub(crate) fn fail(mut self, fault: &Fault) {
        self.settle(&End::Failed(fault));
    }

    fn settle(&mut self, end: &End<'_>) {
        let Some(Held { endpoint, model, mut grant, _under_way }) = self.held.take() else {
            return;
        };
        let at = now();
        let (usage, source) = self.count(end);
        match end {
            End::Whole(_) => {
                let took = self.latency().unwrap_or_else(|| at - self.began);
                self.route.load.answered(took, at);
                endpoint.success(at);
                if model.success(at) {
                    // Back after an outage: the traffic grows again from little.
                    self.route.provider.limiter.restart(&self.route.model);
                } else {
                    grant.clean(at);
                }
            }
            End::Failed(fault) => self.blame(fault, endpoint, model, &grant, at),
            End::LetGo => {}
        }
        let used = usage.input_tokens.saturating_add(usage.output_tokens);
        grant.settle(Some(used), at);
        let outcome = match end {
            End::Whole(_) => OK,
            End::Failed(fault) => fault.code.as_str(),
            End::LetGo => Code::Cancelled.as_str(),
        };
        if outcome != OK {
            self.span.record("error.type", outcome);
            self.span.record("otel.status_code", "ERROR");
        }
        let status = match end {
            End::Failed(fault) => fault.status.or(self.status),
            End::Whole(_) | End::LetGo => self.status,
        };
        let row = UsageRow {
            call: std::mem::take(&mut self.call),
            number: self.number,
            provider: self.route.provider.name.clone(),
            endpoint: self.route.provider.address.clone(),
            model: self.route.model.clone(),
            key: self.route.provider.keys.label(self.key),
            class: self.class,
            phase: self.phase,
            outcome,
            status,
            price: self.route.price,
            cost_micros: self.route.price.map(|price| price.cost_micros(&usage)),
            usage,
            source,
            elapsed: at.saturating_duration_since(self.began),
            first_output: self.latency(),
        };
        self.route.provider.tally.count(&row);
        if let Some(observer) = &self.observer {
            observer.attempt(&row);
        }
    }

    fn blame(&self, fault: &Fault, endpoint: Ticket, model: Ticket, grant: &Grant, at: Instant) {
        let verdict = classify(fault);
        let reason = fault.code.as_str();
        if verdict.breaker != Blame::Nobody || verdict.pressure {
            self.route.load.failed(at - self.began, at);
        }
        let until = at + fault.retry_after.unwrap_or(COOLING);
        match verdict.breaker {
            Blame::Endpoint => endpoint.failure(at, reason, fault.retry_after),
            // Whoever answers at all is reachable.
            Blame::Route => {
                endpoint.success(at);
                model.failure(at, reason, fault.retry_after);
            }
            Blame::Nobody if fault.code == Code::UpstreamRateLimited => {
                endpoint.success(at);
                model.cooled(at, until);
            }
            Blame::Nobody if self.status.is_some() => {
                endpoint.success(at);
            }
            Blame::Nobody => {}
        }
        if verdict.pressure {
            grant.pressure(at);
        }
        let key = match verdict.key {
            KeyEffect::None => return,
            KeyEffect::Cool => KeyFault::RateLimited { until },
            KeyEffect::Quota => KeyFault::Quota,
            KeyEffect::Dead => KeyFault::Auth,
        };
        self.route.provider.keys.report(self.key, &self.route.model, key, at);
    }

    /// What the attempt used, as well as anybody knows.
    fn count(&self, end: &End<'_>) -> (Usage, UsageSource) {
        let guess = Usage {
            input_tokens: estimate_tokens(self.prompt_bytes),
            output_tokens: estimate_tokens(self.output_bytes),
            ..Usage::default()
        };
        match end {
            End::Whole(Some(usage)) => (*usage, UsageSource::Provider),
            End::Whole(None) => (guess, UsageSource::Estimated),
            _ if self.output_bytes > 0 => (guess, UsageSource::Partial),
            _ => (Usage::default(), UsageSource::None),
        }
    }

    fn latency(&self) -> Option<Duration> {
        Some(self.first_output?.saturating_duration_since(self.began))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.settle(&End::LetGo);
    }
}

/// How long a key rests after a 429 that names no time.
const COOLING: Duration = Duration::from_secs(1);
