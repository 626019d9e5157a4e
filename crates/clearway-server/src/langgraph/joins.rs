//! Following runs and waiting for them, from their start or later.
//!
//! Not here: how a body tells a run ([`stream`]), how its events look (`frames`).

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use clearway_core::run::RunRecord;
use clearway_core::{EventId, RunId, Status, ThreadId};
use clearway_engine::{Engine, From as Begin};
use http::{Method, Uri};
use serde_json::{Value, json};

use super::errors::{self, unprocessable};
use super::facts::Facts;
use super::frames::{Frames, Ids};
use super::graph::Graph;
use super::modes::{Modes, Projector};
use super::request::{RunRequest, query_modes};
use super::runs::{
    On, Started, address, check_stateless, own_of, put_location, read_request, start,
};
use super::stream::{self, Reader, RunStream, Waiting};
use super::{Params, state, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::extract::{self, Query};
use crate::sse::CancelGuard;

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::POST, "/threads/{thread_id}/runs/stream", post(create_and_stream))?
        .add(Method::POST, "/threads/{thread_id}/runs/wait", post(create_and_wait))?
        .add(Method::GET, "/threads/{thread_id}/runs/{run_id}/join", get(join))?
        .add(Method::GET, "/threads/{thread_id}/runs/{run_id}/stream", get(join_stream))?
        .add(Method::POST, "/runs/stream", post(stream_stateless))?
        .add(Method::POST, "/runs/wait", post(wait_stateless))?
        .add(Method::GET, "/runs/{run_id}/stream", get(join_stream_alone))?
        .add(Method::GET, "/runs/{run_id}/join", get(join_alone))
}

// ## Streaming

/// `POST /threads/{thread_id}/runs/stream`
async fn create_and_stream(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let (headers, request) = read_request(&app, request).await?;
    let started =
        start(&app, &headers, On::Thread(thread), &request, request.cancels_on_disconnect).await?;
    let at = address(thread, started.run);
    follow_new(app, started, &request, &at).await
}

/// `POST /runs/stream`
async fn stream_stateless(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (headers, request) = read_request(&app, request).await?;
    check_stateless(&request)?;
    let started = start(&app, &headers, On::Its, &request, request.cancels_on_disconnect).await?;
    let at = format!("/runs/{}", started.run);
    follow_new(app, started, &request, &at).await
}

async fn follow_new(
    app: App,
    started: Started,
    request: &RunRequest,
    at: &str,
) -> Result<Response, Problem> {
    let run = started.run;
    let guard = request.cancels_on_disconnect.then(|| CancelGuard::new(app.clone(), run));
    let log = app.engine.subscribe(run, Begin::Start).await?;
    let projector = Projector::new(Arc::new(started.facts), request.modes);
    let reader = Reader::new(app.clone(), log, projector);
    let frames = Frames {
        modes: request.modes,
        ids: if request.is_resumable { Ids::Run } else { Ids::None },
        seen: None,
        tells_start: true,
    };
    let mut response = stream::answer(RunStream::new(app, reader, frames, guard));
    put_location(response.headers_mut(), at, Some(&format!("{at}/stream")));
    Ok(response)
}

/// `GET /threads/{thread_id}/runs/{run_id}/stream`
async fn join_stream(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let run = RunId(errors::uuid("run_id", &params[1])?);
    let (query, seen) = read_join(&request)?;
    let found = app.engine.run(run).await.ok().map(|found| found.record);
    let found = found.filter(|record| record.thread == thread && !record.rolled_back);
    follow_known(app, found, &query, seen, &address(thread, run)).await
}

/// `GET /runs/{run_id}/stream`
async fn join_stream_alone(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let run = RunId(errors::uuid("run_id", &params[0])?);
    let (query, seen) = read_join(&request)?;
    let found = app.engine.run(run).await.ok().map(|found| found.record);
    let found = found.filter(|record| !record.rolled_back);
    follow_known(app, found, &query, seen, &format!("/runs/{run}")).await
}

/// What a client that joins has seen.
enum Seen {
    /// It wants what comes from now on.
    Unknown,
    Nothing,
    Until(EventId),
}

fn read_join(request: &Request) -> Result<(Query, Seen), Problem> {
    let query = Query::parse(request.uri()).map_err(|why| errors::invalid(vec![why]))?;
    let header = request.headers().get("last-event-id");
    let text = match header.map(|value| value.to_str().map(str::trim)) {
        None => None,
        Some(Ok(text)) => Some(text),
        Some(Err(_)) => return Err(unprocessable("Last-Event-ID is not text")),
    };
    let seen = match text {
        None | Some("") => Seen::Unknown,
        Some("-1" | "-") => Seen::Nothing,
        Some(text) => match (text.parse::<EventId>(), text.parse::<u64>()) {
            (Ok(id), _) => Seen::Until(id),
            (_, Ok(seq)) => Seen::Until(EventId { seq, fence: u32::MAX, part: u8::MAX }),
            _ => {
                let text = extract::shown(text);
                let text =
                    format!("Last-Event-ID must be the id of an event or -1, this is `{text}`");
                return Err(unprocessable(text));
            }
        },
    };
    Ok((query, seen))
}

async fn follow_known(
    app: App,
    record: Option<RunRecord>,
    query: &Query,
    seen: Seen,
    at: &str,
) -> Result<Response, Problem> {
    let asked = query_modes(query)?;
    let cancels = query_switch(query, "cancel_on_disconnect")?;
    let Some(record) = record else {
        let text = "event: error\r\ndata: {\"error\":\"HTTPException\",\"message\":\"404: Run not found\"}\r\n\r\n";
        return Ok(stream::answer(Body::from(text)));
    };
    let own = own_of(&record);
    let of_run = own["modes"].as_array().map(|names| {
        let names = names.iter().filter_map(Value::as_str);
        names.filter_map(|name| Modes::parse(name).ok()).fold(Modes::NONE, Modes::with)
    });
    let modes = asked.or(of_run).unwrap_or(Modes::VALUES.with(Modes::UPDATES).with(Modes::TUPLES));
    let run = record.id;
    let seen = match seen {
        Seen::Unknown => {
            let now = app.engine.subscribe(run, Begin::Now).await?.position();
            // Numbers before it are seen, under whatever lease.
            let seq = now.checked_sub(1);
            seq.map(|seq| EventId { seq, fence: u32::MAX, part: u8::MAX })
        }
        Seen::Nothing => None,
        Seen::Until(id) => Some(id),
    };
    // From the start, also for a client that goes on in the middle: what an event means depends on
    // those before it.
    let log = app.engine.subscribe(run, Begin::Start).await?;
    let guard = cancels.then(|| CancelGuard::new(app.clone(), run));
    let projector = Projector::new(Arc::new(Facts::of(&app, &record)), modes);
    let reader = Reader::new(app.clone(), log, projector);
    // A run of another door can be resumed as well.
    let has_ids = own["resumable"].as_bool().unwrap_or(true);
    let ids = if has_ids { Ids::Run } else { Ids::None };
    let frames = Frames { modes, ids, seen, tells_start: asked.is_none() };
    let mut response = stream::answer(RunStream::new(app, reader, frames, guard));
    put_location(response.headers_mut(), at, Some(&format!("{at}/stream")));
    Ok(response)
}

pub(super) fn query_switch(query: &Query, name: &str) -> Result<bool, Problem> {
    match query.get(name) {
        None | Some("" | "0" | "false" | "False") => Ok(false),
        Some("1" | "true" | "True") => Ok(true),
        Some(_) => Err(unprocessable(format!("`{name}` must be true or false"))),
    }
}

// ## Waiting

/// `POST /threads/{thread_id}/runs/wait`
async fn create_and_wait(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let (headers, request) = read_request(&app, request).await?;
    let on = On::Thread(thread);
    let started = start(&app, &headers, on, &request, request.cancels_on_disconnect).await?;
    Ok(wait_new(app, started, &request))
}

/// `POST /runs/wait`
async fn wait_stateless(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (headers, request) = read_request(&app, request).await?;
    check_stateless(&request)?;
    let started = start(&app, &headers, On::Its, &request, request.cancels_on_disconnect).await?;
    Ok(wait_new(app, started, &request))
}

fn wait_new(app: App, started: Started, request: &RunRequest) -> Response {
    let run = started.run;
    let guard = request.cancels_on_disconnect.then(|| CancelGuard::new(app.clone(), run));
    let graph = started.facts.graph;
    let outcome = async move { outcome(&app, run, &graph, false).await };
    let mut response = Waiting::new(outcome, guard).into_response();
    let at = address(started.thread, run);
    put_location(response.headers_mut(), &at, Some(&format!("{at}/join")));
    response
}

/// How a run ended, once it has: its thread's state, and what it asks or why it failed.
async fn outcome(app: &App, run: RunId, graph: &Graph, had_ended: bool) -> Value {
    let record = match app.engine.wait(run).await {
        Ok(record) => record,
        Err(error) => return json!({"__error__": stream::error(&error.0)}),
    };
    match record.status {
        Status::Error | Status::Timeout => {
            let failure = record.failure.as_ref().map(stream::error);
            return json!({"__error__": failure.unwrap_or_else(|| json!({
                "error": "internal", "message": "the run ended without saying why",
            }))});
        }
        Status::Success if !record.rolled_back => {}
        _ => return json!({}),
    }
    // One that changed nothing made no checkpoint: it ends with what its thread stands at.
    let found = match app.engine.state_at(record.thread, record.checkpoint).await {
        Ok(Some(found)) => found,
        Ok(None) => return json!({}),
        Err(error) => return json!({"__error__": stream::error(&error.0)}),
    };
    let mut values = graph.values(&found.state);
    let questions = Engine::questions(&found);
    if !questions.is_empty() {
        if had_ended {
            values = json!({});
        }
        let asked = questions.iter().map(|one| {
            let mut shown = state::interrupt(one.id, &one.value);
            shown["response_schema"] = Value::Null;
            shown
        });
        values["__interrupt__"] = asked.collect();
    }
    values
}

/// `GET /threads/{thread_id}/runs/{run_id}/join`
async fn join(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let run = RunId(errors::uuid("run_id", &params[1])?);
    join_run(app, run, Some(thread), request.uri().clone()).await
}

/// `GET /runs/{run_id}/join`
async fn join_alone(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let run = RunId(errors::uuid("run_id", &params[0])?);
    join_run(app, run, None, request.uri().clone()).await
}

async fn join_run(
    app: App,
    run: RunId,
    thread: Option<ThreadId>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::parse(&uri).map_err(|why| errors::invalid(vec![why]))?;
    let cancels = query_switch(&query, "cancel_on_disconnect")?;
    let found = app.engine.run(run).await.ok().map(|found| found.record);
    let found = found.filter(|record| {
        thread.is_none_or(|thread| record.thread == thread) && !record.rolled_back
    });
    let Some(record) = found else {
        let error = json!({"error": "HTTPException", "message": "404: Run not found"});
        return Ok(Json(json!({"__error__": error})).into_response());
    };
    let guard = cancels.then(|| CancelGuard::new(app.clone(), run));
    let graph = Facts::of(&app, &record).graph;
    let had_ended = record.status.is_terminal();
    let outcome = async move { outcome(&app, run, &graph, had_ended).await };
    let mut response = Waiting::new(outcome, guard).into_response();
    let at = address(record.thread, run);
    put_location(response.headers_mut(), &at, Some(&format!("{at}/join")));
    Ok(response)
}
