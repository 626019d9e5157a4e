//! What is due next, as it is stored with a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::id::TaskId;

/// What a thread goes on with: the calls that are due, and what its joins have seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frontier {
    pub due: Vec<Due>,
    /// For nodes that wait for several others: which of them have ended.
    pub arrived: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Supersteps that led here, those of earlier runs and changes from outside included. Input counts
    /// twice, as it arrives and as it is applied; 0 is before everything.
    pub depth: u64,
}

/// One call that is due.
#[derive(Clone, Debug, PartialEq)]
pub struct Due {
    /// The same after a crash: what the call did under it is found again.
    pub task: TaskId,
    pub node: Arc<str>,
    /// What it was sent with, in a fan-out.
    pub payload: Option<Arc<Value>>,
}

impl Frontier {
    /// Whether nothing is left to do.
    pub const fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// The nodes due, in order; a node that was sent to several times comes several times.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<str>> {
        self.due.iter().map(|due| &due.node)
    }

    /// `{"due": [{"task", "node", "payload"?}], "arrived": {target: [source]}, "depth"}`; `{}` for
    /// none.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if !self.due.is_empty() {
            let due = self.due.iter().map(|due| {
                let mut entry = json!({"task": due.task.to_string(), "node": &*due.node});
                if let Some(payload) = &due.payload {
                    entry["payload"] = (**payload).clone();
                }
                entry
            });
            object.insert("due".to_owned(), due.collect());
        }
        if !self.arrived.is_empty() {
            let arrived: Map<String, Value> = self
                .arrived
                .iter()
                .map(|(target, sources)| {
                    let sources = sources.iter().map(|source| Value::from(&**source));
                    ((**target).to_owned(), sources.collect())
                })
                .collect();
            object.insert("arrived".to_owned(), arrived.into());
        }
        if self.depth > 0 {
            object.insert("depth".to_owned(), self.depth.into());
        }
        Value::Object(object)
    }

    /// Reads what [`Frontier::to_json`] wrote. `None` when it is damaged.
    pub fn from_json(value: &Value) -> Option<Self> {
        let due = match value.get("due") {
            None => Vec::new(),
            Some(due) => due
                .as_array()?
                .iter()
                .map(|entry| {
                    Some(Due {
                        task: entry["task"].as_str()?.parse().ok()?,
                        node: entry["node"].as_str()?.into(),
                        payload: entry.get("payload").cloned().map(Arc::new),
                    })
                })
                .collect::<Option<_>>()?,
        };
        let arrived = match value.get("arrived") {
            None => BTreeMap::new(),
            Some(arrived) => arrived
                .as_object()?
                .iter()
                .map(|(target, sources)| {
                    let sources = sources.as_array()?.iter();
                    let sources = sources.map(|source| source.as_str().map(Arc::from));
                    Some((target.as_str().into(), sources.collect::<Option<_>>()?))
                })
                .collect::<Option<_>>()?,
        };
        let depth = match value.get("depth") {
            None => 0,
            Some(depth) => depth.as_u64()?,
        };
        Some(Self { due, arrived, depth })
    }
}
