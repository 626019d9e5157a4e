//! Agents of the configuration as agents of the engine: each a plan, and the code behind its nodes.

use std::sync::Arc;

use clearway_core::plan::MESSAGES;
use clearway_core::{Clock, Code, Failure};
use clearway_engine::chat::{ChatNode, ChatOptions};
use clearway_engine::{Agent, Ctx, Node};

use crate::config::{self, Config, DEFAULT_AGENT, prompt::Values};
use crate::workflow::compile;

/// The only node of a chat agent.
const NODE: &str = "model";

/// All agents by every name they answer to.
pub(crate) fn compile(config: &Config, clock: &Arc<dyn Clock>) -> Vec<(String, Arc<Agent>)> {
    let mut agents: Vec<_> = config
        .agents
        .iter()
        .map(|(name, agent)| (name.clone(), Arc::new(chat(name, agent, clock.clone()))))
        .collect();
    let workflows = Arc::new(config.workflows.clone());
    for (name, workflow) in &config.workflows {
        let agent = compile::agent(name, workflow, &workflows, clock);
        agents.push((name.clone(), Arc::new(agent)));
    }
    if !config.agents.contains_key(DEFAULT_AGENT) {
        let default = agents.iter().find(|(name, _)| *name == config.default_agent);
        let alias = default.map(|(_, agent)| (DEFAULT_AGENT.to_owned(), agent.clone()));
        agents.extend(alias);
    }
    agents
}

fn chat(name: &str, agent: &config::Agent, clock: Arc<dyn Clock>) -> Agent {
    let node: Arc<dyn Node> = Arc::new(ChatNode::new(ChatOptions {
        model: agent.model.clone(),
        system: system(name, agent, clock),
        history_tokens: agent.history_tokens,
        params: agent.params.clone(),
    }));
    Agent {
        title: agent.title.clone(),
        pool: agent.pool.clone(),
        deadline: agent.deadline,
        working_limit: agent.working_limit,
        when_busy: agent.when_busy,
        ..Agent::single(name, "agent", NODE, node)
    }
}

type System = Arc<dyn Fn(&Ctx) -> Result<String, Failure> + Send + Sync>;

/// What renders the prompt of one call.
fn system(name: &str, agent: &config::Agent, clock: Arc<dyn Clock>) -> System {
    if agent.prompt.is_empty() {
        return Arc::new(|_| Ok(String::new()));
    }
    let (name, title, model) = (name.to_owned(), agent.title.clone(), agent.model.clone());
    let prompt = agent.prompt.clone();
    // Counting the turns looks at the whole conversation, so it is done only for who asks.
    let counts = prompt.uses("turn");
    Arc::new(move |cx| {
        let messages = if counts { cx.state.list(MESSAGES) } else { &[] };
        let values = Values {
            agent_name: &name,
            agent_title: &title,
            model: &model,
            run_id: cx.run.to_string(),
            thread_id: cx.thread.to_string(),
            now: clock.now().to_string(),
            turn: messages.iter().filter(|message| message["type"] == "human").count(),
        };
        prompt.render(&values).map_err(|why| {
            Failure::new(
                Code::TemplateFailed,
                format!("the prompt of agent `{name}` failed: {why}"),
            )
        })
    })
}
