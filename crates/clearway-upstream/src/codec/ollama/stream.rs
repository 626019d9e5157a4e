//! Streamed lines, the last of which says `done`.

use std::collections::VecDeque;

use serde_json::Value;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{
    Calls, ChatEvent, Fault, FinishReason, NoAnswer, Progress, Step, Usage, document, full,
};
use crate::sse;

/// Reads the lines of one streamed answer and knows whether it is whole.
#[derive(Debug, Default)]
pub struct Reader {
    pub(in crate::codec) progress: Progress,
    calls: Calls,
}

/// Reads an answer in one document.
///
/// # Errors
///
/// When it is an error, not JSON, or not done.
pub fn read(body: &[u8], secrets: Secrets<'_>) -> Result<VecDeque<ChatEvent>, NoAnswer> {
    let (mut reader, mut events) = (Reader::default(), VecDeque::new());
    reader.take(sse::Event { kind: b"", data: body }, secrets, &mut events)?;
    events.push_back(reader.progress.finish()?);
    Ok(events)
}

impl Reader {
    /// Takes one line; what it adds to the answer goes to `out`.
    ///
    /// # Errors
    ///
    /// See [`Fault`].
    pub fn take(
        &mut self,
        line: sse::Event<'_>,
        secrets: Secrets<'_>,
        out: &mut VecDeque<ChatEvent>,
    ) -> Result<Step, Fault> {
        if self.progress.complete {
            return Ok(Step::Nothing);
        }
        let data = line.data;
        let line = document(data, secrets)?;
        if !line["error"].is_null() {
            return Err(Fault::Rejected(Rejection::in_band(data, secrets)));
        }
        let before = out.len();
        let message = &line["message"];
        let text = |name: &str| full(&message[name]).map(str::to_owned);
        out.extend(text("thinking").map(ChatEvent::Reasoning));
        out.extend(text("content").map(ChatEvent::Text));
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            out.push_back(self.call(call, &line["created_at"]));
        }
        let step = self.progress.step(out, before);
        if line["done"] != true {
            return Ok(step);
        }
        self.progress.reason = Some(match full(&line["done_reason"]) {
            Some("stop") | None if !self.calls.is_empty() => FinishReason::ToolCalls,
            Some(word) => FinishReason::read(word),
            None => FinishReason::Stop,
        });
        self.progress.usage = usage(&line);
        self.progress.complete = true;
        Ok(Step::Complete)
    }

    fn call(&mut self, call: &Value, created_at: &Value) -> ChatEvent {
        let place = self.calls.len();
        let function = &call["function"];
        let id = full(&call["id"]).map_or_else(|| made_up_id(created_at, place), str::to_owned);
        let arguments = match &function["arguments"] {
            Value::Object(arguments) if !arguments.is_empty() => function["arguments"].to_string(),
            Value::String(text) if !text.is_empty() => text.clone(),
            _ => "{}".to_owned(),
        };
        self.calls.begin(place, &id, full(&function["name"]).unwrap_or_default(), &arguments)
    }
}

/// Older servers give no ids, but results must find their calls: the moment makes one that no other
/// answer of the conversation has.
fn made_up_id(created_at: &Value, place: u64) -> String {
    let moment = created_at.as_str().unwrap_or_default();
    let moment: String = moment.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    format!("call_{moment}_{place}")
}

/// A prompt that the server still has in memory is not counted.
fn usage(line: &Value) -> Option<Usage> {
    let (input, output) = (line["prompt_eval_count"].as_u64(), line["eval_count"].as_u64());
    if input.is_none() && output.is_none() {
        return None;
    }
    Some(Usage {
        input_tokens: input.unwrap_or(0),
        output_tokens: output.unwrap_or(0),
        ..Usage::default()
    })
}
