//! What is remembered of documents: a part of the [`Store`](crate::Store) with types of its own.
//!
//! A document is replaced as a whole, with its chunks, in one durable transaction; so after a crash
//! each is either as it was or as it became. Vectors belong to texts and not to documents: they
//! outlive a change as long as a chunk with that text is left.
//!
//! Not here: what is in a body, a chunk or a vector. To the store they are bytes.

use bytes::Bytes;
use clearway_core::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use crate::error::Result;

/// Documents, their chunks and vectors, collections and files.
#[async_trait::async_trait]
pub trait KnowledgeStore: Send + Sync + std::fmt::Debug {
    /// Puts a document in the place of what was known under its source and path, whose id it keeps.
    async fn put_document(&self, new: NewDocument) -> Result<DocumentStored>;

    /// Another time or size with the same bytes in it.
    async fn touch_document(&self, id: Uuid, size_bytes: u64, modified_ms: i64) -> Result<bool>;

    /// Forgets documents; says how many there were.
    async fn drop_documents(&self, documents: Vec<Uuid>) -> Result<u64>;

    /// Documents without their contents, in the order of their making.
    async fn documents(&self, query: DocumentQuery) -> Result<Vec<DocumentRecord>>;

    /// A source's indexed documents with their contents, after the one with the number `after`, in
    /// the order of their making: at most about `max_bytes` of them, and at least one if there is
    /// one.
    async fn document_contents(
        &self,
        tenant: &str,
        source: &str,
        after: u64,
        max_bytes: usize,
    ) -> Result<Vec<(DocumentRecord, DocumentContent)>>;

    /// One document with its contents.
    async fn document(&self, id: Uuid) -> Result<Option<(DocumentRecord, DocumentContent)>>;

    /// Keeps vectors of texts, by hash. A power failure may take them.
    async fn keep_vectors(&self, model: &str, vectors: Vec<(ChunkHash, Bytes)>) -> Result<()>;

    /// The vectors that are known of these texts.
    async fn vectors(&self, model: &str, hashes: Vec<ChunkHash>)
    -> Result<Vec<(ChunkHash, Bytes)>>;

    /// Creates or replaces a collection, by id; `false` when there are too many already.
    async fn put_collection(&self, collection: Collection, limit: u32) -> Result<bool>;

    async fn collections(&self, query: OwnedQuery) -> Result<Vec<Collection>>;

    /// Forgets a collection and its documents.
    async fn drop_collection(&self, id: Uuid) -> Result<bool>;

    /// Keeps a file, unless it would be over the limits of its owner.
    async fn put_file(
        &self,
        file: FileRecord,
        bytes: Bytes,
        limits: FileLimits,
    ) -> Result<FileStored>;

    async fn files(&self, query: OwnedQuery) -> Result<Vec<FileRecord>>;

    async fn file_bytes(&self, id: Uuid) -> Result<Option<Bytes>>;

    /// Forgets a file and the documents made of it.
    async fn drop_file(&self, id: Uuid) -> Result<bool>;
}

/// Names a text; who indexes decides how.
pub type ChunkHash = [u8; 16];

/// A document to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDocument {
    /// For one that is new under its source and path.
    pub id: Uuid,
    pub tenant: String,
    pub source: String,
    pub path: String,
    pub owner: Option<String>,
    pub state: DocumentState,
    /// Of its bytes; empty while nobody read them.
    pub hash: Vec<u8>,
    pub size_bytes: u64,
    pub modified_ms: i64,
    /// How it was read and cut: another recipe makes something else of the same bytes.
    pub recipe: String,
    pub file: Option<Uuid>,
    pub about: Value,
    pub content: DocumentContent,
    /// How many documents its source may have.
    pub limit: u32,
    /// It replaces this one or nothing: what was deleted or replaced meanwhile stays so.
    pub only_if: Option<Uuid>,
}

/// How far a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentState {
    /// Accepted, not read yet.
    Pending,
    Indexed,
    /// It cannot be read; `about` says why.
    Failed,
}

impl DocumentState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Indexed => "indexed",
            Self::Failed => "failed",
        }
    }
}

/// What a document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentContent {
    pub body: Bytes,
    pub chunks: Vec<ChunkRow>,
}

/// A piece of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRow {
    pub hash: ChunkHash,
    pub data: Bytes,
}

/// A document as stored, without its contents.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentRecord {
    /// Grows with each document that is new.
    pub n: u64,
    pub id: Uuid,
    pub tenant: String,
    pub source: String,
    pub path: String,
    pub owner: Option<String>,
    pub state: DocumentState,
    pub hash: Vec<u8>,
    pub size_bytes: u64,
    pub modified_ms: i64,
    pub recipe: String,
    pub file: Option<Uuid>,
    pub chunks: u32,
    pub about: Value,
    pub created_at: Timestamp,
    pub changed_at: Timestamp,
}

/// What became of [`KnowledgeStore::put_document`].
#[derive(Clone, Debug, PartialEq)]
pub enum DocumentStored {
    /// Under this id.
    Stored(Uuid),
    /// Its source has as many as it may.
    TooMany,
    /// What it should have replaced is not there any more.
    Gone,
}

/// Which documents.
#[derive(Clone, Debug, Default)]
pub struct DocumentQuery {
    pub tenant: Option<String>,
    pub source: Option<String>,
    pub state: Option<DocumentState>,
    pub file: Option<Uuid>,
    /// After the one with this number.
    pub after: u64,
    /// At most so many; 0 is the most there may be.
    pub limit: u32,
}

/// A collection that somebody made.
#[derive(Clone, Debug, PartialEq)]
pub struct Collection {
    pub id: Uuid,
    pub tenant: String,
    pub owner: Option<String>,
    pub about: Value,
    pub created_at: Timestamp,
}

/// A file that somebody sent.
#[derive(Clone, Debug, PartialEq)]
pub struct FileRecord {
    pub id: Uuid,
    pub tenant: String,
    pub owner: Option<String>,
    pub size_bytes: u64,
    pub about: Value,
    pub created_at: Timestamp,
}

/// What one owner's files may be.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    pub count: u32,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileStored {
    Stored,
    TooMany,
    TooMuch,
}

/// Which collections or files, oldest first.
#[derive(Clone, Debug, Default)]
pub struct OwnedQuery {
    pub id: Option<Uuid>,
    pub tenant: Option<String>,
    /// `Some(None)` is what belongs to nobody.
    pub owner: Option<Option<String>>,
    /// At most so many; 0 is the most there may be.
    pub limit: u32,
}

/// Rows that one answer has at most.
pub const MOST_ROWS: u32 = 100_000;

pub(crate) const fn rows(limit: u32) -> u32 {
    if limit == 0 || limit > MOST_ROWS { MOST_ROWS } else { limit }
}
