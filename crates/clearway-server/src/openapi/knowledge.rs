//! Knowledge, files, vector stores, and the knowledge agent's door.

use serde_json::{Map, Value, json};

use super::schemas::{nullable, object, text};
use super::{
    Answer, JSON, Operation, Refusals, SSE, Sends, Style, deadline, flag, idempotency_key,
    last_event_id, limit, needed, on_disconnect, put, query,
};
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
        "post",
        "/v1/vector_stores/{vector_store_id}/files/{file_id}",
        "vector_store_file_change",
        "Change its attributes",
        Some("Object"),
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
        "post",
        "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
        "vector_store_batch_cancel",
        "Do not read what has not been read yet",
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
    ("post", "/chat", "chat", "Ask, and wait for the answer with its citations", Some("Question")),
    ("post", "/chat/stream", "chat_stream", "Ask, and watch the answer come", Some("Question")),
    ("post", "/chat/async", "chat_async", "Ask in the background", Some("Question")),
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
        one(paths, row, row.1, row.2, Style::Own);
    }
    for row in OPENAI {
        one(paths, row, row.1, row.2, Style::OpenAi);
    }
}

pub(super) fn door(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    let name = mount.trim_matches('/').replace(['/', '-'], "_");
    for row in DOOR {
        let id = format!("{name}_{}", row.2);
        one(paths, row, &format!("{mount}{}", row.1), &id, Style::Old);
    }
}

/// Searching and chatting are work, which may fail or take too long.
const WORK: &[&str] = &[
    "Invalid",
    "NotFound",
    "TooSlow",
    "Conflict",
    "Gone",
    "TooLarge",
    "Unprocessable",
    "TooMany",
    "Failed",
    "Unavailable",
    "Late",
];

fn one(paths: &mut Map<String, Value>, row: &Row, at: &str, id: &str, style: Style) {
    let (method, address, _, summary, body) = *row;
    let status =
        if at.ends_with("/refresh") || at.ends_with("/chat/async") { "202" } else { "200" };
    let media = match address {
        "/chat/stream" => SSE,
        "/v1/files/{file_id}/content" => "application/octet-stream",
        _ => JSON,
    };
    let mut answers: Vec<Answer<'_>> = vec![(status, summary, media, "")];
    if address == "/knowledge/{source}/graph" {
        answers.push((status, summary, "image/svg+xml", ""));
    }
    let sends = match (address, method) {
        ("/v1/files", "post") => Some(Sends::File),
        _ => body.map(Sends::Maybe),
    };
    put(
        paths,
        Operation {
            method,
            path: at,
            id,
            summary,
            parameters: parameters(method, address),
            sends,
            answers: &answers,
            refusals: Refusals(style, WORK),
        },
    );
}

/// What an address takes beside its path and body.
fn parameters(method: &str, address: &str) -> Vec<Value> {
    let words = |name| needed(query(name, text(), "what to look for"));
    let most = || {
        let schema = json!({"type": "integer", "minimum": 1, "maximum": 1000});
        query("limit", schema, "at most so many")
    };
    let any = |name, description| query(name, text(), description);
    let page = || {
        let order = json!({"enum": ["asc", "desc"]});
        let many = json!({"type": "integer", "minimum": 1, "maximum": 10_000});
        vec![
            query("limit", many, "at most so many"),
            query("order", order, "by age"),
            any("after", "the last one of the page before"),
            any("before", "the first one of the page behind"),
        ]
    };
    let graph = || {
        let all = json!({"type": "integer", "minimum": 0});
        vec![
            any("entity", "what is around it"),
            any("to", "the way to it"),
            query("limit", all, "at most so many"),
        ]
    };
    match (method, address) {
        ("post", "/knowledge/{source}/refresh") => {
            vec![flag("all", "also those that did not change")]
        }
        ("post", "/knowledge/search") => vec![deadline()],
        ("get", "/knowledge/{source}/graph") => {
            let mut all = graph();
            all.push(query("format", json!({"enum": ["json", "svg"]}), "as data or picture"));
            all
        }
        ("get", "/knowledge/graph") => graph(),
        ("get", "/knowledge/search/content") => {
            vec![words("query"), flag("case_sensitive", "letters as they are"), most()]
        }
        ("get", "/knowledge/search" | "/notes/search") => {
            let share = json!({"type": "number", "minimum": 0, "maximum": 1});
            let share = query("similarity_threshold", share, "how near at least");
            vec![words("query"), most(), share, any("user_id", "whose documents, too")]
        }
        ("post", "/chat" | "/chat/stream" | "/chat/async") => {
            vec![on_disconnect(), idempotency_key(), deadline(), last_event_id()]
        }
        ("get", "/tasks") => vec![
            any("status", "pending, running, completed, failed, cancelled"),
            limit(),
            any("after", "the `next` of the page before"),
        ],
        ("post", "/cache/clear") => vec![flag("confirm", "must be said")],
        ("post", "/sync") => vec![flag("force_rebuild", "read all documents again")],
        ("get", "/v1/files") => {
            let mut all = page();
            all.push(any("purpose", "those with this purpose"));
            all
        }
        ("get", path) if path.ends_with("/files") => {
            let mut all = page();
            all.push(any("filter", "those that are so far"));
            all
        }
        ("get", "/v1/vector_stores") => page(),
        _ => Vec::new(),
    }
}

pub(super) fn schemas() -> Value {
    json!({
        "Upload": object(&["file", "purpose"], json!({
            "file": {"type": "string", "contentMediaType": "application/octet-stream"},
            "purpose": text(),
        })),
        "Question": object(&["message"], json!({
            "message": {"type": "string", "minLength": 1},
            "conversation_history": {"type": ["array", "null"], "items": object(
                &["role", "content"],
                json!({"role": {"enum": ["user", "assistant", "system"]}, "content": text()}),
            )},
            "user_id": nullable("string"), "conversation_id": nullable("string"),
            "metadata": nullable("object"), "deadline_ms": {"type": "integer", "minimum": 1},
        })),
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
