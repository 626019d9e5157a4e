//! Messages, as LangChain writes them and as they are kept.
//!
//! A message may come as text, as a pair of role and text, with a `role` or with a `type`, or as an
//! object that LangChain has serialised. It is kept in one form, under an id. What is shown has every
//! field that LangChain's own messages have.

use serde_json::{Map, Value, json};

use crate::extract::shown;

/// The id that stands for all messages when it is to be removed.
const REMOVE_ALL: &str = "__remove_all__";

/// Messages as they are kept, and whether they replace all that are there.
#[derive(Debug, PartialEq)]
pub(super) struct Read {
    pub(super) messages: Vec<Value>,
    pub(super) replaces: bool,
}

/// Reads one message or a list of them.
///
/// # Errors
/// What is wrong with which one.
pub(super) fn read(value: &Value, new_id: &mut dyn FnMut() -> String) -> Result<Read, String> {
    let items: Vec<&Value> = match value {
        Value::Null => Vec::new(),
        // A pair of role and text is one message; a list of pairs is several.
        Value::Array(pair) if is_pair(pair) => vec![value],
        Value::Array(items) => items.iter().collect(),
        one => vec![one],
    };
    let mut messages = Vec::with_capacity(items.len());
    let mut replaces = false;
    for (at, item) in items.into_iter().enumerate() {
        let message = one(item, new_id).map_err(|why| format!("messages[{at}]: {why}"))?;
        if message["type"] == "remove" && message["id"] == REMOVE_ALL {
            messages.clear();
            replaces = true;
        } else {
            messages.push(message);
        }
    }
    Ok(Read { messages, replaces })
}

fn is_pair(items: &[Value]) -> bool {
    match items {
        [Value::String(role), Value::String(_) | Value::Array(_)] => role_of(role).is_some(),
        _ => false,
    }
}

fn one(value: &Value, new_id: &mut dyn FnMut() -> String) -> Result<Value, String> {
    match value {
        Value::String(text) => Ok(json!({"type": "human", "content": text, "id": new_id()})),
        Value::Array(pair) if is_pair(pair) => {
            let role = pair[0].as_str().and_then(role_of).unwrap_or("human");
            Ok(json!({"type": role, "content": pair[1], "id": new_id()}))
        }
        Value::Object(map) => match serialised(map) {
            Some(inside) => object(inside, new_id),
            None => object(map.clone(), new_id),
        },
        _ => Err("a message is an object with `role` (or `type`) and `content`".to_owned()),
    }
}

/// `{"lc": 1, "type": "constructor", "id": [..., "HumanMessage"], "kwargs": {...}}`
fn serialised(map: &Map<String, Value>) -> Option<Map<String, Value>> {
    if map.get("type")? != "constructor" {
        return None;
    }
    let class = map.get("id")?.as_array()?.last()?.as_str()?;
    let mut inside = map.get("kwargs")?.as_object()?.clone();
    inside.insert("type".to_owned(), class.into());
    Some(inside)
}

fn object(
    mut map: Map<String, Value>,
    new_id: &mut dyn FnMut() -> String,
) -> Result<Value, String> {
    let role = match map.remove("role") {
        Some(Value::String(role)) => Some(role),
        Some(Value::Null) | None => None,
        Some(_) => return Err("`role` must be a string".to_owned()),
    };
    let kind = match map.remove("type") {
        Some(Value::String(kind)) => Some(kind),
        Some(Value::Null) | None => None,
        Some(_) => return Err("`type` must be a string".to_owned()),
    };
    let named = role.or(kind).ok_or("`role` or `type` is required")?;
    let kind = role_of(&named).ok_or_else(|| {
        let known = "user, assistant, system, tool (or human, ai)";
        format!("no role is called `{}`; there are: {known}", shown(&named))
    })?;
    let id = match map.remove("id") {
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::String(_) | Value::Null) | None if kind == "remove" => {
            return Err("a message to be removed is named by its `id`".to_owned());
        }
        Some(Value::String(_) | Value::Null) | None => new_id(),
        Some(_) => return Err("`id` must be a string".to_owned()),
    };
    if kind == "remove" {
        return Ok(json!({"type": "remove", "id": id}));
    }
    let content = match map.remove("content") {
        Some(content @ (Value::String(_) | Value::Array(_))) => content,
        Some(Value::Null) | None => Value::String(String::new()),
        Some(_) => return Err("`content` must be text or a list of parts".to_owned()),
    };
    if kind == "ai" {
        openai_calls(&mut map);
    }
    let mut message = Map::new();
    message.insert("type".to_owned(), kind.into());
    message.insert("content".to_owned(), content);
    message.insert("id".to_owned(), id.into());
    // What says nothing is added again when the message is shown.
    message.extend(map.into_iter().filter(|(_, value)| !says_nothing(value)));
    Ok(Value::Object(message))
}

/// OpenAI's form of tool calls, as LangChain's.
fn openai_calls(map: &mut Map<String, Value>) {
    let Some(Value::Array(calls)) = map.get_mut("tool_calls") else { return };
    for call in calls {
        if let Some(Value::Object(function)) = call.get("function") {
            let text = function.get("arguments").and_then(Value::as_str).unwrap_or("{}");
            let args: Value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
            *call = json!({
                "id": call["id"], "name": function.get("name"), "args": args, "type": "tool_call",
            });
        }
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// LangChain's word for a role or a class of messages.
fn role_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "user" | "human" | "HumanMessage" | "HumanMessageChunk" => "human",
        "assistant" | "ai" | "AIMessage" | "AIMessageChunk" => "ai",
        "system" | "developer" | "SystemMessage" | "SystemMessageChunk" => "system",
        "tool" | "function" | "ToolMessage" | "ToolMessageChunk" => "tool",
        "remove" | "RemoveMessage" => "remove",
        _ => return None,
    })
}

/// Whether an item of a channel is a message.
pub(super) fn is_message(item: &Value) -> bool {
    let kind = item.get("type").and_then(Value::as_str);
    matches!(kind, Some("human" | "ai" | "system" | "tool"))
        && item.get("content").is_some()
        && item.get("id").is_some_and(Value::is_string)
}

/// A kept message with every field that LangChain's has; anything else as it is.
pub(super) fn complete(item: &Value) -> Value {
    let Value::Object(map) = item else { return item.clone() };
    if !is_message(item) {
        return item.clone();
    }
    let mut full = Map::with_capacity(map.len() + 6);
    let mut put = |name: &str, default: Value| {
        full.insert(name.to_owned(), map.get(name).cloned().unwrap_or(default));
    };
    put("content", Value::Null);
    put("additional_kwargs", json!({}));
    put("response_metadata", json!({}));
    put("type", Value::Null);
    put("name", Value::Null);
    put("id", Value::Null);
    match map["type"].as_str() {
        Some("ai") => {
            put("tool_calls", json!([]));
            put("invalid_tool_calls", json!([]));
            put("usage_metadata", Value::Null);
        }
        Some("tool") => {
            put("tool_call_id", Value::Null);
            put("artifact", Value::Null);
            put("status", "success".into());
        }
        _ => {}
    }
    for (name, value) in map {
        if !full.contains_key(name) {
            full.insert(name.clone(), value.clone());
        }
    }
    Value::Object(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(value: Value) -> Result<Vec<Value>, String> {
        let mut next = 0;
        let mut id = || {
            next += 1;
            format!("new-{next}")
        };
        read(&value, &mut id).map(|read| read.messages)
    }

    #[test]
    fn messages_come_in_many_forms() {
        let human = json!([{"type": "human", "content": "hi", "id": "new-1"}]);
        for form in [
            json!("hi"),
            json!(["user", "hi"]),
            json!([["human", "hi"]]),
            json!(["hi"]),
            json!({"role": "user", "content": "hi"}),
            json!([{"type": "human", "content": "hi", "id": null, "additional_kwargs": {}}]),
            json!([{"lc": 1, "type": "constructor", "id": ["langchain_core", "messages",
                "HumanMessage"], "kwargs": {"content": "hi"}}]),
        ] {
            assert_eq!(Value::Array(kept(form.clone()).unwrap()), human, "{form}");
        }
        let call = json!({"role": "assistant", "content": null, "id": "a", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}}
        ]});
        assert_eq!(
            kept(call).unwrap(),
            [json!({"type": "ai", "content": "", "id": "a", "tool_calls": [
                {"id": "c", "name": "f", "args": {"x": 1}, "type": "tool_call"}
            ]})]
        );
    }

    #[test]
    fn what_is_no_message_is_named() {
        for bad in [
            json!(7),
            json!([{"content": "x"}]),
            json!([{"role": "robot"}]),
            json!([null]),
            json!([{"role": "user", "content": 3}]),
            json!([{"type": "remove"}]),
        ] {
            assert!(kept(bad.clone()).unwrap_err().starts_with("messages[0]: "), "{bad}");
        }
        assert_eq!(kept(json!(null)), Ok(Vec::new()));
    }

    #[test]
    fn all_messages_can_be_replaced() {
        let mut id = String::new;
        let value = json!([{"type": "human", "content": "old", "id": "1"},
            {"type": "remove", "id": "__remove_all__"}, {"role": "user", "content": "new", "id": "2"}]);
        let read = read(&value, &mut id).unwrap();
        assert!(read.replaces);
        assert_eq!(read.messages.len(), 1);
    }

    #[test]
    fn shown_messages_are_whole() {
        let shown = complete(&json!({"type": "ai", "content": "x", "id": "1", "extra": 1}));
        expect_test::expect![[r#"{"content":"x","additional_kwargs":{},"response_metadata":{},"type":"ai","name":null,"id":"1","tool_calls":[],"invalid_tool_calls":[],"usage_metadata":null,"extra":1}"#]]
            .assert_eq(&shown.to_string());
        let other = json!({"type": "note", "content": 1, "id": "x"});
        assert_eq!(complete(&other), other);
    }
}
