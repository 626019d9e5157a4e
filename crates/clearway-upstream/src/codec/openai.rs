//! Chat completions: the dialect that OpenAI speaks and many others imitate.
//!
//! [`request`] writes a request's body, [`stream`] reads the events of a streamed answer, and
//! [`answer`] reads the answer of a provider that does not stream although it was asked to.

use serde_json::Value;

use super::Usage;

pub mod answer;
pub mod request;
pub mod stream;

impl Usage {
    /// Reads a `usage` object; `None` when it is nothing of the kind.
    fn read(json: &str) -> Option<Self> {
        let usage: Value = serde_json::from_str(json).ok()?;
        let count = |name: &str| usage[name].as_u64();
        let detail = |group: &str, name: &str| usage[group][name].as_u64().unwrap_or(0);
        // Zero is a count; absent is not.
        let (input, output) = (count("prompt_tokens"), count("completion_tokens"));
        if input.is_none() && output.is_none() {
            return None;
        }
        Some(Self {
            input_tokens: input.unwrap_or(0),
            output_tokens: output.unwrap_or(0),
            cached_tokens: detail("prompt_tokens_details", "cached_tokens"),
            reasoning_tokens: detail("completion_tokens_details", "reasoning_tokens"),
        })
    }
}
