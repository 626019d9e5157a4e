//! Dividing a text into chunks: at headings, then between sentences or lines, within a budget of tokens.
//!
//! What must stay true: a chunk's content is exactly the characters of its span, so that a citation
//! can be held against the text; every word outside headings is in some chunk; no chunk is over budget.

use std::ops::Range;
use std::sync::Arc;

use unicode_segmentation::UnicodeSegmentation as _;

use crate::document::{Chunk, ChunkHash, count_tokens};
use crate::outline::{Block, BlockKind};

/// How texts are divided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkOptions {
    /// No chunk has more tokens.
    pub max_tokens: u32,
    /// So many tokens of a chunk's end are repeated at the start of the next one of its section.
    pub overlap_tokens: u32,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { max_tokens: 320, overlap_tokens: 40 }
    }
}

/// The chunks of a text whose blocks are known.
pub fn chunk(doc_id: &str, text: &str, blocks: &[Block], options: &ChunkOptions) -> Vec<Chunk> {
    let options = ChunkOptions {
        max_tokens: options.max_tokens.max(1),
        overlap_tokens: options.overlap_tokens.min(options.max_tokens / 2),
    };
    let mut maker = Maker { doc_id, text, options, counted: (0, 0), chunks: Vec::new() };
    let mut path: Vec<(u8, String)> = Vec::new();
    let mut units: Vec<Unit> = Vec::new();
    // A heading with nothing below it is all that is said about its subject.
    let mut bare: Option<Unit> = None;
    for block in blocks {
        match block.kind {
            BlockKind::Heading { level } => {
                maker.section(
                    &path,
                    units.drain(..),
                    bare.take().filter(|_| !has_room_below(&path, level)),
                );
                path.retain(|(above, _)| *above < level);
                let words =
                    text[block.span.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
                bare = Some(Unit::new(text, block.span.clone(), block.page));
                path.push((level, words));
            }
            BlockKind::Paragraph => {
                bare = None;
                let words = &text[block.span.clone()];
                units.extend(words.split_sentence_bound_indices().map(|(at, sentence)| {
                    let start = block.span.start + at;
                    Unit::new(text, start..start + sentence.len(), block.page)
                }));
            }
            BlockKind::Verbatim => {
                bare = None;
                let mut start = block.span.start;
                for line in text[block.span.clone()].split_inclusive('\n') {
                    units.push(Unit::new(text, start..start + line.len(), block.page));
                    start += line.len();
                }
            }
        }
    }
    maker.section(&path, units.drain(..), bare);
    maker.chunks
}

/// Whether the next heading lies below the last one, which then has something below it.
fn has_room_below(path: &[(u8, String)], next: u8) -> bool {
    path.last().is_some_and(|(level, _)| *level < next)
}

/// What is never divided unless it is over budget by itself: a sentence or a line.
#[derive(Clone, Debug)]
struct Unit {
    span: Range<usize>,
    tokens: u32,
    page: Option<u32>,
}

impl Unit {
    fn new(text: &str, span: Range<usize>, page: Option<u32>) -> Self {
        let tokens = count_tokens(&text[span.clone()]);
        Self { span, tokens, page }
    }
}

struct Maker<'a> {
    doc_id: &'a str,
    text: &'a str,
    options: ChunkOptions,
    /// A byte offset and the characters before it: spans grow, so counting starts there.
    counted: (usize, usize),
    chunks: Vec<Chunk>,
}

impl Maker<'_> {
    fn section(
        &mut self,
        path: &[(u8, String)],
        units: impl Iterator<Item = Unit>,
        bare: Option<Unit>,
    ) {
        let mut taken: Vec<Unit> = Vec::new();
        let mut tokens = 0_u32;
        // Whether `taken` holds more than the end of the chunk before.
        let mut fresh = false;
        let (text, max) = (self.text, self.options.max_tokens);
        let units = units.chain(bare).filter(|unit| unit.tokens > 0);
        for unit in units.flat_map(|unit| divided(text, unit, max)) {
            // Marks between two units are in the chunk, too.
            let between =
                taken.last().map(|last: &Unit| count_tokens(&text[last.span.end..unit.span.start]));
            let cost = unit.tokens.saturating_add(between.unwrap_or(0));
            if fresh && tokens.saturating_add(cost) > max {
                self.push(path, &taken);
                let room = max.saturating_sub(cost);
                let overlap = self.options.overlap_tokens.min(room);
                tokens = keep_end(text, &mut taken, overlap);
            }
            tokens += cost;
            taken.push(unit);
            fresh = true;
        }
        if fresh {
            self.push(path, &taken);
        }
    }

    fn push(&mut self, path: &[(u8, String)], units: &[Unit]) {
        let (Some(first), Some(last)) = (units.first(), units.last()) else { return };
        let whole = &self.text[first.span.start..last.span.end];
        let start = first.span.start + (whole.len() - whole.trim_start().len());
        let content = whole.trim();
        if content.is_empty() {
            return;
        }
        let chunk_index = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let section_path: Vec<String> = path.iter().map(|(_, heading)| heading.clone()).collect();
        let from = self.chars_before(start);
        self.chunks.push(Chunk {
            id: format!("{}#{chunk_index}", self.doc_id).into(),
            doc_id: self.doc_id.into(),
            chunk_index,
            hash: ChunkHash::of(&section_path, content),
            section_title: section_path.last().cloned(),
            section_path,
            page_start: first.page,
            page_end: last.page,
            tokens: count_tokens(content),
            span: from..from + content.chars().count(),
            content: Arc::from(content),
        });
    }

    fn chars_before(&mut self, byte: usize) -> usize {
        let (at, chars) = if self.counted.0 <= byte { self.counted } else { (0, 0) };
        let chars = chars + self.text[at..byte].chars().count();
        self.counted = (byte, chars);
        chars
    }
}

/// Keeps the last units that have together at most so many tokens, and says how many these are.
fn keep_end(text: &str, units: &mut Vec<Unit>, most: u32) -> u32 {
    let Some(end) = units.last().map(|unit| unit.span.end) else { return 0 };
    let within = |unit: &&Unit| count_tokens(&text[unit.span.start..end]) <= most;
    // Never all of them: the next chunk must be another.
    let keep = units.iter().skip(1).rev().take_while(within).count();
    units.drain(..units.len() - keep);
    units.first().map_or(0, |unit| count_tokens(&text[unit.span.start..end]))
}

/// A unit over budget in pieces that are not: between words, or within one that is too long itself.
fn divided(text: &str, unit: Unit, max: u32) -> Vec<Unit> {
    if unit.tokens <= max {
        return vec![unit];
    }
    let mut pieces = Vec::new();
    let mut start = unit.span.start;
    let mut end = start;
    let mut tokens = 0;
    let push = |span: Range<usize>, pieces: &mut Vec<Unit>| {
        if !span.is_empty() {
            pieces.push(Unit::new(text, span, unit.page));
        }
    };
    for word in text[unit.span.clone()].split_word_bounds() {
        let cost = count_tokens(word);
        if cost > max {
            push(start..end, &mut pieces);
            // A "word" of this length is no prose; six characters are never more than six tokens.
            let step = usize::try_from(max).unwrap_or(1).max(1);
            let mut at = end;
            let letters: Vec<usize> =
                word.char_indices().map(|(i, _)| i).skip(step).step_by(step).collect();
            for cut in letters.into_iter().chain([word.len()]) {
                push(at..end + cut, &mut pieces);
                at = end + cut;
            }
            end += word.len();
            start = end;
            tokens = 0;
            continue;
        }
        if tokens + cost > max {
            push(start..end, &mut pieces);
            start = end;
            tokens = 0;
        }
        tokens += cost;
        end += word.len();
    }
    push(start..end, &mut pieces);
    pieces
}

#[cfg(test)]
mod tests;
