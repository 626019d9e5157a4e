//! Parts of words: runs of four letters, so that words which are written otherwise (compounds, other endings, hyphens)
//! still count where they are alike.
//!
//! They only order chunks that are found already. Nothing is kept by chunk: a part's rareness is worked out from the
//! words that have it, and the parts of a chunk from its words when it is looked at.

use std::collections::HashMap;

use crate::lexical::{Count, Lexical};
use crate::vocabulary::{Term, Vocabulary};

/// How rare the parts of a corpus's words are.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Ascending, with about how many chunks have a word with it.
    known: Vec<(u32, f32)>,
    chunk_count: usize,
}

/// A query's parts, to hold chunks against.
pub(crate) struct Asked<'a> {
    vocabulary: &'a Vocabulary,
    /// What each part tells.
    weights: Vec<f32>,
    places: HashMap<u32, usize>,
    /// The places of the parts of each word that was seen.
    of_terms: HashMap<Term, Vec<usize>>,
    /// The query's words as written, as terms, and the places of their parts.
    words: Vec<(&'a str, &'a str, Vec<usize>)>,
}

const LETTERS: usize = 4;
const K1: f32 = 1.2;
const B: f32 = 0.6;
const REPEATED: f32 = 0.85;

impl Parts {
    #[expect(clippy::cast_precision_loss, reason = "counts of chunks")]
    pub(crate) fn new(vocabulary: &Vocabulary, lexical: &Lexical, chunk_count: usize) -> Self {
        let mut known: Vec<(u32, f32)> = Vec::new();
        for number in 0..Term::try_from(vocabulary.len()).unwrap_or(Term::MAX) {
            let frequency = lexical.frequency(number) as f32;
            if frequency > 0.0 {
                parts(vocabulary.term(number), |part| known.push((part, frequency)));
            }
        }
        known.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        known.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            kept.1 += if same { next.1 } else { 0.0 };
            same
        });
        known.shrink_to_fit();
        Self { known, chunk_count }
    }

    /// What a part tells. Words that share one are taken to lie in chunks as if by chance.
    #[expect(clippy::cast_precision_loss, reason = "counts of chunks, for a logarithm")]
    fn idf(&self, part: u32) -> f32 {
        let n = (self.chunk_count as f32).max(1.0);
        let at = self.known.binary_search_by_key(&part, |(part, _)| *part);
        let sum = at.map_or(0.0, |at| self.known[at].1);
        let df = n * (1.0 - (-sum / n).exp());
        (1.0 + (n - df + 0.5) / (df + 0.5)).ln()
    }

    /// A query's words come as they are written, as terms, and with how often they are in it.
    pub(crate) fn asked<'a>(
        &self,
        vocabulary: &'a Vocabulary,
        terms: impl Iterator<Item = (&'a str, &'a str, f32)>,
    ) -> Asked<'a> {
        let (weights, places, of_terms) = (Vec::new(), HashMap::new(), HashMap::new());
        let mut asked = Asked { vocabulary, weights, places, of_terms, words: Vec::new() };
        let mut found = Vec::new();
        for (word, term, count) in terms {
            let mut own = Vec::new();
            parts(term, |part| {
                let place = *asked.places.entry(part).or_insert(asked.weights.len());
                if place == asked.weights.len() {
                    asked.weights.push(0.0);
                    found.push(part);
                }
                asked.weights[place] += count;
                own.push(place);
            });
            asked.words.push((word, term, own));
        }
        for (weight, part) in asked.weights.iter_mut().zip(found) {
            *weight = weight.powf(REPEATED) * self.idf(part);
        }
        asked
    }

    pub(crate) fn bytes(&self) -> usize {
        self.known.capacity() * size_of::<(u32, f32)>()
    }
}

impl Asked<'_> {
    /// What a chunk gets for its words' parts, and the words of the query that it has at least such a share of, though
    /// not the words themselves; `length` is against that of an average chunk.
    pub(crate) fn score(
        &mut self,
        counts: &[Count],
        length: f32,
        share: f32,
    ) -> (f32, Vec<String>) {
        let mut often = vec![0_f32; self.weights.len()];
        for count in counts {
            let places = self.of_terms.entry(count.term).or_insert_with(|| {
                let mut places = Vec::new();
                parts(self.vocabulary.term(count.term), |part| {
                    places.extend(self.places.get(&part))
                });
                places
            });
            let n = 2.0 * f32::from(count.title) + f32::from(count.heading) + f32::from(count.body);
            places.iter().for_each(|place| often[*place] += n);
        }
        let slow = K1 * (1.0 - B + B * length);
        let part = |(often, weight): (&f32, &f32)| weight * often * (K1 + 1.0) / (often + slow);
        (often.iter().zip(&self.weights).map(part).sum(), self.alike(counts, &often, share))
    }
}

impl Asked<'_> {
    #[expect(clippy::cast_precision_loss, reason = "a handful of parts")]
    fn alike(&self, counts: &[Count], often: &[f32], share: f32) -> Vec<String> {
        let has = |word: &str| {
            let number = self.vocabulary.number(word);
            number.is_some_and(|number| counts.binary_search_by_key(&number, |c| c.term).is_ok())
        };
        let is_alike = |(_, term, places): &&(&str, &str, Vec<usize>)| {
            let there = places.iter().filter(|place| often[**place] > 0.0).count();
            places.len() > 1 && there as f32 >= share * places.len() as f32 && !has(term)
        };
        self.words.iter().filter(is_alike).map(|(word, ..)| (*word).to_owned()).collect()
    }
}

/// Calls `each` for the parts of a word, its beginning marked; of a short one it is the word. Names with marks in them
/// are left out: their pieces are words, too.
fn parts(word: &str, mut each: impl FnMut(u32)) {
    if word.is_empty() || !word.chars().all(char::is_alphanumeric) {
        return;
    }
    let letters: Vec<char> = ['_'].into_iter().chain(word.chars()).collect();
    if letters.len() < LETTERS {
        each(number(&letters));
    }
    letters.windows(LETTERS).for_each(|part| each(number(part)));
}

/// Parts by number; that two share one is rare and costs nothing but a little order.
fn number(letters: &[char]) -> u32 {
    letters.iter().fold(0x811c_9dc5, |hash, letter| {
        let mixed = (hash ^ u32::from(*letter)).wrapping_mul(0x0100_0193);
        mixed ^ (mixed >> 15)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(word: &str) -> Vec<u32> {
        let mut list = Vec::new();
        parts(word, |part| list.push(part));
        list
    }

    #[test]
    fn words_have_parts_in_common_where_they_are_alike() {
        let shared = |a: &str, b: &str| {
            let b = listed(b);
            listed(a).iter().filter(|part| b.contains(part)).count()
        };
        assert_eq!(listed("glucose").len(), 5);
        assert_eq!(shared("hyperglycemia", "glycemia"), 5);
        assert_eq!(shared("nets", "nested"), 0);
        assert_eq!(shared("ox", "ox"), 1);
        assert_eq!(shared("größe", "größer"), 3);
    }

    #[test]
    fn names_and_pairs_have_none() {
        assert!(listed("").is_empty());
        assert!(listed("vitamin c").is_empty());
        assert!(listed("web.config").is_empty());
    }
}
