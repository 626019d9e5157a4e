//! Whole calls against a provider scripted byte by byte, over in-memory connections and with paused
//! time.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clearway_core::wait::WaitKind;
use clearway_core::{Code, Deadline};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;

use crate::dial::Report;
use crate::watch::now;
use crate::*;

mod cancel;
mod connections;
mod drills;
mod embeddings;
mod faults;
mod fuzz;
mod kinds;
mod lab;
mod limits;
mod list;
mod reload;
mod retries;
mod routes;
mod sockets;
mod sockets_crowds;
mod sockets_lines;
mod streams;
mod tcp;

/// A client with one provider `p`, whose connections run a script.
struct Rig {
    upstream: Upstream,
    provider: Arc<Scripted>,
}

/// Dials into memory and runs the script on the other end.
struct Scripted {
    script: Box<dyn Fn(usize, Peer) -> BoxFuture<'static, ()> + Send + Sync>,
    dialled: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl Dial for Scripted {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        _: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        Box::pin(async {
            let (ours, theirs) = duplex(64 * 1024);
            let number = self.dialled.fetch_add(1, Ordering::Relaxed);
            let peer = Peer { io: theirs };
            self.tasks.lock().unwrap().spawn((self.script)(number, peer));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// The provider's end of a connection.
struct Peer {
    io: DuplexStream,
}

impl Peer {
    /// Reads one request; `None` when the client has closed.
    async fn request(&mut self) -> Option<Value> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match self.io.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return None,
            }
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let target = head.split(' ').nth(1).unwrap();
        assert!(["/v1/chat/completions", "/v1/embeddings"].contains(&target), "{head}");
        let length = head.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.io.read_exact(&mut body).await.unwrap();
        Some(serde_json::from_slice(&body).unwrap())
    }

    /// Writes; the rest of the script is not run for a client that left.
    async fn raw(&mut self, bytes: impl AsRef<[u8]>) {
        if self.io.write_all(bytes.as_ref()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn head(&mut self) {
        self.raw(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
             transfer-encoding: chunked\r\n\r\n",
        )
        .await;
    }

    /// One HTTP chunk.
    async fn chunk(&mut self, text: &str) {
        self.raw(format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    async fn event(&mut self, data: &Value) {
        self.chunk(&format!("data: {data}\n\n")).await;
    }

    async fn token(&mut self, text: &str) {
        self.event(&delta(text)).await;
    }

    /// Finish reason, usage, `[DONE]` and the end of the body.
    async fn close_answer(&mut self) {
        self.event(&stop()).await;
        self.event(&usage()).await;
        self.chunk("data: [DONE]\n\n").await;
        self.raw("0\r\n\r\n").await;
    }

    /// A whole answer in three tokens.
    async fn answer(&mut self) {
        self.head().await;
        for text in ["one", " two", " three"] {
            self.token(text).await;
        }
        self.close_answer().await;
    }

    async fn respond(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
        self.raw(text).await;
    }

    /// Waits until the client closes.
    async fn closed(&mut self) {
        let mut rest = [0; 1024];
        while !matches!(self.io.read(&mut rest).await, Ok(0) | Err(_)) {}
    }
}

fn delta(text: &str) -> Value {
    json!({"id": "c1", "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
}

fn stop() -> Value {
    json!({"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
}

fn usage() -> Value {
    json!({"id": "c1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
}

const USAGE: Usage =
    Usage { input_tokens: 7, output_tokens: 3, cached_tokens: 0, reasoning_tokens: 0 };

impl Rig {
    fn new<F>(script: impl Fn(usize, Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(|_| {}, script)
    }

    /// With a changed configuration.
    fn with<F>(
        change: impl FnOnce(&mut Config),
        script: impl Fn(usize, Peer) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let provider = Arc::new(Scripted {
            script: Box::new(move |number, peer| Box::pin(script(number, peer))),
            dialled: AtomicUsize::new(0),
            tasks: Mutex::default(),
        });
        let dial: Arc<dyn Dial> = provider.clone();
        let dialers = HashMap::from([("script".to_owned(), dial)]);
        Self { upstream: Upstream::new(config(change), dialers).unwrap(), provider }
    }

    /// A deadline of two minutes.
    fn cx(&self) -> CallCx {
        cx(Duration::from_secs(120))
    }

    async fn chat(&self) -> Result<ChatStream, Error> {
        self.upstream.chat(self.cx(), ask()).await
    }

    /// The whole call: its text, finish, and error.
    async fn run(&self) -> Outcome {
        self.run_with(self.cx()).await
    }

    async fn run_with(&self, cx: CallCx) -> Outcome {
        let started = now();
        let mut outcome = Outcome::default();
        let result = async {
            let mut stream = self.upstream.chat(cx.clone(), ask()).await?;
            while let Some(event) = stream.next().await? {
                match event {
                    ChatEvent::Text(text) => outcome.text.push_str(&text),
                    ChatEvent::Finish { usage, .. } => outcome.finish = Some(usage),
                    ChatEvent::Reset { .. } => outcome.text.clear(),
                    ChatEvent::Reasoning(_) | ChatEvent::ToolCall { .. } => {}
                }
            }
            assert_eq!(stream.next().await?, None, "nothing after the end");
            Ok::<_, Error>(())
        }
        .await;
        outcome.error = result.err();
        outcome.took = now() - started;
        assert!(!cx.probe.is_connected(), "the call is over");
        outcome
    }

    fn view(&self) -> ProviderView {
        self.upstream.provider_views().remove(0)
    }

    fn dialled(&self) -> usize {
        self.provider.dialled.load(Ordering::Relaxed)
    }

    /// Connections open now, by the client's own count.
    fn open(&self) -> u64 {
        let connections = self.view().connections;
        connections.opened - connections.closed
    }

    /// Everything that a call holds is released.
    fn assert_at_rest(&self) {
        let view = self.view();
        assert_eq!((view.limiter.in_flight, view.limiter.queued.iter().sum::<usize>()), (0, 0));
        assert_eq!(self.open(), view.connections.idle as u64);
    }
}

#[derive(Debug, Default)]
struct Outcome {
    text: String,
    finish: Option<Option<Usage>>,
    error: Option<Error>,
    took: Duration,
}

impl Outcome {
    #[track_caller]
    fn assert_whole(&self) {
        assert_eq!(self.error, None);
        assert_eq!(self.text, "one two three");
        assert!(self.finish.is_some());
    }

    #[track_caller]
    fn assert_failed(&self, code: Code, phase: &str) {
        let error = self.error.as_ref().expect("it should have failed").failure();
        assert_eq!(error.code, code, "{error}");
        assert_eq!(error.detail["phase"], phase, "{error}");
        assert_eq!(self.finish, None, "a failed answer is not whole");
    }

    #[track_caller]
    fn assert_took(&self, seconds: f64) {
        let took = self.took.as_secs_f64();
        assert!((took - seconds).abs() < 0.01, "took {took} s instead of {seconds} s");
    }
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut provider = ProviderConfig::new("p", Endpoint::parse("http://provider/v1").unwrap());
    provider.dial = Some("script".into());
    provider.keys = vec![(None, Secret::new("key-of-the-house"))];
    // What becomes of one attempt; the loop around it has tests of its own.
    provider.retry.attempts = 1;
    provider.limits.concurrent = 10;
    let mut thinking = ModelConfig::new("thinking", "p", "m-2");
    thinking.reasoning = true;
    let mut config = Config {
        providers: vec![provider],
        models: vec![ModelConfig::new("m", "p", "m-1"), thinking],
        clock: None,
    };
    change(&mut config);
    config
}

fn cx(budget: Duration) -> CallCx {
    CallCx::new(Deadline::after(now(), budget), "call")
}

fn ask() -> ChatRequest {
    ask_model("m")
}

fn ask_model(model: &str) -> ChatRequest {
    ChatRequest {
        model: model.into(),
        messages: vec![Arc::new(json!({"type": "human", "content": "hi", "id": "1"}))],
        params: serde_json::Map::new(),
    }
}

fn waits_for(cx: &CallCx, at: Instant) -> WaitKind {
    cx.wait.read(at).kind
}

/// Lets everything that can run do so.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
