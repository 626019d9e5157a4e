//! Log output on standard error.
//!
//! Lines go through a bounded queue to a thread of their own: a terminal that is scrolled back, or a
//! collector that hangs, must not stop the threads that move tokens. When the queue is full lines
//! are dropped, counted, and the count is logged.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use clearway::config::LogFormat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output::{Output, may_colour};

/// Lines that may wait for standard error.
const QUEUE: usize = 1 << 16;

/// How long the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(2);

/// Keeps the log open; dropping it writes what is queued.
#[derive(Debug)]
pub(crate) struct Guard {
    queue: Queue,
}

/// Starts logging for the whole process.
///
/// `RUST_LOG` says what is logged; without it, what operators need.
pub(crate) fn start(format: LogFormat, output: Output) -> io::Result<Guard> {
    let queue = Queue::start()?;
    let default = if output.quiet { "warn" } else { "info" };
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
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(queue.clone());
    let started = match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
        LogFormat::Pretty => {
            let colour = may_colour(io::stderr().is_terminal());
            registry.with(layer.compact().with_target(false).with_ansi(colour)).try_init()
        }
    };
    started.map_err(io::Error::other)?;
    Ok(Guard { queue })
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
}

fn write_lines(lines: &Receiver<Vec<u8>>, shared: &Shared) {
    let mut stderr = io::stderr();
    loop {
        let line = match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) if !shared.closing.load(Ordering::Acquire) => continue,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        };
        // Nobody reads the log; there is nobody to tell.
        let _ = stderr.write_all(&line);
        match shared.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            dropped => {
                let _ = writeln!(
                    stderr,
                    "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"count\":{dropped}}}"
                );
            }
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
        if self.0.lines.try_send(line.to_vec()).is_err() {
            self.0.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
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
