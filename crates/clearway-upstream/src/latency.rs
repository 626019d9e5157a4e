//! How long a route's calls took lately.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The last few durations.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    kept: Vec<Duration>,
    next: usize,
}

impl Latencies {
    pub(crate) fn add(&self, duration: Duration) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ring.next;
        match ring.kept.get_mut(at) {
            Some(oldest) => *oldest = duration,
            None => ring.kept.push(duration),
        }
        ring.next = (at + 1) % KEPT;
    }

    /// What 19 of 20 calls do not exceed; `None` while too few are known to tell.
    pub(crate) fn p95(&self) -> Option<Duration> {
        let mut kept = {
            let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if ring.kept.len() < ENOUGH {
                return None;
            }
            ring.kept.clone()
        };
        kept.sort_unstable();
        kept.get(kept.len() * 95 / 100).copied()
    }
}

const KEPT: usize = 64;
const ENOUGH: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_one_slow_call_is_no_habit() {
        let latencies = Latencies::default();
        (0..19).for_each(|_| latencies.add(Duration::from_secs(9)));
        assert_eq!(latencies.p95(), None);
        (0..KEPT as u64).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        assert_eq!(latencies.p95(), Some(Duration::from_millis(60)));
    }
}
