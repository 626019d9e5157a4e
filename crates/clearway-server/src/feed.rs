//! What is told piece by piece, independent of how it travels: as server-sent events (here) or over
//! a WebSocket (`ws`).
//!
//! A feed is polled by the connection that carries it: no task and no channel stand in between.
//!
//! **Invariant:** a feed never just stops. It ends with its own last item, or with one that says why
//! it ends early.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use clearway_core::{Code, Failure};
use http_body::Frame;
use serde_json::Value;

use crate::app::App;
use crate::json::put_json;
use crate::sse::{self, Heartbeat};
use crate::stop::Stage;

/// One thing that is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    /// With which a client that comes back says what it has; `None` for what is told only once.
    pub id: Option<String>,
    pub data: Value,
}

/// Whether a feed has more to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    No,
}

/// See the module.
pub(crate) trait Feed: fmt::Debug + Send + Unpin + 'static {
    /// A feed without an end of its own is let go at the soft stop, as nobody may wait for it.
    const ENDLESS: bool = false;

    /// Appends what is due.
    fn poll_due(&mut self, cx: &mut Context<'_>, due: &mut Vec<Item>) -> Poll<More>;

    /// Told when there was nothing to tell for a while.
    fn heartbeat(&mut self) -> Value;

    /// Why the feed ends early.
    fn failure(&mut self, failure: &Failure) -> Value;

    /// Takes in what a peer says who can say something; what there is to answer is due next.
    fn hear(&mut self, _text: &str) {}
}

/// What a feed says when the server stops in the middle.
pub(crate) fn stopping() -> Failure {
    let text = "the server stops; the run goes on when it is back, and so can this stream";
    Failure::new(Code::ShuttingDown, text).retryable()
}

/// An answer that carries a feed as server-sent events.
pub(crate) fn stream<F: Feed>(app: App, feed: F) -> Response {
    let heartbeat = Heartbeat::new(app.options.limits.heartbeat);
    sse::response(Body::new(Events { app, feed, heartbeat, due: Vec::new(), over: false }))
}

#[derive(Debug)]
struct Events<F> {
    app: App,
    feed: F,
    heartbeat: Heartbeat,
    due: Vec<Item>,
    over: bool,
}

impl<F: Feed> http_body::Body for Events<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let stage = this.app.stop.stage();
        match this.feed.poll_due(cx, &mut this.due) {
            Poll::Ready(More::Yes) => {}
            Poll::Ready(More::No) => this.over = true,
            Poll::Pending if stage == Stage::Hard || (F::ENDLESS && stage >= Stage::Soft) => {
                let data = this.feed.failure(&stopping());
                this.due.push(Item { id: None, data });
                this.over = true;
            }
            Poll::Pending if this.heartbeat.is_due(cx) => {
                let data = this.feed.heartbeat();
                this.due.push(Item { id: None, data });
            }
            Poll::Pending => return Poll::Pending,
        }
        if this.due.is_empty() {
            // Nothing to say and nothing to wait for: only at the end.
            if !this.over {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(None);
        }
        let mut piece = BytesMut::new();
        for Item { id, data } in this.due.drain(..) {
            if let Some(id) = id {
                piece.extend_from_slice(b"id: ");
                piece.extend_from_slice(id.as_bytes());
                piece.extend_from_slice(b"\n");
            }
            piece.extend_from_slice(b"data: ");
            put_json(&mut piece, data.to_string().as_bytes());
            piece.extend_from_slice(b"\n\n");
        }
        this.heartbeat.note();
        Poll::Ready(Some(Ok(Frame::data(piece.freeze()))))
    }
}
