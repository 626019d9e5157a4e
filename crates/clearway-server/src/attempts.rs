//! Attempts at provider calls, as the books have them: of a run, or of no run.

use axum::Json;
use axum::extract::{Request, State};
use clearway_core::{AttemptRecord, AttemptsOf};
use serde_json::{Value, json};

use crate::Problem;
use crate::app::App;
use crate::caller::own_run;
use crate::extract::{PathText, Query};
use crate::runs::{limit, run_id};

/// `GET /runs/{run_id}/attempts`: oldest first, as far as they are committed.
pub(crate) async fn of_run(
    State(app): State<App>,
    PathText(id): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["after", "limit"])?;
    let run = own_run(&app, request.headers(), run_id(&id)?).await?.record.id;
    page(&app, AttemptsOf::Run(run), &query).await
}

/// `GET /providers/attempts`: those that belong to no run, newest first. Texts of many callers are
/// embedded together.
pub(crate) async fn of_no_run(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["after", "limit"])?;
    page(&app, AttemptsOf::NoRun, &query).await
}

async fn page(app: &App, of: AttemptsOf, query: &Query) -> Result<Json<Value>, Problem> {
    let most = limit(query, 100)?;
    let after = query.read::<i64>("after", "the `next` of the page before")?;
    let attempts = app.engine.attempts(of, after, most).await?;
    let next = attempts.last().filter(|_| attempts.len() == most as usize).map(|last| last.id);
    let attempts: Vec<Value> = attempts.iter().map(attempt).collect();
    Ok(Json(json!({"attempts": attempts, "next": next})))
}

fn attempt(attempt: &AttemptRecord) -> Value {
    let money = |micros: u64| micros as f64 / 1e6;
    json!({
        "at": attempt.at.to_string(),
        "call": attempt.call,
        "node": Some(&attempt.node).filter(|node| !node.is_empty()),
        "attempt": attempt.number,
        "provider": attempt.provider,
        "endpoint": attempt.endpoint,
        "model": attempt.model,
        "key": attempt.key,
        "class": attempt.class,
        "phase": attempt.phase,
        "outcome": attempt.outcome,
        "status": attempt.status,
        "source": attempt.source,
        "input_tokens": attempt.input_tokens,
        "output_tokens": attempt.output_tokens,
        "cached_tokens": attempt.cached_tokens,
        "reasoning_tokens": attempt.reasoning_tokens,
        "price": attempt.price.map(|[input, cached, output]| json!({
            "input": money(input), "cached_input": money(cached), "output": money(output),
        })),
        "cost": attempt.cost_micros.map(money),
        "ms": attempt.ms,
        "first_output_ms": attempt.first_output_ms,
    })
}
