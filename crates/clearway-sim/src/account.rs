//! Accounts: what a key may do, and how much of it in a minute.
//!
//! Each key has two buckets, of requests and of tokens. They hold a minute's worth, fill evenly, and a refused request
//! takes nothing out. A request larger than the whole bucket is let in when the bucket is full and leaves a debt.
//! Tokens are taken on arrival as the request announces them, and settled when the reply is known. What a fault
//! breaks stays paid, as at a real provider.
//!
//! The limit on requests at once is not here but with the counters, because only they know when a request is over.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use crate::dates::rfc3339;
use crate::dialect::Dialect;
use crate::fault::{Fault, FaultSpec};

/// How a key is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Like any other.
    Ok,
    /// 401.
    Dead,
    /// 429 always, to come back in half a minute.
    Limited,
    /// 429: nothing left to spend.
    Quota,
}

impl KeyState {
    /// Every state, in the order of the list that users see.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Dead, Self::Limited, Self::Quota];

    /// Its name, for example `dead`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Dead => "dead",
            Self::Limited => "limited",
            Self::Quota => "quota",
        }
    }

    /// The fault that every request with the key meets.
    pub(crate) fn fault(self) -> Option<FaultSpec> {
        match self {
            Self::Ok => None,
            Self::Dead => Some(Fault::Unauthorized.into()),
            Self::Limited => Some(FaultSpec { fault: Fault::RetryAfter, value: Some(30) }),
            Self::Quota => Some(Fault::InsufficientQuota.into()),
        }
    }
}

/// A key and how it is treated: `NAME=dead`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRule {
    /// The key as clients send it.
    pub key: String,
    /// How it is treated.
    pub state: KeyState,
}

/// Why a text says nothing about a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a key is NAME=ok, dead, limited or quota: {0}")]
pub struct KeyError(String);

impl FromStr for KeyState {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let found = Self::ALL.into_iter().find(|state| state.name() == text.trim());
        found.ok_or_else(|| KeyError(text.to_owned()))
    }
}

impl FromStr for KeyRule {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.rsplit_once('=') {
            Some((key, state)) if !key.is_empty() => {
                let state = state.parse().map_err(|_| KeyError(text.to_owned()))?;
                Ok(Self { key: key.to_owned(), state })
            }
            Some(_) | None => Err(KeyError(text.to_owned())),
        }
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Limits per minute and key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) requests: Option<u32>,
    pub(crate) tokens: Option<u32>,
}

/// What is left of the limits that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Left {
    pub(crate) requests: Option<Gauge>,
    pub(crate) tokens: Option<Gauge>,
}

/// How full a bucket is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Gauge {
    limit: u32,
    remaining: u64,
    /// Until it is full again.
    reset: Duration,
}

/// A request that its account does not allow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) left: Left,
    pub(crate) wait: Duration,
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Requests,
    Tokens,
}

/// The buckets of all keys.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    buckets: Mutex<HashMap<String, Account>>,
}

#[derive(Debug)]
struct Account {
    requests: Bucket,
    tokens: Bucket,
}

/// Keys told apart; those that come later share one account.
const MAX_KEYS: usize = 256;
const SHARED: &str = "";

impl Accounts {
    /// Takes one request of `tokens` out of the account of `key`, or says when there will be room.
    pub(crate) fn admit(&self, key: &str, rates: Rates, tokens: u64) -> Result<Left, Refused> {
        if rates == Rates::default() {
            return Ok(Left::default());
        }
        let now = Instant::now();
        let mut accounts = self.lock();
        let account = account(&mut accounts, key);
        let wait = [
            (Limit::Requests, rates.requests.map(|limit| account.requests.wait(limit, 1, now))),
            (Limit::Tokens, rates.tokens.map(|limit| account.tokens.wait(limit, tokens, now))),
        ];
        let longest = wait
            .into_iter()
            .filter_map(|(limit, wait)| Some((wait.filter(|wait| !wait.is_zero())?, limit)))
            .max_by_key(|(wait, _)| *wait);
        if longest.is_none() {
            account.requests.take(1);
            account.tokens.take(i64::try_from(tokens).unwrap_or(i64::MAX));
        }
        let left = Left {
            requests: rates.requests.map(|limit| account.requests.gauge(limit)),
            tokens: rates.tokens.map(|limit| account.tokens.gauge(limit)),
        };
        match longest {
            None => Ok(left),
            Some((wait, limit)) => Err(Refused { left, wait, limit }),
        }
    }

    /// Corrects what was taken for a request whose real number of tokens is known now.
    pub(crate) fn settle(&self, key: &str, taken: u64, real: u64) {
        let difference =
            i64::try_from(real).unwrap_or(i64::MAX) - i64::try_from(taken).unwrap_or(i64::MAX);
        account(&mut self.lock(), key).tokens.take(difference);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        // Buckets stay meaningful whatever a panicking holder did to them.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn account<'a>(accounts: &'a mut HashMap<String, Account>, key: &str) -> &'a mut Account {
    let known = accounts.contains_key(key) || accounts.len() < MAX_KEYS;
    let key = if known { key } else { SHARED };
    accounts
        .entry(key.to_owned())
        .or_insert_with(|| Account { requests: Bucket::new(), tokens: Bucket::new() })
}

/// What was taken and has not yet flowed back. Counting what is missing rather than what is there makes a new bucket
/// a full one, whatever its limit is or becomes.
#[derive(Debug)]
struct Bucket {
    missing: f64,
    at: Instant,
}

impl Bucket {
    fn new() -> Self {
        Self { missing: 0.0, at: Instant::now() }
    }

    /// How long until `amount` can be taken.
    fn wait(&mut self, limit: u32, amount: u64, now: Instant) -> Duration {
        let (limit, per_second) = (f64::from(limit), f64::from(limit) / 60.0);
        let flowed = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        self.missing = (self.missing - flowed).max(0.0);
        self.at = now;
        // More than fits is let in when the bucket is full.
        let room = limit - self.missing;
        let lacking = (amount as f64).min(limit) - room;
        // A little more than nothing is only the rounding of the sum before.
        if lacking <= 1e-6 { Duration::ZERO } else { seconds(lacking / per_second) }
    }

    fn take(&mut self, amount: i64) {
        self.missing = (self.missing + amount as f64).max(0.0);
    }

    fn gauge(&self, limit: u32) -> Gauge {
        let room = (f64::from(limit) - self.missing).max(0.0);
        let reset = seconds(self.missing / (f64::from(limit) / 60.0));
        Gauge { limit, remaining: room as u64, reset }
    }
}

/// Seconds of a debt, which may have any size, rounded up to what headers can say.
fn seconds(seconds: f64) -> Duration {
    Duration::from_millis((seconds.clamp(0.0, 86_400.0) * 1000.0).ceil() as u64)
}

/// What is left, as a provider of this dialect says it.
pub(crate) fn headers(dialect: Dialect, left: &Left, now_s: u64) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    let names = match dialect {
        Dialect::Anthropic => [ANTHROPIC_REQUESTS, ANTHROPIC_TOKENS],
        Dialect::OpenAi | Dialect::Responses | Dialect::Ollama => [REQUESTS, TOKENS],
    };
    for (gauge, [limit, remaining, reset]) in [left.requests, left.tokens].into_iter().zip(names) {
        let Some(gauge) = gauge else { continue };
        let then = match dialect {
            Dialect::Anthropic => rfc3339(now_s.saturating_add(whole_seconds(gauge.reset))),
            Dialect::OpenAi | Dialect::Responses | Dialect::Ollama => spoken(gauge.reset),
        };
        headers.push((limit, gauge.limit.to_string()));
        headers.push((remaining, gauge.remaining.to_string()));
        headers.push((reset, then));
    }
    headers
}

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
const ANTHROPIC_REQUESTS: [&str; 3] = [
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
];
const ANTHROPIC_TOKENS: [&str; 3] = [
    "anthropic-ratelimit-tokens-limit",
    "anthropic-ratelimit-tokens-remaining",
    "anthropic-ratelimit-tokens-reset",
];

/// Rounded up, as `retry-after` has to be.
pub(crate) fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// As OpenAI writes durations: `6m0s`, `1.5s`, `20ms`.
fn spoken(duration: Duration) -> String {
    let (seconds, ms) = (duration.as_secs(), duration.subsec_millis());
    match (seconds / 60, seconds) {
        (0, 0) => format!("{ms}ms"),
        (0, _) => format!("{}s", duration.as_secs_f64()),
        (minutes, _) => format!("{minutes}m{}s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn rates(requests: u32, tokens: u32) -> Rates {
        Rates { requests: Some(requests), tokens: Some(tokens) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_holds_a_minute_and_fills_evenly() {
        let accounts = Accounts::default();
        let rates = Rates { requests: Some(60), tokens: None };
        for left in (0..60).rev() {
            assert_eq!(accounts.admit("a", rates, 0).unwrap().requests.unwrap().remaining, left);
        }
        let refused = accounts.admit("a", rates, 0).unwrap_err();
        assert_eq!((refused.limit, refused.wait), (Limit::Requests, MS(1000)));
        assert!(accounts.admit("b", rates, 0).is_ok(), "another account");
        tokio::time::advance(MS(2500)).await;
        let admitted = (0..5).filter(|_| accounts.admit("a", rates, 0).is_ok()).count();
        assert_eq!(admitted, 2);
        tokio::time::advance(MS(600_000)).await;
        assert_eq!(accounts.admit("a", rates, 0).unwrap().requests.unwrap().remaining, 59);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_takes_nothing_and_names_the_longer_wait() {
        let accounts = Accounts::default();
        accounts.admit("a", rates(60, 600), 600).unwrap();
        for _ in 0..100 {
            let refused = accounts.admit("a", rates(60, 600), 100).unwrap_err();
            assert_eq!((refused.limit, refused.wait), (Limit::Tokens, MS(10_000)));
            assert_eq!(refused.left.requests.unwrap().remaining, 59);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_the_bucket_is_let_in_when_it_is_full() {
        let accounts = Accounts::default();
        let rates = Rates { requests: None, tokens: Some(600) };
        accounts.admit("a", rates, 1200).unwrap();
        let refused = accounts.admit("a", rates, 1).unwrap_err();
        assert_eq!(refused.wait, MS(60_100));
        assert_eq!(refused.left.tokens.unwrap().remaining, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn settling_gives_back_or_takes_more() {
        let accounts = Accounts::default();
        let rates = Rates { requests: None, tokens: Some(600) };
        accounts.admit("a", rates, 500).unwrap();
        accounts.settle("a", 500, 100);
        assert_eq!(accounts.admit("a", rates, 0).unwrap().tokens.unwrap().remaining, 500);
        accounts.settle("a", 0, 200);
        assert_eq!(accounts.admit("a", rates, 0).unwrap().tokens.unwrap().remaining, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_a_bound_on_keys() {
        let accounts = Accounts::default();
        for number in 0..2 * MAX_KEYS {
            accounts.admit(&number.to_string(), rates(1000, 1000), 1).unwrap();
        }
        assert!(accounts.lock().len() <= MAX_KEYS + 1);
    }

    #[test]
    fn headers_are_worded_as_the_dialect_has_them() {
        let gauge = |reset| Some(Gauge { limit: 60, remaining: 7, reset });
        let left = Left { requests: gauge(MS(1500)), tokens: gauge(MS(360_000)) };
        let texts = |dialect| {
            headers(dialect, &left, 0).iter().map(|(_, text)| text.clone()).collect::<Vec<_>>()
        };
        assert_eq!(texts(Dialect::OpenAi), ["60", "7", "1.5s", "60", "7", "6m0s"]);
        let anthropic = headers(Dialect::Anthropic, &left, 0);
        assert_eq!(anthropic[2].0, "anthropic-ratelimit-requests-reset");
        assert_eq!(anthropic[2].1, "1970-01-01T00:00:02Z");
        assert_eq!(spoken(MS(20)), "20ms");
        assert!(headers(Dialect::OpenAi, &Left::default(), 0).is_empty());
    }

    #[test]
    fn keys_are_written_with_their_state() {
        let rule = |text: &str| text.parse::<KeyRule>();
        let dead = KeyRule { key: "sk=1".to_owned(), state: KeyState::Dead };
        assert_eq!(rule("sk=1=dead"), Ok(dead));
        for text in ["sk", "=ok", "sk=gone"] {
            assert!(rule(text).unwrap_err().to_string().ends_with(text));
        }
        assert!(KeyState::ALL.iter().all(|state| state.to_string().parse() == Ok(*state)));
    }
}
