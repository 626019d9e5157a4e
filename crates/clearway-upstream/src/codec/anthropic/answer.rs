//! A whole message in one document.

use std::collections::VecDeque;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{Calls, ChatEvent, Fault, FinishReason, NoAnswer, Unfinished, document, full};

use super::{Counts, stream};

/// Reads the document as if it had been streamed in one piece; the last event is the finish.
///
/// # Errors
///
/// When it is an error, not JSON, or has neither content nor a stop reason.
pub fn read(body: &[u8], secrets: Secrets<'_>) -> Result<VecDeque<ChatEvent>, NoAnswer> {
    let message = document(body, secrets)?;
    if !message["error"].is_null() || message["type"] == "error" {
        return Err(Fault::Rejected(Rejection::in_band(body, secrets)).into());
    }
    let Some(blocks) = message["content"].as_array() else {
        let problem = "the answer is JSON, but no message".to_owned();
        return Err(Fault::Malformed(problem).into());
    };
    let (mut calls, mut events) = (Calls::default(), VecDeque::new());
    for (block, place) in blocks.iter().zip(0_u64..) {
        events.extend(stream::block(block, place, &mut calls));
        events.extend(calls.end(place, ""));
    }
    let reason = match full(&message["stop_reason"]) {
        Some(word) => FinishReason::read(word),
        None if events.is_empty() => return Err(Unfinished::Empty.into()),
        None => FinishReason::Stop,
    };
    let mut counts = Counts::default();
    counts.update(&message["usage"]);
    events.push_back(ChatEvent::Finish { reason, usage: counts.usage() });
    Ok(events)
}
