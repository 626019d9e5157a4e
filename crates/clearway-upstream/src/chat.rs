//! A chat call from its request to its last event.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use clearway_core::Code;
use clearway_core::message::{Message, Role};
use serde_json::{Map, Value};
use tracing::Span;

use crate::attempt::Attempt;
use crate::attempts::{Admitted, Attempts, CallKind};
use crate::call::CallCx;
use crate::codec::{self, ChatEvent, ChatParts};
use crate::config::{Commit, check_params};
use crate::failure::{Error, Fault};
use crate::live::Live;
use crate::record::CallRecord;
use crate::route::Route;
use crate::usage::estimate_tokens;
use crate::watch::{Watch, now};

/// What to ask of which model.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// Name of a [`crate::ModelConfig`].
    pub model: String,
    /// Canonical messages, oldest first.
    pub messages: Vec<Arc<Value>>,
    /// Parameters in OpenAI's terms: `temperature`, `tools`, `response_format`, …
    pub params: Map<String, Value>,
}

impl ChatRequest {
    /// The most tokens that the call may use, estimated: four bytes a token for the prompt, and as
    /// much of an answer as the request allows.
    pub fn worst_case_tokens(&self) -> u64 {
        let prompt: usize = self
            .messages
            .iter()
            .map(|message| match &message["content"] {
                Value::String(text) => text.len(),
                other => other.to_string().len(),
            })
            .sum();
        let limit = |name: &str| self.params.get(name).and_then(Value::as_u64);
        let answer = limit("max_completion_tokens").or_else(|| limit("max_tokens"));
        prompt as u64 / 4 + answer.unwrap_or(USUAL_ANSWER)
    }
}

/// Tokens that an answer without a limit is thought to have.
const USUAL_ANSWER: u64 = 4096;

/// A call's answer, as it arrives.
///
/// Dropping it ends the call: the provider's socket is closed and the slot is free when the drop
/// returns. After its last event or an error it holds neither, kept or not.
pub struct ChatStream {
    live: Live,
    watch: Watch,
    cx: CallCx,
    route: Arc<Route>,
    attempts: Attempts,
    began: Instant,
    /// Of the model that was asked for, whoever answers.
    commit: Commit,
    /// To ask again after output has been shown; `None` where the model's `commit` forbids that.
    again: Option<Again>,
    record: CallRecord,
}

/// What is kept to begin an answer anew.
struct Again {
    request: ChatRequest,
    /// What has been shown so far, as long as it can be gone on with.
    shown: Shown,
}

/// Output that a caller has seen.
enum Shown {
    Text(String),
    /// Half a tool call cannot be completed by another attempt.
    More,
}

impl fmt::Debug for ChatStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatStream").field("route", &self.route.label).finish_non_exhaustive()
    }
}

impl ChatStream {
    /// Starts a call; returns at its first output, when the answer is committed.
    pub(crate) async fn open(
        routes: Arc<[Arc<Route>]>,
        commit: Commit,
        cx: CallCx,
        request: ChatRequest,
    ) -> Result<Self, Error> {
        let route = routes[0].clone();
        let refused = |problem: String| Error::refused(Code::InvalidRequest, problem);
        check_params(&request.params).map_err(refused)?;
        let body = body(&route, &request, None).map_err(refused)?;
        let started = now();
        let deadline = match route.timeouts.total {
            Some(total) => cx.deadline.clip(started, total),
            None => cx.deadline,
        };
        let mut watch = Watch::new(deadline);
        let mut record = CallRecord::start("chat", &cx, &route, started);
        let tokens = estimate_tokens(body.len()) + output_tokens(&route, &request.params);
        let mut attempts = Attempts::new(routes, CallKind::CHAT, tokens, started);
        let prepared = Some((route, body));
        match begin(&mut attempts, &cx, &mut watch, &request, None, prepared, &record.span).await {
            Ok(Begun { live, route, began, .. }) => {
                record.answered(&route);
                let again = (commit != Commit::Fail)
                    .then(|| Again { request, shown: Shown::Text(String::new()) });
                Ok(Self { live, watch, cx, route, attempts, began, commit, again, record })
            }
            Err(error) => Err(record.failed(error, attempts.made())),
        }
    }

    /// The next event; `None` after the last one.
    ///
    /// Dropping the future loses nothing as long as the answer goes on: the next call goes on where
    /// this one was. Dropped while a broken answer is begun anew, the call is over.
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
                // Boxed, since it is rare and its state is large: what is awaited here is set up anew
                // for every read of every answer.
                if let Some(event) = Box::pin(self.recover(fault)).await? {
                    return Ok(Some(event));
                }
                continue;
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
        match &event {
            ChatEvent::Finish { .. } => self.record.finished(self.attempts.made()),
            ChatEvent::Text(text) => {
                if let Some(Again { shown: Shown::Text(shown), .. }) = &mut self.again {
                    shown.push_str(text);
                }
            }
            ChatEvent::ToolCall { .. } => {
                if let Some(again) = &mut self.again {
                    again.shown = Shown::More;
                }
            }
            ChatEvent::Reasoning(_) | ChatEvent::Reset { .. } => {}
        }
        Some(event)
    }

    /// `provider/model` of the route that answers.
    pub fn route(&self) -> &str {
        &self.route.label
    }

    /// Attempts made for this answer, the present one included.
    pub fn attempts(&self) -> u32 {
        self.attempts.made()
    }

    /// The provider's id for the request, if it gave one.
    pub fn request_id(&self) -> Option<&str> {
        self.live.request_id.as_deref()
    }

    /// The answer broke off after output was shown: begins it anew where the model's `commit` mode
    /// allows that, and says what becomes of what was shown.
    async fn recover(&mut self, fault: Fault) -> Result<Option<ChatEvent>, Error> {
        let reason = fault.code;
        let began = self.began;
        let Self { attempts, cx, watch, route, commit, again, record, .. } = self;
        let Some(again) = again.take() else {
            attempts.conclude(route, fault, began);
            return Err(record.failed(attempts.error(), attempts.made()));
        };
        // Until a new answer has begun, nothing may look like a good end.
        record.outcome = reason.as_str();
        if let Err(error) = attempts.failed(route.clone(), fault, began, cx, watch).await {
            return Err(record.failed(error, attempts.made()));
        }
        let prefix = match &again.shown {
            Shown::Text(text) if *commit == Commit::Continue && !text.is_empty() => {
                Some(text.clone())
            }
            Shown::Text(_) | Shown::More => None,
        };
        let request = &again.request;
        let mut outcome =
            begin(attempts, cx, watch, request, prefix.as_deref(), None, &record.span).await;
        // Some refuse an answer that has begun already; then it is told from its start.
        if let Err(error) = &outcome
            && prefix.is_some()
            && error.code() == Code::UpstreamInvalidRequest
            && attempts.has_more()
        {
            outcome = begin(attempts, cx, watch, request, None, None, &record.span).await;
        }
        match outcome {
            Ok(Begun { live, route, began, stitched }) => {
                self.record.answered(&route);
                self.record.outcome = Code::Cancelled.as_str();
                (self.live, self.route, self.began) = (live, route, began);
                let shown = if stitched { again.shown } else { Shown::Text(String::new()) };
                self.again = Some(Again { shown, ..again });
                Ok((!stitched).then_some(ChatEvent::Reset { reason: reason.as_str() }))
            }
            Err(error) => Err(self.record.failed(error, self.attempts.made())),
        }
    }
}

/// An answer whose first output is there.
struct Begun {
    live: Live,
    route: Arc<Route>,
    began: Instant,
    /// It goes on where the prefix ended.
    stitched: bool,
}

/// Makes attempts until one has output, or no more may be made.
async fn begin(
    attempts: &mut Attempts,
    cx: &CallCx,
    watch: &mut Watch,
    request: &ChatRequest,
    prefix: Option<&str>,
    mut prepared: Option<(Arc<Route>, Bytes)>,
    span: &Span,
) -> Result<Begun, Error> {
    loop {
        let admitted = attempts.admit(cx, watch, span).await?;
        let Admitted { route, lease, number, detail } = admitted;
        let prefix = prefix.filter(|_| route.prefill);
        let body = match &prepared {
            Some((of, body)) if Arc::ptr_eq(of, &route) && prefix.is_none() => body.clone(),
            _ => {
                let body = body(&route, request, prefix)
                    .map_err(|problem| Error::refused(Code::InvalidRequest, problem))?;
                if prefix.is_none() {
                    prepared = Some((route.clone(), body.clone()));
                }
                body
            }
        };
        let began = now();
        let target = &route.provider.chat;
        let attempt = Attempt { route: &route, target, cx, watch, number, detail, lease };
        match attempt.chat(body).await {
            Ok(live) => {
                let stitched = prefix.is_some();
                return Ok(Begun { live, route, began, stitched });
            }
            Err(fault) => attempts.failed(route, fault, began, cx, watch).await?,
        }
    }
}

/// The request as the route's provider wants it; `prefix` is how the answer begins.
fn body(route: &Route, request: &ChatRequest, prefix: Option<&str>) -> Result<Bytes, String> {
    let with_prefix: Vec<Arc<Value>>;
    let messages = match prefix {
        None => &request.messages,
        Some(text) => {
            let begun = Message::new(Role::Ai, text, "begun").to_value();
            with_prefix = request.messages.iter().cloned().chain([Arc::new(begun)]).collect();
            &with_prefix
        }
    };
    let parts = ChatParts {
        model: &route.model,
        messages,
        model_params: &route.params,
        call_params: &request.params,
        max_output_tokens: codec::MAX_OUTPUT_TOKENS,
    };
    codec::chat_request(route.provider.kind, &parts)
        .map(Bytes::from)
        .map_err(|error| error.to_string())
}

/// What the answer may take from a window of tokens.
fn output_tokens(route: &Route, params: &Map<String, Value>) -> u64 {
    ["max_completion_tokens", "max_tokens"]
        .into_iter()
        .find_map(|name| params.get(name).or_else(|| route.params.get(name))?.as_u64())
        .unwrap_or(USUAL_OUTPUT)
}

/// Reserved for an answer whose length nobody has limited; the real length is settled afterwards.
const USUAL_OUTPUT: u64 = 500;
