//! The knowledge agent's dialect: chat over a folder of notes, and the notes themselves.
//!
//! Field for field what the old service's clients know; what they do not know is added in further
//! fields. A chat is a run of the door's agent, a task is a run in the background.
//!
//! Not here: answering and its citations (the engine's), how a stream looks ([`frames`]).

mod frames;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use clearway_core::run::RunRecord;
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Failure, Message, RunId, Status, ThreadId};
use clearway_engine::knowledge::{Note, SearchLimits, SearchQuery, Sources};
use clearway_engine::{From as Begin, Kind, Knowledge, RunQuery, RunView, Submit, Submitted};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::ask::Ask;
use crate::caller::caller;
use crate::extract::{self, Invalid, Query, read_body, shown};
use crate::knowledge::{knowledge, owner};
use crate::runs::put_run_headers;
use crate::server::Door;
use crate::sse::{CancelGuard, Stream};
use crate::{Problem, idempotency, runs, tasks, view};

/// The dialect's name in run records and thread keys.
const DIALECT: &str = "knowledge";
/// Of its chats in the background, in run records: they are listed apart from those that somebody
/// waits for.
const TASK: &str = "knowledge_task";

/// Every body of this door, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    let _ = Ask::parse(data);
}

/// A failed chat is the run's failure, whatever it was: one status for all.
fn failed(failure: Failure) -> Problem {
    Problem::of_run(failure).status(StatusCode::BAD_GATEWAY)
}

struct Accepted {
    run: Submitted,
    guard: Option<CancelGuard>,
}

async fn accept(
    app: &App,
    door: &Door,
    parts: &Parts,
    body: &Bytes,
    address: &str,
    background: bool,
) -> Result<Accepted, Problem> {
    let ask = Ask::parse(body).map_err(Problem::unprocessable)?;
    let query = Query::parse(&parts.uri)?;
    let leave = match query.get("on_disconnect") {
        None | Some("continue") => false,
        Some("cancel") => !background,
        Some(other) => {
            let text = format!(
                "`on_disconnect` must be `cancel` or `continue`, this is `{}`",
                shown(other)
            );
            return Err(Problem::new(Code::InvalidRequest, text));
        }
    };
    let asked = extract::deadline(&parts.headers, ask.deadline.clone())?;
    let route = idempotency::route(&door.mount, address);
    let idempotency = idempotency::read(&parts.headers, &route, body)?;
    let agent = app.engine.agents().get(&door.agent).ok_or_else(|| {
        let text = format!("no agent is called `{}`, to which this door leads", door.agent);
        Problem::new(Code::AgentNotFound, text)
    })?;
    let caller = caller(&parts.headers, ask.user.as_deref())?;
    // Without a conversation of its own name a chat shares its thread with nobody.
    let user = ask.user.as_deref().unwrap_or_default();
    let key = ask.conversation.as_deref().map(|id| ThreadKey::new(DIALECT, &[user, id]));
    let thread = match &key {
        Some(key) => key.thread_id(&caller.tenant),
        None => ThreadId(app.engine.new_id()),
    };
    let messages = ask.messages(app);
    let (name, kind) = if background {
        let working_limit = asked.map(|asked| asked.min(agent.working_limit));
        (TASK, Kind::Background { working_limit })
    } else {
        (DIALECT, Kind::Turn { deadline: asked.map(|asked| asked.min(agent.deadline)) })
    };
    let submit = Submit {
        tenant: caller.tenant,
        owner: caller.owner,
        thread_key: key,
        metadata: extract::traced(ask.metadata, &parts.headers),
        kind,
        idempotency,
        cancel_if_left: leave,
        ..Submit::new(thread, &door.agent, name, json!({"messages": messages}))
    };
    let run = app.engine.submit(submit).await?;
    let guard = leave.then(|| CancelGuard::new(app.clone(), run.run));
    Ok(Accepted { run, guard })
}

/// `POST …/chat`
pub(crate) async fn chat(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, &app.options.limits).await?;
    let mut accepted = accept(&app, door, &parts, &body, "/chat", false).await?;
    let run = accepted.run.run;
    let outcome = app.engine.wait(run).await;
    if let Some(guard) = accepted.guard.take() {
        guard.disarm();
    }
    let answer = match outcome {
        Ok(record) => reply(&app, &record).await,
        Err(error) => Err(error.0),
    };
    let mut response = match answer {
        Ok(message) => Json(response(message.as_ref())).into_response(),
        Err(failure) => failed(failure).into_response(),
    };
    put_run_headers(response.headers_mut(), run);
    Ok(response)
}

async fn reply(app: &App, record: &RunRecord) -> Result<Option<Message>, Failure> {
    if record.status == Status::Success {
        return app.engine.reply(record).await.map_err(|error| error.0);
    }
    Err(record.failure.clone().unwrap_or_else(|| {
        Failure::new(Code::Internal, format!("the run ended as {}", record.status.as_str()))
    }))
}

/// An answer in the dialect's shape.
fn response(message: Option<&Message>) -> Value {
    let text = message.map(|message| message.content.text()).unwrap_or_default();
    let rest = |name: &str| message.and_then(|message| message.rest.get(name)).cloned();
    let citations = rest("citations").unwrap_or_else(|| json!([]));
    let mut categories: Vec<&str> = Vec::new();
    let mut opened: Vec<&str> = Vec::new();
    for citation in citations.as_array().into_iter().flatten() {
        let path = citation["path"].as_str().unwrap_or_default();
        let category = path.split_once('/').map_or("general", |(folder, _)| folder);
        if !categories.contains(&category) {
            categories.push(category);
        }
        if !opened.contains(&path) {
            opened.push(path);
        }
    }
    let actions: Vec<String> = opened.iter().take(3).map(|path| format!("Open {path}")).collect();
    json!({
        "response": text,
        "categories": categories,
        "knowledge_updates": [],
        "suggested_actions": actions,
        "citation_check": rest("citation_check"),
        "citations": citations,
    })
}

/// `POST …/chat/stream`
pub(crate) async fn stream(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, &app.options.limits).await?;
    let accepted = accept(&app, door, &parts, &body, "/chat/stream", false).await?;
    let run = accepted.run.run;
    let log = app.engine.subscribe(run, Begin::Start).await.map_err(|error| failed(error.0))?;
    let mut response =
        Stream::new(app, log, frames::NoteFrames::default(), accepted.guard).into_response();
    put_run_headers(response.headers_mut(), run);
    Ok(response)
}

// ## Tasks

/// `POST …/chat/async`
pub(crate) async fn start(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, &app.options.limits).await?;
    let accepted = accept(&app, door, &parts, &body, "/chat/async", true).await?.run;
    let run = accepted.run;
    let at = |address: String| format!("{}{address}", door.mount.trim_end_matches('/'));
    let poll = at(format!("/chat/task/{run}"));
    let body = json!({
        "task_id": run.to_string(),
        "status": if accepted.existing { tasks::word(accepted.status) } else { "pending" },
        "queue_position": view::ahead(accepted.status, accepted.position).unwrap_or(0),
        "message": "accepted; poll the task for its result",
        "poll": poll,
        "cancel": at(format!("/tasks/{run}")),
    });
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    put_run_headers(response.headers_mut(), run);
    if let Ok(value) = HeaderValue::try_from(poll) {
        response.headers_mut().insert(http::header::LOCATION, value);
    }
    Ok(response)
}

/// A chat of this door, whoever waits for it.
async fn find(app: &App, headers: &HeaderMap, id: &str) -> Result<RunView, Problem> {
    let view = tasks::find(app, headers, id).await?;
    let is_ours = [DIALECT, TASK].contains(&view.record.door.as_str());
    if is_ours { Ok(view) } else { Err(tasks::no_task(id)) }
}

/// `GET …/chat/task/{id}`
pub(crate) async fn show_task(
    app: App,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let view = find(&app, request.headers(), id).await?;
    let mut task = tasks::task(&view);
    if view.record.status == Status::Success {
        let message = app.engine.reply(&view.record).await?;
        task["result"] = response(message.as_ref());
    }
    if view.record.status == Status::Running {
        task["partial"] = app.engine.partial_text(view.record.id).into();
    }
    Ok(Json(task))
}

/// `GET …/tasks`
pub(crate) async fn list_tasks(app: App, request: Request) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    let caller = caller(request.headers(), None)?;
    let limit = runs::limit(&query, 100)?;
    let statuses = query.all("status").map(tasks::statuses).collect::<Result<Vec<_>, _>>()?;
    let query = caller.narrow(RunQuery {
        tenant: Some(caller.tenant.clone()),
        statuses: statuses.concat(),
        door: Some(TASK.to_owned()),
        after: query.read::<RunId>("after", "the id of a task")?,
        limit,
        ..RunQuery::default()
    });
    let (views, next) = app.engine.runs(query).await?;
    let tasks: Vec<Value> = views.iter().map(tasks::task).collect();
    Ok(Json(json!({"total": tasks.len(), "tasks": tasks, "next": next.map(|run| run.to_string())})))
}

/// `DELETE …/tasks/{id}`
pub(crate) async fn cancel(app: App, id: &str, request: Request) -> Result<Json<Value>, Problem> {
    let run = find(&app, request.headers(), id).await?.record.id;
    tasks::end(&app, run).await
}

// ## The service

/// `GET …/health`: from memory, whatever the rest of the server is doing.
pub(crate) async fn health(app: App, door: &Door) -> Json<Value> {
    Json(json!({
        "status": "healthy",
        "service": "knowledge-agent",
        "version": app.options.version,
        "agent_type": "knowledge",
        "agent": door.agent,
        "ready": app.engine.health_quick(),
    }))
}

/// `GET …/agent/info`
pub(crate) async fn info(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let agent = app.engine.agents().get(&door.agent).ok_or_else(|| {
        Problem::new(Code::AgentNotFound, format!("there is no agent `{}`", door.agent))
    })?;
    let source = source(&app, door)?;
    Ok(Json(json!({
        "agent_type": "knowledge",
        "name": agent.name,
        "title": agent.title,
        "model": door.model,
        "tools": door.tools,
        "capabilities": ["chat", "streaming", "background_tasks", "citations", "search", "knowledge_graph", "notes"],
        "deadline_seconds": agent.deadline.as_secs_f64(),
        "source": source,
    })))
}

/// The notes that the door is about: its own source, or the only one.
fn source(app: &App, door: &Door) -> Result<String, Problem> {
    if let Some(source) = &door.source {
        return Ok(source.clone());
    }
    let knowledge = knowledge(app)?;
    knowledge.sources().into_iter().next().ok_or_else(|| {
        Problem::new(Code::NotFound, "no source of knowledge is configured")
            .hint("Add [knowledge.NAME] with a folder.")
    })
}

/// A query that the old service's dialect refuses: as a body, field by field.
fn wrong(kind: &'static str, name: &str, why: &str) -> Problem {
    Problem::unprocessable(vec![Invalid::new(kind, &["query", name], why)])
}

fn limit(query: &Query, usual: usize) -> Result<usize, Problem> {
    let limit = match query.get("limit") {
        None => Some(usual),
        Some(text) => text.parse().ok().filter(|limit| (1..=1000).contains(limit)),
    };
    limit.ok_or_else(|| wrong("int_parsing", "limit", "must be a whole number from 1 to 1000"))
}

fn asked(query: &Query) -> Result<&str, Problem> {
    match query.get("query") {
        None => Err(wrong("missing", "query", "this field is required")),
        Some(text) if text.trim().is_empty() => {
            Err(wrong("string_too_short", "query", "must not be empty or blank"))
        }
        Some(text) => Ok(text),
    }
}

fn flag(query: &Query, name: &str) -> Result<bool, Problem> {
    query.flag(name).map_err(|problem| wrong("bool_parsing", name, problem.detail()))
}

/// `GET …/knowledge/graph`
pub(crate) async fn graph(app: App, door: &Door, request: Request) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    let text = |name: &str| query.get(name).filter(|text| !text.is_empty()).map(ToOwned::to_owned);
    let wanted = clearway_engine::knowledge::GraphQuery {
        entity: text("entity"),
        to: text("to"),
        limit: query.read::<usize>("limit", "a whole number")?.unwrap_or(200),
    };
    crate::knowledge::refuse_aimless(&wanted)?;
    let graph = knowledge(&app)?.graph(&source(&app, door)?, wanted).await?;
    Ok(Json(json!({"graph": graph})))
}

/// `GET …/knowledge/search` and `…/notes/search`
pub(crate) async fn search(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    let text = asked(&query)?.to_owned();
    let threshold = query.read::<f32>("similarity_threshold", "a number from 0 to 1")?;
    let limits = SearchLimits {
        similarity_threshold: threshold.unwrap_or(0.0).clamp(0.0, 1.0),
        max_chunks: limit(&query, 10)?,
        token_budget: u32::MAX,
    };
    let deadline = extract::deadline(request.headers(), None)?;
    let search = SearchQuery {
        text: text.clone(),
        owner: owner(request.headers(), query.get("user_id"))?,
        sources: Sources::Named(vec![source(&app, door)?]),
        documents: None,
        limits,
        deadline,
        wait: None,
    };
    let found = knowledge(&app)?.search(search).await?;
    let results: Vec<Value> = found.chunks.iter().map(|chunk| chunk.to_json()).collect();
    let explanation = found.explanation_json();
    Ok(Json(json!({"results": results, "query": text, "explanation": explanation})))
}

/// `GET …/knowledge/search/content`
pub(crate) async fn content(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    let words = asked(&query)?;
    let exact = flag(&query, "case_sensitive")?;
    let limit = limit(&query, 20)?;
    let hits = knowledge(&app)?.find_text(&source(&app, door)?, words, exact, limit).await?;
    let hit = |hit: &clearway_engine::knowledge::ContentHit| {
        let mut shown = hit.note.to_json();
        shown["line"] = hit.line.clone().into();
        shown["section_path"] = hit.section.join(" > ").into();
        shown["at"] = hit.at.into();
        shown
    };
    let results: Vec<Value> = hits.iter().map(hit).collect();
    Ok(Json(json!({"results": results, "query": words, "case_sensitive": exact})))
}

fn by_category(notes: &[Note]) -> BTreeMap<&str, Vec<&Note>> {
    let mut categories: BTreeMap<&str, Vec<&Note>> = BTreeMap::new();
    for note in notes {
        categories.entry(&note.category).or_default().push(note);
    }
    categories
}

/// `GET …/knowledge/categories`
pub(crate) async fn categories(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let notes = knowledge(&app)?.notes(&source(&app, door)?)?;
    let count = |(name, notes): (&str, Vec<&Note>)| json!({"name": name, "notes": notes.len()});
    let counts: Vec<Value> = by_category(&notes).into_iter().map(count).collect();
    let names: Vec<&str> = by_category(&notes).into_keys().collect();
    Ok(Json(json!({"categories": names, "counts": counts})))
}

/// `GET …/notes`
pub(crate) async fn list(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let notes = knowledge(&app)?.notes(&source(&app, door)?)?;
    let shown: Vec<Value> = notes.iter().map(Note::to_json).collect();
    Ok(Json(json!({"total": shown.len(), "notes": shown})))
}

/// `GET …/notes/structure`
pub(crate) async fn structure(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"structure": tree(&knowledge(&app)?.notes(&source(&app, door)?)?)})))
}

/// A folder with what is in it.
#[derive(Default)]
struct Folder<'n> {
    folders: BTreeMap<&'n str, Self>,
    files: Vec<&'n str>,
}

impl Folder<'_> {
    fn to_json(&self) -> Value {
        let folders: Map<String, Value> = self
            .folders
            .iter()
            .map(|(name, folder)| ((*name).to_owned(), folder.to_json()))
            .collect();
        json!({"folders": folders, "files": self.files})
    }
}

fn tree(notes: &[Note]) -> Value {
    let mut root = Folder::default();
    for note in notes {
        let mut at = &mut root;
        let mut parts: Vec<&str> = note.path.split('/').collect();
        let file = parts.pop().unwrap_or_default();
        for part in parts {
            at = at.folders.entry(part).or_default();
        }
        at.files.push(file);
    }
    root.to_json()
}

/// `GET …/notes/{category}`: a category's notes, or one note with its text.
pub(crate) async fn category(app: App, door: &Door, name: &str) -> Result<Json<Value>, Problem> {
    let knowledge = knowledge(&app)?;
    let source = &source(&app, door)?;
    let notes = knowledge.notes(source)?;
    let mut texts = Vec::new();
    for note in notes.iter().filter(|note| note.category == name).take(200) {
        texts.push(with_text(knowledge, source, note).await?);
    }
    if texts.is_empty() {
        let opened = knowledge.open(source, name).await.map_err(|_| {
            let text = format!("there is no category and no note `{}`", shown(name));
            Problem::new(Code::NotFound, text)
        })?;
        texts.push(with_text(knowledge, source, &opened.note).await?);
    }
    Ok(Json(json!({"category": name, "total": texts.len(), "notes": texts})))
}

async fn with_text(knowledge: &Knowledge, source: &str, note: &Note) -> Result<Value, Problem> {
    let opened = knowledge.open(source, &note.id).await?;
    let mut shown = note.to_json();
    shown["content"] = opened.text.into();
    Ok(shown)
}

// ## Cache and configuration

/// `GET …/cache/stats`
pub(crate) async fn cache_stats(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let status = knowledge(&app)?.source_status(&source(&app, door)?)?;
    Ok(Json(json!({
        "documents": status["documents"],
        "chunks": status["chunks"],
        "index_bytes": status["index_bytes"],
        "text_bytes": status["text_bytes"],
        "builds": status["index"]["builds"],
        "settled": status["settled"],
        "status": status,
    })))
}

/// `POST …/cache/clear?confirm=` and `…/cache/rebuild`: what is derived is made again from the
/// documents; answers meanwhile come from what there is.
pub(crate) async fn rebuild(
    app: App,
    door: &Door,
    needs_confirm: bool,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    if needs_confirm && !query.flag("confirm")? {
        let text = "this reads all documents again; say so with `confirm=true`";
        return Err(Problem::new(Code::InvalidRequest, text));
    }
    refresh(&app, door, true)
}

/// `POST …/sync?force_rebuild=`
pub(crate) async fn sync(app: App, door: &Door, request: Request) -> Result<Json<Value>, Problem> {
    let all = flag(&Query::parse(request.uri())?, "force_rebuild")?;
    refresh(&app, door, all)
}

fn refresh(app: &App, door: &Door, all: bool) -> Result<Json<Value>, Problem> {
    let knowledge = knowledge(app)?;
    let source = &source(app, door)?;
    knowledge.refresh(source, all)?;
    let message = if all { "all documents are read again" } else { "looking for changes" };
    Ok(Json(json!({
        "status": "started",
        "message": message,
        "source": source,
        "progress": knowledge.source_status(source)?,
    })))
}

/// `GET …/config/embeddings`
pub(crate) async fn config_embeddings(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let source = source(&app, door)?;
    let options = knowledge(&app)?.source(&source);
    let model = options.and_then(|options| options.embeddings);
    let known = model.and_then(|model| app.engine.upstream().embedding_model(&model));
    Ok(Json(match known {
        Some(model) => json!({
            "provider": model.provider, "model": model.model, "dimensions": model.dimensions,
        }),
        None => json!({
            "provider": "local", "model": "learned from the notes", "dimensions": null,
        }),
    }))
}

/// `GET …/config/notes`
pub(crate) async fn config_notes(app: App, door: &Door) -> Result<Json<Value>, Problem> {
    let knowledge = knowledge(&app)?;
    let source = &source(&app, door)?;
    let status = knowledge.source_status(source)?;
    Ok(Json(json!({
        "folder": status["folder"],
        "source": source,
        "watched": status["watched"],
        "structure": tree(&knowledge.notes(source)?),
    })))
}
