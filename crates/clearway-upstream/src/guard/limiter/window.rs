//! A rate with a burst, in requests or tokens: GCRA, with refunds.
//!
//! It remembers one instant, at which it will be full again. Taking moves that instant into the
//! future, time catches up with it. What turns out to be more than was reserved becomes debt, what
//! turns out to be less comes back.
//!
//! Invariant: without debt, at most `burst + rate * t` is taken in any time `t`, plus what a single
//! request is larger than the whole burst.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Window {
    per_minute: u64,
    /// Time in which one more comes.
    unit: Duration,
    burst: u64,
    full_at: Instant,
}

impl Window {
    /// A full window.
    pub(super) fn new(per_minute: u64, burst: u64, now: Instant) -> Self {
        let per_minute = per_minute.clamp(1, MAX_PER_MINUTE);
        let unit = Duration::from_nanos(MINUTE_NS.div_ceil(per_minute));
        Self { per_minute, unit, burst: burst.clamp(1, per_minute), full_at: now }
    }

    /// The same rate learnt anew; what is taken stays taken.
    pub(super) fn retune(&mut self, per_minute: u64, burst: u64, now: Instant) {
        let full_at = self.full_at;
        *self = Self::new(per_minute, burst, now);
        self.full_at = full_at;
    }

    pub(super) const fn per_minute(&self) -> u64 {
        self.per_minute
    }

    /// How long until `amount` is there, or until it is full if it never holds so much.
    pub(super) fn wait(&self, amount: u64, now: Instant) -> Duration {
        let taken = self.full_at.saturating_duration_since(now);
        let needed = self.time(amount.min(self.burst));
        (taken + needed).saturating_sub(self.time(self.burst))
    }

    /// How long until `amount` has gone in pieces that fit.
    pub(super) fn wait_for_all(&self, amount: u64, now: Instant) -> Duration {
        let taken = self.full_at.saturating_duration_since(now);
        (taken + self.time(amount)).saturating_sub(self.time(self.burst))
    }

    /// Takes `amount`, there or not, and says how much that counts for.
    pub(super) fn take(&mut self, amount: u64, now: Instant) -> u64 {
        // One request, or one provider's odd report of its size, costs two bursts at the most.
        let amount = amount.min(self.burst * 2);
        self.full_at = self.full_at.max(now) + self.time(amount);
        amount
    }

    pub(super) fn give_back(&mut self, amount: u64) {
        if let Some(earlier) = self.full_at.checked_sub(self.time(amount)) {
            self.full_at = earlier;
        }
    }

    /// The provider says that only so much is left.
    pub(super) fn lower(&mut self, left: u64, now: Instant) {
        let taken = self.time(self.burst.saturating_sub(left));
        self.full_at = self.full_at.max(now + taken);
    }

    /// What could be taken now.
    pub(super) fn left(&self, now: Instant) -> u64 {
        let taken = self.full_at.saturating_duration_since(now).as_nanos();
        let taken = taken.div_ceil(self.unit.as_nanos());
        self.burst.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX))
    }

    fn time(&self, amount: u64) -> Duration {
        let nanos = self.unit.as_nanos().saturating_mul(u128::from(amount));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(LONGEST)
    }
}

const MINUTE_NS: u64 = 60_000_000_000;
/// Beyond a request in a nanosecond there is nothing to limit.
const MAX_PER_MINUTE: u64 = MINUTE_NS;
/// No window is worth more than this, so that sums of instants stay far from their end.
const LONGEST: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_one_a_second() {
        let start = Instant::now();
        let mut window = Window::new(60, 10, start);
        for _ in 0..10 {
            assert_eq!(window.wait(1, start), Duration::ZERO);
            window.take(1, start);
        }
        assert_eq!(window.wait(1, start), Duration::from_secs(1));
        assert_eq!(window.wait(3, start), Duration::from_secs(3));
        assert_eq!(window.left(start + Duration::from_millis(2500)), 2);
        window.give_back(1);
        assert_eq!(window.wait(1, start), Duration::ZERO);
    }

    #[test]
    fn one_that_never_fits_passes_when_full_and_leaves_debt() {
        let start = Instant::now();
        let mut window = Window::new(600, 600, start);
        assert_eq!(window.wait(1000, start), Duration::ZERO);
        assert_eq!(window.take(1000, start), 1000);
        assert_eq!(window.left(start), 0);
        assert_eq!(window.wait(1, start), Duration::from_millis(40_100), "400 in debt");
        assert_eq!(window.wait(1000, start), Duration::from_secs(100), "full again");
        assert_eq!(window.take(u64::MAX, start), 1200, "absurd amounts are cut");
    }

    #[test]
    fn only_ever_lowered_from_outside() {
        let start = Instant::now();
        let mut window = Window::new(60, 60, start);
        window.lower(5, start);
        assert_eq!(window.left(start), 5);
        window.lower(50, start);
        assert_eq!(window.left(start), 5);
        window.retune(120, 120, start);
        assert_eq!(window.left(start + Duration::from_secs(60)), 120);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            per_minute in 1_u64..10_000,
            burst in 1_u64..100,
            steps in proptest::collection::vec((0_u64..2_000_000, 1_u64..20, any::<bool>()), 1..200),
        ) {
            let start = Instant::now();
            let mut window = Window::new(per_minute, burst, start);
            let burst = burst.min(per_minute);
            let (mut now, mut taken) = (start, Vec::<(Instant, u64)>::new());
            for (micros, amount, sent) in steps {
                now += Duration::from_micros(micros);
                let amount = amount.min(burst);
                if window.wait(amount, now).is_zero() {
                    window.take(amount, now);
                    if sent {
                        taken.push((now, amount));
                    } else {
                        window.give_back(amount);
                    }
                }
            }
            for (first, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (at, amount) in &taken[first..] {
                    sum += amount;
                    let refilled = (*at - *from).as_secs_f64() * per_minute as f64 / 60.0;
                    prop_assert!(sum as f64 <= burst as f64 + refilled + 1e-6);
                }
            }
        }

        #[test]
        fn no_number_breaks_it(
            per_minute in any::<u64>(), burst in any::<u64>(), amount in any::<u64>(), left in any::<u64>(),
        ) {
            let now = Instant::now();
            let mut window = Window::new(per_minute, burst, now);
            for _ in 0..10 {
                let taken = window.take(amount, now);
                window.lower(left, now);
                let _ = (window.wait(amount, now), window.left(now));
                window.give_back(taken / 2);
            }
            window.retune(left, amount, now);
        }
    }
}
