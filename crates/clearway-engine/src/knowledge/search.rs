//! Finding: one question, put to the indexes of one or several sources.
//!
//! A search has a place on a board with its own wait cell, so anybody can see what it waits for and
//! since when. It takes the index that is there, ranks in a blocking lane, and drops everything when
//! its caller leaves.
//!
//! **Invariants:** it ends within its deadline with an answer or an error that says which stage used
//! the time up; what the viewer may not see is left out before anything is ranked; without hits the
//! answer says why; a provider that does not answer costs the provider's part, not the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clearway_core::wait::{Spent, WaitCell, WaitKind, Waiting};
use clearway_core::{Code, Deadline, Failure};
use clearway_knowledge::{
    Answer, Candidates, Chunk, Document, Explanation, Limits, Query, Scanned, Scope, Scores,
    Viewer, Why,
};
use clearway_upstream::{CallCx, EmbedRequest, Purpose, RerankRequest};
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::uploads::{Owner, viewer};
use super::{Inner, Knowledge, Shelf, UPLOADS, lock};
use crate::clock::instant;

/// What is asked.
#[derive(Clone, Debug)]
pub struct SearchQuery {
    pub text: String,
    /// In whose name.
    pub owner: Owner,
    pub sources: Sources,
    /// Only these documents, by id.
    pub documents: Option<Vec<String>>,
    pub limits: SearchLimits,
    /// The longest it may take; never more than the server allows.
    pub deadline: Option<Duration>,
    /// Where it says what it waits for, when it is part of something else.
    pub wait: Option<Arc<WaitCell>>,
}

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Every configured source, and what the asker uploaded.
    All,
    /// These configured sources.
    Named(Vec<String>),
    /// These collections, which must be the asker's.
    Collections(Vec<uuid::Uuid>),
}

/// What of the candidates is handed out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchLimits {
    pub similarity_threshold: f32,
    pub max_chunks: usize,
    pub token_budget: u32,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self { similarity_threshold: 0.5, max_chunks: 5, token_budget: 4000 }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The best first.
    pub chunks: Vec<FoundChunk>,
    pub explanation: Explanation,
    /// What could not be used, and why; the answer is from the rest.
    pub degraded: Vec<Failure>,
    pub took: Duration,
    pub spent: Spent,
    /// Sources that were looked at.
    pub sources: Vec<String>,
    /// Those of them that were reading documents meanwhile: more may be found soon.
    pub reading: Vec<String>,
    /// Those of them that do not have all their documents.
    pub incomplete: Vec<Incomplete>,
}

/// A source that was looked at and does not have all its documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    pub source: String,
    /// Why the source as a whole cannot be looked at: its folder is gone.
    pub problem: Option<String>,
    /// Files that could not be read.
    pub unread: usize,
}

impl Incomplete {
    /// `None` of a source that has everything.
    fn of(shelf: &Shelf) -> Option<Self> {
        // What is wrong with an upload is its owner's business, who is told beside the file.
        shelf.content.as_ref()?;
        let (problem, unread) = shelf.read(|state| (state.problem.clone(), state.failures.len()));
        let is_complete = problem.is_none() && unread == 0;
        (!is_complete).then(|| Self { source: shelf.name.clone(), problem, unread })
    }
}

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, problem, unread } = self;
        if let Some(problem) = problem {
            write!(f, "`{source}` cannot be looked at: {problem}")?;
        }
        match (*unread, problem.is_some()) {
            (0, _) => Ok(()),
            (1, false) => write!(f, "1 file of `{source}` could not be read"),
            (count, false) => write!(f, "{count} files of `{source}` could not be read"),
            (count, true) => write!(f, ", and {count} of its files could not be read"),
        }
    }
}

/// A chunk with what speaks for it.
#[derive(Clone, Debug)]
pub struct FoundChunk {
    pub chunk: Arc<Chunk>,
    pub document: Arc<Document>,
    pub scores: Scores,
    pub why: Why,
}

impl FoundChunk {
    /// As clients get it.
    pub fn to_json(&self) -> Value {
        let Self { chunk, document, scores, why } = self;
        json!({
            "id": &*chunk.id,
            "doc_id": &*chunk.doc_id,
            "chunk_index": chunk.chunk_index,
            "content": &*chunk.content,
            "section_path": chunk.section_path.join(" > "),
            "section_title": chunk.section_title,
            "page_start": chunk.page_start,
            "page_end": chunk.page_end,
            "similarity": round(scores.similarity),
            "tokens": chunk.tokens,
            "title": document.title,
            "path": document.source,
            "source": &*document.collection,
            "span": {"start": chunk.span.start, "end": chunk.span.end},
            "scores": {
                "words": scores.words.map(round),
                "latent": scores.latent.map(round),
                "meaning": scores.meaning.map(round),
                "embedding": scores.embedding.map(round),
                "graph": scores.graph.map(round),
                "rerank": scores.rerank.map(round),
                "fused": round(scores.fused),
            },
            "why": {
                "words": why.words,
                "phrases": why.phrases,
                "parts": why.parts,
                "meanings": why.meanings,
                "title": why.title,
                "entities": why.entities,
            },
        })
    }
}

/// Enough for people, and the same on every machine.
fn round(value: f32) -> f64 {
    (f64::from(value) * 1e4).round() / 1e4
}

impl Found {
    pub fn to_json(&self) -> Value {
        let chunks: Vec<Value> = self.chunks.iter().map(FoundChunk::to_json).collect();
        json!({
            "chunks": chunks,
            "explanation": self.explanation_json(),
            "degraded": self.degraded.iter().map(Failure::to_json).collect::<Vec<_>>(),
            "sources": self.sources,
            "reading": self.reading,
            "took_ms": self.took.as_secs_f64() * 1e3,
            "spent_ms": self.spent.to_json(),
        })
    }
}

impl Found {
    /// Why it found what it found, in words.
    pub fn explanation_text(&self) -> String {
        let incomplete = self.incomplete.iter().map(|one| format!("; {one}"));
        std::iter::once(self.explanation.to_string()).chain(incomplete).collect()
    }

    /// The same for programs, with the words.
    pub fn explanation_json(&self) -> Value {
        let explanation = &self.explanation;
        let Scanned {
            documents_in_scope, chunks_in_scope, matched, unknown_words, corrected, ..
        } = &explanation.scanned;
        let problem = |one: &Incomplete| {
            let problem = one.problem.as_ref()?;
            Some(json!({"source": one.source, "problem": problem}))
        };
        json!({
            "text": self.explanation_text(),
            "documents_in_scope": documents_in_scope,
            "chunks_in_scope": chunks_in_scope,
            "matched": matched,
            "candidates": explanation.candidates,
            "best_similarity": explanation.best_similarity.map(round),
            "below_threshold": explanation.below_threshold,
            "over_token_budget": explanation.over_token_budget,
            "over_max_chunks": explanation.over_max_chunks,
            "unknown_words": unknown_words,
            "corrected": corrected.iter().map(|(from, to)| json!({"from": from, "to": to})).collect::<Vec<_>>(),
            "unread": self.incomplete.iter().map(|one| one.unread).sum::<usize>(),
            "problems": self.incomplete.iter().filter_map(problem).collect::<Vec<_>>(),
            "limits": {
                "similarity_threshold": round(explanation.limits.threshold),
                "max_chunks": explanation.limits.max_chunks,
                "token_budget": explanation.limits.token_budget,
            },
        })
    }
}

// ## The board

/// Searches under way.
#[derive(Debug)]
pub(crate) struct Board {
    most: usize,
    active: Mutex<(u64, BTreeMap<u64, Active>)>,
}

#[derive(Debug)]
struct Active {
    sources: String,
    wait: Arc<WaitCell>,
    since: Instant,
    deadline: Deadline,
}

/// A search under way, from outside.
#[derive(Clone, Debug)]
pub struct SearchView {
    pub id: u64,
    pub sources: String,
    pub for_: Duration,
    pub left: Duration,
    pub waiting: Waiting,
}

/// A place on the board.
struct Place<'a> {
    board: &'a Board,
    id: u64,
}

impl Board {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, active: Mutex::default() }
    }

    fn enter(&self, active: Active) -> Result<Place<'_>, Failure> {
        let mut board = lock(&self.active);
        if board.1.len() >= self.most {
            let text = format!("{} searches are under way already", self.most);
            let mut failure = Failure::new(Code::Overloaded, text).retryable();
            failure.retry_after = Some(Duration::from_secs(1));
            return Err(failure);
        }
        board.0 += 1;
        let id = board.0;
        board.1.insert(id, active);
        Ok(Place { board: self, id })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        lock(&self.board.active).1.remove(&self.id);
    }
}

impl Knowledge {
    /// Searches under way, oldest first.
    pub fn searches(&self) -> Vec<SearchView> {
        let now = instant();
        let view = |(id, active): (&u64, &Active)| SearchView {
            id: *id,
            sources: active.sources.clone(),
            for_: now - active.since,
            left: active.deadline.remaining(now),
            waiting: active.wait.read(now),
        };
        lock(&self.inner().searches.active).1.iter().map(view).collect()
    }

    /// What the sources have about a question.
    ///
    /// # Errors
    /// `invalid_request` for a question without text, `not_found` for sources and collections that
    /// are not there for this asker, `overloaded`, `deadline_exceeded` with the stage.
    pub async fn search(&self, query: SearchQuery) -> Result<Found, Failure> {
        let inner = self.inner();
        if query.text.trim().is_empty() {
            return Err(Failure::new(Code::InvalidRequest, "an empty query finds nothing"));
        }
        let begun = instant();
        let most = inner.options.limits.search;
        let limit = query.deadline.map_or(most, |asked| asked.min(most));
        let deadline = Deadline::after(begun, limit);
        let wait = query.wait.clone().unwrap_or_else(|| {
            Arc::new(WaitCell::new(WaitKind::Work, "search", Spent::default(), begun))
        });
        let sources = match &query.sources {
            Sources::All => "all".to_owned(),
            Sources::Named(names) => names.join(", "),
            Sources::Collections(ids) => format!("{} collections", ids.len()),
        };
        let active = Active { sources, wait: wait.clone(), since: begun, deadline };
        let place = inner.searches.enter(active)?;
        let work = Search { inner, query: &query, wait: &wait, deadline };
        let outcome = timeout_at(deadline.0.into(), work.run()).await;
        let waiting = wait.read(instant());
        wait.enter(WaitKind::Work, "", None, instant());
        drop(place);
        let took = instant() - begun;
        let outcome = outcome.unwrap_or_else(|_| Err(out_of_time(limit, &waiting)));
        inner.count(&outcome, took);
        let mut found = outcome?;
        found.took = took;
        found.spent = waiting.spent;
        Ok(found)
    }
}

fn out_of_time(limit: Duration, waiting: &Waiting) -> Failure {
    let text = format!(
        "the search took longer than {} s; it was at: {}; seconds spent: {}",
        limit.as_secs_f64(),
        waiting.detail,
        waiting.spent
    );
    Failure::new(Code::DeadlineExceeded, text)
        .retryable()
        .with("phase", &*waiting.detail)
        .with("spent_ms", waiting.spent.to_json())
}

impl Inner {
    fn count(&self, outcome: &Result<Found, Failure>, took: Duration) {
        let Some(metrics) = self.metrics.get() else { return };
        let word = match outcome {
            Ok(found) if found.chunks.is_empty() => "nothing",
            Ok(_) => "found",
            Err(failure) => failure.code.as_str(),
        };
        let best = outcome.as_ref().ok().and_then(|found| found.explanation.best_similarity);
        metrics.searched(word, took, best);
    }
}

/// Candidates that a model reads to order them.
const RERANKED: usize = 50;
/// The longest that this may take.
const RERANK: Duration = Duration::from_secs(5);

struct Search<'a> {
    inner: &'a Inner,
    query: &'a SearchQuery,
    wait: &'a Arc<WaitCell>,
    deadline: Deadline,
}

impl Search<'_> {
    async fn run(&self) -> Result<Found, Failure> {
        let (shelves, collections) = self.shelves().await?;
        let text = cut(&self.query.text, self.inner.options.limits.query_bytes);
        let mut degraded = Vec::new();
        let mut answers = Vec::new();
        for shelf in &shelves {
            self.at(format!("{}: waiting for its first index", shelf.name));
            tokio::select! {
                () = shelf.loaded() => {}
                () = shelf.stop.cancelled() => return Err(no_source(&shelf.name)),
            }
            let embedding = match self.embed(shelf, text).await {
                Ok(embedding) => embedding,
                Err(failure) => {
                    degraded.push(failure);
                    None
                }
            };
            self.at(format!("{}: ranking", shelf.name));
            answers.push(self.rank(shelf, text, embedding, &collections).await?);
        }
        let mut candidates = together(answers);
        if let Err(failure) = self.rerank(&shelves, text, &mut candidates).await {
            degraded.push(failure);
        }
        let limits = Limits {
            threshold: self.query.limits.similarity_threshold,
            max_chunks: self.query.limits.max_chunks,
            token_budget: self.query.limits.token_budget,
        };
        let Answer { hits, explanation } = candidates.limited(&limits);
        let chunk = |hit: clearway_knowledge::Hit| FoundChunk {
            chunk: hit.chunk,
            document: hit.document,
            scores: hit.scores,
            why: hit.why,
        };
        Ok(Found {
            chunks: hits.into_iter().map(chunk).collect(),
            explanation,
            degraded,
            took: Duration::ZERO,
            spent: Spent::default(),
            sources: shelves.iter().map(|shelf| shelf.name.clone()).collect(),
            reading: shelves
                .iter()
                .filter(|shelf| shelf.is_reading())
                .map(|shelf| shelf.name.clone())
                .collect(),
            incomplete: shelves.iter().filter_map(|shelf| Incomplete::of(shelf)).collect(),
        })
    }

    fn at(&self, stage: String) {
        self.wait.enter(WaitKind::Work, stage, Some(self.deadline), instant());
    }

    /// Where to look, and in which collections there.
    async fn shelves(&self) -> Result<(Vec<Arc<Shelf>>, Option<Vec<String>>), Failure> {
        let all = self.inner.shelves();
        let uploads = || all.get(UPLOADS).cloned();
        match &self.query.sources {
            Sources::All => {
                let configured = all.values().filter(|shelf| shelf.name != UPLOADS).cloned();
                Ok((configured.chain(uploads()).collect(), None))
            }
            Sources::Named(names) => {
                let mut shelves = Vec::new();
                for name in names {
                    if name == UPLOADS {
                        return Err(no_source(name));
                    }
                    let shelf = all.get(name).ok_or_else(|| no_source(name))?;
                    shelves.push(shelf.clone());
                }
                Ok((shelves, None))
            }
            Sources::Collections(ids) => {
                self.at("collections".to_owned());
                for id in ids {
                    self.inner.own_collection(&self.query.owner, *id).await?;
                }
                let ids = ids.iter().map(uuid::Uuid::to_string).collect();
                Ok((uploads().into_iter().collect(), Some(ids)))
            }
        }
    }

    /// The question's vector, where the source has a model for it.
    async fn embed(&self, shelf: &Shelf, text: &str) -> Result<Option<Arc<[f32]>>, Failure> {
        let Some(model) = &shelf.embeddings else { return Ok(None) };
        // Something is left for ranking when the provider does not answer.
        let now = instant();
        let own = self.deadline.remaining(now).mul_f64(0.8);
        let cx = CallCx {
            wait: self.wait.clone(),
            tenant: self.query.owner.tenant.as_str().into(),
            ..CallCx::new(Deadline::after(now, own), self.inner.call_id("query"))
        };
        let request = EmbedRequest {
            model: model.clone(),
            texts: vec![text.into()],
            purpose: Purpose::Query,
            dimensions: None,
        };
        let failed = |failure: Failure| failure.with("stage", "embedding");
        let answer = self.inner.upstream.embed(cx, request).await;
        let answer = answer.map_err(|error| failed(error.into_failure()))?;
        match answer.vectors.into_iter().next() {
            Some(Ok(vector)) => Ok(Some(vector)),
            Some(Err(error)) => Err(failed(error.into_failure())),
            None => Ok(None),
        }
    }

    /// Has the best candidates ordered by a model that reads them, where a source has one. They stay
    /// as they are when it fails or takes too long.
    async fn rerank(
        &self,
        shelves: &[Arc<Shelf>],
        text: &str,
        candidates: &mut Candidates,
    ) -> Result<(), Failure> {
        let model = shelves.iter().find_map(|shelf| shelf.rerank.clone());
        let Some(model) = model.filter(|_| candidates.hits.len() > 1) else { return Ok(()) };
        self.at(format!("ordering by {model}"));
        let now = instant();
        let own = self.deadline.remaining(now).mul_f64(0.8).min(RERANK);
        let cx = CallCx {
            wait: self.wait.clone(),
            tenant: self.query.owner.tenant.as_str().into(),
            ..CallCx::new(Deadline::after(now, own), self.inner.call_id("rerank"))
        };
        let texts = candidates.hits.iter().take(RERANKED).map(|hit| hit.chunk.content.clone());
        let request = RerankRequest { model, query: text.into(), texts: texts.collect() };
        let scores = self.inner.upstream.rerank(cx, request).await;
        let scores = scores.map_err(|error| error.into_failure().with("stage", "rerank"))?;
        candidates.rerank(&scores);
        Ok(())
    }

    async fn rank(
        &self,
        shelf: &Shelf,
        text: &str,
        embedding: Option<Arc<[f32]>>,
        collections: &Option<Vec<String>>,
    ) -> Result<Candidates, Failure> {
        let snapshot = shelf.index.load();
        let owner = &self.query.owner;
        let viewer = viewer(&owner.tenant, owner.user.as_deref().unwrap_or_default());
        let (text, deadline) = (text.to_owned(), self.deadline.0);
        let collections = collections.clone();
        let documents = self.query.documents.clone();
        let job = move || {
            let names: Option<Vec<&str>> =
                collections.as_ref().map(|names| names.iter().map(String::as_str).collect());
            let ids: Option<Vec<&str>> =
                documents.as_ref().map(|ids| ids.iter().map(String::as_str).collect());
            let scope = Scope {
                viewer: Viewer::User(&viewer),
                collections: names.as_deref(),
                documents: ids.as_deref(),
            };
            let mut query = Query::new(&text, scope);
            query.embedding = embedding.as_deref();
            let go_on = || Instant::now() < deadline;
            snapshot.candidates(&query, &go_on)
        };
        let ranked = self.inner.lanes.run(job).await;
        let ranked =
            ranked.ok_or_else(|| Failure::new(Code::ShuttingDown, "the server is stopping"))?;
        ranked.map_err(|_| out_of_time(Duration::ZERO, &self.wait.read(instant())))
    }
}

fn no_source(name: &str) -> Failure {
    let shown: String = name.chars().filter(|char| !char.is_control()).take(80).collect();
    Failure::new(Code::NotFound, format!("there is no knowledge source `{shown}`"))
}

/// The candidates of several indexes. Order within one index follows more than similarity; between
/// indexes only that can be compared.
fn together(mut answers: Vec<Candidates>) -> Candidates {
    if answers.len() == 1
        && let Some(only) = answers.pop()
    {
        return only;
    }
    // A word is unknown when none of the indexes has it.
    let unknown_words: Vec<String> = answers.first().map_or_else(Vec::new, |first| {
        let words = first.scanned.unknown_words.iter();
        let nowhere = |word: &&String| {
            answers.iter().all(|answer| answer.scanned.unknown_words.contains(*word))
        };
        words.filter(nowhere).cloned().collect()
    });
    let mut all = Candidates { hits: Vec::new(), scanned: Scanned::default() };
    for answer in answers {
        let Candidates { hits, scanned } = answer;
        all.hits.extend(hits);
        all.scanned.documents_in_scope += scanned.documents_in_scope;
        all.scanned.chunks_in_scope += scanned.chunks_in_scope;
        all.scanned.matched += scanned.matched;
        all.scanned.has_words |= scanned.has_words;
        all.scanned.corrected.extend(scanned.corrected);
    }
    all.scanned.unknown_words = unknown_words;
    all.scanned.unknown_words.sort_unstable();
    all.scanned.unknown_words.dedup();
    all.hits.sort_by(|a, b| b.scores.similarity.total_cmp(&a.scores.similarity));
    all
}

/// A query's beginning, where a word ends.
fn cut(text: &str, most: usize) -> &str {
    let text = text.trim();
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let text = &text[..end];
    text.rsplit_once(char::is_whitespace).map_or(text, |(whole, _)| whole)
}
