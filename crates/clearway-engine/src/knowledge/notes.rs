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
            // Which of them are headings: these stand above their chunks.
            let mut headings: Vec<usize> = Vec::new();
            let mut documents: Vec<&Arc<Document>> = snapshot.documents(&scope).collect();
            documents.sort_unstable_by(|one, other| one.source.cmp(&other.source));
            for document in documents {
                let chunks = snapshot.chunks(&document.id, &scope);
                // Chunks overlap; a line is told once.
                let mut seen = 0;
                let mut above: &[String] = &[];
                for chunk in &chunks {
                    for (depth, heading) in new_headings(above, chunk) {
                        if fold(heading).contains(&words) {
                            headings.push(hits.len());
                            hits.push(ContentHit {
                                note: note(document, &chunks),
                                section: chunk.section_path[..=depth].to_vec(),
                                line: heading.clone(),
                                at: chunk.span.start,
                            });
                            if hits.len() >= limit {
                                return (hits, headings);
                            }
                        }
                    }
                    above = &chunk.section_path;
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
                                return (hits, headings);
                            }
                        }
                    }
                    seen = seen.max(at);
                }
            }
            (hits, headings)
        };
        let found = self.inner().lanes.run(job).await;
        let (mut hits, headings) =
            found.ok_or_else(|| Failure::new(Code::ShuttingDown, "the server is stopping"))?;
        let mut text = (String::new(), String::new());
        for at in headings {
            let hit = &mut hits[at];
            if text.0 != hit.note.id
                && let Ok(id) = hit.note.id.parse()
            {
                text = (hit.note.id.clone(), self.text_of(id).await?);
            }
            if let Some((place, line)) = heading_line(&text.1, &hit.line, hit.at) {
                (hit.at, hit.line) = (place, line);
            }
        }
        Ok(hits)
    }
}

/// Headings that the chunk before was not below, with their depth. One that has nothing below it is
/// the text of its chunk.
fn new_headings<'c>(
    above: &[String],
    chunk: &'c Chunk,
) -> impl Iterator<Item = (usize, &'c String)> {
    let path = &chunk.section_path;
    let shared = path.iter().zip(above).take_while(|(one, other)| one == other).count();
    let last = path.len().saturating_sub(1);
    let bare = path
        .last()
        .is_some_and(|heading| chunk.content.split_whitespace().eq(heading.split_whitespace()));
    path.iter().enumerate().skip(shared).filter(move |(depth, _)| !(bare && *depth == last))
}

/// Where the heading of a chunk that begins at a character stands, and the line as it is there.
fn heading_line(text: &str, heading: &str, begin: usize) -> Option<(usize, String)> {
    let end = text.char_indices().nth(begin).map_or(text.len(), |(at, _)| at);
    let mut found = None;
    let mut at = 0;
    for line in text[..end].split_inclusive('\n') {
        if line.split_whitespace().collect::<Vec<_>>().join(" ").contains(heading) {
            found = Some((at, line.trim().to_owned()));
        }
        at += line.chars().count();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_is_found_where_it_stands() {
        let text = "# Ünits\n\nIntro.\n\n## Noise  level\n\nQuiet.\n";
        let begin = text.chars().count() - "Quiet.\n".chars().count();
        assert_eq!(
            heading_line(text, "Noise level", begin),
            Some((17, "## Noise  level".to_owned()))
        );
        assert_eq!(heading_line(text, "Ünits", begin), Some((0, "# Ünits".to_owned())));
        assert_eq!(heading_line(text, "Other", begin), None);
    }
}
