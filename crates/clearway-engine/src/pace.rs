//! Fewer and fuller wake-ups of the runtime's workers while much is going on.
//!
//! A token that arrives alone costs several times what it costs among others: a worker is woken, finds
//! its caches cold, wakes its neighbour, moves one token, and sleeps again. So while many runs execute,
//! a worker that has run out of work dozes for up to [`PAUSE`] before it listens again, and then finds
//! all that came meanwhile. Network cards do the same with their interrupts.
//!
//! **Invariant:** nothing is delayed by more than [`PAUSE`], and with fewer than [`MANY`] runs, or
//! workers that seldom run out of work, nothing at all.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Runs from which on a token is worth waiting for the next one.
const MANY: usize = 64;
/// The longest pause, and how often a worker may listen for long.
const PAUSE: Duration = Duration::from_millis(1);
/// How many times it may do so faster at a stretch.
const BURST: u32 = 32;

/// Runs that execute in this process.
static EXECUTING: AtomicUsize = AtomicUsize::new(0);

/// While it lives, one more run executes.
#[derive(Debug)]
pub(crate) struct Executing(());

impl Executing {
    pub(crate) fn start() -> Self {
        EXECUTING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Executing {
    fn drop(&mut self) {
        EXECUTING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// To be called by each worker of the runtime before it waits for work.
pub fn before_park() {
    thread_local! {
        static ALLOWANCE: Cell<Option<Allowance>> = const { Cell::new(None) };
    }
    if EXECUTING.load(Ordering::Relaxed) < MANY {
        return;
    }
    let now = Instant::now();
    let allowance = ALLOWANCE.get().unwrap_or(Allowance { since: now, left: BURST });
    let (allowance, pause) = allowance.take(now);
    ALLOWANCE.set(Some(allowance));
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
}

/// How often a worker may still listen without a pause.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    /// Up to when it has grown.
    since: Instant,
    left: u32,
}

impl Allowance {
    /// Takes one, and says how long to wait for it.
    fn take(mut self, now: Instant) -> (Self, Duration) {
        let grown = now.saturating_duration_since(self.since).as_nanos() / PAUSE.as_nanos();
        if grown >= u128::from(BURST - self.left) {
            (self.since, self.left) = (now, BURST);
        } else {
            self.since += PAUSE * grown as u32;
            self.left += grown as u32;
        }
        match self.left.checked_sub(1) {
            Some(left) => (Self { left, ..self }, Duration::ZERO),
            None => {
                let at = self.since + PAUSE;
                (Self { since: at, ..self }, at.saturating_duration_since(now))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_free_and_then_there_is_one_in_each_pause() {
        let start = Instant::now();
        let mut allowance = Allowance { since: start, left: BURST };
        let mut now = start;
        for _ in 0..BURST {
            let (next, pause) = allowance.take(now);
            assert_eq!(pause, Duration::ZERO);
            allowance = next;
        }
        for n in 1..100 {
            let (next, pause) = allowance.take(now);
            assert!(pause <= PAUSE, "{pause:?}");
            now += pause;
            assert_eq!(now, start + PAUSE * n);
            allowance = next;
        }
    }

    #[test]
    fn who_listens_seldom_never_waits() {
        let mut now = Instant::now();
        let mut allowance = Allowance { since: now, left: 1 };
        for _ in 0..1000 {
            let (next, pause) = allowance.take(now);
            assert_eq!(pause, Duration::ZERO);
            allowance = next;
            now += PAUSE;
        }
        now += PAUSE * 1000;
        assert_eq!(allowance.take(now).0.left, BURST - 1, "and it grows up to a bound");
    }
}
