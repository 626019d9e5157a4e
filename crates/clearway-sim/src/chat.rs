//! A chat as the simulated model sees it, whatever the dialect: as strict as a provider where a client could be
//! wrong, blind to what the simulator does not use (temperature, penalties).
//!
//! Here are the parts that all dialects share; how each of them words a request is in `dialect`.

use serde_json::Value;

use crate::fault::FaultSpec;
use crate::options::MAX_TOKENS;
use crate::problem::Problem;

/// A request for a chat.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) model: Model,
    pub(crate) messages: Vec<Message>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) format: Format,
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
}

#[derive(Debug)]
pub(crate) struct Message {
    /// `tool` for a tool's answer, in every dialect.
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

/// A tool that the model may call.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) name: String,
    /// The schema of its arguments.
    pub(crate) parameters: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// The model calls if it is told to.
    Auto,
    Never,
    /// Some tool must be called.
    Any,
    Named(String),
}

impl Tool {
    /// A tool with its schema under the name `schema`.
    pub(crate) fn read(raw: &Value, schema: &str) -> Option<Self> {
        let name = raw.get("name")?.as_str()?.to_owned();
        Some(Self { name, parameters: raw.get(schema).cloned().unwrap_or(Value::Null) })
    }
}

impl ToolChoice {
    pub(crate) fn of_word(word: &str) -> Self {
        match word {
            "none" => Self::Never,
            "required" | "any" => Self::Any,
            _ => Self::Auto,
        }
    }

    /// The choice of `{name}`.
    pub(crate) fn of_name(choice: &Value) -> Self {
        let name = choice.get("name").and_then(Value::as_str);
        name.map_or(Self::Auto, |name| Self::Named(name.to_owned()))
    }
}

/// A model name, which may carry a fault and a number of thoughts: `gpt-5-mini+think:10+stall:3`.
#[derive(Debug)]
pub(crate) struct Model {
    /// As asked for; echoed in replies.
    pub(crate) name: String,
    base_len: usize,
    pub(crate) fault: Option<FaultSpec>,
    /// So many pieces of reasoning come first.
    pub(crate) thoughts: Option<u32>,
}

/// Thoughts when no number is given.
const DEFAULT_THOUGHTS: u32 = 20;

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
        let mut suffixes = name.split('+');
        let base_len = suffixes.next().unwrap_or_default().len();
        let (mut fault, mut thoughts) = (None, None);
        for suffix in suffixes {
            let wrong = |message: String| Problem::invalid(message).param("model");
            let twice = match suffix.strip_prefix("think") {
                Some(count) => thoughts.replace(read_thoughts(count).map_err(wrong)?).is_some(),
                None => {
                    let spec = suffix.parse().map_err(|error| wrong(format!("{error}")))?;
                    fault.replace(spec).is_some()
                }
            };
            if twice {
                return Err(wrong(format!("one fault and one think at most: {name}")));
            }
        }
        Ok(Self { base_len, fault, thoughts, name })
    }

    /// The name without fault and thoughts.
    pub(crate) fn base(&self) -> &str {
        &self.name[..self.base_len]
    }
}

/// What follows `think`: nothing, or `:N`.
fn read_thoughts(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(DEFAULT_THOUGHTS);
    }
    let count = text.strip_prefix(':').and_then(|count| count.parse().ok());
    count
        .filter(|count| *count <= MAX_TOKENS)
        .ok_or_else(|| format!("think takes a whole number, at most {MAX_TOKENS}: think{text}"))
}

impl Chat {
    /// The model's name without the fault.
    pub(crate) fn base_model(&self) -> &str {
        self.model.base()
    }

    /// The text of the last message by the user, or nothing.
    pub(crate) fn last_user_text(&self) -> &str {
        let last = self.messages.iter().rev().find(|message| message.role == "user");
        last.map_or("", |message| &message.content)
    }

    /// What a tool answered, if that is the last message.
    pub(crate) fn tool_answer(&self) -> Option<&str> {
        let last = self.messages.last().filter(|message| message.role == "tool");
        last.map(|message| message.content.as_str())
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

/// A text, or the texts among an array of parts, or nothing; `None` for what is neither.
pub(crate) fn text_of(content: Option<&Value>) -> Option<String> {
    match content {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
            Some(texts.collect::<Vec<_>>().join("\n"))
        }
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => None,
    }
}

/// A member that must be an array with something in it.
pub(crate) fn list<'a>(body: &'a Value, name: &'static str) -> Result<&'a [Value], Problem> {
    match body.get(name) {
        Some(Value::Array(items)) if items.is_empty() => {
            Err(Problem::invalid(format!("{name} must not be empty")).param(name))
        }
        Some(Value::Array(items)) => Ok(items),
        Some(_) | None => Err(Problem::invalid(format!("{name} must be an array")).param(name)),
    }
}

/// A bound on tokens; more than a reply can have is the same as none.
pub(crate) fn max_tokens(body: &Value, name: &'static str) -> Result<Option<u32>, Problem> {
    let max = optional(body, name, Value::as_u64, "a whole number")?;
    Ok(max.map(|max| u32::try_from(max).unwrap_or(MAX_TOKENS).min(MAX_TOKENS)))
}

/// A member that may be missing or null, but not of another type.
pub(crate) fn optional<'a, T>(
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

    #[test]
    fn a_model_may_carry_a_fault_and_thoughts() {
        let model = |name: &str| Model::read(&json!({ "model": name }));
        let stalling = model("gpt-5-mini+stall:3").unwrap();
        assert_eq!((stalling.base(), stalling.name.as_str()), ("gpt-5-mini", "gpt-5-mini+stall:3"));
        assert_eq!(stalling.fault, Some(FaultSpec { fault: Fault::Stall, value: Some(3) }));
        assert_eq!(model("plain").unwrap().fault, None);
        let both = model("m+think:7+bom").unwrap();
        assert_eq!(
            (both.base(), both.thoughts, both.fault),
            ("m", Some(7), Some(Fault::Bom.into()))
        );
        assert_eq!(model("m+stall+think").unwrap().thoughts, Some(DEFAULT_THOUGHTS));
        let error = |name: &str| model(name).unwrap_err().message;
        assert!(error("m+stal").contains("did you mean stall?"));
        assert!(error("m+stal+think:1").contains("did you mean stall?"));
        assert!(error("m+think:much").contains("think takes a whole number"));
        assert!(error("m+thinks").contains("think takes a whole number"));
        assert!(error("m+stall+cut_rst").contains("one fault"));
    }
}
