//! What a run's events mean to LangGraph's clients.
//!
//! The log says what happened; values are in the checkpoints. So this reads events, asks for the
//! checkpoints of supersteps that have ended ([`Need`]), and says what there is to show ([`Item`]).
//! A run that nobody watches through this door pays nothing for it.
//!
//! **Invariant:** items of a run and their ids depend on nothing but the run: whoever resumes finds
//! the same ones.
//!
//! Not here: how items look on the wire (`frames`, `protocol`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use clearway_core::channel::{Op, State};
use clearway_core::event::{Body, Delta, Event, EventKind, Fact};
use clearway_core::machine::Source;
use clearway_core::plan::Due;
use clearway_core::{CheckpointId, EventId, Status, TaskId, Timestamp};
use clearway_engine::StepRecord;
use serde_json::{Value, json};
use uuid::Uuid;

use super::facts::{Base, Facts, Need, STEPS_AT_ONCE, Supply};
use super::graph::Graph;
use super::messages;
use super::state;

mod place;
mod wanted;

pub(super) use wanted::Modes;

/// Something to show.
#[derive(Debug)]
pub(super) struct Item {
    /// `part` leaves room for the frames of one item.
    pub(super) id: EventId,
    pub(super) at: Timestamp,
    /// The superstep, as LangGraph counts.
    pub(super) step: i64,
    pub(super) what: What,
}

/// Parts of an event id that one item takes.
pub(super) const PARTS: u8 = 3;

#[derive(Debug)]
pub(super) enum What {
    /// The run begins, or is taken up again.
    Started {
        attempt: u64,
    },
    /// A thread's values, and questions that are open.
    Values {
        values: Value,
        interrupts: Option<Vec<Value>>,
    },
    /// What a node returned.
    Update {
        node: Arc<str>,
        returned: Value,
    },
    /// The run stopped before or after a node, or asks something.
    Interrupts(Vec<Value>),
    Task(Value),
    TaskResult(Value),
    Checkpoint(Value),
    Custom {
        name: Option<String>,
        data: Value,
    },
    /// A model's call of a tool begins, or has ended: `{call_id, name, node, status?, error?}`.
    Tool {
        started: bool,
        data: Value,
    },
    /// A message begins.
    Speaks(Uuid),
    Token(Delta),
    /// A message is complete: `{finish_reason, usage}`.
    Spoke(Uuid, Value),
    /// What a message said so far is void.
    Unsaid(Uuid),
    /// A message that came in one piece.
    Said {
        message: Value,
        node: Arc<str>,
    },
    /// It failed.
    Failed {
        error: String,
        message: String,
    },
    /// It ended; `stopped` half-way.
    Ended {
        status: Status,
        stopped: bool,
    },
}

/// A message under way.
#[derive(Debug)]
pub(super) struct Speaking {
    pub(super) node: Arc<str>,
    /// What surrounds a message, as JSON.
    pub(super) metadata: Bytes,
    /// The text so far, where somebody wants it whole.
    pub(super) text: String,
    pub(super) is_over: bool,
}

/// A node call whose end is in the log, and its superstep's checkpoint not yet here.
#[derive(Debug)]
struct Completed {
    id: EventId,
    at: Timestamp,
    node: Arc<str>,
    task: TaskId,
    step: i64,
    writes: Option<Value>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Projector {
    pub(super) facts: Arc<Facts>,
    modes: Modes,
    /// The thread's state as of the last checkpoint shown; `None` until the base is known.
    state: Option<State>,
    /// The last checkpoint shown.
    at: Option<CheckpointId>,
    /// The one that the run began from.
    base: Option<CheckpointId>,
    /// The one with what it took in, when it was told of before it committed.
    first: Option<CheckpointId>,
    /// The last superstep shown; -1 after the input.
    shown: i64,
    /// The step at which reading found nothing more.
    asked: Option<i64>,
    /// Checkpoints read and not shown yet.
    steps: VecDeque<StepRecord>,
    completed: Vec<Completed>,
    due: Vec<Due>,
    pub(super) speaking: HashMap<Uuid, Speaking>,
    interrupts: Vec<Value>,
    /// The calls that ask, as they are shown at their end.
    asking: Vec<Value>,
    /// The last checkpoint that is not shown, and its parent.
    hidden: Option<(CheckpointId, Option<CheckpointId>)>,
    step: i64,
    /// Where the thread stands, [`Frontier::depth`].
    depth: u64,
    has_begun: bool,
    /// Calls of the superstep under way that were made.
    made: Vec<TaskId>,
    is_parked: bool,
    /// Starts of the run; one that waited and goes on does not start anew.
    attempt: u64,
    /// Why the run failed, once it has.
    pub(super) failed: Option<String>,
}

impl Projector {
    pub(super) fn new(facts: Arc<Facts>, modes: Modes) -> Self {
        let state = facts.is_first.then(State::new);
        let mut projector = Self {
            facts,
            modes,
            state: None,
            at: None,
            base: None,
            first: None,
            shown: -2,
            asked: None,
            steps: VecDeque::new(),
            completed: Vec::new(),
            due: Vec::new(),
            speaking: HashMap::new(),
            interrupts: Vec::new(),
            asking: Vec::new(),
            hidden: None,
            step: 0,
            depth: 0,
            has_begun: false,
            made: Vec::new(),
            is_parked: false,
            attempt: 1,
            failed: None,
        };
        if let Some(state) = state {
            projector.supply(Supply::Base(Base { state, ..Base::default() }));
        }
        projector
    }

    pub(super) fn supply(&mut self, supply: Supply) {
        match supply {
            Supply::Base(Base { at, state, frontier }) => {
                self.base = at;
                self.state = Some(state);
                self.due = self.facts.first_due(&frontier);
                self.depth = frontier.depth + self.facts.begins();
            }
            Supply::Steps(steps) => self.steps.extend(steps),
        }
    }

    /// The superstep under way, as clients count it.
    fn counted(&self) -> i64 {
        i64::try_from(self.depth).unwrap_or(i64::MAX) - 1
    }

    /// What must be there before this event can be shown.
    pub(super) fn needs(&mut self, event: &Event) -> Option<Need> {
        if !self.modes.has(Modes::ALL.without(Modes::CUSTOM)) {
            return None;
        }
        let Body::Fact(fact) = &event.body else { return None };
        if fact.kind == EventKind::RunCreated {
            return None;
        }
        if self.state.is_none() {
            return Some(Need::Base);
        }
        let target = match fact.kind {
            EventKind::NodeStarted => fact.json()["step"].as_i64().unwrap_or(0) - 1,
            EventKind::RunEnded => i64::MAX,
            EventKind::RunParked | EventKind::RunReleased if !self.completed.is_empty() => {
                self.ended_step()
            }
            _ => return None,
        };
        let have = self.steps.back().map_or(self.shown, |step| step.checkpoint.step);
        if have >= target || self.asked == Some(target) {
            return None;
        }
        let full = self.steps.len() >= STEPS_AT_ONCE as usize;
        if target != i64::MAX || !full {
            self.asked = Some(target);
        }
        Some(Need::Steps(self.steps.back().map(|step| step.checkpoint.id).or(self.at)))
    }

    /// The last superstep that has ended, as far as the log was read: what is stored may be further.
    fn ended_step(&self) -> i64 {
        let has_ended = |due: &Due| self.completed.iter().any(|one| one.task == due.task);
        let all = !self.due.is_empty() && self.due.iter().all(has_ended);
        if all { self.step } else { self.step - 1 }
    }

    /// Says what an event means, once it needs nothing any more.
    pub(super) fn event(&mut self, event: &Event, out: &mut Vec<Item>) {
        match &event.body {
            Body::Delta(delta) => self.token(event, delta, out),
            Body::Fact(fact) => self.fact(event, fact, out),
        }
    }

    fn item(&self, event: &Event, place: u8, what: What) -> Item {
        Item { id: placed(event.id(), place), at: event.at, step: self.counted(), what }
    }

    fn token(&mut self, event: &Event, delta: &Delta, out: &mut Vec<Item>) {
        if self.modes.has(Modes::PARTIALS.with(Modes::EVENTS))
            && delta.part == clearway_core::event::Part::Text
            && let Some(speaking) = self.speaking.get_mut(&delta.message)
        {
            speaking.text.push_str(delta.text());
        }
        out.push(self.item(event, place::TOKEN, What::Token(delta.clone())));
    }

    fn fact(&mut self, event: &Event, fact: &Fact, out: &mut Vec<Item>) {
        match fact.kind {
            EventKind::RunCreated => {
                out.push(self.item(event, place::STARTED, What::Started { attempt: 1 }))
            }
            EventKind::RunStarted => self.started(event, &fact.json(), out),
            EventKind::NodeStarted => self.node_started(event, &fact.json(), out),
            EventKind::NodeCompleted => self.node_completed(event, &fact.json()),
            EventKind::MessageStarted => self.speaks(event, &fact.json(), out),
            EventKind::MessageCompleted => {
                let data = fact.json();
                if let Some(id) = uuid_in(&data, "message_id") {
                    if let Some(speaking) = self.speaking.get_mut(&id) {
                        speaking.is_over = true;
                    }
                    out.push(self.item(event, place::SPEECH, What::Spoke(id, data)));
                }
            }
            EventKind::Custom => {
                let mut data = fact.json();
                let name = data["name"].as_str().map(ToOwned::to_owned);
                let data = match data.get_mut("data") {
                    Some(data) => data.take(),
                    None => data,
                };
                out.push(self.item(event, place::STARTED, What::Custom { name, data }));
            }
            EventKind::Interrupt => {
                let data = fact.json();
                if let Some(id) = uuid_in(&data, "id") {
                    let mut shown = state::interrupt(id, &data["value"]);
                    shown["response_schema"] = Value::Null;
                    let task = self.task(&data).to_string();
                    self.asking.push(json!({
                        "id": task, "name": data["node"], "error": null, "result": {},
                        "interrupts": [shown.clone()],
                    }));
                    self.interrupts.push(shown);
                }
            }
            EventKind::ToolStarted | EventKind::ToolCompleted => {
                let started = fact.kind == EventKind::ToolStarted;
                let what = What::Tool { started, data: fact.json() };
                out.push(self.item(event, place::STARTED, what));
            }
            EventKind::OutputReset => self.reset(event, &fact.json(), out),
            EventKind::RunParked => {
                self.is_parked = true;
                self.flush_until(event, self.ended_step(), out);
            }
            EventKind::RunReleased => self.flush_until(event, self.ended_step(), out),
            EventKind::RunEnded => self.ended(event, &fact.json(), out),
            EventKind::MessageDelta
            | EventKind::Progress
            | EventKind::HistoryTrimmed
            | EventKind::CancelRequested
            | EventKind::ProviderAttempt
            | EventKind::NodeFailed
            | EventKind::ArtifactSaved
            | EventKind::ChildStarted => {}
        }
    }

    fn started(&mut self, event: &Event, data: &Value, out: &mut Vec<Item>) {
        if self.has_begun && !std::mem::take(&mut self.is_parked) {
            self.attempt += 1;
            let attempt = self.attempt;
            out.push(self.item(event, place::STARTED, What::Started { attempt }));
        }
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let Some(before) = &self.state else { return };
        let facts = &self.facts;
        // Input that does not fit ends the run, which says so.
        let Some(state) = facts.taken_in(before) else { return };
        let first = uuid_in(data, "checkpoint").map(CheckpointId);
        let first = first.filter(|_| self.modes.has(Modes::CHECKPOINTS.with(Modes::DEBUG)));
        let step = self.counted() - 1;
        let mut put = |place, step, what| {
            out.push(Item { id: placed(event.id(), place), at: event.at, step, what });
        };
        if let (Some(first), Some(Source::Input)) = (first, facts.source()) {
            let about = (Source::Input, step - 1);
            let shown = self.checkpoint(
                state::before_input(first),
                self.base,
                before,
                about,
                arrived(first),
            );
            put(place::ARRIVED, step - 1, What::Checkpoint(shown));
        }
        let says_something = !facts.graph.given(&facts.input).is_empty() || facts.command.is_some();
        if says_something && self.modes.has(Modes::VALUES) {
            let values = facts.graph.values(&state);
            put(place::VALUES, step + 1, What::Values { values, interrupts: None });
        }
        if let (Some(first), Some(source)) = (first, facts.source()) {
            let next = due_of(&facts.graph, &self.due);
            let (source, parent) = match source {
                Source::Input => (Source::Loop, Some(state::before_input(first))),
                Source::Fork => (Source::Fork, facts.named.or(self.base)),
                other => (other, self.base),
            };
            let shown = self.checkpoint(first, parent, &state, (source, step), next);
            put(place::CHECKPOINT, step, What::Checkpoint(shown));
        }
        self.first = first;
    }

    fn node_started(&mut self, event: &Event, data: &Value, out: &mut Vec<Item>) {
        let step = data["step"].as_i64().unwrap_or(0);
        if step > self.shown + 1 || !self.completed.is_empty() {
            self.flush_until(event, step - 1, out);
        }
        if std::mem::replace(&mut self.step, step) != step {
            self.made.clear();
        }
        let node = data["node"].as_str().unwrap_or_default();
        if !self.modes.has(Modes::TASKS.with(Modes::DEBUG).with(Modes::EVENTS))
            || self.facts.graph.is_fold(node)
        {
            return;
        }
        let task = self.task(data);
        self.made.push(task);
        let payload = self.due.iter().find(|due| due.task == task);
        let input = match payload.and_then(|due| due.payload.as_deref()) {
            Some(payload) => payload.clone(),
            None => self.input_values(),
        };
        let task = json!({
            "id": task.to_string(), "name": node, "input": input,
            "triggers": [format!("branch:to:{node}")],
            "metadata": {
                "run_id": self.facts.run.to_string(), "assistant_id": self.facts.assistant,
                "graph_id": self.facts.graph.name,
            },
        });
        out.push(self.item(event, place::TASK, What::Task(task)));
    }

    /// What a node of the first superstep sees includes the input, which has no checkpoint yet.
    fn input_values(&self) -> Value {
        let Some(state) = &self.state else { return json!({}) };
        let facts = &self.facts;
        if self.shown >= -1 {
            return facts.graph.values(state);
        }
        facts.graph.values(&facts.taken_in(state).unwrap_or_else(|| state.clone()))
    }

    /// The call that an event is about.
    fn task(&self, data: &Value) -> TaskId {
        let node = data["node"].as_str().unwrap_or_default();
        let step = data["step"].as_i64().unwrap_or(0);
        if let Some(task) = uuid_in(data, "task") {
            return TaskId(task);
        }
        let due = self.due.iter().find(|due| &*due.node == node);
        due.map_or_else(|| TaskId::of(self.facts.run, step, node, 0), |due| due.task)
    }

    fn node_completed(&mut self, event: &Event, data: &Value) {
        self.completed.push(Completed {
            id: event.id(),
            at: event.at,
            node: data["node"].as_str().unwrap_or_default().into(),
            task: self.task(data),
            step: data["step"].as_i64().unwrap_or(0),
            writes: data.get("writes").cloned(),
        });
    }

    fn speaks(&mut self, event: &Event, data: &Value, out: &mut Vec<Item>) {
        let Some(id) = uuid_in(data, "message_id") else { return };
        let node: Arc<str> = data["node"].as_str().unwrap_or_default().into();
        let metadata = Bytes::from(self.message_metadata(&node).to_string());
        let speaking = Speaking { node, metadata, text: String::new(), is_over: false };
        self.speaking.insert(id, speaking);
        // Before a crash it may have said something that not even the log remembers.
        if self.attempt > 1 {
            out.push(self.item(event, place::ARRIVED, What::Unsaid(id)));
        }
        out.push(self.item(event, place::SPEECH, What::Speaks(id)));
    }

    /// What LangGraph says about where a message comes from.
    pub(super) fn message_metadata(&self, node: &str) -> Value {
        let facts = &self.facts;
        let due = self.due.iter().find(|due| &*due.node == node);
        let task = due.map_or_else(|| TaskId::of(facts.run, self.step, node, 0), |due| due.task);
        json!({
            "run_id": facts.run.to_string(),
            "thread_id": facts.thread.to_string(),
            "assistant_id": facts.assistant,
            "graph_id": facts.graph.name,
            "langgraph_node": node,
            "langgraph_step": self.counted(),
            "langgraph_triggers": [format!("branch:to:{node}")],
            "langgraph_path": ["__pregel_pull", node],
            "langgraph_checkpoint_ns": format!("{node}:{task}"),
            "checkpoint_ns": format!("{node}:{task}"),
        })
    }

    /// Output is void: messages under way begin anew.
    fn reset(&mut self, event: &Event, data: &Value, out: &mut Vec<Item>) {
        let of_task = uuid_in(data, "task");
        let after = data["after"].as_u64();
        let mut open: Vec<Uuid> = self
            .speaking
            .iter_mut()
            .filter(|(id, _)| {
                of_task.is_none_or(|task| (0..64).any(|n| TaskId(task).message(n) == **id))
            })
            .map(|(id, speaking)| {
                speaking.text.clear();
                speaking.is_over = false;
                *id
            })
            .collect();
        open.sort_unstable();
        if of_task.is_none() {
            self.completed.retain(|one| after.is_some_and(|after| one.id.seq <= after));
            self.interrupts.clear();
            self.asking.clear();
        }
        for (place, id) in (place::UNSAID..=place::UNSAID_LAST).zip(open) {
            out.push(self.item(event, place, What::Unsaid(id)));
        }
    }

    // ## Supersteps

    /// Shows supersteps up to `last` whose checkpoints are here.
    fn flush_until(&mut self, event: &Event, last: i64, out: &mut Vec<Item>) {
        while let Some(next) = self.steps.front()
            && next.checkpoint.step <= last
        {
            // What a run begins with commits with its first superstep: whoever watched live had not
            // seen it before a call ended, and nobody else may find it elsewhere.
            let begins = !matches!(next.checkpoint.source, Source::Loop);
            if begins && self.completed.is_empty() && last != i64::MAX {
                break;
            }
            let Some(step) = self.steps.pop_front() else { break };
            self.superstep(event, step, out);
        }
    }

    fn superstep(&mut self, event: &Event, record: StepRecord, out: &mut Vec<Item>) {
        let StepRecord { checkpoint, ops } = record;
        let own: Vec<Completed> = match checkpoint.source {
            Source::Loop => {
                let (own, rest) = std::mem::take(&mut self.completed)
                    .into_iter()
                    .partition(|one| one.step == checkpoint.step);
                self.completed = rest;
                own
            }
            Source::Input | Source::Update | Source::Fork => Vec::new(),
        };
        // Under the event that told of the last call's end: whatever was shown before has a lower id.
        let (id, at) = match own.last().or(self.completed.last()) {
            Some(last) => (last.id, last.at),
            None => (event.id(), event.at),
        };
        let (values_place, checkpoint_place) = match own.is_empty() {
            true => (place::VALUES, place::CHECKPOINT),
            false => (place::STEP_VALUES, place::STEP_CHECKPOINT),
        };
        let facts = self.facts.clone();
        let graph = &facts.graph;
        let step = state::shown_step(&checkpoint.frontier);
        let put = |out: &mut Vec<Item>, id, place, at, what| {
            out.push(Item { id: placed(id, place), at, step, what });
        };
        let mut said = place::SAID..=place::SAID_LAST;
        let calls = own.iter().filter(|one| !graph.is_fold(&one.node));
        for (number, one) in calls.enumerate() {
            let returned = returned(graph, &ops, one, own.len() == 1);
            for message in self.unsaid(&returned) {
                let what = What::Said { message, node: one.node.clone() };
                put(out, id, said.next().unwrap_or(place::SAID_LAST), one.at, what);
            }
            let place = place::update(number);
            let result = json!({
                "id": one.task.to_string(), "name": &*one.node, "error": null,
                "result": if returned.is_null() { json!({}) } else { returned.clone() },
                "interrupts": [],
            });
            put(out, id, place, one.at, What::Update { node: one.node.clone(), returned });
            put(out, id, place + 1, one.at, What::TaskResult(result));
        }
        let before = self.state.clone();
        if let Some(state) = &mut self.state {
            for (channel, op) in &ops {
                state.apply(channel, op.clone());
            }
        }
        let only_fold = !own.is_empty() && own.iter().all(|one| graph.is_fold(&one.node));
        let is_loop = checkpoint.source == Source::Loop;
        if self.modes.has(Modes::VALUES)
            && is_loop
            && !only_fold
            && !graph.returned(&ops).is_null()
            && let Some(state) = &self.state
        {
            let values = graph.values(state);
            put(out, id, values_place, at, What::Values { values, interrupts: None });
        }
        if self.modes.has(Modes::CHECKPOINTS.with(Modes::DEBUG))
            && self.first != Some(checkpoint.id)
            && let (Some(before), Some(state)) = (&before, &self.state)
        {
            if checkpoint.source == Source::Input {
                let shown = self.checkpoint(
                    state::before_input(checkpoint.id),
                    checkpoint.parent,
                    before,
                    (Source::Input, step - 1),
                    arrived(checkpoint.id),
                );
                let id = placed(id, place::ARRIVED);
                out.push(Item { id, at, step: step - 1, what: What::Checkpoint(shown) });
            }
            if !state::awaits_fold(graph, &checkpoint.frontier) {
                let (source, parent) = match checkpoint.source {
                    Source::Input => (Source::Loop, Some(state::before_input(checkpoint.id))),
                    Source::Fork => (Source::Fork, facts.named.or(checkpoint.parent)),
                    other => (other, self.passing_hidden(checkpoint.parent)),
                };
                let next = due_of(graph, &checkpoint.frontier.due);
                let shown = self.checkpoint(checkpoint.id, parent, state, (source, step), next);
                let place = if is_loop { checkpoint_place } else { place::APPLIED };
                put(out, id, place, at, What::Checkpoint(shown));
            }
        }
        if state::awaits_fold(graph, &checkpoint.frontier) {
            self.hidden = Some((checkpoint.id, checkpoint.parent));
        }
        self.shown = self.shown.max(checkpoint.step);
        self.at = Some(checkpoint.id);
        self.depth = checkpoint.frontier.depth;
        self.due = checkpoint.frontier.due;
    }

    /// A parent as it is shown.
    fn passing_hidden(&self, parent: Option<CheckpointId>) -> Option<CheckpointId> {
        match self.hidden {
            Some((hidden, before)) if parent == Some(hidden) => before,
            _ => parent,
        }
    }

    /// The thread's values as of what was shown last.
    pub(super) fn values(&self) -> Value {
        self.state.as_ref().map_or_else(|| json!({}), |state| self.facts.graph.values(state))
    }

    fn checkpoint(
        &self,
        id: CheckpointId,
        parent: Option<CheckpointId>,
        state: &State,
        (source, step): (Source, i64),
        next: Vec<(&str, Uuid)>,
    ) -> Value {
        let facts = &self.facts;
        let config =
            |id: CheckpointId| json!({"configurable": state::checkpoint(facts.thread, id)});
        let tasks: Vec<Value> = next
            .iter()
            .map(|(node, id)| {
                json!({"id": id.to_string(), "name": node, "interrupts": [], "state": null})
            })
            .collect();
        let next: Vec<&str> = next.into_iter().map(|(node, _)| node).collect();
        json!({
            "config": config(id),
            "parent_config": parent.map(config),
            "values": facts.graph.values(state),
            "metadata": {"source": source.as_str(), "step": step, "parents": {}},
            "next": next,
            "tasks": tasks,
            "checkpoint": state::checkpoint(facts.thread, id),
            "parent_checkpoint": parent.map(|parent| state::checkpoint(facts.thread, parent)),
        })
    }

    /// The call that a run failed at, as it is shown at its end, if it was the only one.
    fn failed_call(&self, error: Value) -> Option<Value> {
        let open = |due: &&Due| {
            self.made.contains(&due.task) && !self.completed.iter().any(|one| one.task == due.task)
        };
        let mut open = self.due.iter().filter(open);
        let (call, None) = (open.next()?, open.next()) else { return None };
        Some(json!({
            "id": call.task.to_string(), "name": &*call.node, "error": error, "result": {},
            "interrupts": [],
        }))
    }

    /// Messages that a node returned without having streamed them.
    fn unsaid(&self, returned: &Value) -> Vec<Value> {
        let (true, Value::Object(channels)) =
            (self.modes.has(Modes::TUPLES.with(Modes::PARTIALS)), returned)
        else {
            return Vec::new();
        };
        let was_said = |message: &&Value| {
            let id = message["id"].as_str().and_then(|id| Uuid::try_parse(id).ok());
            id.is_some_and(|id| self.speaking.contains_key(&id))
        };
        let items = channels.values().filter_map(Value::as_array).flatten();
        let said = items.filter(|item| messages::is_message(item) && !was_said(item));
        said.cloned().collect()
    }

    fn ended(&mut self, event: &Event, data: &Value, out: &mut Vec<Item>) {
        self.flush_until(event, i64::MAX, out);
        let status = data["status"].as_str().and_then(Status::parse).unwrap_or(Status::Error);
        match status {
            Status::Success => {
                let due = !self.due.is_empty();
                if due {
                    let asked = std::mem::take(&mut self.interrupts);
                    out.push(self.item(event, place::INTERRUPTS, What::Interrupts(asked.clone())));
                    if !asked.is_empty()
                        && let Some(state) = &self.state
                    {
                        let values = self.facts.graph.values(state);
                        let what = What::Values { values, interrupts: Some(asked) };
                        out.push(self.item(event, place::ASKED, what));
                    }
                    let asking = std::mem::take(&mut self.asking);
                    for (at, result) in asking.into_iter().enumerate() {
                        let at = u8::try_from(at).unwrap_or(u8::MAX);
                        let place = place::UNDONE.saturating_add(at).min(place::UNDONE_LAST);
                        out.push(self.item(event, place, What::TaskResult(result)));
                    }
                }
            }
            Status::Error | Status::Timeout => {
                let error = data["error"]["code"].as_str().unwrap_or("internal").to_owned();
                let message = data["error"]["message"].as_str().unwrap_or_default().to_owned();
                self.failed = Some(message.clone());
                if let Some(result) = self.failed_call(json!({"error": error, "message": message}))
                {
                    out.push(self.item(event, place::UNDONE, What::TaskResult(result)));
                }
                out.push(self.item(event, place::FAILED, What::Failed { error, message }));
            }
            _ => {}
        }
        let stopped = !self.due.is_empty();
        out.push(self.item(event, place::ENDED, What::Ended { status, stopped }));
    }
}

/// What one call of a superstep returned.
fn returned(graph: &Graph, ops: &[(Arc<str>, Op)], one: &Completed, alone: bool) -> Value {
    match &one.writes {
        Some(writes) => graph.returned_writes(writes),
        None if alone => graph.returned(ops),
        // The log does not say; a step of a workflow writes a channel of its own name.
        None => {
            let own: Vec<_> =
                ops.iter().filter(|(channel, _)| *channel == one.node).cloned().collect();
            graph.returned(&own)
        }
    }
}

/// Calls that are due, as they are shown.
fn due_of<'a>(graph: &Graph, due: &'a [Due]) -> Vec<(&'a str, Uuid)> {
    let shown = due.iter().filter(|due| !graph.is_fold(&due.node));
    shown.map(|due| (&*due.node, due.task.0)).collect()
}

/// What is due where an input has arrived: to take it in.
fn arrived(input: CheckpointId) -> Vec<(&'static str, Uuid)> {
    vec![("__start__", state::start_task(input))]
}

const fn placed(id: EventId, place: u8) -> EventId {
    EventId { part: place * PARTS, ..id }
}

fn uuid_in(data: &Value, name: &str) -> Option<Uuid> {
    Uuid::try_parse(data[name].as_str()?).ok()
}
