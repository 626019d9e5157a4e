//! Agents of the configuration as agents of the engine: each a plan, and the code behind its nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use clearway_core::plan::MESSAGES;
use clearway_core::{Clock, Code, Failure};
use clearway_engine::chat::{ChatNode, ChatOptions};
use clearway_engine::knowledge::answer::{AnswerNode, AnswerOptions, Cite};
use clearway_engine::knowledge::tools::Kind;
use clearway_engine::tool::{self, Toolbox};
use clearway_engine::{Agent, Ctx, Node};
use serde_json::{Map, Value};

use crate::config::{self, Config, DEFAULT_AGENT, prompt::Values};
use crate::services::Services;
use crate::tools;
use crate::workflow::compile;

/// The only node of a chat agent.
const NODE: &str = "model";

/// All agents by every name they answer to.
pub(crate) fn compile(
    config: &Config,
    services: &Services,
    clock: &Arc<dyn Clock>,
) -> Vec<(String, Arc<Agent>)> {
    let one = |(name, agent): (&String, &config::Agent)| {
        let compiled = match answering(name, agent, config, services, clock) {
            Some(answering) => answering,
            None => {
                let toolbox = tools::toolbox(agent, config, services);
                chat(name, agent, toolbox, clock.clone())
            }
        };
        (name.clone(), Arc::new(compiled))
    };
    let mut agents: Vec<_> = config.agents.iter().map(one).collect();
    let shared = Arc::new(config.clone());
    for (name, workflow) in &config.workflows {
        let agent = compile::agent(name, workflow, &shared, services, clock);
        agents.push((name.clone(), Arc::new(agent)));
    }
    if !config.agents.contains_key(DEFAULT_AGENT) {
        let default = agents.iter().find(|(name, _)| *name == config.default_agent);
        let alias = default.map(|(_, agent)| (DEFAULT_AGENT.to_owned(), agent.clone()));
        agents.extend(alias);
    }
    agents
}

fn chat(
    name: &str,
    agent: &config::Agent,
    toolbox: Option<Toolbox>,
    clock: Arc<dyn Clock>,
) -> Agent {
    let options = ChatOptions {
        model: agent.model.clone(),
        system: system(name, agent, clock),
        history_tokens: agent.history_tokens,
        params: agent.params.clone(),
    };
    let node: Arc<dyn Node> = Arc::new(ChatNode::new(options.clone()));
    let plain = Agent {
        title: agent.title.clone(),
        pool: agent.pool.clone(),
        deadline: agent.deadline,
        working_limit: agent.working_limit,
        when_busy: agent.when_busy,
        keep: agent.keep,
        ..Agent::single(name, "agent", NODE, node)
    };
    // Who only talks stays at one node: nothing of what tools need is on that path.
    match toolbox {
        None => plain,
        Some(toolbox) => {
            let graph = tool::agent_nodes(options, toolbox, &tools::channels(agent));
            Agent { plan: Arc::new(graph.plan), nodes: graph.nodes, ..plain }
        }
    }
}

/// An agent that answers from its sources and cites them; `None` for any other.
fn answering(
    name: &str,
    agent: &config::Agent,
    config: &Config,
    services: &Services,
    clock: &Arc<dyn Clock>,
) -> Option<Agent> {
    let cite = match agent.cite? {
        config::Cite::Required => Cite::Required,
        config::Cite::Optional => Cite::Optional,
    };
    let knowledge = services.knowledge()?.clone();
    let there = |tool: &&config::ToolRef| knowledge.source(&tool.name).is_some();
    let own: Vec<(Kind, String)> = agent
        .tools
        .iter()
        .filter(there)
        .filter_map(|tool| Some((kind(tool.kind)?, tool.name.clone())))
        .collect();
    let sources: Vec<String> = own
        .iter()
        .filter(|(kind, _)| *kind == Kind::Search)
        .map(|(_, source)| source.clone())
        .collect();
    if sources.is_empty() {
        return None;
    }
    let mut others = agent.clone();
    others.tools.retain(|tool| kind(tool.kind).is_none());
    // Approval ends the node, and what it found with it.
    others.confirm.clear();
    let mut toolbox =
        tools::toolbox(&others, config, services).unwrap_or_else(|| Toolbox::new(Vec::new()));
    toolbox.rounds = agent.tool_rounds;
    let chat = ChatOptions {
        model: agent.model.clone(),
        system: system(name, agent, clock.clone()),
        history_tokens: agent.history_tokens,
        params: agent.params.clone(),
    };
    let options = AnswerOptions { chat, knowledge, sources, tools: own, toolbox, cite };
    Some(Agent {
        title: agent.title.clone(),
        pool: agent.pool.clone(),
        deadline: agent.deadline,
        working_limit: agent.working_limit,
        when_busy: agent.when_busy,
        keep: agent.keep,
        // It looks for sources first, and keeps what it found.
        starts_ahead: false,
        ..Agent::single(name, "agent", NODE, Arc::new(AnswerNode::new(options)))
    })
}

/// A tool's kind, if it is one of a source of knowledge.
pub(crate) const fn kind(kind: config::ToolKind) -> Option<Kind> {
    match kind {
        config::ToolKind::Search => Some(Kind::Search),
        config::ToolKind::Graph => Some(Kind::Graph),
        config::ToolKind::Open => Some(Kind::Open),
        config::ToolKind::Run | config::ToolKind::Mcp | config::ToolKind::Set => None,
    }
}

type System = Arc<dyn Fn(&Ctx) -> Result<String, Failure> + Send + Sync>;

/// What renders the prompt of one call.
fn system(name: &str, agent: &config::Agent, clock: Arc<dyn Clock>) -> System {
    if agent.prompt.is_empty() {
        return Arc::new(|_| Ok(String::new()));
    }
    if let Some(text) = agent.prompt.fixed() {
        return Arc::new(move |_| Ok(text.clone()));
    }
    let (name, title, model) = (name.to_owned(), agent.title.clone(), agent.model.clone());
    let prompt = agent.prompt.clone();
    // Counting the turns looks at the whole conversation, so it is done only for who asks.
    let counts = prompt.uses("turn");
    let parts = if prompt.uses("state") { agent.state.clone() } else { BTreeMap::new() };
    Arc::new(move |cx| {
        let state: Map<String, Value> = parts
            .iter()
            .map(|(name, part)| {
                (name.clone(), cx.state.get(name).unwrap_or_else(|| part.initial()))
            })
            .collect();
        let messages = if counts { cx.state.list(MESSAGES) } else { &[] };
        let values = Values {
            agent_name: &name,
            agent_title: &title,
            model: &model,
            run_id: cx.run.to_string(),
            thread_id: cx.thread.to_string(),
            now: clock.now().to_string(),
            turn: messages.iter().filter(|message| message["type"] == "human").count(),
            state: (!parts.is_empty()).then_some(state),
            context: Some(&cx.record().options.context),
        };
        prompt.render(&values).map_err(|why| {
            Failure::new(
                Code::TemplateFailed,
                format!("the prompt of agent `{name}` failed: {why}"),
            )
        })
    })
}
