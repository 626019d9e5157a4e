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
    /// By term: a bit for each letter in it, and its length, to pass over most terms that are not near another.
    shapes: Vec<(u32, u8)>,
}

impl Vocabulary {
    pub(crate) fn intern(&mut self, term: &str) -> Term {
        if let Some(number) = self.numbers.get(term) {
            return *number;
        }
        // Four billion distinct terms do not fit into memory; were it so, the rest would share the last place.
        let number = Term::try_from(self.terms.len()).unwrap_or(STOP).min(STOP - 1);
        let term: Arc<str> = term.into();
        self.shapes.push(shape(term.chars()));
        self.terms.push(Arc::clone(&term));
        self.numbers.insert(term, number);
        number
    }

    pub(crate) fn number(&self, term: &str) -> Option<Term> {
        self.numbers.get(term).copied()
    }

    pub(crate) fn term(&self, number: Term) -> &str {
        self.terms.get(number as usize).map_or("", |term| term)
    }

    pub(crate) fn len(&self) -> usize {
        self.terms.len()
    }

    /// Terms at most so many changes of a letter away, with how many.
    pub(crate) fn near(&self, letters: &[char], most: usize) -> Vec<(Term, usize)> {
        let (bits, length) = shape(letters.iter().copied());
        let mut near = Vec::new();
        for (number, (other, other_length)) in (0..).zip(&self.shapes) {
            // A changed letter changes two bits, one more or less changes one.
            let may_be = usize::from(length.abs_diff(*other_length)) <= most
                && (bits ^ other).count_ones() as usize <= 2 * most;
            if may_be && let Some(distance) = distance(letters, self.term(number), most) {
                near.push((number, distance));
            }
        }
        near
    }

    pub(crate) fn bytes(&self) -> usize {
        // Each term twice as a pointer, once as text with its counts, and its entry in the table.
        self.terms.iter().map(|term| term.len() + 16 + 2 * 16 + 8 + 8).sum()
    }
}

fn shape(letters: impl Iterator<Item = char>) -> (u32, u8) {
    let mut bits = 0;
    let mut length = 0_u8;
    for letter in letters {
        bits |= 1 << (u32::from(letter) % 32);
        length = length.saturating_add(1);
    }
    (bits, length)
}

/// Letters changed, added, left out or swapped with their neighbour between two words, if that is at most so many.
fn distance(a: &[char], b: &str, most: usize) -> Option<usize> {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        if row.iter().all(|n| *n > most) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|distance| *distance <= most)
}
