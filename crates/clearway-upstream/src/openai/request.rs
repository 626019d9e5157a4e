//! The body of a chat request, written straight into bytes.
//!
//! Messages come in the canonical shape (LangChain's: `type`, `content`, `id`, …) and leave in the
//! provider's. Fields that only we know stay behind.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};

/// Why no request can be made of the messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("there is no message to answer")]
    None,
    #[error("message {at}: type {found} is none of system, human, ai, tool")]
    Type { at: usize, found: String },
    #[error("message {at}: content is neither a text nor a list of parts")]
    Content { at: usize },
    #[error("message {at}: a tool message needs the tool_call_id it answers")]
    ToolCallId { at: usize },
}

/// Writes the request. `params` win over `defaults`; both must be free of the fields that are
/// written here ([`crate::config`] checks that).
///
/// # Errors
///
/// When a message cannot be understood.
pub fn chat(
    model: &str,
    messages: &[Arc<Value>],
    defaults: &Map<String, Value>,
    params: &Map<String, Value>,
) -> Result<Vec<u8>, BadMessage> {
    if messages.is_empty() {
        return Err(BadMessage::None);
    }
    let mut out = Vec::with_capacity(256 + messages.len() * 256);
    out.extend_from_slice(b"{\"model\":");
    json(&mut out, model);
    out.extend_from_slice(b",\"messages\":[");
    for (at, value) in messages.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        message(&mut out, at, value)?;
    }
    out.extend_from_slice(b"],\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    let inherited = defaults.iter().filter(|(name, _)| !params.contains_key(*name));
    for (name, value) in inherited.chain(params) {
        field(&mut out, name, value);
    }
    out.push(b'}');
    Ok(out)
}

fn message(out: &mut Vec<u8>, at: usize, message: &Value) -> Result<(), BadMessage> {
    let content = &message["content"];
    if !matches!(content, Value::String(_) | Value::Array(_) | Value::Null) {
        return Err(BadMessage::Content { at });
    }
    match message["type"].as_str() {
        Some("system") => {
            out.extend_from_slice(b"{\"role\":\"system\"");
            field(out, "content", &text(content));
        }
        Some("human") => {
            out.extend_from_slice(b"{\"role\":\"user\"");
            parts_field(out, content);
        }
        Some("tool") => {
            let Some(id) = message["tool_call_id"].as_str() else {
                return Err(BadMessage::ToolCallId { at });
            };
            out.extend_from_slice(b"{\"role\":\"tool\"");
            field(out, "tool_call_id", id);
            field(out, "content", &text(content));
        }
        Some("ai") => {
            out.extend_from_slice(b"{\"role\":\"assistant\"");
            assistant(out, message, &text(content));
        }
        _ => return Err(BadMessage::Type { at, found: message["type"].to_string() }),
    }
    if let (Some(name), Some("system" | "human" | "ai")) =
        (message["name"].as_str().filter(|name| !name.is_empty()), message["type"].as_str())
    {
        field(out, "name", name);
    }
    out.push(b'}');
    Ok(())
}

fn assistant(out: &mut Vec<u8>, message: &Value, text: &str) {
    let list = |name: &str| message[name].as_array().filter(|list| !list.is_empty());
    let (calls, invalid) = (list("tool_calls"), list("invalid_tool_calls"));
    let raw = message["additional_kwargs"]["tool_calls"].as_array().filter(|list| !list.is_empty());
    let has_calls = calls.is_some() || invalid.is_some() || raw.is_some();
    // Some servers refuse an empty text beside tool calls, others a missing one without.
    if text.is_empty() && has_calls {
        field(out, "content", &Value::Null);
    } else {
        field(out, "content", text);
    }
    if calls.is_some() || invalid.is_some() {
        out.extend_from_slice(b",\"tool_calls\":[");
        for (at, call) in calls.into_iter().chain(invalid).flatten().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            tool_call(out, call);
        }
        out.push(b']');
    } else if let Some(raw) = raw {
        field(out, "tool_calls", raw);
    }
}

/// `{name, args, id}` becomes `{id, type, function: {name, arguments}}`.
fn tool_call(out: &mut Vec<u8>, call: &Value) {
    // Arguments that are no JSON are kept as the text that the model wrote.
    let arguments = match &call["args"] {
        Value::String(text) => text.clone(),
        Value::Null => "{}".to_owned(),
        args => args.to_string(),
    };
    out.extend_from_slice(b"{\"type\":\"function\"");
    field(out, "id", call["id"].as_str().unwrap_or_default());
    out.extend_from_slice(b",\"function\":{\"name\":");
    json(out, call["name"].as_str().unwrap_or_default());
    field(out, "arguments", &arguments);
    out.extend_from_slice(b"}}");
}

/// A person's content: text stays text, parts stay parts.
fn parts_field(out: &mut Vec<u8>, content: &Value) {
    let Value::Array(parts) = content else {
        field(out, "content", content.as_str().unwrap_or_default());
        return;
    };
    out.extend_from_slice(b",\"content\":[");
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        match (part, image_url(part)) {
            (Value::String(text), _) => {
                out.extend_from_slice(b"{\"type\":\"text\"");
                field(out, "text", text);
                out.push(b'}');
            }
            (_, Some(url)) => {
                out.extend_from_slice(b"{\"type\":\"image_url\",\"image_url\":{\"url\":");
                json(out, &url);
                out.extend_from_slice(b"}}");
            }
            (other, None) => json(out, other),
        }
    }
    out.push(b']');
}

/// LangChain's own image parts carry a URL, or data with its type.
fn image_url(part: &Value) -> Option<String> {
    if part["type"] != "image" {
        return None;
    }
    if let Some(url) = part["url"].as_str() {
        return Some(url.to_owned());
    }
    let data = part["base64"].as_str().or_else(|| part["data"].as_str())?;
    let kind = part["mime_type"].as_str().unwrap_or("image/png");
    Some(format!("data:{kind};base64,{data}"))
}

/// The text of a content; parts that are not text (thoughts, raw tool calls) stay behind.
fn text(content: &Value) -> Cow<'_, str> {
    match content {
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part.as_str().or_else(|| part["text"].as_str()))
            .collect(),
        other => other.as_str().unwrap_or_default().into(),
    }
}

fn field<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.push(b',');
    json(out, name);
    out.push(b':');
    json(out, value);
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and JSON values can always be written");
}

#[cfg(test)]
mod tests;
