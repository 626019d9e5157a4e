//! An OpenTelemetry collector: takes spans over OTLP/HTTP and shows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::wait::{PATIENCE, until_some};

/// A listening collector. Dropping it closes its port.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
    _server: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Received {
    spans: Vec<Span>,
    /// Heads and bodies, as they came.
    bytes: Vec<u8>,
    /// What was wrong with requests.
    problems: Vec<String>,
    /// The next requests get these statuses instead of 200.
    refuse: Vec<u16>,
}

/// A span, as a viewer would show it.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub name: String,
    pub kind: SpanKind,
    pub failed: bool,
    pub trace: String,
    pub id: String,
    /// Empty for a root.
    pub parent: String,
    pub attributes: BTreeMap<String, Value>,
    /// Of whoever sent it.
    pub resource: BTreeMap<String, Value>,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Collector {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// There is none.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let received = Arc::new(Mutex::new(Received::default()));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, received.clone()));
        Ok(Self { address, received, _server: server })
    }

    /// For `otlp` in the configuration.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next requests are answered with these statuses, one each.
    pub fn refuse(&self, statuses: &[u16]) {
        lock(&self.received).refuse = statuses.to_vec();
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.received).spans.clone()
    }

    /// Whether `text` is anywhere in what was received.
    pub fn has_seen(&self, text: &str) -> bool {
        let received = lock(&self.received);
        received.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Waits for a span.
    ///
    /// # Errors
    /// None came, or a request was not as it should be.
    pub async fn span(&self, wanted: impl Fn(&Span) -> bool) -> Result<Span> {
        let found = until_some("a span arrives", PATIENCE, async || {
            let received = lock(&self.received);
            ensure!(received.problems.is_empty(), "{:?}", received.problems);
            Ok(received.spans.iter().find(|span| wanted(span)).cloned())
        });
        found.await.with_context(|| {
            let spans = self.spans();
            let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
            format!("there are {names:?}")
        })
    }
}

async fn serve(listener: TcpListener, received: Arc<Mutex<Received>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let received = received.clone();
        connections.spawn(async move {
            if let Err(error) = answer(stream, &received).await {
                lock(&received).problems.push(format!("{error:#}"));
            }
        });
    }
}

/// One request, and the end of the connection.
async fn answer(stream: TcpStream, received: &Mutex<Received>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head).await? > 0, "a head without an end: {head:?}");
    }
    let lower = head.to_ascii_lowercase();
    let header = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = header("content-length:").context("no length")?.parse()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let refusal = {
        let mut received = lock(received);
        if received.refuse.is_empty() { None } else { Some(received.refuse.remove(0)) }
    };
    let status = match refusal {
        Some(status) => status,
        None => {
            ensure!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "asked for {head:?}");
            ensure!(header("content-type:") == Some("application/x-protobuf"), "sent {head:?}");
            let spans = decode(&body)?;
            let mut received = lock(received);
            received.bytes.extend(head.bytes().chain(body));
            received.spans.extend(spans);
            200
        }
    };
    let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

fn decode(body: &[u8]) -> Result<Vec<Span>> {
    let request = ExportTraceServiceRequest::decode(body)?;
    let mut spans = Vec::new();
    for of_resource in request.resource_spans {
        let resource = of_resource.resource.map(|resource| map(resource.attributes));
        let resource = resource.unwrap_or_default();
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let kind = span.kind();
            spans.push(Span {
                name: span.name,
                kind,
                failed: span.status.is_some_and(|status| status.code() == StatusCode::Error),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                attributes: map(span.attributes),
                resource: resource.clone(),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
            });
        }
    }
    Ok(spans)
}

fn map(attributes: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |value: Any| match value {
        Any::StringValue(text) => text.into(),
        Any::BoolValue(yes) => yes.into(),
        Any::IntValue(number) => number.into(),
        Any::DoubleValue(number) => number.into(),
        other => format!("{other:?}").into(),
    };
    let pair = |attribute: KeyValue| Some((attribute.key, value(attribute.value?.value?)));
    attributes.into_iter().filter_map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nothing under this lock panics half-way.
fn lock(received: &Mutex<Received>) -> MutexGuard<'_, Received> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}
