//! One call of a tool, from the model's words to the message that answers it.

use std::sync::{Arc, Mutex};

use clearway_core::channel::Write;
use clearway_core::event::EventKind;
use clearway_core::message::{Content, Message, Role};
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Failure};
use serde_json::{Map, Value, json};
use tokio::time::timeout_at;

use super::{Offer, RESULT_BYTES, Tool, ToolCall, ToolError, ToolReply};
use crate::agent::NodeError;
use crate::clock::instant;
use crate::ctx::Ctx;
use crate::durable::{ActionError, Effect};
use crate::live::lock;

/// A call as the model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub id: String,
    pub name: String,
    /// An object; a text that is none when the model wrote no JSON.
    pub args: Value,
}

impl Asked {
    /// The calls of a model's message.
    pub(super) fn of(message: &Value) -> Vec<Self> {
        let list = |name: &str| message[name].as_array().into_iter().flatten();
        list("tool_calls").chain(list("invalid_tool_calls")).map(Self::from_json).collect()
    }

    pub(super) fn from_json(call: &Value) -> Self {
        let text = |name: &str| call[name].as_str().unwrap_or_default().to_owned();
        Self { id: text("id"), name: text("name"), args: call["args"].clone() }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"name": self.name, "args": self.args, "id": self.id, "type": "tool_call"})
    }
}

/// What a call leaves.
#[derive(Debug)]
pub(super) struct Answered {
    pub message: Message,
    pub writes: Vec<Write>,
}

/// Makes a call. What goes wrong is told to the model, unless it means the whole run.
///
/// `name` tells the calls of one node apart; `id` is the answering message's.
pub(super) async fn make(
    cx: &Ctx,
    offer: &Offer,
    asked: &Asked,
    name: &str,
    id: String,
) -> Result<Answered, NodeError> {
    let Some(tool) = offer.find(&asked.name) else {
        let text = format!("there is no tool `{}`; there are: {}", asked.name, offer.names());
        return Ok(told(asked, id, &Failure::new(Code::NotFound, text)));
    };
    let arguments = match arguments(&tool.spec().arguments, &asked.args) {
        Ok(arguments) => arguments,
        Err(failure) => return Ok(told(asked, id, &failure)),
    };
    let started = json!({
        "call_id": asked.id, "name": asked.name, "tool": tool.spec().id, "node": &*cx.node,
    });
    cx.fact(EventKind::ToolStarted, &started)?;
    let begun = instant();
    let deadline = cx.deadline.clip(begun, tool.spec().deadline);
    cx.wait.enter(WaitKind::Tool, tool.spec().id.as_str(), Some(deadline), begun);
    let key = format!("{}-{name}", cx.task);
    let call = ToolCall { id: asked.id.clone(), arguments, key };
    let outcome = perform(cx, tool, name, call, deadline.0).await;
    cx.wait.enter(WaitKind::Work, "", Some(cx.deadline), instant());
    let outcome = outcome?;
    let mut completed = started;
    completed["status"] = if outcome.is_ok() { "success" } else { "error" }.into();
    if let Err(failure) = &outcome {
        completed["error"] = failure.to_json();
    }
    let ms = instant().saturating_duration_since(begun).as_millis();
    completed["ms"] = u64::try_from(ms).unwrap_or(u64::MAX).into();
    cx.fact(EventKind::ToolCompleted, &completed)?;
    Ok(match outcome {
        Ok(reply) => Answered {
            message: message(asked, id, content(reply.content), "success"),
            writes: reply.writes,
        },
        Err(failure) => told(asked, id, &failure),
    })
}

/// A call that is refused or has failed, as the model is told.
pub(super) fn told(asked: &Asked, id: String, failure: &Failure) -> Answered {
    let text = format!("error ({}): {}", failure.code, failure.message);
    let message = message(asked, id, Content::Text(text), "error");
    Answered { message, writes: Vec::new() }
}

fn message(asked: &Asked, id: String, content: Content, status: &str) -> Message {
    let mut message = Message { content, ..Message::new(Role::Tool, "", id) };
    message.rest.insert("tool_call_id".to_owned(), asked.id.as_str().into());
    message.rest.insert("name".to_owned(), asked.name.as_str().into());
    message.rest.insert("status".to_owned(), status.into());
    message
}

/// An answer for the model, cut where it is longer than a prompt should bear.
fn content(content: Value) -> Content {
    let text = match content {
        Value::String(text) => text,
        Value::Array(parts) if !parts.is_empty() && parts.iter().all(is_part) => {
            let fits = parts.iter().map(|part| part.to_string().len()).sum::<usize>();
            match fits <= RESULT_BYTES * 4 {
                true => return Content::Parts(parts),
                false => Value::Array(parts).to_string(),
            }
        }
        Value::Null => String::new(),
        other => other.to_string(),
    };
    if text.len() <= RESULT_BYTES {
        return Content::Text(text);
    }
    let end = (0..=RESULT_BYTES).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let note = format!(
        "\n[cut: {} of {} bytes; `tool_result_bytes` is {RESULT_BYTES}]",
        text.len() - end,
        text.len()
    );
    Content::Text(text[..end].to_owned() + &note)
}

/// Parts as providers know them; a list of anything else is JSON.
fn is_part(part: &Value) -> bool {
    matches!(part["type"].as_str(), Some("text")) && part["text"].is_string()
        || matches!(part["type"].as_str(), Some("image" | "image_url"))
}

/// The arguments, if they fit the schema; else what is wrong, for the model.
fn arguments(schema: &Value, args: &Value) -> Result<Map<String, Value>, Failure> {
    let wrong = |why: String| Failure::new(Code::InvalidRequest, why);
    let arguments = match args {
        Value::Object(arguments) => arguments,
        Value::String(text) => {
            let text: String = text.chars().take(EXCERPT).collect();
            return Err(wrong(format!("the arguments are no JSON object: {text}")));
        }
        other => return Err(wrong(format!("the arguments must be a JSON object, not {other}"))),
    };
    // A schema that is itself wrong is no reason to refuse: the tool will say what it does not take.
    if let Ok(validator) = jsonschema::validator_for(schema) {
        let problems: Vec<String> = validator
            .iter_errors(args)
            .take(PROBLEMS)
            .map(|error| match error.instance_path().to_string() {
                path if path.is_empty() => error.to_string(),
                path => format!("at {path}: {error}"),
            })
            .collect();
        if !problems.is_empty() {
            return Err(wrong(format!("the arguments do not fit: {}", problems.join("; "))));
        }
    }
    Ok(arguments.clone())
}

/// Characters of wrong arguments that a model is shown.
const EXCERPT: usize = 200;

const PROBLEMS: usize = 5;

/// Runs the tool as its effect class asks for. The inner error is for the model, the outer one ends
/// the node call.
async fn perform(
    cx: &Ctx,
    tool: &Arc<dyn Tool>,
    name: &str,
    call: ToolCall,
    deadline: std::time::Instant,
) -> Result<Result<ToolReply, Failure>, NodeError> {
    let spec = tool.spec();
    let late = || {
        let text = format!("`{}` took longer than {} s", spec.id, spec.deadline.as_secs_f64());
        Failure::new(Code::DeadlineExceeded, text)
    };
    if spec.effect != Effect::Write {
        let outcome = timeout_at(deadline.into(), tool.call(cx, call)).await;
        return match outcome {
            Ok(Ok(reply)) => Ok(Ok(reply)),
            Ok(Err(ToolError::Failed(failure) | ToolError::Unknown(failure))) => Ok(Err(failure)),
            Ok(Err(ToolError::Stop(error))) => Err(error),
            // The run's own deadline is told by the run.
            Err(_) if cx.deadline.has_passed(instant()) => Err(late().into()),
            Err(_) => Ok(Err(late())),
        };
    }
    // What the tool itself says is wrong, as against what surrounds it.
    let refused: Mutex<Option<Failure>> = Mutex::new(None);
    let action = |key| async {
        let call = ToolCall { key, ..call };
        match timeout_at(deadline.into(), tool.call(cx, call)).await {
            Ok(Ok(reply)) => Ok(reply.to_json()),
            Ok(Err(ToolError::Failed(failure))) => {
                *lock(&refused) = Some(failure.clone());
                Err(ActionError::NotDone(failure))
            }
            Ok(Err(ToolError::Unknown(failure))) => Err(ActionError::Unknown(failure)),
            Ok(Err(ToolError::Stop(NodeError::Failed(failure)))) => {
                Err(ActionError::Unknown(failure))
            }
            Ok(Err(ToolError::Stop(_))) => {
                let text = format!("`{}` writes outward and cannot wait or ask", spec.id);
                Err(ActionError::NotDone(Failure::new(Code::Internal, text)))
            }
            Err(_) => Err(ActionError::Unknown(late())),
        }
    };
    match cx.act(name, Effect::Write, action).await {
        Ok(value) => Ok(Ok(ToolReply::from_json(value))),
        Err(error) => match lock(&refused).take() {
            Some(failure) => Ok(Err(failure)),
            None => Err(error),
        },
    }
}
