//! Anthropic's Messages: turns of typed blocks, and a system prompt beside them.
//!
//! [`request`] writes a request's body, [`stream`] reads the events of a streamed answer, and
//! [`answer`] reads the answer of a provider that does not stream although it was asked to.

use serde_json::Value;

use super::Usage;

pub mod answer;
pub mod request;
pub mod stream;

/// What has been counted so far: a stream counts its input at its beginning and its output at its
/// end, and each count is a total.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Without what was or is now cached.
    input: Option<u64>,
    cache_read: u64,
    cache_written: u64,
    output: Option<u64>,
    thinking: u64,
}

impl Counts {
    fn update(&mut self, usage: &Value) {
        let count = |name: &str| usage[name].as_u64();
        self.input = count("input_tokens").or(self.input);
        self.output = count("output_tokens").or(self.output);
        self.cache_read = count("cache_read_input_tokens").unwrap_or(self.cache_read);
        self.cache_written = count("cache_creation_input_tokens").unwrap_or(self.cache_written);
        let thinking = usage["output_tokens_details"]["thinking_tokens"].as_u64();
        self.thinking = thinking.unwrap_or(self.thinking);
    }

    fn usage(&self) -> Option<Usage> {
        if self.input.is_none() && self.output.is_none() {
            return None;
        }
        let cached = self.cache_read.saturating_add(self.cache_written);
        Some(Usage {
            input_tokens: self.input.unwrap_or(0).saturating_add(cached),
            output_tokens: self.output.unwrap_or(0),
            cached_tokens: self.cache_read,
            reasoning_tokens: self.thinking,
        })
    }
}
