//! MCP servers: programs of ours and addresses elsewhere that have tools.
//!
//! A [`Server`] is connected when it is first used, and again after it broke off; all runs share one
//! session. A program is supervised ([`process`]): one that no longer answers is killed, with
//! everything it started, and the next call starts it anew.
//!
//! **Invariant:** every wait for a server has an end; a server that hangs or dies costs the calls that
//! were under way at it and nothing else.
//!
//! Not here: the protocol itself (`rmcp`), and what becomes of a tool's answer (`clearway_engine::tool`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clearway_core::{Code, Failure};
use clearway_engine::{Effect, Tasks};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ClientConfig,
    Implementation,
};
use rmcp::service::{NotificationContext, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{ClientHandler, RoleClient, serve_client};
use serde_json::{Map, Value, json};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use crate::config::{Mcp, McpTransport};

pub(crate) use self::source::{McpTools, call_for_step};

mod http;
mod process;
mod source;

/// All configured servers.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Mutex<BTreeMap<String, Arc<Server>>>,
    tasks: Tasks,
}

impl Servers {
    pub(crate) fn new(tasks: Tasks) -> Self {
        Self { servers: Mutex::default(), tasks }
    }

    /// Takes up a configuration: servers that are as before keep their sessions, the others end when
    /// the last run that uses them lets go.
    pub(crate) fn configure(&self, configs: &BTreeMap<String, Mcp>) {
        let mut servers = lock(&self.servers);
        let mut old = std::mem::take(&mut *servers);
        for (name, config) in configs {
            let server = match old.remove(name).filter(|server| server.config == *config) {
                Some(server) => server,
                None => Arc::new(Server::new(name, config, &self.tasks)),
            };
            servers.insert(name.clone(), server);
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Server>> {
        lock(&self.servers).get(name).cloned()
    }
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    config: Mcp,
    tasks: Tasks,
    /// Who connects holds this; the others wait for that, each with its own deadline.
    connecting: tokio::sync::Mutex<()>,
    session: Mutex<Option<Arc<Session>>>,
    /// Why it could not be reached a moment ago.
    broken: Mutex<Option<(Instant, Failure)>>,
}

/// A connection after the handshake.
#[derive(Debug)]
struct Session {
    service: RunningService<RoleClient, Handler>,
    /// Ends the program behind it.
    stop: CancellationToken,
    /// The server says that its tools are others now.
    changed: Arc<AtomicBool>,
    listed: Mutex<Option<(Instant, Arc<[Listed]>)>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A tool as its server describes it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub name: String,
    pub description: String,
    pub schema: Value,
    pub effect: Effect,
}

/// Our side of the protocol: we offer nothing.
#[derive(Clone, Debug)]
struct Handler {
    changed: Arc<AtomicBool>,
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let us = Implementation::new("clearway", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), us)
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Release);
    }
}

/// How long a failed connection is not tried again.
const REST: Duration = Duration::from_secs(1);

/// How long a list of tools is good. A program says when it changes.
const LIST_GOOD: Duration = Duration::from_secs(60);

/// Tools of one server that are used.
const TOOLS: usize = 256;

/// How long a server that let a call time out has to show that it is alive.
const PING: Duration = Duration::from_secs(2);

impl Server {
    fn new(name: &str, config: &Mcp, tasks: &Tasks) -> Self {
        Self {
            name: name.to_owned(),
            config: config.clone(),
            tasks: tasks.clone(),
            connecting: tokio::sync::Mutex::default(),
            session: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    pub(crate) const fn deadline(&self) -> Duration {
        self.config.deadline
    }

    fn unavailable(&self, why: impl std::fmt::Display) -> Failure {
        let text = format!("the MCP server `{}` cannot be used: {why}", self.name);
        Failure::new(Code::ToolUnavailable, text).with("mcp", self.name.as_str()).retryable()
    }

    fn late(&self) -> Failure {
        self.unavailable(format!("no answer within {} s", self.config.deadline.as_secs_f64()))
    }

    fn current(&self) -> Option<Arc<Session>> {
        let session = lock(&self.session).clone()?;
        let over = session.service.is_closed()
            || session.service.is_transport_closed()
            || session.stop.is_cancelled();
        (!over).then_some(session)
    }

    async fn session(&self, deadline: Instant) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.current() {
            return Ok(session);
        }
        let connecting = timeout_at(deadline.into(), self.connecting.lock()).await;
        let _connecting = connecting.map_err(|_| self.late())?;
        // Somebody else may have done it meanwhile, or found out that it cannot be done.
        if let Some(session) = self.current() {
            return Ok(session);
        }
        if let Some((_, failure)) = lock(&self.broken).clone().filter(|(at, _)| at.elapsed() < REST)
        {
            return Err(failure);
        }
        let connected = match timeout_at(deadline.into(), self.connect()).await {
            Ok(connected) => connected,
            Err(_) => Err(self.late()),
        };
        match connected {
            Ok(session) => {
                let session = Arc::new(session);
                *lock(&self.session) = Some(session.clone());
                *lock(&self.broken) = None;
                tracing::info!(mcp.server = self.name, "MCP server {} is connected", self.name);
                Ok(session)
            }
            Err(failure) => {
                tracing::warn!(mcp.server = self.name, "{}", failure.message);
                *lock(&self.broken) = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn connect(&self) -> Result<Session, Failure> {
        let changed = Arc::new(AtomicBool::new(false));
        let handler = Handler { changed: changed.clone() };
        let stop = CancellationToken::new();
        // Dropped half-way, this ends what was begun.
        let guard = stop.clone().drop_guard();
        let service = match &self.config.transport {
            McpTransport::Command { program, arguments, env, folder } => {
                let program = process::Program { program, arguments, env, folder };
                let started = program.start(&self.name, &self.tasks, stop.clone());
                let running = started.map_err(|error| self.unavailable(error))?;
                let served = serve_client(handler, (running.output, running.input)).await;
                served.map_err(|error| match running.last_words.get() {
                    Some(words) => self.unavailable(format!("{error}; it said: {words}")),
                    None => self.unavailable(error),
                })?
            }
            McpTransport::Http { url, headers } => {
                let client = http::Http::new(url, headers, self.config.deadline);
                let (client, config) = client.map_err(|why| self.unavailable(why))?;
                let transport = StreamableHttpClientTransport::with_client(client, config);
                serve_client(handler, transport).await.map_err(|error| self.unavailable(error))?
            }
        };
        Ok(Session { service, stop: guard.disarm(), changed, listed: Mutex::default() })
    }

    /// Its tools, as far as it told lately.
    pub(crate) async fn tools(&self, deadline: Instant) -> Result<Arc<[Listed]>, Failure> {
        let session = self.session(deadline).await?;
        let known = lock(&session.listed).clone().filter(|(at, _)| at.elapsed() < LIST_GOOD);
        if let Some((_, listed)) = known
            && !session.changed.swap(false, Ordering::AcqRel)
        {
            return Ok(listed);
        }
        let all = match timeout_at(deadline.into(), session.service.list_all_tools()).await {
            Ok(Ok(all)) => all,
            Ok(Err(error)) => return Err(self.unavailable(error)),
            Err(_) => {
                self.suspect(&session);
                return Err(self.late());
            }
        };
        if all.len() > TOOLS {
            tracing::warn!(
                mcp.server = self.name,
                "{} has {} tools; only the first {TOOLS} are used",
                self.name,
                all.len()
            );
        }
        let listed: Arc<[Listed]> =
            all.into_iter().take(TOOLS).map(|tool| self.listed(tool)).collect();
        *lock(&session.listed) = Some((Instant::now(), listed.clone()));
        Ok(listed)
    }

    fn listed(&self, tool: rmcp::model::Tool) -> Listed {
        let mut patterns = self.config.effects.iter();
        let configured =
            patterns.find(|(pattern, _)| clearway_engine::tool::glob(pattern, &tool.name));
        let hints = tool.annotations.as_ref();
        let effect = match configured {
            Some((_, effect)) => *effect,
            None if hints.is_some_and(|hints| hints.read_only_hint == Some(true)) => Effect::Read,
            None if hints.is_some_and(|hints| hints.idempotent_hint == Some(true)) => {
                Effect::Idempotent
            }
            // Who says nothing may do anything.
            None => Effect::Write,
        };
        Listed {
            name: tool.name.into_owned(),
            description: tool.description.unwrap_or_default().into_owned(),
            schema: Value::Object((*tool.input_schema).clone()),
            effect,
        }
    }

    /// Calls a tool. The deadline is the caller's to keep: when it drops this, the server is told, and
    /// looked at.
    ///
    /// # Errors
    /// Whether the call may have been made, and why it brought no answer.
    pub(crate) async fn call(
        self: &Arc<Self>,
        tool: &str,
        arguments: Map<String, Value>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let session = self.session(deadline).await.map_err(CallError::NotMade)?;
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        let mut abandoned = Abandoned { server: Some(self.clone()), session: session.clone() };
        let answer = tokio::select! {
            answer = session.service.call_tool_once(params) => answer,
            // It was found hanging by another call: no answer will come.
            () = session.stop.cancelled() => Err(ServiceError::TransportClosed),
        };
        abandoned.server = None;
        match answer {
            Ok(CallToolResponse::Complete(result)) => self.read(tool, result),
            Ok(_) => {
                let text = format!("`{tool}` asks for what this client does not offer");
                Err(CallError::Refused(Failure::new(Code::ToolFailed, text)))
            }
            Err(ServiceError::McpError(error)) => {
                let text = format!("`{tool}`: {} ({})", error.message, error.code.0);
                Err(CallError::Refused(Failure::new(Code::ToolFailed, text)))
            }
            Err(error) => {
                session.stop.cancel();
                Err(CallError::Unknown(self.unavailable(error)))
            }
        }
    }

    fn read(&self, tool: &str, result: CallToolResult) -> Result<Value, CallError> {
        let blocks: Vec<Value> =
            result.content.iter().filter_map(|block| serde_json::to_value(block).ok()).collect();
        if result.is_error == Some(true) {
            let texts: Vec<&str> =
                blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            let text = match texts.join("\n") {
                text if text.is_empty() => format!("`{tool}` failed and does not say why"),
                text => text,
            };
            let failure = Failure::new(Code::ToolFailed, text).with("mcp", self.name.as_str());
            return Err(CallError::Refused(failure));
        }
        if blocks.is_empty() {
            return Ok(result.structured_content.unwrap_or_default());
        }
        if blocks.iter().all(|block| block["type"] == "text") {
            let texts: Vec<&str> =
                blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            return Ok(texts.join("\n").into());
        }
        let part = |block: Value| match block["type"].as_str() {
            Some("text") => json!({"type": "text", "text": block["text"]}),
            Some("image") => {
                json!({"type": "image", "base64": block["data"], "mime_type": block["mimeType"]})
            }
            _ => json!({"type": "text", "text": block.to_string()}),
        };
        Ok(blocks.into_iter().map(part).collect())
    }

    /// A call took too long: if the server does not even answer a ping, it is ended.
    fn suspect(&self, session: &Arc<Session>) {
        let (session, name) = (session.clone(), self.name.clone());
        self.tasks.spawn(async move {
            let ping = rmcp::model::ClientRequest::PingRequest(rmcp::model::PingRequest::default());
            let answer = tokio::time::timeout(PING, session.service.send_request(ping)).await;
            // Any answer will do, also that it knows no ping.
            if !matches!(answer, Ok(Ok(_) | Err(ServiceError::McpError(_)))) {
                tracing::warn!(mcp.server = name, "MCP server {name} is ended: it does not answer");
                session.stop.cancel();
            }
        });
    }
}

/// Looks at the server when a call is given up.
struct Abandoned {
    server: Option<Arc<Server>>,
    session: Arc<Session>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.suspect(&self.session);
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// It never left.
    NotMade(Failure),
    /// The server says that it failed.
    Refused(Failure),
    /// It may have been made.
    Unknown(Failure),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; if it did, the values would still be sound.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
