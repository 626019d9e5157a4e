//! `GET /openapi.json`: all addresses, written by hand.
//!
//! A test holds it against the table of addresses, both ways.

use serde_json::{Map, Value, json};

use crate::server::{Door, DoorKind, ServerOptions};

mod knowledge;
mod langgraph;
mod library;

/// The document for a server with these doors.
pub(crate) fn document(options: &ServerOptions) -> Value {
    let mut paths = Map::new();
    operations(&mut paths);
    all_runs(&mut paths);
    control(&mut paths);
    background(&mut paths);
    embeddings(&mut paths);
    langgraph::paths(&mut paths);
    knowledge::own(&mut paths);
    for door in &options.doors {
        match door.kind {
            DoorKind::CoFounder => cofounder(&mut paths, door),
            DoorKind::Campaign => campaign(&mut paths, door),
            DoorKind::Knowledge => knowledge::door(&mut paths, door),
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Clearway",
            "version": options.version,
            "description": "An agent server where nothing blocks, hangs or gets lost.",
        },
        "paths": paths,
        "components": {"schemas": all_schemas(), "responses": responses(), "headers": headers()},
    })
}

/// One operation of one path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    id: &'a str,
    summary: &'a str,
    parameters: Vec<Value>,
    body: Option<&'a str>,
    /// Status, what it means, media type, schema.
    answers: &'a [(&'a str, &'a str, &'a str, &'a str)],
    problems: &'a [&'a str],
}

fn put(paths: &mut Map<String, Value>, operation: Operation<'_>) {
    let mut answers = Map::new();
    for &(status, meaning, media, schema) in operation.answers {
        let entry =
            answers.entry(status).or_insert_with(|| json!({"description": meaning, "content": {}}));
        let schema = match schema {
            "" => json!({"type": "string"}),
            name => json!({"$ref": format!("#/components/schemas/{name}")}),
        };
        if !media.is_empty() {
            entry["content"][media] = json!({"schema": schema});
        }
    }
    for &problem in operation.problems {
        let reference = format!("#/components/responses/{problem}");
        let status = responses()[problem]["x-status"].as_str().unwrap_or("default").to_owned();
        answers.insert(status, json!({"$ref": reference}));
    }
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": operation.parameters,
        "responses": answers,
    });
    if let Some(body) = operation.body {
        let schema = json!({"$ref": format!("#/components/schemas/{body}")});
        described["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    let path = paths.entry(operation.path).or_insert_with(|| json!({}));
    path[operation.method] = described;
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "required": false, "schema": schema, "description": description})
}

fn path(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
}

fn header(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "schema": schema, "description": description})
}

fn idempotency_key() -> Value {
    let text = "the same key with the same body starts one run";
    header("Idempotency-Key", json!({"type": "string", "maxLength": 255}), text)
}

fn deadline() -> Value {
    let text = "milliseconds until the answer must be there; the smallest limit wins";
    header("X-Deadline-Ms", json!({"type": "integer", "minimum": 1}), text)
}

fn last_event_id() -> Value {
    header("Last-Event-ID", json!({"type": "string"}), "the last event that the client has")
}

fn on_disconnect() -> Value {
    let schema = json!({"type": "string", "enum": ["continue", "cancel"], "default": "continue"});
    query("on_disconnect", schema, "what becomes of the run when the client leaves")
}

fn limit() -> Value {
    let schema = json!({"type": "integer", "minimum": 1, "maximum": 1000});
    query("limit", schema, "at most so many")
}

const JSON: &str = "application/json";
const SSE: &str = "text/event-stream";
const TEXT: &str = "text/plain";

fn operations(paths: &mut Map<String, Value>) {
    type Plain = (&'static str, &'static str, &'static str, &'static str, &'static str);
    let plain: [Plain; 7] = [
        ("/", "home", "What lives here", TEXT, ""),
        ("/openapi.json", "openapi", "This document", JSON, "Object"),
        ("/health/live", "live", "Whether the runtime moves", JSON, "Object"),
        (
            "/health/ready",
            "ready",
            "Whether new work would be done, and if not, why",
            JSON,
            "Object",
        ),
        ("/metrics", "metrics", "Measurements for Prometheus", "application/openmetrics-text", ""),
        ("/providers", "providers", "Model providers and how busy they are", JSON, "Object"),
        ("/pools", "pools", "Pools of runs and how busy they are", JSON, "Object"),
    ];
    for (path, id, summary, media, schema) in plain {
        let is_health = path.starts_with("/health");
        let answers: &[_] = if is_health {
            &[("200", "yes", JSON, "Object"), ("503", "no", JSON, "Object")]
        } else {
            &[("200", "as asked", media, schema)]
        };
        let parameters = Vec::new();
        put(
            paths,
            Operation {
                method: "get",
                path,
                id,
                summary,
                parameters,
                body: None,
                answers,
                problems: &[],
            },
        );
    }
    put(
        paths,
        Operation {
            method: "post",
            path: "/providers/{name}/reset",
            id: "reset_provider",
            summary: "Closes a provider's breakers and takes its keys up again",
            parameters: vec![path("name")],
            body: None,
            answers: &[("200", "the provider as it is now", JSON, "Object")],
            problems: &["NotFound"],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/errors/{code}",
            id: "error_page",
            summary: "What an error code means and what to do about it",
            parameters: vec![path("code")],
            body: None,
            answers: &[("200", "the page", TEXT, "")],
            problems: &["NotFound"],
        },
    );
}

fn all_runs(paths: &mut Map<String, Value>) {
    put(
        paths,
        Operation {
            method: "get",
            path: "/runs",
            id: "runs",
            summary: "Runs of all doors, newest first",
            parameters: vec![
                query("status", text(), "one or more statuses, separated by commas"),
                query("agent", text(), "runs of one agent"),
                query("door", text(), "runs that came through one door"),
                query(
                    "thread_id",
                    json!({"type": "string", "format": "uuid"}),
                    "runs of one thread",
                ),
                limit(),
                query(
                    "after",
                    json!({"type": "string", "format": "uuid"}),
                    "the `next` of the page before",
                ),
            ],
            body: None,
            answers: &[("200", "a page", JSON, "Runs")],
            problems: &["Invalid"],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/runs/{run_id}",
            id: "run",
            summary: "One run: what it does, and what it waits for",
            parameters: vec![path("run_id")],
            body: None,
            answers: &[("200", "the run", JSON, "Run")],
            problems: &["NotFound"],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/runs/{run_id}/events",
            id: "run_events",
            summary: "A run's events, as a stream or, with Accept: application/json, as a page",
            parameters: vec![
                path("run_id"),
                query("after", text(), "an event's id or number; reading goes on behind it"),
                limit(),
                last_event_id(),
            ],
            body: None,
            answers: &[("200", "the events", SSE, ""), ("200", "the events", JSON, "Events")],
            problems: &["Invalid", "NotFound"],
        },
    );
    put(
        paths,
        Operation {
            method: "post",
            path: "/runs/{run_id}/cancel",
            id: "run_cancel",
            summary: "End a run",
            parameters: vec![
                path("run_id"),
                query(
                    "wait",
                    json!({"type": "integer", "enum": [0, 1]}),
                    "answer after the end, with a receipt",
                ),
            ],
            body: None,
            answers: &[
                ("200", "it has ended", JSON, "Run"),
                ("202", "its calls are being dropped", JSON, "Run"),
            ],
            problems: &["NotFound", "Conflict"],
        },
    );
}

fn embeddings(paths: &mut Map<String, Value>) {
    put(
        paths,
        Operation {
            method: "post",
            path: "/v1/embeddings",
            id: "embeddings",
            summary: "Vectors of texts, as OpenAI's clients ask for them",
            parameters: vec![deadline()],
            body: Some("Embed"),
            answers: &[
                ("200", "a vector for each text", JSON, "Embeddings"),
                ("400", "a text that cannot be embedded, or a wrong field", JSON, "OpenAiError"),
                ("404", "there is no such embedding model", JSON, "OpenAiError"),
                ("502", "the provider failed, or its vectors cannot be used", JSON, "OpenAiError"),
                ("504", "the deadline passed; the error says in which phase", JSON, "OpenAiError"),
            ],
            problems: &[],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/embeddings/{text}",
            id: "embedding",
            summary: "The vector of one text, to look at",
            parameters: vec![
                path("text"),
                query("model", json!({"type": "string"}), "which one, where there are several"),
                query(
                    "purpose",
                    json!({"type": "string", "enum": ["query", "document"], "default": "query"}),
                    "what the vector is for",
                ),
                deadline(),
            ],
            body: None,
            answers: &[("200", "the vector", JSON, "Embedding")],
            problems: &["Invalid", "NotFound"],
        },
    );
}

fn background(paths: &mut Map<String, Value>) {
    put(
        paths,
        Operation {
            method: "post",
            path: "/chat/async",
            id: "task_create",
            summary: "A chat in the background: answers at once with a task",
            parameters: vec![idempotency_key(), deadline()],
            body: Some("Ask"),
            answers: &[("202", "accepted", JSON, "Object")],
            problems: &["Unprocessable", "Conflict", "Unavailable"],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/chat/task/{task_id}",
            id: "task",
            summary: "A task: its status, what there is of its text, its result",
            parameters: vec![path("task_id")],
            body: None,
            answers: &[("200", "the task", JSON, "Task")],
            problems: &["NotFound"],
        },
    );
    put(
        paths,
        Operation {
            method: "get",
            path: "/tasks",
            id: "tasks",
            summary: "Tasks, newest first",
            parameters: vec![
                query(
                    "status",
                    json!({"type": "string"}),
                    "pending, running, completed, failed, cancelled",
                ),
                limit(),
                query(
                    "after",
                    json!({"type": "string", "format": "uuid"}),
                    "the `next` of the page before",
                ),
            ],
            body: None,
            answers: &[("200", "a page", JSON, "Object")],
            problems: &["Invalid"],
        },
    );
    put(
        paths,
        Operation {
            method: "delete",
            path: "/tasks/{task_id}",
            id: "task_cancel",
            summary: "End a task; answers when its work has stopped",
            parameters: vec![path("task_id")],
            body: None,
            answers: &[("200", "how it ended", JSON, "Object")],
            problems: &["NotFound"],
        },
    );
}

/// One operation with the parameters of its path, JSON in and out.
fn plain(paths: &mut Map<String, Value>, method: &str, at: &str, id: &str, summary: &str) {
    let names = at.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let answers: &[(&str, &str, &str, &str)] = match method {
        "post" => &[("200", "done", JSON, ""), ("202", "accepted", JSON, "")],
        _ => &[("200", "the answer", JSON, "")],
    };
    let problems: &[&str] = &["Invalid", "NotFound", "Conflict", "Unavailable"];
    let operation = Operation {
        method,
        path: at,
        id,
        summary,
        parameters: names.map(path).collect(),
        body: None,
        answers,
        problems,
    };
    put(paths, operation);
}

fn control(paths: &mut Map<String, Value>) {
    let mut add = |method, at: &str, id, summary| plain(paths, method, at, id, summary);
    add("post", "/workflows/{name}/runs", "start_workflow", "Start a workflow");
    add("post", "/runs/{run_id}/answer", "answer", "Answer what a run asked; a new run goes on");
    add("post", "/runs/{run_id}/signals/{name}", "signal", "Send a signal to a run");
    add("post", "/runs/{run_id}/wake", "wake", "Take a waiting run up before its time");
    add(
        "post",
        "/runs/{run_id}/resolve",
        "resolve",
        "Decide about a write whose outcome is not known",
    );
    add("get", "/runs/{run_id}/artifacts", "run_artifacts", "Files that a run made");
    add("get", "/runs/{run_id}/artifacts/{name}", "run_artifact", "One file");
    add("get", "/attention", "attention", "What needs somebody");
    let thread = |rest: &str| format!("/storage/threads{rest}");
    add("get", &thread(""), "stored_threads", "Threads, most recently changed first");
    add("get", &thread("/{thread_id}"), "stored_thread", "A thread's values and what it occupies");
    add("get", &thread("/{thread_id}/history"), "thread_history", "A thread's checkpoints");
    add("post", &thread("/{thread_id}/prune"), "prune_thread", "Drop a thread's old checkpoints");
    add("post", &thread("/{thread_id}/fork"), "fork_thread", "Go on from an earlier checkpoint");
    add("patch", "/runs/{run_id}", "change_run", "Priority and budget of a run");
    add("patch", "/pools/{name}", "change_pool", "How many runs of a pool execute at once");
}

fn campaign(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    let one = "/campaigns/{campaign_id}";
    for (method, address, id, summary) in [
        ("post", "/campaigns/generate", "campaign_generate", "Start a campaign from a brief"),
        ("post", "/campaigns", "campaign_create", "The same, answered with 202"),
        ("get", "/campaigns", "campaign_list", "All campaigns"),
        ("get", "/campaigns/progress", "campaign_all_progress", "All campaigns with progress"),
        ("get", "/campaigns/stream", "campaign_all_stream", "All campaigns as they go on"),
        ("get", "/campaigns/ws", "campaign_all_socket", "The same over a WebSocket"),
        ("get", "/campaigns/progress/ws", "campaign_progress_socket", "The same over a WebSocket"),
        ("get", "/health", "campaign_health", "Health in the old shape"),
        ("get", "/test/thread-pool", "campaign_pool", "Two seconds of blocking work"),
        ("get", "/analytics/campaigns", "campaign_analytics", "Counts, durations, failures, cost"),
    ] {
        plain(paths, method, &format!("{mount}{address}"), id, summary);
    }
    for (method, rest, id, summary) in [
        ("get", "", "campaign_show", "One campaign"),
        ("patch", "", "campaign_change", "Change the priority of one that waits"),
        ("post", "/cancel", "campaign_cancel", "End it"),
        ("post", "/answer", "campaign_answer", "Answer its question"),
        ("get", "/status", "campaign_status", "Its status"),
        ("get", "/progress", "campaign_progress", "Its progress, from its events"),
        ("get", "/workflow-steps", "campaign_steps", "Its steps"),
        ("get", "/stream", "campaign_stream", "Its events as a stream"),
        ("get", "/ws", "campaign_socket", "The same over a WebSocket"),
        ("get", "/website", "campaign_website", "The website as a download"),
        ("get", "/pdf", "campaign_pdf", "The report as a download"),
        ("get", "/artifacts", "campaign_artifacts", "Its files"),
        ("get", "/artifacts/{name}", "campaign_artifact", "One of its files"),
        ("get", "/zip", "campaign_zip", "All its files as one archive"),
    ] {
        plain(paths, method, &format!("{mount}{one}{rest}"), id, summary);
    }
    let view = "/campaigns/view/{campaign_id}";
    plain(paths, "get", view, "campaign_view", "The website, sandboxed");
}

fn cofounder(paths: &mut Map<String, Value>, door: &Door) {
    let mount = door.mount.trim_end_matches('/');
    let name = if mount.is_empty() { String::new() } else { mount.replace('/', "_") };
    let mut add = |method: &str, address: &str, id: &str, rest: Operation<'_>| {
        let (path, id) = (format!("{mount}{address}"), format!("{id}{name}"));
        put(paths, Operation { method, path: &path, id: &id, ..rest });
    };
    let of = |summary, parameters, body, answers, problems| Operation {
        method: "",
        path: "",
        id: "",
        summary,
        parameters,
        body,
        answers,
        problems,
    };
    let turn = || vec![on_disconnect(), idempotency_key(), deadline()];
    let refusals = &["Unprocessable", "Conflict", "Unavailable"];
    let chat = &[("200", "the reply", JSON, "Reply"), ("502", "the run failed", JSON, "ChatError")];
    add(
        "post",
        "/chat",
        "chat",
        of("One turn, answered as a whole", turn(), Some("Turn"), chat, refusals),
    );
    let stream = &[("200", "delta, progress, final or error", SSE, "")];
    let parameters = [turn(), vec![last_event_id()]].concat();
    add(
        "post",
        "/chat/stream",
        "chat_stream",
        of("One turn, answered as a stream", parameters, Some("Turn"), stream, refusals),
    );
    let run = json!({
        "name": "run_id", "in": "query", "required": true,
        "schema": {"type": "string", "format": "uuid"},
        "description": "the X-Run-Id of the answer that began the stream",
    });
    let parameters = vec![run, last_event_id(), on_disconnect()];
    add(
        "get",
        "/chat/stream",
        "chat_rejoin",
        of("Go on with a stream that broke off", parameters, None, stream, &["NotFound"]),
    );
    let reset = &[("200", "the conversation is empty", JSON, "Object")];
    add(
        "post",
        "/reset",
        "reset",
        of("End the running turn and start over", vec![], Some("Reset"), reset, &["Unprocessable"]),
    );
    let user =
        json!({"name": "user_id", "in": "query", "required": true, "schema": {"type": "string"}});
    let conversation = query(
        "conversation_id",
        json!({"type": "string", "default": "default"}),
        "which conversation",
    );
    let state = &[("200", "the state", JSON, "Object")];
    add(
        "get",
        "/state",
        "state",
        of(
            "What the conversation has come to, where the door shows it",
            vec![user, conversation],
            None,
            state,
            &["NotFound"],
        ),
    );
    let health = &[("200", "it is there", JSON, "Object")];
    add("get", "/health", "health", of("Whether the door is there", vec![], None, health, &[]));
}

fn all_schemas() -> Map<String, Value> {
    let parts = [
        schemas(),
        embedding_schemas(),
        langgraph::schemas(),
        library::schemas(),
        knowledge::schemas(),
    ];
    parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect()
}

fn text() -> Value {
    json!({"type": "string"})
}

fn nullable(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn embedding_schemas() -> Value {
    json!({
        "Embed": object(&["model", "input"], json!({
            "model": text(),
            "input": {"oneOf": [
                text(),
                {"type": "array", "items": text(), "minItems": 1, "maxItems": 2048},
            ]},
            "encoding_format": {"enum": ["float", "base64"], "default": "float"},
            "dimensions": {"type": "integer", "minimum": 1},
            "purpose": {"enum": ["query", "document"]},
            "user": text(),
        })),
        "Embeddings": object(&["object", "data", "model", "usage"], json!({
            "object": {"const": "list"}, "model": text(),
            "data": {"type": "array", "items": object(
                &["object", "index", "embedding"],
                json!({
                    "object": {"const": "embedding"}, "index": {"type": "integer"},
                    "embedding": {"oneOf": [{"type": "array", "items": {"type": "number"}}, text()]},
                }),
            )},
            "usage": object(
                &["prompt_tokens", "total_tokens"],
                json!({"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}),
            ),
        })),
        "Embedding": object(&["text", "model", "purpose", "dimensions", "embedding", "cached"], json!({
            "text": text(), "model": text(), "purpose": {"enum": ["query", "document"]},
            "dimensions": {"type": "integer"},
            "embedding": {"type": "array", "items": {"type": "number"}},
            "cached": {"type": "boolean"}, "usage": {"type": "object"},
        })),
        "OpenAiError": object(&["error"], json!({"error": object(
            &["message", "type", "param", "code"],
            json!({
                "message": text(), "type": text(), "param": nullable("string"), "code": text(),
                "request_id": text(), "retry_after_ms": {"type": "integer"},
            }),
        )})),
    })
}

fn schemas() -> Value {
    let name = || json!({"type": "string", "minLength": 1, "maxLength": 256});
    let default_name =
        || json!({"type": "string", "minLength": 1, "maxLength": 256, "default": "default"});
    json!({
        "Object": {"type": "object"},
        "Turn": object(&["user_id", "message"], json!({
            "user_id": name(), "message": {"type": "string", "minLength": 1},
            "conversation_id": default_name(), "metadata": {"type": "object", "default": {}},
            "deadline_ms": {"type": "integer", "minimum": 1},
        })),
        "Reset": object(&["user_id"], json!({"user_id": name(), "conversation_id": default_name()})),
        "Reply": object(&["user_id", "conversation_id", "thread_id", "reply"], json!({
            "user_id": text(), "conversation_id": text(), "thread_id": text(), "reply": text(),
        })),
        "ChatError": object(&["detail"], json!({"detail": object(
            &["error_type", "error_message", "thread_id"],
            json!({"error_type": text(), "error_message": text(), "thread_id": nullable("string")}),
        )})),
        "Ask": object(&["message"], json!({
            "message": {"type": "string", "minLength": 1},
            "conversation_history": {"type": "array", "items": object(
                &["role", "content"],
                json!({"role": {"enum": ["user", "assistant", "system"]}, "content": text()}),
            )},
            "user_id": nullable("string"), "conversation_id": nullable("string"),
            "metadata": {"type": "object"}, "deadline_ms": {"type": "integer", "minimum": 1},
        })),
        "Task": object(&["task_id", "status", "created_at"], json!({
            "task_id": text(),
            "status": {"enum": ["pending", "running", "completed", "failed", "cancelled"]},
            "result": nullable("object"), "error": nullable("string"), "error_type": nullable("string"),
            "partial": text(), "created_at": text(), "completed_at": nullable("string"),
            "queue_position": nullable("integer"),
        })),
        "Run": object(&["run_id", "thread_id", "agent", "door", "status", "created_at"], json!({
            "run_id": text(), "thread_id": text(), "agent": text(), "door": text(),
            "status": {"enum": ["blocked", "ready", "running", "waiting", "success", "error", "timeout", "cancelled"]},
            "created_at": text(), "started_at": nullable("string"), "ended_at": nullable("string"),
            "deadline_at": nullable("string"), "priority": {"type": "integer"}, "pool": text(),
            "attempt": {"type": "integer"}, "cancel_requested": {"type": "boolean"},
            "metadata": {"type": "object"}, "spent_ms": {"type": "object"},
            "queue_position": nullable("integer"), "usage": {"type": "object"}, "error": nullable("object"),
            "waiting_on": {"type": ["object", "null"], "properties": {
                "kind": text(), "detail": text(), "since": text(), "for_ms": {"type": "integer"},
                "deadline": text(), "eta_ms": {"type": "integer"}, "who": text(), "how": text(), "sentence": text(),
            }},
        })),
        "Runs": object(&["runs", "next"], json!({
            "runs": {"type": "array", "items": {"$ref": "#/components/schemas/Run"}},
            "next": nullable("string"),
        })),
        "Events": object(&["events", "next"], json!({
            "events": {"type": "array", "items": object(
                &["seq", "id", "kind", "at", "data"],
                json!({"seq": {"type": "integer"}, "id": text(), "kind": text(), "at": text(), "data": {"type": "object"}}),
            )},
            "next": nullable("integer"),
        })),
        "Problem": object(&["type", "title", "status", "detail", "code", "request_id"], json!({
            "type": text(), "title": text(), "status": {"type": "integer"}, "detail": text(),
            "code": text(), "hint": text(), "request_id": text(), "retry_after_ms": {"type": "integer"},
        })),
    })
}

/// Refusals that many addresses share; `x-status` is where they belong.
fn responses() -> Value {
    let problem = |status: &str, description: &str| {
        json!({
            "x-status": status,
            "description": description,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        })
    };
    let mut unavailable = problem("503", "nothing was accepted; try again after the time given");
    unavailable["headers"] = json!({"Retry-After": {"$ref": "#/components/headers/RetryAfter"}});
    json!({
        "Invalid": problem("400", "the request is not what the address expects"),
        "NotFound": problem("404", "there is no such thing"),
        "Conflict": problem("409", "the thread is busy, the run has ended, or the key was used for something else"),
        "Unprocessable": problem("422", "the body is not what the address expects"),
        "TooLarge": problem("413", "the body is too large"),
        "TooMany": problem("429", "the queue is full; try again after the time given"),
        "Unavailable": unavailable,
    })
}

fn headers() -> Value {
    json!({"RetryAfter": {"description": "seconds", "schema": {"type": "integer"}}})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::app::Address;
    use crate::routes;

    #[test]
    fn the_document_and_the_table_of_addresses_agree() {
        let mut options = ServerOptions::new("127.0.0.1:0".parse().unwrap());
        options.doors.push(Door::cofounder("/second/door", "other"));
        let (_, known) = routes::table(&options).unwrap().into_parts();
        let document = document(&options);
        let mut described = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let method = method.to_uppercase();
                described.insert(Address { path: path.clone(), method });
                assert!(ids.insert(operation["operationId"].to_string()), "{operation}");
            }
        }
        assert_eq!(described, known);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let options = ServerOptions::new("127.0.0.1:0".parse().unwrap());
        let document = document(&options);
        let mut open = vec![&document];
        let mut seen = 0;
        while let Some(value) = open.pop() {
            match value {
                Value::Object(map) => {
                    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                        seen += 1;
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    open.extend(map.values());
                }
                Value::Array(items) => open.extend(items),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        assert!(seen > 20);
    }
}
