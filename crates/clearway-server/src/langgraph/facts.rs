//! What showing a run starts from: the run itself, and what is read for it on the way.

use std::sync::Arc;

use clearway_core::channel::State;
use clearway_core::machine::Command;
use clearway_core::plan::Frontier;
use clearway_core::run::RunRecord;
use clearway_core::{CheckpointId, RunId, ThreadId};
use clearway_engine::StepRecord;
use serde_json::{Map, Value};

use super::graph::Graph;
use crate::app::App;

/// What there is to know about a run before its events.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) run: RunId,
    pub(super) thread: ThreadId,
    pub(super) assistant: String,
    pub(super) graph: Graph,
    /// Writes before the first superstep.
    pub(super) input: Map<String, Value>,
    pub(super) command: Option<Command>,
    /// The checkpoint that it starts from, if that is not the thread's head.
    pub(super) base: Option<CheckpointId>,
    /// Nothing was on its thread before.
    pub(super) is_first: bool,
}

impl Facts {
    pub(super) fn of(app: &App, record: &RunRecord) -> Self {
        let own = super::runs::own_of(record);
        let graph = own["graph_id"].as_str().unwrap_or(&record.agent);
        Self {
            run: record.id,
            thread: record.thread,
            assistant: own["assistant_id"].as_str().map_or_else(
                || super::assistants::id_of_graph(graph).to_string(),
                ToOwned::to_owned,
            ),
            graph: Graph::new(app, graph),
            input: record.input.as_object().cloned().unwrap_or_default(),
            command: record.options.command.clone(),
            base: record.options.base,
            is_first: false,
        }
    }
}

/// What must be read before an event can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The state that the run began from.
    Base,
    /// Checkpoints of the run behind this one.
    Steps(Option<CheckpointId>),
}

/// What was read.
#[derive(Debug)]
pub(super) enum Supply {
    Base { state: State, frontier: Frontier },
    Steps(Vec<StepRecord>),
}

/// Reads what is needed. What cannot be read is shown as if it were not there.
pub(super) async fn supply(app: App, facts: Arc<Facts>, need: Need) -> Supply {
    match need {
        Need::Base => {
            let (state, frontier) = base(&app, &facts).await.unwrap_or_default();
            Supply::Base { state, frontier }
        }
        Need::Steps(after) => {
            let steps = app.engine.steps(facts.run, after, STEPS_AT_ONCE).await;
            Supply::Steps(steps.unwrap_or_default())
        }
    }
}

pub(super) const STEPS_AT_ONCE: u32 = 64;

async fn base(app: &App, facts: &Facts) -> Option<(State, Frontier)> {
    for _ in 0..2 {
        let first = app.engine.steps(facts.run, None, 1).await.ok()?.into_iter().next();
        let at = match first {
            Some(first) => match first.checkpoint.parent {
                Some(parent) => Some(parent),
                None => return None,
            },
            None => facts.base,
        };
        let found = app.engine.state_at(facts.thread, at).await.ok()??;
        // It may have committed between the two reads; then its first checkpoint knows.
        if found.run != Some(facts.run) || at.is_some() {
            return Some((found.state, found.frontier));
        }
    }
    None
}
