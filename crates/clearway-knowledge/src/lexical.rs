//! Words: postings with the weight of each term in each chunk, worked out when the index is built.
//!
//! BM25F: occurrences in title, headings and body are weighed by field and by the field's length, added, and only then
//! saturated. Postings lie term by term in two flat arrays; a query adds up one array of scores.

use crate::snapshot::Entry;
use crate::vocabulary::{STOP, Term};
use crate::{GoOn, Stopped};

/// Postings of all chunks.
#[derive(Debug, Default)]
pub(crate) struct Lexical {
    /// Where each term's postings start, and one more.
    starts: Vec<u32>,
    chunks: Vec<u32>,
    weights: Vec<f32>,
    chunk_count: usize,
    average: Lengths,
}

/// A term of a query with what an occurrence is worth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weighted {
    pub(crate) term: Term,
    pub(crate) weight: f32,
}

/// One field of BM25F.
#[derive(Clone, Copy, Debug)]
struct Field {
    weight: f32,
    /// How much the field's length counts, 0 to 1.
    b: f32,
}

const TITLE: Field = Field { weight: 3.0, b: 0.3 };
const HEADING: Field = Field { weight: 1.0, b: 0.3 };
const BODY: Field = Field { weight: 1.0, b: 0.7 };
const K1: f32 = 1.2;

/// How often a term occurs in each field of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) term: Term,
    pub(crate) title: u16,
    pub(crate) heading: u16,
    pub(crate) body: u16,
}

/// Counts by term, ascending; places of stop words are passed over.
pub(crate) fn counts(title: &[Term], heading: &[Term], body: &[Term]) -> Vec<Count> {
    let mut all: Vec<(Term, u8)> = Vec::with_capacity(title.len() + heading.len() + body.len());
    for (field, terms) in [title, heading, body].into_iter().enumerate() {
        let field = u8::try_from(field).unwrap_or_default();
        all.extend(terms.iter().filter(|term| **term != STOP).map(|term| (*term, field)));
    }
    all.sort_unstable();
    let mut counts: Vec<Count> = Vec::new();
    for (term, field) in all {
        if counts.last().is_none_or(|last| last.term != term) {
            counts.push(Count { term, title: 0, heading: 0, body: 0 });
        }
        if let Some(last) = counts.last_mut() {
            let count = match field {
                0 => &mut last.title,
                1 => &mut last.heading,
                _ => &mut last.body,
            };
            *count = count.saturating_add(1);
        }
    }
    counts
}

impl Lexical {
    /// `counts` are those of each entry.
    pub(crate) fn build(
        entries: &[Entry],
        counts: &[Vec<Count>],
        terms: usize,
        go_on: GoOn<'_>,
    ) -> Result<Self, Stopped> {
        let average = Lengths::average(entries);
        let mut starts = vec![0_u32; terms + 1];
        for count in counts.iter().flatten() {
            starts[count.term as usize + 1] += 1;
        }
        for at in 0..terms {
            starts[at + 1] += starts[at];
        }
        let total = starts[terms] as usize;
        let (mut chunks, mut weights) = (vec![0_u32; total], vec![0_f32; total]);
        let mut next = starts.clone();
        for (chunk, (entry, counts)) in (0_u32..).zip(entries.iter().zip(counts)) {
            if chunk % 512 == 0 && !go_on() {
                return Err(Stopped);
            }
            let lengths = Lengths::of(entry);
            for count in counts {
                let place = &mut next[count.term as usize];
                chunks[*place as usize] = chunk;
                weights[*place as usize] = lengths.weight(count, &average);
                *place += 1;
            }
        }
        Ok(Self { starts, chunks, weights, chunk_count: entries.len(), average })
    }

    /// The weight of each term of an entry, without the term's own rareness.
    pub(crate) fn weights(&self, entry: &Entry) -> Vec<(Term, f32)> {
        let lengths = Lengths::of(entry);
        let counts = entry.counts();
        counts.iter().map(|count| (count.term, lengths.weight(count, &self.average))).collect()
    }

    /// How many words a chunk's text has on average.
    pub(crate) fn average_words(&self) -> f32 {
        self.average.body + self.average.title
    }

    /// How long an entry is against an average one.
    pub(crate) fn length(&self, entry: &Entry) -> f32 {
        let own = Lengths::of(entry);
        (own.body + own.title) / self.average_words().max(1.0)
    }

    /// In how many chunks a term is.
    pub(crate) fn frequency(&self, term: Term) -> usize {
        self.range(term).len()
    }

    /// What an occurrence of a term tells, from its rareness.
    #[expect(clippy::cast_precision_loss, reason = "counts of chunks, for a logarithm")]
    pub(crate) fn idf(&self, term: Term) -> f32 {
        let (n, df) = (self.chunk_count as f32, self.frequency(term) as f32);
        (1.0 + (n - df + 0.5) / (df + 0.5)).ln()
    }

    /// What a word tells that is in no chunk but perhaps one.
    #[expect(clippy::cast_precision_loss, reason = "a count of chunks, for a logarithm")]
    pub(crate) fn rarest_idf(&self) -> f32 {
        (1.0 + self.chunk_count as f32).ln()
    }

    /// The chunks that a term is in, and its weight in each.
    pub(crate) fn postings(&self, term: Term) -> impl Iterator<Item = (u32, f32)> {
        let range = self.range(term);
        self.chunks[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }

    fn range(&self, term: Term) -> std::ops::Range<usize> {
        let at = term as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(start), Some(end)) => *start as usize..*end as usize,
            _ => 0..0,
        }
    }

    /// Adds to the score of each chunk in scope what it gets for a term.
    pub(crate) fn add(&self, term: Weighted, allowed: &[bool], scores: &mut [f32]) {
        for (chunk, weight) in self.postings(term.term) {
            let chunk = chunk as usize;
            if allowed[chunk] {
                scores[chunk] += term.weight * weight;
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.starts.len() + self.chunks.len() + self.weights.len())
    }
}

/// How long the fields are.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    title: f32,
    heading: f32,
    body: f32,
}

#[expect(clippy::cast_precision_loss, reason = "lengths of texts")]
impl Lengths {
    fn of(entry: &Entry) -> Self {
        Self {
            title: entry.title.len() as f32,
            heading: entry.text.heading.len() as f32,
            body: entry.text.body.len() as f32,
        }
    }

    fn average(entries: &[Entry]) -> Self {
        let n = entries.len().max(1) as f32;
        let mut sum = Self { title: 0.0, heading: 0.0, body: 0.0 };
        for lengths in entries.iter().map(Self::of) {
            sum.title += lengths.title;
            sum.heading += lengths.heading;
            sum.body += lengths.body;
        }
        let mean = |sum: f32| (sum / n).max(1.0);
        Self { title: mean(sum.title), heading: mean(sum.heading), body: mean(sum.body) }
    }

    fn weight(self, count: &Count, average: &Self) -> f32 {
        let part = |field: Field, n: u16, length: f32, average: f32| {
            field.weight * f32::from(n) / (1.0 - field.b + field.b * length / average)
        };
        let tf = part(TITLE, count.title, self.title, average.title)
            + part(HEADING, count.heading, self.heading, average.heading)
            + part(BODY, count.body, self.body, average.body);
        tf * (K1 + 1.0) / (tf + K1)
    }
}
