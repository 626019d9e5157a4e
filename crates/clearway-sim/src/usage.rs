//! Token counts as providers report them.

use serde_json::{Value, json};

use crate::chat::Chat;
use crate::reply::Reply;

pub(crate) struct Usage {
    prompt: usize,
    completion: u32,
}

impl Usage {
    pub(crate) fn of(chat: &Chat, reply: &Reply) -> Self {
        Self { prompt: chat.prompt_tokens(), completion: reply.pieces.len() }
    }

    pub(crate) fn value(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion as usize,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    }

    pub(crate) fn json(&self) -> String {
        self.value().to_string()
    }
}
