//! One attempt at one route: slot, connection, request, status, first output.
//!
//! An attempt ends well at its first output (or at the end of an answer without any): until then
//! nothing has reached anybody, and all of it may be done again; after that the answer is committed
//! and [`crate::chat`] reads on.
//!
//! **Invariant:** every await here is inside [`Watch::within`], with a limit of its own, and the
//! wait cell was told before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Deadline};
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, response};

use crate::call::{CallCx, Phase};
use crate::codec::failure::{Rejection, looks_like_html};
use crate::codec::{self, NoAnswer, Usage};
use crate::config::Kind;
use crate::dial::{DialError, DialPhase};
use crate::failure::Fault;
use crate::guard::limiter::RateHeaders;
use crate::lease::Lease;
use crate::live::Live;
use crate::route::Route;
use crate::transport::{Connected, Exchange, Link, WireError};
use crate::watch::{Expired, Watch, now};

/// What an attempt works with.
pub(crate) struct Attempt<'a> {
    pub(crate) route: &'a Arc<Route>,
    /// Which of the provider's operations is asked for.
    pub(crate) target: &'a Uri,
    pub(crate) cx: &'a CallCx,
    pub(crate) watch: &'a mut Watch,
    /// From 1.
    pub(crate) number: u32,
    /// For the wait cell: `openai/gpt-5-mini, attempt 1`.
    pub(crate) detail: Arc<str>,
    pub(crate) lease: Lease,
}

impl Attempt<'_> {
    /// Runs it up to its first output.
    pub(crate) async fn chat(mut self, body: Bytes) -> Result<Live, Fault> {
        let begun = match self.begin(body).await {
            Ok(begun) => begun,
            Err(fault) => return Err(self.fail(fault)),
        };
        let Begun { exchange, head, sent_at } = begun;
        let request_id = request_id(&head.headers);
        let kind = self.route.provider.kind;
        let fault = match content_kind(&head.headers) {
            content if content.is_stream_of(kind) => {
                let Self { route, cx, watch, detail, lease, .. } = self;
                let limit = Deadline(sent_at + lease.first_token_limit()).min(watch.deadline());
                let mut live = Live::new(route.clone(), lease, exchange, sent_at);
                live.request_id = request_id;
                cx.wait.enter(WaitKind::FirstByte, detail.clone(), Some(limit), now());
                live.await_output(watch).await?;
                cx.wait.enter(WaitKind::NextToken, detail, Some(watch.deadline()), now());
                return Ok(live);
            }
            ContentKind::Json => {
                match self.whole_body(exchange, MAX_WHOLE_BODY, self.watch.deadline()).await {
                    Ok(body) => {
                        match codec::read_answer(kind, &body, self.route.provider.secrets()) {
                            Ok(events) => {
                                let mut live =
                                    Live::whole(self.route.clone(), self.lease, events, sent_at);
                                live.request_id = request_id;
                                return Ok(live);
                            }
                            Err(error) => no_answer(error),
                        }
                    }
                    Err(fault) => fault,
                }
            }
            ContentKind::Events | ContentKind::Lines => {
                let problem =
                    "the answer is streamed in another provider's way: check the provider's kind";
                Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem)
            }
            ContentKind::Other(kind) => {
                self.bad_response(exchange, &kind, "a stream of events").await
            }
        };
        Err(self.fail(Fault { request_id, ..fault }))
    }

    /// Runs it up to the end of an answer that is one JSON document, for operations that do not
    /// stream. All of it must have come when `limits.within` has passed since the request left.
    pub(crate) async fn whole<T>(
        mut self,
        body: Bytes,
        limits: WholeLimits,
        decode: impl FnOnce(&[u8]) -> Result<(T, Option<Usage>), Fault>,
    ) -> Result<T, Fault> {
        let answer = self.document(body, limits).await;
        match answer.and_then(|answer| decode(&answer)) {
            Ok((value, usage)) => {
                self.lease.output(0, now());
                self.lease.succeed(usage);
                Ok(value)
            }
            Err(fault) => Err(self.fail(fault)),
        }
    }

    async fn document(&mut self, body: Bytes, limits: WholeLimits) -> Result<Bytes, Fault> {
        let Begun { exchange, head, sent_at } = self.begin(body).await?;
        let request_id = request_id(&head.headers);
        let outcome = match content_kind(&head.headers) {
            ContentKind::Json => {
                let end = Deadline(sent_at + limits.within);
                self.wait(WaitKind::FirstByte, end.remaining(now()));
                self.whole_body(exchange, limits.bytes, end).await
            }
            ContentKind::Events | ContentKind::Lines => {
                let problem = "expected a JSON document, got a stream of events";
                Err(Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem))
            }
            ContentKind::Other(kind) => {
                Err(self.bad_response(exchange, &kind, "a JSON document").await)
            }
        };
        outcome.map_err(|fault| Fault { request_id, ..fault })
    }

    /// Settles the lease with the fault that ends the attempt.
    fn fail(self, fault: Fault) -> Fault {
        self.lease.fail(&fault);
        fault
    }

    /// Gets a good status back.
    async fn begin(&mut self, body: Bytes) -> Result<Begun, Fault> {
        let (exchange, head, sent_at) = self.exchange(body).await?;
        self.lease.answered(head.status.as_u16());
        let provider = &self.route.provider;
        let rates = RateHeaders::read(&head.headers, provider.wall_clock());
        provider.limiter.learn(&self.route.model, &rates, now());
        if head.status.is_success() {
            return Ok(Begun { exchange, head, sent_at });
        }
        let request_id = request_id(&head.headers);
        let fault = self.rejection(exchange, &head).await;
        Err(Fault { request_id, ..fault })
    }

    /// Gets the request out and the status back. A connection that turns out to have been closed
    /// while it was idle is replaced at once, and once: a fresh one says what is really wrong.
    async fn exchange(
        &mut self,
        body: Bytes,
    ) -> Result<(Exchange, response::Parts, Instant), Fault> {
        let provider = self.route.provider.clone();
        let size = body.len();
        if let Some(link) = provider.pool.take(now()) {
            self.lease.sending(size);
            let connected = Connected::new(&self.cx.probe);
            let mut exchange = Exchange::start(link, self.request(body.clone()), connected);
            match self.head(&mut exchange).await {
                Ok((head, sent_at)) => return Ok((exchange, head, sent_at)),
                Err(HeadError::Wire(_)) if !exchange.has_answered() => {}
                Err(error) => return Err(error.into_fault(exchange.has_answered())),
            }
        }
        // Before the link, so that it is dropped after it.
        let connected = Connected::new(&self.cx.probe);
        self.lease.dialling();
        let link = self.dial().await?;
        self.lease.sending(size);
        let mut exchange = Exchange::start(link, self.request(body), connected);
        match self.head(&mut exchange).await {
            Ok((head, sent_at)) => Ok((exchange, head, sent_at)),
            Err(error) => Err(error.into_fault(exchange.has_answered())),
        }
    }

    async fn dial(&mut self) -> Result<Link, Fault> {
        let provider = &self.route.provider;
        let cap = self.route.timeouts.connect;
        let limit = self.wait(WaitKind::Connect, cap);
        let phase = AtomicU8::new(0);
        let report = |next: DialPhase| {
            let kind = match next {
                DialPhase::Dns => WaitKind::Dns,
                DialPhase::Connect | DialPhase::Tls => WaitKind::Connect,
            };
            phase.store(next as u8, Ordering::Relaxed);
            self.cx.wait.enter(kind, self.detail.clone(), Some(limit), now());
        };
        phase.store(DialPhase::Connect as u8, Ordering::Relaxed);
        let mut dialling = provider.dial.dial(&provider.endpoint, &report);
        let outcome = self.watch.within(limit, |cx| dialling.as_mut().poll(cx)).await;
        drop(dialling);
        let reached = match phase.into_inner() {
            at if at == DialPhase::Dns as u8 => DialPhase::Dns,
            at if at == DialPhase::Tls as u8 => DialPhase::Tls,
            _ => DialPhase::Connect,
        };
        match outcome {
            Ok(Ok(io)) => Ok(Link::new(io, provider.pool.counters.clone())),
            Ok(Err(error)) => Err(dial_fault(error)),
            Err(which) => {
                let (code, what) = match reached {
                    DialPhase::Dns => (Code::UpstreamDnsFailed, "the name was not resolved"),
                    DialPhase::Connect => {
                        (Code::UpstreamConnectTimeout, "no connection came about")
                    }
                    DialPhase::Tls => (Code::UpstreamConnectTimeout, "TLS was not agreed on"),
                };
                Err(expired(which, code, phase_of(reached), &format!("{what} within {cap:?}")))
            }
        }
    }

    /// Waits until the request is out, then for the status.
    async fn head(
        &mut self,
        exchange: &mut Exchange,
    ) -> Result<(response::Parts, Instant), HeadError> {
        let timeouts = &self.route.timeouts;
        let limit = self.wait(WaitKind::FirstByte, timeouts.send);
        let early = self
            .watch
            .within(limit, |cx| match exchange.poll_head(cx) {
                Poll::Ready(head) => Poll::Ready(Some(head)),
                Poll::Pending if exchange.is_sent() => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            })
            .await
            .map_err(|which| {
                let problem = format!("the request did not leave within {:?}", timeouts.send);
                HeadError::Fault(expired(which, Code::UpstreamSendTimeout, Phase::Send, &problem))
            })?;
        let sent_at = now();
        self.lease.sent();
        let head = match early {
            // Some answer before they have read everything, mostly to refuse it.
            Some(head) => head,
            None => {
                let cap = timeouts.headers.min(timeouts.ttft).min(self.lease.first_token_limit());
                let limit = self.watch.stage(sent_at, cap);
                self.cx.wait.enter(WaitKind::FirstByte, self.detail.clone(), Some(limit), sent_at);
                self.watch.within(limit, |cx| exchange.poll_head(cx)).await.map_err(|which| {
                    let problem = format!("no answer began within {cap:?}");
                    let code = Code::UpstreamHeadersTimeout;
                    HeadError::Fault(expired(which, code, Phase::Headers, &problem))
                })?
            }
        };
        head.map(|head| (head, sent_at)).map_err(HeadError::Wire)
    }

    /// Reads a refusal. However little of its body comes, the status stands.
    async fn rejection(&mut self, exchange: Exchange, head: &response::Parts) -> Fault {
        let body = self.error_body(exchange).await;
        let provider = &self.route.provider;
        let rejection = Rejection::http(
            head.status.as_u16(),
            &head.headers,
            &body,
            provider.secrets(),
            provider.wall_clock(),
        );
        Fault::rejected(rejection, Phase::Headers)
    }

    async fn bad_response(&mut self, exchange: Exchange, kind: &str, expected: &str) -> Fault {
        let body = self.error_body(exchange).await;
        if body.trim_ascii().is_empty() {
            let problem = "the answer has no content";
            return Fault::new(Code::UpstreamEmptyResponse, Phase::FirstToken, problem);
        }
        let what = if looks_like_html(&body) { "an HTML page" } else { "something else" };
        let kind = self.route.provider.secrets().scrub(kind);
        let problem = format!("expected {expected}, got {what} (content-type {kind:?})");
        Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem)
    }

    /// What can be had of a body that only explains something.
    async fn error_body(&mut self, mut exchange: Exchange) -> Bytes {
        let limit = self.watch.stage(now(), self.route.timeouts.error_body);
        let mut body = BytesMut::new();
        while body.len() < MAX_ERROR_BODY {
            match self.watch.within(limit, |cx| exchange.poll_data(cx)).await {
                Ok(Ok(true)) => {
                    let data = exchange.data();
                    let room = MAX_ERROR_BODY - body.len();
                    body.extend_from_slice(&data[..data.len().min(room)]);
                }
                Ok(Ok(false)) => {
                    self.route.provider.give_back(exchange);
                    break;
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        body.freeze()
    }

    /// The body of an answer that is not streamed: at most `most` bytes, all of them until `end`.
    async fn whole_body(
        &mut self,
        mut exchange: Exchange,
        most: usize,
        end: Deadline,
    ) -> Result<Bytes, Fault> {
        let idle = self.route.timeouts.idle;
        let phase = Phase::FirstToken;
        let mut body = BytesMut::new();
        loop {
            let limit = self.watch.stage(now(), idle).min(end);
            let more = self
                .watch
                .within(limit, |cx| exchange.poll_data(cx))
                .await
                .map_err(|which| {
                    let problem = if end.has_passed(now()) {
                        "the answer's body was not complete in time".to_owned()
                    } else {
                        format!("the answer's body stopped for {idle:?}")
                    };
                    expired(which, Code::UpstreamBodyTimeout, phase, &problem)
                })?
                .map_err(|error| {
                    let problem = format!("the answer broke off: {}", error.message);
                    Fault::new(Code::UpstreamStreamTruncated, phase, problem)
                })?;
            if !more {
                break;
            }
            let data = exchange.data();
            if body.len() + data.len() > most {
                let problem = format!("the answer is larger than {most} bytes");
                return Err(Fault::new(Code::UpstreamStreamTooLarge, phase, problem));
            }
            body.extend_from_slice(data);
        }
        self.route.provider.give_back(exchange);
        Ok(body.freeze())
    }

    fn request(&self, body: Bytes) -> Request<Bytes> {
        let provider = &self.route.provider;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, provider.host.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
        // Compression would gather tokens until a block is full.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let id = format!("{}-{}", self.cx.call_id, self.number);
        if let Ok(id) = HeaderValue::try_from(id) {
            headers.insert(HeaderName::from_static("x-client-request-id"), id);
        }
        for (name, value) in provider.headers.iter().chain(provider.credentials(self.lease.key)) {
            headers.insert(name, value.clone());
        }
        request
    }

    /// Tells the wait cell that a stage begins, and returns its end.
    fn wait(&self, kind: WaitKind, cap: Duration) -> Deadline {
        let now = now();
        let limit = self.watch.stage(now, cap);
        self.cx.wait.enter(kind, self.detail.clone(), Some(limit), now);
        limit
    }
}

/// Bounds of an answer that is read whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WholeLimits {
    pub(crate) bytes: usize,
    pub(crate) within: Duration,
}

/// An answer with a good status.
struct Begun {
    exchange: Exchange,
    head: response::Parts,
    sent_at: Instant,
}

enum HeadError {
    Wire(WireError),
    Fault(Fault),
}

impl HeadError {
    fn into_fault(self, answered: bool) -> Fault {
        match self {
            Self::Fault(fault) => fault,
            Self::Wire(error) if error.malformed => {
                let problem = format!("the answer is not HTTP: {}", error.message);
                Fault::new(Code::UpstreamBadResponse, Phase::Headers, problem)
            }
            Self::Wire(error) => {
                let when = if answered { "in the middle of its head" } else { "before an answer" };
                let problem = format!("the connection broke {when}: {}", error.message);
                Fault::new(Code::UpstreamConnectFailed, Phase::Headers, problem)
            }
        }
    }
}

/// The fault of a stage whose limit passed.
pub(crate) fn expired(which: Expired, code: Code, phase: Phase, problem: &str) -> Fault {
    match which {
        Expired::Stage => Fault::new(code, phase, problem),
        Expired::Deadline => {
            let problem = format!("the deadline passed in phase {phase}");
            Fault::new(Code::DeadlineExceeded, phase, problem)
        }
    }
}

fn dial_fault(error: DialError) -> Fault {
    let code = match error.phase {
        DialPhase::Dns => Code::UpstreamDnsFailed,
        DialPhase::Connect => Code::UpstreamConnectFailed,
        DialPhase::Tls => Code::UpstreamTlsFailed,
    };
    Fault::new(code, phase_of(error.phase), error.message)
}

const fn phase_of(phase: DialPhase) -> Phase {
    match phase {
        DialPhase::Dns => Phase::Dns,
        DialPhase::Connect => Phase::Connect,
        DialPhase::Tls => Phase::Tls,
    }
}

fn no_answer(error: NoAnswer) -> Fault {
    match error {
        NoAnswer::Fault(codec::Fault::Malformed(problem)) => {
            Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem)
        }
        NoAnswer::Fault(codec::Fault::Rejected(rejection)) => {
            Fault::rejected(rejection, Phase::FirstToken)
        }
        NoAnswer::Unfinished(_) => {
            Fault::new(Code::UpstreamEmptyResponse, Phase::FirstToken, "the answer is empty")
        }
    }
}

enum ContentKind {
    Events,
    Lines,
    Json,
    Other(String),
}

impl ContentKind {
    /// Whether this is how a provider of this kind streams. Ollama's lines are sometimes said to be
    /// a document.
    const fn is_stream_of(&self, kind: Kind) -> bool {
        match kind {
            Kind::Ollama => matches!(self, Self::Lines),
            Kind::OpenAi | Kind::Responses | Kind::Anthropic => matches!(self, Self::Events),
        }
    }
}

fn content_kind(headers: &HeaderMap) -> ContentKind {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "text/event-stream" => ContentKind::Events,
        "application/x-ndjson" => ContentKind::Lines,
        "application/json" => ContentKind::Json,
        json if json.ends_with("+json") => ContentKind::Json,
        _ => ContentKind::Other(kind),
    }
}

/// The provider's own id of the request, for its support.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let value = ["x-request-id", "request-id", "apim-request-id"]
        .into_iter()
        .find_map(|name| headers.get(name)?.to_str().ok())?;
    Some(value.chars().take(128).collect())
}

const MAX_ERROR_BODY: usize = 64 * 1024;
const MAX_WHOLE_BODY: usize = 8 * 1024 * 1024;
