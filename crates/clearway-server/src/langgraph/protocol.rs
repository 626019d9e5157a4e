//! LangGraph's thread protocol: commands to a thread, and the events of all its runs.
//!
//! A command is answered with 200 whether or not it did anything; what was wrong is in the answer.
//! Events are numbered over the whole thread, channels that nobody asked for included, so gaps mean
//! nothing.
//!
//! Not here: reading a thread's runs (`follow`), what their events mean (`modes`).

use std::collections::HashSet;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use bytes::BytesMut;
use clearway_core::event::Part;
use clearway_core::run::RunRecord;
use clearway_core::{EventId, RunId, Status, ThreadId};
use clearway_engine::{Engine, RunQuery};
use http::{HeaderMap, Method};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::errors::{self, bad_request};
use super::follow::{Show, ThreadBody, follow};
use super::frames::{THREAD_BITS, put_json, thread_seq};
use super::modes::{Item, Modes, Projector, What};
use super::request::{RunRequest, question};
use super::runs::{On, start};
use super::{Params, stream, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::extract::{self, Fields, shown};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes.add(Method::POST, "/threads/{thread_id}/commands", post(command))?.add(
        Method::POST,
        "/threads/{thread_id}/stream/events",
        post(events),
    )
}

// ## Commands

/// Why a command did nothing.
struct Refused {
    code: &'static str,
    message: String,
}

fn refused(code: &'static str, message: impl Into<String>) -> Refused {
    Refused { code, message: message.into() }
}

/// A run was refused as its own address would refuse it.
fn run_refused(problem: &Problem) -> Refused {
    refused("unknown_error", format!("{}: {}", problem.status_code().as_u16(), problem.detail()))
}

/// `POST /threads/{thread_id}/commands`
async fn command(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    let value = extract::parse_json(&body).map_err(|why| errors::invalid(vec![why]))?;
    let (id, method) = envelope(&value)?;
    Ok(Json(answer(&app, &parts.headers, thread, id, &method, &value["params"]).await))
}

/// # Errors
/// 400: without these two there is nothing to answer to.
pub(super) fn envelope(value: &Value) -> Result<(u64, String), Problem> {
    let id = value["id"].as_u64().ok_or_else(|| bad_request("`id` must be a whole number"))?;
    let method = value["method"].as_str().ok_or_else(|| bad_request("`method` must be text"))?;
    Ok((id, method.to_owned()))
}

/// Does a command, and says what came of it.
pub(super) async fn answer(
    app: &App,
    headers: &HeaderMap,
    thread: ThreadId,
    id: u64,
    method: &str,
    params: &Value,
) -> Value {
    let done = match method {
        "run.start" => run_start(app, headers, thread, params).await,
        "input.respond" => respond(app, headers, thread, params).await,
        "agent.getTree" => tree(app, thread, params).await,
        "subscription.subscribe" => match Wanted::parse(params) {
            Ok(_) => {
                let id = app.engine.new_id().to_string();
                Ok(json!({"subscription_id": id, "replayed_events": 0}))
            }
            Err(why) => Err(refused("invalid_argument", why)),
        },
        "subscription.unsubscribe" => {
            Err(refused("no_such_subscription", "this connection has no subscription"))
        }
        "subscription.reconnect" => Ok(json!({"restored": false, "missed_events": 0})),
        other => {
            Err(refused("unknown_command", format!("no command is called `{}`", shown(other))))
        }
    };
    match done {
        Ok(result) => json!({
            "type": "success", "id": id, "result": result, "meta": {"applied_through_seq": 0},
        }),
        Err(Refused { code, message }) => {
            json!({"type": "error", "id": id, "error": code, "message": message})
        }
    }
}

/// Questions that a thread waits for answers to.
async fn open_questions(app: &App, thread: ThreadId) -> Vec<Uuid> {
    match app.engine.state_at(thread, None).await {
        Ok(Some(state)) => Engine::questions(&state).into_iter().map(|one| one.id).collect(),
        Ok(None) | Err(_) => Vec::new(),
    }
}

async fn run_start(
    app: &App,
    headers: &HeaderMap,
    thread: ThreadId,
    params: &Value,
) -> Result<Value, Refused> {
    let Some(assistant) = params["assistant_id"].as_str().filter(|text| !text.is_empty()) else {
        return Err(refused("invalid_argument", "run.start requires an assistant_id"));
    };
    let mut body = run_body(assistant, params)?;
    let input = params.get("input").cloned().unwrap_or_default();
    // A thread that asks takes the input for the answer.
    let is_free = body.get("checkpoint_id").is_none();
    if is_free && !input.is_null() && !open_questions(app, thread).await.is_empty() {
        body.insert("command".to_owned(), json!({"resume": input}));
    } else {
        body.insert("input".to_owned(), input);
    }
    begin(app, headers, thread, body).await
}

/// The body of a run as this protocol starts it.
fn run_body(assistant: &str, params: &Value) -> Result<Map<String, Value>, Refused> {
    let mut config = params["config"].as_object().cloned().unwrap_or_default();
    let mut body = Map::new();
    if let Some(Value::Object(configurable)) = config.get_mut("configurable") {
        let at = configurable.remove("checkpoint_id");
        configurable.remove("thread_id");
        configurable.remove("checkpoint_ns");
        match at {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if Uuid::try_parse(&text).is_ok() => {
                body.insert("checkpoint_id".to_owned(), text.into());
            }
            Some(other) => {
                let text = shown(&other.to_string());
                let text = format!("config.configurable.checkpoint_id is no UUID: {text}");
                return Err(refused("invalid_argument", text));
            }
        }
    }
    let strategy = params["multitaskStrategy"].as_str().unwrap_or("enqueue");
    let strategy = match strategy {
        "reject" | "interrupt" | "rollback" => strategy,
        _ => "enqueue",
    };
    let mut put = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    put("assistant_id", assistant.into());
    put("config", Value::Object(config));
    put("metadata", params["metadata"].as_object().cloned().map_or(Value::Null, Value::Object));
    put("multitask_strategy", strategy.into());
    put("if_not_exists", "create".into());
    put("stream_resumable", true.into());
    put("stream_mode", Modes::ALL.names().into());
    Ok(body)
}

async fn begin(
    app: &App,
    headers: &HeaderMap,
    thread: ThreadId,
    body: Map<String, Value>,
) -> Result<Value, Refused> {
    let fields = Fields::of(Value::Object(body), &["params"])
        .map_err(|why| run_refused(&errors::invalid(vec![why])))?;
    let request = RunRequest::of(fields).map_err(|problem| run_refused(&problem))?;
    let started = start(app, headers, On::Thread(thread), &request, false).await;
    let started = started.map_err(|problem| run_refused(&problem))?;
    Ok(json!({"run_id": started.run.to_string()}))
}

async fn respond(
    app: &App,
    headers: &HeaderMap,
    thread: ThreadId,
    params: &Value,
) -> Result<Value, Refused> {
    let entries: Vec<&Value> = match params.get("responses") {
        None | Some(Value::Null) => vec![params],
        Some(Value::Array(entries)) if !entries.is_empty() => entries.iter().collect(),
        Some(_) => {
            return Err(refused(
                "invalid_argument",
                "input.respond requires at least one response",
            ));
        }
    };
    let open = open_questions(app, thread).await;
    let mut answers = Map::new();
    for entry in entries {
        let Some(id) = entry["interrupt_id"].as_str() else {
            return Err(refused("invalid_argument", "input.respond requires an interrupt_id"));
        };
        let known = question(id).filter(|id| open.contains(id)).ok_or_else(|| {
            refused("no_such_interrupt", format!("nothing waits for `{}`", shown(id)))
        })?;
        let answer = entry.get("response").cloned().unwrap_or_default();
        answers.insert(known.simple().to_string(), answer);
    }
    let overview = threads::overview(app, thread).await;
    let overview = overview.map_err(|problem| run_refused(&problem))?;
    let graph = threads::graph_of(app, &overview).await;
    let graph = graph.map_err(|problem| run_refused(&problem))?;
    let of_thread = overview.record.metadata.get("assistant_id").and_then(Value::as_str);
    let assistant = of_thread.unwrap_or(&graph.name);
    let mut body = run_body(assistant, params)?;
    let mut command = Map::from_iter([("resume".to_owned(), Value::Object(answers))]);
    for name in ["update", "goto"] {
        if let Some(value) = params.get(name).filter(|value| !value.is_null()) {
            command.insert(name.to_owned(), value.clone());
        }
    }
    body.insert("command".to_owned(), Value::Object(command));
    begin(app, headers, thread, body).await
}

async fn tree(app: &App, thread: ThreadId, params: &Value) -> Result<Value, Refused> {
    let none = || refused("no_such_run", "this thread has no run");
    let record = match params["run_id"].as_str() {
        Some(text) => {
            let run = Uuid::try_parse(text).map(RunId).map_err(|_| none())?;
            let found = app.engine.run(run).await.map_err(|_| none())?.record;
            Some(found).filter(|record| record.thread == thread)
        }
        None => {
            let query = RunQuery { thread: Some(thread), limit: 1, ..RunQuery::default() };
            let (runs, _) = app.engine.runs(query).await.map_err(|_| none())?;
            runs.into_iter().next().map(|view| view.record)
        }
    };
    let record = record.ok_or_else(none)?;
    let status = match record.status {
        Status::Success if !record.next.is_empty() => "interrupted",
        Status::Success => "completed",
        Status::Error | Status::Timeout => "failed",
        Status::Cancelled => "interrupted",
        Status::Blocked | Status::Ready | Status::Running | Status::Waiting => "running",
    };
    let graph = super::facts::Facts::of(app, &record).graph.name;
    Ok(json!({"tree": {"namespace": [], "status": status, "graph_name": graph}}))
}

// ## Events

/// What a client of a thread's events wants.
#[derive(Debug)]
pub(super) struct Wanted {
    modes: Modes,
    lifecycle: bool,
    input: bool,
    messages: bool,
    updates: bool,
    tools: bool,
    /// Named custom channels; empty with `custom` for all.
    custom: Vec<String>,
    custom_all: bool,
    /// The graph itself is asked for: there are no nested ones.
    root: bool,
    since: Option<u64>,
}

impl Wanted {
    pub(super) fn parse(value: &Value) -> Result<Self, String> {
        let Some(channels) = value["channels"].as_array().filter(|list| !list.is_empty()) else {
            return Err("`channels` must be a list with at least one channel".to_owned());
        };
        let mut wanted = Self {
            modes: Modes::NONE,
            lifecycle: false,
            input: false,
            messages: false,
            updates: false,
            tools: false,
            custom: Vec::new(),
            custom_all: false,
            root: true,
            since: None,
        };
        for channel in channels {
            let Some(name) = channel.as_str() else {
                return Err("a channel is named by text".to_owned());
            };
            let mode = match name {
                "values" => Modes::VALUES,
                "updates" => {
                    wanted.updates = true;
                    Modes::UPDATES
                }
                "checkpoints" => Modes::CHECKPOINTS,
                "tasks" => Modes::TASKS,
                "messages" => {
                    wanted.messages = true;
                    Modes::TUPLES.with(Modes::PARTIALS)
                }
                "custom" => {
                    wanted.custom_all = true;
                    Modes::CUSTOM
                }
                "lifecycle" => {
                    wanted.lifecycle = true;
                    Modes::UPDATES
                }
                "input" => {
                    wanted.input = true;
                    Modes::UPDATES
                }
                "tools" => {
                    wanted.tools = true;
                    Modes::NONE
                }
                other => match other.strip_prefix("custom:").filter(|name| !name.is_empty()) {
                    Some(name) => {
                        wanted.custom.push(name.to_owned());
                        Modes::CUSTOM
                    }
                    None => {
                        let text = shown(other);
                        let known = "values, updates, messages, tools, lifecycle, input, \
                                     checkpoints, tasks, custom, custom:NAME";
                        return Err(format!("no channel is called `{text}`; there are: {known}"));
                    }
                },
            };
            wanted.modes = wanted.modes.with(mode);
        }
        wanted.read_rest(value)?;
        Ok(wanted)
    }

    fn read_rest(&mut self, value: &Value) -> Result<(), String> {
        match value.get("namespaces") {
            None | Some(Value::Null) => {}
            Some(Value::Array(namespaces)) => {
                if !namespaces.iter().all(Value::is_array) {
                    return Err("`namespaces` must be a list of lists of text".to_owned());
                }
                let is_root = |one: &Value| one.as_array().is_some_and(Vec::is_empty);
                self.root = namespaces.is_empty() || namespaces.iter().any(is_root);
            }
            Some(_) => return Err("`namespaces` must be a list of lists of text".to_owned()),
        }
        match value.get("depth") {
            None | Some(Value::Null) => {}
            Some(depth) if depth.is_u64() => {}
            Some(_) => return Err("`depth` must be a whole number".to_owned()),
        }
        self.since = match value.get("since") {
            None | Some(Value::Null) => None,
            Some(since) => Some(since.as_u64().ok_or("`since` must be the number of an event")?),
        };
        Ok(())
    }
}

/// Shows runs as events of their thread.
#[derive(Debug)]
pub(super) struct ThreadEvents {
    wanted: Wanted,
    /// Frames of a server-sent stream around the JSON, or the JSON alone.
    framed: bool,
    /// Messages whose reasoning has its own block by now.
    reasons: HashSet<Uuid>,
}

impl ThreadEvents {
    pub(super) fn new(wanted: Wanted, framed: bool) -> Self {
        Self { wanted, framed, reasons: HashSet::new() }
    }
}

/// One event to be written.
struct Event<'a> {
    run: &'a RunRecord,
    item: &'a Item,
    /// Which of the item's.
    k: u8,
    method: &'a str,
    node: Option<&'a str>,
    data: Value,
}

impl ThreadEvents {
    fn put(&self, event: Event<'_>, out: &mut BytesMut) {
        let Event { run, item, k, method, node, data } = event;
        let id = EventId { part: item.id.part.saturating_add(k), ..item.id };
        let seq = thread_seq(run.thread_ord.unsigned_abs(), id);
        if self.wanted.since.is_some_and(|since| seq <= since) {
            return;
        }
        let mut params = json!({"namespace": [], "timestamp": item.at.0, "data": data});
        if let Some(node) = node {
            params["node"] = node.into();
        }
        let event_id = format!("{}-{}-{id}", item.at.0, run.thread_ord);
        let json = json!({
            "type": "event", "event_id": event_id, "seq": seq, "method": method, "params": params,
        });
        if self.framed {
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(method.as_bytes());
            out.extend_from_slice(b"\r\ndata: ");
            put_json(&json, out);
            out.extend_from_slice(format!("\r\nid: {seq}\r\n\r\n").as_bytes());
        } else {
            put_json(&json, out);
            out.extend_from_slice(b"\n");
        }
    }

    fn message(&mut self, run: &RunRecord, item: &Item, of: &Projector, out: &mut BytesMut) {
        let put = |this: &Self, k, data, out: &mut BytesMut| {
            this.put(Event { run, item, k, method: "messages", node: None, data }, out);
        };
        match &item.what {
            What::Speaks(id) => {
                let metadata = of.speaking.get(id).map(|one| metadata(&one.metadata));
                let id = id.to_string();
                let data = json!({"event": "message-start", "role": "ai", "id": id,
                    "metadata": metadata});
                put(self, 0, data, out);
                let data = json!({"event": "content-block-start", "index": 0, "id": id,
                    "content": {"type": "text", "text": ""}});
                put(self, 1, data, out);
            }
            What::Token(delta) => {
                let id = delta.message.to_string();
                match delta.part {
                    Part::Text => {
                        let delta = json!({"type": "text-delta", "text": delta.text()});
                        let data = json!({"event": "content-block-delta", "index": 0, "id": id,
                            "delta": delta});
                        put(self, 0, data, out);
                    }
                    Part::Reasoning => {
                        if self.reasons.insert(delta.message) {
                            let data = json!({"event": "content-block-start", "index": 1, "id": id,
                                "content": {"type": "reasoning", "reasoning": ""}});
                            put(self, 1, data, out);
                        }
                        let delta = json!({"type": "reasoning-delta", "reasoning": delta.text()});
                        let data = json!({"event": "content-block-delta", "index": 1, "id": id,
                            "delta": delta});
                        put(self, 2, data, out);
                    }
                    Part::ToolCall => {
                        let piece: Value = serde_json::from_str(delta.text()).unwrap_or_default();
                        let index = 2 + piece["index"].as_u64().unwrap_or(0);
                        if piece["name"].is_string() {
                            let content = json!({"type": "tool_call_chunk", "id": piece["id"],
                                "name": piece["name"], "args": ""});
                            let data = json!({"event": "content-block-start", "index": index,
                                "id": id, "content": content});
                            put(self, 0, data, out);
                        }
                        let delta = json!({"type": "tool-call-delta", "args": piece["args"]});
                        let data = json!({"event": "content-block-delta", "index": index, "id": id,
                            "delta": delta});
                        put(self, 1, data, out);
                    }
                }
            }
            What::Spoke(id, data) => {
                let text = of.speaking.get(id).map(|one| one.text.clone()).unwrap_or_default();
                let id = id.to_string();
                let content = json!({"type": "text", "text": text});
                let finish = json!({"event": "content-block-finish", "index": 0, "id": id,
                    "content": content});
                put(self, 0, finish, out);
                let mut finish = json!({"event": "message-finish", "id": id});
                if data["usage"].is_object() {
                    finish["usage"] = data["usage"].clone();
                }
                put(self, 1, finish, out);
            }
            What::Unsaid(id) => {
                let id = id.to_string();
                let data = json!({"event": "error", "id": id, "code": "output.reset",
                    "message": "what this message said is void; it begins anew"});
                put(self, 0, data, out);
            }
            What::Said { message, node } => {
                let role = match message["type"].as_str() {
                    Some("human") => "human",
                    Some("system") => "system",
                    _ => "ai",
                };
                let (id, text) = (&message["id"], &message["content"]);
                let data = json!({"event": "message-start", "role": role, "id": id,
                    "metadata": of.message_metadata(node)});
                put(self, 0, data, out);
                let data = json!({"event": "content-block-start", "index": 0, "id": id,
                    "content": {"type": "text", "text": ""}});
                put(self, 1, data, out);
                let data = json!({"event": "content-block-finish", "index": 0, "id": id,
                    "content": {"type": "text", "text": text}});
                put(self, 2, data, out);
                let data = json!({"event": "message-finish", "id": id});
                put(self, 2, data, out);
            }
            _ => {}
        }
    }

    fn lifecycle(&self, run: &RunRecord, item: &Item, of: &Projector, out: &mut BytesMut) {
        let graph = &of.facts.graph.name;
        let data = match &item.what {
            What::Started { attempt: 1 } => json!({"event": "running", "graph_name": graph}),
            What::Ended { status, stopped } => {
                let event = match status {
                    Status::Success if *stopped => "interrupted",
                    Status::Success => "completed",
                    Status::Error | Status::Timeout => "failed",
                    _ => "interrupted",
                };
                let mut data = json!({"event": event, "graph_name": graph});
                if event == "failed" {
                    let failure = run.failure.as_ref().map(|failure| failure.message.clone());
                    data["error"] = failure.or_else(|| of.failed.clone()).into();
                }
                data
            }
            _ => return,
        };
        self.put(Event { run, item, k: 2, method: "lifecycle", node: None, data }, out);
    }
}

impl Show for ThreadEvents {
    fn wants(&self, run: &RunRecord) -> bool {
        let last = (run.thread_ord.unsigned_abs() + 1) << THREAD_BITS;
        // One that goes on has more to say than it has said, whatever is seen of it.
        self.wanted.root
            && (!run.status.is_terminal() || self.wanted.since.is_none_or(|since| since < last))
    }

    fn modes(&self) -> Modes {
        self.wanted.modes
    }

    fn show(&mut self, run: &RunRecord, item: &Item, of: &Projector, out: &mut BytesMut) {
        let put = |this: &Self, k, method, node, data, out: &mut BytesMut| {
            this.put(Event { run, item, k, method, node, data }, out);
        };
        let wants = |mode| self.wanted.modes.has(mode);
        match &item.what {
            What::Values { values, .. } if wants(Modes::VALUES) => {
                put(self, 0, "values", None, values.clone(), out);
            }
            What::Update { node, returned } if self.wanted.updates && returned.is_object() => {
                put(self, 0, "updates", Some(&**node), returned.clone(), out);
            }
            What::Interrupts(questions) if self.wanted.input => {
                for (k, one) in (0..3).zip(questions) {
                    // Clients of different ages read either name.
                    let value = &one["value"];
                    let data = json!({"interrupt_id": one["id"], "payload": value, "value": value});
                    put(self, k, "input.requested", None, data, out);
                }
            }
            What::Task(task) | What::TaskResult(task) if wants(Modes::TASKS) => {
                put(self, 0, "tasks", None, task.clone(), out);
            }
            What::Checkpoint(one) if wants(Modes::CHECKPOINTS) => {
                let id = |config: &Value| config["configurable"]["checkpoint_id"].clone();
                let mut data = json!({
                    "id": id(&one["config"]), "step": one["metadata"]["step"],
                    "source": one["metadata"]["source"],
                });
                if !one["parent_config"].is_null() {
                    data["parent_id"] = id(&one["parent_config"]);
                }
                put(self, 0, "checkpoints", None, data, out);
            }
            What::Tool { started, data } if self.wanted.tools => {
                let id = &data["call_id"];
                let shown = match (started, data["status"] == "error") {
                    (true, _) => json!({"event": "tool-started", "tool_call_id": id,
                        "tool_name": data["name"]}),
                    (false, false) => json!({"event": "tool-finished", "tool_call_id": id,
                        "output": data["output"]}),
                    (false, true) => json!({"event": "tool-error", "tool_call_id": id,
                        "message": data["error"]["message"].as_str().unwrap_or("the tool failed")}),
                };
                put(self, 0, "tools", data["node"].as_str(), shown, out);
            }
            What::Custom { name, data } => {
                let named = name.as_ref().is_some_and(|name| self.wanted.custom.contains(name));
                if self.wanted.custom_all || named {
                    let mut shown = json!({"payload": data});
                    if let Some(name) = name {
                        shown["name"] = name.as_str().into();
                    }
                    put(self, 0, "custom", None, shown, out);
                }
            }
            _ => {}
        }
        if self.wanted.messages {
            self.message(run, item, of, out);
        }
        if self.wanted.lifecycle {
            self.lifecycle(run, item, of, out);
        }
    }
}

fn metadata(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap_or_default()
}

/// `POST /threads/{thread_id}/stream/events`
async fn events(
    State(app): State<App>,
    Params(params): Params,
    request: Request,
) -> Result<Response, Problem> {
    let thread = threads::id(&params[0])?;
    let (parts, body) = request.into_parts();
    let body = extract::read_body(&parts.headers, body, &app.options.limits).await?;
    let value = extract::parse_json(&body).map_err(|why| errors::invalid(vec![why]))?;
    let wanted = Wanted::parse(&value).map_err(bad_request)?;
    let pieces = follow(&app, thread, ThreadEvents::new(wanted, true));
    Ok(stream::answer(ThreadBody::new(pieces)))
}
