//! The body of a chat request, written straight into bytes.

use clearway_core::message::Role;
use serde::Serialize;
use serde_json::{Value, json};

use crate::codec::message::{self, Message, Part, ToolCall};
use crate::codec::{BuildError, ChatParts};

/// Writes the request.
///
/// # Errors
///
/// When a message cannot be understood.
pub fn chat(parts: &ChatParts<'_>) -> Result<Vec<u8>, BuildError> {
    let messages = message::read_all(parts.messages)?;
    let mut out = Vec::with_capacity(256 + messages.len() * 256);
    out.extend_from_slice(b"{\"model\":");
    write(&mut out, parts.model);
    out.extend_from_slice(b",\"messages\":[");
    for (at, message) in messages.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_message(&mut out, message);
    }
    out.extend_from_slice(b"],\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    let inherited =
        parts.model_params.iter().filter(|(name, _)| !parts.call_params.contains_key(*name));
    for (name, value) in inherited.chain(parts.call_params) {
        field(&mut out, name, value);
    }
    out.push(b'}');
    Ok(out)
}

fn write_message(out: &mut Vec<u8>, message: Message<'_>) {
    match message.role {
        Role::System => {
            out.extend_from_slice(b"{\"role\":\"system\"");
            field(out, "content", &message.text());
        }
        Role::Human => {
            out.extend_from_slice(b"{\"role\":\"user\"");
            parts_field(out, message.content());
        }
        Role::Tool => {
            out.extend_from_slice(b"{\"role\":\"tool\"");
            field(out, "tool_call_id", message.tool_call_id());
            field(out, "content", &message.text());
        }
        Role::Ai => {
            out.extend_from_slice(b"{\"role\":\"assistant\"");
            assistant(out, message);
        }
    }
    if let (Some(name), Role::System | Role::Human | Role::Ai) = (message.name(), message.role) {
        field(out, "name", name);
    }
    out.push(b'}');
}

fn assistant(out: &mut Vec<u8>, message: Message<'_>) {
    let text = message.text();
    let mut calls = message.tool_calls().peekable();
    // Some servers refuse an empty text beside tool calls, others a missing one without.
    if text.is_empty() && calls.peek().is_some() {
        field(out, "content", &Value::Null);
    } else {
        field(out, "content", &text);
    }
    if !message.raw_tool_calls().is_empty() {
        field(out, "tool_calls", message.raw_tool_calls());
    } else if calls.peek().is_some() {
        field(out, "tool_calls", &calls.map(tool_call).collect::<Vec<_>>());
    }
}

/// `{name, args, id}` becomes `{id, type, function: {name, arguments}}`.
fn tool_call(call: ToolCall<'_>) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments()});
    json!({"type": "function", "id": call.id, "function": function})
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
        match Part::read(part) {
            Part::Text(text) if part.is_string() => {
                write(out, &json!({"type": "text", "text": text}));
            }
            // Others' images; its own go as they are.
            Part::Image { url, .. } if part["type"] == "image" => {
                out.extend_from_slice(b"{\"type\":\"image_url\",\"image_url\":{\"url\":");
                write(out, &url);
                out.extend_from_slice(b"}}");
            }
            Part::Text(_) | Part::Image { .. } | Part::Other(_) => write(out, part),
        }
    }
    out.push(b']');
}

fn field<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, value: &T) {
    out.push(b',');
    write(out, name);
    out.push(b':');
    write(out, value);
}

fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and JSON values can always be written");
}

#[cfg(test)]
mod tests;
