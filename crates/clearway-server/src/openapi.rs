//! `GET /openapi.json`: all addresses, written by hand.
//!
//! A test holds it against the table of addresses, both ways; a schema-based tester
//! (`scripts/test-clients schema`) holds the answers against it.
//!
//! Not here: the addresses themselves (`own`, `doors`, `knowledge`, `langgraph`, `library`).

use serde_json::{Map, Value, json};

use crate::server::{DoorKind, ServerOptions};

mod doors;
mod knowledge;
mod langgraph;
mod library;
mod own;
mod schemas;

use schemas::text;

/// The document for a server with these doors.
pub(crate) fn document(options: &ServerOptions) -> Value {
    let mut paths = Map::new();
    own::paths(&mut paths);
    langgraph::paths(&mut paths);
    knowledge::own(&mut paths);
    for door in &options.doors {
        match door.kind {
            DoorKind::CoFounder => doors::cofounder(&mut paths, door),
            DoorKind::Campaign => doors::campaign(&mut paths, door),
            DoorKind::Knowledge => knowledge::door(&mut paths, door),
        }
    }
    guarded(&mut paths, !options.keys.is_empty());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Clearway",
            "version": options.version,
            "description": "An agent server where nothing blocks, hangs or gets lost.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas::all(), "responses": responses(), "headers": headers(),
        },
    })
}

/// Status, what it means, media type, schema. Without a schema JSON is an object, a stream has events,
/// text is text, and anything else is bytes.
type Answer<'a> = (&'a str, &'a str, &'a str, &'a str);

/// What is sent along.
#[derive(Clone, Copy, Debug)]
enum Sends {
    /// A body of this schema.
    Body(&'static str),
    /// The same, or nothing.
    Maybe(&'static str),
    /// A form with a file.
    File,
}

/// How an address refuses: in whose shape, and for which of the shared reasons.
#[derive(Clone, Copy, Debug)]
struct Refusals(Style, &'static [&'static str]);

#[derive(Clone, Copy, Debug)]
enum Style {
    /// Problems of RFC 9457.
    Own,
    /// `{"detail": …}`, as the old services do, where they knew the mistake.
    Old,
    OpenAi,
}

impl Style {
    const ALL: [Self; 3] = [Self::Own, Self::Old, Self::OpenAi];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Own => "",
            Self::Old => "Old",
            Self::OpenAi => "OpenAi",
        }
    }

    fn content(self) -> Value {
        let schema = |name: &str| json!({"schema": reference("schemas", name)});
        match self {
            Self::Own => json!({PROBLEM: schema("Problem")}),
            Self::Old => json!({JSON: schema("OldProblem"), PROBLEM: schema("Problem")}),
            Self::OpenAi => json!({JSON: schema("OpenAiError")}),
        }
    }
}

/// A list that is asked for in a wrong way, or whose store is not there.
const LIST: &[&str] = &["Invalid", "Unavailable"];
const READ: &[&str] = &["Invalid", "NotFound", "Unavailable"];
/// Without a body there is less to be wrong.
const ACT: &[&str] = &["Invalid", "NotFound", "Conflict", "TooMany", "Unavailable"];
const WRITE: &[&str] = &[
    "Invalid",
    "NotFound",
    "TooSlow",
    "Conflict",
    "TooLarge",
    "Unprocessable",
    "TooMany",
    "Unavailable",
];

/// One operation of one path.
struct Operation<'a> {
    method: &'a str,
    path: &'a str,
    id: &'a str,
    summary: &'a str,
    /// Beside those of the path.
    parameters: Vec<Value>,
    sends: Option<Sends>,
    answers: &'a [Answer<'a>],
    refusals: Refusals,
}

impl Default for Operation<'_> {
    fn default() -> Self {
        Self {
            method: "get",
            path: "",
            id: "",
            summary: "",
            parameters: Vec::new(),
            sends: None,
            answers: &[],
            refusals: Refusals(Style::Own, &[]),
        }
    }
}

fn put(paths: &mut Map<String, Value>, operation: Operation<'_>) {
    let mut answers = Map::new();
    for &(status, meaning, media, schema) in operation.answers {
        let entry = answers.entry(status).or_insert_with(|| json!({"description": meaning}));
        let schema = match (schema, media) {
            ("", "") => continue,
            ("", JSON) => json!({"schema": reference("schemas", "Object")}),
            ("", SSE) => json!({"schema": reference("schemas", "StreamEvent")}),
            ("", TEXT | METRICS) => json!({"schema": text()}),
            ("", _) => json!({}),
            (name, _) => json!({"schema": reference("schemas", name)}),
        };
        entry["content"][media] = schema;
    }
    let Refusals(style, reasons) = operation.refusals;
    for reason in reasons {
        let Some((_, status, _)) = REASONS.iter().find(|(name, ..)| name == reason) else {
            continue;
        };
        let name = format!("{}{reason}", style.prefix());
        answers.entry(*status).or_insert_with(|| reference("responses", &name));
    }
    let named = operation.path.split('{').skip(1).filter_map(|part| part.split('}').next());
    let mut parameters: Vec<Value> = named.map(in_path).collect();
    parameters.extend(operation.parameters);
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": answers,
    });
    let body = |name: &str| json!({JSON: {"schema": reference("schemas", name)}});
    match operation.sends {
        None => {}
        Some(Sends::Body(name)) => {
            described["requestBody"] = json!({"required": true, "content": body(name)});
        }
        Some(Sends::Maybe(name)) => {
            described["requestBody"] = json!({"required": false, "content": body(name)});
        }
        Some(Sends::File) => {
            let form = json!({"multipart/form-data": {"schema": reference("schemas", "Upload")}});
            described["requestBody"] = json!({"required": true, "content": form});
        }
    }
    let path = paths.entry(operation.path).or_insert_with(|| json!({}));
    path[operation.method] = described;
}

/// What every address may answer before it looks at the request: that the host or page may not ask;
/// with keys, that the key is missing or used too often.
fn guarded(paths: &mut Map<String, Value>, has_keys: bool) {
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut);
    for operation in operations {
        let Some(answers) = operation["responses"].as_object_mut() else { continue };
        let reasons: &[&str] =
            if has_keys { &["Unauthorized", "Forbidden", "TooMany"] } else { &["Forbidden"] };
        for (name, status, _) in REASONS.iter().filter(|(name, ..)| reasons.contains(name)) {
            answers.entry(*status).or_insert_with(|| reference("responses", name));
        }
    }
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"$ref": format!("#/components/{kind}/{name}")})
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({"name": name, "in": "query", "required": false, "schema": schema, "description": description})
}

fn needed(mut parameter: Value) -> Value {
    parameter["required"] = true.into();
    parameter
}

fn in_path(name: &str) -> Value {
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

fn flag(name: &str, description: &str) -> Value {
    query(name, json!({"enum": ["1", "0", "true", "false"]}), description)
}

const JSON: &str = "application/json";
const PROBLEM: &str = "application/problem+json";
const SSE: &str = "text/event-stream";
const TEXT: &str = "text/plain";
const METRICS: &str = "application/openmetrics-text";
/// Files that are what they are.
const BYTES: &str = "*/*";

/// Reasons to refuse that many addresses share.
const REASONS: [(&str, &str, &str); 13] = [
    ("Invalid", "400", "the request is not what the address expects"),
    ("Unauthorized", "401", "a key is needed, and this is none"),
    ("Forbidden", "403", "whoever asks may not"),
    ("NotFound", "404", "there is no such thing"),
    ("TooSlow", "408", "the body took too long to arrive"),
    (
        "Conflict",
        "409",
        "the thread is busy, the run has ended, or the key was used for something else",
    ),
    ("Gone", "410", "it was there, and is kept no longer"),
    ("TooLarge", "413", "the body is too large"),
    ("Unprocessable", "422", "the body is not what the address expects"),
    ("TooMany", "429", "the queue is full; try again after the time given"),
    ("Failed", "502", "what was asked for was begun and failed"),
    ("Unavailable", "503", "nothing was accepted; try again after the time given"),
    ("Late", "504", "the deadline passed; the error says in which phase"),
];

fn responses() -> Value {
    let mut all = Map::new();
    for style in Style::ALL {
        for (name, status, description) in REASONS {
            let mut one = json!({"description": description, "content": style.content()});
            if matches!(status, "429" | "503") {
                one["headers"] = json!({"Retry-After": reference("headers", "RetryAfter")});
            }
            all.insert(format!("{}{name}", style.prefix()), one);
        }
    }
    Value::Object(all)
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
    use crate::server::Door;

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
