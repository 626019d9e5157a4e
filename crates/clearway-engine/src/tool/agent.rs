//! An agent with tools as a graph: the model, what it calls, and who has to approve of that.
//!
//! ```text
//!   model ──answer──► end
//!     ▲ └──calls──► tools (one call each) ──┐
//!     │ └──calls that need approval──► confirm ──► tools
//!     └─────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use clearway_core::channel::{Reducer, Write};
use clearway_core::machine::Output;
use clearway_core::message::Message;
use clearway_core::plan::{Builder, Goto, MESSAGES, Plan};
use clearway_core::{Code, Failure};
use serde_json::{Value, json};

use super::call::{self, Asked};
use super::confirm::{self, Decision};
use super::{CALLS, CALLS_AT_ONCE, Toolbox};
use crate::agent::{Node, NodeError};
use crate::chat::{ChatNode, ChatOptions, complete};
use crate::ctx::Ctx;

/// The plan of an agent with tools, and the code of its nodes.
#[derive(Debug)]
pub struct AgentGraph {
    pub plan: Plan,
    pub nodes: BTreeMap<Arc<str>, Arc<dyn Node>>,
}

const MODEL: &str = "model";
const TOOLS: &str = "tools";
const CONFIRM: &str = "confirm";

/// Makes the graph. `channels` are the agent's besides the conversation and those of its tools.
pub fn agent_nodes(
    chat: ChatOptions,
    toolbox: Toolbox,
    channels: &[(String, Reducer)],
) -> AgentGraph {
    let asks = !toolbox.confirm.is_empty();
    let mut plan = Builder::new()
        .channel(MESSAGES, Reducer::MergeById)
        .node(MODEL)
        .node_at_once(TOOLS, CALLS_AT_ONCE)
        .entry(MODEL)
        .may_go(MODEL, TOOLS)
        .edge(TOOLS, MODEL)
        // Each round is a superstep of the model, one of the tools, and perhaps one of approval.
        .max_steps(toolbox.rounds.saturating_add(2).saturating_mul(3));
    if asks {
        plan = plan.node(CONFIRM).may_go(MODEL, CONFIRM).may_go(CONFIRM, TOOLS);
        plan = plan.may_go(CONFIRM, MODEL);
    }
    let of_tools = toolbox.sources.iter().flat_map(|source| source.channels());
    for (name, reducer) in of_tools.chain(channels.iter().cloned()) {
        plan = plan.channel(&name, reducer);
    }
    let plan = plan.build().expect("the nodes are named here, and each once");
    let toolbox = Arc::new(toolbox);
    let mut nodes: BTreeMap<Arc<str>, Arc<dyn Node>> = BTreeMap::from([
        (
            Arc::from(MODEL),
            Arc::new(ModelNode { chat: ChatNode::new(chat), toolbox: toolbox.clone() }) as _,
        ),
        (Arc::from(TOOLS), Arc::new(ToolNode { toolbox: toolbox.clone() }) as _),
    ]);
    if asks {
        nodes.insert(Arc::from(CONFIRM), Arc::new(ConfirmNode { toolbox }));
    }
    AgentGraph { plan, nodes }
}

/// Asks the model, offering it the tools.
#[derive(Debug)]
struct ModelNode {
    chat: ChatNode,
    toolbox: Arc<Toolbox>,
}

/// Makes one call.
#[derive(Debug)]
struct ToolNode {
    toolbox: Arc<Toolbox>,
}

/// Asks a person about the calls that need it.
#[derive(Debug)]
struct ConfirmNode {
    toolbox: Arc<Toolbox>,
}

#[async_trait::async_trait]
impl Node for ModelNode {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let mut request = self.chat.request(&cx)?;
        request.messages = answered(request.messages);
        let offer = self.toolbox.offer(&cx).await?;
        let last = rounds(cx.state.list(MESSAGES)) >= self.toolbox.rounds;
        if let Some(tools) = offer.param() {
            request.params.insert("tools".to_owned(), tools);
            if last {
                let rounds = self.toolbox.rounds;
                cx.progress(&format!("{rounds} rounds of tools are used up: answering without"))?;
                request.params.insert("tool_choice".to_owned(), "none".into());
            }
        }
        let message = complete(&cx, "", 0, request).await?;
        let value = message.to_value();
        let asked = Asked::of(&value);
        let writes = vec![Write::new(MESSAGES, value)];
        if asked.is_empty() {
            return Ok(Output { writes, reply: Some(cx.message_id(0)), ..Output::default() });
        }
        if last {
            let rounds = self.toolbox.rounds;
            let text = format!(
                "the model goes on calling tools after {rounds} rounds; `tool_rounds` allows no more"
            );
            return Err(Failure::new(Code::LimitExceeded, text)
                .with("limit", "tool_rounds")
                .into());
        }
        let needs_approval = asked.iter().any(|asked| {
            offer.find(&asked.name).is_some_and(|tool| self.toolbox.needs_approval(tool.spec()))
        });
        let goto = match needs_approval {
            true => vec![Goto::Node(CONFIRM.into())],
            false => asked.iter().enumerate().map(|(at, asked)| send(at, asked, false)).collect(),
        };
        Ok(Output { writes, goto: Some(goto), ..Output::default() })
    }
}

fn send(at: usize, asked: &Asked, approved: bool) -> Goto {
    let mut payload = json!({"call": asked.to_json(), "approved": approved});
    if at >= CALLS {
        payload["excess"] = true.into();
    }
    Goto::Send { node: TOOLS.into(), payload }
}

#[async_trait::async_trait]
impl Node for ToolNode {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let payload = cx.payload.clone().unwrap_or_default();
        let asked = Asked::from_json(&payload["call"]);
        let id = cx.message_id(0).to_string();
        let offer = self.toolbox.offer(&cx).await?;
        let unapproved =
            offer.find(&asked.name).is_some_and(|tool| self.toolbox.needs_approval(tool.spec()))
                && payload["approved"] != true;
        let answer = if payload["excess"] == true {
            let text = format!("one message may have {CALLS} calls; `tool_calls` allows no more");
            call::told(&asked, id, &Failure::new(Code::LimitExceeded, text))
        } else if unapproved {
            // The tool came to need approval after the model was asked.
            let text = "this needs a person's approval; call it again";
            call::told(&asked, id, &Failure::new(Code::Forbidden, text))
        } else {
            call::make(&cx, &offer, &asked, "call", id).await?
        };
        let mut writes = vec![Write::new(MESSAGES, answer.message.to_value())];
        writes.extend(answer.writes);
        Ok(Output { writes, ..Output::default() })
    }
}

#[async_trait::async_trait]
impl Node for ConfirmNode {
    async fn call(&self, cx: Ctx) -> Result<Output, NodeError> {
        let messages = cx.state.list(MESSAGES);
        let Some(message) = messages.iter().rfind(|message| message["type"] == "ai") else {
            return Ok(Output::default());
        };
        let asked = Asked::of(message);
        let offer = self.toolbox.offer(&cx).await?;
        let approval = |asked: &Asked| {
            let spec = offer.find(&asked.name)?.spec();
            self.toolbox.needs_approval(spec).then(|| spec.id.clone())
        };
        let open: Vec<(&Asked, String)> =
            asked.iter().filter_map(|asked| Some((asked, approval(asked)?))).collect();
        let decisions = if open.is_empty() { Vec::new() } else { decide(&cx, &open)? };
        let mut decisions = open.iter().map(|(asked, _)| &asked.id).zip(decisions);
        let (mut writes, mut goto, mut edited) = (Vec::new(), Vec::new(), Vec::new());
        let mut rejected = 0;
        for (at, call) in asked.iter().enumerate() {
            let decision = match approval(call) {
                Some(_) => decisions.next().map(|(_, decision)| decision),
                None => Some(Decision::Approve),
            };
            match decision {
                Some(Decision::Approve) => goto.push(send(at, call, true)),
                Some(Decision::Edit { name, args }) => {
                    let call = Asked { name, args: Value::Object(args), ..call.clone() };
                    goto.push(send(at, &call, true));
                    edited.push(call);
                }
                Some(Decision::Reject { message }) => {
                    let text = match message.is_empty() {
                        true => "a person rejected this call".to_owned(),
                        false => format!("a person rejected this call: {message}"),
                    };
                    let id = cx.message_id(rejected).to_string();
                    rejected += 1;
                    let answer = call::told(call, id, &Failure::new(Code::Forbidden, text));
                    writes.push(Write::new(MESSAGES, answer.message.to_value()));
                }
                None => {}
            }
        }
        if !edited.is_empty() {
            // The conversation shows what is really done.
            writes.insert(0, Write::new(MESSAGES, with_edits(message, &edited)));
        }
        if goto.is_empty() {
            goto.push(Goto::Node(MODEL.into()));
        }
        Ok(Output { writes, goto: Some(goto), ..Output::default() })
    }
}

/// Asks until the answer can be used.
fn decide(cx: &Ctx, open: &[(&Asked, String)]) -> Result<Vec<Decision>, NodeError> {
    let mut problem: Option<String> = None;
    loop {
        let answer = cx.interrupt(confirm::question(open, problem.as_deref()))?;
        match confirm::read(&answer, open) {
            Ok(decisions) => return Ok(decisions),
            Err(why) => problem = Some(why),
        }
    }
}

fn with_edits(message: &Value, edited: &[Asked]) -> Value {
    let mut message = message.clone();
    if let Some(calls) = message["tool_calls"].as_array_mut() {
        for call in calls {
            if let Some(edit) = edited.iter().find(|edit| call["id"] == edit.id.as_str()) {
                *call = edit.to_json();
            }
        }
    }
    message
}

/// How often tools were called since the user last said something.
fn rounds(messages: &[Arc<Value>]) -> u32 {
    let turn = messages.iter().rev().take_while(|message| message["type"] != "human");
    let calls = turn.filter(|message| message["type"] == "ai" && !Asked::of(message).is_empty());
    u32::try_from(calls.count()).unwrap_or(u32::MAX)
}

/// A conversation in which every call has an answer: providers refuse one that has not. A turn that
/// was cancelled, or that went on without the approval it asked for, leaves such calls.
pub(super) fn answered(messages: Vec<Arc<Value>>) -> Vec<Arc<Value>> {
    let mut whole: Vec<Arc<Value>> = Vec::with_capacity(messages.len());
    // Of the newest message with calls: those without an answer yet.
    let mut open: Vec<Asked> = Vec::new();
    for message in messages {
        let is_answer = message["type"] == "tool";
        if is_answer {
            open.retain(|asked| message["tool_call_id"] != asked.id.as_str());
        } else {
            whole.extend(open.drain(..).map(unanswered));
            open = if message["type"] == "ai" { Asked::of(&message) } else { Vec::new() };
        }
        whole.push(message);
    }
    whole.extend(open.drain(..).map(unanswered));
    whole
}

fn unanswered(asked: Asked) -> Arc<Value> {
    let failure = Failure::new(Code::Cancelled, "this call was not made");
    let answer: Message = call::told(&asked, format!("{}-unanswered", asked.id), &failure).message;
    Arc::new(answer.to_value())
}
