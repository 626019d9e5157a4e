//! The body of a request.

use clearway_core::message::Role;
use serde_json::{Map, Value, json};

use crate::codec::message::{self, Message, Part};
use crate::codec::params::{self, Params};
use crate::codec::{BuildError, ChatParts};

/// Writes the request.
///
/// # Errors
///
/// When a message cannot be understood.
pub fn chat(parts: &ChatParts<'_>) -> Result<Vec<u8>, BuildError> {
    let messages = message::read_all(parts.messages)?;
    let mut params = Params::merge(parts);
    let mut body = Map::new();
    body.insert("model".into(), parts.model.into());
    let (instructions, rest) = split_instructions(&messages);
    if let Some(instructions) = instructions {
        body.insert("instructions".into(), instructions.into());
        params.take("instructions");
    }
    let mut input = Vec::with_capacity(rest.len());
    for message in rest {
        write_message(*message, &mut input);
    }
    body.insert("input".into(), input.into());
    body.insert("stream".into(), true.into());
    body.insert("store".into(), params.take("store").unwrap_or(Value::Bool(false)));
    if let Some(limit) = params.take_limit() {
        body.insert("max_output_tokens".into(), limit);
    }
    if let Some(tools) = params.take_tools() {
        body.insert("tools".into(), tools.into_iter().map(tool).collect());
    }
    if let Some(choice) = params.take("tool_choice") {
        let name = params::function(&choice).map(|function| function["name"].clone());
        let named = name.map(|name| json!({"type": "function", "name": name}));
        body.insert("tool_choice".into(), named.unwrap_or(choice));
    }
    let mut reasoning = params.take_object("reasoning");
    if let Some(effort) = params.take("reasoning_effort") {
        reasoning.entry("effort").or_insert(effort);
    }
    let text = text(&mut params);
    body.extend([("reasoning", reasoning), ("text", text)].into_iter().filter_map(
        |(name, group)| (!group.is_empty()).then(|| (name.to_owned(), Value::Object(group))),
    ));
    // It is about choices, of which there is one here anyway.
    params.take("n");
    body.extend(params.rest());
    Ok(Value::Object(body).to_string().into_bytes())
}

/// The system messages in front are the instructions; one in the middle keeps its place.
fn split_instructions<'a, 'b>(messages: &'b [Message<'a>]) -> (Option<String>, &'b [Message<'a>]) {
    let count = messages.iter().take_while(|message| message.role == Role::System).count();
    // There has to be some input.
    if count == 0 || count == messages.len() {
        return (None, messages);
    }
    let (system, rest) = messages.split_at(count);
    let texts: Vec<_> = system.iter().map(Message::text).collect();
    (Some(texts.join("\n\n")), rest)
}

fn write_message(message: Message<'_>, input: &mut Vec<Value>) {
    match message.role {
        Role::System => input.push(json!({"role": "system", "content": message.text()})),
        Role::Human => {
            let content = match message.content() {
                Value::Array(_) => message.parts().map(part).collect(),
                _ => Value::from(message.text()),
            };
            input.push(json!({"role": "user", "content": content}));
        }
        Role::Ai => {
            let text = message.text();
            if !text.is_empty() {
                input.push(json!({"role": "assistant", "content": text}));
            }
            input.extend(message.tool_calls().map(|call| {
                json!({
                    "type": "function_call",
                    "call_id": call.id,
                    "name": call.name,
                    "arguments": call.arguments(),
                })
            }));
        }
        Role::Tool => input.push(json!({
            "type": "function_call_output",
            "call_id": message.tool_call_id(),
            "output": message.text(),
        })),
    }
}

fn part(part: Part<'_>) -> Value {
    match part {
        Part::Text(text) => json!({"type": "input_text", "text": text}),
        Part::Image { url, detail } => {
            let mut image = json!({"type": "input_image", "image_url": url});
            if let Some(detail) = detail {
                image["detail"] = detail.into();
            }
            image
        }
        Part::Other(part) => match part["file"].as_object() {
            Some(file) if part["type"] == "file" => {
                let mut file = file.clone();
                file.insert("type".into(), "input_file".into());
                Value::Object(file)
            }
            Some(_) | None => part.clone(),
        },
    }
}

/// A function loses its wrapping; the provider's own tools go as they are.
fn tool(tool: Value) -> Value {
    let Some(function) = params::function(&tool) else { return tool };
    let mut flat = Map::from_iter([("type".to_owned(), Value::from("function"))]);
    flat.extend(function.clone());
    // Left out it means the opposite of what it means in chat completions.
    flat.entry("strict").or_insert(Value::Bool(false));
    Value::Object(flat)
}

/// What is said about the answer's text: its format, and how wordy it is.
fn text(params: &mut Params) -> Map<String, Value> {
    let mut text = params.take_object("text");
    if let Some(verbosity) = params.take("verbosity") {
        text.entry("verbosity").or_insert(verbosity);
    }
    if let Some(format) = params.take("response_format") {
        let format = match params::json_schema(&format) {
            Some(schema) => {
                let mut flat = Map::from_iter([("type".to_owned(), Value::from("json_schema"))]);
                flat.extend(schema.clone());
                Value::Object(flat)
            }
            None => format,
        };
        text.entry("format").or_insert(format);
    }
    text
}
