//! Agents and workflows as tools of the Model Context Protocol, over streamable HTTP.
//!
//! Each request is answered on its own, without sessions: what lasts is the run. A run that a tool
//! call started has the agent's deadline, and ends when its caller says that it gave up.
//!
//! **Invariant:** no request from a page or a host that could be another site's is answered, on
//! whatever address the server listens.
//!
//! Not here: the protocol itself, which is the official SDK's.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use clearway_core::machine::{Command, Resume};
use clearway_core::plan::MESSAGES;
use clearway_core::run::RunOptions;
use clearway_core::{Message, RunId, RunRecord, Status, ThreadId};
use clearway_engine::{Agent, Engine, Kind, Submit};
use http::Method;
use rmcp::ErrorData;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
    JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use serde_json::{Map, Value, json};

use super::graph::Graph;
use super::{DIALECT, drawing};
use crate::app::{Address, App, Routes};
use crate::caller::{Caller, caller};
use crate::guard;

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::POST, "/mcp", post(serve))?
        // Streams and ends of sessions, which the SDK refuses with its own words.
        .add(Method::GET, "/mcp", get(serve))?
        .add(Method::DELETE, "/mcp", delete(serve))
}

/// `POST /mcp`
async fn serve(State(app): State<App>, request: Request) -> Response {
    if let Err(problem) = guard::check_strictly(&app.options, request.headers()) {
        return problem.into_response();
    }
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        // Hosts and origins are checked above, by the rules of the whole server.
        .disable_allowed_hosts()
        .disable_allowed_origins()
        .with_max_request_body_bytes(app.options.limits.body_bytes);
    let caller = match caller(request.headers(), None) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let tools = Tools { caller, app };
    let service = StreamableHttpService::new(
        move || Ok(tools.clone()),
        Arc::new(NeverSessionManager::default()),
        config,
    );
    service.handle(request).await.map(axum::body::Body::new).into_response()
}

/// What one caller may call.
#[derive(Clone, Debug)]
struct Tools {
    app: App,
    caller: Caller,
}

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        let tools = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(tools)
            .with_server_info(Implementation::new("clearway", &self.app.options.version))
            .with_instructions(
                "Each tool runs an agent or a workflow. Pass the thread_id of an answer to go on \
                 with its conversation.",
            )
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let agents = self.app.engine.agents().all();
        let own = agents.iter().filter(|(name, agent)| **name == agent.name);
        Ok(ListToolsResult::with_all_items(
            own.map(|(name, agent)| tool(&self.app, name, agent)).collect(),
        ))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(agent) = self.app.engine.agents().get(&call.name) else {
            let text = format!("there is no tool `{}`", crate::extract::shown(&call.name));
            return Err(ErrorData::invalid_params(text, None));
        };
        let arguments = call.arguments.unwrap_or_default();
        let submit = submit(&self.app, &self.caller, &call.name, &agent, arguments)
            .map_err(|why| ErrorData::invalid_params(why, None))?;
        let thread = submit.thread;
        if submit.thread_must_exist {
            let known = self.app.engine.thread(thread).await;
            let known =
                known.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            let is_own =
                known.is_some_and(|known| self.caller.owns(&known.tenant, known.owner.as_deref()));
            if !is_own {
                return Ok(failed(&format!("there is no thread {thread}"), thread, None).into());
            }
        }
        let run = match self.app.engine.submit(submit).await {
            Ok(accepted) => accepted.run,
            Err(error) => return Ok(failed(&error.to_string(), thread, None).into()),
        };
        // Whoever waits no longer does not want it any more.
        let mut guard = CancelOnDrop { app: &self.app, run: Some(run) };
        let ended = tokio::select! {
            ended = self.app.engine.wait(run) => ended,
            () = context.ct.cancelled() => return Err(ErrorData::internal_error("cancelled", None)),
        };
        guard.run = None;
        match ended {
            Ok(record) => Ok(self.result(&call.name, &record).await.into()),
            Err(error) => Ok(failed(&error.to_string(), thread, Some(run)).into()),
        }
    }
}

struct CancelOnDrop<'a> {
    app: &'a App,
    run: Option<RunId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            self.app.cancel_detached(run);
        }
    }
}

// ## What tools look like

fn is_chat(agent: &Agent) -> bool {
    agent.input.is_none() && agent.plan.channels().contains_key(MESSAGES)
}

fn tool(app: &App, name: &str, agent: &Agent) -> Tool {
    let mut schema = if is_chat(agent) {
        json!({
            "type": "object",
            "properties": {"message": {"type": "string", "description": "What to say to it."}},
            "required": ["message"],
        })
    } else {
        drawing::schemas(&Graph::new(app, name))["input_schema"].take()
    };
    if let Some(properties) = schema["properties"].as_object_mut() {
        let thread = "The thread of an earlier answer, to go on with it.";
        let of_thread = json!({"type": "string", "format": "uuid", "description": thread});
        properties.entry("thread_id").or_insert(of_thread);
        let resume = "The answer to the question with which the thread stopped.";
        properties.entry("resume").or_insert(json!({"description": resume}));
    }
    let description = match agent.kind {
        "workflow" => format!("Runs the workflow {} and gives its result.", agent.title),
        _ => format!("Asks the agent {} and gives its answer.", agent.title),
    };
    let schema: JsonObject = match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    };
    Tool::new(name.to_owned(), description, Arc::new(schema)).with_title(agent.title.clone())
}

// ## Calling

/// The run that a call means.
///
/// # Errors
/// What is wrong with its arguments.
fn submit(
    app: &App,
    caller: &Caller,
    name: &str,
    agent: &Agent,
    mut arguments: Map<String, Value>,
) -> Result<Submit, String> {
    let given = match arguments.remove("thread_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            let id = text.parse::<ThreadId>().map_err(|_| "`thread_id` must be a UUID")?;
            Some(id)
        }
        Some(_) => return Err("`thread_id` must be a UUID".to_owned()),
    };
    let resume = arguments.remove("resume").filter(|resume| !resume.is_null());
    let (input, command) = match (resume, given) {
        (Some(_), None) => return Err("`resume` needs the `thread_id` that asked".to_owned()),
        (Some(answer), Some(_)) => {
            let command = Command { resume: Some(Resume::All(answer)), ..Command::default() };
            (Value::Object(Map::new()), Some(command))
        }
        (None, _) => {
            if is_chat(agent)
                && let Some(Value::String(text)) = arguments.remove("message")
            {
                let said = json!([{"role": "user", "content": text}]);
                arguments.insert(MESSAGES.to_owned(), said);
            }
            if is_chat(agent) && !arguments.contains_key(MESSAGES) {
                return Err("`message` is required: what to say".to_owned());
            }
            let mut new_id = || app.engine.new_id().to_string();
            let input = Graph::new(app, name).input(&arguments, &mut new_id, &mut Vec::new())?;
            (Value::Object(input), None)
        }
    };
    let thread = given.unwrap_or_else(|| app.engine.new_thread_id());
    Ok(Submit {
        tenant: caller.tenant.clone(),
        owner: caller.owner.clone(),
        thread_must_exist: given.is_some(),
        kind: Kind::Turn { deadline: None },
        options: RunOptions { command, ..RunOptions::default() },
        ..Submit::new(thread, name, DIALECT, input)
    })
}

impl Tools {
    /// What a run came to.
    async fn result(&self, name: &str, record: &RunRecord) -> CallToolResult {
        let (run, thread) = (record.id, record.thread);
        if record.status != Status::Success {
            let why = record.failure.as_ref().map(|failure| failure.message.as_str());
            let why = why.unwrap_or(record.status.as_str());
            return failed(why, thread, Some(run));
        }
        let state = match self.app.engine.state_at(thread, record.checkpoint).await {
            Ok(Some(state)) => state,
            Ok(None) => return failed("the thread is gone", thread, Some(run)),
            Err(error) => return failed(&error.to_string(), thread, Some(run)),
        };
        let mut structured = json!({"thread_id": thread.to_string(), "run_id": run.to_string()});
        let questions = Engine::questions(&state);
        let text = if let Some(question) = questions.first() {
            structured["question"] = question.value.clone();
            format!(
                "It asks: {}\nCall the tool again with thread_id {thread} and the answer as resume.",
                question.value
            )
        } else {
            let values = Graph::new(&self.app, name).values(&state.state);
            let said = values[MESSAGES].as_array().and_then(|all| all.last());
            match said {
                Some(message) => {
                    let text = Message::from_value(message).map(|message| message.content.text());
                    let text = text.unwrap_or_else(|| message["content"].to_string());
                    structured["text"] = text.as_str().into();
                    text
                }
                None => {
                    let result = state.state.get("result").unwrap_or_else(|| values.clone());
                    structured["result"] = result.clone();
                    structured["values"] = values;
                    match result {
                        Value::String(text) => text,
                        other => other.to_string(),
                    }
                }
            }
        };
        let mut result = CallToolResult::success(vec![ContentBlock::text(text)]);
        result.structured_content = Some(structured);
        result
    }
}

fn failed(why: &str, thread: ThreadId, run: Option<RunId>) -> CallToolResult {
    let mut result = CallToolResult::error(vec![ContentBlock::text(why)]);
    result.structured_content = Some(json!({
        "error": why,
        "thread_id": thread.to_string(),
        "run_id": run.map(|run| run.to_string()),
    }));
    result
}
