//! What a provider's attempts came to since start.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::usage::UsageRow;

/// Counters of one provider.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<TallyView>);

/// A [`Tally`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TallyView {
    /// Attempts by outcome: `ok`, or a stable code.
    pub attempts: BTreeMap<&'static str, u64>,
    /// Second attempts beside a slow first one.
    pub hedges: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Of the models that have a price.
    pub cost_micros: u64,
}

impl Tally {
    pub(crate) fn count(&self, row: &UsageRow) {
        let mut tally = self.lock();
        *tally.attempts.entry(row.outcome).or_default() += 1;
        tally.input_tokens += row.usage.input_tokens;
        tally.output_tokens += row.usage.output_tokens;
        tally.cost_micros = tally.cost_micros.saturating_add(row.cost_micros.unwrap_or(0));
    }

    /// Whether one more hedge stays within the share of attempts that may be hedged; counts it.
    pub(crate) fn take_hedge(&self) -> bool {
        let mut tally = self.lock();
        let attempts: u64 = tally.attempts.values().sum();
        let may = tally.hedges < attempts / HEDGE_SHARE + 1;
        tally.hedges += u64::from(may);
        may
    }

    pub(crate) fn view(&self) -> TallyView {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, TallyView> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt in so many may be hedged.
const HEDGE_SHARE: u64 = 20;
