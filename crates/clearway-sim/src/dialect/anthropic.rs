//! Anthropic's messages. A reply consists of numbered blocks, and errors have kinds of their own.

use serde_json::{Value, json};

use super::{Event, Part, PartKind, Signature, Told, Words};
use crate::chat::{
    Chat, Format, Message, Model, Tool, ToolChoice, list, max_tokens, optional, text_of,
};
use crate::frames::GAP;
use crate::problem::Problem;
use crate::reply::Finish;

pub(super) fn read(body: &Value) -> Result<Chat, Problem> {
    let model = Model::read(body)?;
    let Some(max) = max_tokens(body, "max_tokens")? else {
        return Err(Problem::invalid("max_tokens: Field required").param("max_tokens"));
    };
    let mut messages = Vec::new();
    match text_of(body.get("system")) {
        Some(content) if !content.is_empty() => {
            messages.push(Message { role: "system".to_owned(), content });
        }
        Some(_) => {}
        None => {
            let message = "system must be a string or an array of blocks";
            return Err(Problem::invalid(message).param("system"));
        }
    }
    for (index, raw) in list(body, "messages")?.iter().enumerate() {
        messages.push(read_message(index, raw)?);
    }
    let schema = ["/output_config/format/schema", "/output_format/schema"]
        .into_iter()
        .find_map(|place| body.pointer(place))
        .filter(|schema| schema.is_object());
    Ok(Chat {
        model,
        messages,
        stream: optional(body, "stream", Value::as_bool, "true or false")?.unwrap_or(false),
        include_usage: true,
        max_tokens: Some(max),
        format: schema.map_or(Format::Text, |schema| Format::Schema(schema.clone())),
        tools: read_tools(body),
        tool_choice: match body.get("tool_choice") {
            Some(choice) => match choice.get("type").and_then(Value::as_str) {
                Some("tool") => ToolChoice::of_name(choice),
                Some(word) => ToolChoice::of_word(word),
                None => ToolChoice::Auto,
            },
            None => ToolChoice::Auto,
        },
    })
}

fn read_message(index: usize, raw: &Value) -> Result<Message, Problem> {
    let wrong =
        |what: &str| Err(Problem::invalid(format!("messages.{index}.{what}")).param("messages"));
    let Some(role @ ("user" | "assistant")) = raw.get("role").and_then(Value::as_str) else {
        return wrong("role: Input should be 'user' or 'assistant'");
    };
    // A tool's answer comes as a block of the user's.
    let blocks = raw.get("content").and_then(Value::as_array).map(Vec::as_slice);
    let answer = blocks
        .unwrap_or_default()
        .iter()
        .find(|block| block.get("type").and_then(Value::as_str) == Some("tool_result"));
    let (role, content) = match answer {
        Some(block) => ("tool", block.get("content")),
        None => (role, raw.get("content")),
    };
    match text_of(content) {
        Some(content) => Ok(Message { role: role.to_owned(), content }),
        None => wrong("content: Input should be a string or an array of blocks"),
    }
}

fn read_tools(body: &Value) -> Vec<Tool> {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tools.iter().filter_map(|tool| Tool::read(tool, "input_schema")).collect()
}

pub(super) fn error(problem: &Problem) -> Value {
    let kind = match (problem.status, problem.code) {
        (402, _) | (_, Some("insufficient_quota")) => "billing_error",
        (401, _) => "authentication_error",
        (403, _) => "permission_error",
        (404, _) => "not_found_error",
        (413, _) => "request_too_large",
        (429, _) => "rate_limit_error",
        (503 | 529, _) => "overloaded_error",
        (504, _) => "timeout_error",
        (status, _) if status < 500 => "invalid_request_error",
        _ => "api_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": problem.message}})
}

pub(super) struct Anthropic {
    signature: Signature,
    prompt_tokens: usize,
}

impl Anthropic {
    pub(super) fn new(signature: Signature, prompt_tokens: usize) -> Self {
        Self { signature, prompt_tokens }
    }

    fn message(&self, content: Vec<Value>) -> Value {
        json!({
            "id": format!("msg_sim_{:012x}", self.signature.number),
            "type": "message",
            "role": "assistant",
            "model": self.signature.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
        })
    }

    fn block(&self, part: &Part<'_>, text: &str) -> Value {
        match part.kind {
            PartKind::Thoughts => json!({"type": "thinking", "thinking": text, "signature": ""}),
            PartKind::Text => json!({"type": "text", "text": text}),
            PartKind::Call(name) => {
                // Arguments that are cut have no form here; the block is left without.
                let input: Value = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
                let id = format!("toolu_sim_{:012x}", self.signature.number);
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }
}

const SIGNATURE: &str = "c2ltdWxhdGVk";

/// An event with these members, given as JSON.
fn event(name: &'static str, members: &str) -> Event {
    Event::named(name, format!("{{\"type\":\"{name}\"{members}}}"))
}

impl Words for Anthropic {
    fn open(&self) -> Vec<Event> {
        let mut message = self.message(Vec::new());
        message["usage"] = json!({
            "input_tokens": self.prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        });
        vec![event("message_start", &format!(",{GAP}\"message\":{message}"))]
    }

    fn begin(&self, part: &Part<'_>, place: usize) -> Vec<Event> {
        let block = self.block(part, "");
        let members = format!(",{GAP}\"index\":{place},{GAP}\"content_block\":{block}");
        let mut events = vec![event("content_block_start", &members)];
        if place == 0 {
            events.extend(self.ping());
        }
        events
    }

    fn piece(&self, part: &Part<'_>, place: usize, escaped: &str) -> Option<Event> {
        let (kind, member) = match part.kind {
            PartKind::Thoughts => ("thinking_delta", "thinking"),
            PartKind::Text => ("text_delta", "text"),
            PartKind::Call(_) => ("input_json_delta", "partial_json"),
        };
        let delta = format!("{{\"type\":\"{kind}\",\"{member}\":\"{escaped}\"}}");
        let members = format!(",{GAP}\"index\":{place},{GAP}\"delta\":{delta}");
        Some(event("content_block_delta", &members))
    }

    fn end(&self, part: &Part<'_>, place: usize) -> Vec<Event> {
        let stop = event("content_block_stop", &format!(",\"index\":{place}"));
        if part.kind != PartKind::Thoughts {
            return vec![stop];
        }
        let delta = json!({"type": "signature_delta", "signature": SIGNATURE});
        vec![event("content_block_delta", &format!(",\"index\":{place},\"delta\":{delta}")), stop]
    }

    fn finish(&self, told: &Told<'_>) -> Vec<Event> {
        let delta = json!({"stop_reason": reason(told.finish), "stop_sequence": null});
        let usage = told
            .usage
            .as_ref()
            .map(|usage| format!(",{GAP}\"usage\":{}", json!({"output_tokens": usage.completion})));
        let members = format!(",{GAP}\"delta\":{delta}{}", usage.unwrap_or_default());
        vec![event("message_delta", &members)]
    }

    fn done(&self, _: &Told<'_>) -> Vec<Event> {
        vec![event("message_stop", "")]
    }

    fn ping(&self) -> Option<Event> {
        Some(event("ping", ""))
    }

    fn error(&self, problem: &Problem, _: bool) -> Event {
        Event::named("error", error(problem).to_string())
    }

    fn whole(&self, told: &Told<'_>) -> Value {
        let block = |part: &Part<'_>| {
            let mut block = self.block(part, &part.text());
            if part.kind == PartKind::Thoughts {
                block["signature"] = SIGNATURE.into();
            }
            block
        };
        let mut message = self.message(told.parts.iter().map(block).collect());
        message["stop_reason"] = reason(told.finish).into();
        if let Some(usage) = &told.usage {
            message["usage"] =
                json!({"input_tokens": usage.prompt, "output_tokens": usage.completion});
        }
        message
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "end_turn",
        Finish::Length => "max_tokens",
        Finish::Call => "tool_use",
    }
}
