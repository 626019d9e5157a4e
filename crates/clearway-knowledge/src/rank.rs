//! Ranking: the sources one after the other, and how they become one order.
//!
//! 1. Words (BM25F), latent nearness, and nearness of the query's words to each other give a first order.
//! 2. The best few chunks of it say which further words belong to the subject; words with these again, and latent
//!    nearness, give the order. The less the best chunk stands out, the more these words count: a question that is
//!    answered by one text alone needs no others; nor does one whose best chunk by words is far from it by latent
//!    vectors. Only words that several of them have are taken.
//! 3. Chunks that name what the query names, or what is near that, move up a little.
//! 4. Among the best, a chunk is drawn to where those are that are like it: texts about one thing answer together.
//! 5. The best are looked at closer (`closer.rs`).
//! 6. With vectors from a provider, that order and theirs are fused by rank.
//!
//! What English words mean in general (`meaning.rs`) counts like latent nearness, in a small corpus, too.
//!
//! How much latent nearness counts depends on the corpus: texts of a few words say too little about each other.
//! Each choice was measured on classic test collections; `docs/retrieval.md` has the figures.
//!
//! Every array here is filled in scope only, so nothing outside it can be ranked, fed back or counted.

use std::collections::HashMap;

use crate::closer::Look;
use crate::graph::Graph;
use crate::lexical::Weighted;
use crate::meaning::{self, Sum};
use crate::search::Query;
use crate::snapshot::Snapshot;
use crate::terms::{QueryTerm, Terms};
use crate::vectors::Quantized;
use crate::vocabulary::{STOP, Term};
use crate::{GoOn, Stopped};

/// Against the best score of words, which is 1.
const LATENT: f32 = 0.35;
/// Texts of so many words and more say enough about each other.
const LATENT_FULL_WORDS: f32 = 80.0;
/// Nearness by what words mean in general, against the same.
const MEANING: f32 = 0.35;
/// Texts that are less near have nothing in common.
pub(crate) const MEANING_FLOOR: f32 = 0.2;
/// Between texts that are hardly near, less than this beyond the floor tells little.
const MEANING_SPAN: f32 = 0.3;
/// The chunks that say which further words belong to the subject, and how many words.
const FEEDBACK_CHUNKS: usize = 8;
const FEEDBACK_TERMS: usize = 30;
/// So many of them must have a word.
const FEEDBACK_SHARED: usize = 2;
/// What they count together, against the query's own words, if no chunk stands out.
const FEEDBACK: f32 = 0.4;
/// How steeply these give way as the best chunk stands out from the others.
const FLATNESS: i32 = 4;
/// They count in full if the best chunk by words is so near by latent vectors, against the nearest one; how steeply they
/// give way if it is not: where the two do not agree, words of other subjects would come in.
const AGREED: f32 = 0.85;
const AGREEMENT: i32 = 4;
/// A word that a long question repeats counts more, but not as often as it is there.
const REPEATED: f32 = 0.85;
/// Pairs of the query's words that are near each other, in chunks that are good already.
const NEAR: f32 = 0.6;
const NEAR_CHUNKS: usize = 100;
const NEAR_PLACES: usize = 8;
/// How many of the best are compared with each other, and how far each is drawn to those like it.
const ALIKE_CHUNKS: usize = 50;
const ALIKE: f32 = 0.3;
/// Chunks that name what the query names, against the best score of words, which is 1.
const GRAPH: f32 = 0.03;
const NAMED_ENTITIES: usize = 8;
const MAX_NAMED_CHUNKS: usize = 64;
const NEIGHBOURS: usize = 12;
/// What a neighbour's chunks count against the entity's own.
const SECOND_STEP: f32 = 0.5;
/// Ranks this far apart differ by half.
const RRF_K: f32 = 60.0;
/// Deeper than this a rank says nothing.
const DEPTH: usize = 1_000;

/// The scores of all chunks in scope, by source, and their order.
#[derive(Debug, Default)]
pub(crate) struct Ranked {
    pub(crate) words: Vec<f32>,
    pub(crate) latent: Vec<f32>,
    /// Cosines by what words mean in general.
    pub(crate) meaning: Vec<f32>,
    pub(crate) embedding: Vec<f32>,
    pub(crate) named: Named,
    /// What a closer look found in the best.
    pub(crate) looks: HashMap<u32, Look>,
    /// The best first, with what the order follows.
    pub(crate) order: Vec<(u32, f32)>,
    pub(crate) matched: usize,
}

/// What the query names, and the chunks that name it or something near it.
#[derive(Debug, Default)]
pub(crate) struct Named {
    pub(crate) entities: Vec<Term>,
    /// From 0 to 1; few chunks have any.
    pub(crate) chunks: HashMap<u32, f32>,
}

impl Snapshot {
    pub(crate) fn ranked(
        &self,
        query: &Query<'_>,
        terms: &Terms,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Ranked, Stopped> {
        let lexical = self.lexical();
        let mut words = vec![0_f32; allowed.len()];
        for term in &terms.terms {
            if !go_on() {
                return Err(Stopped);
            }
            lexical.add(
                Weighted { term: term.term, weight: own_weight(term) },
                allowed,
                &mut words,
            );
        }
        let latent = self.latent_cosines(terms, allowed, go_on)?;
        let meaning = self.meaning_cosines(terms, allowed, go_on)?;
        let named = self.named(query.text, allowed);
        let weight = LATENT * (lexical.average_words() / LATENT_FULL_WORDS).min(1.0);
        let near = self.nearness(terms, &words, allowed.len());
        let vectors = [
            Cosines { values: &latent, weight, floor: 0.0, span: f32::MIN_POSITIVE },
            Cosines { values: &meaning, weight: MEANING, floor: MEANING_FLOOR, span: MEANING_SPAN },
        ];
        let first = blended(&words, &near, vectors);
        let first = best(&first, FEEDBACK_CHUNKS);
        let mut fed = words.clone();
        let own: f32 = terms.terms.iter().map(own_weight).sum();
        let own = own * agreement(&words, &near, &latent);
        for term in self.feedback(&first, own) {
            if !go_on() {
                return Err(Stopped);
            }
            lexical.add(term, allowed, &mut fed);
        }
        let mut blend = blended(&fed, &near, vectors);
        for (chunk, score) in &named.chunks {
            blend[*chunk as usize] += GRAPH * score;
        }
        self.drawn_together(&mut blend);
        let looks = self.looked_at(terms, &mut blend);
        let matched = blend.iter().filter(|score| **score > 0.0).count();
        let mut order = best(&blend, DEPTH.max(query.top_k));
        let mut embedding = self.embedding_cosines(query, allowed, go_on)?;
        if !embedding.is_empty() {
            order = fused(&order, &best(&embedding, DEPTH.max(query.top_k)));
        }
        order.truncate(query.top_k);
        self.complete(&mut embedding, &order, query);
        Ok(Ranked { words, latent, meaning, embedding, named, looks, order, matched })
    }

    fn latent_cosines(
        &self,
        terms: &Terms,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        let Some((space, places)) = self.latent() else { return Ok(Vec::new()) };
        let counted: Vec<(Term, f32)> = terms
            .terms
            .iter()
            .filter(|term| term.count > 0.0)
            .map(|term| (term.term, term.count))
            .collect();
        match space.place_query(&counted) {
            Some(place) => places.cosines(&place, allowed, go_on),
            None => Ok(Vec::new()),
        }
    }

    /// How near English chunks are to the query by what their words mean in general.
    fn meaning_cosines(
        &self,
        terms: &Terms,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        let Some((meanings, places)) = self.meaning().filter(|_| terms.is_english) else {
            return Ok(Vec::new());
        };
        let mut sum = Sum::default();
        for term in &terms.terms {
            if let Some(vector) = meanings.vector(term.term) {
                sum.add(vector, own_weight(term));
            }
        }
        // In a corpus that has none of the query's words, they still mean something.
        if terms.terms.is_empty() {
            for vector in terms.strange.iter().filter_map(|stem| meaning::of_stem(stem)) {
                sum.add(vector, 1.0);
            }
        }
        match sum.direction() {
            Some(place) => places.cosines(&place, allowed, go_on),
            None => Ok(Vec::new()),
        }
    }

    /// Chunks that name what the query names, and less so those that name what is near it: the second step of a question
    /// whose answer is in no single text.
    fn named(&self, text: &str, allowed: &[bool]) -> Named {
        let graph = Graph::of_names(self, allowed.to_vec());
        let mut named = Named::default();
        for entity in self.names().within(text).into_iter().take(NAMED_ENTITIES) {
            let chunks: Vec<u32> = graph.seen(entity).take(MAX_NAMED_CHUNKS + 1).collect();
            // What is named everywhere tells nothing apart.
            if chunks.is_empty() || chunks.len() > MAX_NAMED_CHUNKS {
                continue;
            }
            named.entities.push(entity);
            for chunk in chunks {
                named.chunks.insert(chunk, 1.0);
            }
            for (near, weight, _) in graph.near(entity, NEIGHBOURS) {
                for chunk in graph.seen(near).take(MAX_NAMED_CHUNKS) {
                    let score = named.chunks.entry(chunk).or_default();
                    *score = score.max(weight * SECOND_STEP);
                }
            }
        }
        named
    }

    fn embedding_cosines(
        &self,
        query: &Query<'_>,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        match (query.embedding.and_then(Quantized::new), self.embeddings()) {
            (Some(vector), Some(vectors)) => vectors.nearest(&vector, allowed, go_on),
            _ => Ok(Vec::new()),
        }
    }

    /// What was found by its words may be too far off to have been compared by its vector before.
    fn complete(&self, cosines: &mut [f32], order: &[(u32, f32)], query: &Query<'_>) {
        let vector = query.embedding.and_then(Quantized::new);
        if let (Some(vector), Some(vectors)) = (vector, self.embeddings()) {
            for (chunk, _) in order {
                let at = *chunk as usize;
                if let Some(cosine) = cosines.get_mut(at) {
                    *cosine = vectors.cosine(&vector, at);
                }
            }
        }
    }

    /// What chunks get for words of the query that stand near each other in them as they do in it; few chunks get any.
    fn nearness(&self, terms: &Terms, words: &[f32], chunks: usize) -> HashMap<u32, f32> {
        let mut pairs: Vec<(Term, Term)> =
            terms.order.windows(2).map(|pair| (pair[0], pair[1])).collect();
        pairs.retain(|(a, b)| a != b);
        pairs.sort_unstable();
        pairs.dedup();
        let mut near = HashMap::new();
        if pairs.is_empty() || chunks == 0 {
            return near;
        }
        for (chunk, _) in best(words, NEAR_CHUNKS) {
            let entry = self.entry(chunk);
            let text: Vec<Term> =
                [&*entry.title, &[STOP], &*entry.text.heading, &[STOP], &*entry.text.body].concat();
            let score: f32 = pairs
                .iter()
                .map(|(a, b)| {
                    let often = closeness(&text, *a, *b);
                    let worth = f32::midpoint(self.lexical().idf(*a), self.lexical().idf(*b));
                    worth * often / (often + 1.0)
                })
                .sum();
            if score > 0.0 {
                near.insert(chunk, NEAR * score);
            }
        }
        near
    }

    /// Draws each of the best chunks to where those are that are like it. None falls behind what was not compared.
    fn drawn_together(&self, blend: &mut [f32]) {
        let best = best(blend, ALIKE_CHUNKS);
        let (Some((_, most)), Some((_, floor))) = (best.first(), best.last()) else { return };
        if best.len() < 3 || most <= floor {
            return;
        }
        let alike = self.likeness(&best);
        for (at, (chunk, score)) in best.iter().enumerate() {
            let (mut sum, mut total) = (0.0, f32::MIN_POSITIVE);
            for (other, (_, score)) in best.iter().enumerate().filter(|(other, _)| *other != at) {
                // Squared: a few that are much alike say more than many that are a little.
                let alike = alike[at * best.len() + other].powi(2);
                sum += alike * score;
                total += alike;
            }
            let drawn = (1.0 - ALIKE) * (score - floor) + ALIKE * (sum / total);
            blend[*chunk as usize] = floor + drawn;
        }
    }

    /// The cosine of each pair of chunks by their weighted words, row by row.
    fn likeness(&self, chunks: &[(u32, f32)]) -> Vec<f32> {
        let count = chunks.len();
        let mut words: Vec<(Term, usize, f32)> = Vec::new();
        for (at, (chunk, _)) in chunks.iter().enumerate() {
            let start = words.len();
            let weights = self.lexical().weights(self.entry(*chunk)).into_iter();
            words.extend(
                weights.map(|(term, weight)| (term, at, weight * self.lexical().idf(term))),
            );
            let own = &mut words[start..];
            let length = own.iter().map(|(_, _, weight)| weight * weight).sum::<f32>().sqrt();
            own.iter_mut().for_each(|(_, _, weight)| *weight /= length.max(f32::MIN_POSITIVE));
        }
        words.sort_unstable_by_key(|(term, at, _)| (*term, *at));
        let mut alike = vec![0_f32; count * count];
        for same in words.chunk_by(|(a, ..), (b, ..)| a == b) {
            for (rank, (_, a, x)) in same.iter().enumerate() {
                for (_, b, y) in &same[rank + 1..] {
                    alike[a * count + b] += x * y;
                    alike[b * count + a] += x * y;
                }
            }
        }
        alike
    }

    /// Words that the best chunks have in common, weighted so that together they count as they should.
    fn feedback(&self, first: &[(u32, f32)], own: f32) -> Vec<Weighted> {
        let Some((_, top)) = first.first() else { return Vec::new() };
        let total: f32 = first.iter().map(|(_, score)| score).sum();
        let others = &first[1..];
        let flat = others.iter().map(|(_, score)| score).sum::<f32>() / top.max(f32::MIN_POSITIVE);
        #[expect(clippy::cast_precision_loss, reason = "at most a handful")]
        let flat = if others.is_empty() { 0.0 } else { flat / others.len() as f32 };
        let mut sums: HashMap<Term, (f32, usize)> = HashMap::new();
        for (chunk, score) in first {
            for (term, weight) in self.lexical().weights(self.entry(*chunk)) {
                let (sum, chunks) = sums.entry(term).or_default();
                *sum += score / total.max(f32::MIN_POSITIVE) * weight;
                *chunks += 1;
            }
        }
        let mut terms: Vec<Weighted> = sums
            .into_iter()
            .filter(|(_, (_, chunks))| *chunks >= FEEDBACK_SHARED)
            .map(|(term, (sum, _))| Weighted { term, weight: sum * self.lexical().idf(term) })
            .collect();
        terms.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.term.cmp(&b.term)));
        terms.truncate(FEEDBACK_TERMS);
        let sum: f32 = terms.iter().map(|term| term.weight).sum();
        let scale = FEEDBACK * flat.powi(FLATNESS) * own / sum.max(f32::MIN_POSITIVE);
        terms.iter_mut().for_each(|term| term.weight *= scale);
        terms
    }
}

/// What a word of the query counts.
fn own_weight(term: &QueryTerm) -> f32 {
    term.idf * term.count.powf(REPEATED)
}

/// How far latent vectors agree with words on what is best: 1 if they do as far as is usual.
fn agreement(words: &[f32], near: &HashMap<u32, f32>, latent: &[f32]) -> f32 {
    let nearest = latent.iter().copied().fold(0.0, f32::max);
    if nearest <= 0.0 {
        return 1.0;
    }
    // What near words give comes on top, and few have any.
    let with_near = near.iter().map(|(chunk, score)| (*chunk, words[*chunk as usize] + score));
    let Some((first, _)) = best(words, 1)
        .into_iter()
        .chain(with_near)
        .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
    else {
        return 1.0;
    };
    (latent[first as usize].max(0.0) / nearest / AGREED).powi(AGREEMENT)
}

/// How near two terms are to each other in a text: 1 for each time side by side, less for each place between.
#[expect(clippy::cast_precision_loss, reason = "a few places")]
fn closeness(text: &[Term], a: Term, b: Term) -> f32 {
    let (mut at_a, mut at_b) = (None::<usize>, None::<usize>);
    let mut sum = 0.0;
    for (at, term) in text.iter().enumerate() {
        let other = if *term == a {
            at_a = Some(at);
            at_b
        } else if *term == b {
            at_b = Some(at);
            at_a
        } else {
            continue;
        };
        if let Some(other) = other.filter(|other| at - other <= NEAR_PLACES) {
            sum += 1.0 / (at - other) as f32;
        }
    }
    sum
}

/// What vectors say of all chunks, and how it counts.
#[derive(Clone, Copy)]
struct Cosines<'a> {
    values: &'a [f32],
    /// Of the best one, against the best score of words.
    weight: f32,
    /// Nothing counts below.
    floor: f32,
    /// What the best one is beyond the floor, at least.
    span: f32,
}

/// Words and nearness by vectors, each against its best, in one score.
fn blended(words: &[f32], near: &HashMap<u32, f32>, vectors: [Cosines<'_>; 2]) -> Vec<f32> {
    let mut blend = words.to_vec();
    for (chunk, score) in near {
        blend[*chunk as usize] += score;
    }
    let best = |scores: &[f32]| scores.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let most = best(&blend);
    blend.iter_mut().for_each(|score| *score /= most);
    for Cosines { values, weight, floor, span } in vectors {
        let span = (best(values) - floor).max(span);
        for (score, cosine) in blend.iter_mut().zip(values) {
            *score += weight * ((cosine - floor) / span).max(0.0);
        }
    }
    blend
}

/// The best scores above zero, best first; equal ones in reading order.
pub(crate) fn best(scores: &[f32], count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count == 0 {
        return Vec::new();
    }
    // Of what is gathered, at most half is thrown away at a time; what cannot be among the best is not gathered.
    let most = count.saturating_mul(2).min(scores.len().max(count));
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(most + 1);
    let mut floor = 0.0;
    for (at, score) in (0_u32..).zip(scores.iter().copied()) {
        if score > floor {
            found.push((at, score));
            if found.len() > most && found.len() > count {
                found.select_nth_unstable_by(count - 1, order);
                found.truncate(count);
                // Later ones of the same score come after all that are kept.
                floor = found[count - 1].1;
            }
        }
    }
    if found.len() > count {
        found.select_nth_unstable_by(count - 1, order);
        found.truncate(count);
    }
    found.sort_unstable_by(order);
    found
}

/// Two orders as one, by rank alone: their scores cannot be compared.
#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn fused(a: &[(u32, f32)], b: &[(u32, f32)]) -> Vec<(u32, f32)> {
    let mut scores: HashMap<u32, f32> = HashMap::new();
    for list in [a, b] {
        for (rank, (chunk, _)) in list.iter().enumerate() {
            *scores.entry(*chunk).or_default() += 1.0 / (RRF_K + 1.0 + rank as f32);
        }
    }
    let mut order: Vec<(u32, f32)> = scores.into_iter().collect();
    order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_that_sorting_all_of_them_gives() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from((state >> 16) % 50).unwrap_or_default()) - 10.0
        };
        let scores: Vec<f32> = (0..997).map(|_| next()).collect();
        let mut all: Vec<(u32, f32)> =
            (0_u32..).zip(scores.iter().copied()).filter(|(_, score)| *score > 0.0).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for count in [0, 1, 2, 7, 100, 700, 5_000] {
            assert_eq!(best(&scores, count), all[..count.min(all.len())], "{count}");
        }
    }
}
