//! Around the campaigns: health in the old shape, the pool's proof, figures over many campaigns.

use std::collections::HashMap;

use axum::Json;
use axum::extract::Request;
use clearway_core::Code;
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant, interval, timeout};

use super::fold::steps_of;
use super::{all, counts, created_by, folded, seconds, word};
use crate::Problem;
use crate::app::App;
use crate::caller::caller;
use crate::ops;
use crate::server::Door;

/// `GET …/health`: answers from memory, whatever the rest of the server is doing.
pub(crate) async fn health(app: App, door: &Door) -> Json<Value> {
    let agent = app.engine.agents().get(&door.agent);
    let pools = app.engine.pools();
    let pool = agent.as_ref().and_then(|agent| pools.iter().find(|pool| pool.name == agent.pool));
    let providers = app.engine.providers();
    let models = providers.iter().flat_map(|provider| &provider.models);
    let model = models.clone().find(|model| model.name == "default").or(models.clone().next());
    let open = |state: &str| state != "closed";
    let health = app.last_health();
    let ready = health.as_ref().is_some_and(|health| health.ready) && !app.engine.is_draining();
    let mut body = json!({
        "status": match (app.engine.is_draining(), ready) {
            (true, _) => "stopping",
            (false, true) => "healthy",
            (false, false) => "degraded",
        },
        "timestamp": app.engine.now().to_string(),
        "version": app.options.version,
        "llm_model": model.map(|model| model.model.clone()),
        "openai_available": providers.iter().any(|provider| !open(provider.breaker.state)),
        "workflow_ready": agent.is_some(),
        "authentication": if app.options.keys.is_empty() { "none" } else { "keys" },
        "thread_pool_ready": pool.is_some(),
        "pool": pool.map(ops::pool),
        "breakers": providers
            .iter()
            .flat_map(|provider| {
                let of = provider.models.iter().map(|model| (model.name.as_str(), model.breaker.state));
                std::iter::once((provider.name.as_str(), provider.breaker.state)).chain(of)
            })
            .map(|(name, state)| (name.to_owned(), state.into()))
            .collect::<Map<String, Value>>(),
        "workers": {"lanes": clearway_engine::Lanes::WORK, "store": clearway_engine::Lanes::STORE},
    });
    if let Some(health) = &health {
        let more = ops::readiness(health, ready, &app.options.version);
        for name in MORE {
            body[name] = more[name].clone();
        }
    }
    Json(body)
}

/// What the old shape takes over from readiness.
const MORE: [&str; 10] = [
    "problems",
    "pools",
    "queue",
    "live_runs",
    "providers",
    "store",
    "threads",
    "open_files",
    "memory_bytes",
    "scheduler_lag_ms",
];

/// `GET …/test/thread-pool`: two seconds of blocking work in the lane that such work has. Meanwhile
/// the runtime is asked every few milliseconds how it is, and both figures are told.
pub(crate) async fn thread_pool(app: App) -> Result<Json<Value>, Problem> {
    let asked = Instant::now();
    let work = app.lanes.run(|| {
        let began = std::time::Instant::now();
        std::thread::sleep(WORK);
        began.elapsed()
    });
    let mut work = std::pin::pin!(timeout(PATIENCE, work));
    let (mut ticks, mut late) = (interval(PROBE), Vec::new());
    let slept = loop {
        tokio::select! {
            slept = &mut work => break slept,
            due = ticks.tick() => late.push(due.elapsed()),
        }
    };
    let Ok(Some(slept)) = slept else {
        return Err(Problem::new(Code::Overloaded, "the lanes for blocking work stayed busy")
            .retry_after(WORK));
    };
    late.sort_unstable();
    let ms = |duration: Duration| (duration.as_secs_f64() * 1e4).round() / 10.0;
    let p99 = late.get(late.len() * 99 / 100).or(late.last()).copied().unwrap_or_default();
    Ok(Json(json!({
        "status": "success",
        "message": "the pool did blocking work while the server stayed responsive",
        "result": {
            "work_ms": ms(slept),
            "total_ms": ms(asked.elapsed()),
            "probes": late.len(),
            "probe_late_p99_ms": ms(p99),
            "probe_late_max_ms": ms(late.last().copied().unwrap_or_default()),
        },
        "timestamp": app.engine.now().to_string(),
    })))
}

const WORK: Duration = Duration::from_secs(2);
/// As long as a few rounds of the pool take.
const PATIENCE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_millis(10);

/// `GET …/analytics/campaigns`
pub(crate) async fn analytics(
    app: App,
    door: &Door,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaigns = all(&app, &caller(request.headers(), None)?).await?;
    let steps = steps_of(&app, door);
    let mut spent: HashMap<String, (Vec<f64>, u64)> = HashMap::new();
    let (mut causes, mut users) = (Map::new(), Map::new());
    let (mut cost, mut tokens, mut calls) = (0.0, 0u64, 0u64);
    let (mut times, mut waits, mut revisions) = (Vec::new(), Vec::new(), 0);
    let count = |map: &mut Map<String, Value>, name: &str| {
        let count = map.get(name).and_then(Value::as_u64).unwrap_or(0) + 1;
        map.insert(name.to_owned(), count.into());
    };
    for campaign in campaigns.iter().take(ANALYSED) {
        let fold = folded(&app, campaign).await?;
        for (id, step) in &fold.steps {
            let entry = spent.entry(id.clone()).or_default();
            entry.0.extend(step.time().map(|time| time.as_secs_f64()));
            entry.1 += step.errors;
        }
        revisions += fold.revisions();
        let record = &campaign.record;
        if let Some(failure) = &record.failure {
            count(&mut causes, failure.code.as_str());
        }
        if let Some(user) = created_by(record).as_str() {
            count(&mut users, user);
        }
        cost += record.usage.cost_micros as f64 / 1e6;
        tokens += record.usage.input_tokens + record.usage.output_tokens;
        calls += u64::from(record.usage.calls);
        if word(record) == "completed" {
            times.push(seconds(&app, campaign));
        }
        waits.extend(record.started_at.map(|at| at.since(campaign.began).as_secs_f64()));
    }
    let by_step: Vec<Value> = steps
        .iter()
        .map(|step| {
            let (times, errors) = spent.remove(&step.id).unwrap_or_default();
            let mut row = spread(times);
            row["id"] = step.id.clone().into();
            row["name"] = step.title.clone().into();
            row["completed"] = row["count"].clone();
            row["errors"] = errors.into();
            row
        })
        .collect();
    let whole = spread(times);
    Ok(Json(json!({
        "counts": counts(&campaigns),
        "durations": whole,
        "queue_times": spread(waits),
        "steps": by_step,
        "failures": causes,
        "users": users,
        "revisions": revisions,
        "cost": cost,
        "tokens": tokens,
        "calls": calls,
        "mean_seconds": whole["mean_seconds"],
        "median_seconds": whole["median_seconds"],
        "analysed": campaigns.len().min(ANALYSED),
    })))
}

/// Newest campaigns whose logs the analysis reads.
const ANALYSED: usize = 200;

/// Count, mean, median and 95th percentile of times in seconds.
fn spread(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let at =
        |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len().max(1) - 1));
    let mean = (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64);
    json!({
        "count": times.len(),
        "mean_seconds": mean,
        "median_seconds": at(0.5),
        "p95_seconds": at(0.95),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up() {
        assert_eq!(spread(Vec::new())["median_seconds"], Value::Null);
        let some = spread(vec![3.0, 1.0, 2.0]);
        assert_eq!((some["count"].as_u64(), some["median_seconds"].as_f64()), (Some(3), Some(2.0)));
        assert_eq!(some["p95_seconds"].as_f64(), Some(3.0));
    }
}
