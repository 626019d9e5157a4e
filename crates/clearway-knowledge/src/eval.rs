//! Measuring retrieval on a test collection: documents, questions, and which documents answer them.
//!
//! The layout is the one of the BEIR benchmarks, line by line: `corpus.jsonl` with `_id`, `title` and `text`,
//! `queries.jsonl` with `_id` and `text`, `qrels/test.tsv` with query, document and grade. Whoever calls reads the files.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::{
    ChunkOptions, Document, GoOn, IndexBuilder, Learn, Limits, Query, Scope, Snapshot, Stopped,
    Viewer, chunk,
};

/// A test collection.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    pub passages: Vec<Passage>,
    pub questions: Vec<Question>,
    /// By question: the documents that are judged, with their grade.
    pub judged: HashMap<String, HashMap<String, u32>>,
    ids: HashSet<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Passage {
    pub id: String,
    pub title: String,
    pub text: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    pub id: String,
    pub text: String,
}

/// How good an order of documents is, as a mean over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quality {
    pub ndcg_at_10: f64,
    pub mrr_at_10: f64,
    pub recall_at_10: f64,
    pub recall_at_100: f64,
    /// Questions with at least one relevant document: the others tell nothing.
    pub questions: usize,
}

impl Collection {
    /// One line of `corpus.jsonl`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn corpus_line(&mut self, line: &str) -> Result<(), String> {
        let object = object(line)?;
        let id = id(&object)?;
        let text = text(&object, "text")?.ok_or_else(|| "`text` is missing".to_owned())?;
        let title = text_or_empty(&object, "title")?;
        if !self.ids.insert(id.clone()) {
            return Err(format!("a second document with the `_id` {id:?}"));
        }
        self.passages.push(Passage { id, title, text });
        Ok(())
    }

    /// One line of `queries.jsonl`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn query_line(&mut self, line: &str) -> Result<(), String> {
        let object = object(line)?;
        let id = id(&object)?;
        let text = text(&object, "text")?.ok_or_else(|| "`text` is missing".to_owned())?;
        self.questions.push(Question { id, text });
        Ok(())
    }

    /// One line of `qrels/test.tsv`; `first` may be the heading.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judgement_line(&mut self, line: &str, first: bool) -> Result<(), String> {
        let parts: Vec<&str> = line.trim_end().split('\t').collect();
        // Also the older layout, with an iteration between the two.
        let ([query, document, grade] | [query, _, document, grade]) = parts[..] else {
            let count = parts.len();
            return Err(format!(
                "{count} columns, where query, document and grade belong, divided by tabs"
            ));
        };
        match grade.trim().parse::<i64>() {
            Ok(grade) => {
                let grade = u32::try_from(grade).unwrap_or(0);
                self.judged.entry(query.to_owned()).or_default().insert(document.to_owned(), grade);
                Ok(())
            }
            Err(_) if first => Ok(()),
            Err(_) => Err(format!("the grade is no whole number: {grade:?}")),
        }
    }

    /// The index of all passages. They are short texts that are judged as a whole, so they are hardly ever divided.
    ///
    /// # Errors
    /// `go_on` said no.
    pub fn index(&self, go_on: GoOn<'_>) -> Result<Snapshot, Stopped> {
        let options = ChunkOptions { max_tokens: 4_000, overlap_tokens: 100 };
        let mut builder = IndexBuilder::new();
        for passage in &self.passages {
            if !go_on() {
                return Err(Stopped);
            }
            let text = if passage.text.trim().is_empty() { &passage.title } else { &passage.text };
            let blocks = [crate::Block::paragraph(0..text.len())];
            let chunks = chunk(&passage.id, text, &blocks, &options);
            let document = Document {
                id: passage.id.as_str().into(),
                collection: "eval".into(),
                owner: None,
                title: passage.title.clone(),
                source: passage.id.clone(),
                links: Vec::new(),
            };
            builder.put(document, chunks);
        }
        builder.build(Learn::Anew, go_on)
    }

    /// The questions that anything is relevant to, in their order.
    pub fn judged_questions(&self) -> impl Iterator<Item = &Question> {
        let relevant = |question: &&Question| {
            self.judged
                .get(&question.id)
                .is_some_and(|grades| grades.values().any(|grade| *grade > 0))
        };
        self.questions.iter().filter(relevant)
    }

    /// How good the answers are: for each of the judged questions, in their order, the documents, the best first.
    ///
    /// Where questions are documents themselves (ArguAna), none answers itself: it is passed over.
    pub fn quality<'a>(&self, answers: impl IntoIterator<Item = &'a Vec<String>>) -> Quality {
        let mut sum = Quality::default();
        let passages: HashMap<&str, &Passage> =
            self.passages.iter().map(|passage| (passage.id.as_str(), passage)).collect();
        for (question, answer) in self.judged_questions().zip(answers) {
            let grades = &self.judged[&question.id];
            let itself = passages.get(question.id.as_str()).filter(|passage| {
                !grades.contains_key(&passage.id) && is_taken_from(question, passage)
            });
            let answer: Vec<&String> = answer
                .iter()
                .filter(|id| itself.is_none_or(|passage| passage.id != **id))
                .collect();
            sum.ndcg_at_10 += ndcg(&answer, grades, 10);
            sum.mrr_at_10 += mrr(&answer, grades, 10);
            sum.recall_at_10 += recall(&answer, grades, 10);
            sum.recall_at_100 += recall(&answer, grades, 100);
            sum.questions += 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of questions")]
        let n = sum.questions.max(1) as f64;
        Quality {
            ndcg_at_10: sum.ndcg_at_10 / n,
            mrr_at_10: sum.mrr_at_10 / n,
            recall_at_10: sum.recall_at_10 / n,
            recall_at_100: sum.recall_at_100 / n,
            questions: sum.questions,
        }
    }
}

/// The best hundred documents for a question.
///
/// # Errors
/// `go_on` said no.
pub fn answer(
    snapshot: &Snapshot,
    question: &str,
    go_on: GoOn<'_>,
) -> Result<Vec<String>, Stopped> {
    // Some more than are counted: of a divided document only the first chunk does.
    let query = Query { top_k: 150, ..Query::new(question, Scope::of(Viewer::Operator)) };
    let answer = snapshot.search(&query, &Limits::NONE, go_on)?;
    let mut seen = HashSet::new();
    let documents = answer.hits.into_iter().map(|hit| hit.document.id.to_string());
    Ok(documents.filter(|id| seen.insert(id.clone())).take(100).collect())
}

/// Whether a question is the text of a passage.
fn is_taken_from(question: &Question, passage: &Passage) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (asked, text) = (words(&question.text), words(&passage.text));
    !asked.is_empty() && (asked == text || asked == words(&format!("{} {text}", passage.title)))
}

/// Gain of the order, discounted by rank, against the best possible.
#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn ndcg(answer: &[&String], grades: &HashMap<String, u32>, k: usize) -> f64 {
    let discounted = |(rank, grade): (usize, u32)| f64::from(grade) / (rank as f64 + 2.0).log2();
    let mut ideal: Vec<u32> = grades.values().copied().collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let best: f64 = ideal.into_iter().take(k).enumerate().map(discounted).sum();
    let grades = answer.iter().take(k).map(|id| grades.get(*id).copied().unwrap_or(0));
    let gained: f64 = grades.enumerate().map(discounted).sum();
    if best > 0.0 { gained / best } else { 0.0 }
}

/// One by the rank of the first relevant document.
#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn mrr(answer: &[&String], grades: &HashMap<String, u32>, k: usize) -> f64 {
    let relevant = |id: &&String| grades.get(*id).is_some_and(|grade| *grade > 0);
    answer.iter().take(k).position(relevant).map_or(0.0, |rank| 1.0 / (rank as f64 + 1.0))
}

/// The share of the relevant documents that is found.
#[expect(clippy::cast_precision_loss, reason = "counts of documents")]
fn recall(answer: &[&String], grades: &HashMap<String, u32>, k: usize) -> f64 {
    let all = grades.values().filter(|grade| **grade > 0).count();
    let found =
        answer.iter().take(k).filter(|id| grades.get(**id).is_some_and(|grade| *grade > 0)).count();
    found as f64 / all.max(1) as f64
}

fn object(line: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
    if value.is_object() { Ok(value) } else { Err("no JSON object".to_owned()) }
}

/// Some collections number their documents.
fn id(object: &Value) -> Result<String, String> {
    match &object["_id"] {
        Value::String(id) if !id.is_empty() => Ok(id.clone()),
        Value::Number(id) => Ok(id.to_string()),
        Value::Null => Err("`_id` is missing".to_owned()),
        other => Err(format!("`_id` is no text: {other}")),
    }
}

fn text(object: &Value, key: &str) -> Result<Option<String>, String> {
    match &object[key] {
        Value::String(text) => Ok(Some(text.clone())),
        Value::Null => Ok(None),
        _ => Err(format!("`{key}` is no text")),
    }
}

fn text_or_empty(object: &Value, key: &str) -> Result<String, String> {
    Ok(text(object, key)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
