//! Server-sent events: a run's log as the body of an answer.
//!
//! The body polls the run's cursor itself: no task and no channel stand between the run and the
//! socket. Whatever is due leaves as one piece. How an event looks is the [`Render`]er's business.
//!
//! **Invariant:** a stream never just stops. It ends with the run's end, or with a frame that says
//! why it ends early.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use clearway_core::event::Event;
use clearway_core::{Code, EventId, Failure, Message, RunId};
use clearway_engine::{Error, Subscription};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep};

use crate::app::App;
use crate::json::put_number;
use crate::stop::Stage;

/// How a run's events look to one kind of client.
pub(crate) trait Render: fmt::Debug + Send + Unpin + 'static {
    /// Appends the frames of one event.
    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Next;

    /// Appends what follows when the reply that was asked for is here.
    fn reply(&mut self, reply: Result<Option<Message>, Error>, out: &mut BytesMut);

    /// Appends the frame that says why the stream ends early.
    fn failure(&mut self, failure: &Failure, out: &mut BytesMut);
}

/// What a renderer needs after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Event,
    /// The run's reply; only after the last event.
    Reply,
}

/// A run's stream as the body of an answer.
pub(crate) struct Stream<R> {
    app: App,
    run: RunId,
    source: Source,
    render: R,
    /// Events taken from the log and not rendered yet, and how far rendering is.
    due: Vec<Event>,
    rendered: usize,
    out: BytesMut,
    heartbeat: Heartbeat,
    /// Cancels the run when the stream is dropped before its end.
    guard: Option<CancelGuard>,
}

enum Source {
    Log(Subscription),
    Reply(Pin<Box<dyn Future<Output = Result<Option<Message>, Error>> + Send>>),
    Over,
}

impl<R: fmt::Debug> fmt::Debug for Stream<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("run", &self.run)
            .field("render", &self.render)
            .finish_non_exhaustive()
    }
}

impl<R: Render> Stream<R> {
    pub(crate) fn new(app: App, log: Subscription, render: R, guard: Option<CancelGuard>) -> Self {
        let heartbeat = Heartbeat::new(app.options.limits.heartbeat);
        Self {
            app,
            run: log.run(),
            source: Source::Log(log),
            render,
            due: Vec::new(),
            rendered: 0,
            out: BytesMut::with_capacity(512),
            heartbeat,
            guard,
        }
    }

    /// The answer that carries the stream.
    pub(crate) fn into_response(self) -> Response<Body> {
        response(Body::new(self))
    }

    /// Renders due events until the piece is large enough. `true` when the log is done with.
    fn render_due(&mut self) {
        while let Some(event) = self.due.get(self.rendered) {
            if self.out.len() >= PIECE {
                return;
            }
            self.rendered += 1;
            match self.render.event(event, &mut self.out) {
                Next::Event => {}
                Next::Reply => {
                    let (engine, run) = (self.app.engine.clone(), self.run);
                    self.source = Source::Reply(Box::pin(async move {
                        // It ended here a moment ago, so this is in memory.
                        let record = engine.wait(run).await?;
                        engine.reply(&record).await
                    }));
                }
            }
        }
        self.due.clear();
        self.rendered = 0;
    }

    fn end_early(&mut self, failure: &Failure) {
        self.render.failure(failure, &mut self.out);
        self.source = Source::Over;
        // The run was not left by its client; it was the server that could not go on.
        self.disarm();
    }

    fn disarm(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }

    fn take_piece(&mut self) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.heartbeat.note();
        Poll::Ready(Some(Ok(Frame::data(self.out.split().freeze()))))
    }
}

impl<R: Render> http_body::Body for Stream<R> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        loop {
            this.render_due();
            if !this.out.is_empty() {
                return this.take_piece();
            }
            let pending = match &mut this.source {
                Source::Over => {
                    this.disarm();
                    return Poll::Ready(None);
                }
                Source::Log(log) => match log.poll_next(cx, &mut this.due) {
                    Poll::Ready(Ok(true)) => false,
                    Poll::Ready(Ok(false)) => {
                        this.source = Source::Over;
                        false
                    }
                    Poll::Ready(Err(error)) => {
                        this.end_early(&error.0);
                        false
                    }
                    Poll::Pending => true,
                },
                Source::Reply(reply) => match reply.as_mut().poll(cx) {
                    Poll::Ready(reply) => {
                        this.source = Source::Over;
                        this.render.reply(reply, &mut this.out);
                        false
                    }
                    Poll::Pending => true,
                },
            };
            if !pending {
                continue;
            }
            if this.app.stop.stage() == Stage::Hard {
                let text =
                    "the server stops; the run goes on when it is back, and so can this stream";
                this.end_early(&Failure::new(Code::ShuttingDown, text).retryable());
                continue;
            }
            if !this.heartbeat.is_due(cx) {
                return Poll::Pending;
            }
            this.out.extend_from_slice(HEARTBEAT);
        }
    }
}

/// An answer of server-sent events.
pub(crate) fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would turn a stream of tokens into one late block.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// The largest piece that leaves at once.
const PIECE: usize = 64 << 10;
/// A comment, which clients skip.
const HEARTBEAT: &[u8] = b": alive\n\n";

/// A timer that is armed once and looks, when it fires, whether anything was sent meanwhile.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    every: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
    waker: Option<Waker>,
}

impl Heartbeat {
    pub(crate) fn new(every: Duration) -> Self {
        let sleep = Box::pin(tokio::time::sleep(every));
        Self { every, last: Instant::now(), sleep, waker: None }
    }

    /// Something was sent.
    pub(crate) fn note(&mut self) {
        self.last = Instant::now();
    }

    pub(crate) fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if known && !self.sleep.is_elapsed() {
                return false;
            }
            self.waker = Some(cx.waker().clone());
            if self.sleep.as_mut().poll(cx).is_pending() {
                return false;
            }
            self.waker = None;
            let next = self.last + self.every;
            if next <= Instant::now() {
                return true;
            }
            self.sleep.as_mut().reset(next);
        }
    }
}

/// Cancels a run when it is dropped: what `?on_disconnect=cancel` asks for.
#[derive(Debug)]
pub(crate) struct CancelGuard {
    app: App,
    run: Option<RunId>,
}

impl CancelGuard {
    pub(crate) const fn new(app: App, run: RunId) -> Self {
        Self { app, run: Some(run) }
    }

    /// The run has ended, or may go on without a reader.
    pub(crate) fn disarm(mut self) {
        self.run = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        // At the hard stop it is the server that leaves; the run goes on when it is back.
        if let Some(run) = self.run.take()
            && self.app.stop.stage() < Stage::Hard
        {
            self.app.cancel_detached(run);
        }
    }
}

/// The start of a frame: `id: <seq>-<fence*256+part>`.
pub(crate) fn put_id(out: &mut BytesMut, id: EventId) {
    out.extend_from_slice(b"id: ");
    put_number(out, id.seq);
    out.extend_from_slice(b"-");
    put_number(out, u64::from(id.fence) * 256 + u64::from(id.part));
    out.extend_from_slice(b"\n");
}

/// A frame of one event that looks the same to every reader: rendered in place, or taken from the
/// cache when the run has several readers.
pub(crate) fn put_shared(
    event: &Event,
    slot: usize,
    out: &mut BytesMut,
    render: impl FnOnce(&Event, &mut BytesMut),
) {
    if event.frames.is_shared() {
        let frame = event.frames.get_or_render(slot, || {
            let mut frame = BytesMut::with_capacity(128);
            render(event, &mut frame);
            frame.freeze()
        });
        out.extend_from_slice(frame);
    } else {
        render(event, out);
    }
}
