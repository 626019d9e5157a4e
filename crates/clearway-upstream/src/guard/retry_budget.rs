//! Retries as a share of the traffic: when everything fails, trying everything again is the storm.
//!
//! Calls pay in, retries pay out, and both are forgotten after a while; a little is always there, so
//! that a quiet account may retry too.
//!
//! Invariant: within any `ttl`, retries cost at most `min_per_second * ttl` plus `ratio` of the calls.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryBudgetSettings {
    pub(crate) ttl: Duration,
    /// Retries that are allowed whatever the traffic.
    pub(crate) min_per_second: u32,
    /// In percent of the calls.
    pub(crate) percent: u32,
}

impl Default for RetryBudgetSettings {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10), min_per_second: 1, percent: 20 }
    }
}

#[derive(Debug)]
pub(crate) struct RetryBudget {
    settings: RetryBudgetSettings,
    origin: Instant,
    state: Mutex<State>,
}

/// A retry budget at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudgetView {
    /// Retries of cost one that it would pay for now.
    pub available: u32,
    /// Retries it did not pay for, ever.
    pub suppressed: u64,
}

impl RetryBudget {
    pub(crate) fn new(settings: RetryBudgetSettings, now: Instant) -> Self {
        Self { settings, origin: now, state: Mutex::default() }
    }

    /// A call begins, not a retry.
    pub(crate) fn deposit(&self, now: Instant) {
        let amount = i64::from(self.settings.percent);
        self.lock().slot(self.tick(now)).balance += amount;
    }

    /// Pays for a retry, or does not.
    pub(crate) fn withdraw(&self, cost: u32, now: Instant) -> bool {
        let amount = i64::from(cost) * RETRY;
        let tick = self.tick(now);
        let mut state = self.lock();
        let pays = self.balance(&state, tick) >= amount;
        if pays {
            state.slot(tick).balance -= amount;
        } else {
            state.suppressed += 1;
        }
        pays
    }

    pub(crate) fn view(&self, now: Instant) -> RetryBudgetView {
        let state = self.lock();
        let available = self.balance(&state, self.tick(now)).max(0) / RETRY;
        RetryBudgetView {
            available: u32::try_from(available).unwrap_or(u32::MAX),
            suppressed: state.suppressed,
        }
    }

    fn balance(&self, state: &State, tick: u128) -> i64 {
        let reserve = u128::from(self.settings.min_per_second) * self.settings.ttl.as_millis()
            / 1000
            * RETRY as u128;
        let live = state.slots.iter().filter(|slot| slot.tick + SLOTS as u128 > tick);
        let moved: i64 = live.map(|slot| slot.balance).sum();
        i64::try_from(reserve).unwrap_or(i64::MAX).saturating_add(moved)
    }

    fn tick(&self, now: Instant) -> u128 {
        let width = (self.settings.ttl / SLOTS as u32).max(Duration::from_millis(1));
        now.saturating_duration_since(self.origin).as_nanos() / width.as_nanos()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    slots: [Slot; SLOTS],
    suppressed: u64,
}

/// What was paid in and out during a tenth of the time that counts, in hundredths of a retry.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    tick: u128,
    balance: i64,
}

impl State {
    fn slot(&mut self, tick: u128) -> &mut Slot {
        let slot = &mut self.slots[(tick % SLOTS as u128) as usize];
        if slot.tick != tick {
            *slot = Slot { tick, balance: 0 };
        }
        slot
    }
}

const SLOTS: usize = 10;
/// A retry in the unit of the balances.
const RETRY: i64 = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(now: Instant) -> RetryBudget {
        RetryBudget::new(RetryBudgetSettings::default(), now)
    }

    #[test]
    fn a_quiet_account_has_one_a_second_and_calls_add_a_fifth() {
        let start = Instant::now();
        let budget = budget(start);
        let paid = (0..20).filter(|_| budget.withdraw(1, start)).count();
        assert_eq!(paid, 10);
        for _ in 0..5 {
            budget.deposit(start);
        }
        assert!(!budget.withdraw(2, start), "five calls pay for one");
        assert!(budget.withdraw(1, start));
        assert_eq!(budget.view(start), RetryBudgetView { available: 0, suppressed: 11 });

        let later = start + Duration::from_secs(10);
        assert_eq!(budget.view(later).available, 10, "both sides are forgotten");
    }

    proptest! {
        #[test]
        fn never_more_than_the_share(moves in proptest::collection::vec((0_u64..400, 0_u32..4), 1..400)) {
            let start = Instant::now();
            let budget = budget(start);
            let (mut now, mut calls, mut paid) = (start, Vec::new(), Vec::new());
            for (step, cost) in moves {
                now += Duration::from_millis(step);
                if cost == 0 {
                    budget.deposit(now);
                    calls.push(now);
                } else if budget.withdraw(cost, now) {
                    paid.push((now, cost));
                }
                // Whole slots are counted, so the books look back by one slot more than is paid for.
                let since = |at: &Instant| now - *at;
                let spent: u32 = paid
                    .iter()
                    .filter(|(at, _)| since(at) < Duration::from_secs(9))
                    .map(|(_, cost)| cost)
                    .sum();
                let called =
                    calls.iter().filter(|at| since(at) < Duration::from_secs(20)).count();
                prop_assert!(f64::from(spent) <= 10.0 + 0.2 * called as f64);
            }
        }
    }
}
