//! How far a campaign is: figures, steps, health. All of it is from its events.

use axum::Json;
use axum::extract::Request;
use clearway_engine::ArtifactRecord;
use serde_json::{Map, Value, json};
use tokio::time::Duration;

use super::fold::{Fold, StepFold, steps_of};
use super::{Campaign, asked, files, folded, is_asking, seconds, word};
use crate::Problem;
use crate::app::App;
use crate::server::Door;

/// `GET …/campaigns/{id}/status`
pub(crate) async fn status(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let whole = progress(app, door, id, request).await?.0;
    let mut shown = json!({
        "campaign_id": whole["campaign_id"],
        "status": whole["status"],
        "progress": whole["progress"],
        "estimated_completion": whole["estimated_completion"],
    });
    for name in WAITING {
        shown[name] = whole[name].clone();
    }
    Ok(Json(shown))
}

/// `GET …/campaigns/{id}/progress`
pub(crate) async fn progress(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let mut fold = folded(&app, &campaign).await?;
    let steps = steps_of(&app, door);
    let record = &campaign.record;
    let (state, elapsed) = (word(record), seconds(&app, &campaign));
    let figures = fold.figures(&steps, state, elapsed);
    let files = files::of(&app, &campaign).await?;
    let view = app.engine.run(record.id).await?;
    let now = app.engine.now();
    let shown = crate::view::run(&view, now);
    let left = figures["estimated_remaining_time"].as_f64().filter(|_| state == "running");
    let completion = left.map(|left| now.plus(Duration::from_secs_f64(left.min(1e6))).to_string());
    let mut body = json!({
        "campaign_id": campaign.id,
        "status": state,
        "progress": figures,
        "agent_interactions": fold.interactions,
        "artifacts_summary": summary(&files),
        "revision_count": fold.revisions(),
        "execution_time": elapsed,
        "last_update": fold.last.unwrap_or(campaign.began).to_string(),
        "estimated_completion": completion,
        "workflow_health": health(&campaign, &fold),
        "timing_info": {
            "created_at": campaign.began.to_string(),
            "started_at": record.started_at.map(|at| at.to_string()),
            "completed_at": record.ended_at.filter(|_| !is_asking(record)).map(|at| at.to_string()),
            "elapsed_seconds": elapsed,
            "estimated_total_seconds": figures["estimated_total_time"],
            "estimated_remaining_seconds": figures["estimated_remaining_time"],
            "spent_ms": shown["spent_ms"],
        },
    });
    put_waiting(&mut body, &shown);
    Ok(Json(body))
}

/// What [`put_waiting`] puts.
const WAITING: [&str; 5] =
    ["waiting_on", "queue_position", "queue_reason", "expected_start", "priority"];

/// What a campaign waits for, and when its turn should come.
pub(super) fn put_waiting(body: &mut Value, run: &Value) {
    body["waiting_on"] = run["waiting_on"].clone();
    body["queue_position"] = run["queue_position"].as_u64().map(|ahead| ahead + 1).into();
    body["queue_reason"] = run["queue_reason"].clone();
    body["expected_start"] = run["expected_start"].clone();
    body["priority"] = run["priority"].clone();
}

fn summary(files: &[ArtifactRecord]) -> Value {
    let mut types: Map<String, Value> = Map::new();
    for file in files {
        let count = types.get(&file.media_type).and_then(Value::as_u64).unwrap_or(0) + 1;
        types.insert(file.media_type.clone(), count.into());
    }
    let last = files.iter().map(|file| file.created_at).max();
    json!({
        "total_count": files.len(),
        "types": types,
        "last_generated": last.map(|at| at.to_string()),
    })
}

fn health(campaign: &Campaign, fold: &Fold) -> Value {
    let record = &campaign.record;
    let finished = fold.steps.values().map(|step| step.runs).sum::<u64>();
    let rate = match finished + fold.errors {
        0 => 1.0,
        all => finished as f64 / all as f64,
    };
    let of_steps = fold.steps.iter().filter_map(|(id, step)| {
        let error = step.error.as_ref()?;
        Some(format!("{id}: {error}"))
    });
    let of_run = record.failure.as_ref().map(ToString::to_string);
    let mut issues: Vec<String> = of_steps.collect();
    issues.sort();
    issues.extend(of_run);
    json!({
        "status": match (word(record), fold.errors) {
            ("failed", _) => "failed",
            (_, 0) => "healthy",
            _ => "degraded",
        },
        "success_rate": rate,
        "total_interactions": fold.total,
        "error_count": fold.errors,
        "issues": issues,
        "last_activity": fold.last.map(|at| at.to_string()),
    })
}

/// `GET …/campaigns/{id}/workflow-steps`
pub(crate) async fn workflow_steps(
    app: App,
    door: &Door,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let fold = folded(&app, &campaign).await?;
    let steps = steps_of(&app, door);
    let state = word(&campaign.record);
    let ended = !matches!(state, "queued" | "running");
    let files = files::of(&app, &campaign).await?;
    let (mut counted, mut rows) = ([0usize; 4], Vec::with_capacity(steps.len()));
    for (order, step) in steps.iter().enumerate() {
        let seen = fold.steps.get(&step.id).cloned().unwrap_or_default();
        let (at, status) = stand(&seen, ended);
        counted[at] += 1;
        let names: Vec<&str> = files
            .iter()
            .filter(|file| super::fold::step_of(&file.node) == step.id)
            .map(|file| file.name.as_str())
            .collect();
        rows.push(json!({
            "id": step.id,
            "name": step.title,
            "description": step.description,
            "order": order + 1,
            "category": step.category,
            "status": status,
            "started_at": seen.started.map(|at| at.to_string()),
            "completed_at": seen.completed.map(|at| at.to_string()),
            "execution_time": seen.time().map(super::in_seconds),
            "error_message": seen.error,
            "interaction_count": seen.interactions,
            "error_count": seen.errors,
            "artifacts_generated": names,
            "artifacts_count": names.len(),
            "runs": seen.runs,
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
        "current_status": state,
        "last_update": fold.last.unwrap_or(campaign.began).to_string(),
    })))
}

/// Where a step stands, and its place among the counts.
fn stand(step: &StepFold, ended: bool) -> (usize, &'static str) {
    match (&step.error, step.running > 0 && !ended, step.completed) {
        (_, true, _) => (2, "running"),
        (Some(_), false, _) if ended => (1, "failed"),
        (_, false, Some(_)) => (0, "completed"),
        (Some(_), false, None) => (1, "failed"),
        // It was at work when the campaign ended.
        (None, false, None) if ended && step.started.is_some() => (1, "failed"),
        (None, false, None) => (3, "pending"),
    }
}
