//! Streamed events.
//!
//! They are told apart by the `type` in their data. Between the events of a response's life
//! (`created` … `completed`, `incomplete` or `failed`) come those of its items, each of which has a
//! place in the output.

use std::collections::VecDeque;

use serde_json::Value;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{Calls, ChatEvent, Fault, Progress, Step, document, full};
use crate::sse;

use super::answer;

/// Reads the events of one streamed response and knows whether it is whole.
#[derive(Debug, Default)]
pub struct Reader {
    pub(in crate::codec) progress: Progress,
    calls: Calls,
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
        // Some imitators say goodbye in the words of chat completions.
        if self.progress.complete || data.is_empty() || data == b"[DONE]" {
            return Ok(Step::Nothing);
        }
        if event.kind == b"error" {
            return Err(Fault::Rejected(Rejection::in_band(data, secrets)));
        }
        let event = document(data, secrets)?;
        let rejected = || Fault::Rejected(Rejection::in_band(data, secrets));
        let before = out.len();
        match event["type"].as_str() {
            Some("response.output_text.delta" | "response.refusal.delta") => {
                out.extend(full(&event["delta"]).map(|text| ChatEvent::Text(text.to_owned())));
            }
            Some("response.reasoning_summary_text.delta" | "response.reasoning_text.delta") => {
                out.extend(full(&event["delta"]).map(|text| ChatEvent::Reasoning(text.to_owned())));
            }
            // Summaries come in paragraphs without anything between them.
            Some("response.reasoning_summary_part.added")
                if event["summary_index"].as_u64() > Some(0) =>
            {
                out.push_back(ChatEvent::Reasoning("\n\n".to_owned()));
            }
            Some("response.output_item.added") => out.extend(self.begin(&event)),
            Some("response.function_call_arguments.delta") => {
                let piece = full(&event["delta"]).unwrap_or_default();
                out.extend(self.calls.add(place(&event), piece));
            }
            Some("response.function_call_arguments.done") => {
                let all = full(&event["arguments"]).unwrap_or_default();
                out.extend(self.calls.end(place(&event), all));
            }
            Some("response.output_item.done") => {
                out.extend(self.begin(&event));
                let all = full(&event["item"]["arguments"]).unwrap_or_default();
                out.extend(self.calls.end(place(&event), all));
            }
            Some("response.completed" | "response.incomplete") => {
                self.end(&event["response"], out);
                return Ok(Step::Complete);
            }
            Some("response.failed" | "error") => return Err(rejected()),
            Some(_) => {}
            None if !event["error"].is_null() => return Err(rejected()),
            None => return Err(Fault::Malformed("an event has no type".to_owned())),
        }
        Ok(self.progress.step(out, before))
    }

    /// The first piece of the item, if it is a tool call that has not begun.
    fn begin(&mut self, event: &Value) -> Option<ChatEvent> {
        let (item, place) = (&event["item"], place(event));
        if item["type"] != "function_call" || self.calls.contains(place) {
            return None;
        }
        let text = |name: &str| full(&item[name]).unwrap_or_default();
        Some(self.calls.begin(place, text("call_id"), text("name"), text("arguments")))
    }

    fn end(&mut self, response: &Value, out: &mut VecDeque<ChatEvent>) {
        let before = out.len();
        // Nothing came piece by piece: it is all here.
        if !self.progress.output {
            answer::output(response, &mut self.calls, out);
            self.progress.step(out, before);
        }
        self.progress.reason = Some(answer::reason(response, &self.calls));
        self.progress.usage = super::usage(response);
        self.progress.complete = true;
    }
}

/// Where in the output an event belongs.
fn place(event: &Value) -> u64 {
    event["output_index"].as_u64().unwrap_or_default()
}
