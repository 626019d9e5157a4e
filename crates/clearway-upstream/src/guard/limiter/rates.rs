//! Requests and tokens per minute of an account or a model, taken together.

use std::time::{Duration, Instant};

use super::headers::RateHeader;
use super::window::Window;
use super::{RateView, WaitFor};

#[derive(Debug, Default)]
pub(super) struct Rates {
    pub(super) requests: Option<Window>,
    pub(super) tokens: Option<Window>,
}

/// What a call took; `None` where there was no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    requests: Option<u64>,
    tokens: Option<u64>,
}

impl Rates {
    /// What a call of so many tokens waits for, and how long; `None` if it may go.
    pub(super) fn wait(&self, tokens: u64, now: Instant) -> Option<(WaitFor, Duration)> {
        let wait = |window: &Option<Window>, amount| {
            window.as_ref().map_or(Duration::ZERO, |window| window.wait(amount, now))
        };
        let (requests, tokens) = (wait(&self.requests, 1), wait(&self.tokens, tokens));
        if requests.is_zero() && tokens.is_zero() {
            None
        } else if requests >= tokens {
            Some((WaitFor::Requests, requests))
        } else {
            Some((WaitFor::Tokens, tokens))
        }
    }

    /// How long until so many calls with so many tokens in all have gone.
    pub(super) fn wait_for_all(&self, requests: u64, tokens: u64, now: Instant) -> Duration {
        let wait = |window: &Option<Window>, amount| {
            window.as_ref().map_or(Duration::ZERO, |window| window.wait_for_all(amount, now))
        };
        wait(&self.requests, requests).max(wait(&self.tokens, tokens))
    }

    pub(super) fn take(&mut self, tokens: u64, now: Instant) -> Taken {
        Taken {
            requests: self.requests.as_mut().map(|window| window.take(1, now)),
            tokens: self.tokens.as_mut().map(|window| window.take(tokens, now)),
        }
    }

    /// Corrects the reservation to what was used. A window that was learnt since is right already.
    pub(super) fn settle(&mut self, taken: &mut Taken, tokens: u64, now: Instant) {
        if let (Some(window), Some(reserved)) = (&mut self.tokens, &mut taken.tokens) {
            if tokens > *reserved {
                *reserved += window.take(tokens - *reserved, now);
            } else {
                window.give_back(*reserved - tokens);
                *reserved = tokens;
            }
        }
    }

    /// The call was never sent.
    pub(super) fn give_back(&mut self, taken: Taken) {
        for (window, amount) in
            [(&mut self.requests, taken.requests), (&mut self.tokens, taken.tokens)]
        {
            if let (Some(window), Some(amount)) = (window, amount) {
                window.give_back(amount);
            }
        }
    }
}

/// Takes over what a provider says about a window, up to `most` per minute. What it says may only
/// make us slower than we think, except that a new limit is believed. Returns how long to stay away
/// altogether.
pub(super) fn learn(
    window: &mut Option<Window>,
    told: RateHeader,
    most: u64,
    now: Instant,
) -> Option<Duration> {
    let Some(per_minute) = told.per_minute() else {
        // A quota of an hour or a day: no rate to keep to, but an end.
        return told.reset.filter(|_| told.remaining == 0);
    };
    let per_minute = per_minute.min(most);
    // Providers let one minute's worth go at once; `remaining` says how much of it is there.
    let window = window.get_or_insert_with(|| Window::new(per_minute, per_minute, now));
    if window.per_minute() != per_minute {
        window.retune(per_minute, per_minute, now);
    }
    window.lower(told.remaining, now);
    None
}

pub(super) fn view(window: Option<&Window>, now: Instant) -> Option<RateView> {
    window.map(|it| RateView { per_minute: it.per_minute(), available: it.left(now) })
}
