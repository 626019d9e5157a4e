//! Ollama's own dialect: a JSON per line, and a tool call always in one of them.

use serde_json::{Value, json};

use super::openai::{read_messages, read_tools};
use super::{Event, Part, PartKind, Signature, Told, Words};
use crate::chat::{Chat, Format, Model, ToolChoice, list, optional};
use crate::dates::rfc3339;
use crate::options::MAX_TOKENS;
use crate::problem::Problem;
use crate::reply::Finish;

pub(super) fn read(body: &Value) -> Result<Chat, Problem> {
    let model = Model::read(body)?;
    let messages = read_messages(list(body, "messages")?, "messages")?;
    // Negative numbers mean "without end" and "until the context is full".
    let max = body.pointer("/options/num_predict").and_then(Value::as_u64);
    let format = match body.get("format") {
        None | Some(Value::Null) => Format::Text,
        Some(Value::String(word)) if word.is_empty() => Format::Text,
        Some(Value::String(word)) if word == "json" => Format::Object,
        Some(schema) if schema.is_object() => Format::Schema(schema.clone()),
        Some(_) => {
            return Err(Problem::invalid("format must be \"json\" or a schema").param("format"));
        }
    };
    Ok(Chat {
        model,
        messages,
        stream: optional(body, "stream", Value::as_bool, "true or false")?.unwrap_or(true),
        include_usage: true,
        max_tokens: max.map(|max| u32::try_from(max).unwrap_or(MAX_TOKENS).min(MAX_TOKENS)),
        format,
        tools: read_tools(body),
        tool_choice: ToolChoice::Auto,
    })
}

pub(super) fn error(problem: &Problem) -> Value {
    json!({"error": problem.message})
}

pub(super) struct Ollama {
    /// The members that every line begins with, each followed by a comma.
    preamble: String,
    model: String,
    created_at: String,
}

impl Ollama {
    pub(super) fn new(signature: &Signature) -> Self {
        let (model, created_at) = (signature.model.clone(), rfc3339(signature.created));
        let name = Value::from(model.as_str());
        let preamble = format!("\"model\":{name},\"created_at\":\"{created_at}\",");
        Self { preamble, model, created_at }
    }

    /// A line in the middle, with these members after the role, given as JSON.
    fn line(&self, members: &str) -> Event {
        Event::plain(format!(
            "{{{}\"message\":{{\"role\":\"assistant\",{members}}},\"done\":false}}",
            self.preamble
        ))
    }

    fn last(&self, message: &Value, told: &Told<'_>) -> Value {
        let mut last = json!({
            "model": self.model,
            "created_at": self.created_at,
            "message": message,
            "done": true,
            "done_reason": reason(told.finish),
            "total_duration": 0,
        });
        if let Some(usage) = &told.usage {
            last["prompt_eval_count"] = usage.prompt.into();
            last["eval_count"] = usage.completion.into();
        }
        last
    }
}

impl Words for Ollama {
    fn open(&self) -> Vec<Event> {
        Vec::new()
    }

    fn piece(&self, part: &Part<'_>, _: usize, escaped: &str) -> Option<Event> {
        match part.kind {
            PartKind::Thoughts => {
                Some(self.line(&format!("\"content\":\"\",\"thinking\":\"{escaped}\"")))
            }
            PartKind::Text => Some(self.line(&format!("\"content\":\"{escaped}\""))),
            PartKind::Call(_) => None,
        }
    }

    fn end(&self, part: &Part<'_>, _: usize) -> Vec<Event> {
        let PartKind::Call(name) = part.kind else { return Vec::new() };
        // As they are: arguments that are cut make a line that is no JSON.
        let (name, arguments) = (Value::from(name), part.text());
        vec![self.line(&format!(
            "\"content\":\"\",\"tool_calls\":[{{\"function\":{{\"name\":{name},\"arguments\":{arguments}}}}}]"
        ))]
    }

    fn finish(&self, _: &Told<'_>) -> Vec<Event> {
        Vec::new()
    }

    fn done(&self, told: &Told<'_>) -> Vec<Event> {
        let message = json!({"role": "assistant", "content": ""});
        vec![Event::plain(self.last(&message, told).to_string())]
    }

    fn error(&self, problem: &Problem, _: bool) -> Event {
        Event::plain(error(problem).to_string())
    }

    fn whole(&self, told: &Told<'_>) -> Value {
        let mut message = json!({"role": "assistant", "content": ""});
        for part in told.parts {
            match part.kind {
                PartKind::Thoughts => message["thinking"] = part.text().into(),
                PartKind::Text => message["content"] = part.text().into(),
                PartKind::Call(name) => {
                    // Arguments that are cut have no form here; they come as the text they are.
                    let text = part.text();
                    let arguments = serde_json::from_str(&text).unwrap_or(Value::String(text));
                    message["tool_calls"] =
                        json!([{"function": {"name": name, "arguments": arguments}}]);
                }
            }
        }
        self.last(&message, told)
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Call => "stop",
        Finish::Length => "length",
    }
}
