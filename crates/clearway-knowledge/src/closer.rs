//! A closer look at the best chunks: which words of the query stand together in them, which have parts in common with
//! theirs, which mean nearly the same as theirs, and how much of what a title says was asked for. It only orders what was found already, and it says why.
//!
//! Each measure was chosen with one collection left out at a time; `docs/retrieval.md` has the figures.

use std::collections::HashMap;

use self::meant::Meant;
use crate::rank::best;
use crate::snapshot::{Entry, Snapshot};
use crate::terms::Terms;
use crate::vocabulary::{STOP, Term};

mod meant;

/// How many of the best are looked at.
const CHUNKS: usize = 100;
/// What each measure counts at most, against the best score.
const PARTS: f32 = 0.25;
const TITLED: f32 = 0.1;
const SIDE_BY_SIDE: f32 = 0.15;
const GATHERED: f32 = 0.15;
const MEANT: f32 = 0.4;
/// Words of the query that lie within so many places are gathered.
const GATHERED_PLACES: usize = 12;
/// The rarest words of a long query say enough.
const WORDS: usize = 40;
/// From here on it is told as a reason: the share of a word's parts, the share of a title.
const PART_TOLD: f32 = 0.4;
const TITLE_TOLD: f32 = 0.5;

/// What a closer look found in a chunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    /// Words of the query, as they were written, that are not in the chunk, while many parts of them are.
    pub(crate) parts: Vec<String>,
    /// Words of the query, as they were written, that are not in the chunk, while one is that means nearly the same.
    pub(crate) meanings: Vec<String>,
    /// What these tell of the whole, 0 to 1.
    pub(crate) nearly: f32,
    /// Words of the query that stand side by side in it as they do in the query.
    pub(crate) phrases: Vec<(Term, Term)>,
    /// Most of what its title says was asked for.
    pub(crate) is_titled: bool,
}

/// The query's words in order, to find them in texts.
struct Sought {
    /// Ascending, with what each tells of the whole, 0 to 1.
    words: Vec<(Term, f32)>,
    /// A bit for each of the last six of a word's number: most words of a text are none of these.
    bits: u64,
    pairs: Vec<(Term, Term)>,
}

impl Snapshot {
    /// Adds to the best scores what a closer look finds.
    pub(crate) fn looked_at(&self, terms: &Terms, blend: &mut [f32]) -> HashMap<u32, Look> {
        let best = best(blend, CHUNKS);
        let Some((_, most)) = best.first().copied() else { return HashMap::new() };
        let asked: HashMap<Term, f32> =
            terms.terms.iter().map(|term| (term.term, term.idf)).collect();
        let known = terms
            .terms
            .iter()
            .map(|term| (&*term.word, self.vocabulary().term(term.term), term.count));
        let strange = terms.unknown.iter().zip(&terms.strange);
        let strange = strange.map(|(word, term)| (word.as_str(), term.as_str(), 1.0));
        let mut parts = self.parts().asked(self.vocabulary(), known.chain(strange));
        let sought = Sought::new(terms);
        let mut meant = Meant::new(self, terms);
        let mut looks = Vec::with_capacity(best.len());
        for (chunk, _) in &best {
            let entry = self.entry(*chunk);
            let counts = entry.counts();
            let (score, alike) = parts.score(&counts, self.lexical().length(entry), PART_TOLD);
            let (named, all) = self.titled(&asked, &entry.title);
            let is_titled = named > 0.0 && named >= TITLE_TOLD * all;
            // A title of everyday words says little, however much of it was asked for.
            let titled = named / all.max(1.0);
            let (gathered, phrases) = sought.within(entry);
            let nearly = meant.within(*chunk, &counts);
            let others = TITLED * titled + GATHERED * gathered + MEANT * nearly.share;
            let (meanings, nearly) = (nearly.words, nearly.told);
            let look = Look { parts: alike, meanings, nearly, phrases, is_titled };
            looks.push((score, others, look));
        }
        let highest = looks.iter().map(|(score, ..)| *score).fold(f32::MIN_POSITIVE, f32::max);
        let pairs = sought.weighed(looks.iter().map(|(.., look)| &look.phrases));
        let total: f32 = pairs.values().sum();
        let mut found = HashMap::with_capacity(looks.len());
        for ((chunk, _), (score, others, look)) in best.iter().zip(looks) {
            let together: f32 = look.phrases.iter().filter_map(|pair| pairs.get(pair)).sum();
            let together = SIDE_BY_SIDE * together / total.max(f32::MIN_POSITIVE);
            blend[*chunk as usize] += most * (PARTS * score / highest + others + together);
            found.insert(*chunk, look);
        }
        found
    }

    /// What of a title was asked for, and all that it tells.
    fn titled(&self, asked: &HashMap<Term, f32>, title: &[Term]) -> (f32, f32) {
        let mut words: Vec<Term> = title.iter().copied().filter(|term| *term != STOP).collect();
        words.sort_unstable();
        words.dedup();
        let all: f32 = words.iter().map(|term| self.lexical().idf(*term)).sum();
        (words.iter().filter_map(|term| asked.get(term)).sum(), all)
    }
}

impl Sought {
    fn new(terms: &Terms) -> Self {
        let mut words: Vec<(Term, f32)> =
            terms.terms.iter().map(|term| (term.term, term.idf)).collect();
        words.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        words.truncate(WORDS);
        let total: f32 = words.iter().map(|(_, idf)| idf).sum();
        words.iter_mut().for_each(|(_, idf)| *idf /= total.max(f32::MIN_POSITIVE));
        words.sort_unstable_by_key(|(term, _)| *term);
        let mut pairs: Vec<(Term, Term)> =
            terms.order.windows(2).map(|pair| (pair[0], pair[1])).collect();
        pairs.retain(|(a, b)| a != b);
        pairs.sort_unstable();
        pairs.dedup();
        let bits = words.iter().fold(0, |bits, (term, _)| bits | bit(*term));
        Self { words, bits, pairs }
    }

    /// The most that words within a few places of a text tell, and the pairs that stand side by side in it.
    fn within(&self, entry: &Entry) -> (f32, Vec<(Term, Term)>) {
        let texts = [&*entry.title, &[STOP], &*entry.text.heading, &[STOP], &*entry.text.body];
        let at = |term: &Term| self.words.binary_search_by_key(term, |(term, _)| *term).ok();
        let seen: Vec<(usize, usize)> = texts
            .into_iter()
            .flatten()
            .enumerate()
            .filter(|(_, term)| self.bits & bit(**term) != 0)
            .filter_map(|(place, term)| Some((place, at(term)?)))
            .collect();
        let mut phrases = Vec::new();
        let (mut counts, mut sum, mut most) = (vec![0_u32; self.words.len()], 0.0_f32, 0.0_f32);
        let mut first = 0;
        for (now, (place, word)) in seen.iter().enumerate() {
            if let Some((before, other)) = now.checked_sub(1).map(|at| seen[at]) {
                let pair = (self.words[other].0, self.words[*word].0);
                if before + 1 == *place && self.pairs.binary_search(&pair).is_ok() {
                    phrases.push(pair);
                }
            }
            while seen[first].0 + GATHERED_PLACES <= *place {
                let gone = seen[first].1;
                counts[gone] -= 1;
                if counts[gone] == 0 {
                    sum -= self.words[gone].1;
                }
                first += 1;
            }
            if counts[*word] == 0 {
                sum += self.words[*word].1;
            }
            counts[*word] += 1;
            most = most.max(sum);
        }
        phrases.sort_unstable();
        phrases.dedup();
        (most, phrases)
    }

    /// What each pair tells: the more, the fewer of the chunks that were looked at have it.
    #[expect(clippy::cast_precision_loss, reason = "counts of chunks, for a logarithm")]
    fn weighed<'a>(
        &self,
        found: impl Iterator<Item = &'a Vec<(Term, Term)>>,
    ) -> HashMap<(Term, Term), f32> {
        let mut chunks: HashMap<(Term, Term), usize> =
            self.pairs.iter().map(|pair| (*pair, 0)).collect();
        for pair in found.flatten() {
            *chunks.entry(*pair).or_default() += 1;
        }
        let weight = |chunks: usize| (1.0 + CHUNKS as f32 / (chunks as f32 + 0.5)).ln();
        chunks.into_iter().map(|(pair, chunks)| (pair, weight(chunks))).collect()
    }
}

fn bit(term: Term) -> u64 {
    1 << (term % 64)
}
