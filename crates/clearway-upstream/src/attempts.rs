//! The one loop that decides about attempts: retries, other keys, other routes, waiting for a probe.
//!
//! [`Attempts`] is asked for the next attempt ([`Attempts::admit`]) and told of each failure
//! ([`Attempts::failed`]); between the two, the caller does the attempt. Nothing else in this
//! crate, and nobody outside, repeats a call.
//!
//! **Invariants:** a call makes at most its provider's `retry.attempts` attempts, over all routes;
//! no wait begins that cannot end before the deadline with enough left for an answer; a wait holds
//! no slot, no key and no probe.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::wait::WaitKind;
use clearway_core::{Code, Deadline};
use tracing::Span;

use crate::call::{CallCx, Phase};
use crate::classify::{KeyEffect, Same, classify};
use crate::failure::{Error, Fault, History};
use crate::guard::breaker::{Breaker, Gate};
use crate::guard::limiter::{Ask, Grant, Queued, Refused, WaitFor};
use crate::lease::Lease;
use crate::route::Route;
use crate::watch::{Expired, Watch, now};

/// See the module.
pub(crate) struct Attempts {
    /// The model's own route, then its fallbacks.
    routes: Arc<[Arc<Route>]>,
    /// The route to ask next.
    at: usize,
    /// How often the present route has been asked again.
    same: u32,
    made: u32,
    history: History,
    /// Why the last attempt, or the last route that was passed over, did not do.
    last: Option<(Arc<Route>, Fault)>,
    /// What one call takes from a window of tokens.
    tokens: u64,
    kind: CallKind,
}

/// What differs between kinds of calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallKind {
    /// With less time than this left, nothing is begun or waited for.
    pub(crate) min_useful: Duration,
    /// The longest backoff.
    pub(crate) backoff_cap: Duration,
}

impl CallKind {
    pub(crate) const CHAT: Self =
        Self { min_useful: Duration::from_secs(2), backoff_cap: Duration::from_secs(2) };
    pub(crate) const EMBEDDING: Self =
        Self { min_useful: Duration::from_millis(500), backoff_cap: Duration::from_millis(400) };
}

/// The right to make one attempt.
pub(crate) struct Admitted {
    pub(crate) route: Arc<Route>,
    pub(crate) lease: Lease,
    pub(crate) number: u32,
    /// For the wait cell: `openai/gpt-5-mini, attempt 1`.
    pub(crate) detail: Arc<str>,
}

/// Why a route cannot be asked right now.
struct Closed {
    fault: Fault,
    /// When it may be asked again, if that is known.
    until: Option<Instant>,
    wait: WaitKind,
}

impl Attempts {
    pub(crate) fn new(
        routes: Arc<[Arc<Route>]>,
        kind: CallKind,
        tokens: u64,
        started: Instant,
    ) -> Self {
        for route in &*routes {
            route.provider.budget.deposit(started);
        }
        Self {
            routes,
            at: 0,
            same: 0,
            made: 0,
            history: History::new(started),
            last: None,
            tokens,
            kind,
        }
    }

    pub(crate) const fn made(&self) -> u32 {
        self.made
    }

    pub(crate) fn has_more(&self) -> bool {
        self.made < self.routes[0].provider.retry.attempts
    }

    /// Waits until an attempt may begin, at the present route or a later one.
    ///
    /// # Errors
    ///
    /// When no route can be asked in time.
    pub(crate) async fn admit(
        &mut self,
        cx: &CallCx,
        watch: &mut Watch,
        span: &Span,
    ) -> Result<Admitted, Error> {
        loop {
            let mut soonest: Option<(Instant, WaitKind, usize)> = None;
            for at in self.at..self.routes.len() {
                let route = self.routes[at].clone();
                match self.enter(&route, cx, watch, span).await {
                    Ok(lease) => {
                        if at != self.at {
                            (self.at, self.same) = (at, 0);
                        }
                        self.made += 1;
                        let detail = format!("{}, attempt {}", route.label, self.made).into();
                        return Ok(Admitted { route, lease, number: self.made, detail });
                    }
                    Err(closed) => {
                        let ends_call =
                            matches!(closed.fault.code, Code::DeadlineExceeded | Code::Cancelled);
                        if let Some(until) = closed.until
                            && soonest.is_none_or(|(earliest, ..)| until < earliest)
                        {
                            soonest = Some((until, closed.wait, at));
                        }
                        // What a provider said says more than that we did not ask again.
                        if self.last.is_none() || ends_call {
                            self.last = Some((route, closed.fault));
                        }
                        if ends_call {
                            return Err(self.error());
                        }
                    }
                }
            }
            let Some((until, kind, at)) = soonest else { return Err(self.error()) };
            let present = now();
            let left = watch.deadline().0.saturating_duration_since(present);
            let delay = until.saturating_duration_since(present).max(LEAST_WAIT);
            if delay + self.kind.min_useful > left {
                return Err(self.error());
            }
            let route = &self.routes[at];
            let detail: Arc<str> = route.label.as_str().into();
            // Who waits for a probe is known, so that the least urgent of them makes it.
            let _waiting = (kind == WaitKind::Breaker)
                .then(|| [&route.provider.breaker, &route.breaker].map(|it| it.wait(cx.class)));
            if let Expired::Deadline = pause(cx, watch, kind, detail, present + delay).await {
                return Err(self.error());
            }
        }
    }

    /// One more attempt beside the present one, if it may begin at once and few enough do so.
    pub(crate) fn second(
        &mut self,
        route: &Arc<Route>,
        cx: &CallCx,
        span: &Span,
        at: Instant,
    ) -> Option<Admitted> {
        let provider = &route.provider;
        if !self.has_more() || route.closed_until(cx.class, at).is_some() {
            return None;
        }
        let grant = provider.limiter.try_enter(&self.ask(route, cx), at)?;
        if !provider.tally.take_hedge() || !provider.budget.withdraw(1, at) {
            grant.forgo();
            return None;
        }
        let lease = self.take(route, grant, cx, span, at).ok()?;
        self.made += 1;
        let detail = format!("{}, attempt {} beside a slow one", route.label, self.made).into();
        Some(Admitted { route: route.clone(), lease, number: self.made, detail })
    }

    /// Books a failed attempt and waits until the next may begin.
    ///
    /// # Errors
    ///
    /// When it was the last: the fault as the call's error, with all attempts in it.
    pub(crate) async fn failed(
        &mut self,
        route: Arc<Route>,
        fault: Fault,
        began: Instant,
        cx: &CallCx,
        watch: &mut Watch,
    ) -> Result<(), Error> {
        let at = now();
        self.history.record(&route.label, &fault, began, at);
        let next = self.next(&route, &fault, watch.deadline().0.saturating_duration_since(at), at);
        self.last = Some((route.clone(), fault));
        match next {
            Next::End => Err(self.error()),
            Next::Onward(to) => {
                (self.at, self.same) = (to, 0);
                Ok(())
            }
            Next::Again(delay) => {
                self.same += 1;
                if delay.is_zero() {
                    return Ok(());
                }
                let detail = format!("{}, attempt {} failed", route.label, self.made).into();
                match pause(cx, watch, WaitKind::Retry, detail, at + delay).await {
                    Expired::Stage => Ok(()),
                    Expired::Deadline => Err(self.error()),
                }
            }
        }
    }

    /// Books the fault of an answer that cannot be begun anew.
    pub(crate) fn conclude(&mut self, route: &Arc<Route>, fault: Fault, began: Instant) {
        self.history.record(&route.label, &fault, began, now());
        self.last = Some((route.clone(), fault));
    }

    /// The call's error as things stand.
    pub(crate) fn error(&mut self) -> Error {
        let (label, fault) = match self.last.take() {
            Some((route, fault)) => (route.label.clone(), fault),
            None => {
                let problem = "no attempt could be made";
                (self.routes[0].label.clone(), Fault::new(Code::Internal, Phase::Queue, problem))
            }
        };
        self.history.error(&label, fault, now())
    }

    /// What comes after a failed attempt.
    fn next(&self, route: &Route, fault: &Fault, left: Duration, at: Instant) -> Next {
        let verdict = classify(fault);
        let fits = |delay: Duration| delay + self.kind.min_useful <= left;
        if !self.has_more() || !fits(Duration::ZERO) {
            return Next::End;
        }
        let onward = if verdict.onward { self.onward(fault) } else { None };
        // Another key of the same account costs nothing and changes nothing for the caller. One that
        // rests is waited for when this one is no good any more.
        if verdict.key != KeyEffect::None
            && let Some(ready) = route.provider.keys.rested(&route.model, at)
        {
            let rest = ready.saturating_duration_since(at);
            let is_gone = matches!(verdict.key, KeyEffect::Dead | KeyEffect::Quota);
            if rest.is_zero() || is_gone && onward.is_none() && fits(rest) {
                return Next::Again(rest);
            }
        }
        let again = match verdict.same {
            Same::Never => None,
            _ if !route.provider.retry.on.allows(fault.code) => None,
            Same::Once(delay) => (self.same == 0).then_some(delay),
            Same::OnceBackoff => (self.same == 0).then(|| self.backoff(route)),
            // Where there is another route, the attempts are not all spent on this one.
            Same::Backoff | Same::Hint if onward.is_some() && self.same > 0 => None,
            Same::Backoff if onward.is_some() && fault.code == Code::UpstreamOverloaded => None,
            Same::Backoff => Some(self.backoff(route)),
            Same::LastResort => onward.is_none().then(|| self.backoff(route)),
            Same::Hint => match fault.retry_after {
                Some(hint) if onward.is_none() || hint <= SHORT_HINT => Some(hint),
                Some(_) => None,
                None => Some(self.backoff(route)),
            },
        };
        match (again, onward) {
            (Some(delay), _) if fits(delay) && route.provider.budget.withdraw(verdict.cost, at) => {
                Next::Again(delay)
            }
            (_, Some(to)) => Next::Onward(to),
            (_, None) => Next::End,
        }
    }

    /// The next route that may do what this one could not.
    fn onward(&self, fault: &Fault) -> Option<usize> {
        let present = self.routes.get(self.at)?;
        let room = |route: &Route| match (present.context_tokens, route.context_tokens) {
            (Some(small), Some(large)) => large > small,
            _ => false,
        };
        (self.at + 1..self.routes.len())
            .find(|&at| fault.code != Code::UpstreamContextLength || room(&self.routes[at]))
    }

    /// A random time up to a limit that doubles with every repeat: retries of many calls that
    /// failed together do not come back together.
    fn backoff(&self, route: &Route) -> Duration {
        let most = route
            .provider
            .retry
            .backoff
            .saturating_mul(1 << self.same.min(16))
            .min(self.kind.backoff_cap.max(route.provider.retry.backoff));
        route.provider.random_below(most).max(LEAST_BACKOFF)
    }

    /// Passes everything that stands in front of one route.
    async fn enter(
        &self,
        route: &Arc<Route>,
        cx: &CallCx,
        watch: &mut Watch,
        span: &Span,
    ) -> Result<Lease, Closed> {
        if watch.deadline().has_passed(now()) {
            return Err(Closed::ended(Phase::Queue));
        }
        // Looked at before the queue, so that nobody queues for what is closed.
        if let Some(until) = route.closed_until(cx.class, now()) {
            return Err(Closed::open(route, until));
        }
        let grant = self.grant(route, &self.ask(route, cx), cx, watch).await?;
        self.take(route, grant, cx, span, now())
    }

    fn ask(&self, route: &Route, cx: &CallCx) -> Ask {
        Ask {
            class: cx.class,
            tenant: cx.tenant.clone(),
            model: route.model.clone(),
            tokens: self.tokens,
            min_useful: self.kind.min_useful,
        }
    }

    /// With the slot in hand: a key and the breakers' leave.
    fn take(
        &self,
        route: &Arc<Route>,
        grant: Grant,
        cx: &CallCx,
        span: &Span,
        at: Instant,
    ) -> Result<Lease, Closed> {
        let provider = &route.provider;
        let passed = || {
            let Some(key) = provider.keys.pick(&route.model, at, &[]) else {
                return Err(Closed::no_key(route, at));
            };
            // Only now: a probe that waits in a queue would keep all others out.
            let pass = |breaker: &Breaker| match breaker.admit(cx.class, at) {
                Gate::Pass(ticket) | Gate::Probe(ticket) => Ok(ticket),
                Gate::Open { until } => Err(Closed::open(route, until)),
            };
            Ok((key.index, pass(&provider.breaker)?, pass(&route.breaker)?))
        };
        match passed() {
            Ok((key, endpoint, model)) => {
                let number = self.made + 1;
                Ok(Lease::new(route.clone(), (endpoint, model), grant, key, number, cx, span))
            }
            Err(closed) => {
                grant.forgo();
                Err(closed)
            }
        }
    }

    async fn grant(
        &self,
        route: &Arc<Route>,
        ask: &Ask,
        cx: &CallCx,
        watch: &mut Watch,
    ) -> Result<Grant, Closed> {
        let provider = &route.provider;
        if let Some(grant) = provider.limiter.try_enter(ask, now()) {
            return Ok(grant);
        }
        let limit = watch.stage(now(), route.timeouts.queue);
        let label = &route.label;
        let told = |queued: Queued| {
            let kind = match queued.for_what {
                WaitFor::Slot => WaitKind::ProviderSlot,
                WaitFor::Requests | WaitFor::Tokens => WaitKind::RateLimit,
            };
            let what = queued.for_what.as_str();
            let detail = format!("{label}, {} in front for {what}", queued.position);
            cx.wait.enter(kind, detail, Some(limit), now());
        };
        let refused = match provider.limiter.enter(watch, ask, limit, &told).await {
            Ok(grant) => return Ok(grant),
            Err(refused) => refused,
        };
        let fault = |code, problem: String| {
            let mut fault = Fault::new(code, Phase::Queue, problem);
            fault.retry_after = refused.retry_after();
            Closed { fault, until: None, wait: WaitKind::ProviderSlot }
        };
        Err(match refused {
            Refused::QueueFull { queued, .. } => fault(
                Code::UpstreamShedQueueFull,
                format!("all slots are taken and {queued} calls wait already"),
            ),
            Refused::ShedDeadline { eta } => fault(
                Code::UpstreamShedDeadline,
                format!(
                    "a slot is expected in {:.1} s, too late for this call's deadline",
                    eta.as_secs_f64()
                ),
            ),
            Refused::Expired(Expired::Deadline) => Closed::ended(Phase::Queue),
            Refused::Expired(Expired::Stage) => fault(
                Code::UpstreamQueueTimeout,
                format!("no slot became free within {:?}", route.timeouts.queue),
            ),
        })
    }
}

enum Next {
    Again(Duration),
    Onward(usize),
    End,
}

impl Closed {
    fn ended(phase: Phase) -> Self {
        let problem = format!("the deadline passed in phase {phase}");
        let fault = Fault::new(Code::DeadlineExceeded, phase, problem);
        Self { fault, until: None, wait: WaitKind::Work }
    }

    fn open(route: &Route, until: Instant) -> Self {
        let left = until.saturating_duration_since(now());
        let problem = format!(
            "Circuit breaker is OPEN: {} failed repeatedly, the next probe is due in {:.1} s",
            route.label,
            left.as_secs_f64()
        );
        let mut fault = Fault::new(Code::UpstreamRouteOpen, Phase::Queue, problem);
        fault.retry_after = Some(left.max(Duration::from_secs(1)));
        Self { fault, until: Some(until), wait: WaitKind::Breaker }
    }

    fn no_key(route: &Route, at: Instant) -> Self {
        match route.provider.keys.soonest(&route.model, at) {
            Some(until) => {
                let name = &route.provider.name;
                let views = route.provider.keys.view(at);
                let rested = route.provider.keys.rested(&route.model, at);
                let any =
                    |reason| rested.is_none() && views.iter().any(|key| key.reason == Some(reason));
                if any("auth") {
                    let problem = format!("no usable key is left for {name}");
                    let code = Code::UpstreamCredentialsExhausted;
                    let fault = Fault::new(code, Phase::Queue, problem);
                    return Self { fault, until: None, wait: WaitKind::Work };
                }
                let (code, problem) = if any("quota") {
                    (Code::UpstreamQuotaExhausted, format!("no key of {name} has credit left"))
                } else {
                    (Code::UpstreamRateLimited, format!("every key of {name} rests for a while"))
                };
                let mut fault = Fault::new(code, Phase::Queue, problem);
                fault.retry_after = Some(until.saturating_duration_since(at));
                Self { fault, until: Some(until), wait: WaitKind::RateLimit }
            }
            None => {
                let problem = format!("no usable key is left for {}", route.provider.name);
                let fault = Fault::new(Code::UpstreamCredentialsExhausted, Phase::Queue, problem);
                Self { fault, until: None, wait: WaitKind::Work }
            }
        }
    }
}

/// Waits until an instant, or for the deadline if that is earlier.
async fn pause(
    cx: &CallCx,
    watch: &mut Watch,
    kind: WaitKind,
    detail: Arc<str>,
    until: Instant,
) -> Expired {
    let until = Deadline(until);
    cx.wait.enter(kind, detail, Some(until), now());
    match watch.within(until, |_| std::task::Poll::<std::convert::Infallible>::Pending).await {
        Ok(never) => match never {},
        Err(expired) => expired,
    }
}

/// A rate limit this short is waited for even where another route could be asked.
const SHORT_HINT: Duration = Duration::from_secs(2);
/// Between two looks at a breaker whose probe is under way.
const LEAST_WAIT: Duration = Duration::from_millis(100);
const LEAST_BACKOFF: Duration = Duration::from_millis(1);
