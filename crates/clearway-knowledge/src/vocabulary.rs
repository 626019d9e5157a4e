//! Terms and their numbers. Numbers are given in the order of first sight and never taken back.

use std::collections::HashMap;
use std::sync::Arc;

/// A term's number.
pub(crate) type Term = u32;

/// A place that holds a word which is not indexed.
pub(crate) const STOP: Term = Term::MAX;

#[derive(Clone, Debug, Default)]
pub(crate) struct Vocabulary {
    numbers: HashMap<Arc<str>, Term>,
    terms: Vec<Arc<str>>,
}

impl Vocabulary {
    pub(crate) fn intern(&mut self, term: &str) -> Term {
        if let Some(number) = self.numbers.get(term) {
            return *number;
        }
        // Four billion distinct terms do not fit into memory; were it so, the rest would share the last place.
        let number = Term::try_from(self.terms.len()).unwrap_or(STOP).min(STOP - 1);
        let term: Arc<str> = term.into();
        self.terms.push(Arc::clone(&term));
        self.numbers.insert(term, number);
        number
    }

    pub(crate) fn number(&self, term: &str) -> Option<Term> {
        self.numbers.get(term).copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.terms.len()
    }
}
