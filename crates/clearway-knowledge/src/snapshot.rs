//! The index at one moment, how it is made from the one before, and the place that holds the current one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::closer::Look;
use crate::document::{Chunk, ChunkHash, Document, Scope};
use crate::graph::{Graph, Mentions, Names, Phrases, Sightings, Tie, Ties, Triple, tie};
use crate::latent::Latent;
use crate::lexical::{Count, Lexical, counts};
use crate::meaning::{Meanings, Sum};
use crate::parts::Parts;
use crate::rank::{MEANING_FLOOR, Ranked};
use crate::search::{Answer, Candidates, Hit, Limits, Query, Scanned, Scores, Why};
use crate::terms::{Lookup, QueryTerm, Terms};
use crate::text::{Analyzer, Language};
use crate::vectors::{Quantized, Vectors};
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
    names: Names,
    phrases: Phrases,
    triples: HashMap<ChunkHash, Arc<[Triple]>>,
    vectors: HashMap<ChunkHash, Arc<Quantized>>,
    space: Option<Arc<Latent>>,
}

/// A document's language is told by the first of so many of its chunks that is clear about it.
const LANGUAGE_CHUNKS: usize = 4;

/// A document with its texts as terms.
#[derive(Debug)]
struct Stored {
    document: Arc<Document>,
    title: Arc<[Term]>,
    language: Language,
    chunks: Vec<(Arc<Chunk>, Arc<Text>)>,
}

/// A chunk's text as terms, in order.
#[derive(Debug)]
pub(crate) struct Text {
    pub(crate) heading: Box<[Term]>,
    pub(crate) body: Box<[Term]>,
    /// The numbers of what it names.
    entities: Box<[Term]>,
    /// What could be phrases.
    candidates: Box<[u32]>,
}

/// A chunk in its place in a snapshot.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) chunk: Arc<Chunk>,
    /// Number of its document.
    pub(crate) document: u32,
    pub(crate) title: Arc<[Term]>,
    pub(crate) text: Arc<Text>,
    /// What stands beside its names in the graph.
    beside: Box<[Term]>,
}

/// An index that does not change any more.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// By id.
    documents: Vec<Arc<Document>>,
    audiences: Audiences,
    entries: Vec<Entry>,
    /// Those that the corpus is in, the most frequent first.
    languages: Vec<Language>,
    lexical: Lexical,
    parts: Parts,
    latent: Option<(Arc<Latent>, Vectors)>,
    /// What its English chunks mean in general.
    meaning: Option<(Meanings, Vectors)>,
    mentions: Mentions,
    /// Of what stands beside names.
    beside: Mentions,
    ties: Ties,
    embeddings: Option<Vectors>,
    stats: Stats,
    next: IndexBuilder,
}

/// Who may see what: the few different answers, and which one each document has. A scope is checked against these, so
/// that checking it costs nothing that grows with the texts.
#[derive(Debug, Default)]
struct Audiences {
    /// Collection and owner.
    kinds: Vec<(String, Option<String>)>,
    of_documents: Vec<u32>,
    /// The number of each chunk's document.
    documents_of_chunks: Vec<u32>,
}

impl Audiences {
    fn new(documents: &[Arc<Document>], entries: &[Entry]) -> Self {
        let mut numbers: HashMap<(&str, Option<&str>), u32> = HashMap::new();
        let mut audiences = Self::default();
        for document in documents {
            let kind = (&*document.collection, document.owner.as_deref());
            let number = *numbers.entry(kind).or_insert_with(|| {
                audiences.kinds.push((kind.0.to_owned(), kind.1.map(str::to_owned)));
                u32::try_from(audiences.kinds.len() - 1).unwrap_or(u32::MAX)
            });
            audiences.of_documents.push(number);
        }
        audiences.documents_of_chunks = entries.iter().map(|entry| entry.document).collect();
        audiences
    }

    /// By document, whether it is in scope; which documents the scope names is not looked at.
    fn admitted(&self, scope: &Scope<'_>) -> Vec<bool> {
        let admitted: Vec<bool> = self
            .kinds
            .iter()
            .map(|(collection, owner)| scope.admits(collection, owner.as_deref()))
            .collect();
        self.of_documents
            .iter()
            .map(|kind| admitted.get(*kind as usize).copied().unwrap_or_default())
            .collect()
    }
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
    /// Chunks that the latent space was learned from; 0 if there are too few to learn from. When this is far from
    /// `chunks`, it is time to learn anew.
    pub learned_from: usize,
    /// Directions of the latent space.
    pub latent_dimensions: usize,
}

impl IndexBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document, or replaces the one with its id. The chunks must be its own.
    pub fn put(&mut self, document: Document, chunks: Vec<Chunk>) {
        let id = Arc::clone(&document.id);
        let samples = chunks.iter().take(LANGUAGE_CHUNKS).map(|chunk| &*chunk.content);
        let language = samples.chain([document.title.as_str()]).find_map(Language::of);
        let language = language.unwrap_or(Language::English);
        let analyzer = Analyzer::new(language);
        let title = self.terms(&analyzer, &document.title).into();
        let mut sightings = Sightings::default();
        let chunks = chunks.into_iter().map(|chunk| {
            let heading = chunk.section_path.join("\n");
            let heading = self.terms(&analyzer, &heading).into();
            let body = self.terms(&analyzer, &chunk.content).into();
            let entities = self.names.of_chunk(&document, &chunk);
            let candidates = sightings.of_chunk(&chunk, language);
            (Arc::new(chunk), Arc::new(Text { heading, body, entities, candidates }))
        });
        let chunks = chunks.collect();
        self.phrases.take_in(sightings, &mut self.names);
        let stored = Stored { document: Arc::new(document), title, language, chunks };
        self.documents.insert(id, Arc::new(stored));
    }

    /// Whether there was one.
    pub fn remove(&mut self, doc_id: &str) -> bool {
        self.documents.remove(doc_id).is_some()
    }

    /// Gives all chunks with this hash their vector from the provider; all vectors must have one length.
    pub fn vector(&mut self, hash: ChunkHash, values: &[f32]) {
        if let Some(vector) = Quantized::new(values) {
            self.vectors.insert(hash, Arc::new(vector));
        }
    }

    /// The hashes of chunks that have no vector yet, each once, in reading order.
    pub fn without_vector(&self) -> Vec<(ChunkHash, Arc<Chunk>)> {
        self.missing(|hash| self.vectors.contains_key(hash))
    }

    /// Gives all chunks with this hash what a model says of their text.
    pub fn triples(&mut self, hash: ChunkHash, triples: Vec<Triple>) {
        self.triples.insert(hash, triples.into());
    }

    /// The hashes of chunks of which no model has said anything yet, each once, in reading order.
    pub fn without_triples(&self) -> Vec<(ChunkHash, Arc<Chunk>)> {
        self.missing(|hash| self.triples.contains_key(hash))
    }

    fn missing(&self, has: impl Fn(&ChunkHash) -> bool) -> Vec<(ChunkHash, Arc<Chunk>)> {
        let mut seen = std::collections::HashSet::new();
        let chunks = self.documents.values().flat_map(|stored| &stored.chunks);
        chunks
            .filter(|(chunk, _)| !has(&chunk.hash) && seen.insert(chunk.hash))
            .map(|(chunk, _)| (chunk.hash, Arc::clone(chunk)))
            .collect()
    }

    /// By number of the chunk, what was made of its text.
    fn ties(&mut self, entries: &[Entry]) -> Ties {
        let mut ties = Ties::new();
        if self.triples.is_empty() {
            return ties;
        }
        for (at, entry) in (0_u32..).zip(entries) {
            let Some(triples) = self.triples.get(&entry.chunk.hash) else { continue };
            let of_chunk: Arc<[Tie]> =
                triples.iter().filter_map(|triple| tie(triple, &mut self.names)).collect();
            if !of_chunk.is_empty() {
                ties.insert(at, of_chunk);
            }
        }
        ties
    }

    /// # Errors
    /// `go_on` said no.
    pub fn build(mut self, learn: Learn, go_on: GoOn<'_>) -> Result<Snapshot, Stopped> {
        let mut documents = Vec::with_capacity(self.documents.len());
        let mut entries = Vec::new();
        let mut languages: BTreeMap<Language, usize> = BTreeMap::new();
        for (number, stored) in (0_u32..).zip(self.documents.values()) {
            documents.push(Arc::clone(&stored.document));
            *languages.entry(stored.language).or_default() += stored.chunks.len();
            entries.extend(stored.chunks.iter().map(|(chunk, text)| Entry {
                chunk: Arc::clone(chunk),
                document: number,
                title: Arc::clone(&stored.title),
                text: Arc::clone(text),
                beside: Box::default(),
            }));
        }
        let ties = self.ties(&entries);
        for (at, entry) in (0_u32..).zip(&mut entries) {
            let ties = ties.get(&at).map_or(&[][..], |ties| ties);
            let text = &entry.text;
            entry.beside = self.phrases.of(&text.candidates, ties, &text.entities);
        }
        let mut counts = Vec::with_capacity(entries.len());
        for (at, entry) in entries.iter().enumerate() {
            if at % 512 == 0 && !go_on() {
                return Err(Stopped);
            }
            counts.push(entry.counts());
        }
        let terms = self.vocabulary.len();
        let lexical = Lexical::build(&entries, &counts, terms, go_on)?;
        let parts = Parts::new(&self.vocabulary, &lexical, entries.len());
        let space = match (learn, &self.space) {
            (Learn::Keep, Some(space)) => Some(Arc::clone(space)),
            _ => Latent::learn(&counts, terms, go_on)?.map(Arc::new),
        };
        let latent = match space {
            Some(space) => Some(placed(space, &counts, go_on)?),
            None => None,
        };
        let meaning = self.meaning(&lexical, &entries, go_on)?;
        let names = self.names.len();
        let mentions = Mentions::build(names, entries.iter().map(Entry::entities));
        let beside = Mentions::build(names, entries.iter().map(Entry::beside));
        let embeddings = self.embeddings(&entries);
        let mut languages: Vec<_> = languages.into_iter().collect();
        languages.sort_by_key(|(language, chunks)| (std::cmp::Reverse(*chunks), *language));
        let languages = languages.into_iter().map(|(language, _)| language).collect();
        let audiences = Audiences::new(&documents, &entries);
        let mut next = self;
        next.space = latent.as_ref().map(|(space, _)| Arc::clone(space));
        let mut snapshot = Snapshot {
            documents,
            audiences,
            entries,
            languages,
            lexical,
            parts,
            latent,
            meaning,
            mentions,
            beside,
            ties,
            embeddings,
            stats: Stats::default(),
            next,
        };
        snapshot.stats = snapshot.measured();
        Ok(snapshot)
    }

    /// Where English chunks lie by what their words mean; `None` if there are none.
    fn meaning(
        &self,
        lexical: &Lexical,
        entries: &[Entry],
        go_on: GoOn<'_>,
    ) -> Result<Option<(Meanings, Vectors)>, Stopped> {
        let is_english = |stored: &Arc<Stored>| stored.language == Language::English;
        let english: Vec<bool> = self.documents.values().map(is_english).collect();
        if !english.contains(&true) {
            return Ok(None);
        }
        let meanings = Meanings::of(&self.vocabulary);
        let mut places = Vectors::new(crate::meaning::DIMENSIONS);
        for (at, entry) in entries.iter().enumerate() {
            if at % 256 == 0 && !go_on() {
                return Err(Stopped);
            }
            let mut sum = Sum::default();
            if english[entry.document as usize] {
                for (term, weight) in lexical.weights(entry) {
                    if let Some(vector) = meanings.vector(term) {
                        sum.add(vector, weight * lexical.idf(term));
                    }
                }
            }
            places.push(sum.direction().as_ref());
        }
        Ok(Some((meanings, places)))
    }

    fn embeddings(&self, entries: &[Entry]) -> Option<Vectors> {
        let dimensions = self.vectors.values().next()?.dimensions();
        let mut vectors = Vectors::new(dimensions);
        entries
            .iter()
            .for_each(|entry| vectors.push(self.vectors.get(&entry.chunk.hash).map(AsRef::as_ref)));
        Some(vectors.sketched())
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
        self.stats
    }

    fn measured(&self) -> Stats {
        Stats {
            documents: self.documents.len(),
            chunks: self.entries.len(),
            terms: self.next.vocabulary.len(),
            index_bytes: self.lexical.bytes()
                + self.parts.bytes()
                + self.next.vocabulary.bytes()
                + self.latent.as_ref().map_or(0, |(space, places)| space.bytes() + places.bytes())
                + self.meaning.as_ref().map_or(0, |(rows, places)| rows.bytes() + places.bytes())
                + self.embeddings.as_ref().map_or(0, Vectors::bytes)
                + self.mentions.bytes()
                + self.beside.bytes()
                + self.next.phrases.bytes()
                + self.entries.iter().map(Entry::bytes).sum::<usize>(),
            learned_from: self.latent().map_or(0, |(space, _)| space.learned_from()),
            latent_dimensions: self.latent().map_or(0, |(space, _)| space.dimensions()),
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

    /// What the documents in scope name.
    pub fn graph(&self, scope: &Scope<'_>) -> Graph<'_> {
        let (_, allowed) = self.visible(scope);
        Graph::new(self, allowed)
    }

    /// By document and by chunk, whether it is in scope.
    fn visible(&self, scope: &Scope<'_>) -> (Vec<bool>, Vec<bool>) {
        let mut visible = self.audiences.admitted(scope);
        if let Some(ids) = scope.documents {
            let mut named = vec![false; visible.len()];
            for id in ids {
                if let Ok(at) = self.documents.binary_search_by(|document| (*document.id).cmp(id)) {
                    named[at] = visible[at];
                }
            }
            visible = named;
        }
        let of_chunk = |document: &u32| visible[*document as usize];
        let allowed = self.audiences.documents_of_chunks.iter().map(of_chunk).collect();
        (visible, allowed)
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
        let (visible, allowed) = self.visible(&query.scope);
        let mut scanned = Scanned {
            documents_in_scope: visible.iter().filter(|visible| **visible).count(),
            chunks_in_scope: allowed.iter().filter(|allowed| **allowed).count(),
            ..Scanned::default()
        };
        let lookup = Lookup {
            vocabulary: &self.next.vocabulary,
            lexical: &self.lexical,
            allowed: &allowed,
            languages: &self.languages,
        };
        let terms = lookup.terms(query.text);
        let ranked = self.ranked(query, &terms, &allowed, go_on)?;
        scanned.has_words = terms.has_words;
        scanned.matched = ranked.matched;
        scanned.unknown_words.clone_from(&terms.unknown);
        let corrected = terms
            .terms
            .iter()
            .filter_map(|term| Some((term.word.clone(), term.corrected.clone()?)));
        scanned.corrected = corrected.collect();
        let hits = ranked
            .order
            .iter()
            .map(|(chunk, fused)| self.hit(*chunk, *fused, &ranked, &terms))
            .collect();
        Ok(Candidates { hits, scanned })
    }

    fn hit(&self, chunk: u32, fused: f32, ranked: &Ranked, terms: &Terms) -> Hit {
        let at = chunk as usize;
        let entry = &self.entries[at];
        let matched: Vec<_> = terms.terms.iter().filter(|term| entry.has(term.term)).collect();
        let look = ranked.looks.get(&chunk);
        let share = matched.iter().map(|term| term.idf).sum::<f32>()
            / terms.total.max(f32::MIN_POSITIVE)
            + look.map_or(0.0, |look| look.nearly);
        let score = |scores: &[f32]| scores.get(at).copied().filter(|score| *score > 0.0);
        let (latent, embedding) = (score(&ranked.latent), score(&ranked.embedding));
        let meaning = score(&ranked.meaning).filter(|cosine| *cosine > MEANING_FLOOR);
        // Two independent reasons to take it for similar: it has the query's words, it is about the same things. What
        // the query is about is told by the words of it that are known; and in a small corpus everything is near.
        let known: f32 = terms.terms.iter().map(|term| term.idf).sum();
        let about = latent.unwrap_or_default() * ABOUT * known / terms.total.max(f32::MIN_POSITIVE);
        let own = 1.0 - (1.0 - share.clamp(0.0, 1.0)) * (1.0 - about.clamp(0.0, ABOUT));
        let shared =
            ranked.named.entities.iter().filter(|entity| entry.entities().contains(entity));
        let entities = shared.map(|entity| self.names().label(*entity).to_owned()).collect();
        Hit {
            chunk: Arc::clone(&entry.chunk),
            document: Arc::clone(&self.documents[entry.document as usize]),
            scores: Scores {
                words: score(&ranked.words),
                latent,
                meaning,
                embedding,
                graph: ranked.named.chunks.get(&chunk).copied(),
                fused,
                similarity: own.max(embedding.unwrap_or_default()).clamp(0.0, 1.0),
                ..Scores::default()
            },
            why: why(&matched, look, terms, entities),
        }
    }

    pub(crate) fn document_at(&self, number: u32) -> Option<Arc<Document>> {
        self.documents.get(number as usize).cloned()
    }

    /// The numbers of a document's chunks.
    pub(crate) fn chunks_of(&self, doc_id: &str) -> std::ops::Range<u32> {
        let Ok(at) = self.documents.binary_search_by(|document| (*document.id).cmp(doc_id)) else {
            return 0..0;
        };
        // Chunks lie in the order of their documents.
        let numbers = &self.audiences.documents_of_chunks;
        let first = |at: usize| numbers.partition_point(|document| (*document as usize) < at);
        let number = |at| u32::try_from(at).unwrap_or(u32::MAX);
        number(first(at))..number(first(at + 1))
    }

    pub(crate) fn lexical(&self) -> &Lexical {
        &self.lexical
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.next.vocabulary
    }

    pub(crate) fn latent(&self) -> Option<(&Latent, &Vectors)> {
        self.latent.as_ref().map(|(space, places)| (&**space, places))
    }

    pub(crate) fn meaning(&self) -> Option<(&Meanings, &Vectors)> {
        self.meaning.as_ref().map(|(meanings, places)| (meanings, places))
    }

    pub(crate) fn embeddings(&self) -> Option<&Vectors> {
        self.embeddings.as_ref()
    }

    pub(crate) fn mentions(&self) -> &Mentions {
        &self.mentions
    }

    pub(crate) fn beside(&self) -> &Mentions {
        &self.beside
    }

    pub(crate) fn ties_of(&self, chunk: u32) -> &[Tie] {
        self.ties.get(&chunk).map_or(&[], |ties| ties)
    }

    pub(crate) fn names(&self) -> &Names {
        &self.next.names
    }

    pub(crate) fn entry(&self, chunk: u32) -> &Entry {
        &self.entries[chunk as usize]
    }
}

/// How similar a passage can be that only is about the same things.
const ABOUT: f32 = 0.6;

/// The places of all chunks in a space.
fn placed(
    space: Arc<Latent>,
    all: &[Vec<Count>],
    go_on: GoOn<'_>,
) -> Result<(Arc<Latent>, Vectors), Stopped> {
    let mut places = Vectors::new(space.dimensions());
    for (at, counts) in all.iter().enumerate() {
        if at % 256 == 0 && !go_on() {
            return Err(Stopped);
        }
        places.push(space.place(counts).as_ref());
    }
    Ok((space, places))
}

fn why(matched: &[&QueryTerm], look: Option<&Look>, terms: &Terms, entities: Vec<String>) -> Why {
    let words = matched.iter().map(|term| term.word.clone()).collect();
    let Some(look) = look else { return Why { words, entities, ..Why::default() } };
    let written = |number| terms.terms.iter().find(|term| term.term == number);
    let phrase = |(a, b): &(Term, Term)| {
        let (a, b) = (written(*a)?, written(*b)?);
        Some(format!("{} {}", a.word, b.word))
    };
    let phrases = look.phrases.iter().filter_map(phrase).collect();
    let (parts, meanings) = (look.parts.clone(), look.meanings.clone());
    Why { words, phrases, parts, meanings, title: look.is_titled, entities }
}

impl Entry {
    pub(crate) fn entities(&self) -> &[Term] {
        &self.text.entities
    }

    pub(crate) fn beside(&self) -> &[Term] {
        &self.beside
    }

    pub(crate) fn counts(&self) -> Vec<Count> {
        counts(&self.title, &self.text.heading, &self.text.body)
    }

    /// Without the texts, with what is shared counted once.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + size_of::<Text>()
            + 4 * (self.text.heading.len() + self.text.body.len() + self.text.entities.len())
            + 4 * (self.text.candidates.len() + self.beside.len())
    }

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
