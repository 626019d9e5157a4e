//! What is indexed: documents, their chunks, and who may see them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A file, page or upload, without its text: that is in its chunks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Document {
    /// Unique in an index.
    pub id: Arc<str>,
    /// The named set of documents it belongs to.
    pub collection: Arc<str>,
    /// Whose it is; `None` is everybody's.
    pub owner: Option<Arc<str>>,
    pub title: String,
    /// What people call it: a path below the collection's folder, or an address.
    pub source: String,
    /// What it points at: targets of links and wiki-links, and what its front matter names.
    pub links: Vec<String>,
}

/// A piece of a document: what is found, cited and embedded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Unique in an index: the document's id, `#` and the chunk's number.
    pub id: Arc<str>,
    pub doc_id: Arc<str>,
    /// From 0, in reading order.
    pub chunk_index: u32,
    /// Exactly the characters `span` of the document's text.
    pub content: Arc<str>,
    /// The headings above it, outermost first.
    pub section_path: Vec<String>,
    /// The innermost of them.
    pub section_title: Option<String>,
    pub page_start: Option<u32>,
    pub page_end: Option<u32>,
    /// About as many as a model would count.
    pub tokens: u32,
    /// In characters, not bytes.
    pub span: Range<usize>,
    pub hash: ChunkHash,
}

/// Names what is embedded: the headings and the content. An unchanged chunk keeps its hash wherever it moves.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ChunkHash([u8; 16]);

impl ChunkHash {
    pub fn of(section_path: &[String], content: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        for heading in section_path {
            hasher.update(heading.as_bytes()).update(b"\0");
        }
        hasher.update(b"\0").update(content.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a caller may see. Every question takes one, so that nobody can forget it.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    pub viewer: Viewer<'a>,
    /// Only these collections; `None` is all. An empty list is none at all.
    pub collections: Option<&'a [&'a str]>,
    /// Only these documents; `None` is all.
    pub documents: Option<&'a [&'a str]>,
}

/// Whose documents are seen, besides everybody's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Viewer<'a> {
    /// Only what is everybody's.
    Anonymous,
    /// What is everybody's and what is theirs.
    User(&'a str),
    /// Every document: for operators and measurements.
    Operator,
}

impl<'a> Scope<'a> {
    /// All that the viewer may see.
    pub fn of(viewer: Viewer<'a>) -> Self {
        Self { viewer, collections: None, documents: None }
    }

    /// Whether a document with this collection and owner may be seen; `documents` is not looked at.
    pub(crate) fn admits(&self, collection: &str, owner: Option<&str>) -> bool {
        let viewer = match (self.viewer, owner) {
            (Viewer::Operator, _) | (_, None) => true,
            (Viewer::User(user), Some(owner)) => user == owner,
            (Viewer::Anonymous, Some(_)) => false,
        };
        viewer && self.collections.is_none_or(|names| names.contains(&collection))
    }
}

/// About as many tokens as a model would count, without its vocabulary.
pub fn count_tokens(text: &str) -> u32 {
    let mut tokens: u32 = 0;
    let mut run = 0_u32;
    for c in text.chars() {
        if is_wide(c) {
            // A character of its own: most of these are a token or more.
            tokens = tokens.saturating_add(1);
            run = 0;
        } else if c.is_alphanumeric() {
            // Words cost one token, long ones one more for each further six letters.
            if run.is_multiple_of(6) {
                tokens = tokens.saturating_add(1);
            }
            run += 1;
        } else {
            run = 0;
            if !c.is_whitespace() {
                tokens = tokens.saturating_add(1);
            }
        }
    }
    tokens
}

/// Scripts that are written without spaces.
pub(crate) fn is_wide(c: char) -> bool {
    matches!(u32::from(c), 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xac00..=0xd7af | 0xf900..=0xfaff | 0x20000..=0x3134f)
}
