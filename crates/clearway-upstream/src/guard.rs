//! What stands between a call and its provider: five state machines, four of which say *not now*.
//!
//! [`limiter`] holds back what would exceed slots or rates, [`breaker`] what would most likely fail,
//! [`keys`] knows which credentials still work, and [`retry_budget`] keeps retries a fraction of the
//! traffic; [`load`] says which of several equals is least busy. Each is told the time and what happened, answers at once, and can be looked at while it
//! works. None knows of sockets, requests or attempts.
//!
//! **Invariants:** what one of them hands out is settled when it is dropped, whichever way that
//! comes about; each has one short lock, never held across an await; whatever they remember is
//! bounded.
//!
//! Not here: what to do after a refusal. The attempt loop decides that, and only it.

pub(crate) mod breaker;
pub(crate) mod jitter;
pub(crate) mod keys;
pub(crate) mod limiter;
pub(crate) mod load;
pub(crate) mod retry_budget;

use std::time::{Duration, Instant};

/// The longest a provider can tell us to stay away: a typing error there must not be an outage here.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// Milliseconds from `now` until `then`, for views.
fn millis_until(then: Instant, now: Instant) -> u64 {
    u64::try_from(then.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)
}
