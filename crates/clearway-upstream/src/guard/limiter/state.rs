//! The scheduler inside a limiter's lock.
//!
//! [`State::serve`] runs after whatever may have changed: it grants all that can go, and tells the
//! one at the head which time has to pass, so that *its* timer brings the next look. Nobody else's
//! timer is needed: who takes its place is told in turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::aimd::Aimd;
use super::lines::Lines;
use super::rates::{Rates, Taken, learn, view};
use super::window::Window;
use super::{
    Ask, Class, LimiterSettings, LimiterView, ModelLimiterView, Queued, RateHeaders, WaitFor,
};
use crate::guard::{LONGEST_REST, millis_until};

#[derive(Debug)]
pub(super) struct State {
    settings: LimiterSettings,
    in_flight: usize,
    peak: usize,
    rates: Rates,
    models: Vec<Model>,
    names: HashMap<Arc<str>, usize>,
    /// Whose turn it is among models with waiters of a class.
    next_model: usize,
    waiters: HashMap<u64, Waiter>,
    next_waiter: u64,
    queued: [usize; Class::ALL.len()],
    /// Tokens that all those who wait ask for.
    queued_tokens: u64,
    /// How often others were preferred while somebody of the class waited.
    passed_over: [u32; Class::ALL.len()],
    pub(super) shed_deadline: u64,
    pub(super) shed_queue_full: u64,
    /// To be woken when the lock is free.
    pub(super) woken: Vec<Waker>,
}

#[derive(Debug)]
struct Model {
    name: Arc<str>,
    in_flight: usize,
    aimd: Aimd,
    rates: Rates,
    cooled_until: Option<Instant>,
    /// Of clean answers, a moving average.
    service: Option<Duration>,
    lines: Lines,
}

#[derive(Debug)]
struct Waiter {
    class: Class,
    tenant: Arc<str>,
    model: usize,
    tokens: u64,
    /// It is not served at this instant or later.
    limit: Instant,
    waker: Option<Waker>,
    fate: Fate,
}

#[derive(Debug)]
enum Fate {
    /// `until` is when the one at the head has to look again.
    Waiting {
        until: Option<Instant>,
    },
    Granted(Booking),
    /// Its limit came first.
    Expired,
}

/// What a call holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Booking {
    pub(super) model: usize,
    pub(super) class: Class,
    pub(super) began: Instant,
    account: Taken,
    own: Taken,
}

/// How a waiter stands.
pub(super) enum Standing {
    Granted(Booking),
    Expired,
    Waiting { until: Option<Instant> },
}

/// Why somebody may not go now.
#[derive(Debug)]
struct Held {
    why: WaitFor,
    /// `None`: when somebody else is done.
    until: Option<Instant>,
    /// By the account's limits, so that those behind may not go either.
    by_account: bool,
}

/// What became of one class in a round.
enum Round {
    /// Somebody left the queue.
    Moved,
    /// Nobody of this class can go; others may.
    Still,
    /// Nobody at all may go before the one in front.
    Blocked,
}

impl State {
    pub(super) fn new(settings: LimiterSettings, now: Instant) -> Self {
        let rates = Rates {
            requests: settings.per_minute.map(|rate| {
                let burst = settings.burst.unwrap_or(rate.min(DEFAULT_BURST));
                Window::new(rate.into(), burst.into(), now)
            }),
            tokens: settings.tokens_per_minute.map(|rate| Window::new(rate, rate, now)),
        };
        Self {
            settings,
            in_flight: 0,
            peak: 0,
            rates,
            models: Vec::new(),
            names: HashMap::new(),
            next_model: 0,
            waiters: HashMap::new(),
            next_waiter: 0,
            queued: [0; Class::ALL.len()],
            queued_tokens: 0,
            passed_over: [0; Class::ALL.len()],
            shed_deadline: 0,
            shed_queue_full: 0,
            woken: Vec::new(),
        }
    }

    /// The model's place in the table, which the configuration's models are the bound of.
    pub(super) fn model(&mut self, name: &Arc<str>) -> usize {
        if let Some(index) = self.names.get(name) {
            return *index;
        }
        let cap = self.settings.concurrent;
        self.models.push(Model {
            name: name.clone(),
            in_flight: 0,
            aimd: Aimd::new(self.settings.start.unwrap_or(cap), cap),
            rates: Rates::default(),
            cooled_until: None,
            service: None,
            lines: Lines::default(),
        });
        self.names.insert(name.clone(), self.models.len() - 1);
        self.models.len() - 1
    }

    // ## Entering

    pub(super) fn waiting(&self) -> usize {
        self.queued.iter().sum()
    }

    /// Whether nobody is remembered, waiting or not.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let lines =
            self.models.iter().all(|it| Class::ALL.iter().all(|class| it.lines.len(*class) == 0));
        lines && self.waiters.is_empty() && self.queued_tokens == 0 && self.in_flight == 0
    }

    /// Whether the queue is longer than it may be, the last waiter included.
    pub(super) fn is_overfull(&self, class: Class) -> bool {
        self.queued[class as usize] > self.settings.queue || self.waiting() > MAX_WAITERS
    }

    /// Books at once if nobody waits and nothing is against it.
    pub(super) fn pass(&mut self, ask: &Ask, now: Instant) -> Option<Booking> {
        let model = self.model(&ask.model);
        self.check(model, ask.class, ask.tokens, now).ok()?;
        Some(self.book(model, ask.class, ask.tokens, now))
    }

    /// Joins the queue.
    pub(super) fn join(&mut self, ask: &Ask, limit: Instant) -> u64 {
        let id = self.next_waiter;
        self.next_waiter += 1;
        let model = self.model(&ask.model);
        self.models[model].lines.push(ask.class, &ask.tenant, id);
        self.queued[ask.class as usize] += 1;
        self.queued_tokens = self.queued_tokens.saturating_add(ask.tokens.min(MAX_TOKENS));
        let waiter = Waiter {
            class: ask.class,
            tenant: ask.tenant.clone(),
            model,
            tokens: ask.tokens.min(MAX_TOKENS),
            limit,
            waker: None,
            fate: Fate::Waiting { until: None },
        };
        self.waiters.insert(id, waiter);
        id
    }

    /// Looks how the waiter stands, after serving. Unless it waits on, it is forgotten.
    pub(super) fn look(&mut self, id: u64, now: Instant) -> Standing {
        let Some(waiter) = self.waiters.get_mut(&id) else { return Standing::Expired };
        // It is here now and need not be woken; and if it is not at the head any more, what it
        // waited for is somebody else's to watch.
        waiter.waker = None;
        if let Fate::Waiting { until } = &mut waiter.fate {
            *until = None;
        }
        self.serve(now);
        match self.waiters.get(&id).map(|waiter| &waiter.fate) {
            Some(Fate::Waiting { until }) => Standing::Waiting { until: *until },
            Some(Fate::Granted(booking)) => {
                let booking = *booking;
                self.waiters.remove(&id);
                Standing::Granted(booking)
            }
            Some(Fate::Expired) | None => {
                self.waiters.remove(&id);
                Standing::Expired
            }
        }
    }

    pub(super) fn wake_with(&mut self, id: u64, waker: &Waker) {
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.waker = Some(waker.clone());
        }
    }

    /// The waiter is gone, whatever it had or hoped for.
    pub(super) fn leave(&mut self, id: u64, now: Instant) {
        let Some(waiter) = self.waiters.remove(&id) else { return };
        match waiter.fate {
            Fate::Waiting { .. } => {
                self.models[waiter.model].lines.remove(waiter.class, &waiter.tenant, id);
                self.unqueue(waiter.class, waiter.tokens);
            }
            Fate::Granted(booking) => {
                self.give_back(&booking);
                self.release(&booking);
            }
            Fate::Expired => {}
        }
        self.serve(now);
    }

    /// Where the waiter stands. The estimate takes slots and rates as passing side by side.
    pub(super) fn queued(&self, id: u64, now: Instant) -> Queued {
        let Some(Waiter { class, tenant, model: index, tokens, .. }) = self.waiters.get(&id) else {
            return Queued { for_what: WaitFor::Slot, position: 0, eta: Duration::ZERO };
        };
        let (class, model) = (*class, &self.models[*index]);
        let place = model.lines.place(class, tenant, id);
        let before = |model: &Model| {
            let preferred = Class::ALL.into_iter().take_while(|it| *it != class);
            let preferred: usize = preferred.map(|class| model.lines.len(class)).sum();
            preferred + model.lines.before(class, tenant, place)
        };
        let (of_model, of_account) = (before(model), self.models.iter().map(before).sum::<usize>());

        let held = self.check(*index, class, *tokens, now).err();
        let by_account = held.as_ref().is_some_and(|held| held.by_account);
        let mean = self.queued_tokens / (self.waiting().max(1) as u64);
        let rate = |rates: &Rates, before: usize| {
            let before = before as u64;
            let all = mean.saturating_mul(before).saturating_add(*tokens);
            rates.wait_for_all(before + 1, all, now)
        };
        let slot = |limit: usize, before: usize| {
            let turns = (before + 1) as f64 / self.share(class, limit).max(1) as f64;
            model.service.map_or(Duration::ZERO, |service| service.mul_f64(turns))
        };
        let cooled = model.cooled_until.map_or(Duration::ZERO, |at| at - now);
        let eta = slot(model.aimd.limit(), of_model)
            .max(slot(self.settings.concurrent, of_account))
            .max(rate(&model.rates, of_model))
            .max(rate(&self.rates, of_account))
            .max(cooled);
        Queued {
            for_what: held.map_or(WaitFor::Slot, |held| held.why),
            position: if by_account { of_account } else { of_model },
            eta,
        }
    }

    // ## Calls under way

    pub(super) fn release(&mut self, booking: &Booking) {
        self.in_flight -= 1;
        self.models[booking.model].in_flight -= 1;
    }

    pub(super) fn settle(&mut self, booking: &mut Booking, tokens: u64, now: Instant) {
        self.rates.settle(&mut booking.account, tokens, now);
        self.models[booking.model].rates.settle(&mut booking.own, tokens, now);
    }

    /// The call was never sent: its requests and tokens are there again, its slot is not touched.
    pub(super) fn give_back(&mut self, booking: &Booking) {
        self.rates.give_back(booking.account);
        self.models[booking.model].rates.give_back(booking.own);
    }

    pub(super) fn clean(&mut self, booking: &Booking, now: Instant) {
        let occupied = self.occupied(booking);
        let model = &mut self.models[booking.model];
        model.aimd.clean(booking.began, occupied);
        let took = now.saturating_duration_since(booking.began);
        model.service = Some(match model.service {
            Some(service) => service.mul_f64(1.0 - SMOOTHING) + took.mul_f64(SMOOTHING),
            None => took,
        });
    }

    pub(super) fn pressure(&mut self, booking: &Booking, now: Instant) {
        let occupied = self.occupied(booking);
        self.models[booking.model].aimd.pressure(booking.began, occupied, now);
    }

    // ## What the provider says

    pub(super) fn learn(&mut self, model: usize, headers: &RateHeaders, now: Instant) {
        let most_requests = self.settings.per_minute.unwrap_or(self.settings.most_per_minute);
        let most_tokens =
            self.settings.tokens_per_minute.unwrap_or(self.settings.most_tokens_per_minute);
        let rates = &mut self.models[model].rates;
        let requests = headers
            .requests
            .and_then(|told| learn(&mut rates.requests, told, most_requests.into(), now));
        let tokens =
            headers.tokens.and_then(|told| learn(&mut rates.tokens, told, most_tokens, now));
        if let Some(rest) = requests.max(tokens) {
            self.cool(model, now + rest.min(LONGEST_REST), now);
        }
    }

    pub(super) fn cool(&mut self, model: usize, until: Instant, now: Instant) {
        let until = until.min(now + LONGEST_REST);
        let cooled = &mut self.models[model].cooled_until;
        *cooled = Some(cooled.map_or(until, |at| at.max(until)));
    }

    pub(super) fn restart(&mut self, model: usize) {
        self.models[model].aimd.restart();
    }

    // ## Serving

    /// Grants whatever can be granted.
    pub(super) fn serve(&mut self, now: Instant) {
        while self.waiting() > 0 && self.serve_one(now) {}
    }

    fn serve_one(&mut self, now: Instant) -> bool {
        // Somebody who was passed over often enough goes first, if it can go now.
        for class in [Class::Run, Class::Bulk] {
            let is_owed = self.passed_over[class as usize] >= PATIENCE;
            if is_owed && self.queued[class as usize] > 0 && self.serve_turn(class, now) {
                return true;
            }
        }
        for class in Class::ALL {
            match self.serve_class(class, now) {
                Round::Moved => return true,
                Round::Still => {}
                Round::Blocked => return false,
            }
        }
        false
    }

    /// Serves one of a class out of turn.
    fn serve_turn(&mut self, class: Class, now: Instant) -> bool {
        // Where interactive calls queue up they fill the slots kept for them, too: without the right
        // to one of those the turn would never come.
        let as_class =
            if self.queued[Class::Interactive as usize] > 0 { Class::Interactive } else { class };
        for offset in 0..self.models.len() {
            let index = (self.next_model + offset) % self.models.len();
            let Some(id) = self.models[index].lines.head(class) else { continue };
            let Some(waiter) = self.waiters.get(&id) else { continue };
            if now >= waiter.limit {
                self.expire(id);
                return true;
            }
            match self.check(index, as_class, waiter.tokens, now) {
                Ok(()) => {
                    self.grant(id, now);
                    return true;
                }
                // Its turn may come while the one in front still waits for more than it needs.
                Err(held) => self.mark(id, held.until),
            }
        }
        false
    }

    fn serve_class(&mut self, class: Class, now: Instant) -> Round {
        if self.queued[class as usize] == 0 {
            return Round::Still;
        }
        for offset in 0..self.models.len() {
            let index = (self.next_model + offset) % self.models.len();
            let Some(id) = self.models[index].lines.head(class) else { continue };
            if self.has_preferred(index, class) {
                continue;
            }
            let Some(waiter) = self.waiters.get(&id) else { continue };
            if now >= waiter.limit {
                self.expire(id);
                return Round::Moved;
            }
            match self.check(index, class, waiter.tokens, now) {
                Ok(()) => {
                    self.grant(id, now);
                    return Round::Moved;
                }
                Err(held) => {
                    self.mark(id, held.until);
                    if held.by_account {
                        return Round::Blocked;
                    }
                }
            }
        }
        Round::Still
    }

    /// Whether somebody of a higher class waits for the same model: then what that one cannot have
    /// is not for others either.
    fn has_preferred(&self, model: usize, class: Class) -> bool {
        let mut preferred = Class::ALL.into_iter().take_while(|it| *it != class);
        preferred.any(|class| self.models[model].lines.head(class).is_some())
    }

    /// Notes which time has to pass for the one at a head, and has it set its timer.
    fn mark(&mut self, id: u64, until: Option<Instant>) {
        let Some(waiter) = self.waiters.get_mut(&id) else { return };
        let Fate::Waiting { until: known } = &mut waiter.fate else { return };
        let is_news = until.is_some_and(|at| known.is_none_or(|known| at < known));
        *known = until;
        if is_news {
            self.woken.extend(waiter.waker.take());
        }
    }

    fn grant(&mut self, id: u64, now: Instant) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let (class, model, tokens) = (waiter.class, waiter.model, waiter.tokens);
        self.models[model].lines.pop(class);
        self.unqueue(class, tokens);
        self.next_model = (model + 1) % self.models.len();
        for other in Class::ALL {
            let passed_over = &mut self.passed_over[other as usize];
            *passed_over = match self.queued[other as usize] {
                _ if other == class => 0,
                0 => 0,
                _ => passed_over.saturating_add(1),
            };
        }
        let booking = self.book(model, class, tokens, now);
        self.end(id, Fate::Granted(booking));
    }

    fn expire(&mut self, id: u64) {
        let Some(waiter) = self.waiters.get(&id) else { return };
        let (class, tokens) = (waiter.class, waiter.tokens);
        self.models[waiter.model].lines.remove(class, &waiter.tenant, id);
        self.unqueue(class, tokens);
        self.end(id, Fate::Expired);
    }

    fn end(&mut self, id: u64, fate: Fate) {
        if let Some(waiter) = self.waiters.get_mut(&id) {
            waiter.fate = fate;
            self.woken.extend(waiter.waker.take());
        }
    }

    fn unqueue(&mut self, class: Class, tokens: u64) {
        self.queued[class as usize] -= 1;
        self.queued_tokens = self.queued_tokens.saturating_sub(tokens);
    }

    fn book(&mut self, index: usize, class: Class, tokens: u64, now: Instant) -> Booking {
        let model = &mut self.models[index];
        model.in_flight += 1;
        self.in_flight += 1;
        self.peak = self.peak.max(self.in_flight);
        let account = self.rates.take(tokens, now);
        Booking { model: index, class, began: now, account, own: model.rates.take(tokens, now) }
    }

    /// Whether a call may go now, the line aside.
    fn check(&self, model: usize, class: Class, tokens: u64, now: Instant) -> Result<(), Held> {
        let model = &self.models[model];
        // The model's own limits first: who cannot go anyway must not hold back other models.
        let own = |why, until| Held { why, until, by_account: false };
        if model.in_flight >= self.share(class, model.aimd.limit()) {
            return Err(own(WaitFor::Slot, None));
        }
        if let Some(until) = model.cooled_until.filter(|until| now < *until) {
            return Err(own(WaitFor::Requests, Some(until)));
        }
        if let Some((why, wait)) = model.rates.wait(tokens, now) {
            return Err(own(why, Some(now + wait)));
        }
        let shared = |why, until| Held { why, until, by_account: true };
        if self.in_flight >= self.share(class, self.settings.concurrent) {
            return Err(shared(WaitFor::Slot, None));
        }
        match self.rates.wait(tokens, now) {
            Some((why, wait)) => Err(shared(why, Some(now + wait))),
            None => Ok(()),
        }
    }

    /// How many of `limit` slots a class may fill.
    fn share(&self, class: Class, limit: usize) -> usize {
        match class {
            Class::Interactive => limit,
            Class::Run | Class::Bulk => limit - self.reserved(limit),
        }
    }

    /// How many of `limit` slots are kept for interactive calls.
    fn reserved(&self, limit: usize) -> usize {
        if self.settings.reserve == 0 || limit < SMALL {
            return 0;
        }
        (self.settings.reserve * limit / self.settings.concurrent.max(1)).clamp(1, limit - 1)
    }

    /// Slots of the model that are taken as far as the call can tell: those kept from it are.
    fn occupied(&self, booking: &Booking) -> usize {
        let model = &self.models[booking.model];
        let limit = model.aimd.limit();
        model.in_flight + limit - self.share(booking.class, limit)
    }

    // ## From outside

    pub(super) fn view(&self, now: Instant) -> LimiterView {
        let models = self.models.iter().map(|model| ModelLimiterView {
            model: model.name.to_string(),
            in_flight: model.in_flight,
            limit: model.aimd.limit(),
            service_ms: model.service.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
            requests: view(model.rates.requests.as_ref(), now),
            tokens: view(model.rates.tokens.as_ref(), now),
            cooling_ms: model
                .cooled_until
                .filter(|until| now < *until)
                .map(|until| millis_until(until, now)),
        });
        LimiterView {
            in_flight: self.in_flight,
            peak: self.peak,
            cap: self.settings.concurrent,
            queued: self.queued,
            requests: view(self.rates.requests.as_ref(), now),
            tokens: view(self.rates.tokens.as_ref(), now),
            shed_deadline: self.shed_deadline,
            shed_queue_full: self.shed_queue_full,
            models: models.collect(),
        }
    }
}

/// What an account without a configured burst may send at once.
const DEFAULT_BURST: u32 = 10;
/// Who waits, over all classes.
const MAX_WAITERS: usize = 1000;
/// After so many grants to others, a waiting class has its turn.
const PATIENCE: u32 = 8;
/// Below this many slots none is kept for interactive calls.
const SMALL: usize = 4;
/// No request is larger; keeps sums of many far from their end.
const MAX_TOKENS: u64 = 1 << 40;
/// Weight of the latest answer in the average of service times.
const SMOOTHING: f64 = 0.2;
