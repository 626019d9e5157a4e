//! A thread's durable facts.

use serde_json::{Map, Value};

use crate::{CheckpointId, RunId, ThreadId, Timestamp};

/// Durable state that outlives runs.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadRecord {
    pub id: ThreadId,
    pub tenant: String,
    pub owner: Option<String>,
    /// A dialect's own name for it, unique per tenant.
    pub key: Option<ThreadKey>,
    pub metadata: Map<String, Value>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// The run that holds the thread now.
    pub active_run: Option<RunId>,
    /// Runs admitted so far.
    pub ord: i64,
    /// How often it was reset; a reset starts from empty state.
    pub generation: u32,
    pub head: Option<CheckpointId>,
    /// Newest delta of all branches: new ones number above it.
    pub version: u64,
}

/// A dialect's own name of a thread, kept in parts so that separators inside a part mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ThreadKey {
    pub dialect: String,
    pub parts: Vec<String>,
}

impl ThreadKey {
    pub fn new(dialect: &str, parts: &[&str]) -> Self {
        Self {
            dialect: dialect.to_owned(),
            parts: parts.iter().map(|part| (*part).to_owned()).collect(),
        }
    }

    /// The thread's id, derived from the key.
    pub fn thread_id(&self, tenant: &str) -> ThreadId {
        let parts: Vec<&str> = self.parts.iter().map(String::as_str).collect();
        ThreadId::from_key(tenant, &self.dialect, &parts)
    }
}
