//! Words of the query that a passage does not have, and how near its own come to what they mean.

use crate::lexical::Count;
use crate::meaning::{self, Asked};
use crate::snapshot::Snapshot;
use crate::terms::Terms;
use crate::vocabulary::Term;

/// Words less near than this have nothing to do with each other.
const FLOOR: f32 = 0.25;
/// From here on it is told as a reason.
const TOLD: f32 = 0.65;
/// So many of the query's words, the ones that tell most, say enough.
const WORDS: usize = 12;

/// What was asked for, by meaning.
pub(super) struct Meant<'a> {
    snapshot: &'a Snapshot,
    /// As written, as a term if the corpus has it, and what each tells.
    words: Vec<(&'a str, Option<Term>, f32)>,
    asked: Asked,
    /// What all words of the query tell, those without a meaning included.
    total: f32,
}

/// What is nearly in a chunk.
#[derive(Debug, Default)]
pub(super) struct Nearly {
    /// Of all that the query's words tell, from 0 to 1.
    pub(super) share: f32,
    /// Of that, what is near enough to be told.
    pub(super) told: f32,
    pub(super) words: Vec<String>,
}

impl<'a> Meant<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, terms: &'a Terms) -> Self {
        let rarest = snapshot.lexical().rarest_idf();
        let known: f32 = terms.terms.iter().map(|term| term.idf).sum();
        let total = (known + rarest * terms.unknown.len() as f32).max(f32::MIN_POSITIVE);
        let mut meant = Self { snapshot, words: Vec::new(), asked: Asked::default(), total };
        let Some((meanings, _)) = snapshot.meaning().filter(|_| terms.is_english) else {
            return meant;
        };
        let known = terms.terms.iter().filter_map(|term| {
            Some((&*term.word, Some(term.term), term.idf, meanings.vector(term.term)?))
        });
        let strange = terms.unknown.iter().zip(&terms.strange).filter_map(|(word, stem)| {
            Some((word.as_str(), None, rarest, meaning::of_stem(stem)?))
        });
        let mut words: Vec<_> = known.chain(strange).collect();
        words.sort_by(|a, b| b.2.total_cmp(&a.2));
        words.truncate(WORDS);
        for (word, term, idf, vector) in words {
            meant.words.push((word, term, idf));
            meant.asked.push(vector);
        }
        meant
    }

    /// How much of what was asked for and is not in a chunk is nearly in it.
    pub(super) fn within(&mut self, chunk: u32, counts: &[Count]) -> Nearly {
        let places = self.snapshot.meaning().filter(|_| !self.words.is_empty());
        let Some((meanings, _)) = places.filter(|(_, places)| places.has(chunk as usize)) else {
            return Nearly::default();
        };
        let mut nearest = vec![0_f32; self.words.len()];
        for count in counts {
            let near = self.asked.nearness(count.term, meanings).into_iter().flatten();
            for (nearest, near) in nearest.iter_mut().zip(near) {
                *nearest = nearest.max(*near);
            }
        }
        let has = |term: Term| counts.binary_search_by_key(&term, |count| count.term).is_ok();
        let mut nearly = Nearly::default();
        for ((word, term, idf), near) in self.words.iter().zip(nearest) {
            if !term.is_some_and(has) {
                let share = idf / self.total * ((near - FLOOR) / (1.0 - FLOOR)).max(0.0);
                nearly.share += share;
                if near >= TOLD {
                    nearly.told += share;
                    nearly.words.push((*word).to_owned());
                }
            }
        }
        nearly
    }
}
