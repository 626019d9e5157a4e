//! OpenAI's Responses: items instead of messages, named events instead of chunks.
//!
//! A response is never stored at the provider unless a parameter asks for it, and never continues
//! another one: the conversation is ours and goes along whole each time. What a model thought stays
//! behind with it, which this dialect allows as long as items go without the ids they had.

use serde_json::Value;

use super::{ChatEvent, Usage, full};

pub mod answer;
pub mod request;
pub mod stream;

/// Reads the `usage` of a response.
fn usage(response: &Value) -> Option<Usage> {
    let usage = &response["usage"];
    let (input, output) = (usage["input_tokens"].as_u64(), usage["output_tokens"].as_u64());
    if input.is_none() && output.is_none() {
        return None;
    }
    let detail = |group: &str, name: &str| usage[group][name].as_u64().unwrap_or(0);
    Some(Usage {
        input_tokens: input.unwrap_or(0),
        output_tokens: output.unwrap_or(0),
        cached_tokens: detail("input_tokens_details", "cached_tokens"),
        reasoning_tokens: detail("output_tokens_details", "reasoning_tokens"),
    })
}

/// What an item other than a tool call says.
fn said(item: &Value) -> impl Iterator<Item = ChatEvent> + '_ {
    let is_message = item["type"] == "message";
    let is_reasoning = item["type"] == "reasoning";
    let list = |name: &str| item[name].as_array().into_iter().flatten();
    let thoughts = list("summary").chain(list("content")).filter(move |_| is_reasoning);
    let texts = list("content").filter(move |_| is_message);
    let thoughts = thoughts.filter_map(|part| full(&part["text"]));
    // A refusal is what the model says instead.
    let texts = texts.filter_map(|part| full(&part["text"]).or_else(|| full(&part["refusal"])));
    thoughts
        .map(|text| ChatEvent::Reasoning(text.to_owned()))
        .chain(texts.map(|text| ChatEvent::Text(text.to_owned())))
}
