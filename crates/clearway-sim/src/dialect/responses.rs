//! OpenAI's responses. Every event has a name and a number, and every part of the reply is an item of the output.

use serde_json::{Value, json};

use super::{Event, NUMBER, Part, PartKind, Signature, Told, Words};
use crate::chat::{Chat, Format, Message, Model, Tool, ToolChoice, max_tokens, optional, text_of};
use crate::frames::GAP;
use crate::problem::Problem;
use crate::reply::Finish;
use crate::usage::Usage;

pub(super) fn read(body: &Value) -> Result<Chat, Problem> {
    let model = Model::read(body)?;
    let mut messages = Vec::new();
    if let Some(text) = optional(body, "instructions", Value::as_str, "a string")? {
        messages.push(Message { role: "system".to_owned(), content: text.to_owned() });
    }
    match body.get("input") {
        Some(Value::String(text)) => {
            messages.push(Message { role: "user".to_owned(), content: text.clone() });
        }
        Some(Value::Array(items)) if !items.is_empty() => {
            for (index, item) in items.iter().enumerate() {
                messages.extend(read_item(index, item)?);
            }
        }
        Some(_) | None => {
            return Err(Problem::invalid("input must be a text or a list of items").param("input"));
        }
    }
    Ok(Chat {
        model,
        messages,
        stream: optional(body, "stream", Value::as_bool, "true or false")?.unwrap_or(false),
        include_usage: true,
        max_tokens: max_tokens(body, "max_output_tokens")?,
        format: read_format(body)?,
        tools: read_tools(body),
        tool_choice: match body.get("tool_choice") {
            Some(Value::String(word)) => ToolChoice::of_word(word),
            Some(choice) => ToolChoice::of_name(choice),
            None => ToolChoice::Auto,
        },
    })
}

/// An item of the input, as a message. Items that say nothing to the model (its own thoughts) are none.
fn read_item(index: usize, item: &Value) -> Result<Option<Message>, Problem> {
    let wrong = |what: &str| Err(Problem::invalid(format!("input[{index}].{what}")).param("input"));
    match item.get("type").and_then(Value::as_str) {
        None | Some("message") => {
            let Some(role) = item.get("role").and_then(Value::as_str) else {
                return wrong("role must be a string");
            };
            let Some(content) = text_of(item.get("content")) else {
                return wrong("content must be a string or an array of parts");
            };
            Ok(Some(Message { role: role.to_owned(), content }))
        }
        Some("function_call") => {
            Ok(Some(Message { role: "assistant".to_owned(), content: String::new() }))
        }
        Some("function_call_output") => match text_of(item.get("output")) {
            Some(content) => Ok(Some(Message { role: "tool".to_owned(), content })),
            None => wrong("output must be a string or an array of parts"),
        },
        Some(_) => Ok(None),
    }
}

fn read_tools(body: &Value) -> Vec<Tool> {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tools
        .iter()
        .filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"))
        .filter_map(|tool| Tool::read(tool, "parameters"))
        .collect()
}

fn read_format(body: &Value) -> Result<Format, Problem> {
    let Some(format) = body.pointer("/text/format").filter(|format| !format.is_null()) else {
        return Ok(Format::Text);
    };
    match (format.get("type").and_then(Value::as_str), format.get("schema")) {
        (Some("text"), _) => Ok(Format::Text),
        (Some("json_object"), _) => Ok(Format::Object),
        (Some("json_schema"), Some(schema)) if schema.is_object() => {
            Ok(Format::Schema(schema.clone()))
        }
        (Some(_) | None, _) => {
            let message = "text.format must be text, json_object, or json_schema with a schema";
            Err(Problem::invalid(message).param("text"))
        }
    }
}

pub(super) struct Responses {
    signature: Signature,
}

impl Responses {
    pub(super) fn new(signature: Signature) -> Self {
        Self { signature }
    }

    fn id(&self, prefix: &str) -> String {
        format!("{prefix}_sim_{:012x}", self.signature.number)
    }

    /// An event with these members, given as JSON with a comma behind each.
    fn event(name: &'static str, members: &str) -> Event {
        Event::named(
            name,
            format!("{{\"type\":\"{name}\",{GAP}{members}{GAP}\"sequence_number\":{NUMBER}}}"),
        )
    }

    /// An event about the whole response.
    fn about(&self, name: &'static str, response: &Value) -> Event {
        Self::event(name, &format!("\"response\":{response},"))
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Option<&Usage>) -> Value {
        json!({
            "id": self.id("resp"),
            "object": "response",
            "created_at": self.signature.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.signature.model,
            "output": output,
            "parallel_tool_calls": true,
            "store": false,
            "usage": usage.map(price),
        })
    }

    /// The response when it is over.
    fn ended(&self, told: &Told<'_>) -> Value {
        let output = told.parts.iter().map(|part| self.item(part, true)).collect();
        let mut response = self.response(status(told.finish), output, told.usage.as_ref());
        if told.finish == Finish::Length {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response
    }

    fn item_id(&self, part: &Part<'_>) -> String {
        self.id(match part.kind {
            PartKind::Thoughts => "rs",
            PartKind::Text => "msg",
            PartKind::Call(_) => "fc",
        })
    }

    fn item(&self, part: &Part<'_>, ended: bool) -> Value {
        let (id, status) = (self.item_id(part), if ended { "completed" } else { "in_progress" });
        match part.kind {
            PartKind::Thoughts => {
                let summary = if ended { vec![summary(&part.text())] } else { Vec::new() };
                json!({"id": id, "type": "reasoning", "summary": summary})
            }
            PartKind::Text => {
                let content = if ended { vec![output_text(&part.text())] } else { Vec::new() };
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            PartKind::Call(name) => {
                let arguments = if ended { part.text() } else { String::new() };
                json!({
                    "id": id,
                    "type": "function_call",
                    "status": status,
                    "call_id": self.id("call"),
                    "name": name,
                    "arguments": arguments,
                })
            }
        }
    }

    /// What every event about a part repeats.
    fn place(&self, part: &Part<'_>, place: usize) -> String {
        let index = match part.kind {
            PartKind::Thoughts => "\"summary_index\":0,",
            PartKind::Text => "\"content_index\":0,",
            PartKind::Call(_) => "",
        };
        format!("\"item_id\":\"{}\",\"output_index\":{place},{index}", self.item_id(part))
    }
}

impl Words for Responses {
    fn open(&self) -> Vec<Event> {
        let response = self.response("in_progress", Vec::new(), None);
        ["response.created", "response.in_progress"]
            .into_iter()
            .map(|name| self.about(name, &response))
            .collect()
    }

    fn begin(&self, part: &Part<'_>, place: usize) -> Vec<Event> {
        let item = self.item(part, false);
        let at = self.place(part, place);
        let mut events = vec![Self::event(
            "response.output_item.added",
            &format!("\"output_index\":{place},\"item\":{item},"),
        )];
        let (name, first) = match part.kind {
            PartKind::Thoughts => ("response.reasoning_summary_part.added", summary("")),
            PartKind::Text => ("response.content_part.added", output_text("")),
            PartKind::Call(_) => return events,
        };
        events.push(Self::event(name, &format!("{at}\"part\":{first},")));
        events
    }

    fn piece(&self, part: &Part<'_>, place: usize, escaped: &str) -> Option<Event> {
        let name = match part.kind {
            PartKind::Thoughts => "response.reasoning_summary_text.delta",
            PartKind::Text => "response.output_text.delta",
            PartKind::Call(_) => "response.function_call_arguments.delta",
        };
        let at = self.place(part, place);
        Some(Self::event(name, &format!("{at}\"delta\":\"{escaped}\",")))
    }

    fn end(&self, part: &Part<'_>, place: usize) -> Vec<Event> {
        let (at, text) = (self.place(part, place), part.json());
        let ended = |name, last: &Value| Self::event(name, &format!("{at}\"part\":{last},"));
        let item = self.item(part, true);
        let item = format!("\"output_index\":{place},\"item\":{item},");
        let mut events = match part.kind {
            PartKind::Thoughts => vec![
                Self::event(
                    "response.reasoning_summary_text.done",
                    &format!("{at}\"text\":{text},"),
                ),
                ended("response.reasoning_summary_part.done", &summary(&part.text())),
            ],
            PartKind::Text => vec![
                Self::event("response.output_text.done", &format!("{at}\"text\":{text},")),
                ended("response.content_part.done", &output_text(&part.text())),
            ],
            PartKind::Call(_) => vec![Self::event(
                "response.function_call_arguments.done",
                &format!("{at}\"arguments\":{text},"),
            )],
        };
        events.push(Self::event("response.output_item.done", &item));
        events
    }

    fn finish(&self, _: &Told<'_>) -> Vec<Event> {
        // The ends of the parts have said it, and the end of the response says why.
        Vec::new()
    }

    fn done(&self, told: &Told<'_>) -> Vec<Event> {
        let name = match told.finish {
            Finish::Stop | Finish::Call => "response.completed",
            Finish::Length => "response.incomplete",
        };
        vec![self.about(name, &self.ended(told))]
    }

    fn error(&self, problem: &Problem, begun: bool) -> Event {
        let Problem { message, code, kind, param, .. } = problem;
        let code = code.unwrap_or(kind);
        // There are two ways to fail, so each has its place here.
        if begun {
            let mut response = self.response("failed", Vec::new(), None);
            response["error"] = json!({"code": code, "message": message});
            return self.about("response.failed", &response);
        }
        let (message, param) = (Value::from(message.as_str()), json!(param));
        Self::event(
            "error",
            &format!("\"code\":\"{code}\",\"message\":{message},\"param\":{param},"),
        )
    }

    fn whole(&self, told: &Told<'_>) -> Value {
        self.ended(told)
    }
}

fn status(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Call => "completed",
        Finish::Length => "incomplete",
    }
}

fn output_text(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn summary(text: &str) -> Value {
    json!({"type": "summary_text", "text": text})
}

fn price(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.thoughts},
        "total_tokens": usage.total(),
    })
}
