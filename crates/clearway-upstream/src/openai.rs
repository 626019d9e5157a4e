//! The dialect that OpenAI speaks and many others imitate. Pure functions: bytes in, values out.
//!
//! [`request`] writes a request's body, [`stream`] reads the events of a streamed answer,
//! [`answer`] reads the answer of a provider that does not stream although it was asked to, and
//! [`failure`] says what an error answer means.
//!
//! **Invariant:** nothing a provider sends makes these functions panic or allocate beyond its size,
//! and no text from a provider leaves them unscrubbed in an error.

pub mod answer;
pub mod failure;
pub mod request;
pub mod stream;

/// A piece of a model's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatEvent {
    /// More of the answer's text.
    Text(String),
    /// More of what the model thinks before it answers, where it shows that.
    Reasoning(String),
    /// More of the tool call number `index`. The first piece has `id` and `name`, the `arguments`
    /// of all pieces joined are JSON. Nothing may be executed before [`ChatEvent::Finish`].
    ToolCall { index: u32, id: Option<String>, name: Option<String>, arguments: String },
    /// The answer is whole. Always last, and only ever sent for a whole answer.
    Finish { reason: FinishReason, usage: Option<Usage> },
}

/// Why the model stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    /// The limit of tokens was reached.
    Length,
    ToolCalls,
    ContentFilter,
    /// A word of the provider's own.
    Other(String),
}

impl FinishReason {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Other(word) => word,
        }
    }

    fn read(word: &str) -> Self {
        match word {
            "stop" | "eos" | "end_turn" => Self::Stop,
            "length" | "max_tokens" => Self::Length,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "content_filter" => Self::ContentFilter,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// What the provider counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Of the input, those that were cheap because the provider had them.
    pub cached_tokens: u64,
    /// Of the output, those that nobody sees.
    pub reasoning_tokens: u64,
}

impl Usage {
    /// Reads a `usage` object; `None` when it is nothing of the kind.
    fn read(json: &str) -> Option<Self> {
        let usage: serde_json::Value = serde_json::from_str(json).ok()?;
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
