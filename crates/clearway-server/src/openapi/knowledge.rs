//! Knowledge, files, vector stores, and the knowledge agent's door.

use serde_json::{Map, Value, json};

use super::{JSON, Operation, path, put};
use crate::server::Door;

/// Method, path, id, what it does, the schema of its body.
type Row = (&'static str, &'static str, &'static str, &'static str, Option<&'static str>);

const OWN: &[Row] = &[
    (
        "get",
        "/knowledge",
        "knowledge",
        "How far every source is, and which searches are under way",
        None,
    ),
    (
        "post",
        "/knowledge/search",
        "knowledge_search",
        "What documents have about a question",
        Some("KnowledgeSearch"),
    ),
    (
        "get",
        "/knowledge/{source}",
        "knowledge_source",
        "How far a source is, with what could not be read",
        None,
    ),
    (
        "post",
        "/knowledge/{source}/refresh",
        "knowledge_refresh",
        "Look at its documents again",
        None,
    ),
    ("get", "/knowledge/{source}/documents", "knowledge_documents", "Its documents", None),
    (
        "get",
        "/knowledge/{source}/graph",
        "knowledge_graph",
        "What its documents connect, as JSON or SVG",
        None,
    ),
];

const OPENAI: &[Row] = &[
    ("post", "/v1/files", "file_create", "Send a file", None),
    ("get", "/v1/files", "files", "The caller's files", None),
    ("get", "/v1/files/{file_id}", "file", "A file", None),
    ("delete", "/v1/files/{file_id}", "file_delete", "Forget a file, also in vector stores", None),
    ("get", "/v1/files/{file_id}/content", "file_content", "A file's bytes", None),
    ("post", "/v1/vector_stores", "vector_store_create", "Make a vector store", Some("Object")),
    ("get", "/v1/vector_stores", "vector_stores", "The caller's vector stores", None),
    ("get", "/v1/vector_stores/{vector_store_id}", "vector_store", "A vector store", None),
    (
        "post",
        "/v1/vector_stores/{vector_store_id}",
        "vector_store_change",
        "Change its name or metadata",
        Some("Object"),
    ),
    ("delete", "/v1/vector_stores/{vector_store_id}", "vector_store_delete", "Forget it", None),
    (
        "post",
        "/v1/vector_stores/{vector_store_id}/search",
        "vector_store_search",
        "Search it",
        Some("Object"),
    ),
    (
        "post",
        "/v1/vector_stores/{vector_store_id}/files",
        "vector_store_file_create",
        "Put a file into it",
        Some("Object"),
    ),
    (
        "get",
        "/v1/vector_stores/{vector_store_id}/files",
        "vector_store_files",
        "Its files, and how far they are",
        None,
    ),
    (
        "get",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}",
        "vector_store_file",
        "How far one is",
        None,
    ),
    (
        "delete",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}",
        "vector_store_file_delete",
        "Take a file out of it",
        None,
    ),
    (
        "get",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}/content",
        "vector_store_file_content",
        "A file's text as it was read",
        None,
    ),
    (
        "post",
        "/v1/vector_stores/{vector_store_id}/file_batches",
        "vector_store_batch_create",
        "Put several files into it",
        Some("Object"),
    ),
    (
        "get",
        "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}",
        "vector_store_batch",
        "How far they are",
        None,
    ),
    (
        "get",
        "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files",
        "vector_store_batch_files",
        "The files of a batch",
        None,
    ),
];

const DOOR: &[Row] = &[
    ("post", "/chat", "chat", "Ask, and wait for the answer with its citations", Some("Object")),
    ("post", "/chat/stream", "chat_stream", "Ask, and watch the answer come", Some("Object")),
    ("post", "/chat/async", "chat_async", "Ask in the background", Some("Object")),
    ("get", "/chat/task/{task_id}", "chat_task", "How far it is, and its result", None),
    ("get", "/tasks", "tasks", "Questions in the background", None),
    (
        "delete",
        "/tasks/{task_id}",
        "task_cancel",
        "End one; answers when the work has stopped",
        None,
    ),
    ("get", "/health", "health", "Whether it is there", None),
    ("get", "/agent/info", "info", "Model, tools, capabilities", None),
    ("get", "/knowledge/graph", "graph", "What the notes connect", None),
    ("get", "/knowledge/search", "search", "Passages about a question", None),
    ("get", "/knowledge/search/content", "search_content", "Where exact words stand", None),
    ("get", "/knowledge/categories", "categories", "The notes' folders", None),
    ("get", "/notes", "notes", "All notes", None),
    ("get", "/notes/structure", "notes_structure", "All notes as a tree", None),
    ("get", "/notes/search", "notes_search", "Passages about a question", None),
    (
        "get",
        "/notes/{category}",
        "notes_category",
        "The notes of a folder with their texts, or one note",
        None,
    ),
    ("get", "/cache/stats", "cache_stats", "How large the index is", None),
    ("post", "/cache/clear", "cache_clear", "Make the index anew; needs `confirm`", None),
    ("post", "/cache/rebuild", "cache_rebuild", "Make the index anew", None),
    ("post", "/sync", "sync", "Look for changes", None),
    ("get", "/config/embeddings", "config_embeddings", "Which vectors are used", None),
    ("get", "/config/notes", "config_notes", "Where the notes are", None),
];

pub(super) fn own(paths: &mut Map<String, Value>) {
    for row in OWN {
        one(paths, row, row.1, row.2, &["Invalid", "NotFound"]);
    }
    for row in OPENAI {
        one(paths, row, row.1, row.2, &[]);
    }
}

pub(super) fn door(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    let name = mount.trim_matches('/').replace(['/', '-'], "_");
    for row in DOOR {
        let id = format!("{name}_{}", row.2);
        one(paths, row, &format!("{mount}{}", row.1), &id, &["Invalid", "NotFound"]);
    }
}

fn one(paths: &mut Map<String, Value>, row: &Row, at: &str, id: &str, problems: &[&str]) {
    let (method, _, _, summary, body) = *row;
    let parameters =
        at.split('/').filter_map(|part| Some(path(part.strip_prefix('{')?.strip_suffix('}')?)));
    let status =
        if at.ends_with("/refresh") || at.ends_with("/chat/async") { "202" } else { "200" };
    let media = if at.ends_with("/chat/stream") { "text/event-stream" } else { JSON };
    let answers = [(status, summary, media, if media == JSON { "Object" } else { "" })];
    put(
        paths,
        Operation {
            method,
            path: at,
            id,
            summary,
            parameters: parameters.collect(),
            body,
            answers: &answers,
            problems,
        },
    );
}

pub(super) fn schemas() -> Value {
    json!({
        "Object": {"type": "object"},
        "KnowledgeSearch": {
            "type": "object",
            "required": ["query"],
            "additionalProperties": false,
            "properties": {
                "query": {"type": "string"},
                "user_id": {"type": ["string", "null"]},
                "source": {"type": ["string", "null"]},
                "sources": {"type": ["array", "null"], "items": {"type": "string"}},
                "vector_store_ids": {"type": ["array", "null"], "items": {"type": "string"}},
                "doc_ids": {"type": ["array", "null"], "items": {"type": "string"}},
                "similarity_threshold": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.5},
                "max_chunks": {"type": "integer", "minimum": 1, "maximum": 100, "default": 5},
                "token_budget": {"type": "integer", "minimum": 1, "default": 4000},
                "deadline_ms": {"type": "integer", "minimum": 1},
            },
        },
    })
}
