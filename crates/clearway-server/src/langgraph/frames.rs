//! How what a run shows looks in a server-sent stream of LangGraph's.
//!
//! Lines end in CRLF; a frame is `event`, `data`, and `id` where the run can be resumed.

use bytes::{BufMut, BytesMut};
use clearway_core::event::{Delta, Part};
use clearway_core::{EventId, Status};
use serde_json::{Value, json};
use uuid::Uuid;

use super::modes::{Item, Modes, Projector, Speaking, What};
use crate::json::{put_escaped, put_number};

/// What ids frames carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ids {
    None,
    /// Of the run.
    Run,
    /// Of the thread: which of its runs this is, and when it was made.
    Thread {
        ord: u64,
        made_ms: u64,
    },
}

/// The number of a frame among all of its thread, below 2^53 so that every client can count so far.
pub(super) fn thread_seq(ord: u64, id: EventId) -> u64 {
    let place = u64::from(id.part).min(FRAMES_PER_EVENT - 1);
    (ord << THREAD_BITS) + (id.seq.min(EVENTS_PER_RUN - 1) * FRAMES_PER_EVENT) + place
}

const FRAMES_PER_EVENT: u64 = 128;
const EVENTS_PER_RUN: u64 = 1 << 19;
/// 128 frames of half a million events.
pub(super) const THREAD_BITS: u32 = 26;

/// Writes items as frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// What this client asked for.
    pub(super) modes: Modes,
    pub(super) ids: Ids,
    /// The last frame that the client has.
    pub(super) seen: Option<EventId>,
    /// Whether it is told that the run began.
    pub(super) tells_start: bool,
}

impl Frames {
    /// Whether the client lacks this frame. Numbers are used again after a crash, under a higher
    /// fence.
    fn is_new(&self, id: EventId) -> bool {
        self.seen
            .is_none_or(|seen| id.fence > seen.fence || (id.seq, id.part) > (seen.seq, seen.part))
    }

    /// Writes one item; nothing when it is not asked for.
    pub(super) fn put(&self, item: &Item, run: &Projector, out: &mut BytesMut) {
        let wants = |mode| self.modes.has(mode);
        let mut frame = |k: u8, name: &str, data: &Value| self.frame(item.id, k, name, data, out);
        match &item.what {
            What::Started { attempt } => {
                if self.tells_start {
                    let run = run.facts.run.to_string();
                    frame(0, "metadata", &json!({"run_id": run, "attempt": attempt}));
                }
                if wants(Modes::EVENTS) {
                    let input = run.facts.graph.given(&run.facts.input);
                    let data = json!({"input": input});
                    frame(2, "events", &chain(run, "on_chain_start", None, data));
                }
            }
            What::Values { values, interrupts } if wants(Modes::VALUES) => match interrupts {
                None => frame(0, "values", values),
                Some(interrupts) => {
                    let mut values = values.clone();
                    values["__interrupt__"] = interrupts.clone().into();
                    frame(0, "values", &values);
                }
            },
            What::Update { node, returned } => {
                if wants(Modes::UPDATES) {
                    frame(0, "updates", &json!({&**node: returned}));
                }
                if wants(Modes::EVENTS) {
                    let data = json!({"output": returned});
                    frame(2, "events", &chain(run, "on_chain_end", Some(node), data));
                }
            }
            What::Interrupts(interrupts) if wants(Modes::UPDATES) => {
                frame(0, "updates", &json!({"__interrupt__": interrupts}));
            }
            What::Task(task) => {
                if wants(Modes::TASKS) {
                    frame(0, "tasks", task);
                }
                if wants(Modes::DEBUG) {
                    frame(1, "debug", &debug(item, "task", task));
                }
                if wants(Modes::EVENTS) {
                    let node = task["name"].as_str();
                    let data = json!({"input": task["input"]});
                    frame(2, "events", &chain(run, "on_chain_start", node, data));
                }
            }
            What::TaskResult(result) => {
                if wants(Modes::TASKS) {
                    frame(0, "tasks", result);
                }
                if wants(Modes::DEBUG) {
                    frame(1, "debug", &debug(item, "task_result", result));
                }
            }
            What::Checkpoint(checkpoint) => {
                if wants(Modes::CHECKPOINTS) {
                    frame(0, "checkpoints", checkpoint);
                }
                if wants(Modes::DEBUG) {
                    frame(1, "debug", &debug(item, "checkpoint", checkpoint));
                }
            }
            What::Custom { data, .. } if wants(Modes::CUSTOM) => frame(0, "custom", data),
            What::Speaks(id) => self.speaks(*id, run, &mut frame),
            What::Token(delta) => {
                if let Some(speaking) = run.speaking.get(&delta.message) {
                    self.token(item.id, delta, speaking, run, out);
                }
            }
            What::Spoke(id, data) => self.spoke(*id, data, run, &mut frame),
            What::Unsaid(id) => {
                if let Some(speaking) = run.speaking.get(id) {
                    let empty = whole(*id, "");
                    if wants(Modes::TUPLES) {
                        frame(0, "messages", &json!([empty, metadata(speaking)]));
                    }
                    if wants(Modes::PARTIALS) {
                        frame(1, "messages/partial", &json!([empty]));
                    }
                }
            }
            What::Said { message, node } => {
                let metadata = run.message_metadata(node);
                if wants(Modes::TUPLES) {
                    frame(0, "messages", &json!([message, metadata]));
                }
                if wants(Modes::PARTIALS) {
                    frame(1, "messages/complete", &json!([message]));
                }
            }
            What::Failed { error, message } => {
                frame(0, "error", &json!({"error": error, "message": message}));
            }
            What::Ended { status, .. } if wants(Modes::EVENTS) && *status == Status::Success => {
                let data = json!({"output": run.values()});
                frame(2, "events", &chain(run, "on_chain_end", None, data));
            }
            What::Values { .. }
            | What::Interrupts(_)
            | What::Custom { .. }
            | What::Tool { .. }
            | What::Ended { .. } => {}
        }
    }

    fn speaks(&self, id: Uuid, run: &Projector, frame: &mut impl FnMut(u8, &str, &Value)) {
        let Some(speaking) = run.speaking.get(&id) else { return };
        if self.modes.has(Modes::PARTIALS) {
            let data = json!({id.to_string(): {"metadata": metadata(speaking)}});
            frame(0, "messages/metadata", &data);
        }
        if self.modes.has(Modes::EVENTS) {
            frame(2, "events", &model(run, speaking, "on_chat_model_start", id, json!({})));
        }
    }

    fn spoke(
        &self,
        id: Uuid,
        data: &Value,
        run: &Projector,
        frame: &mut impl FnMut(u8, &str, &Value),
    ) {
        let Some(speaking) = run.speaking.get(&id) else { return };
        let mut metadata_of_reply = json!({});
        for (from, to) in [("finish_reason", "finish_reason"), ("route", "model_name")] {
            if !data[from].is_null() {
                metadata_of_reply[to] = data[from].clone();
            }
        }
        if self.modes.has(Modes::TUPLES) {
            let mut last = chunk(id, "");
            last["response_metadata"] = metadata_of_reply.clone();
            last["usage_metadata"] = data["usage"].clone();
            last["chunk_position"] = "last".into();
            frame(0, "messages", &json!([last, metadata(speaking)]));
        }
        if self.modes.has(Modes::PARTIALS) {
            let mut message = whole(id, &speaking.text);
            message["response_metadata"] = metadata_of_reply;
            message["usage_metadata"] = data["usage"].clone();
            frame(1, "messages/partial", &json!([message]));
        }
        if self.modes.has(Modes::EVENTS) {
            let data = json!({"output": whole(id, &speaking.text)});
            frame(2, "events", &model(run, speaking, "on_chat_model_end", id, data));
        }
    }

    /// The one frame that is made once per token.
    fn token(
        &self,
        at: EventId,
        delta: &Delta,
        speaking: &Speaking,
        run: &Projector,
        out: &mut BytesMut,
    ) {
        let is_text = delta.part == Part::Text;
        if delta.part == Part::ToolCall && self.modes.has(Modes::TUPLES) {
            // A few per message, so nothing is gained by writing them by hand.
            let mut piece: Value = serde_json::from_str(delta.text()).unwrap_or_default();
            piece["type"] = "tool_call_chunk".into();
            let mut chunk = chunk(delta.message, "");
            chunk["tool_call_chunks"] = json!([piece]);
            self.frame(at, 0, "messages", &json!([chunk, metadata(speaking)]), out);
        }
        if self.modes.has(Modes::TUPLES) && self.is_new(at) && delta.part != Part::ToolCall {
            out.extend_from_slice(b"event: messages\r\ndata: [{\"content\":\"");
            if is_text {
                put_escaped(out, delta.text());
                out.extend_from_slice(b"\",\"additional_kwargs\":{},");
            } else {
                out.extend_from_slice(b"\",\"additional_kwargs\":{\"reasoning_content\":\"");
                put_escaped(out, delta.text());
                out.extend_from_slice(b"\"},");
            }
            out.extend_from_slice(
                b"\"response_metadata\":{},\"type\":\"AIMessageChunk\",\"name\":null,\"id\":\"",
            );
            let mut id = [0; 36];
            out.extend_from_slice(delta.message.hyphenated().encode_lower(&mut id).as_bytes());
            out.extend_from_slice(
                b"\",\"tool_calls\":[],\"invalid_tool_calls\":[],\"usage_metadata\":null,\
                  \"tool_call_chunks\":[],\"chunk_position\":null},",
            );
            out.extend_from_slice(&speaking.metadata);
            out.extend_from_slice(b"]\r\n");
            self.end(at, out);
        }
        if !is_text {
            return;
        }
        if self.modes.has(Modes::PARTIALS) {
            let data = json!([whole(delta.message, &speaking.text)]);
            self.frame(at, 1, "messages/partial", &data, out);
        }
        if self.modes.has(Modes::EVENTS) {
            let data = json!({"chunk": chunk(delta.message, delta.text())});
            let data = model(run, speaking, "on_chat_model_stream", delta.message, data);
            self.frame(at, 2, "events", &data, out);
        }
    }

    fn frame(&self, id: EventId, k: u8, name: &str, data: &Value, out: &mut BytesMut) {
        let id = EventId { part: id.part.saturating_add(k), ..id };
        if !self.is_new(id) {
            return;
        }
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\r\ndata: ");
        put_json(data, out);
        out.extend_from_slice(b"\r\n");
        self.end(id, out);
    }

    fn end(&self, id: EventId, out: &mut BytesMut) {
        match self.ids {
            Ids::None => {}
            Ids::Run => put_id(id, out),
            Ids::Thread { ord, made_ms } => {
                out.extend_from_slice(b"id: ");
                put_number(out, made_ms);
                out.extend_from_slice(b"-");
                put_number(out, thread_seq(ord, id));
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// JSON has no line breaks of its own, so it is one line of a frame.
pub(super) fn put_json(data: &Value, out: &mut BytesMut) {
    if let Err(error) = serde_json::to_writer(out.writer(), data) {
        tracing::error!(%error, "a value that is no JSON");
    }
}

pub(super) fn put_id(id: EventId, out: &mut BytesMut) {
    out.extend_from_slice(b"id: ");
    put_number(out, id.seq);
    out.extend_from_slice(b"-");
    put_number(out, u64::from(id.fence) * 256 + u64::from(id.part));
    out.extend_from_slice(b"\r\n");
}

/// Keeps proxies and clients from taking the connection for dead.
pub(super) const HEARTBEAT: &[u8] = b": heartbeat\r\n\r\n";

fn metadata(speaking: &Speaking) -> Value {
    serde_json::from_slice(&speaking.metadata).unwrap_or_default()
}

/// A message under way, as far as it has come.
fn whole(id: Uuid, text: &str) -> Value {
    json!({
        "content": text, "additional_kwargs": {}, "response_metadata": {}, "type": "ai",
        "name": null, "id": id.to_string(), "tool_calls": [], "invalid_tool_calls": [],
        "usage_metadata": null,
    })
}

fn chunk(id: Uuid, text: &str) -> Value {
    json!({
        "content": text, "additional_kwargs": {}, "response_metadata": {},
        "type": "AIMessageChunk", "name": null, "id": id.to_string(), "tool_calls": [],
        "invalid_tool_calls": [], "usage_metadata": null, "tool_call_chunks": [],
        "chunk_position": null,
    })
}

fn debug(item: &Item, kind: &str, payload: &Value) -> Value {
    json!({
        "step": item.step, "timestamp": item.at.to_string(), "type": kind, "payload": payload,
    })
}

/// An event of the graph, or of one of its nodes.
fn chain(run: &Projector, event: &str, node: Option<&str>, data: Value) -> Value {
    let facts = &run.facts;
    let root = facts.run.to_string();
    let (name, id, parents) = match node {
        None => (facts.graph.name.as_str(), root, json!([])),
        Some(node) => {
            let id = Uuid::new_v5(&facts.run.0, node.as_bytes()).to_string();
            (node, id, json!([root]))
        }
    };
    let metadata = match node {
        None => json!({"thread_id": facts.thread.to_string(), "graph_id": facts.graph.name}),
        Some(node) => run.message_metadata(node),
    };
    json!({
        "event": event, "name": name, "run_id": id, "tags": [], "metadata": metadata,
        "data": data, "parent_ids": parents,
    })
}

/// An event of a model's call.
fn model(run: &Projector, speaking: &Speaking, event: &str, id: Uuid, data: Value) -> Value {
    let node = Uuid::new_v5(&run.facts.run.0, speaking.node.as_bytes()).to_string();
    json!({
        "event": event, "name": "ChatModel", "run_id": id.to_string(), "tags": [],
        "metadata": metadata(speaking), "data": data,
        "parent_ids": [run.facts.run.to_string(), node],
    })
}
