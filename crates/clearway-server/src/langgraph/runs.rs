//! Runs: started, shown, listed, stopped, deleted.
//!
//! Not here: what a request may say (`request`), following and waiting for runs (`joins`).

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use clearway_core::channel::Write;
use clearway_core::machine::{Breaks, Command, Resume};
use clearway_core::plan::Goto;
use clearway_core::run::{RunOptions, RunRecord};
use clearway_core::thread::ThreadKey;
use clearway_core::{CheckpointId, Code, RunId, Status, ThreadId};
use clearway_engine::{
    CancelMode, CancelOutcome, CronStart, EPHEMERAL, Kind, RunQuery, RunView, Submit,
};
use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::{self, bad_request, unprocessable};
use super::facts::Facts;
use super::graph::Graph;
use super::joins::query_switch;
use super::request::{Resumed, RunRequest, resume};
use super::state::{self, Place, read_fields};
use super::stream::Waiting;
use super::{DIALECT, Params, assistants, threads};
use crate::app::{Address, App, Routes};
use crate::caller::{Caller, caller};
use crate::extract::{self, Fields, Query};
use crate::{Problem, idempotency, view};

/// Where this door keeps what only it knows about a run, in the run's metadata.
pub(super) const OWN: &str = "langgraph";

/// What this door knows about a run; null when the run came through another one.
pub(super) fn own_of(record: &RunRecord) -> &Value {
    record.metadata.get(OWN).unwrap_or(&Value::Null)
}

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::POST, "/threads/{thread_id}/runs", post(create))?
        .add(Method::GET, "/threads/{thread_id}/runs", get(list))?
        .add(Method::GET, "/threads/{thread_id}/runs/{run_id}", get(show))?
        .add(Method::DELETE, "/threads/{thread_id}/runs/{run_id}", axum::routing::delete(remove))?
        .add(Method::POST, "/threads/{thread_id}/runs/{run_id}/cancel", post(cancel))?
        .add(Method::POST, "/runs", post(create_stateless))?
        .add(Method::POST, "/runs/batch", post(batch))?
        .add(Method::POST, "/runs/cancel", post(cancel_many))
}

// ## Starting

/// A run that was accepted.
pub(super) struct Started {
    pub(super) run: RunId,
    pub(super) thread: ThreadId,
    pub(super) facts: Facts,
}

/// Where a run is to be started.
#[derive(Clone, Copy, Debug)]
pub(super) enum On {
    Thread(ThreadId),
    /// On one of its own, which goes with it unless it is to be kept.
    Its,
}

/// Starts a run.
pub(super) async fn start(
    app: &App,
    headers: &HeaderMap,
    on: On,
    request: &RunRequest,
    cancel_if_left: bool,
) -> Result<Started, Problem> {
    let caller = caller(headers, None)?;
    let assistant = assistants::resolve(app, &caller, &request.assistant).await?;
    let graph = Graph::new(app, &assistant.agent);
    let Some(agent) = graph.agent.clone() else {
        let text = format!("graph `{}` is not there any more", graph.name);
        return Err(Problem::new(Code::AgentNotFound, text));
    };
    let (thread, known) = match on {
        On::Its => (app.engine.new_thread_id(), None),
        On::Thread(thread) => {
            let known = app.engine.thread(thread).await?;
            if known.is_none() && !request.makes_thread {
                let text = "Thread or assistant not found.";
                return Err(Problem::new(Code::ThreadNotFound, text));
            }
            (thread, known)
        }
    };
    let Beginning { input, command, base } = beginning(app, &graph, thread, request).await?;
    let owner = caller.owner.or_else(|| known.as_ref().and_then(|known| known.owner.clone()));
    let thread_metadata = known.as_ref().map_or_else(Map::new, |known| known.metadata.clone());
    let mut metadata = assistant.metadata.clone();
    metadata.extend(thread_metadata);
    metadata.extend(request.metadata.clone());
    metadata.extend(threads::note(&graph.name, assistant.id));
    metadata.insert(OWN.to_owned(), own(request, &graph, assistant.id));
    let is_ephemeral = matches!(on, On::Its) && !request.keeps_thread;
    let deadline = extract::deadline(headers, request.deadline.clone())
        .map_err(|problem| problem.status(StatusCode::UNPROCESSABLE_ENTITY))?;
    let is_first = known.as_ref().is_none_or(|known| known.head.is_none() && known.ord == 0);
    let most = agent.plan.max_steps();
    let submit = Submit {
        tenant: caller.tenant,
        owner,
        thread_key: is_ephemeral.then(|| ThreadKey::new(EPHEMERAL, &[&thread.to_string()])),
        thread_metadata: request.metadata.clone(),
        thread_note: threads::note(&graph.name, assistant.id),
        thread_must_exist: matches!(on, On::Thread(_)) && !request.makes_thread,
        metadata: extract::traced(metadata, headers),
        multitask: Some(request.multitask()),
        clears_queue: true,
        priority: request.priority,
        kind: match deadline {
            Some(asked) => Kind::Turn { deadline: Some(asked) },
            // Waiting behind other runs of a thread is no fault of the run's.
            None => Kind::Background {
                working_limit: (agent.kind == "agent").then_some(agent.deadline),
            },
        },
        idempotency: request.idempotency.clone(),
        cancel_if_left,
        delay: request.delay,
        options: RunOptions {
            command: command.clone(),
            breaks: Breaks {
                before: request.break_before.of(&graph),
                after: request.break_after.of(&graph),
            },
            base,
            webhook: request.webhook.clone(),
            detailed: true,
            max_steps: request.max_steps.map(|asked| asked.min(most)),
            context: request.context_over(&assistant),
            ..RunOptions::default()
        },
        ..Submit::new(thread, &agent.name, DIALECT, Value::Object(input.clone()))
    };
    let submitted = app.engine.submit(submit).await.map_err(refused)?;
    // Behind another run it begins from what that one leaves.
    let is_first = is_first && submitted.status != Status::Blocked && !submitted.existing;
    // The same key again finds the run of the first time, which for a stateless one has its own thread.
    let thread = submitted.thread;
    let facts = Facts {
        run: submitted.run,
        thread,
        assistant: assistant.id.to_string(),
        graph,
        input,
        command,
        base,
        named: request.checkpoint,
        is_first,
    };
    Ok(Started { run: submitted.run, thread, facts })
}

/// What the clock is to start, again and again.
pub(super) struct Planned {
    pub(super) assistant: Uuid,
    pub(super) start: CronStart,
}

/// Reads a request for later.
///
/// # Errors
/// As for a run that starts now.
pub(super) async fn planned(
    app: &App,
    caller: &Caller,
    thread: Option<ThreadId>,
    request: RunRequest,
) -> Result<Planned, Problem> {
    if request.checkpoint.is_some() {
        return Err(unprocessable("a cron goes on from where its thread stands: no `checkpoint`"));
    }
    let assistant = assistants::resolve(app, caller, &request.assistant).await?;
    let graph = Graph::new(app, &assistant.agent);
    let on = thread.unwrap_or_else(|| app.engine.new_thread_id());
    let Beginning { input, command, .. } = beginning(app, &graph, on, &request).await?;
    let mut metadata = assistant.metadata.clone();
    metadata.extend(request.metadata.clone());
    metadata.extend(threads::note(&graph.name, assistant.id));
    metadata.insert(OWN.to_owned(), own(&request, &graph, assistant.id));
    let options = RunOptions {
        command,
        breaks: Breaks {
            before: request.break_before.of(&graph),
            after: request.break_after.of(&graph),
        },
        webhook: request.webhook.clone(),
        detailed: true,
        max_steps: request.max_steps,
        context: request.context_over(&assistant),
        ..RunOptions::default()
    };
    // A thread that is made for a run is found by the run's metadata.
    let mut thread_note = if thread.is_none() { request.metadata.clone() } else { Map::new() };
    thread_note.extend(threads::note(&graph.name, assistant.id));
    let start = CronStart {
        agent: graph.name.clone(),
        door: DIALECT,
        input: Value::Object(input),
        metadata,
        thread_note,
        multitask: Some(request.multitask()),
        options,
        keep_thread: true,
    };
    Ok(Planned { assistant: assistant.id, start })
}

fn refused(error: clearway_engine::Error) -> Problem {
    let code = error.code();
    let problem = Problem::from(error);
    match code {
        Code::ThreadBusy => problem.status(StatusCode::CONFLICT),
        _ => problem,
    }
}

/// What only this door knows about a run.
fn own(request: &RunRequest, graph: &Graph, assistant: Uuid) -> Value {
    json!({
        "assistant_id": assistant.to_string(),
        "graph_id": graph.name,
        "multitask_strategy": request.strategy,
        "resumable": request.is_resumable,
        "modes": request.modes.names(),
        "delay_ms": request.delay.as_millis() as u64,
        "from": request.checkpoint.map(|id| id.to_string()),
        "kwargs": request.kwargs(),
    })
}

/// What a run does first.
struct Beginning {
    input: Map<String, Value>,
    command: Option<Command>,
    base: Option<CheckpointId>,
}

async fn beginning(
    app: &App,
    graph: &Graph,
    thread: ThreadId,
    request: &RunRequest,
) -> Result<Beginning, Problem> {
    let place = match request.checkpoint {
        None => None,
        Some(id) => match state::find(app, thread, id).await? {
            Some(found) => Some(found),
            None => {
                let text = format!("no checkpoint {id} on thread {thread}");
                return Err(Problem::new(Code::CheckpointNotFound, text));
            }
        },
    };
    let mut new_id = || app.engine.new_id().to_string();
    let base = match &place {
        None => None,
        Some((Place::At(id), _)) => Some(*id),
        Some((Place::Before { input, parent }, _)) => {
            Some(if request.input.is_some() { parent.unwrap_or(*input) } else { *input })
        }
    };
    if let Some(wanted) = &request.command {
        let mut command = command(graph, wanted, &mut new_id)?;
        command.fork = base.is_some();
        return Ok(Beginning { input: Map::new(), command: Some(command), base });
    }
    let Some(input) = &request.input else {
        let fork = base.is_some();
        // A graph with nothing behind it begins from its start.
        let begins =
            !fork && app.engine.thread(thread).await?.is_none_or(|known| known.head.is_none());
        let command = (!begins).then(|| Command { fork, ..Command::default() });
        return Ok(Beginning { input: Map::new(), command, base });
    };
    let mut replaced: Vec<Write> = Vec::new();
    let kept = graph.input(input, &mut new_id, &mut replaced).map_err(unprocessable)?;
    let first = || -> Vec<Goto> {
        let Some(agent) = &graph.agent else { return Vec::new() };
        let due = agent.plan.first(RunId(Uuid::nil()), 0).due;
        due.into_iter().map(|due| Goto::Node(due.node)).collect()
    };
    // Before the thread's first input there is no checkpoint to start from: the first one is undone.
    if let Some((Place::Before { parent: None, .. }, found)) = &place {
        let mut update: Vec<Write> = found
            .state
            .versions()
            .filter(|(channel, _)| !kept.contains_key(*channel))
            .map(|(channel, _)| {
                let empty = match found.state.get(channel) {
                    Some(Value::Array(_)) => json!([]),
                    _ => Value::Null,
                };
                Write { assign: true, ..Write::new(channel, empty) }
            })
            .collect();
        update.extend(
            kept.iter()
                .map(|(name, value)| Write { assign: true, ..Write::new(name, value.clone()) }),
        );
        let command = Command { update, goto: Some(first()), fork: true, ..Command::default() };
        return Ok(Beginning { input: Map::new(), command: Some(command), base });
    }
    if !replaced.is_empty() {
        let mut update = replaced;
        update.extend(kept.iter().map(|(name, value)| Write::new(name, value.clone())));
        let fork = base.is_some();
        let command = Command { update, goto: Some(first()), fork, ..Command::default() };
        return Ok(Beginning { input: Map::new(), command: Some(command), base });
    }
    Ok(Beginning { input: kept, command: None, base })
}

fn command(
    graph: &Graph,
    wanted: &Map<String, Value>,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Command, Problem> {
    let resume = match wanted.get("resume").map(resume) {
        None => None,
        Some(Resumed::All(value)) => Some(Resume::All(value)),
        Some(Resumed::ById(by_id)) if by_id.is_empty() => None,
        Some(Resumed::ById(by_id)) => Some(Resume::ById(by_id.into_iter().collect())),
    };
    let update = match wanted.get("update") {
        None => Vec::new(),
        Some(values) => graph
            .writes(values, new_id)
            .map_err(|why| unprocessable(format!("`command.update`: {why}")))?,
    };
    let goto = match wanted.get("goto") {
        None => None,
        Some(goto) => {
            let targets =
                graph.goto(goto).map_err(|why| unprocessable(format!("`command.goto`: {why}")))?;
            // Only unknown names: as if nothing had been said.
            (!targets.is_empty()).then_some(targets)
        }
    };
    // Two windows may answer one question, and a stop before a node asks nothing.
    Ok(Command { resume, update, goto, fork: false, lenient: true })
}

// ## Showing

/// A run as clients see it.
pub(super) fn to_json(app: &App, found: &RunView) -> Value {
    let record = &found.record;
    let mut metadata = record.metadata.clone();
    let own = metadata.remove(OWN).unwrap_or_default();
    let graph = own["graph_id"].as_str().unwrap_or(&record.agent);
    let assistant = own["assistant_id"]
        .as_str()
        .map_or_else(|| assistants::id_of_graph(graph).to_string(), ToOwned::to_owned);
    let mut kwargs = own["kwargs"].as_object().cloned().unwrap_or_default();
    let given = record.input.as_object().map(|input| Graph::new(app, graph).given(input));
    kwargs.insert("input".to_owned(), given.map_or(Value::Null, Value::Object));
    let delay = std::time::Duration::from_millis(own["delay_ms"].as_u64().unwrap_or(0));
    let strategy = own["multitask_strategy"].as_str().unwrap_or("enqueue");
    let known = view::run(found, app.engine.now());
    let changed = record.ended_at.or(record.started_at).unwrap_or(record.created_at);
    json!({
        "run_id": record.id.to_string(),
        "thread_id": record.thread.to_string(),
        "assistant_id": assistant,
        "metadata": metadata,
        "status": status(record.status),
        "kwargs": kwargs,
        "multitask_strategy": strategy,
        "created_at": record.created_at.plus(delay).to_string(),
        "updated_at": changed.to_string(),
        "langsmith_session_name": null,
        "waiting_on": known["waiting_on"],
        "queue_position": known["queue_position"],
        "priority": record.priority.level(),
        "deadline_ms": record.deadline_at.map(|at| at.since(app.engine.now()).as_millis() as u64),
    })
}

pub(super) const fn status(status: Status) -> &'static str {
    match status {
        Status::Blocked | Status::Ready => "pending",
        Status::Running | Status::Waiting => "running",
        Status::Success => "success",
        Status::Error => "error",
        Status::Timeout => "timeout",
        Status::Cancelled => "interrupted",
    }
}

pub(super) fn put_location(headers: &mut HeaderMap, content: &str, location: Option<&str>) {
    if let Ok(value) = HeaderValue::try_from(content) {
        headers.insert(CONTENT_LOCATION, value);
    }
    if let Some(value) = location.and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(LOCATION, value);
    }
}

pub(super) fn address(thread: ThreadId, run: RunId) -> String {
    format!("/threads/{thread}/runs/{run}")
}

fn no_run(run: impl std::fmt::Display) -> Problem {
    Problem::new(Code::RunNotFound, format!("Run not found: {run}"))
}

/// The run that a path names, on its thread. What was rolled back is gone.
async fn find(app: &App, params: &[String]) -> Result<RunView, Problem> {
    let thread = threads::id(&params[0])?;
    let run = RunId(errors::uuid("run_id", &params[1])?);
    let found = app.engine.run(run).await?;
    if found.record.thread != thread || found.record.rolled_back {
        return Err(no_run(run));
    }
    Ok(found)
}

// ## Creating

pub(super) async fn read_request(
    app: &App,
    request: Request,
) -> Result<(HeaderMap, RunRequest), Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    let mut request = RunRequest::parse(&body)?;
    let route = idempotency::route(DIALECT, parts.uri.path());
    request.idempotency = idempotency::read(&parts.headers, &route, &body)
        .map_err(|problem| problem.status(StatusCode::UNPROCESSABLE_ENTITY))?;
    Ok((parts.headers, request))
}

async fn shown(app: &App, run: RunId) -> Result<Value, Problem> {
    Ok(to_json(app, &app.engine.run(run).await?))
}

/// `POST /threads/{thread_id}/runs`
async fn create(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let (headers, request) = read_request(&app, request).await?;
    let started = start(&app, &headers, On::Thread(thread), &request, false).await?;
    let mut response = Json(shown(&app, started.run).await?).into_response();
    put_location(response.headers_mut(), &address(thread, started.run), None);
    Ok(response)
}

/// `POST /runs`
async fn create_stateless(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (headers, request) = read_request(&app, request).await?;
    check_stateless(&request)?;
    let started = start(&app, &headers, On::Its, &request, false).await?;
    let mut response = Json(shown(&app, started.run).await?).into_response();
    put_location(response.headers_mut(), &format!("/runs/{}", started.run), None);
    Ok(response)
}

pub(super) fn check_stateless(request: &RunRequest) -> Result<(), Problem> {
    let resumes = request.command.as_ref().is_some_and(|command| command.contains_key("resume"));
    if resumes {
        return Err(bad_request("a run without a thread has nothing to resume"));
    }
    Ok(())
}

/// `POST /runs/batch`
async fn batch(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    let value = extract::parse_json(&body).map_err(|why| errors::invalid(vec![why]))?;
    let Value::Array(items) = value else {
        return Err(unprocessable("a list of runs is expected"));
    };
    if items.len() > MOST_IN_BATCH {
        return Err(unprocessable(format!("at most {MOST_IN_BATCH} runs at once")));
    }
    let mut requests = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        let fields = Fields::of(item, &["body", &at.to_string()]);
        let request = RunRequest::of(fields.map_err(|why| errors::invalid(vec![why]))?)?;
        check_stateless(&request)?;
        requests.push(request);
    }
    let mut runs = Vec::with_capacity(requests.len());
    for request in &requests {
        let started = start(&app, &parts.headers, On::Its, request, false).await?;
        runs.push(shown(&app, started.run).await?);
    }
    Ok(Json(Value::Array(runs)))
}

const MOST_IN_BATCH: usize = 100;

// ## Listing, stopping, deleting

/// `GET /threads/{thread_id}/runs`
async fn list(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let query = Query::parse(request.uri()).map_err(|why| errors::invalid(vec![why]))?;
    let number = |name: &str, least: u32, most: u32, default: u32| match query.get(name) {
        None | Some("") => Ok(default),
        Some(text) => {
            let number = text.parse().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| {
                unprocessable(format!("`{name}` must be a whole number from {least} to {most}"))
            })
        }
    };
    let limit = number("limit", 1, 1000, 10)? as usize;
    let offset = number("offset", 0, u32::MAX, 0)? as usize;
    let statuses = match query.get("status") {
        None | Some("") => Vec::new(),
        Some(text) => statuses(text)?,
    };
    let select: Vec<&str> = query.every("select").filter(|name| !name.is_empty()).collect();
    threads::overview(&app, thread).await?;
    let mut found = Vec::new();
    let mut skip = offset;
    let mut after = None;
    'pages: loop {
        let page = RunQuery {
            thread: Some(thread),
            statuses: statuses.clone(),
            limit: 1000,
            after,
            ..RunQuery::default()
        };
        let (runs, next) = app.engine.runs(page).await?;
        for run in runs.iter().filter(|run| !run.record.rolled_back) {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            if found.len() == limit {
                break 'pages;
            }
            let mut shown = to_json(&app, run);
            if let (false, Value::Object(fields)) = (select.is_empty(), &mut shown) {
                fields.retain(|name, _| select.contains(&name.as_str()));
            }
            found.push(shown);
        }
        after = next;
        if after.is_none() {
            break;
        }
    }
    Ok(Json(Value::Array(found)))
}

/// The engine's words for one of LangGraph's.
fn statuses(text: &str) -> Result<Vec<Status>, Problem> {
    let found: Vec<Status> =
        Status::ALL.iter().copied().filter(|one| status(*one) == text).collect();
    if found.is_empty() {
        let text = extract::shown(text);
        let known = "pending, running, success, error, timeout, interrupted";
        return Err(unprocessable(format!("no status is called `{text}`; there are: {known}")));
    }
    Ok(found)
}

/// `GET /threads/{thread_id}/runs/{run_id}`
async fn show(State(app): State<App>, Params(params): Params) -> Result<Json<Value>, Problem> {
    Ok(Json(to_json(&app, &find(&app, &params).await?)))
}

fn mode(query: &Query) -> Result<CancelMode, Problem> {
    match query.get("action") {
        None | Some("" | "interrupt") => Ok(CancelMode::Keep),
        Some("rollback") => Ok(CancelMode::Rollback),
        Some(other) => {
            let text = extract::shown(other);
            Err(unprocessable(format!("`action` must be interrupt or rollback, this is `{text}`")))
        }
    }
}

/// `POST /threads/{thread_id}/runs/{run_id}/cancel`
async fn cancel(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri()).map_err(|why| errors::invalid(vec![why]))?;
    let (mode, wait) = (mode(&query)?, query_switch(&query, "wait")?);
    let record = find(&app, &params).await?.record;
    let ended = || {
        let text = format!("run {} has ended already", record.id);
        Problem::new(Code::RunNotFound, text)
    };
    if record.status.is_terminal() {
        return Err(ended());
    }
    if let CancelOutcome::AlreadyEnded(_) =
        app.engine.cancel_with(record.id, "client", mode).await?
    {
        return Err(ended());
    }
    if !wait {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    let run = record.id;
    let outcome = async move {
        // Settled first, then answered.
        let _ = app.engine.wait(run).await;
        json!({})
    };
    let mut response = Waiting::new(outcome, None).into_response();
    let at = address(record.thread, run);
    put_location(response.headers_mut(), &at, Some(&format!("{at}/join")));
    Ok(response)
}

/// `POST /runs/cancel`
async fn cancel_many(State(app): State<App>, request: Request) -> Result<StatusCode, Problem> {
    let query = Query::parse(request.uri()).map_err(|why| errors::invalid(vec![why]))?;
    let mode = mode(&query)?;
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let thread = fields.nullable_text("thread_id");
    let ids = match fields.value("run_ids") {
        None | Some(Value::Null) => None,
        Some(Value::Array(ids)) => Some(ids),
        Some(_) => return Err(unprocessable("`run_ids` must be a list of UUIDs")),
    };
    let status = fields.nullable_text("status");
    fields.finish().map_err(errors::invalid)?;
    let runs: Vec<RunId> = match (thread, ids, status.as_deref()) {
        (Some(thread), Some(ids), None) => {
            let thread = threads::id(&thread)?;
            let mut runs = Vec::new();
            for id in &ids {
                let text = id.as_str().ok_or_else(|| unprocessable("`run_ids` holds UUIDs"))?;
                let run = RunId(errors::uuid("run_ids", text)?);
                let found = app.engine.run(run).await.ok().map(|found| found.record);
                let own =
                    |record: &RunRecord| record.thread == thread && caller.check(record).is_ok();
                runs.extend(found.filter(own).map(|one| one.id));
            }
            runs
        }
        (None, None, Some(status)) => {
            let statuses = match status {
                "pending" => vec![Status::Blocked, Status::Ready],
                "running" => vec![Status::Running, Status::Waiting],
                "all" => vec![Status::Blocked, Status::Ready, Status::Running, Status::Waiting],
                _ => return Err(unprocessable("`status` must be pending, running or all")),
            };
            let query = caller.narrow(RunQuery {
                door: Some(DIALECT.to_owned()),
                statuses,
                limit: 1000,
                ..RunQuery::default()
            });
            let (runs, _) = app.engine.runs(query).await?;
            runs.iter().map(|run| run.record.id).collect()
        }
        _ => {
            let text = "send either `thread_id` with `run_ids`, or `status`";
            return Err(unprocessable(text));
        }
    };
    let mut matched = false;
    for run in runs {
        let outcome = app.engine.cancel_with(run, "client", mode).await;
        matched |= matches!(outcome, Ok(CancelOutcome::Requested | CancelOutcome::Ended(_)));
    }
    if matched { Ok(StatusCode::NO_CONTENT) } else { Err(no_run("none matched")) }
}

/// `DELETE /threads/{thread_id}/runs/{run_id}`
async fn remove(State(app): State<App>, Params(params): Params) -> Result<StatusCode, Problem> {
    let record = find(&app, &params).await?.record;
    if !record.status.is_terminal() {
        let outcome = app.engine.cancel_with(record.id, "deleted", CancelMode::Rollback).await?;
        if let CancelOutcome::Requested | CancelOutcome::Ended(_) = outcome {
            let _ = app.engine.wait(record.id).await;
            return Ok(StatusCode::NO_CONTENT);
        }
    }
    app.engine.delete_run(record.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
