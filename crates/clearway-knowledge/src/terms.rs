//! A query as terms of the index: stemmed as the corpus is, counted, and corrected where it is mistyped.

use std::collections::HashMap;

use crate::lexical::Lexical;
use crate::text::{Analyzer, Language};
use crate::vocabulary::{Term, Vocabulary};

/// One word of a query.
#[derive(Clone, Debug)]
pub(crate) struct QueryTerm {
    /// As it was written, first.
    pub(crate) word: String,
    pub(crate) term: Term,
    pub(crate) count: f32,
    /// What the term tells, less where it stands for a mistyped word.
    pub(crate) idf: f32,
    /// The word that is looked for instead.
    pub(crate) corrected: Option<String>,
}

/// All that a query's text gives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) terms: Vec<QueryTerm>,
    /// Terms in the order of the text; each pair of neighbours may be near in a chunk, too.
    pub(crate) order: Vec<Term>,
    pub(crate) unknown: Vec<String>,
    /// These as terms: parts of them may be known.
    pub(crate) strange: Vec<String>,
    pub(crate) has_words: bool,
    /// Whether it may be English.
    pub(crate) is_english: bool,
    /// What all words tell together, unknown ones a part of what the rarest do.
    pub(crate) total: f32,
}

/// More different words are no question; the rarest ones are kept.
const MAX_TERMS: usize = 128;
/// Of a longer text the rest is not read.
const MAX_TOKENS: usize = 20_000;
const MAX_UNKNOWN: usize = 16;
const MAX_CORRECTIONS: usize = 6;
/// What a word counts that only looks like the one in the query.
const CORRECTED: f32 = 0.7;

/// What a word counts that nothing in scope has, to the rarest one that something has. Much of a question may be said in
/// words of its own, and the passage that answers it is no less like it for that.
const UNKNOWN: f32 = 0.4;

/// Where a query's words are looked up.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) vocabulary: &'a Vocabulary,
    pub(crate) lexical: &'a Lexical,
    pub(crate) allowed: &'a [bool],
    /// The languages of the corpus, the most frequent first.
    pub(crate) languages: &'a [Language],
}

impl Lookup<'_> {
    pub(crate) fn terms(&self, text: &str) -> Terms {
        let mut terms = Terms::default();
        let mut found: HashMap<Term, usize> = HashMap::new();
        let mut missing: Vec<(String, String)> = Vec::new();
        let mut read = 0;
        let languages = self.languages_of(text);
        terms.is_english = languages.contains(&Language::English);
        for language in languages {
            self.read(language, text, &mut terms, &mut found, &mut missing, &mut read);
        }
        let rarest = self.lexical.rarest_idf();
        // In another language the same word may be known.
        let known: Vec<String> = terms.terms.iter().map(|term| term.word.clone()).collect();
        missing.retain(|(word, _)| {
            !known.contains(word) && !Language::only_asks(&word.to_lowercase())
        });
        for (tried, (word, term)) in missing.into_iter().enumerate() {
            terms.total += rarest * UNKNOWN;
            let correction = if tried < MAX_CORRECTIONS { self.correction(&term) } else { None };
            match correction {
                Some(number) if !found.contains_key(&number) => {
                    found.insert(number, terms.terms.len());
                    let idf = self.lexical.idf(number) * CORRECTED;
                    let corrected = Some(self.vocabulary.term(number).to_owned());
                    terms.terms.push(QueryTerm { word, term: number, count: 1.0, idf, corrected });
                    terms.total += idf - rarest * UNKNOWN;
                }
                _ if terms.unknown.len() < MAX_UNKNOWN => {
                    terms.unknown.push(word);
                    terms.strange.push(term);
                }
                _ => {}
            }
        }
        if terms.terms.len() > MAX_TERMS {
            terms.terms.sort_by(|a, b| b.idf.total_cmp(&a.idf).then(a.term.cmp(&b.term)));
            terms.terms.truncate(MAX_TERMS);
        }
        terms
    }

    /// The query's own language, or those of the corpus.
    fn languages_of(&self, text: &str) -> Vec<Language> {
        match Language::of(text) {
            Some(language) if self.languages.contains(&language) => vec![language],
            _ if self.languages.is_empty() => vec![Language::English],
            _ => self.languages.to_vec(),
        }
    }

    fn read(
        &self,
        language: Language,
        text: &str,
        terms: &mut Terms,
        found: &mut HashMap<Term, usize>,
        missing: &mut Vec<(String, String)>,
        read: &mut usize,
    ) {
        let mut counted: HashMap<Term, f32> = HashMap::new();
        Analyzer::new(language).tokens(text, |token| {
            *read += 1;
            if token.is_stop {
                return *read < MAX_TOKENS;
            }
            terms.has_words = true;
            let number =
                self.vocabulary.number(&token.term).filter(|number| self.is_known(*number));
            match number {
                Some(number) => {
                    *counted.entry(number).or_default() += 1.0;
                    if !token.is_variant && terms.order.len() < MAX_TERMS {
                        terms.order.push(number);
                    }
                    found.entry(number).or_insert_with(|| {
                        let idf = self.lexical.idf(number);
                        terms.total += idf;
                        let word = token.word.to_owned();
                        terms.terms.push(QueryTerm {
                            word,
                            term: number,
                            count: 0.0,
                            idf,
                            corrected: None,
                        });
                        terms.terms.len() - 1
                    });
                }
                None if token.is_variant || missing.len() >= MAX_TERMS => {}
                None if missing.iter().any(|(word, _)| word == token.word) => {}
                None => missing.push((token.word.to_owned(), token.term)),
            }
            *read < MAX_TOKENS
        });
        for (term, count) in counted {
            if let Some(at) = found.get(&term) {
                let known = &mut terms.terms[*at].count;
                *known = known.max(count);
            }
        }
    }

    /// Whether any chunk in scope has it: what others have must not be told by what is known.
    fn is_known(&self, term: Term) -> bool {
        self.lexical.postings(term).any(|(chunk, _)| self.allowed[chunk as usize])
    }

    /// The most frequent term in scope that a mistyped one may stand for.
    fn correction(&self, term: &str) -> Option<Term> {
        let letters: Vec<char> = term.chars().collect();
        let most = match letters.len() {
            0..=3 => return None,
            4..=7 => 1,
            _ => 2,
        };
        if letters.iter().any(|c| !c.is_alphabetic()) {
            return None;
        }
        let near = self.vocabulary.near(&letters, most);
        let known = near.into_iter().filter(|(term, _)| self.is_known(*term));
        known
            .min_by_key(|(term, distance)| {
                (*distance, std::cmp::Reverse(self.lexical.frequency(*term)), *term)
            })
            .map(|(term, _)| term)
    }
}
