//! A whole completion in one JSON document, from a provider that ignores `stream: true`.

use std::collections::VecDeque;

use serde_json::Value;

use crate::codec::failure::{Rejection, Secrets};
use crate::codec::{ChatEvent, Fault, FinishReason, NoAnswer, Unfinished, Usage};

/// Reads the document as if it had been streamed in one piece; the last event is the finish.
///
/// # Errors
///
/// When it is an error, not JSON, or has no choice with content or a finish reason.
pub fn read(body: &[u8], secrets: Secrets<'_>) -> Result<VecDeque<ChatEvent>, NoAnswer> {
    let document: Value = serde_json::from_slice(body).map_err(|error| {
        NoAnswer::Fault(Fault::Malformed(format!("the answer is no JSON: {error}")))
    })?;
    let choices = document["choices"].as_array();
    let error = &document["error"];
    if !error.is_null() || document["object"] == "error" || document["type"] == "error" {
        return Err(NoAnswer::Fault(Fault::Rejected(Rejection::in_band(body, secrets))));
    }
    let Some(choices) = choices else {
        let problem = "the answer is JSON, but no completion".to_owned();
        return Err(NoAnswer::Fault(Fault::Malformed(problem)));
    };
    let empty = NoAnswer::Unfinished(Unfinished::Empty);
    let choice = choices.first().ok_or_else(|| empty.clone())?;
    let mut events = VecDeque::new();
    message(&choice["message"], &mut events);
    let reason = choice["finish_reason"].as_str().filter(|word| !word.is_empty());
    let reason = match reason {
        Some(word) => FinishReason::read(word),
        None if events.is_empty() => return Err(empty),
        None => FinishReason::Stop,
    };
    let usage = Usage::read(&document["usage"].to_string());
    events.push_back(ChatEvent::Finish { reason, usage });
    Ok(events)
}

fn message(message: &Value, events: &mut VecDeque<ChatEvent>) {
    let full = |value: &Value| text(value).filter(|text| !text.is_empty());
    let reasoning = full(&message["reasoning_content"]).or_else(|| full(&message["reasoning"]));
    events.extend(reasoning.map(ChatEvent::Reasoning));
    events.extend(full(&message["content"]).map(ChatEvent::Text));
    events.extend(full(&message["refusal"]).map(ChatEvent::Text));
    for (index, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
        events.push_back(ChatEvent::ToolCall {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            id: full(&call["id"]),
            name: full(&call["function"]["name"]),
            arguments: text(&call["function"]["arguments"]).unwrap_or_default(),
        });
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            Some(parts.iter().filter_map(|part| part["text"].as_str()).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_becomes_events() {
        let body = br#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello",
            "reasoning_content":"hm","tool_calls":[{"id":"c1","type":"function",
            "function":{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}],
            "usage":{"prompt_tokens":3,"completion_tokens":0}}"#;
        let events: Vec<_> = read(body, Secrets::default()).unwrap().into();
        let usage = Usage { input_tokens: 3, ..Usage::default() };
        let call = ChatEvent::ToolCall {
            index: 0,
            id: Some("c1".into()),
            name: Some("f".into()),
            arguments: "{}".into(),
        };
        assert_eq!(
            events,
            [
                ChatEvent::Reasoning("hm".into()),
                ChatEvent::Text("Hello".into()),
                call,
                ChatEvent::Finish { reason: FinishReason::ToolCalls, usage: Some(usage) },
            ]
        );
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        let read = |body: &str| read(body.as_bytes(), Secrets::default()).unwrap_err();
        assert!(matches!(read("<html>"), NoAnswer::Fault(Fault::Malformed(_))));
        assert!(matches!(
            read(r#"{"error":{"message":"x"}}"#),
            NoAnswer::Fault(Fault::Rejected(_))
        ));
        assert!(matches!(read(r#"{"ok":true}"#), NoAnswer::Fault(Fault::Malformed(_))));
        for empty in [r#"{"choices":[]}"#, r#"{"choices":[{"message":{"content":""}}]}"#] {
            assert_eq!(read(empty), NoAnswer::Unfinished(Unfinished::Empty));
        }
    }
}
