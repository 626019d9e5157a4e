//! OpenAI's chat completions.

use serde_json::{Value, json};

use super::{Event, Part, PartKind, Signature, Told, Words};
use crate::chat::{
    Chat, Format, Message, Model, Tool, ToolChoice, list, max_tokens, optional, text_of,
};
use crate::frames::GAP;
use crate::problem::Problem;
use crate::reply::Finish;
use crate::usage::Usage;

const FINGERPRINT: &str = "fp_clearway_sim";

pub(super) fn read(body: &Value) -> Result<Chat, Problem> {
    let model = Model::read(body)?;
    let messages = read_messages(list(body, "messages")?, "messages")?;
    if optional(body, "n", Value::as_u64, "a whole number")?.is_some_and(|n| n != 1) {
        return Err(Problem::invalid("n must be 1: the simulator gives one choice").param("n"));
    }
    let usage =
        body.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false);
    Ok(Chat {
        model,
        messages,
        stream: optional(body, "stream", Value::as_bool, "true or false")?.unwrap_or(false),
        include_usage: usage,
        max_tokens: max_tokens(body, "max_completion_tokens")?.or(max_tokens(body, "max_tokens")?),
        format: read_format(body)?,
        tools: read_tools(body),
        tool_choice: read_tool_choice(body.get("tool_choice")),
    })
}

/// Messages with `role` and `content`, as others have them too.
pub(super) fn read_messages(raw: &[Value], member: &'static str) -> Result<Vec<Message>, Problem> {
    let read = |(index, raw): (usize, &Value)| {
        let Some(Value::String(role)) = raw.get("role") else {
            let message = format!("{member}[{index}].role must be a string");
            return Err(Problem::invalid(message).param(member));
        };
        let Some(content) = text_of(raw.get("content")) else {
            let message =
                format!("{member}[{index}].content must be a string or an array of parts");
            return Err(Problem::invalid(message).param(member));
        };
        Ok(Message { role: role.clone(), content })
    };
    raw.iter().enumerate().map(read).collect()
}

/// Tools as `{type: function, function: {name, parameters}}`.
pub(super) fn read_tools(body: &Value) -> Vec<Tool> {
    let tools = body.get("tools").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    tools.iter().filter_map(|tool| Tool::read(tool.get("function")?, "parameters")).collect()
}

fn read_tool_choice(choice: Option<&Value>) -> ToolChoice {
    match choice {
        Some(Value::String(word)) => ToolChoice::of_word(word),
        Some(choice) => match choice.pointer("/function/name").and_then(Value::as_str) {
            Some(name) => ToolChoice::Named(name.to_owned()),
            None => ToolChoice::Auto,
        },
        None => ToolChoice::Auto,
    }
}

fn read_format(body: &Value) -> Result<Format, Problem> {
    let wrong = |message: &str| Err(Problem::invalid(message).param("response_format"));
    let Some(format) = body.get("response_format").filter(|format| !format.is_null()) else {
        return Ok(Format::Text);
    };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(Format::Object),
        Some("json_schema") => match format.pointer("/json_schema/schema") {
            Some(schema) if schema.is_object() => Ok(Format::Schema(schema.clone())),
            Some(_) | None => wrong("response_format.json_schema.schema must be an object"),
        },
        Some(_) | None => wrong("response_format.type must be text, json_object or json_schema"),
    }
}

pub(super) fn error(problem: &Problem) -> Value {
    let Problem { message, kind, param, code, .. } = problem;
    json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
}

pub(super) struct OpenAi {
    id: String,
    call_id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// The members before `choices`, each followed by a comma.
    preamble: String,
    /// What follows `choices` in each event.
    postamble: &'static str,
}

impl OpenAi {
    pub(super) fn new(signature: &Signature, include_usage: bool) -> Self {
        let Signature { number, created, model } = signature;
        let id = format!("chatcmpl-sim-{number:012x}");
        let name = Value::from(model.as_str());
        let preamble = format!(
            "\"id\":\"{id}\",{GAP}\"object\":\"chat.completion.chunk\",{GAP}\"created\":{created},\
             {GAP}\"model\":{name},{GAP}\"system_fingerprint\":\"{FINGERPRINT}\",{GAP}"
        );
        Self {
            id,
            call_id: format!("call_sim_{number:012x}"),
            created: *created,
            model: model.clone(),
            include_usage,
            preamble,
            // Providers that were asked for usage say `null` in every event but the one that has it.
            postamble: if include_usage { ",\"usage\":null}" } else { "}" },
        }
    }

    fn choice(&self, delta: &str, reason: Option<&str>) -> Event {
        let reason = reason.map_or("null".to_owned(), |reason| format!("\"{reason}\""));
        let Self { preamble, postamble, .. } = self;
        Event::plain(format!(
            "{{{preamble}\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}]{postamble}"
        ))
    }
}

impl Words for OpenAi {
    fn open(&self) -> Vec<Event> {
        vec![self.choice(r#"{"role":"assistant","content":"","refusal":null}"#, None)]
    }

    fn begin(&self, part: &Part<'_>, _: usize) -> Vec<Event> {
        match part.kind {
            PartKind::Thoughts | PartKind::Text => Vec::new(),
            PartKind::Call(name) => {
                let function = json!({"name": name, "arguments": ""});
                let call = json!([{"index": 0, "id": self.call_id, "type": "function", "function": function}]);
                vec![self.choice(&json!({ "tool_calls": call }).to_string(), None)]
            }
        }
    }

    fn piece(&self, part: &Part<'_>, _: usize, escaped: &str) -> Option<Event> {
        let delta = match part.kind {
            PartKind::Thoughts => format!("{{\"reasoning_content\":\"{escaped}\"}}"),
            PartKind::Text => format!("{{\"content\":\"{escaped}\"}}"),
            PartKind::Call(_) => format!(
                "{{\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":\"{escaped}\"}}}}]}}"
            ),
        };
        Some(self.choice(&delta, None))
    }

    fn finish(&self, told: &Told<'_>) -> Vec<Event> {
        vec![self.choice("{}", Some(reason(told.finish)))]
    }

    fn usage(&self, told: &Told<'_>) -> Vec<Event> {
        let usage = told.usage.as_ref().filter(|_| self.include_usage);
        let event = |usage: &Usage| {
            Event::plain(format!("{{{}\"choices\":[],\"usage\":{}}}", self.preamble, price(usage)))
        };
        usage.map(event).into_iter().collect()
    }

    fn done(&self, _: &Told<'_>) -> Vec<Event> {
        vec![Event::plain("[DONE]")]
    }

    fn no_choices(&self) -> Option<Event> {
        Some(Event::plain(format!("{{{}\"choices\":[]{}", self.preamble, self.postamble)))
    }

    fn error(&self, problem: &Problem, _: bool) -> Event {
        Event::plain(error(problem).to_string())
    }

    fn whole(&self, told: &Told<'_>) -> Value {
        let mut message = json!({"role": "assistant", "content": null, "refusal": null});
        for part in told.parts {
            match part.kind {
                PartKind::Thoughts => message["reasoning_content"] = part.text().into(),
                PartKind::Text => message["content"] = part.text().into(),
                PartKind::Call(name) => {
                    let function = json!({"name": name, "arguments": part.text()});
                    message["tool_calls"] =
                        json!([{"id": self.call_id, "type": "function", "function": function}]);
                }
            }
        }
        let finish = reason(told.finish);
        let choices = if told.parts.is_empty() {
            json!([])
        } else {
            json!([{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}])
        };
        let mut body = json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        });
        if let Some(usage) = &told.usage {
            body["usage"] = price(usage);
        }
        body
    }
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Call => "tool_calls",
    }
}

fn price(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total(),
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": usage.thoughts},
    })
}
