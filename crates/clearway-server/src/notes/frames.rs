//! How a run looks in the knowledge agent's stream: typed chunks, then `complete` and `done`.
//!
//! `progress`, `sources`, `chunk` (a piece of the answer), `reset` (what was streamed is void, the
//! answer begins anew), `citations`; at the end `complete` with the whole response and `done`, or
//! one `error`.

use bytes::BytesMut;
use clearway_core::event::{Body, Event, EventKind, Fact, Part};
use clearway_core::{Code, EventId, Failure, Message, Timestamp};
use clearway_engine::Error;
use serde_json::{Value, json};

use super::response;
use crate::json::put_json;
use crate::sse::{Next, Render, put_id};

#[derive(Debug, Default)]
pub(super) struct NoteFrames {
    end: Option<EventId>,
    /// When the last event was.
    last: Option<Timestamp>,
}

impl NoteFrames {
    fn frame(id: Option<EventId>, data: &Value, out: &mut BytesMut) {
        if let Some(id) = id {
            put_id(out, id);
        }
        out.extend_from_slice(b"data: ");
        put_json(out, data.to_string().as_bytes());
        out.extend_from_slice(b"\n\n");
    }

    fn fact(&mut self, event: &Event, fact: &Fact, out: &mut BytesMut) -> Next {
        let id = event.id();
        let put = |data: &Value, out: &mut BytesMut| Self::frame(Some(id), data, out);
        let progress = |message: &str, out: &mut BytesMut| {
            put(&json!({"type": "progress", "message": message}), out);
        };
        match fact.kind {
            EventKind::Progress => {
                progress(fact.json()["message"].as_str().unwrap_or_default(), out);
            }
            EventKind::OutputReset => {
                let data = fact.json();
                put(&json!({"type": "reset", "message": data["reason"]}), out);
            }
            EventKind::Custom => {
                let data = fact.json();
                let data_of = &data["data"];
                match data["name"].as_str().unwrap_or_default() {
                    "sources" => {
                        put(&json!({"type": "sources", "sources": data_of["sources"]}), out)
                    }
                    "citations" => put(
                        &json!({
                            "type": "citations",
                            "citations": data_of["citations"],
                            "check": data_of["check"],
                        }),
                        out,
                    ),
                    _ => {}
                }
            }
            EventKind::RunEnded => {
                let data = fact.json();
                if data["status"] != "success" {
                    let failure = match &data["error"] {
                        Value::Null => {
                            Failure::new(Code::Internal, "the run ended without saying why")
                        }
                        error => Failure::from_json(error),
                    };
                    self.error(Some(id), &failure, out);
                    return Next::Event;
                }
                self.end = Some(id);
                return Next::Reply;
            }
            // Other facts have no place in this dialect.
            _ => {}
        }
        Next::Event
    }

    fn error(&self, id: Option<EventId>, failure: &Failure, out: &mut BytesMut) {
        let data = json!({
            "type": "error",
            "message": failure.message,
            "error_type": failure.code.as_str(),
            "timestamp": self.last.map(|at| at.to_string()),
        });
        Self::frame(id, &data, out);
    }
}

impl Render for NoteFrames {
    fn event(&mut self, event: &Event, out: &mut BytesMut) -> Next {
        self.last = Some(event.at);
        match &event.body {
            Body::Delta(delta) => {
                if delta.part == Part::Text && !delta.text().is_empty() {
                    let data = json!({"type": "chunk", "content": delta.text()});
                    Self::frame(Some(event.id()), &data, out);
                }
                Next::Event
            }
            Body::Fact(fact) => self.fact(event, fact, out),
        }
    }

    fn reply(&mut self, reply: Result<Option<Message>, Error>, out: &mut BytesMut) {
        match reply {
            Ok(message) => {
                let data = json!({"type": "complete", "response": response(message.as_ref())});
                Self::frame(self.end, &data, out);
                let end = self.end.map(|id| EventId { part: id.part + 1, ..id });
                Self::frame(end, &json!({"type": "done"}), out);
            }
            Err(Error(failure)) => self.error(None, &failure, out),
        }
    }

    fn failure(&mut self, failure: &Failure, out: &mut BytesMut) {
        self.error(None, failure, out);
    }
}
