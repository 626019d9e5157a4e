//! Times and weights that a store goes by.

use std::collections::BTreeMap;
use std::time::Duration;

/// What an operator may tune; the defaults suit a server.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How long an instance may be silent before others may take its runs.
    pub lease: Duration,
    /// How long the deltas of an ended run stay readable. Its facts and its messages stay for ever.
    pub log_retention: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency: Duration,
    /// Share of slots by tenant, relative to the others' 1.
    pub weights: BTreeMap<String, u32>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(10),
            log_retention: Duration::from_secs(60 * 60),
            idempotency: Duration::from_secs(24 * 60 * 60),
            weights: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// At least 1, so that nobody is starved by a zero.
    pub(crate) fn weight(&self, tenant: &str) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(1).max(1)
    }
}
