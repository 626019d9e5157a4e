//! Assistants: an agent, and how it is to be run, at every version that there ever was.

use clearway_core::Timestamp;
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// An assistant at one of its versions.
#[derive(Clone, Debug, PartialEq)]
pub struct Assistant {
    /// Unique per tenant.
    pub id: Uuid,
    pub tenant: String,
    pub owner: Option<String>,
    pub agent: String,
    /// From 1.
    pub version: u32,
    pub name: String,
    pub description: Option<String>,
    pub config: Map<String, Value>,
    pub context: Map<String, Value>,
    pub metadata: Map<String, Value>,
    /// Of the first version.
    pub created_at: Timestamp,
    /// Of this version.
    pub updated_at: Timestamp,
}

impl Assistant {
    /// As stored.
    pub(crate) fn data(&self) -> String {
        let Self { config, context, metadata, .. } = self;
        json!({"config": config, "context": context, "metadata": metadata}).to_string()
    }
}

/// The version that runs take, and the newest one.
#[derive(Clone, Debug, PartialEq)]
pub struct LatestAssistant {
    pub latest: Assistant,
    pub newest: u32,
}

/// A version to be added; it becomes the one that runs take.
#[derive(Clone, Debug, PartialEq)]
pub struct NewAssistant {
    pub assistant: Assistant,
    /// The newest version that there is so far; `None` when there is no such assistant yet.
    pub after: Option<u32>,
}

/// What became of a version.
#[derive(Clone, Debug, PartialEq)]
pub enum AssistantPut {
    Stored,
    /// There is one already, or somebody else was faster: as it is now.
    Exists(Box<LatestAssistant>),
    /// It is gone.
    Gone,
    /// The tenant has [`ASSISTANTS`], or the assistant [`VERSIONS`].
    TooMany,
}

/// Assistants of a tenant.
pub const ASSISTANTS: u32 = 10_000;

/// Versions of an assistant.
pub const VERSIONS: u32 = 1000;
