//! A chat call from its request to its last event.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clearway_core::Code;
use serde_json::{Map, Value};
use tracing::info;

use crate::attempt::Attempt;
use crate::call::CallCx;
use crate::config::check_params;
use crate::failure::{Error, Fault, History};
use crate::live::Live;
use crate::openai::{ChatEvent, request};
use crate::route::Route;
use crate::watch::{Watch, now};

/// What to ask of which model.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// Name of a [`crate::ModelConfig`].
    pub model: String,
    /// Canonical messages, oldest first.
    pub messages: Vec<Arc<Value>>,
    /// Parameters of the provider's dialect: `temperature`, `tools`, `response_format`, …
    pub params: Map<String, Value>,
}

/// A call's answer, as it arrives.
///
/// Dropping it ends the call: the provider's socket is closed and the slot is free when the drop
/// returns. After its last event or an error it holds neither, kept or not.
pub struct ChatStream {
    live: Live,
    watch: Watch,
    cx: CallCx,
    route: Arc<Route>,
    history: History,
    began: Instant,
    record: CallRecord,
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatStream").field("route", &self.route.label).finish_non_exhaustive()
    }
}

impl ChatStream {
    /// Starts a call; returns at its first output, when the answer is committed.
    pub(crate) async fn open(
        route: Arc<Route>,
        cx: CallCx,
        request: ChatRequest,
    ) -> Result<Self, Error> {
        let refused = |problem: String| Error::refused(Code::InvalidRequest, problem);
        check_params(&request.params).map_err(refused)?;
        let body = request::chat(&route.model, &request.messages, &route.params, &request.params)
            .map_err(|error| refused(error.to_string()))?;
        let started = now();
        let deadline = match route.timeouts.total {
            Some(total) => cx.deadline.clip(started, total),
            None => cx.deadline,
        };
        let mut watch = Watch::new(deadline);
        let mut history = History::new(started);
        let mut record = CallRecord::start(&cx, &route, started);
        let body = Bytes::from(body);

        // The one place that decides about attempts. Whatever fails up to here has reached nobody,
        // so retries, other keys and other routes belong around these lines and nowhere else.
        let began = now();
        let attempt = Attempt {
            route: &route,
            cx: &cx,
            watch: &mut watch,
            number: history.attempt(),
            detail: format!("{}, attempt {}", route.label, history.attempt()).into(),
        };
        match attempt.run(body).await {
            Ok(live) => Ok(Self { live, watch, cx, route, history, began, record }),
            Err(fault) => Err(conclude(&mut history, &route, began, fault, &mut record)),
        }
    }

    /// The next event; `None` after the last one.
    ///
    /// Dropping the future loses nothing: the next call goes on where this one was.
    ///
    /// # Errors
    ///
    /// When the answer ends before it is whole. There is nothing after an error.
    pub async fn next(&mut self) -> Result<Option<ChatEvent>, Error> {
        loop {
            if let Some(event) = self.next_ready() {
                return Ok(Some(event));
            }
            if let Some(fault) = self.live.take_fault() {
                let Self { history, route, began, record, .. } = self;
                return Err(conclude(history, route, *began, fault, record));
            }
            if self.live.has_ended() {
                return Ok(None);
            }
            self.live.read(&mut self.watch).await;
            if self.live.has_events() {
                self.cx.wait.token(self.live.read_at());
            }
        }
    }

    /// An event that has arrived already: after [`ChatStream::next`] returned one, all others of
    /// the same read can be had without waiting.
    pub fn next_ready(&mut self) -> Option<ChatEvent> {
        let event = self.live.pop()?;
        if matches!(event, ChatEvent::Finish { .. }) {
            self.record.outcome = "ok";
        }
        Some(event)
    }

    /// `provider/model` of the route that answers.
    pub fn route(&self) -> &str {
        &self.route.label
    }

    /// The provider's id for the request, if it gave one.
    pub fn request_id(&self) -> Option<&str> {
        self.live.request_id.as_deref()
    }
}

/// Books the last attempt's fault and makes the call's error of it.
fn conclude(
    history: &mut History,
    route: &Route,
    began: Instant,
    fault: Fault,
    record: &mut CallRecord,
) -> Error {
    let at = now();
    record.outcome = fault.code.as_str();
    history.record(&route.label, &fault, began, at);
    history.error(&route.label, fault, at)
}

/// One line when a call starts and one when it ends, however it ends.
struct CallRecord {
    call_id: String,
    route: String,
    started: Instant,
    outcome: &'static str,
}

impl CallRecord {
    fn start(cx: &CallCx, route: &Route, started: Instant) -> Self {
        info!(call.id = cx.call_id, upstream.route = route.label, "provider call started");
        Self {
            call_id: cx.call_id.clone(),
            route: route.label.clone(),
            started,
            // Nobody told it otherwise: its owner dropped it.
            outcome: Code::Cancelled.as_str(),
        }
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        let elapsed = now().saturating_duration_since(self.started);
        info!(
            call.id = self.call_id,
            upstream.route = self.route,
            outcome = self.outcome,
            duration_ms = elapsed.as_millis() as u64,
            "provider call ended"
        );
    }
}
