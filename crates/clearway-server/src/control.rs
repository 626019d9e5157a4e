//! Starting workflows, answering them, and steering what waits.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::machine::{Command, Resume};
use clearway_core::run::{Budget, RunOptions};
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Priority, RunId, RunRecord, ThreadId};
use clearway_engine::{
    Alert, ArtifactRecord, ArtifactScope, Attention, Decision, Submit, Which, hex,
};
use http::header::{CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{HeaderName, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::Duration;

use crate::app::App;
use crate::caller::{caller, own_run};
use crate::extract::{self, PathText, Query, parse_json, read_body, shown};
use crate::runs::run_id;
use crate::{Problem, idempotency, view};

/// The door of runs that are started at our own addresses.
const DOOR: &str = "runs";

/// A body that is an object with known fields only.
pub(crate) async fn object(
    parts: &Parts,
    body: Body,
    app: &App,
    known: &[&str],
) -> Result<Map<String, Value>, Problem> {
    let bytes = read_body(&parts.headers, body, &app.options.limits).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    let invalid = |text: String| Problem::new(Code::InvalidRequest, text);
    let value = parse_json(&bytes).map_err(|problem| invalid(problem.to_string()))?;
    let Value::Object(map) = value else {
        return Err(invalid("the body must be a JSON object".to_owned()));
    };
    if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
        let text = format!("there is no field `{}` here", shown(unknown));
        return Err(invalid(text).hint(format!("Fields: {}.", known.join(", "))));
    }
    Ok(map)
}

fn wrong(text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, text)
}

/// `high`, `normal`, `low`, or 1 to 5.
pub(crate) fn priority(value: &Value) -> Result<Priority, Problem> {
    let named = match value.as_str() {
        Some("high") => Some(Priority::HIGH),
        Some("normal") => Some(Priority::NORMAL),
        Some("low") => Some(Priority::LOW),
        Some(_) => None,
        None => value.as_u64().and_then(|level| Priority::new(u8::try_from(level).ok()?)),
    };
    named.ok_or_else(|| wrong("`priority` must be high, normal, low, or a number from 1 to 5"))
}

fn budget(value: &Value) -> Result<Budget, Problem> {
    let Value::Object(map) = value else {
        return Err(wrong("`budget` must be an object: {tokens?, cost?, calls?}"));
    };
    let number = |name: &str| match map.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_f64().filter(|number| (0.0..=1e15).contains(number)).map(Some).ok_or_else(
                || wrong(format!("`budget.{name}` must be a number that is not negative")),
            )
        }
    };
    Ok(Budget {
        tokens: number("tokens")?.map(|tokens| tokens as u64),
        cost_micros: number("cost")?.map(|cost| (cost * 1e6) as u64),
        calls: number("calls")?.map(|calls| calls.min(f64::from(u32::MAX)) as u32),
    })
}

/// `POST /workflows/{name}/runs`
pub(crate) async fn start(
    State(app): State<App>,
    PathText(name): PathText,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &app.options.limits).await?;
    let route = idempotency::route("", "/workflows");
    let idempotency = idempotency::read(&parts.headers, &route, &bytes)?;
    let known =
        ["input", "thread_id", "key", "priority", "budget", "webhook", "after_seconds", "metadata"];
    let body = object(&parts, Body::from(bytes), &app, &known).await?;
    let Some(agent) = app.engine.agents().get(&name) else {
        let all = app.engine.agents().all();
        let known: Vec<&str> = all.keys().map(String::as_str).collect();
        let text = format!("there is no workflow `{}`", shown(&name));
        return Err(Problem::new(Code::AgentNotFound, text)
            .hint(format!("There are: {}.", known.join(", "))));
    };
    let given = match body.get("input") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(wrong("`input` must be an object")),
    };
    let input = match &agent.input {
        Some(check) => {
            check.read(&given).map_err(|failure| Problem::from(clearway_engine::Error(failure)))?
        }
        None => Value::Object(given),
    };
    let caller = caller(&parts.headers, None)?;
    let key =
        body.get("key").and_then(Value::as_str).map(|key| ThreadKey::new(DOOR, &[&name, key]));
    let thread = match (&key, body.get("thread_id")) {
        (_, Some(id)) => id
            .as_str()
            .and_then(|id| id.parse::<ThreadId>().ok())
            .ok_or_else(|| wrong("`thread_id` must be a UUID in its 36-character form"))?,
        (Some(key), None) => key.thread_id(&caller.tenant),
        (None, None) => ThreadId(app.engine.new_id()),
    };
    let delay = match body.get("after_seconds") {
        None | Some(Value::Null) => Duration::ZERO,
        Some(value) => value
            .as_f64()
            .filter(|seconds| (0.0..=31_536_000.0).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| wrong("`after_seconds` must be a number from 0 to 31536000"))?,
    };
    let mut metadata = match body.get("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(wrong("`metadata` must be an object")),
    };
    if let Some(key) = body.get("key").and_then(Value::as_str) {
        metadata.insert("key".to_owned(), key.into());
    }
    let options = RunOptions {
        budget: body.get("budget").map(budget).transpose()?.unwrap_or_default(),
        webhook: match body.get("webhook") {
            None | Some(Value::Null) => None,
            Some(Value::String(url)) => Some(url.clone()),
            Some(_) => return Err(wrong("`webhook` must be an address, such as https://…")),
        },
        ..RunOptions::default()
    };
    let submitted = app
        .engine
        .submit(Submit {
            tenant: caller.tenant,
            owner: caller.owner,
            thread_key: key,
            metadata: extract::traced(metadata, &parts.headers),
            priority: body.get("priority").map(priority).transpose()?,
            delay,
            idempotency,
            options,
            ..Submit::new(thread, &agent.name, DOOR, input)
        })
        .await?;
    accepted(&app, submitted.run).await
}

/// The steps by which people follow a run: those with a category of their own, or else all.
pub(crate) fn step_names(app: &App, agent: &str) -> Vec<String> {
    let Some(agent) = app.engine.agents().get(agent) else { return Vec::new() };
    // What only holds steps together is none: fan-outs and the result.
    let all = agent.plan.node_names().filter(|name| !name.contains(':') && ***name != *"result");
    let all: Vec<String> = all.map(|name| name.to_string()).collect();
    let has_category = |name: &&String| {
        let policy = agent.policies.get(name.as_str());
        let category = policy.and_then(|policy| policy.category.as_deref()).unwrap_or_default();
        !matches!(category, "" | "internal")
    };
    let own: Vec<String> = all.iter().filter(has_category).cloned().collect();
    if own.is_empty() { all } else { own }
}

/// 202 with the run.
async fn accepted(app: &App, run: RunId) -> Result<Response, Problem> {
    let view = app.engine.run(run).await?;
    let mut body = view::run(&view, app.engine.now());
    let steps = step_names(app, &view.record.agent);
    body["steps"] = steps.len().into();
    body["step_names"] = steps.into();
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    crate::runs::put_run_headers(response.headers_mut(), run);
    Ok(response)
}

/// `POST /runs/{run_id}/answer`: goes on with what the run asked, as a new run of its thread.
pub(crate) async fn answer(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&parts, body, &app, &["answer", "question"]).await?;
    let asked = own_run(&app, &parts.headers, run_id(&id)?).await?.record;
    let run = answer_run(&app, &asked, &body).await?;
    accepted(&app, run).await
}

/// Goes on with what a run asked, with the `answer` of a body; the run that does.
pub(crate) async fn answer_run(
    app: &App,
    asked: &RunRecord,
    body: &Map<String, Value>,
) -> Result<RunId, Problem> {
    let Some(answer) = body.get("answer").cloned() else {
        return Err(wrong("`answer` is missing: it may be any JSON"));
    };
    let state = app.engine.state_at(asked.thread, None).await?;
    let questions = state.as_ref().map(clearway_engine::Engine::questions).unwrap_or_default();
    let chosen = match body.get("question").and_then(Value::as_str) {
        None => questions.first(),
        Some(id) => questions.iter().find(|question| question.id.to_string() == id),
    };
    let Some(question) = chosen else {
        return Err(Problem::new(Code::NothingWaits, "the run's thread has no such open question"));
    };
    let resume = Resume::ById([(question.id, answer)].into());
    let command = Command { resume: Some(resume), ..Command::default() };
    let door = crate::campaigns::door(&asked.door);
    let submitted = app
        .engine
        .submit(Submit {
            tenant: asked.tenant.clone(),
            owner: asked.owner.clone(),
            metadata: asked.metadata.clone(),
            priority: Some(asked.priority),
            options: RunOptions { command: Some(command), ..RunOptions::default() },
            ..Submit::new(asked.thread, &asked.agent, door, Value::Null)
        })
        .await?;
    Ok(submitted.run)
}

/// `POST /runs/{run_id}/signals/{name}`; the body is the signal's value.
pub(crate) async fn signal(
    State(app): State<App>,
    axum::extract::Path((id, name)): axum::extract::Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &app.options.limits).await?;
    let value = match bytes.is_empty() {
        true => Value::Null,
        false => parse_json(&bytes).map_err(|problem| wrong(problem.to_string()))?,
    };
    extract::check_name(&name).map_err(|(_, why)| wrong(format!("the signal's name: {why}")))?;
    let key = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let run = own_run(&app, &parts.headers, run_id(&id)?).await?.record.id;
    app.engine.signal(run, &name, value, key).await?;
    accepted(&app, run).await
}

/// `POST /runs/{run_id}/wake`: takes a waiting run up before its time.
pub(crate) async fn wake(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let run = own_run(&app, request.headers(), run_id(&id)?).await?.record.id;
    app.engine.wake(run).await?;
    accepted(&app, run).await
}

/// `POST /runs/{run_id}/resolve`: decides about a write whose outcome nobody knows.
pub(crate) async fn resolve(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&parts, body, &app, &["done", "retry", "node", "key"]).await?;
    let decision = match (body.get("done"), body.get("retry")) {
        (Some(result), None) => Decision::Done(result.clone()),
        (None, Some(Value::Bool(true))) => Decision::Retry,
        _ => {
            return Err(wrong("say either `done` with the write's result, or `retry`: true"));
        }
    };
    let run = own_run(&app, &parts.headers, run_id(&id)?).await?.record.id;
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    let which = match (text("key"), text("node")) {
        (Some(key), _) => Which::Key(key),
        (None, Some(node)) => Which::Node(node),
        (None, None) => Which::All,
    };
    app.engine.resolve(run, which, &decision, "client").await?;
    accepted(&app, run).await
}

/// `PATCH /runs/{run_id}`: priority and budget of a run that has not ended.
pub(crate) async fn change(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&parts, body, &app, &["priority", "budget"]).await?;
    let run = own_run(&app, &parts.headers, run_id(&id)?).await?.record.id;
    let (priority, budget) = (
        body.get("priority").map(priority).transpose()?,
        body.get("budget").map(budget).transpose()?,
    );
    if let Some(priority) = priority {
        app.engine.set_priority(run, priority).await?;
    }
    if let Some(budget) = budget {
        app.engine.set_budget(run, budget).await?;
    }
    let view = app.engine.run(run).await?;
    Ok(Json(view::run(&view, app.engine.now())))
}

/// `PATCH /pools/{name}`
pub(crate) async fn change_pool(
    State(app): State<App>,
    PathText(name): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&parts, body, &app, &["slots"]).await?;
    let slots =
        body.get("slots").and_then(Value::as_u64).and_then(|slots| u32::try_from(slots).ok());
    let Some(slots) = slots.filter(|slots| (1..=1_000_000).contains(slots)) else {
        return Err(wrong("`slots` must be a number from 1 to 1000000"));
    };
    app.engine.set_slots(&name, slots)?;
    let pools = app.engine.pools();
    let pool = pools.iter().find(|pool| pool.name == name).map(crate::ops::pool);
    Ok(Json(json!({"pool": pool})))
}

/// Waiting runs and open questions that a look for what needs somebody names, of each at most.
const LOOKED_AT: u32 = 200;

/// `GET /attention`: what needs somebody, who, and which command ends it.
pub(crate) async fn attention(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let caller = caller(request.headers(), None)?;
    let tenant = (!caller.admin).then_some(caller.tenant.as_str());
    let found = app.engine.attention(tenant, LOOKED_AT).await?;
    let own = found.items.iter().filter(|item| caller.check(&item.run).is_ok());
    let items: Vec<Value> = own.map(needs).collect();
    // The server's own troubles are not the business of whoever has a key for something.
    let sees = caller.admin || !caller.bound;
    let alerts = if sees { app.engine.alerts() } else { Vec::new() };
    let alerts: Vec<Value> = alerts.iter().map(Alert::to_json).collect();
    Ok(Json(json!({
        "attention": items,
        "alerts": alerts,
        "looked_at": LOOKED_AT,
        "more": found.more,
    })))
}

fn needs(item: &Attention) -> Value {
    json!({
        "run_id": item.run.id.to_string(),
        "agent": item.run.agent,
        "kind": item.kind.as_str(),
        "who": item.kind.who().as_str(),
        "detail": item.detail,
        "command": item.command,
        "since": item.run.parked.as_ref().map(|parked| parked.since).or(item.run.ended_at)
            .map(|at| at.to_string()),
    })
}

/// `GET /runs/{run_id}/artifacts`
pub(crate) async fn artifacts(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let run = own_run(&app, request.headers(), run_id(&id)?).await?.record.id;
    let all = app.engine.artifacts(ArtifactScope::Run(run)).await?;
    let all: Vec<Value> = all.iter().map(artifact).collect();
    Ok(Json(json!({"artifacts": all})))
}

/// An artifact without its bytes.
pub(crate) fn artifact(record: &ArtifactRecord) -> Value {
    json!({
        "name": record.name,
        "version": record.version,
        "node": record.node,
        "media_type": record.media_type,
        "size_bytes": record.size_bytes,
        "sha256": hex(&record.sha256),
        "created_at": record.created_at.to_string(),
        "run_id": record.run.to_string(),
    })
}

/// `GET /runs/{run_id}/artifacts/{name}`
pub(crate) async fn artifact_bytes(
    State(app): State<App>,
    axum::extract::Path((id, name)): axum::extract::Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::own(request.uri(), &["version"])?;
    let version = query.read::<u32>("version", "a version's number")?;
    let run = own_run(&app, request.headers(), run_id(&id)?).await?.record.id;
    let (record, bytes) = app.engine.artifact(ArtifactScope::Run(run), &name, version).await?;
    Ok(download(&record, bytes.into(), true))
}

/// A file that a model made is never trusted: no scripts, no origin, no guessing of types.
pub(crate) fn download(record: &ArtifactRecord, body: Body, attachment: bool) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let plain = HeaderValue::from_static("application/octet-stream");
    let kind = match record.media_type.starts_with("text/") {
        true => format!("{}; charset=utf-8", record.media_type),
        false => record.media_type.clone(),
    };
    headers.insert(CONTENT_TYPE, HeaderValue::try_from(kind).unwrap_or(plain));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; font-src data:",
        ),
    );
    headers.insert(
        HeaderName::from_static("x-content-type-options"),
        HeaderValue::from_static("nosniff"),
    );
    if attachment {
        let name: String = record
            .name
            .chars()
            .map(|c| if c.is_ascii_graphic() && c != '"' { c } else { '_' })
            .collect();
        let value = HeaderValue::try_from(format!("attachment; filename=\"{name}\""));
        headers
            .insert(CONTENT_DISPOSITION, value.unwrap_or(HeaderValue::from_static("attachment")));
    }
    response
}
