//! Log output on standard error, and the process's subscriber.
//!
//! Lines go through a bounded queue to a thread of their own: a terminal that is scrolled back, or a
//! collector that hangs, must not stop the threads that move tokens. When the queue is full lines
//! are dropped, counted, and the count is logged.
//!
//! Spans for telemetry go by here: they have a target of their own, which no log line shows, and an
//! exporter brings its own layer. Without one they are switched off where they are made.

mod json;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clearway::config::LogFormat;
use clearway::telemetry;
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

use crate::output::{Output, may_colour};

/// Lines that may wait for standard error.
const QUEUE: usize = 1 << 14;

/// Bytes that leave in one write, more or less.
const BATCH: usize = 64 << 10;

/// How long lines gather after a write.
const GATHER: Duration = Duration::from_millis(10);

/// How long the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(2);

/// Keeps the log open; dropping it writes what is queued.
#[derive(Debug)]
pub(crate) struct Guard {
    queue: Queue,
}

/// Starts logging for the whole process.
///
/// `RUST_LOG` says what is logged; without it, what operators need. Spans go to `telemetry`, if
/// anywhere.
///
/// # Errors
/// The host refuses the thread, or somebody logs already.
pub(crate) fn start(
    format: LogFormat,
    output: Output,
    telemetry: Option<telemetry::Layer>,
) -> Result<Guard> {
    // It is the first thread of the process, so the limit is met here before anywhere else.
    let queue = Queue::start().context(
        "cannot start the thread that writes the log; raise the limit of processes (`ulimit -u`, \
         or `pids` of the container)",
    )?;
    let lines = lines(format, queue.clone()).with_filter(filter(output)).boxed();
    tracing_subscriber::registry()
        .with(layers(lines, telemetry))
        .try_init()
        .context("the log cannot be started")?;
    Ok(Guard { queue })
}

/// As one list of layers with a filter each, so that what none of them wants costs nothing.
fn layers(lines: telemetry::Layer, telemetry: Option<telemetry::Layer>) -> Vec<telemetry::Layer> {
    std::iter::once(lines).chain(telemetry).collect()
}

fn filter(output: Output) -> EnvFilter {
    let default = if output.quiet { "warn" } else { "info,rmcp=warn" };
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.trim().is_empty() => match EnvFilter::try_new(&text) {
            Ok(filter) => filter,
            Err(error) => {
                output.error(&format!(
                    "warning: RUST_LOG is not understood ({error}); logging {default}"
                ));
                EnvFilter::new(default)
            }
        },
        Ok(_) | Err(_) => EnvFilter::new(default),
    };
    without_spans(filter)
}

fn without_spans(filter: EnvFilter) -> EnvFilter {
    // The directive with the longest target decides.
    match format!("{}={}", telemetry::TARGET, LevelFilter::OFF).parse::<Directive>() {
        Ok(off) => filter.add_directive(off),
        Err(_) => filter,
    }
}

fn lines(format: LogFormat, queue: Queue) -> telemetry::Layer {
    match format {
        LogFormat::Json => json::JsonLines(move |line| queue.send(line)).boxed(),
        LogFormat::Pretty => {
            let colour = may_colour(io::stderr().is_terminal());
            let layer = tracing_subscriber::fmt::layer::<Registry>().with_writer(queue);
            layer.compact().with_target(false).with_ansi(colour).boxed()
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.queue.shared.closing.store(true, Ordering::Release);
        let until = Instant::now() + FLUSH;
        while !self.queue.shared.flushed.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The way from any thread to standard error.
#[derive(Clone, Debug)]
struct Queue {
    lines: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// Set by the guard: write what is there and stop.
    closing: AtomicBool,
    /// Set by the writer when it has.
    flushed: AtomicBool,
}

impl Queue {
    fn start() -> io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .stack_size(128 << 10)
            .spawn(move || write_lines(&receiver, &writer))?;
        Ok(Self { lines, shared })
    }

    fn send(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what is queued, and then lets lines gather for a moment: a thread that is woken for each
/// line costs those who log more than the line.
fn write_lines(lines: &Receiver<Vec<u8>>, shared: &Shared) {
    let mut stderr = io::stderr();
    loop {
        let mut batch = match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if !shared.closing.load(Ordering::Acquire) => continue,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        };
        while batch.len() < BATCH
            && let Ok(line) = lines.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        match shared.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            dropped => {
                let _ = writeln!(
                    batch,
                    "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"count\":{dropped}}}"
                );
            }
        }
        // Nobody reads the log; there is nobody to tell.
        let _ = stderr.write_all(&batch);
        if batch.len() < BATCH && !shared.closing.load(Ordering::Acquire) {
            std::thread::sleep(GATHER);
        }
    }
    let _ = stderr.flush();
    shared.flushed.store(true, Ordering::Release);
}

/// Takes one line.
#[derive(Debug)]
struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.send(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a span for telemetry costs when nobody exports: not even a call into the subscriber.
    fn is_off_where_it_is_made(directives: &str) -> bool {
        let queue = Queue { lines: sync_channel(8).0, shared: Arc::default() };
        let filter = without_spans(EnvFilter::new(directives));
        let lines = lines(LogFormat::Json, queue).with_filter(filter).boxed();
        let subscriber = tracing_subscriber::registry().with(layers(lines, None));
        tracing::subscriber::with_default(subscriber, || {
            tracing::enabled!(target: "clearway", tracing::Level::WARN)
                && !tracing::enabled!(target: telemetry::TARGET, tracing::Level::ERROR)
                && tracing::info_span!(target: telemetry::TARGET, "run").is_disabled()
        })
    }

    #[test]
    fn spans_are_never_part_of_the_log() {
        for directives in ["info", "trace", "warn,clearway=trace", "info,clearway::trace=trace"] {
            assert!(is_off_where_it_is_made(directives), "{directives}");
        }
    }

    #[test]
    fn lines_are_the_same_within_spans_and_without() {
        let (sender, receiver) = sync_channel(8);
        let queue = Queue { lines: sender, shared: Arc::default() };
        let filter = without_spans(EnvFilter::new("info"));
        let lines = lines(LogFormat::Json, queue).with_filter(filter).boxed();
        // As the exporter's: it wants the spans and nothing else.
        let only = tracing_subscriber::filter::Targets::new()
            .with_target(telemetry::TARGET, LevelFilter::INFO);
        let spans = tracing_subscriber::layer::Identity::new().with_filter(only).boxed();
        let subscriber = tracing_subscriber::registry().with(layers(lines, Some(spans)));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!(target: telemetry::TARGET, "run", id = 1);
            assert!(!span.is_disabled());
            let _entered = span.entered();
            tracing::info!(run.id = 2, "ready");
        });
        let line = String::from_utf8(receiver.try_recv().unwrap()).unwrap();
        assert!(line.contains("\"message\":\"ready\",\"run.id\":2"), "{line}");
        assert!(!line.contains("span"), "{line}");
    }
}
