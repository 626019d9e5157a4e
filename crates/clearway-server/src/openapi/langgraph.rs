//! The addresses of LangGraph's dialect.

use serde_json::{Map, Value, json};

use super::doors::SOCKET;
use super::library;
use super::schemas::{object, text};
use super::{Answer, JSON, Operation, Refusals, SSE, Sends, Style, WRITE, put, query};

pub(super) type Answers = &'static [Answer<'static>];

/// Method, path, id, what it does, query parameters, body, good answers.
pub(super) type Entry = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Vec<Value>,
    Option<&'static str>,
    Answers,
);

pub(super) fn paths(paths: &mut Map<String, Value>) {
    let all = [
        server(),
        library::assistants(),
        threads(),
        states(),
        runs(),
        stateless(),
        library::crons(),
        protocol(),
        library::store(),
        library::tools(),
    ];
    for entries in all {
        for (method, path, id, summary, parameters, body, answers) in entries {
            let reasons: &[&str] = match (body, path.contains('{') || !parameters.is_empty()) {
                (None, false) => &[],
                (None, true) => {
                    &["NotFound", "Conflict", "Unprocessable", "TooMany", "Unavailable"]
                }
                (Some(_), _) => WRITE,
            };
            let (sends, refusals) = (body.map(Sends::Body), Refusals(Style::Own, reasons));
            let one = Operation { method, path, id, summary, parameters, sends, answers, refusals };
            put(paths, one);
        }
    }
}

fn server() -> Vec<Entry> {
    let yes: Answers = &[("200", "as asked", JSON, "Object")];
    vec![
        ("get", "/ok", "lg_ok", "Whether the door is there", vec![], None, yes),
        ("get", "/info", "lg_info", "What the server is and can do", vec![], None, yes),
    ]
}

fn threads() -> Vec<Entry> {
    let one: Answers = &[("200", "the thread", JSON, "LgThread")];
    let many: Answers = &[("200", "those that fit", JSON, "LgThreads")];
    let count: Answers = &[("200", "how many fit", JSON, "Count")];
    let pruned: Answers = &[("200", "how many were pruned", JSON, "Object")];
    let changed: Answers = &[
        ("200", "the thread", JSON, "LgThread"),
        ("204", "changed, where `Prefer: return=minimal` was sent", "", ""),
    ];
    let gone: Answers = &[("204", "it is gone", "", "")];
    let search = Some("ThreadSearch");
    vec![
        ("post", "/threads", "lg_thread_create", "A new thread", vec![], Some("ThreadCreate"), one),
        ("post", "/threads/search", "lg_threads", "Threads", vec![], search, many),
        ("post", "/threads/count", "lg_thread_count", "How many threads", vec![], search, count),
        ("post", "/threads/prune", "lg_prune", "Delete or thin out", vec![], Some("Prune"), pruned),
        (
            "get",
            "/threads/{thread_id}",
            "lg_thread",
            "One thread",
            vec![query("include", text(), "`ttl` to be told until when it lives")],
            None,
            one,
        ),
        (
            "patch",
            "/threads/{thread_id}",
            "lg_thread_change",
            "Merges into its metadata",
            vec![],
            Some("ThreadChange"),
            changed,
        ),
        (
            "delete",
            "/threads/{thread_id}",
            "lg_thread_delete",
            "Delete a thread",
            vec![],
            None,
            gone,
        ),
        (
            "post",
            "/threads/{thread_id}/copy",
            "lg_thread_copy",
            "A copy with its whole history",
            vec![],
            None,
            one,
        ),
    ]
}

fn states() -> Vec<Entry> {
    let one: Answers = &[("200", "the state", JSON, "LgState")];
    let many: Answers = &[("200", "states, newest first", JSON, "LgStates")];
    let changed: Answers = &[("200", "the new checkpoint", JSON, "Object")];
    let limit =
        || query("limit", json!({"type": "integer", "minimum": 1, "maximum": 1000}), "most");
    let before = || query("before", uuid(), "a checkpoint; those older than it");
    vec![
        ("get", "/threads/{thread_id}/state", "lg_state", "A thread's state", vec![], None, one),
        (
            "post",
            "/threads/{thread_id}/state",
            "lg_state_update",
            "Change a thread's state",
            vec![],
            Some("StateUpdate"),
            changed,
        ),
        (
            "get",
            "/threads/{thread_id}/state/{checkpoint_id}",
            "lg_state_at",
            "A thread's state at a checkpoint",
            vec![],
            None,
            one,
        ),
        (
            "post",
            "/threads/{thread_id}/state/checkpoint",
            "lg_state_at_checkpoint",
            "The same, with the checkpoint in the body",
            vec![],
            Some("AtCheckpoint"),
            one,
        ),
        (
            "get",
            "/threads/{thread_id}/history",
            "lg_history_get",
            "A thread's states, newest first",
            vec![limit(), before()],
            None,
            many,
        ),
        (
            "post",
            "/threads/{thread_id}/history",
            "lg_history",
            "A thread's states, newest first",
            vec![],
            Some("History"),
            many,
        ),
    ]
}

fn runs() -> Vec<Entry> {
    let one: Answers = &[("200", "the run", JSON, "LgRun")];
    let many: Answers = &[("200", "runs, newest first", JSON, "LgRuns")];
    let stream: Answers = &[("200", "its events", SSE, "")];
    let state: Answers = &[("200", "the thread's values when it has ended", JSON, "Object")];
    let gone: Answers = &[("204", "it is gone", "", "")];
    let cancelled: Answers =
        &[("200", "it has ended", JSON, "Object"), ("202", "it is being stopped", "", "")];
    let body = Some("LgRunCreate");
    let number = |name: &str, least: u32| {
        query(name, json!({"type": "integer", "minimum": least, "maximum": 1000}), "a number")
    };
    let flag = |name: &str| query(name, json!({"type": "boolean"}), "a switch");
    vec![
        ("post", "/threads/{thread_id}/runs", "lg_run_create", "Start a run", vec![], body, one),
        (
            "get",
            "/threads/{thread_id}/runs",
            "lg_runs",
            "A thread's runs",
            vec![
                number("limit", 1),
                number("offset", 0),
                query("status", json!({"enum": STATUSES}), "runs of one status"),
            ],
            None,
            many,
        ),
        (
            "post",
            "/threads/{thread_id}/runs/stream",
            "lg_run_stream",
            "Start a run and follow it",
            vec![],
            body,
            stream,
        ),
        (
            "post",
            "/threads/{thread_id}/runs/wait",
            "lg_run_wait",
            "Start a run and wait for its end",
            vec![],
            body,
            state,
        ),
        ("get", "/threads/{thread_id}/runs/{run_id}", "lg_run", "One run", vec![], None, one),
        (
            "delete",
            "/threads/{thread_id}/runs/{run_id}",
            "lg_run_delete",
            "Take a run out of its thread's history; one that has not ended is stopped",
            vec![],
            None,
            gone,
        ),
        (
            "get",
            "/threads/{thread_id}/runs/{run_id}/join",
            "lg_run_join",
            "Wait for a run's end",
            vec![flag("cancel_on_disconnect")],
            None,
            state,
        ),
        (
            "get",
            "/threads/{thread_id}/runs/{run_id}/stream",
            "lg_run_join_stream",
            "Follow a run",
            vec![flag("cancel_on_disconnect"), stream_mode(), super::last_event_id()],
            None,
            stream,
        ),
        (
            "post",
            "/threads/{thread_id}/runs/{run_id}/cancel",
            "lg_run_cancel",
            "Stop a run",
            vec![
                flag("wait"),
                query("action", json!({"enum": ["interrupt", "rollback"]}), "what becomes of it"),
            ],
            None,
            cancelled,
        ),
    ]
}

fn stateless() -> Vec<Entry> {
    let one: Answers = &[("200", "the run", JSON, "LgRun")];
    let many: Answers = &[("200", "the runs", JSON, "LgRuns")];
    let stream: Answers = &[("200", "its events", SSE, "")];
    let state: Answers = &[("200", "the values when it has ended", JSON, "Object")];
    let done: Answers = &[("204", "they are being stopped", "", "")];
    let body = Some("LgRunCreate");
    let flag = |name: &str| query(name, json!({"type": "boolean"}), "a switch");
    let action =
        || query("action", json!({"enum": ["interrupt", "rollback"]}), "what becomes of it");
    vec![
        (
            "post",
            "/runs",
            "lg_runs_create",
            "Start a run on a thread of its own",
            vec![],
            body,
            one,
        ),
        ("post", "/runs/stream", "lg_runs_stream", "Start one and follow it", vec![], body, stream),
        ("post", "/runs/wait", "lg_runs_wait", "Start one and wait", vec![], body, state),
        ("post", "/runs/batch", "lg_runs_batch", "Start several", vec![], Some("LgBatch"), many),
        (
            "post",
            "/runs/cancel",
            "lg_runs_cancel",
            "Stop several",
            vec![action()],
            Some("LgCancel"),
            done,
        ),
        (
            "get",
            "/runs/{run_id}/stream",
            "lg_runs_join_stream",
            "Follow a run, whatever its thread",
            vec![flag("cancel_on_disconnect"), stream_mode(), super::last_event_id()],
            None,
            stream,
        ),
        (
            "get",
            "/runs/{run_id}/join",
            "lg_runs_join",
            "Wait for a run's end, whatever its thread",
            vec![flag("cancel_on_disconnect")],
            None,
            state,
        ),
    ]
}

fn protocol() -> Vec<Entry> {
    let done: Answers = &[("200", "what came of it", JSON, "Object")];
    let stream: Answers = &[("200", "events", SSE, "")];
    let modes =
        json!({"type": "array", "items": {"enum": ["run_modes", "lifecycle", "state_update"]}});
    vec![
        (
            "post",
            "/threads/{thread_id}/commands",
            "lg_command",
            "A command of the thread protocol",
            vec![],
            Some("LgCommand"),
            done,
        ),
        (
            "post",
            "/threads/{thread_id}/stream/events",
            "lg_events",
            "The events of a thread, over all its runs",
            vec![],
            Some("LgSubscribe"),
            stream,
        ),
        (
            "get",
            "/threads/{thread_id}/stream/events",
            "lg_socket",
            "Commands and events over a WebSocket",
            vec![],
            None,
            SOCKET,
        ),
        (
            "get",
            "/threads/{thread_id}/stream",
            "lg_thread_stream",
            "All runs of a thread, present and future",
            vec![query("stream_mode", modes, "what to show"), super::last_event_id()],
            None,
            stream,
        ),
    ]
}

const STATUSES: [&str; 6] = ["pending", "running", "success", "error", "timeout", "interrupted"];

const MODES: [&str; 9] = [
    "values",
    "updates",
    "messages-tuple",
    "messages",
    "custom",
    "tasks",
    "checkpoints",
    "debug",
    "events",
];

fn stream_mode() -> Value {
    let schema = json!({"type": "array", "items": {"enum": MODES}});
    query("stream_mode", schema, "only these; one, several, or a JSON list")
}

pub(super) fn uuid() -> Value {
    json!({"type": "string", "format": "uuid"})
}

pub(super) fn maybe(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

/// Minutes, or an object with them.
fn lifetime() -> Value {
    json!({
        "type": ["object", "number", "null"], "minimum": 0, "maximum": 52_704_000,
        "properties": {
            "ttl": {"type": ["number", "null"], "minimum": 0, "maximum": 52_704_000},
            "strategy": {"enum": ["delete", "keep_latest", null]},
        },
    })
}

pub(super) fn list_of(name: &str) -> Value {
    json!({"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}})
}

pub(super) fn number(least: i64, most: i64, default: i64) -> Value {
    json!({"type": ["integer", "null"], "minimum": least, "maximum": most, "default": default})
}

pub(super) fn schemas() -> Value {
    let any = || json!({"type": "object"});
    let search_of_threads = thread_search();
    json!({
        "Count": {"type": "integer"},
        // A search may choose the fields, so none is sure to be there.
        "Assistant": object(&[], json!({
            "assistant_id": uuid(), "graph_id": text(),
            "config": any(), "context": any(), "metadata": any(), "name": text(),
            "created_at": text(), "updated_at": text(), "version": {"type": "integer"},
            "description": maybe("string"),
        })),
        "Assistants": list_of("Assistant"),
        // A search may choose the fields, so none is sure to be there.
        "LgThread": object(&[], json!({
            "thread_id": uuid(), "created_at": text(), "updated_at": text(),
            "state_updated_at": text(), "metadata": any(),
            "status": {"enum": ["idle", "busy", "interrupted", "error"]},
            "config": any(), "values": maybe("object"), "error": maybe("object"),
            "interrupts": any(), "extracted": any(), "ttl": object(&["strategy"], json!({
                "strategy": {"enum": ["delete", "keep_latest"]},
                "ttl_minutes": {"type": "number"}, "expires_at": text(),
            })),
        })),
        "LgThreads": list_of("LgThread"),
        "ThreadCreate": object(&[], json!({
            "thread_id": {"type": ["string", "null"], "format": "uuid"},
            "metadata": maybe("object"), "ttl": lifetime(),
            "if_exists": {"enum": ["raise", "do_nothing", null], "default": "raise"},
            "supersteps": {"type": ["array", "null"], "maxItems": 1000, "items": object(
                &["updates"],
                json!({"updates": {"type": "array", "items": any()}}),
            )},
        })),
        "ThreadChange": object(&[], json!({
            "metadata": maybe("object"), "ttl": lifetime(),
        })),
        "ThreadSearch": search_of_threads,
        "Prune": object(&["thread_ids"], json!({
            "thread_ids": {"type": "array", "items": uuid()},
            "strategy": {"enum": ["delete", "keep_latest"], "default": "delete"},
        })),
        "LgState": object(&["values", "next", "tasks", "checkpoint"], json!({
            "values": any(), "next": {"type": "array", "items": text()},
            "tasks": {"type": "array", "items": any()}, "metadata": maybe("object"),
            "created_at": maybe("string"), "checkpoint": maybe("object"),
            "parent_checkpoint": maybe("object"), "interrupts": {"type": "array"},
            "checkpoint_id": maybe("string"), "parent_checkpoint_id": maybe("string"),
        })),
        "LgStates": list_of("LgState"),
        "StateUpdate": object(&[], json!({
            "values": {"type": ["object", "array", "null"]}, "as_node": maybe("string"),
            "checkpoint": maybe("object"), "checkpoint_id": maybe("string"),
        })),
        "AtCheckpoint": object(&["checkpoint"], json!({
            "checkpoint": object(&["checkpoint_id"], json!({"checkpoint_id": uuid()})),
        })),
        "History": object(&[], json!({
            "limit": number(1, 1000, 1), "metadata": maybe("object"),
            "before": {"oneOf": [uuid(), any(), {"type": "null"}]}, "checkpoint": maybe("object"),
        })),
        "LgRun": object(&["run_id", "thread_id", "assistant_id", "status"], json!({
            "run_id": uuid(), "thread_id": uuid(), "assistant_id": uuid(), "metadata": any(),
            "status": {"enum": STATUSES}, "kwargs": any(), "multitask_strategy": text(),
            "created_at": text(), "updated_at": text(), "waiting_on": maybe("object"),
            "queue_position": maybe("integer"), "priority": {"type": "integer"},
            "deadline_ms": maybe("integer"),
        })),
        "LgRuns": list_of("LgRun"),
        "LgRunCreate": run_create(),
        "LgBatch": {"type": "array", "maxItems": 100, "items": {"$ref": "#/components/schemas/LgRunCreate"}},
        "LgCommand": object(&["id", "method"], json!({
            "id": {"type": "integer", "minimum": 0}, "method": text(), "params": maybe("object"),
        })),
        "LgSubscribe": object(&["channels"], json!({
            "channels": {"type": "array", "minItems": 1, "items": text()},
            "namespaces": {"type": ["array", "null"], "items": {"type": "array", "items": text()}},
            "depth": maybe("integer"), "since": maybe("integer"),
        })),
        "LgCancel": object(&[], json!({
            "thread_id": {"type": ["string", "null"], "format": "uuid"},
            "run_ids": {"type": ["array", "null"], "items": uuid()},
            "status": {"enum": ["pending", "running", "all", null]},
        })),
    })
}

fn thread_search() -> Value {
    object(
        &[],
        json!({
            "metadata": maybe("object"), "values": maybe("object"),
            "ids": {"type": ["array", "null"], "items": uuid(), "maxItems": 1000},
            "status": {"enum": ["idle", "busy", "interrupted", "error", null]},
            "limit": number(1, 1000, 10), "offset": number(0, i64::from(u32::MAX), 0),
            "sort_by": {"enum": ["thread_id", "status", "created_at", "updated_at",
                "state_updated_at", null]},
            "sort_order": {"enum": ["asc", "desc", null]},
            "select": {"type": ["array", "null"], "items": {"enum": ["thread_id", "created_at",
                "updated_at", "state_updated_at", "metadata", "config", "context", "status",
                "values", "interrupts", "error"]}},
            "extract": {"type": ["object", "null"], "additionalProperties": text(),
                "maxProperties": 10},
        }),
    )
}

pub(super) fn run_create() -> Value {
    let nodes =
        || json!({"oneOf": [{"const": "*"}, {"type": "array", "items": text()}, {"type": "null"}]});
    object(
        &["assistant_id"],
        json!({
            "assistant_id": text(), "input": maybe("object"), "command": maybe("object"),
            "config": maybe("object"), "context": maybe("object"), "metadata": maybe("object"),
            "stream_mode": {"oneOf": [{"enum": MODES}, {"type": "array", "items": {"enum": MODES}},
                {"type": "null"}]},
            "stream_subgraphs": maybe("boolean"), "stream_resumable": maybe("boolean"),
            "interrupt_before": nodes(), "interrupt_after": nodes(),
            "checkpoint": maybe("object"),
            "checkpoint_id": {"type": ["string", "null"], "format": "uuid"},
            "multitask_strategy": {"enum": ["enqueue", "reject", "interrupt", "rollback", null]},
            "if_not_exists": {"enum": ["reject", "create", null]},
            "on_disconnect": {"enum": ["continue", "cancel", null]},
            "on_completion": {"enum": ["delete", "keep", "complete", "continue", null]},
            "durability": {"enum": ["async", "sync", "exit", null]},
            "after_seconds": {"type": ["number", "null"], "minimum": 0, "maximum": 31536000},
            "webhook": maybe("string"),
            "priority": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
            "deadline_ms": {"type": ["integer", "null"], "minimum": 1},
        }),
    )
}
