//! What is said about every call as a whole: two lines of log and a span.

use std::time::Instant;

use clearway_core::{Code, RunId};
use tracing::{Span, field, info, info_span};

use crate::call::CallCx;
use crate::failure::Error;
use crate::route::Route;
use crate::usage::OK;
use crate::watch::now;

/// One line when a call starts and one when it ends, however it ends.
pub(crate) struct CallRecord {
    call_id: String,
    run: Option<RunId>,
    route: String,
    started: Instant,
    pub(crate) outcome: &'static str,
    attempts: u32,
    pub(crate) span: Span,
}

impl CallRecord {
    /// `operation` is one of the names that the GenAI conventions know: `chat`, `embeddings`.
    pub(crate) fn start(
        operation: &'static str,
        cx: &CallCx,
        route: &Route,
        started: Instant,
    ) -> Self {
        info!(
            call.id = cx.call_id,
            run.id = cx.run.map(field::display),
            upstream.route = route.label,
            "provider call started"
        );
        let span = info_span!(
            target: "clearway::trace",
            "call",
            otel.name = format_args!("{operation} {}", route.model),
            otel.kind = "client",
            otel.status_code = field::Empty,
            gen_ai.operation.name = operation,
            gen_ai.provider.name = %route.provider.name,
            gen_ai.request.model = %route.model,
            gen_ai.response.model = field::Empty,
            clearway.call.id = cx.call_id,
            error.type = field::Empty,
        );
        Self {
            call_id: cx.call_id.clone(),
            run: cx.run,
            route: route.label.clone(),
            started,
            // Nobody told it otherwise: its owner dropped it.
            outcome: Code::Cancelled.as_str(),
            attempts: 1,
            span,
        }
    }

    /// A route answers.
    pub(crate) fn answered(&mut self, route: &Route) {
        self.route.clone_from(&route.label);
        self.span.record("gen_ai.response.model", &*route.model);
    }

    pub(crate) const fn finished(&mut self, attempts: u32) {
        self.outcome = OK;
        self.attempts = attempts;
    }

    pub(crate) fn failed(&mut self, error: Error, attempts: u32) -> Error {
        self.outcome = error.code().as_str();
        self.attempts = attempts;
        error
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let elapsed = now().saturating_duration_since(self.started);
        if self.outcome != OK {
            self.span.record("error.type", self.outcome);
            self.span.record("otel.status_code", "ERROR");
        }
        info!(
            call.id = self.call_id,
            run.id = self.run.map(field::display),
            upstream.route = self.route,
            outcome = self.outcome,
            attempts = self.attempts,
            duration_ms = elapsed.as_millis() as u64,
            "provider call ended"
        );
    }
}
