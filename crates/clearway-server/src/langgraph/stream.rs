//! Bodies of answers that take as long as a run: its stream, and its final state.
//!
//! As in the other doors, no task and no channel stand between the run and the socket. A comment goes
//! out every [`BEAT`], whether or not anything else does: clients learn the interval and take silence
//! for a dead link.
//!
//! **Invariant:** the run's row says how it ended before the stream of it closes.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use clearway_core::event::Event;
use clearway_core::{Code, Failure};
use clearway_engine::Subscription;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};
use http_body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, interval_at};

use super::facts::{self, Supply};
use super::frames::{Frames, HEARTBEAT, put_json};
use super::modes::{Item, Projector};
use crate::app::App;
use crate::sse::CancelGuard;
use crate::stop::Stage;

/// Between two comments.
pub(super) const BEAT: Duration = Duration::from_secs(5);
/// The largest piece that leaves at once.
const PIECE: usize = 64 << 10;

pub(super) fn beat() -> Interval {
    let mut beat = interval_at(Instant::now() + BEAT, BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat
}

/// A run's log as items: reads what each event needs before it is shown.
pub(super) struct Reader {
    app: App,
    log: Subscription,
    pub(super) run: Projector,
    due: Vec<Event>,
    taken: usize,
    reading: Option<Pin<Box<dyn Future<Output = Supply> + Send>>>,
    is_over: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("run", &self.run.facts.run).finish_non_exhaustive()
    }
}

/// What a poll of a [`Reader`] found.
pub(super) enum Found {
    /// Items, perhaps none, and maybe more at once.
    Items,
    Over,
    Failed(Failure),
}

impl Reader {
    pub(super) fn new(app: App, log: Subscription, run: Projector) -> Self {
        Self { app, log, run, due: Vec::new(), taken: 0, reading: None, is_over: false }
    }

    /// Appends what one event means.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, out: &mut Vec<Item>) -> Poll<Found> {
        loop {
            if let Some(reading) = &mut self.reading {
                let Poll::Ready(supply) = reading.as_mut().poll(cx) else { return Poll::Pending };
                self.reading = None;
                self.run.supply(supply);
            }
            if let Some(event) = self.due.get(self.taken) {
                if let Some(need) = self.run.needs(event) {
                    let of = Arc::clone(&self.run.facts);
                    self.reading = Some(Box::pin(facts::supply(self.app.clone(), of, need)));
                    continue;
                }
                self.run.event(event, out);
                self.taken += 1;
                return Poll::Ready(Found::Items);
            }
            self.due.clear();
            self.taken = 0;
            if self.is_over {
                return Poll::Ready(Found::Over);
            }
            match self.log.poll_next(cx, &mut self.due) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.is_over = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Found::Failed(error.0)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// One run's stream.
#[derive(Debug)]
pub(super) struct RunStream {
    app: App,
    reader: Option<Reader>,
    frames: Frames,
    items: Vec<Item>,
    out: BytesMut,
    beat: Interval,
    guard: Option<CancelGuard>,
}

impl RunStream {
    pub(super) fn new(
        app: App,
        reader: Reader,
        frames: Frames,
        guard: Option<CancelGuard>,
    ) -> Self {
        Self {
            app,
            reader: Some(reader),
            frames,
            items: Vec::new(),
            out: BytesMut::with_capacity(1024),
            beat: beat(),
            guard,
        }
    }

    fn fail(&mut self, failure: &Failure) {
        self.out.extend_from_slice(b"event: error\r\ndata: ");
        put_json(&error(failure), &mut self.out);
        self.out.extend_from_slice(b"\r\n\r\n");
        self.reader = None;
    }
}

/// A failure as LangGraph's clients read it.
pub(super) fn error(failure: &Failure) -> Value {
    json!({"error": failure.code.as_str(), "message": failure.message})
}

/// Why a stream ends although its run goes on.
pub(super) fn stopping() -> Failure {
    let text = "the server stops; the run goes on when it is back, and so can this stream";
    Failure::new(Code::ShuttingDown, text).retryable()
}

impl http_body::Body for RunStream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let mut is_pending = false;
        while let Some(reader) = &mut this.reader {
            if this.out.len() >= PIECE {
                break;
            }
            match reader.poll(cx, &mut this.items) {
                Poll::Ready(Found::Items) => {
                    for item in this.items.drain(..) {
                        this.frames.put(&item, &reader.run, &mut this.out);
                    }
                }
                Poll::Ready(Found::Over) => this.reader = None,
                Poll::Ready(Found::Failed(failure)) => this.fail(&failure),
                Poll::Pending => {
                    is_pending = true;
                    break;
                }
            }
        }
        if is_pending && this.out.is_empty() && this.app.stop.stage() == Stage::Hard {
            this.fail(&stopping());
        }
        if this.reader.is_none() {
            if let Some(guard) = this.guard.take() {
                guard.disarm();
            }
        } else if this.beat.poll_tick(cx).is_ready() {
            this.out.extend_from_slice(HEARTBEAT);
            // The next tick must wake this body, too.
            let _ = this.beat.poll_tick(cx);
        }
        if !this.out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(this.out.split().freeze()))));
        }
        if this.reader.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// A body that says something at last, and that it is there until then.
pub(super) struct Waiting {
    outcome: Pin<Box<dyn Future<Output = Value> + Send>>,
    is_over: bool,
    beat: Interval,
    guard: Option<CancelGuard>,
}

impl Waiting {
    pub(super) fn new(
        outcome: impl Future<Output = Value> + Send + 'static,
        guard: Option<CancelGuard>,
    ) -> Self {
        Self { outcome: Box::pin(outcome), is_over: false, beat: beat(), guard }
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(Body::new(self));
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }
}

impl http_body::Body for Waiting {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.is_over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(value) = this.outcome.as_mut().poll(cx) {
            this.is_over = true;
            if let Some(guard) = this.guard.take() {
                guard.disarm();
            }
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from(value.to_string())))));
        }
        if this.beat.poll_tick(cx).is_ready() {
            let _ = this.beat.poll_tick(cx);
            // Parsers of JSON pass over it.
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"\n")))));
        }
        Poll::Pending
    }
}

/// The answer that carries a stream.
pub(super) fn answer<B>(body: B) -> Response
where
    B: http_body::Body<Data = Bytes, Error = axum::Error> + Send + 'static,
{
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}
