//! The addresses of all runs, whatever door they came through.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::wait::WaitKind;
use clearway_core::{Code, EventId, RunId, Status, ThreadId};
use clearway_engine::{CancelOutcome, From as Begin, RunQuery, Undecided};
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::app::App;
use crate::caller::{caller, own_run};
use crate::control;
use crate::events::{self, EventFrames};
use crate::extract::{PathText, Query, shown};
use crate::sse::Stream;
use crate::{Problem, view};

/// `GET /runs`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let known = ["status", "agent", "door", "thread_id", "parent", "limit", "after"];
    let query = Query::own(request.uri(), &known)?;
    let caller = caller(request.headers(), None)?;
    let statuses = query.all("status").map(status).collect::<Result<_, _>>()?;
    let limit = limit(&query, 100)?;
    let (runs, next) = app
        .engine
        .runs(caller.narrow(RunQuery {
            statuses,
            agent: query.get("agent").map(ToOwned::to_owned),
            door: query.get("door").map(ToOwned::to_owned),
            thread: query.read::<ThreadId>("thread_id", "a UUID in its 36-character form")?,
            parent: query.read::<RunId>("parent", "the id of a run")?,
            after: query.read::<RunId>("after", "the id of a run")?,
            limit,
            ..RunQuery::default()
        }))
        .await?;
    let now = app.engine.now();
    let mut page = Vec::with_capacity(runs.len());
    let (mut bytes, mut next) = (0, next);
    for (at, run) in runs.iter().enumerate() {
        let shown = view::run(run, now);
        bytes += shown.to_string().len();
        if at > 0 && bytes > PAGE_BYTES {
            next = Some(runs[at - 1].record.id);
            break;
        }
        page.push(shown);
    }
    Ok(Json(json!({"runs": page, "next": next.map(|run| run.to_string())})))
}

/// A page ends early when it is larger: the next one begins where it ends.
const PAGE_BYTES: usize = 4 << 20;

fn status(text: &str) -> Result<Status, Problem> {
    Status::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
        let text = format!("no status is called `{}`", shown(text));
        Problem::new(Code::InvalidRequest, text).hint(format!("Statuses: {}.", known.join(", ")))
    })
}

/// How many items a list should have: 1 to 1000.
pub(crate) fn limit(query: &Query, default: u32) -> Result<u32, Problem> {
    match query.read::<u32>("limit", "a number from 1 to 1000")? {
        None => Ok(default),
        Some(limit) if (1..=1000).contains(&limit) => Ok(limit),
        Some(limit) => {
            let text = format!("`limit` must be a number from 1 to 1000, this is `{limit}`");
            Err(Problem::new(Code::InvalidRequest, text))
        }
    }
}

/// A run id in a path; anything that is not one cannot be found.
pub(crate) fn run_id(text: &str) -> Result<RunId, Problem> {
    text.parse().map_err(|_| no_run(text))
}

fn no_run(text: &str) -> Problem {
    Problem::new(Code::RunNotFound, format!("no run `{}`", shown(text)))
}

/// `GET /runs/{id}`
pub(crate) async fn show(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let view = own_run(&app, request.headers(), run_id(&id)?).await?;
    let mut body = view::run(&view, app.engine.now());
    body["step_names"] = control::step_names(&app, &view.record.agent).into();
    if view.waiting.as_ref().is_some_and(|waiting| waiting.kind == WaitKind::Decision) {
        let writes = app.engine.undecided(view.record.id).await?;
        body["undecided"] = writes.iter().map(undecided).collect();
    }
    Ok(Json(body))
}

/// A write that somebody has to decide about.
fn undecided(write: &Undecided) -> Value {
    json!({
        "node": write.node,
        "name": write.name,
        "idempotency_key": write.idempotency_key(),
        "announced_at": write.at,
    })
}

/// `GET /runs/{id}/events`: a stream, or a page of JSON when the client accepts nothing else.
pub(crate) async fn events(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::own(request.uri(), &["after", "limit"])?;
    let comes_back = last_event_id(request.headers())?;
    let begin = match query.get("after") {
        Some(text) => after(text, "`after`")?,
        None => comes_back.unwrap_or(Begin::Start),
    };
    let record = own_run(&app, request.headers(), run_id(&id)?).await?.record;
    let run = record.id;
    if wants_json(request.headers()) {
        let limit = limit(&query, 1000)? as usize;
        let (events, next) = app.engine.events(run, begin, limit).await?;
        let body = Body::from(events::page(&events, next).freeze());
        return Ok(([(CONTENT_TYPE, "application/json")], body).into_response());
    }
    // A browser's EventSource asks again whenever a stream ends, until the answer is 204 (HTML Living
    // Standard, 9.2.3).
    let is_over = comes_back.is_some()
        && record.status.is_terminal()
        && app.engine.events(run, begin, 1).await?.0.is_empty();
    let mut response = if is_over {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let log = app.engine.subscribe(run, begin).await?;
        Stream::new(app, log, EventFrames, None).into_response()
    };
    put_run_headers(response.headers_mut(), run);
    Ok(response)
}

/// Where `Last-Event-ID` says that reading goes on.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Result<Option<Begin>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok("") => Ok(None),
        Ok(text) => after(text, "Last-Event-ID").map(Some),
        Err(_) => Err(Problem::new(Code::InvalidRequest, "Last-Event-ID is not text")),
    }
}

fn after(text: &str, name: &str) -> Result<Begin, Problem> {
    if let Ok(id) = text.parse::<EventId>() {
        return Ok(Begin::AfterId(id));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(seq) = text.parse()
    {
        return Ok(Begin::AfterSeq(seq));
    }
    let text = format!("{name} must be an event's id or number, this is `{}`", shown(text));
    Err(Problem::new(Code::InvalidRequest, text))
}

/// Whether the client asks for JSON and not for a stream.
fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains("application/json") && !accept.contains("text/event-stream")
}

/// Where the run of this answer can be watched.
pub(crate) fn put_run_headers(headers: &mut HeaderMap, run: RunId) {
    let put = |headers: &mut HeaderMap, name: HeaderName, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    put(headers, HeaderName::from_static("x-run-id"), run.to_string());
    put(headers, LOCATION, format!("/runs/{run}/events"));
}

/// `POST /runs/{id}/cancel`
pub(crate) async fn cancel(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    let wait = Query::own(request.uri(), &["wait"])?.flag("wait")?;
    let run = own_run(&app, request.headers(), run_id(&id)?).await?.record.id;
    let started = Instant::now();
    let (status, record, receipt) = match app.engine.cancel(run, "client").await? {
        CancelOutcome::Requested if wait => {
            let record = app.engine.wait(run).await?;
            // The end and what led to it are the last few events of the log.
            let from = Begin::AfterSeq(record.next_seq.saturating_sub(LAST_EVENTS));
            let (last, _) = app.engine.events(run, from, LAST_EVENTS as usize).await?;
            let mut receipt = events::receipt(&last).unwrap_or_else(|| json!({}));
            receipt["ms"] = (started.elapsed().as_millis() as u64).into();
            (StatusCode::OK, record, Some(receipt))
        }
        CancelOutcome::Requested => {
            let view = app.engine.run(run).await?;
            let mut body = view::run(&view, app.engine.now());
            body["cancel_requested"] = true.into();
            return Ok((StatusCode::ACCEPTED, Json(body)).into_response());
        }
        CancelOutcome::Ended(record) => {
            let ms = started.elapsed().as_millis() as u64;
            let receipt = json!({"by": "client", "socket_closed": false, "ms": ms});
            (StatusCode::OK, *record, Some(receipt))
        }
        // Cancelling twice is no mistake: the first answer may have been lost.
        CancelOutcome::AlreadyEnded(record) if record.status == Status::Cancelled => {
            (StatusCode::OK, *record, None)
        }
        CancelOutcome::AlreadyEnded(record) => {
            let text = format!("run {run} has already ended: {}", record.status.as_str());
            return Err(Problem::new(Code::RunEnded, text));
        }
    };
    let mut body = view::ended(record, app.engine.now());
    body["receipt"] = receipt.into();
    Ok((status, Json(body)).into_response())
}

/// Where a cancel's receipt is looked for.
const LAST_EVENTS: u64 = 16;
