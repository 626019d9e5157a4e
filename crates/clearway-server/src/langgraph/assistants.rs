//! Assistants: a graph, and how it is to be run.
//!
//! Every graph has one that the server makes. Its id is derived from the graph's name, so that it
//! is the same after a restart.

use axum::Json;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use clearway_core::{Code, Timestamp};
use http::Method;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::{self, unprocessable};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::extract::{self, Fields, PathText, shown};

/// A graph, and how it is to be run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Assistant {
    pub(super) id: Uuid,
    /// Name of the agent.
    pub(super) graph: String,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) config: Map<String, Value>,
    pub(super) context: Map<String, Value>,
    pub(super) metadata: Map<String, Value>,
    pub(super) version: u32,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
}

/// Namespace of the ids that LangGraph derives from graphs' names.
const NAMESPACE: Uuid = Uuid::from_u128(0x6ba7_b821_9dad_11d1_80b4_00c0_4fd4_30c8);

/// The id of the assistant that the server makes for a graph.
pub(super) fn id_of_graph(graph: &str) -> Uuid {
    Uuid::new_v5(&NAMESPACE, graph.as_bytes())
}

impl Assistant {
    /// The one that the server makes for a graph.
    fn of_graph(app: &App, graph: &str) -> Self {
        let metadata = [("created_by".to_owned(), "system".into())];
        Self {
            id: id_of_graph(graph),
            graph: graph.to_owned(),
            name: graph.to_owned(),
            description: None,
            config: Map::new(),
            context: Map::new(),
            metadata: metadata.into_iter().collect(),
            version: 1,
            created_at: app.started,
            updated_at: app.started,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "assistant_id": self.id.to_string(),
            "graph_id": self.graph,
            "config": self.config,
            "context": self.context,
            "metadata": self.metadata,
            "name": self.name,
            "created_at": self.created_at.to_string(),
            "updated_at": self.updated_at.to_string(),
            "version": self.version,
            "description": self.description,
        })
    }
}

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes.add(Method::POST, "/assistants/search", post(search))?.add(
        Method::GET,
        "/assistants/{assistant_id}",
        get(show),
    )
}

fn all(app: &App) -> Vec<Assistant> {
    app.engine.agents().all().keys().map(|graph| Assistant::of_graph(app, graph)).collect()
}

/// The assistant that a client names, by its id or by its graph's name.
///
/// # Errors
/// 404 for an id that nobody has, 422 for text that is neither an id nor a graph.
pub(super) async fn resolve(app: &App, text: &str) -> Result<Assistant, Problem> {
    if let Some(found) = all(app).into_iter().find(|assistant| assistant.graph == text) {
        return Ok(found);
    }
    let known = || app.engine.agents().all().keys().cloned().collect::<Vec<_>>().join(", ");
    let Ok(id) = Uuid::try_parse(text) else {
        let text = format!("no graph is called `{}`; there are: {}", shown(text), known());
        return Err(unprocessable(text));
    };
    by_id(app, id)
}

fn by_id(app: &App, id: Uuid) -> Result<Assistant, Problem> {
    let found = all(app).into_iter().find(|assistant| assistant.id == id);
    found.ok_or_else(|| Problem::new(Code::AgentNotFound, format!("no assistant {id}")))
}

/// `GET /assistants/{assistant_id}`
async fn show(State(app): State<App>, PathText(id): PathText) -> Result<Json<Value>, Problem> {
    let id = errors::uuid("assistant_id", &id)?;
    Ok(Json(by_id(&app, id)?.to_json()))
}

/// `POST /assistants/search`
async fn search(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    let mut fields = Fields::parse(&body).map_err(errors::invalid)?;
    let graph = fields.nullable_text("graph_id");
    let name = fields.nullable_text("name");
    let metadata = match fields.value("metadata") {
        Some(Value::Null) | None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(unprocessable("`metadata` must be an object")),
    };
    let limit = errors::count(&mut fields, "limit", 1..=1000, 10);
    let offset = errors::count(&mut fields, "offset", 0..=i64::MAX, 0);
    fields.finish().map_err(errors::invalid)?;
    if let Some(graph) = &graph
        && app.engine.agents().get(graph).is_none()
    {
        let text = format!("no graph is called `{}`", shown(graph));
        return Err(Problem::new(Code::AgentNotFound, text));
    }
    let fits = |assistant: &Assistant| {
        graph.as_ref().is_none_or(|graph| *graph == assistant.graph)
            && name
                .as_ref()
                .is_none_or(|name| assistant.name.to_lowercase().contains(&name.to_lowercase()))
            && metadata.iter().all(|(key, value)| assistant.metadata.get(key) == Some(value))
    };
    let found = all(&app).into_iter().filter(fits).skip(offset as usize).take(limit as usize);
    Ok(Json(found.map(|assistant| assistant.to_json()).collect()))
}
