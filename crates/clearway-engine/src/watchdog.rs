//! The watchdog: an OS thread that measures how late the runtime is, all the time.
//!
//! A pulse task notes the time every 20 ms. The watchdog thread looks at that note: the age beyond
//! a pulse is scheduler lag. Each runtime worker also notes which run it is polling, so a stall can
//! be logged with what ran.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use clearway_core::RunId;

/// The latest measurement.
#[derive(Debug)]
pub struct Lag {
    epoch: Instant,
    /// Nanoseconds from `epoch` to the last pulse.
    pulse: AtomicU64,
    /// Nanoseconds, as of the last look.
    lag: AtomicU64,
    /// The largest in the last one to two minutes.
    max: AtomicU64,
    previous_max: AtomicU64,
    stalls: AtomicU64,
}

const PULSE: Duration = Duration::from_millis(20);
const STALL: Duration = Duration::from_millis(100);

impl Lag {
    fn new(epoch: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            epoch,
            pulse: zero(),
            lag: zero(),
            max: zero(),
            previous_max: zero(),
            stalls: zero(),
        }
    }

    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.lag.load(Ordering::Relaxed))
    }

    /// The worst of the last one to two minutes.
    pub fn max(&self) -> Duration {
        let max = self.max.load(Ordering::Relaxed).max(self.previous_max.load(Ordering::Relaxed));
        Duration::from_nanos(max)
    }

    /// Stalls over 100 ms since the start.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

/// The watchdog's handle; dropping it ends the thread.
#[derive(Debug)]
pub struct Watchdog {
    pub lag: Arc<Lag>,
    alive: Arc<()>,
}

impl Watchdog {
    /// Starts the OS thread. The caller spawns [`Watchdog::pulse`] on the runtime it watches.
    ///
    /// # Errors
    /// The host refuses one more thread.
    pub fn start() -> std::io::Result<Self> {
        let lag = Arc::new(Lag::new(Instant::now()));
        let alive = Arc::new(());
        let (watched, owner) = (lag.clone(), Arc::downgrade(&alive));
        std::thread::Builder::new().name("watchdog".to_owned()).stack_size(128 << 10).spawn(
            move || {
                let mut window = Instant::now();
                while owner.strong_count() > 0 {
                    std::thread::sleep(PULSE);
                    watched.look();
                    if window.elapsed() > Duration::from_secs(60) {
                        window = Instant::now();
                        let max = watched.max.swap(0, Ordering::Relaxed);
                        watched.previous_max.store(max, Ordering::Relaxed);
                    }
                }
            },
        )?;
        Ok(Self { lag, alive })
    }

    /// Notes the time for ever; runs as a task on the watched runtime.
    pub fn pulse(&self) -> impl Future<Output = ()> + Send + use<> {
        let (lag, owner) = (self.lag.clone(), Arc::downgrade(&self.alive));
        async move {
            let mut ticks = tokio::time::interval(PULSE);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            while owner.strong_count() > 0 {
                ticks.tick().await;
                lag.pulse.store(lag.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Lag {
    fn look(&self) {
        let pulse = self.pulse.load(Ordering::Relaxed);
        if pulse == 0 {
            return; // not started yet
        }
        let age = (self.epoch.elapsed().as_nanos() as u64).saturating_sub(pulse);
        // Both sides tick every 20 ms, so up to two ticks of age is what punctual looks like.
        let lag = age.saturating_sub(2 * PULSE.as_nanos() as u64);
        let before = self.lag.swap(lag, Ordering::Relaxed);
        self.max.fetch_max(lag, Ordering::Relaxed);
        let stall = STALL.as_nanos() as u64;
        if lag > stall && before <= stall {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            let busy = busy_runs(STALL);
            tracing::warn!(lag_ms = lag / 1_000_000, runs = %busy, "the runtime is stalled");
        }
    }
}

/// What each runtime worker polls at the moment.
static WORKERS: Mutex<Vec<Arc<Slot>>> = Mutex::new(Vec::new());

/// One worker's note. The run id is split over two words; a torn read names a run wrongly in a log
/// line, which is all it is used for.
#[derive(Debug)]
struct Slot {
    high: AtomicU64,
    low: AtomicU64,
    since: AtomicU64,
    epoch: Instant,
}

thread_local! {
    static SLOT: Cell<Option<&'static Slot>> = const { Cell::new(None) };
}

fn slot() -> &'static Slot {
    SLOT.with(|cell| {
        cell.get().unwrap_or_else(|| {
            let slot = Arc::new(Slot {
                high: AtomicU64::new(0),
                low: AtomicU64::new(0),
                since: AtomicU64::new(0),
                epoch: Instant::now(),
            });
            // Runtime workers live as long as the process, and there is a fixed number of them.
            let leaked: &'static Slot = Box::leak(Box::new(Arc::clone(&slot)));
            WORKERS.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
            cell.set(Some(leaked));
            leaked
        })
    })
}

/// Runs that have been polled for longer than `limit` right now, as text for a log line.
fn busy_runs(limit: Duration) -> String {
    let workers = WORKERS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = String::new();
    for slot in workers.iter() {
        let since = slot.since.load(Ordering::Relaxed);
        let now = slot.epoch.elapsed().as_nanos() as u64;
        if since != 0 && now.saturating_sub(since) > limit.as_nanos() as u64 {
            let id = uuid::Uuid::from_u64_pair(
                slot.high.load(Ordering::Relaxed),
                slot.low.load(Ordering::Relaxed),
            );
            text.push_str(&id.to_string());
            text.push(' ');
        }
    }
    if text.is_empty() { "none".to_owned() } else { text.trim_end().to_owned() }
}

/// A run's future that tells the watchdog when it is being polled.
#[derive(Debug)]
pub(crate) struct Watched<F> {
    run: RunId,
    future: Pin<Box<F>>,
}

impl<F> Watched<F> {
    pub(crate) fn new(run: RunId, future: F) -> Self {
        Self { run, future: Box::pin(future) }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let slot = slot();
        let (high, low) = self.run.0.as_u64_pair();
        slot.high.store(high, Ordering::Relaxed);
        slot.low.store(low, Ordering::Relaxed);
        slot.since.store(slot.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
        let result = self.future.as_mut().poll(cx);
        slot.since.store(0, Ordering::Relaxed);
        result
    }
}
