//! What a node's provider calls cost, collected until its run commits.

use std::sync::{Arc, Mutex, PoisonError};

use clearway_core::event::{Body, EventKind, Fact};
use clearway_core::run::Usage;
use clearway_upstream::{Observer, UsageRow};
use serde_json::json;

use crate::ctx::Spending;
use crate::live::Live;
use crate::metrics::Metrics;

/// The account of one node call.
#[derive(Debug)]
pub(crate) struct Ledger {
    live: Arc<Live>,
    metrics: Arc<Metrics>,
    spending: Arc<Spending>,
    sum: Mutex<Usage>,
}

impl Ledger {
    pub(crate) fn new(live: Arc<Live>, metrics: Arc<Metrics>, spending: Arc<Spending>) -> Self {
        Self { live, metrics, spending, sum: Mutex::default() }
    }

    /// Everything since the last time.
    pub(crate) fn take(&self) -> Usage {
        std::mem::take(&mut *self.sum.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for Ledger {
    fn attempt(&self, row: &UsageRow) {
        let usage = Usage {
            input_tokens: row.usage.input_tokens,
            output_tokens: row.usage.output_tokens,
            rebilled_tokens: 0,
            calls: 1,
            cost_micros: row.cost_micros.unwrap_or(0),
        };
        self.sum.lock().unwrap_or_else(PoisonError::into_inner).add(usage);
        self.spending.book(&usage);
        self.metrics.attempt(row);
        // The good one is told with the message that it made.
        if !row.is_ok() {
            let fact = Fact::new(EventKind::ProviderAttempt, &describe(row));
            // After the call's end nobody reads on; the sums above are kept all the same.
            drop(self.live.output(Body::Fact(fact)));
        }
    }
}

fn describe(row: &UsageRow) -> serde_json::Value {
    json!({
        "attempt": row.number,
        "provider": &*row.provider,
        "model": &*row.model,
        "key": &*row.key,
        "phase": row.phase.as_str(),
        "outcome": row.outcome,
        "status": row.status,
        "input_tokens": row.usage.input_tokens,
        "output_tokens": row.usage.output_tokens,
        "source": row.source.as_str(),
        "cost_micros": row.cost_micros,
        "ms": row.elapsed.as_millis() as u64,
    })
}
