//! What stands in the graph beside names: phrases in small letters, and what a model has read out of the texts.
//!
//! A phrase is two or three words of a document that follow each other without a small word or a mark between them, and
//! that the document repeats: *delivery contract*. Which words those are is a matter of whole texts, so each chunk keeps
//! what could be phrases as numbers only, and a build looks which of them have become some.
//!
//! A triple says that one thing stands in a relation to another; it belongs to the text that it was made of, and is seen
//! by whoever sees a chunk with that text.
//!
//! Neither takes part in ranking: a query names names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{Names, key, words};
use crate::document::Chunk;
use crate::text::Language;
use crate::vocabulary::Term;

/// What a model says of a text: `subject` stands in `relation` to `object`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Triple {
    pub subject: String,
    pub relation: String,
    pub object: String,
}

/// A triple's relation between entities, by number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Tie {
    pub(crate) subject: Term,
    pub(crate) relation: Arc<str>,
    pub(crate) object: Term,
}

/// Words of a phrase.
const PHRASE_WORDS: std::ops::RangeInclusive<usize> = 2..=3;
/// How often a document must have it.
const REPEATED: usize = 2;
/// Phrases that one document brings in, and that there are in all.
const OF_A_DOCUMENT: usize = 12;
const IN_ALL: usize = 50_000;
/// What could be phrases in one document; of a book the first chapters tell.
const COUNTED: usize = 100_000;
/// What could be phrases, kept of a chunk.
const CANDIDATES: usize = 96;
/// Entities besides names, kept of a chunk.
const OF_A_CHUNK: usize = 24;

/// What of one document could be a phrase.
#[derive(Debug, Default)]
pub(crate) struct Sightings {
    /// By number: how often, how many words, and the words as first written.
    counts: HashMap<u32, (usize, usize, String)>,
}

impl Sightings {
    /// Takes in a chunk; answers its candidates by number, each once.
    pub(crate) fn of_chunk(&mut self, chunk: &Chunk, language: Language) -> Box<[u32]> {
        let mut numbers = Vec::new();
        for run in runs(&chunk.content, language) {
            for length in PHRASE_WORDS {
                for words in run.windows(length) {
                    let text = words.join(" ");
                    let number = number(&text);
                    numbers.push(number);
                    if self.counts.len() < COUNTED || self.counts.contains_key(&number) {
                        self.counts.entry(number).or_insert((0, length, text)).0 += 1;
                    }
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.truncate(CANDIDATES);
        numbers.into()
    }

    /// The phrases among them, those that say most first.
    fn phrases(self) -> Vec<(u32, String)> {
        let mut repeated: Vec<_> =
            self.counts.into_iter().filter(|(_, (count, ..))| *count >= REPEATED).collect();
        repeated.sort_unstable_by(|(a, (often, length, _)), (b, (other, words, _))| {
            (other * words).cmp(&(often * length)).then(words.cmp(length)).then(a.cmp(b))
        });
        let mut phrases: Vec<(u32, usize, String)> = Vec::new();
        for (number, (count, _, text)) in repeated {
            // A part of a longer one that is never met alone is no phrase of its own.
            let is_part = |(_, often, longer): &(u32, usize, String)| {
                *often == count && format!(" {longer} ").contains(&format!(" {text} "))
            };
            if !phrases.iter().any(is_part) {
                phrases.push((number, count, text));
            }
            if phrases.len() == OF_A_DOCUMENT {
                break;
            }
        }
        phrases.into_iter().map(|(number, _, text)| (number, text)).collect()
    }
}

/// All phrases that any document has brought in, by the number of their words.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phrases(HashMap<u32, Term>);

impl Phrases {
    pub(crate) fn take_in(&mut self, candidates: Sightings, names: &mut Names) {
        for (number, text) in candidates.phrases() {
            if self.0.len() >= IN_ALL {
                return;
            }
            self.0.entry(number).or_insert_with(|| names.beside(&text));
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        16 * self.0.len()
    }

    /// What a chunk has besides its names.
    pub(crate) fn of(&self, candidates: &[u32], ties: &[Tie], names: &[Term]) -> Box<[Term]> {
        let phrases = candidates.iter().filter_map(|number| self.0.get(number).copied());
        let tied = ties.iter().flat_map(|tie| [tie.subject, tie.object]);
        let mut seen: HashSet<Term> = names.iter().copied().collect();
        tied.chain(phrases).filter(|entity| seen.insert(*entity)).take(OF_A_CHUNK).collect()
    }
}

/// A triple between entities; `None` when an end is no name.
pub(crate) fn tie(triple: &Triple, names: &mut Names) -> Option<Tie> {
    let end = |text: &str| super::whole(text).map(str::to_owned);
    let (subject, object) = (end(&triple.subject)?, end(&triple.object)?);
    let relation = end(&triple.relation)?;
    if key(&subject) == key(&object) {
        return None;
    }
    let (subject, object) = (names.beside(&subject), names.beside(&object));
    Some(Tie { subject, relation: relation.into(), object })
}

/// Ties by chunk.
pub(crate) type Ties = BTreeMap<u32, Arc<[Tie]>>;

/// Words in small letters that follow each other with nothing but a blank between them, in lower case and without the
/// small words of the language.
fn runs(text: &str, language: Language) -> Vec<Vec<&str>> {
    let mut all = Vec::new();
    let mut run: Vec<&str> = Vec::new();
    let mut last_end = 0;
    for (word, at) in words(text) {
        let joined = text.get(last_end..at).is_some_and(|between| {
            !between.is_empty()
                && between.chars().all(char::is_whitespace)
                && !between.contains("\n\n")
        });
        let carries = word.chars().count() > 2
            && word.chars().all(|c| c.is_lowercase() || c == '-')
            && !language.is_stop(word)
            // English verbs and adverbs that stand between nouns.
            && !word.ends_with("ly");
        if !joined || !carries {
            all.push(std::mem::take(&mut run));
        }
        if carries {
            run.push(word);
        }
        last_end = at + word.len();
    }
    all.push(run);
    all.retain(|run| run.len() >= *PHRASE_WORDS.start());
    all
}

/// Enough to tell phrases of one corpus apart.
fn number(text: &str) -> u32 {
    let hash = blake3::hash(text.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    u32::from_le_bytes([a, b, c, d])
}
