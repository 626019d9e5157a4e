//! Tools: what a model can do besides talking.
//!
//! A [`Tool`] says what it is for ([`ToolSpec`]) and does it. A [`ToolSource`] has some of them: a
//! workflow has one, a server of tools many that may change. A [`Toolbox`] is all that one agent has,
//! with what needs a person's approval.
//!
//! Two things use a toolbox: [`agent_nodes`] makes a graph of it, where each call is a call of the
//! superstep (kept, timed and shown by itself), and [`converse`] goes round inside one node.
//!
//! **Invariant:** an outward write is announced before it is made ([`Ctx::act`]); a model never hears
//! the result of a call that did not happen, and every call of it is answered.
//!
//! Not here: what the tools do (the façade: workflows, MCP servers, knowledge).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::channel::{Reducer, Write};
use clearway_core::{Code, Failure};
use serde_json::{Map, Value, json};

use crate::agent::NodeError;
use crate::ctx::Ctx;
use crate::durable::Effect;

pub use self::agent::{AgentGraph, agent_nodes};
pub use self::converse::converse;

mod agent;
mod call;
mod confirm;
mod converse;

/// What a tool is.
#[derive(Clone, Debug)]
pub struct ToolSpec {
    /// What the model calls it: letters, digits, `_` and `-`, at most 64; see [`model_name`].
    pub name: String,
    /// What people call it, such as `mcp:crm/find_customer`; the agent's `confirm` matches it.
    pub id: String,
    /// For the model: what it does, and when to use it.
    pub description: String,
    /// JSON Schema of its arguments, which are an object.
    pub arguments: Value,
    /// What doing it twice would mean. A tool that parks or asks is never a [`Effect::Write`].
    pub effect: Effect,
    /// The longest that one call may take.
    pub deadline: Duration,
}

/// One call of a tool.
#[derive(Clone, Debug)]
pub struct ToolCall {
    /// The model's id of the call.
    pub id: String,
    /// They fit the tool's schema.
    pub arguments: Map<String, Value>,
    /// The same whenever this call is made again: for whoever recognises repetitions, and to name
    /// notes by ([`Ctx::step`]).
    pub key: String,
}

/// What a tool answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolReply {
    /// For the model: a text, a list of message parts, or any JSON.
    pub content: Value,
    /// Changes of the agent's channels; its source declares them ([`ToolSource::channels`]).
    pub writes: Vec<Write>,
}

impl ToolReply {
    pub fn new(content: impl Into<Value>) -> Self {
        Self { content: content.into(), writes: Vec::new() }
    }

    fn to_json(&self) -> Value {
        let writes: Vec<Value> = self
            .writes
            .iter()
            .map(|write| {
                json!({"channel": &*write.channel, "value": write.value, "assign": write.assign})
            })
            .collect();
        json!({"tool_reply": self.content, "writes": writes})
    }

    /// Reads what [`ToolReply::to_json`] wrote; what somebody else wrote (a person's decision about
    /// a write) is an answer as a whole.
    fn from_json(value: Value) -> Self {
        let Some(content) = value.get("tool_reply") else { return Self::new(value) };
        let write = |write: &Value| {
            let channel = write["channel"].as_str()?;
            let assign = write["assign"] == true;
            Some(Write { assign, ..Write::new(channel, write["value"].clone()) })
        };
        let writes = value["writes"].as_array().into_iter().flatten().filter_map(write).collect();
        Self { content: content.clone(), writes }
    }
}

/// Why a call of a tool ended without an answer.
#[derive(Clone, Debug)]
pub enum ToolError {
    /// Nothing was changed outside, or what was is known. The model is told.
    Failed(Failure),
    /// Nobody knows whether it happened. Of a write the run waits for a decision; of anything else
    /// the model is told.
    Unknown(Failure),
    /// It is not over: it waits, asks a person, or the run itself cannot go on.
    Stop(NodeError),
}

impl From<NodeError> for ToolError {
    fn from(error: NodeError) -> Self {
        Self::Stop(error)
    }
}

/// Something that a model can do.
#[async_trait::async_trait]
pub trait Tool: Send + Sync + fmt::Debug {
    fn spec(&self) -> &ToolSpec;

    /// Does it. Like a node's, the body runs at least once: its effect class says what surrounds
    /// it. The future is dropped when the call is given up or its deadline passes.
    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError>;
}

/// Where tools come from.
#[async_trait::async_trait]
pub trait ToolSource: Send + Sync + fmt::Debug {
    /// How the configuration calls it: `search:company`, `mcp:crm`.
    fn id(&self) -> &str;

    /// The tools that it has now. Asked before every call of the model, so it remembers them.
    ///
    /// # Errors
    /// Why it has none now; the agent goes on without them and says so.
    async fn tools(&self, cx: &Ctx) -> Result<Vec<Arc<dyn Tool>>, Failure>;

    /// Channels that its tools write besides the conversation.
    fn channels(&self) -> Vec<(String, Reducer)> {
        Vec::new()
    }
}

/// A source whose tools never change.
#[derive(Debug)]
pub struct FixedTools {
    id: String,
    tools: Vec<Arc<dyn Tool>>,
    channels: Vec<(String, Reducer)>,
}

impl FixedTools {
    pub fn new(id: &str, tools: Vec<Arc<dyn Tool>>) -> Self {
        Self { id: id.to_owned(), tools, channels: Vec::new() }
    }

    /// A channel that they write.
    #[must_use]
    pub fn with_channel(mut self, name: &str, reducer: Reducer) -> Self {
        self.channels.push((name.to_owned(), reducer));
        self
    }
}

#[async_trait::async_trait]
impl ToolSource for FixedTools {
    fn id(&self) -> &str {
        &self.id
    }

    async fn tools(&self, _cx: &Ctx) -> Result<Vec<Arc<dyn Tool>>, Failure> {
        Ok(self.tools.clone())
    }

    fn channels(&self) -> Vec<(String, Reducer)> {
        self.channels.clone()
    }
}

/// All that an agent can do, and what of it needs a person's approval.
#[derive(Clone, Debug)]
pub struct Toolbox {
    pub sources: Vec<Arc<dyn ToolSource>>,
    /// Patterns of tool ids, with `*` for any characters.
    pub confirm: Vec<String>,
    /// How often in one turn the model may call tools; then it has to answer without.
    pub rounds: u32,
}

impl Toolbox {
    pub fn new(sources: Vec<Arc<dyn ToolSource>>) -> Self {
        Self { sources, confirm: Vec::new(), rounds: ROUNDS }
    }

    pub fn needs_approval(&self, spec: &ToolSpec) -> bool {
        self.confirm.iter().any(|pattern| glob(pattern, &spec.id))
    }

    /// What can be called now. A source that fails is left out; readers are told.
    async fn offer(&self, cx: &Ctx) -> Result<Offer, NodeError> {
        let mut tools: Vec<(String, Arc<dyn Tool>)> = Vec::new();
        for source in &self.sources {
            let found = match source.tools(cx).await {
                Ok(found) => found,
                Err(failure) if failure.code == Code::Fenced => return Err(failure.into()),
                Err(failure) => {
                    let text = format!("{} cannot be used now: {}", source.id(), failure.message);
                    tracing::warn!(run.id = %cx.run, code = %failure.code, "{text}");
                    cx.progress(&text)?;
                    continue;
                }
            };
            for tool in found {
                let wanted = tool.spec().name.clone();
                let mut name = wanted.clone();
                let mut nth = 1;
                while tools.iter().any(|(taken, _)| *taken == name) {
                    nth += 1;
                    name = format!("{}_{nth}", clip(&wanted, NAME - 4));
                }
                tools.push((name, tool));
            }
        }
        Ok(Offer(tools))
    }
}

/// Tools by the names under which a model is offered them.
struct Offer(Vec<(String, Arc<dyn Tool>)>);

impl Offer {
    fn find(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, tool)| tool)
    }

    /// The `tools` parameter of a request; `None` when there are none.
    fn param(&self) -> Option<Value> {
        let one = |(name, tool): &(String, Arc<dyn Tool>)| {
            let spec = tool.spec();
            json!({"type": "function", "function": {
                "name": name, "description": spec.description, "parameters": spec.arguments,
            }})
        };
        (!self.0.is_empty()).then(|| self.0.iter().map(one).collect())
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

/// How often in one turn a model may call tools unless its agent says otherwise.
pub const ROUNDS: u32 = 16;

/// Calls in one message of a model.
const CALLS: usize = 32;

/// Calls of one message that are made at the same time.
const CALLS_AT_ONCE: u32 = 8;

/// Bytes of one answer that a model is told.
const RESULT_BYTES: usize = 64 << 10;

/// Characters of a name that every provider takes.
const NAME: usize = 64;

/// A name that every provider takes: `mcp:crm/find customer` becomes `mcp_crm_find_customer`.
pub fn model_name(id: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name: String = id.chars().map(plain).collect();
    match name.trim_matches('_') {
        "" => "tool".to_owned(),
        name => clip(name, NAME).to_owned(),
    }
}

/// The beginning of an ASCII text.
fn clip(text: &str, most: usize) -> &str {
    text.get(..most).unwrap_or(text)
}

/// Whether a text fits a pattern in which `*` stands for any characters.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests;
