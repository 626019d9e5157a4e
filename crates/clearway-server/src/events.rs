//! A run's events as everybody's own addresses show them: one JSON shape, streamed or listed.
//!
//! `{"seq", "id", "kind", "at", "data"}`. As a stream each is an SSE event named after its kind.

use bytes::BytesMut;
use clearway_core::event::{Body, Event, EventKind};
use clearway_core::{EventId, Failure, Message, Timestamp};
use clearway_engine::Error;
use serde_json::{Value, json};

use crate::json::{put_json, put_number, put_string};
use crate::sse::{Next, Render, put_id, put_shared};

/// The slot of this shape in an event's frame cache.
const SLOT: usize = 0;

/// Renders events in the shape of the module.
#[derive(Debug, Default)]
pub(crate) struct EventFrames;

impl Render for EventFrames {
    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Next {
        put_shared(event, SLOT, out, put_frame);
        Next::Event
    }

    fn reply(&mut self, _reply: Result<Option<Message>, Error>, _out: &mut BytesMut) {}

    fn failure(&mut self, failure: &Failure, out: &mut BytesMut) {
        // No id: it is not an event of the run, and a client resumes after the last one that is.
        out.extend_from_slice(b"event: error\ndata: ");
        out.extend_from_slice(failure.to_json().to_string().as_bytes());
        out.extend_from_slice(b"\n\n");
    }
}

fn put_frame(event: &Event, out: &mut BytesMut) {
    put_id(out, event.id());
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.kind().as_str().as_bytes());
    out.extend_from_slice(b"\ndata: ");
    put_event(event, out);
    out.extend_from_slice(b"\n\n");
}

/// One event as JSON.
pub(crate) fn put_event(event: &Event, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"seq\":");
    put_number(out, event.seq);
    out.extend_from_slice(b",\"id\":\"");
    let EventId { seq, fence, part } = event.id();
    put_number(out, seq);
    out.extend_from_slice(b"-");
    put_number(out, u64::from(fence) * 256 + u64::from(part));
    out.extend_from_slice(b"\",\"kind\":\"");
    out.extend_from_slice(event.kind().as_str().as_bytes());
    out.extend_from_slice(b"\",\"at\":\"");
    put_time(out, event.at);
    out.extend_from_slice(b"\",\"data\":");
    match &event.body {
        Body::Delta(delta) => {
            out.extend_from_slice(b"{\"message_id\":\"");
            let mut id = [0; 36];
            out.extend_from_slice(delta.message.hyphenated().encode_lower(&mut id).as_bytes());
            out.extend_from_slice(b"\",\"part\":\"");
            out.extend_from_slice(delta.part.as_str().as_bytes());
            out.extend_from_slice(b"\",\"text\":");
            put_string(out, delta.text());
            out.extend_from_slice(b"}");
        }
        // Facts are kept as compact JSON, so they hold no line break.
        Body::Fact(fact) => put_json(out, &fact.data),
    }
    out.extend_from_slice(b"}");
}

/// Appends a time in the form of [`Timestamp`]'s `Display`.
fn put_time(out: &mut BytesMut, at: Timestamp) {
    use std::fmt::Write as _;
    // Writing to a buffer that grows cannot fail.
    let _ = write!(out, "{at}");
}

/// A page of events for `Accept: application/json`.
pub(crate) fn page(events: &[Event], next: Option<u64>) -> BytesMut {
    let mut out = BytesMut::with_capacity(256 + events.len() * 128);
    out.extend_from_slice(b"{\"events\":[");
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            out.extend_from_slice(b",");
        }
        put_event(event, &mut out);
    }
    out.extend_from_slice(b"],\"next\":");
    match next {
        Some(next) => put_number(&mut out, next),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}");
    out
}

/// The receipt of a cancel among a run's last events.
pub(crate) fn receipt(events: &[Event]) -> Option<Value> {
    let of = |event: &Event| match &event.body {
        Body::Fact(fact) if fact.kind == EventKind::CancelRequested => Some(fact.json()),
        Body::Fact(_) | Body::Delta(_) => None,
    };
    let data = events.iter().rev().find_map(of)?;
    Some(json!({"by": data["by"], "socket_closed": data["receipt"]["socket_closed"]}))
}

#[cfg(test)]
mod tests;
