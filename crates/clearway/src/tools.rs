//! The tools that agents of the configuration name, as sources of the engine's tools.
//!
//! A new kind of tool is a variant of [`ToolKind`] and an arm of [`source`]; what it needs while the
//! server runs (an index, a process) lives in [`Services`], which outlives configurations.
//!
//! Not here: how a model comes to call them (`clearway_engine::tool`).

use std::sync::Arc;

use clearway_core::channel::Reducer;
use clearway_engine::tool::{FixedTools, ToolSource, Toolbox};

use crate::config::workflow::StepKind;
use crate::config::{Agent, Config, ToolKind, ToolRef};
use crate::services::Services;

mod run;
mod state;

/// All that an agent can do; `None` for one that only talks.
pub(crate) fn toolbox(agent: &Agent, config: &Config, services: &Services) -> Option<Toolbox> {
    let mut sources: Vec<Arc<dyn ToolSource>> = agent
        .tools
        .iter()
        .filter_map(|tool| source(tool, &agent.state, config, services))
        .collect();
    if sources.is_empty() {
        return None;
    }
    if agent.tools.iter().any(|tool| tool.kind == ToolKind::Run && !tool.wait) {
        let look = FixedTools::new("run:status", vec![Arc::new(run::Look::new())]);
        sources.push(Arc::new(look.with_channel(run::FILES, Reducer::Set)));
    }
    let mut toolbox = Toolbox::new(sources);
    toolbox.confirm.clone_from(&agent.confirm);
    toolbox.rounds = agent.tool_rounds;
    Some(toolbox)
}

/// Channels of an agent besides its conversation.
pub(crate) fn channels(agent: &Agent) -> Vec<(String, Reducer)> {
    let reducer = |list| if list { Reducer::Last } else { Reducer::Merge };
    agent.state.iter().map(|(name, part)| (name.clone(), reducer(part.is_list()))).collect()
}

/// What a step may use besides its model; `None` for one that only asks.
pub(crate) fn of_step(step: &StepKind, config: &Config, services: &Services) -> Option<Toolbox> {
    let StepKind::Llm { tools, tool_rounds, .. } = step else { return None };
    let state = State::new();
    let sources: Vec<Arc<dyn ToolSource>> =
        tools.iter().filter_map(|tool| source(tool, &state, config, services)).collect();
    let toolbox = Toolbox { rounds: *tool_rounds, ..Toolbox::new(sources) };
    (!toolbox.sources.is_empty()).then_some(toolbox)
}

type State = std::collections::BTreeMap<String, crate::config::StatePart>;

/// Where the tools come from that an entry of `tools` means. `None` when the configuration no longer
/// has what it names.
fn source(
    tool: &ToolRef,
    state: &State,
    config: &Config,
    services: &Services,
) -> Option<Arc<dyn ToolSource>> {
    let id = tool.to_string();
    let only = |tool| Arc::new(FixedTools::new(&id, vec![tool])) as Arc<dyn ToolSource>;
    match tool.kind {
        ToolKind::Run => {
            let workflow = config.workflows.get(&tool.name)?;
            Some(only(Arc::new(run::Run::new(tool, workflow))))
        }
        ToolKind::Set => Some(only(Arc::new(state::Set::new(tool, state.get(&tool.name)?)))),
        ToolKind::Mcp | ToolKind::Search | ToolKind::Graph | ToolKind::Open => {
            services.source(tool)
        }
    }
}
