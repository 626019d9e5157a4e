//! Threads: made, found, described, copied, pruned, deleted.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use clearway_core::plan::MESSAGES;
use clearway_core::{Code, ThreadId};
use clearway_engine::{
    EPHEMERAL, Engine, Keep, NewThread, RunQuery, Stand, ThreadMade, ThreadOverview, ThreadSearch,
    ThreadSort,
};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::Params;
use super::errors::{self, unprocessable};
use super::graph::Graph;
use super::state::{self, read_fields};
use super::ttl;
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::caller::caller;
use crate::extract::{Fields, shown};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::POST, "/threads", post(create))?
        .add(Method::POST, "/threads/search", post(search))?
        .add(Method::POST, "/threads/count", post(count))?
        .add(Method::POST, "/threads/prune", post(prune))?
        .add(Method::GET, "/threads/{thread_id}", get(show))?
        .add(Method::PATCH, "/threads/{thread_id}", axum::routing::patch(change))?
        .add(Method::DELETE, "/threads/{thread_id}", axum::routing::delete(remove))?
        .add(Method::POST, "/threads/{thread_id}/copy", post(copy))
}

// ## Finding

/// The thread's id in a path.
pub(super) fn id(text: &str) -> Result<ThreadId, Problem> {
    errors::uuid("thread_id", text).map(ThreadId)
}

fn missing(thread: ThreadId) -> Problem {
    Problem::new(Code::ThreadNotFound, format!("no thread {thread}"))
}

/// A thread that clients may see. A stateless run's is gone when the run has ended.
pub(super) async fn overview(app: &App, thread: ThreadId) -> Result<ThreadOverview, Problem> {
    let found = app.engine.thread_overview(thread).await?;
    let ephemeral = found.record.key.as_ref().is_some_and(|key| key.dialect == EPHEMERAL);
    if ephemeral && found.record.active_run.is_none() {
        return Err(missing(thread));
    }
    Ok(found)
}

/// The graph that a thread belongs to: what its metadata says, else that of its newest run.
pub(super) async fn graph_of(app: &App, overview: &ThreadOverview) -> Result<Graph, Problem> {
    if let Some(name) = overview.record.metadata.get("graph_id").and_then(Value::as_str) {
        return Ok(Graph::new(app, name));
    }
    let query = RunQuery { thread: Some(overview.record.id), limit: 1, ..RunQuery::default() };
    let (runs, _) = app.engine.runs(query).await?;
    let name = runs.first().map(|run| run.record.agent.clone()).unwrap_or_default();
    Ok(Graph::new(app, &name))
}

// ## Showing

/// A thread as clients see it; `values` asks for its state, too.
pub(super) async fn to_json(
    app: &App,
    overview: &ThreadOverview,
    with_values: bool,
) -> Result<Value, Problem> {
    let record = &overview.record;
    let mut metadata = record.metadata.clone();
    if let Some(key) = &record.key
        && key.dialect != EPHEMERAL
    {
        metadata.entry("thread_dialect").or_insert_with(|| key.dialect.clone().into());
    }
    let mut thread = json!({
        "thread_id": record.id.to_string(),
        "created_at": record.created_at.to_string(),
        "updated_at": record.updated_at.to_string(),
        "state_updated_at": overview.state_at.unwrap_or(record.created_at).to_string(),
        "metadata": metadata,
        "status": overview.stand.as_str(),
        "config": {},
        "values": null,
    });
    if overview.last.is_some() {
        thread["error"] = match state::failure(overview) {
            None => Value::Null,
            Some(failure) => json!({"error": failure.code.as_str(), "message": failure.message}),
        };
        thread["interrupts"] = json!({});
    }
    // During the first run there is nothing yet that a finished one has left.
    let settled = overview.last.is_some() || record.active_run.is_none();
    if with_values && settled && record.head.is_some() {
        let graph = graph_of(app, overview).await?;
        if let Some(found) = app.engine.state_at(record.id, None).await? {
            thread["values"] = graph.values(&found.state);
            let mut interrupts = Map::new();
            for question in Engine::questions(&found) {
                let shown = state::interrupt(question.id, &question.value);
                let of_task = interrupts
                    .entry(question.task.to_string())
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(of_task) = of_task {
                    of_task.push(shown);
                }
            }
            if record.active_run.is_none() {
                thread["interrupts"] = Value::Object(interrupts);
            }
        }
    }
    Ok(thread)
}

/// `GET /threads/{thread_id}`
async fn show(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let overview = overview(&app, id(&params[0])?).await?;
    let mut shown = to_json(&app, &overview, true).await?;
    if ttl::is_asked_for(request.uri())? {
        ttl::include(&app, overview.record.id, &mut shown).await?;
    }
    Ok(Json(shown))
}

// ## Making

/// `POST /threads`
async fn create(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let asks = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let thread = match fields.nullable_text("thread_id") {
        None => app.engine.new_thread_id(),
        Some(text) => id(&text)?,
    };
    let metadata = errors::object(&mut fields, "metadata");
    let if_exists = errors::choice(&mut fields, "if_exists", &["raise", "do_nothing"], "raise");
    let ttl = ttl::read(&mut fields);
    let supersteps = fields.list("supersteps");
    fields.finish().map_err(errors::invalid)?;
    let updates = supersteps_of(&supersteps)?;
    let new = NewThread {
        id: thread,
        tenant: asks.tenant.clone(),
        owner: asks.owner.clone(),
        key: None,
        metadata,
    };
    match app.engine.make_thread(new).await? {
        ThreadMade::Exists(_) if if_exists == "raise" => {
            let text = format!("thread {thread} exists already");
            return Err(Problem::new(Code::InvalidRequest, text).status(StatusCode::CONFLICT));
        }
        ThreadMade::Exists(known) => {
            if !asks.owns(&known.tenant, known.owner.as_deref()) {
                return Err(missing(thread));
            }
        }
        ThreadMade::Made(_) => {
            for (values, as_node) in updates {
                state::change(&app, thread, &values, as_node, None).await?;
            }
            if let Some(ttl) = ttl {
                app.engine.limit_thread(thread, ttl).await?;
            }
        }
    }
    let overview = overview(&app, thread).await?;
    Ok(Json(to_json(&app, &overview, true).await?))
}

/// Updates that make a thread's history, as if nodes had run.
fn supersteps_of(supersteps: &[Value]) -> Result<Vec<(Value, Option<String>)>, Problem> {
    let mut all = Vec::new();
    for superstep in supersteps {
        let Some(updates) = superstep["updates"].as_array() else {
            return Err(unprocessable("`supersteps`: each has a list of `updates`"));
        };
        for update in updates {
            if !update.is_object() {
                return Err(unprocessable("`supersteps`: an update is an object"));
            }
            let as_node = update["as_node"].as_str().map(ToOwned::to_owned);
            all.push((update["values"].clone(), as_node));
        }
    }
    if all.len() > MOST_UPDATES {
        let text = format!("`supersteps`: at most {MOST_UPDATES} updates at once");
        return Err(unprocessable(text));
    }
    Ok(all)
}

const MOST_UPDATES: usize = 1000;

/// `PATCH /threads/{thread_id}`
async fn change(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = id(&params[0])?;
    let minimal = wants_minimal(request.headers());
    let mut fields = read_fields(&app, request).await?;
    let metadata = errors::object(&mut fields, "metadata");
    let ttl = ttl::read(&mut fields);
    fields.finish().map_err(errors::invalid)?;
    overview(&app, thread).await?;
    if let Some(ttl) = ttl {
        app.engine.limit_thread(thread, ttl).await?;
    }
    if !metadata.is_empty() {
        app.engine.describe_thread(thread, metadata).await?;
    }
    if minimal {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let overview = overview(&app, thread).await?;
    Ok(Json(to_json(&app, &overview, true).await?).into_response())
}

/// `Prefer: return=minimal`
pub(super) fn wants_minimal(headers: &HeaderMap) -> bool {
    let prefer = headers.get("prefer").and_then(|value| value.to_str().ok()).unwrap_or_default();
    prefer.split(',').any(|part| part.trim() == "return=minimal")
}

/// `DELETE /threads/{thread_id}`
async fn remove(State(app): State<App>, Params(params): Params) -> Result<StatusCode, Problem> {
    let thread = id(&params[0])?;
    overview(&app, thread).await?;
    delete(&app, thread).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a thread; what runs on it ends first.
async fn delete(app: &App, thread: ThreadId) -> Result<(), Problem> {
    for _ in 0..DELETE_TRIES {
        match app.engine.delete_thread(thread).await {
            Ok(()) => return Ok(()),
            Err(error) if error.code() == Code::ThreadBusy => end_runs(app, thread).await?,
            Err(error) => return Err(error.into()),
        }
    }
    let text = format!("thread {thread} gets new runs faster than they can be ended");
    Err(Problem::new(Code::ThreadBusy, text))
}

const DELETE_TRIES: usize = 5;
/// How long deleting waits for what runs to end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Ends everything on a thread: first what waits, so that nothing is promoted.
async fn end_runs(app: &App, thread: ThreadId) -> Result<(), Problem> {
    let runs = unfinished(app, thread).await?;
    for run in &runs {
        app.engine.cancel(*run, "thread_deleted").await?;
    }
    let ended = async {
        for run in runs {
            // One that this instance let go of has ended as far as this thread is concerned.
            let _ = app.engine.wait(run).await;
        }
    };
    timeout(END_LIMIT, ended).await.map_err(|_| {
        let text = format!("what runs on thread {thread} did not end in time");
        Problem::new(Code::ThreadBusy, text)
    })
}

/// Unfinished runs of a thread, the newest first.
pub(super) async fn unfinished(
    app: &App,
    thread: ThreadId,
) -> Result<Vec<clearway_core::RunId>, Problem> {
    use clearway_core::Status;
    let query = RunQuery {
        thread: Some(thread),
        statuses: vec![Status::Blocked, Status::Ready, Status::Running, Status::Waiting],
        limit: 1000,
        ..RunQuery::default()
    };
    let (runs, _) = app.engine.runs(query).await?;
    Ok(runs.into_iter().map(|view| view.record.id).collect())
}

/// `POST /threads/{thread_id}/copy`
async fn copy(State(app): State<App>, Params(params): Params) -> Result<Json<Value>, Problem> {
    let thread = id(&params[0])?;
    let conflict = |problem: Problem| match problem.code() {
        // What LangGraph's server says about a thread that is not there.
        Code::ThreadNotFound => problem.status(StatusCode::CONFLICT),
        _ => problem,
    };
    overview(&app, thread).await.map_err(conflict)?;
    let copied = app.engine.copy_thread(thread).await?;
    let overview = overview(&app, copied.id).await?;
    Ok(Json(to_json(&app, &overview, true).await?))
}

/// `POST /threads/prune`
async fn prune(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let asks = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let ids = match fields.value("thread_ids") {
        Some(Value::Array(ids)) => ids,
        _ => {
            fields.wrong("list_type", "thread_ids", "must be a list of UUIDs");
            Vec::new()
        }
    };
    let strategy = errors::choice(&mut fields, "strategy", &["delete", "keep_latest"], "delete");
    fields.finish().map_err(errors::invalid)?;
    let mut threads = Vec::with_capacity(ids.len());
    for one in &ids {
        let text = one.as_str().ok_or_else(|| unprocessable("`thread_ids` holds UUIDs"))?;
        threads.push(id(text)?);
    }
    let mut pruned = 0;
    for thread in threads {
        let Ok(ThreadOverview { record, .. }) = overview(&app, thread).await else { continue };
        if !asks.owns(&record.tenant, record.owner.as_deref()) {
            continue;
        }
        match strategy.as_str() {
            "delete" => delete(&app, thread).await?,
            _ => {
                app.engine.prune_thread(thread, Keep::Last(1)).await?;
            }
        }
        pruned += 1;
    }
    Ok(Json(json!({"pruned_count": pruned})))
}

// ## Searching

/// What a search and a count ask for.
struct Wanted {
    search: ThreadSearch,
    values: Map<String, Value>,
}

fn wanted(app: &App, headers: &HeaderMap, fields: &mut Fields) -> Result<Wanted, Problem> {
    let metadata = errors::object(fields, "metadata");
    let values = errors::object(fields, "values");
    let mut ids = Vec::new();
    let (listed, given) = match fields.value("ids") {
        None | Some(Value::Null) => (Vec::new(), false),
        Some(Value::Array(ids)) => (ids, true),
        Some(_) => return Err(unprocessable("`ids` must be a list of UUIDs")),
    };
    for one in &listed {
        let text = one.as_str().ok_or_else(|| unprocessable("`ids` must be a list of UUIDs"))?;
        ids.push(id(text)?);
    }
    if given && ids.is_empty() {
        // Nothing is asked for, which is not the same as everything.
        ids.push(ThreadId(uuid::Uuid::nil()));
    }
    if ids.len() > 1000 {
        return Err(unprocessable("`ids`: at most 1000"));
    }
    let stand = match fields.nullable_text("status") {
        None => None,
        Some(text) => Some(Stand::parse(&text).ok_or_else(|| {
            let known: Vec<&str> = Stand::ALL.iter().map(|stand| stand.as_str()).collect();
            let text =
                format!("no status is called `{}`; there are: {}", shown(&text), known.join(", "));
            unprocessable(text)
        })?),
    };
    let caller = caller(headers, None)?;
    let _ = app;
    Ok(Wanted {
        search: ThreadSearch {
            tenant: (!caller.admin).then_some(caller.tenant),
            owner: caller.owner.filter(|_| !caller.admin),
            ids,
            metadata,
            stand,
            except_dialect: Some(EPHEMERAL.to_owned()),
            ..ThreadSearch::default()
        },
        values,
    })
}

/// Whether a state has these values.
fn has_values(values: &Value, wanted: &Map<String, Value>) -> bool {
    wanted.iter().all(|(key, value)| values.get(key) == Some(value))
}

/// `POST /threads/search`
async fn search(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let mut fields = read_fields(&app, request).await?;
    let Wanted { mut search, values } = wanted(&app, &headers, &mut fields)?;
    let limit = errors::count(&mut fields, "limit", 1..=1000, 10) as u32;
    let offset = errors::count(&mut fields, "offset", 0..=i64::from(u32::MAX), 0) as u32;
    let sorts = ["thread_id", "status", "created_at", "updated_at", "state_updated_at"];
    search.sort = match &*errors::choice(&mut fields, "sort_by", &sorts, "updated_at") {
        "thread_id" => ThreadSort::Id,
        "status" => ThreadSort::Stand,
        "created_at" => ThreadSort::CreatedAt,
        "state_updated_at" => ThreadSort::StateAt,
        _ => ThreadSort::UpdatedAt,
    };
    let order = errors::choice(&mut fields, "sort_order", &["desc", "asc"], "desc");
    search.ascending = order == "asc";
    let select = selected(&mut fields)?;
    let extract = extracts(&mut fields)?;
    fields.finish().map_err(errors::invalid)?;
    let with_values = !values.is_empty()
        || !extract.is_empty()
        || select.as_ref().is_none_or(|names| {
            names.iter().any(|name| matches!(name.as_str(), "values" | "interrupts"))
        });
    let mut found = Vec::new();
    let more = if values.is_empty() {
        (search.limit, search.offset) = (limit, offset);
        let page = app.engine.search_threads(search).await?;
        for overview in &page.threads {
            found.push(to_json(&app, overview, with_values).await?);
        }
        page.more
    } else {
        by_values(&app, search, &values, (offset, limit), &mut found).await?
    };
    let extracted: Vec<Value> = found
        .into_iter()
        .map(|mut thread| {
            if !extract.is_empty() {
                let of_thread: Map<String, Value> = extract
                    .iter()
                    .map(|(alias, path)| (alias.clone(), path.read(&thread)))
                    .collect();
                thread["extracted"] = Value::Object(of_thread);
            }
            if let (Some(select), Value::Object(map)) = (&select, &mut thread) {
                map.retain(|name, _| select.contains(name) || name == "extracted");
            }
            thread
        })
        .collect();
    let mut response = Json(&extracted).into_response();
    let end = u64::from(offset) + extracted.len() as u64;
    let headers = response.headers_mut();
    let total = if more { end + 1 } else { end };
    headers.insert(HeaderName::from_static("x-pagination-total"), HeaderValue::from(total));
    if more {
        headers.insert(HeaderName::from_static("x-pagination-next"), HeaderValue::from(end));
    }
    Ok(response)
}

/// Looks through threads one by one, where their values decide. `true` when there are more.
async fn by_values(
    app: &App,
    mut search: ThreadSearch,
    values: &Map<String, Value>,
    (offset, limit): (u32, u32),
    found: &mut Vec<Value>,
) -> Result<bool, Problem> {
    let mut skip = offset;
    search.limit = 100;
    for _ in 0..PAGES_OF_VALUES {
        let page = app.engine.search_threads(search.clone()).await?;
        for overview in &page.threads {
            let thread = to_json(app, overview, true).await?;
            if !has_values(&thread["values"], values) {
                continue;
            }
            if skip > 0 {
                skip -= 1;
            } else if found.len() == limit as usize {
                return Ok(true);
            } else {
                found.push(thread);
            }
        }
        if !page.more {
            break;
        }
        search.offset += page.threads.len() as u32;
    }
    Ok(false)
}

/// So many hundred threads are looked through for their values.
const PAGES_OF_VALUES: usize = 100;

/// The fields that a client wants of each thread.
fn selected(fields: &mut Fields) -> Result<Option<Vec<String>>, Problem> {
    let names = [
        "thread_id",
        "created_at",
        "updated_at",
        "state_updated_at",
        "metadata",
        "config",
        "context",
        "status",
        "values",
        "interrupts",
        "error",
    ];
    let listed = match fields.value("select") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(listed)) => listed,
        Some(_) => return Err(unprocessable("`select` must be a list of fields")),
    };
    let read = listed.iter().map(|name| {
        let name = name.as_str().filter(|name| names.contains(name))?;
        Some(name.to_owned())
    });
    read.collect::<Option<Vec<_>>>()
        .map(Some)
        .ok_or_else(|| unprocessable(format!("`select` may name: {}", names.join(", "))))
}

/// A path into a thread: `values.messages[-1].content`.
#[derive(Debug, PartialEq)]
struct Path(Vec<Part>);

#[derive(Debug, PartialEq)]
enum Part {
    Name(String),
    Index(i64),
}

impl Path {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = Vec::new();
        for piece in text.split('.') {
            let (name, mut rest) = piece.split_at(piece.find('[').unwrap_or(piece.len()));
            if !name.is_empty() {
                parts.push(Part::Name(name.to_owned()));
            } else if rest.is_empty() {
                return None;
            }
            while !rest.is_empty() {
                let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
                parts.push(Part::Index(index.parse().ok()?));
                rest = after;
            }
        }
        let roots = ["values", "metadata", "config", "context", "interrupts", "error"];
        match parts.first() {
            Some(Part::Name(root)) if roots.contains(&root.as_str()) => Some(Self(parts)),
            _ => None,
        }
    }

    fn read(&self, thread: &Value) -> Value {
        let mut at = thread;
        for part in &self.0 {
            let found = match part {
                Part::Name(name) => at.get(name),
                Part::Index(index) => at.as_array().and_then(|items| {
                    let index = if *index < 0 { items.len() as i64 + index } else { *index };
                    items.get(usize::try_from(index).ok()?)
                }),
            };
            match found {
                Some(found) => at = found,
                None => return Value::Null,
            }
        }
        at.clone()
    }
}

fn extracts(fields: &mut Fields) -> Result<Vec<(String, Path)>, Problem> {
    let wanted = errors::object(fields, "extract");
    if wanted.len() > 10 {
        return Err(unprocessable("`extract`: at most 10 paths"));
    }
    wanted
        .into_iter()
        .map(|(alias, path)| {
            let parsed = path.as_str().and_then(Path::parse);
            let path = parsed.ok_or_else(|| {
                let text = format!(
                    "`extract`: `{}` must be a path like values.{MESSAGES}[-1].content",
                    shown(&alias)
                );
                unprocessable(text)
            })?;
            Ok((alias, path))
        })
        .collect()
}

/// `POST /threads/count`
async fn count(State(app): State<App>, request: Request) -> Result<Json<u64>, Problem> {
    let headers = request.headers().clone();
    let mut fields = read_fields(&app, request).await?;
    let Wanted { search, values } = wanted(&app, &headers, &mut fields)?;
    fields.finish().map_err(errors::invalid)?;
    if values.is_empty() {
        return Ok(Json(app.engine.count_threads(search).await?));
    }
    let mut found = Vec::new();
    by_values(&app, search, &values, (0, u32::MAX), &mut found).await?;
    Ok(Json(found.len() as u64))
}

/// Metadata that a run leaves with its thread: chat pages find their threads by it.
pub(super) fn note(graph: &str, assistant: uuid::Uuid) -> Map<String, Value> {
    let pairs = [("graph_id", graph.to_owned()), ("assistant_id", assistant.to_string())];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_into_threads() {
        let thread =
            json!({"values": {"steps": ["a", "b"], "deep": [{"x": [1]}]}, "status": "idle"});
        let read = |text: &str| Path::parse(text).map(|path| path.read(&thread));
        assert_eq!(read("values.steps[-1]"), Some(json!("b")));
        assert_eq!(read("values.steps[7]"), Some(json!(null)));
        assert_eq!(read("values.deep[0].x[0]"), Some(json!(1)));
        assert_eq!(read("values.missing.further"), Some(json!(null)));
        for bad in ["", "status", "values.[", "values.a[x]", "values..b", "values.a[1"] {
            assert_eq!(Path::parse(bad), None, "{bad}");
        }
    }
}
