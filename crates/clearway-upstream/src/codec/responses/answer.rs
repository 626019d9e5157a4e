//! A whole response in one document.

use std::collections::VecDeque;

use serde_json::Value;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{Calls, ChatEvent, Fault, FinishReason, NoAnswer, Unfinished, document, full};

/// Reads the document as if it had been streamed in one piece; the last event is the finish.
///
/// # Errors
///
/// When it is an error, not JSON, or no finished response.
pub fn read(body: &[u8], secrets: Secrets<'_>) -> Result<VecDeque<ChatEvent>, NoAnswer> {
    let response = document(body, secrets)?;
    if !response["error"].is_null() || response["status"] == "failed" {
        return Err(Fault::Rejected(Rejection::in_band(body, secrets)).into());
    }
    if !response["output"].is_array() {
        let problem = "the answer is JSON, but no response".to_owned();
        return Err(Fault::Malformed(problem).into());
    }
    let (mut calls, mut events) = (Calls::default(), VecDeque::new());
    output(&response, &mut calls, &mut events);
    // One that is queued or cancelled is nobody's answer.
    if !matches!(response["status"].as_str(), Some("completed" | "incomplete") | None) {
        return Err(Unfinished::Truncated.into());
    }
    if events.is_empty() && response["status"] != "incomplete" {
        return Err(Unfinished::Empty.into());
    }
    let (reason, usage) = (reason(&response, &calls), super::usage(&response));
    events.push_back(ChatEvent::Finish { reason, usage });
    Ok(events)
}

/// All that a response contains.
pub(super) fn output(response: &Value, calls: &mut Calls, out: &mut VecDeque<ChatEvent>) {
    let items = response["output"].as_array().into_iter().flatten();
    for (item, place) in items.zip(0_u64..) {
        if item["type"] == "function_call" {
            let text = |name: &str| full(&item[name]).unwrap_or_default();
            out.push_back(calls.begin(place, text("call_id"), text("name"), text("arguments")));
            out.extend(calls.end(place, ""));
        } else {
            out.extend(super::said(item));
        }
    }
}

/// Why it ended, which only an incomplete one says.
pub(super) fn reason(response: &Value, calls: &Calls) -> FinishReason {
    if response["status"] == "incomplete" {
        let word = full(&response["incomplete_details"]["reason"]);
        return FinishReason::read(word.unwrap_or("incomplete"));
    }
    if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls }
}
