//! What threads occupy, what they went through, and taking some of it away: our own addresses below
//! `/storage/threads`, for operators and the command line.
//!
//! Not here: `/threads`, which is a dialect's.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::machine::{Command, Source};
use clearway_core::run::RunOptions;
use clearway_core::thread::ThreadRecord;
use clearway_core::{CheckpointId, Code, ThreadId};
use clearway_engine::{Engine, Keep, Submit, ThreadQuery, ThreadStorage};
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::caller::caller;
use crate::extract::{self, PathText, Query, parse_json, read_body, shown};
use crate::runs::{limit, put_run_headers};
use crate::{Problem, view};

/// `GET /storage/threads`: most recently changed first.
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["limit", "after", "dialect"])?;
    let caller = caller(request.headers(), None)?;
    let limit = limit(&query, 100)?;
    let threads = app
        .engine
        .threads(ThreadQuery {
            tenant: (!caller.admin).then_some(caller.tenant),
            owner: caller.owner.filter(|_| !caller.admin),
            dialect: query.get("dialect").map(ToOwned::to_owned),
            after: query.read::<ThreadId>("after", "a UUID in its 36-character form")?,
            limit,
            ..ThreadQuery::default()
        })
        .await?;
    let next = (threads.len() == limit as usize).then(|| threads.last().map(|last| last.id));
    let next = next.flatten().map(|id| id.to_string());
    let threads: Vec<Value> = threads.iter().map(record).collect();
    Ok(Json(json!({"threads": threads, "next": next})))
}

/// `GET /storage/threads/{thread_id}`: the thread with its values and what it occupies.
pub(crate) async fn show(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["checkpoint"])?;
    let checkpoint = query.read::<CheckpointId>("checkpoint", "the id of a checkpoint")?;
    let thread = find(&app.engine, &id).await?;
    let at = app.engine.state_at(thread.id, checkpoint).await?;
    if at.is_none() && checkpoint.is_some() {
        return Err(Problem::new(
            Code::CheckpointNotFound,
            "the thread has no such checkpoint; GET …/history lists them",
        ));
    }
    let storage = app.engine.thread_storage(thread.id).await?;
    let mut value = record(&thread);
    value["storage"] = bytes(&storage);
    value["checkpoint"] = at.as_ref().map(|at| at.checkpoint.to_string()).into();
    value["values"] = at.as_ref().map(|at| at.state.to_json()).unwrap_or_else(|| json!({}));
    value["next"] = at
        .as_ref()
        .map(|at| clearway_engine::next_nodes(&at.frontier, &at.journal))
        .unwrap_or_default()
        .iter()
        .map(|node| Value::from(&**node))
        .collect();
    Ok(Json(value))
}

/// `GET /storage/threads/{thread_id}/history`: checkpoints, newest first.
pub(crate) async fn history(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["limit", "before"])?;
    let before = query.read::<CheckpointId>("before", "the id of a checkpoint")?;
    let limit = limit(&query, 100)?;
    let thread = find(&app.engine, &id).await?;
    let checkpoints = app.engine.history(thread.id, before, limit).await?;
    let next = (checkpoints.len() == limit as usize)
        .then(|| checkpoints.last().map(|last| last.id.to_string()))
        .flatten();
    let checkpoints: Vec<Value> = checkpoints
        .iter()
        .map(|at| {
            json!({
                "checkpoint": at.id.to_string(),
                "parent": at.parent.map(|parent| parent.to_string()),
                "run_id": at.run.map(|run| run.to_string()),
                "step": at.step,
                "source": at.source.as_str(),
                "next": at.frontier.nodes().map(|node| Value::from(&**node)).collect::<Vec<_>>(),
                "created_at": at.created_at.to_string(),
                "head": thread.head == Some(at.id),
            })
        })
        .collect();
    Ok(Json(json!({"checkpoints": checkpoints, "next": next})))
}

/// `POST /storage/threads/{thread_id}/prune`: `{"keep": "ends" | N}`
pub(crate) async fn prune(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&app, &parts.headers, body, &["keep"]).await?;
    let keep = match body.get("keep") {
        Some(Value::String(text)) if text == "ends" => Keep::RunEnds,
        Some(value) => value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n >= 1)
            .map(Keep::Last)
            .ok_or_else(wrong_keep)?,
        None => return Err(wrong_keep()),
    };
    let thread = find(&app.engine, &id).await?;
    let pruned = app.engine.prune_thread(thread.id, keep).await?;
    let storage = app.engine.thread_storage(thread.id).await?;
    Ok(Json(json!({
        "thread_id": thread.id.to_string(),
        "dropped": {"checkpoints": pruned.checkpoints, "bytes": pruned.bytes},
        "storage": bytes(&storage),
    })))
}

fn wrong_keep() -> Problem {
    let text = "`keep` must be \"ends\" (the last checkpoint of each run) or a number from 1";
    Problem::new(Code::InvalidRequest, text)
}

/// `POST /storage/threads/{thread_id}/fork`: `{"checkpoint", "agent"?}`; a run goes on from there, as
/// a branch that becomes the thread's head.
pub(crate) async fn fork(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let (parts, body) = request.into_parts();
    let body = object(&app, &parts.headers, body, &["checkpoint", "agent"]).await?;
    let checkpoint = body
        .get("checkpoint")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<CheckpointId>().ok())
        .ok_or_else(|| {
            let text = "`checkpoint` must be the id of a checkpoint; GET …/history lists them";
            Problem::new(Code::InvalidRequest, text)
        })?;
    let thread = find(&app.engine, &id).await?;
    let Some(at) = app.engine.state_at(thread.id, Some(checkpoint)).await? else {
        let text = "the thread has no such checkpoint";
        return Err(Problem::new(Code::CheckpointNotFound, text));
    };
    let agent = match (body.get("agent").and_then(Value::as_str), at.run) {
        (Some(agent), _) => agent.to_owned(),
        (None, Some(run)) => app.engine.run(run).await?.record.agent,
        (None, None) => {
            let text = "the checkpoint was made by no run: say which `agent` goes on";
            return Err(Problem::new(Code::InvalidRequest, text));
        }
    };
    if at.frontier.is_empty() && at.source != Source::Input {
        let text = "nothing is due at this checkpoint: the run that made it was over";
        return Err(
            Problem::new(Code::NothingWaits, text).hint("Take one whose `next` is not empty.")
        );
    }
    let command = Command { fork: true, ..Command::default() };
    let options =
        RunOptions { command: Some(command), base: Some(checkpoint), ..RunOptions::default() };
    let submit = Submit {
        tenant: thread.tenant,
        owner: thread.owner,
        metadata: extract::traced(Map::new(), &parts.headers),
        options,
        ..Submit::new(thread.id, &agent, "runs", json!({}))
    };
    let submitted = app.engine.submit(submit).await?;
    let run = app.engine.run(submitted.run).await?;
    let body = Json(view::run(&run, app.engine.now()));
    let mut response = (StatusCode::ACCEPTED, body).into_response();
    put_run_headers(response.headers_mut(), submitted.run);
    Ok(response)
}

async fn find(engine: &Engine, id: &str) -> Result<ThreadRecord, Problem> {
    let none = || Problem::new(Code::ThreadNotFound, format!("no thread `{}`", shown(id)));
    let id: ThreadId = id.parse().map_err(|_| none())?;
    engine.thread(id).await?.ok_or_else(none)
}

/// A body that is an object with known fields only.
async fn object(
    app: &App,
    headers: &http::HeaderMap,
    body: Body,
    known: &[&str],
) -> Result<Map<String, Value>, Problem> {
    let bytes = read_body(headers, body, &app.options.limits).await?;
    let invalid = |text: String| Problem::new(Code::InvalidRequest, text);
    let Ok(Value::Object(map)) = parse_json(&bytes) else {
        return Err(invalid(format!("the body must be a JSON object with: {}", known.join(", "))));
    };
    if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
        let text = format!("there is no field `{}` here", shown(unknown));
        return Err(invalid(text).hint(format!("Fields: {}.", known.join(", "))));
    }
    Ok(map)
}

fn record(thread: &ThreadRecord) -> Value {
    json!({
        "thread_id": thread.id.to_string(),
        "key": thread.key.as_ref().map(|key| json!({"dialect": key.dialect, "parts": key.parts})),
        "owner": thread.owner,
        "metadata": thread.metadata,
        "runs": thread.ord,
        "active_run": thread.active_run.map(|run| run.to_string()),
        "head": thread.head.map(|head| head.to_string()),
        "created_at": thread.created_at.to_string(),
        "updated_at": thread.updated_at.to_string(),
    })
}

fn bytes(storage: &ThreadStorage) -> Value {
    let ThreadStorage {
        checkpoints,
        checkpoint_bytes,
        delta_bytes,
        snapshot_bytes,
        blob_bytes,
        log_bytes,
        artifact_bytes,
        runs,
    } = *storage;
    let total =
        checkpoint_bytes + delta_bytes + snapshot_bytes + blob_bytes + log_bytes + artifact_bytes;
    json!({
        "total_bytes": total, "checkpoints": checkpoints, "runs": runs,
        "checkpoint_bytes": checkpoint_bytes, "delta_bytes": delta_bytes,
        "snapshot_bytes": snapshot_bytes, "blob_bytes": blob_bytes, "log_bytes": log_bytes,
        "artifact_bytes": artifact_bytes,
    })
}
