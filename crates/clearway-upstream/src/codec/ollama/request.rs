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
/// When a message cannot be understood, or has a part that is neither a text nor an image with its
/// data.
pub fn chat(parts: &ChatParts<'_>) -> Result<Vec<u8>, BuildError> {
    let messages = message::read_all(parts.messages)?;
    let written: Result<Vec<_>, _> =
        (0..messages.len()).map(|at| write_message(&messages, at)).collect();
    let mut params = Params::merge(parts);
    let mut body = Map::new();
    body.insert("model".into(), parts.model.into());
    body.insert("messages".into(), written?.into());
    body.insert("stream".into(), true.into());
    // There is no such choice here, but the lack of tools.
    let tools = params.take_tools();
    if params.take("tool_choice") != Some(Value::from("none"))
        && let Some(tools) = tools
    {
        body.insert("tools".into(), tools.into());
    }
    if let Some(format) = params.take("response_format") {
        let schema = params::json_schema(&format).and_then(|it| it.get("schema")).cloned();
        let json = || (format["type"] == "json_object").then(|| Value::from("json"));
        body.extend(schema.or_else(json).map(|format| ("format".to_owned(), format)));
    }
    if let Some(effort) = params.take("reasoning_effort") {
        let think = match effort.as_str() {
            Some("none") => Value::Bool(false),
            Some("minimal") => "low".into(),
            Some("xhigh" | "max") => "high".into(),
            Some(_) | None => effort,
        };
        body.insert("think".into(), think);
    }
    let options = options(&mut params);
    if !options.is_empty() {
        body.insert("options".into(), options.into());
    }
    // It is about choices, of which there is one here anyway.
    params.take("n");
    body.extend(params.rest());
    Ok(Value::Object(body).to_string().into_bytes())
}

fn write_message(messages: &[Message<'_>], at: usize) -> Result<Value, BuildError> {
    let message = messages[at];
    Ok(match message.role {
        Role::System => json!({"role": "system", "content": message.text()}),
        Role::Human => human(message)?,
        Role::Ai => {
            let mut written = json!({"role": "assistant", "content": message.text()});
            let calls: Vec<_> = message
                .tool_calls()
                .map(|call| {
                    let function = json!({"name": call.name, "arguments": call.input()});
                    json!({"id": call.id, "function": function})
                })
                .collect();
            if !calls.is_empty() {
                written["tool_calls"] = calls.into();
            }
            written
        }
        Role::Tool => {
            let id = message.tool_call_id();
            // Results are told apart by the tool's name, which older messages do not have.
            let name = message.name().or_else(|| {
                let mut calls = messages[..at].iter().rev().flat_map(Message::tool_calls);
                calls.find(|call| call.id == id).map(|call| call.name)
            });
            json!({
                "role": "tool",
                "content": message.text(),
                "tool_name": name.unwrap_or_default(),
                "tool_call_id": id,
            })
        }
    })
}

fn human(message: Message<'_>) -> Result<Value, BuildError> {
    let refused = |what: String| BuildError::Part { at: message.at, dialect: "Ollama", what };
    let (mut text, mut images) = (String::new(), Vec::new());
    for part in message.parts() {
        match part {
            Part::Text(more) => text.push_str(more),
            Part::Image { url, .. } => match message::data_url(&url) {
                Some((_, data)) => images.push(Value::from(data)),
                None => return Err(refused("an image without its data".to_owned())),
            },
            Part::Other(part) => return Err(refused(message::describe(part))),
        }
    }
    let mut written = json!({"role": "user", "content": text});
    if !images.is_empty() {
        written["images"] = images.into();
    }
    Ok(written)
}

/// What is about sampling, under those options that were given in Ollama's words.
fn options(params: &mut Params) -> Map<String, Value> {
    let mut options = params.take_object("options");
    let found = SAMPLING.into_iter().filter_map(|name| Some((name, params.take(name)?)));
    let found: Vec<_> = found.collect();
    let found = found.into_iter().chain(params.take_stop().map(|stop| ("stop", stop)));
    let limit = params.take_limit().map(|limit| ("num_predict", limit));
    for (name, value) in found.collect::<Vec<_>>().into_iter().chain(limit) {
        options.entry(name).or_insert(value);
    }
    options
}

/// Parameters with the same name and meaning as an option.
const SAMPLING: [&str; 7] =
    ["temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty"];
