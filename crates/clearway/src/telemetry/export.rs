//! From finished spans to batches on their way.
//!
//! Whoever ends a span puts it into a bounded queue and goes on. One OS thread, started with the
//! process, takes batches out and sends them, one after the other; a collector that is away is tried
//! again a few times. What does not fit or cannot be sent is dropped, counted, and told in the log
//! once a minute.

use std::io;
use std::sync::mpsc::{Receiver as Done, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use prost::Message;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::collector::Collector;
use super::layer::TRACEPARENT;
use super::{Counts, Error};
use crate::config;

/// Spans that may wait: some megabytes.
const QUEUE: usize = 4096;
/// Spans that travel together.
const BATCH: usize = 512;
/// How long a span waits for company.
const GATHER: Duration = Duration::from_secs(1);
/// Between tries of one batch; after the last the batch is dropped.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// Between two lines about spans that were lost.
const TELL: Duration = Duration::from_secs(60);
/// What sending the rest may take when the process stops; a little less than is waited for it.
const LAST: Duration = Duration::from_millis(1800);

/// The way from any thread to the exporter.
#[derive(Debug)]
pub(super) struct Queue {
    spans: Sender<SpanData>,
    counts: Counts,
    stop: CancellationToken,
    /// Closed when the exporter's thread is done.
    done: Mutex<Done<()>>,
}

/// Starts the exporter's thread.
pub(super) fn start(
    config: &config::Telemetry,
    resource: &Resource,
    counts: Counts,
) -> Result<Queue, Error> {
    let (spans, queue) = mpsc::channel(QUEUE);
    let (running, done) = sync_channel(0);
    let stop = CancellationToken::new();
    let exporter = Exporter {
        queue,
        batch: Vec::with_capacity(BATCH),
        under_way: 0,
        collector: Collector::new(config)?,
        resource: resource.into(),
        stop: stop.clone(),
        counts: counts.clone(),
        losses: Losses::new(counts.clone()),
    };
    spawn(exporter, running).map_err(Error::Thread)?;
    Ok(Queue { spans, counts, stop, done: Mutex::new(done) })
}

fn spawn(exporter: Exporter, running: SyncSender<()>) -> io::Result<()> {
    // A runtime of its own, so that a busy server does not delay its telemetry nor the other way
    // round, and so that the last spans can leave when the server's runtime is gone.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        runtime.block_on(exporter.run());
        drop(running);
    };
    std::thread::Builder::new().name("telemetry".to_owned()).spawn(run).map(drop)
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, mut span: SpanData) {
        span.attributes.retain(|attribute| attribute.key.as_str() != TRACEPARENT);
        if self.spans.try_send(span).is_err() {
            self.counts.lost.inc();
        }
    }

    /// Spans leave within a second anyway.
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.stop.cancel();
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        match done.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => Err(OTelSdkError::Timeout(timeout)),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

struct Exporter {
    queue: Receiver<SpanData>,
    batch: Vec<SpanData>,
    /// Spans of the batch that is being sent.
    under_way: usize,
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    stop: CancellationToken,
    counts: Counts,
    losses: Losses,
}

impl Exporter {
    async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.export() => {}
            () = async { stop.cancelled().await; sleep(LAST).await } => {
                let left = self.under_way + self.batch.len() + self.queue.len();
                self.losses.add(left, "the server stopped before they could be sent");
            }
        }
        self.losses.tell_rest();
    }

    /// Sends batches until it is told to stop and the queue is empty.
    async fn export(&mut self) {
        let mut tell = interval_at(Instant::now() + TELL, TELL);
        tell.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = gather(&mut self.queue, &mut self.batch) => {}
                _ = tell.tick() => {}
                () = self.stop.cancelled() => break,
            }
            self.send().await;
            self.losses.tell(Instant::now());
        }
        // Whatever ends from now on is counted as lost where it ends.
        self.queue.close();
        loop {
            let room = BATCH - self.batch.len();
            self.queue.recv_many(&mut self.batch, room).await;
            if self.batch.is_empty() {
                break;
            }
            self.send().await;
        }
    }

    async fn send(&mut self) {
        let count = self.batch.len();
        if count == 0 {
            return;
        }
        self.under_way = count;
        let spans = std::mem::take(&mut self.batch);
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let batch = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let mut pauses = PAUSES.into_iter();
        loop {
            let refused = match self.collector.post(batch.clone()).await {
                Ok(rejected) => {
                    let rejected = usize::try_from(rejected).unwrap_or(count).min(count);
                    self.counts.exported.inc_by((count - rejected) as u64);
                    self.losses.add(rejected, "the collector rejected them");
                    break;
                }
                Err(refused) => refused,
            };
            let pause = pauses.next().filter(|_| refused.again && !self.stop.is_cancelled());
            let Some(pause) = pause else {
                self.losses.add(count, &refused.problem);
                break;
            };
            tokio::select! {
                () = sleep(pause) => {}
                // One more try, at once.
                () = self.stop.cancelled() => {}
            }
        }
        self.under_way = 0;
    }
}

/// Waits for spans, and a moment longer for more. Cancel-safe: what was taken is in `batch`.
async fn gather(queue: &mut Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if queue.recv_many(batch, BATCH).await == 0 {
        // Closed without a word: there is nothing to come but the order to stop.
        return std::future::pending().await;
    }
    let until = Instant::now() + GATHER;
    while batch.len() < BATCH {
        let more = queue.recv_many(batch, BATCH - batch.len());
        if timeout_at(until, more).await.is_ok_and(|more| more > 0) {
            continue;
        }
        break;
    }
}

/// Counts lost spans and tells about them, seldom.
struct Losses {
    counts: Counts,
    /// How many the log knows of.
    told: u64,
    told_at: Option<Instant>,
    problem: String,
}

impl Losses {
    fn new(counts: Counts) -> Self {
        Self { counts, told: 0, told_at: None, problem: String::new() }
    }

    fn add(&mut self, spans: usize, problem: &str) {
        if spans > 0 {
            self.counts.lost.inc_by(spans as u64);
            problem.clone_into(&mut self.problem);
        }
    }

    /// Tells about losses that the log does not know of, at most once in [`TELL`]; answers how many.
    fn tell(&mut self, now: Instant) -> u64 {
        if self.told_at.is_some_and(|at| now < at + TELL) {
            return 0;
        }
        let lost = self.counts.lost.get() - self.told;
        if lost > 0 {
            let why = if self.problem.is_empty() { "the queue was full" } else { &self.problem };
            tracing::warn!(count = lost, "spans were not exported: {why}");
            self.told += lost;
            self.told_at = Some(now);
        }
        lost
    }

    /// The same, at the end.
    fn tell_rest(&mut self) {
        self.told_at = None;
        self.tell(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_once_a_minute() {
        let mut losses = Losses::new(Counts::default());
        let start = Instant::now();
        assert_eq!(losses.tell(start), 0);
        losses.add(3, "away");
        assert_eq!(losses.tell(start), 3);
        losses.add(4, "away");
        assert_eq!(losses.tell(start + TELL / 2), 0);
        losses.counts.lost.inc();
        assert_eq!(losses.tell(start + TELL), 5);
        assert_eq!(losses.tell(start + TELL * 2), 0);
        losses.add(1, "away");
        losses.tell_rest();
        assert_eq!((losses.told, losses.counts.lost.get()), (9, 9));
    }
}
