//! What every attempt cost, whoever pays in the end.
//!
//! One [`UsageRow`] leaves for each attempt that reached a provider, also for those that failed or
//! were cancelled, at the moment the attempt lets go of its slot.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::call::{Class, Phase};
use crate::codec::Usage;

/// Is told of every attempt when it is over. Called from `drop`, so it must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    fn attempt(&self, row: &UsageRow);
}

/// One attempt at one route.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    /// Of the call; the provider was told it with the number behind it.
    pub call: String,
    /// From 1 within its call.
    pub number: u32,
    pub provider: Arc<str>,
    /// Where that is.
    pub endpoint: Arc<str>,
    /// What the provider calls the model.
    pub model: Arc<str>,
    /// The key's label, never the key.
    pub key: Arc<str>,
    pub class: Class,
    /// How far it came.
    pub phase: Phase,
    /// `ok`, or the stable code of what ended it.
    pub outcome: &'static str,
    /// The HTTP status, if there was one.
    pub status: Option<u16>,
    pub usage: Usage,
    pub source: UsageSource,
    /// What was configured when it was made.
    pub price: Option<Price>,
    /// By that; `None` where the model has none.
    pub cost_micros: Option<u64>,
    /// From the admission to the end.
    pub elapsed: Duration,
    /// From the admission to the first output.
    pub first_output: Option<Duration>,
}

impl UsageRow {
    pub fn is_ok(&self) -> bool {
        self.outcome == OK
    }
}

/// Where the figures of a row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UsageSource {
    /// The provider counted.
    Provider,
    /// The answer broke off: the output so far, estimated from its length.
    Partial,
    /// The answer is whole, but the provider did not count: estimated from lengths.
    Estimated,
    /// Nothing came back; providers do not charge for that.
    None,
}

impl UsageSource {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Partial => "partial",
            Self::Estimated => "estimated",
            Self::None => "none",
        }
    }
}

/// What a model's tokens cost, in millionths of a currency unit per million tokens: `$0.25 per
/// million` is 250 000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub input: u64,
    /// Input that the provider had in its cache.
    pub cached_input: u64,
    pub output: u64,
}

impl Price {
    /// The cost of a call in millionths of the currency unit, rounded up.
    pub fn cost_micros(&self, usage: &Usage) -> u64 {
        let fresh = usage.input_tokens.saturating_sub(usage.cached_tokens);
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let total = part(fresh, self.input)
            + part(usage.cached_tokens.min(usage.input_tokens), self.cached_input)
            + part(usage.output_tokens, self.output);
        u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// About four bytes make a token, in most languages and vocabularies.
pub(crate) const fn estimate_tokens(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(4)
}

pub(crate) const OK: &str = "ok";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_input_is_priced_apart_and_fractions_round_up() {
        let price = Price { input: 250_000, cached_input: 25_000, output: 2_000_000 };
        let usage = Usage {
            input_tokens: 1000,
            output_tokens: 10,
            cached_tokens: 400,
            reasoning_tokens: 5,
        };
        // 600 * 0.25 + 400 * 0.025 + 10 * 2 = 180 micros.
        assert_eq!(price.cost_micros(&usage), 180);
        let one = Usage { input_tokens: 1, ..Usage::default() };
        assert_eq!(price.cost_micros(&one), 1);
        let absurd = Usage { input_tokens: u64::MAX, output_tokens: u64::MAX, ..Usage::default() };
        assert_eq!(price.cost_micros(&absurd), u64::MAX);
    }
}
