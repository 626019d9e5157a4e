//! Breakers: who keeps failing is left alone for a while, then asked by one call at a time.
//!
//! One guards an endpoint (transport faults), one each route at it (what the provider answers). A
//! call gets a [`Ticket`] when it begins and gives its verdict when its *answer* has ended; a ticket
//! dropped without one, because its caller left, says nothing about the provider. Of those who wait for
//! a probe the least urgent one makes it: what it may cost is somebody's patience.
//!
//! **Invariants:** while open nobody passes; half open, at most one probe is out; a verdict counts
//! only in the generation in which its call began, so the slow results of an outage neither close a
//! breaker nor trip it again; the time of the next probe can move later, never earlier.
//!
//! Not here: which fault counts for which breaker, and waiting for a probe.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::jitter::Jitter;
use super::limiter::Class;
use super::{LONGEST_REST, millis_until};

#[derive(Clone, Copy, Debug)]
pub(crate) struct BreakerSettings {
    /// So many failures in a row, all within `window`, open it.
    pub(crate) failures: usize,
    pub(crate) window: Duration,
    /// So does this share of failures in `window`, once there are `min_samples`.
    pub(crate) ratio: f64,
    pub(crate) min_samples: u32,
    /// How long it is open at first; doubled by each failed probe up to `recovery_max`. Both are
    /// spread by a fifth, so that the breakers of many processes do not probe together.
    pub(crate) recovery: Duration,
    pub(crate) recovery_max: Duration,
    pub(crate) successes_to_close: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 5,
            window: Duration::from_secs(60),
            ratio: 0.5,
            min_samples: 10,
            recovery: Duration::from_secs(10),
            recovery_max: Duration::from_secs(25),
            successes_to_close: 2,
        }
    }
}

/// Clones share everything.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    shared: Arc<Shared>,
}

/// What a breaker says to a call that wants to begin.
#[derive(Debug)]
pub(crate) enum Gate {
    Pass(Ticket),
    /// Go, and be judged: nobody else goes until this one's verdict.
    Probe(Ticket),
    /// Not before `until`, when a probe is due. While a probe is out its verdict cannot be known,
    /// and `until` is when asking again makes sense.
    Open {
        until: Instant,
    },
}

/// A call's part in a breaker's judgement; dropped without a verdict it has none.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    generation: u64,
    is_probe: bool,
}

impl Ticket {
    pub(crate) const fn is_probe(&self) -> bool {
        self.is_probe
    }
}

/// Somebody waits for a probe.
#[derive(Debug)]
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    class: Class,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.lock().waiting[self.class as usize] -= 1;
    }
}

/// A breaker at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerView {
    /// `closed`, `open` or `half_open`.
    pub state: &'static str,
    pub since_ms: u64,
    pub consecutive_failures: usize,
    pub recent: RecentView,
    /// Until a probe may go, zero if the next call is one; `None` when closed or while one is out.
    pub next_probe_ms: Option<u64>,
    /// Verdicts of calls that began before the last transition, good and bad.
    pub late_results: u64,
    /// The last transitions, oldest first.
    pub history: Vec<TransitionView>,
}

/// Verdicts within the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentView {
    pub samples: u32,
    pub failures: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransitionView {
    pub ago_ms: u64,
    pub from: &'static str,
    pub to: &'static str,
    /// The code of the failure that tipped it, or `recovery_elapsed`, `probes_succeeded`, `reset`.
    pub reason: &'static str,
}

impl Breaker {
    pub(crate) fn new(settings: BreakerSettings, seed: u64, now: Instant) -> Self {
        let state = State {
            phase: Phase::Closed,
            since: now,
            generation: 0,
            streak: VecDeque::with_capacity(settings.failures),
            ring: Ring::new(settings.window, now),
            recovery: settings.recovery,
            closed_at: None,
            late_results: 0,
            history: VecDeque::new(),
            waiting: [0; Class::ALL.len()],
            jitter: Jitter::new(seed),
        };
        Self { shared: Arc::new(Shared { settings, state: Mutex::new(state) }) }
    }

    /// Somebody of this class waits until a probe is due, as long as the answer is kept.
    pub(crate) fn wait(&self, class: Class) -> Waiting {
        self.shared.lock().waiting[class as usize] += 1;
        Waiting { shared: self.shared.clone(), class }
    }

    pub(crate) fn admit(&self, class: Class, now: Instant) -> Gate {
        let mut state = self.shared.lock();
        if let Phase::Open { until } = state.phase
            && now >= until
        {
            let half_open = Phase::HalfOpen { probing: false, not_before: None, successes: 0 };
            state.enter(half_open, "recovery_elapsed", now);
        }
        // Those wake up now, too; whoever is more urgent gives them a moment to be first.
        let less_urgent = state.waiting.iter().skip(class as usize + 1).any(|count| *count > 0);
        let yields_until = state.since + YIELD;
        let yields = less_urgent && now < yields_until;
        let generation = state.generation;
        let ticket = |is_probe| Ticket { shared: self.shared.clone(), generation, is_probe };
        match &mut state.phase {
            Phase::Closed => Gate::Pass(ticket(false)),
            Phase::Open { until } => Gate::Open { until: *until },
            Phase::HalfOpen { not_before: Some(at), .. } if now < *at => Gate::Open { until: *at },
            Phase::HalfOpen { probing: true, .. } => Gate::Open { until: now + ASK_AGAIN },
            Phase::HalfOpen { .. } if yields => Gate::Open { until: yields_until },
            Phase::HalfOpen { probing, .. } => {
                *probing = true;
                Gate::Probe(ticket(true))
            }
        }
    }

    /// An operator knows better: closed, as if nothing had happened.
    pub(crate) fn reset(&self, now: Instant) {
        let mut state = self.shared.lock();
        state.recovery = self.shared.settings.recovery;
        state.closed_at = None;
        state.enter(Phase::Closed, "reset", now);
    }

    pub(crate) fn view(&self, now: Instant) -> BreakerView {
        let state = self.shared.lock();
        let since = |then: Instant| millis_until(now, then);
        let next_probe = match state.phase {
            Phase::Closed | Phase::HalfOpen { probing: true, .. } => None,
            Phase::Open { until } => Some(until),
            Phase::HalfOpen { not_before, .. } => Some(not_before.unwrap_or(now)),
        };
        let history = state.history.iter().map(|it| TransitionView {
            ago_ms: since(it.at),
            from: it.from,
            to: it.to,
            reason: it.reason,
        });
        BreakerView {
            state: state.phase.name(),
            since_ms: since(state.since),
            consecutive_failures: state.streak.len(),
            recent: state.ring.sum(now),
            next_probe_ms: next_probe.map(|at| millis_until(at, now)),
            late_results: state.late_results,
            history: history.collect(),
        }
    }
}

impl Ticket {
    /// The call's answer is whole. `true` when this closed the breaker: let the traffic grow again
    /// from little.
    pub(crate) fn success(mut self, now: Instant) -> bool {
        self.verdict(|state, settings| {
            state.ring.add(now, false);
            state.streak.clear();
            let Phase::HalfOpen { probing, successes, .. } = &mut state.phase else { return false };
            *probing = false;
            *successes += 1;
            let closes = *successes >= settings.successes_to_close;
            if closes {
                state.closed_at = Some(now);
                state.enter(Phase::Closed, "probes_succeeded", now);
            }
            closes
        })
        .unwrap_or(false)
    }

    /// The call failed by the fault of what this breaker guards; `reason` is the failure's code.
    pub(crate) fn failure(
        mut self,
        now: Instant,
        reason: &'static str,
        retry_after: Option<Duration>,
    ) {
        let rest = retry_after.unwrap_or_default().min(LONGEST_REST);
        let in_time = self.verdict(|state, settings| {
            state.ring.add(now, true);
            match state.phase {
                Phase::Closed => {
                    if state.fails_too_often(settings, now) {
                        state.trip(settings, reason, rest, now);
                    }
                }
                // ## HalfOpen => Open
                Phase::HalfOpen { .. } => {
                    state.recovery = (state.recovery * 2).min(settings.recovery_max);
                    state.open(reason, rest, now);
                }
                // A ticket of the present generation was handed out in it, and none is while open.
                Phase::Open { .. } => {}
            }
        });
        if in_time.is_none() {
            // What a late failure says of the *future* still holds.
            let mut state = self.shared.lock();
            if let Phase::Open { until } = &mut state.phase {
                *until = (*until).max(now + rest);
            }
        }
    }

    /// The call was refused by a rate limit: alive, but not to be asked again before `until`. A
    /// probe so answered is no verdict; for any other call it is no matter of the breaker.
    pub(crate) fn cooled(mut self, now: Instant, until: Instant) {
        if !self.is_probe {
            return;
        }
        self.verdict(|state, _| {
            if let Phase::HalfOpen { probing, not_before, .. } = &mut state.phase {
                *probing = false;
                *not_before = Some(until.min(now + LONGEST_REST));
            }
        });
    }

    /// Gives the verdict, unless it comes too late. The ticket's drop has nothing to do then.
    fn verdict<T>(&mut self, judge: impl FnOnce(&mut State, &BreakerSettings) -> T) -> Option<T> {
        self.is_probe = false;
        let mut state = self.shared.lock();
        if state.generation != self.generation {
            state.late_results += 1;
            return None;
        }
        Some(judge(&mut state, &self.shared.settings))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        let mut state = self.shared.lock();
        if state.generation == self.generation
            && let Phase::HalfOpen { probing, .. } = &mut state.phase
        {
            *probing = false;
        }
    }
}

#[derive(Debug)]
struct Shared {
    settings: BreakerSettings,
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// Grows with every transition.
    generation: u64,
    /// When the failures since the last success happened; as many as matter.
    streak: VecDeque<Instant>,
    ring: Ring,
    /// How long the next opening lasts, before it is spread.
    recovery: Duration,
    /// When probes closed it last.
    closed_at: Option<Instant>,
    late_results: u64,
    history: VecDeque<Transition>,
    /// How many of each class wait for a probe.
    waiting: [usize; Class::ALL.len()],
    jitter: Jitter,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        probing: bool,
        /// A probe was answered with a rate limit that ends then.
        not_before: Option<Instant>,
        successes: u32,
    },
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }
}

#[derive(Debug)]
struct Transition {
    at: Instant,
    from: &'static str,
    to: &'static str,
    reason: &'static str,
}

impl State {
    /// Books a failure at `now` and says whether it is one too many.
    fn fails_too_often(&mut self, settings: &BreakerSettings, now: Instant) -> bool {
        self.streak.push_back(now);
        while self.streak.len() > settings.failures
            || self.streak.front().is_some_and(|first| now - *first > settings.window)
        {
            self.streak.pop_front();
        }
        let recent = self.ring.sum(now);
        self.streak.len() >= settings.failures
            || recent.samples >= settings.min_samples
                && f64::from(recent.failures) >= settings.ratio * f64::from(recent.samples)
    }

    // ## Closed => Open
    fn trip(
        &mut self,
        settings: &BreakerSettings,
        reason: &'static str,
        rest: Duration,
        now: Instant,
    ) {
        // One that fails again as soon as it is let in flaps, and is asked ever less.
        let flaps = self.closed_at.is_some_and(|at| now - at < settings.window);
        self.recovery =
            if flaps { (self.recovery * 2).min(settings.recovery_max) } else { settings.recovery };
        self.open(reason, rest, now);
    }

    fn open(&mut self, reason: &'static str, rest: Duration, now: Instant) {
        let wait = self.jitter.spread(self.recovery, SPREAD).max(rest);
        self.enter(Phase::Open { until: now + wait }, reason, now);
    }

    fn enter(&mut self, phase: Phase, reason: &'static str, now: Instant) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        let (from, to) = (self.phase.name(), phase.name());
        self.history.push_back(Transition { at: now, from, to, reason });
        if matches!(phase, Phase::Closed) {
            self.streak.clear();
            self.ring.clear();
        }
        self.phase = phase;
        self.since = now;
        self.generation += 1;
    }
}

/// Verdicts of a sliding window, forgotten a tenth at a time.
#[derive(Debug)]
struct Ring {
    origin: Instant,
    width: Duration,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Which tenth since the origin it counts.
    tick: u128,
    samples: u32,
    failures: u32,
}

impl Ring {
    fn new(window: Duration, now: Instant) -> Self {
        let width = (window / BUCKETS as u32).max(Duration::from_millis(1));
        Self { origin: now, width, buckets: [Bucket::default(); BUCKETS] }
    }

    fn add(&mut self, now: Instant, failed: bool) {
        let tick = self.tick(now);
        let bucket = &mut self.buckets[(tick % BUCKETS as u128) as usize];
        if bucket.tick != tick {
            *bucket = Bucket { tick, samples: 0, failures: 0 };
        }
        bucket.samples = bucket.samples.saturating_add(1);
        bucket.failures = bucket.failures.saturating_add(u32::from(failed));
    }

    fn sum(&self, now: Instant) -> RecentView {
        let tick = self.tick(now);
        let live = self.buckets.iter().filter(|it| it.tick + BUCKETS as u128 > tick);
        live.fold(RecentView::default(), |sum, it| RecentView {
            samples: sum.samples.saturating_add(it.samples),
            failures: sum.failures.saturating_add(it.failures),
        })
    }

    fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS];
    }

    fn tick(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.origin).as_nanos() / self.width.as_nanos()
    }
}

const BUCKETS: usize = 10;
const HISTORY: usize = 16;
const SPREAD: f64 = 0.2;
/// How long more urgent calls leave the probe to others that wait for it.
const YIELD: Duration = Duration::from_millis(250);
/// When to look again while somebody else's probe is out.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
