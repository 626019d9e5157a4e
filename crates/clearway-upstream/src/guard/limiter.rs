//! Who may call a provider account now: slots, requests and tokens per minute in one decision.
//!
//! A call asks with its class, tenant, model and size, and gets a [`Grant`] that holds all it needs,
//! or nothing. The grant rides in the call's answer, so that a slow answer keeps its slot and an
//! abandoned one frees it. Configured limits are the account's; what is found out, by trying (AIMD)
//! or from a provider's headers, is each model's own and can only be stricter.
//!
//! Interactive calls go before runs and runs before bulk work; some slots are kept for the first, and
//! the others have one turn in nine. Within a class tenants take turns. A call that cannot be served
//! in time is refused when it arrives rather than when its time is over.
//!
//! **Invariants:** nothing is held while waiting, and a refusal costs nothing; nobody overtakes those
//! who wait for the same thing; whoever leaves the queue or drops a grant makes room at once; when
//! something is free, somebody whom it suits has been woken.
//!
//! Not here: which refusals are pressure, what a request costs in tokens, and retries.

mod aimd;
mod headers;
mod lines;
mod rates;
mod state;
mod window;

use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use clearway_core::Deadline;

pub(crate) use self::headers::RateHeaders;
use self::state::{Booking, Standing, State};
use crate::watch::{Expired, Watch, now};

#[derive(Clone, Copy, Debug)]
pub(crate) struct LimiterSettings {
    /// Calls in flight, over all models.
    pub(crate) concurrent: usize,
    /// Where each model begins to find out what it bears; `None` is at `concurrent`.
    pub(crate) start: Option<usize>,
    pub(crate) per_minute: Option<u32>,
    /// How many of those may go at once; `None` is 10, at most `per_minute`.
    pub(crate) burst: Option<u32>,
    pub(crate) tokens_per_minute: Option<u64>,
    /// What headers may teach where nothing is configured.
    pub(crate) most_per_minute: u32,
    pub(crate) most_tokens_per_minute: u64,
    /// Waiters per class.
    pub(crate) queue: usize,
    /// Slots kept for interactive calls; a model that is held below `concurrent` keeps the same
    /// share of its slots.
    pub(crate) reserve: usize,
}

impl LimiterSettings {
    /// The defaults for so many slots: four times as many waiters, a fifth kept for interactive
    /// calls, rates as the provider tells.
    pub(crate) fn new(concurrent: usize) -> Self {
        let concurrent = concurrent.max(1);
        Self {
            concurrent,
            start: None,
            per_minute: None,
            burst: None,
            tokens_per_minute: None,
            most_per_minute: 10_000,
            most_tokens_per_minute: 50_000_000,
            queue: concurrent.saturating_mul(4).max(40),
            reserve: if concurrent < 4 { 0 } else { (concurrent / 5).max(1) },
        }
    }
}

/// How urgent a call is, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A person waits.
    Interactive,
    /// A run waits.
    Run,
    /// Nobody waits.
    Bulk,
}

impl Class {
    pub(super) const ALL: [Self; 3] = [Self::Interactive, Self::Run, Self::Bulk];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Run => "run",
            Self::Bulk => "bulk",
        }
    }
}

/// What a call needs.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) class: Class,
    pub(crate) tenant: Arc<str>,
    /// One of the account's configured models.
    pub(crate) model: Arc<str>,
    /// Expected, request and answer together.
    pub(crate) tokens: u64,
    /// With less time than this left the call is not worth beginning.
    pub(crate) min_useful: Duration,
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitFor {
    Slot,
    Requests,
    Tokens,
}

impl WaitFor {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Requests => "rpm",
            Self::Tokens => "tpm",
        }
    }
}

/// A place in the queue, as told to those who watch the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) for_what: WaitFor,
    /// How many are served before.
    pub(crate) position: usize,
    /// An estimate; zero while nothing is known yet.
    pub(crate) eta: Duration,
}

/// Why a call may not go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It would be served too late to be of use.
    ShedDeadline {
        eta: Duration,
    },
    QueueFull {
        queued: usize,
        eta: Duration,
    },
    Expired(Expired),
}

impl Refused {
    /// When to come back: when those who are in front will have been served.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ShedDeadline { eta } | Self::QueueFull { eta, .. } => {
                Some((*eta).max(Duration::from_secs(1)))
            }
            Self::Expired(_) => None,
        }
    }
}

/// A limiter at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimiterView {
    /// Calls that hold a slot.
    pub in_flight: usize,
    /// The most there ever were.
    pub peak: usize,
    pub cap: usize,
    /// Calls that wait: interactive, run, bulk.
    pub queued: [usize; 3],
    /// As configured for the account.
    pub requests: Option<RateView>,
    pub tokens: Option<RateView>,
    pub shed_deadline: u64,
    pub shed_queue_full: u64,
    /// The models called so far.
    pub models: Vec<ModelLimiterView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLimiterView {
    pub model: String,
    pub in_flight: usize,
    /// How many calls at once it is thought to bear.
    pub limit: usize,
    /// How long its calls take on average; `None` before the first.
    pub service_ms: Option<u64>,
    /// As learnt from the provider.
    pub requests: Option<RateView>,
    pub tokens: Option<RateView>,
    /// How long it still rests.
    pub cooling_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateView {
    pub per_minute: u64,
    pub available: u64,
}

/// The limits of one account and the queue in front of them.
#[derive(Debug)]
pub(crate) struct Limiter {
    shared: Arc<Shared>,
}

impl Limiter {
    pub(crate) fn new(mut settings: LimiterSettings, now: Instant) -> Self {
        settings.concurrent = settings.concurrent.max(1);
        Self { shared: Arc::new(Shared { state: Mutex::new(State::new(settings, now)) }) }
    }

    /// A grant if there is one without waiting; it overtakes nobody.
    pub(crate) fn try_enter(&self, ask: &Ask, now: Instant) -> Option<Grant> {
        let booking = self.shared.with(|state| {
            if state.waiting() == 0 {
                return state.pass(ask, now);
            }
            // Whether those who wait are in its way is for the queue to say.
            let id = state.join(ask, now + Duration::from_nanos(1));
            match state.look(id, now) {
                Standing::Granted(booking) => Some(booking),
                Standing::Expired | Standing::Waiting { .. } => {
                    state.leave(id, now);
                    None
                }
            }
        });
        booking.map(|booking| self.grant(booking))
    }

    /// Waits for a grant, but not beyond `limit` and the call's deadline. `told` hears where the call
    /// stands before it waits, and whenever it looks again and stands elsewhere. Dropping the future
    /// leaves the queue.
    pub(crate) async fn enter(
        &self,
        watch: &mut Watch,
        ask: &Ask,
        limit: Deadline,
        told: &(dyn Fn(Queued) + Sync),
    ) -> Result<Grant, Refused> {
        let began = now();
        if let Some(which) = watch.has_expired(began, limit) {
            return Err(Refused::Expired(which));
        }
        if let Some(grant) = self.try_enter(ask, began) {
            return Ok(grant);
        }
        let place = self.join(ask, limit, watch.deadline(), began)?;
        let mut last = None;
        poll_fn(|cx| {
            loop {
                let now = now();
                let (standing, queued) = self.shared.with(|state| {
                    let standing = state.look(place.id, now);
                    let waits = matches!(standing, Standing::Waiting { .. });
                    let queued = waits.then(|| state.queued(place.id, now));
                    state.wake_with(place.id, cx.waker());
                    (standing, queued)
                });
                let until = match standing {
                    Standing::Granted(booking) => return Poll::Ready(Ok(self.grant(booking))),
                    Standing::Expired => {
                        let which = watch.has_expired(now, limit).unwrap_or(Expired::Stage);
                        return Poll::Ready(Err(Refused::Expired(which)));
                    }
                    Standing::Waiting { until } => until,
                };
                if let Some(queued) = queued {
                    let stands = (queued.for_what, queued.position);
                    if last != Some(stands) {
                        last = Some(stands);
                        told(queued);
                    }
                }
                let look = until.map_or(limit, |until| limit.min(Deadline(until)));
                if watch.poll_expired(cx, look).is_pending() {
                    return Poll::Pending;
                }
                if let Some(which) = watch.has_expired(crate::watch::now(), limit) {
                    return Poll::Ready(Err(Refused::Expired(which)));
                }
            }
        })
        .await
    }

    /// Takes over what an answer's headers say of the model's rates.
    pub(crate) fn learn(&self, model: &Arc<str>, headers: &RateHeaders, now: Instant) {
        if *headers == RateHeaders::default() {
            return;
        }
        self.shared.with(|state| {
            let model = state.model(model);
            state.learn(model, headers, now);
            state.serve(now);
        });
    }

    /// The model has just recovered: begin with one call at once.
    pub(crate) fn restart(&self, model: &Arc<str>) {
        self.shared.with(|state| {
            let model = state.model(model);
            state.restart(model);
        });
    }

    pub(crate) fn view(&self, now: Instant) -> LimiterView {
        self.shared.with(|state| state.view(now))
    }

    /// Joins the queue, or says why that makes no sense.
    fn join(
        &self,
        ask: &Ask,
        limit: Deadline,
        deadline: Deadline,
        now: Instant,
    ) -> Result<Place<'_>, Refused> {
        let patience =
            limit.remaining(now).min(deadline.remaining(now).saturating_sub(ask.min_useful));
        let id = self.shared.with(|state| {
            let id = state.join(ask, limit.min(deadline).0);
            state.serve(now);
            let eta = state.queued(id, now).eta;
            if state.is_overfull(ask.class) {
                state.leave(id, now);
                state.shed_queue_full += 1;
                return Err(Refused::QueueFull { queued: state.waiting(), eta });
            }
            if eta > patience {
                state.leave(id, now);
                state.shed_deadline += 1;
                return Err(Refused::ShedDeadline { eta });
            }
            Ok(id)
        })?;
        Ok(Place { shared: &self.shared, id })
    }

    fn grant(&self, booking: Booking) -> Grant {
        Grant { shared: self.shared.clone(), booking }
    }
}

/// The right to have one call in flight. Dropping it frees the slot and wakes who is next; tokens
/// that were not settled stay as they were reserved.
#[derive(Debug)]
pub(crate) struct Grant {
    shared: Arc<Shared>,
    booking: Booking,
}

impl Grant {
    /// The call used so many tokens in all; `None`, if nobody knows, leaves the reservation.
    pub(crate) fn settle(&mut self, tokens_used: Option<u64>, now: Instant) {
        let Some(tokens) = tokens_used else { return };
        self.shared.with(|state| {
            state.settle(&mut self.booking, tokens, now);
            state.serve(now);
        });
    }

    /// The call's answer is whole.
    pub(crate) fn clean(&self, now: Instant) {
        self.shared.with(|state| {
            state.clean(&self.booking, now);
            state.serve(now);
        });
    }

    /// The provider refused the call for its number, or kept it waiting too long.
    pub(crate) fn pressure(&self, now: Instant) {
        self.shared.with(|state| state.pressure(&self.booking, now));
    }

    /// The call was never sent: all that was taken for it is there again.
    pub(crate) fn forgo(self) {
        self.shared.with(|state| state.give_back(&self.booking));
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.shared.with(|state| {
            state.release(&self.booking);
            if state.waiting() > 0 {
                state.serve(now());
            }
        });
    }
}

/// A place in the queue, left when dropped.
struct Place<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.with(|state| state.leave(self.id, now()));
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    /// Does something under the lock, then wakes whom it concerns: wakers are foreign code.
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (result, woken) = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut state);
            (result, mem::take(&mut state.woken))
        };
        for waker in woken {
            waker.wake();
        }
        result
    }
}

#[cfg(test)]
mod tests;
