//! The engine's own measurements, as a Prometheus registry.
//!
//! Counters are touched once per run or per flush, never per token.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clearway_core::Status;
use clearway_upstream::UsageRow;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// All measurements.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    pub(crate) accepted: Family<Door, Counter>,
    pub(crate) refused: Family<Refusal, Counter>,
    pub(crate) ended: Family<Ended, Counter>,
    pub(crate) duration: Family<Agent, Histogram, fn() -> Histogram>,
    pub(crate) first_output: Histogram,
    pub(crate) commit: Histogram,
    pub(crate) waited: Family<Wait, Counter<f64, AtomicU64>>,
    pub(crate) resumed: Counter,
    pub(crate) segments: Counter,
    pub(crate) fenced: Counter,
    pub(crate) cancel_latency: Histogram,
    pub(crate) pools: Family<PoolState, Gauge>,
    pub(crate) process: Family<Process, Gauge<f64, AtomicU64>>,
    pub(crate) upstream: Family<Upstream, Gauge>,
    attempts: Family<Attempt, Counter>,
    operations: Family<Operation, Histogram, fn() -> Histogram>,
    first_chunk: Family<Operation, Histogram, fn() -> Histogram>,
    tokens: Family<Tokens, Counter>,
    searches: Family<Search, Counter>,
    search_time: Histogram,
    similarity: Histogram,
    /// Runs that ended, and those of them that failed or ran out of time: a family cannot be summed up.
    ends: AtomicU64,
    failures: AtomicU64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Search {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Door {
    pub door: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Refusal {
    pub code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Ended {
    pub agent: String,
    pub status: String,
    pub code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Agent {
    pub agent: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Attempt {
    provider: String,
    model: String,
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Operation {
    provider: String,
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Tokens {
    provider: String,
    model: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Wait {
    pub kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct PoolState {
    pub pool: String,
    pub state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Process {
    pub what: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Upstream {
    pub provider: String,
    pub what: String,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

/// From 0.1 ms to 1.7 s, a third at a time: a commit is one sync of a disk.
fn fine_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 1.333, 35))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("clearway")),
            accepted: Family::default(),
            refused: Family::default(),
            ended: Family::default(),
            duration: Family::new_with_constructor(seconds),
            first_output: seconds(),
            commit: fine_seconds(),
            waited: Family::default(),
            resumed: Counter::default(),
            segments: Counter::default(),
            fenced: Counter::default(),
            cancel_latency: seconds(),
            pools: Family::default(),
            process: Family::default(),
            upstream: Family::default(),
            attempts: Family::default(),
            operations: Family::new_with_constructor(seconds),
            first_chunk: Family::new_with_constructor(seconds),
            tokens: Family::default(),
            searches: Family::default(),
            search_time: Histogram::new(exponential_buckets(0.000_5, 2.0, 16)),
            similarity: Histogram::new((1..=20).map(|step| f64::from(step) / 20.0)),
            ends: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let mut registry = self.registry();
        let r = &mut *registry;
        r.register("runs_accepted", "Runs accepted, by door", self.accepted.clone());
        r.register("runs_refused", "Runs refused, by reason", self.refused.clone());
        r.register(
            "runs_ended",
            "Runs ended, by agent, status and failure code",
            self.ended.clone(),
        );
        let s = || Unit::Seconds;
        r.register_with_unit(
            "run_duration",
            "From acceptance to the end",
            s(),
            self.duration.clone(),
        );
        r.register_with_unit(
            "run_first_output",
            "From claim to the first delta",
            s(),
            self.first_output.clone(),
        );
        r.register_with_unit(
            "commit_duration",
            "One durable commit, as its run sees it",
            s(),
            self.commit.clone(),
        );
        r.register_with_unit(
            "run_waited",
            "Time ended runs spent, by what they waited for",
            s(),
            self.waited.clone(),
        );
        r.register("runs_resumed", "Runs taken up again after a restart", self.resumed.clone());
        r.register("log_segments", "Output segments stored", self.segments.clone());
        r.register("runs_fenced", "Leases lost while running", self.fenced.clone());
        r.register_with_unit(
            "cancel_latency",
            "From request to calls dropped",
            s(),
            self.cancel_latency.clone(),
        );
        r.register(
            "pool_runs",
            "Runs by pool and state, with the pool's limits",
            self.pools.clone(),
        );
        r.register("process", "Threads, open files, memory, scheduler lag", self.process.clone());
        r.register("upstream", "Provider slots and connections", self.upstream.clone());
        r.register("upstream_attempts", "Attempts at providers, by outcome", self.attempts.clone());
        // The names of the OpenTelemetry GenAI conventions, with this registry's prefix.
        r.register_with_unit(
            "gen_ai_client_operation_duration",
            "Attempts at providers, from admission to end",
            s(),
            self.operations.clone(),
        );
        r.register_with_unit(
            "gen_ai_client_operation_time_to_first_chunk",
            "From admission to the first output",
            s(),
            self.first_chunk.clone(),
        );
        r.register("gen_ai_client_token_usage", "Tokens used", self.tokens.clone());
        r.register("knowledge_searches", "Searches, by outcome", self.searches.clone());
        r.register_with_unit(
            "knowledge_search_duration",
            "One search, from the question to the answer",
            s(),
            self.search_time.clone(),
        );
        r.register(
            "knowledge_similarity",
            "The best similarity that a search saw, found or not",
            self.similarity.clone(),
        );
    }

    /// Counts an end.
    pub(crate) fn ended(&self, status: Status) {
        self.ends.fetch_add(1, Ordering::Relaxed);
        if matches!(status, Status::Error | Status::Timeout) {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many runs ended, and how many of them failed or ran out of time.
    pub(crate) fn ends(&self) -> (u64, u64) {
        // Failures first: there are never more than ends.
        let failures = self.failures.load(Ordering::Relaxed);
        (self.ends.load(Ordering::Relaxed), failures)
    }

    /// Books one search.
    pub(crate) fn searched(&self, outcome: &str, took: Duration, best: Option<f32>) {
        self.searches.get_or_create(&Search { outcome: outcome.to_owned() }).inc();
        self.search_time.observe(took.as_secs_f64());
        if let Some(best) = best {
            self.similarity.observe(f64::from(best));
        }
    }

    /// Books one attempt at a provider.
    pub(crate) fn attempt(&self, row: &UsageRow) {
        let provider = || row.provider.to_string();
        let model = || row.model.to_string();
        let labels =
            Attempt { provider: provider(), model: model(), outcome: row.outcome.to_owned() };
        self.attempts.get_or_create(&labels).inc();
        let labels = Operation { provider: provider(), model: model() };
        self.operations.get_or_create(&labels).observe(row.elapsed.as_secs_f64());
        if let Some(first) = row.first_output {
            self.first_chunk.get_or_create(&labels).observe(first.as_secs_f64());
        }
        for (kind, count) in
            [("input", row.usage.input_tokens), ("output", row.usage.output_tokens)]
        {
            if count > 0 {
                let labels = Tokens { provider: provider(), model: model(), kind };
                self.tokens.get_or_create(&labels).inc_by(count);
            }
        }
    }

    /// For rendering.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
