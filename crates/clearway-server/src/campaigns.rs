//! The campaign door: briefs in, artifacts and true progress out.
//!
//! A campaign is a thread with a chain of runs (a question that a person answers begins a new one).
//! Everything shown is read from the runs' rows and events; what was read once is kept, so asking
//! again costs only what is new.

use std::collections::HashMap;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use clearway_core::event::{Body, Event, EventKind};
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Failure, Message, Priority, RunId, RunRecord, Status, Timestamp};
use clearway_engine::{
    ArtifactRecord, ArtifactScope, Error, From as Begin, Lanes, RunQuery, RunView, Submit,
};
use http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant};

use crate::app::App;
use crate::caller::{Caller, caller};
use crate::control::download;
use crate::extract::{Invalid, Query, parse_json, read_body, shown, traced};
use crate::problem::Shape;
use crate::server::Door;
use crate::sse::{Next, Render, Stream, put_id};
use crate::{Problem, idempotency};

pub(crate) use self::fold::Folds;
use self::fold::{Fold, SHOWN, StepInfo, fold, steps};

mod fold;

/// The door's name, and its threads' dialect.
const DIALECT: &str = "campaign";

/// The door that a run came through, for runs that go on with it.
pub(crate) fn door(name: &str) -> &'static str {
    if name == DIALECT { DIALECT } else { "runs" }
}

/// Campaigns that a list looks at.
const LISTED: u32 = 1000;

// ## Campaigns

/// A campaign: its newest run, and when it began.
struct Campaign {
    id: String,
    record: RunRecord,
    began: Timestamp,
    runs: Vec<RunId>,
}

fn word(record: &RunRecord) -> &'static str {
    match record.status {
        Status::Blocked | Status::Ready => "queued",
        Status::Running | Status::Waiting => "running",
        // It asked a person and goes on with the answer.
        Status::Success if !record.next.is_empty() => "running",
        Status::Success => "completed",
        Status::Error | Status::Timeout => "failed",
        Status::Cancelled => "cancelled",
    }
}

fn key_of(record: &RunRecord) -> Option<String> {
    record.metadata.get("key").and_then(Value::as_str).map(ToOwned::to_owned)
}

async fn all(app: &App, caller: &Caller) -> Result<Vec<Campaign>, Problem> {
    let query = RunQuery {
        tenant: Some(caller.tenant.clone()),
        owner: caller.owner.clone(),
        door: Some(DIALECT.to_owned()),
        limit: LISTED,
        ..RunQuery::default()
    };
    let (views, _) = app.engine.runs(query).await?;
    let mut found: Vec<Campaign> = Vec::new();
    for RunView { record, .. } in views {
        let Some(id) = key_of(&record) else { continue };
        match found.iter_mut().find(|campaign| campaign.id == id) {
            // Runs come newest first.
            Some(campaign) => {
                campaign.began = record.created_at;
                campaign.runs.push(record.id);
            }
            None => {
                let (began, runs) = (record.created_at, vec![record.id]);
                found.push(Campaign { id, record, began, runs });
            }
        }
    }
    Ok(found)
}

async fn one(app: &App, caller: &Caller, id: &str) -> Result<Campaign, Problem> {
    let thread = ThreadKey::new(DIALECT, &[id]).thread_id(&caller.tenant);
    let query = RunQuery { thread: Some(thread), limit: 100, ..RunQuery::default() };
    let (views, _) = app.engine.runs(query).await?;
    let runs: Vec<RunId> = views.iter().map(|view| view.record.id).collect();
    let began = views.last().map(|view| view.record.created_at);
    let record = views.into_iter().next().map(|view| view.record);
    let (Some(record), Some(began)) = (record, began) else {
        let text = format!("Campaign {} not found", shown(id));
        return Err(Problem::new(Code::NotFound, text));
    };
    if caller.owner.is_some() && record.owner != caller.owner {
        let text = format!("Campaign {} belongs to another user", shown(id));
        return Err(Problem::new(Code::Forbidden, text));
    }
    Ok(Campaign { id: id.to_owned(), record, began, runs })
}

/// The log of all runs of a campaign, oldest first, as one.
async fn folded(app: &App, campaign: &Campaign) -> Result<Fold, Problem> {
    let mut whole: Option<Fold> = None;
    for run in campaign.runs.iter().rev() {
        let next = fold(app, *run).await?;
        whole = Some(match whole {
            None => next,
            Some(mut before) => {
                for (id, step) in next.steps {
                    let known = before.steps.entry(id).or_default();
                    known.started = known.started.or(step.started);
                    known.completed = step.completed.or(known.completed);
                    known.running = step.running;
                    known.runs += step.runs;
                    known.interactions += step.interactions;
                    known.errors += step.errors;
                    known.artifacts += step.artifacts;
                    known.error = step.error.or(known.error.take());
                }
                before.interactions.extend(next.interactions);
                let surplus = before.interactions.len().saturating_sub(SHOWN);
                before.interactions.drain(..surplus);
                before.total += next.total;
                before.errors += next.errors;
                before.artifacts += next.artifacts;
                before.last_artifact = next.last_artifact.or(before.last_artifact);
                before.last = next.last.or(before.last);
                before.current = next.current.or(before.current);
                before.percent = before.percent.max(next.percent);
                before
            }
        });
    }
    Ok(whole.unwrap_or_default())
}

/// Seconds that a campaign has taken, or took.
fn seconds(app: &App, campaign: &Campaign) -> f64 {
    let end = campaign.record.ended_at.filter(|_| word(&campaign.record) != "running");
    let begun = campaign.record.started_at.map_or(campaign.began, |_| campaign.began);
    end.unwrap_or_else(|| app.engine.now()).since(begun).as_secs_f64()
}

fn revisions(fold: &Fold) -> u64 {
    fold.steps.get("review").map_or(0, |step| step.runs.saturating_sub(1))
}

/// `POST …/campaigns/generate`
pub(crate) async fn generate(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &app.options.limits).await?;
    let invalid = |list: Vec<Invalid>| {
        Problem::new(Code::InvalidRequest, "the brief does not fit")
            .status(StatusCode::UNPROCESSABLE_ENTITY)
            .shape(Shape::Invalid(list))
    };
    let value = parse_json(&bytes).map_err(|problem| invalid(vec![problem]))?;
    let Value::Object(mut brief) = value else {
        return Err(invalid(vec![Invalid::new("dict_type", &["body"], "a brief is an object")]));
    };
    let agent = app.engine.agents().get(&door.agent).ok_or_else(|| {
        Problem::new(Code::AgentNotFound, format!("there is no workflow `{}`", door.agent))
    })?;
    let priority = brief.remove("priority").and_then(|value| match value.as_str() {
        Some("high") => Some(Priority::HIGH),
        Some("normal") => Some(Priority::NORMAL),
        Some("low") => Some(Priority::LOW),
        _ => value.as_u64().and_then(|level| Priority::new(u8::try_from(level).ok()?)),
    });
    let username = brief.get("username").and_then(Value::as_str).map(ToOwned::to_owned);
    let input = loop {
        let Some(check) = &agent.input else { break Value::Object(brief) };
        let failure = match check.read(&brief) {
            Ok(input) => break input,
            Err(failure) => failure,
        };
        let fields = failure.detail.get("fields").and_then(Value::as_object).cloned();
        let fields = fields.unwrap_or_default();
        // Fields that nobody knows are ignored, as old clients send a few.
        let unknown: Vec<String> = fields
            .iter()
            .filter(|(_, why)| why.as_str().is_some_and(|why| why.starts_with("is not an input")))
            .map(|(field, _)| field.clone())
            .collect();
        if unknown.is_empty() || unknown.len() < fields.len() {
            let wrong =
                fields.iter().filter(|(field, _)| !unknown.contains(field)).map(|(field, why)| {
                    let why = why.as_str().unwrap_or_default();
                    let kind = if why == "is required" { "missing" } else { "value_error" };
                    Invalid::new(kind, &["body", field], format!("`{field}` {why}"))
                });
            return Err(invalid(wrong.collect()));
        }
        brief.retain(|field, _| !unknown.contains(field));
    };
    let route = idempotency::route(&door.mount, "/campaigns/generate");
    let idempotency = idempotency::read(&parts.headers, &route, &bytes)?;
    let caller = caller(&parts.headers, None);
    let id = new_id(&app);
    let key = ThreadKey::new(DIALECT, &[&id]);
    let mut metadata = Map::new();
    metadata.insert("key".to_owned(), id.clone().into());
    let by = username.or(caller.owner.clone()).unwrap_or_else(|| "anonymous".to_owned());
    metadata.insert("created_by".to_owned(), by.clone().into());
    let thread = key.thread_id(&caller.tenant);
    let submitted = app
        .engine
        .submit(Submit {
            tenant: caller.tenant.clone(),
            owner: caller.owner.clone(),
            thread_key: Some(key),
            metadata: traced(metadata, &parts.headers),
            priority,
            idempotency,
            ..Submit::new(thread, &agent.name, DIALECT, input)
        })
        .await?;
    let view = app.engine.run(submitted.run).await?;
    let id = key_of(&view.record).unwrap_or(id);
    tracing::info!(
        run.id = %submitted.run, thread.id = %submitted.thread,
        "starting generation for {id} by user {by}"
    );
    if !submitted.existing {
        app.tasks.spawn(tell_end(app.clone(), submitted.run, id.clone(), by.clone()));
    }
    let position = submitted.position.map(|position| position.pool_ahead + 1);
    let body = json!({
        "campaign_id": id,
        "status": "started",
        "message": match position {
            None => "Campaign generation started".to_owned(),
            Some(position) => format!("Campaign generation queued at position {position}"),
        },
        "artifacts": {},
        "website_url": null,
        "pdf_url": null,
        "execution_time": null,
        "quality_score": null,
        "revision_count": 0,
        "created_at": view.record.created_at.to_string(),
        "created_by": by,
        "run_id": submitted.run.to_string(),
        "queue_position": position,
        "queue_reason": position.map(|_| "no_slot"),
        "expected_start": view.waiting.and_then(|waiting| waiting.eta)
            .map(|eta| app.engine.now().plus(eta).to_string()),
    });
    Ok(Json(body).into_response())
}

/// Says in the log how a campaign ended, in the words that its operators look for.
async fn tell_end(app: App, run: RunId, id: String, by: String) {
    let Ok(record) = app.engine.wait(run).await else { return };
    if let Some(failure) = &record.failure {
        tracing::error!(run.id = %run, code = %failure.code, "generation failed for {id} by user {by}: {failure}");
        return;
    }
    if !record.next.is_empty() {
        tracing::info!(run.id = %run, "generation of {id} by user {by} waits for an answer");
        return;
    }
    let files = app.engine.artifacts(ArtifactScope::Run(run)).await.unwrap_or_default();
    if let Some(page) = files.iter().find(|file| file.media_type == "text/html") {
        tracing::info!(run.id = %run, "website generated: {}", page.name);
    }
    let seconds =
        record.ended_at.unwrap_or(record.created_at).since(record.created_at).as_secs_f64();
    tracing::info!(run.id = %run, "generation completed for {id} by user {by}");
    tracing::info!(run.id = %run, "execution time {seconds:.2} seconds");
    tracing::info!(run.id = %run, "artifacts generated: {}", files.len());
}

/// `campaign_20261201_120000_12345`
fn new_id(app: &App) -> String {
    let digits: String =
        app.engine.now().to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    let number = app.engine.new_id().as_u128() % 100_000;
    format!("campaign_{day}_{time}_{number:05}")
}

fn created_by(record: &RunRecord) -> Value {
    record.metadata.get("created_by").cloned().unwrap_or(Value::Null)
}

fn counts(campaigns: &[Campaign]) -> Map<String, Value> {
    let count =
        |status: &str| campaigns.iter().filter(|campaign| word(&campaign.record) == status).count();
    let entries = [
        ("total", campaigns.len()),
        ("completed", count("completed")),
        ("running", count("running")),
        ("failed", count("failed")),
        ("queued", count("queued")),
        ("cancelled", count("cancelled")),
    ];
    entries.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
}

/// `GET …/campaigns`, and `GET …/campaigns/progress`
pub(crate) async fn list(
    app: App,
    request: Request,
    progress: bool,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let campaigns = all(&app, &caller(request.headers(), None)).await?;
    let mut rows = Vec::with_capacity(campaigns.len());
    for campaign in &campaigns {
        let fold = folded(&app, campaign).await?;
        let record = &campaign.record;
        let mut row = json!({
            "campaign_id": campaign.id,
            "status": word(record),
            "created_at": campaign.began.to_string(),
            "completed_at": record.ended_at.map(|at| at.to_string()),
            "execution_time": seconds(&app, campaign),
            "artifacts_count": fold.artifacts,
            "created_by": created_by(record),
        });
        if progress {
            row["progress"] = json!({
                "artifacts_generated": fold.artifacts,
                "revision_count": revisions(&fold),
                "execution_time": seconds(&app, campaign),
                "current_step": fold.current,
            });
        }
        rows.push(row);
    }
    let mut body = counts(&campaigns);
    body.insert("campaigns".to_owned(), rows.into());
    Ok(Json(Value::Object(body)))
}

async fn artifacts(app: &App, campaign: &Campaign) -> Result<Vec<ArtifactRecord>, Problem> {
    Ok(app.engine.artifacts(ArtifactScope::Thread(campaign.record.thread)).await?)
}

/// `GET …/campaigns/{id}`
pub(crate) async fn show(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = one(&app, &caller(request.headers(), None), id).await?;
    let fold = folded(&app, &campaign).await?;
    let files = artifacts(&app, &campaign).await?;
    let record = &campaign.record;
    let has = |media_type: &str| files.iter().any(|file| file.media_type == media_type);
    let mount = door.mount.trim_end_matches('/');
    let by_name: Map<String, Value> =
        files.iter().map(|file| (file.name.clone(), crate::control::artifact(file))).collect();
    let score = match app.engine.thread_state(record.thread).await? {
        Some(at) => at.state.get("review").map(|review| review["score"].clone()),
        None => None,
    };
    Ok(Json(json!({
        "campaign_id": campaign.id,
        "status": word(record),
        "message": message(record),
        "artifacts": by_name,
        "website_url": has("text/html").then(|| format!("/campaigns/view/{}", campaign.id)),
        "pdf_url": has("application/pdf").then(|| format!("{mount}/campaigns/{}/pdf", campaign.id)),
        "execution_time": seconds(&app, &campaign),
        "quality_score": score,
        "revision_count": revisions(&fold),
        "created_at": campaign.began.to_string(),
        "created_by": created_by(record),
        "run_id": record.id.to_string(),
        "thread_id": record.thread.to_string(),
        "error": record.failure.as_ref().map(Failure::to_json),
    })))
}

fn message(record: &RunRecord) -> String {
    match (&record.failure, word(record)) {
        (Some(failure), _) => failure.message.clone(),
        (None, "completed") => "Campaign generation completed".to_owned(),
        (None, "queued") => "Campaign is queued".to_owned(),
        (None, _) if !record.next.is_empty() && record.status == Status::Success => {
            "Campaign waits for an answer".to_owned()
        }
        (None, _) => "Campaign generation in progress".to_owned(),
    }
}

/// `GET …/campaigns/{id}/status`
pub(crate) async fn status(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let whole = progress(app, door, id, request).await?.0;
    Ok(Json(json!({
        "campaign_id": whole["campaign_id"],
        "status": whole["status"],
        "progress": whole["progress"],
        "estimated_completion": whole["estimated_completion"],
    })))
}

/// `GET …/campaigns/{id}/progress`
pub(crate) async fn progress(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = one(&app, &caller(request.headers(), None), id).await?;
    let mut fold = folded(&app, &campaign).await?;
    let steps = app.engine.agents().get(&door.agent).map(|agent| steps(&agent)).unwrap_or_default();
    let record = &campaign.record;
    let (state, elapsed) = (word(record), seconds(&app, &campaign));
    let percent = fold.percent(&steps, state == "completed");
    let done = steps.iter().filter(|step| fold.is_done(&step.id)).count();
    let current = fold.current.as_deref().and_then(|id| steps.iter().find(|step| step.id == id));
    let total = (percent > 0).then(|| elapsed * 100.0 / percent as f64);
    let remaining = match state {
        "running" => total.map(|total| (total - elapsed).max(0.0)),
        _ => Some(0.0),
    };
    let files = artifacts(&app, &campaign).await?;
    let mut types: Map<String, Value> = Map::new();
    for file in &files {
        let count = types.get(&file.media_type).and_then(Value::as_u64).unwrap_or(0) + 1;
        types.insert(file.media_type.clone(), count.into());
    }
    let view = app.engine.run(record.id).await?;
    let waiting = crate::view::run(&view, app.engine.now());
    let finished = fold.steps.values().map(|step| step.runs).sum::<u64>();
    let rate = match finished + fold.errors {
        0 => 1.0,
        all => finished as f64 / all as f64,
    };
    let issues: Vec<Value> = fold
        .steps
        .iter()
        .filter_map(|(id, step)| Some(json!(format!("{id}: {}", step.error.as_ref()?))))
        .chain(record.failure.as_ref().map(|failure| json!(failure.to_string())))
        .collect();
    let completion = remaining
        .filter(|_| state == "running")
        .map(|left| app.engine.now().plus(Duration::from_secs_f64(left.min(1e6))).to_string());
    Ok(Json(json!({
        "campaign_id": campaign.id,
        "status": state,
        "progress": {
            "step": current.map(|step| step.id.clone()),
            "step_name": current.map(|step| step.title.clone()),
            "step_description": current.map(|step| step.description.clone()),
            "completed_steps": done,
            "total_steps": steps.len(),
            "progress_percentage": percent,
            "estimated_total_time": total,
            "current_execution_time": elapsed,
            "estimated_remaining_time": remaining,
        },
        "agent_interactions": fold.interactions,
        "artifacts_summary": {
            "total_count": files.len(),
            "types": types,
            "last_generated": fold.last_artifact.map(|at| at.to_string()),
        },
        "revision_count": revisions(&fold),
        "execution_time": elapsed,
        "last_update": fold.last.map(|at| at.to_string()),
        "estimated_completion": completion,
        "workflow_health": {
            "status": match (state, fold.errors) {
                ("failed", _) => "failed",
                (_, 0) => "healthy",
                _ => "degraded",
            },
            "success_rate": rate,
            "total_interactions": fold.total,
            "error_count": fold.errors,
            "issues": issues,
            "last_activity": fold.last.map(|at| at.to_string()),
        },
        "timing_info": {
            "created_at": campaign.began.to_string(),
            "started_at": record.started_at.map(|at| at.to_string()),
            "completed_at": record.ended_at.map(|at| at.to_string()),
            "spent_ms": waiting["spent_ms"],
        },
        "waiting_on": waiting["waiting_on"],
        "queue_position": waiting["queue_position"],
    })))
}

/// `GET …/campaigns/{id}/workflow-steps`
pub(crate) async fn workflow_steps(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = one(&app, &caller(request.headers(), None), id).await?;
    let fold = folded(&app, &campaign).await?;
    let steps = app.engine.agents().get(&door.agent).map(|agent| steps(&agent)).unwrap_or_default();
    let ended = campaign.record.status.is_terminal() && word(&campaign.record) != "running";
    let files = artifacts(&app, &campaign).await?;
    let (mut counted, mut rows) = ([0usize; 4], Vec::with_capacity(steps.len()));
    for (order, step) in steps.iter().enumerate() {
        let seen = fold.steps.get(&step.id).cloned().unwrap_or_default();
        let (at, word) = match (&seen.error, seen.running > 0 && !ended, seen.completed) {
            (_, true, _) => (2, "running"),
            (_, false, Some(_)) => (0, "completed"),
            (Some(_), false, None) => (1, "failed"),
            (None, false, None) if ended && seen.started.is_some() => (1, "failed"),
            (None, false, None) => (3, "pending"),
        };
        counted[at] += 1;
        let names: Vec<&str> = files
            .iter()
            .filter(|file| file.node == step.id)
            .map(|file| file.name.as_str())
            .collect();
        rows.push(json!({
            "id": step.id,
            "name": step.title,
            "description": step.description,
            "order": order + 1,
            "category": step.category,
            "status": word,
            "started_at": seen.started.map(|at| at.to_string()),
            "completed_at": seen.completed.map(|at| at.to_string()),
            "execution_time": seen.started.zip(seen.completed)
                .map(|(from, to)| to.since(from).as_secs_f64()),
            "error_message": seen.error,
            "interaction_count": seen.interactions,
            "error_count": seen.errors,
            "artifacts_generated": names,
            "artifacts_count": names.len(),
        }));
    }
    let [completed, failed, running, pending] = counted;
    Ok(Json(json!({
        "campaign_id": campaign.id,
        "workflow_steps": rows,
        "workflow_stats": {
            "total_steps": steps.len(), "completed": completed, "failed": failed,
            "running": running, "pending": pending,
            "completion_percentage": completed * 100 / steps.len().max(1),
        },
        "current_status": word(&campaign.record),
        "last_update": fold.last.map(|at| at.to_string()),
    })))
}

/// `GET …/campaigns/{id}/website` and `/pdf`, and `GET /campaigns/view/{id}`
pub(crate) async fn file(
    app: App,
    id: &str,
    media_type: &str,
    attachment: bool,
    request: Request,
) -> Result<Response, Problem> {
    let campaign = one(&app, &caller(request.headers(), None), id).await?;
    let state = word(&campaign.record);
    if state != "completed" {
        let text = format!("Campaign is not completed yet: {state}");
        return Err(Problem::new(Code::InvalidRequest, text));
    }
    let files = artifacts(&app, &campaign).await?;
    let Some(found) = files.iter().rfind(|file| file.media_type == media_type) else {
        return Err(Problem::new(Code::ArtifactNotFound, "this campaign has no such file"));
    };
    let scope = ArtifactScope::Thread(campaign.record.thread);
    let (record, bytes) = app.engine.artifact(scope, &found.name, None).await?;
    Ok(download(&record, bytes.into(), attachment))
}

// ## The stream

/// A campaign's events as the old service's objects.
#[derive(Debug)]
struct CampaignFrames {
    fold: Fold,
    steps: Vec<StepInfo>,
}

impl CampaignFrames {
    fn put(event: &Event, part: u8, data: &Value, out: &mut BytesMut) {
        put_id(out, clearway_core::EventId { part, ..event.id() });
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(data.to_string().as_bytes());
        out.extend_from_slice(b"\n\n");
    }
}

impl Render for CampaignFrames {
    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Next {
        if let Some(interaction) = self.fold.event(event) {
            Self::put(event, 0, &interaction, out);
            let percent = self.fold.percent(&self.steps, false);
            let done = self.steps.iter().filter(|step| self.fold.is_done(&step.id)).count();
            let progress = json!({
                "type": "progress", "timestamp": event.at.to_string(), "status": "running",
                "progress": {
                    "progress_percentage": percent, "completed_steps": done,
                    "total_steps": self.steps.len(), "step": self.fold.current,
                },
            });
            Self::put(event, 1, &progress, out);
        }
        if let Body::Fact(fact) = &event.body
            && fact.kind == EventKind::RunEnded
        {
            let data = fact.json();
            let status = match data["status"].as_str() {
                Some("success") => "completed",
                Some("cancelled") => "cancelled",
                _ => "failed",
            };
            let message =
                data["error"]["message"].as_str().unwrap_or("Campaign generation completed");
            let end = json!({
                "type": "completion", "timestamp": event.at.to_string(), "status": status,
                "message": message,
            });
            Self::put(event, 2, &end, out);
        }
        Next::Event
    }

    fn reply(&mut self, _reply: Result<Option<Message>, Error>, _out: &mut BytesMut) {}

    fn failure(&mut self, failure: &Failure, out: &mut BytesMut) {
        let data = json!({"type": "error", "status": "failed", "message": failure.to_string()});
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(data.to_string().as_bytes());
        out.extend_from_slice(b"\n\n");
    }
}

/// `GET …/campaigns/{id}/stream`
pub(crate) async fn stream(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Response, Problem> {
    let campaign = one(&app, &caller(request.headers(), None), id).await?;
    let begin = crate::runs::last_event_id(request.headers())?.unwrap_or(Begin::Start);
    let log = app.engine.subscribe(campaign.record.id, begin).await?;
    let steps = app.engine.agents().get(&door.agent).map(|agent| steps(&agent)).unwrap_or_default();
    // A reader that comes back goes on with the figures of the events it has seen.
    let mut seen = Fold::default();
    if let Begin::AfterSeq(_) | Begin::AfterId(_) = begin {
        seen = fold(&app, campaign.record.id).await?;
    }
    let frames = CampaignFrames { fold: Fold { next: 0, ..seen }, steps };
    Ok(Stream::new(app, log, frames, None).into_response())
}

// ## Around it

/// `GET …/health`
pub(crate) async fn health(app: App, door: &Door) -> Json<Value> {
    let providers = app.engine.providers();
    let agent = app.engine.agents().get(&door.agent);
    let pool = agent.as_ref().map(|agent| agent.pool.clone()).unwrap_or_default();
    let pools = app.engine.pools();
    let pool = pools.iter().find(|known| known.name == pool).map(crate::ops::pool);
    Json(json!({
        "status": if app.engine.is_draining() { "stopping" } else { "healthy" },
        "timestamp": app.engine.now().to_string(),
        "version": app.options.version,
        "llm_model": providers.first().map(|provider| provider.name.clone()),
        "openai_available": providers.iter().any(|provider| provider.breaker.state == "closed"),
        "workflow_ready": agent.is_some(),
        "authentication": if app.options.keys_configured { "keys" } else { "none" },
        "thread_pool_ready": true,
        "pool": pool,
    }))
}

/// `GET …/test/thread-pool`: two seconds of blocking work, in the lane that such work has.
pub(crate) async fn thread_pool(app: App) -> Result<Json<Value>, Problem> {
    let started = Instant::now();
    let lanes: &Lanes = &app.lanes;
    let slept = lanes
        .run(|| {
            std::thread::sleep(std::time::Duration::from_secs(2));
            "slept for two seconds"
        })
        .await;
    let Some(result) = slept else {
        return Err(Problem::new(Code::Overloaded, "the blocking lanes are full")
            .retry_after(Duration::from_secs(2)));
    };
    Ok(Json(json!({
        "status": "success",
        "message": "the pool is responsive",
        "result": {"said": result, "ms": started.elapsed().as_millis() as u64},
        "timestamp": app.engine.now().to_string(),
    })))
}

/// `GET …/analytics/campaigns`
pub(crate) async fn analytics(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaigns = all(&app, &caller(request.headers(), None)).await?;
    let steps = app.engine.agents().get(&door.agent).map(|agent| steps(&agent)).unwrap_or_default();
    let mut spent: HashMap<String, (f64, u64, u64)> = HashMap::new();
    let (mut causes, mut cost, mut tokens) = (Map::new(), 0.0, 0u64);
    let mut times: Vec<f64> = Vec::new();
    for campaign in campaigns.iter().take(ANALYSED) {
        let fold = folded(&app, campaign).await?;
        for (id, step) in &fold.steps {
            let entry = spent.entry(id.clone()).or_default();
            if let Some((from, to)) = step.started.zip(step.completed) {
                entry.0 += to.since(from).as_secs_f64();
                entry.1 += 1;
            }
            entry.2 += step.errors;
        }
        let record = &campaign.record;
        if let Some(failure) = &record.failure {
            let code = failure.code.as_str();
            let count = causes.get(code).and_then(Value::as_u64).unwrap_or(0) + 1;
            causes.insert(code.to_owned(), count.into());
        }
        cost += record.usage.cost_micros as f64 / 1e6;
        tokens += record.usage.input_tokens + record.usage.output_tokens;
        if word(record) == "completed" {
            times.push(seconds(&app, campaign));
        }
    }
    times.sort_by(f64::total_cmp);
    let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
    let by_step: Vec<Value> = steps
        .iter()
        .map(|step| {
            let (sum, count, errors) = spent.get(&step.id).copied().unwrap_or_default();
            json!({"id": step.id, "name": step.title, "completed": count, "errors": errors,
                   "mean_seconds": mean(sum, count)})
        })
        .collect();
    Ok(Json(json!({
        "counts": counts(&campaigns),
        "steps": by_step,
        "failures": causes,
        "cost": cost,
        "tokens": tokens,
        "mean_seconds": mean(times.iter().sum(), times.len() as u64),
        "median_seconds": times.get(times.len() / 2),
        "analysed": campaigns.len().min(ANALYSED),
    })))
}

/// Newest campaigns whose logs the analysis reads.
const ANALYSED: usize = 200;
