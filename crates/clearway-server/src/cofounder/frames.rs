//! How a run looks in a co-founder stream: deltas, progress, and one `final` or `error`.
//!
//! **Invariant:** `final.text` equals the deltas joined, byte for byte, counted from the last
//! `progress` frame whose message begins with `output.reset`. So the renderer keeps the text that
//! stands; after a reset it sends what is left of it once more.

use bytes::BytesMut;
use clearway_core::event::{Body, Delta, Event, EventKind, Fact, Part};
use clearway_core::{Code, EventId, Failure, Message};
use clearway_engine::Error;
use serde_json::{Value, json};

use crate::json::{put_escaped, put_json};
use crate::sse::{Next, Render, put_id, put_shared};

/// The slot of delta frames in an event's frame cache.
const SLOT: usize = 1;

/// See the module.
#[derive(Debug)]
pub(super) struct ChatFrames {
    /// As the dialect writes it.
    thread_id: String,
    /// What to say first about a run that waits.
    queued: Option<String>,
    /// The last frame that the client has; frames up to it are not sent again.
    seen: Option<EventId>,
    /// Number and lease of the last event.
    last: Option<(u64, u32)>,
    /// The deltas that stand.
    text: String,
    /// Number of a superstep's last event, and how long the text was then.
    marks: Vec<(u64, usize)>,
    /// The last event, for a `final` that needs the stored reply first.
    end: Option<EventId>,
    /// Part of the present event's first frame: above 0 where a reset may stand before it.
    part: u8,
}

impl ChatFrames {
    pub(super) fn new(thread_id: String, queued: Option<String>, seen: Option<EventId>) -> Self {
        Self {
            thread_id,
            queued,
            seen,
            last: None,
            text: String::new(),
            marks: Vec::new(),
            end: None,
            part: 0,
        }
    }

    /// Whether the client lacks this frame. Numbers are used again after a crash, under a higher
    /// fence: what the client saw under a lower one is void.
    fn is_new(&self, id: EventId) -> bool {
        self.seen
            .is_none_or(|seen| id.fence > seen.fence || (id.seq, id.part) > (seen.seq, seen.part))
    }

    fn delta(&mut self, event: &Event, delta: &Delta, out: &mut BytesMut) {
        if delta.part != Part::Text || delta.text().is_empty() {
            return;
        }
        self.text.push_str(delta.text());
        let id = self.id(event);
        if self.is_new(id) && self.part == 0 {
            put_shared(event, SLOT, out, |event, out| put_delta(event.id(), delta.text(), out));
        } else if self.is_new(id) {
            put_delta(id, delta.text(), out);
        }
    }

    fn progress(&self, id: EventId, message: &str, out: &mut BytesMut) {
        self.frame(id, &json!({"type": "progress", "message": message}), out);
    }

    fn frame(&self, id: EventId, data: &Value, out: &mut BytesMut) {
        if self.is_new(id) {
            put_id(out, id);
            put_data(data, out);
        }
    }

    fn fact(&mut self, event: &Event, fact: &Fact, out: &mut BytesMut) -> Next {
        let id = self.id(event);
        let data = || fact.json();
        match fact.kind {
            EventKind::RunCreated => {
                if let Some(queued) = self.queued.take() {
                    self.progress(id, &queued, out);
                }
            }
            EventKind::RunStarted => {
                let attempt = data()["attempt"].as_u64().unwrap_or(1);
                if attempt > 1 {
                    self.progress(id, &format!("taken up again (attempt {attempt})"), out);
                }
            }
            EventKind::NodeStarted => {
                let text = format!("started: {}", data()["node"].as_str().unwrap_or_default());
                self.progress(id, &text, out);
            }
            EventKind::NodeCompleted => self.marks.push((event.seq, self.text.len())),
            EventKind::Progress => {
                self.progress(id, data()["message"].as_str().unwrap_or_default(), out);
            }
            EventKind::HistoryTrimmed => self.progress(id, &trimmed(&data()), out),
            EventKind::OutputReset => {
                let data = data();
                let reason = data["reason"].as_str().unwrap_or("restarted");
                self.reset(id, data["after"].as_u64(), reason, out);
            }
            EventKind::CancelRequested => {
                let by = data()["by"].as_str().unwrap_or("request").to_owned();
                self.progress(id, &format!("cancel requested by {by}"), out);
            }
            EventKind::RunReleased => {
                let text = "handed back by a server that stops; it goes on as soon as one is there";
                self.progress(id, text, out);
            }
            EventKind::RunEnded => return self.ended(id, &data(), out),
            // Their content reaches this dialect as deltas, or is meant for other clients.
            EventKind::ProviderAttempt => {
                let data = data();
                let code = data["outcome"].as_str().unwrap_or_default();
                if code != Code::Cancelled.as_str() {
                    self.progress(id, &format!("a provider call failed: {code}"), out);
                }
            }
            EventKind::RunParked => {
                let text = format!("waiting: {}", data()["detail"].as_str().unwrap_or_default());
                self.progress(id, &text, out);
            }
            EventKind::NodeFailed => {
                let data = data();
                let code = data["error"]["code"].as_str().unwrap_or_default();
                let node = data["node"].as_str().unwrap_or_default();
                let next = data["next"].as_str().unwrap_or_default();
                self.progress(id, &format!("{node} failed ({code}); next: {next}"), out);
            }
            EventKind::ArtifactSaved => {
                let text = format!("saved: {}", data()["name"].as_str().unwrap_or_default());
                self.progress(id, &text, out);
            }
            EventKind::ChildStarted => {
                let text = format!("started: {}", data()["agent"].as_str().unwrap_or_default());
                self.progress(id, &text, out);
            }
            EventKind::Interrupt => self.progress(id, "waiting for an answer", out),
            EventKind::ToolStarted => {
                let text = format!("calling: {}", data()["tool"].as_str().unwrap_or_default());
                self.progress(id, &text, out);
            }
            EventKind::ToolCompleted => {
                let data = data();
                let tool = data["tool"].as_str().unwrap_or_default();
                let text = match data["error"]["code"].as_str() {
                    None => format!("done: {tool}"),
                    Some(code) => format!("{tool} failed ({code})"),
                };
                self.progress(id, &text, out);
            }
            EventKind::MessageStarted => self.next_message(id, out),
            EventKind::MessageDelta | EventKind::MessageCompleted | EventKind::Custom => {}
        }
        Next::Event
    }

    /// What the model said before it called a tool is a paragraph of its own.
    fn next_message(&mut self, id: EventId, out: &mut BytesMut) {
        if self.text.is_empty() || self.text.ends_with('\n') {
            return;
        }
        self.text.push_str("\n\n");
        if self.is_new(id) {
            put_delta(id, "\n\n", out);
        }
    }

    /// Output after `after` is void: says so, and sends what stands from the beginning.
    fn reset(&mut self, id: EventId, after: Option<u64>, reason: &str, out: &mut BytesMut) {
        self.marks.retain(|&(seq, _)| after.is_some_and(|after| seq <= after));
        self.text.truncate(self.marks.last().map_or(0, |&(_, length)| length));
        self.progress(id, &format!("output.reset: what came before is void ({reason})"), out);
        let again = EventId { part: id.part + 1, ..id };
        if !self.text.is_empty() && self.is_new(again) {
            put_delta(again, &self.text, out);
        }
    }

    fn ended(&mut self, id: EventId, data: &Value, out: &mut BytesMut) -> Next {
        if data["status"] != "success" {
            let failure = match &data["error"] {
                Value::Null => Failure::new(Code::Internal, "the run ended without saying why"),
                error => Failure::from_json(error),
            };
            self.error(Some(id), &failure, out);
            return Next::Event;
        }
        // A log whose deltas were dropped by retention, or an agent that answers in one piece.
        if self.text.is_empty() && !data["reply_message_id"].is_null() {
            self.end = Some(id);
            return Next::Reply;
        }
        self.final_frame(EventId { part: id.part + 1, ..id }, out);
        Next::Event
    }

    fn final_frame(&self, id: EventId, out: &mut BytesMut) {
        if self.is_new(id) {
            put_id(out, id);
            out.extend_from_slice(b"data: {\"type\":\"final\",\"text\":\"");
            put_escaped(out, &self.text);
            out.extend_from_slice(b"\"}\n\n");
        }
    }

    fn error(&self, id: Option<EventId>, failure: &Failure, out: &mut BytesMut) {
        let data = json!({"type": "error", "detail": {
            "error_type": failure.code.as_str(),
            "error_message": failure.message,
            "thread_id": self.thread_id,
        }});
        match id {
            Some(id) => self.frame(id, &data, out),
            None => put_data(&data, out),
        }
    }
}

impl Render for ChatFrames {
    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Next {
        let loss = self.loss(event);
        self.last = Some((event.seq, event.fence));
        self.part = if loss == Loss::Impossible { 0 } else { RESET_FRAMES };
        if loss == Loss::Certain {
            // The numbers from here on were used before, so what they said is void, too.
            self.reset(event.id(), event.seq.checked_sub(1), "lost in a crash", out);
        }
        match &event.body {
            Body::Delta(delta) => {
                self.delta(event, delta, out);
                Next::Event
            }
            Body::Fact(fact) => self.fact(event, fact, out),
        }
    }

    fn reply(&mut self, reply: Result<Option<Message>, Error>, out: &mut BytesMut) {
        let id = self.end.unwrap_or(EventId::new(0, 0));
        match reply {
            Ok(message) => {
                self.text = message.map(|message| message.content.text()).unwrap_or_default();
                if !self.text.is_empty() && self.is_new(id) {
                    put_delta(id, &self.text, out);
                }
                self.final_frame(EventId { part: id.part + 1, ..id }, out);
            }
            Err(Error(failure)) => self.error(None, &failure, out),
        }
    }

    fn failure(&mut self, failure: &Failure, out: &mut BytesMut) {
        // No id: it is not an event of the run, and a client resumes after the last one that is.
        self.error(None, failure, out);
    }
}

/// Whether events that this client saw are gone, and the log does not say so itself because none
/// of them had reached the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Impossible,
    /// A lease begins here: another client may have lost something.
    Possible,
    Certain,
}

/// Frames of a reset: what it is, and the text that stands.
const RESET_FRAMES: u8 = 2;

impl ChatFrames {
    fn loss(&self, event: &Event) -> Loss {
        let is_reset =
            matches!(&event.body, Body::Fact(fact) if fact.kind == EventKind::OutputReset);
        let Some((last_seq, last_fence)) = self.last else { return Loss::Impossible };
        if is_reset || event.fence == last_fence {
            return Loss::Impossible;
        }
        // Numbers that come again were used for what is lost. Of a client that resumes only the
        // last number is known; the first event beyond its lease tells whether that was lost.
        let is_first_beyond = |seen: &EventId| {
            seen.fence != u32::MAX && event.fence > seen.fence && last_fence <= seen.fence
        };
        let lost_by_client =
            self.seen.filter(is_first_beyond).is_some_and(|seen| event.seq <= seen.seq);
        // It was told about its loss, and then lost the connection before the text came again.
        let told = |seen: EventId| {
            (seen.seq, seen.fence) == (event.seq, event.fence) && seen.part < RESET_FRAMES
        };
        match event.seq <= last_seq || lost_by_client || self.seen.is_some_and(told) {
            true => Loss::Certain,
            false => Loss::Possible,
        }
    }

    /// The id of the event's first frame.
    const fn id(&self, event: &Event) -> EventId {
        EventId { seq: event.seq, fence: event.fence, part: self.part }
    }
}

fn trimmed(data: &Value) -> String {
    let number = |name: &str| data[name].as_u64().unwrap_or_default();
    format!(
        "history.trimmed: the oldest {} messages were left out of the prompt, {} kept (budget {} tokens)",
        number("dropped_messages"),
        number("kept_messages"),
        number("budget_tokens")
    )
}

fn put_delta(id: EventId, text: &str, out: &mut BytesMut) {
    put_id(out, id);
    out.extend_from_slice(b"data: {\"type\":\"delta\",\"text\":\"");
    put_escaped(out, text);
    out.extend_from_slice(b"\"}\n\n");
}

fn put_data(data: &Value, out: &mut BytesMut) {
    out.extend_from_slice(b"data: ");
    // A value always has a text; written this way it takes half the time of `Display`.
    put_json(out, &serde_json::to_vec(data).unwrap_or_default());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests;
