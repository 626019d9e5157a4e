//! Attempts at provider calls, as the books keep them.

use crate::{RunId, Timestamp};

/// One attempt at one provider, whatever became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttemptRecord {
    /// Given by the store, rising; 0 before that.
    pub id: i64,
    /// When it was over.
    pub at: Timestamp,
    /// The id of its call, which the provider was told with the number behind it.
    pub call: String,
    /// Whose call it was; empty outside of runs.
    pub node: String,
    /// From 1 within its call.
    pub number: u32,
    pub provider: String,
    pub endpoint: String,
    /// What the provider calls the model.
    pub model: String,
    /// The key's label, never the key.
    pub key: String,
    pub class: String,
    /// How far it came.
    pub phase: String,
    /// `ok`, or the stable code of what ended it.
    pub outcome: String,
    pub status: Option<u16>,
    /// Who counted: `provider`, `partial`, `estimated`, `none`.
    pub source: String,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    pub reasoning_tokens: u64,
    /// Of a million tokens, in millionths: input, cached input, output.
    pub price: Option<[u64; 3]>,
    pub cost_micros: Option<u64>,
    pub ms: u64,
    pub first_output_ms: Option<u64>,
}

/// Which attempts to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptsOf {
    /// Oldest first.
    Run(RunId),
    /// Newest first: texts that were embedded together belong to no single run.
    NoRun,
}
