//! What can be changed while the provider runs: by [`Sim::change`](crate::Sim::change) or by `POST /control`.
//!
//! A request works with the settings that held when it arrived. A change is made whole or, if anything in it cannot
//! be meant, not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::account::{KeyState, Rates};
use crate::fault::FaultSpec;
use crate::options::{MAX_TOKENS, Options};

/// The settings that hold now. They begin as the options say.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// The fault of requests that do not choose one themselves.
    pub fault: Option<FaultSpec>,
    /// The share of requests that get it.
    pub fault_rate: f64,
    /// Down or not; without a word here the schedule of the options decides.
    pub outage: Option<bool>,
    /// What every request meets while the provider is down.
    pub outage_fault: FaultSpec,
    /// Above so many requests at once the answer is 429.
    pub max_concurrent: Option<u32>,
    /// Requests per minute and key.
    pub rpm: Option<u32>,
    /// Tokens per minute and key.
    pub tpm: Option<u32>,
    /// Time to the first token.
    pub ttft: Duration,
    /// Time between two tokens.
    pub token_interval: Duration,
    /// Replies have exactly so many tokens.
    pub tokens: Option<u32>,
    /// How keys are treated. Any other key is good.
    pub keys: BTreeMap<String, KeyState>,
}

/// Keys that can be given a state.
const MAX_KEYS: usize = 1_024;
const DAY: Duration = Duration::from_secs(86_400);

impl Control {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            fault: options.fault,
            fault_rate: options.fault_rate,
            outage: None,
            outage_fault: options.outage_fault,
            max_concurrent: options.max_concurrent,
            rpm: options.rpm,
            tpm: options.tpm,
            ttft: options.ttft,
            token_interval: options.token_interval,
            tokens: options.tokens,
            keys: options.keys.iter().map(|rule| (rule.key.clone(), rule.state)).collect(),
        }
    }

    /// With every number in its range, as [`Options`] are.
    pub(crate) fn clamped(mut self) -> Self {
        self.fault_rate =
            if self.fault_rate.is_nan() { 0.0 } else { self.fault_rate.clamp(0.0, 1.0) };
        self.ttft = self.ttft.min(DAY);
        self.token_interval = self.token_interval.min(DAY);
        self.tokens = self.tokens.map(|tokens| tokens.min(MAX_TOKENS));
        for limit in [&mut self.max_concurrent, &mut self.rpm, &mut self.tpm] {
            *limit = limit.map(|limit| limit.max(1));
        }
        while self.keys.len() > MAX_KEYS {
            self.keys.pop_last();
        }
        self
    }

    pub(crate) fn rates(&self) -> Rates {
        Rates { requests: self.rpm, tokens: self.tpm }
    }

    /// The shape of `GET /control`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let keys: BTreeMap<_, _> =
            self.keys.iter().map(|(key, state)| (key.as_str(), state.name())).collect();
        json!({
            "fault": self.fault.map(|fault| fault.to_string()),
            "fault_rate": self.fault_rate,
            "outage": self.outage,
            "outage_fault": self.outage_fault.to_string(),
            "concurrency": self.max_concurrent,
            "rpm": self.rpm,
            "tpm": self.tpm,
            "ttft_ms": ms(self.ttft),
            "token_interval_ms": ms(self.token_interval),
            "tokens": self.tokens,
            "keys": keys,
        })
    }

    /// The settings after the changes in `body`: its members replace those of the same name, and `null` takes them away.
    pub(crate) fn changed(&self, body: &[u8]) -> Result<Self, String> {
        let changes: Map<String, Value> = serde_json::from_slice(body)
            .map_err(|error| format!("the body is no JSON object: {error}"))?;
        let mut control = self.clone();
        for (name, value) in &changes {
            control.change(name, value).ok_or_else(|| complaint(name, value))?;
        }
        Ok(control)
    }

    fn change(&mut self, name: &str, value: &Value) -> Option<()> {
        match name {
            "fault" => self.fault = nullable(value, fault)?,
            "fault_rate" => {
                self.fault_rate = value.as_f64().filter(|rate| (0.0..=1.0).contains(rate))?;
            }
            "outage" => self.outage = nullable(value, Value::as_bool)?,
            "outage_fault" => self.outage_fault = fault(value)?,
            "concurrency" | "max_concurrent" => self.max_concurrent = nullable(value, limit)?,
            "rpm" => self.rpm = nullable(value, limit)?,
            "tpm" => self.tpm = nullable(value, limit)?,
            "ttft_ms" => self.ttft = duration(value)?,
            "token_interval_ms" => self.token_interval = duration(value)?,
            "tokens" => self.tokens = nullable(value, tokens)?,
            "keys" => {
                for (key, state) in value.as_object()? {
                    self.keys.insert(key.clone(), state.as_str()?.parse().ok()?);
                }
                if self.keys.len() > MAX_KEYS {
                    return None;
                }
            }
            _ => return None,
        }
        Some(())
    }
}

fn complaint(name: &str, value: &Value) -> String {
    let wanted = match name {
        "fault" => "a fault or null",
        "fault_rate" => "a fraction from 0 to 1",
        "outage" => "true, false or null",
        "outage_fault" => "a fault",
        "concurrency" | "max_concurrent" | "rpm" | "tpm" => "a whole number above 0, or null",
        "ttft_ms" | "token_interval_ms" => "whole milliseconds of at most a day",
        "tokens" => "a whole number up to 1000000, or null",
        "keys" => "an object of keys with ok, dead, limited or quota, and not too many",
        _ => return format!("there is no setting {name}"),
    };
    format!("{name} is {wanted}: {value}")
}

fn nullable<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { read(value).map(Some) }
}

fn fault(value: &Value) -> Option<FaultSpec> {
    value.as_str()?.parse().ok()
}

fn limit(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok().filter(|limit| *limit > 0)
}

fn tokens(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok().filter(|tokens| *tokens <= MAX_TOKENS)
}

fn duration(value: &Value) -> Option<Duration> {
    Some(Duration::from_millis(value.as_u64()?)).filter(|duration| *duration <= DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control::new(&Options::default())
    }

    #[test]
    fn what_is_shown_can_be_sent_back() {
        let body = json!({
            "fault": "stall:3", "fault_rate": 0.5, "outage": true, "outage_fault": "silent",
            "concurrency": 7, "rpm": 60, "tpm": null, "ttft_ms": 20, "token_interval_ms": 1,
            "tokens": 5, "keys": {"a": "dead"},
        });
        let changed = control().changed(body.to_string().as_bytes()).unwrap();
        assert_eq!((changed.outage, changed.rpm, changed.tpm), (Some(true), Some(60), None));
        assert_eq!(changed.outage_fault.to_string(), "no_answer");
        let shown = changed.to_json().to_string();
        assert_eq!(control().changed(shown.as_bytes()), Ok(changed));
    }

    #[test]
    fn a_change_that_cannot_be_meant_changes_nothing_and_is_named() {
        for (body, complaint) in [
            (r#"{"rpm": 0}"#, "rpm is a whole number above 0, or null: 0"),
            (r#"{"fault": "stal"}"#, "fault is a fault or null: \"stal\""),
            (r#"{"fault_rate": 2}"#, "fault_rate is a fraction"),
            (r#"{"outage": 1}"#, "outage is true, false or null"),
            (r#"{"keys": {"a": "gone"}}"#, "keys is an object"),
            (r#"{"ttft_ms": 86400001}"#, "ttft_ms is whole milliseconds"),
            (r#"{"tokens": 1000001}"#, "tokens is a whole number"),
            (r#"{"speed": 1}"#, "there is no setting speed"),
            ("[]", "the body is no JSON object"),
        ] {
            let error = control().changed(body.as_bytes()).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn clamping_makes_every_number_usable() {
        let wild = Control {
            fault_rate: f64::NAN,
            ttft: Duration::MAX,
            tokens: Some(u32::MAX),
            rpm: Some(0),
            keys: (0..2000).map(|key| (key.to_string(), KeyState::Ok)).collect(),
            ..control()
        };
        let clamped = wild.clamped();
        assert_eq!((clamped.fault_rate, clamped.ttft, clamped.rpm), (0.0, DAY, Some(1)));
        assert_eq!((clamped.tokens, clamped.keys.len()), (Some(MAX_TOKENS), MAX_KEYS));
    }
}
