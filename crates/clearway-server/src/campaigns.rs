//! The campaign door: briefs in, artifacts and true progress out.
//!
//! A campaign is a thread with a chain of runs (a question that a person answers begins a new one).
//! Everything shown is read from the runs' rows and events; what was read once is kept, so asking
//! again costs only what is new.
//!
//! **Invariant:** nothing here is kept beside the runs: a campaign that the server did not lose is a
//! campaign that it can show.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Failure, RunId, RunRecord, Status, Timestamp};
use clearway_engine::{ArtifactRecord, ArtifactScope, CancelOutcome, RunQuery};
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Map, Value, json};

use crate::Problem;
use crate::app::App;
use crate::caller::{Caller, caller};
use crate::control;
use crate::extract::{Query, shown};
use crate::server::Door;

pub(crate) use self::around::{analytics, health, thread_pool};
pub(crate) use self::brief::{create, generate};
pub(crate) use self::files::{artifact, artifacts, file, zip};
pub(crate) use self::fold::Folds;
use self::fold::{Fold, fold};
pub(crate) use self::progress::{progress, status, workflow_steps};
pub(crate) use self::tell::tell_ends;
pub(crate) use self::watch::{socket, socket_all, stream, stream_all};

mod around;
mod brief;
mod files;
mod fold;
mod progress;
mod tell;
mod watch;

/// The door's name, and its threads' dialect.
pub(crate) const DIALECT: &str = "campaign";

/// The door that a run came through, for runs that go on with it.
pub(crate) fn door(name: &str) -> &'static str {
    if name == DIALECT { DIALECT } else { "runs" }
}

/// Campaigns that a list looks at.
const LISTED: u32 = 1000;

/// A campaign: its newest run, and when it began.
struct Campaign {
    id: String,
    record: RunRecord,
    began: Timestamp,
    /// Newest first.
    runs: Vec<RunId>,
}

/// The dialect's word for where a campaign is.
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

/// Whether it waits for a person's answer.
fn is_asking(record: &RunRecord) -> bool {
    record.status == Status::Success && !record.next.is_empty()
}

fn key_of(record: &RunRecord) -> Option<String> {
    record.metadata.get("key").and_then(Value::as_str).map(ToOwned::to_owned)
}

fn created_by(record: &RunRecord) -> Value {
    record.metadata.get("created_by").cloned().unwrap_or(Value::Null)
}

/// The campaigns that a caller may see, the newest first.
async fn all(app: &App, caller: &Caller) -> Result<Vec<Campaign>, Problem> {
    let query = caller.narrow(RunQuery {
        door: Some(DIALECT.to_owned()),
        limit: LISTED,
        ..RunQuery::default()
    });
    let (records, _) = app.engine.records(query).await?;
    let mut found: Vec<Campaign> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for record in records {
        let Some(id) = key_of(&record) else { continue };
        match places.get(&id) {
            Some(&at) => {
                found[at].began = record.created_at;
                found[at].runs.push(record.id);
            }
            None => {
                places.insert(id.clone(), found.len());
                let (began, runs) = (record.created_at, vec![record.id]);
                found.push(Campaign { id, record, began, runs });
            }
        }
    }
    Ok(found)
}

/// One campaign.
///
/// # Errors
/// 404 when there is none of this id, 403 when it is somebody else's.
async fn one(app: &App, caller: &Caller, id: &str) -> Result<Campaign, Problem> {
    // An admin's campaigns are those of all tenants.
    let mut tenants = vec![caller.tenant.as_str()];
    if caller.admin {
        tenants.extend(app.options.keys.iter().map(|key| key.tenant.as_str()));
        let mut seen = HashSet::new();
        tenants.retain(|tenant| seen.insert(*tenant));
    }
    for tenant in tenants {
        let thread = ThreadKey::new(DIALECT, &[id]).thread_id(tenant);
        let query = RunQuery { thread: Some(thread), limit: 100, ..RunQuery::default() };
        let (records, _) = app.engine.records(query).await?;
        let runs: Vec<RunId> = records.iter().map(|record| record.id).collect();
        let began = records.last().map(|record| record.created_at);
        let (Some(record), Some(began)) = (records.into_iter().next(), began) else { continue };
        if !caller.owns(&record.tenant, record.owner.as_deref()) {
            let text = format!("Campaign {} belongs to another user", shown(id));
            return Err(Problem::new(Code::Forbidden, text));
        }
        return Ok(Campaign { id: id.to_owned(), record, began, runs });
    }
    let text = format!("Campaign {} not found", shown(id));
    Err(Problem::new(Code::NotFound, text))
}

/// As [`one`], for a request.
async fn asked(app: &App, id: &str, headers: &HeaderMap) -> Result<Campaign, Problem> {
    one(app, &caller(headers, None)?, id).await
}

/// The log of all runs of a campaign, oldest first, as one.
async fn folded(app: &App, campaign: &Campaign) -> Result<Fold, Problem> {
    let mut whole = Fold::default();
    for run in campaign.runs.iter().rev() {
        whole.go_on(fold(app, *run).await?);
    }
    Ok(whole)
}

/// Seconds that a campaign has taken since its first run began, or took.
fn seconds(app: &App, campaign: &Campaign) -> f64 {
    let record = &campaign.record;
    let first = campaign.runs.len() <= 1;
    let begun = match record.started_at {
        Some(started) if first => started,
        None if first => return 0.0,
        _ => campaign.began,
    };
    let end = record.ended_at.filter(|_| word(record) != "running");
    in_seconds(end.unwrap_or_else(|| app.engine.now()).since(begun))
}

/// To the millisecond, and not a digit more.
fn in_seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
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

/// `GET …/campaigns`
pub(crate) async fn list(app: App, request: Request) -> Result<Json<Value>, Problem> {
    let campaigns = wanted(&app, request.uri(), request.headers()).await?;
    let mut rows = Vec::with_capacity(campaigns.len());
    for campaign in &campaigns {
        let fold = folded(&app, campaign).await?;
        rows.push(row(&app, campaign, &fold));
    }
    let mut body = counts(&campaigns);
    body.insert("campaigns".to_owned(), rows.into());
    Ok(Json(Value::Object(body)))
}

/// `GET …/campaigns/progress`
pub(crate) async fn list_progress(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaigns = wanted(&app, request.uri(), request.headers()).await?;
    let steps = fold::steps_of(&app, door);
    let mut rows = Vec::with_capacity(campaigns.len());
    let records = campaigns.iter().map(|campaign| campaign.record.clone()).collect();
    let views = app.engine.views(records).await;
    for (campaign, view) in campaigns.iter().zip(&views) {
        let mut fold = folded(&app, campaign).await?;
        let mut row = row(&app, campaign, &fold);
        let state = word(&campaign.record);
        let elapsed = seconds(&app, campaign);
        let mut figures = fold.figures(&steps, state, elapsed);
        figures["artifacts_generated"] = fold.files.len().into();
        figures["revision_count"] = fold.revisions().into();
        figures["execution_time"] = elapsed.into();
        row["progress"] = figures;
        if !campaign.record.status.is_terminal() {
            progress::put_waiting(&mut row, &crate::view::run(view, app.engine.now()));
        }
        rows.push(row);
    }
    let mut body = counts(&campaigns);
    body.insert("campaigns".to_owned(), rows.into());
    Ok(Json(Value::Object(body)))
}

/// The campaigns that a list's query asks for.
async fn wanted(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<Vec<Campaign>, Problem> {
    let query = Query::parse(uri)?;
    let caller = caller(headers, query.get("username"))?;
    let mut campaigns = match query.get("campaign_id") {
        Some(id) => match one(app, &caller, id).await {
            Ok(campaign) => vec![campaign],
            Err(problem) if problem.code() == Code::NotFound => Vec::new(),
            Err(problem) => return Err(problem),
        },
        None => all(app, &caller).await?,
    };
    if let Some(username) = query.get("username") {
        campaigns.retain(|campaign| created_by(&campaign.record) == username);
    }
    if let Some(status) = query.get("status") {
        campaigns.retain(|campaign| word(&campaign.record) == status);
    }
    campaigns.truncate(crate::runs::limit(&query, LISTED)? as usize);
    Ok(campaigns)
}

fn row(app: &App, campaign: &Campaign, fold: &Fold) -> Value {
    let record = &campaign.record;
    json!({
        "campaign_id": campaign.id,
        "status": word(record),
        "created_at": campaign.began.to_string(),
        "completed_at": record.ended_at.filter(|_| !is_asking(record)).map(|at| at.to_string()),
        "execution_time": record.started_at.map(|_| seconds(app, campaign)),
        "artifacts_count": fold.files.len(),
        "created_by": created_by(record),
    })
}

/// `GET …/campaigns/{id}`
pub(crate) async fn show(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    Ok(Json(whole(&app, door, &campaign).await?))
}

/// A campaign in the first shape, filled in.
async fn whole(app: &App, door: &Door, campaign: &Campaign) -> Result<Value, Problem> {
    let fold = folded(app, campaign).await?;
    let files = files::of(app, campaign).await?;
    let record = &campaign.record;
    let has = |media_type: &str| files.iter().any(|file| file.media_type == media_type);
    let done = word(record) == "completed";
    let mount = door.mount.trim_end_matches('/');
    let by_name: Map<String, Value> = files
        .iter()
        .map(|file| {
            let mut shown = control::artifact(file);
            let name = files::encoded(&file.name);
            shown["url"] = format!("{mount}/campaigns/{}/artifacts/{name}", campaign.id).into();
            (file.name.clone(), shown)
        })
        .collect();
    let state = app.engine.thread_state(record.thread).await?;
    let score = state.and_then(|at| at.state.get("review").map(|review| review["score"].clone()));
    let page = format!("/campaigns/view/{}", campaign.id);
    let pdf = format!("{mount}/campaigns/{}/pdf", campaign.id);
    Ok(json!({
        "campaign_id": campaign.id,
        "status": word(record),
        "message": message(record),
        "artifacts": by_name,
        "website_url": (done && has("text/html")).then_some(page),
        "pdf_url": (done && has("application/pdf")).then_some(pdf),
        "execution_time": record.started_at.map(|_| seconds(app, campaign)),
        "quality_score": score,
        "revision_count": fold.revisions(),
        "created_at": campaign.began.to_string(),
        "created_by": created_by(record),
        "run_id": record.id.to_string(),
        "thread_id": record.thread.to_string(),
        "priority": record.priority.level(),
        "error": record.failure.as_ref().map(Failure::to_json),
    }))
}

fn message(record: &RunRecord) -> String {
    match (&record.failure, word(record)) {
        (Some(failure), _) => failure.message.clone(),
        (None, "completed") => "Campaign generation completed".to_owned(),
        (None, "queued") => "Campaign is queued".to_owned(),
        (None, "cancelled") => "Campaign was cancelled".to_owned(),
        (None, _) if is_asking(record) => "Campaign waits for an answer".to_owned(),
        (None, _) => "Campaign generation in progress".to_owned(),
    }
}

/// `POST …/campaigns/{id}/cancel`
pub(crate) async fn cancel(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Response, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let status = match app.engine.cancel(campaign.record.id, "client").await? {
        CancelOutcome::Requested => StatusCode::ACCEPTED,
        CancelOutcome::Ended(_) => StatusCode::OK,
        CancelOutcome::AlreadyEnded(record) if record.status == Status::Cancelled => StatusCode::OK,
        CancelOutcome::AlreadyEnded(record) => {
            let text = format!("Campaign {id} has already ended: {}", word(&record));
            return Err(Problem::new(Code::RunEnded, text));
        }
    };
    let campaign = asked(&app, id, request.headers()).await?;
    Ok((status, Json(whole(&app, door, &campaign).await?)).into_response())
}

/// `PATCH …/campaigns/{id}`: the priority of one that waits for its turn.
pub(crate) async fn change(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let (parts, body) = request.into_parts();
    let body = control::object(&parts, body, &app, &["priority"]).await?;
    if let Some(priority) = body.get("priority") {
        app.engine.set_priority(campaign.record.id, control::priority(priority)?).await?;
    }
    let campaign = one(&app, &caller(&parts.headers, None)?, id).await?;
    let mut shown = whole(&app, door, &campaign).await?;
    let view = app.engine.run(campaign.record.id).await?;
    progress::put_waiting(&mut shown, &crate::view::run(&view, app.engine.now()));
    Ok(Json(shown))
}

/// `POST …/campaigns/{id}/answer`: what a person says to the campaign's question.
pub(crate) async fn answer(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Response, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let (parts, body) = request.into_parts();
    let body = control::object(&parts, body, &app, &["answer", "question"]).await?;
    control::answer_run(&app, &campaign.record, &body).await?;
    let campaign = one(&app, &caller(&parts.headers, None)?, id).await?;
    Ok((StatusCode::ACCEPTED, Json(whole(&app, door, &campaign).await?)).into_response())
}

/// Files of a campaign, oldest first, without their bytes.
async fn records(app: &App, campaign: &Campaign) -> Result<Vec<ArtifactRecord>, Problem> {
    Ok(app.engine.artifacts(ArtifactScope::Thread(campaign.record.thread)).await?)
}
