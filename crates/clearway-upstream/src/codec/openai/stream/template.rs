//! The chunk before, with a hole where its text was.
//!
//! Most providers send the same document token after token and change nothing but the text. If what
//! is before and behind the text is byte for byte what it was, and the text needs no unescaping, then
//! the chunk means the same with another text, and comparing is several times faster than parsing.

use std::ops::Range;

/// What a chunk looks like around its only piece of text. Empty until something is learnt.
#[derive(Debug, Default)]
pub(super) struct Template {
    before: Vec<u8>,
    behind: Vec<u8>,
    /// The text was thinking, not the answer.
    thinking: bool,
    misses: u8,
}

impl Template {
    /// The text in `data`, and whether it is thinking, when `data` fits.
    pub(super) fn text<'a>(&self, data: &'a [u8]) -> Option<(&'a str, bool)> {
        if self.before.is_empty() {
            return None;
        }
        let text = data.strip_prefix(&self.before[..])?.strip_suffix(&self.behind[..])?;
        let is_plain = |&byte: &u8| byte >= b' ' && byte != b'"' && byte != b'\\';
        if text.is_empty() || !text.iter().all(is_plain) {
            return None;
        }
        Some((std::str::from_utf8(text).ok()?, self.thinking))
    }

    /// Takes `data` as the pattern for what follows; `text` is where its text lies, between quotes.
    pub(super) fn learn(&mut self, data: &[u8], text: Range<usize>, thinking: bool) {
        // A provider that varies something else each time is not worth the copying.
        if self.misses == MOST_MISSES || data.len() > MOST_BYTES {
            return;
        }
        self.misses += 1;
        self.before.clear();
        self.before.extend_from_slice(&data[..text.start]);
        self.behind.clear();
        self.behind.extend_from_slice(&data[text.end..]);
        self.thinking = thinking;
    }

    /// It fitted: it is worth learning again when it does not any more.
    pub(super) const fn praise(&mut self) {
        self.misses = 0;
    }

    /// Never fits, so that everything is parsed.
    pub(super) fn disabled() -> Self {
        Self { misses: MOST_MISSES, ..Self::default() }
    }
}

const MOST_MISSES: u8 = 8;
const MOST_BYTES: usize = 4096;
