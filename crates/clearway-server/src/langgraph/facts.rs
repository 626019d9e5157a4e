//! What showing a run starts from: the run itself, and what is read for it on the way.

use std::collections::HashMap;
use std::sync::Arc;

use clearway_core::channel::{State, Write};
use clearway_core::machine::{Command, Source};
use clearway_core::plan::{Due, Frontier};
use clearway_core::run::RunRecord;
use clearway_core::{CheckpointId, RunId, TaskId, ThreadId};
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
    /// The one that its client named for this, which a fork is shown to follow.
    pub(super) named: Option<CheckpointId>,
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
            named: named(record),
            is_first: false,
        }
    }
}

/// The checkpoint that the client of a run named to start from. Before a thread's first input there is
/// none to start from, so this may be another than the run's base.
pub(super) fn named(record: &RunRecord) -> Option<CheckpointId> {
    super::runs::own_of(record)["from"].as_str()?.parse().ok()
}

impl Facts {
    /// Checkpoints before the run's first superstep, as clients count them.
    pub(super) fn begins(&self) -> u64 {
        match &self.command {
            None => 2,
            Some(one) => u64::from(one.takes_in()),
        }
    }

    /// Why there is a checkpoint before the first superstep, if there is one.
    pub(super) fn source(&self) -> Option<Source> {
        match &self.command {
            None => Some(Source::Input),
            Some(one) if one.fork => Some(Source::Fork),
            Some(one) => one.takes_in().then_some(Source::Update),
        }
    }

    /// The state with what the run writes before its first superstep. `None` when that does not fit,
    /// which ends the run.
    pub(super) fn taken_in(&self, before: &State) -> Option<State> {
        let writes: Vec<Write> = match &self.command {
            None => {
                self.input.iter().map(|(name, value)| Write::new(name, value.clone())).collect()
            }
            Some(command) => command.update.clone(),
        };
        let mut state = before.clone();
        self.graph.apply(&mut state, writes).ok()?;
        Some(state)
    }

    /// The calls of the run's first superstep.
    pub(super) fn first_due(&self, before: &Frontier) -> Vec<Due> {
        let (run, agent) = (self.run, self.graph.agent.as_ref());
        match (&self.command, agent) {
            (None, Some(agent)) => agent.plan.first(run, 0).due,
            (None, None) => Vec::new(),
            (Some(command), agent) => match (&command.goto, agent) {
                (Some(targets), Some(agent)) => agent
                    .plan
                    .jump(before, targets, run, 0)
                    .map(|next| next.due)
                    .unwrap_or_default(),
                _ if command.fork => {
                    let mut due = before.due.clone();
                    let mut counts: HashMap<Arc<str>, u32> = HashMap::new();
                    for one in &mut due {
                        let index = counts.entry(one.node.clone()).or_default();
                        one.task = TaskId::of(run, 0, &one.node, *index);
                        *index += 1;
                    }
                    due
                }
                _ => before.due.clone(),
            },
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

/// What a run began from.
#[derive(Debug, Default)]
pub(super) struct Base {
    pub(super) at: Option<CheckpointId>,
    pub(super) state: State,
    pub(super) frontier: Frontier,
}

/// What was read.
#[derive(Debug)]
pub(super) enum Supply {
    Base(Base),
    Steps(Vec<StepRecord>),
}

/// Reads what is needed. What cannot be read is shown as if it were not there.
pub(super) async fn supply(app: App, facts: Arc<Facts>, need: Need) -> Supply {
    match need {
        Need::Base => Supply::Base(base(&app, &facts).await.unwrap_or_default()),
        Need::Steps(after) => {
            let steps = app.engine.steps(facts.run, after, STEPS_AT_ONCE).await;
            Supply::Steps(steps.unwrap_or_default())
        }
    }
}

pub(super) const STEPS_AT_ONCE: u32 = 64;

async fn base(app: &App, facts: &Facts) -> Option<Base> {
    for _ in 0..2 {
        let first = app.engine.steps(facts.run, None, 1).await.ok()?.into_iter().next();
        let (at, is_sure) = match (first, facts.base) {
            (Some(first), _) => match first.checkpoint.parent {
                Some(parent) => (Some(parent), true),
                None => return None,
            },
            (None, Some(base)) => (Some(base), true),
            (None, None) => (stood_at(app, facts).await, false),
        };
        let found = app.engine.state_at(facts.thread, at).await.ok()??;
        // It may have committed between the two reads; then its first checkpoint knows.
        if found.run != Some(facts.run) || is_sure {
            let at = Some(found.checkpoint);
            return Some(Base { at, state: found.state, frontier: found.frontier });
        }
    }
    None
}

/// Where the thread stood when a run ended that made no checkpoint: it may have gone on since.
async fn stood_at(app: &App, facts: &Facts) -> Option<CheckpointId> {
    let ended = app.engine.run(facts.run).await.ok()?.record.ended_at?;
    let behind = CheckpointId::first_of(facts.run, ended, None);
    let found = app.engine.history(facts.thread, Some(behind), 1).await.ok()?;
    found.first().map(|record| record.id)
}
