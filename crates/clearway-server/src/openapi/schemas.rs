//! Shapes that more than one group of addresses has, and those of our own addresses.

use serde_json::{Map, Value, json};

use super::{knowledge, langgraph, library};

pub(super) fn all() -> Map<String, Value> {
    let parts = [
        general(),
        shared(),
        own(),
        campaigns(),
        embeddings(),
        langgraph::schemas(),
        library::schemas(),
        knowledge::schemas(),
    ];
    parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect()
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

pub(super) fn nullable(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

pub(super) fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn embeddings() -> Value {
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

fn general() -> Value {
    json!({
        "Anything": {},
        // What a stream consists of; heartbeats are comments.
        "StreamEvent": object(&["data"], json!({
            "event": text(), "id": text(),
            "data": {"type": "string", "contentMediaType": "application/json"},
        })),
        "OldProblem": object(&["detail"], json!({
            "detail": {"oneOf": [
                object(&["error_type", "error_message"], json!({
                    "error_type": text(), "error_message": text(), "thread_id": nullable("string"),
                })),
                {"type": "array", "items": object(&["type", "loc", "msg"], json!({
                    "type": text(), "msg": text(),
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                }))},
            ]},
            "code": text(), "request_id": text(), "retry_after_ms": {"type": "integer"},
        })),
    })
}

fn shared() -> Value {
    let name = || json!({"type": "string", "minLength": 1, "maxLength": 256});
    let default_name = || json!({"type": ["string", "null"], "minLength": 1, "maxLength": 256, "default": "default"});
    json!({
        "Object": {"type": "object"},
        "Turn": object(&["user_id", "message"], json!({
            "user_id": name(), "message": {"type": "string", "minLength": 1},
            "conversation_id": default_name(), "metadata": {"type": ["object", "null"], "default": {}},
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
            "metadata": nullable("object"), "deadline_ms": {"type": "integer", "minimum": 1},
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

/// Bodies of our own addresses.
fn own() -> Value {
    let count = |least: u64| json!({"type": "number", "minimum": least, "maximum": 1e15});
    let priority = || {
        json!({"oneOf": [
            {"enum": ["high", "normal", "low"]}, {"type": "integer", "minimum": 1, "maximum": 5},
        ]})
    };
    let budget = || {
        json!({"type": "object", "properties": {
            "tokens": count(0), "cost": count(0), "calls": count(0),
        }})
    };
    let closed = |required: &[&str], properties: Value| {
        let mut schema = object(required, properties);
        schema["additionalProperties"] = false.into();
        schema
    };
    json!({
        "StartWorkflow": closed(&[], json!({
            "input": nullable("object"), "thread_id": {"type": "string", "format": "uuid"},
            "key": text(), "priority": priority(), "budget": budget(),
            "webhook": nullable("string"),
            "after_seconds": {"type": ["number", "null"], "minimum": 0, "maximum": 31_536_000},
            "metadata": nullable("object"),
        })),
        "AnswerRun": closed(&["answer"], json!({"answer": {}, "question": text()})),
        "ResolveRun": closed(&[], json!({
            "done": {}, "retry": {"const": true}, "node": text(), "key": text(),
        })),
        "ChangeRun": closed(&[], json!({"priority": priority(), "budget": budget()})),
        "ChangePool": closed(&["slots"], json!({
            "slots": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        })),
        "PruneThread": closed(&["keep"], json!({
            "keep": {"oneOf": [{"const": "ends"}, {"type": "integer", "minimum": 1}]},
        })),
        "ForkThread": closed(&["checkpoint"], json!({
            "checkpoint": {"type": "string", "format": "uuid"}, "agent": text(),
        })),
        "Attention": object(&["attention"], json!({
            "attention": {"type": "array", "items": object(&["run_id", "agent", "kind"], json!({
                "run_id": text(), "agent": text(), "kind": text(), "who": text(),
                "detail": {}, "command": nullable("string"), "since": nullable("string"),
            }))},
            "alerts": {"type": "array", "items": object(&["alert", "state", "value"], json!({
                "alert": text(), "subject": text(), "state": text(),
                "value": {"type": "number"}, "threshold": {"type": "number"},
                "raised_at": text(), "cleared_at": nullable("string"), "detail": text(),
            }))},
            "looked_at": {"type": "integer"},
            "more": {"type": "boolean"},
        })),
        "Attempts": object(&["attempts", "next"], json!({
            "attempts": {"type": "array", "items": object(&["at", "call", "attempt", "outcome"], json!({
                "at": text(), "call": text(), "node": nullable("string"),
                "attempt": {"type": "integer"}, "provider": text(), "endpoint": text(),
                "model": text(), "key": text(), "class": text(), "phase": text(),
                "outcome": text(), "status": nullable("integer"), "source": text(),
                "input_tokens": {"type": "integer"}, "output_tokens": {"type": "integer"},
                "cached_tokens": {"type": "integer"}, "reasoning_tokens": {"type": "integer"},
                "price": nullable("object"), "cost": nullable("number"),
                "ms": {"type": "integer"}, "first_output_ms": nullable("integer"),
            }))},
            "next": nullable("integer"),
        })),
        "Artifacts": object(&["artifacts"], json!({
            "artifacts": {"type": "array", "items": object(&["name", "version"], json!({
                "name": text(), "version": {"type": "integer"}, "node": nullable("string"),
                "media_type": text(), "size_bytes": {"type": "integer"}, "sha256": text(),
                "created_at": text(), "run_id": text(),
            }))},
        })),
        "StoredThreads": object(&["threads", "next"], json!({
            "threads": {"type": "array", "items": {"type": "object"}}, "next": nullable("string"),
        })),
        "StoredThread": object(&["thread_id"], json!({
            "thread_id": text(), "values": nullable("object"), "storage": {"type": "object"},
        })),
        "Checkpoints": object(&["checkpoints", "next"], json!({
            "checkpoints": {"type": "array", "items": object(&["checkpoint", "step"], json!({
                "checkpoint": text(), "parent": nullable("string"), "run_id": nullable("string"),
                "step": {"type": "integer"}, "source": text(),
                "next": {"type": "array", "items": text()}, "created_at": text(),
                "head": {"type": "boolean"},
            }))},
            "next": nullable("string"),
        })),
    })
}

fn campaigns() -> Value {
    let texts = || json!({"type": "array", "items": text()});
    let listed = |progress: bool| {
        let mut one = json!({
            "campaign_id": text(), "status": text(), "created_at": text(),
            "completed_at": nullable("string"), "execution_time": nullable("number"),
            "artifacts_count": {"type": "integer"}, "created_by": text(),
        });
        if progress {
            one["progress"] = json!({"type": "object"});
        }
        let count = || json!({"type": "integer"});
        object(
            &["campaigns", "total"],
            json!({
                "campaigns": {"type": "array", "items": object(&["campaign_id", "status"], one)},
                "total": count(), "completed": count(), "running": count(), "failed": count(),
                "queued": count(), "cancelled": count(),
            }),
        )
    };
    json!({
        "Brief": object(&[], json!({
            "campaign_name": nullable("string"), "product": text(), "client": text(),
            "client_website": nullable("string"), "client_logo": nullable("string"),
            "color_scheme": text(), "target_audience": text(), "goals": texts(),
            "key_features": texts(), "budget": text(), "timeline": text(),
            "additional_requirements": nullable("string"),
            "priority": {"type": ["string", "integer", "null"]}, "webhook": nullable("string"),
        })),
        "Campaign": object(&["campaign_id", "status"], json!({
            "campaign_id": text(), "status": text(), "message": nullable("string"),
            "artifacts": {"type": "object"}, "website_url": nullable("string"),
            "pdf_url": nullable("string"), "created_at": text(), "created_by": text(),
        })),
        "Campaigns": listed(false),
        "CampaignsProgress": listed(true),
        "ChangeCampaign": object(&[], json!({"priority": {"type": ["string", "integer"]}})),
    })
}
