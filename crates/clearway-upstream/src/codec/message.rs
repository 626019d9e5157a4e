//! Canonical messages, as the writers of requests look at them.
//!
//! LangChain's shape: `type`, `content` (a text or a list of parts), `tool_calls`, … Parts may be
//! anybody's: what means a text or an image is recognised in the spelling of any provider.

use std::borrow::Cow;
use std::sync::Arc;

use clearway_core::message::Role;
use serde_json::{Map, Value, json};

use super::{BuildError, full};

/// One message, known to have a role, a content, and the id of what it answers if it is a tool's.
#[derive(Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) at: usize,
    pub(super) role: Role,
    value: &'a Value,
}

/// All of a conversation.
pub(super) fn read_all(messages: &[Arc<Value>]) -> Result<Vec<Message<'_>>, BuildError> {
    if messages.is_empty() {
        return Err(BuildError::None);
    }
    messages.iter().enumerate().map(|(at, value)| Message::read(at, value)).collect()
}

impl<'a> Message<'a> {
    fn read(at: usize, value: &'a Value) -> Result<Self, BuildError> {
        if !matches!(value["content"], Value::String(_) | Value::Array(_) | Value::Null) {
            return Err(BuildError::Content { at });
        }
        let role = match value["type"].as_str() {
            Some("system") => Role::System,
            Some("human") => Role::Human,
            Some("ai") => Role::Ai,
            Some("tool") if !value["tool_call_id"].is_string() => {
                return Err(BuildError::ToolCallId { at });
            }
            Some("tool") => Role::Tool,
            _ => return Err(BuildError::Type { at, found: value["type"].to_string() }),
        };
        Ok(Self { at, role, value })
    }

    pub(super) fn content(&self) -> &'a Value {
        &self.value["content"]
    }

    /// The text of its content; parts that are not text (thoughts, raw tool calls) stay behind.
    pub(super) fn text(&self) -> Cow<'a, str> {
        match self.content() {
            Value::Array(parts) => parts
                .iter()
                .filter_map(|part| part.as_str().or_else(|| part["text"].as_str()))
                .collect(),
            other => other.as_str().unwrap_or_default().into(),
        }
    }

    /// The parts of its content; a text is the only part of itself.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'a>> + use<'a> {
        let (text, list) = match self.content() {
            Value::Array(parts) => (None, &parts[..]),
            other => (full(other), &[][..]),
        };
        text.map(Part::Text).into_iter().chain(list.iter().map(Part::read))
    }

    pub(super) fn name(&self) -> Option<&'a str> {
        full(&self.value["name"])
    }

    /// The call that a tool's message answers.
    pub(super) fn tool_call_id(&self) -> &'a str {
        self.value["tool_call_id"].as_str().unwrap_or_default()
    }

    /// A tool's message that tells of a failure.
    pub(super) fn is_failure(&self) -> bool {
        self.value["status"] == "error"
    }

    /// The calls that it makes, those with arguments that are no JSON among them.
    pub(super) fn tool_calls(&self) -> impl Iterator<Item = ToolCall<'a>> + use<'a> {
        let canonical = ["tool_calls", "invalid_tool_calls"];
        let list = |name: &str| self.value[name].as_array().into_iter().flatten();
        let calls = canonical.into_iter().flat_map(list).map(|call| ToolCall {
            id: call["id"].as_str().unwrap_or_default(),
            name: call["name"].as_str().unwrap_or_default(),
            args: &call["args"],
        });
        let raw = self.raw_tool_calls().iter().map(|call| ToolCall {
            id: call["id"].as_str().unwrap_or_default(),
            name: call["function"]["name"].as_str().unwrap_or_default(),
            args: &call["function"]["arguments"],
        });
        calls.chain(raw).collect::<Vec<_>>().into_iter()
    }

    /// The calls as an OpenAI provider sent them, if they were not read into canonical ones.
    pub(super) fn raw_tool_calls(&self) -> &'a [Value] {
        let is_empty = |name: &str| self.value[name].as_array().is_none_or(Vec::is_empty);
        let raw = self.value["additional_kwargs"]["tool_calls"].as_array();
        match raw {
            Some(raw) if is_empty("tool_calls") && is_empty("invalid_tool_calls") => raw,
            Some(_) | None => &[],
        }
    }
}

/// A part of a message's content.
pub(super) enum Part<'a> {
    Text(&'a str),
    Image {
        /// Often a `data:` one.
        url: Cow<'a, str>,
        /// How closely to look at it.
        detail: Option<&'a str>,
    },
    Other(&'a Value),
}

impl<'a> Part<'a> {
    pub(super) fn read(part: &'a Value) -> Self {
        if let Some(text) = part.as_str() {
            return Self::Text(text);
        }
        let image = |url: &'a str| Self::Image { url: url.into(), detail: part["detail"].as_str() };
        let data = |data: &str, kind: &Value| Self::Image {
            url: format!("data:{};base64,{data}", kind.as_str().unwrap_or("image/png")).into(),
            detail: None,
        };
        let found = match part["type"].as_str() {
            Some("text" | "input_text" | "output_text") => part["text"].as_str().map(Self::Text),
            Some("image_url" | "input_image") => {
                let inner = &part["image_url"];
                let detail = inner["detail"].as_str().or_else(|| part["detail"].as_str());
                let url = inner.as_str().or_else(|| inner["url"].as_str());
                url.map(|url| Self::Image { url: url.into(), detail })
            }
            // LangChain's own carry a URL, or data with its type; Anthropic's have a source.
            Some("image") => part["url"]
                .as_str()
                .or_else(|| part["source"]["url"].as_str())
                .map(image)
                .or_else(|| {
                    let base64 = part["base64"].as_str().or_else(|| part["data"].as_str())?;
                    Some(data(base64, &part["mime_type"]))
                })
                .or_else(|| {
                    let source = &part["source"];
                    Some(data(source["data"].as_str()?, &source["media_type"]))
                }),
            _ => None,
        };
        found.unwrap_or(Self::Other(part))
    }
}

/// Media type and base64 text of a `data:` URL.
pub(super) fn data_url(url: &str) -> Option<(&str, &str)> {
    let (kind, data) = url.strip_prefix("data:")?.split_once(',')?;
    let kind = kind.strip_suffix(";base64")?;
    Some((kind.split(';').next().unwrap_or_default(), data))
}

/// What kind of part it is, for a refusal.
pub(super) fn describe(part: &Value) -> String {
    format!("a part of type {}", part["type"])
}

/// A call of a tool.
#[derive(Clone, Copy)]
pub(super) struct ToolCall<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    args: &'a Value,
}

impl<'a> ToolCall<'a> {
    /// Its arguments as a text; those that are no JSON are kept as the model wrote them.
    pub(super) fn arguments(&self) -> Cow<'a, str> {
        match self.args {
            Value::String(text) => text.into(),
            Value::Null => "{}".into(),
            args => args.to_string().into(),
        }
    }

    /// Its arguments where only an object will do.
    pub(super) fn input(&self) -> Map<String, Value> {
        let read = match self.args {
            Value::String(text) if text.trim().is_empty() => Some(Value::Null),
            Value::String(text) => serde_json::from_str(text).ok(),
            args => Some(args.clone()),
        };
        match read {
            Some(Value::Object(input)) => input,
            Some(Value::Null) => Map::new(),
            // The model should see its mistake.
            Some(_) | None => Map::from_iter([("arguments".to_owned(), json!(self.args))]),
        }
    }
}
