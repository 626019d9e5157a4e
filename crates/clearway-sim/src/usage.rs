//! Token counts. How they are reported is the dialect's business.

use crate::chat::Chat;
use crate::reply::Reply;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    /// Thoughts included.
    pub(crate) completion: u32,
    pub(crate) thoughts: u32,
}

impl Usage {
    pub(crate) fn of(chat: &Chat, reply: &Reply) -> Self {
        let thoughts = reply.thoughts.as_ref().map_or(0, |pieces| pieces.len());
        let completion = thoughts.saturating_add(reply.pieces.len());
        Self { prompt: chat.prompt_tokens(), completion, thoughts }
    }

    pub(crate) fn total(&self) -> usize {
        self.prompt + self.completion as usize
    }
}
