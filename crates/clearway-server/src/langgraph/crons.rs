//! Crons: runs that the clock starts again and again.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, get, post};
use clearway_core::{Code, ThreadId, Timestamp};
use clearway_engine::{Cron, CronStart, NewCron, parse_time};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::assistants::{contains, paged, select};
use super::errors::{self, unprocessable};
use super::request::RunRequest;
use super::state::read_fields;
use super::{Params, runs, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::caller::{Caller, caller};
use crate::extract::Fields;

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    let one = "/runs/crons/{cron_id}";
    routes
        .add(Method::POST, "/runs/crons", post(create))?
        .add(Method::POST, "/threads/{thread_id}/runs/crons", post(create_on_thread))?
        .add(Method::POST, "/runs/crons/search", post(search))?
        .add(Method::POST, "/runs/crons/count", post(count))?
        .add(Method::GET, one, get(show))?
        .add(Method::PATCH, one, routing::patch(change))?
        .add(Method::DELETE, one, routing::delete(remove))
}

fn shape(cron: &Cron) -> Map<String, Value> {
    let schedule = &cron.schedule;
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let mut metadata = cron.metadata.clone();
    metadata.remove(runs::OWN);
    let shape = json!({
        "cron_id": schedule.id.to_string(),
        "assistant_id": cron.note["assistant_id"],
        "thread_id": schedule.thread.map(|thread| thread.to_string()),
        "user_id": schedule.owner.clone().unwrap_or_default(),
        "schedule": schedule.cron,
        "timezone": schedule.timezone,
        "end_time": time(cron.end_at),
        "enabled": cron.enabled,
        "next_run_date": time(schedule.next_at),
        "on_run_completed": schedule.thread.is_none().then(|| cron.note["on_run_completed"].clone()),
        "payload": cron.note["payload"],
        "metadata": metadata,
        "created_at": schedule.created_at.to_string(),
        "updated_at": cron.updated_at.to_string(),
        // Of our own: what came of its last time.
        "last_run_id": schedule.last_run.map(|run| run.to_string()),
        "last_error": schedule.last_error,
    });
    match shape {
        Value::Object(shape) => shape,
        _ => Map::new(),
    }
}

fn missing(id: Uuid) -> Problem {
    Problem::new(Code::NotFound, format!("no cron {id}"))
}

fn is_own(caller: &Caller, cron: &Cron) -> bool {
    caller.owns(&cron.schedule.tenant, cron.schedule.owner.as_deref())
}

async fn find(app: &App, caller: &Caller, id: Uuid) -> Result<Cron, Problem> {
    let found = app.engine.cron(&caller.tenant, id).await?;
    found.filter(|cron| is_own(caller, cron)).ok_or_else(|| missing(id))
}

// ## Making and changing

/// `POST /runs/crons`
async fn create(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let caller = caller(request.headers(), None)?;
    let fields = read_fields(&app, request).await?;
    make(&app, &caller, None, fields).await
}

/// `POST /threads/{thread_id}/runs/crons`
async fn create_on_thread(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let caller = caller(request.headers(), None)?;
    let fields = read_fields(&app, request).await?;
    threads::overview(&app, thread).await?;
    make(&app, &caller, Some(thread), fields).await
}

async fn make(
    app: &App,
    caller: &Caller,
    thread: Option<ThreadId>,
    fields: Fields,
) -> Result<Json<Value>, Problem> {
    let id = app.engine.new_id();
    let spec = spec(app, caller, id, thread, fields).await?;
    Ok(Json(shape(&save(app, spec).await?).into()))
}

/// A schedule or time zone that is none is a field that is not as it should be.
async fn save(app: &App, spec: NewCron) -> Result<Cron, Problem> {
    app.engine.save_cron(spec).await.map_err(|error| {
        let invalid = error.code() == Code::InvalidRequest;
        let problem = Problem::from(error);
        if invalid { problem.status(StatusCode::UNPROCESSABLE_ENTITY) } else { problem }
    })
}

/// `PATCH /runs/crons/{cron_id}`: what is not named stays.
async fn change(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("cron_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    let known = find(&app, &caller, id).await?;
    let changes = read_fields(&app, request).await?.into_map();
    let mut whole = known.note["payload"].as_object().cloned().unwrap_or_default();
    whole.insert("schedule".to_owned(), known.schedule.cron.clone().into());
    whole.insert("enabled".to_owned(), known.enabled.into());
    whole
        .extend(changes.into_iter().filter(|(name, value)| !value.is_null() || name == "end_time"));
    let fields = Fields::of(Value::Object(whole), &["body"])
        .map_err(|invalid| errors::invalid(vec![invalid]))?;
    let spec = spec(&app, &caller, id, known.schedule.thread, fields).await?;
    Ok(Json(shape(&save(&app, spec).await?).into()))
}

/// The cron that a body means. What its runs are like is read as for a run that starts now.
async fn spec(
    app: &App,
    caller: &Caller,
    id: Uuid,
    thread: Option<ThreadId>,
    fields: Fields,
) -> Result<NewCron, Problem> {
    let payload = fields.clone().into_map();
    let mut fields = fields;
    let cron = fields.text("schedule");
    let timezone = fields.nullable_text("timezone");
    let enabled = errors::switch(&mut fields, "enabled", true);
    let end_at = match fields.nullable_text("end_time") {
        None => None,
        Some(text) => {
            let at = parse_time(&text);
            if at.is_none() {
                fields.wrong(
                    "datetime",
                    "end_time",
                    "must be a time, such as 2030-01-01T00:00:00Z",
                );
            }
            at
        }
    };
    let completed = errors::choice(&mut fields, "on_run_completed", &["delete", "keep"], "delete");
    let start = runs::planned(app, caller, thread, RunRequest::of(fields)?).await;
    // Unlike a run, a cron for an unknown graph is a thing that is not there.
    let start = start.map_err(|problem| match problem.code() {
        Code::AgentNotFound => problem.status(StatusCode::NOT_FOUND),
        _ => problem,
    })?;
    Ok(NewCron {
        id,
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        cron,
        timezone,
        thread,
        enabled,
        end_at,
        start: CronStart { keep_thread: completed == "keep", ..start.start },
        note: json!({
            "assistant_id": start.assistant.to_string(),
            "on_run_completed": completed,
            "payload": payload,
        }),
    })
}

/// `DELETE /runs/crons/{cron_id}`
async fn remove(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<StatusCode, Problem> {
    let id = errors::uuid("cron_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    find(&app, &caller, id).await?;
    match app.engine.delete_cron(&caller.tenant, id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(missing(id)),
    }
}

// ## Finding

/// `GET /runs/crons/{cron_id}`
async fn show(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("cron_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    Ok(Json(shape(&find(&app, &caller, id).await?).into()))
}

/// What crons must be like to be found.
struct Wanted {
    assistant: Option<Uuid>,
    thread: Option<ThreadId>,
    enabled: Option<bool>,
    metadata: Map<String, Value>,
}

impl Wanted {
    fn read(fields: &mut Fields) -> Result<Self, Problem> {
        let mut id = |name: &str| match fields.nullable_text(name) {
            None => Ok(None),
            Some(text) => errors::uuid(name, &text).map(Some),
        };
        let (assistant, thread) = (id("assistant_id")?, id("thread_id")?.map(ThreadId));
        let enabled = match fields.value("enabled") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(enabled)) => Some(enabled),
            Some(_) => return Err(unprocessable("`enabled` must be true or false")),
        };
        let metadata = errors::object(fields, "metadata");
        Ok(Self { assistant, thread, enabled, metadata })
    }

    async fn find(&self, app: &App, caller: &Caller) -> Result<Vec<Cron>, Problem> {
        let assistant = self.assistant.map(|id| Value::from(id.to_string()));
        let mut found = app.engine.crons(&caller.tenant, self.thread).await?;
        found.retain(|cron| {
            is_own(caller, cron)
                && assistant.as_ref().is_none_or(|id| cron.note["assistant_id"] == *id)
                && self.enabled.is_none_or(|enabled| cron.enabled == enabled)
                && contains(&cron.metadata, &self.metadata)
        });
        Ok(found)
    }
}

const FIELDS: [&str; 14] = [
    "cron_id",
    "assistant_id",
    "thread_id",
    "on_run_completed",
    "end_time",
    "schedule",
    "timezone",
    "created_at",
    "updated_at",
    "user_id",
    "payload",
    "next_run_date",
    "metadata",
    "enabled",
];
const SORTS: [&str; 7] = [
    "cron_id",
    "assistant_id",
    "thread_id",
    "next_run_date",
    "end_time",
    "created_at",
    "updated_at",
];

/// `POST /runs/crons/search`
async fn search(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let wanted = Wanted::read(&mut fields)?;
    let limit = errors::count(&mut fields, "limit", 1..=1000, 10) as usize;
    let offset = errors::count(&mut fields, "offset", 0..=i64::MAX, 0) as usize;
    let sort = errors::choice(&mut fields, "sort_by", &SORTS, "created_at");
    let order = errors::choice(&mut fields, "sort_order", &["asc", "desc"], "desc");
    let select = select(&mut fields, &FIELDS);
    fields.finish().map_err(errors::invalid)?;
    let mut found: Vec<(String, Cron)> = wanted
        .find(&app, &caller)
        .await?
        .into_iter()
        .map(|cron| {
            let at = |at: Option<Timestamp>| at.map_or_else(String::new, |at| at.to_string());
            let key = match sort.as_str() {
                "cron_id" => cron.schedule.id.to_string(),
                "assistant_id" => cron.note["assistant_id"].to_string(),
                "thread_id" => cron.schedule.thread.map(|id| id.to_string()).unwrap_or_default(),
                "next_run_date" => at(cron.schedule.next_at),
                "end_time" => at(cron.end_at),
                "updated_at" => at(Some(cron.updated_at)),
                _ => at(Some(cron.schedule.created_at)),
            };
            (key, cron)
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    if order == "desc" {
        found.reverse();
    }
    let page = found.iter().skip(offset).take(limit).map(|(_, cron)| {
        let mut shape = shape(cron);
        if let Some(select) = &select {
            shape.retain(|name, _| select.contains(name));
        }
        Value::from(shape)
    });
    let body = Json(page.collect::<Value>());
    Ok(paged(body.into_response(), found.len(), offset, limit))
}

/// `POST /runs/crons/count`
async fn count(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let wanted = Wanted::read(&mut fields)?;
    fields.finish().map_err(errors::invalid)?;
    Ok(Json(wanted.find(&app, &caller).await?.len().into()))
}
