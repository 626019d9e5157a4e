//! The addresses of LangGraph's dialect beside threads and runs: assistants, the store, crons.

use serde_json::{Value, json};

use super::langgraph::{Answers, Entry, list_of, maybe, number, run_create, uuid};
use super::schemas::{object, text};
use super::{JSON, query};

pub(super) fn assistants() -> Vec<Entry> {
    let one: Answers = &[("200", "the assistant", JSON, "Assistant")];
    let many: Answers = &[("200", "those that fit", JSON, "Assistants")];
    let count: Answers = &[("200", "how many fit", JSON, "Count")];
    let gone: Answers = &[("204", "it is gone", "", "")];
    let any: Answers = &[("200", "as asked", JSON, "Object")];
    let id = "/assistants/{assistant_id}";
    let change = Some("AssistantChange");
    vec![
        (
            "post",
            "/assistants",
            "lg_assistant_create",
            "A new assistant",
            vec![],
            Some("AssistantCreate"),
            one,
        ),
        (
            "post",
            "/assistants/search",
            "lg_assistants",
            "Assistants; every graph has one of its own",
            vec![],
            Some("AssistantSearch"),
            many,
        ),
        (
            "post",
            "/assistants/count",
            "lg_assistant_count",
            "How many assistants",
            vec![],
            Some("AssistantCount"),
            count,
        ),
        ("get", id, "lg_assistant", "One assistant", vec![], None, one),
        ("patch", id, "lg_assistant_change", "A new version of it", vec![], change, one),
        ("delete", id, "lg_assistant_delete", "Delete it; its runs stay", vec![], None, gone),
        (
            "get",
            "/assistants/{assistant_id}/graph",
            "lg_graph",
            "Its nodes and edges; a graph's name will do, too",
            vec![],
            None,
            any,
        ),
        (
            "get",
            "/assistants/{assistant_id}/schemas",
            "lg_schemas",
            "Shapes of its input and state",
            vec![],
            None,
            any,
        ),
        (
            "get",
            "/assistants/{assistant_id}/subgraphs",
            "lg_subgraphs",
            "Always empty: nodes of subgraphs are the graph's own",
            vec![],
            None,
            any,
        ),
        (
            "get",
            "/assistants/{assistant_id}/subgraphs/{namespace}",
            "lg_subgraph",
            "Always empty",
            vec![],
            None,
            any,
        ),
        (
            "post",
            "/assistants/{assistant_id}/versions",
            "lg_versions",
            "Its versions, newest first",
            vec![],
            Some("AssistantVersions"),
            many,
        ),
        (
            "post",
            "/assistants/{assistant_id}/latest",
            "lg_latest",
            "Make a version the one that runs take",
            vec![],
            Some("AssistantLatest"),
            one,
        ),
    ]
}

pub(super) fn store() -> Vec<Entry> {
    let done: Answers = &[("204", "done", "", "")];
    let one: Answers = &[("200", "the item, or null", JSON, "MaybeItem")];
    let found: Answers = &[("200", "those that fit", JSON, "ItemsFound")];
    let spaces: Answers = &[("200", "those that have items", JSON, "NamespacesFound")];
    let of_key = vec![
        query("namespace", text(), "labels, joined by dots"),
        query("key", text(), "the item's key"),
        query("refresh_ttl", json!({"type": "boolean"}), "whether reading counts as a use"),
    ];
    let items = "/store/items";
    vec![
        ("put", items, "lg_item_put", "Keep an item", vec![], Some("ItemPut"), done),
        ("get", items, "lg_item", "One item", of_key, None, one),
        ("delete", items, "lg_item_delete", "Delete an item", vec![], Some("ItemDelete"), done),
        (
            "post",
            "/store/items/search",
            "lg_items",
            "Items by namespace, filter and words",
            vec![],
            Some("ItemSearch"),
            found,
        ),
        (
            "post",
            "/store/namespaces",
            "lg_namespaces",
            "Namespaces that have items",
            vec![],
            Some("NamespaceSearch"),
            spaces,
        ),
    ]
}

pub(super) fn crons() -> Vec<Entry> {
    let one: Answers = &[("200", "the cron", JSON, "Cron")];
    let many: Answers = &[("200", "those that fit", JSON, "Crons")];
    let count: Answers = &[("200", "how many fit", JSON, "Count")];
    let gone: Answers = &[("204", "it is gone", "", "")];
    let any: Answers = &[("200", "as asked", JSON, "Object")];
    let (create, change) = (Some("CronCreate"), Some("CronChange"));
    let id = "/runs/crons/{cron_id}";
    let on_thread = "/threads/{thread_id}/runs/crons";
    vec![
        ("post", "/runs/crons", "lg_cron_create", "Runs by the clock", vec![], create, one),
        ("post", on_thread, "lg_cron_create_on", "The same, all on a thread", vec![], create, one),
        ("post", "/runs/crons/search", "lg_crons", "Crons", vec![], Some("CronSearch"), many),
        (
            "post",
            "/runs/crons/count",
            "lg_cron_count",
            "How many crons",
            vec![],
            Some("CronCount"),
            count,
        ),
        ("get", id, "lg_cron", "One cron", vec![], None, one),
        ("patch", id, "lg_cron_change", "Change it; what is not named stays", vec![], change, one),
        ("delete", id, "lg_cron_delete", "Delete it", vec![], None, gone),
        (
            "get",
            "/threads/{thread_id}/storage",
            "lg_storage",
            "What a thread occupies",
            vec![],
            None,
            any,
        ),
    ]
}

pub(super) fn tools() -> Vec<Entry> {
    let answer: Answers = &[
        ("200", "the answer to a JSON-RPC request", JSON, "Object"),
        ("202", "a notification was taken", "", ""),
        ("400", "this is no JSON-RPC", "", ""),
        ("406", "`Accept` must name both application/json and text/event-stream", "", ""),
        ("415", "the body must be application/json", "", ""),
        ("422", "this is no JSON-RPC", "", ""),
    ];
    let refused: Answers = &[("405", "sessions and streams are not kept here", "", "")];
    let what = "Agents and workflows as MCP tools, over streamable HTTP";
    vec![
        ("post", "/mcp", "mcp", what, vec![], Some("JsonRpc"), answer),
        ("get", "/mcp", "mcp_stream", "Not here", vec![], None, refused),
        ("delete", "/mcp", "mcp_end", "Not here", vec![], None, refused),
    ]
}

pub(super) fn schemas() -> Value {
    let texts = || json!({"type": ["array", "null"], "items": text()});
    let labels = || json!({"type": "array", "items": text(), "minItems": 1, "maxItems": 32});
    let order = || json!({"enum": ["asc", "desc", null]});
    let any = || json!({"type": "object"});
    let item = json!({
        "namespace": {"type": "array", "items": text()}, "key": text(), "value": any(),
        "created_at": text(), "updated_at": text(), "score": maybe("number"),
    });
    let needed = ["namespace", "key", "value", "created_at", "updated_at"];
    let settings = || {
        json!({
            "graph_id": text(), "name": maybe("string"), "description": maybe("string"),
            "config": maybe("object"), "context": maybe("object"), "metadata": maybe("object"),
        })
    };
    let with = |mut properties: Value, more: Value| {
        if let (Value::Object(properties), Value::Object(more)) = (&mut properties, more) {
            properties.extend(more);
        }
        properties
    };
    let wanted = || json!({"graph_id": maybe("string"), "name": maybe("string"), "metadata": maybe("object")});
    let (crons, new_cron) = (cron_search(), cron_create());
    let mut changed_cron = new_cron.clone();
    changed_cron["required"] = json!([]);
    json!({
        "JsonRpc": object(&["jsonrpc", "method"], json!({
            "jsonrpc": {"const": "2.0"}, "id": {"type": ["string", "integer"]}, "method": text(),
            "params": any(),
        })),
        "AssistantCreate": object(&["graph_id"], with(settings(), json!({
            "assistant_id": {"type": ["string", "null"], "format": "uuid"},
            "if_exists": {"enum": ["raise", "do_nothing", null]},
        }))),
        "AssistantChange": object(&[], with(settings(), json!({"graph_id": maybe("string")}))),
        "AssistantSearch": object(&[], with(wanted(), json!({
            "limit": number(1, 1000, 10), "offset": number(0, i64::from(u32::MAX), 0),
            "sort_by": {"enum": ["assistant_id", "created_at", "updated_at", "name", "graph_id",
                null]},
            "sort_order": order(),
            "select": {"type": ["array", "null"], "items": {"enum": ["assistant_id", "graph_id",
                "name", "description", "config", "context", "created_at", "updated_at", "metadata",
                "version"]}},
        }))),
        "AssistantCount": object(&[], wanted()),
        "AssistantVersions": object(&[], json!({
            "metadata": maybe("object"), "limit": number(1, 1000, 10),
            "offset": number(0, i64::from(u32::MAX), 0),
        })),
        "AssistantLatest": object(&["version"], json!({
            "version": {"type": "integer", "minimum": 1},
        })),
        "MaybeItem": with(object(&needed, item.clone()), json!({"type": ["object", "null"]})),
        "ItemsFound": object(&["items"], json!({
            "items": {"type": "array", "items": object(&needed, item)},
        })),
        "NamespacesFound": object(&["namespaces"], json!({
            "namespaces": {"type": "array", "items": {"type": "array", "items": text()}},
        })),
        "ItemPut": object(&["namespace", "key", "value"], json!({
            "namespace": labels(), "key": {"type": "string", "minLength": 1}, "value": any(),
            "index": {"oneOf": [{"const": false}, {"type": "array", "items": text()},
                {"type": "null"}]},
            "ttl": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 5_270_400},
        })),
        "ItemDelete": object(&["namespace", "key"], json!({
            "namespace": labels(), "key": {"type": "string", "minLength": 1},
        })),
        "ItemSearch": object(&[], json!({
            "namespace_prefix": texts(), "filter": maybe("object"),
            "limit": number(0, 1000, 10), "offset": number(0, i64::from(u32::MAX), 0),
            "query": maybe("string"), "refresh_ttl": maybe("boolean"),
        })),
        "NamespaceSearch": object(&[], json!({
            "prefix": texts(), "suffix": texts(),
            "max_depth": {"type": ["integer", "null"], "minimum": 1},
            "limit": number(0, 1000, 100), "offset": number(0, i64::from(u32::MAX), 0),
        })),
        "Cron": cron(),
        "Crons": list_of("Cron"),
        "CronCreate": new_cron,
        "CronChange": changed_cron,
        "CronSearch": object(&[], with(crons.clone(), json!({
            "limit": number(1, 1000, 10), "offset": number(0, i64::from(u32::MAX), 0),
            "sort_by": {"enum": ["cron_id", "assistant_id", "thread_id", "next_run_date",
                "end_time", "created_at", "updated_at", null]},
            "sort_order": order(),
            "select": {"type": ["array", "null"], "items": {"enum": ["cron_id", "assistant_id",
                "thread_id", "on_run_completed", "end_time", "schedule", "timezone", "created_at",
                "updated_at", "user_id", "payload", "next_run_date", "metadata", "enabled"]}},
        }))),
        "CronCount": object(&[], crons),
    })
}

fn cron() -> Value {
    // A search may choose the fields, so none is sure to be there.
    object(
        &[],
        json!({
            "cron_id": uuid(), "assistant_id": uuid(), "thread_id": maybe("string"),
            "user_id": text(), "schedule": text(), "timezone": maybe("string"),
            "end_time": maybe("string"), "enabled": {"type": "boolean"},
            "next_run_date": maybe("string"), "on_run_completed": maybe("string"),
            "payload": {"type": "object"}, "metadata": {"type": "object"}, "created_at": text(),
            "updated_at": text(), "last_run_id": maybe("string"), "last_error": maybe("string"),
        }),
    )
}

fn cron_create() -> Value {
    let mut run = run_create();
    run["required"] = json!(["assistant_id", "schedule"]);
    if let Some(properties) = run["properties"].as_object_mut() {
        for name in ["checkpoint", "checkpoint_id", "on_disconnect", "if_not_exists"] {
            properties.remove(name);
        }
        properties.insert("schedule".to_owned(), text());
        properties.insert("timezone".to_owned(), maybe("string"));
        properties.insert("end_time".to_owned(), maybe("string"));
        properties.insert("enabled".to_owned(), maybe("boolean"));
        properties.insert("on_run_completed".to_owned(), json!({"enum": ["delete", "keep", null]}));
    }
    run
}

fn cron_search() -> Value {
    json!({
        "assistant_id": {"type": ["string", "null"], "format": "uuid"},
        "thread_id": {"type": ["string", "null"], "format": "uuid"},
        "enabled": maybe("boolean"), "metadata": maybe("object"),
    })
}
