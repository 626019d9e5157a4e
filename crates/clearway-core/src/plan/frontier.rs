//! What is due next, as it is stored with a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use crate::id::TaskId;

/// What a thread goes on with: the calls that are due, and what its joins have seen. As JSON `{}` when
/// there is nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Frontier {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub due: Vec<Due>,
    /// For nodes that wait for several others: which of them have ended.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub arrived: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Supersteps that led here, those of earlier runs and changes from outside included. Input counts
    /// twice, as it arrives and as it is applied; 0 is before everything.
    #[serde(skip_serializing_if = "is_zero")]
    pub depth: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One call that is due.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Due {
    /// The same after a crash: what the call did under it is found again.
    pub task: TaskId,
    pub node: Arc<str>,
    /// What it was sent with, in a fan-out.
    #[serde(skip_serializing_if = "Option::is_none")]
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

    /// As it is serialized, for who looks into it.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads it as it was serialized. `None` when it is damaged.
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
