//! What English words mean in general: a small table of word vectors that was made outside of any corpus, so that a
//! `car` is found by an `automobile` in a corpus that never has both.
//!
//! The table is data in the binary: nothing is read, allocated or worked out at start. `data/NOTICE` says where it
//! comes from, `scripts/make-word-vectors` makes it. A text's vector is the sum of its words' vectors, each weighed as
//! its occurrences are for the search by words.
//!
//! Not here: languages other than English, whose texts have no vector of this kind.

use std::collections::HashMap;

use crate::vectors::Quantized;
use crate::vocabulary::{Term, Vocabulary};

/// Counts of words and numbers; what a byte of each number is worth; hashes of stems, ascending; the vectors, a byte for
/// each number. All in little endian.
static TABLE: &[u8] = include_bytes!("../data/word-vectors.bin");

/// How many numbers a vector has.
pub(crate) const DIMENSIONS: usize = 64;
const HEAD: usize = 8;
const HASHES: usize = HEAD + 4 * DIMENSIONS;
/// A word's vector as it lies in the table: signed bytes.
pub(crate) type Vector = [u8; DIMENSIONS];
/// A term without a vector.
const NONE: u32 = u32::MAX;

/// Where each term of a vocabulary is in the table.
#[derive(Debug, Default)]
pub(crate) struct Meanings {
    rows: Vec<u32>,
}

/// A sum of words' vectors.
#[derive(Clone, Debug)]
pub(crate) struct Sum([f32; DIMENSIONS]);

impl Default for Sum {
    fn default() -> Self {
        Self([0.0; DIMENSIONS])
    }
}

impl Meanings {
    pub(crate) fn of(vocabulary: &Vocabulary) -> Self {
        let number = |number| vocabulary.term(number);
        let terms = 0..Term::try_from(vocabulary.len()).unwrap_or(Term::MAX);
        Self { rows: terms.map(|term| row_of(number(term)).unwrap_or(NONE)).collect() }
    }

    /// A term's vector, in bytes.
    pub(crate) fn vector(&self, term: Term) -> Option<&'static Vector> {
        self.rows.get(term as usize).and_then(|row| vector(*row))
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * self.rows.len()
    }
}

/// The vector of a stem that may be in no vocabulary.
pub(crate) fn of_stem(stem: &str) -> Option<&'static Vector> {
    row_of(stem).and_then(vector)
}

impl Sum {
    pub(crate) fn add(&mut self, vector: &Vector, weight: f32) {
        for (sum, byte) in self.0.iter_mut().zip(vector) {
            *sum += weight * f32::from(byte.cast_signed());
        }
    }

    /// `None` if nothing of any meaning was added.
    pub(crate) fn direction(&self) -> Option<Quantized> {
        let mut values = self.0;
        for (value, worth) in values.iter_mut().zip(worths()) {
            *value *= worth;
        }
        Quantized::new(&values)
    }
}

/// Words of a query, to find what means nearly the same.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Of length one, and such that a product with a word's bytes is right.
    words: Vec<[f32; DIMENSIONS]>,
    /// How near the words of texts are to each of them.
    seen: HashMap<Term, Option<Box<[f32]>>>,
}

impl Asked {
    pub(crate) fn push(&mut self, vector: &Vector) {
        let (mut word, length) = valued(vector);
        for (value, worth) in word.iter_mut().zip(worths()) {
            *value *= worth / length;
        }
        self.words.push(word);
    }

    /// How near a word of a text is to each of the query's, from -1 to 1; `None` if nothing is known of it.
    pub(crate) fn nearness(&mut self, term: Term, meanings: &Meanings) -> Option<&[f32]> {
        let Self { words, seen } = self;
        let near = seen.entry(term).or_insert_with(|| {
            let vector = meanings.vector(term)?;
            let (_, length) = valued(vector);
            let bytes = vector.map(|byte| f32::from(byte.cast_signed()));
            Some(words.iter().map(|word| product(word, &bytes) / length).collect())
        });
        near.as_deref()
    }
}

/// A word's numbers, and how long they are together.
fn valued(vector: &Vector) -> ([f32; DIMENSIONS], f32) {
    let mut values = vector.map(|byte| f32::from(byte.cast_signed()));
    for (value, worth) in values.iter_mut().zip(worths()) {
        *value *= worth;
    }
    (values, product(&values, &values).sqrt().max(f32::MIN_POSITIVE))
}

/// The sum of products, in as many sums side by side as make vector instructions of it.
fn product(a: &[f32; DIMENSIONS], b: &[f32; DIMENSIONS]) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// What a byte of each number is worth.
fn worths() -> impl Iterator<Item = f32> {
    TABLE[HEAD..HASHES].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

fn hashes() -> &'static [[u8; 4]] {
    let count = u32::from_le_bytes([TABLE[0], TABLE[1], TABLE[2], TABLE[3]]) as usize;
    TABLE[HASHES..HASHES + 4 * count].as_chunks().0
}

fn row_of(stem: &str) -> Option<u32> {
    let wanted = hash(stem);
    let row = hashes().binary_search_by_key(&wanted, |hash| u32::from_le_bytes(*hash)).ok()?;
    u32::try_from(row).ok()
}

fn vector(row: u32) -> Option<&'static Vector> {
    let start = HASHES + 4 * hashes().len() + row.min(NONE - 1) as usize * DIMENSIONS;
    TABLE.get(start..)?.first_chunk()
}

/// FNV-1a.
fn hash(stem: &str) -> u32 {
    stem.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: &str, b: &str) -> f32 {
        let mut vocabulary = Vocabulary::default();
        let term = vocabulary.intern(b);
        let mut asked = Asked::default();
        asked.push(of_stem(a).expect("a common word"));
        asked.nearness(term, &Meanings::of(&vocabulary)).expect("a common word")[0]
    }

    #[test]
    fn words_that_mean_the_same_are_near() {
        assert!((near("car", "car") - 1.0).abs() < 1e-3);
        for (word, same, other) in [
            ("car", "automobil", "banana"),
            ("doctor", "physician", "carpet"),
            ("boat", "ship", "tax"),
        ] {
            assert!(near(word, same) > near(word, other) + 0.2, "{word} {same} {other}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_has_no_vector() {
        for stem in ["", "qqxzw", "\u{0}", "ungewöhnlich", &"x".repeat(10_000)] {
            assert!(of_stem(stem).is_none(), "{stem}");
        }
        assert!(Meanings::default().vector(7).is_none());
        assert!(Sum::default().direction().is_none());
    }

    #[test]
    fn the_table_is_whole_and_in_order() {
        let hashes: Vec<u32> = hashes().iter().map(|hash| u32::from_le_bytes(*hash)).collect();
        assert!(hashes.is_sorted() && hashes.len() > 20_000);
        assert_eq!(TABLE.len(), HASHES + hashes.len() * (4 + DIMENSIONS));
        assert_eq!(TABLE[4..HEAD], [u8::try_from(DIMENSIONS).expect("small"), 0, 0, 0]);
        assert!(vector(u32::try_from(hashes.len()).expect("few")).is_none());
        assert!(vector(NONE).is_none());
    }
}
