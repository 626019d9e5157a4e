//! The chat node: one model call over the thread's conversation.
//!
//! The history goes to the model within a token budget. When it does not fit, the oldest turns give
//! way, and an event says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use clearway_core::channel::Write;
use clearway_core::event::{EventKind, Part};
use clearway_core::machine::Output;
use clearway_core::message::{Message, Role};
use clearway_core::plan::MESSAGES;
use clearway_core::{Failure, message};
use clearway_upstream::{ChatEvent, ChatRequest};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::agent::{Node, NodeError};
use crate::ctx::{Ctx, Mark};

/// What a chat node needs to know.
#[derive(Clone)]
pub struct ChatOptions {
    /// Name of a configured model.
    pub model: String,
    /// Makes the system prompt of one call; an empty one is left out.
    pub system: Arc<SystemPrompt>,
    /// Budget for the conversation, in estimated tokens, system prompt not included.
    pub history_tokens: u32,
    /// Extra request parameters: `temperature`, `max_tokens`, …
    pub params: Map<String, Value>,
}

/// Renders a system prompt for a call.
pub type SystemPrompt = dyn Fn(&Ctx) -> Result<String, Failure> + Send + Sync;

impl fmt::Debug for ChatOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatOptions").field("model", &self.model).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug)]
pub struct ChatNode {
    options: ChatOptions,
}

impl ChatNode {
    pub const fn new(options: ChatOptions) -> Self {
        Self { options }
    }
}

#[async_trait::async_trait]
impl Node for ChatNode {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let message = complete(&cx, "", 0, self.request(&cx)?).await?;
        Ok(Output {
            writes: vec![Write::new(MESSAGES, message.to_value())],
            reply: Some(cx.message_id(0)),
            // The ledger has counted it, with the attempts that failed.
            ..Output::default()
        })
    }
}

/// Asks a model and shows its answer as the call's `index`-th message while it arrives. `name` tells
/// the provider calls of one node call apart.
///
/// # Errors
/// Those of the provider; parks when the budget does not cover the call.
pub async fn complete(
    cx: &Ctx,
    name: &str,
    index: u32,
    request: ChatRequest,
) -> Result<Message, NodeError> {
    let _reserved = cx.reserve(request.worst_case_tokens())?;
    let failed = clearway_upstream::Error::into_failure;
    let mut stream = cx.upstream.chat(cx.call(name), request).await.map_err(failed)?;
    let id = cx.message_id(index);
    let mut reply = Reply { id, ..Reply::default() };
    loop {
        // One read may bring many.
        let event = match stream.next_ready() {
            Some(event) => event,
            None => match stream.next().await.map_err(failed)? {
                Some(event) => event,
                None => break,
            },
        };
        if let ChatEvent::Reset { reason } = event {
            reply.take_back(cx, reason)?;
            continue;
        }
        reply.begin(cx)?;
        match event {
            ChatEvent::Text(text) => {
                reply.text.push_str(&text);
                cx.delta(id, Part::Text, &text)?;
            }
            ChatEvent::Reasoning(text) => {
                reply.reasoning.push_str(&text);
                cx.delta(id, Part::Reasoning, &text)?;
            }
            ChatEvent::ToolCall { index: at, id: call, name, arguments } => {
                let piece =
                    json!({"index": at, "id": call, "name": name, "args": arguments}).to_string();
                cx.delta(id, Part::ToolCall, &piece)?;
                reply.tool_call(
                    at,
                    ToolCall {
                        id: call.unwrap_or_default(),
                        name: name.unwrap_or_default(),
                        arguments,
                    },
                );
            }
            ChatEvent::Reset { .. } => {}
            ChatEvent::Finish { reason, usage } => {
                reply.finish_reason = Some(reason.as_str().to_owned());
                reply.usage = usage;
            }
        }
    }
    let (route, attempts) = (stream.route().to_owned(), stream.attempts());
    drop(stream);
    Ok(reply.close(cx, &route, attempts)?)
}

impl ChatNode {
    /// What to ask: the system prompt, and as much of the conversation as fits.
    pub(crate) fn request(&self, cx: &Ctx) -> Result<ChatRequest, Failure> {
        let history = cx.state.list(MESSAGES);
        let kept = fitting(history, self.options.history_tokens);
        let dropped = history.len() - kept;
        if dropped > 0 {
            let data = json!({
                "dropped_messages": dropped,
                "kept_messages": kept,
                "budget_tokens": self.options.history_tokens,
            });
            cx.fact(EventKind::HistoryTrimmed, &data)?;
        }
        let system = (self.options.system)(cx)?;
        let mut messages = Vec::with_capacity(kept + 1);
        if !system.trim().is_empty() {
            messages.push(Arc::new(Message::new(Role::System, system, "system").to_value()));
        }
        messages.extend_from_slice(&history[dropped..]);
        Ok(ChatRequest {
            model: self.options.model.clone(),
            messages,
            params: self.options.params.clone(),
        })
    }
}

/// A reply under way.
#[derive(Debug, Default)]
struct Reply {
    /// The message's.
    id: Uuid,
    /// Where the log ended before it, once it has begun.
    begun: Option<Mark>,
    text: String,
    reasoning: String,
    tool_calls: BTreeMap<u32, ToolCall>,
    finish_reason: Option<String>,
    usage: Option<clearway_upstream::Usage>,
}

#[derive(Debug, Default)]
struct ToolCall {
    id: String,
    name: String,
    arguments: String,
}

impl Reply {
    /// Says which message the deltas that follow belong to.
    fn begin(&mut self, cx: &Ctx) -> Result<(), Failure> {
        if self.begun.is_some() {
            return Ok(());
        }
        self.begun = Some(cx.mark());
        cx.message_started(self.id)
    }

    /// The answer broke off and begins anew.
    fn take_back(&mut self, cx: &Ctx, reason: &str) -> Result<(), Failure> {
        let id = self.id;
        match std::mem::replace(self, Self { id, ..Self::default() }).begun {
            Some(mark) => cx.take_back(mark, reason),
            None => Ok(()),
        }
    }

    /// Providers send a tool call in pieces, told apart by an index.
    fn tool_call(&mut self, index: u32, piece: ToolCall) {
        let call = self.tool_calls.entry(index).or_default();
        if !piece.id.is_empty() {
            call.id = piece.id;
        }
        if !piece.name.is_empty() {
            call.name = piece.name;
        }
        call.arguments.push_str(&piece.arguments);
    }

    /// The finished message.
    fn close(self, cx: &Ctx, route: &str, attempts: u32) -> Result<Message, Failure> {
        let id = self.id.to_string();
        let mut message = Message::new(Role::Ai, self.text, &*id);
        let mut metadata = json!({"model_name": route});
        if let Some(reason) = &self.finish_reason {
            metadata["finish_reason"] = reason.as_str().into();
        }
        message.rest.insert("response_metadata".to_owned(), metadata);
        if let Some(tokens) = self.usage {
            message.rest.insert(
                "usage_metadata".to_owned(),
                json!({
                    "input_tokens": tokens.input_tokens,
                    "output_tokens": tokens.output_tokens,
                    "total_tokens": tokens.input_tokens + tokens.output_tokens,
                }),
            );
        }
        if !self.reasoning.is_empty() {
            let kwargs = json!({"reasoning_content": self.reasoning});
            message.rest.insert("additional_kwargs".to_owned(), kwargs);
        }
        put_calls(&self.tool_calls, &mut message);
        let data = json!({
            "message_id": id,
            "finish_reason": self.finish_reason,
            "usage": message.rest.get("usage_metadata"),
            "route": route,
            "attempts": attempts,
        });
        cx.fact(EventKind::MessageCompleted, &data)?;
        Ok(message)
    }
}

impl ToolCall {
    /// `None` when they are no JSON object. No arguments at all are none.
    fn arguments(&self) -> Option<Value> {
        if self.arguments.trim().is_empty() {
            return Some(json!({}));
        }
        serde_json::from_str(&self.arguments).ok().filter(Value::is_object)
    }
}

/// The calls in LangChain's shape: those whose arguments are no JSON stand apart, as text.
fn put_calls(calls: &BTreeMap<u32, ToolCall>, message: &mut Message) {
    let (mut sound, mut broken) = (Vec::new(), Vec::new());
    for (at, call) in calls {
        // Some providers give no ids, and an answer is told by the id of its call.
        let id = match call.id.as_str() {
            "" => format!("call_{}_{at}", message.id),
            id => id.to_owned(),
        };
        match call.arguments() {
            Some(args) => {
                sound.push(json!({"name": call.name, "args": args, "id": id, "type": "tool_call"}))
            }
            None => broken.push(json!({
                "name": call.name, "args": call.arguments, "id": id,
                "error": "the arguments are no JSON object", "type": "invalid_tool_call",
            })),
        }
    }
    for (name, list) in [("tool_calls", sound), ("invalid_tool_calls", broken)] {
        if !list.is_empty() {
            message.rest.insert(name.to_owned(), Value::Array(list));
        }
    }
}

/// How many of the newest messages fit the budget; always at least the present turn, from what the
/// user said last.
///
/// The cut falls between turns.
fn fitting(history: &[Arc<Value>], budget_tokens: u32) -> usize {
    let asked = history.iter().rposition(|message| message["type"] == "human");
    let turn = asked.map_or(1, |at| history.len() - at);
    let mut left = u64::from(budget_tokens);
    let mut kept = 0;
    for message in history.iter().rev() {
        let cost = estimate_tokens(message);
        if kept >= turn && cost > left {
            break;
        }
        left = left.saturating_sub(cost);
        kept += 1;
    }
    // Whole turns give way: a result without its call, or an answer without its question, is refused
    // by some providers and misleads all of them.
    let whole = |kept: usize| {
        let first = &history[history.len() - kept]["type"];
        kept == history.len() || first == "human" || first == "system"
    };
    while kept > turn && !whole(kept) {
        kept -= 1;
    }
    kept
}

/// About four bytes a token, and a few tokens for the envelope.
fn estimate_tokens(value: &Value) -> u64 {
    let text = match &value["content"] {
        Value::String(text) => text.len(),
        Value::Array(parts) => {
            parts.iter().map(|part| part["text"].as_str().map_or(64, str::len)).sum()
        }
        _ => 0,
    };
    let calls = value["tool_calls"].as_array().map_or(0, |calls| calls.len() * 64);
    (text + calls) as u64 / 4 + 4
}

/// A user's message as a run's input for an agent with a conversation.
pub fn human_input(text: &str, id: &str) -> Value {
    let message = message::Message::new(Role::Human, text, id);
    json!({ MESSAGES: [message.to_value()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, bytes: usize) -> Arc<Value> {
        Arc::new(json!({"type": role, "content": "x".repeat(bytes)}))
    }

    #[test]
    fn the_oldest_turns_give_way() {
        let history: Vec<_> = (0..10).map(|_| message("human", 400)).collect(); // 104 tokens each
        assert_eq!(fitting(&history, 10_000), 10);
        assert_eq!(fitting(&history, 320), 3);
        assert_eq!(fitting(&history, 1), 1, "the question itself is always asked");
        assert_eq!(fitting(&[], 1), 0);
    }

    #[test]
    fn a_tool_result_is_not_sent_without_its_call() {
        let history = [message("ai", 4000), message("tool", 40), message("human", 40)];
        assert_eq!(fitting(&history, 100), 1);
        let history = [message("human", 40), message("ai", 4000), message("tool", 4000)];
        assert_eq!(fitting(&history, 1), 3, "the turn under way is sent whole");
    }

    #[test]
    fn an_answer_is_not_sent_without_its_question() {
        let history: Vec<_> =
            ["human", "ai", "human", "ai", "human"].map(|role| message(role, 400)).into();
        for (budget, kept) in [(530, 5), (420, 3), (320, 3), (220, 1), (1, 1)] {
            assert_eq!(fitting(&history, budget), kept, "{budget}");
        }
        let greeting = &history[1..3];
        assert_eq!(fitting(greeting, 1000), 2, "what fits is sent as it is");
    }

    #[test]
    fn calls_without_id_or_json_are_told_apart() {
        let mut reply = Reply::default();
        for (at, id, arguments) in [(0, "", ""), (1, "c1", "{\"a\":"), (2, "c2", "{\"a\":1}")] {
            let (id, name) = (id.to_owned(), "f".to_owned());
            reply.tool_call(at, ToolCall { id, name, arguments: arguments.to_owned() });
        }
        let mut message = Message::new(Role::Ai, "", "m");
        put_calls(&reply.tool_calls, &mut message);
        expect_test::expect![[r#"[{"name":"f","args":{},"id":"call_m_0","type":"tool_call"},{"name":"f","args":{"a":1},"id":"c2","type":"tool_call"}]"#]]
            .assert_eq(&message.rest["tool_calls"].to_string());
        assert_eq!(message.rest["invalid_tool_calls"][0]["args"], "{\"a\":");
    }
}
