//! A server in memory for this crate's tests: the real engine over the in-memory store, one agent
//! that does what its message says, and connections over in-memory streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clearway_core::channel::Write;
use clearway_core::event::{EventKind, Part};
use clearway_core::machine::Output;
use clearway_core::message::Role;
use clearway_core::plan::MESSAGES;
use clearway_core::{Code, Failure, Message, RunId, Timestamp};
use clearway_engine::upstream::Upstream;
use clearway_engine::{Agent, Agents, Ctx, Engine, Node, NodeError, Options, RunView};
use clearway_store::{ManualClock, MemStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::app::App;
use crate::conn::{self, Notes};
use crate::routes;
use crate::server::ServerOptions;
use crate::service::HttpService;
use crate::stop::Stage;

/// See the module.
pub(crate) struct TestServer {
    pub app: App,
    router: Router,
    connections: JoinSet<()>,
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::with(options()).await
    }

    pub(crate) async fn with(options: ServerOptions) -> Self {
        let upstream =
            Upstream::new(clearway_engine::upstream::Config::default(), Default::default());
        let upstream = upstream.expect("an empty configuration is valid");
        Self::with_upstream(options, upstream).await
    }

    pub(crate) async fn with_upstream(options: ServerOptions, upstream: Upstream) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp(1_795_000_000_000)));
        let store = Arc::new(MemStore::new(clock.clone()));
        let agents = ["cofounder", "agent"].map(|name| (name.to_owned(), Arc::new(agent(name))));
        let engine = Engine::start(Options::default(), store, upstream, Agents::new(agents), clock);
        let app = App::new(engine.await.expect("the engine starts"), options, None);
        let (router, _) = routes::table(&app.options).expect("the doors fit").into_parts();
        let router = router.route(
            "/panics",
            axum::routing::get(async || {
                assert!(std::hint::black_box(false), "this handler panics");
            }),
        );
        let router = router.with_state(app.clone());
        Self { app, router, connections: JoinSet::new() }
    }

    /// A new connection's client end.
    pub(crate) fn connect(&mut self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let notes = Arc::new(Notes::new(Instant::now()));
        let service = HttpService { app: self.app.clone(), router: self.router.clone(), notes };
        let limits = &self.app.options.limits;
        self.connections.spawn(conn::serve(server, service, limits, self.app.stop.clone()));
        client
    }

    /// One exchange on a connection of its own.
    pub(crate) async fn send(&mut self, request: &str) -> Answer {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).await.expect("the server reads");
        read_answer(&mut client).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
            .await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Answer {
        self.send(&post(path, "", &body.to_string())).await
    }

    /// Waits until a run is as it should be.
    pub(crate) async fn until(&self, run: RunId, is: impl Fn(&RunView) -> bool) -> RunView {
        loop {
            let view = self.app.engine.run(run).await.expect("the run exists");
            if is(&view) {
                return view;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The newest run.
    pub(crate) async fn newest(&self) -> Option<RunId> {
        let query = clearway_engine::RunQuery { limit: 1, ..Default::default() };
        let (runs, _) = self.app.engine.runs(query).await.expect("the store answers");
        runs.first().map(|view| view.record.id)
    }

    pub(crate) fn stop(&self, stage: Stage) {
        self.app.stop.advance(stage);
    }

    /// Waits until every connection is closed.
    pub(crate) async fn closed(&mut self) {
        while let Some(ended) = self.connections.join_next().await {
            ended.expect("no connection panics");
        }
    }
}

pub(crate) fn options() -> ServerOptions {
    let mut options = ServerOptions::new("127.0.0.1:0".parse().expect("an address"));
    options.version = "1.2.3".to_owned();
    options.data_path = "/data".to_owned();
    options
}

/// A request with a body; `headers` is lines that end in CRLF.
pub(crate) fn post(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// What a server sent.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn run(&self) -> RunId {
        self.header("x-run-id").parse().expect("a run id")
    }

    /// The data of all server-sent events.
    pub(crate) fn data(&self) -> Vec<Value> {
        let lines = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.map(|line| serde_json::from_str(line).expect("data is JSON")).collect()
    }
}

/// Reads until the server closes.
pub(crate) async fn read_answer(client: &mut DuplexStream) -> Answer {
    let mut bytes = Vec::new();
    // A connection that is cut ends in an error after what came before.
    let _ = client.read_to_end(&mut bytes).await;
    parse(&bytes)
}

/// Reads until what came contains `text`; returns all of it.
pub(crate) async fn read_until(client: &mut DuplexStream, text: &str) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let read = client.read(&mut piece).await.expect("the server writes");
        bytes.extend_from_slice(&piece[..read]);
        let so_far = String::from_utf8_lossy(&bytes).into_owned();
        assert!(read > 0, "closed before {text:?}: {so_far}");
        if so_far.contains(text) {
            return so_far;
        }
    }
}

fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    let pair = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    };
    let headers: BTreeMap<_, _> = lines.filter_map(pair).collect();
    let is_chunked = headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked");
    let body = if is_chunked { unchunk(body) } else { body.to_owned() };
    Answer { status, headers, body }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let Ok(length) = usize::from_str_radix(length, 16) else { break };
        if length == 0 || after.len() < length {
            break;
        }
        body.push_str(&after[..length]);
        rest = after[length..].trim_start_matches("\r\n");
    }
    body
}

/// An agent of one node that does what the last message says.
fn agent(name: &str) -> Agent {
    let node: Arc<dyn Node> = Arc::new(Obedient);
    Agent::single(name, "agent", "answer", node)
}

/// `fail` fails, `hang` says one word and never ends, anything else comes back word by word.
#[derive(Debug)]
struct Obedient;

#[async_trait::async_trait]
impl Node for Obedient {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let messages = cx.state.list(MESSAGES);
        let last = messages.last().and_then(|value| Message::from_value(value)).expect("a message");
        let asked = last.content.text();
        let id = cx.message_id(0);
        cx.fact(
            EventKind::MessageStarted,
            &json!({"message_id": id.to_string(), "node": "answer"}),
        )?;
        match asked.as_str() {
            "fail" => {
                return Err(Failure::new(Code::UpstreamServerError, "the provider said 500").into());
            }
            "hang" => {
                cx.delta(id, Part::Text, "Well")?;
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        let reply = format!("you said: {asked}");
        for word in reply.split_inclusive(' ') {
            cx.delta(id, Part::Text, word)?;
        }
        let message = Message::new(Role::Ai, reply, id.to_string()).to_value();
        let writes = vec![Write::new(MESSAGES, json!([message]))];
        Ok(Output { writes, reply: Some(id), ..Output::default() })
    }
}
