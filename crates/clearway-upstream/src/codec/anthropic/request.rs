//! The body of a request.

use std::borrow::Cow;

use clearway_core::message::Role;
use serde_json::{Map, Value, json};

use crate::codec::message::{self, Message, Part, ToolCall};
use crate::codec::params::{self, Params};
use crate::codec::{BuildError, ChatParts, full};

/// Writes the request.
///
/// # Errors
///
/// When a message cannot be understood, or there is none but the system's.
pub fn chat(parts: &ChatParts<'_>) -> Result<Vec<u8>, BuildError> {
    let (system, turns) = conversation(&message::read_all(parts.messages)?)?;
    let mut params = Params::merge(parts);
    let mut body = Map::new();
    body.insert("model".into(), parts.model.into());
    let limit = params.take_limit();
    let default = u64::from(parts.max_output_tokens);
    body.insert("max_tokens".into(), limit.clone().unwrap_or(default.into()));
    if !system.is_empty() {
        body.insert("system".into(), system.into());
        params.take("system");
    }
    let mut output = params.take_object("output_config");
    if let Some(effort) = params.take("reasoning_effort")
        && !params.has("thinking")
    {
        let effort = effort.as_str().unwrap_or_default();
        let room = Room { limit: limit.map(|limit| limit.as_u64().unwrap_or_default()), default };
        think(effort, parts.model, room, &turns, &mut body, &mut output);
    }
    if let Some(format) = params.take("response_format") {
        // One without a schema has no counterpart, and asks for JSON in the prompt anyway.
        if let Some(schema) = params::json_schema(&format).and_then(|it| it.get("schema")) {
            output.entry("format").or_insert(json!({"type": "json_schema", "schema": schema}));
        }
    }
    if !output.is_empty() {
        body.insert("output_config".into(), output.into());
    }
    body.insert("messages".into(), turns.into_iter().map(Turn::into_value).collect());
    body.insert("stream".into(), true.into());
    tools(&mut params, &mut body);
    if let Some(stop) = params.take_stop() {
        body.insert("stop_sequences".into(), stop);
    }
    if let Some(user) = params.take("user") {
        let mut metadata = params.take_object("metadata");
        metadata.entry("user_id").or_insert(user);
        body.insert("metadata".into(), metadata.into());
    }
    // It is about choices, of which there is one here anyway.
    params.take("n");
    body.extend(params.rest());
    Ok(Value::Object(body).to_string().into_bytes())
}

/// All that one side says until the other speaks.
struct Turn {
    role: &'static str,
    blocks: Vec<Value>,
}

impl Turn {
    fn into_value(self) -> Value {
        json!({"role": self.role, "content": self.blocks})
    }

    fn has(&self, kind: &str) -> bool {
        self.blocks.iter().any(|block| block["type"] == kind)
    }
}

/// The system's messages go into one prompt; the others become turns that alternate.
fn conversation(messages: &[Message<'_>]) -> Result<(String, Vec<Turn>), BuildError> {
    let mut system: Vec<Cow<'_, str>> = Vec::new();
    let mut turns: Vec<Turn> = Vec::new();
    for message in messages {
        let (role, blocks) = match message.role {
            Role::System => {
                system.extend(Some(message.text()).filter(|text| !text.is_empty()));
                continue;
            }
            Role::Human => ("user", blocks(*message)),
            Role::Tool => ("user", vec![tool_result(*message)]),
            Role::Ai => ("assistant", assistant(*message)),
        };
        match turns.last_mut() {
            Some(turn) if turn.role == role => turn.blocks.extend(blocks),
            // An empty turn is refused, and says nothing.
            Some(_) | None if blocks.is_empty() => {}
            Some(_) | None => turns.push(Turn { role, blocks }),
        }
    }
    if turns.is_empty() {
        return Err(BuildError::None);
    }
    Ok((system.join("\n\n"), turns))
}

fn blocks(message: Message<'_>) -> Vec<Value> {
    let block = |part| match part {
        // An empty one is refused.
        Part::Text("") => None,
        Part::Text(text) => Some(json!({"type": "text", "text": text})),
        Part::Image { url, .. } => Some(image(&url)),
        // What has no name in OpenAI's words may have one here: documents, search results, …
        Part::Other(part) => Some(part.clone()),
    };
    message.parts().filter_map(block).collect()
}

fn image(url: &str) -> Value {
    let source = match message::data_url(url) {
        Some((kind, data)) => json!({"type": "base64", "media_type": kind, "data": data}),
        None => json!({"type": "url", "url": url}),
    };
    json!({"type": "image", "source": source})
}

fn tool_result(message: Message<'_>) -> Value {
    let content = match message.content() {
        Value::Array(_) => blocks(message).into(),
        _ => Value::from(message.text()),
    };
    let mut result = json!({
        "type": "tool_result",
        "tool_use_id": tool_id(message.tool_call_id()),
        "content": content,
    });
    if message.is_failure() {
        result["is_error"] = true.into();
    }
    result
}

fn assistant(message: Message<'_>) -> Vec<Value> {
    let block = |part| match part {
        Part::Text(text) => (!text.is_empty()).then(|| json!({"type": "text", "text": text})),
        // Thoughts are only taken back as they were given, with their signature.
        Part::Other(part) => is_thought(part).then(|| part.clone()),
        Part::Image { .. } => None,
    };
    let call = |call: ToolCall<'_>| {
        json!({
            "type": "tool_use",
            "id": tool_id(call.id),
            "name": call.name,
            "input": call.input(),
        })
    };
    message.parts().filter_map(block).chain(message.tool_calls().map(call)).collect()
}

fn is_thought(block: &Value) -> bool {
    match block["type"].as_str() {
        Some("thinking") => full(&block["signature"]).is_some(),
        Some("redacted_thinking") => full(&block["data"]).is_some(),
        _ => false,
    }
}

/// Other providers' ids have characters that are refused here.
fn tool_id(id: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let id: String = id.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    if id.is_empty() { "_".to_owned() } else { id }
}

/// How many tokens there are for thoughts and answer together.
#[derive(Clone, Copy)]
struct Room {
    /// As a parameter says.
    limit: Option<u64>,
    /// When none does.
    default: u64,
}

impl Room {
    /// Thoughts count as output; a limit that nobody asked for should not be used up by them.
    fn make_for(self, thoughts: u64, body: &mut Map<String, Value>) {
        if self.limit.is_none() {
            body.insert("max_tokens".into(), (self.default + thoughts).into());
        }
    }
}

/// Turns an effort into this dialect's words. Older models are given a budget for their thoughts,
/// newer ones find their own measure and refuse a budget.
fn think(
    effort: &str,
    model: &str,
    room: Room,
    turns: &[Turn],
    body: &mut Map<String, Value>,
    output: &mut Map<String, Value>,
) {
    if effort == "none" {
        body.insert("thinking".into(), json!({"type": "disabled"}));
        return;
    }
    if !takes_budget(model) {
        body.insert("thinking".into(), json!({"type": "adaptive"}));
        room.make_for(16 * MIN_BUDGET, body);
        let effort = if effort == "minimal" { "low" } else { effort };
        output.entry("effort").or_insert(effort.into());
        return;
    }
    let wish = match effort {
        "minimal" => MIN_BUDGET,
        "low" => 2 * MIN_BUDGET,
        "medium" => 8 * MIN_BUDGET,
        _ => 16 * MIN_BUDGET,
    };
    // Half of what there is at most, so that something is left for the answer.
    let budget = room.limit.map_or(wish, |limit| wish.min(limit / 2));
    if budget < MIN_BUDGET || has_lost_thoughts(turns) {
        return;
    }
    body.insert("thinking".into(), json!({"type": "enabled", "budget_tokens": budget}));
    room.make_for(budget, body);
}

/// The generations up to 4.5. No more are to come, so they can be told by their names.
fn takes_budget(model: &str) -> bool {
    let marks = ["claude-3", "-4-0", "-4-1", "-4-5", "-4-2025", "-4@2025"];
    model.ends_with("-4") || marks.iter().any(|mark| model.contains(mark))
}

/// In the middle of a model's turn, with a budget, the thoughts that led to the tool call must be
/// there; if nobody kept them, the rest of the turn goes without thinking rather than not at all.
fn has_lost_thoughts(turns: &[Turn]) -> bool {
    match turns {
        [.., assistant, user] if user.has("tool_result") => {
            !assistant.blocks.first().is_some_and(is_thought)
        }
        _ => false,
    }
}

fn tools(params: &mut Params, body: &mut Map<String, Value>) {
    let parallel = params.take("parallel_tool_calls");
    let choice = params.take("tool_choice");
    let Some(tools) = params.take_tools() else { return };
    body.insert("tools".into(), tools.into_iter().map(tool).collect());
    let choice = choice.map(|choice| match choice.as_str() {
        Some("required") => json!({"type": "any"}),
        Some(word) => json!({"type": word}),
        None => match params::function(&choice) {
            Some(function) => json!({"type": "tool", "name": function["name"]}),
            None => choice,
        },
    });
    let one_at_a_time = parallel == Some(Value::Bool(false));
    let choice = match choice {
        None if one_at_a_time => Some(json!({"type": "auto"})),
        choice => choice,
    };
    if let Some(mut choice) = choice {
        if one_at_a_time && choice.is_object() && choice["type"] != "none" {
            choice["disable_parallel_tool_use"] = true.into();
        }
        body.insert("tool_choice".into(), choice);
    }
}

/// A function in this dialect's words; the provider's own tools go as they are.
fn tool(tool: Value) -> Value {
    let Some(function) = params::function(&tool) else { return tool };
    let mut written = Map::new();
    params::copy(function, &["name", "description", "strict"], &mut written);
    let nothing = || json!({"type": "object", "properties": {}});
    let schema = function.get("parameters").filter(|it| it.is_object()).cloned();
    written.insert("input_schema".into(), schema.unwrap_or_else(nothing));
    if let Some(outer) = tool.as_object() {
        params::copy(outer, &["cache_control"], &mut written);
    }
    Value::Object(written)
}

/// The smallest budget that is taken.
const MIN_BUDGET: u64 = 1024;
