//! Reading a chat completion request: as strict as a provider where a client could be wrong, blind to what the
//! simulator does not use (temperature, tools, penalties).

use serde_json::Value;

use crate::fault::FaultSpec;
use crate::options::MAX_TOKENS;
use crate::problem::Problem;

/// A chat completion request.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) model: Model,
    pub(crate) messages: Vec<Message>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) format: Format,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) role: String,
    pub(crate) content: String,
}

/// What the reply must look like.
#[derive(Debug)]
pub(crate) enum Format {
    Text,
    Object,
    Schema(Value),
}

/// A model name, which may carry a fault: `gpt-5-mini+stall:3`.
#[derive(Debug)]
pub(crate) struct Model {
    /// As asked for; echoed in replies.
    pub(crate) name: String,
    base_len: usize,
    pub(crate) fault: Option<FaultSpec>,
}

impl Model {
    /// Reads the member `model`. A suffix that is no fault is an error, because a test with a misspelt fault would
    /// pass without having tested anything.
    pub(crate) fn read(body: &Value) -> Result<Self, Problem> {
        let name = match body.get("model") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            Some(Value::String(_)) | None => {
                return Err(Problem::invalid("you must provide a model parameter").param("model"));
            }
            Some(_) => return Err(Problem::invalid("model must be a string").param("model")),
        };
        let (base_len, fault) = match name.rsplit_once('+') {
            None => (name.len(), None),
            Some((base, suffix)) => {
                let fault = suffix
                    .parse()
                    .map_err(|error| Problem::invalid(format!("{error}")).param("model"))?;
                (base.len(), Some(fault))
            }
        };
        Ok(Self { name, base_len, fault })
    }

    /// The name without the fault.
    pub(crate) fn base(&self) -> &str {
        &self.name[..self.base_len]
    }
}

impl Chat {
    pub(crate) fn read(body: &Value) -> Result<Self, Problem> {
        let model = Model::read(body)?;
        let Some(Value::Array(raw)) = body.get("messages") else {
            return Err(Problem::invalid("messages must be an array").param("messages"));
        };
        if raw.is_empty() {
            return Err(Problem::invalid("messages must not be empty").param("messages"));
        }
        let messages = raw
            .iter()
            .enumerate()
            .map(|(index, raw)| Message::read(index, raw))
            .collect::<Result<_, _>>()?;
        if optional(body, "n", Value::as_u64, "a whole number")?.is_some_and(|n| n != 1) {
            return Err(Problem::invalid("n must be 1: the simulator gives one choice").param("n"));
        }
        let stream = optional(body, "stream", Value::as_bool, "true or false")?.unwrap_or(false);
        let usage =
            body.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false);
        let max_tokens = optional(body, "max_completion_tokens", Value::as_u64, "a whole number")?
            .or(optional(body, "max_tokens", Value::as_u64, "a whole number")?)
            .map(|max| u32::try_from(max).unwrap_or(MAX_TOKENS).min(MAX_TOKENS));
        Ok(Self {
            model,
            messages,
            stream,
            include_usage: usage,
            max_tokens,
            format: Format::read(body)?,
        })
    }

    /// The model's name without the fault.
    pub(crate) fn base_model(&self) -> &str {
        self.model.base()
    }

    /// The text of the last message by the user, or nothing.
    pub(crate) fn last_user_text(&self) -> &str {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        last.map_or("", |message| &message.content)
    }

    /// How many messages the user has sent.
    pub(crate) fn turn(&self) -> usize {
        self.messages.iter().filter(|message| message.role == "user").count()
    }

    /// A token per word: the accounting only has to be plausible and deterministic.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.messages
            .iter()
            .map(|message| 3 + message.content.split_ascii_whitespace().count())
            .sum()
    }
}

impl Message {
    fn read(index: usize, raw: &Value) -> Result<Self, Problem> {
        let Some(Value::String(role)) = raw.get("role") else {
            return Err(Problem::invalid(format!("messages[{index}].role must be a string"))
                .param("messages"));
        };
        let content = match raw.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                let texts =
                    parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
                texts.collect::<Vec<_>>().join("\n")
            }
            None | Some(Value::Null) => String::new(),
            Some(_) => {
                let message =
                    format!("messages[{index}].content must be a string or an array of parts");
                return Err(Problem::invalid(message).param("messages"));
            }
        };
        Ok(Self { role: role.clone(), content })
    }
}

impl Format {
    fn read(body: &Value) -> Result<Self, Problem> {
        let Some(format) = body.get("response_format").filter(|format| !format.is_null()) else {
            return Ok(Self::Text);
        };
        match format.get("type").and_then(Value::as_str) {
            Some("text") => Ok(Self::Text),
            Some("json_object") => Ok(Self::Object),
            Some("json_schema") => match format.pointer("/json_schema/schema") {
                Some(schema) if schema.is_object() => Ok(Self::Schema(schema.clone())),
                Some(_) | None => {
                    Err(Problem::invalid("response_format.json_schema.schema must be an object")
                        .param("response_format"))
                }
            },
            Some(_) | None => Err(Problem::invalid(
                "response_format.type must be text, json_object or json_schema",
            )
            .param("response_format")),
        }
    }
}

/// A member that may be missing or null, but not of another type.
fn optional<'a, T>(
    body: &'a Value,
    name: &'static str,
    read: impl FnOnce(&'a Value) -> Option<T>,
    wanted: &str,
) -> Result<Option<T>, Problem> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Problem::invalid(format!("{name} must be {wanted}")).param(name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fault::Fault;

    #[expect(clippy::needless_pass_by_value, reason = "reads better with json! literals")]
    fn read(body: Value) -> Result<Chat, String> {
        Chat::read(&body).map_err(|problem| problem.body())
    }

    #[test]
    fn texts_parts_and_turns() {
        let chat = read(json!({"model": "m", "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": null},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]},
        ]}))
        .unwrap();
        assert_eq!(
            (chat.last_user_text(), chat.turn(), chat.stream, chat.include_usage),
            ("a\nb", 2, false, false)
        );
        assert_eq!(chat.prompt_tokens(), 12 + 2 + 1 + 2);
    }

    #[test]
    fn a_model_may_carry_a_fault() {
        let model = |name: &str| Model::read(&json!({ "model": name }));
        let stalling = model("gpt-5-mini+stall:3").unwrap();
        assert_eq!((stalling.base(), stalling.name.as_str()), ("gpt-5-mini", "gpt-5-mini+stall:3"));
        assert_eq!(stalling.fault, Some(FaultSpec { fault: Fault::Stall, value: Some(3) }));
        assert_eq!(model("plain").unwrap().fault, None);
        let error = model("m+stal").unwrap_err().body();
        assert!(error.contains("did you mean stall?"), "{error}");
    }

    #[test]
    fn wrong_requests_are_named() {
        let messages = json!([{"role": "user", "content": "x"}]);
        let cases = [
            (json!({"messages": messages}), "provide a model"),
            (json!({"model": 1, "messages": messages}), "model must be a string"),
            (json!({"model": "m"}), "messages must be an array"),
            (json!({"model": "m", "messages": []}), "must not be empty"),
            (json!({"model": "m", "messages": [{}]}), "messages[0].role"),
            (
                json!({"model": "m", "messages": [{"role": "user", "content": 1}]}),
                "messages[0].content",
            ),
            (json!({"model": "m", "messages": messages, "n": 2}), "n must be 1"),
            (
                json!({"model": "m", "messages": messages, "stream": "yes"}),
                "stream must be true or false",
            ),
            (
                json!({"model": "m", "messages": messages, "response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"model": "m", "messages": messages, "response_format": {"type": "json_schema"}}),
                "schema must be",
            ),
        ];
        for (body, expected) in cases {
            let error = read(body).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
