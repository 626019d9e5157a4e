//! A source's documents as people look at them: lists, texts, exact words.

use std::sync::Arc;

use clearway_core::{Code, Failure};
use clearway_knowledge::{Chunk, Document, Scope, Viewer};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Knowledge;

/// A document of a source.
#[derive(Clone, Debug)]
pub struct Note {
    pub id: String,
    pub title: String,
    pub path: String,
    /// The first folder of its path.
    pub category: String,
    pub chunks: usize,
    pub tokens: u64,
}

impl Note {
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "title": self.title,
            "path": self.path,
            "category": self.category,
            "chunks": self.chunks,
            "tokens": self.tokens,
        })
    }
}

/// A document with its text.
#[derive(Clone, Debug)]
pub struct NoteText {
    pub note: Note,
    pub text: String,
}

/// A place where exact words stand.
#[derive(Clone, Debug)]
pub struct ContentHit {
    pub note: Note,
    /// The line, and what stands on it.
    pub section: Vec<String>,
    pub line: String,
    /// In characters, from the document's start.
    pub at: usize,
}

/// The category of what lies in no folder.
const NO_FOLDER: &str = "general";

fn note(document: &Document, chunks: &[Arc<Chunk>]) -> Note {
    let category = document.source.split_once('/').map_or(NO_FOLDER, |(folder, _)| folder);
    Note {
        id: document.id.to_string(),
        title: document.title.clone(),
        path: document.source.clone(),
        category: category.to_owned(),
        chunks: chunks.len(),
        tokens: chunks.iter().map(|chunk| u64::from(chunk.tokens)).sum(),
    }
}

impl Knowledge {
    /// All documents of a configured source, by path.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn notes(&self, source: &str) -> Result<Vec<Note>, Failure> {
        let snapshot = self.inner().shelf(source)?.index.load();
        let scope = Scope::of(Viewer::Anonymous);
        let mut notes: Vec<Note> = snapshot
            .documents(&scope)
            .map(|document| note(document, &snapshot.chunks(&document.id, &scope)))
            .collect();
        notes.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(notes)
    }

    /// A document by id, path or title, with its text as it was read.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn open(&self, source: &str, name: &str) -> Result<NoteText, Failure> {
        let snapshot = self.inner().shelf(source)?.index.load();
        let scope = Scope::of(Viewer::Anonymous);
        let lower = name.trim().to_lowercase();
        let fits = |document: &&Arc<Document>| {
            *document.id == *name
                || document.source == name
                || document.title.to_lowercase() == lower
                || document.source.to_lowercase() == lower
        };
        let found = snapshot.documents(&scope).find(fits).cloned();
        let Some(document) = found else {
            let text = format!("`{source}` has no document {name:?}");
            return Err(Failure::new(Code::NotFound, text));
        };
        let note = note(&document, &snapshot.chunks(&document.id, &scope));
        let id: Option<Uuid> = document.id.parse().ok();
        let text = match id {
            Some(id) => self.text_of(id).await?,
            None => String::new(),
        };
        Ok(NoteText { note, text })
    }

    pub(crate) async fn text_of(&self, id: Uuid) -> Result<String, Failure> {
        let found = self.inner().kept().document(id).await;
        let found = found.map_err(|error| crate::Error::from(error).0)?;
        let text = found.map(|(_, content)| String::from_utf8_lossy(&content.body).into_owned());
        Ok(text.unwrap_or_default())
    }

    /// Where exact words stand in a source's documents.
    ///
    /// # Errors
    /// There is no such source; `shutting_down`.
    pub async fn find_text(
        &self,
        source: &str,
        words: &str,
        case_sensitive: bool,
        limit: usize,
    ) -> Result<Vec<ContentHit>, Failure> {
        let snapshot = self.inner().shelf(source)?.index.load();
        let fold = move |text: &str| {
            if case_sensitive { text.to_owned() } else { text.to_lowercase() }
        };
        let words = fold(words.trim());
        if words.is_empty() {
            return Err(Failure::new(Code::InvalidRequest, "an empty query finds nothing"));
        }
        let job = move || {
            let scope = Scope::of(Viewer::Anonymous);
            let mut hits: Vec<ContentHit> = Vec::new();
            let mut documents: Vec<&Arc<Document>> = snapshot.documents(&scope).collect();
            documents.sort_unstable_by(|one, other| one.source.cmp(&other.source));
            for document in documents {
                let chunks = snapshot.chunks(&document.id, &scope);
                // Chunks overlap; a line is told once.
                let mut seen = 0;
                for chunk in &chunks {
                    let mut at = chunk.span.start;
                    for line in chunk.content.split_inclusive('\n') {
                        let begin = at;
                        at += line.chars().count();
                        if begin >= seen && fold(line).contains(&words) {
                            hits.push(ContentHit {
                                note: note(document, &chunks),
                                section: chunk.section_path.clone(),
                                line: line.trim().to_owned(),
                                at: begin,
                            });
                            if hits.len() >= limit {
                                return hits;
                            }
                        }
                    }
                    seen = seen.max(at);
                }
            }
            hits
        };
        let hits = self.inner().lanes.run(job).await;
        hits.ok_or_else(|| Failure::new(Code::ShuttingDown, "the server is stopping"))
    }
}
