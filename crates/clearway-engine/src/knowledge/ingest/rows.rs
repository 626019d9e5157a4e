//! What a reader says as what is stored, and what is stored as what is indexed.
//!
//! Pure. Not here: when which of them is made.

use std::sync::Arc;

use clearway_ingest::protocol::{self, Parsed, Trouble};
use clearway_knowledge::{Block, BlockKind, Chunk, ChunkHash, Document};
use clearway_store::{ChunkRow, DocumentContent, DocumentRecord, DocumentState, NewDocument};
use serde_json::{Value, json};

use crate::knowledge::{to_bytes, uploads};

pub(super) fn block(block: &protocol::Block) -> Block {
    Block {
        kind: match block.kind {
            protocol::BlockKind::Heading(level) => BlockKind::Heading { level },
            protocol::BlockKind::Paragraph => BlockKind::Paragraph,
            protocol::BlockKind::Verbatim => BlockKind::Verbatim,
        },
        span: block.span.clone(),
        page: block.page,
    }
}

pub(super) fn title(parsed: &Parsed, path: &str) -> String {
    parsed.title.clone().unwrap_or_else(|| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.rsplit_once('.').map_or(file, |(stem, _)| stem).to_owned()
    })
}

/// What a document points at: its links, and what its front matter names.
pub(super) fn links(parsed: &Parsed) -> Vec<String> {
    let names = ["tags", "keywords", "related", "aliases", "category", "categories", "project"];
    let front = parsed.front.iter().filter(|(key, _)| names.contains(&key.to_lowercase().as_str()));
    parsed.links.iter().cloned().chain(front.map(|(_, value)| value.clone())).collect()
}

/// A chunk as it is stored.
pub(super) fn row(chunk: &Chunk) -> ChunkRow {
    let data = json!({
        "text": &*chunk.content,
        "path": chunk.section_path,
        "pages": [chunk.page_start, chunk.page_end],
        "tokens": chunk.tokens,
        "span": [chunk.span.start, chunk.span.end],
    });
    ChunkRow { hash: *chunk.hash.as_bytes(), data: to_bytes(&data) }
}

pub(super) fn chunks_of(record: &DocumentRecord, content: &DocumentContent) -> Vec<Chunk> {
    let doc_id: Arc<str> = record.id.to_string().into();
    let chunk = |(index, row): (u32, &ChunkRow)| {
        let data: Value = serde_json::from_slice(&row.data).ok()?;
        let path = data["path"].as_array()?.iter();
        let section_path: Vec<String> =
            path.filter_map(|heading| heading.as_str().map(ToOwned::to_owned)).collect();
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let place = |value: &Value| usize::try_from(value.as_u64()?).ok();
        Some(Chunk {
            id: format!("{doc_id}#{index}").into(),
            doc_id: doc_id.clone(),
            chunk_index: index,
            content: data["text"].as_str()?.into(),
            section_title: section_path.last().cloned(),
            section_path,
            page_start: number(&data["pages"][0]),
            page_end: number(&data["pages"][1]),
            tokens: number(&data["tokens"])?,
            span: place(&data["span"][0])?..place(&data["span"][1])?,
            hash: ChunkHash::from_bytes(row.hash),
        })
    };
    (0..).zip(&content.chunks).filter_map(chunk).collect()
}

pub(super) fn document_of(record: &DocumentRecord, shelf: &str) -> Document {
    let text = |name: &str| record.about[name].as_str().map(ToOwned::to_owned);
    let links = record.about["links"].as_array().into_iter().flatten();
    let collection = if record.tenant.is_empty() { shelf } else { &record.source };
    let owner = record.owner.as_ref();
    Document {
        id: record.id.to_string().into(),
        collection: collection.into(),
        owner: owner.map(|owner| uploads::viewer(&record.tenant, owner).into()),
        title: text("title").unwrap_or_else(|| record.path.clone()),
        source: text("filename").unwrap_or_else(|| record.path.clone()),
        links: links.filter_map(|link| link.as_str().map(ToOwned::to_owned)).collect(),
    }
}

/// As if it had been read back, for the index.
pub(super) fn record_of(new: &NewDocument) -> DocumentRecord {
    DocumentRecord {
        n: 0,
        id: new.id,
        tenant: new.tenant.clone(),
        source: new.source.clone(),
        path: new.path.clone(),
        owner: new.owner.clone(),
        state: new.state,
        hash: Vec::new(),
        size_bytes: new.size_bytes,
        modified_ms: new.modified_ms,
        recipe: String::new(),
        file: new.file,
        chunks: new.content.chunks.len() as u32,
        about: new.about.clone(),
        created_at: clearway_core::Timestamp(0),
        changed_at: clearway_core::Timestamp(0),
    }
}

pub(super) fn trouble_json(trouble: &Trouble) -> Value {
    json!({"kind": trouble.kind, "message": trouble.message})
}

pub(crate) fn trouble_of(record: &DocumentRecord) -> Option<Trouble> {
    if record.state != DocumentState::Failed {
        return None;
    }
    serde_json::from_value(record.about["trouble"].clone()).ok()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn from_hex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
