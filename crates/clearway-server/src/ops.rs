//! For operators and their tools: health, metrics, providers, pools.

use std::fmt::Write as _;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::{Code, Timestamp};
use clearway_engine::upstream::{BreakerView, CallView, KeyView, ProviderView, RateView};
use clearway_engine::{Health, PoolView};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use prometheus_client::encoding::text::encode;
use serde_json::{Value, json};

use crate::Problem;
use crate::app::App;
use crate::extract::{PathText, Query, shown};

/// `GET /health/live`: whether the runtime moves at all. Waits for nothing.
pub(crate) async fn live(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let is_alive = app.engine.health_quick();
    let pulse = app.engine.pulse();
    let ms = |lag: std::time::Duration| tenths(lag.as_secs_f64() * 1000.0);
    let body = json!({
        "status": if is_alive { "ok" } else { "stalled" },
        "scheduler_lag_ms": ms(pulse.lag),
        "scheduler_lag_max_ms": ms(pulse.lag_max),
        "uptime_s": pulse.uptime.as_secs(),
        "version": app.options.version,
    });
    Ok(health_response(is_alive, body))
}

/// `GET /health/ready`: whether new work would be done here.
pub(crate) async fn ready(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let Some(health) = app.health().await else {
        let body = json!({
            "status": "not_ready",
            "problems": ["the engine did not tell its health within 2 s"],
            "version": app.options.version,
        });
        return Ok(health_response(false, body));
    };
    // What was measured a moment ago may not know of the drain.
    let mut health = Health::clone(&health);
    health.draining |= app.engine.is_draining();
    let is_ready = health.ready && !health.draining;
    Ok(health_response(is_ready, readiness(&health, is_ready, &app.options.version)))
}

fn health_response(is_good: bool, body: Value) -> Response {
    let status = if is_good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !is_good {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(crate) fn readiness(health: &Health, is_ready: bool, version: &str) -> Value {
    let mut problems = health.problems.clone();
    if health.draining {
        problems.push("draining: the server stops and takes no new work".to_owned());
    }
    let waiting: u32 = health.pools.iter().map(|pool| pool.ready + pool.blocked).sum();
    let store = match &health.store {
        Ok(info) => json!({
            "kind": info.kind,
            "path": info.path,
            "size_bytes": info.size_bytes,
            "disk_free_bytes": info.disk_free_bytes,
            "writable": info.writable.is_ok(),
            "problem": info.writable.as_ref().err(),
            "schema_version": info.schema_version,
        }),
        Err(problem) => json!({"writable": false, "problem": problem}),
    };
    json!({
        "status": if is_ready { "ready" } else { "not_ready" },
        "problems": problems,
        "draining": health.draining,
        "pools": health.pools.iter().map(pool).collect::<Vec<_>>(),
        "queue": waiting,
        "live_runs": health.live_runs,
        "providers": health.providers.iter().map(provider).collect::<Vec<_>>(),
        "store": store,
        "threads": health.os_threads,
        "threads_at_start": health.os_threads_at_start,
        "open_files": health.open_files,
        "open_files_limit": health.open_files_limit,
        "memory_bytes": health.memory_bytes,
        "scheduler_lag_ms": tenths(health.scheduler_lag_ms),
        "scheduler_lag_max_ms": tenths(health.scheduler_lag_max_ms),
        "uptime_s": health.uptime.as_secs(),
        "version": version,
    })
}

fn tenths(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}

pub(crate) fn pool(pool: &PoolView) -> Value {
    json!({
        "name": pool.name,
        "slots": pool.slots,
        "running": pool.running,
        "ready": pool.ready,
        "blocked": pool.blocked,
        "queue_limit": pool.queue_limit,
    })
}

fn provider(provider: &ProviderView) -> Value {
    json!({
        "name": provider.name,
        "kind": provider.kind.as_str(),
        "endpoint": provider.endpoint,
        "in_flight": provider.limiter.in_flight,
        "queued": provider.limiter.queued.iter().sum::<usize>(),
        "limit": provider.limiter.cap,
        "breaker": provider.breaker.state,
        "connections_opened": provider.connections.opened,
        "connections_reused": provider.connections.reused,
        "connections_closed": provider.connections.closed,
        "connections_idle": provider.connections.idle,
    })
}

/// Everything about a provider, for whoever asks why it is slow.
fn provider_in_full(view: &ProviderView) -> Value {
    let mut full = provider(view);
    let [interactive, run, bulk] = view.limiter.queued;
    let levels = |model: &str| view.limiter.models.iter().find(|level| level.model == model);
    let models: Vec<Value> = view
        .models
        .iter()
        .map(|model| {
            let level = levels(&model.model);
            json!({
                "name": model.name,
                "model": model.model,
                "breaker": breaker(&model.breaker),
                // What one more call would cost: of equals the cheaper one is asked.
                "load": {
                    "in_flight": model.load.under_way,
                    "first_output_ms": model.load.first_output_ms,
                    "cost_ms": model.load.cost_ms,
                },
                // Not before its first call.
                "in_flight": level.map(|level| level.in_flight),
                "limit": level.map(|level| level.limit),
                "service_ms": level.and_then(|level| level.service_ms),
                "requests": level.and_then(|level| level.requests).map(rate),
                "tokens": level.and_then(|level| level.tokens).map(rate),
                "cooling_ms": level.and_then(|level| level.cooling_ms),
            })
        })
        .collect();
    full["breaker"] = breaker(&view.breaker);
    full["limiter"] = json!({
        "in_flight": view.limiter.in_flight,
        "peak": view.limiter.peak,
        "limit": view.limiter.cap,
        "queued": {"interactive": interactive, "run": run, "bulk": bulk},
        "requests": view.limiter.requests.map(rate),
        "tokens": view.limiter.tokens.map(rate),
        "shed": {
            "deadline": view.limiter.shed_deadline,
            "queue_full": view.limiter.shed_queue_full,
        },
    });
    full["models"] = models.into();
    full["keys"] = view.keys.iter().map(key).collect();
    full["retry_budget"] = json!({
        "available": view.retry_budget.available,
        "suppressed": view.retry_budget.suppressed,
    });
    full["attempts"] = json!(view.tally.attempts);
    full["hedges"] = view.tally.hedges.into();
    full["usage"] = json!({
        "input_tokens": view.tally.input_tokens,
        "output_tokens": view.tally.output_tokens,
        "cost": view.tally.cost_micros as f64 / 1e6,
    });
    full
}

fn breaker(breaker: &BreakerView) -> Value {
    let history: Vec<Value> = breaker
        .history
        .iter()
        .map(|step| {
            json!({
                "ago_ms": step.ago_ms,
                "from": step.from,
                "to": step.to,
                "reason": step.reason,
            })
        })
        .collect();
    json!({
        "state": breaker.state,
        "since_ms": breaker.since_ms,
        "consecutive_failures": breaker.consecutive_failures,
        "recent": {"samples": breaker.recent.samples, "failures": breaker.recent.failures},
        "next_probe_ms": breaker.next_probe_ms,
        "late_results": breaker.late_results,
        "history": history,
    })
}

fn key(key: &KeyView) -> Value {
    let cooling: serde_json::Map<_, _> =
        key.cooling.iter().map(|(model, ms)| (model.clone(), (*ms).into())).collect();
    json!({
        "label": key.label,
        "state": key.state,
        "reason": key.reason,
        "enabled_in_ms": key.enabled_in_ms,
        "cooling_ms": cooling,
    })
}

fn rate(rate: RateView) -> Value {
    json!({"per_minute": rate.per_minute, "available": rate.available})
}

/// `GET /pools`
pub(crate) async fn pools(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let pools: Vec<Value> = app.engine.pools().iter().map(pool).collect();
    Ok(Json(json!({"pools": pools})))
}

/// `GET /providers`
pub(crate) async fn providers(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let providers: Vec<Value> = app.engine.providers().iter().map(provider_in_full).collect();
    let now = app.engine.now();
    let calls: Vec<Value> =
        app.engine.upstream().calls().iter().map(|one| call(one, now)).collect();
    Ok(Json(json!({"providers": providers, "calls": calls})))
}

/// A call that belongs to no run; what it waits for reads as a run's does.
fn call(call: &CallView, now: Timestamp) -> Value {
    let waiting = &call.waiting;
    let for_ms = waiting.for_.as_millis() as u64;
    json!({
        "id": call.id,
        "operation": "embeddings",
        "model": call.model,
        "texts": call.items,
        "tenant": call.tenant,
        "waiting_on": {
            "kind": waiting.kind.as_str(),
            "detail": &*waiting.detail,
            "since": Timestamp(now.0.saturating_sub(for_ms as i64)).to_string(),
            "for_ms": for_ms,
        },
    })
}

/// `POST /providers/{name}/reset`: closes its breakers and takes its keys up again.
pub(crate) async fn reset_provider(
    State(app): State<App>,
    PathText(name): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    if !app.engine.upstream().reset(&name) {
        let text = format!("there is no provider `{}`", shown(&name));
        return Err(
            Problem::new(Code::NotFound, text).hint("GET /providers shows what is configured.")
        );
    }
    let views = app.engine.providers();
    let view = views.iter().find(|view| view.name == name).map(provider_in_full);
    Ok(Json(json!({"provider": view})))
}

/// `GET /metrics`
pub(crate) async fn metrics(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    Query::own(request.uri(), &[])?;
    let mut text = String::new();
    let registry = app.engine.metrics().registry();
    encode(&mut text, &registry).map_err(|error| {
        Problem::new(Code::Internal, format!("the metrics do not print: {error}"))
    })?;
    drop(registry);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// `GET /`: what lives here, for somebody who opens the address in a browser or with curl.
pub(crate) async fn home(State(app): State<App>) -> Response {
    let mut text = format!("Clearway {}\n\n", app.options.version);
    for door in &app.options.doors {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<22} the co-founder's chat, agent {}", door.mount, door.agent);
    }
    text.push_str(HOME);
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

const HOME: &str = "\
/chat/async            a chat in the background
/runs                  every run: what it does, what it waits for; watch and cancel
/health/live           is it alive
/health/ready          is it ready, and if not, why
/metrics               measurements for Prometheus
/pools  /providers     what is busy
/openapi.json          all addresses
/errors/{code}         what an error code means

Try:
  curl -N -H 'content-type: application/json' \\
       -d '{\"user_id\":\"me\",\"message\":\"hello\"}' <this address>/chat/stream
";
