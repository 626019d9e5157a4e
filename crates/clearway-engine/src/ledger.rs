//! What provider calls cost: collected for each node call until its run commits, and for texts that
//! are embedded together, which belong to no run, until the next second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use clearway_core::AttemptRecord;
use clearway_core::event::{Body, EventKind, Fact};
use clearway_core::run::Usage;
use clearway_store::Store;
use clearway_upstream::{Observer, UsageRow};
use serde_json::json;
use tokio::sync::Notify;

use crate::clock::Clocks;
use crate::ctx::Spending;
use crate::live::{Live, lock};
use crate::metrics::Metrics;

/// The account of one node call.
#[derive(Debug)]
pub(crate) struct Ledger {
    node: Arc<str>,
    live: Arc<Live>,
    /// Under which the call is made.
    lease: u32,
    metrics: Arc<Metrics>,
    spending: Arc<Spending>,
    clocks: Clocks,
    /// The next answer was paid for before, by a call that was lost with its lease.
    repeats: AtomicBool,
    booked: Mutex<Booked>,
}

/// What was used up, as a sum and as the attempts that make it up.
#[derive(Debug, Default)]
pub(crate) struct Booked {
    pub(crate) usage: Usage,
    pub(crate) attempts: Vec<AttemptRecord>,
}

impl Booked {
    pub(crate) fn add(&mut self, other: Self) {
        self.usage.add(other.usage);
        self.attempts.extend(other.attempts);
    }
}

impl Ledger {
    pub(crate) fn new(
        node: Arc<str>,
        live: Arc<Live>,
        lease: u32,
        metrics: Arc<Metrics>,
        spending: Arc<Spending>,
        clocks: Clocks,
        repeats: bool,
    ) -> Self {
        let (repeats, booked) = (AtomicBool::new(repeats), Mutex::default());
        Self { node, live, lease, metrics, spending, clocks, repeats, booked }
    }

    /// Everything since the last time.
    pub(crate) fn take(&self) -> Booked {
        std::mem::take(&mut *lock(&self.booked))
    }
}

impl Observer for Ledger {
    fn attempt(&self, row: &UsageRow) {
        // Later calls of the same node were not made yet when the lease was lost, or are in the journal.
        let repeated = row.is_ok() && self.repeats.swap(false, Ordering::Relaxed);
        let tokens = row.usage.input_tokens + row.usage.output_tokens;
        let usage = Usage {
            input_tokens: row.usage.input_tokens,
            output_tokens: row.usage.output_tokens,
            rebilled_tokens: if repeated { tokens } else { 0 },
            calls: 1,
            cost_micros: row.cost_micros.unwrap_or(0),
        };
        let record = AttemptRecord { node: (*self.node).to_owned(), ..record(row, &self.clocks) };
        lock(&self.booked).add(Booked { usage, attempts: vec![record] });
        self.spending.book(&usage);
        self.metrics.attempt(row);
        // The good one is told with the message that it made.
        if !row.is_ok() {
            let fact = Fact::new(EventKind::ProviderAttempt, &describe(row));
            // After the call's end nobody reads on; the sums above are kept all the same.
            drop(self.live.output(self.lease, Body::Fact(fact)));
        }
    }
}

/// Attempts that belong to no run, on their way into the store.
#[derive(Debug)]
pub(crate) struct Books {
    metrics: Arc<Metrics>,
    clocks: Clocks,
    kept: Mutex<Vec<AttemptRecord>>,
    some: Notify,
    /// It was said already that there are too many.
    complained: OnceLock<()>,
}

impl Books {
    pub(crate) fn new(metrics: Arc<Metrics>, clocks: Clocks) -> Self {
        let (kept, some) = (Mutex::default(), Notify::new());
        Self { metrics, clocks, kept, some, complained: OnceLock::new() }
    }

    /// Writes them down, once a second while there are some. Never ends.
    pub(crate) async fn keep(&self, store: &dyn Store) {
        loop {
            self.some.notified().await;
            self.flush(store).await;
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Writes down what there is.
    pub(crate) async fn flush(&self, store: &dyn Store) {
        let kept = std::mem::take(&mut *lock(&self.kept));
        if kept.is_empty() {
            return;
        }
        let count = kept.len();
        match tokio::time::timeout(PATIENCE, store.book(kept)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, attempts = count, "attempts of no run are not booked");
            }
            Err(_) => {
                tracing::warn!(
                    attempts = count,
                    "attempts of no run are not booked: the store is slow"
                );
            }
        }
    }
}

impl Observer for Books {
    fn attempt(&self, row: &UsageRow) {
        self.metrics.attempt(row);
        let mut kept = lock(&self.kept);
        if kept.len() >= MOST {
            drop(kept);
            self.complained.get_or_init(|| {
                tracing::warn!("more attempts than can be booked; some are only counted");
            });
            return;
        }
        kept.push(record(row, &self.clocks));
        drop(kept);
        self.some.notify_one();
    }
}

const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// Attempts that wait to be written.
const MOST: usize = 10_000;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn record(row: &UsageRow, clocks: &Clocks) -> AttemptRecord {
    AttemptRecord {
        id: 0,
        at: clocks.now(),
        call: row.call.clone(),
        node: String::new(),
        number: row.number,
        provider: row.provider.to_string(),
        endpoint: row.endpoint.to_string(),
        model: row.model.to_string(),
        key: row.key.to_string(),
        class: row.class.as_str().to_owned(),
        phase: row.phase.as_str().to_owned(),
        outcome: row.outcome.to_owned(),
        status: row.status,
        source: row.source.as_str().to_owned(),
        input_tokens: row.usage.input_tokens,
        output_tokens: row.usage.output_tokens,
        cached_tokens: row.usage.cached_tokens,
        reasoning_tokens: row.usage.reasoning_tokens,
        price: row.price.map(|price| [price.input, price.cached_input, price.output]),
        cost_micros: row.cost_micros,
        ms: millis(row.elapsed),
        first_output_ms: row.first_output.map(millis),
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
        "ms": millis(row.elapsed),
    })
}
