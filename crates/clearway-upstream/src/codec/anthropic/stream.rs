//! Streamed events.
//!
//! A message consists of blocks, each of which begins, grows by deltas and ends, one after another.
//! `message_delta` says why the model stopped, `message_stop` ends the message.

use std::collections::VecDeque;

use serde_json::Value;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{Calls, ChatEvent, Fault, FinishReason, Progress, Step, document, full};
use crate::sse;

use super::Counts;

/// Reads the events of one streamed message and knows whether it is whole.
#[derive(Debug, Default)]
pub struct Reader {
    pub(in crate::codec) progress: Progress,
    calls: Calls,
    counts: Counts,
}

impl Reader {
    /// Takes one event; what it adds to the answer goes to `out`.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub fn take(
        &mut self,
        event: sse::Event<'_>,
        secrets: Secrets<'_>,
        out: &mut VecDeque<ChatEvent>,
    ) -> Result<Step, Fault> {
        let data = event.data.trim_ascii();
        if self.progress.complete || data.is_empty() {
            return Ok(Step::Nothing);
        }
        match event.kind {
            b"error" => return Err(Fault::Rejected(Rejection::in_band(data, secrets))),
            b"ping" => return Ok(Step::Nothing),
            _ => {}
        }
        let event = document(data, secrets)?;
        let before = out.len();
        match event["type"].as_str() {
            Some("message_start") => self.count(&event["message"]["usage"]),
            Some("content_block_start") => out.extend(self.begin(&event)),
            Some("content_block_delta") => out.extend(self.grow(&event)),
            Some("content_block_stop") => out.extend(self.calls.end(place(&event), "")),
            Some("message_delta") => {
                self.count(&event["usage"]);
                if let Some(word) = full(&event["delta"]["stop_reason"]) {
                    self.progress.reason = Some(FinishReason::read(word));
                    return Ok(Step::Stopped);
                }
            }
            Some("message_stop") => {
                // Without any sign of an answer it is only the end of a stream.
                self.progress.complete = self.progress.output || self.progress.reason.is_some();
                let complete = self.progress.complete;
                return Ok(if complete { Step::Complete } else { Step::Nothing });
            }
            Some("error") => return Err(Fault::Rejected(Rejection::in_band(data, secrets))),
            Some(_) => {}
            None if !event["error"].is_null() => {
                return Err(Fault::Rejected(Rejection::in_band(data, secrets)));
            }
            None => return Err(Fault::Malformed("an event has no type".to_owned())),
        }
        Ok(self.progress.step(out, before))
    }

    fn count(&mut self, usage: &Value) {
        self.counts.update(usage);
        self.progress.usage = self.counts.usage();
    }

    fn begin(&mut self, event: &Value) -> Option<ChatEvent> {
        block(&event["content_block"], place(event), &mut self.calls)
    }

    fn grow(&mut self, event: &Value) -> Option<ChatEvent> {
        let delta = &event["delta"];
        match delta["type"].as_str()? {
            "text_delta" => full(&delta["text"]).map(|text| ChatEvent::Text(text.to_owned())),
            "thinking_delta" => {
                full(&delta["thinking"]).map(|text| ChatEvent::Reasoning(text.to_owned()))
            }
            "input_json_delta" => self.calls.add(place(event), full(&delta["partial_json"])?),
            // Signatures, citations, and what is still to be invented.
            _ => None,
        }
    }
}

/// What a block contains, or what it begins with.
pub(super) fn block(block: &Value, place: u64, calls: &mut Calls) -> Option<ChatEvent> {
    match block["type"].as_str()? {
        "text" => full(&block["text"]).map(|text| ChatEvent::Text(text.to_owned())),
        "thinking" => full(&block["thinking"]).map(|text| ChatEvent::Reasoning(text.to_owned())),
        "tool_use" => {
            let input = block["input"].as_object().filter(|input| !input.is_empty());
            // Where a block begins, only those who send no pieces have put anything.
            let arguments = input.map(|_| block["input"].to_string()).unwrap_or_default();
            let text = |name: &str| full(&block[name]).unwrap_or_default();
            Some(calls.begin(place, text("id"), text("name"), &arguments))
        }
        _ => None,
    }
}

/// Which block an event is about.
fn place(event: &Value) -> u64 {
    event["index"].as_u64().unwrap_or_default()
}
