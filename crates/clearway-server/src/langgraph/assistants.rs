//! Assistants: a graph, and how it is to be run, in versions.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, get, post};
use clearway_core::{Code, Timestamp};
use clearway_engine::{Assistant, AssistantChange, AssistantSettings, Engine};
use http::header::HeaderName;
use http::{HeaderValue, Method, StatusCode};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::{self, bad_request, unprocessable};
use super::graph::Graph;
use super::state::read_fields;
use super::{Params, drawing};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::caller::{Caller, caller};
use crate::extract::{Fields, shown};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    let one = "/assistants/{assistant_id}";
    let of = |what: &str| format!("{one}/{what}");
    routes
        .add(Method::POST, "/assistants", post(create))?
        .add(Method::POST, "/assistants/search", post(search))?
        .add(Method::POST, "/assistants/count", post(count))?
        .add(Method::GET, one, get(show))?
        .add(Method::PATCH, one, routing::patch(change))?
        .add(Method::DELETE, one, routing::delete(remove))?
        .add(Method::GET, of("graph"), get(graph))?
        .add(Method::GET, of("schemas"), get(schemas))?
        .add(Method::GET, of("subgraphs"), get(subgraphs))?
        .add(Method::GET, of("subgraphs/{namespace}"), get(subgraphs))?
        .add(Method::POST, of("versions"), post(versions))?
        .add(Method::POST, of("latest"), post(latest))
}

fn shape(assistant: &Assistant) -> Map<String, Value> {
    let shape = json!({
        "assistant_id": assistant.id.to_string(),
        "graph_id": assistant.agent,
        "config": assistant.config,
        "context": assistant.context,
        "metadata": assistant.metadata,
        "name": assistant.name,
        "created_at": assistant.created_at.to_string(),
        "updated_at": assistant.updated_at.to_string(),
        "version": assistant.version,
        "description": assistant.description,
    });
    match shape {
        Value::Object(shape) => shape,
        _ => Map::new(),
    }
}

/// The id of the assistant that the server makes for a graph.
pub(super) fn id_of_graph(graph: &str) -> Uuid {
    Engine::assistant_id(graph)
}

fn answer(assistant: &Assistant) -> Json<Value> {
    Json(shape(assistant).into())
}

/// The assistant that a client names, by its id or by its graph's name.
///
/// # Errors
/// 404 for an id that nobody has, 422 for text that is neither an id nor a graph.
pub(super) async fn resolve(app: &App, caller: &Caller, text: &str) -> Result<Assistant, Problem> {
    let found = app.engine.assistant_called(&caller.tenant, text).await.map_err(|error| {
        let is_id = Uuid::try_parse(text).is_ok();
        let problem = Problem::from(error);
        match problem.code() {
            Code::AgentNotFound if !is_id => problem.status(StatusCode::UNPROCESSABLE_ENTITY),
            _ => problem,
        }
    })?;
    if is_visible(caller, &found) { Ok(found) } else { Err(missing(found.id)) }
}

fn missing(id: Uuid) -> Problem {
    Problem::new(Code::AgentNotFound, format!("no assistant {id}"))
}

/// Those of nobody in particular are everybody's.
fn is_visible(caller: &Caller, assistant: &Assistant) -> bool {
    assistant.owner.is_none() || caller.owns(&assistant.tenant, assistant.owner.as_deref())
}

/// An assistant that the caller may see.
async fn find(app: &App, caller: &Caller, id: Uuid) -> Result<Assistant, Problem> {
    let found = app.engine.assistant(&caller.tenant, id).await?;
    if is_visible(caller, &found) { Ok(found) } else { Err(missing(id)) }
}

/// Refuses to change what is somebody else's, or everybody's.
async fn check_change(app: &App, caller: &Caller, id: Uuid) -> Result<(), Problem> {
    let found = find(app, caller, id).await?;
    if caller.owns(&found.tenant, found.owner.as_deref()) {
        return Ok(());
    }
    let text =
        format!("assistant {id} is everybody's: a key that is bound to a user cannot change it");
    Err(Problem::new(Code::Forbidden, text))
}

// ## Making and changing

type Object = Map<String, Value>;

/// `config` and `context`, each of which also says what is in the other.
///
/// # Errors
/// 400 when both say something.
fn settings(fields: &mut Fields) -> Result<(Option<Object>, Option<Object>), Problem> {
    let mut given = |name: &str| match fields.value(name) {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) => Some(map),
        Some(_) => {
            fields.wrong("dict_type", name, "must be an object");
            None
        }
    };
    let (config, context) = (given("config"), given("context"));
    let configurable = match config.as_ref().and_then(|config| config.get("configurable")) {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) => Some(map.clone()).filter(|map| !map.is_empty()),
        Some(_) => return Err(unprocessable("`config.configurable` must be an object")),
    };
    let said = context.as_ref().is_some_and(|context| !context.is_empty());
    match configurable {
        Some(_) if said => Err(bad_request(
            "give either `context` or `config.configurable`, not both: each is shown as the other",
        )),
        Some(configurable) => Ok((config, Some(configurable))),
        None => {
            let config = match (&context, said) {
                (Some(context), true) => {
                    let mut config = config.unwrap_or_default();
                    config.insert("configurable".to_owned(), context.clone().into());
                    Some(config)
                }
                _ => config,
            };
            Ok((config, context))
        }
    }
}

/// `POST /assistants`
async fn create(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let id = match fields.nullable_text("assistant_id") {
        None => None,
        Some(text) => Some(errors::uuid("assistant_id", &text)?),
    };
    let agent = fields.text("graph_id");
    let (config, context) = settings(&mut fields)?;
    let settings = AssistantSettings {
        agent,
        name: fields.nullable_text("name"),
        description: fields.nullable_text("description"),
        config: config.unwrap_or_default(),
        context: context.unwrap_or_default(),
        metadata: errors::object(&mut fields, "metadata"),
    };
    let if_exists = errors::choice(&mut fields, "if_exists", &["raise", "do_nothing"], "raise");
    fields.finish().map_err(errors::invalid)?;
    let owner = caller.owner.as_deref();
    match app.engine.create_assistant(&caller.tenant, owner, id, settings).await? {
        Ok(made) => Ok(answer(&made)),
        Err(known) if if_exists == "do_nothing" => Ok(answer(&known)),
        Err(known) => {
            let text = format!("assistant {} exists already", known.id);
            Err(Problem::new(Code::InvalidRequest, text).status(StatusCode::CONFLICT))
        }
    }
}

/// `PATCH /assistants/{assistant_id}`
async fn change(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let (config, context) = settings(&mut fields)?;
    check_change(&app, &caller, id).await?;
    let change = AssistantChange {
        agent: fields.nullable_text("graph_id"),
        name: fields.nullable_text("name"),
        description: fields.nullable_text("description"),
        config,
        context,
        metadata: errors::object(&mut fields, "metadata"),
    };
    fields.finish().map_err(errors::invalid)?;
    Ok(answer(&app.engine.change_assistant(&caller.tenant, id, change).await?))
}

/// `DELETE /assistants/{assistant_id}`
async fn remove(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<StatusCode, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    check_change(&app, &caller, id).await?;
    app.engine.delete_assistant(&caller.tenant, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /assistants/{assistant_id}/versions`
async fn versions(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let metadata = errors::object(&mut fields, "metadata");
    let limit = errors::count(&mut fields, "limit", 1..=1000, 10);
    let offset = errors::count(&mut fields, "offset", 0..=i64::MAX, 0);
    fields.finish().map_err(errors::invalid)?;
    find(&app, &caller, id).await?;
    let all = app.engine.assistant_versions(&caller.tenant, id).await?;
    let found = all.iter().filter(|version| contains(&version.metadata, &metadata));
    let page = found.skip(offset as usize).take(limit as usize);
    Ok(Json(page.map(|version| Value::from(shape(version))).collect()))
}

/// `POST /assistants/{assistant_id}/latest`
async fn latest(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let version = errors::count(&mut fields, "version", 1..=i64::from(u32::MAX), 0);
    if version == 0 {
        fields.wrong("missing", "version", "a whole number from 1 on is required");
    }
    fields.finish().map_err(errors::invalid)?;
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    check_change(&app, &caller, id).await?;
    Ok(answer(&app.engine.select_assistant(&caller.tenant, id, version).await?))
}

// ## Finding

/// `GET /assistants/{assistant_id}`
async fn show(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    Ok(answer(&find(&app, &caller, id).await?))
}

/// What assistants must be like to be found.
struct Wanted {
    graph: Option<String>,
    name: Option<String>,
    metadata: Map<String, Value>,
}

impl Wanted {
    fn read(fields: &mut Fields) -> Self {
        Self {
            graph: fields.nullable_text("graph_id"),
            name: fields.nullable_text("name").map(|name| name.to_lowercase()),
            metadata: errors::object(fields, "metadata"),
        }
    }

    /// # Errors
    /// 404 for a graph that does not exist.
    async fn find(&self, app: &App, caller: &Caller) -> Result<Vec<Assistant>, Problem> {
        if let Some(graph) = &self.graph
            && app.engine.agents().get(graph).is_none()
        {
            let text = format!("no graph is called `{}`", shown(graph));
            return Err(Problem::new(Code::AgentNotFound, text));
        }
        let mut found = app.engine.assistants(&caller.tenant).await?;
        found.retain(|assistant| {
            is_visible(caller, assistant)
                && self.graph.as_ref().is_none_or(|graph| *graph == assistant.agent)
                && self
                    .name
                    .as_ref()
                    .is_none_or(|name| assistant.name.to_lowercase().contains(name))
                && contains(&assistant.metadata, &self.metadata)
        });
        Ok(found)
    }
}

/// Whether an object has all fields of another.
pub(super) fn contains(all: &Map<String, Value>, some: &Map<String, Value>) -> bool {
    some.iter().all(|(key, wanted)| match (all.get(key), wanted) {
        (Some(Value::Object(all)), Value::Object(some)) => contains(all, some),
        (Some(known), wanted) => known == wanted,
        (None, _) => false,
    })
}

const FIELDS: [&str; 10] = [
    "assistant_id",
    "graph_id",
    "name",
    "description",
    "config",
    "context",
    "created_at",
    "updated_at",
    "metadata",
    "version",
];
const SORTS: [&str; 5] = ["assistant_id", "created_at", "updated_at", "name", "graph_id"];

/// `POST /assistants/search`
async fn search(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let wanted = Wanted::read(&mut fields);
    let limit = errors::count(&mut fields, "limit", 1..=1000, 10) as usize;
    let offset = errors::count(&mut fields, "offset", 0..=i64::MAX, 0) as usize;
    let sort = errors::choice(&mut fields, "sort_by", &SORTS, "created_at");
    let order = fields.nullable_text("sort_order").map(|order| order.to_lowercase());
    if order.as_ref().is_some_and(|order| order != "asc" && order != "desc") {
        fields.wrong("enum", "sort_order", "must be asc or desc");
    }
    let select = select(&mut fields, &FIELDS);
    fields.finish().map_err(errors::invalid)?;
    let mut found = wanted.find(&app, &caller).await?;
    found.sort_by(|one, other| {
        let (one, other) = match sort.as_str() {
            "name" => return one.name.cmp(&other.name),
            "graph_id" => return one.agent.cmp(&other.agent),
            "assistant_id" => return one.id.cmp(&other.id),
            "updated_at" => (one.updated_at, other.updated_at),
            _ => (one.created_at, other.created_at),
        };
        Timestamp::cmp(&one, &other)
    });
    if order.as_deref() != Some("asc") {
        found.reverse();
    }
    let page = found.iter().skip(offset).take(limit).map(|assistant| {
        let mut shape = shape(assistant);
        if let Some(select) = &select {
            shape.retain(|name, _| select.contains(name));
        }
        Value::from(shape)
    });
    let body = Json(page.collect::<Value>());
    Ok(paged(body.into_response(), found.len(), offset, limit))
}

/// Which fields an answer is to have; `None` is all of them.
pub(super) fn select(fields: &mut Fields, known: &[&str]) -> Option<Vec<String>> {
    match fields.value("select") {
        None | Some(Value::Null) => None,
        Some(Value::Array(names)) => {
            let names: Option<Vec<String>> = names
                .iter()
                .map(|name| name.as_str().filter(|name| known.contains(name)).map(str::to_owned))
                .collect();
            if names.is_none() {
                fields.wrong("enum", "select", format!("may name: {}", known.join(", ")));
            }
            names
        }
        Some(_) => {
            fields.wrong("list_type", "select", "must be a list of fields");
            None
        }
    }
}

/// An answer that says how many there are, and where the next page begins.
pub(super) fn paged(mut answer: Response, all: usize, offset: usize, limit: usize) -> Response {
    let headers = answer.headers_mut();
    headers.insert(HeaderName::from_static("x-pagination-total"), HeaderValue::from(all));
    let next = offset.saturating_add(limit);
    if next < all {
        headers.insert(HeaderName::from_static("x-pagination-next"), HeaderValue::from(next));
    }
    answer
}

/// `POST /assistants/count`
async fn count(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let caller = caller(request.headers(), None)?;
    let mut fields = read_fields(&app, request).await?;
    let wanted = Wanted::read(&mut fields);
    fields.finish().map_err(errors::invalid)?;
    Ok(Json(wanted.find(&app, &caller).await?.len().into()))
}

// ## What a graph looks like

/// `GET /assistants/{assistant_id}/graph`, by id or graph name.
async fn graph(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let caller = caller(request.headers(), None)?;
    let assistant = resolve(&app, &caller, &params[0]).await?;
    Ok(Json(drawing::graph(&Graph::new(&app, &assistant.agent))))
}

/// `GET /assistants/{assistant_id}/schemas`
async fn schemas(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    let assistant = find(&app, &caller, id).await?;
    Ok(Json(drawing::schemas(&Graph::new(&app, &assistant.agent))))
}

/// `GET /assistants/{assistant_id}/subgraphs[/{namespace}]`: the nodes of a subgraph are nodes of the
/// graph itself here, so there is none that could be looked at apart.
async fn subgraphs(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &params[0])?;
    let caller = caller(request.headers(), None)?;
    find(&app, &caller, id).await?;
    Ok(Json(json!({})))
}
