//! A brief becomes a campaign.

use std::sync::atomic::{AtomicU32, Ordering};

use axum::Json;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use clearway_core::run::RunOptions;
use clearway_core::thread::ThreadKey;
use clearway_core::{Code, Priority};
use clearway_engine::{Agent, RunView, Submit, Submitted};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{DIALECT, key_of};
use crate::app::App;
use crate::caller::{Identity, caller};
use crate::control;
use crate::extract::{Invalid, parse_json, read_body, traced};
use crate::problem::Shape;
use crate::server::Door;
use crate::{Problem, idempotency};

/// `POST …/campaigns/generate`: the old address, which answers 200.
pub(crate) async fn generate(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    Ok(Json(start(&app, door, request).await?).into_response())
}

/// `POST …/campaigns`
pub(crate) async fn create(app: App, door: &Door, request: Request) -> Result<Response, Problem> {
    Ok((StatusCode::ACCEPTED, Json(start(&app, door, request).await?)).into_response())
}

fn unprocessable(list: Vec<Invalid>) -> Problem {
    Problem::new(Code::InvalidRequest, "the brief does not fit")
        .status(StatusCode::UNPROCESSABLE_ENTITY)
        .shape(Shape::Invalid(list))
}

/// What a brief says about its run rather than about the campaign.
struct Wishes {
    priority: Option<Priority>,
    webhook: Option<String>,
}

impl Wishes {
    fn take(brief: &mut Map<String, Value>, wrong: &mut Vec<Invalid>) -> Self {
        let mut refuse = |field: &str, text: &str| {
            wrong.push(Invalid::new("value_error", &["body", field], text.to_owned()));
        };
        let priority = brief.remove("priority").filter(|value| !value.is_null());
        let priority = priority.and_then(|value| match control::priority(&value) {
            Ok(priority) => Some(priority),
            Err(_) => {
                refuse("priority", "`priority` must be high, normal, low, or a number from 1 to 5");
                None
            }
        });
        let webhook = brief.remove("webhook").filter(|value| !value.is_null());
        let webhook = webhook.and_then(|value| match value {
            Value::String(url) => Some(url),
            _ => {
                refuse("webhook", "`webhook` must be an address, such as https://…");
                None
            }
        });
        Self { priority, webhook }
    }
}

async fn start(app: &App, door: &Door, request: Request) -> Result<Value, Problem> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &app.options.limits).await?;
    let value = parse_json(&bytes).map_err(|problem| unprocessable(vec![problem]))?;
    let Value::Object(mut brief) = value else {
        let wrong = Invalid::new("dict_type", &["body"], "a brief is an object");
        return Err(unprocessable(vec![wrong]));
    };
    let agent = app.engine.agents().get(&door.agent).ok_or_else(|| {
        Problem::new(Code::AgentNotFound, format!("there is no workflow `{}`", door.agent))
    })?;
    let mut wrong = Vec::new();
    let wishes = Wishes::take(&mut brief, &mut wrong);
    let username = brief.get("username").and_then(Value::as_str).map(ToOwned::to_owned);
    let input = read(&agent, brief, &mut wrong);
    let (Some(input), true) = (input, wrong.is_empty()) else {
        return Err(unprocessable(wrong));
    };
    let route = idempotency::route(&door.mount, "/campaigns/generate");
    let idempotency = idempotency::read(&parts.headers, &route, &bytes)?;
    let caller = caller(&parts.headers, username.as_deref())?;
    let by = caller
        .owner
        .clone()
        .or_else(|| Identity::read(&parts.headers).map(|identity| identity.key))
        .unwrap_or_else(|| "anonymous".to_owned());
    let (id, key) = new_id(app, &caller.tenant).await?;
    let metadata = [("key", &id), ("created_by", &by)];
    let metadata = metadata.map(|(name, text)| (name.to_owned(), text.clone().into()));
    let thread = key.thread_id(&caller.tenant);
    let options = RunOptions { webhook: wishes.webhook, ..RunOptions::default() };
    let submitted = app
        .engine
        .submit(Submit {
            tenant: caller.tenant,
            owner: caller.owner,
            thread_key: Some(key),
            metadata: traced(Map::from_iter(metadata), &parts.headers),
            priority: wishes.priority,
            idempotency,
            options,
            ..Submit::new(thread, &agent.name, DIALECT, input)
        })
        .await?;
    let view = app.engine.run(submitted.run).await?;
    let id = key_of(&view.record).unwrap_or(id);
    if !submitted.existing {
        tracing::info!(
            run.id = %submitted.run, thread.id = %submitted.thread, campaign.id = id, user = by,
            "starting generation for {id} by user {by}"
        );
    }
    Ok(answer(app, &submitted, &view, &id, &by))
}

/// The brief as the workflow's input, or what is wrong with it, field by field.
fn read(agent: &Agent, mut brief: Map<String, Value>, wrong: &mut Vec<Invalid>) -> Option<Value> {
    let Some(check) = &agent.input else { return Some(Value::Object(brief)) };
    let mut failure = match check.read(&brief) {
        Ok(input) => return Some(input),
        Err(failure) => failure,
    };
    let is_unknown = |why: &Value| why.as_str().is_some_and(|why| why.starts_with(UNKNOWN));
    // Fields that nobody knows are ignored, as old clients send a few.
    let fields = failure.detail.get("fields").and_then(Value::as_object);
    let unknown: Vec<String> = fields
        .into_iter()
        .flatten()
        .filter(|(_, why)| is_unknown(why))
        .map(|(field, _)| field.clone())
        .collect();
    if !unknown.is_empty() {
        brief.retain(|field, _| !unknown.contains(field));
        failure = match check.read(&brief) {
            Ok(input) => return Some(input),
            Err(failure) => failure,
        };
    }
    let fields = failure.detail.get("fields").and_then(Value::as_object);
    let told = fields.into_iter().flatten().map(|(field, why)| {
        let why = why.as_str().unwrap_or_default();
        let kind = if why == "is required" { "missing" } else { "value_error" };
        Invalid::new(kind, &["body", field], format!("`{field}` {why}"))
    });
    wrong.extend(told);
    if wrong.is_empty() {
        wrong.push(Invalid::new("value_error", &["body"], failure.message));
    }
    None
}

/// How the workflow's check begins when it does not know a field.
const UNKNOWN: &str = "is not an input";

/// `campaign_20261201_120000_12345`, and the key of its thread: one that no campaign has.
async fn new_id(app: &App, tenant: &str) -> Result<(String, ThreadKey), Problem> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    for _ in 0..TRIES {
        // A random start, and then one after the other: no two of one second are the same, however
        // many are started in it.
        if NUMBER.load(Ordering::Relaxed) == 0 {
            let random = (app.engine.new_id().as_u128() % 100_000) as u32 + 1;
            let _ = NUMBER.compare_exchange(0, random, Ordering::Relaxed, Ordering::Relaxed);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) % 100_000;
        let now = app.engine.now().to_string();
        let digits: String = now.chars().filter(char::is_ascii_digit).take(14).collect();
        let (day, time) = digits.split_at(digits.len().min(8));
        let id = format!("campaign_{day}_{time}_{number:05}");
        let key = ThreadKey::new(DIALECT, &[&id]);
        // Another process may have made the same in this second, before a restart.
        if app.engine.thread(key.thread_id(tenant)).await?.is_none() {
            return Ok((id, key));
        }
    }
    Err(Problem::new(Code::Overloaded, "no free campaign id was found"))
}

const TRIES: usize = 8;

fn answer(app: &App, submitted: &Submitted, view: &RunView, id: &str, by: &str) -> Value {
    let position = submitted.position.map(|position| position.pool_ahead + 1);
    let start = view.waiting.as_ref().filter(|_| position.is_some()).and_then(|on| on.eta);
    json!({
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
        "thread_id": submitted.thread.to_string(),
        "priority": view.record.priority.level(),
        "queue_position": position,
        "queue_reason": position.map(|_| "no_slot"),
        "expected_start": start.map(|eta| app.engine.now().plus(eta).to_string()),
    })
}
