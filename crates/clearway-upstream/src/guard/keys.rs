//! The credentials of one provider account: they have health instead of breakers.
//!
//! A key that the provider refuses is left alone for a minute, one without credit for ten,
//! and one that runs into a rate limit rests for that model only. The others share the calls in
//! turn.
//!
//! **Invariants:** no text that comes from here shows a secret; a key's rest is only ever prolonged,
//! except by an operator.
//!
//! Not here: how a key travels in a request, and which answers mean what.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{LONGEST_REST, millis_until};
use crate::config::Secret;

#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<Key>,
    state: Mutex<State>,
}

/// A key to use for one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyChoice {
    pub(crate) index: usize,
    pub(crate) label: Arc<str>,
}

/// What an answer says about the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyFault {
    /// The provider does not know it, or no longer.
    Auth,
    /// Its account has no credit left.
    Quota,
    /// Its rate for this model is used up.
    RateLimited { until: Instant },
}

/// A key at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    pub label: String,
    /// `ok`, `cooling` (for some models) or `disabled`.
    pub state: &'static str,
    /// Why it is disabled: `auth` or `quota`.
    pub reason: Option<&'static str>,
    /// Until it is enabled again by itself.
    pub enabled_in_ms: Option<u64>,
    /// Models it rests for, each with the milliseconds left.
    pub cooling: Vec<(String, u64)>,
}

impl Keys {
    /// Keys with their labels; one without a label is called by its number, and no keys at all are
    /// one anonymous key.
    pub(crate) fn new(keys: Vec<(Option<String>, Secret)>) -> Self {
        let mut keys: Vec<_> = (1..)
            .zip(keys)
            .map(|(number, (label, _))| Key {
                label: label.unwrap_or_else(|| format!("key {number}")).into(),
            })
            .collect();
        if keys.is_empty() {
            keys.push(Key { label: "anonymous".into() });
        }
        let health = keys.iter().map(|_| Health::default()).collect();
        Self { keys, state: Mutex::new(State { health, next: 0 }) }
    }

    /// The next healthy key for `model` that is not among `avoid`.
    pub(crate) fn pick(&self, model: &str, now: Instant, avoid: &[usize]) -> Option<KeyChoice> {
        let mut state = self.lock();
        let count = self.keys.len();
        let index = (0..count)
            .map(|offset| (state.next + offset) % count)
            .find(|index| !avoid.contains(index) && state.health[*index].is_ok(model, now))?;
        state.next = (index + 1) % count;
        Some(KeyChoice { index, label: self.keys[index].label.clone() })
    }

    /// The key's name for people.
    pub(crate) fn label(&self, index: usize) -> Arc<str> {
        self.keys.get(index).map_or_else(|| "none".into(), |key| key.label.clone())
    }

    /// Draws the conclusions from an answer to `model` with the key at `index`.
    pub(crate) fn report(&self, index: usize, model: &str, fault: KeyFault, now: Instant) {
        let mut state = self.lock();
        let Some(health) = state.health.get_mut(index) else { return };
        match fault {
            KeyFault::Auth => {
                health.disabled = Some(Disabled { reason: "auth", until: now + AUTH_REST });
            }
            KeyFault::Quota => {
                health.disabled = Some(Disabled { reason: "quota", until: now + QUOTA_REST });
            }
            KeyFault::RateLimited { until } => {
                let until = until.min(now + LONGEST_REST);
                let rest = health.cooling.entry(model.into()).or_insert(until);
                *rest = until.max(*rest);
            }
        }
    }

    /// When some key will serve `model` again by itself: `now` if one does already.
    pub(crate) fn soonest(&self, model: &str, now: Instant) -> Option<Instant> {
        let state = self.lock();
        let ready = state.health.iter().filter_map(|health| health.ready_at(model, now));
        ready.min()
    }

    /// The same, of the keys that are good and at most rest: `None` when all are disabled.
    pub(crate) fn rested(&self, model: &str, now: Instant) -> Option<Instant> {
        let state = self.lock();
        let enabled = state.health.iter().filter(|health| health.disabled_at(now).is_none());
        enabled.filter_map(|health| health.ready_at(model, now)).min()
    }

    /// An operator has seen to it: all keys are as new.
    pub(crate) fn reset(&self) {
        self.lock().health.fill_with(Health::default);
    }

    pub(crate) fn view(&self, now: Instant) -> Vec<KeyView> {
        let state = self.lock();
        let views = self.keys.iter().zip(&state.health).map(|(key, health)| {
            let disabled = health.disabled_at(now);
            let cooling = health.cooling.iter().filter(|(_, until)| now < **until);
            let cooling: Vec<_> = cooling
                .map(|(model, until)| (model.to_string(), millis_until(*until, now)))
                .collect();
            KeyView {
                label: key.label.to_string(),
                state: match disabled {
                    Some(_) => "disabled",
                    None if !cooling.is_empty() => "cooling",
                    None => "ok",
                },
                reason: disabled.map(|it| it.reason),
                enabled_in_ms: disabled.map(|it| millis_until(it.until, now)),
                cooling,
            }
        });
        views.collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Key {
    label: Arc<str>,
}

#[derive(Debug)]
struct State {
    /// In the order of the keys.
    health: Vec<Health>,
    /// Whose turn it is.
    next: usize,
}

#[derive(Debug, Default)]
struct Health {
    disabled: Option<Disabled>,
    /// By model, of which there are as many as configured.
    cooling: BTreeMap<Box<str>, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Disabled {
    reason: &'static str,
    until: Instant,
}

impl Health {
    fn is_ok(&self, model: &str, now: Instant) -> bool {
        self.ready_at(model, now).is_some_and(|at| at <= now)
    }

    fn ready_at(&self, model: &str, now: Instant) -> Option<Instant> {
        let enabled = match self.disabled {
            Some(Disabled { until, .. }) => until,
            None => now,
        };
        let cooled = self.cooling.get(model).copied().unwrap_or(now);
        Some(enabled.max(cooled).max(now))
    }

    fn disabled_at(&self, now: Instant) -> Option<Disabled> {
        self.disabled.filter(|it| now < it.until)
    }
}

/// Providers have refused good keys by mistake, and operators repair bad ones without telling us: a
/// try now and then costs little, a server that must be restarted costs much.
const AUTH_REST: Duration = Duration::from_secs(60);
const QUOTA_REST: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: usize) -> Keys {
        let secret = |number| (None, Secret::new(format!("sk-verysecret-{number}")));
        Keys::new((0..count).map(secret).collect())
    }

    fn index(choice: Option<KeyChoice>) -> Option<usize> {
        choice.map(|it| it.index)
    }

    #[test]
    fn healthy_keys_take_turns() {
        let (keys, now) = (keys(3), Instant::now());
        let mut turns = Vec::new();
        for _ in 0..4 {
            turns.extend(index(keys.pick("m", now, &[])));
        }
        assert_eq!(turns, [0, 1, 2, 0]);
        assert_eq!(index(keys.pick("m", now, &[1, 2])), Some(0));
        assert_eq!(index(keys.pick("m", now, &[0, 1, 2])), None);
    }

    #[test]
    fn a_rate_limit_rests_a_key_for_its_model_and_is_never_shortened() {
        let (keys, now) = (keys(1), Instant::now());
        let seconds = |n| now + Duration::from_secs(n);
        keys.report(0, "m", KeyFault::RateLimited { until: seconds(30) }, now);
        keys.report(0, "m", KeyFault::RateLimited { until: seconds(5) }, now);
        assert_eq!(index(keys.pick("m", seconds(29), &[])), None);
        assert_eq!(keys.soonest("m", now), Some(seconds(30)));
        assert_eq!(index(keys.pick("other", now, &[])), Some(0));
        assert_eq!(keys.view(now)[0].cooling, [("m".to_owned(), 30_000)]);
        assert_eq!(keys.view(now)[0].state, "cooling");
        assert_eq!(index(keys.pick("m", seconds(30), &[])), Some(0));

        keys.report(0, "m", KeyFault::RateLimited { until: seconds(1_000_000) }, now);
        assert_eq!(keys.soonest("m", now), Some(seconds(3600)));
    }

    #[test]
    fn a_refused_key_rests_for_a_minute_and_an_empty_one_for_ten() {
        let (keys, now) = (keys(2), Instant::now());
        keys.report(0, "m", KeyFault::Auth, now);
        keys.report(1, "m", KeyFault::Quota, now);
        assert_eq!(index(keys.pick("m", now, &[])), None);
        assert_eq!(keys.soonest("m", now), Some(now + AUTH_REST));
        let view = keys.view(now);
        assert_eq!((view[0].reason, view[0].enabled_in_ms), (Some("auth"), Some(60_000)));
        assert_eq!((view[1].reason, view[1].enabled_in_ms), (Some("quota"), Some(600_000)));
        assert_eq!(index(keys.pick("m", now + AUTH_REST, &[])), Some(0));
        assert_eq!(index(keys.pick("m", now + QUOTA_REST, &[0])), Some(1));
        keys.reset();
        assert_eq!(index(keys.pick("m", now, &[])), Some(0));
    }

    #[test]
    fn no_keys_are_one_without_a_secret_and_labels_tell_nothing() {
        let (none, now) = (Keys::new(Vec::new()), Instant::now());
        assert_eq!(index(none.pick("m", now, &[])), Some(0));
        let named = Keys::new(vec![
            (Some("team a".to_owned()), Secret::new("sk-verysecret")),
            (None, Secret::new("sk-verysecret")),
        ]);
        let labels: Vec<_> = named.view(now).into_iter().map(|it| it.label).collect();
        assert_eq!(labels, ["team a", "key 2"]);
        assert!(!format!("{named:?}").contains("verysecret"));
    }
}
