//! JSON documents, one a line, as they come off a socket.
//!
//! **Invariants:** the lines do not depend on how the bytes were cut; memory is bounded by the limit
//! whatever the peer sends.
//!
//! Not here: what a line means (`codec`).

use std::ops::Range;

use memchr::memchr;

use crate::sse::TooLarge;

/// Gives the lines of a stream that are not blank.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// What was fed last, and before that what had not been consumed by then.
    chunk: Vec<u8>,
    /// Everything before this is consumed.
    at: usize,
    /// The beginning of a line whose end has not arrived.
    cut_line: Vec<u8>,
    /// `cut_line` was given out; the next line starts another.
    dispatched: bool,
    broken: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_LINE)
    }
}

impl Decoder {
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            chunk: Vec::new(),
            at: 0,
            cut_line: Vec::new(),
            dispatched: false,
            broken: false,
        }
    }

    /// Takes the next bytes. Usually all lines of the bytes before have been taken out by then.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.chunk.drain(..self.at);
        self.chunk.extend_from_slice(chunk);
        self.at = 0;
    }

    /// The next line, without its end; `None` when more bytes are needed.
    ///
    /// # Errors
    ///
    /// When a line outgrows the limit. The decoder stays in this state.
    #[expect(clippy::should_implement_trait, reason = "it lends, so it cannot be an iterator")]
    pub fn next(&mut self) -> Result<Option<&[u8]>, TooLarge> {
        while let Some(line) = self.advance()? {
            if !self.line(&line).is_empty() {
                return Ok(Some(self.line(&line)));
            }
        }
        Ok(None)
    }

    /// The line that the end of the bytes left without its own. Whether what is there is whole is
    /// for the reader of the line to judge.
    ///
    /// # Errors
    ///
    /// Like [`Decoder::next`].
    pub fn finish(&mut self) -> Result<Option<&[u8]>, TooLarge> {
        self.feed(b"\n");
        self.next()
    }
    /// Consumes a line, or all there is.
    fn advance(&mut self) -> Result<Option<Line>, TooLarge> {
        if std::mem::take(&mut self.dispatched) {
            self.cut_line.clear();
        }
        let rest = &self.chunk[self.at..];
        let found = memchr(b'\n', rest);
        let length = found.unwrap_or(rest.len());
        if self.broken || self.cut_line.len() + length > self.limit {
            self.broken = true;
            return Err(TooLarge { limit: self.limit });
        }
        let range = self.at..self.at + length;
        if found.is_none() {
            self.cut_line.extend_from_slice(rest);
            self.at = range.end;
            return Ok(None);
        }
        self.at = range.end + 1;
        if self.cut_line.is_empty() {
            return Ok(Some(Line::Chunk(range)));
        }
        self.cut_line.extend_from_slice(&self.chunk[range]);
        self.dispatched = true;
        Ok(Some(Line::Cut))
    }

    fn line(&self, line: &Line) -> &[u8] {
        match line {
            Line::Chunk(range) => self.chunk[range.clone()].trim_ascii(),
            Line::Cut => self.cut_line.trim_ascii(),
        }
    }
}

/// Where a line is.
enum Line {
    Chunk(Range<usize>),
    Cut,
}

/// As much as an event may have: tool calls come in one piece here.
const MAX_LINE: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, bool) {
        let mut decoder = Decoder::new(limit);
        let mut lines = Vec::new();
        for chunk in chunks {
            decoder.feed(chunk);
            while let Ok(Some(line)) = decoder.next() {
                lines.push(line.to_vec());
            }
        }
        match decoder.finish() {
            Ok(last) => {
                lines.extend(last.map(<[u8]>::to_vec));
                (lines, false)
            }
            Err(TooLarge { .. }) => (lines, true),
        }
    }

    #[test]
    fn lines_end_in_lf_or_crlf_and_blank_ones_are_nothing() {
        let (lines, too_large) = lines(16, [&b"{\"a\":1}\r\n\n \n7\nrest"[..]]);
        assert_eq!(lines, [&b"{\"a\":1}"[..], b"7", b"rest"]);
        assert!(!too_large);
    }

    #[test]
    fn an_endless_line_is_refused_for_good() {
        let mut decoder = Decoder::new(8);
        decoder.feed(b"ok\n01234");
        assert_eq!(decoder.next(), Ok(Some(&b"ok"[..])));
        assert_eq!(decoder.next(), Ok(None));
        decoder.feed(b"5678");
        assert_eq!(decoder.next(), Err(TooLarge { limit: 8 }));
        decoder.feed(b"\nok\n");
        assert_eq!(decoder.next(), Err(TooLarge { limit: 8 }));
    }

    #[test]
    fn bytes_may_arrive_before_the_lines_are_taken() {
        let mut decoder = Decoder::default();
        decoder.feed(b"a\nb");
        decoder.feed(b"c\n");
        assert_eq!(decoder.next(), Ok(Some(&b"a"[..])));
        assert_eq!(decoder.next(), Ok(Some(&b"bc"[..])));
        assert_eq!(decoder.next(), Ok(None));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(text in "[a\n\r ]{0,40}", size in 1_usize..9) {
            let whole = lines(6, [text.as_bytes()]);
            prop_assert_eq!(lines(6, text.as_bytes().chunks(size)), whole);
        }
    }
}
