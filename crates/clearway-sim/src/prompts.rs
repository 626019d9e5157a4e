//! What the simulator was asked lately: behind `GET /prompts`, for tests that want to know what a model got to read.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::chat::Chat;

/// Requests that are kept, and bytes of them together; the oldest go first.
const MOST: usize = 256;
const BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
pub(crate) struct Prompts {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    all: VecDeque<(Value, usize)>,
    bytes: usize,
}

impl Prompts {
    pub(crate) fn note(&self, chat: &Chat) {
        let bytes: usize = chat.messages.iter().map(|message| message.content.len() + 64).sum();
        if bytes > BYTES {
            return;
        }
        let message = |message: &crate::chat::Message| json!({"role": message.role, "content": message.content});
        let messages: Vec<Value> = chat.messages.iter().map(message).collect();
        let shown = json!({"model": chat.base_model(), "messages": messages});
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.all.push_back((shown, bytes));
        kept.bytes += bytes;
        while kept.all.len() > MOST || kept.bytes > BYTES {
            let Some((_, oldest)) = kept.all.pop_front() else { break };
            kept.bytes -= oldest;
        }
    }

    /// Oldest first.
    pub(crate) fn to_json(&self) -> Value {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<&Value> = kept.all.iter().map(|(shown, _)| shown).collect();
        json!({ "prompts": all })
    }

    pub(crate) fn reset(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }
}
