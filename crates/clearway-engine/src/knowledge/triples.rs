//! What a model reads out of the texts of a source: who or what stands in which relation to whom.
//!
//! A task of its own asks about each text once, a few at a time and behind everybody who waits, and keeps each answer
//! beside the text's vectors, by its hash. So it goes on where it was after a restart, and asks about what changed only.
//! What cannot be had now is asked for again later; a text whose answer is of no use is let be.
//!
//! **Invariant:** one question has a deadline, a bounded answer, and never stands in the way of a person.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clearway_core::message::{Message, Role};
use clearway_core::{Code, Deadline};
use clearway_knowledge::{Chunk, ChunkHash, Triple};
use clearway_upstream::{CallCx, ChatEvent, ChatRequest, Class};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::fill::{self, Filling, Missing};
use super::index::Change;
use super::shelf::{Progress, State};
use super::{Inner, Shelf};
use crate::clock::instant;

/// Questions at once.
const AT_ONCE: usize = 2;
/// Texts that are looked up or asked about before the index is told.
const BATCH: usize = 64;
/// The longest that one question may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of an answer; more is no answer to this question.
const ANSWER_BYTES: usize = 16 << 10;
/// Triples of one text.
const OF_A_TEXT: usize = 12;
/// Texts of a source that a model reads: each is a call that costs something.
const TEXTS: usize = 10_000;
/// Grows when the question changes.
const QUESTION: u32 = 1;

const TASK: &str = "You read passages of documents and note the facts in them as triples: subject, relation, object. \
Subject and object are names or short noun phrases of at most five words, as the passage writes them; the relation is \
a short verb phrase. Note only what the passage itself says, the most important first, at most twelve. Answer with \
JSON only.";

pub(crate) fn start(inner: &Arc<Inner>, shelf: &Arc<Shelf>) {
    if let Some(model) = shelf.triples.clone() {
        fill::start(inner, shelf, Reading { model, useless: HashSet::new() });
    }
}

struct Reading {
    model: String,
    /// Texts whose answers are of no use: asking again changes nothing.
    useless: HashSet<ChunkHash>,
}

/// A text that nobody has been asked about.
#[derive(Clone, Debug)]
struct Wanted {
    hash: ChunkHash,
    text: String,
}

/// What came of a question.
enum Outcome {
    Made(Vec<Triple>),
    /// Asking again changes nothing.
    Useless(String),
    Later(String),
}

impl Filling for Reading {
    type Wanted = Wanted;
    const BATCH: usize = BATCH;

    fn progress(state: &mut State) -> &mut Progress {
        &mut state.triples
    }

    async fn missing(&self, inner: &Inner, shelf: &Shelf) -> Missing<Wanted> {
        let snapshot = shelf.index.load();
        let chunks = snapshot.stats().chunks;
        let missing =
            inner.behind(move || snapshot.edit().without_triples()).await.unwrap_or_default();
        let lacking = missing.len();
        let room = TEXTS.saturating_sub(chunks.saturating_sub(lacking));
        if missing.len() > room {
            let text =
                format!("a model reads at most {TEXTS} texts of a source; the rest is left out");
            shelf.with(|state| state.triples.error = Some(text));
        }
        let wanted =
            missing.into_iter().filter(|(hash, _)| !self.useless.contains(hash)).take(room);
        let wanted = wanted.map(|(hash, chunk)| Wanted { hash, text: passage(&chunk) }).collect();
        Missing { wanted, chunks, lacking }
    }

    async fn settle(&mut self, inner: &Inner, shelf: &Shelf, batch: &[Wanted]) -> bool {
        let model = &self.model;
        let kept_as = kept_as(model);
        let hashes = batch.iter().map(|wanted| *wanted.hash.as_bytes()).collect();
        let known = match inner.kept().vectors(&kept_as, hashes).await {
            Ok(rows) => rows,
            Err(error) => {
                note(shelf, 0, Some(error.to_string()));
                return false;
            }
        };
        let mut done: Vec<(ChunkHash, Vec<Triple>)> = known
            .into_iter()
            .map(|(hash, bytes)| (ChunkHash::from_bytes(hash), unpack(&bytes)))
            .collect();
        let found: HashSet<ChunkHash> = done.iter().map(|(hash, _)| *hash).collect();
        let open = batch.iter().filter(|wanted| !found.contains(&wanted.hash));
        let open: Vec<Wanted> = open.cloned().collect();
        let questions = open
            .into_iter()
            .map(|Wanted { hash, text }| async move { (hash, ask(inner, model, text).await) });
        let mut answers = stream::iter(questions).buffer_unordered(AT_ONCE);
        let mut later = None;
        while let Some((hash, outcome)) = answers.next().await {
            match outcome {
                Outcome::Made(triples) => {
                    let row = vec![(*hash.as_bytes(), pack(&triples))];
                    if let Err(error) = inner.kept().keep_vectors(&kept_as, row).await {
                        tracing::warn!(source = shelf.name, "triples could not be kept: {error}");
                    }
                    shelf.with(|state| state.triples.made += 1);
                    done.push((hash, triples));
                }
                Outcome::Useless(why) => {
                    tracing::debug!(source = shelf.name, "no triples of a text: {why}");
                    self.useless.insert(hash);
                    note(shelf, 1, Some(why));
                }
                Outcome::Later(why) => {
                    later = Some(why);
                    // The others of this batch would fare no better.
                    break;
                }
            }
        }
        drop(answers);
        let count = done.len();
        if count > 0 {
            shelf.change(Change::Triples(done)).await;
        }
        let clean = later.is_none();
        if let Some(why) = &later {
            tracing::warn!(source = shelf.name, "triples are missing: {why}");
        }
        note(shelf, count, later);
        clean
    }
}

/// The name under which the store keeps what a model said.
pub(super) fn kept_as(model: &str) -> String {
    format!("triples/{QUESTION}/{model}")
}

fn passage(chunk: &Chunk) -> String {
    format!("Section: {}\n\n{}", chunk.section_path.join(" > "), chunk.content)
}

/// So many less wait; with a reason, all that wait share it.
fn note(shelf: &Shelf, settled: usize, why: Option<String>) {
    shelf.with(|state| {
        let triples = &mut state.triples;
        triples.waiting -= settled.min(triples.waiting);
        triples.failed = if why.is_some() && settled == 0 { triples.waiting } else { 0 };
        if why.is_some() {
            triples.error = why;
        }
    });
}

async fn ask(inner: &Inner, model: &str, text: String) -> Outcome {
    let messages =
        [Message::new(Role::System, TASK, "task"), Message::new(Role::Human, text, "passage")];
    let request = ChatRequest {
        model: model.to_owned(),
        messages: messages.iter().map(|message| Arc::new(message.to_value())).collect(),
        params: params(),
    };
    let deadline = Deadline::after(instant(), LIMIT);
    let cx = CallCx { class: Class::Bulk, ..CallCx::new(deadline, inner.call_id("triples")) };
    match answer(inner, cx, request).await {
        Ok(text) => read(&text).map_or_else(Outcome::Useless, Outcome::Made),
        Err(error) if matches!(error.code(), Code::InvalidRequest | Code::UpstreamInputTooLong) => {
            Outcome::Useless(error.to_string())
        }
        Err(error) => Outcome::Later(error.to_string()),
    }
}

async fn answer(
    inner: &Inner,
    cx: CallCx,
    request: ChatRequest,
) -> Result<String, clearway_upstream::Error> {
    let mut stream = inner.upstream.chat(cx, request).await?;
    let mut text = String::new();
    while let Some(event) = stream.next().await? {
        match event {
            ChatEvent::Text(more) => text.push_str(&more),
            ChatEvent::Reset { .. } => text.clear(),
            ChatEvent::Reasoning(_) | ChatEvent::ToolCall { .. } | ChatEvent::Finish { .. } => {}
        }
        if text.len() > ANSWER_BYTES {
            break;
        }
    }
    Ok(text)
}

fn params() -> Map<String, Value> {
    let text = json!({"type": "string", "maxLength": 60});
    let schema = json!({
        "type": "object",
        "required": ["triples"],
        "additionalProperties": false,
        "properties": {"triples": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["subject", "relation", "object"],
                "additionalProperties": false,
                "properties": {"subject": text, "relation": text, "object": text},
            },
        }},
    });
    let format = json!({
        "type": "json_schema",
        "json_schema": {"name": "triples", "schema": schema, "strict": true},
    });
    Map::from_iter([("response_format".to_owned(), format)])
}

/// The triples of an answer, or what is wrong with it.
fn read(answer: &str) -> Result<Vec<Triple>, String> {
    let answer = answer.trim();
    let inside = answer.strip_prefix("```json").or_else(|| answer.strip_prefix("```"));
    let inside = inside.map_or(answer, |inside| inside.strip_suffix("```").unwrap_or(inside));
    let value: Value = serde_json::from_str(inside)
        .map_err(|error| format!("the model's answer is no JSON: {error}"))?;
    let Some(all) = value["triples"].as_array() else {
        return Err("the model's answer has no list `triples`".to_owned());
    };
    let text =
        |triple: &Value, key: &str| triple[key].as_str().unwrap_or_default().trim().to_owned();
    let triple = |triple: &Value| Triple {
        subject: text(triple, "subject"),
        relation: text(triple, "relation"),
        object: text(triple, "object"),
    };
    Ok(all.iter().take(OF_A_TEXT).map(triple).collect())
}

fn pack(triples: &[Triple]) -> Bytes {
    let all: Vec<_> =
        triples.iter().map(|triple| [&triple.subject, &triple.relation, &triple.object]).collect();
    Bytes::from(json!(all).to_string())
}

fn unpack(bytes: &[u8]) -> Vec<Triple> {
    let all: Vec<[String; 3]> = serde_json::from_slice(bytes).unwrap_or_default();
    let triple = |[subject, relation, object]: [String; 3]| Triple { subject, relation, object };
    all.into_iter().map(triple).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_far_as_they_are_of_use() {
        let answer = "```json\n{\"triples\": [{\"subject\": \" A \", \"relation\": \"is\", \"object\": \"B\"}, {}]}\n```";
        let triples = read(answer).unwrap();
        assert_eq!((triples.len(), triples[0].subject.as_str()), (2, "A"));
        assert_eq!(unpack(&pack(&triples)), triples);
        assert!(read("Sure, here they are").unwrap_err().contains("no JSON"));
        assert!(read("{\"facts\": []}").unwrap_err().contains("triples"));
        assert!(unpack(b"broken").is_empty());
    }
}
