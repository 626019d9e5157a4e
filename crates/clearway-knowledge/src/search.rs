//! What is asked and what is answered: queries, limits, hits with their scores, and why there are none.

use std::fmt;
use std::sync::Arc;

use crate::document::{Chunk, Document, Scope};

/// A question to a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub text: &'a str,
    /// From the provider that made the chunks' vectors; without it words and latent vectors must do.
    pub embedding: Option<&'a [f32]>,
    /// Checked wherever a chunk is looked at, not afterwards.
    pub scope: Scope<'a>,
    /// How many candidates are ranked before limits apply.
    pub top_k: usize,
}

impl<'a> Query<'a> {
    pub fn new(text: &'a str, scope: Scope<'a>) -> Self {
        Self { text, embedding: None, scope, top_k: 100 }
    }
}

/// What of the candidates is handed out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// From 0 (no threshold) to 1, against [`Scores::similarity`].
    pub threshold: f32,
    pub max_chunks: usize,
    /// Together the hits have at most so many tokens.
    pub token_budget: u32,
}

impl Limits {
    /// All candidates.
    pub const NONE: Self = Self { threshold: 0.0, max_chunks: usize::MAX, token_budget: u32::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self { threshold: 0.5, max_chunks: 5, token_budget: 4_000 }
    }
}

/// Ranked chunks before limits: a reranker may change their order here.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The best first.
    pub hits: Vec<Hit>,
    pub scanned: Scanned,
}

/// What a search looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scanned {
    pub documents_in_scope: usize,
    pub chunks_in_scope: usize,
    /// Chunks with anything in common with the query, ranked or not.
    pub matched: usize,
    /// Words of the query that nothing in scope has.
    pub unknown_words: Vec<String>,
    /// Words of the query that were taken for others, and for which.
    pub corrected: Vec<(String, String)>,
    /// Whether the query had any word that carries meaning.
    pub has_words: bool,
}

#[derive(Clone, Debug)]
pub struct Hit {
    pub chunk: Arc<Chunk>,
    pub document: Arc<Document>,
    pub scores: Scores,
    pub why: Why,
}

/// A chunk's scores by source; `None` where a source had nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Of the words it shares with the query, open at the top.
    pub words: Option<f32>,
    /// Cosine in the space learned from the corpus.
    pub latent: Option<f32>,
    /// Cosine of what the words mean in general, in English.
    pub meaning: Option<f32>,
    /// Cosine of the provider's vectors.
    pub embedding: Option<f32>,
    /// From entities that the query names or that are near those, 0 to 1.
    pub graph: Option<f32>,
    /// What a reranker said.
    pub rerank: Option<f32>,
    /// What the order follows; comparable within one answer only.
    pub fused: f32,
    /// 0 to 1, comparable between answers; what the threshold is held against.
    pub similarity: f32,
}

/// Why a chunk was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Why {
    /// Words of the query that it has, in some form.
    pub words: Vec<String>,
    /// Words of the query that stand side by side in it, too.
    pub phrases: Vec<String>,
    /// Words of the query that it does not have, but others that are alike in part.
    pub parts: Vec<String>,
    /// Words of the query that it does not have, but one that means nearly the same.
    pub meanings: Vec<String>,
    /// Whether most of what its title says was asked for.
    pub title: bool,
    /// Entities that it shares with the query.
    pub entities: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub hits: Vec<Hit>,
    pub explanation: Explanation,
}

/// What became of the candidates; says why when there are no hits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    pub scanned: Scanned,
    pub candidates: usize,
    /// Of all candidates, before the threshold.
    pub best_similarity: Option<f32>,
    pub below_threshold: usize,
    pub over_token_budget: usize,
    pub over_max_chunks: usize,
    pub limits: Limits,
}

impl Candidates {
    /// Orders the candidates by what a reranker says of each, in their present order; a missing score leaves a
    /// candidate behind those that have one.
    pub fn rerank(&mut self, scores: &[Option<f32>]) {
        for (at, hit) in self.hits.iter_mut().enumerate() {
            hit.scores.rerank = scores.get(at).copied().flatten().filter(|score| score.is_finite());
        }
        self.hits.sort_by(|a, b| {
            let key = |hit: &Hit| hit.scores.rerank.unwrap_or(f32::NEG_INFINITY);
            key(b).total_cmp(&key(a))
        });
    }

    /// What the limits let through.
    pub fn limited(self, limits: &Limits) -> Answer {
        let mut explanation = Explanation {
            scanned: self.scanned,
            candidates: self.hits.len(),
            limits: *limits,
            best_similarity: self.hits.iter().map(|hit| hit.scores.similarity).reduce(f32::max),
            ..Explanation::default()
        };
        let mut hits = Vec::new();
        let mut tokens = 0_u32;
        for hit in self.hits {
            let with = tokens.saturating_add(hit.chunk.tokens);
            if hit.scores.similarity < limits.threshold {
                explanation.below_threshold += 1;
            } else if hits.len() >= limits.max_chunks {
                explanation.over_max_chunks += 1;
            } else if with > limits.token_budget {
                // A shorter one further down may still have room.
                explanation.over_token_budget += 1;
            } else {
                tokens = with;
                hits.push(hit);
            }
        }
        Answer { hits, explanation }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scanned { documents_in_scope: documents, chunks_in_scope: chunks, .. } = self.scanned;
        if documents == 0 {
            return f.write_str("no document is in scope");
        }
        if chunks == 0 {
            return write!(f, "{documents} documents are in scope, and none of them has any text");
        }
        write!(f, "{chunks} chunks of {documents} documents in scope")?;
        if self.candidates == 0 {
            let why = if self.scanned.has_words {
                "none has anything in common with the query"
            } else {
                "the query has no word to look for"
            };
            write!(f, "; {why}")?;
        } else {
            write!(f, "; {} candidates", self.candidates)?;
        }
        if let Some(best) = self.best_similarity {
            write!(f, ", best similarity {best:.2}")?;
        }
        if self.below_threshold > 0 {
            write!(
                f,
                "; {} below the threshold of {}",
                self.below_threshold, self.limits.threshold
            )?;
        }
        if self.over_token_budget > 0 {
            let budget = self.limits.token_budget;
            write!(f, "; {} over the budget of {budget} tokens", self.over_token_budget)?;
        }
        if self.over_max_chunks > 0 {
            write!(f, "; {} beyond the first {}", self.over_max_chunks, self.limits.max_chunks)?;
        }
        if !self.scanned.unknown_words.is_empty() {
            write!(f, "; unknown words: {}", self.scanned.unknown_words.join(", "))?;
        }
        Ok(())
    }
}
