//! The index at one moment, how it is made from the one before, and the place that holds the current one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::document::{Chunk, ChunkHash, Document, Scope};
use crate::lexical::{Lexical, Weighted};
use crate::search::{Answer, Candidates, Hit, Limits, Query, Scanned, Scores, Why};
use crate::text::{Analyzer, Language};
use crate::vocabulary::{STOP, Term, Vocabulary};
use crate::{GoOn, Stopped};

/// Holds the current snapshot. Readers take it without waiting; whoever has one may keep it as long as needed.
#[derive(Debug, Default)]
pub struct Index {
    current: ArcSwap<Snapshot>,
}

impl Index {
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub fn store(&self, snapshot: Snapshot) {
        self.current.store(Arc::new(snapshot));
    }
}

/// Whether a build learns the latent space from all texts, or keeps the one there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Learn {
    /// Learns it anew: seconds for a hundred thousand chunks.
    Anew,
    /// Places new chunks in the space that was learned before; learns one if there is none.
    Keep,
}

/// Gathers documents for the next snapshot.
#[derive(Clone, Debug, Default)]
pub struct IndexBuilder {
    documents: BTreeMap<Arc<str>, Arc<Stored>>,
    vocabulary: Vocabulary,
    vectors: HashMap<ChunkHash, Arc<[f32]>>,
}

/// A document with its texts as terms.
#[derive(Debug)]
struct Stored {
    document: Arc<Document>,
    title: Arc<[Term]>,
    chunks: Vec<(Arc<Chunk>, Arc<Text>)>,
}

/// A chunk's text as terms, in order.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) heading: Box<[Term]>,
    pub(crate) body: Box<[Term]>,
}

/// A chunk in its place in a snapshot.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) chunk: Arc<Chunk>,
    /// Number of its document.
    pub(crate) document: u32,
    pub(crate) title: Arc<[Term]>,
    pub(crate) text: Arc<Text>,
}

/// An index that does not change any more.
#[derive(Debug, Default)]
pub struct Snapshot {
    documents: Vec<Arc<Document>>,
    entries: Vec<Entry>,
    lexical: Lexical,
    next: IndexBuilder,
}

/// How large a snapshot is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    pub documents: usize,
    pub chunks: usize,
    pub terms: usize,
    /// Of the index's own arrays; the texts come on top.
    pub index_bytes: usize,
    pub text_bytes: usize,
}

impl IndexBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document, or replaces the one with its id. The chunks must be its own.
    pub fn put(&mut self, document: Document, chunks: Vec<Chunk>) {
        let id = Arc::clone(&document.id);
        let sample = chunks.first().map_or(document.title.as_str(), |chunk| &chunk.content);
        let language = Language::of(sample).unwrap_or(Language::English);
        let analyzer = Analyzer::new(language);
        let title = self.terms(&analyzer, &document.title).into();
        let chunks = chunks.into_iter().map(|chunk| {
            let heading = chunk.section_path.join("\n");
            let heading = self.terms(&analyzer, &heading).into();
            let body = self.terms(&analyzer, &chunk.content).into();
            (Arc::new(chunk), Arc::new(Text { heading, body }))
        });
        let chunks = chunks.collect();
        let stored = Stored { document: Arc::new(document), title, chunks };
        self.documents.insert(id, Arc::new(stored));
    }

    /// Whether there was one.
    pub fn remove(&mut self, doc_id: &str) -> bool {
        self.documents.remove(doc_id).is_some()
    }

    /// Gives all chunks with this hash their vector from the provider; all vectors must have one length.
    pub fn vector(&mut self, hash: ChunkHash, values: &[f32]) {
        self.vectors.insert(hash, values.into());
    }

    /// The hashes of chunks that have no vector yet, each once, in reading order.
    pub fn without_vector(&self) -> Vec<(ChunkHash, Arc<Chunk>)> {
        let mut seen = std::collections::HashSet::new();
        let chunks = self.documents.values().flat_map(|stored| &stored.chunks);
        chunks
            .filter(|(chunk, _)| !self.vectors.contains_key(&chunk.hash) && seen.insert(chunk.hash))
            .map(|(chunk, _)| (chunk.hash, Arc::clone(chunk)))
            .collect()
    }

    /// # Errors
    /// `go_on` said no.
    pub fn build(self, learn: Learn, go_on: GoOn<'_>) -> Result<Snapshot, Stopped> {
        let _ = learn;
        let mut documents = Vec::with_capacity(self.documents.len());
        let mut entries = Vec::new();
        for (number, stored) in (0_u32..).zip(self.documents.values()) {
            documents.push(Arc::clone(&stored.document));
            entries.extend(stored.chunks.iter().map(|(chunk, text)| Entry {
                chunk: Arc::clone(chunk),
                document: number,
                title: Arc::clone(&stored.title),
                text: Arc::clone(text),
            }));
        }
        let lexical = Lexical::build(&entries, self.vocabulary.len(), go_on)?;
        Ok(Snapshot { documents, entries, lexical, next: self })
    }

    fn terms(&mut self, analyzer: &Analyzer, text: &str) -> Vec<Term> {
        let mut terms = Vec::new();
        analyzer.tokens(text, |token| {
            terms.push(if token.is_stop { STOP } else { self.vocabulary.intern(&token.term) });
            true
        });
        terms
    }
}

impl Snapshot {
    /// A builder with all that is in here.
    pub fn edit(&self) -> IndexBuilder {
        self.next.clone()
    }

    pub fn stats(&self) -> Stats {
        Stats {
            documents: self.documents.len(),
            chunks: self.entries.len(),
            terms: self.next.vocabulary.len(),
            index_bytes: self.lexical.bytes(),
            text_bytes: self.entries.iter().map(|entry| entry.chunk.content.len()).sum(),
        }
    }

    /// The documents in scope, by id.
    pub fn documents<'a>(
        &'a self,
        scope: &'a Scope<'a>,
    ) -> impl Iterator<Item = &'a Arc<Document>> {
        self.documents.iter().filter(|document| seen(document, scope))
    }

    /// A document, if it is in scope.
    pub fn document(&self, id: &str, scope: &Scope<'_>) -> Option<&Arc<Document>> {
        let document = &self.next.documents.get(id)?.document;
        seen(document, scope).then_some(document)
    }

    /// A document's chunks in reading order; none if it is out of scope.
    pub fn chunks(&self, doc_id: &str, scope: &Scope<'_>) -> Vec<Arc<Chunk>> {
        let stored = self.next.documents.get(doc_id).filter(|stored| seen(&stored.document, scope));
        stored.map_or_else(Vec::new, |stored| {
            stored.chunks.iter().map(|(chunk, _)| Arc::clone(chunk)).collect()
        })
    }

    /// Ranks, and lets the limits through.
    ///
    /// # Errors
    /// `go_on` said no.
    pub fn search(
        &self,
        query: &Query<'_>,
        limits: &Limits,
        go_on: GoOn<'_>,
    ) -> Result<Answer, Stopped> {
        Ok(self.candidates(query, go_on)?.limited(limits))
    }

    /// Ranks the chunks in scope.
    ///
    /// # Errors
    /// `go_on` said no.
    pub fn candidates(&self, query: &Query<'_>, go_on: GoOn<'_>) -> Result<Candidates, Stopped> {
        let visible: Vec<bool> =
            self.documents.iter().map(|document| seen(document, &query.scope)).collect();
        let allowed: Vec<bool> =
            self.entries.iter().map(|entry| visible[entry.document as usize]).collect();
        let mut scanned = Scanned {
            documents_in_scope: visible.iter().filter(|visible| **visible).count(),
            chunks_in_scope: allowed.iter().filter(|allowed| **allowed).count(),
            ..Scanned::default()
        };
        let mut scores = vec![0_f32; self.entries.len()];
        let mut total = 0_f32;
        let analyzer = Analyzer::new(Language::of(query.text).unwrap_or(Language::English));
        let mut terms: HashMap<Term, (f32, String)> = HashMap::new();
        analyzer.tokens(query.text, |token| {
            if token.is_stop {
                return true;
            }
            scanned.has_words = true;
            match self.next.vocabulary.number(&token.term) {
                Some(term) => {
                    terms.entry(term).or_insert_with(|| (0.0, token.word.to_owned())).0 += 1.0
                }
                None if scanned.unknown_words.len() < 16 => {
                    scanned.unknown_words.push(token.word.to_owned())
                }
                None => {}
            }
            terms.len() < 256
        });
        for (term, (count, _)) in &terms {
            if !go_on() {
                return Err(Stopped);
            }
            let idf = self.lexical.idf(*term);
            total += idf;
            self.lexical.add(Weighted { term: *term, weight: idf * count }, &allowed, &mut scores);
        }
        let mut order: Vec<u32> =
            (0_u32..).zip(&scores).filter(|(_, score)| **score > 0.0).map(|(at, _)| at).collect();
        scanned.matched = order.len();
        order.sort_unstable_by(|a, b| {
            scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b))
        });
        order.truncate(query.top_k);
        let hits = order.into_iter().map(|at| {
            let entry = &self.entries[at as usize];
            let words = scores[at as usize];
            let matched = terms.iter().filter(|(term, _)| entry.has(**term));
            let share: f32 = matched.clone().map(|(term, _)| self.lexical.idf(*term)).sum();
            Hit {
                chunk: Arc::clone(&entry.chunk),
                document: Arc::clone(&self.documents[entry.document as usize]),
                scores: Scores {
                    words: Some(words),
                    fused: words,
                    similarity: (share / total.max(f32::MIN_POSITIVE)).clamp(0.0, 1.0),
                    ..Scores::default()
                },
                why: Why {
                    words: matched.map(|(_, (_, word))| word.clone()).collect(),
                    entities: Vec::new(),
                },
            }
        });
        Ok(Candidates { hits: hits.collect(), scanned })
    }
}

impl Entry {
    fn has(&self, term: Term) -> bool {
        self.text.body.contains(&term)
            || self.text.heading.contains(&term)
            || self.title.contains(&term)
    }
}

fn seen(document: &Document, scope: &Scope<'_>) -> bool {
    scope.admits(&document.collection, document.owner.as_deref())
        && scope.documents.is_none_or(|ids| ids.contains(&&*document.id))
}

#[cfg(test)]
mod tests;
