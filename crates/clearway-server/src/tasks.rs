//! Chats in the background: ask, get a task's id at once, look later.
//!
//! `/chat/async`, `/chat/task/{id}` and `/tasks` at the root, on the default agent. A task is a run
//! and its id is the run's, so everything else about it is under `/runs/{id}`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::run::RunRecord;
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Failure, RunId, Status, ThreadId};
use clearway_engine::{CancelOutcome, Kind, RunQuery, RunView, Submit};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Duration, timeout};
use uuid::Uuid;

use crate::app::App;
use crate::ask::Ask;
use crate::caller::caller;
use crate::extract::{self, PathText, Query, read_body, shown};
use crate::{Problem, cofounder, idempotency, runs, view};

/// The dialect's name in run records and thread keys.
const DIALECT: &str = "tasks";

/// Every body of these addresses, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    if let Ok(ask) = Ask::parse(data) {
        let _ = extract::deadline(&http::HeaderMap::new(), ask.deadline);
    }
}

/// `POST /chat/async`
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, &app.options.limits).await?;
    let ask = Ask::parse(&body).map_err(Problem::unprocessable)?;
    let idempotency = idempotency::read(&parts.headers, "/chat/async", &body)?;
    let asked = extract::deadline(&parts.headers, ask.deadline.clone())?;
    let name = &app.options.default_agent;
    let agent = app.engine.agents().get(name).ok_or_else(|| {
        Problem::new(Code::AgentNotFound, format!("the default agent `{name}` does not exist"))
    })?;
    let caller = caller(&parts.headers, ask.user.as_deref())?;
    // A user's conversation is the same thread whether somebody waits for the answer or not.
    // Without a conversation of its own name, a task shares its thread with nobody.
    let shared = ask.user.clone().zip(ask.conversation.clone());
    let shared = shared.map(|(user, id)| cofounder::Conversation { user, id });
    let key = match (&shared, &ask.conversation) {
        (Some(shared), _) => Some(shared.key()),
        (None, Some(conversation)) => Some(ThreadKey::new(DIALECT, &["", conversation])),
        (None, None) => None,
    };
    let thread = match &key {
        Some(key) => key.thread_id(&caller.tenant),
        None => ThreadId(app.engine.new_id()),
    };
    let input = json!({"messages": ask.messages(&app)});
    let submitted = app
        .engine
        .submit(Submit {
            tenant: caller.tenant,
            owner: caller.owner,
            thread_key: key,
            thread_metadata: shared.as_ref().map(cofounder::thread_metadata).unwrap_or_default(),
            metadata: extract::traced(ask.metadata, &parts.headers),
            kind: Kind::Background {
                working_limit: asked.map(|asked| asked.min(agent.working_limit)),
            },
            idempotency,
            ..Submit::new(thread, name, DIALECT, input)
        })
        .await?;
    let run = submitted.run;
    let task = submitted.existing.then_some(submitted.status).map_or("pending", word);
    let body = json!({
        "task_id": run.to_string(),
        "status": task,
        "message": "accepted; poll the task for its result",
        "poll": poll(run),
        "cancel": format!("/tasks/{run}"),
        "queue_position": view::ahead(submitted.status, submitted.position).unwrap_or(0),
    });
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    runs::put_run_headers(response.headers_mut(), run);
    if let Ok(value) = HeaderValue::try_from(poll(run)) {
        response.headers_mut().insert(http::header::LOCATION, value);
    }
    Ok(response)
}

fn poll(run: RunId) -> String {
    format!("/chat/task/{run}")
}

/// The dialect's word for a status.
pub(crate) const fn word(status: Status) -> &'static str {
    match status {
        Status::Blocked | Status::Ready => "pending",
        Status::Running | Status::Waiting => "running",
        Status::Success => "completed",
        Status::Error | Status::Timeout => "failed",
        Status::Cancelled => "cancelled",
    }
}

pub(crate) fn no_task(id: &str) -> Problem {
    Problem::new(Code::RunNotFound, format!("no task `{}`", shown(id)))
        .hint("POST /chat/async answers with the id of its task; GET /tasks lists tasks.")
}

/// A task that nobody knows, or knows no more.
fn missing(app: &App, run: RunId) -> Problem {
    let id = run.to_string();
    if !is_old(app, run.0) {
        return no_task(&id);
    }
    let text = format!("task `{id}` has expired: its result is kept no longer");
    Problem::new(Code::RunNotFound, text).status(StatusCode::GONE)
}

/// Ids say when they were made: one that is known no more, and is older than what is kept at least,
/// was a task once.
fn is_old(app: &App, id: Uuid) -> bool {
    let made = id.get_timestamp().filter(|_| id.get_version_num() == 7);
    let now = app.engine.now().0 / 1000;
    made.is_some_and(|made| {
        let (seconds, _) = made.to_unix();
        i64::try_from(seconds).is_ok_and(|made| FIRST < made && made < now - KEPT_AT_LEAST)
    })
}

/// Seconds; nothing is dropped earlier.
const KEPT_AT_LEAST: i64 = 3600;
/// Seconds since 1970; no task is older than 2020.
const FIRST: i64 = 1_577_836_800;

/// # Errors
/// 404, also when it is somebody else's; 410 when it is kept no longer.
pub(crate) async fn find(app: &App, headers: &HeaderMap, id: &str) -> Result<RunView, Problem> {
    let run = id.parse::<RunId>().map_err(|_| no_task(id))?;
    let caller = caller(headers, None)?;
    match app.engine.run(run).await {
        Ok(view) if caller.check(&view.record).is_ok() => Ok(view),
        Ok(_) => Err(no_task(id)),
        Err(error) if error.code() == Code::RunNotFound => Err(missing(app, run)),
        Err(error) => Err(error.into()),
    }
}

/// `GET /chat/task/{task_id}`
pub(crate) async fn show(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let view = find(&app, request.headers(), &id).await?;
    let mut task = task(&view);
    if view.record.status == Status::Success {
        let reply = app.engine.reply(&view.record).await?;
        task["result"] = result(&reply.map(|message| message.content.text()).unwrap_or_default());
    }
    if view.record.status == Status::Running {
        task["partial"] = app.engine.partial_text(view.record.id).into();
    }
    Ok(Json(task))
}

/// The result of a chat in the knowledge agent's shape.
fn result(text: &str) -> Value {
    json!({"response": text, "categories": [], "knowledge_updates": [], "suggested_actions": []})
}

pub(crate) fn task(view: &RunView) -> Value {
    let RunRecord { id, status, created_at, ended_at, .. } = &view.record;
    let failure = view.record.failure.as_ref();
    json!({
        "task_id": id.to_string(),
        "status": word(*status),
        "result": null,
        "error": failure.map(Failure::to_string),
        "error_type": failure.map(|failure| failure.code.as_str()),
        "created_at": created_at.to_string(),
        "completed_at": ended_at.map(|at| at.to_string()),
        "queue_position": view::queue_position(&view.record, view.position),
    })
}

/// `GET /tasks`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri())?;
    let caller = caller(request.headers(), None)?;
    let statuses = query.all("status").map(statuses).collect::<Result<Vec<_>, _>>()?.concat();
    let (views, next) = app
        .engine
        .runs(caller.narrow(RunQuery {
            statuses,
            door: Some(DIALECT.to_owned()),
            after: query.read::<RunId>("after", "the id of a task")?,
            limit: runs::limit(&query, 100)?,
            ..RunQuery::default()
        }))
        .await?;
    let tasks: Vec<Value> = views.iter().map(task).collect();
    Ok(Json(json!({"tasks": tasks, "next": next.map(|run| run.to_string())})))
}

/// The statuses behind the dialect's word.
pub(crate) fn statuses(text: &str) -> Result<Vec<Status>, Problem> {
    let found: Vec<Status> =
        Status::ALL.iter().copied().filter(|status| word(*status) == text).collect();
    if found.is_empty() {
        let text = format!("no task has the status `{}`", shown(text));
        let hint = "Statuses: pending, running, completed, failed, cancelled.";
        return Err(Problem::new(Code::InvalidRequest, text).hint(hint));
    }
    Ok(found)
}

/// `DELETE /tasks/{id}`
pub(crate) async fn cancel(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let run = find(&app, request.headers(), &id).await?.record.id;
    end(&app, run).await
}

/// Ends a task, and answers when the work has really stopped.
pub(crate) async fn end(app: &App, run: RunId) -> Result<Json<Value>, Problem> {
    let record = match app.engine.cancel(run, "client").await? {
        CancelOutcome::Requested => match timeout(CANCEL_LIMIT, app.engine.wait(run)).await {
            Ok(record) => record?,
            Err(_) => {
                return Ok(Json(json!({
                    "task_id": run.to_string(),
                    "status": "running",
                    "message": "the cancel is accepted and will be carried out",
                })));
            }
        },
        CancelOutcome::Ended(record) | CancelOutcome::AlreadyEnded(record) => *record,
    };
    let message = match record.status {
        Status::Cancelled => "cancelled",
        _ => "had already ended",
    };
    Ok(Json(json!({
        "task_id": run.to_string(),
        "status": word(record.status),
        "message": message,
    })))
}

/// How long a cancel's answer waits for the end; dropping calls takes milliseconds.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
