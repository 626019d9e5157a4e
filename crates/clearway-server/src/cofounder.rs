//! The co-founder's dialect: a conversation per user, asked whole or as a stream.
//!
//! Field for field what the old service's clients know. What they do not know is added in headers,
//! query parameters and further fields, never in place of something.
//!
//! Not here: how events look in a stream ([`frames`]), what a thread's state says ([`state`]).

mod frames;
mod state;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use clearway_core::run::RunRecord;
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, EventId, Failure, Message, RunId, Status, ThreadId};
use clearway_engine::{Error, From as Begin, Kind, Submit, Submitted};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::caller::{Caller, caller, own_run};
use crate::extract::{self, Fields, Invalid, Query};
use crate::problem::Shape;
use crate::runs::put_run_headers;
use crate::server::Door;
use crate::sse::{CancelGuard, Stream};
use crate::{Problem, idempotency, runs};

pub(crate) use state::state;

/// The dialect's name in run records and thread keys.
const DIALECT: &str = "cofounder";

/// Which conversation of which user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    pub(crate) user: String,
    pub(crate) id: String,
}

impl Conversation {
    /// As the dialect writes it. The parts may contain `::`; that is why the thread itself has
    /// another name.
    fn shown(&self) -> String {
        format!("bc::{}::{}", self.user, self.id)
    }

    pub(crate) fn key(&self) -> ThreadKey {
        ThreadKey::new(DIALECT, &[&self.user, &self.id])
    }

    fn thread(&self, tenant: &str) -> ThreadId {
        self.key().thread_id(tenant)
    }

    fn take(fields: &mut Fields) -> Self {
        let user = fields.text("user_id");
        fields.check_name("user_id", &user);
        let id = fields.nullable_text("conversation_id").unwrap_or_else(|| DEFAULT.to_owned());
        fields.check_name("conversation_id", &id);
        Self { user, id }
    }
}

/// The conversation when a client names none.
const DEFAULT: &str = "default";

/// `POST /chat` and `POST /chat/stream`.
#[derive(Debug)]
struct Turn {
    conversation: Conversation,
    message: String,
    metadata: Map<String, Value>,
    deadline: Option<Value>,
}

impl Turn {
    fn parse(body: &[u8]) -> Result<Self, Vec<Invalid>> {
        let mut fields = Fields::parse(body)?;
        let conversation = Conversation::take(&mut fields);
        let message = fields.text("message");
        fields.not_blank("message", &message);
        let metadata = fields.object("metadata");
        let deadline = fields.value("deadline_ms");
        fields.finish()?;
        Ok(Self { conversation, message, metadata, deadline })
    }
}

/// `POST /reset`.
fn parse_reset(body: &[u8]) -> Result<Conversation, Vec<Invalid>> {
    let mut fields = Fields::parse(body)?;
    let conversation = Conversation::take(&mut fields);
    fields.finish()?;
    Ok(conversation)
}

/// Every body of this door, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(turn) = Turn::parse(data) {
        let _ = turn.conversation.thread("default");
        let _ = extract::deadline(&HeaderMap::new(), turn.deadline);
    }
    let _ = parse_reset(data).map(|conversation| conversation.shown());
}

/// A problem in the dialect's shape.
fn in_dialect(problem: Problem, thread: Option<&Conversation>) -> Problem {
    problem.shape(Shape::Chat { thread_id: thread.map(Conversation::shown) })
}

/// A turn that was accepted, or found again by its idempotency key.
struct Accepted {
    turn: Turn,
    run: Submitted,
    guard: Option<CancelGuard>,
}

impl Accepted {
    fn disarm(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

/// Reads a turn and hands it to the engine.
async fn accept(
    app: &App,
    door: &Door,
    parts: &Parts,
    body: &[u8],
    address: &str,
) -> Result<Accepted, Problem> {
    let turn = Turn::parse(body).map_err(Problem::unprocessable)?;
    let refuse = |problem: Problem| in_dialect(problem, Some(&turn.conversation));
    let query = Query::parse(&parts.uri).map_err(|invalid| refuse(invalid.into()))?;
    let cancel_on_disconnect = on_disconnect(&query).map_err(refuse)?;
    let deadline = extract::deadline(&parts.headers, turn.deadline.clone()).map_err(refuse)?;
    let route = idempotency::route(&door.mount, address);
    let idempotency = idempotency::read(&parts.headers, &route, body).map_err(refuse)?;
    let agent = agent(app, door).map_err(refuse)?;

    let Caller { tenant, owner, .. } =
        caller(&parts.headers, Some(&turn.conversation.user)).map_err(refuse)?;
    let thread = turn.conversation.thread(&tenant);
    let input = json!({"messages": [human(app, &turn.message)]});
    let submit = Submit {
        tenant,
        owner,
        thread_key: Some(turn.conversation.key()),
        thread_metadata: thread_metadata(&turn.conversation),
        metadata: extract::traced(turn.metadata.clone(), &parts.headers),
        // The agent's own limit is the cap: asking for more changes nothing.
        kind: Kind::Turn { deadline: deadline.map(|asked| asked.min(agent.deadline)) },
        idempotency,
        cancel_if_left: cancel_on_disconnect,
        ..Submit::new(thread, &door.agent, DIALECT, input)
    };
    let run = app.engine.submit(submit).await.map_err(|error| refuse(error.into()))?;
    let guard = cancel_on_disconnect.then(|| CancelGuard::new(app.clone(), run.run));
    Ok(Accepted { turn, run, guard })
}

fn agent(app: &App, door: &Door) -> Result<std::sync::Arc<clearway_engine::Agent>, Problem> {
    app.engine.agents().get(&door.agent).ok_or_else(|| {
        let text = format!("no agent is called `{}`, to which this door leads", door.agent);
        Problem::new(Code::AgentNotFound, text)
    })
}

/// `?on_disconnect=cancel|continue`: what becomes of the run when its client leaves.
fn on_disconnect(query: &Query) -> Result<bool, Problem> {
    match query.get("on_disconnect") {
        None | Some("continue") => Ok(false),
        Some("cancel") => Ok(true),
        Some(other) => {
            let text = format!(
                "`on_disconnect` must be `cancel` or `continue`, this is `{}`",
                extract::shown(other)
            );
            Err(Problem::new(Code::InvalidRequest, text))
        }
    }
}

pub(crate) fn thread_metadata(conversation: &Conversation) -> Map<String, Value> {
    let pairs = [
        ("thread_key", conversation.shown()),
        ("user_id", conversation.user.clone()),
        ("conversation_id", conversation.id.clone()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

/// What a person said, as an item of the `messages` channel.
pub(crate) fn human(app: &App, text: &str) -> Value {
    Message::new(clearway_core::message::Role::Human, text, app.engine.new_id().to_string())
        .to_value()
}

/// `POST /chat`
pub(crate) async fn chat(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&app, &parts.headers, body).await?;
    let mut accepted = accept(&app, door, &parts, &body, "/chat").await?;
    let run = accepted.run.run;
    let outcome = app.engine.wait(run).await;
    accepted.disarm();
    let conversation = &accepted.turn.conversation;
    let answer = match outcome {
        Ok(record) => reply(&app, &record).await,
        Err(error) => Err(error.0),
    };
    let mut response = match answer {
        Ok(text) => Json(json!({
            "user_id": conversation.user,
            "conversation_id": conversation.id,
            "thread_id": conversation.shown(),
            "reply": text,
        }))
        .into_response(),
        // The run was accepted, so whatever went wrong is the run's failure: one status for all.
        Err(failure) => in_dialect(Problem::of_run(failure), Some(conversation))
            .status(StatusCode::BAD_GATEWAY)
            .into_response(),
    };
    put_run_headers(response.headers_mut(), run);
    Ok(response)
}

/// The text that an ended run answers with, or why it has none.
async fn reply(app: &App, record: &RunRecord) -> Result<String, Failure> {
    if record.status == Status::Success {
        let reply = app.engine.reply(record).await.map_err(|Error(failure)| failure)?;
        return Ok(reply.map(|message| message.content.text()).unwrap_or_default());
    }
    Err(record.failure.clone().unwrap_or_else(|| {
        Failure::new(Code::Internal, format!("the run ended as {}", record.status.as_str()))
    }))
}

/// `POST /chat/stream`
pub(crate) async fn stream(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&app, &parts.headers, body).await?;
    let seen = last_seen(&parts.headers)?;
    let mut accepted = accept(&app, door, &parts, &body, "/chat/stream").await?;
    // Of a run that begins now nobody has seen anything, whatever an earlier stream's id was.
    let seen = seen.filter(|_| accepted.run.existing);
    let guard = accepted.guard.take();
    let queued = queued(&accepted.run);
    follow(app, accepted.run.run, &accepted.turn.conversation, queued, seen, guard).await
}

/// `GET /chat/stream?run_id=…`: the stream of a run that was started before.
pub(crate) async fn rejoin(app: App, request: Request) -> Result<Response, Problem> {
    let query = Query::parse(request.uri()).map_err(|invalid| in_dialect(invalid.into(), None))?;
    let Some(run) = query.get("run_id") else {
        let text = "`run_id` is required: the X-Run-Id of the answer that began the stream";
        return Err(in_dialect(Problem::new(Code::InvalidRequest, text), None));
    };
    let run = runs::run_id(run).map_err(|problem| in_dialect(problem, None))?;
    let seen = last_seen(request.headers())?;
    let found = own_run(&app, request.headers(), run).await;
    let record = found.map_err(|problem| in_dialect(problem, None))?.record;
    let conversation = conversation_of(&app, &record)
        .await
        .map_err(|error| in_dialect(error.into(), None))?
        .ok_or_else(|| {
            let text =
                format!("run {run} is not a chat of this door; GET /runs/{run}/events shows it");
            in_dialect(Problem::new(Code::RunNotFound, text), None)
        })?;
    let guard = on_disconnect(&query)
        .map_err(|problem| in_dialect(problem, Some(&conversation)))?
        .then(|| CancelGuard::new(app.clone(), run));
    follow(app, run, &conversation, None, seen, guard).await
}

/// The conversation that a run belongs to, if it is one of this dialect.
async fn conversation_of(app: &App, record: &RunRecord) -> Result<Option<Conversation>, Error> {
    let key = app.engine.thread(record.thread).await?.and_then(|thread| thread.key);
    Ok(key.filter(|key| key.dialect == DIALECT).and_then(|key| {
        let [user, id] = <[String; 2]>::try_from(key.parts).ok()?;
        Some(Conversation { user, id })
    }))
}

fn last_seen(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let begin = runs::last_event_id(headers).map_err(|problem| in_dialect(problem, None))?;
    Ok(match begin {
        Some(Begin::AfterId(id)) => Some(id),
        // A bare number says nothing about the lease; the newest one is meant.
        Some(Begin::AfterSeq(seq)) => Some(EventId { seq, fence: u32::MAX, part: u8::MAX }),
        Some(Begin::Start | Begin::Now) | None => None,
    })
}

/// A line for the client of a run that does not start at once.
fn queued(run: &Submitted) -> Option<String> {
    let position = run.position?;
    match run.status {
        Status::Blocked => {
            let ahead = position.thread_ahead + u32::from(position.thread_active.is_some());
            Some(format!("queued: {ahead} ahead in this conversation"))
        }
        Status::Ready => Some(format!("queued: {} ahead", position.pool_ahead)),
        Status::Running
        | Status::Waiting
        | Status::Success
        | Status::Error
        | Status::Timeout
        | Status::Cancelled => None,
    }
}

async fn follow(
    app: App,
    run: RunId,
    conversation: &Conversation,
    queued: Option<String>,
    seen: Option<EventId>,
    guard: Option<CancelGuard>,
) -> Result<Response, Problem> {
    // From the start even for a client that resumes: the text before its event is part of the
    // final one, and of what a reset leaves standing.
    let log = app.engine.subscribe(run, Begin::Start).await;
    let log = log.map_err(|error| {
        in_dialect(error.into(), Some(conversation)).status(StatusCode::BAD_GATEWAY)
    })?;
    let render = frames::ChatFrames::new(conversation.shown(), queued, seen);
    let mut response = Stream::new(app, log, render, guard).into_response();
    put_run_headers(response.headers_mut(), run);
    Ok(response)
}

/// `POST /reset`
pub(crate) async fn reset(app: App, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&app, &parts.headers, body).await?;
    let conversation = parse_reset(&body).map_err(Problem::unprocessable)?;
    let caller = caller(&parts.headers, Some(&conversation.user))
        .map_err(|problem| in_dialect(problem, Some(&conversation)))?;
    let thread = conversation.thread(&caller.tenant);
    // A conversation that never began is as empty as one that was reset.
    app.engine
        .reset_thread(thread)
        .await
        .map_err(|error| in_dialect(error.into(), Some(&conversation)))?;
    Ok(Json(json!({
        "user_id": conversation.user,
        "conversation_id": conversation.id,
        "thread_id": conversation.shown(),
        "ok": true,
    }))
    .into_response())
}

/// `GET /health`: answers from memory, whatever the rest of the server is doing.
pub(crate) async fn health(app: App) -> Json<Value> {
    Json(json!({
        "status": "ok",
        "checkpoints_path": app.options.data_path,
        "ready": app.engine.health_quick(),
        "draining": app.engine.is_draining(),
        "version": app.options.version,
    }))
}

async fn read_body(
    app: &App,
    headers: &HeaderMap,
    body: axum::body::Body,
) -> Result<Bytes, Problem> {
    let read = extract::read_body(headers, body, &app.options.limits).await;
    read.map_err(|problem| in_dialect(problem, None))
}

#[cfg(test)]
mod tests;
