//! An agent as a graph: which of its channels and nodes are shown, and what input means to it.

use std::sync::Arc;

use clearway_core::Failure;
use clearway_core::channel::{self, Op, Reducer, State, Write};
use clearway_core::plan::{END, Goto, MESSAGES};
use clearway_engine::Agent;
use serde_json::{Map, Value, json};

use super::messages;

/// Where a workflow keeps the input that it declares.
const INPUT: &str = "input";

/// A graph by its name; without an agent when the configuration has none of that name any more.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) name: String,
    pub(super) agent: Option<Arc<Agent>>,
}

impl Graph {
    pub(super) fn new(app: &crate::app::App, name: &str) -> Self {
        Self { name: name.to_owned(), agent: app.engine.agents().get(name) }
    }

    fn reducer(&self, channel: &str) -> Option<Reducer> {
        self.agent.as_ref()?.plan.channels().get(channel).copied()
    }

    pub(super) fn is_shown(&self, channel: &str) -> bool {
        // What the engine's own parts count is theirs: no name of anybody else's has a colon.
        if channel.contains(':') {
            return false;
        }
        let Some(agent) = &self.agent else { return true };
        agent.shown_channels.as_ref().is_none_or(|shown| shown.contains(channel))
    }

    /// Whether a node is none of its author's: it folds outputs into a result at the end.
    pub(super) fn is_fold(&self, node: &str) -> bool {
        let fold = self.agent.as_ref().and_then(|agent| agent.plan.fold());
        fold.is_some_and(|fold| **fold == *node)
    }

    /// Whether its runs end with such a node.
    pub(super) fn folds(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.plan.fold().is_some())
    }

    pub(super) fn has_node(&self, node: &str) -> bool {
        self.agent.as_ref().is_some_and(|agent| agent.plan.has_node(node))
    }

    pub(super) fn nodes(&self) -> Vec<Arc<str>> {
        let nodes = self.agent.iter().flat_map(|agent| agent.plan.node_names().cloned());
        nodes.filter(|node| !self.is_fold(node)).collect()
    }

    /// A thread's values: the shown channels, lists that were never written as empty ones.
    pub(super) fn values(&self, state: &State) -> Value {
        let mut values = Map::new();
        for (channel, _) in state.versions() {
            if self.is_shown(channel)
                && let Some(value) = state.get(channel)
            {
                values.insert(channel.to_owned(), self.value(channel, &value));
            }
        }
        if let Some(agent) = &self.agent {
            for (channel, reducer) in agent.plan.channels() {
                let is_list = !matches!(reducer, Reducer::Last | Reducer::Merge);
                if is_list && self.is_shown(channel) {
                    let absent = !values.contains_key(&**channel);
                    if absent && (agent.shown_channels.is_some() || &**channel == MESSAGES) {
                        values.insert((**channel).to_owned(), json!([]));
                    }
                }
            }
        }
        Value::Object(values)
    }

    /// A channel's value, or a write to it, as it is shown.
    pub(super) fn value(&self, channel: &str, value: &Value) -> Value {
        let holds_messages =
            channel == MESSAGES || self.reducer(channel) == Some(Reducer::MergeById);
        match value {
            Value::Array(items) if holds_messages => items.iter().map(messages::complete).collect(),
            Value::Object(_) if holds_messages => messages::complete(value),
            other => other.clone(),
        }
    }

    /// What a superstep wrote, as nodes of LangGraph return it: `{channel: value}`; `null` for
    /// nothing that is shown.
    pub(super) fn returned(&self, ops: &[(Arc<str>, Op)]) -> Value {
        let mut written = Map::new();
        for (channel, op) in ops.iter().filter(|(channel, _)| self.is_shown(channel)) {
            let items = match op {
                Op::Assign(value) => {
                    written.insert((**channel).to_owned(), self.value(channel, value));
                    continue;
                }
                Op::Patch(fields) => {
                    let known = written.entry((**channel).to_owned()).or_insert_with(|| json!({}));
                    if let Value::Object(known) = known {
                        known.extend(fields.clone());
                    }
                    continue;
                }
                Op::Append(items) | Op::Merge(items) | Op::Add(items) => items.clone(),
            };
            let items = self.value(channel, &Value::Array(items));
            match (written.get_mut(&**channel), items) {
                (Some(Value::Array(known)), Value::Array(more)) => known.extend(more),
                (_, items) => {
                    written.insert((**channel).to_owned(), items);
                }
            }
        }
        if written.is_empty() { Value::Null } else { Value::Object(written) }
    }

    /// The same of one call's writes, as its event keeps them.
    pub(super) fn returned_writes(&self, writes: &Value) -> Value {
        let mut written = Map::new();
        for write in writes.as_array().into_iter().flatten() {
            let Some(channel) = write["channel"].as_str().filter(|name| self.is_shown(name)) else {
                continue;
            };
            written.insert(channel.to_owned(), self.value(channel, &write["value"]));
        }
        if written.is_empty() { Value::Null } else { Value::Object(written) }
    }

    /// The writes that an input means; those that replace what is there go to `replaced`. Names that are
    /// no channels are left to the agent's own check. Names that mean nothing are passed over.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn input(
        &self,
        input: &Map<String, Value>,
        new_id: &mut dyn FnMut() -> String,
        replaced: &mut Vec<Write>,
    ) -> Result<Map<String, Value>, String> {
        let Some(agent) = &self.agent else { return Ok(Map::new()) };
        let mut writes = Map::new();
        let mut rest = Map::new();
        for (name, value) in input {
            if self.takes(name) {
                let write = self.kept(name, value, new_id)?;
                if write.assign {
                    replaced.push(write);
                } else {
                    writes.insert(name.clone(), write.value);
                }
            } else {
                rest.insert(name.clone(), value.clone());
            }
        }
        if let Some(check) = &agent.input {
            let declared = agent.input_schema.as_ref();
            let declared = declared.and_then(|schema| schema["properties"].as_object());
            let mut known = rest.clone();
            if let Some(declared) = declared {
                known.retain(|name, _| declared.contains_key(name));
            }
            // What is missing may be there under a wrong name, which the whole input says better.
            let checked = check.read(&known).or_else(|why| check.read(&rest).and(Err(why)));
            if let Value::Object(checked) = checked.map_err(|failure| failure.message)? {
                writes.extend(checked);
            }
        }
        Ok(writes)
    }

    /// What a run was given, by the names that its client knows: what an agent checks by itself is kept
    /// in one channel.
    pub(super) fn given(&self, kept: &Map<String, Value>) -> Map<String, Value> {
        let mut given = Map::new();
        for (name, value) in kept {
            let checked = name == INPUT && !self.takes(name);
            match value.as_object().filter(|_| checked) {
                Some(fields) => given.extend(fields.clone()),
                None => drop(given.insert(name.clone(), value.clone())),
            }
        }
        given
    }

    /// Whether input by this name is written to the channel of that name.
    fn takes(&self, name: &str) -> bool {
        let Some(agent) = &self.agent else { return false };
        let is_channel = agent.plan.channels().contains_key(name);
        match (&agent.input, &agent.shown_channels) {
            (Some(_), Some(shown)) => is_channel && shown.contains(name),
            (Some(_), None) => false,
            (None, _) => is_channel,
        }
    }

    /// One write as it is kept.
    pub(super) fn kept(
        &self,
        channel: &str,
        value: &Value,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Write, String> {
        let merges = self.reducer(channel) == Some(Reducer::MergeById);
        if channel == MESSAGES || (merges && looks_like_messages(value)) {
            let read = messages::read(value, new_id)?;
            let value = Value::Array(read.messages);
            return Ok(Write { assign: read.replaces, ..Write::new(channel, value) });
        }
        Ok(Write::new(channel, value.clone()))
    }

    /// Writes from outside: `{channel: value}`, or a list of pairs. Names that are no channels mean nothing.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn writes(
        &self,
        values: &Value,
        new_id: &mut dyn FnMut() -> String,
    ) -> Result<Vec<Write>, String> {
        let pairs: Vec<(&str, &Value)> = match values {
            Value::Null => Vec::new(),
            Value::Object(map) => map.iter().map(|(name, value)| (name.as_str(), value)).collect(),
            Value::Array(items) => items
                .iter()
                .map(|item| match item.as_array().map(Vec::as_slice) {
                    Some([Value::String(name), value]) => Ok((name.as_str(), value)),
                    _ => Err("values must be an object, or a list of pairs [channel, value]"),
                })
                .collect::<Result<_, _>>()?,
            _ => return Err("values must be an object, or a list of pairs".to_owned()),
        };
        let mut writes = Vec::new();
        for (name, value) in pairs {
            if self.reducer(name).is_none() {
                continue;
            }
            writes.push(self.kept(name, value, new_id)?);
        }
        Ok(writes)
    }

    /// Where a command wants to go on. Nodes that do not exist are passed over.
    ///
    /// # Errors
    /// It is neither a name, a list nor `{"node", "input"}`.
    pub(super) fn goto(&self, goto: &Value) -> Result<Vec<Goto>, String> {
        let one = |target: &Value| match target {
            Value::String(name) if name == END || self.has_node(name) => {
                Ok(Some(Goto::Node(name.as_str().into())))
            }
            Value::String(_) => Ok(None),
            Value::Object(send) => match send.get("node").and_then(Value::as_str) {
                Some(node) if self.has_node(node) => Ok(Some(Goto::Send {
                    node: node.into(),
                    payload: send.get("input").cloned().unwrap_or_default(),
                })),
                Some(_) => Ok(None),
                None => Err("goto: `node` is required"),
            },
            _ => Err("goto must be a node's name, {\"node\", \"input\"}, or a list of these"),
        };
        let targets = match goto {
            Value::Array(targets) => targets.iter().map(one).collect::<Result<Vec<_>, _>>()?,
            target => vec![one(target)?],
        };
        Ok(targets.into_iter().flatten().collect())
    }

    /// Applies writes as the engine would.
    ///
    /// # Errors
    /// They do not fit their channels.
    pub(super) fn apply(&self, state: &mut State, writes: Vec<Write>) -> Result<(), Failure> {
        let Some(agent) = &self.agent else { return Ok(()) };
        for (channel, op) in channel::reduce(agent.plan.channels(), writes)? {
            state.apply(&channel, op);
        }
        Ok(())
    }
}

fn looks_like_messages(value: &Value) -> bool {
    let is_one = |item: &Value| {
        item.get("content").is_some() && (item.get("type").is_some() || item.get("role").is_some())
    };
    match value {
        Value::Array(items) => !items.is_empty() && items.iter().all(is_one),
        one => is_one(one),
    }
}
