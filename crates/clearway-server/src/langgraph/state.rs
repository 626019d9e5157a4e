//! A thread's state and history, as LangGraph counts them.
//!
//! LangGraph has one checkpoint more per input than is kept here: the one at which the input has
//! arrived and is not applied yet. It is shown under an id of its own, the tick before the one of the
//! checkpoint that has the input, and found again by it. On the other hand the last superstep of a
//! workflow, which only makes its result, is none of its author's and not shown.

use std::collections::HashMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use clearway_core::channel::State as Channels;
use clearway_core::journal::Journal;
use clearway_core::machine::Source;
use clearway_core::plan::{END, Frontier, START};
use clearway_core::{CheckpointId, Code, Failure, RunId, ThreadId, Timestamp};
use clearway_engine::{
    CheckpointRecord, Engine, Question, StateChange, StepRecord, ThreadOverview, ThreadState,
};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::{self, bad_request, unprocessable};
use super::facts;
use super::graph::Graph;
use super::pending::{Pending, pending};
use super::{Params, runs, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::extract::{self, Fields, Query};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::GET, "/threads/{thread_id}/state", get(head))?
        .add(Method::POST, "/threads/{thread_id}/state", post(update))?
        .add(Method::GET, "/threads/{thread_id}/state/{checkpoint_id}", get(at))?
        .add(Method::POST, "/threads/{thread_id}/state/checkpoint", post(at_checkpoint))?
        .add(Method::GET, "/threads/{thread_id}/history", get(history_of_query))?
        .add(Method::POST, "/threads/{thread_id}/history", post(history_of_body))
}

// ## Ids

/// Where the thread stood before an input's checkpoint: one tick earlier.
pub(super) fn before_input(id: CheckpointId) -> CheckpointId {
    id.moved(-1)
}

/// The input's checkpoint, from the id shown for what was before it.
fn after_arrival(id: CheckpointId) -> CheckpointId {
    id.moved(1)
}

/// The task that takes an input in; `input` is the checkpoint that has it.
pub(super) fn start_task(input: CheckpointId) -> Uuid {
    Uuid::new_v5(&input.0, b"__start__")
}

/// A checkpoint as a client names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One that is kept.
    At(CheckpointId),
    /// Before an input was applied: the checkpoint with the input, and its parent.
    Before { input: CheckpointId, parent: Option<CheckpointId> },
}

/// Finds the checkpoint that a client names.
///
/// # Errors
/// `store_unavailable`.
pub(super) async fn find(
    app: &App,
    thread: ThreadId,
    id: CheckpointId,
) -> Result<Option<(Place, ThreadState)>, Problem> {
    if let Some(found) = app.engine.state_at(thread, Some(id)).await? {
        return Ok(Some((Place::At(id), found)));
    }
    let input = after_arrival(id);
    let found = app.engine.state_at(thread, Some(input)).await?;
    if let Some(found) = found.filter(|found| found.source == Source::Input) {
        return Ok(Some((Place::Before { input, parent: found.parent }, found)));
    }
    let Ok(overview) = app.engine.thread_overview(thread).await else { return Ok(None) };
    let Some(pending) = pending(app, &overview).await? else { return Ok(None) };
    Ok(match pending.id() {
        known if known == id => Some((Place::At(id), pending.found)),
        known if known == input && pending.is_input() => {
            Some((Place::Before { input, parent: pending.found.parent }, pending.found))
        }
        _ => None,
    })
}

// ## States

/// A state as it is shown.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) id: CheckpointId,
    parent: Option<CheckpointId>,
    values: Value,
    next: Vec<String>,
    tasks: Vec<Value>,
    interrupts: Vec<Value>,
    source: &'static str,
    step: i64,
    run: Option<RunId>,
    /// What that run was given as its metadata.
    noted: Map<String, Value>,
    at: Timestamp,
}

impl Shown {
    fn metadata(&self, thread: ThreadId, graph: &Graph) -> Map<String, Value> {
        let metadata = json!({
            "source": self.source, "step": self.step, "parents": {},
            "thread_id": thread.to_string(), "graph_id": graph.name,
        });
        let Value::Object(own) = metadata else { return Map::new() };
        let mut metadata = self.noted.clone();
        metadata.extend(own);
        if let Some(run) = self.run {
            metadata.insert("run_id".to_owned(), run.to_string().into());
        }
        metadata
    }

    fn to_json(&self, thread: ThreadId, graph: &Graph) -> Value {
        json!({
            "values": self.values,
            "next": self.next,
            "tasks": self.tasks,
            "metadata": self.metadata(thread, graph),
            "created_at": self.at.to_string(),
            "checkpoint": checkpoint(thread, self.id),
            "parent_checkpoint": self.parent.map(|parent| checkpoint(thread, parent)),
            "interrupts": self.interrupts,
            "checkpoint_id": self.id.to_string(),
            "parent_checkpoint_id": self.parent.map(|parent| parent.to_string()),
        })
    }
}

pub(super) fn checkpoint(thread: ThreadId, id: CheckpointId) -> Value {
    json!({
        "thread_id": thread.to_string(), "checkpoint_ns": "", "checkpoint_id": id.to_string(),
    })
}

/// The state of a thread that has none.
fn nothing() -> Value {
    json!({
        "values": {}, "next": [], "tasks": [], "metadata": null, "created_at": null,
        "checkpoint": null, "parent_checkpoint": null, "interrupts": [],
        "checkpoint_id": null, "parent_checkpoint_id": null,
    })
}

pub(super) fn interrupt(id: Uuid, value: &Value) -> Value {
    json!({"value": value, "id": id.simple().to_string()})
}

/// How LangGraph counts checkpoints: from -1, where a thread's first input arrives, over all its runs.
pub(super) fn shown_step(frontier: &Frontier) -> i64 {
    i64::try_from(frontier.depth).unwrap_or(i64::MAX) - 2
}

/// Which nodes of a frontier are shown as next.
pub(super) fn next(graph: &Graph, frontier: &Frontier) -> Vec<String> {
    let nodes = frontier.nodes().filter(|node| !graph.is_fold(node));
    nodes.map(|node| (**node).to_owned()).collect()
}

/// Whether nothing but the fold is due: such a checkpoint is not shown.
pub(super) fn awaits_fold(graph: &Graph, frontier: &Frontier) -> bool {
    !frontier.is_empty() && frontier.nodes().all(|node| graph.is_fold(node))
}

fn tasks(
    graph: &Graph,
    frontier: &Frontier,
    questions: &[Question],
    error: Option<&str>,
    result: &dyn Fn(&str, bool) -> Value,
) -> Vec<Value> {
    let due: Vec<_> = frontier.due.iter().filter(|due| !graph.is_fold(&due.node)).collect();
    let mut sent = 0;
    let alone = due.len() == 1;
    due.iter()
        .map(|due| {
            let path = match due.payload {
                None => json!(["__pregel_pull", &*due.node]),
                Some(_) => {
                    sent += 1;
                    json!(["__pregel_push", sent - 1, false])
                }
            };
            let asked: Vec<Value> = questions
                .iter()
                .filter(|question| question.task == due.task)
                .map(|question| interrupt(question.id, &question.value))
                .collect();
            json!({
                "id": due.task.to_string(), "name": &*due.node, "path": path, "error": error,
                "interrupts": asked, "checkpoint": null, "state": null,
                "result": result(&due.node, alone),
            })
        })
        .collect()
}

/// The checkpoint that another is shown to follow: what is not shown is passed over, and a fork follows
/// what its client named.
async fn parent_of(
    app: &App,
    thread: ThreadId,
    graph: &Graph,
    record: &CheckpointRecord,
) -> Result<Option<CheckpointId>, Problem> {
    let parent = match (record.source, record.parent) {
        (Source::Input, _) => Some(before_input(record.id)),
        (Source::Fork, parent) => named_by(app, record.run).await.or(parent),
        (Source::Loop, Some(parent)) if record.frontier.is_empty() && graph.folds() => {
            let found = app.engine.state_at(thread, Some(parent)).await?;
            let hidden = found.filter(|found| awaits_fold(graph, &found.frontier));
            hidden.map_or(Some(parent), |hidden| hidden.parent)
        }
        (_, parent) => parent,
    };
    Ok(parent)
}

/// What a run was given as its metadata.
async fn noted_of(app: &App, run: Option<RunId>) -> Map<String, Value> {
    let Some(run) = run else { return Map::new() };
    let found = app.engine.run(run).await;
    let mut noted = found.map_or_else(|_| Map::new(), |found| found.record.metadata);
    noted.remove(runs::OWN);
    noted
}

/// The checkpoint that the client of a run named to start from.
async fn named_by(app: &App, run: Option<RunId>) -> Option<CheckpointId> {
    facts::named(&app.engine.run(run?).await.ok()?.record)
}

/// A thread's head: with what finished calls of an unfinished superstep wrote.
async fn shown_head(
    app: &App,
    thread: ThreadId,
    graph: &Graph,
    found: &ThreadState,
    failure: Option<&Failure>,
) -> Result<Shown, Problem> {
    let parent = parent_of(app, thread, graph, &record_of(found)).await?;
    let journal: Journal = found.journal.iter().cloned().collect();
    let mut state = found.state.clone();
    let mut open = found.frontier.clone();
    let mut done = Vec::new();
    open.due.retain(|due| match journal.done(due.task) {
        Some(output) => {
            done.extend(output.writes);
            false
        }
        None => true,
    });
    // Writes that do not fit are the superstep's own problem, when it is made again.
    let _ = graph.apply(&mut state, done);
    let questions = Engine::questions(found);
    let error = failure.map(|failure| format!("{}({:?})", failure.code, failure.message));
    Ok(Shown {
        id: found.checkpoint,
        parent,
        values: graph.values(&state),
        next: next(graph, &open),
        tasks: tasks(graph, &open, &questions, error.as_deref(), &|_, _| Value::Null),
        interrupts: questions
            .iter()
            .map(|question| interrupt(question.id, &question.value))
            .collect(),
        source: match found.source {
            Source::Input => Source::Loop.as_str(),
            other => other.as_str(),
        },
        step: shown_step(&found.frontier),
        run: found.run,
        noted: noted_of(app, found.run).await,
        at: found.created_at,
    })
}

/// Before an input: `found` is the checkpoint that has it, `before` the state without it.
fn shown_before(
    graph: &Graph,
    found: &CheckpointRecord,
    before: &Channels,
    input: Value,
    noted: Map<String, Value>,
) -> Shown {
    let id = before_input(found.id);
    let task = json!({
        "id": start_task(found.id).to_string(), "name": "__start__",
        "path": ["__pregel_pull", "__start__"], "error": null, "interrupts": [],
        "checkpoint": null, "state": null, "result": input,
    });
    Shown {
        id,
        parent: found.parent,
        values: graph.values(before),
        next: vec!["__start__".to_owned()],
        tasks: vec![task],
        interrupts: Vec::new(),
        source: Source::Input.as_str(),
        step: shown_step(&found.frontier) - 1,
        run: found.run,
        noted,
        at: found.created_at,
    }
}

fn record_of(found: &ThreadState) -> CheckpointRecord {
    CheckpointRecord {
        id: found.checkpoint,
        parent: found.parent,
        run: found.run,
        step: found.step,
        source: found.source,
        frontier: found.frontier.clone(),
        created_at: found.created_at,
    }
}

pub(super) async fn shown_at(
    app: &App,
    thread: ThreadId,
    id: CheckpointId,
) -> Result<Value, Problem> {
    let overview = threads::overview(app, thread).await?;
    let graph = threads::graph_of(app, &overview).await?;
    let Some((place, found)) = find(app, thread, id).await? else { return Ok(nothing()) };
    let shown = match place {
        Place::At(id) => {
            let failure = failure(&overview).filter(|_| overview.record.head == Some(id));
            shown_head(app, thread, &graph, &found, failure).await?
        }
        Place::Before { parent, .. } => {
            let before = match parent {
                Some(parent) => app.engine.state_at(thread, Some(parent)).await?,
                None => None,
            };
            let before = before.map(|found| found.state).unwrap_or_default();
            let input = input_of(app, &graph, found.run).await?;
            let noted = noted_of(app, found.run).await;
            shown_before(&graph, &record_of(&found), &before, input, noted)
        }
    };
    Ok(shown.to_json(thread, &graph))
}

/// What a run was given.
async fn input_of(app: &App, graph: &Graph, run: Option<RunId>) -> Result<Value, Problem> {
    let Some(run) = run else { return Ok(Value::Null) };
    let Ok(view) = app.engine.run(run).await else { return Ok(Value::Null) };
    let Value::Object(input) = view.record.input else { return Ok(Value::Null) };
    let input = graph.given(&input);
    let shown = input.iter().map(|(name, value)| (name.clone(), graph.value(name, value)));
    Ok(Value::Object(shown.collect()))
}

pub(super) fn failure(overview: &ThreadOverview) -> Option<&Failure> {
    let stands = overview.stand == clearway_engine::Stand::Error;
    overview.last.as_ref().filter(|_| stands)?.failure.as_ref()
}

// ## GET state

/// `GET /threads/{thread_id}/state`
async fn head(State(app): State<App>, Params(params): Params) -> Result<Json<Value>, Problem> {
    Ok(Json(shown_now(&app, threads::id(&params[0])?).await?))
}

async fn shown_now(app: &App, thread: ThreadId) -> Result<Value, Problem> {
    let overview = threads::overview(app, thread).await?;
    let graph = threads::graph_of(app, &overview).await?;
    if let Some(pending) = pending(app, &overview).await? {
        let shown = shown_head(app, thread, &graph, &pending.found, None).await?;
        return Ok(shown.to_json(thread, &graph));
    }
    let Some(found) = app.engine.state_at(thread, None).await? else { return Ok(nothing()) };
    let shown = shown_head(app, thread, &graph, &found, failure(&overview)).await?;
    Ok(shown.to_json(thread, &graph))
}

/// `GET /threads/{thread_id}/state/{checkpoint_id}`
async fn at(State(app): State<App>, Params(params): Params) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let id = CheckpointId(errors::uuid("checkpoint_id", &params[1])?);
    Ok(Json(shown_at(&app, thread, id).await?))
}

/// `POST /threads/{thread_id}/state/checkpoint`
async fn at_checkpoint(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let mut fields = read_fields(&app, request).await?;
    let checkpoint = match fields.value("checkpoint") {
        None | Some(Value::Null) => return Err(unprocessable("`checkpoint` is required")),
        Some(checkpoint) => checkpoint_in(&checkpoint)?,
    };
    fields.finish().map_err(errors::invalid)?;
    // `RemoteGraph` asks so for where a thread stands: with its id, and no checkpoint's.
    Ok(Json(match checkpoint {
        Some(id) => shown_at(&app, thread, id).await?,
        None => shown_now(&app, thread).await?,
    }))
}

pub(super) async fn read_fields(app: &App, request: Request) -> Result<Fields, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    Fields::parse(&body).map_err(errors::invalid)
}

/// `checkpoint` (an object, with or without `thread_id`) or `checkpoint_id`.
///
/// # Errors
/// 422 for anything else.
pub(super) fn named_checkpoint(fields: &mut Fields) -> Result<Option<CheckpointId>, Problem> {
    let own = match fields.value("checkpoint_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(errors::uuid("checkpoint_id", &text)?),
        Some(_) => return Err(unprocessable("`checkpoint_id` must be a UUID")),
    };
    let inside = match fields.value("checkpoint") {
        None | Some(Value::Null) => None,
        Some(value) => checkpoint_in(&value)?,
    };
    Ok(own.map(CheckpointId).or(inside))
}

/// The checkpoint that an object, a configuration or a text names.
fn checkpoint_in(value: &Value) -> Result<Option<CheckpointId>, Problem> {
    let text = match value {
        Value::String(text) => Some(text.as_str()),
        Value::Object(map) => {
            let inside = map.get("configurable").and_then(Value::as_object).unwrap_or(map);
            match inside.get("checkpoint_id") {
                None | Some(Value::Null) => None,
                Some(Value::String(text)) => Some(text.as_str()),
                Some(_) => return Err(unprocessable("`checkpoint_id` must be a UUID")),
            }
        }
        _ => return Err(unprocessable("a checkpoint is an object with a `checkpoint_id`")),
    };
    match text {
        None | Some("") => Ok(None),
        Some(text) => errors::uuid("checkpoint_id", text).map(|id| Some(CheckpointId(id))),
    }
}

// ## POST state

/// `POST /threads/{thread_id}/state`
async fn update(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let mut fields = read_fields(&app, request).await?;
    let values = fields.value("values").unwrap_or_default();
    let as_node = fields.nullable_text("as_node");
    let from = named_checkpoint(&mut fields)?;
    fields.finish().map_err(errors::invalid)?;
    let id = change(&app, thread, &values, as_node, from).await?;
    let place = checkpoint(thread, id);
    Ok(Json(json!({
        "checkpoint": place, "configurable": place, "checkpoint_id": id.to_string(),
    })))
}

/// Changes a thread's state; the new checkpoint.
pub(super) async fn change(
    app: &App,
    thread: ThreadId,
    values: &Value,
    as_node: Option<String>,
    from: Option<CheckpointId>,
) -> Result<CheckpointId, Problem> {
    let overview = threads::overview(app, thread).await?;
    let graph = threads::graph_of(app, &overview).await?;
    if graph.agent.is_none() {
        let text = "no graph is known for this thread: run one on it, or give it a `graph_id` in \
                    its metadata";
        return Err(bad_request(text));
    }
    let as_node = as_node.map(|node| if node == "__input__" { START.to_owned() } else { node });
    let ends = as_node.as_deref() == Some(END);
    if ends && !values.is_null() {
        let text = "`__end__` drops what is left to do and takes no values: send them as a node, or \
                    without `as_node`, first";
        return Err(bad_request(text));
    }
    let unknown =
        as_node.as_deref().filter(|node| !ends && *node != START && !graph.has_node(node));
    if let Some(node) = unknown {
        let text = format!("graph `{}` has no node `{}`", graph.name, crate::extract::shown(node));
        return Err(bad_request(text));
    }
    let mut new_id = || app.engine.new_id().to_string();
    let writes = graph.writes(values, &mut new_id).map_err(unprocessable)?;
    let from = match from {
        None => None,
        Some(id) => match find(app, thread, id).await? {
            Some((Place::At(id), _)) => Some(id),
            Some((Place::Before { parent: Some(parent), .. }, _)) => Some(parent),
            Some((Place::Before { .. }, _)) => {
                return Err(unprocessable("nothing was there before the thread's first input"));
            }
            None => {
                let text = format!("no checkpoint {id} on this thread");
                return Err(Problem::new(Code::CheckpointNotFound, text));
            }
        },
    };
    let change = StateChange { writes, from, as_node };
    app.engine.update_state(thread, &graph.name, change).await.map_err(|error| {
        let invalid = error.code() == Code::InvalidUpdate;
        let problem = Problem::from(error);
        if invalid { problem.status(StatusCode::BAD_REQUEST) } else { problem }
    })
}

// ## History

/// Which states to list.
#[derive(Debug)]
struct Listing {
    limit: usize,
    before: Option<CheckpointId>,
    metadata: Map<String, Value>,
}

/// `GET /threads/{thread_id}/history`
async fn history_of_query(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let query = Query::parse(request.uri()).map_err(|invalid| errors::invalid(vec![invalid]))?;
    let limit = match query.get("limit") {
        None => 10,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=1000).contains(limit))
            .ok_or_else(|| unprocessable("`limit` must be a whole number from 1 to 1000"))?,
    };
    let before = match query.get("before") {
        None | Some("") => None,
        Some(text) => Some(CheckpointId(errors::uuid("before", text)?)),
    };
    history(&app, thread, Listing { limit, before, metadata: Map::new() }).await.map(Json)
}

/// `POST /threads/{thread_id}/history`
async fn history_of_body(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let mut fields = read_fields(&app, request).await?;
    let limit = errors::count(&mut fields, "limit", 1..=1000, 1) as usize;
    let metadata = errors::object(&mut fields, "metadata");
    let before = match fields.value("before") {
        None | Some(Value::Null) => None,
        Some(value) => checkpoint_in(&value)?,
    };
    let namespace = match fields.value("checkpoint") {
        Some(Value::Object(map)) => map.get("checkpoint_ns").and_then(Value::as_str).map(str::len),
        _ => None,
    };
    fields.finish().map_err(errors::invalid)?;
    if namespace.is_some_and(|length| length > 0) {
        // There are no nested graphs.
        threads::overview(&app, thread).await?;
        return Ok(Json(json!([])));
    }
    history(&app, thread, Listing { limit, before, metadata }).await.map(Json)
}

async fn history(app: &App, thread: ThreadId, listing: Listing) -> Result<Value, Problem> {
    let overview = threads::overview(app, thread).await?;
    let graph = threads::graph_of(app, &overview).await?;
    let pending = pending(app, &overview).await?;
    let mut newest = match &pending {
        Some(pending) => shown_pending(app, thread, &graph, pending).await?,
        None => Vec::new(),
    };
    let mut before = listing.before.map(after_arrival);
    let mut shown: Vec<Value> = Vec::new();
    loop {
        // What is not shown, and the one that is shown beside an input, about balance.
        let want = (listing.limit - shown.len() + 2).min(200) as u32;
        let records = app.engine.history(thread, before, want).await?;
        let is_last = (records.len() as u32) < want;
        before = records.last().map(|record| record.id);
        // It may have committed since.
        let is_there = |pending: &Pending| records.iter().any(|one| one.id == pending.id());
        if pending.as_ref().is_some_and(is_there) {
            newest.clear();
        }
        let states = Listed::load(app, thread, records).await?;
        let states = states.shown(app, &graph, &overview).await?;
        for state in newest.drain(..).chain(states) {
            if listing.before.is_some_and(|before| state.id >= before) {
                continue;
            }
            let metadata = state.metadata(thread, &graph);
            if listing.metadata.iter().all(|(key, value)| metadata.get(key) == Some(value)) {
                shown.push(state.to_json(thread, &graph));
            }
            if shown.len() == listing.limit {
                return Ok(Value::Array(shown));
            }
        }
        if is_last {
            return Ok(Value::Array(shown));
        }
    }
}

/// The checkpoint that a run will have made of its input, and where that has arrived.
async fn shown_pending(
    app: &App,
    thread: ThreadId,
    graph: &Graph,
    pending: &Pending,
) -> Result<Vec<Shown>, Problem> {
    let found = &pending.found;
    let mut shown = vec![shown_head(app, thread, graph, found, None).await?];
    if pending.is_input() {
        let input = input_of(app, graph, found.run).await?;
        let noted = noted_of(app, found.run).await;
        shown.push(shown_before(graph, &record_of(found), &pending.before, input, noted));
    }
    Ok(shown)
}

/// Checkpoints, newest first, with their states.
struct Listed {
    thread: ThreadId,
    records: Vec<CheckpointRecord>,
    states: HashMap<CheckpointId, Channels>,
    steps: HashMap<CheckpointId, StepRecord>,
    /// What their runs were given as metadata.
    noted: HashMap<RunId, Map<String, Value>>,
}

impl Listed {
    /// Loads a state where one must be, and makes the others from what each superstep changed.
    async fn load(
        app: &App,
        thread: ThreadId,
        records: Vec<CheckpointRecord>,
    ) -> Result<Self, Problem> {
        let (mut steps, mut noted) = (HashMap::new(), HashMap::new());
        let mut runs: Vec<RunId> = records.iter().filter_map(|record| record.run).collect();
        runs.dedup();
        for run in runs {
            for step in app.engine.steps(run, None, 1000).await? {
                steps.insert(step.checkpoint.id, step);
            }
            noted.insert(run, noted_of(app, Some(run)).await);
        }
        let mut states: HashMap<CheckpointId, Channels> = HashMap::new();
        for record in records.iter().rev() {
            let parent = match record.parent {
                None => Some(Channels::new()),
                Some(parent) => states.get(&parent).cloned(),
            };
            let state = match (parent, steps.get(&record.id)) {
                (Some(mut state), Some(step)) => {
                    for (channel, op) in &step.ops {
                        state.apply(channel, op.clone());
                    }
                    Some(state)
                }
                _ => app.engine.state_at(thread, Some(record.id)).await?.map(|found| found.state),
            };
            if let Some(state) = state {
                states.insert(record.id, state);
            }
        }
        // What was before the oldest of them.
        let missing: Vec<CheckpointId> = records
            .iter()
            .filter(|record| record.source == Source::Input)
            .filter_map(|record| record.parent)
            .filter(|parent| !states.contains_key(parent))
            .collect();
        for parent in missing {
            if let Some(found) = app.engine.state_at(thread, Some(parent)).await? {
                states.insert(parent, found.state);
            }
        }
        Ok(Self { thread, records, states, steps, noted })
    }

    async fn shown(
        self,
        app: &App,
        graph: &Graph,
        overview: &ThreadOverview,
    ) -> Result<Vec<Shown>, Problem> {
        // The newest superstep that went on from a checkpoint says what its calls returned.
        let mut children: HashMap<CheckpointId, CheckpointId> = HashMap::new();
        for record in &self.records {
            if let Some(parent) = record.parent
                && record.source == Source::Loop
            {
                children.entry(parent).or_insert(record.id);
            }
        }
        let hidden: HashMap<CheckpointId, Option<CheckpointId>> = self
            .records
            .iter()
            .filter(|record| awaits_fold(graph, &record.frontier))
            .map(|record| (record.id, record.parent))
            .collect();
        let mut shown = Vec::new();
        for record in &self.records {
            if hidden.contains_key(&record.id) {
                continue;
            }
            let empty = Channels::new();
            let state = self.states.get(&record.id).unwrap_or(&empty);
            let is_head = overview.record.head == Some(record.id);
            let noted =
                record.run.and_then(|run| self.noted.get(&run)).cloned().unwrap_or_default();
            let mut open = Vec::new();
            if is_head && let Some(head) = app.engine.state_at(self.thread, None).await? {
                open = Engine::questions(&head);
            }
            let error = failure(overview).filter(|_| is_head);
            let error = error.map(|failure| format!("{}({:?})", failure.code, failure.message));
            let child = children.get(&record.id).and_then(|child| self.steps.get(child));
            let result = |node: &str, alone: bool| self.result(graph, child, node, alone);
            let parent = match record.source {
                Source::Input => Some(before_input(record.id)),
                Source::Fork => named_by(app, record.run).await.or(record.parent),
                Source::Loop | Source::Update => {
                    record.parent.and_then(|id| hidden.get(&id).copied().unwrap_or(Some(id)))
                }
            };
            shown.push(Shown {
                id: record.id,
                parent,
                values: graph.values(state),
                next: next(graph, &record.frontier),
                tasks: tasks(graph, &record.frontier, &open, error.as_deref(), &result),
                interrupts: open.iter().map(|one| interrupt(one.id, &one.value)).collect(),
                source: match record.source {
                    Source::Input => Source::Loop.as_str(),
                    other => other.as_str(),
                },
                step: shown_step(&record.frontier),
                run: record.run,
                noted: noted.clone(),
                at: record.created_at,
            });
            if record.source == Source::Input {
                let before = record.parent.and_then(|id| self.states.get(&id)).unwrap_or(&empty);
                let input =
                    self.steps.get(&record.id).map(|step| match graph.returned(&step.ops) {
                        Value::Null => json!({}),
                        taken => taken,
                    });
                shown.push(shown_before(graph, record, before, input.unwrap_or_default(), noted));
            }
        }
        Ok(shown)
    }

    /// What a call returned in the superstep that followed.
    fn result(&self, graph: &Graph, child: Option<&StepRecord>, node: &str, alone: bool) -> Value {
        let Some(child) = child else { return Value::Null };
        if alone {
            return match graph.returned(&child.ops) {
                Value::Null => json!({}),
                returned => returned,
            };
        }
        let own: Vec<_> =
            child.ops.iter().filter(|(channel, _)| &**channel == node).cloned().collect();
        match graph.returned(&own) {
            Value::Null => json!({}),
            returned => returned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_move_by_ticks_and_keep_their_order() {
        let id: CheckpointId = "1f0cb6f4-9f3c-6000-8001-0123456789ab".parse().unwrap();
        let before = before_input(id);
        assert_eq!(before.to_string(), "1f0cb6f4-9f3b-6fff-8001-0123456789ab");
        assert!(before < id);
        assert_eq!(after_arrival(before), id);
        assert_eq!(before.0.get_version_num(), 6);
    }
}
